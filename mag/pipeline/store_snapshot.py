r"""A snapshot of a store, whose log is read in pieces."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import Module

from mag.online import EVENT, Compiled, Program, RowLayout
from mag.online.snapshot import write_snapshot
from mag.pipeline.snapshot_counts import PIECE, count, hop_2
from mag.pipeline.stored_log import StoredLog

if TYPE_CHECKING:
    from mag.store import Store


def store_events(store: 'Store') -> Iterator[np.ndarray]:
    r"""The exposures of a store as events of :mod:`mag.online`, in the order of its log, in pieces.

    Raises:
        FileNotFoundError: If a file of the log is missing.
        ValueError: If one is another than the one that the store was built from.
    """
    from mag.store.store_loader import stream_events

    for user, item, time, clicked in stream_events(store, PIECE):
        events = np.empty(len(user), EVENT)
        events['user'], events['item'] = user, item
        events['time'], events['clicked'] = time, clicked
        yield events


def write_store(
    folder: str | os.PathLike[str],
    model_name: str,
    hops: int,
    log: StoredLog,
    model: Module,
    program: Program | None,
    compiled: Compiled | None,
) -> str:
    r"""Writes a :class:`~mag.online.Snapshot` as of the end of the log of a store, which is its
    last cutoff.

    Clusters are those of the store. All events of a node count by the cluster that it has now, as
    :meth:`Store.target_counts <mag.store.Store.target_counts>` counts as of the last cutoff, and as
    a consumer of events does; of a log in memory they count by the one that it had then. A node
    without a cluster has no counts of its cluster, as there, and shares none with others. Counts of
    hop 2 are exact, also where the store keeps them in one byte each.

    Memory is that of the rows of all nodes and of the distinct clicks; the log is read in pieces.

    Args:
        folder: The folder that gets one named by its content.
        model_name: The name of the model.
        hops: How many hops of the rows of all nodes it reads.
        log: The log.
        model: The model.
        program: The program that it is exported as.
        compiled: Its native code.

    Raises:
        FileNotFoundError: If a file of the log is missing.
        ValueError: If one is another than the one that the store was built from.
    """
    store = log.store
    of_type = {
        node: [of for of in store.resolutions if of.node_type == node] for node in store.num_nodes
    }
    layout = RowLayout(
        store.num_recent,
        {node: [store.num_clusters[of.name] for of in found] for node, found in of_type.items()},
    )
    clusters = {
        node: np.stack([store.cluster(of.name) for of in found]) for node, found in of_type.items()
    }
    counts = count(layout, clusters, {}, store_events(store))
    attributes = {
        node: {name: store.attribute(name) for name in names}
        for node, names in store.attributes.items()
    }
    of_attributes = [name for names in attributes.values() for name in names]
    return write_snapshot(
        folder,
        model=model_name,
        position=counts.position,
        checksum=counts.checksum,
        time=log.end - 1,
        layout=layout,
        resolutions={node: [of.cluster for of in found] for node, found in of_type.items()},
        clusters=clusters,
        rows=counts.rows,
        hop_2=hop_2(layout, counts.rows, counts.pairs) if hops > 1 else {},
        cells=counts.cells,
        pairs=counts.pairs,
        id_maps={**log.maps, **{name: store.id_map(name) for name in of_attributes}},
        attributes=attributes,
        contexts=log.contexts,
        weights=model.state_dict(),
        program=program,
        compiled=compiled,
        shares_without_cluster=False,
    )
