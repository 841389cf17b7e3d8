from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mag.checks import check_integers, check_keys
from mag.store.kernels._compile import kernel, read_only

# A record of 64 bits, from the top: the node's place in its partition, the neighbor, the window,
# and whether it clicked.
PLACE_BITS, WINDOW_BITS = 24, 7
PLACE, NEIGHBOR = 40, 8
MAX_WINDOWS = 2**WINDOW_BITS - 1


class Records(NamedTuple):
    r"""Events of one side, by partition of their nodes.

    Attributes:
        record (numpy.ndarray): The partitions one after the other, each in the order of the events,
            uint64, shape :obj:`[E]`.
        offset (numpy.ndarray): Where each partition begins, and the end, int64, shape
            :obj:`[P + 1]`.
    """

    record: np.ndarray
    offset: np.ndarray


def partition_events(
    user: np.ndarray,
    item: np.ndarray,
    window: np.ndarray,
    click: np.ndarray,
    num_partitions: Mapping[str, int],
    num_windows: int,
) -> dict[str, Records]:
    r"""Writes events as records of 8 bytes for users and for items, sorted by partition.

    Node :math:`v` is in place :math:`\lfloor v / P \rfloor` of partition :math:`v \bmod P`. A
    record of the user side tells the user's place and the item; of the item side, the item's place
    and the user. The order of events is kept, so the partitions of several calls follow each other
    in the order of the calls. Events of no window are left out.

    Args:
        user (numpy.ndarray): Integers from 0, shape :obj:`[E]`.
        item (numpy.ndarray): Integers from 0, shape :obj:`[E]`.
        window (numpy.ndarray): The first window that knows each event, :math:`S` or more for none,
            integers, shape :obj:`[E]`.
        click (numpy.ndarray): Whether each was clicked, booleans, shape :obj:`[E]`.
        num_partitions (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, a power of two.
        num_windows (int): The number of windows :math:`S`, at most 127.

    Returns:
        The records of :obj:`"user"` and :obj:`"item"`.

    Raises:
        IndexError: If an id is negative.
        ValueError: If the arrays differ in length, a number of partitions is no power of two,
            there are more windows than 127, or a partition has more nodes than :math:`2^{24}`.
    """
    check_keys(('user', 'item'), num_partitions=num_partitions)
    check_integers(1, below=MAX_WINDOWS + 1, num_windows=num_windows)
    for name, number in num_partitions.items():
        check_integers(1, **{f'num_partitions[{name!r}]': number})
        if number & (number - 1):
            raise ValueError(
                f"'num_partitions[{name!r}]' must be a power of two, but got {number}."
            )
    sizes = [len(array) for array in (user, item, window, click)]
    if len(set(sizes)) > 1:
        raise ValueError(
            f'partition_events expects as many users as items, windows and clicks, but got '
            f'{sizes[0]}, {sizes[1]}, {sizes[2]} and {sizes[3]}.'
        )
    sides = {'user': (user, item), 'item': (item, user)}
    records = {}
    for name, (node, neighbor) in sides.items():
        number = num_partitions[name]
        low, high = int(node.min(initial=0)), int(node.max(initial=-1))
        if low < 0:
            raise IndexError(
                f'partition_events found {name} ids from {low}, but expected them from 0.'
            )
        if high // number >= 2**PLACE_BITS:
            raise ValueError(
                f'A partition holds at most {2**PLACE_BITS:,} {name}s, but {name} {high:,} is in '
                f"one of {number} partitions: take a larger 'num_partitions[{name!r}]'."
            )
        ids, events = (read_only(node), read_only(neighbor)), (read_only(window), read_only(click))
        records[name] = Records(*_partition(*ids, *events, number, num_windows))
    return records


@kernel
def _partition(
    node: np.ndarray,
    neighbor: np.ndarray,
    window: np.ndarray,
    click: np.ndarray,
    num_partitions: int,
    num_windows: int,
) -> tuple[np.ndarray, np.ndarray]:
    shift = 0
    while 1 << shift < num_partitions:
        shift += 1
    offset = np.zeros(num_partitions + 1, np.int64)
    for event in range(len(node)):
        if window[event] < num_windows:
            offset[(node[event] & (num_partitions - 1)) + 1] += 1
    offset = offset.cumsum()
    record = np.empty(offset[-1], np.uint64)
    end = offset[:-1].copy()
    for event in range(len(node)):
        if window[event] < num_windows:
            partition = node[event] & (num_partitions - 1)
            record[end[partition]] = (
                np.uint64(node[event] >> shift) << np.uint64(PLACE)
                | np.uint64(neighbor[event]) << np.uint64(NEIGHBOR)
                | np.uint64(window[event]) << np.uint64(1)
                | np.uint64(click[event])
            )
            end[partition] += 1
    return record, offset
