r"""From the table of a log to a graph: ids from 0, rows in the order of time."""

import warnings
from collections.abc import Iterator

import duckdb
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets._code_names import CodeNames
from mag.datasets._known_log import KnownLog
from mag.datasets._node_attributes import add_attributes
from mag.datasets._queries import DOMAINS, fetch_queries, map_queries
from mag.datasets._sql import column_kinds, count_rows, in_seconds, quote, quote_name
from mag.datasets.log_table import LogTable
from mag.id_map import IdMap, lineage_of
from mag.schema import CLICKS

_NODES = ('user', 'item')


class LogToGraph:
    r"""Makes the graph of the table :obj:`log`, step by step: :meth:`map_ids`, :meth:`sort`,
    :meth:`build`.

    Args:
        connection: The connection of the table.
        table (LogTable): What the table holds.
        known (KnownLog): What an earlier log knows, whose ids and codes are kept.

    Attributes:
        names (dict): For each categorical attribute, the name of each code.
        lineages (dict): For users, items and each categorical attribute, the
            :attr:`~mag.datasets.IdMap.lineage` of its ids or names.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, table: LogTable, known: KnownLog
    ) -> None:
        self.connection = connection
        self.table = table
        self.known = known
        self._names = CodeNames(known.maps)
        self.names, self.lineages = self._names.names, self._names.lineages

    def map_ids(self) -> None:
        r"""Gives a code to each user, item, value of a context and query."""
        for node in _NODES:
            self.connection.execute(f"""
                CREATE TABLE {node}_node AS
                SELECT (row_number() OVER (ORDER BY id) - 1)::INTEGER AS node, id
                FROM (SELECT DISTINCT {node} AS id FROM log)
            """)
            if node in self.known.maps:
                self._keep_nodes(node, self.known.maps[node])
            else:
                num_nodes = count_rows(self.connection, f'{node}_node')
                self.lineages[node] = lineage_of(self._raw_ids(node), [num_nodes])
        for name in self.table.contexts:
            # What is called unknown in the files and what is missing there are one category.
            self.connection.execute(f"""
                CREATE TABLE {name}_name AS
                SELECT raw, name,
                       (dense_rank() OVER (ORDER BY name NULLS FIRST) - 1)::INTEGER AS code
                FROM (
                    SELECT DISTINCT log.{name} AS raw,
                           CASE WHEN log.{name}::VARCHAR <> 'unknown' THEN log.{name} END AS name
                    FROM log
                )
            """)
        if self.table.query is not None:
            map_queries(self.connection, self.table.query)

    def sort(self) -> int:
        r"""Turns the table :obj:`log` into the table :obj:`event`, codes in the order of time.

        Returns:
            The number of rows that repeat another.
        """
        table, connection = self.table, self.connection
        merged = {name: f'max(log.{name})' for name in ('label', 'weight', *table.flags)}
        merged |= {'click_time': 'min(click_time)', 'settled': 'max(settled)'}
        # `arg_min` skips NULL, and so would take the value of a later row.
        merged |= {
            name: f'arg_min_null(log.{name}, rowid)' for name in (*table.contexts, *table.features)
        }
        keys = 'user, item, time'
        if table.query is not None:
            merged[table.query] = f'log.{table.query}'
            keys += f', {quote_name(table.query)}'
        columns = [name for name in column_kinds(connection, 'log') if name in merged]
        log = 'SELECT *, rowid AS log_position FROM log'
        if table.merge_duplicates:
            log = f"""
                SELECT user, item, time, min(rowid) AS log_position,
                       {', '.join(f'{merged[name]} AS {name}' for name in columns)}
                FROM log GROUP BY {keys}
            """
        codes = {name: f'{name}_name.code AS {name}' for name in table.mapped}
        joins = (
            f'JOIN {name}_name ON log.{name} IS NOT DISTINCT FROM {name}_name.raw'
            for name in table.mapped
        )
        connection.execute(f"""
            CREATE TABLE event AS
            SELECT user_node.node AS user, item_node.node AS item, time,
                   {', '.join(codes.get(name, f'log.{name}') for name in columns)}
            FROM ({log}) AS log
            JOIN user_node ON log.user = user_node.id
            JOIN item_node ON log.item = item_node.id
            {' '.join(joins)}
            ORDER BY time, log_position
        """)
        if table.merge_duplicates:
            num_distinct = count_rows(connection, 'event')
        else:
            num_distinct = count_rows(connection, f'(SELECT DISTINCT {keys} FROM event)')
        num_duplicates = count_rows(connection, 'log') - num_distinct
        connection.execute('DROP TABLE log')
        return num_duplicates

    def build(self) -> HeteroData:
        r"""The graph of the events, in the schema of :obj:`mag/schema.py`."""
        table, columns = self.table, self._fetch_events()
        edge_label_index = columns.pop('index')
        edge_label_time = columns.pop('time')
        edge_label = columns.pop('label')
        click = edge_label > 0
        # Where nothing tells when it happened, a click is one as soon as that is known.
        late = next((name for name in ('click_time', 'settled') if name in columns), None)
        # A log of clicks alone is held once.
        has_clicks_only = bool(click.all()) and late is None
        click_time = edge_label_time if late is None else columns[late]
        if late is not None:
            click = click.nonzero().view(-1)
            click = click[click_time[click].argsort(stable=True)]

        data = HeteroData()
        for node in _NODES:
            data[node].num_nodes = count_rows(self.connection, f'{node}_node')
        store = data[CLICKS]
        store.edge_index = edge_label_index if has_clicks_only else edge_label_index[:, click]
        store.time = edge_label_time if has_clicks_only else click_time[click]
        store.edge_label_index = edge_label_index
        store.edge_label = edge_label
        store.edge_label_time = edge_label_time
        if 'settled' in columns:
            store.edge_label_settled = columns['settled']
        if 'weight' in columns:
            store.edge_label_weight = columns['weight']
            store.edge_weight = columns['weight'][click]
        if table.behaviors:
            behavior = torch.stack([columns.pop(name) for name in table.behaviors], dim=1)
            store.edge_label_behavior = behavior.mul_(edge_label.view(-1, 1))
            self.names['behavior'] = list(table.behaviors)
        if table.conversion is not None:
            store.edge_label_conversion = columns[table.conversion].mul_(edge_label)
            self.names['conversion'] = [table.conversion]
        if table.features:
            store.edge_label_x = torch.stack([columns.pop(name) for name in table.features], dim=1)
            self.names['feature'] = list(table.features)
        for name in table.contexts:
            values = self.connection.execute(f"""
                SELECT coalesce(any_value(name::VARCHAR), 'unknown')
                FROM {name}_name GROUP BY code ORDER BY code
            """).fetchall()
            codes = self._names.encode(name, [value for (value,) in values], columns[name])
            store[f'edge_label_{name}'] = codes
            store[f'num_{name}'] = len(self.names[name])
        if table.query is not None:
            terms, is_search, names = fetch_queries(self.connection, table.query)
            terms = self._names.encode('query', names, terms)
            self.names['domain'] = list(DOMAINS)
            for name, value in (('query', terms), ('domain', is_search)):
                of_exposure = value[columns[table.query]]
                store[f'edge_label_{name}'] = of_exposure
                store[name] = of_exposure if has_clicks_only else of_exposure[click]
                store[f'num_{name}'] = len(self.names[name])
        for node in _NODES:
            descriptions = table.descriptions
            add_attributes(self.connection, data, node, self._names, self.known, descriptions)
        data.id_maps = dict(self.lineages)
        return data

    def write_nodes(self, node: str, path: str) -> None:
        r"""Writes the id of every node of a type, and the words there are about it."""
        attributes = column_kinds(self.connection, f'{node}_attribute')
        given = [name for name in attributes if name in self.table.descriptions]
        values = {name: f'attribute.{quote_name(name)}' for name in given}
        joins = f'LEFT JOIN {node}_attribute AS attribute USING (id)' if given else ''
        known = self.known.words.get(node, {})
        if known:
            size = len(self.known.maps[node])
            self.connection.register('known', {'node': np.arange(size), **known})
            joins += ' LEFT JOIN known USING (node)'
            for name in known:
                place = f'known.{quote_name(name)}'
                values[name] = f'coalesce({place}, {values[name]})' if name in values else place
        selected = ', '.join(f'{value} AS {quote_name(name)}' for name, value in values.items())
        self.connection.execute(f"""
            COPY (
                SELECT id{selected and f', {selected}'} FROM {node}_node {joins} ORDER BY node
            ) TO {quote(path)} (FORMAT parquet, COMPRESSION zstd)
        """)

    def _keep_nodes(self, node: str, known: IdMap) -> None:
        r"""Gives the ids that are known their nodes, and new ones those after."""
        raw = np.concatenate([*self._raw_ids(node)])
        grown = _append(known, raw, node)
        kind = column_kinds(self.connection, f'{node}_node')['id']
        if grown.kind == 'text' and kind != 'VARCHAR':
            # The earlier log had texts, or this one has what is no number.
            for table, column in (('log', node), (f'{node}_attribute', 'id')):
                if column in column_kinds(self.connection, table):
                    self.connection.execute(f'ALTER TABLE {table} ALTER {column} TYPE VARCHAR')
        nodes = np.arange(len(grown))
        self.connection.register('grown', {'node': nodes, 'id': grown.decode(nodes)})
        self.connection.execute(f"""
            CREATE OR REPLACE TABLE {node}_node AS SELECT node::INTEGER AS node, id FROM grown
        """)
        self.connection.unregister('grown')
        self.lineages[node] = grown.lineage

    def _raw_ids(self, node: str) -> Iterator[np.ndarray]:
        r"""The raw ids of all nodes, in pieces."""
        for start in range(0, count_rows(self.connection, f'{node}_node'), 1 << 20):
            yield self.connection.execute(f"""
                SELECT id FROM {node}_node
                WHERE node >= {start} AND node < {start + (1 << 20)} ORDER BY node
            """).fetchnumpy()['id']

    def _fetch_events(self) -> dict[str, Tensor]:
        kinds = column_kinds(self.connection, 'event')
        num_rows = count_rows(self.connection, 'event')
        index = torch.empty(2, num_rows, dtype=torch.long)
        columns = {'user': index[0], 'item': index[1]}
        times = [name for name in kinds if name in ('time', 'click_time', 'settled')]
        for name in (*times, *self.table.mapped):
            columns[name] = torch.empty(num_rows, dtype=torch.long)
        columns |= {name: torch.empty(num_rows) for name in kinds if name not in columns}
        seconds = ', '.join(
            f'{in_seconds(name, kinds[name], self.table.time_unit)} AS {name}' for name in times
        )
        # In pieces, as one query would hold the whole result twice.
        for start in range(0, num_rows, 1 << 20):
            stop = min(start + (1 << 20), num_rows)
            piece = self.connection.execute(f"""
                SELECT * REPLACE ({seconds}) FROM event
                WHERE rowid >= {start} AND rowid < {stop}
            """).fetchnumpy()
            for name, column in columns.items():
                column[start:stop] = torch.from_numpy(piece[name])
        del columns['user'], columns['item']
        return columns | {'index': index}


def _append(known: IdMap, raw: np.ndarray, node: str) -> IdMap:
    r"""The map with the users or items of a log, ascending, that it does not have."""
    try:
        is_known = known.encode(raw) >= 0
    except TypeError as error:
        raise TypeError(f"'ids' must have {node}s as the log has: {error}") from error
    if len(known) and not is_known.any():
        (there,), (here,) = known.decode([0]).tolist(), raw[:1].tolist()
        warnings.warn(
            f'None of the {is_known.size:,} {node}s of the log, such as {here!r}, is among the '
            f"{len(known):,} of 'ids', such as {there!r}: is that the log of another shop, or are "
            f'they written in another way?',
            stacklevel=2,
        )
    return known.append(raw)
