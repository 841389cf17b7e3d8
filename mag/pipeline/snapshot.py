r"""What a pipeline knows, as :mod:`mag.online` reads it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.nn import Module

from mag.macro_graph import target_views
from mag.online import EVENT, Compiled, Program, RowLayout
from mag.online.snapshot import write_snapshot
from mag.pipeline.known_log import KnownLog
from mag.pipeline.raw_log import RawLog
from mag.pipeline.snapshot_counts import PIECE, count, hop_2
from mag.pipeline.store_snapshot import store_events, write_store
from mag.pipeline.stored_log import StoredLog

# What RecentNeighbors is told in recipes.
_NUM_RECENT = 20
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


def pieces_of(log: KnownLog) -> Iterator[np.ndarray]:
    r"""The same in pieces, of which those of a store need not fit in memory together."""
    if isinstance(log, StoredLog):
        yield from store_events(log.store)
    elif isinstance(log, RawLog):
        events = events_of(log)
        for first in range(0, len(events), PIECE):
            yield events[first : first + PIECE]


def require_served(model_name: str, log: Any) -> None:
    r"""Raises a :class:`ValueError` if a model, or what a log tells, is not served yet."""
    if model_name not in _HOPS:
        raise ValueError(f'A snapshot is made of {" and ".join(_HOPS)}, but not of {model_name}.')
    told = {'query', 'domain'}.intersection(log.contexts)
    if told or log.features:
        raise ValueError(
            f'A snapshot holds names of contexts, but neither queries, domains nor features, as '
            f'this log has: {sorted({*told, *log.features})}. Fit without them.'
        )


def write(
    folder: str | os.PathLike[str],
    model_name: str,
    log: Any,
    recipe: Any,
    model: Module,
    make: Callable[[], tuple[Program | None, Compiled | None]],
    checksum: int | None = None,
) -> str:
    r"""Writes a :class:`~mag.online.Snapshot` as of the end of a log, with the programs that are
    made once all else can be written.

    Args:
        checksum: That of the events of the stream, if their times are not those of the log.

    Raises:
        ValueError: If the model, or what the log tells, is not served yet.
    """
    require_served(model_name, log)
    program, compiled = make()
    if isinstance(log, StoredLog):
        return write_store(folder, model_name, _HOPS[model_name], log, model, program, compiled)
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
    counts = count(layout, clusters, since, pieces_of(log))
    return write_snapshot(
        folder,
        model=model_name,
        position=counts.position,
        checksum=counts.checksum if checksum is None else checksum,
        time=log.end - 1,
        layout=layout,
        resolutions={node: [of.cluster for of in found] for node, found in of_type.items()},
        clusters=clusters,
        rows=counts.rows,
        hop_2=hop_2(layout, counts.rows, counts.pairs) if _HOPS[model_name] > 1 else {},
        cells=counts.cells,
        pairs=counts.pairs,
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
