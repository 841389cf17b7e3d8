from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scipy
import torch
from torch import Tensor

from mag.macro_graph.grouping import (
    cluster_counts,
    macro_behavior,
    raw_behavior,
    sample_nodes,
    scale_projection,
)
from mag.macro_graph.macro_clusters import MacroClusters
from mag.schema import NEIGHBOR_TYPE
from mag.store.kernels import FirstClicks, first_clicks, first_windows, sum_signs

# FAISS is asked for so many nodes at once, and so many are embedded at least.
_FEWEST = 2**12
# How many floats the embeddings are that are made at once, if they may be as few.
_FLOATS = 2**22
# More than any window.
_NOT_ASKED = 255


class Events(Protocol):
    r"""Where the events of a log are, such as :class:`~mag.store.partitions.Partitions`."""

    num_nodes: dict[str, int]
    num_partitions: dict[str, int]
    num_windows: int

    def records(self, node_type: str, partition: int) -> list[np.ndarray]:
        r"""The events of the nodes of a partition in the order of time, see
        :func:`~mag.store.kernels.partition_events`."""

    def size(self, node_type: str, partition: int) -> int:
        r"""The number of nodes of a partition."""


class _Behavior(NamedTuple):
    r"""What the embeddings of a node type are made of."""

    node_type: str
    #: The cluster of each neighbor, if their clusters are counted.
    neighbor_cluster: np.ndarray | None
    #: The neighbors that are counted, if they are few.
    columns: np.ndarray | None


