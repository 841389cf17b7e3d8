import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import (
    Seen,
    TargetKeys,
    TargetState,
    TargetView,
    target_counts,
    target_views,
)
from mag.macro_graph.pending_clicks import Clicks, PendingClicks

Golden = dict[str, Any]


def graph(golden_target: Golden) -> HeteroData:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 4
    data['user'].cluster = torch.tensor(golden_target['user_cluster'])
    data['item'].cluster = torch.tensor(golden_target['item_cluster'])
    return data


def golden(golden_target: Golden) -> tuple[TargetKeys, Seen]:
    user, item, time, click = torch.tensor(golden_target['events']).t()
    keys = TargetKeys(graph(golden_target), target_views(['cluster'], ['cluster']), {}, 'test')
    return keys, Seen(user, item, time, time, {}, click)


def test_the_golden_file_holds_what_tests_read(golden_target: Golden) -> None:
    # The rates are asserted in tests/nn/test_count_encoder.py.
    blocks = {'events', 'user_cluster', 'item_cluster', 'counts', 'rates', 'decayed'}
    assert {*golden_target} == blocks
    for name in ('counts', 'rates', 'decayed'):
        assert len(golden_target[name]) == 5
        assert all(len(column) == 12 for column in golden_target[name].values())


def test_golden_counts_and_decayed_counts(golden_target: Golden) -> None:
    keys, events = golden(golden_target)
    assert [view.name for view in keys.views] == list(golden_target['counts'])
    counts = target_counts(keys, events, events, (5.0,))
    for place, name in enumerate(golden_target['counts']):
        assert counts[:, 2 * place].tolist() == golden_target['counts'][name], name
        decayed = torch.tensor(golden_target['decayed'][name])
        torch.testing.assert_close(counts[:, 2 * place + 1], decayed, rtol=1e-6, atol=1e-7)


def test_the_state_moves_to_the_golden_counts_event_by_event(golden_target: Golden) -> None:
    keys, events = golden(golden_target)
    state = TargetState(keys, (5.0,))
    for moment in events.time.unique():
        rows = events.time == moment
        user, item, time = events.user[rows], events.item[rows], events.time[rows]
        counts = state(user, item, time)
        for place, name in enumerate(golden_target['counts']):
            expected = torch.tensor(golden_target['counts'][name])[rows].float()
            assert torch.equal(counts[:, 2 * place], expected), name
            decayed = torch.tensor(golden_target['decayed'][name])[rows]
            torch.testing.assert_close(counts[:, 2 * place + 1], decayed, rtol=1e-6, atol=1e-7)
        state.update(user, item, time, events.clicked[rows])
        # What a moment added is not seen in it.
        assert torch.equal(state(user, item, time), counts)


def random_log(seed: int, size: int = 300) -> tuple[HeteroData, Seen]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, number: int = size) -> Tensor:
        return torch.randint(low, high, (number,), generator=generator)

    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 7, 5
    # None, too, and some that become known on the way.
    data['user'].cluster, data['item'].brand = draw(-1, 3, 7), draw(-1, 2, 5)
    data['user'].cluster_since = draw(0, 60, 7)
    time = draw(0, 100).sort().values
    hour = draw(-1, 4)
    events = Seen(draw(0, 7), draw(0, 5), time, time, {'hour': hour}, draw(0, 2).float())
    return data, events._replace(settled=time + draw(0, 9))


VIEWS = [
    *target_views(['cluster'], ['brand']),
    TargetView(item='id', exposure='hour'),
    TargetView(exposure='hour'),
    TargetView(),
]


def by_hand(
    data: HeteroData, events: Seen, rows: Seen, half_lives: tuple[float, ...]
) -> list[list[list[float]]]:
    def key(seen: Seen, row: int, view: TargetView) -> tuple[int | None, ...]:
        user, item = int(seen.user[row]), int(seen.item[row])
        cluster = int(data['user'].cluster[user])
        if data['user'].cluster_since[user] > seen.clock[row]:
            cluster = -1
        values = {None: None, 'cluster': cluster, 'brand': int(data['item'].brand[item])}
        return (
            user if view.user == 'id' else values[view.user],
            item if view.item == 'id' else values[view.item],
            int(seen.contexts['hour'][row]) if view.exposure else None,
        )

    settled = events.time if events.settled is None else events.settled
    out = []
    for row in range(len(rows.user)):
        columns = []
        for view in VIEWS:
            own = key(rows, row, view)
            same = [e for e in range(len(events.user)) if key(events, e, view) == own]
            for life in (float('inf'), *half_lives):
                sums = [0.0, 0.0]
                for event in same:
                    # A click that is known late is as old as its exposure.
                    weight = 2 ** (-(int(rows.time[row]) - int(events.time[event])) / life)
                    if events.time[event] < rows.time[row]:
                        sums[0] += weight
                        if settled[event] < rows.time[row]:
                            sums[1] += weight * float(events.clicked[event])
                columns.append(sums)
        out.append(columns)
    return out


