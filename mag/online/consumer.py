r"""From the log to the rows."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_keys, check_tensor
from mag.macro_graph.key_table import KeyTable
from mag.online.event_stream import Diverged, EventStream
from mag.online.events import checksum_of
from mag.online.feature_center import FeatureCenter
from mag.online.node_rows import RowLayout, columns_of, count_events
from mag.online.pair_runs import pack_pairs
from mag.schema import NEIGHBOR_TYPE


class Consumer:
    r"""Counts the events of a log, in their order, in the rows of a centre, each exactly once.

    It claims its shard, which fences whoever held it, and goes on from the position that the rows
    are as of. Rows and position move together, so that a kill at any moment leaves rows that equal
    a count of the log up to their position, and who comes next goes on from there.

    .. code-block:: python

        with SqliteStream('events.db') as stream, SqliteCenter('rows.db', layout) as center:
            consumer = Consumer(stream, center, layout, clusters)
            while True:
                if consumer.step() == 0:
                    time.sleep(0.01)

    Of several consumers, one a shard, each reads the whole log and moves the rows of the users and
    of the items whose id modulo :obj:`num_shards` is its shard: so every row has one writer, which
    may keep it in memory. A step that fails changes nothing here and may be repeated; after
    :class:`~mag.online.feature_center.Fenced` only a new consumer goes on.

    Args:
        stream (EventStream): The log.
        center (FeatureCenter): The rows.
        layout (RowLayout): That of the centre.
        clusters (Mapping[str, Sequence[torch.Tensor]]): For :obj:`"user"` and :obj:`"item"`, the
            cluster of each node at each resolution, int64, :obj:`-1` for none, shape :obj:`[N]`.
            Nodes after those are in none. The rows depend on them: a centre keeps to those it was
            first filled with.
        shard (int, optional): The number of its shard, from 0. (default: :obj:`0`)
        num_shards (int, optional): How many there are. (default: :obj:`1`)
        max_bytes (int, optional): What the rows in memory may take before all are forgotten and
            read again; one step may take more. (default: 1 GiB)

    Raises:
        IndexError: If there is no such cluster.
        TypeError: If clusters are no tensors of int64.
        ValueError: If the layout is not that of the centre, clusters are not as it says, or the
            rows of the centre were counted with other clusters or another number of shards.
    """

    def __init__(
        self,
        stream: EventStream,
        center: FeatureCenter,
        layout: RowLayout,
        clusters: Mapping[str, Sequence[Tensor]],
        shard: int = 0,
        num_shards: int = 1,
        max_bytes: int = 2**30,
    ) -> None:
        check_integers(1, num_shards=num_shards, max_bytes=max_bytes)
        check_integers(0, below=num_shards, shard=shard)
        if layout != center.layout:
            raise ValueError(f"'layout' must be that of {center!r}, {center.layout}, not {layout}.")
        self.stream = stream
        self.center = center
        self.layout = layout
        self.shard = shard
        self.num_shards = num_shards
        self.max_bytes = max_bytes
        self._columns = _columns(layout, clusters)
        center.agree(
            {
                'num_shards': str(num_shards),
                **{
                    f'clusters of {node_type}s': f'{len(columns) - 1} x {columns.shape[1]}, '
                    f'checksum {zlib.crc32(columns.tobytes()):08x}'
                    for node_type, columns in self._columns.items()
                },
            }
        )
        self._rows = {node_type: _Rows(center, node_type) for node_type in NEIGHBOR_TYPE}
        # After all that may be refused, as it fences others.
        self._claim = center.claim(shard)

    @property
    def position(self) -> int:
        r"""The position in the log that its rows are as of."""
        return self._claim.position

    def step(self, limit: int = 8192) -> int:
        r"""Counts the next events, and returns how many: 0 at the end of the log.

        Args:
            limit (int, optional): How many at most. (default: :obj:`8192`)

        Raises:
            Diverged: If the log has lost events that were counted, and got others.
            Fenced: If another has claimed the shard since.
            OverflowError: If a row would have had more events than 32 bits count.
            ValueError: If the log does not hold the events from :attr:`position` on.
        """
        try:
            events = self.stream.read(self.position, limit, self._claim.checksum)
        except Diverged as error:
            raise Diverged(
                f'{self.center!r} has rows of {self.position} events that are not all those of '
                f'{self.stream!r}, which has lost some and got others, or is another one. They '
                f'cannot be taken back: count the log anew in another centre.'
            ) from error
        if len(events) == 0:
            return 0
        nodes = {node_type: events[node_type].astype(np.int64) for node_type in NEIGHBOR_TYPE}
        is_own = {name: node % self.num_shards == self.shard for name, node in nodes.items()}
        clicked = events['clicked'] == 1
        is_new_pair, pairs = np.zeros(len(events), bool), {}
        # A pair whose nodes are both here is kept once, with its user.
        for node_type, is_kept in (
            ('user', clicked & is_own['user']),
            ('item', clicked & is_own['item'] & ~is_own['user']),
        ):
            new = self._new_pairs(node_type, nodes, np.flatnonzero(is_kept))
            is_new_pair[new] = True
            pairs[node_type] = (nodes[node_type][new], nodes[NEIGHBOR_TYPE[node_type]][new])
        self._forget()
        moved, places = {}, {}
        for node_type, neighbor_type in NEIGHBOR_TYPE.items():
            own = np.flatnonzero(is_own[node_type])
            touched, place = np.unique(nodes[node_type][own], return_inverse=True)
            places[node_type], rows = self._rows[node_type].take(touched)
            neighbor = nodes[neighbor_type][own]
            columns = self._columns[neighbor_type]
            column = columns[np.minimum(neighbor, len(columns) - 1)]
            count_events(rows, place, neighbor, column, clicked[own], is_new_pair[own])
            moved[node_type] = (touched, rows)
        end, checksum = self.position + len(events), checksum_of(events, self._claim.checksum)
        self._claim = self.center.commit(self._claim, end, moved, pairs, checksum)
        for node_type, (_, rows) in moved.items():
            self._rows[node_type].put(places[node_type], rows)
        return len(events)

    def run(self, until: Callable[[], bool] | None = None) -> int:
        r"""Counts all events up to the end of the log, and returns how many.

        Args:
            until (Callable[[], bool], optional): Asked between steps whether to stop earlier.
                (default: :obj:`None`)
        """
        first = self.position
        while (until is None or not until()) and self.step() > 0:
            pass
        return self.position - first

    def _new_pairs(
        self, node_type: str, nodes: dict[str, np.ndarray], clicks: np.ndarray
    ) -> np.ndarray:
        r"""Of clicks, those that are the first of their pair."""
        node, neighbor = (nodes[name][clicks] for name in (node_type, NEIGHBOR_TYPE[node_type]))
        _, first = np.unique(pack_pairs(node, neighbor), return_index=True)
        is_there = self.center.has_pairs(node_type, node[first], neighbor[first])
        return clicks[first[~is_there]]

    def _forget(self) -> None:
        if sum(rows.num_bytes for rows in self._rows.values()) > self.max_bytes:
            self._rows = {name: _Rows(self.center, name) for name in self._rows}

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.stream!r}, {self.center!r}, shard={self.shard}, '
            f'num_shards={self.num_shards}, position={self.position})'
        )


class _Rows:
    r"""Rows of one node type as they are in the centre, as far as they were read or written."""

    def __init__(self, center: FeatureCenter, node_type: str) -> None:
        self._center, self._node_type = center, node_type
        self._table = KeyTable()
        self._rows = center.layout.empty(node_type, 0)

    @property
    def num_bytes(self) -> int:
        return self._rows.nbytes

    def take(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Where the rows of nodes are, each given once, and a copy of them."""
        missing = nodes[(self._table.find(torch.from_numpy(nodes)) < 0).numpy()]
        if len(missing) > 0:
            # First: where it fails, nothing is known of them here.
            found = self._center.read(self._node_type, missing)
            place = self._table.add(torch.from_numpy(missing)).numpy()
            if (more := self._table.num_rows - len(self._rows)) > 0:
                grown = max(more, len(self._rows) // 2)
                self._rows = np.concatenate(
                    [self._rows, self._center.layout.empty(self._node_type, grown)]
                )
            self._rows[place] = found
        place = self._table.find(torch.from_numpy(nodes)).numpy()
        return place, self._rows[place]

    def put(self, place: np.ndarray, rows: np.ndarray) -> None:
        self._rows[place] = rows


def _columns(layout: RowLayout, clusters: Mapping[str, Sequence[Tensor]]) -> dict[str, np.ndarray]:
    r"""The column at which a neighbor counts at each resolution, shape :obj:`[N + 1, S]`; the last
    is that of who is in no cluster."""
    check_keys(('user', 'item'), clusters=clusters)
    columns = {}
    for node_type, numbers in layout.num_clusters.items():
        of_type = clusters[node_type]
        if len(of_type) != len(numbers):
            raise ValueError(
                f"'clusters' must have one of {node_type}s for each of the {len(numbers)} "
                f'resolutions of the layout, but has {len(of_type)}.'
            )
        for resolution, (cluster, number) in enumerate(zip(of_type, numbers)):
            name = f"clusters['{node_type}'][{resolution}]"
            check_tensor('Consumer', name, cluster, (f'num_{node_type}s',), torch.long)
            check_tensor('Consumer', name, cluster, (len(of_type[0]),), torch.long)
            check_ids('Consumer', f'clusters in {name}', cluster, number, first=-1)
        columns[node_type] = columns_of(layout, node_type, [of.numpy() for of in of_type])
    return columns
