import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader
from mag.transforms import SampleNegatives, TargetCounts, TemporalSplit
from mag.transforms.macro_coarsen import MacroCoarsen

CLICKS = ('user', 'clicks', 'item')
BY = ['uniform', 'popularity', 'exposure']


def make_log(
    num_rows: int = 600, share: float = 0.7, num_users: int = 12, num_items: int = 40
) -> HeteroData:
    r"""A random log with all that a log may tell of an exposure, some of them in the same second,
    whose clicks come up to 20 seconds later and of which a share was clicked."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape or (num_rows,), generator=generator)

    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    data['item'].category, data['item'].num_category = torch.arange(num_items) % 4, 4
    data['user'].group, data['user'].num_group = torch.arange(num_users) % 3, 3
    clicks = data[CLICKS]
    time = draw(num_rows).sort().values
    popular = (torch.rand(num_rows, generator=generator) ** 2 * num_items).long()
    clicks.edge_label_index = torch.stack([draw(num_users), popular])
    clicked = torch.rand(num_rows, generator=generator) < share
    clicks.edge_label, clicks.edge_label_time = clicked.float(), time
    later = (time + draw(20))[clicked].sort()
    clicks.time = later.values
    clicks.edge_index = clicks.edge_label_index[:, clicked][:, later.indices]
    clicks.edge_label_settled = time + 20 + draw(5)
    clicks.edge_label_device, clicks.num_device = draw(3), 3
    clicks.edge_label_query, clicks.num_query = draw(9, num_rows, 2), 9
    clicks.edge_label_x = torch.rand(num_rows, 2, generator=generator)
    clicks.edge_label_weight = torch.rand(num_rows, generator=generator)
    clicks.edge_label_conversion = clicked * draw(2).float()
    clicks.edge_label_behavior = clicked[:, None] * draw(2, num_rows, 3).float()
    return data


def clicks_only(num_rows: int = 600, **sizes: int) -> HeteroData:
    r"""A log of clicks alone, at the time of their exposures."""
    data = make_log(num_rows, share=1.1, **sizes)
    clicks = data[CLICKS]
    clicks.edge_index, clicks.time = clicks.edge_label_index, clicks.edge_label_time
    del clicks.edge_label_settled
    return data


def take(clicks: Any, name: str, rows: Any) -> torch.Tensor:
    r"""Some rows of what is told of exposures."""
    return clicks[name][:, rows] if name == 'edge_label_index' else clicks[name][rows]


def of_labels(clicks: Any) -> list[str]:
    return [name for name in clicks.keys() if name.startswith('edge_label')]


def may_be_drawn(data: HeteroData, row: int, by: str, exclude: str) -> Counter:
    r"""How likely each item is for a row, up to a factor, by the words of the docstring."""
    clicks = data[CLICKS]
    clicked = list(zip(*clicks.edge_index.tolist(), clicks.time.tolist(), strict=True))
    times = clicks.edge_label_time.tolist()
    shown = list(zip(*clicks.edge_label_index.tolist(), times, strict=True))
    positive = [event for event, y in zip(shown, clicks.edge_label.tolist(), strict=True) if y]
    user, _, time = shown[row]
    taken = {i for u, i, t in clicked + positive if u == user and (t <= time or exclude == 'all')}
    events = {'uniform': clicked + shown, 'popularity': clicked, 'exposure': shown}[by]
    earlier = [i for _, i, t in events if t < time and i not in taken]
    return Counter(set(earlier) if by == 'uniform' else earlier)


@pytest.mark.parametrize('exclude', ['past', 'all'])
@pytest.mark.parametrize('by', BY)
def test_rows_are_those_of_the_log_and_what_may_be_drawn(by: str, exclude: str) -> None:
    r"""In the order of time, whatever that of the log is, and each clicked row before its own."""
    data, num = make_log(200, num_users=6, num_items=16), 3
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    # What shares a second keeps the order of the log.
    source = data[CLICKS]
    for name in of_labels(source):
        source[name] = take(source, name, order)
    before = {name: value.clone() for name, value in source.items() if torch.is_tensor(value)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = SampleNegatives(num, by, exclude)(data)[CLICKS]
    assert all(torch.equal(source[name], value) for name, value in before.items())
    assert torch.equal(out.edge_index, source.edge_index) and torch.equal(out.time, source.time)

    place = num_without = 0
    for row in source.edge_label_time.argsort(stable=True).tolist():
        for name in of_labels(source):
            assert torch.equal(take(out, name, place), take(source, name, row)), name
        place += 1
        if not source.edge_label[row]:
            continue
        expected = may_be_drawn(data, row, by, exclude)
        num_without += not expected
        for _ in range(num if expected else 0):
            user, item = out.edge_label_index[:, place].tolist()
            assert user == source.edge_label_index[0, row] and item in expected
            for name in ('time', 'device', 'query', 'x', 'weight'):
                name = f'edge_label_{name}'
                assert torch.equal(out[name][place], source[name][row]), name
            assert out.edge_label[place] == out.edge_label_conversion[place] == 0
            assert out.edge_label_behavior[place].tolist() == [0, 0, 0]
            of_user = source.edge_label_index[0] == user
            up_to_then = of_user & (source.edge_label_time <= source.edge_label_time[row])
            settled = source.edge_label_settled[up_to_then].max()
            assert out.edge_label_settled[place] == settled
            place += 1
    assert place == out.edge_label.numel() and out.num_without_negatives == num_without > 0
    assert set(out.keys()) == {*source.keys(), 'num_without_negatives'}


@pytest.mark.parametrize('exclude', ['past', 'all'])
@pytest.mark.parametrize('by', BY)
def test_items_are_drawn_with_their_chances(by: str, exclude: str) -> None:
    r"""A chi-square test over all rows, of which most have some items left that are popular."""
    data, num = make_log(150, num_users=8, num_items=12), 1000
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = SampleNegatives(num, by, exclude)(data)[CLICKS]
    added = out.edge_label_index[1]
    statistic = freedom = place = 0.0
    for row, label in enumerate(data[CLICKS].edge_label.tolist()):
        place += 1
        expected = may_be_drawn(data, row, by, exclude) if label else Counter()
        if expected:
            found = Counter(added[int(place) : int(place) + num].tolist())
            share = num / expected.total()
            statistic += sum((found[i] - n * share) ** 2 / (n * share) for i, n in expected.items())
            freedom += len(expected) - 1
            place += num
    assert freedom > 150
    assert 0.001 < stats.chi2.sf(statistic, freedom) < 0.999


@pytest.mark.parametrize('by', BY)
def test_later_rows_change_no_draw(by: str) -> None:
    r"""Neither what is clicked later, nor by whom, nor items that nobody knew."""
    log, transform = make_log(), SampleNegatives(2, by)
    expected = transform(log)[CLICKS]
    generator = torch.Generator().manual_seed(2)
    for moment in (100, 300, 450):
        changed = log.clone()
        changed['item'].num_nodes += 20
        clicks = changed[CLICKS]
        late = clicks.edge_label_time >= moment
        clicks.edge_label_index = clicks.edge_label_index.clone()
        new = torch.randint(60, (int(late.sum()),), generator=generator)
        clicks.edge_label_index[1, late] = new
        clicks.edge_label[late] = 1 - clicks.edge_label[late]
        is_old = clicks.time < moment
        clicks.edge_index, clicks.time = clicks.edge_index[:, is_old], clicks.time[is_old]
        out = transform(changed)[CLICKS]
        rows, other_rows = expected.edge_label_time < moment, out.edge_label_time < moment
        assert int(rows.sum()) > moment
        for name in ('edge_label_index', 'edge_label', 'edge_label_time', 'edge_label_query'):
            assert torch.equal(take(expected, name, rows), take(out, name, other_rows)), name


def pairs_drawn(out: Any, first: int, last: int) -> set[tuple[int, int]]:
    rows = (out.edge_label == 0) & (out.edge_label_time >= first) & (out.edge_label_time < last)
    return set(zip(*out.edge_label_index[:, rows].tolist(), strict=True))


@pytest.mark.parametrize('by', ['uniform', 'popularity'])
def test_all_tells_what_is_clicked_later_and_past_does_not(by: str) -> None:
    data = clicks_only(900, num_items=80)
    clicks = data[CLICKS]
    is_late = clicks.time >= 600
    later = set(zip(*clicks.edge_index[:, is_late].tolist(), strict=True))
    drawn = {
        e: pairs_drawn(SampleNegatives(4, by, e)(data)[CLICKS], 100, 600) for e in ('past', 'all')
    }
    assert not drawn['all'] & later
    # Of what is clicked later for the first time, nearly all was drawn before.
    first = later - set(zip(*clicks.edge_index[:, ~is_late].tolist(), strict=True))
    known = {pair for pair in first if pair[1] in clicks.edge_index[1, clicks.time < 500]}
    assert len(known) > 50 and len(drawn['past'] & known) > 0.8 * len(known)


def test_the_seed_decides() -> None:
    data = clicks_only()
    first, again, other = (
        SampleNegatives(2, seed=seed)(data)[CLICKS].edge_label_index for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    # More draws begin with the same ones.
    more = SampleNegatives(3)(data)[CLICKS].edge_label_index[1].view(-1)
    assert first.size(1) < more.numel()


def test_a_click_that_is_listed_twice_has_draws_of_its_own() -> None:
    data = clicks_only(300)
    clicks = data[CLICKS]
    twice = torch.arange(300).repeat_interleave(2)
    for name in of_labels(clicks):
        clicks[name] = take(clicks, name, twice)
    clicks.edge_index, clicks.time = clicks.edge_label_index, clicks.edge_label_time
    out = SampleNegatives(1)(data)[CLICKS]
    drawn = out.edge_label_index[1, out.edge_label == 0].view(-1, 2)
    assert 0 < (drawn[:, 0] == drawn[:, 1]).double().mean() < 0.3


def test_who_clicked_all_but_one_draws_that_one() -> None:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 6
    clicks = data[CLICKS]
    clicks.edge_index = torch.tensor([[1] * 5 + [0] * 4, [0, 1, 2, 3, 4, 0, 1, 2, 4]])
    clicks.time = torch.tensor([0] * 5 + [1, 2, 3, 4])
    clicks.edge_label_index, clicks.edge_label_time = clicks.edge_index, clicks.time
    clicks.edge_label = torch.ones(9)
    for by in ('uniform', 'popularity'):
        with pytest.warns(UserWarning, match='added nothing to 5 of 9 clicks, whose users have'):
            out = SampleNegatives(50, by)(data)[CLICKS]
        assert out.num_without_negatives == 5
        drawn = out.edge_label_index[1, out.edge_label == 0].view(4, 50)
        # Item 5 is in no row, and is not there.
        left = [[1, 2, 3, 4], [2, 3, 4], [3, 4], [3]]
        assert [row.unique().tolist() for row in drawn] == left
        with pytest.warns(UserWarning, match='added nothing to 5 of 9'):
            out = SampleNegatives(50, by, 'all')(data)[CLICKS]
        assert out.edge_label_index[1, out.edge_label == 0].unique().tolist() == [3]


def test_a_log_of_clicks_alone_trains_on_both_classes() -> None:
    r"""What is added is split, read and counted as any exposure."""
    data = SampleNegatives(3, 'popularity')(clicks_only(2000))
    parts = TemporalSplit()(data)
    counts = TargetCounts().fit(MacroCoarsen({'user': 'group', 'item': 'category'})(parts[0]))
    for part in parts:
        clicks = part[CLICKS]
        assert 0.2 < clicks.edge_label.mean() < 0.35
        assert int((part['user', 'sees', 'item'].clicked == 0).sum()) > 0
        part = counts(MacroCoarsen({'user': 'group', 'item': 'category'})(part))
        for batch in ExposureLoader(part):
            assert batch.label.unique().tolist() == [0, 1]
            assert batch.conversion is not None and not batch.conversion[batch.label == 0].any()


def test_repr_shows_every_argument() -> None:
    assert repr(SampleNegatives()) == (
        "SampleNegatives(num=1, by='uniform', exclude='past', seed=0)"
    )
