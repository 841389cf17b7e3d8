import copy

import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkNeighborLoader

from mag.loader import PairLoader
from mag.macro_graph import MacroRows
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit, window
from mag.transforms._clock import user_position

CLICKS = ('user', 'clicks', 'item')
SEES = ('user', 'sees', 'item')
NUM_WINDOWS = 4
ATTRIBUTES = {'user': 'group', 'item': 'category'}
LEARNED = {'user': [4, 'group'], 'item': ['category', 5]}


@pytest.fixture(params=['global', 'user'])
def train(click_log: HeteroData, request: pytest.FixtureRequest) -> HeteroData:
    r"""A part that rolls, by time and by position."""
    click_log[CLICKS].edge_label_hour = click_log[CLICKS].edge_label_time % 5
    click_log[CLICKS].num_hour = 5
    return TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS, by=request.param)(click_log)[0]


def events(index: Tensor, *columns: Tensor) -> list[tuple]:
    return list(zip(*index.tolist(), *(column.tolist() for column in columns), strict=True))


def labels(data: HeteroData) -> list[tuple]:
    clicks = data[CLICKS]
    return events(
        clicks.edge_label_index, clicks.edge_label_time, clicks.edge_label, clicks.edge_label_hour
    )


def share_in_graph(data: HeteroData) -> float:
    r"""Of the positive labels, how many are edges of the graph."""
    clicks = data[CLICKS]
    clicked = clicks.edge_label == 1
    positive = events(clicks.edge_label_index[:, clicked], clicks.edge_label_time[clicked])
    edges = set(events(clicks.edge_index, clicks.time))
    return sum(row in edges for row in positive) / len(positive)


def test_labels_of_a_rolling_part_are_edges_of_it_and_of_no_view(train: HeteroData) -> None:
    # Those of the last window alone are not: a fourth of the rows.
    assert 0.6 < share_in_graph(train) < 0.9
    assert [share_in_graph(window(train, number)) for number in range(NUM_WINDOWS)] == [0.0] * 4


def test_views_are_those_of_plain_loops(train: HeteroData) -> None:
    clicks, sees = train[CLICKS], train[SEES]
    name = 'position' if 'position' in clicks else 'time'
    rows = labels(train)
    shown = 0
    for number, cutoff in enumerate(clicks.cutoff.tolist()):
        view = window(train, number)
        history = events(clicks.edge_index, clicks.time, clicks[name])
        assert events(view[CLICKS].edge_index, view[CLICKS].time, view[CLICKS][name]) == [
            row for row in history if row[3] < cutoff
        ]
        seen = events(sees.edge_index, sees.time, sees.clicked, sees.hour, sees[name])
        store = view[SEES]
        assert events(store.edge_index, store.time, store.clicked, store.hour, store[name]) == [
            row for row in seen if row[5] < cutoff
        ]
        of_window = clicks.edge_label_window.tolist()
        assert labels(view) == [row for row, of in zip(rows, of_window) if of == number]
        assert view[CLICKS].cutoff.tolist() == [cutoff]
        for gone in ('edge_label_window', 'num_dropped', 'num_unsettled'):
            assert gone in clicks and gone not in view[CLICKS]
        shown += view[CLICKS].edge_label.numel()
    assert shown == clicks.edge_label.numel()


def test_the_part_stays_as_it_was(train: HeteroData) -> None:
    train = MacroCoarsen(LEARNED, edge_tensors=True).fit(train)(RecentNeighbors(3)(train))
    before = copy.deepcopy(train)
    window(train, 1)
    assert train.edge_types == before.edge_types
    for store, expected in zip(train.stores, before.stores, strict=True):
        assert list(store.keys()) == list(expected.keys())
        for name, value in store.items():
            if isinstance(value, Tensor):
                assert torch.equal(value.to_dense(), expected[name].to_dense())


def test_transforms_of_a_view_are_views_of_the_transform(train: HeteroData) -> None:
    coarsen = MacroCoarsen(ATTRIBUTES, exposure_hops=2)
    counts = None
    if 'position' not in train[CLICKS]:
        counts = TargetCounts().fit(coarsen(train))
    macro = RecentNeighbors(3)(coarsen(train))
    macro = macro if counts is None else counts(macro)
    for number in range(NUM_WINDOWS):
        view, expected = window(macro, number), window(train, number)
        expected = RecentNeighbors(3)(coarsen(expected))
        for node_type in ('user', 'item'):
            assert torch.equal(view[node_type].recent, expected[node_type].recent)
            assert torch.equal(view[node_type].cluster, expected[node_type].cluster)
        assert view.edge_types == expected.edge_types
        for source, relation, target in view.edge_types:
            if source.startswith('macro_'):
                assert_same_edges(
                    view[source, relation, target], expected[source, relation, target]
                )
        if counts is not None:
            expected = counts(expected)
            assert torch.equal(view[CLICKS].edge_label_counts, expected[CLICKS].edge_label_counts)


