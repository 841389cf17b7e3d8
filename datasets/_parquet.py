import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape

import duckdb

from mag.datasets._content import end_sentence
from mag.datasets._read_errors import LONG, check_repeated, first_line
from mag.datasets._sql import one_file, quote


@contextmanager
def reading_parquet(path: str) -> Iterator[None]:
    r"""Turns what DuckDB raises about a Parquet file into a sentence with
    the file.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = re.sub(r'^[A-Za-z- ]+ Error: ', '', first_line(error)).replace(path, 'it')
        raise ValueError(
            f'{path} must be a Parquet file, but cannot be read: {end_sentence(reason[:LONG])}'
        ) from error


def scan_parquet(path: str) -> str:
    r"""Writes the SQL that reads a Parquet file."""
    return f'read_parquet({one_file(path)})'


def parquet_columns(
    connection: duckdb.DuckDBPyConnection, path: str, wanted: tuple[str, ...]
) -> dict[str, str]:
    r"""Returns the DuckDB type of each column of a Parquet file.

    Raises:
        ValueError: If it has more than one of a column in :obj:`wanted`.
    """
    with reading_parquet(path):
        schema = connection.execute(
            f'SELECT name, coalesce(num_children, 0) FROM parquet_schema({quote(escape(path))})'
        ).fetchall()
        described = connection.execute(f'DESCRIBE SELECT * FROM {scan_parquet(path)}').fetchall()
    # The schema is a tree, of which each node is followed by its children. DuckDB would call the
    # second of two columns another name.
    columns: list[str] = []
    num_inside = 0
    for name, num_children in schema[1:]:
        if num_inside == 0:
            columns.append(name)
        num_inside += num_children - (num_inside > 0)
    check_repeated(path, wanted, columns)
    return {name: kind for name, kind, *_ in described}
