import copy

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader
from mag.models import SRJGraph
from mag.transforms import TemporalSplit

CLICKS = ('user', 'clicks', 'item')
REVERSE = ('item', 'rev_clicks', 'user')
WIDTHS = {'user': [4, 1, 3], 'item': [1, 4, 2]}


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return SyntheticMarket(60, 40, 4_000, num_groups=2, log=False)[0]


@pytest.fixture(scope='module')
def train(market: HeteroData) -> HeteroData:
    return TemporalSplit(num_windows=3)(market)[0]


def same(first: HeteroData, second: HeteroData) -> bool:
    stores = zip(first.stores, second.stores, strict=True)
    return all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for store, other in stores
        for name, value in store.items()
    )


def test_every_edge_is_a_click_between_its_ends(train: HeteroData) -> None:
    clicks = train[CLICKS]
    for batch in PathLoader(train, 100, widths=WIDTHS):
        target = batch[CLICKS]
        for edge_type in (REVERSE, CLICKS):
            store, (child, _, precursor) = batch[edge_type], edge_type
            ends = clicks.edge_index[:, store.e_id]
            user, item = (ends[0], ends[1]) if child == 'user' else (ends[1], ends[0])
            assert torch.equal(batch[child].n_id[store.edge_index[0]], user)
            assert torch.equal(batch[precursor].n_id[store.edge_index[1]], item)
            # Both ends belong to the target that they are earlier than.
            row = batch[child].batch[store.edge_index[0]]
            assert torch.equal(batch[precursor].batch[store.edge_index[1]], row)
            assert (store.time < target.edge_label_time[row]).all()
            for name in ('time', 'query', 'domain'):
                assert torch.equal(store[name], clicks[name][store.e_id])
        # At users only items of the target's category.
        category = train['item'].category
        root_item = batch['item'].n_id[: target.edge_label.numel()]
        store = batch[REVERSE]
        row = batch['item'].batch[store.edge_index[0]]
        assert torch.equal(batch['item'].category[store.edge_index[0]], category[root_item[row]])


def test_nodes_are_ordered_by_depth_and_by_precursor(train: HeteroData) -> None:
    for replace in (True, False):
        for batch in PathLoader(train, 100, widths=WIDTHS, replace=replace):
            size = batch[CLICKS].edge_label.numel()
            for child, edge_type in (('item', REVERSE), ('user', CLICKS)):
                store, nodes = batch[edge_type], batch[child]
                # A child is numbered by its edge, after the targets' own.
                numbers = torch.arange(store.e_id.numel()) + size
                assert torch.equal(store.edge_index[0], numbers)
                assert nodes.num_sampled_nodes == [size, *store.num_sampled_edges]
                assert sum(nodes.num_sampled_nodes) == nodes.num_nodes == nodes.n_id.numel()
                for edges in torch.arange(store.e_id.numel()).split(store.num_sampled_edges):
                    precursor = store.edge_index[1, edges]
                    assert (precursor.diff() >= 0).all()
                    newest_first = store.time[edges].diff() <= 0
                    assert newest_first[precursor.diff() == 0].all()


def test_targets_and_attributes_are_those_of_the_rows(train: HeteroData) -> None:
    loader = PathLoader(train, 64, shuffle=True, widths=WIDTHS)
    seen = []
    for batch in loader:
        target = batch[CLICKS]
        row = target.input_id
        seen.append(row)
        assert torch.equal(target.edge_label, train[CLICKS].edge_label[row])
        assert torch.equal(target.edge_label_query, train[CLICKS].edge_label_query[row])
        ends = [
            batch[name].n_id[target.edge_label_index[place]]
            for place, name in enumerate(('user', 'item'))
        ]
        assert torch.equal(torch.stack(ends), train[CLICKS].edge_label_index[:, row])
        for name in ('gender', 'age_level'):
            assert torch.equal(batch['user'][name], train['user'][name][batch['user'].n_id])
        assert torch.equal(batch['item'].x_text, train['item'].x_text[batch['item'].n_id])
        assert batch['item'].num_brand == train['item'].num_brand
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(len(loader.dataset)))


