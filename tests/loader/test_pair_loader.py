import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import PairBatch, PairLoader
from mag.macro_graph import MacroRows
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
GROUPS = {'user': 'group', 'item': 'category'}
RECENT = 4


def parts(
    log: HeteroData, num_windows: int, groups: dict[str, Any] | None = None
) -> list[HeteroData]:
    r"""Training, validation and test part, ready for the loader."""
    split = TemporalSplit(0.4, 0.8, 0.9, num_windows=num_windows)(log)
    coarsen = MacroCoarsen(groups or GROUPS).fit(split[0])
    recent = RecentNeighbors(RECENT)
    return [coarsen(recent(part)) for part in split]


def assert_same(batch: PairBatch, other: PairBatch) -> None:
    assert type(batch.user_hops) is type(other.user_hops) is tuple
    torch.testing.assert_close(tuple(batch), tuple(other), rtol=0, atol=0)


def row_by_hand(log: HeteroData, user: int, item: int, cutoff: int) -> list[list[int]]:
    r"""Counts and recent lists of one pair, from the log, click by click."""
    clicks = log[CLICKS]
    known = [(u, i) for (u, i), t in zip(clicks.edge_index.t().tolist(), clicks.time) if t < cutoff]
    group, category = log['user'].group.tolist(), log['item'].category.tolist()
    items_of = {u: {i for v, i in known if v == u} for u, _ in known}
    users_of = {i: {u for u, j in known if j == i} for _, i in known}
    hops = [[0] * 4, [0] * 3, [0] * 3, [0] * 4]
    for i in items_of[user]:
        hops[0][category[i]] += 1
        for u in users_of[i]:
            hops[1][group[u]] += 1
    for u in users_of[item]:
        hops[2][group[u]] += 1
        for i in items_of[u]:
            hops[3][category[i]] += 1
    user_recent = [i for u, i in known if u == user][-RECENT:]
    item_recent = [u for u, i in known if i == item][-RECENT:]
    return [
        *hops,
        [-1] * (RECENT - len(user_recent)) + user_recent,
        [-1] * (RECENT - len(item_recent)) + item_recent,
    ]


def rows_of(macro_rows: MacroRows, user: Tensor, item: Tensor, window: Tensor) -> list[Tensor]:
    (user_hops, user_recent), (item_hops, item_recent) = (
        macro_rows.rows(node_type, node, window)
        for node_type, node in (('user', user), ('item', item))
    )
    return [*user_hops, *item_hops, user_recent, item_recent]


def flatten(batch: PairBatch) -> list[Tensor]:
    return [*batch.user_hops, *batch.item_hops, batch.user_recent, batch.item_recent]


@pytest.mark.parametrize('num_windows', [1, 5])
def test_batches_are_what_the_clicks_before_the_cutoff_say(
    click_log: HeteroData, num_windows: int
) -> None:
    for number, part in enumerate(parts(click_log, num_windows)):
        clicks = part[CLICKS]
        cutoff = clicks.cutoff
        if number == 0 and num_windows > 1:
            assert clicks.edge_label_window.unique().tolist() == list(range(num_windows))
            cutoff = cutoff[clicks.edge_label_window]
        cutoff = cutoff.expand(clicks.edge_label.shape)
        assert bool((clicks.edge_label_time >= cutoff).all())
        row = 0
        for batch in PairLoader(part, batch_size=64):
            for b in range(batch.user.numel()):
                user, item = clicks.edge_label_index[:, row].tolist()
                assert (batch.user[b], batch.item[b]) == (user, item)
                assert batch.label[b] == clicks.edge_label[row]
                expected = row_by_hand(click_log, user, item, int(cutoff[row]))
                assert [table[b].tolist() for table in flatten(batch)] == expected
                row += 1
        assert row == clicks.edge_label.numel()


