import numpy as np
import pytest

from mag.negatives.find_missing import find_missing


@pytest.mark.parametrize('num_items', [1, 2, 7, 8, 9, 100])
def test_missing_items_are_found_one_by_one(num_items: int) -> None:
    rng = np.random.default_rng(num_items)
    sizes = [0, num_items - 1, *rng.integers(num_items, size=8)]
    sets = [rng.permutation(num_items)[:size] for size in sizes]
    starts = np.cumsum([0, *map(len, sets)])
    queries = [
        (starts[number], starts[number] + size, rank, missing)
        for number, known in enumerate(sets)
        for size in range(len(known) + 1)
        for rank, missing in enumerate(sorted({*range(num_items)} - {*known[:size].tolist()}))
    ]
    *columns, expected = (np.array(column) for column in zip(*queries))
    found = find_missing(np.concatenate(sets), *columns, num_items)
    assert found.tolist() == expected.tolist()


def test_each_interval_has_a_number_of_items_of_its_own() -> None:
    r"""What comes after an interval may be items that it has not."""
    taken = np.array([1, 0, 4, 9, 2])
    start, end = np.array([0, 0, 0, 4]), np.array([1, 2, 3, 5])
    num_items, rank = np.array([2, 3, 6, 4]), np.array([0, 0, 2, 2])
    assert find_missing(taken, start, end, rank, num_items).tolist() == [0, 2, 5, 3]
