from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mag.checks import check_integers
from mag.store.kernels._compile import AHEAD, kernel, prefetch, read_only, trailing_zeros
from mag.store.kernels.partition_events import MAX_WINDOWS, NEIGHBOR, PLACE, WINDOW_BITS

# What an increment is of: an exposure, a click of a pair that had one, a first click of a pair.
NUM_KINDS = 3
#: How many clusters of a resolution codes tell apart at most.
MOST_CLUSTERS = 2**22
# The kind of an event stands where the node's place stood.
_KIND = PLACE
_NO_NEIGHBOR = np.uint32(2**32 - 1)


class NodeCounts(NamedTuple):
    r"""What the events of one partition tell of its :math:`n` nodes.

    Attributes:
        indptr (list[numpy.ndarray]): For each resolution, where the increments of each node begin,
            and the end, uint64, shape :obj:`[n + 1]`.
        code (list[numpy.ndarray]): Those of a node ascending: :math:`(qS + s) \cdot 3 + k` for
            neighbors of cluster :math:`q` from window :math:`s` on, of kind :math:`k`: 0 for an
            exposure without a click, 1 for a click of a pair that had one before, and 2 for the
            first click of a pair. uint16 where it fits, else uint32.
        count (list[numpy.ndarray]): How many; above 255 the code repeats. uint8.
        recent (numpy.ndarray): The last neighbors that each clicked as of each window, with
            repeats, newest last, padded on the left with :obj:`-1`, int32, shape :obj:`[n, S, R]`.
        pairs_indptr (numpy.ndarray): Where the pairs of each node begin, and the end, uint64,
            shape :obj:`[n + 1]`.
        pairs_neighbor (numpy.ndarray): The neighbors that each clicked, once, in the order of the
            first clicks, int32.
        pairs_window (numpy.ndarray): The window of the first click, uint8.
    """

    indptr: list[np.ndarray]
    code: list[np.ndarray]
    count: list[np.ndarray]  # type: ignore[assignment]
    recent: np.ndarray
    pairs_indptr: np.ndarray
    pairs_neighbor: np.ndarray
    pairs_window: np.ndarray


def code_type(num_windows: int, num_clusters: int) -> type[np.unsignedinteger]:
    r"""The type of the codes of increments.

    Args:
        num_windows (int): The number of windows :math:`S`, at most 127.
        num_clusters (int): The number of clusters, at most :math:`2^{22}`.

    Raises:
        ValueError: If there are more.
    """
    check_integers(1, below=MAX_WINDOWS + 1, num_windows=num_windows)
    check_integers(1, below=MOST_CLUSTERS + 1, num_clusters=num_clusters)
    return np.uint16 if num_clusters * num_windows * NUM_KINDS <= 2**16 else np.uint32


def count_partition(
    records: Sequence[np.ndarray],
    num_nodes: int,
    neighbor_cluster: Sequence[np.ndarray],
    neighbor_window: Sequence[np.ndarray | None],
    num_windows: int,
    num_clusters: Sequence[int],
    num_recent: int,
) -> NodeCounts:
    r"""Counts the events of one partition: increments by cluster of the neighbor and window, the
    distinct pairs, and the last neighbors. An event counts from the first window on that knows both
    it and the cluster of its neighbor.

    Memory is that of :func:`count_bytes`. Increments are at most one an event and resolution.

    Args:
        records (list[numpy.ndarray]): Records of
            :func:`~mag.store.kernels.partition_events`, in the order of time, one after the other.
        num_nodes (int): The number of nodes in the partition :math:`n`.
        neighbor_cluster (list[numpy.ndarray]): For each resolution, the cluster of each node of the
            other type, :obj:`-1` for none, int32, shape :obj:`[N]`.
        neighbor_window (list[numpy.ndarray or None]): The first window that knows it, uint8, shape
            :obj:`[N]`; :obj:`None` where all do.
        num_windows (int): The number of windows :math:`S`.
        num_clusters (list[int]): The number of clusters of each resolution.
        num_recent (int): Length of the lists of last neighbors :math:`R`.

    Raises:
        IndexError: If a record is of a node or neighbor that does not exist.
        ValueError: If the events of a node are not in the order of windows, or there are more
            windows than 127 or clusters than :math:`2^{22}`.
    """
    check_integers(1, below=MAX_WINDOWS + 1, num_windows=num_windows)
    check_integers(0, num_recent=num_recent)
    start = np.zeros(num_nodes + 1, np.int64)
    num_neighbors, num_clicks = len(neighbor_cluster[0]), 0
    for record in records:
        node, neighbor, clicks = _histogram(read_only(record), start)
        for what, highest, number in (
            ('nodes', node, num_nodes),
            ('neighbors', neighbor, num_neighbors),
        ):
            if highest >= number:
                raise IndexError(
                    f'count_partition found {what} up to {highest}, but expected them up to '
                    f'{number - 1}.'
                )
        num_clicks += clicks
    start = start.cumsum()
    event, end = np.empty(start[-1], np.uint64), start[:-1].copy()
    for record in records:
        _place(read_only(record), end, event)
    recent = np.full((num_nodes, num_windows, num_recent), -1, np.int32)
    pairs = np.zeros(num_nodes + 1, np.int64)
    pairs_neighbor, pairs_window = np.empty(num_clicks, np.int32), np.empty(num_clicks, np.uint8)
    unsorted = _find_pairs(event, start, recent, pairs, pairs_neighbor, pairs_window)
    if unsorted >= 0:
        raise ValueError(
            f'count_partition expects events in the order of windows, but those of node {unsorted} '
            f'of the partition are not: sort the log by time.'
        )
    found = NodeCounts(
        [], [], [], recent, pairs.astype(np.uint64), pairs_neighbor[: pairs[-1]].copy(),
        pairs_window[: pairs[-1]].copy(),
    )  # fmt: skip
    del pairs_neighbor, pairs_window
    for cluster, window, number in zip(
        neighbor_cluster, neighbor_window, num_clusters, strict=True
    ):
        indptr = np.zeros(num_nodes + 1, np.int64)
        code = np.empty(len(event), code_type(num_windows, number))
        count = np.empty(len(event), np.uint8)
        of_none = np.zeros(0, np.uint8) if window is None else window
        tables = read_only(cluster), read_only(of_none), window is not None
        _add_up(event, start, *tables, num_windows, number, indptr, code, count)
        found.indptr.append(indptr.astype(np.uint64))
        found.code.append(code[: indptr[-1]])
        found.count.append(count[: indptr[-1]])
    return found


