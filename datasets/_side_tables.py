r"""What is known of users and items: from the first row of a log, and from tables beside it."""

import warnings
from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets._modality import count_rows as count_features
from mag.datasets._modality import read_features
from mag.datasets._sql import TIMESTAMPS, column_kinds, count_rows, quote_name
from mag.datasets._table_reader import TableReader, rules_of_ids
from mag.datasets._table_source import Field
from mag.datasets._values import Rule

_LARGEST = float(np.finfo(np.float32).max)


def create_first_rows(
    connection: duckdb.DuckDBPyConnection, node: str, fields: Mapping[str, Field]
) -> None:
    r"""Moves what the first row in time of each user or item says of it from the log to a table.

    Args:
        connection: The connection of the table :obj:`log`.
        node (str): :obj:`'user'` or :obj:`'item'`.
        fields (dict): The columns.
    """
    # What is called unknown in the files and what is missing there are one category.
    known = ', '.join(
        f'{_known(quote_name(name), field)} AS {quote_name(name)}' for name, field in fields.items()
    )
    connection.execute(f"""
        CREATE OR REPLACE VIEW named AS
        SELECT {node} AS id, time, rowid AS log_position, {known} FROM log
    """)
    # The first time, and the range of values by which later ones are told, in one pass.
    columns = {
        name: tuple(map(quote_name, (name, f'low_{name}', f'high_{name}', f'num_{name}')))
        for name in fields
    }
    ranges = ', '.join(
        f'min({column}) AS {low}, max({column}) AS {high}, count({column}) AS {number}'
        for column, low, high, number in columns.values()
    )
    connection.execute(f"""
        CREATE OR REPLACE TABLE {node}_range AS
        SELECT id, min(time) AS time, count(*) AS row_count, {ranges} FROM named GROUP BY id
    """)
    # Of whom all rows say the same, no first one has to be found.
    is_same = ' AND '.join(
        f'{low} IS NOT DISTINCT FROM {high} AND {number} IN (0, row_count)'
        for _, low, high, number in columns.values()
    )
    same = ', '.join(f'{low} AS {column}' for column, low, *_ in columns.values())
    # `arg_min` skips NULL, and so would take the value of a later row.
    first = ', '.join(
        f'arg_min_null({column}, log_position) AS {column}' for column, *_ in columns.values()
    )
    connection.execute(f"""
        CREATE OR REPLACE TABLE {node}_first AS
        SELECT id, {same} FROM {node}_range WHERE {is_same}
        UNION ALL
        SELECT id, {first}
        FROM named JOIN (SELECT id, time FROM {node}_range WHERE NOT ({is_same})) USING (id, time)
        GROUP BY id
    """)
    for name in fields:
        _warn_of_later_rows(connection, node, name)
    connection.execute(f'DROP TABLE {node}_range')
    connection.execute('DROP VIEW named')
    # The rest is made without them, and in as much memory less.
    for name in fields:
        connection.execute(f'ALTER TABLE log DROP COLUMN {quote_name(name)}')


def _known(value: str, field: Field) -> str:
    if field.kind == 'names':
        listed = f"list_filter({value}, lambda part: part NOT IN ('', 'unknown'))"
        return f'CASE WHEN len({listed}) > 0 THEN {listed} END'
    return f"CASE WHEN {value}::VARCHAR NOT IN ('', 'unknown') THEN {value} END"


