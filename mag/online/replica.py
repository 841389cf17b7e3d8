r"""What nodes have as of the last event, in the memory of who scores."""

import copy

import numpy as np
import torch

from mag.checks import check_choice, check_ids, check_integers
from mag.macro_graph.key_table import KeyTable
from mag.online.event_stream import Diverged, EventStream
from mag.online.events import EVENT, checksum_of
from mag.online.node_rows import count_cells, count_events
from mag.online.pair_runs import PairRuns, pack_pairs, unpack_pairs
from mag.online.snapshot import Snapshot
from mag.schema import NEIGHBOR_TYPE

# Of ids, as events hold them.
_BEYOND = 2**31
# The most items whose hop 1 is summed for a user, which takes up to a millisecond.
_MAX_SUMMED = 4096
# Of them, so many at once as stay in the cache of a core.
_PIECE = 1024


class Replica:
    r"""Rows as of the last event that was read, in the memory of who scores: those of a snapshot,
    which stay mapped, and copies of those that have moved since.

    .. code-block:: python

        replica = Replica(Snapshot.open(path), SqliteStream('events.db'))
        while replica.follow() > 0:
            pass
        rows = replica.rows('user', nodes)

    Rows, and the counts between clusters, are those of a count of the whole log up to
    :attr:`position`, with the clusters of the snapshot. A node that the snapshot does not have has
    a row, and is in no cluster.

    So is hop 2 of a user with at most 4,096 items: the hop 1 of each is read and summed when it is
    asked for. That of an item, whose users are many, and of other users is not, as each event moves
    that of many nodes. It is the stock of the snapshot and what a node's *own* new clicks add: the
    first click of user :math:`u` on item :math:`i` adds to hop 2 of :math:`u` the hop 1 of
    :math:`i` as of after this click, and to hop 2 of :math:`i` that of :math:`u`. What others do
    later to what a node has clicked is left to the next snapshot.

    Memory is 4 bytes for each node, and grows by a row for each that has moved, and by 8 bytes for
    each new pair, three times that at times, until a replica of the next snapshot takes over. Where
    the log cannot be read, reads go on from what is held, and :attr:`degraded` says why. A log that
    has lost events which were counted, and has got others, has *diverged*: nothing is counted until
    :meth:`restart`.
    One thread follows and reads.

    Args:
        snapshot (Snapshot): Where it starts.
        stream (EventStream): The log, whose events before the position of the snapshot are those
            that it was made of. They may have been trimmed.

    Attributes:
        position (int): The position in the log that all is as of.
        checksum (int): That of the events before it.
        time (int): The time of the last event before it.
        degraded (str or None): Why the log could not be read; :obj:`None` if it could.
        diverged (bool): Whether it is because the log has another past.
        num_restarts (int): How often it was started again: positions are others since.
        cells (dict[tuple[int, int], numpy.ndarray]): As :attr:`Snapshot.cells`.
    """

    def __init__(self, snapshot: Snapshot, stream: EventStream) -> None:
        self.snapshot = snapshot
        self.stream = stream
        self.num_restarts = -1
        self.restart()

    def restart(self) -> None:
        r"""Forgets what was counted, and starts from the snapshot again."""
        snapshot = self.snapshot
        self.position, self.checksum, self.time = (
            snapshot.position, snapshot.checksum, snapshot.time,
        )  # fmt: skip
        self.num_restarts += 1
        self.degraded: str | None = None
        self.diverged = False
        self.cells = {place: table.copy() for place, table in snapshot.cells.items()}
        self._columns = snapshot.columns
        # All items that a user has clicked are in some column of the first resolution.
        self._of_pairs = snapshot.layout.columns('user', 0)
        self._moved = {node: _Moved(snapshot, node) for node in NEIGHBOR_TYPE}
        # Pairs that have clicked since.
        self._pairs = PairRuns()

    def follow(self, limit: int = 8192) -> int:
        r"""Counts the next events, and returns how many: 0 at the end of the log, and where it
        cannot be read.

        Args:
            limit (int, optional): How many at most. (default: :obj:`8192`)

        Raises:
            OverflowError: If a row would have had more events than 32 bits count.
        """
        check_integers(1, limit=limit)
        try:
            events = self.stream.read(self.position, limit, self.checksum)
        # Each stream has errors of its own.
        except Exception as error:
            self.miss(error)
            return 0
        self.count(events)
        return len(events)

    def miss(self, error: Exception) -> None:
        r"""Keeps why the next events could not be read."""
        self.degraded = f'{type(error).__name__} at position {self.position}: {error}'
        self.diverged = isinstance(error, Diverged)

    def count(self, events: np.ndarray) -> None:
        r"""Counts the next events, as the log was read from :attr:`position` on.

        Args:
            events (numpy.ndarray): The events, shape :obj:`[N]`.

        Raises:
            OverflowError: If a row would have had more events than 32 bits count.
        """
        self.degraded, self.diverged = None, False
        if len(events) > 0:
            self._count(events)

    def rows(self, node_type: str, nodes: np.ndarray) -> np.ndarray:
        r"""The rows of some nodes, copies, shape :obj:`[B]`.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            nodes (numpy.ndarray): The nodes, int64, of any number; one that nothing has happened
                to, such as :obj:`-1`, has an empty row. Shape :obj:`[B]`.

        Raises:
            IndexError: If a node is below :obj:`-1`, or more than 32 bits hold.
            TypeError: If they are no integers of 64 bits.
            ValueError: If there is no such node type.
        """
        return self._of(node_type, nodes).rows(nodes)

    def hop_2(self, node_type: str, nodes: np.ndarray) -> np.ndarray:
        r"""The counts of hop 2 of some nodes at the first resolution, int64, shape :obj:`[B, C]`.

        Args and errors are those of :meth:`rows`.

        Raises:
            ValueError: If the snapshot holds no hop 2, as its model reads none.
        """
        if not self.snapshot.hop_2:
            raise ValueError(f'{self.snapshot!r} holds no hop 2, as its model reads none.')
        hop_2 = self._of(node_type, nodes).hop_2(nodes)
        if node_type == 'user':
            is_exact = self.has_exact_hop_2(nodes)
            hop_2[is_exact] = self._sum_items(nodes[is_exact])
        return hop_2

    def has_exact_hop_2(self, users: np.ndarray) -> np.ndarray:
        r"""Whether hop 2 of each user is that of a count of the whole log: it has at most 4,096
        items. Boolean, shape :obj:`[B]`.

        Args and errors are those of :meth:`rows`.
        """
        return self.rows('user', users)['pairs'][:, self._of_pairs].sum(axis=1) <= _MAX_SUMMED

    def _sum_items(self, users: np.ndarray) -> np.ndarray:
        r"""Hop 2 of users by the hop 1 of their items."""
        parts = zip(self.snapshot.items_of(users), self._pairs.items_of(users))
        owner, item = (np.concatenate(part) for part in parts)
        order = owner.argsort(kind='stable')
        owner, item = owner[order], item[order]
        hop_2 = np.zeros((len(users), self.snapshot.layout.num_clusters['user'][0]), np.int64)
        for first in range(0, len(item), _PIECE):
            some = owner[first : first + _PIECE]
            start = np.flatnonzero(np.append(True, some[1:] != some[:-1]))
            hop_1 = self._moved['item'].hop_1(item[first : first + _PIECE])
            hop_2[some[start]] += np.add.reduceat(hop_1, start, axis=0, dtype=np.int64)
        return hop_2

    def after_click(self, user: int, item: int) -> 'Replica':
        r"""What this replica would hold after one more event, a click, which it does not count.
        It shares all other rows with this one: it is read before this one goes on, and follows no
        log itself.

        Args:
            user (int): Who clicks; :obj:`-1` for one that nothing has happened to.
            item (int): What is clicked, likewise.
        """
        after = copy.copy(self)
        after.cells = {place: table.copy() for place, table in self.cells.items()}
        after._moved = {node: _Overlaid(moved) for node, moved in self._moved.items()}
        after._pairs = self._pairs.copy()
        event = np.empty(1, EVENT)
        for node, number in (('user', user), ('item', item)):
            event[node] = self.unused(node) if number < 0 else number
        event['time'], event['clicked'] = self.time, 1
        after._count(event)
        return after

    def unused(self, node_type: str) -> int:
        r"""The last number to which nothing has happened.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
        """
        number = _BEYOND - 1
        while self.rows(node_type, np.array([number]))['seen'][0] > 0:
            number -= 1
        return number

    def moved_since(self, node_type: str, nodes: np.ndarray, position: np.ndarray) -> np.ndarray:
        r"""Whether the rows of nodes have moved since they were read, boolean, shape :obj:`[B]`.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            nodes (numpy.ndarray): Nodes of the snapshot, int64; :obj:`-1` never moves. Shape
                :obj:`[B]`.
            position (numpy.ndarray): The :attr:`position` at which each was read, :obj:`-1` if it
                never was, shape :obj:`[B]`.

        Errors are those of :meth:`rows`.
        """
        number = self.snapshot.num_nodes.get(node_type, 0)
        return self._of(node_type, nodes, number).position(nodes) > position

    def _of(self, node_type: str, nodes: np.ndarray, number: int = _BEYOND) -> '_Moved':
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        if not isinstance(nodes, np.ndarray) or nodes.dtype != np.int64 or nodes.ndim != 1:
            raise TypeError(f"'nodes' must be an array of int64 of shape [B], but got {nodes!r}.")
        check_ids('Replica', f'{node_type} ids', torch.from_numpy(nodes), number, first=-1)
        return self._moved[node_type]

    def _count(self, events: np.ndarray) -> None:
        nodes = {node: events[node].astype(np.int64) for node in NEIGHBOR_TYPE}
        clicked = events['clicked'] == 1
        is_new_pair, new_pairs = self._new_pairs(nodes['user'], nodes['item'], clicked)
        column = {
            node: columns[np.minimum(nodes[node], len(columns) - 1)]
            for node, columns in self._columns.items()
        }
        found = {}
        for node, neighbor in NEIGHBOR_TYPE.items():
            touched, place = np.unique(nodes[node], return_inverse=True)
            moved = self._moved[node]
            rows, hop_2 = moved.rows(touched), moved.hop_2(touched)
            before = rows['pairs'].copy()
            count_events(rows, place, nodes[neighbor], column[neighbor], clicked, is_new_pair)
            found[node] = touched, place, rows, hop_2, before
        # From here on nothing is refused.
        if self.snapshot.hop_2:
            for node, neighbor in NEIGHBOR_TYPE.items():
                _, place, _, hop_2, _ = found[node]
                _, place_of, _, _, before = found[neighbor]
                # The neighbor's hop 1 is over clusters of this node's type.
                np.add.at(
                    hop_2,
                    place[is_new_pair],
                    _hop_1(
                        before[:, : hop_2.shape[1]],
                        place_of[is_new_pair],
                        column[node][is_new_pair, 0],
                    ),
                )
        count_cells(self.cells, self.snapshot.layout, column, clicked)
        self.position += len(events)
        for node, (touched, _, rows, hop_2, _) in found.items():
            self._moved[node].put(touched, rows, hop_2, self.position)
        self._pairs.add(new_pairs)
        self.checksum = checksum_of(events, self.checksum)
        self.time = max(self.time, int(events['time'].max()))

    def _new_pairs(
        self, user: np.ndarray, item: np.ndarray, clicked: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Which events are the first click of their pair, and the numbers of these pairs."""
        clicks = np.flatnonzero(clicked)
        pair, first = np.unique(pack_pairs(user[clicks], item[clicks]), return_index=True)
        is_new = ~(self._pairs.has(pair) | self.snapshot.has_pairs(*unpack_pairs(pair)))
        is_new_pair = np.zeros(len(user), bool)
        is_new_pair[clicks[first[is_new]]] = True
        return is_new_pair, pair[is_new]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.snapshot!r}, {self.stream!r}, position={self.position})'
        )


class _Moved:
    r"""The rows of one node type: those that have moved in memory, others in the snapshot."""

    def __init__(self, snapshot: Snapshot, node_type: str) -> None:
        self._table = KeyTable()
        self._dtype = snapshot.layout.dtypes[node_type]
        # Of plain words, as rows of structures are gathered several times slower.
        self._stock = _words(snapshot.rows[node_type])
        self._stock_2 = snapshot.hop_2.get(node_type, np.empty((len(self._stock), 0), np.int64))
        self._empty = _words(snapshot.layout.empty(node_type, 1))
        self._empty_2 = np.zeros((1, self._stock_2.shape[1]), np.int64)
        # Pairs are last in a row.
        first = self._stock.shape[1] - self._dtype['pairs'].shape[0]
        self.of_hop_1 = slice(
            first, first + snapshot.layout.num_clusters[NEIGHBOR_TYPE[node_type]][0]
        )
        self._rows, self._hop_2 = self._stock[:0].copy(), self._stock_2[:0].copy()
        # As of which position each of them is, and those before they moved.
        self._position, self._start = np.empty(0, np.int64), snapshot.position
        # What the table finds for nodes of the snapshot, and at the end for -1, as hashing a
        # request takes longer than gathering its rows.
        self._place = np.full(len(self._stock) + 1, -1, np.int32)

    def rows(self, nodes: np.ndarray) -> np.ndarray:
        r"""Copies of the rows of nodes; that of :obj:`-1` is empty."""
        words = self._gather(nodes, self._stock, self._rows, self._empty)
        return words.view(self._dtype).reshape(-1)

    def hop_1(self, nodes: np.ndarray) -> np.ndarray:
        r"""Copies of their counts of hop 1 at the first resolution, without who is in no
        cluster."""
        stock, moved, empty = (
            words[:, self.of_hop_1] for words in (self._stock, self._rows, self._empty)
        )
        return self._gather(nodes, stock, moved, empty)

    def hop_2(self, nodes: np.ndarray) -> np.ndarray:
        r"""Copies of their counts of hop 2, by own increments."""
        return self._gather(nodes, self._stock_2, self._hop_2, self._empty_2)

    def position(self, nodes: np.ndarray) -> np.ndarray:
        r"""The position after the last event of each since the start, or that of the start."""
        place = self._find(nodes)
        out = np.full(len(nodes), self._start)
        out[place >= 0] = self._position.take(place[place >= 0])
        return out

    def _find(self, nodes: np.ndarray) -> np.ndarray:
        r"""The place of each among those that have moved, or :obj:`-1`."""
        is_new = nodes >= len(self._stock)
        if not is_new.any():
            return self._place[nodes]
        place = self._place[np.where(is_new, -1, nodes)]
        place[is_new] = self._table.find(torch.from_numpy(nodes[is_new])).numpy()
        return place

    def _gather(
        self, nodes: np.ndarray, stock: np.ndarray, moved: np.ndarray, empty: np.ndarray
    ) -> np.ndarray:
        is_stock = (nodes >= 0) & (nodes < len(stock))
        if is_stock.all():
            # A take would copy all of a table of which some columns are asked for.
            found = stock[nodes]
        else:
            found = empty.repeat(len(nodes), axis=0)
            found[is_stock] = stock[nodes[is_stock]]
        place = self._find(nodes)
        is_moved = place >= 0
        if is_moved.any():
            found[is_moved] = moved[place[is_moved]]
        return found

    def put(self, nodes: np.ndarray, rows: np.ndarray, hop_2: np.ndarray, position: int) -> None:
        r"""Keeps what nodes have from a position on, each given once."""
        place = self._table.add(torch.from_numpy(nodes)).numpy()
        if (more := self._table.num_rows - len(self._rows)) > 0:
            more = max(more, len(self._rows) // 2)
            self._rows = np.pad(self._rows, ((0, more), (0, 0)))
            self._hop_2 = np.pad(self._hop_2, ((0, more), (0, 0)))
            self._position = np.pad(self._position, (0, more))
        self._rows[place], self._hop_2[place] = _words(rows), hop_2
        self._position[place] = position
        is_stock = nodes < len(self._stock)
        self._place[nodes[is_stock]] = place[is_stock]


class _Overlaid(_Moved):
    r"""The rows of one node type, of which one node has moved on, for itself."""

    def __init__(self, under: _Moved) -> None:
        self._under = under
        self._node = np.empty(0, np.int64)

    def rows(self, nodes: np.ndarray) -> np.ndarray:
        return self._overlay(nodes, self._under.rows(nodes), 'rows')

    def hop_1(self, nodes: np.ndarray) -> np.ndarray:
        return self._overlay(nodes, self._under.hop_1(nodes), 'hop_1')

    def hop_2(self, nodes: np.ndarray) -> np.ndarray:
        return self._overlay(nodes, self._under.hop_2(nodes), 'hop_2')

    def put(self, nodes: np.ndarray, rows: np.ndarray, hop_2: np.ndarray, position: int) -> None:
        hop_1 = _words(rows)[:, self._under.of_hop_1]
        self._node, self._own = nodes, {'rows': rows, 'hop_1': hop_1, 'hop_2': hop_2}

    def _overlay(self, nodes: np.ndarray, found: np.ndarray, name: str) -> np.ndarray:
        is_own = np.isin(nodes, self._node)
        if is_own.any():
            found[is_own] = self._own[name]
        return found


def _words(rows: np.ndarray) -> np.ndarray:
    return rows.view('<u4').reshape(len(rows), rows.dtype.itemsize // 4)


def _hop_1(before: np.ndarray, place: np.ndarray, column: np.ndarray) -> np.ndarray:
    r"""The hop 1 that a node has after each of its new pairs, without who is in no cluster, shape
    :obj:`[E, C]`.

    Args:
        before: That of all nodes before all pairs, shape :obj:`[N, C]`.
        place: The node of each pair, in the order of the log, shape :obj:`[E]`.
        column: The column at which each counts, shape :obj:`[E]`.
    """
    added = (column[:, None] == np.arange(before.shape[1])).astype(np.int64)
    order = place.argsort(kind='stable')
    total = added[order].cumsum(axis=0)
    node = place[order]
    is_first = np.append(True, node[1:] != node[:-1])[: len(node)]
    # What was added before the first pair of the same node.
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(node)), 0))
    earlier = np.concatenate([np.zeros_like(total[:1]), total])[first]
    out = np.empty_like(added)
    out[order] = before[node] + total - earlier
    return out