class StoreClusters:
    r"""The clusters that :class:`~mag.macro_graph.MacroClusters` learns and assigns, of a log that
    is read partition by partition: the same to the bit where both can run.

    Centroids are found from a sample of the nodes with a click in the first window, see
    :class:`~mag.macro_graph.Grouping`. Each node is assigned by its clicks up to the first window
    that knows it. Memory is that of :func:`cluster_bytes` and :func:`assign_bytes`.
    A log has distinct pairs, as with :obj:`binary=True`.

    Args:
        events (Events): The events by partition.
        clusters (MacroClusters): What is to be learned; it is not fitted.
        num_clusters (dict[str, int]): By the name of the resolution, of attributes as well.

    Attributes:
        order (list[str]): The node types whose clusters are learned, in the order of their turns.
    """

    def __init__(
        self, events: Events, clusters: MacroClusters, num_clusters: Mapping[str, int]
    ) -> None:
        self.order = clusters.order()
        self._events, self._clusters = events, clusters
        self._num_clusters = num_clusters

    def fit(self, node_type: str, neighbor_cluster: np.ndarray | None) -> dict[str, Tensor]:
        r"""Finds the centroids of a node type, of all resolutions.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            neighbor_cluster (numpy.ndarray, optional): The cluster of each node of the other type
                at its first resolution, int32, shape :obj:`[N]`; :obj:`None` where the behavior is
                :obj:`"raw"`.

        Returns:
            :obj:`"centroids/<name>"` of each resolution and, if the neighbors with a click in the
            first window are few, these: :obj:`"columns/<node_type>"`.

        Raises:
            ValueError: If there are fewer nodes with a click in the first window than clusters.
        """
        fitted = {}
        columns = self._columns(node_type) if neighbor_cluster is None else None
        if columns is not None:
            fitted[f'columns/{node_type}'] = torch.from_numpy(columns)
        behavior = _Behavior(node_type, neighbor_cluster, columns)
        groupings = self._clusters.unfitted(node_type)
        most = max(grouping.max_points for grouping in groupings.values())
        node, rows = self._sample(behavior, most)
        for name, grouping in groupings.items():
            grouping.fit(rows, node)
            fitted[f'centroids/{name}'] = grouping.fitted()
        return fitted

    def assign(
        self,
        node_type: str,
        partition: int,
        fitted: Mapping[str, Tensor],
        neighbor_cluster: np.ndarray | None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        r"""The clusters of the nodes of a partition.

        Args:
            node_type (str): As for :meth:`fit`.
            partition (int): The partition.
            fitted (dict[str, torch.Tensor]): What :meth:`fit` gave.
            neighbor_cluster (numpy.ndarray, optional): As for :meth:`fit`, of all windows.

        Returns:
            The clusters by the name of the resolution, :obj:`-1` for a node without a click, int32,
            shape :obj:`[n]` each; and the first window that knows them, :math:`S` without a click,
            uint8, shape :obj:`[n]`.
        """
        columns = fitted.get(f'columns/{node_type}')
        behavior = _Behavior(
            node_type, neighbor_cluster, None if columns is None else columns.numpy()
        )
        groupings = self._clusters.unfitted(node_type)
        for name, grouping in groupings.items():
            grouping.centroids = fitted[f'centroids/{name}']
        records = self._events.records(node_type, partition)
        window = self._first_windows(node_type, partition)
        place = np.flatnonzero(window < self._events.num_windows)
        clicks = _of_places(first_clicks(records, window), place)
        cluster = {name: np.full(len(window), -1, np.int32) for name in groupings}
        for piece, rows in self._embed_all(behavior, clicks):
            for name, grouping in groupings.items():
                cluster[name][place[piece]] = grouping.assign(rows).numpy()
        return cluster, window

    def _first_windows(self, node_type: str, partition: int) -> np.ndarray:
        events = self._events
        return first_windows(
            events.records(node_type, partition),
            events.size(node_type, partition),
            events.num_windows,
        )

    def _first_clicks(self, node_type: str, partition: int, place: np.ndarray) -> FirstClicks:
        r"""What the nodes at some places of a partition clicked in the first window."""
        window = np.full(self._events.size(node_type, partition), _NOT_ASKED, np.uint8)
        window[place] = 0
        records = self._events.records(node_type, partition)
        return _of_places(first_clicks(records, window), place)

    def _columns(self, node_type: str) -> np.ndarray | None:
        r"""The neighbors with a click in the first window, or None if they are more than the
        dimensions of a projection."""
        columns = np.empty(0, np.int64)
        for partition in range(self._events.num_partitions[node_type]):
            place = np.arange(self._events.size(node_type, partition))
            clicks = self._first_clicks(node_type, partition, place)
            columns = np.union1d(columns, clicks.neighbor)
            if len(columns) > self._clusters.projection_dim:
                return None
        return columns

    def _sample(self, behavior: _Behavior, most: int) -> tuple[Tensor, Tensor]:
        r"""The nodes that centroids are found from, ascending, and their embeddings."""
        node_type = behavior.node_type
        number = self._events.num_partitions[node_type]
        node = np.empty(0, np.int64)
        for partition in range(number):
            place = np.flatnonzero(self._first_windows(node_type, partition) == 0)
            node = np.concatenate([node, place * number + partition])
            node = node[sample_nodes(node, most, self._clusters.seed)]
        node.sort()
        rows = torch.empty(len(node), self._width(node_type))
        partitions = node % number
        order = np.argsort(partitions, kind='stable')
        ends = np.bincount(partitions, minlength=number).cumsum()[:-1]
        for partition, place in enumerate(np.split(order, ends)):
            clicks = self._first_clicks(node_type, partition, node[place] // number)
            for piece, found in self._embed_all(behavior, clicks):
                rows[torch.from_numpy(place[piece])] = found
        return torch.from_numpy(node), rows

    def _width(self, node_type: str) -> int:
        return _width(self._clusters, node_type, self._num_clusters)

    def _embed_all(
        self, behavior: _Behavior, clicks: FirstClicks
    ) -> Iterator[tuple[slice, Tensor]]:
        r"""The embeddings of some nodes after the others, and which these are."""
        step = _piece(self._width(behavior.node_type))
        for start in range(0, len(clicks.indptr) - 1, step):
            piece = slice(start, start + step)
            indptr = clicks.indptr[start : start + step + 1]
            neighbor = clicks.neighbor[indptr[0] : indptr[-1]]
            yield piece, self._embed(behavior, FirstClicks(indptr - indptr[0], neighbor))

    def _embed(self, behavior: _Behavior, clicks: FirstClicks) -> Tensor:
        node_type, neighbor_cluster, columns = behavior
        dim, seed = self._clusters.projection_dim, self._clusters.seed
        number = np.diff(clicks.indptr)
        if neighbor_cluster is None and columns is None:
            norm = np.sqrt(number.astype(np.float32))
            return scale_projection(sum_signs(*clicks, dim, seed), norm)
        other = NEIGHBOR_TYPE[node_type]
        rows = scipy.sparse.csr_matrix(
            (np.ones(len(clicks.neighbor), np.float32), clicks.neighbor, clicks.indptr),
            shape=(len(number), self._events.num_nodes[other]),
        )
        if neighbor_cluster is None:
            return raw_behavior(rows, dim, seed, columns)
        return macro_behavior(cluster_counts(rows, neighbor_cluster, self._num_clusters[other]))


def cluster_bytes(
    clusters: MacroClusters, node_type: str, num_nodes: int, num_clusters: Mapping[str, int]
) -> int:
    r"""How many bytes :meth:`StoreClusters.fit` holds at most, without the clicks of a partition.

    Args:
        clusters (MacroClusters): What is to be learned.
        node_type (str): One whose clusters are learned.
        num_nodes (int): How many nodes there are.
        num_clusters (dict[str, int]): By the name of the resolution.
    """
    sample = _sample_bytes(clusters, node_type, num_nodes, num_clusters)
    # Squares, by which values are checked; and of several samples, one more.
    return sample * min(3, 1 + len(clusters.unfitted(node_type)))


def assign_bytes(
    clusters: MacroClusters,
    node_type: str,
    num_nodes: Sequence[int],
    num_clicks: int,
    num_clusters: Mapping[str, int],
) -> int:
    r"""How many bytes :meth:`StoreClusters.assign` holds at most, and :meth:`StoreClusters.fit`
    while it reads a partition.

    Args:
        clusters (MacroClusters): What is to be learned.
        node_type (str): One whose clusters are learned.
        num_nodes (list[int]): How many nodes the partition has, and how many there are.
        num_clicks (int): How many clicks the partition has.
        num_clusters (dict[str, int]): By the name of the resolution.
    """
    width, (own, number) = _width(clusters, node_type, num_clusters), num_nodes
    # Counts as long as they are normalized, and what FAISS is asked for.
    of_piece = 12 * width * min(own, _piece(width))
    # Neighbors, and the matrices of which few columns are taken.
    return (
        _sample_bytes(clusters, node_type, number, num_clusters)
        + of_piece + 40 * own + 48 * num_clicks
    )  # fmt: skip


def _sample_bytes(
    clusters: MacroClusters, node_type: str, num_nodes: int, num_clusters: Mapping[str, int]
) -> int:
    groupings = clusters.unfitted(node_type).values()
    rows = min(num_nodes, max(grouping.max_points for grouping in groupings))
    return 4 * rows * _width(clusters, node_type, num_clusters)


def _width(clusters: MacroClusters, node_type: str, num_clusters: Mapping[str, int]) -> int:
    r"""The width of the embeddings of a node type."""
    if clusters.behaviors[node_type] == 'raw':
        return clusters.projection_dim
    return num_clusters[NEIGHBOR_TYPE[node_type]]


def _piece(width: int) -> int:
    r"""How many nodes are embedded at once."""
    return max(_FEWEST, _FLOATS // width)


def _of_places(clicks: FirstClicks, place: np.ndarray) -> FirstClicks:
    r"""Without the nodes at other places, which clicked nothing that counts."""
    return FirstClicks(np.append(0, clicks.indptr[place + 1]), clicks.neighbor)