def test_same_seed_same_paths_for_any_number_of_workers(train: HeteroData) -> None:
    def batches(seed: int = 0, num_workers: int = 0) -> list[HeteroData]:
        loader = PathLoader(
            train, 300, shuffle=True, widths=WIDTHS, seed=seed, num_workers=num_workers
        )
        return list(loader)

    first = batches()
    assert all(map(same, first, batches()))
    assert all(map(same, first, batches(num_workers=2)))
    assert not any(map(same, first, batches(seed=1)))


def with_rows(data: HeteroData, rows: torch.Tensor) -> HeteroData:
    r"""The same clicks, and other exposures."""
    part = copy.copy(data)
    for name, value in data[CLICKS].items():
        if name.startswith('edge_label'):
            part[CLICKS][name] = value[..., rows] if name.endswith('index') else value[rows]
    return part


@pytest.mark.parametrize('replace', [True, False])
@pytest.mark.parametrize('num_later', [1, 700, 10_000])
@pytest.mark.parametrize('num_rows', [1, 300, 1_500])
def test_fixed_paths_do_not_depend_on_later_rows(
    train: HeteroData, replace: bool, num_later: int, num_rows: int
) -> None:
    rows = torch.randint(
        len(train[CLICKS].edge_label),
        (num_rows + num_later,),
        generator=torch.Generator().manual_seed(0),
    )
    first, all_rows = (
        PathLoader(with_rows(train, part), widths=WIDTHS, replace=replace, fixed=True, seed=3)
        for part in (rows[:num_rows], rows)
    )
    for root, levels in first.dataset.paths.items():
        for level, longer in zip(levels, all_rows.dataset.paths[root], strict=True):
            assert level.size(0) == num_rows
            assert torch.equal(level, longer[:num_rows])
    # Another seed draws other paths, and equal rows are drawn for anew.
    paths = all_rows.dataset.paths['user'][2]
    other = PathLoader(with_rows(train, rows), widths=WIDTHS, replace=replace, fixed=True, seed=4)
    assert not torch.equal(other.dataset.paths['user'][2], paths)
    again = rows.new_full((5_000,), int(rows[0]))
    twice = PathLoader(with_rows(train, again), widths=WIDTHS, fixed=True).dataset.paths['item'][2]
    if bool((twice >= 0).any()):
        assert len(twice.view(5_000, -1).unique(dim=0)) > 1


def test_epochs_draw_anew_unless_paths_are_fixed(train: HeteroData) -> None:
    for fixed in (False, True):
        loader = PathLoader(train, 300, shuffle=True, widths=WIDTHS, fixed=fixed)
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            paths = {}
            for batch in loader:
                for name, edge_type in (('item', REVERSE), ('user', CLICKS)):
                    row = batch[CLICKS].input_id[batch[name].batch[batch[edge_type].edge_index[0]]]
                    for key, click in zip(row.tolist(), batch[edge_type].e_id.tolist()):
                        paths.setdefault((name, key), []).append(click)
            epochs.append(paths)
        if fixed:
            assert epochs[0] == epochs[1]
        else:
            keys = epochs[0].keys() & epochs[1].keys()
            assert sum(epochs[0][key] == epochs[1][key] for key in keys) < 0.5 * len(keys)


def test_later_clicks_change_nothing(market: HeteroData, train: HeteroData) -> None:
    r"""A canary: every click of the log from the middle on is moved to other users and items."""
    clicks = train[CLICKS]
    middle = int(clicks.edge_label_time.median())
    part = copy.copy(train)
    early = clicks.edge_label_time <= middle
    for name in [name for name in clicks.keys() if name.startswith('edge_label')]:
        value = clicks[name]
        part[CLICKS][name] = value[:, early] if name == 'edge_label_index' else value[early]
    history = market
    canary = copy.copy(market)
    late = canary[CLICKS].time >= middle
    moved = canary[CLICKS].edge_index.clone()
    moved[:, late] = moved[:, late].flip(1)
    canary[CLICKS].edge_index = moved
    assert not torch.equal(moved, history[CLICKS].edge_index)
    before, after = (
        list(PathLoader(part, 200, widths=WIDTHS, history=log)) for log in (history, canary)
    )
    assert all(map(same, before, after))


