import math
import os
import os.path as osp
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from glob import glob
from itertools import accumulate
from typing import Any

import duckdb
import numpy as np
from torch_geometric.data import HeteroData

from mag.datasets._content import inspect_content
from mag.datasets._delimited import (
    DelimitedScan,
    check_rows,
    execute_scan,
    line_of_row,
    read_header,
    read_rows,
    scan_csv,
)
from mag.datasets._parquet import parquet_columns, reading_parquet, scan_parquet
from mag.datasets._read_errors import missing_columns, shorten
from mag.datasets._sql import quote_name
from mag.datasets.click_dataset import ClickDataset

_REQUIRED = ('user', 'item', 'time')
_OPTIONAL = ('label', 'category', 'weight')
_UNITS = {'s': 1, 'ms': 1000, 'us': 1000**2, 'ns': 1000**3}
_CSV = ('.csv', '.tsv', '.txt', '.csv.gz', '.tsv.gz', '.txt.gz')
_PARQUET = ('.parquet', '.pq')
_INTEGERS = (
    'TINYINT',
    'SMALLINT',
    'INTEGER',
    'BIGINT',
    'UTINYINT',
    'USMALLINT',
    'UINTEGER',
)
_LONG = ('DECIMAL', 'HUGEINT', 'UHUGEINT')
_NUMBERS = (*_INTEGERS, 'UBIGINT', 'FLOAT', 'DOUBLE', *_LONG)
_TIMES = ('TIMESTAMP', 'TIMESTAMP WITH TIME ZONE', 'TIMESTAMP_S', 'TIMESTAMP_MS', 'TIMESTAMP_NS')
_NAMES = (*_NUMBERS, *_TIMES, 'DATE', 'BOOLEAN', 'VARCHAR', 'BLOB', 'UUID')
_KINDS = {
    'user': (_NAMES, 'a number or a text'),
    'item': (_NAMES, 'a number or a text'),
    'time': ((*_NUMBERS, *_TIMES, 'DATE'), 'a number or a timestamp'),
    'label': ((*_NUMBERS, 'BOOLEAN'), '0 or 1'),
    'category': (_NAMES, 'a number or a text'),
    'weight': (_NUMBERS, 'a number'),
}


