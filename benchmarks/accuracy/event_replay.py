r"""The rows of a test part with features as of other positions in the log than its cutoff, as a
server has them that starts from a snapshot and follows the log."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.id_map import IdMap
from mag.loader import PairBatch
from mag.macro_graph import Seen, TargetKeys, target_counts, target_views
from mag.online import EVENT, Replica, RowLayout, Snapshot, SqliteStream, write_snapshot
from mag.online.pair_runs import pack_pairs, unpack_pairs
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE

NODES = ('user', 'item')


def events_of(log: HeteroData) -> np.ndarray:
    r"""The exposures of a whole log, whose order is that of time, as events of
    :mod:`mag.online`."""
    clicks = log[CLICKS]
    events = np.empty(clicks.edge_label.numel(), EVENT)
    for row, node in enumerate(NODES):
        events[node] = clicks.edge_label_index[row].numpy()
    events['time'], events['clicked'] = clicks.edge_label_time.numpy(), clicks.edge_label.numpy()
    return events


def positions(log: HeteroData, part: HeteroData) -> Tensor:
    r"""The position in the log of each row of a test part that was cut from it by time, shape
    :obj:`[L]`.

    Raises:
        ValueError: If the rows are none of that log in its order.
    """
    source, clicks = log[CLICKS], part[CLICKS]
    is_row = source.edge_label_time >= clicks.cutoff
    for row, node in enumerate(NODES):
        has_clicked = torch.zeros(part[node].num_nodes, dtype=torch.bool)
        has_clicked[clicks.edge_index[row]] = True
        is_row &= has_clicked[source.edge_label_index[row]]
    found = is_row.nonzero().view(-1)
    if not source.edge_label_index[:, found].equal(clicks.edge_label_index):
        raise ValueError(
            f'The {clicks.edge_label.numel()} rows of the part must be those of the log from '
            f'{int(clicks.cutoff)} on whose user and item have a click before, in its order, but '
            f'these are {found.numel()} others.'
        )
    return found


def read_before(log: HeteroData, part: HeteroData, delay: float) -> Tensor:
    r"""Of each row of a test part the position in the log before which its features read, shape
    :obj:`[L]`: without a delay its own, and else that of the first event that is not earlier than
    its time by more than the delay."""
    if delay == 0:
        return positions(log, part)
    return torch.searchsorted(log[CLICKS].edge_label_time, part[CLICKS].edge_label_time - delay)


def snapshot_position(log: HeteroData, part: HeteroData, delay: float = 0) -> int:
    r"""The position as of which a server has its snapshot that learns of events with a delay: that
    of the cutoff of the part, less the delay."""
    return int(torch.searchsorted(log[CLICKS].edge_label_time, part[CLICKS].cutoff - delay))


def counts_as_of(log: HeteroData, part: HeteroData, before: Tensor) -> Tensor:
    r"""The counts at the target, at the first resolution, of the rows of a part over the events
    before some positions, shape :obj:`[L, C, 2]`."""
    source, clicks = log[CLICKS], part[CLICKS]
    keys = TargetKeys(part, target_views(['cluster'], ['cluster']), {}, 'counts_as_of')
    number, time = torch.arange(source.edge_label.numel()), source.edge_label_time
    user, item = source.edge_label_index
    # Counted is by position. By time are macro nodes known.
    events = Seen(user, item, number, time, {}, source.edge_label)
    user, item = clicks.edge_label_index
    rows = Seen(user, item, before, clicks.edge_label_time, {})
    return target_counts(keys, events, rows)


def pairs_as_of(
    log: HeteroData, part: HeteroData, before: Tensor, snapshot_at: int, exact: bool = False
) -> list[PairBatch]:
    r"""What MacGNN reads of the rows of a part over the events before some positions, from a
    :class:`~mag.online.Replica`, which is given one event after the other.

    Args:
        log: The log.
        part: The part, whose macro nodes are read.
        before: The positions, ascending, shape :obj:`[L]`.
        snapshot_at: The position of the snapshot that the replica starts from, at most the first of
            them.
        exact: Whether hop 2 is also summed over all clicks before each position.

    Returns:
        All rows as one batch, in which hop 2 of items is that of the snapshot and what their own
        clicks have added; and behind it, if asked for, the same with hop 2 exact.
    """
    events, label_index = events_of(log), part[CLICKS].edge_label_index.numpy()
    nodes = dict(zip(NODES, label_index, strict=True))
    neighbors = {node: _Neighbors(events, node) for node in NODES} if exact else {}
    with (
        TemporaryDirectory() as folder,
        SqliteStream(Path(folder, 'events.db'), 'second') as stream,
    ):
        stream.append(events, 0)
        snapshot = write_stock(Path(folder, 'snapshots'), stream, part, snapshot_at, 'macgnn')
        replica = Replica(snapshot, stream)
        width = {node: snapshot.layout.num_clusters[NEIGHBOR_TYPE[node]][0] for node in NODES}
        # What is of both hops has the width of the neighbor's clusters, then of its own.
        found = {node: _Found(before.numel(), snapshot, node, exact) for node in NODES}
        cuts, first = np.unique(before.numpy(), return_index=True)
        spans = zip(cuts.tolist(), first, [*first[1:], before.numel()], strict=True)
        for cut, start, end in tqdm(spans, total=len(cuts), leave=False):
            follow(replica, cut)
            for node in NODES:
                asked, into = nodes[node][start:end], found[node]
                rows = replica.rows(node, asked)
                into.hop_1[start:end] = rows['pairs'][:, : width[node]]
                into.hop_2[start:end] = replica.hop_2(node, asked)
                into.recent[start:end] = rows['recent']
                for place, one in enumerate(asked if exact else ()):
                    other = NEIGHBOR_TYPE[node]
                    near = replica.rows(other, neighbors[node].before(one, cut))
                    of_near = near['pairs'][:, : width[other]]
                    into.exact[start + place] = of_near.sum(axis=0, dtype=np.int64)
    return _batches(part, found, events[: snapshot_position(log, part)], exact)


def follow(replica: Replica, position: int) -> None:
    r"""Lets a replica count the events before a position."""
    while replica.position < position:
        if replica.follow(min(position - replica.position, 8192)) == 0:
            raise RuntimeError(f'{replica!r} has stopped: {replica.degraded}.')


def write_stock(
    folder: Path, stream: SqliteStream, part: HeteroData, position: int, model: str
) -> Snapshot:
    r"""A snapshot of the rows of all nodes as of a position in the log, by the macro nodes of a
    part at the first resolution. The rows are those of a replica that starts from nothing."""
    layout = RowLayout(20, {node: [part[MACRO[node]].num_nodes] for node in NODES})
    numbers = {node: part[node].num_nodes for node in NODES}
    shape = tuple(number + 1 for (number,) in layout.num_clusters.values())
    shared: dict[str, Any] = {
        'model': model,
        'layout': layout,
        'resolutions': {node: ['cluster'] for node in NODES},
        'clusters': {node: part[node].cluster.numpy()[None] for node in NODES},
        'id_maps': {node: IdMap(np.arange(number)) for node, number in numbers.items()},
        'attributes': {node: {} for node in NODES},
        'contexts': [],
        'weights': {},
    }
    nothing = write_snapshot(
        folder, position=0, checksum=0, time=0, hop_2={}, pairs=np.empty((2, 0), np.int64),
        rows={node: layout.empty(node, number) for node, number in numbers.items()},
        cells={(0, 0): np.zeros((*shape, 2), np.int64)}, **shared,
    )  # fmt: skip
    replica = Replica(Snapshot.open(nothing), stream)
    follow(replica, position)
    rows = {node: replica.rows(node, np.arange(number)) for node, number in numbers.items()}
    pairs = first_clicks(stream.read(0, position) if position > 0 else np.empty(0, EVENT))[0]
    between = csr_array((np.ones(pairs.shape[1], np.int64), pairs), tuple(numbers.values()))
    hop_2 = {}
    if model == 'macgnn':
        for node, matrix in (('user', between), ('item', between.T)):
            other = NEIGHBOR_TYPE[node]
            of_neighbors = rows[other]['pairs'][:, : layout.num_clusters[node][0]]
            hop_2[node] = matrix @ of_neighbors.astype(np.int64)
    path = write_snapshot(
        folder, position=position, checksum=replica.checksum, time=replica.time, hop_2=hop_2,
        pairs=pairs, rows=rows, cells=replica.cells, **shared,
    )  # fmt: skip
    return Snapshot.open(path)


def first_clicks(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The pairs that have clicked, ascending, shape :obj:`[2, P]`, and the position of the first
    click of each, shape :obj:`[P]`."""
    clicks = np.flatnonzero(events['clicked'])
    key = pack_pairs(events['user'][clicks], events['item'][clicks])
    pair, first = np.unique(key, return_index=True)
    return np.stack(unpack_pairs(pair)), clicks[first]


