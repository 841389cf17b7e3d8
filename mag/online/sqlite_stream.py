r"""The log of events in a file."""

import os
import threading
from contextlib import closing

import numpy as np

from mag.checks import check_choice
from mag.files import flush
from mag.online.event_stream import EventStream
from mag.online.events import EVENT, checksum_of
from mag.online.sqlite_file import open_file

# 'mags': what tells the file from others of SQLite.
_APPLICATION = 0x6D616773
# A reader of some events loads whole batches.
_NUM_TOGETHER = 8192
_TABLES = """
CREATE TABLE batch ("end" INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, events BLOB NOT NULL);
"""


class SqliteStream(EventStream):
    r"""An :class:`~mag.online.EventStream` in a file of SQLite, for one machine: no server runs.

    One process appends at a time, while others read. What is appended is there whole or not at all,
    and survives the end of the process.

    Args:
        path (str or os.PathLike): The file, on a disk of this machine, which is made if there is
            none. Two more are beside it while it is open, with :obj:`-wal` and :obj:`-shm` at the
            end of their names.
        durability (str, optional): What survives when the machine loses power: all that is appended
            (:obj:`"always"`), or all but what is of the last second (:obj:`"second"`), which takes
            a fraction of the time where batches are small. (default: :obj:`"always"`)

    Raises:
        ValueError: If the file is another one.
        sqlite3.OperationalError: If it cannot be opened, or another process holds it for more than
            five seconds.
    """

    def __init__(self, path: str | os.PathLike[str], durability: str = 'always') -> None:
        check_choice(('always', 'second'), durability=durability)
        self.path = os.path.abspath(path)
        self.durability = durability
        self._flushing = threading.Lock()
        # Runs where something is not flushed.
        self._timer: threading.Timer | None = None
        self._failure: OSError | None = None
        self._database = open_file(self.path, type(self).__name__, _APPLICATION, _TABLES)
        synchronous = 'FULL' if durability == 'always' else 'NORMAL'
        self._database.execute(f'PRAGMA synchronous = {synchronous}')

    def close(self) -> None:
        r"""Waits until all is on the disk, and closes the file."""
        if (timer := self._timer) is not None:
            timer.cancel()
        self._flush()
        self._database.close()
        self._raise_failure()

    def _bounds(self) -> tuple[int, int, int]:
        with closing(
            self._database.execute(
                'SELECT first."end" - length(first.events) / ?, last."end", last.checksum '
                'FROM batch first, batch last '
                'WHERE first."end" = (SELECT min("end") FROM batch) '
                'AND last."end" = (SELECT max("end") FROM batch)',
                (EVENT.itemsize,),
            )
        ) as rows:
            return rows.fetchone() or (0, 0, 0)

    def _extend(self, events: np.ndarray, position: int) -> int:
        self._raise_failure()
        # The end that is read stays the end until what follows is there.
        self._database.execute('BEGIN IMMEDIATE')
        try:
            _, end, checksum = self._bounds()
            if end == position:
                for row in range(0, len(events), _NUM_TOGETHER):
                    batch = events[row : row + _NUM_TOGETHER]
                    checksum = checksum_of(batch, checksum)
                    self._database.execute(
                        'INSERT INTO batch VALUES (?, ?, ?)',
                        (position + row + len(batch), checksum, batch.tobytes()),
                    )
            self._database.execute('COMMIT')
        except BaseException:
            if self._database.in_transaction:
                self._database.execute('ROLLBACK')
            raise
        if self.durability == 'second' and self._timer is None:
            self._timer = threading.Timer(1.0, self._flush)
            self._timer.start()
        return end

    def _flush(self) -> None:
        with self._flushing:
            if self._timer is None:
                return
            # First: what is appended from now on may miss this flush, and starts another.
            self._timer = None
            try:
                # SQLite holds no lock on this file, which closing it here would give back.
                flush(f'{self.path}-wal')
            except OSError as error:
                self._failure = error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _batches(self, position: int, limit: int) -> list[tuple[int, int, bytes]]:
        batches = []
        with closing(
            self._database.execute(
                'SELECT "end", checksum, events FROM batch WHERE "end" > ? ORDER BY "end"',
                (position,),
            )
        ) as rows:
            for batch in rows:
                batches.append(batch)
                if batch[0] >= position + limit:
                    break
        return batches

    def _trim(self, position: int) -> None:
        self._database.execute(
            'DELETE FROM batch WHERE "end" <= ? AND "end" < (SELECT max("end") FROM batch)',
            (position,),
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'
