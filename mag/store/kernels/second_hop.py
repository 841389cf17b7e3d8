from typing import NamedTuple

import numpy as np

from mag.checks import check_integers
from mag.store.kernels._compile import AHEAD, kernel, prefetch, read_only
from mag.store.kernels.neighbor_rows import BYTE, COUNT_BITS, FORM_BITS, SHORT, SPARSE, WORD
from mag.store.kernels.partition_events import MAX_WINDOWS, WINDOW_BITS

# Stands for a count that 16 bits do not hold.
ESCAPE = 2**16 - 1
# How many cache lines of a row are asked for; the processor asks for what follows.
LINES = 4


class SecondHop(NamedTuple):
    r"""The counts of hop 2 of :math:`n` nodes.

    Attributes:
        table (numpy.ndarray): The counts as of each window, uint16, shape :obj:`[n, S, M]`; 65,535
            for one that is 65,535 or more.
        over_index (numpy.ndarray): The places of these in the flat table, ascending, int64.
        over_count (numpy.ndarray): Their counts, int64.
    """

    table: np.ndarray
    over_index: np.ndarray
    over_count: np.ndarray


def second_hop(
    pairs_indptr: np.ndarray,
    pairs_neighbor: np.ndarray,
    pairs_window: np.ndarray,
    offset: np.ndarray,
    data: np.ndarray,
    base: np.ndarray,
    num_windows: int,
    num_clusters: int,
    out: np.ndarray | None = None,
) -> SecondHop:
    r"""Counts the walks of two hops from each node to the clusters of its own type, over distinct
    pairs: as of window :math:`s`, the sum of the hop 1 as of :math:`s` of all neighbors that were
    clicked by then.

    .. math::
        \mathbf{n}^{(2)}_{v, s} = \sum_{(u, w) \in \mathcal{P}_v, \, w \leq s} \mathbf{n}^{(1)}_{u,
        s} = \sum_{s' \leq s} \; \sum_{(u, w) \in \mathcal{P}_v} \; \sum_{(w', q) \in
        \mathcal{I}_u, \, \max(w, w') = s'} \mathbf{e}_q

    Counts are exact. A part of the nodes is counted by a slice of :obj:`pairs_indptr`, with all of
    the pairs. The time is that of the sum of the neighbors' rows, which are asked for before they
    are read, as they lie anywhere in memory.

    Args:
        pairs_indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`, or a slice.
        pairs_neighbor (numpy.ndarray): The same.
        pairs_window (numpy.ndarray): The same.
        offset (numpy.ndarray): Of the :class:`~mag.store.kernels.NeighborRows` of all neighbors, in
            the order of partitions.
        data (numpy.ndarray): The same.
        base (numpy.ndarray): The row where each partition of the neighbors begins, int64, shape
            :obj:`[P]`: neighbor :math:`u` has row :math:`\mathrm{base}[u \bmod P] + \lfloor u / P
            \rfloor`.
        num_windows (int): The number of windows :math:`S`.
        num_clusters (int): The number of clusters :math:`M`.
        out (numpy.ndarray, optional): Where the table is written, uint16, shape :obj:`[n, S, M]`.
            (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`out` has another shape or type.
    """
    check_integers(1, below=MAX_WINDOWS + 1, num_windows=num_windows)
    check_integers(1, num_clusters=num_clusters)
    shape = len(pairs_indptr) - 1, num_windows, num_clusters
    table = np.empty(shape, np.uint16) if out is None else out
    if table.shape != shape or table.dtype != np.uint16:
        raise ValueError(
            f"second_hop expects 'out' of uint16 and shape {list(shape)}, but got {table.dtype} of "
            f'shape {list(table.shape)}.'
        )
    over = _second_hop(
        read_only(pairs_indptr),
        read_only(pairs_neighbor),
        read_only(pairs_window),
        read_only(offset),
        read_only(data),
        read_only(data.view(np.uint16)),
        read_only(data.view(np.uint8)),
        read_only(base.astype(np.int64)),
        num_windows,
        num_clusters,
        table.view(np.ndarray),
    )
    return SecondHop(table, *over)