class _Neighbors:
    r"""Who clicked with each node, the first first."""

    def __init__(self, events: np.ndarray, node_type: str) -> None:
        pairs, first = first_clicks(events)
        node, neighbor = pairs if node_type == 'user' else pairs[::-1]
        order = np.lexsort((first, node))
        self.neighbor, self.first = neighbor[order], first[order]
        self.start = np.append(0, np.bincount(node).cumsum())

    def before(self, node: int, position: int) -> np.ndarray:
        r"""The neighbors of a node before a position."""
        if node + 1 >= len(self.start):
            return self.neighbor[:0]
        start, end = self.start[node : node + 2]
        return self.neighbor[start : start + np.searchsorted(self.first[start:end], position)]


class _Found:
    r"""What is read of one node type, a row a row of the part."""

    def __init__(self, size: int, snapshot: Snapshot, node_type: str, exact: bool) -> None:
        numbers = snapshot.layout.num_clusters
        self.hop_1 = np.empty((size, numbers[NEIGHBOR_TYPE[node_type]][0]), np.float32)
        self.hop_2 = np.empty((size, numbers[node_type][0]), np.float32)
        self.exact = np.empty_like(self.hop_2) if exact else self.hop_2
        self.recent = np.empty((size, snapshot.layout.num_recent), np.int64)


def _batches(
    part: HeteroData, found: dict[str, _Found], known: np.ndarray, exact: bool
) -> list[PairBatch]:
    recent = {}
    for node in NODES:
        other = NEIGHBOR_TYPE[node]
        # As in Scorer, a model knows nothing of who has come since the cutoff. The last is no one.
        is_known = np.zeros(part[other].num_nodes + 1, bool)
        is_known[known[other]] = True
        of_node = found[node].recent
        recent[node] = torch.from_numpy(np.where(is_known[of_node], of_node, -1))
    hops = [
        {
            node: (torch.from_numpy(of.hop_1), torch.from_numpy(of.exact if is_exact else of.hop_2))
            for node, of in found.items()
        }
        for is_exact in (False, True)[: 1 + exact]
    ]
    clicks = part[CLICKS]
    user, item = clicks.edge_label_index
    return [
        PairBatch(
            user, item, of['user'], of['item'], recent['user'], recent['item'],
            clicks.edge_label,
        )
        for of in hops
    ]  # fmt: skip