def _warn_of_later_rows(connection: duckdb.DuckDBPyConnection, node: str, name: str) -> None:
    low, high = quote_name(f'low_{name}'), quote_name(f'high_{name}')
    is_late = f'{quote_name(name)} IS NULL AND {low} IS NOT NULL'
    several, example, late, late_example = connection.execute(f"""
        SELECT count(*) FILTER ({low} <> {high}), min(id) FILTER ({low} <> {high}),
               count(*) FILTER ({is_late}), min(id) FILTER ({is_late})
        FROM {node}_first JOIN {node}_range USING (id)
    """).fetchall()[0]
    of_several = 'categories' if name == 'category' else f'values of {name!r}'
    noun = 'category' if name == 'category' else repr(name)
    found = []
    if several:
        found.append(f'{several:,} {node}s have rows of several {of_several}, such as {example!r}')
    if late:
        found.append(
            f"{late:,} {node}s are 'unknown' as their first row has no {noun} and a later one "
            f'has, such as {late_example!r}'
        )
    if found:
        article = 'an item' if node == 'item' else 'a user'
        warnings.warn(
            f'{"; ".join(found)}: {article} has the {noun} of its first row in time.',
            stacklevel=2,
        )


def read_side_table(
    connection: duckdb.DuckDBPyConnection,
    node: str,
    reader: TableReader,
    fields: Mapping[str, Field],
) -> None:
    r"""Reads a table beside the log that tells of users or items.

    Raises:
        ValueError: If an id is missing or there twice, or a vector is of another length than the
            first or holds what is no number, with file and line.
    """
    reader.read(connection)
    table = reader.table
    vectors = [name for name, field in fields.items() if field.kind == 'vector']
    rules = rules_of_ids(fields, reader.kinds(connection))
    rules.append(
        Rule(
            'id',
            f'rowid NOT IN (SELECT unnest(rows[2:]) FROM (SELECT list(rowid ORDER BY rowid) '
            f'AS rows FROM {table} GROUP BY id HAVING count(*) > 1))',
            f'each {node} once',
        )
    )
    for name in vectors:
        quoted = quote_name(name)
        sizes = connection.execute(
            f'SELECT len({quoted}) FROM {table} WHERE {quoted} IS NOT NULL ORDER BY rowid LIMIT 1'
        ).fetchall()
        size = sizes[0][0] if sizes else 0
        is_good = (
            f'{quoted} IS NULL OR (len({quoted}) = {size} AND {size} > 0 AND len(list_filter('
            f'{quoted}, lambda part: abs(part) <= {_LARGEST})) = {size})'
        )
        rules.append(Rule(name, is_good, f'{size or "some"} numbers, as in the first row, or none'))
    reader.check(connection, rules)


def match_side_table(
    connection: duckdb.DuckDBPyConnection, node: str, reader: TableReader, num_kept: int
) -> None:
    r"""Creates the table :obj:`<node>_side` of what a table beside the log says of each node, with
    the number of its row.

    Args:
        connection: The connection of the tables, and of :obj:`<node>_node`.
        node (str): :obj:`'user'` or :obj:`'item'`.
        reader (TableReader): That of the table.
        num_kept (int): How many nodes, the first, have all that it tells from an earlier log.

    Raises:
        ValueError: If it tells of no node.
    """
    of_graph = column_kinds(connection, f'{node}_node')['id']
    # A date and a time are written in two ways, and a number and a text in one.
    are_times = {of_graph, reader.kinds(connection)['id']} <= {*TIMESTAMPS, 'DATE'}
    kind = 'TIMESTAMP' if are_times else 'VARCHAR'
    connection.execute(f"""
        CREATE OR REPLACE TABLE {node}_side AS
        SELECT of_graph.id, side.* EXCLUDE (id), side.rowid AS log_position
        FROM {node}_node AS of_graph
        JOIN {reader.table} AS side ON of_graph.id::{kind} = side.id::{kind}
    """)
    is_missing = f'side IS NULL AND node >= {num_kept}'
    num_told, missing, example, first, num_nodes = connection.execute(f"""
        SELECT count(side), count(*) FILTER ({is_missing}), min(id) FILTER ({is_missing}), min(id),
               count(*)
        FROM {node}_node LEFT JOIN (SELECT id AS side FROM {node}_side) ON id = side
    """).fetchall()[0]
    if not num_told:
        ((other,),) = connection.execute(f'SELECT id FROM {reader.table} LIMIT 1').fetchall()
        raise ValueError(
            f'{reader.name} must tell of {node}s of the log, such as {first!r}, but tells only '
            f'of others, such as {other!r}.'
        )
    if missing:
        warnings.warn(
            f'{missing:,} of {num_nodes:,} {node}s have no row in {reader.name}, such as '
            f"{example!r}: what it tells is 'unknown' of them, and features are 0.",
            stacklevel=2,
        )


