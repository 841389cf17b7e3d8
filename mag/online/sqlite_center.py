r"""The rows of all nodes in a file."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mag.online.feature_center import Claim, FeatureCenter
from mag.online.node_rows import RowLayout
from mag.online.sqlite_file import open_file

# 'magc': what tells the file from others of SQLite.
_APPLICATION = 0x6D616763
_TABLES = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE claim (
    shard INTEGER PRIMARY KEY, epoch TEXT NOT NULL, position INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE user_row (node INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE item_row (node INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE user_pair (pair INTEGER PRIMARY KEY);
CREATE TABLE item_pair (pair INTEGER PRIMARY KEY);
"""


class SqliteCenter(FeatureCenter):
    r"""A :class:`~mag.online.FeatureCenter` in a file of SQLite, for one machine: no server runs.

    One process commits at a time, while others read. What is committed survives the end of the
    process, and of the power of the machine.

    Args:
        path (str or os.PathLike): The file, on a disk of this machine, which is made if there is
            none. Two more are beside it while it is open, with :obj:`-wal` and :obj:`-shm` at the
            end of their names.
        layout (RowLayout): What rows look like.

    Raises:
        ValueError: If the file is another one, or its rows have another layout.
        sqlite3.OperationalError: If it cannot be opened, or another process holds it for more than
            five seconds.
    """

    def __init__(self, path: str | os.PathLike[str], layout: RowLayout) -> None:
        super().__init__(layout)
        self.path = os.path.abspath(path)
        self._database = open_file(self.path, type(self).__name__, _APPLICATION, _TABLES)
        # It survives when the machine loses power: the log may be trimmed up to what was committed.
        self._database.execute('PRAGMA synchronous = FULL')
        try:
            self.agree({'layout': repr(layout)})
        except BaseException:
            self._database.close()
            raise

    def positions(self) -> dict[int, int]:
        return dict(self._database.execute('SELECT shard, position FROM claim').fetchall())

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute('BEGIN IMMEDIATE')
        try:
            yield
            self._database.execute('COMMIT')
        except BaseException:
            if self._database.in_transaction:
                self._database.execute('ROLLBACK')
            raise

    def _keep_settings(self, settings: dict[str, str]) -> dict[str, str]:
        with self._transaction():
            self._database.executemany(
                'INSERT OR IGNORE INTO setting VALUES (?, ?)', settings.items()
            )
            return dict(self._database.execute('SELECT name, value FROM setting').fetchall())

    def _claim(self, shard: int) -> Claim:
        epoch = uuid.uuid4().hex
        with self._transaction():
            self._database.execute(
                'INSERT INTO claim VALUES (?, ?, 0, 0) '
                'ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch',
                (shard, epoch),
            )
            ((position, checksum),) = self._database.execute(
                'SELECT position, checksum FROM claim WHERE shard = ?', (shard,)
            ).fetchall()
        return Claim(shard, epoch, position, checksum)

    def _read(self, node_type: str, nodes: list[int]) -> list[bytes | None]:
        query = (
            f'SELECT row FROM json_each(?) LEFT JOIN {node_type}_row ON node = value '
            f'ORDER BY json_each.id'
        )
        return [row for (row,) in self._database.execute(query, (json.dumps(nodes),))]

    def _has_pairs(self, node_type: str, pairs: np.ndarray) -> list[bool]:
        query = (
            f'SELECT pair IS NOT NULL FROM json_each(?) LEFT JOIN {node_type}_pair ON pair = value '
            f'ORDER BY json_each.id'
        )
        return [found for (found,) in self._database.execute(query, (json.dumps(pairs.tolist()),))]

    def _commit(
        self,
        claim: Claim,
        moved: Claim,
        rows: dict[str, tuple[list[int], list[bytes]]],
        pairs: dict[str, np.ndarray],
    ) -> None:
        with self._transaction():
            # The first write, so that nothing is written where it finds no row.
            found = self._database.execute(
                'UPDATE claim SET position = ?, checksum = ? '
                'WHERE shard = ? AND epoch = ? AND position = ?',
                (moved.position, moved.checksum, claim.shard, claim.epoch, claim.position),
            )
            if found.rowcount == 0:
                raise self._fenced(claim)
            for node_type, (nodes, packed) in rows.items():
                self._database.executemany(
                    f'INSERT OR REPLACE INTO {node_type}_row VALUES (?, ?)', zip(nodes, packed)
                )
            for node_type, numbers in pairs.items():
                self._database.executemany(
                    f'INSERT OR IGNORE INTO {node_type}_pair VALUES (?)',
                    zip(numbers.tolist()),
                )

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'
