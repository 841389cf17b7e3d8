r"""A table that a user names: files, or one in memory, and how its columns are read."""

import os
import os.path as osp
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import duckdb

from mag.datasets._content import end_sentence
from mag.datasets._sql import quote, quote_name


class Field(NamedTuple):
    r"""A column that is read.

    Args:
        column (str): Its name in the files.
        kind (str): What it holds: :obj:`'id'`, :obj:`'time'`, :obj:`'flag'`, :obj:`'number'`,
            :obj:`'name'`, :obj:`'names'`, several in one value, :obj:`'terms'` of a query, or
            :obj:`'vector'`.
        role (str): What a message calls it beside its name.
        separator (str, optional): What stands between several in one text.
        is_required (bool, optional): Whether a value may be missing.
    """

    column: str
    kind: str
    role: str
    separator: str | None = None
    is_required: bool = True


class Format(NamedTuple):
    r"""How delimited files are written.

    Args:
        separator (str, optional): What stands between the columns; without it the one of comma,
            tab, semicolon and bar under which all columns are there.
        names (tuple, optional): The columns, of files without a header.
        encoding (str, optional): :obj:`'utf-8'` or :obj:`'latin-1'`.
    """

    separator: str | None = None
    names: tuple[str, ...] | None = None
    encoding: str = 'utf-8'

    @property
    def is_told(self) -> bool:
        r"""Whether anything is said of the files, so that their names say nothing."""
        return self.separator is not None or self.names is not None


def is_path(source: Any) -> bool:
    r"""Whether a source names files, and is no table in memory."""
    return isinstance(source, (str, os.PathLike)) or (
        isinstance(source, Sequence) and all(isinstance(p, (str, os.PathLike)) for p in source)
    )


def is_table(source: Any) -> bool:
    r"""Whether a source is a table in memory: of pandas, polars, PyArrow or DuckDB, or any that
    speaks the protocol of Arrow."""
    return any(hasattr(source, name) for name in ('__arrow_c_stream__', 'write_parquet'))


class MemoryTable:
    r"""A table in memory, written to a Parquet file that lives as long as this object.

    Args:
        table: The table.
        name (str): What messages call it.
        columns (list): The columns that count for its content.

    Attributes:
        path (str): The file.
        content (dict): The number of rows and a hash of the columns that count.

    Raises:
        TypeError: If it can be read but once, or not yet, or a package is missing to read it.
        ValueError: If a column is missing.
    """

    def __init__(self, table: Any, name: str, columns: Sequence[str]) -> None:
        self.name = name
        folder = tempfile.mkdtemp(prefix='mag-')
        weakref.finalize(self, shutil.rmtree, folder, True)
        self.path = osp.join(folder, 'table.parquet')
        kind = f'{type(table).__module__.partition(".")[0]}.{type(table).__name__}'
        try:
            self._write(table)
        except (duckdb.Error, ImportError, AttributeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'
            raise TypeError(
                f'{name} must be a table of pandas, polars, PyArrow or DuckDB whose columns have a '
                f'type each, but {kind} cannot be read: {end_sentence(reason[:200])}'
            ) from error
        with duckdb.connect() as connection:
            found = connection.execute(
                f'DESCRIBE SELECT * FROM read_parquet({quote(self.path)})'
            ).fetchall()
            names = [column for column, *_ in found]
            used = ', '.join(quote_name(column) for column in sorted(columns) if column in names)
            rows, digest = connection.execute(
                f'SELECT count(*), sum(hash(file_row_number{", " if used else ""}{used})::HUGEINT) '
                f'FROM read_parquet({quote(self.path)}, file_row_number=true)'
            ).fetchall()[0]
        self.content = {'rows': rows, 'hash': f'{digest or 0:x}'}

    @contextmanager
    def named(self) -> Iterator[None]:
        r"""Calls the file in messages by the name of the table."""
        try:
            yield
        except ValueError as error:
            if self.path not in str(error):
                raise
            raise ValueError(str(error).replace(self.path, self.name)) from error

    def _write(self, table: Any) -> None:
        if hasattr(table, 'write_parquet'):
            table.write_parquet(self.path)
            return
        with duckdb.connect() as connection:
            # The types of columns of objects are those of all rows.
            connection.execute(f'SET pandas_analyze_sample = {max(_num_rows(table), 1)}')
            connection.execute("SET TimeZone = 'UTC'")
            connection.register('registered', table)
            connection.execute(f'COPY registered TO {quote(self.path)} (FORMAT parquet)')


def _num_rows(table: Any) -> int:
    return len(table) if hasattr(table, '__len__') else 1
