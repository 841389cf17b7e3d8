import math
import random

import pytest
import torch

from mag.macro_graph import counts_before


def by_hand(
    key: list[int], time: list[int], weight: list[list[float]], half_lives: tuple[float, ...]
) -> list[list[float]]:
    rows = []
    for row in range(len(key)):
        sums = []
        for life in (math.inf, *half_lives):
            for column in range(len(weight[0])):
                sums.append(
                    sum(
                        weight[e][column] * 2 ** (-(time[row] - time[e]) / life)
                        for e in range(len(key))
                        if key[e] == key[row] and time[e] < time[row]
                    )
                )
        rows.append(sums)
    return rows


@pytest.mark.parametrize('half_lives', [(), (5.0,), (0.5, 100.0)])
@pytest.mark.parametrize('num_keys', [1, 4, 10**9])
@pytest.mark.parametrize('num_moments', [1, 6, 1000])
def test_sums_are_those_of_plain_loops(
    num_keys: int, num_moments: int, half_lives: tuple[float, ...]
) -> None:
    draw = random.Random(num_keys + num_moments)
    keys = draw.sample(range(num_keys), min(num_keys, 4))
    key = [draw.choice(keys) for _ in range(60)]
    time = sorted(draw.randrange(num_moments) for _ in range(60))
    weight = [[1.0, float(draw.random() < 0.4), draw.random()] for _ in range(60)]
    before = counts_before(
        torch.tensor(key), torch.tensor(time), torch.tensor(weight, dtype=torch.double), half_lives
    )
    expected = torch.tensor(by_hand(key, time, weight, half_lives), dtype=torch.double)
    torch.testing.assert_close(before, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('half_lives', [(), (5.0,)])
def test_only_the_events_that_are_asked_for(half_lives: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(5, (60,), generator=generator)
    time = torch.randint(20, (60,), generator=generator).sort().values
    weight = torch.rand(60, 2, generator=generator)
    before = counts_before(key, time, weight, half_lives)
    for rows in (torch.tensor([7, 3, 59, 3]), torch.empty(0, dtype=torch.long)):
        assert torch.equal(counts_before(key, time, weight, half_lives, rows), before[rows])


def test_long_logs_decay_without_a_number_too_large() -> None:
    # From the first event to the last the weight falls below what a double can hold.
    time = torch.arange(0, 10_000_000, 1000)
    zero, one = torch.zeros_like(time), torch.ones(len(time), 1)
    before = counts_before(zero, time, one, (1000.0,))[:, 1]
    # 1/2 + 1/4 + ...
    torch.testing.assert_close(before[60:], torch.ones(9940, dtype=torch.double))
    assert before[:3].tolist() == [0, 0.5, 0.75]


def test_what_comes_later_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(5, (300,), generator=generator)
    time = torch.randint(40, (300,), generator=generator).sort().values
    weight = torch.rand(300, 2, generator=generator)
    later = weight.clone()
    later[time >= 20] = 7.0
    first, second = (counts_before(key, time, w, (3.0,)) for w in (weight, later))
    # A row at 20 sees nothing of 20 either.
    assert torch.equal(first[time <= 20], second[time <= 20])
    assert not torch.equal(first, second)


@pytest.mark.parametrize('is_whole', [False, True])
def test_a_sum_is_the_same_to_the_last_bit_whoever_else_asks(is_whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(5, (200,), generator=generator)
    time = torch.randint(60, (200,), generator=generator).sort().values
    weight = torch.rand(200, 2, generator=generator, dtype=torch.double)
    weight = (weight * 3).floor() if is_whole else weight
    expected = counts_before(key, time, weight, (3.0, 50.0))
    # Others ask, of any key and moment, and other keys have events of any size.
    asks = torch.randint(5, (100,), generator=generator)
    others = 5 + torch.randint(3, (100,), generator=generator)
    heavy = torch.rand(100, 2, generator=generator, dtype=torch.double) * 1e17
    when = torch.randint(60, (200,), generator=generator)
    times, order = torch.cat([when, time]).sort(stable=True)
    keys = torch.cat([asks, others, key])[order]
    weights = torch.cat([torch.zeros(100, 2, dtype=torch.double), heavy, weight])[order]
    place = torch.empty_like(order)
    place[order] = torch.arange(400)
    assert torch.equal(counts_before(keys, times, weights, (3.0, 50.0), place[200:]), expected)
    # What comes later is as little to them.
    early = time < 30
    first = counts_before(key[early], time[early], weight[early], (3.0, 50.0))
    assert torch.equal(first, expected[early])


@pytest.mark.parametrize(
    ('time', 'dtype'),
    [
        ([2**60, 2**60 + 1, 2**60 + 3], torch.long),
        ([-(2**60), 1 - 2**60, 3 - 2**60], torch.long),
        ([-128, -127, -125], torch.int8),
        ([-0.5, 0.5, 2.5], torch.half),
    ],
)
def test_times_are_as_exact_as_they_are_given(time: list[float], dtype: torch.dtype) -> None:
    zero, one = torch.zeros(3, dtype=torch.long), torch.ones(3, 1)
    before = counts_before(zero, torch.tensor(time, dtype=dtype), one, (1.0,))
    assert before.tolist() == [[0, 0], [1, 0.5], [2, 0.375]]


def test_no_events() -> None:
    none = torch.empty(0, dtype=torch.long)
    assert counts_before(none, none, torch.empty(0, 2), (1.0,)).shape == (0, 4)


@pytest.mark.parametrize(
    ('change', 'error', 'sentence'),
    [
        ({'key': torch.zeros(3)}, TypeError, "'key' of dtype int64"),
        ({'key': torch.zeros(2).long()}, ValueError, "'time' of shape .2., but got shape .3."),
        ({'time': torch.tensor([1, 3, 2])}, ValueError, "'time' to ascend"),
        ({'weight': torch.ones(3)}, ValueError, "'weight' of shape"),
        ({'rows': torch.tensor([0, 3])}, IndexError, "'rows' from 0 to 3, .* from 0 to 2"),
        ({'key': torch.tensor([0, -5, 1])}, IndexError, 'keys from -5 to 1, .* from 0 to '),
        ({'half_lives': 5.0}, TypeError, "'half_lives' must be a sequence .*, but got 5.0"),
        ({'half_lives': (0.0,)}, ValueError, r"'half_lives\[0\]' must be .* got 0.0"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], sentence: str) -> None:
    good = {
        'key': torch.zeros(3, dtype=torch.long),
        'time': torch.arange(3),
        'weight': torch.ones(3, 1),
    }
    with pytest.raises(error, match=sentence):
        counts_before(**{**good, **change})  # type: ignore[arg-type]
