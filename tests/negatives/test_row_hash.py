import numpy as np
import pytest

from mag.negatives.row_hash import hash_rows, mix, number_repeats


def test_mix_gives_the_published_numbers() -> None:
    r"""The generator adds its constant to the state before each number."""
    state, numbers = np.uint64(1234567), []
    for _ in range(5):
        numbers.append(int(mix(state[None])[0]))
        state = (state[None] + np.uint64(0x9E3779B97F4A7C15))[0]
    assert numbers == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert int(mix(np.zeros(1, dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_rows_are_hashed_by_what_they_hold() -> None:
    columns = np.array([3, -4, 2**62]), np.array([0, 1, 2])
    whole = hash_rows((0, 1), *columns)
    assert whole.dtype == np.uint64 and np.unique(whole).size == 3
    assert np.array_equal(hash_rows((0, 1), *(column[1:] for column in columns)), whole[1:])
    # The order of columns counts, and the seed with its stream.
    others = [
        hash_rows((0, 1), *columns[::-1]),
        *(hash_rows(seed, *columns) for seed in [(0, 2), (1, 1)]),
    ]
    assert np.unique([whole, *others]).size == 12
    assert hash_rows((2**80, 1), *columns)[0] != hash_rows((2**90, 1), *columns)[0]
    # Columns are broadcast.
    table = hash_rows((0, 1), columns[0][:, None], np.arange(4))
    assert table.shape == (3, 4)
    assert np.array_equal(table[:, 2], hash_rows((0, 1), columns[0], np.full(3, 2)))


@pytest.mark.parametrize('bit', [0, 17, 63])
def test_every_bit_is_fair(bit: int) -> None:
    r"""Of rows that differ in little."""
    hashes = hash_rows((0, 0), np.arange(100_000), np.zeros(100_000, dtype=np.int64))
    ones = (hashes >> np.uint64(bit) & np.uint64(1)).astype(int)
    assert abs(ones.mean() - 0.5) < 4 * 0.5 / 100_000**0.5
    # As is whether neighbors agree.
    assert abs((ones[1:] == ones[:-1]).mean() - 0.5) < 4 * 0.5 / 100_000**0.5


def test_number_repeats() -> None:
    first = np.array([5, 5, 7, 5, 7, 5])
    second = np.array([1, 2, 1, 1, 1, 1])
    assert number_repeats(first, second).tolist() == [0, 0, 0, 1, 1, 2]
    assert number_repeats(first).tolist() == [0, 1, 0, 2, 1, 3]
    assert number_repeats(first[:0]).tolist() == []