def assert_same_edges(store: HeteroData, other: HeteroData) -> None:
    assert store.edge_weight.dim() == 1
    rows, expected = (
        dict(zip(events(s.edge_index), s.edge_weight.tolist())) for s in (store, other)
    )
    assert rows == {edge: weight for edge, weight in expected.items() if weight > 0}


def test_macro_rows_of_a_view_are_those_of_its_window(train: HeteroData) -> None:
    macro = MacroCoarsen(LEARNED).fit(train)(RecentNeighbors(3)(train))
    whole = MacroRows(macro)
    for number in range(NUM_WINDOWS):
        view = window(macro, number)
        rows = MacroRows(view)
        for node_type in ('user', 'item'):
            node = torch.arange(train[node_type].num_nodes)
            hops, recent = whole.rows(node_type, node, torch.full_like(node, number))
            view_hops, view_recent = rows.rows(node_type, node)
            assert torch.equal(recent, view_recent)
            assert all(torch.equal(a, b) for a, b in zip(hops, view_hops, strict=True))
    (batch,) = PairLoader(view)
    assert len(batch.user) == view[CLICKS].edge_label.numel()


def test_what_later_windows_know_is_in_no_view(train: HeteroData) -> None:
    macro = MacroCoarsen(LEARNED, edge_tensors=True).fit(train)(train)
    num_unknown = 0
    for number, cutoff in enumerate(train[CLICKS].cutoff.tolist()):
        view = window(macro, number)
        for node_type, name, at in (('user', 'cluster', 0), ('item', 'cluster_5', 1)):
            cluster, since = view[node_type][name], macro[node_type][f'{name}_since']
            assert torch.equal(cluster, macro[node_type][name].where(since <= cutoff, -1))
            # Who has clicked by then has one.
            assert bool((cluster[view[CLICKS].edge_index[at]] >= 0).all())
            macro_type = f'macro_{node_type}' + name.removeprefix('cluster')
            sizes = [int((cluster == value).sum()) for value in range(len(view[macro_type].size))]
            assert view[macro_type].size.tolist() == sizes
            num_unknown += int((cluster < macro[node_type][name]).sum())
            assert ('macro_edges_1' in view[node_type]) == (number == NUM_WINDOWS - 1)
    assert num_unknown > 0


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_the_view_of_a_part_that_does_not_roll_is_the_part(click_log: HeteroData) -> None:
    train, val, _ = TemporalSplit(0.3, 0.8, 0.9, 1)(click_log)
    for part in (train, MacroCoarsen(LEARNED).fit(train)(val)):
        view = window(part, 0)
        assert view.edge_types == part.edge_types
        for store, expected in zip(view.stores, part.stores, strict=True):
            for name, value in store.items():
                if isinstance(value, Tensor) and 'cluster' not in name and name != 'size':
                    assert torch.equal(value, expected[name])


def test_the_future_changes_no_view(click_log: HeteroData) -> None:
    split = TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS)
    other = copy.deepcopy(click_log)
    clicks, cutoffs = other[CLICKS], split(click_log)[0][CLICKS].cutoff
    late, late_label = clicks.time >= cutoffs[2], clicks.edge_label_time >= cutoffs[2]
    clicks.edge_index[1, late] = (clicks.edge_index[1, late] + 1) % 15
    clicks.edge_label_index[1, late_label] = (clicks.edge_label_index[1, late_label] + 1) % 15
    for number in range(2):
        view, same = (window(split(data)[0], number) for data in (click_log, other))
        for store, expected in zip(view.stores, same.stores, strict=True):
            for name, value in store.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name]))


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
@pytest.mark.sparse
def test_clicks_that_are_known_later_are_in_no_view(click_log: HeteroData) -> None:
    click_log[CLICKS].edge_label_settled = click_log[CLICKS].edge_label_time + 40
    train = TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS)(click_log)[0]
    for number, cutoff in enumerate(train[CLICKS].cutoff.tolist()):
        sees, seen = train[SEES], window(train, number)[SEES]
        is_before = sees.time < cutoff
        settled = sees.settled[is_before] < cutoff
        assert torch.equal(seen.clicked, sees.clicked[is_before] * settled)
        assert bool((sees.clicked[is_before] * ~settled).any())


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_clicks_of_a_user_are_in_no_view_that_begins_before_they_are_known(
    click_log: HeteroData,
) -> None:
    clicks = click_log[CLICKS]
    clicks.edge_label_settled = clicks.edge_label_time + 40
    train = TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS, by='user')(click_log)[0]
    rows = list(zip(*(x.tolist() for x in (clicks.edge_label_index[0], clicks.edge_label_time))))
    position = dict(zip(rows, user_position(click_log)[1].tolist()))
    sees, num_hidden = T.ToUndirected(merge=False)(train)[SEES], 0
    for number, cutoff in enumerate(train[CLICKS].cutoff.tolist()):
        # When each user's window begins, by what the part knows of the user.
        start: dict[int, int] = {}
        for user, time in {
            *zip(train[SEES].edge_index[0].tolist(), train[SEES].time.tolist()),
            *zip(
                train[CLICKS].edge_label_index[0].tolist(), train[CLICKS].edge_label_time.tolist()
            ),
        }:
            if position[user, time] >= cutoff:
                start[user] = min(time, start.get(user, time))
        view = window(T.ToUndirected(merge=False)(train), number)
        for edge_type, row in ((SEES, 0), (('item', 'rev_sees', 'user'), 1)):
            store = view[edge_type]
            is_before = sees.position < cutoff
            expected = [
                clicked * (settled < start.get(user, settled + 1))
                for user, settled, clicked in zip(
                    sees.edge_index[0, is_before].tolist(),
                    sees.settled[is_before].tolist(),
                    sees.clicked[is_before].tolist(),
                    strict=True,
                )
            ]
            assert store.clicked.tolist() == expected
            assert torch.equal(store.edge_index[row], sees.edge_index[0, is_before])
        num_hidden += int(sees.clicked[is_before].sum()) - sum(expected)
    assert num_hidden > 20


