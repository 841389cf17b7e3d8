import copy
import warnings
from collections import Counter
from math import floor

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mag.transforms import BehaviorGraph, TemporalSplit
from mag.transforms._clock import user_position

CLICKS = ('user', 'clicks', 'item')
SEES = ('user', 'sees', 'item')


def random_log(seed: int, num_rows: int = 400, last_time: int = 150) -> HeteroData:
    r"""An unsorted log in which about three rows share each second."""
    generator = torch.Generator().manual_seed(seed)
    user = (torch.rand(num_rows, generator=generator) ** 2 * 25).long()
    item = (torch.rand(num_rows, generator=generator) ** 2 * 20).long()
    time = torch.randint(last_time, (num_rows,), generator=generator)
    label = (torch.rand(num_rows, generator=generator) < 0.5).float()
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 25, 20
    data['item'].category = torch.arange(20) % 3
    clicks, clicked = data[CLICKS], label == 1
    clicks.edge_index = torch.stack([user, item])[:, clicked]
    clicks.time = time[clicked]
    clicks.weight = clicks.edge_index.sum(0) / 7
    clicks.edge_label_index = torch.stack([user, item])
    clicks.edge_label, clicks.edge_label_time = label, time
    clicks.edge_label_behavior = torch.stack([user + item, time], dim=1)
    return data


def rows(index: torch.Tensor, *columns: torch.Tensor) -> list[tuple]:
    return list(zip(*index.tolist(), *(column.tolist() for column in columns), strict=True))


def quantile(times: list[int], share: float) -> float:
    position = share * (len(times) - 1)
    low = sorted(times)[floor(position)]
    return low + (sorted(times)[min(floor(position) + 1, len(times) - 1)] - low) * (position % 1)


def brute_force(data: HeteroData, split: TemporalSplit) -> list[dict]:
    r"""What each part must hold, row by row."""
    clicks = data[CLICKS]
    history = rows(clicks.edge_index, clicks.time)
    exposures = rows(clicks.edge_label_index, clicks.edge_label_time, clicks.edge_label)
    times = [row[2] for row in exposures]
    train_shares = [
        split.train_start + step * (split.val_start - split.train_start) / split.num_windows
        for step in range(split.num_windows)
    ]

    def clock(user, time):
        if split.by == 'global':
            return time
        own = [row[2] for row in exposures if row[0] == user]
        return sum(other < time for other in own) / len(own)

    def cutoff(share):
        return floor(quantile(times, share)) + 1 if split.by == 'global' else share

    bounds = [
        sorted({cutoff(share) for share in train_shares}),
        [cutoff(split.val_start)],
        [cutoff(split.test_start)],
        [float('inf')],
    ]
    parts = []
    for cutoffs, following in zip(bounds[:-1], bounds[1:], strict=True):
        kept, dropped = [], 0
        for user, item, time, label in exposures:
            at = clock(user, time)
            if not cutoffs[0] <= at < following[0]:
                continue
            window = max(step for step, begin in enumerate(cutoffs) if begin <= at)
            known = [row for row in history if clock(row[0], row[2]) < cutoffs[window]]
            if any(row[0] == user for row in known) and any(row[1] == item for row in known):
                kept.append((user, item, time, label, window))
            else:
                dropped += 1
        read = sorted(
            (row for row in history if clock(row[0], row[2]) < cutoffs[-1]), key=lambda row: row[2]
        )
        parts.append({'kept': kept, 'dropped': dropped, 'history': read, 'cutoff': cutoffs})
    return parts


SPLITS = [
    TemporalSplit(0.65, 0.75, 0.9, num_windows=1),
    TemporalSplit(0.3, 0.7, 0.8, num_windows=1),
    TemporalSplit(0.3, 0.7, 0.8, num_windows=5),
    TemporalSplit(0.4, 0.6, 0.8, num_windows=1, by='user'),
    TemporalSplit(0.25, 0.75, 0.9, num_windows=4, by='user'),
]


