import numpy as np


def draw_negatives(
    user: np.ndarray,
    item: np.ndarray,
    stage: np.ndarray,
    num_negatives: int,
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draws for each click items that its user has clicked neither at the
    stage of the click nor before, each uniformly from the items that anybody
    clicked.

    What is clicked at a later stage is not left out: else that an item was
    drawn would tell that it is not clicked later.

    Args:
        user (numpy.ndarray): The user of each click, any int64, shape
            :obj:`[E]`.
        item (numpy.ndarray): Its item, likewise.
        stage (numpy.ndarray): When it happened, on any clock, likewise.
        num_negatives (int): How many to draw for each click.
        rng (numpy.random.Generator): What draws.

    Returns:
        Items, shape :obj:`[E, num_negatives]`.

    Raises:
        ValueError: If a user has clicked all items.
    """
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    key = user * items.size + item
    order = np.lexsort((stage, key))
    pairs, first = np.unique(key[order], return_index=True)
    first_stage = stage[order][first]
    full = np.flatnonzero(np.bincount(pairs // items.size) == items.size)
    if full.size:
        raise ValueError(
            f'the user {users[full[0]]} has clicked all of the {items.size} items that anybody '
            f'clicked, so that none is left to draw as a negative'
        )
    drawn = np.empty(user.size * num_negatives, dtype=np.int64)
    missing = np.arange(drawn.size)
    while missing.size:
        drawn[missing] = rng.integers(items.size, size=missing.size)
        click = missing // num_negatives
        wanted = user[click] * items.size + drawn[missing]
        place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
        is_clicked = (pairs[place] == wanted) & (first_stage[place] <= stage[click])
        missing = missing[is_clicked]
    return items[drawn].reshape(user.size, num_negatives)
