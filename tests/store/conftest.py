from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope='session')
def sail() -> Iterator[Any]:
    r"""A Spark session that Sail serves, in this process."""
    pytest.importorskip('pysail', reason='Sail is not installed: make test installs it')
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer('127.0.0.1', 0)
    server.start()
    host, port = server.listening_address
    session = SparkSession.builder.remote(f'sc://{host}:{port}').create()
    yield session
    session.stop()
    server.stop()
