r"""The files of a table of one's own, into one table of DuckDB's."""

import math
import os
import os.path as osp
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from glob import glob
from itertools import accumulate

import duckdb

from mag.datasets._content import inspect_content
from mag.datasets._delimited import (
    DelimitedScan,
    check_rows,
    count_blank_lines,
    execute_scan,
    line_of_scan,
    read_header,
    scan_csv,
)
from mag.datasets._parquet import parquet_columns, reading_parquet, scan_parquet
from mag.datasets._read_errors import missing_columns
from mag.datasets._sql import (
    INTEGERS,
    LONG_NUMBERS,
    NUMBERS,
    TIMES,
    TIMESTAMPS,
    base_kind,
    column_kinds,
    quote,
    quote_name,
)
from mag.datasets._table_source import Field, Format

_CSV = tuple(f'{name}{end}' for end in ('', '.gz') for name in ('.csv', '.tsv', '.txt', '.dat'))
PARQUET = ('.parquet', '.pq')
_NAMES = (*NUMBERS, *TIMESTAMPS, 'DATE', 'BOOLEAN', 'VARCHAR', 'BLOB', 'UUID')
_LISTS = tuple(f'{kind}[]' for kind in (*INTEGERS, 'UBIGINT', 'VARCHAR'))
_VECTORS = tuple(f'{kind}[]' for kind in (*INTEGERS, 'FLOAT', 'DOUBLE'))
# By what a field holds, the types that a column of a Parquet file may have, and what they are.
_KINDS = {
    'id': (_NAMES, 'a number or a text'),
    'time': (TIMES, 'a number or a timestamp'),
    'flag': ((*NUMBERS, 'BOOLEAN'), '0 or 1'),
    'number': (NUMBERS, 'a number'),
    'name': (_NAMES, 'a number or a text'),
    'names': ((*_LISTS, 'VARCHAR'), 'lists or a text'),
    'terms': ((*_LISTS, *INTEGERS, 'VARCHAR'), 'a text, an id, or lists of terms'),
    'vector': ((*_VECTORS, *NUMBERS, 'VARCHAR'), 'numbers or lists of numbers'),
}
# What a column is read as in any case, so that its type may differ between files.
_CAST = ('flag', 'number', 'vector', 'names')
# Up to here a double holds every whole number.
_EXACT = 2**53


