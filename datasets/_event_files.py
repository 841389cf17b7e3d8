r"""The files of a log of one's own, into one table."""

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
    execute_scan,
    place_of_row,
    read_header,
    read_rows,
    scan_csv,
)
from mag.datasets._parquet import parquet_columns, reading_parquet, scan_parquet
from mag.datasets._sql import (
    INTEGERS,
    LONG_NUMBERS,
    NUMBERS,
    TIMES,
    TIMESTAMPS,
    column_kinds,
    quote_name,
)

_CSV = ('.csv', '.tsv', '.txt', '.csv.gz', '.tsv.gz', '.txt.gz')
PARQUET = ('.parquet', '.pq')
_NAMES = (*NUMBERS, *TIMESTAMPS, 'DATE', 'BOOLEAN', 'VARCHAR', 'BLOB', 'UUID')
# By role, the types that a column of a Parquet file may have, and what they are.
_KINDS = {
    'user': (_NAMES, 'a number or a text'),
    'item': (_NAMES, 'a number or a text'),
    'time': (TIMES, 'a number or a timestamp'),
    'label': ((*NUMBERS, 'BOOLEAN'), '0 or 1'),
    'category': (_NAMES, 'a number or a text'),
    'weight': (NUMBERS, 'a number'),
}
# Up to here a double holds every whole number.
_EXACT = 2**53