def test_golden_macro_rows(toy_graph: HeteroData) -> None:
    data = MacroCoarsen(GROUPS)(RecentNeighbors(3)(toy_graph))
    (batch,) = PairLoader(data)
    user, item = toy_graph[CLICKS].edge_label_index
    assert torch.equal(batch.user_hops[0], torch.tensor([[2.0, 1], [1, 1], [0, 2]])[user])
    assert torch.equal(batch.user_hops[1], torch.tensor([[4.0, 1], [3, 1], [2, 2]])[user])
    assert torch.equal(batch.item_hops[0], torch.tensor([[1.0, 0], [2, 0], [1, 1], [1, 1]])[item])
    assert torch.equal(batch.item_hops[1], torch.tensor([[2.0, 1], [3, 2], [2, 3], [1, 3]])[item])
    assert torch.equal(batch.user_recent, torch.tensor([[0, 1, 2], [-1, 1, 3], [-1, 2, 3]])[user])
    recent = torch.tensor([[-1, -1, 0], [-1, 0, 1], [-1, 0, 2], [-1, 1, 2]])
    assert torch.equal(batch.item_recent, recent[item])
    assert torch.equal(batch.label, toy_graph[CLICKS].edge_label)


@pytest.mark.parametrize('groups', [GROUPS, {'user': 3, 'item': 'category'}])
def test_later_clicks_never_change_an_earlier_row(
    click_log: HeteroData, groups: dict[str, Any]
) -> None:
    train, val, test = parts(click_log, 5, groups)
    for window, cutoff in enumerate(train[CLICKS].cutoff.tolist()):
        changed = copy.copy(click_log)
        clicks = changed[CLICKS]
        later = clicks.time >= cutoff
        clicks.edge_index = clicks.edge_index.clone()
        clicks.edge_index[0, later] = 0
        clicks.edge_index[1, later] = (clicks.edge_index[1, later] * 7 + 3) % 15
        other = parts(changed, 5, groups)[0]
        rows = (train[CLICKS].edge_label_window <= window).nonzero().view(-1)
        assert torch.equal((other[CLICKS].edge_label_window <= window).nonzero().view(-1), rows)
        before, after = PairLoader(train).dataset, PairLoader(other).dataset
        assert_same(before[rows], after[rows])
        # The canary can sing: the rows of the next window do change.
        if window < 4:
            rows = (train[CLICKS].edge_label_window == window + 1).nonzero().view(-1)[:5]
            pair = train[CLICKS].edge_label_index[:, rows]
            step = torch.full_like(rows, window + 1)
            one, two = (rows_of(part.macro_rows, *pair, step) for part in (before, after))
            assert any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_clicks_of_the_test_period_never_change_validation(click_log: HeteroData) -> None:
    _, val, _ = parts(click_log, 5)
    changed = copy.copy(click_log)
    clicks = changed[CLICKS]
    later = clicks.time >= val[CLICKS].cutoff
    clicks.edge_index = clicks.edge_index.clone()
    clicks.edge_index[:, later] = 0
    (batch,), (other,) = PairLoader(val), PairLoader(parts(changed, 5)[1])
    assert_same(batch, other)


@pytest.mark.parametrize('num_windows', [1, 5])
def test_request_is_the_batch_of_the_same_pairs(click_log: HeteroData, num_windows: int) -> None:
    train, _, test = parts(click_log, num_windows)
    (batch,) = PairLoader(test)
    request = PairLoader(test).request(batch.user, batch.item)
    assert_same(request, batch._replace(label=None))

    # A training part answers as of its last cutoff.
    clicks = train[CLICKS]
    loader = PairLoader(train)
    last = torch.arange(clicks.edge_label.numel())
    if num_windows > 1:
        last = (clicks.edge_label_window == num_windows - 1).nonzero().view(-1)
    row = int(last[-1])
    user, item = clicks.edge_label_index[:, row].tolist()
    expected = row_by_hand(click_log, user, item, int(clicks.cutoff.max()))
    for one_user in (user, torch.tensor(user), torch.tensor([user])):
        request = loader.request(one_user, torch.tensor([0, item]))
        assert request.user.tolist() == [user, user]
        assert request.item.tolist() == [0, item]
        assert [table[1].tolist() for table in flatten(request)] == expected
        assert request.label is None