class EventFiles:
    r"""CSV or Parquet files that are read into one table, a column for each field.

    Args:
        paths (list): The files, in the order of reading.
        fields (dict): From the names of the columns to what they are in the files.
        table (str, optional): The table. (default: :obj:`'log'`)
        form (Format, optional): How delimited files are written.
    """

    def __init__(
        self,
        paths: list[str],
        fields: Mapping[str, Field],
        table: str = 'log',
        form: Format | None = None,
    ) -> None:
        self.paths = paths
        self.fields = fields
        self.table = table
        self.form = Format() if form is None else form
        self._scans: list[DelimitedScan] = []
        self._num_rows: list[int] = []

    @property
    def is_parquet(self) -> bool:
        r"""Whether the files are Parquet files."""
        return self.paths[0].endswith(PARQUET) and not self.form.is_told

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Creates the table."""
        if self.is_parquet:
            self._read_parquet(connection)
        else:
            self._read_csv(connection)

    def read_numbers(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Makes ids numbers where each is written as a whole number is."""
        kinds = column_kinds(connection, self.table)
        for name, field in self.fields.items():
            is_long = kinds[name].startswith(LONG_NUMBERS)
            if field.kind == 'id' and (not self.is_parquet or is_long):
                _read_numbers(connection, self.table, name, kinds[name])

    def first_rows(self, number: int) -> str:
        r"""The SQL that gives the columns of the first rows of a delimited file as texts, without
        what cannot be read."""
        texts = dict.fromkeys((field.column for field in self.fields.values()), 'VARCHAR')
        tolerant = f'{self._scan(self.paths[0], texts, ()).nullable[:-1]}, ignore_errors=true)'
        names = ', '.join(
            f'{quote_name(field.column)} AS {quote_name(name)}'
            for name, field in self.fields.items()
        )
        return f'SELECT {names} FROM {tolerant} LIMIT {number}'

    def locate(self, row: int) -> str:
        r"""Where row number :obj:`row` of the table, from 0, stands in the files."""
        ends = list(accumulate(self._num_rows))
        position = bisect_right(ends, row)
        row -= ends[position] - self._num_rows[position]
        path = self.paths[position]
        if self.is_parquet:
            return f'{path}, row {row + 1}'
        return f'{path}, line {line_of_scan(self._scans[position], row)}'

    @property
    def titles(self) -> dict[str, str]:
        r"""What a message calls each column of the table."""
        return {name: f'{field.column!r} ({field.role})' for name, field in self.fields.items()}

    def _read_csv(self, connection: duckdb.DuckDBPyConnection) -> None:
        texts = dict.fromkeys((field.column for field in self.fields.values()), 'VARCHAR')
        contents = []
        for path in self.paths:
            scan = self._scan(path, texts, ())
            contents.append(inspect_content(path, scan.delimiter, scan.quotes, scan.encoding))
        self._fill_csv(connection)
        if self._has_large_times(connection):
            self._fill_csv(connection, 'BIGINT')
        for scan, content, count in zip(self._scans, contents, self._num_rows):
            check_rows(connection, scan, content, count)

    def _scan(
        self, path: str, types: Mapping[str, str], required: tuple[str, ...]
    ) -> DelimitedScan:
        form = self.form
        if form.names is None:
            return scan_csv(path, types, required, form.separator, form.encoding)
        missing = [name for name in types if name not in form.names]
        if missing:
            raise missing_columns(path, missing, list(form.names))
        separator = form.separator
        if separator is None:
            # The first line has as many columns as there are names.
            separator = next(
                (d for d in ',\t;|' if len(read_header(path, (), d, form.encoding)[1]) > 1), ','
            )
        return DelimitedScan(
            path,
            {name: types.get(name, 'VARCHAR') for name in form.names},
            separator,
            required,
            quotes=len(separator) == 1,
            encoding=form.encoding,
            num_skipped=count_blank_lines(path, form.encoding),
        )

    def _fill_csv(self, connection: duckdb.DuckDBPyConnection, kind_of_times: str = '') -> None:
        columns = [field.column for field in self.fields.values()]
        texts = dict.fromkeys(columns, 'VARCHAR')
        samples = [_sample(connection, self._scan(path, texts, ()), columns) for path in self.paths]
        sample = {
            name: [row[position] for rows in samples for row in rows]
            for position, name in enumerate(self.fields)
        }
        # All times are of one kind, as they are compared.
        times = [v for name in self._names('time') for v in sample[name] if v is not None]
        kinds = dict.fromkeys(self._names('time'), kind_of_times or _kind_of_times(times))
        kinds |= {name: _kind_of_labels(sample[name]) for name in self._names('flag')}
        kinds |= dict.fromkeys(self._names('number'), 'DOUBLE')
        types = {field.column: kinds.get(name, 'VARCHAR') for name, field in self.fields.items()}
        required = tuple(
            self.fields[name].column for name in kinds if self.fields[name].is_required
        )
        values = {}
        for name, kind in kinds.items():
            if kind == 'BOOLEAN':
                # DuckDB would do a cast while it reads, where the word `true` is no number.
                values[name] = f'if({quote_name(self.fields[name].column)}, 1, 0)'
        self._scans = [self._scan(path, types, required) for path in self.paths]
        of_columns = {name: types[field.column] for name, field in self.fields.items()}
        selects = [self._select(values, of_columns, str(scan)) for scan in self._scans]
        self._create(connection, selects[0])
        self._num_rows = [
            execute_scan(connection, f'INSERT INTO {self.table} {select}', scan)
            for select, scan in zip(selects, self._scans)
        ]

    def _read_parquet(self, connection: duckdb.DuckDBPyConnection) -> None:
        queries = self.parquet_queries(connection)
        self._create(connection, queries[0])
        self._num_rows = []
        for path, query in zip(self.paths, queries):
            with reading_parquet(path):
                ((count,),) = connection.execute(f'INSERT INTO {self.table} {query}').fetchall()
            self._num_rows.append(count)

    def parquet_queries(
        self, connection: duckdb.DuckDBPyConnection, more: tuple[str, ...] = ()
    ) -> list[str]:
        r"""The SQL that gives the columns of each Parquet file, and what else is named, such as
        :obj:`file_row_number`. A condition may follow it."""
        first: dict[str, str] = {}
        values: dict[str, str] = {}
        selects = []
        for path in self.paths:
            columns = parquet_columns(
                connection,
                path,
                {field.column: _KINDS[field.kind] for field in self.fields.values()},
                [field.column for field in self.fields.values()],
                {field.column: self.titles[name] for name, field in self.fields.items()},
            )
            kinds = {name: columns[field.column] for name, field in self.fields.items()}
            first = first or kinds
            for name, field in self.fields.items():
                if field.kind in _CAST or first[name] == kinds[name]:
                    continue
                if not {first[name], kinds[name]} <= set(INTEGERS):
                    raise ValueError(
                        f'{path}: column {field.column!r} must be of one type in all files, '
                        f'but got {kinds[name]}, and {first[name]} in {self.paths[0]}.'
                    )
                values[name] = f'{quote_name(field.column)}::BIGINT'
            self._check_times(path, kinds)
            for name, kind in kinds.items():
                if kind == 'VARCHAR':
                    # A column without any value has no type in the file.
                    values[name] = f'{quote_name(self.fields[name].column)}::VARCHAR'
            for name in self._names('time'):
                if first[name] in ('DATE', 'FLOAT'):
                    kind = 'TIMESTAMP' if first[name] == 'DATE' else 'DOUBLE'
                    values[name] = f'{quote_name(self.fields[name].column)}::{kind}'
            selects.append((kinds, scan_parquet(path)))
        return [self._select(values, kinds, scan, more) for kinds, scan in selects]

    def _check_times(self, path: str, kinds: Mapping[str, str]) -> None:
        names = self._names('time')
        dates = [base_kind(kinds[name]) not in NUMBERS for name in names]
        if any(dates) and not all(dates):
            found = ', '.join(f'{kinds[name]} in {self.titles[name]}' for name in names)
            raise ValueError(
                f'{path}: its times must all be numbers or all be timestamps, but got {found}.'
            )

    def _names(self, kind: str) -> list[str]:
        return [name for name, field in self.fields.items() if field.kind == kind]

    def _create(self, connection: duckdb.DuckDBPyConnection, select: str) -> None:
        connection.execute(f'CREATE OR REPLACE TABLE {self.table} AS {select} LIMIT 0')

    def _select(
        self,
        values: Mapping[str, str],
        kinds: Mapping[str, str],
        scan: str,
        more: tuple[str, ...] = (),
    ) -> str:
        found = []
        for name, field in self.fields.items():
            value = values.get(name, quote_name(field.column))
            found.append(f'{_written(value, kinds[name], field)} AS {quote_name(name)}')
        return f'SELECT {", ".join([*found, *more])} FROM {scan}'

    def _has_large_times(self, connection: duckdb.DuckDBPyConnection) -> bool:
        kinds = column_kinds(connection, self.table)
        names = [name for name in self._names('time') if kinds[name] == 'DOUBLE']
        if not names:
            return False
        is_large = ' OR '.join(f'(isfinite({name}) AND abs({name}) >= {_EXACT})' for name in names)
        return bool(
            connection.execute(f'SELECT 1 FROM {self.table} WHERE {is_large} LIMIT 1').fetchall()
        )


