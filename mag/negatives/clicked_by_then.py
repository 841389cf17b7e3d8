import copy

import numpy as np


class ClickedByThen:
    r"""What users have clicked by a moment, each item of a user from the first click on.

    Args:
        user (numpy.ndarray): The user of each click, int64, shape :obj:`[E]`.
        item (numpy.ndarray): Its item, likewise.
        moment (numpy.ndarray): Its place among the moments, likewise; zeros leave out what a user
            clicks at any time.
        num_items (int): The number of items.
        num_moments (int): The number of moments.

    Attributes:
        user (numpy.ndarray): The user of each pair of a user and an item, in ascending order of
            both, shape :obj:`[P]`.
        item (numpy.ndarray): Its item, likewise.
        moment (numpy.ndarray): That of its first click, likewise.
    """

    def __init__(
        self,
        user: np.ndarray,
        item: np.ndarray,
        moment: np.ndarray,
        num_items: int,
        num_moments: int,
    ) -> None:
        order = np.lexsort((moment, user * num_items + item))
        user, item = user[order], item[order]
        is_first = np.ones(order.size, dtype=bool)
        is_first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        self.user, self.item = user[is_first], item[is_first]
        self.moment = moment[order[is_first]]
        self.num_items, self.num_moments = num_items, num_moments
        self._key = self.user * num_items + self.item

    def of_users(self, user: np.ndarray) -> 'ClickedByThen':
        r"""What the users of some rows click.

        Args:
            user (numpy.ndarray): Users in ascending order, at least one, shape :obj:`[R]`.
        """
        first = np.searchsorted(self.user, user[0])
        last = np.searchsorted(self.user, user[-1], side='right')
        kept = first + np.flatnonzero(np.isin(self.user[first:last], user))
        part = copy.copy(self)
        for name in ('user', 'item', 'moment', '_key'):
            setattr(part, name, getattr(self, name)[kept])
        return part

    def has(self, user: np.ndarray, item: np.ndarray, moment: np.ndarray) -> np.ndarray:
        r"""Whether users have clicked items at a moment or before, of shapes that are broadcast to
        each other."""
        wanted = user * self.num_items + item
        if self._key.size == 0:
            return np.zeros(wanted.shape, dtype=bool)
        place = np.minimum(np.searchsorted(self._key, wanted), self._key.size - 1)
        return (self._key[place] == wanted) & (self.moment[place] <= moment)