def test_history_of_the_whole_log_reaches_further(market: HeteroData) -> None:
    _, _, test = TemporalSplit(num_windows=1)(market)
    own, whole = (
        next(iter(PathLoader(test, 400, widths={'user': [50], 'item': [50]}, **arguments)))
        for arguments in ({}, {'history': market})
    )
    assert own[REVERSE].time.max() < test[CLICKS].cutoff
    assert whole[REVERSE].time.max() >= test[CLICKS].cutoff


def test_targets_without_a_history(market: HeteroData) -> None:
    part = copy.copy(market)
    part[CLICKS].edge_label_time = torch.zeros_like(market[CLICKS].edge_label_time)
    batch = next(iter(PathLoader(part, 10, history=market)))
    assert batch['user'].num_sampled_nodes == [10, 0, 0, 0]
    assert batch[REVERSE].edge_index.shape == (2, 0)
    assert batch[REVERSE].query.shape == (0, 4)


def test_bad_input(market: HeteroData, train: HeteroData) -> None:
    other = SyntheticMarket(61, 40, 400, log=False)[0]
    with pytest.raises(ValueError, match='it has 61 users where the data has 60'):
        PathLoader(train, history=other)
    with pytest.raises(TypeError, match=r"takes no \['collate_fn'\]"):
        PathLoader(train, collate_fn=list)
    part = TemporalSplit(num_windows=1, by='user')(market)[0]
    with pytest.raises(ValueError, match="split by each user's own log"):
        PathLoader(part)
    PathLoader(part, history=market)


def test_batches_hold_no_conversion_without_a_click(train: HeteroData) -> None:
    part = copy.copy(train)
    clicks = part[CLICKS]
    clicks.edge_label_conversion = torch.ones_like(clicks.edge_label)
    loader = PathLoader(part, 20, widths=WIDTHS)
    with pytest.raises(ValueError, match="PathLoader found 'edge_label_conversion' in .* without"):
        next(iter(loader))
    # A request holds none.
    contexts = {'query': torch.full((4,), -1), 'domain': 0}
    batch = loader.request(4, torch.arange(3), int(clicks.edge_label_time[-1]), **contexts)
    assert 'edge_label_conversion' not in batch[CLICKS]


def test_a_batch_holds_the_attributes_that_are_named(train: HeteroData) -> None:
    expected = next(iter(PathLoader(train, 20, widths=WIDTHS)))
    names = ['category', 'time']
    batch = next(iter(PathLoader(train, 20, widths=WIDTHS, batch_attributes=names)))
    for key, left_out in {
        'user': ['gender', 'age_level'],
        'item': ['brand', 'seller', 'price_level', 'x_visual', 'x_acoustic', 'x_text'],
        CLICKS: ['query', 'domain'],
        REVERSE: ['query', 'domain'],
    }.items():
        for name in left_out:
            del expected[key][name]
        assert {*batch[key].keys()} == {*expected[key].keys()}
    assert same(expected, batch)
    bare = next(iter(PathLoader(train, 20, widths=WIDTHS, batch_attributes=[])))
    assert not {'category', 'time'} & {name for store in bare.stores for name in store.keys()}
    with pytest.raises(ValueError, match=r"one of 'age_level', 'brand', .* but got 'taste'"):
        PathLoader(train, batch_attributes=['time', 'taste'])
    with pytest.raises(TypeError, match=r"such as \['time', 'query'\], but got 'time'"):
        PathLoader(train, batch_attributes='time')