def count_bytes(
    num_nodes: int,
    num_events: int,
    num_clicks: int,
    most_clicks: int,
    num_windows: int,
    num_clusters: Sequence[int],
    num_recent: int,
) -> int:
    r"""How many bytes :func:`count_partition` holds at most, and
    :func:`~mag.store.kernels.neighbor_rows` after it.

    Args:
        num_nodes (int): The number of nodes in the partition.
        num_events (int): The number of its events.
        num_clicks (int): How many of them are clicks.
        most_clicks (int): How many are of the node with the most.
        num_windows (int): The number of windows.
        num_clusters (list[int]): The number of clusters of each resolution.
        num_recent (int): Length of the lists of last neighbors.
    """
    # Starts, ends, and pairs; the lists; events; and each click as a pair.
    held = num_nodes * (32 + 4 * num_windows * num_recent) + 8 * num_events + 5 * num_clicks
    # The table of distinct pairs of one node, and the smaller one before it.
    table = 6 << max(1, (2 * most_clicks - 1).bit_length())
    increments = 5 * num_clicks
    for number in num_clusters:
        width = np.dtype(code_type(num_windows, number)).itemsize
        increments += 16 * num_nodes + (width + 1) * num_events
    return held + max(table, increments)


@kernel
def _histogram(record: np.ndarray, start: np.ndarray) -> tuple[int, int, int]:
    r"""Counts the events of each node one place further, and finds the highest node and neighbor,
    and the number of clicks."""
    high_node = high_neighbor = -1
    num_clicks = 0
    for place in range(len(record)):
        node = np.int64(record[place] >> np.uint64(PLACE))
        neighbor = np.int64(record[place] >> np.uint64(NEIGHBOR)) & (2**32 - 1)
        high_node, high_neighbor = max(high_node, node), max(high_neighbor, neighbor)
        num_clicks += np.int64(record[place] & np.uint64(1))
        if node < len(start) - 1:
            start[node + 1] += 1
    return high_node, high_neighbor, num_clicks


@kernel
def _place(record: np.ndarray, end: np.ndarray, event: np.ndarray) -> None:
    r"""Sorts events by node, without the node."""
    for place in range(len(record)):
        ahead = np.int64(record[min(place + AHEAD, len(record) - 1)] >> np.uint64(PLACE))
        prefetch(event, end[ahead])
        node = np.int64(record[place] >> np.uint64(PLACE))
        event[end[node]] = record[place] & np.uint64(2**PLACE - 1)
        end[node] += 1