def _written(value: str, kind: str, field: Field) -> str:
    r"""The SQL that gives a value of a type as what the field holds."""
    if field.kind in ('flag', 'number'):
        return f'{value}::DOUBLE'
    is_list = kind.endswith(']')
    if field.kind == 'name' and kind == 'VARCHAR':
        return f"nullif({value}, '')"
    if field.kind in ('names', 'terms'):
        if is_list:
            return f'{value}::VARCHAR[]' if field.kind == 'names' else value
        if kind != 'VARCHAR':
            return f'CASE WHEN {value} IS NOT NULL THEN [{value}] END'
        listed = (
            f'list_filter(list_transform(string_split({value}, {quote(field.separator or " ")}), '
            f"lambda part: trim(part)), lambda part: part <> '')"
        )
        return f'CASE WHEN len({listed}) > 0 THEN {listed} END'
    if field.kind == 'vector':
        if is_list:
            return f'{value}::FLOAT[]'
        if kind != 'VARCHAR':
            return f'CASE WHEN {value} IS NOT NULL THEN [{value}::FLOAT] END'
        split = f'string_split(trim({value}), {quote(field.separator or " ")})'
        return f"CASE WHEN {value} <> '' THEN TRY_CAST({split} AS FLOAT[]) END"
    return value


def find_files(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], form: Format | None = None
) -> list[str]:
    r"""The files that a path, a pattern or a list of both names, in their order."""
    ends = ('',) if form is not None and form.is_told else (*_CSV, *PARQUET)
    paths = [path] if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise TypeError(f"'path' must be a file, a pattern or a list of files, but got {path!r}.")
    files: list[str] = []
    for pattern in (osp.expanduser(os.fspath(p)) for p in paths):
        found = [pattern] if osp.exists(pattern) else sorted(glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"'path' must name files, but there is no file {pattern!r}.")
        files += [osp.abspath(file) for file in found]
    bad = [file for file in files if osp.isdir(file) or not file.endswith(ends)]
    if bad or not files:
        raise ValueError(
            f"'path' must name files that end in {', '.join((*_CSV, *PARQUET))}, or have a "
            f"'separator', such as 'logs/*.parquet', but got "
            f'{repr(bad[0]) if bad else "an empty list"}'
            f'{", a directory" if bad and osp.isdir(bad[0]) else ""}.'
        )
    kinds = {file.endswith(PARQUET): file for file in files}
    if len(kinds) > 1 or len(set(files)) < len(files):
        twice = next((file for file in files if files.count(file) > 1), None)
        raise ValueError(
            f"'path' must name each file once, and CSV files only or Parquet files only, but got "
            f'{" and ".join(map(repr, kinds.values() if twice is None else (twice, twice)))}.'
        )
    return files