@pytest.mark.parametrize('split', SPLITS, ids=repr)
@pytest.mark.parametrize('last_time', [150, 12])
def test_brute_force(split, last_time):
    r"""With 12 seconds for 400 rows, every cutoff falls among rows of the same second."""
    data = random_log(0, last_time=last_time)
    for part, expected in zip(split(data), brute_force(data, split), strict=True):
        store = part[CLICKS]
        rolling = split.num_windows > 1 and 'edge_label_window' in store
        window = (
            store.edge_label_window if rolling else torch.zeros(store.edge_label.numel()).long()
        )
        found = rows(store.edge_label_index, store.edge_label_time, store.edge_label, window)
        assert Counter(found) == Counter(expected['kept'])
        assert store.num_dropped == expected['dropped']
        assert rows(store.edge_index, store.time) == expected['history']
        assert store.cutoff.tolist() == pytest.approx(expected['cutoff'])
        # What comes along belongs to the same rows.
        assert torch.equal(store.weight, store.edge_index.sum(0) / 7)
        behavior = torch.stack([store.edge_label_index.sum(0), store.edge_label_time], dim=1)
        assert torch.equal(store.edge_label_behavior, behavior)


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
@pytest.mark.parametrize('split', SPLITS, ids=repr)
@pytest.mark.parametrize('keep_cold', [False, True])
def test_labels_that_are_known_too_late_are_left_out(split, keep_cold):
    r"""A part's labels were known before the next part begins: with it, or for each user with the
    first exposure of his there."""
    split = copy.copy(split)
    split.keep_cold = keep_cold
    data = random_log(4)
    plain = split(data)
    assert all(part[CLICKS].num_unsettled == 0 for part in plain)
    generator = torch.Generator().manual_seed(1)
    store = data[CLICKS]
    later = torch.randint(0, 30, (400,), generator=generator)
    store.edge_label_settled = store.edge_label_time + later
    num_left_out = 0
    for number, (part, known) in enumerate(zip(plain, split(data), strict=True)):
        before, after = part[CLICKS], known[CLICKS]
        user, time = store.edge_label_index[0], store.edge_label_time
        if number == 2:
            end = torch.full_like(time, 2**63 - 1)
        elif split.by == 'global':
            end = plain[number + 1][CLICKS].cutoff[0].expand(400)
        else:
            position = user_position(data)[1]
            end = torch.full_like(time, 2**63 - 1)
            for row in range(400):
                own = (user == user[row]) & (position >= plain[number + 1][CLICKS].cutoff[0])
                end[row] = min([*time[own].tolist(), 2**63 - 1])
        late = store.edge_label_settled >= end
        columns = ('edge_label_index', 'edge_label_time', 'edge_label')
        left_out = Counter(rows(*(store[name][..., late] for name in columns)))
        expected = Counter(rows(*(before[name] for name in columns)))
        found = Counter(rows(*(after[name] for name in columns)))
        assert found == expected - left_out
        kept = sum(found.values())
        assert kept == before.edge_label.numel() - sum((expected & left_out).values())
        if keep_cold:
            assert after.num_dropped == 0
            assert after.num_unsettled == before.edge_label.numel() - kept
        total = before.edge_label.numel() + before.num_dropped
        assert kept + after.num_dropped + after.num_unsettled == total
        num_left_out += after.num_unsettled
        assert (after.num_unsettled == 0) == (number == 2)
        # The history and the columns of what is kept stay.
        assert torch.equal(after.edge_index, before.edge_index)
        assert bool((after.edge_label_settled >= after.edge_label_time).all())
    assert num_left_out > 0


def test_a_label_that_is_known_with_the_next_part_is_left_out():
    data = random_log(1)
    store = data[CLICKS]
    cutoff = [int(part[CLICKS].cutoff[0]) for part in TemporalSplit(num_windows=3)(data)]
    store.edge_label_settled = store.edge_label_time.clone()
    row = int(
        ((store.edge_label_time < cutoff[1]) & (store.edge_label_time >= cutoff[0])).nonzero()[0]
    )
    for moment, expected in ((cutoff[1] - 1, (0, 0, 0)), (cutoff[1], (1, 0, 0))):
        store.edge_label_settled[row] = moment
        parts = TemporalSplit(num_windows=3, keep_cold=True)(data)
        assert tuple(part[CLICKS].num_unsettled for part in parts) == expected
    store.edge_label_settled[:] = cutoff[2] + 1000
    with pytest.raises(
        ValueError,
        match='of 234 in the range, 234 have labels that are known only when .*, and 0 have a user',
    ):
        TemporalSplit(num_windows=3)(data)