@kernel
def _find_pairs(
    event: np.ndarray,
    start: np.ndarray,
    recent: np.ndarray,
    pairs: np.ndarray,
    pairs_neighbor: np.ndarray,
    pairs_window: np.ndarray,
) -> int:
    r"""Writes the kind of each event into it, and finds pairs and last neighbors. Returns a node
    whose windows do not ascend, or -1."""
    num_nodes, num_windows, num_recent = recent.shape
    seen = np.empty(2, np.uint32)
    last = np.empty(max(num_recent, 1), np.int32)
    num_pairs = 0
    for node in range(num_nodes):
        num_clicks = 0
        for place in range(start[node], start[node + 1]):
            num_clicks += np.int64(event[place] & np.uint64(1))
        # At least half of the table stays empty.
        bits = 1
        while 1 << bits < 2 * num_clicks:
            bits += 1
        if 1 << bits > len(seen):
            seen = np.empty(1 << bits, np.uint32)
        seen[: 1 << bits] = _NO_NEIGHBOR
        step = clicks = 0
        for place in range(start[node], start[node + 1]):
            window = np.int64(event[place] >> np.uint64(1)) & (2**WINDOW_BITS - 1)
            if window < step:
                return node
            while step < window:
                _write_recent(recent[node, step], last, clicks)
                step += 1
            if event[place] & np.uint64(1) == 0:
                continue
            neighbor = np.uint32(event[place] >> np.uint64(NEIGHBOR))
            if num_recent > 0:
                last[clicks % num_recent] = neighbor
            clicks += 1
            # Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4).
            slot = np.int64(
                np.uint64(neighbor) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - bits)
            )
            while seen[slot] != _NO_NEIGHBOR and seen[slot] != neighbor:
                slot = (slot + 1) & ((1 << bits) - 1)
            kind = 1
            if seen[slot] == _NO_NEIGHBOR:
                seen[slot] = neighbor
                pairs_neighbor[num_pairs] = neighbor
                pairs_window[num_pairs] = window
                num_pairs += 1
                kind = 2
            event[place] |= np.uint64(kind) << np.uint64(_KIND)
        while step < num_windows:
            _write_recent(recent[node, step], last, clicks)
            step += 1
        pairs[node + 1] = num_pairs
    return -1


@kernel
def _write_recent(recent: np.ndarray, last: np.ndarray, num_clicks: int) -> None:
    num_recent = len(recent)
    for back in range(min(num_clicks, num_recent)):
        recent[num_recent - 1 - back] = last[(num_clicks - 1 - back) % num_recent]


@kernel
def _add_up(
    event: np.ndarray,
    start: np.ndarray,
    cluster: np.ndarray,
    known_since: np.ndarray,
    has_since: bool,
    num_windows: int,
    num_clusters: int,
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
) -> None:
    r"""Writes the increments of each node, ascending."""
    num_codes = num_clusters * num_windows * NUM_KINDS
    total = np.zeros(num_codes, np.uint32)
    # A bit for each code that a node has, and one for each word of these bits.
    is_in = np.zeros((num_codes + 63) // 64, np.uint64)
    is_word = np.zeros((len(is_in) + 63) // 64, np.uint64)
    num_written = 0
    for node in range(len(start) - 1):
        for place in range(start[node], start[node + 1]):
            ahead = event[min(place + AHEAD, len(event) - 1)]
            neighbor = np.int64(ahead >> np.uint64(NEIGHBOR)) & (2**32 - 1)
            prefetch(cluster, neighbor)
            if has_since:
                prefetch(known_since, neighbor)
            neighbor = np.int64(event[place] >> np.uint64(NEIGHBOR)) & (2**32 - 1)
            of_neighbor = np.int64(cluster[neighbor])
            window = np.int64(event[place] >> np.uint64(1)) & (2**WINDOW_BITS - 1)
            if has_since:
                window = max(window, np.int64(known_since[neighbor]))
            if of_neighbor < 0 or window >= num_windows:
                continue
            kind = np.int64(event[place] >> np.uint64(_KIND))
            found = (of_neighbor * num_windows + window) * NUM_KINDS + kind
            if total[found] == 0:
                is_in[found >> 6] |= np.uint64(1) << np.uint64(found & 63)
                is_word[found >> 12] |= np.uint64(1) << np.uint64((found >> 6) & 63)
            total[found] += 1
        for group in range(len(is_word)):
            while is_word[group] != 0:
                word = group * 64 + trailing_zeros(is_word[group])
                is_word[group] &= is_word[group] - np.uint64(1)
                while is_in[word] != 0:
                    found = word * 64 + trailing_zeros(is_in[word])
                    is_in[word] &= is_in[word] - np.uint64(1)
                    left = np.int64(total[found])
                    total[found] = 0
                    while left > 0:
                        code[num_written] = found
                        count[num_written] = min(left, 255)
                        left -= 255
                        num_written += 1
        indptr[node + 1] = num_written