@kernel
def _second_hop(
    pairs_indptr: np.ndarray,
    pairs_neighbor: np.ndarray,
    pairs_window: np.ndarray,
    offset: np.ndarray,
    words: np.ndarray,
    shorts: np.ndarray,
    octets: np.ndarray,
    base: np.ndarray,
    num_windows: int,
    num_clusters: int,
    table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    size = num_windows * num_clusters
    shift, mask = 0, len(base) - 1
    while 1 << shift < len(base):
        shift += 1
    # Sums of four bytes, as long as these surely hold them.
    near = np.zeros(size, np.uint32)
    far = np.zeros(size, np.int64)
    over_index, over_count = np.empty(16, np.int64), np.empty(16, np.int64)
    num_over = 0
    end = np.int64(pairs_indptr[len(pairs_indptr) - 1])
    for node in range(len(pairs_indptr) - 1):
        highest = 0
        for pair in range(np.int64(pairs_indptr[node]), np.int64(pairs_indptr[node + 1])):
            neighbor = np.int64(pairs_neighbor[min(pair + 2 * AHEAD, end - 1)])
            prefetch(offset, base[neighbor & mask] + (neighbor >> shift))
            neighbor = np.int64(pairs_neighbor[min(pair + AHEAD, end - 1)])
            row = base[neighbor & mask] + (neighbor >> shift)
            word = np.int64(offset[row] >> np.uint64(FORM_BITS))
            for line in range(LINES):
                prefetch(words, word + 16 * line)
            neighbor = np.int64(pairs_neighbor[pair])
            row = base[neighbor & mask] + (neighbor >> shift)
            form = np.int64(offset[row] & np.uint64(2**FORM_BITS - 1))
            word = np.int64(offset[row] >> np.uint64(FORM_BITS))
            last = np.int64(offset[row + 1] >> np.uint64(FORM_BITS))
            first = np.int64(pairs_window[pair])
            # The most that a row of any form but the widest adds in one place.
            added = (2**COUNT_BITS - 1) * (last - word)
            if form != SPARSE:
                added = num_windows * (2 ** (8 * form) - 1)
            if form != WORD:
                if highest + added >= 2**32:
                    _add(near, far)
                    near[:] = 0
                    highest = 0
                highest += added
            if form == SPARSE:
                for entry in words[word:last]:
                    window = np.int64(entry >> np.uint32(COUNT_BITS)) & (2**WINDOW_BITS - 1)
                    window = max(window, first)
                    cluster = np.int64(entry >> np.uint32(COUNT_BITS + WINDOW_BITS))
                    near[np.uint64(window * num_clusters + cluster)] += entry & np.uint32(
                        2**COUNT_BITS - 1
                    )
            elif form == BYTE:
                _add_table(octets, word * 4, first, num_windows, num_clusters, near)
            elif form == SHORT:
                _add_table(shorts, word * 2, first, num_windows, num_clusters, near)
            else:
                _add_table(words, word, first, num_windows, num_clusters, far)
        _add(near, far)
        near[:] = 0
        for window in range(1, num_windows):
            before = far[(window - 1) * num_clusters : window * num_clusters]
            _add(before, far[window * num_clusters : (window + 1) * num_clusters])
        flat = table[node].reshape(size)
        most = np.int64(0)
        for slot in range(size):
            flat[slot] = min(far[slot], ESCAPE)
            most = max(most, far[slot])
        if most >= ESCAPE:
            for slot in range(size):
                if far[slot] >= ESCAPE:
                    if num_over == len(over_index):
                        over_index = np.concatenate((over_index, np.empty_like(over_index)))
                        over_count = np.concatenate((over_count, np.empty_like(over_count)))
                    over_index[num_over] = node * size + slot
                    over_count[num_over] = far[slot]
                    num_over += 1
        far[:] = 0
    return over_index[:num_over].copy(), over_count[:num_over].copy()


@kernel
def _add(row: np.ndarray, total: np.ndarray) -> None:
    for place in range(len(row)):
        total[place] += row[place]


@kernel
def _add_table(
    rows: np.ndarray,
    start: int,
    first: int,
    num_windows: int,
    num_clusters: int,
    total: np.ndarray,
) -> None:
    r"""Adds a table of increments, those before the first window to that window."""
    begin = np.uint64(start)
    known = np.uint64(first * num_clusters)
    for window in range(first):
        before = begin + np.uint64(window * num_clusters)
        for cluster in range(np.uint64(num_clusters)):
            total[known + cluster] += rows[before + cluster]
    for slot in range(known, np.uint64(num_windows * num_clusters)):
        total[slot] += rows[begin + slot]
