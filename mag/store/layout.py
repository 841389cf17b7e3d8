r"""Where a node is among the rows of a store: node :math:`v` in partition :math:`v \bmod P`, there
in place :math:`\lfloor v / P \rfloor`, and one partition after the other."""

import numpy as np


def partition_size(num_nodes: int, num_partitions: int, partition: int) -> int:
    r"""The number of nodes of a partition."""
    return len(range(partition, num_nodes, num_partitions))


def partition_starts(num_nodes: int, num_partitions: int) -> np.ndarray:
    r"""The row where each partition begins, and the end of the last, int64, shape
    :obj:`[P + 1]`."""
    sizes = [partition_size(num_nodes, num_partitions, place) for place in range(num_partitions)]
    return np.cumsum([0, *sizes])
