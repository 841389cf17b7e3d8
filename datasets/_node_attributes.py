r"""Codes of what users and items have, one value each or several."""

from typing import NamedTuple

import duckdb
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets._code_names import CodeNames
from mag.datasets._known_log import KnownLog
from mag.datasets._sql import column_kinds, quote_name

_MOST_VALUES = 1000


class _Values(NamedTuple):
    r"""What a log tells of an attribute: a row for each value that a node has."""

    #: What codes are called.
    names: list[str]
    node: Tensor
    code: Tensor
    #: Whether it is the first of its node.
    is_first: Tensor

    def of(self, is_asked: Tensor) -> '_Values':
        r"""Those of some nodes, and no name that is none of theirs."""
        rows = is_asked[self.node]
        used, code = self.code[rows].unique(return_inverse=True)
        names = [self.names[place] for place in used.tolist()]
        return _Values(names, self.node[rows], code, self.is_first[rows])


def add_attributes(
    connection: duckdb.DuckDBPyConnection,
    data: HeteroData,
    node: str,
    names: CodeNames,
    known: KnownLog,
    descriptions: tuple[str, ...],
) -> None:
    r"""Adds :obj:`<name>` and :obj:`num_<name>` for each attribute of users or items, and
    :obj:`x_<name>`, 1 for each value that a node has, where it may have several.

    Args:
        connection: The connection of the tables :obj:`<node>_node` and :obj:`<node>_attribute`, in
            which a column of lists is an attribute of several values.
        data (HeteroData): The graph.
        node (str): :obj:`'user'` or :obj:`'item'`.
        names (CodeNames): Where codes get their names.
        known (KnownLog): What an earlier log knows: a node that has a value there keeps it.
        descriptions (tuple): Columns that are no attributes.

    Raises:
        ValueError: If an attribute of several values has more than a thousand.
    """
    kinds = column_kinds(connection, f'{node}_attribute')
    kinds = {name: kind for name, kind in kinds.items() if name not in ('id', *descriptions)}
    lists = known.lists.get(node, {})
    several = [name for name, kind in kinds.items() if kind.endswith(']')]
    single = _single_values(connection, node, [name for name in kinds if name not in several])
    store = data[node]
    for name in dict.fromkeys((*kinds, *known.codes.get(node, {}))):
        if name in several:
            values = _several_values(connection, node, name)
        else:
            values = single.get(name) or _nothing(store.num_nodes)
        old = torch.from_numpy(known.codes.get(node, {}).get(name, np.empty(0, dtype=np.int64)))
        is_kept = torch.zeros(store.num_nodes, dtype=torch.bool)
        if len(old):
            (unknown,) = known.maps[name].encode(['unknown']).tolist()
            is_kept[: len(old)] = old != unknown
            # What this log tells against the earlier one is no name that any node has.
            values = values.of(~is_kept)
        code = names.encode(name, values.names, values.code)
        values = values._replace(names=names.names[name], code=code)
        store[name] = torch.empty(store.num_nodes, dtype=torch.long)
        store[name][values.node[values.is_first]] = code[values.is_first]
        store[name][is_kept] = old[is_kept[: len(old)]]
        store[f'num_{name}'] = len(values.names)
        if name in several or name in lists:
            _require_few(name, len(values.names))
            store[f'x_{name}'] = _columns(values, store[name], is_kept, lists.get(name))


def _columns(values: _Values, first: Tensor, is_kept: Tensor, old: Tensor | None) -> Tensor:
    r"""A column for each value, of nodes that keep what they had those of an earlier log."""
    x = torch.zeros(len(first), len(values.names))
    x[values.node, values.code] = 1
    if old is None:
        # It was one of single values.
        x[is_kept, first[is_kept]] = 1
    else:
        kept = is_kept.nonzero().view(-1)
        x[kept, : old.size(1)] = old[kept]
    return x


def _require_few(name: str, number: int) -> None:
    if number > _MOST_VALUES:
        raise ValueError(
            f'The values of {name!r} must be at most {_MOST_VALUES:,}, as each becomes a column of '
            f'x_{name}, but got {number:,}: keep the most frequent of them.'
        )


def _nothing(num_nodes: int) -> _Values:
    r"""The values of an attribute that a log does not tell."""
    node = torch.arange(num_nodes)
    return _Values(['unknown'], node, torch.zeros_like(node), torch.ones_like(node).bool())


def _single_values(
    connection: duckdb.DuckDBPyConnection, node: str, columns: list[str]
) -> dict[str, _Values]:
    if not columns:
        return {}
    quoted = {name: quote_name(name) for name in columns}
    # What is called unknown in the files and what is missing there are one category.
    merged = ', '.join(
        f"CASE WHEN {name}::VARCHAR <> 'unknown' THEN {name} END AS {name}"
        for name in quoted.values()
    )
    connection.execute(f"""
        CREATE TABLE {node}_joined AS
        SELECT node, {merged} FROM {node}_node LEFT JOIN {node}_attribute USING (id)
    """)
    codes = ', '.join(
        f'dense_rank() OVER (ORDER BY {name} NULLS FIRST) - 1 AS {name}' for name in quoted.values()
    )
    found = connection.execute(f'SELECT {codes} FROM {node}_joined ORDER BY node').fetchnumpy()
    values = {}
    for name, column in quoted.items():
        named = f'SELECT DISTINCT {column} AS value FROM {node}_joined'
        everyone = torch.arange(len(found[name]))
        values[name] = _Values(
            _names(connection, named),
            everyone,
            torch.from_numpy(found[name].astype(np.int64)),
            everyone >= 0,
        )
    return values


def _several_values(connection: duckdb.DuckDBPyConnection, node: str, column: str) -> _Values:
    quoted = quote_name(column)
    listed = f'CASE WHEN len({quoted}) > 0 THEN {quoted} ELSE [NULL] END'
    connection.execute(f"""
        CREATE OR REPLACE TABLE listed AS
        SELECT node, unnest({listed}) AS value, generate_subscripts({listed}, 1) = 1 AS is_first
        FROM {node}_node LEFT JOIN {node}_attribute USING (id)
    """)
    names = _names(connection, 'SELECT DISTINCT value FROM listed')
    found = connection.execute("""
        SELECT node, dense_rank() OVER (ORDER BY value NULLS FIRST) - 1 AS code, is_first
        FROM listed
    """).fetchnumpy()
    connection.execute('DROP TABLE listed')
    nodes, code = (torch.from_numpy(found[name].astype(np.int64)) for name in ('node', 'code'))
    return _Values(names, nodes, code, torch.from_numpy(found['is_first']))


def _names(connection: duckdb.DuckDBPyConnection, values: str) -> list[str]:
    rows = connection.execute(f'SELECT value::VARCHAR FROM ({values}) ORDER BY value NULLS FIRST')
    return ['unknown' if value is None else value for (value,) in rows.fetchall()]