@pytest.mark.parametrize('by', ['global', 'user'])
def test_reversed_edges_are_cut_as_those_they_reverse(click_log: HeteroData, by: str) -> None:
    train = TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS, by=by)(click_log)[0]
    for number in range(NUM_WINDOWS):
        first = window(T.ToUndirected(merge=False)(train), number)
        second = T.ToUndirected(merge=False)(window(train, number))
        assert first.edge_types == second.edge_types
        for edge_type in second.edge_types:
            for name, value in second[edge_type].items():
                assert torch.equal(torch.as_tensor(first[edge_type][name]), torch.as_tensor(value))


def test_other_edges_are_cut_by_their_time(click_log: HeteroData) -> None:
    train = TemporalSplit(0.3, 0.8, 0.9, NUM_WINDOWS)(click_log)[0]
    follows = train['user', 'follows', 'user']
    # In no order, and past the last cutoff.
    follows.time = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    follows.edge_index = torch.stack([follows.time % 7, follows.time % 5])
    follows.weight = follows.time.float()
    for number, cutoff in enumerate(train[CLICKS].cutoff.tolist()):
        store = window(train, number)['user', 'follows', 'user']
        is_before = follows.time < cutoff
        assert 0 < int(is_before.sum()) < 900
        assert torch.equal(store.time, follows.time[is_before])
        assert torch.equal(store.weight, store.time.float())
        assert torch.equal(store.edge_index, follows.edge_index[:, is_before])
    follows.time = follows.time.float()
    with pytest.raises(TypeError, match=r"'time of data\['user', 'follows', 'user'\]' of int64"):
        window(train, 0)


def test_other_edges_are_refused(train: HeteroData) -> None:
    name = 'position' if 'position' in train[CLICKS] else 'time'
    train['user', 'follows', 'user'].edge_index = torch.tensor([[0], [1]])
    message = f"found edges or hyperedges of .*'follows', 'user'.* without a '{name}'"
    with pytest.raises(ValueError, match=message):
        window(train, 0)
    if name == 'position':
        # A time tells nothing of when a share of a user's own log was reached.
        train['user', 'follows', 'user'].time = torch.tensor([0])
        with pytest.raises(ValueError, match=message):
            window(train, 0)
    del train['user', 'follows', 'user']
    train['item'].hyperedge_index = torch.tensor([[0], [0]])
    with pytest.raises(ValueError, match="hyperedges of \\['item'\\] without"):
        window(train, 0)


@pytest.mark.sparse
@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without")
def test_no_neighborhood_of_a_view_holds_a_label(train: HeteroData) -> None:
    def leaked(data: HeteroData) -> int:
        r"""How many labels are edges of the neighborhoods that they are sampled with."""
        data = T.ToUndirected(merge=False)(data)
        for edge_type in (CLICKS, ('item', 'rev_clicks', 'user')):
            data[edge_type].click = torch.arange(data[edge_type].edge_index.size(1))
        clicks, found = data[CLICKS], 0
        labelled = torch.stack([*clicks.edge_label_index, clicks.edge_label_time])
        loader = LinkNeighborLoader(
            data, [-1, -1], (CLICKS, clicks.edge_label_index), clicks.edge_label, batch_size=64
        )
        for batch in loader:
            read = batch[CLICKS].click
            edges = torch.stack([*clicks.edge_index, clicks.time])[:, read]
            rows = labelled[:, batch[CLICKS].input_id]
            found += int((rows.t().unsqueeze(1) == edges.t()).all(-1).any(1).sum())
        return found

    assert leaked(train) > 100
    assert [leaked(window(train, number)) for number in range(NUM_WINDOWS)] == [0] * NUM_WINDOWS
