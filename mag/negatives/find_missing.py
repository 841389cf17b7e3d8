import numpy as np


def find_missing(
    taken: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    rank: np.ndarray,
    num_items: np.ndarray | int,
) -> np.ndarray:
    r"""Of the items that are not among :obj:`taken[start:end]`, that before which :obj:`rank`
    others are, for each of many intervals.

    An item is found bit by bit, from the highest, as in a `wavelet matrix
    <https://doi.org/10.1016/j.is.2014.06.002>`_: as many steps as items have bits, whether a user
    clicked few of them or all but one.

    Args:
        taken (numpy.ndarray): Items, no two the same in an interval.
        start (numpy.ndarray): Where the intervals begin, shape :obj:`[Q]`.
        end (numpy.ndarray): Where they end, likewise.
        rank (numpy.ndarray): Less than what is missing, likewise.
        num_items (numpy.ndarray or int): The number of items, one for all intervals or one for
            each; an interval holds no others.

    Returns:
        Items, shape :obj:`[Q]`.
    """
    found = np.zeros_like(rank)
    for bit in reversed(range(int(np.max(num_items, initial=0)).bit_length())):
        is_one = taken >> bit & 1 == 1
        num_zeros = np.concatenate([[0], (~is_one).cumsum()])
        starts, ends = num_zeros[start], num_zeros[end]
        # Items from `found` on without the bit, those that there are and that are missing.
        missing = np.clip(num_items - found, 0, 1 << bit) - (ends - starts)
        is_above = rank >= missing
        rank = rank - np.where(is_above, missing, 0)
        found += is_above.astype(np.int64) << bit
        start = np.where(is_above, num_zeros[-1] + start - starts, starts)
        end = np.where(is_above, num_zeros[-1] + end - ends, ends)
        taken = np.concatenate([taken[~is_one], taken[is_one]])
    return found
