from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mag.store.kernels._compile import AHEAD, kernel, prefetch, read_only
from mag.store.kernels.partition_events import NEIGHBOR, PLACE, WINDOW_BITS


class FirstClicks(NamedTuple):
    r"""The neighbors that the nodes of one partition clicked up to the first window that knows
    them.

    Attributes:
        indptr (numpy.ndarray): Where those of each node begin, and the end, int64, shape
            :obj:`[n + 1]`.
        neighbor (numpy.ndarray): Each once and ascending, int32.
    """

    indptr: np.ndarray
    neighbor: np.ndarray


def first_windows(records: Sequence[np.ndarray], num_nodes: int, num_windows: int) -> np.ndarray:
    r"""The window of the first click of each node of a partition, :math:`S` without a click, uint8,
    shape :obj:`[n]`.

    Args:
        records (list[numpy.ndarray]): Records of :func:`~mag.store.kernels.partition_events`, in
            the order of time, one after the other.
        num_nodes (int): The number of nodes in the partition :math:`n`.
        num_windows (int): The number of windows :math:`S`.
    """
    window = np.full(num_nodes, num_windows, np.uint8)
    for record in records:
        _first_windows(read_only(record), window)
    return window


def first_clicks(records: Sequence[np.ndarray], window: np.ndarray) -> FirstClicks:
    r"""The neighbors that nodes clicked in their first window.

    Memory is 4 bytes a click that counts, and 8 bytes a node.

    Args:
        records (list[numpy.ndarray]): As for :func:`first_windows`.
        window (numpy.ndarray): What it gave; a higher number than that of the windows where nothing
            is asked, uint8, shape :obj:`[n]`.
    """
    start = np.zeros(len(window) + 1, np.int64)
    for record in records:
        _count_clicks(read_only(record), read_only(window), start)
    start = start.cumsum()
    neighbor, end = np.empty(start[-1], np.int32), start[:-1].copy()
    for record in records:
        _place_clicks(read_only(record), read_only(window), end, neighbor)
    num_pairs = _keep_distinct(start, neighbor)
    return FirstClicks(start, neighbor[:num_pairs])


@kernel
def _first_windows(record, window):  # type: ignore[no-untyped-def]
    for place in range(len(record)):
        ahead = np.int64(record[min(place + AHEAD, len(record) - 1)] >> np.uint64(PLACE))
        prefetch(window, ahead)
        if record[place] & np.uint64(1):
            node = np.int64(record[place] >> np.uint64(PLACE))
            of_click = np.int64(record[place] >> np.uint64(1)) & (2**WINDOW_BITS - 1)
            window[node] = min(np.int64(window[node]), of_click)


@kernel
def _count_clicks(record, window, start):  # type: ignore[no-untyped-def]
    r"""Counts the clicks of each node in its window one place further."""
    for place in range(len(record)):
        ahead = np.int64(record[min(place + AHEAD, len(record) - 1)] >> np.uint64(PLACE))
        prefetch(window, ahead)
        node = np.int64(record[place] >> np.uint64(PLACE))
        of_click = np.int64(record[place] >> np.uint64(1)) & (2**WINDOW_BITS - 1)
        if record[place] & np.uint64(1) and of_click == window[node]:
            start[node + 1] += 1


@kernel
def _place_clicks(record, window, end, neighbor):  # type: ignore[no-untyped-def]
    for place in range(len(record)):
        ahead = np.int64(record[min(place + AHEAD, len(record) - 1)] >> np.uint64(PLACE))
        prefetch(end, ahead)
        node = np.int64(record[place] >> np.uint64(PLACE))
        of_click = np.int64(record[place] >> np.uint64(1)) & (2**WINDOW_BITS - 1)
        if record[place] & np.uint64(1) and of_click == window[node]:
            neighbor[end[node]] = np.int64(record[place] >> np.uint64(NEIGHBOR)) & (2**32 - 1)
            end[node] += 1


@kernel
def _keep_distinct(start, neighbor):  # type: ignore[no-untyped-def]
    r"""Sorts the neighbors of each node and keeps each once, in place."""
    num_kept = first = 0
    for node in range(len(start) - 1):
        end = start[node + 1]
        own = neighbor[first:end]
        own.sort()
        for place in range(len(own)):
            if place == 0 or own[place] != own[place - 1]:
                # What is written lies before what is read, or is the same.
                neighbor[num_kept] = own[place]
                num_kept += 1
        first = end
        start[node + 1] = num_kept
    return num_kept