@pytest.mark.parametrize('is_late', [False, True])
@pytest.mark.parametrize('half_lives', [(), (7.0,)])
def test_counts_are_those_of_plain_loops(is_late: bool, half_lives: tuple[float, ...]) -> None:
    data, events = random_log(0, 120)
    if not is_late:
        events = events._replace(settled=None)
    # Others ask, in no order.
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:50]
    rows = Seen(*(part[order] for part in events[:4]), {'hour': events.contexts['hour'][order]})
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    counts = target_counts(keys, events, rows, half_lives)
    expected = torch.tensor(by_hand(data, events, rows, half_lives))
    torch.testing.assert_close(counts, expected, rtol=1e-5, atol=1e-6)
    assert (counts[..., 1] <= counts[..., 0]).all()


@pytest.mark.parametrize('is_late', [False, True])
@pytest.mark.parametrize('half_lives', [(), (7.0,)])
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_rows_that_are_events_and_others_read_the_same_log(
    share: float, half_lives: tuple[float, ...], is_late: bool
) -> None:
    data, events = random_log(2, 60)
    generator = torch.Generator().manual_seed(3)
    # Some exposures come twice, at one moment, of another hour or of another clock.
    events = Seen(
        *(torch.cat([part, part[::4]]) for part in events[:4]),
        {'hour': torch.cat([events.contexts['hour'], events.contexts['hour'][::4].flip(0)])},
        *(torch.cat([part, part[::4]]) for part in (events.clicked, events.settled)),
    )  # fmt: skip
    events.clock[60:66] = 0
    order = torch.randperm(75, generator=generator)
    user, item, time, clock = (part[order] for part in events[:4])
    hour = events.contexts['hour'][order]
    # The others differ from an event in one thing, each kind of them in another.
    is_other = torch.rand(75, generator=generator) < share
    kind = torch.randint(5, (75,), generator=generator).where(is_other, 5)
    user = user.where(kind != 0, -1)
    item = item.where(kind != 1, (item + 1) % 5)
    time = time.where(kind != 2, time + 1)
    clock = clock.where(kind != 3, 59 - clock)
    hour = hour.where(kind != 4, -1 - hour.clamp(max=0))
    rows = Seen(user, item, time, clock, {'hour': hour})
    if not is_late:
        events = events._replace(settled=None)
    # An unknown user has no macro node, which the plain loops read of the last one.
    data['user'].cluster[-1] = -1
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    counts = target_counts(keys, events, rows, half_lives)
    expected = torch.tensor(by_hand(data, events, rows, half_lives))
    torch.testing.assert_close(counts, expected, rtol=1e-5, atol=1e-6)
    # In a batch of its own, each row reads what it reads among others.
    for place in range(0, 75, 25):
        one = slice(place, place + 1)
        alone = Seen(*(part[one] for part in rows[:4]), {'hour': hour[one]})
        assert torch.equal(target_counts(keys, events, alone, half_lives)[0], counts[place])


