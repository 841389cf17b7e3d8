import copy
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.macro_graph import TargetView
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
SEES = ('user', 'sees', 'item')


def log(size: int = 1500) -> HeteroData:
    data = SyntheticMarket(40, 20, size, seed=0, log=False)[0]
    # Many exposures of one moment.
    clicks = data[CLICKS]
    for name in ('time', 'edge_label_time'):
        clicks[name] = clicks[name] // 5000 * 5000
    return data


def split(data: HeteroData, **arguments: Any) -> list[HeteroData]:
    parts = TemporalSplit(num_windows=3, **arguments)(data)
    coarsen = MacroCoarsen({'user': 4, 'item': 'category'}).fit(parts[0])
    return [coarsen(part) for part in parts]


def key(part: HeteroData, view: str, user: int, item: int, clock: float) -> tuple[int, int]:
    r"""What a row of a view agrees in: :obj:`-2` stands for all, :obj:`-1` for none."""
    cluster = int(part['user'].cluster[user])
    if part['user'].cluster_since[user] > clock:
        cluster = -1
    users = {'user': user, 'user_cluster': cluster}
    items = {'item': item, 'item_cluster': int(part['item'].cluster[item])}
    names = view.split(' x ')
    return (
        next((users[name] for name in names if name in users), -2),
        next((items[name] for name in names if name in items), -2),
    )


def by_hand(part: HeteroData, log: HeteroData | None, rows: list[int]) -> list[list[list[float]]]:
    clicks = part[CLICKS]
    if log is None:
        events = part[SEES]
        index, time, clicked = events.edge_index, events.time, events.clicked
    else:
        events = log[CLICKS]
        index, time, clicked = events.edge_label_index, events.edge_label_time, events.edge_label
    out = []
    for row in rows:
        user, item = clicks.edge_label_index[:, row].tolist()
        asked = int(clicks.edge_label_time[row])
        if log is None:
            window = clicks.edge_label_window[row] if 'edge_label_window' in clicks else 0
            asked = int(clicks.cutoff[window])
        counts = []
        for view in clicks.count_names:
            own = key(part, view, user, item, asked)
            same = [
                e
                for e in range(time.numel())
                if time[e] < asked
                and key(part, view, int(index[0, e]), int(index[1, e]), int(time[e])) == own
            ]
            counts.append([float(len(same)), sum(float(clicked[e]) for e in same)])
        out.append(counts)
    return out


@pytest.mark.parametrize('fresh', [False, True])
def test_counts_are_those_of_plain_loops(fresh: bool) -> None:
    data = log(500)
    parts = split(data)
    transform = TargetCounts().fit(parts[0])
    for part in parts:
        counted = transform(part, log=data) if fresh else transform(part)
        clicks = counted[CLICKS]
        assert clicks.count_names == [
            'user', 'item', 'user x item_cluster', 'user_cluster x item',
            'user_cluster x item_cluster',
        ]  # fmt: skip
        assert clicks.count_prior == [-1, -1, 0, 1, -1]
        rows = list(range(0, clicks.edge_label.numel(), 7))
        expected = torch.tensor(by_hand(counted, data if fresh else None, rows))
        assert torch.equal(clicks.edge_label_counts[rows], expected)
        assert clicks.edge_label_counts.dtype == torch.float
        assert 'edge_label_counts' not in part[CLICKS]


def test_the_rate_is_that_of_the_first_history() -> None:
    parts = split(log())
    clicks = TargetCounts()(parts[0])[CLICKS]
    sees = parts[0][SEES]
    first = sees.clicked[sees.time < clicks.cutoff[0]]
    assert clicks.count_rate == pytest.approx((first.sum().item() + 1) / (len(first) + 2))


@pytest.mark.parametrize('by', ['global', 'user'])
def test_the_rate_knows_no_click_that_was_known_later(by: str) -> None:
    train = split(log(), by=by)[0]
    sees, clicks = train[SEES], train[CLICKS]
    clock = sees.position if by == 'user' else sees.time
    moment = clicks.edge_label_time.min() if by == 'user' else clicks.cutoff[0]
    late = torch.arange(sees.time.numel()) % 3 == 0
    sees.settled = torch.where(late, moment, moment - 1)
    first = clock < clicks.cutoff[0]
    known = int(sees.clicked[first & ~late].sum())
    assert known < int(sees.clicked[first].sum())
    transform = TargetCounts().fit(train)
    expected = (known + 1) / (int(first.sum()) + 2)
    assert f'rate={expected!r},' in repr(transform)
    # Whatever became of the late ones.
    sees.clicked = sees.clicked.where(~late, 1 - sees.clicked)
    assert repr(TargetCounts().fit(train)) == repr(transform)


def test_fits_on_different_data_differ_in_their_text() -> None:
    train, val, _ = split(log())
    texts = [repr(TargetCounts()), *(repr(TargetCounts().fit(part)) for part in (train, val))]
    assert texts[0] == 'TargetCounts(None, half_lives=())'
    other = copy.copy(train)
    other['user'].cluster_2 = other['user'].cluster
    assert repr(TargetCounts().fit(other)) not in texts
    assert len(set(texts)) == 3 and repr(TargetCounts().fit(train)) == texts[1]