def test_attributes_of_any_kind(train: HeteroData) -> None:
    r"""Numbers without a dimension, and names that the loader gives itself."""
    expected = next(iter(PathLoader(train, 20, widths=WIDTHS)))
    data = copy.copy(train)
    data['item'].scale = data[CLICKS].scale = torch.tensor(3.0)
    for node_type in ('user', 'item'):
        number = torch.arange(data[node_type].num_nodes)
        data[node_type].n_id = data[node_type].batch = number + 1_000
    data[CLICKS].e_id = data[CLICKS].time + 1
    batch = next(iter(PathLoader(data, 20, widths=WIDTHS)))
    assert batch['item'].scale == 3
    assert 'scale' not in batch[CLICKS]
    for node_type in ('user', 'item'):
        for name in ('n_id', 'batch'):
            assert torch.equal(batch[node_type][name], expected[node_type][name])
    for edge_type in (CLICKS, REVERSE):
        assert torch.equal(batch[edge_type].e_id, expected[edge_type].e_id)
    for name in ('edge_label_extra', 'edge_label_smoothing'):
        data = copy.copy(train)
        data[CLICKS][name] = torch.zeros(3) if name == 'edge_label_extra' else 0.1
        with pytest.raises(ValueError, match=rf"'{name}' to be a tensor .*got (shape \[3\]|0.1)"):
            PathLoader(data)


def test_a_batch_is_valid_and_can_be_written(train: HeteroData) -> None:
    batch = next(iter(PathLoader(train, 20, widths=WIDTHS)))
    assert batch.validate()
    batch[CLICKS].edge_label_index += 1
    assert batch[CLICKS].edge_label_index.tolist() == [list(range(1, 21))] * 2


def test_a_request_reads_what_the_loaded_rows_read(market: HeteroData) -> None:
    # Of all candidates nothing is drawn, so that what is loaded and what is served is the same.
    widths, history = {'user': [400, 400], 'item': [400, 400]}, market
    train, val, _ = TemporalSplit(num_windows=1)(market)
    loader = PathLoader(val, 8, widths=widths, attribute=None, replace=False, history=history)
    model = SRJGraph.from_data(train).eval()
    batch = next(iter(loader))
    rows, clicks = batch[CLICKS].input_id, val[CLICKS]
    user, item = clicks.edge_label_index[:, rows]
    request = loader.request(
        user,
        item,
        clicks.edge_label_time[rows],
        query=clicks.edge_label_query[rows],
        domain=clicks.edge_label_domain[rows],
    )
    assert batch['user'].num_nodes > 1000
    followed = ('edge_label', 'edge_label_row', 'edge_label_behavior', 'edge_label_conversion')
    for name in (*followed, 'input_id'):
        assert name in batch[CLICKS] and name not in request[CLICKS]
        del batch[CLICKS][name]
    for store, other in zip(batch.stores, request.stores, strict=True):
        assert {*store.keys()} == {*other.keys()}
    assert same(batch, request)
    with torch.no_grad():
        assert torch.equal(model(batch), model(request))


def test_a_candidate_has_its_paths_whatever_else_is_asked(market: HeteroData) -> None:
    loader = PathLoader(market, widths=WIDTHS, attribute=None)
    time, items = int(market[CLICKS].time.max()) + 1, torch.tensor([5, -1, 2, 9])
    users = torch.tensor([4, 4, -1, 0])
    contexts = {'query': market[CLICKS].edge_label_query[:1], 'domain': 0}

    def clicks_of(rows: list[int]) -> list[list[list[int]]]:
        batch = loader.request(users[rows], items[rows], time, **contexts)
        found = []
        for child, edge_type in (('user', CLICKS), ('item', REVERSE)):
            target = batch[child].batch[len(rows) :]
            found.append(
                [batch[edge_type].e_id[target == row].tolist() for row in range(len(rows))]
            )
        return [list(of_target) for of_target in zip(*found)]

    whole = clicks_of([0, 1, 2, 3])
    assert whole[0][0] and whole[0][1] and whole[3][0]
    for rows in ([3, 2, 1, 0], [2], [0], [1, 3]):
        assert clicks_of(rows) == [whole[row] for row in rows]
