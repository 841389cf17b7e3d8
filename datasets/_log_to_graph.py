r"""From the table of a log to a graph: ids from 0, rows in the order of time."""

import duckdb
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets._queries import DOMAINS, fetch_queries, map_queries
from mag.datasets._sql import column_kinds, count_rows, in_seconds, quote, quote_name
from mag.datasets.log_table import LogTable
from mag.schema import CLICKS

_NODES = ('user', 'item')


class LogToGraph:
    r"""Makes the graph of the table :obj:`log`, step by step: :meth:`map_ids`, :meth:`sort`,
    :meth:`build`.

    Args:
        connection: The connection of the table.
        table (LogTable): What the table holds.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: LogTable) -> None:
        self.connection = connection
        self.table = table
        self.names: dict[str, list[str]] = {}

    def map_ids(self) -> None:
        r"""Gives a code to each user, item, value of a context and query."""
        for node in _NODES:
            self.connection.execute(f"""
                CREATE TABLE {node}_node AS
                SELECT (row_number() OVER (ORDER BY id) - 1)::INTEGER AS node, id
                FROM (SELECT DISTINCT {node} AS id FROM log)
            """)
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
        # A log of clicks alone is held once.
        has_clicks_only = bool(click.all()) and 'click_time' not in columns
        click_time = columns.get('click_time', edge_label_time)
        if 'click_time' in columns:
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
            values = self.connection.execute(
                f'SELECT DISTINCT code, name FROM {name}_name ORDER BY code'
            ).fetchall()
            self.names[name] = ['unknown' if value is None else str(value) for _, value in values]
            store[f'edge_label_{name}'] = columns[name]
            store[f'num_{name}'] = len(self.names[name])
        if table.query is not None:
            terms, is_search, self.names['query'] = fetch_queries(self.connection, table.query)
            self.names['domain'] = list(DOMAINS)
            for name, value in (('query', terms), ('domain', is_search)):
                of_exposure = value[columns[table.query]]
                store[f'edge_label_{name}'] = of_exposure
                store[name] = of_exposure if has_clicks_only else of_exposure[click]
                store[f'num_{name}'] = len(self.names[name])
        for node in _NODES:
            self._add_attributes(data, node)
        return data

    def write_nodes(self, node: str, path: str) -> None:
        r"""Writes the id of every node of a type, and the words there are about it."""
        words = [name for name in self._attributes(node) if name in self.table.descriptions]
        attributes = f'LEFT JOIN {node}_attribute USING (id)' if words else ''
        self.connection.execute(f"""
            COPY (
                SELECT {', '.join(['id', *map(quote_name, words)])}
                FROM {node}_node {attributes} ORDER BY node
            ) TO {quote(path)} (FORMAT parquet, COMPRESSION zstd)
        """)

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

    def _attributes(self, node: str) -> list[str]:
        return [name for name in column_kinds(self.connection, f'{node}_attribute') if name != 'id']

    def _add_attributes(self, data: HeteroData, node: str) -> None:
        attributes = {
            name: quote_name(name)
            for name in self._attributes(node)
            if name not in self.table.descriptions
        }
        if not attributes:
            return
        # What is called unknown in the files and what is missing there are one category.
        merged = ', '.join(
            f"CASE WHEN {name}::VARCHAR <> 'unknown' THEN {name} END AS {name}"
            for name in attributes.values()
        )
        self.connection.execute(f"""
            CREATE TABLE {node}_joined AS
            SELECT node, {merged}
            FROM {node}_node LEFT JOIN {node}_attribute USING (id)
        """)
        codes = ', '.join(
            f'dense_rank() OVER (ORDER BY {name} NULLS FIRST) - 1 AS {name}'
            for name in attributes.values()
        )
        columns = self.connection.execute(
            f'SELECT {codes} FROM {node}_joined ORDER BY node'
        ).fetchnumpy()
        for name, quoted in attributes.items():
            values = self.connection.execute(
                f'SELECT DISTINCT {quoted} FROM {node}_joined ORDER BY 1 NULLS FIRST'
            ).fetchall()
            self.names[name] = ['unknown' if value is None else str(value) for (value,) in values]
            data[node][name] = torch.from_numpy(columns[name].astype(np.int64))
            data[node][f'num_{name}'] = len(self.names[name])