@pytest.mark.parametrize('split', SPLITS, ids=repr)
@pytest.mark.parametrize('seed', range(3))
def test_no_row_reads_its_future(split, seed):
    for part in split(random_log(seed)):
        store = part[CLICKS]
        clock, label_clock = store.time, store.edge_label_time
        if split.by == 'user':
            clock, label_clock = store.position, store.edge_label_position
        cutoff = store.cutoff
        window = store.get('edge_label_window', torch.zeros(store.edge_label.numel()).long())
        label_cutoff = cutoff[window]
        read = clock < label_cutoff.unsqueeze(1)
        own = store.edge_index[0] == store.edge_label_index[0].unsqueeze(1)
        earlier = store.time < store.edge_label_time.unsqueeze(1)
        assert bool((earlier | ~read)[own].all())
        if split.by == 'global':
            assert bool((earlier | ~read).all())
        # A row reads all it may: a click between its cutoff and itself is of its own window.
        assert bool((label_clock >= label_cutoff).all())
        # Nobody is cold.
        for row in (0, 1):
            same = store.edge_index[row] == store.edge_label_index[row].unsqueeze(1)
            assert bool((same & read).any(1).all())


def test_quantiles_of_the_paper():
    r"""Train labels lie in (q80, q88], test labels above q90, histories are t <= q80 and q90."""
    data = random_log(1)
    time = data[CLICKS].edge_label_time
    q80, q88, q90 = np.quantile(time.numpy(), [0.8, 0.88, 0.9])
    train, val, test = TemporalSplit(train_start=0.8, num_windows=1)(data)
    for part, low, high in ((train, q80, q88), (val, q88, q90), (test, q90, np.inf)):
        store = part[CLICKS]
        assert store.cutoff.shape == (1,)
        assert 'edge_label_window' not in store
        inside = (time > low) & (time <= high)
        assert store.edge_label.numel() + store.num_dropped == int(inside.sum())
        assert bool(((store.edge_label_time > low) & (store.edge_label_time <= high)).all())
        history = data[CLICKS].time
        assert store.time.tolist() == sorted(history[history <= low].tolist())


def test_windows_follow_each_other():
    data = random_log(2, num_rows=3000, last_time=100_000)
    train, val, _ = TemporalSplit(0.4, 0.8, 0.9, num_windows=8)(data)
    store = train[CLICKS]
    assert store.cutoff.shape == (8,)
    assert bool((store.cutoff.diff() > 0).all())
    share = store.edge_label_window.bincount() / 3000
    assert share.tolist() == pytest.approx([0.05] * 8, abs=2 / 3000)
    following = torch.cat([store.cutoff[1:], val[CLICKS].cutoff.view(1)])
    assert bool((store.edge_label_time < following[store.edge_label_window]).all())


def test_default_arguments():
    split = TemporalSplit()
    assert (split.train_start, split.val_start, split.test_start) == (0.3, 0.88, 0.9)
    assert repr(TemporalSplit(0.2, 0.5, 0.75, 3, 'user', True)) == (
        'TemporalSplit(train_start=0.2, val_start=0.5, test_start=0.75, num_windows=3, '
        "by='user', keep_cold=True)"
    )


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
@pytest.mark.parametrize('by', ['global', 'user'])
def test_cold_exposures_are_kept_on_demand(by):
    data = random_log(3)
    # A user whose only exposures come last, and are not clicked.
    data['user'].num_nodes += 1
    data[CLICKS].edge_label_index[0, -5:] = data['user'].num_nodes - 1
    data[CLICKS].edge_label[-5:] = 0
    late = data[CLICKS].edge_label_time[-1]
    kept = data[CLICKS].time < late - 10
    data[CLICKS].edge_index, data[CLICKS].time = (
        data[CLICKS].edge_index[:, kept],
        data[CLICKS].time[kept],
    )
    warm, cold = (TemporalSplit(by=by, keep_cold=keep)(data) for keep in (False, True))
    num_cold = 0
    for without, part in zip(warm, cold, strict=True):
        a, b = without[CLICKS], part[CLICKS]
        assert b.num_dropped == 0
        assert b.edge_label.numel() == a.edge_label.numel() + a.num_dropped
        # The history is the same, and ends before every window.
        assert torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.cutoff, b.cutoff)
        num_cold += a.num_dropped
    assert num_cold > 0