def _sample(
    connection: duckdb.DuckDBPyConnection, scan: DelimitedScan, columns: Sequence[str]
) -> list[tuple[str, ...]]:
    # A row that cannot be read is reported by whoever reads them all.
    tolerant = f'{scan.nullable[:-1]}, ignore_errors=true)'
    names = ', '.join(map(quote_name, columns))
    return connection.execute(f'SELECT {names} FROM {tolerant} LIMIT 100').fetchall()


def _kind_of_times(values: list[str]) -> str:
    numbers = [number for number in map(_to_number, values) if number is not None]
    # A double has the fractions that a BIGINT would round away.
    if any(_EXACT <= abs(number) < math.inf for number in numbers):
        return 'BIGINT'
    return 'DOUBLE' if numbers or not any(values) else 'TIMESTAMP WITH TIME ZONE'


def _kind_of_labels(values: Sequence[str | None]) -> str:
    numbers = [number for number in map(_to_number, values) if number is not None]
    is_boolean = not numbers and any(
        value.lower() in ('true', 'false') for value in values if value is not None
    )
    return 'BOOLEAN' if is_boolean else 'DOUBLE'


def _to_number(text: str | None) -> float | None:
    try:
        # Python reads `1_000` as 1000.
        return None if text is None or '_' in text else float(text)
    except ValueError:
        return None


def _read_numbers(connection: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> None:
    other = connection.execute(
        f'SELECT 1 FROM {table} '
        f'WHERE TRY_CAST({name} AS BIGINT)::VARCHAR IS DISTINCT FROM {name}::VARCHAR LIMIT 1'
    ).fetchall()
    number_or_text = 'VARCHAR' if other else 'BIGINT'
    if number_or_text != kind:
        connection.execute(f'ALTER TABLE {table} ALTER {name} TYPE {number_or_text}')