def test_workers_make_the_same_batches(click_log: HeteroData) -> None:
    train = parts(click_log, 5)[0]
    here = PairLoader(train, batch_size=50, shuffle=True, seed=1)
    there = PairLoader(train, batch_size=50, shuffle=True, seed=1, num_workers=2)
    assert len(here) == len(there) == len(list(here))
    for batch, other in zip(here, there):
        assert_same(batch, other)


def test_shuffling_permutes_the_rows(click_log: HeteroData) -> None:
    train = parts(click_log, 5)[0]

    def rows(**kwargs: Any) -> PairBatch:
        (batch,) = PairLoader(train, batch_size=10_000, **kwargs)
        return batch

    batch, other = rows(), rows(shuffle=True, seed=5)
    generator = torch.Generator().manual_seed(5 * 1_000_003)
    order = torch.randperm(batch.user.numel(), generator=generator)
    for table, shuffled in zip([*flatten(batch), batch.label], [*flatten(other), other.label]):
        assert torch.equal(table[order], shuffled)


def test_sampler_of_the_loader_resumes_and_sets_the_epoch(click_log: HeteroData) -> None:
    loader = PairLoader(parts(click_log, 1)[0], batch_size=32, shuffle=True)
    loader.sampler.set_epoch(3)
    whole = list(loader)
    loader.sampler.skip = 2
    for batch, other in zip(loader, whole[2:], strict=True):
        assert_same(batch, other)


def test_without_recent_lists_they_are_empty(toy_graph: HeteroData) -> None:
    (batch,) = PairLoader(MacroCoarsen(GROUPS)(toy_graph))
    assert batch.user_recent.shape == batch.item_recent.shape == (12, 0)


def test_without_exposures_it_serves_requests_only(toy_graph: HeteroData) -> None:
    data = MacroCoarsen(GROUPS)(toy_graph)
    for name in ('edge_label_index', 'edge_label', 'edge_label_time'):
        del data[CLICKS][name]
    loader = PairLoader(data)
    assert len(loader) == 0 and list(loader) == []
    assert loader.request(1, [3]).user_hops[0].tolist() == [[1, 1]]


def test_all_hops_in_the_order_of_hops(toy_graph: HeteroData) -> None:
    (batch,) = PairLoader(MacroCoarsen(GROUPS, num_hops=3)(toy_graph))
    user, item = toy_graph[CLICKS].edge_label_index
    assert torch.equal(batch.user_hops[2], torch.tensor([[3.0, 4], [3, 4], [3, 4]])[user])
    assert torch.equal(batch.item_hops[2], torch.tensor([[4.0, 1], [5, 2], [5, 2], [4, 2]])[item])


def dense_floats(data: HeteroData, node_type: str, num_windows: int) -> list[Tensor]:
    r"""The macro rows as one float32 table a hop, as they are defined."""
    tables = []
    for hop in (1, 2):
        (relation,) = (r for r in data.edge_types if r[1] == f'hop{hop}' and r[2] == node_type)
        macro, node = data[relation].edge_index
        table = torch.zeros(data[node_type].num_nodes, num_windows, data[relation[0]].num_nodes)
        table[node, :, macro] = data[relation].edge_weight.view(macro.numel(), -1)
        tables.append(table.flatten(0, 1))
    return tables


@pytest.mark.parametrize('num_windows', [1, 5])
@pytest.mark.parametrize(
    ('largest', 'dtype'),
    [
        (255, torch.uint8),
        (256, torch.int16),
        (2**15 - 1, torch.int16),
        (2**15, torch.int32),
        (2**24, torch.int32),
        (2**31, torch.float32),
        (0.5, torch.float32),
    ],
)
def test_counts_are_held_in_the_smallest_type_and_read_as_floats(
    click_log: HeteroData, num_windows: int, largest: float, dtype: torch.dtype
) -> None:
    part = parts(click_log, num_windows)[0]
    part['macro_item', 'hop1', 'user'].edge_weight[-1] = largest
    loader = PairLoader(part, batch_size=64, shuffle=True)
    assert [table.dtype for table in loader.dataset.macro_rows.hops['user']] == [dtype, torch.uint8]
    rows = torch.arange(len(loader.dataset))
    batch = loader.dataset[rows]
    window = part[CLICKS].edge_label_window if num_windows > 1 else torch.zeros_like(rows)
    for node_type, node, hops in (
        ('user', batch.user, batch.user_hops),
        ('item', batch.item, batch.item_hops),
    ):
        expected = dense_floats(part, node_type, num_windows)
        for table, float_table in zip(hops, expected, strict=True):
            assert table.dtype == torch.float32
            assert torch.equal(table, float_table[node * num_windows + window])