def newcomers(num_new: int) -> HeteroData:
    r"""A hundred clicks a second apart, all of one user but for the last of every ten before the
    90th second: of these, so many are of users who come once."""
    user = torch.zeros(100, dtype=torch.long)
    user[30 + torch.arange(num_new) * 58 // max(num_new, 1)] = 1 + torch.arange(num_new)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 1 + num_new, 1
    clicks = data[CLICKS]
    clicks.edge_index = clicks.edge_label_index = torch.stack([user, torch.zeros_like(user)])
    clicks.time = clicks.edge_label_time = torch.arange(100)
    clicks.edge_label = torch.ones(100)
    return data


def test_a_part_that_loses_more_than_a_fifth_warns_and_says_what_to_change() -> None:
    # Training is 58 seconds, of which 11 are less than a fifth and 12 more.
    split = TemporalSplit(num_windows=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        train = split(newcomers(11))[0]
        assert train[CLICKS].num_dropped == 11
        assert train[CLICKS].edge_label.numel() == 47
        TemporalSplit(num_windows=1, keep_cold=True)(newcomers(30))
    with pytest.warns(UserWarning) as caught:
        train = split(newcomers(12))[0]
    assert train[CLICKS].num_dropped == 12
    (warning,) = caught
    assert str(warning.message) == (
        'TemporalSplit leaves out 12 of the 58 training exposures: 12 have a user or an item '
        'without an earlier click. To keep more, pass keep_cold=True for models that read other '
        "features, or by='user' to split each user's own log."
    )
    assert warning.filename == __file__


def test_labels_that_are_known_too_late_warn() -> None:
    data = newcomers(0)
    # Of the 20 seconds of training, 5 are more than a fifth; of the 40 of validation they are not.
    data[CLICKS].edge_label_settled = data[CLICKS].edge_label_time + 5
    with pytest.warns(UserWarning) as caught:
        train, val, _ = TemporalSplit(0.3, 0.5, 0.9, num_windows=1)(data)
    assert [part[CLICKS].num_unsettled for part in (train, val)] == [5, 5]
    (warning,) = caught
    assert str(warning.message) == (
        'TemporalSplit leaves out 5 of the 20 training exposures: 5 have labels that are known '
        'only when the next part begins. To keep more, pass shares further apart.'
    )


@pytest.mark.parametrize('split', SPLITS, ids=repr)
def test_original_is_unchanged(split):
    data = random_log(0)
    before = copy.deepcopy(data)
    parts = split(data)
    for part in parts:
        part[CLICKS].edge_label.clone().zero_()
        part['user'].extra = torch.zeros(1)
    assert data.to_dict().keys() == before.to_dict().keys()
    assert list(data[CLICKS].keys()) == list(before[CLICKS].keys())
    for name, value in before[CLICKS].items():
        assert torch.equal(data[CLICKS][name], value)
    assert 'extra' not in data['user']
    for part in parts:
        assert torch.equal(part['item'].category, data['item'].category)


def test_order_of_the_log_does_not_matter():
    data = random_log(0)
    ordered = copy.copy(data)
    for names in (
        ['edge_index', 'time', 'weight'],
        ['edge_label_index', 'edge_label'] + ['edge_label_time', 'edge_label_behavior'],
    ):
        key = 'time' if 'time' in names else 'edge_label_time'
        order = data[CLICKS][key].argsort(stable=True)
        for name in names:
            value = data[CLICKS][name]
            ordered[CLICKS][name] = value[:, order] if name.endswith('index') else value[order]
    for split in (SPLITS[2], SPLITS[4]):
        for part, other in zip(split(data), split(ordered), strict=True):
            store, expected = part[CLICKS], other[CLICKS]
            assert rows(store.edge_index, store.time) == rows(expected.edge_index, expected.time)
            assert Counter(
                rows(store.edge_label_index, store.edge_label_time, store.edge_label)
            ) == Counter(
                rows(expected.edge_label_index, expected.edge_label_time, expected.edge_label)
            )


def test_position_of_ties_is_shared():
    r"""User 0 has rows at 1, 1, 2, 3; user 1 at 5 and 9."""
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 1
    store = data[CLICKS]
    store.edge_label_index = torch.tensor([[0, 0, 0, 0, 1, 1], [0] * 6])
    store.edge_label_time = torch.tensor([1, 1, 2, 3, 5, 9])
    store.edge_label = torch.ones(6)
    store.edge_index, store.time = store.edge_label_index[:, :5], store.edge_label_time[:5]
    position, label_position = user_position(data)
    assert position.tolist() == [0, 0, 0.5, 0.75, 0]
    assert label_position.tolist() == [0, 0, 0.5, 0.75, 0, 0.5]


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ({'train_start': 0}, ValueError, "'train_start' must be a number in .0, 1., but got 0"),
        ({'train_start': 0.9}, ValueError, 'but got 0.9, 0.88, 0.9'),
        (
            {'val_start': 0.9},
            ValueError,
            "'val_start' and 'test_start' must ascend, but got 0.3, 0.9",
        ),
        ({'test_start': 1.0}, ValueError, "'test_start' must be .* but got 1.0"),
        ({'val_start': float('nan')}, ValueError, "'val_start' must be .* but got nan"),
        ({'train_start': '0.3'}, TypeError, "'train_start' must be a number.*'0.3'"),
        ({'num_windows': 0}, ValueError, "'num_windows'.*got 0"),
        ({'num_windows': True}, TypeError, "'num_windows'.*got True"),
        ({'by': 'item'}, ValueError, "'global', 'user', but got 'item'"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        TemporalSplit(**arguments)


@pytest.mark.parametrize('name', ['time', 'edge_label_index', 'edge_label', 'edge_label_time'])
def test_missing_attribute(name):
    data = random_log(0)
    del data[CLICKS][name]
    with pytest.raises(ValueError, match=rf"TemporalSplit needs .* to have \['{name}'\]"):
        TemporalSplit()(data)


def test_part_without_labels():
    data = random_log(0)
    data[CLICKS].edge_label_time = torch.full((400,), 7)
    with pytest.raises(ValueError, match="no training exposure: of 0 in the range.*by='user'"):
        TemporalSplit()(data)
    data = random_log(0)
    data[CLICKS].time = data[CLICKS].time + 1000
    with pytest.raises(
        ValueError, match='of 232 in the range, 0 have .* and 232 have a user or an item without'
    ):
        TemporalSplit()(data)


def test_graph_of_behaviors_made_from_the_whole_log():
    data = random_log(0)
    store = data[CLICKS]
    store.edge_label_behavior = store.edge_label.view(-1, 1).expand(-1, 2).clone()
    parts = TemporalSplit()(data)
    graph = BehaviorGraph().fit(parts[0])
    assert all(graph(part)['behavior'].num_nodes == 2 for part in parts)
    whole = BehaviorGraph()(data)
    with pytest.raises(ValueError, match=r"data\['behavior'\], made from the whole log.*Split fir"):
        TemporalSplit()(whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_on_another_device():
    with pytest.raises(ValueError, match='TemporalSplit works in main memory'):
        TemporalSplit()(random_log(0).to('cuda'))


@pytest.mark.parametrize('is_sorted', [False, True])
@pytest.mark.parametrize('by', ['global', 'user'])
@pytest.mark.parametrize('seed', range(2))
def test_exposures_before_the_last_cutoff_are_those_of_plain_loops(
    seed: int, by: str, is_sorted: bool
) -> None:
    data = random_log(seed)
    clicks = data[CLICKS]
    if is_sorted:
        order = clicks.edge_label_time.argsort(stable=True)
        for name in [name for name in clicks.keys() if name.startswith('edge_label')]:
            value = clicks[name]
            clicks[name] = value[:, order] if name == 'edge_label_index' else value[order]
    user, item = clicks.edge_label_index
    clicks.edge_label_hour, clicks.num_hour = (user + item) % 5 - 1, 5
    clicks.edge_label_query, clicks.num_query = torch.stack([user, item], dim=1) % 3, 3
    # Without a number of values beside it, it is no category; and a price is a number.
    clicks.edge_label_slot, clicks.edge_label_price = user % 4, item / 7
    clicks.edge_label_settled = clicks.edge_label_time + (user * item) % 4
    table = rows(
        clicks.edge_label_index, clicks.edge_label_time, clicks.edge_label,
        clicks.edge_label_settled, clicks.edge_label_hour, clicks.edge_label_query,
    )  # fmt: skip
    for part in TemporalSplit(num_windows=3, by=by)(data):
        cutoff = float(part[CLICKS].cutoff.max())
        expected, positions = [], []
        for row in table:
            clock = float(row[2])
            if by == 'user':
                own = [other[2] for other in table if other[0] == row[0]]
                clock = sum(time < row[2] for time in own) / len(own)
            if clock < cutoff:
                expected.append(row)
                positions.append(clock)
        sees = part[SEES]
        found = rows(sees.edge_index, sees.time, sees.clicked, sees.settled, sees.hour, sees.query)
        assert found == expected and 0 < len(found) < len(table)
        assert (sees.num_hour, sees.num_query) == (5, 3)
        names = {
            'edge_index',
            'time',
            'clicked',
            'settled',
            'hour',
            'query',
            'num_hour',
            'num_query',
        }
        assert {*sees.keys()} == names | ({'position'} if by == 'user' else set())
        if by == 'user':
            assert sees.position.tolist() == pytest.approx(positions, abs=1e-12)
