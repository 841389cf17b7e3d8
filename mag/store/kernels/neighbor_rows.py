from typing import NamedTuple

import numpy as np

from mag.checks import check_integers
from mag.store.kernels._compile import kernel, read_only
from mag.store.kernels.count_partition import NUM_KINDS
from mag.store.kernels.partition_events import MAX_WINDOWS, WINDOW_BITS

# The form of a row, in the lowest bits of its offset: increments one by one, or a table of all in
# one, two or four bytes.
FORM_BITS = 2
SPARSE, BYTE, SHORT, WORD = range(4)
# An increment in 32 bits, from the top: cluster, window, and how many. Above 255 it repeats.
COUNT_BITS = 8
MAX_CLUSTERS = 2 ** (32 - COUNT_BITS - WINDOW_BITS)


class NeighborRows(NamedTuple):
    r"""The distinct pairs of nodes by cluster of the neighbor and window, in the form that
    :func:`second_hop` sums.

    Attributes:
        offset (numpy.ndarray): Where the row of each node begins, in words, times four, plus its
            form; and the end. uint64, shape :obj:`[n + 1]`.
        data (numpy.ndarray): Words, uint32.
    """

    offset: np.ndarray
    data: np.ndarray


def neighbor_rows(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    num_windows: int,
    num_clusters: int,
    first_word: int = 0,
) -> NeighborRows:
    r"""Takes the distinct pairs out of increments. A row is a list of increments, or a
    table that is at most twice as long, as it is summed so much faster: at most 8 bytes a pair.

    Rows of several partitions are one when their data follow each other: that of the first begins
    at word 0, and that of each further one at :obj:`offset[-1] >> 2` of the one before, whose last
    offset it replaces.

    Args:
        indptr (numpy.ndarray): As in :class:`~mag.store.kernels.NodeCounts`.
        code (numpy.ndarray): The same.
        count (numpy.ndarray): The same.
        num_windows (int): The number of windows :math:`S`.
        num_clusters (int): The number of clusters :math:`M`, at most 131,072.
        first_word (int, optional): Where the data begins. (default: :obj:`0`)

    Raises:
        ValueError: If there are more than 131,072 clusters.
    """
    check_integers(1, below=MAX_WINDOWS + 1, num_windows=num_windows)
    check_integers(1, below=MAX_CLUSTERS + 1, num_clusters=num_clusters)
    increments = read_only(indptr), read_only(code), read_only(count)
    size = num_windows, num_clusters
    offset = _offsets(*increments, *size, first_word)
    data = np.zeros((int(offset[-1]) >> FORM_BITS) - first_word, np.uint32)
    views = data, data.view(np.uint16), data.view(np.uint8)
    _fill(*increments, *size, first_word, offset, *views)
    return NeighborRows(offset, data)


@kernel
def _offsets(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    num_windows: int,
    num_clusters: int,
    first_word: int,
) -> np.ndarray:
    num_nodes = len(indptr) - 1
    offset = np.empty(num_nodes + 1, np.uint64)
    size = num_windows * num_clusters
    word = first_word
    for node in range(num_nodes):
        entries = highest = running = 0
        before = -1
        for place in range(np.int64(indptr[node]), np.int64(indptr[node + 1])):
            of_entry = np.int64(code[place])
            if of_entry % NUM_KINDS != NUM_KINDS - 1:
                continue
            entries += 1
            running = np.int64(count[place]) + (running if of_entry == before else 0)
            highest, before = max(highest, running), of_entry
        form = BYTE if highest < 2**8 else SHORT if highest < 2**16 else WORD
        width = 1 << (form - BYTE)
        words = (size * width + 3) // 4
        if 2 * entries < words:
            form, words = SPARSE, entries
        offset[node] = np.uint64(word) << np.uint64(FORM_BITS) | np.uint64(form)
        word += words
    offset[num_nodes] = np.uint64(word) << np.uint64(FORM_BITS)
    return offset


@kernel
def _fill(
    indptr: np.ndarray,
    code: np.ndarray,
    count: np.ndarray,
    num_windows: int,
    num_clusters: int,
    first_word: int,
    offset: np.ndarray,
    words: np.ndarray,
    shorts: np.ndarray,
    octets: np.ndarray,
) -> None:
    for node in range(len(indptr) - 1):
        form = np.int64(offset[node] & np.uint64(3))
        word = np.int64(offset[node] >> np.uint64(FORM_BITS)) - first_word
        for place in range(np.int64(indptr[node]), np.int64(indptr[node + 1])):
            of_entry = np.int64(code[place])
            if of_entry % NUM_KINDS != NUM_KINDS - 1:
                continue
            window = of_entry // NUM_KINDS % num_windows
            cluster = of_entry // (NUM_KINDS * num_windows)
            slot = window * num_clusters + cluster
            if form == SPARSE:
                known = cluster << WINDOW_BITS | window
                words[word] = known << COUNT_BITS | np.int64(count[place])
                word += 1
            elif form == BYTE:
                octets[word * 4 + slot] += count[place]
            elif form == SHORT:
                shorts[word * 2 + slot] += count[place]
            else:
                words[word + slot] += count[place]
