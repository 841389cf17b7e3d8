r"""What is counted of one partition of nodes, on whatever machine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mag.compression import encode_counts
from mag.compression.count_codes import MAX_COUNT
from mag.schema import Resolution
from mag.store.clusters import Events
from mag.store.kernels import (
    NeighborRows,
    NodeCounts,
    SecondHop,
    count_partition,
    neighbor_rows,
    second_hop,
)
from mag.store.plan import TOTAL

#: The arrays of the distinct pairs of a partition.
PAIRS = ('indptr', 'neighbor', 'window')


class Counted(NamedTuple):
    r"""What is counted of a partition."""

    counts: NodeCounts
    rows: NeighborRows


class Level(NamedTuple):
    r"""A grouping of the neighbors that are counted."""

    suffix: str
    num_clusters: int
    cluster: np.ndarray
    window: np.ndarray | None


def read_levels(
    resolutions: Sequence[Resolution],
    node_type: str,
    num_nodes: Mapping[str, int],
    num_clusters: Mapping[str, int],
    read: Callable[[str], np.ndarray],
) -> list[Level]:
    r"""All groupings of the nodes of a type, and last the one of all alike: a node that never gets
    a cluster is seen, too.

    Args:
        resolutions (list[Resolution]): The groupings of both types.
        node_type (str): The type.
        num_nodes (dict[str, int]): The number of users and items.
        num_clusters (dict[str, int]): By the name of the grouping.
        read (callable): Maps an array of the store.
    """
    found = [
        Level(
            of.suffix,
            num_clusters[of.name],
            read(f'clusters/{of.name}.npy'),
            # All windows know what an attribute tells.
            None if isinstance(of.group, str) else read(f'clusters/{of.name}_window.npy'),
        )
        for of in resolutions
        if of.node_type == node_type
    ]
    return [*found, Level(TOTAL, 1, np.zeros(num_nodes[node_type], np.int32), None)]


def count_nodes(
    events: Events,
    node_type: str,
    partition: int,
    levels: Sequence[Level],
    num_windows: int,
    num_recent: int,
) -> Counted:
    r"""Counts the events of the nodes of a partition.

    Args:
        events (Events): Where they are.
        node_type (str): The type of the nodes.
        partition (int): The partition.
        levels (list[Level]): The groupings of their neighbors.
        num_windows (int): The number of windows.
        num_recent (int): Length of the lists of last neighbors.
    """
    counts = count_partition(
        events.records(node_type, partition),
        events.size(node_type, partition),
        [level.cluster for level in levels],
        [level.window for level in levels],
        num_windows,
        [level.num_clusters for level in levels],
        num_recent,
    )
    increments = counts.indptr[0], counts.code[0], counts.count[0]
    return Counted(counts, neighbor_rows(*increments, num_windows, levels[0].num_clusters))


def add_hops(
    pairs: tuple[np.ndarray, ...], span: Sequence[int], rows: tuple[Any, ...], counts: str
) -> SecondHop:
    r"""Counts two hops of the nodes of a partition from one place to another.

    Args:
        pairs (tuple): The :data:`PAIRS` of the partition.
        span (list[int]): The first of the nodes, and the one after the last.
        rows (tuple): What :func:`~mag.store.kernels.second_hop` reads of the neighbors, and the
            numbers of windows and clusters.
        counts (str): :obj:`"exact"`, or :obj:`"log"` for codes of one byte.
    """
    indptr, neighbor, window = pairs
    first, last = span
    found = second_hop(indptr[first : last + 1], neighbor, window, *rows)
    return found if counts == 'exact' else _in_bytes(found)


def _in_bytes(found: SecondHop) -> SecondHop:
    r"""The counts as codes of one byte, the largest of which stands for all above."""
    counts = found.table.astype(np.float32)
    counts.reshape(-1)[found.over_index] = np.minimum(found.over_count, MAX_COUNT)
    nothing = np.empty(0, np.int64)
    return SecondHop(encode_counts(torch.from_numpy(counts)).numpy(), nothing, nothing)
