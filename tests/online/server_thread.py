r"""A server in a thread of the tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mag.online import Server


@contextmanager
def in_thread(server: Server) -> Iterator[Server]:
    r"""Starts a server in an event loop of its own, and stops it at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(5), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
