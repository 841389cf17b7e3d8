import numpy as np

from mag.negatives.clicked_by_then import ClickedByThen
from mag.negatives.items_by_arrival import NEVER, ItemsByArrival
from mag.negatives.row_hash import mix

#: How often an event is drawn before what is left is looked at.
_NUM_EVENTS = 8


class ItemsByEvents:
    r"""Items that are drawn with a chance that grows with their earlier events, such as clicks or
    exposures, but for what the user has clicked: exactly, at a cost that does not depend on how
    much of the events that is.

    An event is drawn from those strictly before the moment. If its item is left out, another one is
    drawn, a few times. Then items are drawn by the next lower power of two of their number of
    events :math:`n`,

    .. math::
        2^{\lfloor \log_2 n \rfloor} = 1 + \sum_{l=1}^{\lfloor \log_2 n \rfloor} 2^{l-1},

    and kept with the chance :math:`n / 2^{\lfloor \log_2 n \rfloor + 1}`, at least one half. The
    sum is one over levels: an item comes to level :math:`l` with its :math:`2^l`-th event, and
    items of one level have the same chance, as those of :class:`ItemsByArrival`.

    Args:
        item (numpy.ndarray): The item of each event, int64, shape :obj:`[X]`.
        moment (numpy.ndarray): Its place among the moments, likewise.
        num_items (int): The number of items.
        num_moments (int): The number of moments.
    """

    def __init__(
        self, item: np.ndarray, moment: np.ndarray, num_items: int, num_moments: int
    ) -> None:
        # Events of one moment are in the order of items, not in that of the log.
        order = np.lexsort((item, moment))
        self._item, self._moment = item[order], moment[order]
        self._num_moments = num_moments
        self._key = item * num_moments + moment
        self._key.sort()
        size = np.bincount(item, minlength=num_items)
        self._start = size.cumsum() - size
        self._levels = []
        for level in range(int(size.max(initial=0)).bit_length()):
            comes = np.flatnonzero(size >= 1 << level)
            arrival = np.full(num_items, NEVER)
            last = self._key[self._start[comes] + (1 << level) - 1]
            arrival[comes] = last % num_moments + 1
            self._levels.append(ItemsByArrival(arrival))

    def draw(
        self, clicked: ClickedByThen, user: np.ndarray, moment: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        r"""Draws items that users have not clicked, see :meth:`ItemsByArrival.draw`."""
        drawn = np.full(chance.shape, -1)
        if not self._levels:
            return drawn
        has_left = self._levels[0].left(clicked).spans(user, moment).num_left > 0
        row, column = np.broadcast_to(has_left[:, None], chance.shape).nonzero()
        state = chance[row, column]
        num_before = np.searchsorted(self._moment, moment).astype(np.uint64)
        for _ in range(_NUM_EVENTS):
            item = self._item[state % num_before[row]]
            is_taken = clicked.has(user[row], item, moment[row])
            drawn[row[~is_taken], column[~is_taken]] = item[~is_taken]
            row, column, state = row[is_taken], column[is_taken], mix(state[is_taken])
        if row.size:
            drawn[row, column] = self._draw_left(clicked, user[row], moment[row], state)
        return drawn

    def _draw_left(
        self, clicked: ClickedByThen, user: np.ndarray, moment: np.ndarray, state: np.ndarray
    ) -> np.ndarray:
        r"""An item for each row, all of shape :obj:`[Q]`."""
        clicked = clicked.of_users(np.sort(user))
        left = [level.left(clicked) for level in self._levels]
        spans = [of_level.spans(user, moment) for of_level in left]
        # What an item adds to its weight where it comes to a level.
        step = np.array([1, *(1 << level for level in range(len(left) - 1))])
        weight = np.stack([of_level.num_left for of_level in spans]) * step[:, None]
        total = weight.cumsum(axis=0)
        drawn = np.empty(user.size, dtype=np.int64)
        row, num_tries = np.arange(user.size), 1
        while row.size:
            tries = np.empty((2, num_tries, row.size), dtype=np.uint64)
            for number in range(num_tries):
                for part in range(2):
                    state = tries[part, number] = mix(state)
            place = (tries[0] % total[-1, row].astype(np.uint64)).astype(np.int64)
            level = (place >= total[:, None, row]).sum(axis=0)
            rank = (place - (total - weight)[level, row]) // step[level]
            item = np.empty_like(place)
            for number, (of_level, span) in enumerate(zip(left, spans, strict=True)):
                is_here = level == number
                of_row = row[is_here.nonzero()[1]]
                item[is_here] = of_level.find(span.take(of_row), rank[is_here])
            is_kept = self._is_kept(item, moment[row], tries[1])
            first, is_done = is_kept.argmax(axis=0), is_kept.any(axis=0)
            drawn[row[is_done]] = item[first[is_done], is_done.nonzero()[0]]
            row, state, num_tries = row[~is_done], state[~is_done], num_tries * 8
        return drawn

    def _is_kept(self, item: np.ndarray, moment: np.ndarray, chance: np.ndarray) -> np.ndarray:
        r"""Makes up for the weight of an item, which is no more than its number of events."""
        count = np.searchsorted(self._key, item * self._num_moments + moment) - self._start[item]
        # The next higher power of two.
        bound = np.left_shift(1, np.frexp(count.astype(np.float64))[1].astype(np.int64))
        return (chance % bound.astype(np.uint64)).astype(np.int64) < count
