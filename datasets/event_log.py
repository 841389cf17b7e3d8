import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import duckdb
import numpy as np
from torch_geometric.data import HeteroData

from mag.checks import check_choice
from mag.datasets._event_files import EventFiles, find_files
from mag.datasets._sql import TIME_UNITS, TIMESTAMPS, column_kinds, in_seconds
from mag.datasets._values import Rule, check_table
from mag.datasets.click_dataset import ClickDataset
from mag.datasets.log_table import LogTable
from mag.id_map import IdMap

_REQUIRED = ('user', 'item', 'time')
_OPTIONAL = ('label', 'category', 'weight')

_YEAR_5000 = 95_617_584_000
# Somewhat below 2^63, as the seconds are worked out in 64 bits.
_LAST_TIME = 9_200_000_000_000_000_000
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
# What is smaller has fewer digits or is 0.
_SMALLEST_WEIGHT = float(np.finfo(np.float32).smallest_normal)


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
    A later row does not decide the category of an item: earlier rows would read
    their future. A warning says how many items have rows of several categories,
    and how many have one in later rows alone.

    A later export of the same log, with the former rows or without, is read with the same ids:

    .. code-block:: python

        later = EventLog('data/shop-2025', 'exports/2025-*.parquet', columns, ids=dataset)

    Users and items that :obj:`dataset` has keep their nodes, and new ones come after them, in
    ascending order among themselves; so do the names of categories. All nodes of :obj:`dataset`
    are nodes of the later graph, also those without a row in it, and an item keeps its category
    unless it was unknown. :obj:`data.id_maps` tells what has been made for such a graph, as
    transforms and models do, that ids only grew; ids that were ranked anew are refused.

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
        ids (ClickDataset, str or dict, optional): An earlier dataset whose ids are kept, or its
            :obj:`root`, for which it need not be opened; or a dictionary of its
            :attr:`~ClickDataset.id_maps`, such as :obj:`{'user': IdMap.load('user.parquet')}`,
            which tells no category of an item. (default: :obj:`None`)

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

    schema_version = 3

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
        ids: ClickDataset | str | os.PathLike[str] | Mapping[str, IdMap] | None = None,
    ) -> None:
        _check_columns(columns)
        check_choice(TIME_UNITS, time_unit=time_unit)
        self.columns = dict(columns)
        self.time_unit = time_unit
        self._event_files = EventFiles(find_files(path), self.columns)
        super().__init__(root, transform, pre_transform, force_reload, log, ids)

    @property
    def arguments(self) -> dict[str, Any]:
        return {'columns': self.columns, 'time_unit': self.time_unit}

    @property
    def source_files(self) -> list[str]:
        return self._event_files.paths

    def report_duplicates(self, num_duplicates: int) -> None:
        warnings.warn(
            f"{num_duplicates:,} rows repeat another row's user, item and time, and are kept.",
            stacklevel=2,
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        num_rows = self._event_files.read(connection)
        check_table(
            connection,
            'log',
            _rules(column_kinds(connection, 'log')),
            partial(self._event_files.locate, num_rows),
            self._event_files.titles,
        )
        self._event_files.read_numbers(connection)
        self._warn_of_late_times(connection)
        if 'category' in self.columns:
            _create_categories(connection)
        return LogTable(time_unit=self.time_unit)

    def _warn_of_late_times(self, connection: duckdb.DuckDBPyConnection) -> None:
        seconds = in_seconds('time', column_kinds(connection, 'log')['time'], self.time_unit)
        (last,) = connection.execute(f'SELECT max({seconds}) FROM log').fetchall()[0]
        if last is not None and last > _YEAR_5000:
            warnings.warn(
                f'The last time, {last:,} seconds after 1970, is beyond the year 5000: if the '
                f'column {self.columns["time"]!r} is not in {self.time_unit!r}, pass another '
                f"'time_unit'.",
                stacklevel=2,
            )


def _create_categories(connection: duckdb.DuckDBPyConnection) -> None:
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
            f'{"; ".join(found)}: an item has the category of its first row in time.',
            stacklevel=2,
        )


def _rules(kinds: Mapping[str, str]) -> list[Rule]:
    r"""What the columns must hold, of a table with columns of these kinds."""
    is_filled = {'VARCHAR': "{} <> ''", 'FLOAT': 'NOT isnan({})', 'DOUBLE': 'NOT isnan({})'}
    ids = {role: kinds[role] for role in ('user', 'item')}
    rules = [
        Rule(role, is_filled.get(kind, '{} IS NOT NULL').format(role), 'an id')
        for role, kind in ids.items()
    ]
    rules += [
        Rule(role, f'NOT contains({role}, chr(0))', 'an id without a NUL')
        for role, kind in ids.items()
        if kind == 'VARCHAR'
    ]
    is_time = f'time BETWEEN {-_LAST_TIME} AND {_LAST_TIME}'
    is_time = 'isfinite(time)' if kinds['time'] in TIMESTAMPS else is_time
    rules.append(Rule('time', is_time, 'a finite time that fits 64 bits'))
    rules.append(Rule('label', 'label IN (0, 1)', '0 or 1'))
    if 'weight' in kinds:
        is_weight = f'weight = 0 OR weight BETWEEN {_SMALLEST_WEIGHT} AND {_LARGEST_WEIGHT}'
        rules.append(Rule('weight', is_weight, '0 or a positive number that fits a float32'))
    return rules


def _check_columns(columns: Mapping[str, str]) -> None:
    roles = ', '.join(map(repr, (*_REQUIRED, *_OPTIONAL)))
    if not isinstance(columns, Mapping) or not all(isinstance(n, str) for n in columns.values()):
        raise TypeError(
            f"'columns' must be a dictionary from {roles} to names of columns, but got {columns!r}."
        )
    if not {*_REQUIRED} <= {*columns} <= {*_REQUIRED, *_OPTIONAL}:
        raise ValueError(
            f"'columns' must have the keys {', '.join(map(repr, _REQUIRED))} and may have "
            f'{", ".join(map(repr, _OPTIONAL))}, but got {", ".join(map(repr, columns)) or "none"}.'
        )
    # DuckDB's names are blind to case.
    role_of: dict[str, str] = {}
    for role, name in columns.items():
        other = role_of.setdefault(name.lower(), role)
        if other != role:
            raise ValueError(
                f"'columns' must name columns that differ in more than upper and lower case, but "
                f'got {name!r} for both {other!r} and {role!r}.'
            )