class EventFiles:
    r"""CSV or Parquet files that are read into the table :obj:`log`, a column for each role.

    Args:
        paths (list): The files, in the order of reading.
        columns (dict): From each role to the name of its column in the files.
    """

    def __init__(self, paths: list[str], columns: Mapping[str, str]) -> None:
        self.paths = paths
        self.columns = columns

    def read(self, connection: duckdb.DuckDBPyConnection) -> list[int]:
        r"""Creates the table, and returns the number of rows of
        each file.
        """
        is_parquet = self.paths[0].endswith(PARQUET)
        return self._read_parquet(connection) if is_parquet else self._read_csv(connection)

    def read_numbers(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Makes ids numbers where each is written as a whole number is."""
        is_parquet = self.paths[0].endswith(PARQUET)
        for role, kind in column_kinds(connection, 'log').items():
            if role in ('user', 'item') and (not is_parquet or kind.startswith(LONG_NUMBERS)):
                _read_numbers(connection, role, kind)

    def locate(self, num_rows: list[int], row: int) -> str:
        r"""Where row number :obj:`row` of the table stands, of files of so many rows each."""
        ends = list(accumulate(num_rows))
        position = bisect_right(ends, row)
        row -= ends[position] - num_rows[position]
        return place_of_row(self.paths[position], self.columns.values(), row)

    @property
    def titles(self) -> dict[str, str]:
        r"""What a message calls the column of each role."""
        return {role: f'{name!r} ({role})' for role, name in self.columns.items()}

    def _read_csv(self, connection: duckdb.DuckDBPyConnection) -> list[int]:
        contents = []
        for path in self.paths:
            delimiter, _ = read_header(path, tuple(self.columns.values()))
            contents.append(inspect_content(path, delimiter, quotes=True))
        scans, num_rows = self._fill_csv(connection)
        if _has_large_times(connection):
            scans, num_rows = self._fill_csv(connection, 'BIGINT')
        for scan, content, count in zip(scans, contents, num_rows):
            check_rows(connection, scan, content, count)
        return num_rows

    def _fill_csv(
        self, connection: duckdb.DuckDBPyConnection, kind_of_times: str = ''
    ) -> tuple[list[DelimitedScan], list[int]]:
        samples = [_sample(path, self.columns) for path in self.paths]
        times = [row['time'] for sample in samples for row in sample]
        kinds = {'time': kind_of_times or _kind_of_times(times)}
        if 'label' in self.columns:
            kinds['label'] = _kind_of_labels([row['label'] for sample in samples for row in sample])
        if 'weight' in self.columns:
            kinds['weight'] = 'DOUBLE'
        types = {name: kinds.get(role, 'VARCHAR') for role, name in self.columns.items()}
        required = tuple(self.columns[role] for role in kinds)
        values = {}
        if kinds.get('label') == 'BOOLEAN':
            # DuckDB would do a cast while it reads, where the word `true` is no number.
            values['label'] = f'if({quote_name(self.columns["label"])}, 1, 0)'
        scans = [scan_csv(path, types, required) for path in self.paths]
        selects = [self._select(values, str(scan)) for scan in scans]
        _create_log(connection, selects[0])
        num_rows = [
            execute_scan(connection, f'INSERT INTO log {select}', scan)
            for select, scan in zip(selects, scans)
        ]
        return scans, num_rows

    def _read_parquet(self, connection: duckdb.DuckDBPyConnection) -> list[int]:
        first: dict[str, str] = {}
        values: dict[str, str] = {}
        for path in self.paths:
            columns = parquet_columns(
                connection,
                path,
                {name: _KINDS[role] for role, name in self.columns.items()},
                self.columns.values(),
                {name: self.titles[role] for role, name in self.columns.items()},
            )
            kinds = {role: columns[name] for role, name in self.columns.items()}
            first = first or kinds
            # Labels and weights are made DOUBLE in any case.
            for role in kinds:
                if role in ('label', 'weight') or first[role] == kinds[role]:
                    continue
                if not {first[role], kinds[role]} <= set(INTEGERS):
                    raise ValueError(
                        f'{path}: column {self.columns[role]!r} must be of one type in all files, '
                        f'but got {kinds[role]}, and {first[role]} in {self.paths[0]}.'
                    )
                values[role] = f'{quote_name(self.columns[role])}::BIGINT'
        if first['time'] in ('DATE', 'FLOAT'):
            kind = 'TIMESTAMP' if first['time'] == 'DATE' else 'DOUBLE'
            values['time'] = f'{quote_name(self.columns["time"])}::{kind}'
        selects = [self._select(values, scan_parquet(path)) for path in self.paths]
        _create_log(connection, selects[0])
        num_rows = []
        for path, select in zip(self.paths, selects):
            with reading_parquet(path):
                ((count,),) = connection.execute(f'INSERT INTO log {select}').fetchall()
            num_rows.append(count)
        return num_rows

    def _select(self, values: Mapping[str, str], scan: str) -> str:
        values = {role: quote_name(name) for role, name in self.columns.items()} | dict(values)
        values['label'] = f'{values["label"]}::DOUBLE' if 'label' in values else '1::TINYINT'
        if 'weight' in values:
            values['weight'] += '::DOUBLE'
        return f'SELECT {", ".join(f"{v} AS {role}" for role, v in values.items())} FROM {scan}'


def find_files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    r"""The files that a path, a pattern or a list of both names, in their order."""
    paths = [path] if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise TypeError(f"'path' must be a file, a pattern or a list of files, but got {path!r}.")
    files: list[str] = []
    for pattern in (osp.expanduser(os.fspath(p)) for p in paths):
        found = [pattern] if osp.exists(pattern) else sorted(glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"'path' must name files, but there is no file {pattern!r}.")
        files += [osp.abspath(file) for file in found]
    bad = [file for file in files if osp.isdir(file) or not file.endswith((*_CSV, *PARQUET))]
    if bad or not files:
        raise ValueError(
            f"'path' must name files that end in {', '.join((*_CSV, *PARQUET))}, such as "
            f"'logs/*.parquet', but got {repr(bad[0]) if bad else 'an empty list'}"
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


def _sample(path: str, columns: Mapping[str, str]) -> list[dict[str, str]]:
    delimiter, header = read_header(path, tuple(columns.values()))
    positions = {role: header.index(name) for role, name in columns.items()}
    rows = list(read_rows(path, delimiter, 100))[1:]
    return [
        {role: row[position] for role, position in positions.items()}
        for row in rows
        if len(row) == len(header)
    ]


def _kind_of_times(values: list[str]) -> str:
    numbers = [number for number in map(_to_number, values) if number is not None]
    # A double has the fractions that a BIGINT would round away.
    if any(_EXACT <= abs(number) < math.inf for number in numbers):
        return 'BIGINT'
    return 'DOUBLE' if numbers or not any(values) else 'TIMESTAMP WITH TIME ZONE'


def _kind_of_labels(values: list[str]) -> str:
    numbers = [number for number in map(_to_number, values) if number is not None]
    is_boolean = not numbers and any(value.lower() in ('true', 'false') for value in values)
    return 'BOOLEAN' if is_boolean else 'DOUBLE'


def _to_number(text: str) -> float | None:
    try:
        # Python reads `1_000` as 1000.
        return None if '_' in text else float(text)
    except ValueError:
        return None


def _create_log(connection: duckdb.DuckDBPyConnection, select: str) -> None:
    connection.execute(f'CREATE OR REPLACE TABLE log AS {select} LIMIT 0')


def _has_large_times(connection: duckdb.DuckDBPyConnection) -> bool:
    if column_kinds(connection, 'log')['time'] != 'DOUBLE':
        return False
    is_large = f'isfinite(time) AND abs(time) >= {_EXACT}'
    return bool(connection.execute(f'SELECT 1 FROM log WHERE {is_large} LIMIT 1').fetchall())


def _read_numbers(connection: duckdb.DuckDBPyConnection, role: str, kind: str) -> None:
    other = connection.execute(
        f'SELECT 1 FROM log '
        f'WHERE TRY_CAST({role} AS BIGINT)::VARCHAR IS DISTINCT FROM {role}::VARCHAR LIMIT 1'
    ).fetchall()
    number_or_text = 'VARCHAR' if other else 'BIGINT'
    if number_or_text != kind:
        connection.execute(f'ALTER TABLE log ALTER {role} TYPE {number_or_text}')