class EventLog(ClickDataset):
    r"""A click log of your own, from CSV or Parquet files.

    .. code-block:: python

        dataset = EventLog('data/shop', 'exports/2024-*.parquet', {
            'user': 'customer_id', 'item': 'sku', 'time': 'shown_at', 'label': 'clicked',
        })
        data = dataset[0]
        dataset.raw_ids['item'][data['user', 'clicks', 'item'].edge_index[1]]

    Every row is an exposure of an item to a user.
    Without a :obj:`label` column every row is a click.
    Ids of any type are mapped to :obj:`0` to :obj:`N-1` in ascending order
    (ids in a CSV file are numbers if each of them is written as a whole
    number is, and text otherwise, so that :obj:`7` and :obj:`007` differ);
    :attr:`raw_ids` maps back.
    Rows are ordered by time, those of the same time as in the files.
    Rows that repeat another's user, item and time are kept, as two clicks may
    share a second; :attr:`num_duplicates` counts them and a warning says so.

    The :class:`~torch_geometric.data.HeteroData` holds :obj:`edge_index`,
    :obj:`time` (clicks), :obj:`edge_label_index`, :obj:`edge_label`,
    :obj:`edge_label_time` (exposures) in
    :obj:`data['user', 'clicks', 'item']`, times as int64 seconds; with a
    :obj:`category` column :obj:`data['item'].category`, that of the item's
    first row (:obj:`'unknown'` if it has none there); with a :obj:`weight`
    column :obj:`edge_weight` (clicks) and :obj:`edge_label_weight`
    (exposures).
    No later row decides the category of an item, as it would tell earlier rows
    of their future; a warning counts the items whose rows have several, and
    those that have one in later rows alone.

    Args:
        root (str): Directory of the cache.
        path (str or list): A file, a pattern such as
            :obj:`'logs/*.parquet'` or a list of files, read in this order
            (those of a pattern in the order of their names).
            CSV files are UTF-8 with a header, separated by a comma, tab,
            semicolon or bar, and may be gzipped.
        columns (dict): From :obj:`'user'`, :obj:`'item'`, :obj:`'time'` and
            optionally :obj:`'label'` (0 or 1), :obj:`'category'` (of the
            item) and :obj:`'weight'` (0, or a positive number that fits a
            float32) to the names of the columns in the files.
        time_unit (str, optional): The unit of a time that is a number:
            :obj:`'s'`, :obj:`'ms'`, :obj:`'us'` or :obj:`'ns'`. A time that
            is a date is read as UTC unless it says otherwise. If a number in
            a CSV file is 2^53 or more, all are read as whole numbers.
            (default: :obj:`'s'`)
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the files again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        FileNotFoundError: If no file is there.
        TypeError: If :obj:`columns` is no dictionary of strings.
        ValueError: If :obj:`columns` or :obj:`time_unit` is wrong, if a file
            is empty, is no whole gzip file, lacks a column or names it twice,
            has a column of another type than the first file, holds a row that
            cannot be read (the message has file and line) or another number
            of rows than were read, or if the cache was made with other arguments, by
            another version or from other files.
    """

    schema_version = 2

    def __init__(
        self,
        root: str | os.PathLike[str],
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        columns: Mapping[str, str],
        time_unit: str = 's',
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        _check_columns(columns)
        if time_unit not in _UNITS:
            raise ValueError(
                f"'time_unit' must be one of {', '.join(map(repr, _UNITS))}, got {time_unit!r}"
            )
        self.columns = dict(columns)
        self.time_unit = time_unit
        self._files = _find_files(path)
        super().__init__(root, transform, pre_transform, force_reload, log)

    @property
    def arguments(self) -> dict[str, Any]:
        return {'columns': self.columns, 'time_unit': self.time_unit}

    @property
    def source_files(self) -> list[str]:
        return self._files

    def process(self) -> None:
        super().process()
        num_duplicates = self._read_manifest()['num_duplicates']
        if num_duplicates:
            warnings.warn(
                f"{num_duplicates:,} rows repeat another row's user, item and time; they are kept",
                stacklevel=2,
            )

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("SET TimeZone = 'UTC'")
        is_parquet = self._files[0].endswith(_PARQUET)
        num_rows = self._read_parquet(connection) if is_parquet else self._read_csv(connection)
        self._check_rows(connection, num_rows)
        for role, kind in _column_types(connection).items():
            if role in ('user', 'item') and (not is_parquet or kind.startswith(_LONG)):
                _read_numbers(connection, role, kind)
        self._set_seconds(connection)
        if 'category' in self.columns:
            self._set_categories(connection)

    def _read_csv(self, connection: duckdb.DuckDBPyConnection) -> list[int]:
        contents = []
        for path in self._files:
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
        samples = [_sample(path, self.columns) for path in self._files]
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
        scans = [scan_csv(path, types, required) for path in self._files]
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
        for path in self._files:
            columns = parquet_columns(connection, path, tuple(self.columns.values()))
            missing = [name for name in self.columns.values() if name not in columns]
            if missing:
                raise missing_columns(path, missing, list(columns))
            kinds = {role: columns[name] for role, name in self.columns.items()}
            self._check_kinds(path, kinds)
            first = first or kinds
            # Labels and weights are made DOUBLE in any case.
            for role in kinds:
                if role in ('label', 'weight') or first[role] == kinds[role]:
                    continue
                if not {first[role], kinds[role]} <= {*_INTEGERS}:
                    raise ValueError(
                        f'{path}: column {self.columns[role]!r} is {kinds[role]}, but '
                        f'{first[role]} in {self._files[0]}; expected one type in all files'
                    )
                values[role] = f'{quote_name(self.columns[role])}::BIGINT'
        if first['time'] in ('DATE', 'FLOAT'):
            kind = 'TIMESTAMP' if first['time'] == 'DATE' else 'DOUBLE'
            values['time'] = f'{quote_name(self.columns["time"])}::{kind}'
        selects = [self._select(values, scan_parquet(path)) for path in self._files]
        _create_log(connection, selects[0])
        num_rows = []
        for path, select in zip(self._files, selects):
            with reading_parquet(path):
                ((count,),) = connection.execute(f'INSERT INTO log {select}').fetchall()
            num_rows.append(count)
        return num_rows

    def _check_kinds(self, path: str, kinds: dict[str, str]) -> None:
        for role, kind in kinds.items():
            allowed, expected = _KINDS[role]
            # A DECIMAL has its numbers of digits behind it, a list of them has brackets, too.
            if re.sub(r'^DECIMAL\(\d+,\d+\)$', 'DECIMAL', kind) not in allowed:
                raise ValueError(
                    f'{path}: column {self.columns[role]!r} ({role}) is {kind}, expected {expected}'
                )

    def _select(self, values: Mapping[str, str], scan: str) -> str:
        values = {role: quote_name(name) for role, name in self.columns.items()} | dict(values)
        values['label'] = f'{values["label"]}::DOUBLE' if 'label' in values else '1::TINYINT'
        if 'weight' in values:
            values['weight'] += '::DOUBLE'
        return f'SELECT {", ".join(f"{v} AS {role}" for role, v in values.items())} FROM {scan}'

    def _check_rows(self, connection: duckdb.DuckDBPyConnection, num_rows: list[int]) -> None:
        types = _column_types(connection)
        is_empty = {'VARCHAR': "{} = ''", 'FLOAT': 'isnan({})', 'DOUBLE': 'isnan({})'}
        # Of a role, what holds where its value is bad, and what was expected.
        bad = [
            (
                role,
                f'{role} IS NULL OR {is_empty.get(types[role], "false").format(role)}',
                'an id',
            )
            for role in ('user', 'item')
        ]
        bad += [
            (role, f'contains({role}, chr(0))', 'an id without a NUL')
            for role in ('user', 'item')
            if types[role] == 'VARCHAR'
        ]
        is_bad = 'NOT isfinite(time)'
        if not types['time'].startswith('TIMESTAMP'):
            is_bad = f'time NOT BETWEEN {-_LAST_TIME} AND {_LAST_TIME}'
        bad.append(('time', f'time IS NULL OR {is_bad}', 'a finite time that fits 64 bits'))
        if 'label' in self.columns:
            bad.append(('label', 'label IS NULL OR label NOT IN (0, 1)', '0 or 1'))
        if 'weight' in self.columns:
            is_bad = f'NOT BETWEEN {_SMALLEST_WEIGHT} AND {_LARGEST_WEIGHT}'
            bad.append(
                (
                    'weight',
                    f'weight IS NULL OR weight <> 0 AND weight {is_bad}',
                    '0 or a positive number that fits a float32',
                )
            )
        counts = ', '.join(
            f'min(rowid) FILTER ({condition}), count(*) FILTER ({condition})'
            for _, condition, _ in bad
        )
        found = connection.execute(f'SELECT {counts} FROM log').fetchall()[0]
        for (role, _, expected), row, count in zip(bad, found[::2], found[1::2]):
            if count:
                (value,) = connection.execute(
                    f'SELECT {role} FROM log WHERE rowid = {row}'
                ).fetchall()[0]
                if isinstance(value, str) and value:
                    value = shorten(value)
                others = f' (and {count - 1:,} more such rows)' if count > 1 else ''
                raise ValueError(
                    f'{self._locate(row, num_rows)}: column {self.columns[role]!r} ({role}) holds '
                    f'{"nothing" if value in (None, "") else value}, expected {expected}{others}'
                )

    def _locate(self, row: int, num_rows: list[int]) -> str:
        ends = list(accumulate(num_rows))
        position = bisect_right(ends, row)
        path = self._files[position]
        row -= ends[position] - num_rows[position]
        if path.endswith(_PARQUET):
            return f'{path}, row {row + 1}'
        delimiter, _ = read_header(path, tuple(self.columns.values()))
        return f'{path}, line {line_of_row(path, row, delimiter)}'

    def _set_seconds(self, connection: duckdb.DuckDBPyConnection) -> None:
        kind = _column_types(connection)['time']
        unit = _UNITS[self.time_unit]
        if kind.startswith('TIMESTAMP'):
            self.seconds = 'floor(epoch(time))::BIGINT'
        elif kind == 'DOUBLE':
            self.seconds = f'floor(time / {unit})::BIGINT'
        else:
            time = 'floor(time)::BIGINT' if kind.startswith('DECIMAL') else 'time::BIGINT'
            # `//` rounds towards zero, also before 1970.
            self.seconds = f'({time} - ({time} % {unit} + {unit}) % {unit}) // {unit}'
        (last,) = connection.execute(f'SELECT max({self.seconds}) FROM log').fetchall()[0]
        if last is not None and last > _YEAR_5000:
            warnings.warn(
                f'the last time, {last:,} seconds after 1970, is beyond the year 5000; if the '
                f'column {self.columns["time"]!r} is not in {self.time_unit!r}, pass another '
                f"'time_unit'",
                stacklevel=2,
            )

    def _set_categories(self, connection: duckdb.DuckDBPyConnection) -> None:
        # What is called unknown in the files and what is missing there are one category.
        connection.execute("""
            CREATE OR REPLACE VIEW named AS
            SELECT item, time, rowid AS position,
                   CASE WHEN category::VARCHAR NOT IN ('', 'unknown') THEN category END AS category
            FROM log
        """)
        # `arg_min` skips NULL, and so would take the category of a later row.
        connection.execute("""
            CREATE OR REPLACE TABLE item_attribute AS
            SELECT item AS id, arg_min_null(category, position) AS category
            FROM named JOIN (SELECT item, min(time) AS time FROM log GROUP BY item)
            USING (item, time) GROUP BY item
        """)
        several, example, late, late_example = connection.execute("""
            SELECT count(*) FILTER (low <> high), min(id) FILTER (low <> high),
                   count(*) FILTER (is_late), min(id) FILTER (is_late)
            FROM (
                SELECT id, low, high, category IS NULL AND low IS NOT NULL AS is_late
                FROM item_attribute JOIN (
                    SELECT item AS id, min(category) AS low, max(category) AS high
                    FROM named GROUP BY item
                ) USING (id)
            )
        """).fetchall()[0]
        connection.execute('DROP VIEW named')
        found = []
        if several:
            found.append(f'{several:,} items have rows of several categories, such as {example!r}')
        if late:
            found.append(
                f"{late:,} items are 'unknown' as their first row has no category and a later one "
                f'has, such as {late_example!r}'
            )
        if found:
            warnings.warn(
                f'{"; ".join(found)}; an item has the category of its first row in time',
                stacklevel=2,
            )


_YEAR_5000 = 95_617_584_000
# Somewhat below 2^63, as the seconds are worked out in 64 bits.
_LAST_TIME = 9_200_000_000_000_000_000
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
# What is smaller has fewer digits or is 0.
_SMALLEST_WEIGHT = float(np.finfo(np.float32).smallest_normal)
# Up to here a double holds every whole number.
_EXACT = 2**53


def _check_columns(columns: Mapping[str, str]) -> None:
    known = ', '.join(map(repr, (*_REQUIRED, *_OPTIONAL)))
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"'columns' must be a dictionary from {known} to names of columns, got {columns!r}"
        )
    for role, name in columns.items():
        if role not in (*_REQUIRED, *_OPTIONAL):
            raise ValueError(f"'columns' has the unknown key {role!r}; the keys are {known}")
        if not isinstance(name, str):
            raise TypeError(f"'columns' must name a column for {role!r}, got {name!r}")
    missing = [role for role in _REQUIRED if role not in columns]
    if missing:
        raise ValueError(
            f"'columns' lacks {', '.join(map(repr, missing))}; "
            f'got {", ".join(map(repr, columns)) or "nothing"}'
        )
    roles: dict[str, str] = {}
    for role, name in columns.items():
        # DuckDB's names are blind to case.
        other = roles.setdefault(name.lower(), role)
        if other != role:
            raise ValueError(
                f"'columns' names the column {name!r} for both {other!r} and {role!r}; expected "
                f'names that differ in more than upper and lower case'
            )


