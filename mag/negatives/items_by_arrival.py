from typing import NamedTuple

import numpy as np

from mag.negatives.clicked_by_then import ClickedByThen
from mag.negatives.find_missing import find_missing
from mag.negatives.row_hash import mix

#: The moment of what never comes.
NEVER = np.iinfo(np.int64).max


class ItemsByArrival:
    r"""Items that come one by one. Those that are there are drawn with the same chance, but for
    what the user has clicked: exactly, and without trying again and again.

    What a user has clicked is left out by its place in the order of arrival, in which what is there
    at a moment stands first. So items that come later change no draw.

    Args:
        arrival (numpy.ndarray): The moment from which each item is there, int64, :obj:`NEVER` if it
            never is, shape :obj:`[num_items]`.
    """

    def __init__(self, arrival: np.ndarray) -> None:
        self.arrival = arrival
        self._items = arrival.argsort(kind='stable')
        self._arrivals = arrival[self._items]
        self._place = np.empty_like(self._items)
        self._place[self._items] = np.arange(self._items.size)

    def left(self, clicked: ClickedByThen) -> '_Left':
        r"""What users have left of the items that are there."""
        since = np.maximum(clicked.moment, self.arrival[clicked.item])
        comes = np.flatnonzero(since < clicked.num_moments)
        key = clicked.user[comes] * clicked.num_moments + since[comes]
        order = key.argsort(kind='stable')
        taken = self._place[clicked.item[comes[order]]]
        return _Left(self._items, self._arrivals, clicked.num_moments, key[order], taken)

    def draw(
        self, clicked: ClickedByThen, user: np.ndarray, moment: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        r"""Draws items that users have not clicked.

        Args:
            clicked (ClickedByThen): What they have.
            user (numpy.ndarray): The user of each row, shape :obj:`[R]`.
            moment (numpy.ndarray): Its moment, likewise.
            chance (numpy.ndarray): Random bits, uint64, shape :obj:`[R, num]`.

        Returns:
            Items, shape :obj:`[R, num]`; :obj:`-1` in the rows of which none is left.
        """
        left = self.left(clicked)
        spans = left.spans(user, moment)
        is_empty = spans.num_left == 0
        there = np.maximum(spans.num_there, 1).astype(np.uint64)
        drawn = self._items[chance % there[:, None]]
        is_taken = clicked.has(user[:, None], drawn, moment[:, None]) & ~is_empty[:, None]
        # Drawn once more, but among what is left, which costs more: trying again and again would
        # cost most for who clicked nearly everything.
        row = is_taken.nonzero()[0]
        rank = mix(chance[is_taken]) % spans.num_left[row].astype(np.uint64)
        drawn[is_taken] = left.find(spans.take(row), rank.astype(np.int64))
        drawn[is_empty] = -1
        return drawn


class _Spans(NamedTuple):
    r"""Where what a user has clicked by a moment stands in a list, for each of many rows."""

    start: np.ndarray
    end: np.ndarray
    #: How many items are there at that moment.
    num_there: np.ndarray

    @property
    def num_left(self) -> np.ndarray:
        return self.num_there - (self.end - self.start)

    def take(self, row: np.ndarray) -> '_Spans':
        return _Spans(*(column[row] for column in self))


class _Left(NamedTuple):
    r"""What users have left of items, in the order of arrival."""

    items: np.ndarray
    arrivals: np.ndarray
    num_moments: int
    #: What is clicked, as its place in that order, by user and moment from which it is left out.
    key: np.ndarray
    taken: np.ndarray

    def spans(self, user: np.ndarray, moment: np.ndarray) -> _Spans:
        start = user * self.num_moments
        return _Spans(
            np.searchsorted(self.key, start),
            np.searchsorted(self.key, start + moment, side='right'),
            np.searchsorted(self.arrivals, moment, side='right'),
        )

    def find(self, spans: _Spans, rank: np.ndarray) -> np.ndarray:
        r"""Of what is left for each row, the item before which :obj:`rank` others are."""
        place = find_missing(self.taken, spans.start, spans.end, rank, spans.num_there)
        return self.items[place]