def test_tables_that_take_too_much_are_refused(click_log: HeteroData) -> None:
    part = parts(click_log, 5)[0]
    # Each node has a row over 4 categories and one over 3 groups, a byte a count, and a byte for
    # each recent neighbor; and a number of four bytes tells where it is.
    macro_rows = PairLoader(part).dataset.macro_rows
    num_bytes = 4 * 5 * sum(
        macro_rows.num_nodes[name] for name, place in macro_rows.place.items() if place is not None
    ) + sum(len(lists) * (3 + 4 + RECENT) for lists in macro_rows.recent.values())
    PairLoader(part, max_bytes=num_bytes)
    with pytest.raises(
        ValueError,
        match=r'counts of 25 users and 15 items over 5 windows in 0 MiB, more than the 0 MiB of '
        "'max_bytes': take fewer windows or clusters, or a larger 'max_bytes'",
    ):
        PairLoader(part, max_bytes=num_bytes - 1)


def test_the_estimate_comes_before_the_memory(click_log: HeteroData) -> None:
    part = parts(click_log, 1)[0]
    part['macro_item'].num_nodes = 2**50
    with pytest.raises(ValueError, match='more than the 8,192 MiB'):
        PairLoader(part)


@pytest.mark.parametrize('missing', ['edge_label_time', 'time'])
def test_it_says_where_it_cannot_check_for_the_future(toy_graph: HeteroData, missing: str) -> None:
    data = MacroCoarsen(GROUPS)(toy_graph)
    del data[CLICKS].cutoff
    expected = flatten(next(iter(PairLoader(data))))
    del data[CLICKS][missing]
    with pytest.warns(UserWarning, match=f"cannot check .* have no '{missing}': keep the times"):
        loader = PairLoader(data)
    assert all(torch.equal(*pair) for pair in zip(flatten(next(iter(loader))), expected))


def test_it_is_silent_where_there_is_nothing_to_check(toy_graph: HeteroData) -> None:
    data = MacroCoarsen(GROUPS)(toy_graph)
    clicks = data[CLICKS]
    del clicks.edge_label_time
    # Macro rows without a click know no future, and neither do requests.
    without_clicks = copy.copy(data)
    without_clicks[CLICKS].edge_index = clicks.edge_index[:, :0]
    without_exposures = copy.copy(data)
    del without_exposures[CLICKS].edge_label_index
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        PairLoader(without_clicks)
        PairLoader(without_exposures)


def test_wrong_requests(toy_graph: HeteroData) -> None:
    loader = PairLoader(MacroCoarsen(GROUPS)(toy_graph))
    for user, items, error, message in (
        (3, [0], IndexError, 'user ids from 3 to 3, but expected them from -1 to 2'),
        (0, [0, 4], IndexError, 'item ids from 0 to 4, but expected them from -1 to 3'),
        (-2, [0], IndexError, 'user ids from -2 to -2'),
        (0.5, [0], TypeError, "'user' must hold integer ids, but has dtype torch.float32"),
        (0, [0.0], TypeError, "'items' must hold integer ids"),
        ([0, 1], [0, 1, 2], ValueError, r'items of shape \[3\] and users of shape \[2\]'),
        (0, [[0, 1]], ValueError, r'items of shape \[1, 2\]'),
        ([[0]], [0, 1], ValueError, r'items of shape \[2\] and users of shape \[1, 1\]'),
    ):
        with pytest.raises(error, match=message):
            loader.request(user, items)


