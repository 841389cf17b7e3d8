import numpy as np

from mag.store.kernels._compile import kernel, read_only
from mag.store.kernels.count_partition import NUM_KINDS


def add_cells(
    cells: np.ndarray,
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    cluster: np.ndarray,
    window: np.ndarray,
) -> None:
    r"""Adds the exposures and clicks of some nodes to those between their clusters and the clusters
    of their neighbors, from the first window on that knows both.

    Args:
        cells (numpy.ndarray): The increments by cluster, cluster of the neighbor and window,
            exposures and clicks, int64, shape :obj:`[M, M_neighbor, S, 2]`.
        indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`, of these nodes.
        code (numpy.ndarray): The same, of all nodes.
        count (numpy.ndarray): The same, of all nodes.
        cluster (numpy.ndarray): The cluster of each, :obj:`-1` for none, shape :obj:`[n]`.
        window (numpy.ndarray): The first window that knows it, shape :obj:`[n]`.
    """
    increments = read_only(indptr), read_only(code), read_only(count)
    _add_cells(cells, *increments, read_only(cluster), read_only(window))


@kernel
def _add_cells(cells, indptr, code, count, cluster, window):  # type: ignore[no-untyped-def]
    num_windows = cells.shape[2]
    for node in range(len(cluster)):
        own, since = np.int64(cluster[node]), np.int64(window[node])
        if own < 0 or since >= num_windows:
            continue
        for entry in range(np.int64(indptr[node]), np.int64(indptr[node + 1])):
            of_entry = np.int64(code[entry])
            other = of_entry // (NUM_KINDS * num_windows)
            known = max(of_entry // NUM_KINDS % num_windows, since)
            cells[own, other, known, 0] += count[entry]
            if of_entry % NUM_KINDS > 0:
                cells[own, other, known, 1] += count[entry]
