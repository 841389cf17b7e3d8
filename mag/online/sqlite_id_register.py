r"""The register of ids in the file of a log."""

import os
from contextlib import closing

from mag.online.id_register import _BEYOND, IdRegister
from mag.online.sqlite_file import open_file
from mag.online.sqlite_stream import _APPLICATION, _TABLES

# Ids that one query looks for: SQLite may take no more than 999.
_NUM_TOGETHER = 500
_OWN_TABLES = (
    'CREATE TABLE IF NOT EXISTS first_ids (node TEXT PRIMARY KEY, fingerprint TEXT NOT NULL)',
    'CREATE TABLE IF NOT EXISTS id (node TEXT NOT NULL, number INTEGER NOT NULL, '
    'raw BLOB NOT NULL, PRIMARY KEY (node, number), UNIQUE (node, raw)) WITHOUT ROWID',
)


class SqliteIdRegister(IdRegister):
    r"""An :class:`~mag.online.IdRegister` in the file of a :class:`~mag.online.SqliteStream`.

    What is appended to the file later survives a loss of power only together with the ids that
    came before.

    Args:
        path (str or os.PathLike): The file, which is made if there is none.

    Raises:
        ValueError: If the file is another one.
        sqlite3.OperationalError: If it cannot be opened, or another process holds it for more than
            five seconds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._database = open_file(self.path, 'SqliteStream', _APPLICATION, _TABLES)
        # One file is written ahead for ids and events: what is there has all that came before it.
        self._database.execute('PRAGMA synchronous = NORMAL')
        try:
            for table in _OWN_TABLES:
                self._database.execute(table)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        r"""Closes the file."""
        self._database.close()

    def _begin(self, fingerprints: dict[str, str]) -> dict[str, str]:
        if found := self._begun():
            return found
        # Of two that begin at once, the first does.
        self._database.execute('BEGIN IMMEDIATE')
        try:
            if not self._begun():
                self._database.executemany(
                    'INSERT INTO first_ids VALUES (?, ?)', fingerprints.items()
                )
            self._database.execute('COMMIT')
        except BaseException:
            self._roll_back()
            raise
        return self._begun()

    def _begun(self) -> dict[str, str]:
        with closing(self._database.execute('SELECT node, fingerprint FROM first_ids')) as rows:
            return dict(rows.fetchall())

    def _add(self, ids: dict[str, list[bytes]]) -> tuple[dict[str, list[int]], int]:
        first = self.first
        found = {node: self._find(node, of_node) for node, of_node in ids.items()}
        missing = {node: [raw for raw in ids[node] if raw not in found[node]] for node in ids}
        num_new = 0
        if any(missing.values()):
            # Those that others have given meanwhile are looked for again.
            self._database.execute('BEGIN IMMEDIATE')
            try:
                for node, of_node in missing.items():
                    found[node] |= self._find(node, of_node)
                    new = [raw for raw in of_node if raw not in found[node]]
                    end = first[node] + self._size(node)
                    found[node] |= zip(new, range(end, end + len(new)))
                    num_new += len(new)
                    self._database.executemany(
                        'INSERT INTO id VALUES (?, ?, ?)',
                        (
                            (node, found[node][raw], raw)
                            for raw in new
                            if found[node][raw] < _BEYOND
                        ),
                    )
                self._database.execute('COMMIT')
            except BaseException:
                self._roll_back()
                raise
        return {
            node: [found[node][raw] for raw in of_node] for node, of_node in ids.items()
        }, num_new

    def _find(self, node: str, raw: list[bytes]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for row in range(0, len(raw), _NUM_TOGETHER):
            some = raw[row : row + _NUM_TOGETHER]
            marks = ', '.join('?' * len(some))
            query = f'SELECT raw, number FROM id WHERE node = ? AND raw IN ({marks})'
            with closing(self._database.execute(query, (node, *some))) as rows:
                found.update(rows.fetchall())
        return found

    def _size(self, node: str) -> int:
        query = 'SELECT max(number) + 1 - ? FROM id WHERE node = ?'
        with closing(self._database.execute(query, (self.first[node], node))) as rows:
            return rows.fetchone()[0] or 0

    def _read(self, node_type: str, number: int, limit: int) -> list[bytes]:
        query = 'SELECT raw FROM id WHERE node = ? AND number >= ? ORDER BY number LIMIT ?'
        with closing(self._database.execute(query, (node_type, number, limit))) as rows:
            return [raw for (raw,) in rows]

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute('ROLLBACK')

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'