def _find_files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    paths = [path] if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise TypeError(f"'path' must be a file, a pattern or a list of files, got {path!r}")
    files: list[str] = []
    for pattern in (osp.expanduser(os.fspath(p)) for p in paths):
        if osp.isdir(pattern):
            raise ValueError(
                f'{pattern!r} is a directory; pass its files, for example as '
                f'{osp.join(pattern, "*.parquet")!r}'
            )
        found = [pattern] if osp.exists(pattern) else sorted(glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f'no file {pattern!r}')
        files += [osp.abspath(file) for file in found]
    if not files:
        raise ValueError("'path' is an empty list; expected at least one file")
    for file in files:
        if not file.endswith((*_CSV, *_PARQUET)):
            raise ValueError(
                f'{file!r} is neither CSV ({", ".join(_CSV)}) nor Parquet '
                f'({", ".join(_PARQUET)}) by its name'
            )
        if file.endswith(_PARQUET) != files[0].endswith(_PARQUET):
            raise ValueError(
                f'{files[0]!r} and {file!r} are of two kinds; expected CSV files '
                f'only or Parquet files only'
            )
        if files.count(file) > 1:
            raise ValueError(f'{file!r} is listed twice')
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
    if _column_types(connection)['time'] != 'DOUBLE':
        return False
    is_large = f'isfinite(time) AND abs(time) >= {_EXACT}'
    return bool(connection.execute(f'SELECT 1 FROM log WHERE {is_large} LIMIT 1').fetchall())


def _column_types(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return {name: kind for name, kind, *_ in connection.execute('DESCRIBE log').fetchall()}


def _read_numbers(connection: duckdb.DuckDBPyConnection, role: str, kind: str) -> None:
    other = connection.execute(
        f'SELECT 1 FROM log '
        f'WHERE TRY_CAST({role} AS BIGINT)::VARCHAR IS DISTINCT FROM {role}::VARCHAR LIMIT 1'
    ).fetchall()
    number_or_text = 'VARCHAR' if other else 'BIGINT'
    if number_or_text != kind:
        connection.execute(f'ALTER TABLE log ALTER {role} TYPE {number_or_text}')
