import numpy as np

from mag.macro_graph.grouping import SIGNS
from mag.negatives import hash_rows, mix
from mag.store.kernels._compile import kernel, read_only

# A sum of bits has as many binary digits, as a node has fewer than 2^31 neighbors.
_DIGITS = 32


def sum_signs(
    indptr: np.ndarray, neighbor: np.ndarray, projection_dim: int, seed: int
) -> np.ndarray:
    r"""The sums of the signs of neighbors, :func:`~mag.macro_graph.grouping.random_signs`, without
    a table of them: the counts of 64 dimensions are added up at once, a word of bits for each of
    their binary digits.

    Args:
        indptr (numpy.ndarray): Where the neighbors of each node begin, and the end, int64, shape
            :obj:`[n + 1]`.
        neighbor (numpy.ndarray): int32.
        projection_dim (int): The number of dimensions :math:`D`.
        seed (int): Seed of the signs.

    Returns:
        float32, shape :obj:`[n, D]`.
    """
    state = hash_rows((seed, SIGNS))
    total = np.empty((len(indptr) - 1, projection_dim), np.float32)
    _sum_signs(read_only(indptr), read_only(neighbor), np.uint64(state[0]), total)
    return total


_mix = kernel(mix)


@kernel
def _sum_signs(indptr, neighbor, state, total):  # type: ignore[no-untyped-def]
    num_nodes, width = total.shape
    num_words = (width + 63) // 64
    digit = np.zeros((num_words, _DIGITS), np.uint64)
    count = np.empty(num_words * 64, np.int32)
    for node in range(num_nodes):
        digit[:] = 0
        num_digits = 0
        while (indptr[node + 1] - indptr[node]) >> num_digits:
            num_digits += 1
        for place in range(indptr[node], indptr[node + 1]):
            of_neighbor = _mix(state ^ np.uint64(neighbor[place]))
            for word in range(num_words):
                carry = _mix(of_neighbor ^ np.uint64(word))
                level = 0
                while carry:
                    before = digit[word, level]
                    digit[word, level] = before ^ carry
                    carry &= before
                    level += 1
        count[:] = 0
        for word in range(num_words):
            of_word = count[word * 64 : word * 64 + 64]
            for level in range(num_digits):
                bits = digit[word, level]
                for dimension in range(64):
                    bit = np.int32((bits >> np.uint64(dimension)) & np.uint64(1))
                    of_word[dimension] += bit << np.int32(level)
        num_neighbors = indptr[node + 1] - indptr[node]
        for dimension in range(width):
            total[node, dimension] = 2 * np.int64(count[dimension]) - num_neighbors