def create_node_table(
    connection: duckdb.DuckDBPyConnection,
    node: str,
    fields: Mapping[str, Field],
    side_fields: Mapping[str, Field],
) -> None:
    r"""Creates the table :obj:`<node>_attribute` of what is known of each node, with lists in the
    columns of several values."""
    columns = [
        f'{_known(f"{node}_{source}.{quote_name(name)}", field)} AS {quote_name(name)}'
        for source, named in (('first', fields), ('side', side_fields))
        for name, field in named.items()
        if field.kind in ('name', 'names')
    ]
    if not columns:
        return
    joins = [
        f'LEFT JOIN {node}_{source} USING (id)'
        for source, named in (('first', fields), ('side', side_fields))
        if named
    ]
    connection.execute(f"""
        CREATE OR REPLACE TABLE {node}_attribute AS
        SELECT {node}_node.id, {', '.join(columns)} FROM {node}_node {' '.join(joins)}
    """)


def add_modalities(
    connection: duckdb.DuckDBPyConnection,
    data: HeteroData,
    node: str,
    reader: TableReader,
    vectors: Sequence[str],
    arrays: Mapping[str, str],
) -> None:
    r"""Adds :obj:`x_<name>` and :obj:`has_<name>` for each modality of users or items."""
    position = connection.execute(f"""
        SELECT coalesce(log_position, -1) AS log_position
        FROM {node}_node LEFT JOIN {node}_side USING (id) ORDER BY node
    """).fetchnumpy()['log_position']
    position = np.asarray(position, dtype=np.int64)
    for name, path in arrays.items():
        num_rows, num_expected = count_features([path]), count_rows(connection, reader.table)
        if num_rows != num_expected:
            raise ValueError(
                f'{path} must have a row for each of the {num_expected:,} of {reader.name}, but '
                f'has {num_rows:,}.'
            )
        x, has = read_features(path, np.maximum(position, 0))
        unknown = torch.from_numpy(position < 0)
        x[unknown] = 0
        data[node][f'x_{name}'], data[node][f'has_{name}'] = x, has & ~unknown
    for name in vectors:
        data[node][f'x_{name}'], data[node][f'has_{name}'] = _fetch_vectors(connection, node, name)


def _fetch_vectors(
    connection: duckdb.DuckDBPyConnection, node: str, name: str
) -> tuple[Tensor, Tensor]:
    num_nodes = count_rows(connection, f'{node}_node')
    quoted = quote_name(name)
    (size,) = connection.execute(
        f'SELECT coalesce(max(len({quoted})), 1) FROM {node}_side'
    ).fetchall()[0]
    x, has = torch.zeros(num_nodes, size), torch.zeros(num_nodes, dtype=torch.bool)
    # In pieces, as a query holds a row for each number.
    step = max((1 << 22) // size, 1)
    for start in range(0, num_nodes, step):
        found = connection.execute(f"""
            SELECT node, unnest({quoted}) AS value, generate_subscripts({quoted}, 1) - 1 AS place
            FROM {node}_node JOIN {node}_side USING (id)
            WHERE node >= {start} AND node < {start + step} AND {quoted} IS NOT NULL
        """).fetchnumpy()
        index, place = (torch.from_numpy(found[key].astype(np.int64)) for key in ('node', 'place'))
        x[index, place] = torch.from_numpy(found['value'].astype(np.float32))
        has[index] = True
    return x, has
