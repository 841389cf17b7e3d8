import numpy as np

from mag.checks import check_choice
from mag.store.kernels._compile import AHEAD, kernel, prefetch, read_only
from mag.store.kernels.count_partition import NUM_KINDS
from mag.store.kernels.second_hop import ESCAPE, LINES

# What is counted, and the least kind of increment that counts.
KINDS = {'exposures': 0, 'clicks': 1, 'pairs': 2}


def gather_rows(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    row: np.ndarray,
    window: np.ndarray,
    num_windows: int,
    num_clusters: int,
    kind: str,
) -> np.ndarray:
    r"""The counts of some nodes over the clusters of their neighbors, as of some windows.

    Args:
        indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`, of all nodes.
        code (numpy.ndarray): The same.
        count (numpy.ndarray): The same.
        row (numpy.ndarray): Rows of nodes, :obj:`-1` for an unknown one, whose counts are 0, int64,
            shape :obj:`[B]`.
        window (numpy.ndarray): The window of each, int64, shape :obj:`[B]`.
        num_windows (int): The number of windows :math:`S`.
        num_clusters (int): The number of clusters :math:`M`.
        kind (str): :obj:`"exposures"`, :obj:`"clicks"`, both as events, or :obj:`"pairs"`, the
            distinct ones that were clicked.

    Returns:
        float32, exact up to :math:`2^{24}`, shape :obj:`[B, M]`.

    Raises:
        ValueError: If there is no such kind.
    """
    check_choice(KINDS, kind=kind)
    increments = read_only(indptr), read_only(code), read_only(count)
    asked = read_only(row), read_only(window)
    return _gather_rows(*increments, *asked, num_windows, num_clusters, KINDS[kind])


@kernel
def _gather_rows(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    row: np.ndarray,
    window: np.ndarray,
    num_windows: int,
    num_clusters: int,
    least: int,
) -> np.ndarray:
    found = np.empty((len(row), num_clusters), np.float32)
    total = np.zeros(num_clusters, np.uint32)
    # Whether an increment of a cluster counts, by what its code is beyond that cluster's first.
    width = NUM_KINDS * num_windows
    counts = np.zeros((num_windows, width), np.uint32)
    for step in range(num_windows):
        for beyond in range((step + 1) * NUM_KINDS):
            counts[step, beyond] = beyond % NUM_KINDS >= least
    # A product and a shift divide exactly, as a code times the width stays below 2^42, and so many
    # clusters below 2^22 (Granlund and Montgomery, Division by Invariant Integers).
    divisor, inverse = np.uint64(width), np.uint64(2**42 // width + 1)
    for place in range(len(row)):
        ahead = row[min(place + 2 * AHEAD, len(row) - 1)]
        prefetch(indptr, max(ahead, 0))
        ahead = np.int64(indptr[max(row[min(place + AHEAD, len(row) - 1)], 0)])
        for line in range(LINES):
            prefetch(code, ahead + line * 64 // code.itemsize)
        for line in range(LINES // 2):
            prefetch(count, ahead + line * 64)
        if row[place] >= 0:
            is_counted = counts[window[place]]
            start, end = indptr[row[place]], indptr[row[place] + 1]
            for entry in range(np.uint64(start), np.uint64(end)):
                of_entry = np.uint64(code[entry])
                cluster = of_entry * inverse >> np.uint64(42)
                beyond = of_entry - cluster * divisor
                total[cluster] += is_counted[beyond] * count[entry]
        for cluster in range(num_clusters):
            found[place, cluster] = total[cluster]
            total[cluster] = 0
    return found


def gather_second(
    table: np.ndarray,
    over_index: np.ndarray,
    over_count: np.ndarray,
    row: np.ndarray,
    window: np.ndarray,
) -> np.ndarray:
    r"""The counts of hop 2 of some nodes, as of some windows.

    Args:
        table (numpy.ndarray): As in :class:`~mag.store.kernels.SecondHop`, of all nodes.
        over_index (numpy.ndarray): The same.
        over_count (numpy.ndarray): The same.
        row (numpy.ndarray): Rows of nodes, :obj:`-1` for an unknown one, whose counts are 0, int64,
            shape :obj:`[B]`.
        window (numpy.ndarray): The window of each, int64, shape :obj:`[B]`.

    Returns:
        float32, exact up to :math:`2^{24}`, shape :obj:`[B, M]`.
    """
    over = read_only(over_index), read_only(over_count)
    return _gather_second(read_only(table), *over, read_only(row), read_only(window))


@kernel
def _gather_second(
    table: np.ndarray,
    over_index: np.ndarray,
    over_count: np.ndarray,
    row: np.ndarray,
    window: np.ndarray,
) -> np.ndarray:
    _, num_windows, num_clusters = table.shape
    found = np.zeros((len(row), num_clusters), np.float32)
    for place in range(len(row)):
        ahead = min(place + AHEAD, len(row) - 1)
        for line in range(LINES):
            prefetch(table[max(row[ahead], 0), window[ahead]], 32 * line)
        if row[place] < 0:
            continue
        counts, of_row = table[row[place], window[place]], found[place]
        most = np.uint16(0)
        for cluster in range(num_clusters):
            of_row[cluster] = counts[cluster]
            most = max(most, counts[cluster])
        if most == ESCAPE:
            start = (row[place] * num_windows + window[place]) * num_clusters
            over = np.searchsorted(over_index, start)
            for cluster in range(num_clusters):
                if counts[cluster] == ESCAPE:
                    of_row[cluster] = over_count[over]
                    over += 1
    return found