@pytest.mark.parametrize('fresh', [False, True])
def test_labels_from_a_moment_on_change_no_row_up_to_it(fresh: bool) -> None:
    data = log()
    train, _, test = split(data)
    transform = TargetCounts(half_lives=(86400.0,)).fit(train)
    other = copy.copy(data)
    moment = int(train[CLICKS].edge_label_time.median())
    is_later = data[CLICKS].edge_label_time >= moment
    other[CLICKS].edge_label = data[CLICKS].edge_label.where(~is_later, 1 - data[CLICKS].edge_label)
    changed = copy.copy(train)
    changed[SEES].clicked = other[CLICKS].edge_label[: changed[SEES].time.numel()]
    first = transform(train, log=data if fresh else None)[CLICKS]
    second = transform(changed, log=other if fresh else None)[CLICKS]
    early = first.edge_label_time <= moment
    before, after = (part.edge_label_counts[early].numpy().tobytes() for part in (first, second))
    assert before == after
    assert not torch.equal(first.edge_label_counts, second.edge_label_counts)


def test_views_and_half_lives_of_ones_own() -> None:
    data = log()
    train, _, test = split(data)
    views = [
        TargetView('id'),
        TargetView('id', 'brand'),
        TargetView(item='id'),
        TargetView(item='id', exposure='domain'),
    ]
    transform = TargetCounts(views, half_lives=(3600.0, 1e12)).fit(train)
    assert transform.names[3:6] == [
        'user x item_brand', 'user x item_brand, half-life 3600',
        'user x item_brand, half-life 1e+12',
    ]  # fmt: skip
    assert transform.prior == [-1, -1, -1, 0, 1, 2, -1, -1, -1, 6, 7, 8]
    clicks = transform(test, log=data)[CLICKS]
    counts = clicks.edge_label_counts
    # What hardly decays is hardly less.
    torch.testing.assert_close(counts[:, 2::3], counts[:, ::3], rtol=1e-3, atol=1e-3)
    assert (counts[:, 1::3] <= counts[:, ::3]).all() and (counts[:, 1::3] < counts[:, ::3]).any()
    source = data[CLICKS]
    for row in range(0, len(counts), 29):
        item = clicks.edge_label_index[1, row]
        same = (
            (source.edge_label_index[1] == item)
            & (source.edge_label_domain == clicks.edge_label_domain[row])
            & (source.edge_label_time < clicks.edge_label_time[row])
        )
        assert counts[row, 9].tolist() == [same.sum(), source.edge_label[same].sum()]


def test_the_state_of_a_part_moves_to_the_fresh_counts() -> None:
    data = log()
    train, _, test = split(data)
    transform = TargetCounts(half_lives=(50_000.0,)).fit(train)
    expected = transform(test, log=data)[CLICKS]
    state = transform.state(test)
    source = data[CLICKS]
    start = int(test[CLICKS].cutoff)
    for moment in source.edge_label_time[source.edge_label_time >= start].unique():
        rows = expected.edge_label_time == moment
        counts = state(*expected.edge_label_index[:, rows], expected.edge_label_time[rows])
        torch.testing.assert_close(counts, expected.edge_label_counts[rows], rtol=1e-5, atol=1e-5)
        new = source.edge_label_time == moment
        state.update(
            *source.edge_label_index[:, new], source.edge_label_time[new], source.edge_label[new]
        )


def test_what_cannot_be_counted_is_refused() -> None:
    data = log()
    train, val, test = split(data)
    with pytest.raises(ValueError, match='fitted as of .*: fit it on the training part'):
        TargetCounts().fit(test)(train)
    with pytest.raises(ValueError, match='exposures before the cutoff of a part'):
        TargetCounts().fit(data)
    with pytest.raises(ValueError, match='expects a whole log'):
        TargetCounts().fit(train)(test, log=val)
    with pytest.raises(ValueError, match='the log has 20 items and the part 21'):
        other = copy.copy(test)
        other['item'].num_nodes = 21
        TargetCounts().fit(train)(other, log=data)
    with pytest.raises(ValueError, match='no macro nodes of users: apply MacroCoarsen first'):
        TargetCounts().fit(TemporalSplit()(data)[0])
    with pytest.raises(ValueError, match="rate of 'user x item_brand' to be that of 'user'"):
        TargetCounts([TargetView('id', 'brand')]).fit(train)
    with pytest.raises(TypeError, match="'views' must be a list of TargetView, but got"):
        TargetCounts(['user'])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"'half_lives\[0\]' must be a number"):
        TargetCounts(half_lives=[0.0])
    with pytest.raises(ValueError, match='no state yet'):
        TargetCounts().state(test)
    test[SEES].settled = test[SEES].time
    with pytest.raises(ValueError, match='known at once, but this log tells when'):
        TargetCounts().fit(train).state(test)


def test_parts_that_were_cut_by_position() -> None:
    data = log()
    train, _, test = split(data, by='user')
    counts = TargetCounts().fit(train)(test)[CLICKS]
    sees = test[SEES]
    for row in range(0, counts.edge_label.numel(), 13):
        user = counts.edge_label_index[0, row]
        same = (sees.edge_index[0] == user) & (sees.position < counts.cutoff)
        assert counts.edge_label_counts[row, 0].tolist() == [same.sum(), sees.clicked[same].sum()]
    with pytest.raises(ValueError, match='by its position'):
        TargetCounts(half_lives=(5.0,)).fit(train)(test)
    with pytest.raises(ValueError, match='cut by position'):
        TargetCounts().fit(train).state(test)