def test_wrong_data(click_log: HeteroData) -> None:
    train = parts(click_log, 5)[0]

    def broken(**attributes: Any) -> HeteroData:
        data = copy.copy(train)
        for name, value in attributes.items():
            data[CLICKS][name] = value
        return data

    with pytest.raises(TypeError, match='PairLoader expects a HeteroData'):
        PairLoader({'user': 1})
    with pytest.raises(ValueError, match=r"no macro edges of 'user'.*apply MacroCoarsen first"):
        PairLoader(click_log)
    clicks = train[CLICKS]
    num = clicks.edge_label.numel()
    data = broken()
    del data[CLICKS].edge_label_window
    with pytest.raises(ValueError, match="5 cutoffs but no 'edge_label_window'"):
        PairLoader(data)
    with pytest.raises(
        ValueError, match=rf"'edge_label' of shape \[{num}\].*got shape \[{num - 1}\]"
    ):
        PairLoader(broken(edge_label=clicks.edge_label[1:]))
    with pytest.raises(
        IndexError, match="'edge_label_window' from 1 to 5, but expected them from 0 to 4"
    ):
        PairLoader(broken(edge_label_window=clicks.edge_label_window + 1))
    with pytest.raises(ValueError, match='exposures before the cutoff.*see their own future'):
        PairLoader(broken(edge_label_time=clicks.edge_label_time - 1))
    with pytest.raises(IndexError, match="'edge_label_window' from 0 to 4, .* from 0 to 3"):
        PairLoader(broken(cutoff=clicks.cutoff[:4]))
    data = broken(cutoff=clicks.cutoff[:4], edge_label_window=clicks.edge_label_window.clamp(max=3))
    with pytest.raises(
        ValueError, match=r"PairLoader expects 'edge_weight of hop1 of users' .*, 4\], but"
    ):
        PairLoader(data)
    data = broken()
    data['item'].recent = data['item'].recent[:, 0]
    with pytest.raises(ValueError, match=r"data\['item'\].recent' of shape \[15, 5, num\]"):
        PairLoader(data)


@pytest.mark.parametrize('name', ['sampler', 'batch_sampler', 'drop_last', 'collate_fn', 'dataset'])
def test_arguments_that_the_loader_makes_itself(toy_graph: HeteroData, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        PairLoader(MacroCoarsen(GROUPS)(toy_graph), **{name: None})


def test_a_loader_holds_the_rows_that_its_labels_ask_for(click_log: HeteroData) -> None:
    train = parts(click_log, 12)[0]
    clicks = train[CLICKS]
    # A few labels, so that few rows are asked for.
    for name in ('edge_label_index', 'edge_label', 'edge_label_time', 'edge_label_window'):
        clicks[name] = clicks[name][..., ::8]
    loader = PairLoader(train, batch_size=16, num_workers=2)
    macro_rows, every = loader.dataset.macro_rows, MacroRows(train)
    for row, node_type in enumerate(('user', 'item')):
        cells = clicks.edge_label_index[row] * 12 + clicks.edge_label_window
        num_nodes = train[node_type].num_nodes
        num_asked = int((cells.unique() % 12 < 11).sum())
        assert num_asked > 0 and macro_rows.place[node_type] is not None
        for table in (*macro_rows.hops[node_type], macro_rows.recent[node_type]):
            assert len(table) == num_nodes + num_asked < 12 * num_nodes
    start = 0
    for batch in loader:
        rows = slice(start, start + batch.user.numel())
        expected = rows_of(every, batch.user, batch.item, clicks.edge_label_window[rows])
        assert all(map(torch.equal, flatten(batch), expected))
        start = rows.stop
    assert start == clicks.edge_label.numel()
    request = loader.request(torch.tensor([-1, 3]), torch.tensor([2, -1]))
    last = torch.tensor([11, 11])
    assert all(map(torch.equal, flatten(request), rows_of(every, request.user, request.item, last)))
