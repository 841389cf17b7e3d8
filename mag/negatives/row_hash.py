from collections.abc import Sequence

import numpy as np

#: The stream of chance that negatives are drawn from.
_STREAM = 1


def hash_rows(seed: Sequence[int], *columns: np.ndarray) -> np.ndarray:
    r"""Chance that depends on a row's content alone, and so neither on how
    many rows there are nor on their order: 64 random bits for each.

    Args:
        seed (sequence of int): A seed and the number of the stream, each at
            least 0.
        *columns (numpy.ndarray): What the rows hold, int64, of shapes that
            are broadcast to each other.

    Returns:
        uint64 of the shape of all columns.
    """
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    for column in columns:
        state = mix(state ^ column.astype(np.uint64))
    return state


def mix(state: np.ndarray) -> np.ndarray:
    r"""The step of SplitMix64, by which states that differ in one bit become
    numbers that differ in any: `"Fast Splittable Pseudorandom Number
    Generators" <https://doi.org/10.1145/2660193.2660195>`_, with the constants
    of Stafford's variant 13 and, as increment, the golden ratio's.

    Args:
        state (numpy.ndarray): uint64.
    """
    # Products of arrays wrap around, as they must here.
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def number_repeats(*columns: np.ndarray) -> np.ndarray:
    r"""How many earlier rows hold the same, int64 of shape :obj:`[E]`, so
    that rows which do are told apart.
    """
    order = np.lexsort(columns)
    differs = np.zeros(order.size, dtype=bool)
    differs[:1] = True
    for column in columns:
        differs[1:] |= column[order[1:]] != column[order[:-1]]
    place = np.arange(order.size)
    repeat = np.empty_like(place)
    repeat[order] = place - np.maximum.accumulate(np.where(differs, place, 0))
    return repeat


def hash_clicks(
    seed: int, user: np.ndarray, item: np.ndarray, time: np.ndarray, num: int
) -> np.ndarray:
    r"""Chance to draw negatives by, which depends on a click alone, and on how often that was
    listed before: clicks that come later change none.

    Args:
        seed (int): A seed.
        user (numpy.ndarray): The user of each click, int64, shape :obj:`[E]`.
        item (numpy.ndarray): Its item, likewise.
        time (numpy.ndarray): When it happened, on any clock, likewise.
        num (int): How many numbers a click.

    Returns:
        uint64, shape :obj:`[E, num]`.
    """
    columns = (user, item, time, number_repeats(user, item, time))
    return hash_rows((seed, _STREAM), *(column[:, None] for column in columns), np.arange(num))
