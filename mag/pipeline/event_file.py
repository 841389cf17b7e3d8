r"""Events that come in a file, read a chunk at a time."""

import os
import os.path as osp
import tempfile
from collections.abc import Iterator, Mapping

import duckdb
import numpy as np

from mag.datasets._delimited import create_table, scan_csv
from mag.datasets._parquet import reading_parquet, scan_parquet
from mag.datasets._read_errors import explain_read_error, missing_columns
from mag.datasets._sql import quote_name
from mag.files import full_disk, tells_of_full_disk

# Rows that are in memory at once.
_CHUNK = 65_536
_TYPES = {'user': 'VARCHAR', 'item': 'VARCHAR', 'time': 'BIGINT', 'clicked': 'BIGINT'}


def read_events(
    path: str | os.PathLike[str], columns: Mapping[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    r"""The events of a file in the order of its rows, in chunks.

    Args:
        path (str): A Parquet file, whose name ends with :obj:`.parquet`, or a CSV file.
        columns (Mapping[str, str]): The columns of :obj:`"user"`, :obj:`"item"`, :obj:`"time"`, in
            seconds, and :obj:`"clicked"`, 0 or 1.

    Yields:
        By these names, texts of users and items and integers of the others, of equal lengths.

    Raises:
        OSError: If a disk is full.
        ValueError: If the file cannot be read, lacks a column, or a value is missing or none.
    """
    path = os.fspath(path)
    with (
        tempfile.TemporaryDirectory() as folder,
        duckdb.connect(osp.join(folder, 'events.duckdb')) as connection,
    ):
        connection.execute("SET memory_limit = '1GB'")
        try:
            _create(connection, path, columns)
        except duckdb.Error as error:
            if tells_of_full_disk(error):
                raise full_disk(tempfile.gettempdir(), path) from error
            raise explain_read_error(error) from error
        rows = connection.execute(f'SELECT {", ".join(_TYPES)} FROM events ORDER BY rowid')
        while batch := rows.fetchmany(_CHUNK):
            yield dict(zip(_TYPES, map(np.array, zip(*batch, strict=True)), strict=True))


def _create(connection: duckdb.DuckDBPyConnection, path: str, columns: Mapping[str, str]) -> None:
    r"""Makes the table :obj:`events`."""
    if path.endswith('.parquet'):
        source = scan_parquet(path)
        selected = ', '.join(
            f'CAST({quote_name(columns[name])} AS {kind}) AS {name}'
            for name, kind in _TYPES.items()
        )
        with reading_parquet(path):
            described = connection.execute(f'SELECT * FROM {source} LIMIT 0').description or ()
        found = [column[0] for column in described]
        if missing := [column for column in columns.values() if column not in found]:
            raise missing_columns(path, missing, list(map(repr, found)))
        connection.execute(f'CREATE TABLE events AS SELECT {selected} FROM {source}')
    else:
        selected = ', '.join(f'{quote_name(columns[name])} AS {name}' for name in _TYPES)
        scan = scan_csv(
            path,
            {columns[name]: kind for name, kind in _TYPES.items()},
            tuple(columns.values()),
        )
        create_table(connection, 'events', f'SELECT {selected} FROM {scan}', scan)
    for name in _TYPES:
        (number,) = connection.execute(
            f"SELECT count(*) FROM events WHERE coalesce({name}::VARCHAR, '') = ''"
        ).fetchall()[0]
        if number > 0:
            raise ValueError(
                f'{path!r} must tell {columns[name]!r} of each event, but lacks it in {number}.'
            )
