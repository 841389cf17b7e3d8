r"""Reads the tables that a schema names, files or in memory, into tables of DuckDB's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb

from mag.datasets._event_files import EventFiles, find_files
from mag.datasets._sql import column_kinds, count_rows
from mag.datasets._table_source import Field, Format, MemoryTable, is_path
from mag.datasets._values import Rule, check_table


class TableReader:
    r"""One table that a schema names.

    Args:
        source: Files, or a table in memory.
        fields (dict): Its columns, by the names that they get.
        form (Format): How delimited files are written.
        table (str): The table of DuckDB's.
        title (str): What messages call a table in memory.

    Attributes:
        paths (list): The files, none of a table in memory.
        content (dict): What tells a table in memory from another, empty of files.
    """

    def __init__(
        self, source: Any, fields: Mapping[str, Field], form: Format, table: str, title: str
    ) -> None:
        self.table = table
        self._memory: MemoryTable | None = None
        self.paths: list[str] = []
        self.content: dict[str, Any] = {}
        if is_path(source):
            self.paths = find_files(source, form)
            self.name = ', '.join(self.paths)
            self._files = EventFiles(self.paths, fields, table, form)
        else:
            columns = [field.column for field in fields.values()]
            self._memory = MemoryTable(source, title, columns)
            self.name = title
            self.content = self._memory.content
            self._files = EventFiles([self._memory.path], fields, table)

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Creates the table."""
        with self._named():
            self._files.read(connection)
        if count_rows(connection, self.table) == 0:
            raise ValueError(f'{self.name} must hold rows, but got none.')

    def check(self, connection: duckdb.DuckDBPyConnection, rules: list[Rule]) -> None:
        r"""Raises for the first row that breaks a rule, with its file and line."""
        with self._named():
            check_table(connection, self.table, rules, self._files.locate, self._files.titles)

    def read_numbers(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Makes ids numbers where each is written as a whole number is."""
        self._files.read_numbers(connection)

    def locate(self, row: int) -> str:
        r"""Where row number :obj:`row` of the table stands."""
        place = self._files.locate(row)
        return place.replace(self._memory.path, self.name) if self._memory else place

    def kinds(self, connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        r"""The types of the columns."""
        return column_kinds(connection, self.table)

    @contextmanager
    def _named(self) -> Iterator[None]:
        if self._memory is None:
            yield
        else:
            with self._memory.named():
                yield


def rules_of_ids(fields: Mapping[str, Field], kinds: Mapping[str, str]) -> list[Rule]:
    r"""What ids must hold, of a table with columns of these types."""
    is_filled = {'VARCHAR': "{} <> ''", 'FLOAT': 'NOT isnan({})', 'DOUBLE': 'NOT isnan({})'}
    ids = {name: kinds[name] for name, field in fields.items() if field.kind == 'id'}
    rules = [
        Rule(name, is_filled.get(kind, '{} IS NOT NULL').format(name), 'an id')
        for name, kind in ids.items()
    ]
    rules += [
        Rule(name, f'NOT contains({name}, chr(0))', 'an id without a NUL')
        for name, kind in ids.items()
        if kind == 'VARCHAR'
    ]
    return rules
