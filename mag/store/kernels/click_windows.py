import numpy as np

from mag.store.kernels._compile import kernel, read_only
from mag.store.kernels.count_partition import NUM_KINDS


def click_windows(indptr: np.ndarray, code: np.ndarray, num_windows: int) -> np.ndarray:
    r"""The first window that knows a click of each node.

    Args:
        indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`, of :math:`n` nodes.
        code (numpy.ndarray): The same.
        num_windows (int): The number of windows :math:`S`.

    Returns:
        uint8, :math:`S` for a node without clicks, shape :obj:`[n]`.
    """
    return _click_windows(read_only(indptr), read_only(code), num_windows)


@kernel
def _click_windows(indptr, code, num_windows):  # type: ignore[no-untyped-def]
    found = np.full(len(indptr) - 1, num_windows, np.uint8)
    for node in range(len(found)):
        for entry in range(np.int64(indptr[node]), np.int64(indptr[node + 1])):
            of_entry = np.int64(code[entry])
            if of_entry % NUM_KINDS > 0:
                window = of_entry // NUM_KINDS % num_windows
                found[node] = min(np.int64(found[node]), window)
    return found
