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
                    for column, at in ((0, events.time[event]), (1, settled[event])):
                        age = int(rows.time[row]) - int(at)
                        if age > 0:
                            weight = 1.0 if column == 0 else float(events.clicked[event])
                            sums[column] += weight * 2 ** (-age / life)
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


@pytest.mark.parametrize('half_lives', [(), (7.0, 40.0)])
@pytest.mark.parametrize('seed', range(3))
def test_a_state_that_moves_equals_a_rebuild(seed: int, half_lives: tuple[float, ...]) -> None:
    data, events = random_log(seed)
    events = events._replace(settled=None)
    keys = TargetKeys(data, VIEWS, {'hour': 4}, 'test')
    expected = target_counts(keys, events, events, half_lives)
    state, start, draw = TargetState(keys, half_lives), 0, random.Random(seed)
    while start < 300:
        end = min(start + draw.choice([1, 2, 7, 40]), 300)
        asked = events.time[start:end] == events.time[start]
        rows = slice(start, start + int(asked.sum()))
        counts = state(
            events.user[rows], events.item[rows], events.time[rows],
            {'hour': events.contexts['hour'][rows]},
        )  # fmt: skip
        torch.testing.assert_close(counts, expected[rows], rtol=1e-6, atol=1e-6)
        new = slice(start, end)
        state.update(
            events.user[new], events.item[new], events.time[new], events.clicked[new],
            {'hour': events.contexts['hour'][new]},
        )  # fmt: skip
        start = end


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