@pytest.mark.parametrize('is_late', [False, True])
@pytest.mark.parametrize('half_lives', [(), (7.0, 40.0)])
@pytest.mark.parametrize('seed', range(3))
def test_a_state_that_moves_equals_a_rebuild(
    seed: int, half_lives: tuple[float, ...], is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces end within a moment, too.
    monkeypatch.setattr('mag.macro_graph.target_state._PIECE', 3)
    data, events = random_log(seed)
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    if not is_late:
        events = events._replace(settled=None)
    state, start, draw = TargetState(keys, half_lives), 0, random.Random(seed)
    while start < 300:
        size = min(draw.choice([1, 2, 7, 40]), 300 - start)
        now = int(events.time[start])
        # Of the moment of the next event, and of later ones, in no order; asking changes nothing.
        order = torch.tensor([draw.randrange(300) for _ in range(9)])
        time = torch.tensor([now, *(draw.randrange(now, 120) for _ in range(8))])
        hour = {'hour': events.contexts['hour'][order]}
        rows = Seen(events.user[order], events.item[order], time, time, hour)
        counts = state(rows.user, rows.item, time, hour)
        past = Seen(
            *(part[:start] for part in events[:4]),
            {'hour': events.contexts['hour'][:start]},
            events.clicked[:start],
            events.settled[:start] if is_late else None,
        )
        expected = target_counts(keys, past, rows, half_lives)
        torch.testing.assert_close(counts, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(counts[:, :: 1 + len(half_lives)], expected[:, :: 1 + len(half_lives)])
        new = slice(start, start + size)
        state.update(
            events.user[new], events.item[new], events.time[new], events.clicked[new],
            {'hour': events.contexts['hour'][new]}, events.settled[new] if is_late else None,
        )  # fmt: skip
        start += size


def test_an_age_is_exact_to_the_second(golden_target: Golden) -> None:
    state = TargetState(golden(golden_target)[0], (2.0**20,))
    one = torch.tensor([1])
    state.update(one, one, torch.tensor([0]), one)
    # Of an age that float32 has no room for.
    counts = state(one, one, torch.tensor([2**24 + 1]))
    assert counts[0, 1].tolist() == pytest.approx([2 ** -(16 + 2**-20)] * 2, rel=1e-7)


def test_labels_from_a_moment_on_change_no_row_up_to_it() -> None:
    # Section 4 of the specification: the canary.
    data, events = random_log(0)
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    is_later = events.time >= 50
    changed = events._replace(clicked=events.clicked.where(~is_later, 1 - events.clicked))
    first, second = (target_counts(keys, e, events, (9.0,)) for e in (events, changed))
    assert first[events.time <= 50].numpy().tobytes() == second[events.time <= 50].numpy().tobytes()
    assert not torch.equal(first, second)


def test_priors_and_names() -> None:
    views = target_views(['cluster_2'], ['category'])
    assert [(view.name, view.expected) for view in views] == [
        ('user', None),
        ('item', None),
        ('user x item_category', 'user'),
        ('user_cluster_2 x item', 'item'),
        ('user_cluster_2 x item_category', None),
    ]
    assert TargetView('id', 'brand', 'hour', prior='item').expected == 'item'
    assert TargetView('id', 'brand', 'hour').name == 'user x item_brand x hour'


def test_bad_views() -> None:
    data, _ = random_log(0)
    with pytest.raises(ValueError, match="test counts by 'color' of items, but data\\['item'\\]"):
        TargetKeys(data, [TargetView('id', 'color')], {}, 'test')
    with pytest.raises(ValueError, match="no categorical attribute 'hour', only \\['day'\\]"):
        TargetKeys(data, [TargetView('id', exposure='hour')], {'day': 7}, 'test')
    data['user'].num_nodes = data['item'].num_nodes = 2**32
    with pytest.raises(ValueError, match="'user x item', of which there are \\d+, too many"):
        TargetKeys(data, [TargetView('id', 'id')], {}, 'test')


def test_a_state_goes_forward(golden_target: Golden) -> None:
    keys, events = golden(golden_target)
    state = TargetState(keys, ())
    user = torch.tensor([0])
    state.update(user, user, torch.tensor([10]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match='one of 9 after one of 10'):
        state.update(user, user, torch.tensor([9]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match='as of 10 and later, .* those of 9'):
        state(user, user, torch.tensor([9]))
    with pytest.raises(ValueError, match="'clicked' of shape"):
        state.update(user, user, torch.tensor([11]), torch.ones(2))


def test_clicks_wait_in_few_runs_and_leave_in_order() -> None:
    draw, waiting, pending, out, now = random.Random(0), [], PendingClicks(), [], 0
    for number in range(400):
        settled = now + 1 + draw.randrange(200)
        waiting.append((settled, number))
        moment = torch.tensor([settled])
        pending.add(Clicks(moment, torch.tensor([[number]]), torch.zeros(1, 1, 2)))
        assert len(pending) == len(waiting) and len(pending._runs) <= 10
        if draw.random() < 0.3:
            now += draw.randrange(20)
            known = pending.before(now)
            found = (
                [] if known is None else [*zip(known.settled.tolist(), known.keys[:, 0].tolist())]
            )
            assert sorted(found) == sorted(pair for pair in waiting if pair[0] < now)
            due = pending.take(now)
            out += [] if due is None else due.settled.tolist()
            waiting = [pair for pair in waiting if pair[0] > now]
    assert out == sorted(out) and len(out) + len(waiting) == 400
    assert pending.take(10**6) is not None and len(pending) == 0 and pending.take(10**6) is None


BAD_EVENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    'user below': ({'user': [-2, 0]}, IndexError, 'users from -2 to 0, .* from (0|-1) to 6'),
    'item below': ({'item': [-2, 0]}, IndexError, 'items from -2 to 0, .* from (0|-1) to 4'),
    'item beyond': ({'item': [5, 0]}, IndexError, 'items from 0 to 5'),
    'hour beyond': ({'hour': [4, 0]}, IndexError, "values of 'hour' from 0 to 4.* from -1 to 3"),
    'hour below': ({'hour': [-2, 0]}, IndexError, "values of 'hour' from -2 to 0"),
    'hour missing': ({'hour': None}, TypeError, "'hour'.*but got None"),
    'hours of two columns': ({'hour': [[1, 1], [2, 2]]}, ValueError, r"'hour' of shape \[2\]"),
    'time': ({'time': [3, 2]}, ValueError, "expects 'time' to ascend"),
    'label': ({'clicked': [7.0, 0.0]}, ValueError, "'clicked' of 1 for a click.*as 7.0 in row 0"),
    'no label': ({'clicked': [float('nan'), 0.0]}, ValueError, 'such as nan in row 0'),
    'settled': ({'settled': [3.5, 4.0]}, TypeError, "'settled' of dtype int64"),
    'settled before': (
        {'settled': [1, 4]}, ValueError, "'settled' of no time before .*, such as 1 in row 0"
    ),
    'lengths': ({'item': [0]}, ValueError, r"'item' of shape \[2\], but got shape \[1\]"),
    'a number': ({'user': 0}, TypeError, "'user' to be a tensor of shape"),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_EVENTS)
def test_bad_events_are_refused_and_change_nothing(name: str) -> None:
    change, error, sentence = BAD_EVENTS[name]
    data, _ = random_log(0)
    state = TargetState(TargetKeys(data, VIEWS, {'hour': 4}, 'test'), (7.0,))
    good: dict[str, Any] = {'user': [0, 1], 'item': [0, 1], 'time': [2, 3], 'hour': [0, 1]}
    labels: dict[str, Any] = {'clicked': [1.0, 1.0], 'settled': [2, 4]}

    def arguments(values: dict[str, Any]) -> dict[str, Any]:
        values = {
            key: torch.tensor(value) if isinstance(value, list) else value
            for key, value in values.items()
        }
        hour = values.pop('hour')
        return {**values, 'contexts': {} if hour is None else {'hour': hour}}

    before = state(**arguments(good))
    with pytest.raises(error, match=sentence):
        state.update(**arguments({**good, **labels, **change}))
    if not change.keys() & {*labels, 'time'}:
        with pytest.raises(error, match=sentence):
            state(**arguments({**good, **change}))
    assert torch.equal(state(**arguments(good)), before) and not before.any()
    state.update(**arguments({**good, **labels}))


@pytest.mark.parametrize('dtype', [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_attributes_of_few_bits_have_room_for_none(dtype: torch.dtype) -> None:
    data, events = random_log(0)
    most = torch.iinfo(dtype).max
    data['item'].brand = torch.tensor([0, most, most - 1, most, 1])
    expected = target_counts(TargetKeys(data, VIEWS, {'hour': 4}, 'test'), events, events, (7.0,))
    data['item'].brand = data['item'].brand.to(dtype)
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    assert all((key >= 0).all() for key in keys(*events[:2], events.clock, events.contexts))
    assert torch.equal(target_counts(keys, events, events, (7.0,)), expected)


def test_half_lives_of_a_state_are_checked_before_an_event_comes() -> None:
    keys = TargetKeys(random_log(0)[0], VIEWS, {'hour': 4}, 'test')
    with pytest.raises(ValueError, match=r"'half_lives\[0\]' must be .* but got 0.0"):
        TargetState(keys, (0.0,))
    with pytest.raises(TypeError, match="'half_lives' must be a sequence .* but got 5.0"):
        TargetState(keys, 5.0)  # type: ignore[arg-type]


def test_a_graph_without_nodes_is_refused() -> None:
    data, _ = random_log(0)
    data['item'].num_nodes, data['item'].brand = 0, torch.empty(0, dtype=torch.long)
    for view in (TargetView(item='id'), TargetView(item='brand')):
        with pytest.raises(ValueError, match='the graph has no items'):
            TargetKeys(data, [view], {}, 'test')
