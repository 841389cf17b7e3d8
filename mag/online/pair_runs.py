r"""Pairs that have clicked, in memory, by their users."""

import numpy as np

_LOW = 2**32 - 1
# How many times as long as the next a run is at least: few are looked through, and a pair moves a
# few times.
_RATIO = 4


def pack_pairs(node: np.ndarray, neighbor: np.ndarray) -> np.ndarray:
    r"""One number for each pair of nodes below :math:`2^{31}`, int64, in the order of the first and
    then of the second; shape :obj:`[P]`."""
    return node.astype('<i8') << 32 | neighbor.astype('<i8')


def unpack_pairs(pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The nodes that :func:`pack_pairs` made numbers of."""
    return pair >> 32, pair & _LOW


def spans(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""All places of some spans, from the first of each up to its end: which span each is of, and
    the place, shape :obj:`[P]` each."""
    length = high - low
    owner = np.repeat(np.arange(len(low)), length)
    return owner, np.arange(len(owner)) + (low - length.cumsum() + length)[owner]


class PairRuns:
    r"""A set of pairs that grows and takes eight bytes a pair, three times that while it is merged:
    sorted runs, each several times as long as the next."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def has(self, pair: np.ndarray) -> np.ndarray:
        r"""Whether each pair is there, boolean, shape :obj:`[P]`.

        Args:
            pair (numpy.ndarray): As :func:`pack_pairs` makes them, shape :obj:`[P]`.
        """
        is_there = np.zeros(len(pair), bool)
        for run in self._runs:
            is_there |= run.take(run.searchsorted(pair), mode='clip') == pair
        return is_there

    def items_of(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""The items of users: the place of its user for each, and the item, shape :obj:`[P]` each.

        Args:
            user (numpy.ndarray): The users, int64, shape :obj:`[B]`.
        """
        first = user << 32
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for run in self._runs:
            low, high = run.searchsorted(first), run.searchsorted(first | _LOW, side='right')
            if (low < high).any():
                owner, place = spans(low, high)
                found.append((owner, run[place] & _LOW))
        owners, items = zip(*found)
        return np.concatenate(owners), np.concatenate(items)

    def pairs(self) -> np.ndarray:
        r"""All pairs, ascending, shape :obj:`[P]`."""
        merged = np.concatenate([np.empty(0, np.int64), *self._runs])
        merged.sort(kind='stable')
        return merged

    def copy(self) -> 'PairRuns':
        r"""A set of the same pairs, which takes no memory, and grows for itself."""
        copied = PairRuns()
        copied._runs = self._runs.copy()
        return copied

    def add(self, pair: np.ndarray) -> None:
        r"""Adds pairs, ascending, none of which is there."""
        if len(pair) == 0:
            return
        merged, number = [pair], len(pair)
        while self._runs and len(self._runs[-1]) < _RATIO * number:
            merged.append(self._runs.pop())
            number += len(merged[-1])
        run = np.concatenate(merged)
        # Of what is made of sorted parts, a stable sort takes linear time.
        run.sort(kind='stable')
        self._runs.append(run)
