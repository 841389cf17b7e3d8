import numpy as np

from mag.negatives.clicked_by_then import ClickedByThen
from mag.negatives.items_by_arrival import ItemsByArrival
from mag.negatives.items_by_events import ItemsByEvents

#: How many negatives are drawn at once, for which several times as many numbers are held.
_SIZE = 1 << 20


def draw_negatives(
    items: ItemsByArrival | ItemsByEvents,
    clicked: ClickedByThen,
    user: np.ndarray,
    moment: np.ndarray,
    chance: np.ndarray,
) -> np.ndarray:
    r"""Draws for each row items that its user has not clicked by then, user by user, so that memory
    is bounded, but for that of the busiest user.

    Args:
        items (ItemsByArrival or ItemsByEvents): What is drawn from, and by what.
        clicked (ClickedByThen): What users have clicked.
        user (numpy.ndarray): The user of each row, int64, shape :obj:`[R]`.
        moment (numpy.ndarray): Its place among the moments, likewise.
        chance (numpy.ndarray): Random bits, uint64, shape :obj:`[R, num]`.

    Returns:
        Items, int64, shape :obj:`[R, num]`; :obj:`-1` in the rows of which none is left.
    """
    drawn = np.empty(chance.shape, dtype=np.int64)
    order = user.argsort(kind='stable')
    is_first = np.ones(order.size, dtype=bool)
    is_first[1:] = np.diff(user[order]) > 0
    first = np.flatnonzero(is_first)
    # A block ends where a user does.
    place = np.searchsorted(first, np.arange(0, order.size, max(_SIZE // chance.shape[1], 1)))
    for rows in np.split(order, np.unique(first[place[place < first.size]])[1:]):
        if rows.size:
            part = clicked.of_users(user[rows])
            drawn[rows] = items.draw(part, user[rows], moment[rows], chance[rows])
    return drawn
