r"""What a snapshot counts of events, which are read in pieces."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import scipy

from mag.online import RowLayout, checksum_of, count_events
from mag.online.node_rows import columns_of, count_cells
from mag.online.pair_runs import PairRuns, pack_pairs, unpack_pairs
from mag.schema import NEIGHBOR_TYPE

#: Events that are counted at once.
PIECE = 2**16


class Counts(NamedTuple):
    r"""What :func:`count` returns.

    Attributes:
        position (int): How many events there are.
        checksum (int): That of all of them.
        rows (dict[str, numpy.ndarray]): The rows of all nodes.
        pairs (numpy.ndarray): The pairs that have clicked, each once, shape :obj:`[2, P]`.
        cells (dict[tuple[int, int], numpy.ndarray]): The counts between clusters.
    """

    position: int
    checksum: int
    rows: dict[str, np.ndarray]
    pairs: np.ndarray
    cells: dict[tuple[int, int], np.ndarray]


def count(
    layout: RowLayout,
    clusters: Mapping[str, np.ndarray],
    since: Mapping[str, np.ndarray],
    pieces: Iterable[np.ndarray],
) -> Counts:
    r"""Counts events. Memory is that of the rows, of a piece, and of the distinct clicks.

    Args:
        layout: How rows are packed.
        clusters: For each node type, the cluster of each node at each resolution, shape
            :obj:`[S, N]`.
        since: Since when it is known, likewise; without a type, always.
        pieces: The events, one after the other in the order of the log.
    """
    numbers = layout.num_clusters
    rows = {node: layout.empty(node, clusters[node].shape[1]) for node in NEIGHBOR_TYPE}
    columns = {node: columns_of(layout, node, clusters[node]) for node in NEIGHBOR_TYPE}
    cells = {
        (s, t): np.zeros((of_user + 1, of_item + 1, 2), np.int64)
        for s, of_user in enumerate(numbers['user'])
        for t, of_item in enumerate(numbers['item'])
    }
    runs, position, checksum = PairRuns(), 0, 0
    for piece in pieces:
        position, checksum = position + len(piece), checksum_of(piece, checksum)
        clicked = piece['clicked'] == 1
        column = {node: columns[node][piece[node]] for node in NEIGHBOR_TYPE}
        for node, of_node in since.items():
            # Before its cluster was known, a node was in none.
            is_known = piece['time'][:, None] >= of_node[:, piece[node]].T
            column[node] = np.where(is_known, column[node], columns[node][-1])
        for node, neighbor in NEIGHBOR_TYPE.items():
            count_events(
                rows[node],
                piece[node],
                piece[neighbor],
                column[neighbor],
                clicked,
                np.zeros(len(piece), bool),
            )
        count_cells(cells, layout, column, clicked)
        pair = np.unique(pack_pairs(piece['user'][clicked], piece['item'][clicked]))
        runs.add(pair[~runs.has(pair)])
    pairs = np.stack([of.astype(np.int32) for of in unpack_pairs(runs.pairs())])
    for first in range(0, pairs.shape[1], PIECE):
        of_user, of_item = pairs[:, first : first + PIECE]
        for node, own, other in (('user', of_user, of_item), ('item', of_item, of_user)):
            of_other = columns[NEIGHBOR_TYPE[node]][other]
            np.add.at(rows[node]['pairs'], (own[:, None], of_other), 1)
    return Counts(position, checksum, rows, pairs, cells)


def hop_2(layout: RowLayout, rows: Mapping[str, np.ndarray], pairs: np.ndarray) -> dict:
    r"""The counts of hop 2 at the first resolution, shape :obj:`[N, C]` for each node type."""
    shape = len(rows['user']), len(rows['item'])
    of_users = scipy.sparse.csr_matrix((np.ones(pairs.shape[1], np.int64), pairs), shape)
    found = {}
    for node, matrix in (('user', of_users), ('item', of_users.T)):
        columns = slice(0, layout.num_clusters[node][0])
        found[node] = matrix @ rows[NEIGHBOR_TYPE[node]]['pairs'][:, columns].astype(np.int64)
    return found
