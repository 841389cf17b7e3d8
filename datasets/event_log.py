import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
from torch_geometric.data import HeteroData

from mag.datasets._known_log import KnownLog
from mag.datasets._log_actions import action_names, join_actions
from mag.datasets._log_roles import fill_missing, rules_of
from mag.datasets._log_warnings import warn_of_labels, warn_of_late_clicks, warn_of_late_times
from mag.datasets._side_tables import (
    add_modalities,
    create_first_rows,
    create_node_table,
    match_side_table,
    read_side_table,
)
from mag.datasets._table_reader import TableReader
from mag.datasets._table_source import Field
from mag.datasets.click_dataset import ClickDataset
from mag.datasets.log_schema import LogSchema
from mag.datasets.log_table import LogTable
from mag.id_map import IdMap


class EventLog(ClickDataset):
    r"""A click log of your own, from CSV or Parquet files or from a table in memory.

    .. code-block:: python

        dataset = EventLog('data/shop', 'exports/2024-*.parquet', {
            'user': 'customer_id', 'item': 'sku', 'time': 'shown_at', 'label': 'clicked',
        })
        data = dataset[0]
        dataset.raw_ids['item'][data['user', 'clicks', 'item'].edge_index[1]]

    Every row is an exposure of an item to a user.
    Without a :obj:`label` column every row is a click, and a warning says so.
    Ids of any type are mapped to :obj:`0` to :obj:`N-1` in ascending order
    (ids in a CSV file are numbers if each of them is written as a whole
    number is, and text otherwise, so that :obj:`7` and :obj:`007` differ);
    :attr:`raw_ids` maps back.
    Rows are ordered by time, those of the same time as in the files.
    Rows that repeat another's user, item and time are kept, as two clicks may
    share a second; :attr:`num_duplicates` counts them and a warning says so.

    What else a log may have is said by the roles of :class:`LogSchema`, which also names tables of
    users, of items and of what followed, and can be loaded from a file:
    :obj:`EventLog('data/shop', LogSchema.load('log.yaml'))`.

    The :class:`~torch_geometric.data.HeteroData` holds, times as int64 seconds,

    * in :obj:`data['user', 'clicks', 'item']`: :obj:`edge_index`, :obj:`time` (clicks),
      :obj:`edge_label_index`, :obj:`edge_label`, :obj:`edge_label_time` (exposures); with a
      :obj:`weight` :obj:`edge_weight` (clicks) and :obj:`edge_label_weight` (exposures); with
      behaviors :obj:`edge_label_behavior`, shape :obj:`[num_exposures, B]`; with a conversion
      :obj:`edge_label_conversion`; with contexts :obj:`edge_label_<name>` and :obj:`num_<name>`;
      with features :obj:`edge_label_x`, shape :obj:`[num_exposures, F]`; with a query or a domain
      :obj:`query`, :obj:`edge_label_query`, :obj:`domain`, :obj:`edge_label_domain`; with
      :obj:`settled` :obj:`edge_label_settled`;
    * in :obj:`data['user']` and :obj:`data['item']`: an attribute as :obj:`<name>` and
      :obj:`num_<name>`; one of several values as :obj:`<name>`, the first of them, and
      :obj:`x_<name>`, shape :obj:`[N, num_<name>]`, 1 for each of them; a modality as
      :obj:`x_<name>`, shape :obj:`[N, D]`, and :obj:`has_<name>`.

    What a column of the log says of a user or an item is that of its first row in time
    (:obj:`'unknown'` if it has none there). A later row does not decide: earlier rows would read
    their future. A warning says how many have rows of several values, and how many have one in
    later rows alone. A table of users or items is taken as known from the first row on: what
    changes with time, such as a number of sales, is no attribute in it.

    What followed a row that was not clicked is 0 in the graph, and a warning says how many rows
    lost what they had.

    A later export of the same log, with the former rows or without, is read with the same ids:

    .. code-block:: python

        later = EventLog('data/shop-2025', 'exports/2025-*.parquet', columns, ids=dataset)

    Users and items that :obj:`dataset` has keep their nodes, and new ones come after them, in
    ascending order among themselves; so do the names of categories, and with them the columns of
    :obj:`x_<name>`. All nodes of :obj:`dataset` are nodes of the later graph, also those without a
    row in it, and the later table of users or items tells of them, too. What it does not tell, they
    keep:

    * an attribute, of one value or several, and a text stay as they were unless they were unknown,
      whatever the later export tells;
    * a modality is that of the later table where it has one, else what it was. A warning says where
      that had another number of features and is 0. Of a :obj:`dataset` with a
      :obj:`pre_transform`, which may have changed it, no modality is kept.

    :obj:`data.id_maps` tells what has been made for such a graph, as transforms and models do, that
    ids only grew; ids that were ranked anew are refused.

    Args:
        root (str): Directory of the cache.
        path (str, list, table or LogSchema): A file, a pattern such as
            :obj:`'logs/*.parquet'` or a list of files, read in this order
            (those of a pattern in the order of their names).
            CSV files are UTF-8 with a header, separated by a comma, tab,
            semicolon or bar, and may be gzipped. Or a table in memory: of pandas, polars, PyArrow
            or DuckDB, that the cache knows by its content. Or a :class:`LogSchema`, that says the
            rest, too.
        columns (dict, optional): From roles to the names of the columns, see :class:`LogSchema`:
            :obj:`'user'`, :obj:`'item'`, :obj:`'time'` and optionally others, such as
            :obj:`'label'` (0 or 1), :obj:`'category'` (of the item) and :obj:`'weight'` (0, or a
            positive number that fits a float32).
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
            which keeps names of categories and tells nothing else of a user or an item.
            (default: :obj:`None`)

    Raises:
        FileNotFoundError: If no file is there.
        TypeError: If :obj:`columns` is no dictionary of strings, or :obj:`path` nothing to read.
        ValueError: If :obj:`columns` or :obj:`time_unit` is wrong, if a file
            is empty, is no whole gzip file, lacks a column or names it twice,
            has a column of another type than the first file, holds a row that
            cannot be read (the message has file and line) or another number
            of rows than were read, or if the cache was made with other arguments, by
            another version or from other files.
    """

    schema_version = 4

    def __init__(
        self,
        root: str | os.PathLike[str],
        path: Any,
        columns: Mapping[str, Any] | None = None,
        time_unit: str = 's',
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
        ids: ClickDataset | str | os.PathLike[str] | Mapping[str, IdMap] | None = None,
    ) -> None:
        schema = _schema_of(path, columns, time_unit)
        self.columns = _plain(schema.columns)
        self.time_unit = schema.time_unit
        self._readers = _readers_of(schema)
        self._schema: LogSchema | None = schema
        self._arguments = _arguments_of(schema, self._readers)
        self._paths = [path for reader in self._readers.values() for path in reader.paths]
        self._paths += [path for node in schema.side_tables for path in _arrays(schema, node)]
        super().__init__(root, transform, pre_transform, force_reload, log, ids)
        # A table in memory is not held, and its file is deleted.
        self._schema, self._readers = None, {}

    @property
    def arguments(self) -> dict[str, Any]:
        return self._arguments

    @property
    def source_files(self) -> list[str]:
        return self._paths

    @property
    def raw_file_names(self) -> list[str]:
        return self._paths

    @property
    def texts(self) -> list[str]:
        r"""What the columns of texts say of every item as one text, in node order, for
        :class:`~mag.transforms.TextFeatures`; :obj:`'unknown'` of an item without.

        Raises:
            ValueError: If the log has no texts of items.
        """
        item = self.describe('item')
        columns = [column for name, column in item.items() if name != 'id']
        if not columns:
            raise ValueError(
                "EventLog.texts needs 'item_texts' in the columns of the log, or 'texts' in those "
                'of the table of items, but there are none.'
            )
        return [
            '. '.join(str(text) for text in texts if text is not None) or 'unknown'
            for texts in zip(*columns)
        ]

    def report_duplicates(self, num_duplicates: int) -> None:
        warnings.warn(
            f"{num_duplicates:,} rows repeat another row's user, item and time, and are kept.",
            stacklevel=2,
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        schema = self._reading
        log = self._readers['log']
        fields = schema.log_fields
        log.read(connection)
        if 'label' not in fields:
            connection.execute('ALTER TABLE log ADD COLUMN label TINYINT DEFAULT 1')
        log.check(connection, rules_of(fields, log.kinds(connection)))
        log.read_numbers(connection)
        warn_of_late_times(connection, schema)
        self._read_actions(connection)
        warn_of_labels(connection, schema)
        warn_of_late_clicks(connection)
        fill_missing(connection, fields)
        for node in schema.side_tables:
            read_side_table(connection, node, self._readers[node], schema.side_fields(node))
        conversions = {'conversion'} & {*fields, *action_names(schema.actions)}
        return LogTable(
            time_unit=self.time_unit,
            behaviors=tuple(schema.behaviors),
            conversion='conversion' if conversions else None,
            contexts=tuple(schema.named('contexts')),
            features=tuple(schema.named('features')),
            query='query' if {'query', 'domain'} & {*fields} else None,
            descriptions=tuple(
                name
                for node in ('user', 'item')
                for name in (*schema.named(f'{node}_texts'), *schema.side_names(node, 'texts'))
            ),
        )

    def extend(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: HeteroData,
        names: dict[str, list[str]],
    ) -> None:
        schema = self._reading
        for node in schema.side_tables:
            fields, arrays = schema.side_fields(node), schema.side_arrays(node)
            vectors = [name for name, field in fields.items() if field.kind == 'vector']
            add_modalities(connection, data, node, self._readers[node], vectors, arrays)

    @property
    def _reading(self) -> LogSchema:
        if self._schema is None:
            raise RuntimeError('EventLog reads its files only while it is made.')
        return self._schema

    def _read_actions(self, connection: duckdb.DuckDBPyConnection) -> None:
        actions = self._reading.actions
        if actions is None:
            return
        reader, fields = self._readers['action'], self._reading.action_fields
        reader.read(connection)
        reader.check(connection, rules_of(fields, reader.kinds(connection)))
        reader.read_numbers(connection)
        found = action_names(actions)
        if 'label' in found:
            connection.execute('ALTER TABLE log DROP COLUMN label')
        join_actions(connection, reader, self.time_unit, found, actions['within'])

    def _tell_nodes(self, connection: duckdb.DuckDBPyConnection, known: KnownLog) -> None:
        schema = self._reading
        for node in ('user', 'item'):
            fields = _attributes(schema, node)
            if fields:
                create_first_rows(connection, node, fields)
            side_fields: dict[str, Field] = {}
            if node in schema.side_tables:
                side_fields = schema.side_fields(node)
                names = {*side_fields, *schema.side_arrays(node)} - {'id'}
                num_kept = known.num_told(node, names)
                match_side_table(connection, node, self._readers[node], num_kept)
            create_node_table(connection, node, fields, side_fields)


def _schema_of(path: Any, columns: Mapping[str, Any] | None, time_unit: str) -> LogSchema:
    if not isinstance(path, LogSchema):
        if columns is None:
            raise TypeError(
                "'columns' must say which column is the 'user', the 'item' and the 'time', unless "
                "'path' is a LogSchema."
            )
        return LogSchema(path, columns, time_unit)
    if columns is not None or time_unit != 's':
        raise ValueError(
            "'columns' and 'time_unit' must be those of the LogSchema, but others were passed."
        )
    return path


def _readers_of(schema: LogSchema) -> dict[str, TableReader]:
    readers = {
        'log': TableReader(schema.path, schema.log_fields, schema.format(), 'log', 'the log')
    }
    for node, table in schema.side_tables.items():
        fields, form = schema.side_fields(node), schema.format(table)
        readers[node] = TableReader(
            table['path'], fields, form, f'{node}_table', f'the table of {node}s'
        )
    if schema.actions is not None:
        fields, form = schema.action_fields, schema.format(schema.actions)
        readers['action'] = TableReader(
            schema.actions['path'], fields, form, 'action', 'the table of actions'
        )
    return readers


def _arguments_of(schema: LogSchema, readers: Mapping[str, TableReader]) -> dict[str, Any]:
    arguments = {'columns': _plain(schema.columns), 'time_unit': schema.time_unit}
    tables = {'users': schema.users, 'items': schema.items, 'actions': schema.actions}
    arguments |= {
        name: _plain({key: value for key, value in table.items() if key != 'path'})
        for name, table in tables.items()
        if table is not None
    }
    form = schema.own_format
    if form != {'separator': None, 'names': None, 'encoding': 'utf-8'}:
        arguments['format'] = _plain(form)
    content = {name: reader.content for name, reader in readers.items() if reader.content}
    return arguments | ({'tables': content} if content else {})


def _plain(value: Any) -> Any:
    r"""Dictionaries and lists of what JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _arrays(schema: LogSchema, node: str) -> list[str]:
    return [os.path.abspath(path) for path in schema.side_arrays(node).values()]


def _attributes(schema: LogSchema, node: str) -> dict[str, Field]:
    r"""The columns of the log that tell of a user or an item."""
    names = [*schema.named(f'{node}_attributes'), *schema.named(f'{node}_texts')]
    fields = schema.log_fields
    return {name: fields[name] for name in names}
