import numpy as np

from mag.store.kernels._compile import AHEAD, kernel, prefetch, read_only
from mag.store.kernels.count_partition import NUM_KINDS


def gather_cells(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    row: np.ndarray,
    cluster: np.ndarray,
    window: np.ndarray,
    num_windows: int,
) -> np.ndarray:
    r"""The exposures and clicks between some nodes and one cluster of neighbors each, as of some
    windows.

    Args:
        indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`, of all nodes.
        code (numpy.ndarray): The same.
        count (numpy.ndarray): The same.
        row (numpy.ndarray): Rows of nodes, :obj:`-1` for an unknown one, whose counts are 0, int64,
            shape :obj:`[B]`.
        cluster (numpy.ndarray): The cluster of each, :obj:`-1` for none, of which counts are 0,
            int64, shape :obj:`[B]`.
        window (numpy.ndarray): The window of each, int64, shape :obj:`[B]`.
        num_windows (int): The number of windows :math:`S`.

    Returns:
        float32, exact up to :math:`2^{24}`, shape :obj:`[B, 2]`.
    """
    increments = read_only(indptr), read_only(code), read_only(count)
    asked = read_only(row), read_only(cluster), read_only(window)
    return _gather_cells(*increments, *asked, num_windows)


@kernel
def _gather_cells(indptr, code, count, row, cluster, window, num_windows):  # type: ignore[no-untyped-def]
    found = np.zeros((len(row), 2), np.float32)
    width = NUM_KINDS * num_windows
    for place in range(len(row)):
        prefetch(indptr, max(row[min(place + 2 * AHEAD, len(row) - 1)], 0))
        ahead = np.int64(indptr[max(row[min(place + AHEAD, len(row) - 1)], 0)])
        prefetch(code, ahead)
        prefetch(count, ahead)
        if row[place] < 0 or cluster[place] < 0:
            continue
        first = cluster[place] * width
        last = first + (window[place] + 1) * NUM_KINDS
        low, end = np.int64(indptr[row[place]]), np.int64(indptr[row[place] + 1])
        high = end
        while low < high:
            middle = (low + high) // 2
            if np.int64(code[middle]) < first:
                low = middle + 1
            else:
                high = middle
        seen = clicked = 0
        while low < end and np.int64(code[low]) < last:
            seen += np.int64(count[low])
            # Of an exposure without a click the kind is 0.
            if np.int64(code[low]) % NUM_KINDS > 0:
                clicked += np.int64(count[low])
            low += 1
        found[place, 0] = seen
        found[place, 1] = clicked
    return found
