import numpy as np

from mag.datasets._row_hash import hash_rows, mix, number_repeats

#: The stream of chance that negatives are drawn from.
_STREAM = 1


def draw_negatives(
    user: np.ndarray,
    item: np.ndarray,
    stage: np.ndarray,
    num_negatives: int,
    seed: int,
) -> np.ndarray:
    r"""Draws for each click items that its user has clicked neither at the
    stage of the click nor before, each uniformly from the items that anybody
    clicked.

    An item that is clicked at a later stage may be drawn. If it could not, a
    drawn item would tell that it is not clicked later.
    A draw is a hash of its click, and of how often that was listed before. So
    later clicks change no draw, unless they bring new items.

    Args:
        user (numpy.ndarray): The user of each click, any int64, shape
            :obj:`[E]`.
        item (numpy.ndarray): Its item, likewise.
        stage (numpy.ndarray): When it happened, on any clock, likewise.
        num_negatives (int): How many to draw for each click.
        seed (int): Seed of the draws.

    Returns:
        Items, shape :obj:`[E, num_negatives]`.

    Raises:
        ValueError: If a user has clicked all items.
    """
    # What is looked up in order is found faster.
    place = np.lexsort((stage, item, user))
    user, item, stage = user[place], item[place], stage[place]
    chance = hash_rows(
        (seed, _STREAM),
        *(column[:, None] for column in (user, item, stage, number_repeats(user, item, stage))),
        np.arange(num_negatives),
    )
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    stages, stage = np.unique(stage, return_inverse=True)
    # Each pair at its first stage.
    pairs, first = np.unique(user * items.size + item, return_index=True)
    first_stage = stage[first]
    # Those of a user in the order of stages: what is taken at one is an interval.
    moment = user * stages.size + stage
    order = first[moment[first].argsort(kind='stable')]
    start = np.searchsorted(moment[order], user * stages.size)
    end = np.searchsorted(moment[order], moment, side='right')
    num_left = items.size - (end - start)
    if not num_left.all():
        raise ValueError(
            f'A user must leave an item to draw as a negative, but the user '
            f'{users[user[num_left.argmin()]]} has clicked all of the {items.size} items that '
            f'anybody clicked.'
        )
    drawn = (chance % np.uint64(items.size)).astype(np.int64)
    wanted = user[:, None] * items.size + drawn
    pair = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    is_taken = (pairs[pair] == wanted) & (first_stage[pair] <= stage[:, None])
    # Drawn once more, but among what is left, which costs more: trying again and again would cost
    # most for who clicked nearly everything.
    click = is_taken.nonzero()[0]
    rank = mix(chance[is_taken]) % num_left[click].astype(np.uint64)
    drawn[is_taken] = _find_missing(
        item[order], start[click], end[click], rank.astype(np.int64), items.size
    )
    negatives = np.empty_like(drawn)
    negatives[place] = items[drawn]
    return negatives


def _find_missing(
    taken: np.ndarray, start: np.ndarray, end: np.ndarray, rank: np.ndarray, num_items: int
) -> np.ndarray:
    r"""Of the items that are not among :obj:`taken[start:end]`, that before
    which :obj:`rank` others are, for each of many intervals.

    An item is found bit by bit, from the highest, as in a `wavelet matrix
    <https://doi.org/10.1016/j.is.2014.06.002>`_: as many steps as items have
    bits, whether a user clicked few of them or all but one.

    Args:
        taken (numpy.ndarray): Items, no two the same in an interval.
        start (numpy.ndarray): Where the intervals begin, shape :obj:`[Q]`.
        end (numpy.ndarray): Where they end, likewise.
        rank (numpy.ndarray): Less than what is missing, likewise.
        num_items (int): The number of items.

    Returns:
        Items, shape :obj:`[Q]`.
    """
    found = np.zeros_like(rank)
    for bit in reversed(range(num_items.bit_length())):
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
