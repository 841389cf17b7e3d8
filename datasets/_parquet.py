import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from glob import escape

import duckdb
import numpy as np

from mag.datasets._content import end_sentence
from mag.datasets._read_errors import (
    LONG,
    bad_value,
    check_repeated,
    first_line,
    missing_columns,
)
from mag.datasets._sql import base_kind, one_file, quote

#: DuckDB's name of the type of a column without any value.
NOTHING = '"NULL"'


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


def read_columns(path: str) -> dict[str, np.ndarray]:
    r"""Reads all columns of a Parquet file, with :obj:`None` where a value is missing."""
    with duckdb.connect() as connection:
        columns = connection.execute(f'SELECT * FROM {scan_parquet(path)}').fetchnumpy()
    return {
        name: np.where(np.ma.getmaskarray(column), np.array(None), np.ma.getdata(column))
        if np.ma.is_masked(column)
        else np.ma.getdata(column)
        for name, column in columns.items()
    }


def parquet_columns(
    connection: duckdb.DuckDBPyConnection,
    path: str,
    kinds: Mapping[str, tuple[Collection[str], str]],
    required: Collection[str],
    titles: Mapping[str, str] | None = None,
) -> dict[str, str]:
    r"""The DuckDB types of the columns of a Parquet file that are in :obj:`kinds`.

    Args:
        connection: Any connection.
        path (str): The file.
        kinds (dict): From a column to the types that it may have, and what they are in words.
        required (list): Those that the file must have.
        titles (dict, optional): What the message calls a column, where that is not its name.

    Raises:
        ValueError: If one is missing, there twice or of another type.
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
    missing = [name for name in required if name not in columns]
    if missing:
        raise missing_columns(path, missing, columns)
    check_repeated(path, kinds, columns)
    found = {name: kind for name, kind, *_ in described if name in kinds}
    for name, kind in found.items():
        allowed, expected = kinds[name]
        if kind == NOTHING:
            # A column of no value at all, such as the queries of a day without searches, is one of
            # texts that are missing.
            found[name] = kind = 'VARCHAR' if 'VARCHAR' in allowed else 'nothing'
        if base_kind(kind) not in allowed:
            raise bad_value(path, (titles or {}).get(name, repr(name)), kind, expected)
    return found
