import numpy as np

from mag.checks import check_choice
from mag.store.kernels._compile import kernel, read_only
from mag.store.kernels.count_partition import NUM_KINDS
from mag.store.kernels.second_hop import ESCAPE

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
def _gather_rows(indptr, code, count, row, window, num_windows, num_clusters, least):  # type: ignore[no-untyped-def]
    found = np.zeros((len(row), num_clusters), np.float32)
    for place in range(len(row)):
        if row[place] < 0:
            continue
        for entry in range(np.int64(indptr[row[place]]), np.int64(indptr[row[place] + 1])):
            of_entry = np.int64(code[entry])
            kind = of_entry % NUM_KINDS
            if kind >= least and of_entry // NUM_KINDS % num_windows <= window[place]:
                found[place, of_entry // (NUM_KINDS * num_windows)] += count[entry]
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
def _gather_second(table, over_index, over_count, row, window):  # type: ignore[no-untyped-def]
    _, num_windows, num_clusters = table.shape
    found = np.zeros((len(row), num_clusters), np.float32)
    for place in range(len(row)):
        if row[place] < 0:
            continue
        start = (row[place] * num_windows + window[place]) * num_clusters
        for cluster in range(num_clusters):
            total = np.int64(table[row[place], window[place], cluster])
            if total == ESCAPE:
                total = over_count[np.searchsorted(over_index, start + cluster)]
            found[place, cluster] = total
    return found
