r"""Negatives against the list of what may be drawn, written down for each row."""

import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from mag.negatives import (
    NEVER,
    ClickedByThen,
    ItemsByArrival,
    ItemsByEvents,
    draw_negatives,
    hash_clicks,
)

Log = tuple[np.ndarray, np.ndarray, np.ndarray]


def power_law(num_rows: int, num_users: int, num_items: int) -> Log:
    r"""Users, items and moments of clicks in order, most of them of few users and items."""
    rng = np.random.default_rng(0)
    user = (num_users * rng.random(num_rows) ** 2).astype(np.int64)
    item = (num_items * rng.random(num_rows) ** 3).astype(np.int64)
    return user, item, np.sort(rng.integers(num_rows // 2 + 1, size=num_rows))


def pool_of(by: str, log: Log, num_items: int, num_moments: int) -> ItemsByArrival | ItemsByEvents:
    _, item, moment = log
    if by == 'events':
        return ItemsByEvents(item, moment, num_items, num_moments)
    arrival = np.full(num_items, NEVER)
    np.minimum.at(arrival, item, moment + 1)
    return ItemsByArrival(arrival)


def draw(by: str, log: Log, num: int, exclude: str = 'past') -> np.ndarray:
    user, item, moment = log
    num_items, num_moments = int(item.max()) + 1, int(moment.max()) + 1
    since = moment if exclude == 'past' else np.zeros_like(moment)
    clicked = ClickedByThen(user, item, since, num_items, num_moments)
    chance = hash_clicks(0, user, item, moment, num)
    return draw_negatives(pool_of(by, log, num_items, num_moments), clicked, user, moment, chance)


def weights(by: str, log: Log, row: int, exclude: str = 'past') -> Counter:
    r"""How likely each item is for a row, up to a factor, event by event."""
    events = list(zip(*(column.tolist() for column in log), strict=True))
    user, _, moment = events[row]
    taken = {i for u, i, m in events if u == user and (m <= moment or exclude == 'all')}
    earlier = [i for _, i, m in events if m < moment and i not in taken]
    return Counter(earlier if by == 'events' else set(earlier))


@pytest.mark.parametrize('exclude', ['past', 'all'])
@pytest.mark.parametrize(
    ('by', 'num_events'), [('arrival', 8), ('events', 8), ('events', 1), ('events', 0)]
)
def test_draws_have_the_chances_of_what_may_be_drawn(
    monkeypatch: pytest.MonkeyPatch, by: str, num_events: int, exclude: str
) -> None:
    r"""By a chi-square test over all rows of a small log, most of whose clicks are of items that
    the user has clicked before. Without events that are drawn first, all go through the levels."""
    monkeypatch.setattr('mag.negatives.items_by_events._NUM_EVENTS', num_events)
    log = power_law(160, 6, 16)
    num = 2000
    drawn = draw(by, log, num, exclude)
    statistic = freedom = 0.0
    for row in range(160):
        expected = weights(by, log, row, exclude)
        found = Counter(drawn[row].tolist())
        if not expected:
            assert found == {-1: num}
            continue
        assert found.keys() <= expected.keys()
        share = num / expected.total()
        statistic += sum((found[i] - n * share) ** 2 / (n * share) for i, n in expected.items())
        freedom += len(expected) - 1
    assert freedom > 200
    assert 0.001 < stats.chi2.sf(statistic, freedom) < 0.999


@pytest.mark.parametrize('by', ['arrival', 'events'])
def test_draws_do_not_depend_on_blocks_or_on_later_rows(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    log = power_law(600, 20, 60)
    whole = draw(by, log, 3)
    for num_rows in (1, 2, 300, 599):
        part = tuple(column[:num_rows] for column in log)
        # Rows of the last moment may click what others of it leave out.
        is_before = part[2] < part[2][-1]
        assert np.array_equal(draw(by, part, 3)[is_before], whole[:num_rows][is_before])
    order = np.random.default_rng(1).permutation(600)
    shuffled = draw(by, tuple(column[order] for column in log), 3)
    distinct = np.unique(np.stack(log), axis=1, return_inverse=True)[1].ravel()
    alone = np.bincount(distinct)[distinct] == 1
    assert alone.sum() > 400
    assert np.array_equal(shuffled[alone[order]], whole[order][alone[order]])
    monkeypatch.setattr('mag.negatives.drawing._SIZE', 7)
    assert np.array_equal(draw(by, log, 3), whole)


@pytest.mark.parametrize('by', ['arrival', 'events'])
def test_a_user_who_clicked_nearly_everything(by: str) -> None:
    r"""One user clicks 20,000 items, one after the other, of which another has clicked each before,
    the more often the earlier it comes: what is left becomes rare, until it is one item."""
    num = 20_000
    rest = np.repeat(np.arange(num), np.maximum(2_000 // (np.arange(num) + 1), 1))
    user = np.concatenate([np.ones_like(rest), np.zeros(num, dtype=np.int64)])
    item = np.concatenate([rest, np.arange(num)])
    moment = np.concatenate([np.zeros_like(rest), 1 + np.arange(num)])
    began = time.perf_counter()
    drawn = draw(by, (user, item, moment), 2)
    taken = time.perf_counter() - began
    busy = drawn[user == 0]
    assert (busy[:-1] > np.arange(num - 1)[:, None]).all() and (busy[:-1] < num).all()
    assert (busy[-2] == num - 1).all() and (busy[-1] == -1).all()
    assert (drawn[user == 1] == -1).all()
    # A list of what is left for each of 20,000 rows holds 200 million items.
    assert taken < 5


@pytest.mark.parametrize('by', ['arrival', 'events'])
def test_time_is_linear(by: str) -> None:
    r"""Sixteen times as many clicks of as many more users take about as many times as long; what is
    left, listed for each, would take 256 times as long."""

    def seconds(factor: int) -> float:
        log = power_law(4_000 * factor, 200 * factor, 1_000 * factor)
        best = np.inf
        for _ in range(3):
            began = time.perf_counter()
            draw(by, log, 2)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(16) < 64 * seconds(1)
