r"""What a pipeline knows, as :mod:`mag.online` reads it."""

import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import scipy
from torch.nn import Module

from mag.macro_graph import target_views
from mag.online import EVENT, Compiled, Program, RowLayout, checksum_of, count_events
from mag.online.node_rows import columns_of, count_cells
from mag.online.pair_runs import pack_pairs, unpack_pairs
from mag.online.snapshot import write_snapshot
from mag.pipeline.raw_log import RawLog
from mag.schema import NEIGHBOR_TYPE

# What RecentNeighbors is told in recipes.
_NUM_RECENT = 20
# Events that are counted at once.
_PIECE = 2**16
# Of each model, how many hops of the rows of all nodes it reads.
_HOPS = {'count_net': 1, 'macgnn': 2}


def events_of(log: RawLog) -> np.ndarray:
    r"""The exposures of a log as events of :mod:`mag.online`, in their order, shape :obj:`[L]`."""
    events = np.empty(log.num_events, EVENT)
    for name, column in (
        ('user', 'user'),
        ('item', 'item'),
        ('time', 'time'),
        ('clicked', 'label'),
    ):
        events[name] = log.events[column].numpy()
    return events


def write(
    folder: str | os.PathLike[str],
    model_name: str,
    log: Any,
    recipe: Any,
    model: Module,
    make: Callable[[], tuple[Program | None, Compiled | None]],
) -> str:
    r"""Writes a :class:`~mag.online.Snapshot` as of the end of a log, with the programs that are
    made once all else can be written.

    Raises:
        ValueError: If the model, or what the log tells, is not served yet.
    """
    if model_name not in _HOPS or not isinstance(log, RawLog):
        raise ValueError(
            f'A snapshot is made of {" and ".join(_HOPS)} with a log that fits in memory, but not '
            f'of {model_name} with {type(log).__name__}.'
        )
    told = {'query', 'domain'}.intersection(log.contexts)
    if told or log.features:
        raise ValueError(
            f'A snapshot holds names of contexts, but neither queries, domains nor features, as '
            f'this log has: {sorted({*told, *log.features})}. Fit without them.'
        )
    program, compiled = make()
    events = events_of(log)
    part = recipe.coarsen(log.part())
    of_type: dict[str, list[Any]] = {'user': [], 'item': []}
    for of in recipe.coarsen.resolutions:
        of_type[of.node_type].append(of)
    if model_name == 'count_net':
        views = target_views(*([of.cluster for of in of_type[node]] for node in ('user', 'item')))
        if (names := [view.name for view in views]) != recipe.counts.names:
            raise ValueError(
                f'A snapshot holds counts at the target by {names}, but those of this pipeline are '
                f'by {recipe.counts.names}.'
            )
    layout = RowLayout(
        _NUM_RECENT,
        {node: [part[of.macro].num_nodes for of in found] for node, found in of_type.items()},
    )
    clusters = {
        node: np.stack([part[node][of.cluster].numpy() for of in found]).astype(np.int32)
        for node, found in of_type.items()
    }
    since = {
        node: np.stack(
            [_since(part[node].get(f'{of.cluster}_since'), part[node].num_nodes) for of in found]
        )
        for node, found in of_type.items()
    }
    rows, pairs, cells = _count(layout, clusters, since, events)
    hop_2 = {}
    if _HOPS[model_name] > 1:
        shape = len(rows['user']), len(rows['item'])
        of_users = scipy.sparse.csr_matrix((np.ones(pairs.shape[1], np.int64), pairs), shape)
        for node, matrix in (('user', of_users), ('item', of_users.T)):
            neighbor = NEIGHBOR_TYPE[node]
            columns = slice(0, layout.num_clusters[node][0])
            hop_2[node] = matrix @ rows[neighbor]['pairs'][:, columns].astype(np.int64)
    return write_snapshot(
        folder,
        model=model_name,
        position=len(events),
        checksum=checksum_of(events),
        time=log.end - 1,
        layout=layout,
        resolutions={node: [of.cluster for of in found] for node, found in of_type.items()},
        clusters=clusters,
        rows=rows,
        hop_2=hop_2,
        cells=cells,
        pairs=pairs,
        id_maps=log.maps,
        attributes={
            node: {name: value.numpy() for name, value in found.items()}
            for node, found in log.attributes.items()
        },
        contexts=log.contexts,
        weights=model.state_dict(),
        program=program,
        compiled=compiled,
    )


def _since(since: Any, num_nodes: int) -> np.ndarray:
    r"""Since when the cluster of each node is known; of attributes, always."""
    return np.full(num_nodes, np.iinfo(np.int64).min) if since is None else since.numpy()


def _count(
    layout: RowLayout,
    clusters: dict[str, np.ndarray],
    since: dict[str, np.ndarray],
    events: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[tuple[int, int], np.ndarray]]:
    r"""The rows of all nodes, the pairs that have clicked and the counts between clusters."""
    numbers = layout.num_clusters
    rows = {node: layout.empty(node, clusters[node].shape[1]) for node in NEIGHBOR_TYPE}
    columns = {node: columns_of(layout, node, clusters[node]) for node in NEIGHBOR_TYPE}
    cells = {
        (s, t): np.zeros((of_user + 1, of_item + 1, 2), np.int64)
        for s, of_user in enumerate(numbers['user'])
        for t, of_item in enumerate(numbers['item'])
    }
    for first in range(0, len(events), _PIECE):
        piece = events[first : first + _PIECE]
        clicked = piece['clicked'] == 1
        column = {}
        for node in NEIGHBOR_TYPE:
            # Before its cluster was known, a node was in none.
            is_known = piece['time'][:, None] >= since[node][:, piece[node]].T
            column[node] = np.where(is_known, columns[node][piece[node]], columns[node][-1])
        for node, neighbor in NEIGHBOR_TYPE.items():
            count_events(
                rows[node],
                piece[node],
                piece[neighbor],
                column[neighbor],
                clicked,
                np.zeros(len(piece), bool),
            )
        count_cells(cells, layout, column, clicked)
    clicks = events[events['clicked'] == 1]
    pairs = np.stack(unpack_pairs(np.unique(pack_pairs(clicks['user'], clicks['item']))))
    for (node, neighbor), (own, other) in zip(
        NEIGHBOR_TYPE.items(), (pairs, cast(np.ndarray, pairs[::-1])), strict=True
    ):
        np.add.at(rows[node]['pairs'], (own[:, None], columns[neighbor][other]), 1)
    return rows, pairs, cells
