r"""What an event is: an exposure, clicked or not."""

import zlib
from typing import Any

import numpy as np

#: One event in 17 bytes: who was shown what and when, in seconds, and whether it was clicked. Its
#: byte order is written out, so that all machines write the same.
EVENT = np.dtype([('user', '<i4'), ('item', '<i4'), ('time', '<i8'), ('clicked', 'u1')])


def checksum_of(events: np.ndarray, before: int = 0) -> int:
    r"""The checksum of all events up to the last of some. Of two pasts of one length that differ,
    one in four billion has the same.

    Args:
        events (numpy.ndarray): The events, of type :obj:`EVENT`.
        before (int, optional): The checksum of those before them. (default: :obj:`0`, that of none)
    """
    return zlib.crc32(events.tobytes(), before)


def check_events(events: Any) -> None:
    r"""Raises unless :obj:`events` is an array of events.

    >>> check_events(np.array([(3, 7, 100, 1), (3, -1, 101, 0)], EVENT))
    Traceback (most recent call last):
    IndexError: 'events' must have items from 0, but 1 of 2 has not, such as -1 in row 1.

    Args:
        events (numpy.ndarray): Events of shape :obj:`[N]` and type :obj:`EVENT`.

    Raises:
        TypeError: If it is no array of that type.
        ValueError: If it is not of that shape, a time is the last of 64 bits, or :obj:`clicked` is
            neither 0 nor 1.
        IndexError: If a user or an item is negative.
    """
    if not isinstance(events, np.ndarray) or events.dtype != EVENT:
        given = f'one of {events.dtype}' if isinstance(events, np.ndarray) else type(events)
        raise TypeError(f"'events' must be an array of mag.online.EVENT, but got {given}.")
    if events.ndim != 1:
        raise ValueError(f"'events' must be of shape [N], but got shape {list(events.shape)}.")
    for name in ('user', 'item'):
        _check(IndexError, f'{name}s from 0', events[name], events[name] < 0)
    # What comes after the last event has a second of its own.
    is_last = events['time'] == np.iinfo(np.int64).max
    _check(ValueError, 'times before 9223372036854775807', events['time'], is_last)
    _check(ValueError, "'clicked' of 0 or 1", events['clicked'], events['clicked'] > 1)


def _check(kind: type[Exception], expected: str, values: np.ndarray, is_bad: np.ndarray) -> None:
    if is_bad.any():
        row, num_bad = int(is_bad.argmax()), int(is_bad.sum())
        raise kind(
            f"'events' must have {expected}, but {num_bad} of {len(values)} "
            f'{"has" if num_bad == 1 else "have"} not, such as {values[row]} in row {row}.'
        )
