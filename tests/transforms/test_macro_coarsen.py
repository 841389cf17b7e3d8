import copy
import inspect
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_geometric.data import HeteroData, InMemoryDataset
from torch_geometric.nn import SAGEConv, to_hetero

from mag.datasets import SyntheticMarket
from mag.loader import PairLoader
from mag.macro_graph import Grouping, MacroEdges, MacroRows
from mag.macro_graph.sparse_counts import MacroNodes, SparseCounts
from mag.schema import NEIGHBOR_TYPE, hops
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
SEES = ('user', 'sees', 'item')
GROUPS: dict[str, int | str] = {'user': 4, 'item': 'category'}
NUM = {'user': 40, 'item': 24}
VARIANTS = [
    {'groups': GROUPS},
    {'groups': GROUPS, 'behavior': 'raw'},
    {'groups': GROUPS, 'spherical': True, 'binary': False},
    {'groups': {'user': 'gender', 'item': 5}, 'mode': 'walk', 'num_hops': 3},
    {'groups': {'user': 4, 'item': 5}, 'projection_dim': 8},
    {'groups': {'user': 4, 'item': 5}, 'behavior': {'user': 'macro'}},
    {'groups': {'user': 'gender', 'item': 'category'}, 'num_hops': 3},
    {'groups': {'user': [4, 'gender'], 'item': ['category', 5, 3]}, 'exposure_hops': 2},
    {
        'groups': {'user': ['gender', 4], 'item': [5, 'category']},
        'further_hops': 2,
        'binary': False,
    },
]


def planted_log(seed: int = 0, num_rows: int = 1500) -> HeteroData:
    r"""Users of four kinds, each clicking items of one category; some nodes appear late."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_rows)
    share = (time + num_rows // 4).double() / (1.25 * num_rows)
    user = (torch.rand(num_rows, generator=generator) * share * NUM['user']).long()
    item = (torch.rand(num_rows, generator=generator) * share * NUM['item']).long()
    likes = user % 4 == item % 4
    chance = torch.where(likes, 0.9, 0.05)
    label = (torch.rand(num_rows, generator=generator) < chance).float()
    data = HeteroData()
    for node_type, name, num in (('user', 'gender', 2), ('item', 'category', 4)):
        data[node_type].num_nodes = NUM[node_type]
        data[node_type][name] = torch.arange(NUM[node_type]) % num
        data[node_type][f'num_{name}'] = num
    clicks = data[CLICKS]
    clicks.edge_index = torch.stack([user, item])[:, label == 1]
    clicks.time = time[label == 1]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), label
    clicks.edge_label_time = time
    return data


def split(data: HeteroData, num_windows: int = 4) -> tuple[HeteroData, HeteroData, HeteroData]:
    return TemporalSplit(0.3, 0.7, 0.85, num_windows)(data)


def dense(data: HeteroData, node_type: str, hop: int) -> Tensor:
    r"""Counts of shape [N, M], or [N, M, S] over windows."""
    return dense_edges(data, hops(data, node_type)[hop - 1])


def dense_edges(data: HeteroData, relation: tuple[str, str, str]) -> Tensor:
    r"""The counts of an edge type, target nodes in rows."""
    store = data[relation]
    macro, node = store.edge_index
    shape = tuple(data[name].num_nodes for name in (relation[2], relation[0]))
    shape = (*shape, *store.edge_weight.shape[1:])
    table = torch.zeros(shape)
    table[node, macro] = store.edge_weight
    return table


def assert_same(data: HeteroData, other: HeteroData) -> None:
    assert data.edge_types == other.edge_types
    for node_type in ('user', 'item'):
        assert torch.equal(data[node_type].cluster, other[node_type].cluster)
        assert torch.equal(data[f'macro_{node_type}'].size, other[f'macro_{node_type}'].size)
    for edge_type in data.edge_types:
        if edge_type not in (CLICKS, SEES):
            assert torch.equal(data[edge_type].edge_index, other[edge_type].edge_index)
            assert torch.equal(data[edge_type].edge_weight, other[edge_type].edge_weight)


def test_a_cluster_is_known_since_the_cutoff_that_first_knows_its_node() -> None:
    r"""Of a node of the history that clusters are learned from it is always known: all rows come
    after that, and it was all that decided."""
    train, val, _ = split(planted_log())
    coarsen = MacroCoarsen({'user': 4, 'item': 'category'}).fit(train)
    never, always = torch.iinfo(torch.long).max, torch.iinfo(torch.long).min
    first = int(train[CLICKS].cutoff[0])
    at_fit: list[int] = []
    for part in (train, val):
        coarse = coarsen(part)
        clicks = part[CLICKS]
        since = []
        for user in range(part['user'].num_nodes):
            time = clicks.time[clicks.edge_index[0] == user]
            later = [int(c) for c in clicks.cutoff if time.numel() and time.min() < c]
            since.append(later[0] if later else never)
            if since[-1] == first:
                since[-1] = always
        # What was known at fit stays known since then.
        since = [min(pair) for pair in zip(since, at_fit or since, strict=True)]
        assert coarse['user'].cluster_since.tolist() == since
        assert ((coarse['user'].cluster < 0) == (coarse['user'].cluster_since == never)).all()
        assert 'cluster_since' not in coarse['item']
        at_fit = at_fit or since
    assert len(set(at_fit)) > 2 and always in at_fit


def test_parts_cut_by_position_know_no_cluster_before_the_first_cutoff() -> None:
    r"""A user's first share may lie later than the row of another user."""
    train = TemporalSplit(0.3, 0.7, 0.85, 4, by='user')(planted_log())[0]
    since = (
        MacroCoarsen({'user': [4, 3], 'item': 'category'}).fit(train)(train)['user'].cluster_since
    )
    assert since.min() == train[CLICKS].cutoff[0]


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
@pytest.mark.parametrize('num_windows', [1, 4])
def test_each_window_equals_coarsening_it_alone(arguments, num_windows):
    train, val, test = split(planted_log(), num_windows)
    coarsen = MacroCoarsen(**arguments).fit(train)
    for part in (train, val, test):
        out = coarsen(part)
        cluster = {node_type: out[node_type].cluster for node_type in NUM}
        sizes = {node_type: out[f'macro_{node_type}'].num_nodes for node_type in NUM}
        for step, cutoff in enumerate(part[CLICKS].cutoff):
            edges = MacroEdges(
                cluster['user'],
                cluster['item'],
                sizes,
                coarsen.num_hops,
                coarsen.mode,
                coarsen.binary,
            ).update(part[CLICKS].edge_index[:, part[CLICKS].time < cutoff])
            at = (..., step) if part[CLICKS].cutoff.numel() > 1 else (...,)
            for node_type in NUM:
                for hop in range(1, coarsen.num_hops + 1):
                    table = dense(out, node_type, hop)[at]
                    assert np.array_equal(table.numpy(), edges.counts[node_type][hop - 1])


@pytest.mark.parametrize('binary', [True, False])
def test_counts_by_hand(binary):
    r"""User 0 clicked item 0 twice and item 1, user 1 clicked item 1."""
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 2
    data['user'].gender, data['user'].num_gender = torch.tensor([0, 1, 1]), 2
    data['item'].category, data['item'].num_category = torch.tensor([2, 0]), 3
    data[CLICKS].edge_index = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    out = MacroCoarsen({'user': 'gender', 'item': 'category'}, binary=binary)(data)
    twice = 1 if binary else 2
    assert out['user'].cluster.tolist() == [0, 1, 1]
    assert out['macro_user'].num_nodes == 2
    assert out['macro_user'].size.tolist() == [1, 2]
    assert out['macro_item'].num_nodes == 3
    assert out['macro_item'].size.tolist() == [1, 0, 1]
    store = out['macro_item', 'hop1', 'user']
    assert store.edge_index.tolist() == [[0, 2, 0], [0, 0, 1]]
    assert store.edge_weight.tolist() == [1, twice, 1]
    assert store.edge_weight.dtype == torch.float
    assert store.edge_index.dtype == torch.long
    store = out['macro_user', 'hop1', 'item']
    assert store.edge_index.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert store.edge_weight.tolist() == [twice, 1, 1]
    # N^(2) of user 0 is {0, 1}, reached over items 0 and 1.
    store = out['macro_user', 'hop2', 'user']
    assert store.edge_index.tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert store.edge_weight.tolist() == [1 + twice, 1, 1, 1]
    coarse = out['macro_user', 'clicks', 'macro_item']
    assert {
        tuple(e): w for e, w in zip(coarse.edge_index.t().tolist(), coarse.edge_weight.tolist())
    } == {
        (0, 2): twice,
        (0, 0): 1,
        (1, 0): 1,
    }


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_invariants(arguments):
    train, _, _ = split(planted_log())
    out = MacroCoarsen(**arguments).fit(train)(train)
    clicks = train[CLICKS]
    for step, cutoff in enumerate(clicks.cutoff):
        seen = clicks.edge_index[:, clicks.time < cutoff]
        R = torch.zeros(NUM['user'], NUM['item'])
        R.index_put_(tuple(seen), torch.ones(seen.size(1)), accumulate=True)
        if arguments.get('binary', True):
            R = (R > 0).float()
        assert torch.equal(dense(out, 'user', 1)[..., step].sum(1), R.sum(1))
        assert torch.equal(dense(out, 'item', 1)[..., step].sum(1), R.sum(0))
        if arguments.get('binary', True):
            assert torch.equal(dense(out, 'user', 2)[..., step].sum(1), (R @ R.t()).sum(1))
            assert torch.equal(dense(out, 'item', 2)[..., step].sum(1), (R.t() @ R).sum(1))
        coarse = out['macro_user', 'clicks', 'macro_item'].edge_weight[:, step]
        assert coarse.sum() == R.sum()
    for node_type in NUM:
        cluster = out[node_type].cluster
        size = out[f'macro_{node_type}'].size
        assert size.sum() == (cluster >= 0).sum()
        assert torch.equal(size, cluster[cluster >= 0].bincount(minlength=size.numel()))
        groups = arguments['groups'][node_type]
        first = groups[0] if isinstance(groups, list) else groups
        if isinstance(first, str):
            assert torch.equal(cluster, train[node_type][first])
        else:
            # Known are exactly those who clicked before the last cutoff.
            clicked = clicks.edge_index[0 if node_type == 'user' else 1].unique()
            assert torch.equal((cluster >= 0).nonzero().view(-1), clicked)


def test_macro_behavior_finds_the_planted_kinds():
    train, _, test = split(planted_log(num_rows=4000))
    coarsen = MacroCoarsen(GROUPS).fit(train)
    for part in (train, test):
        cluster = coarsen(part)['user'].cluster
        kinds = torch.zeros(4, 4).index_put_(
            ((torch.arange(NUM['user']) % 4)[cluster >= 0], cluster[cluster >= 0]),
            torch.ones(()),
            accumulate=True,
        )
        # Late users have a few clicks only, and may fall to another kind.
        assert (kinds.amax(0).sum() / kinds.sum()).item() > 0.8


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_edge_tensors(arguments):
    train, val, _ = split(planted_log())
    coarsen = MacroCoarsen(**arguments, edge_tensors=True).fit(train)
    for part in (train, val):
        out = coarsen(part)
        for node_type in NUM:
            for hop in range(1, coarsen.num_hops + 1):
                edges = out[node_type][f'macro_edges_{hop}']
                assert edges.is_sparse
                table = dense(out, node_type, hop)
                last = table[..., -1] if part is train else table
                assert torch.equal(edges.to_dense().sum(1).float(), last)
    assert 'macro_edges_1' not in MacroCoarsen(GROUPS).fit(train)(train)['user']


def replaced_after(data: HeteroData, moment: int, seed: int = 1) -> HeteroData:
    r"""The same log up to a moment, and from there on other users, items and clicks, at the times
    of the old, so that the quantiles stay."""
    generator = torch.Generator().manual_seed(seed)
    out = copy.copy(data)
    clicks = out[CLICKS]
    for name, time in (('edge_index', clicks.time), ('edge_label_index', clicks.edge_label_time)):
        late = time >= moment
        index = clicks[name].clone()
        for row, num in enumerate(NUM.values()):
            index[row, late] = torch.randint(num, (int(late.sum()),), generator=generator)
        clicks[name] = index
    return out


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_nothing_learns_from_the_future(arguments):
    r"""Whatever happens from a cutoff on, nothing as of that cutoff changes: clusters of nodes that
    were there, centroids, counts."""
    data = planted_log()
    train, val, _ = split(data)
    fitted = MacroCoarsen(**arguments).fit(train)
    before = fitted(train)
    cutoffs = [*train[CLICKS].cutoff.tolist(), val[CLICKS].cutoff.item()]
    appeared = 0
    for step, cutoff in enumerate(cutoffs):
        other_train, other_val, _ = split(replaced_after(data, cutoff))
        assert torch.equal(other_train[CLICKS].cutoff, train[CLICKS].cutoff)
        other = MacroCoarsen(**arguments).fit(other_train)
        for node_type, grouping in fitted.groupings.items():
            assert torch.equal(grouping.centroids, other.groupings[node_type].centroids)
        after = other(other_train)
        known = train[CLICKS].edge_index[:, train[CLICKS].time < cutoff]
        for row, node_type in enumerate(NUM):
            node = known[row].unique()
            appeared += node.numel()
            assert torch.equal(before[node_type].cluster[node], after[node_type].cluster[node])
            for hop in range(1, fitted.num_hops + 1):
                table, expected = dense(after, node_type, hop), dense(before, node_type, hop)
                assert torch.equal(table[..., : step + 1], expected[..., : step + 1])
        for edge_type in before.edge_types:
            if edge_type not in (CLICKS, SEES):
                table, expected = (dense_edges(data, edge_type) for data in (after, before))
                assert torch.equal(table[..., : step + 1], expected[..., : step + 1])
        # Clicks of validation and test change nothing about the training part.
        if step == len(cutoffs) - 1:
            assert_same(before, after)
            assert not torch.equal(other_val[CLICKS].edge_label_index, val[CLICKS].edge_label_index)
    assert appeared > 0


@pytest.mark.parametrize(
    'twin', [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_earlier_parts_are_refused(twin):
    r"""Clusters of a later part know the future of an earlier one."""
    data = planted_log()
    train, val, test = split(data)
    by_user = TemporalSplit(0.3, 0.7, 0.85, by='user')(data)
    coarsen = twin(MacroCoarsen(GROUPS).fit(val))
    cutoff, first = int(val[CLICKS].cutoff), int(train[CLICKS].cutoff[0])
    sentence = f'as of time {cutoff}, but the first cutoff of this data is time {first}, and its'
    with pytest.raises(ValueError, match=f'MacroCoarsen was fitted {sentence} rows may read their'):
        coarsen(train)
    with pytest.raises(ValueError, match='time and a position in a user.s own log cannot be comp'):
        coarsen(by_user[2])
    with pytest.raises(ValueError, match='MacroCoarsen was fitted as of time 1498, .* is time 12'):
        twin(MacroCoarsen(GROUPS).fit(data))(test)
    for part in (val, test, data):
        assert coarsen(part)['user'].cluster.max() == 3
    coarsen = twin(MacroCoarsen(GROUPS).fit(by_user[0]))
    assert all(coarsen(part)['user'].cluster.max() == 3 for part in by_user)
    # Attributes are known at all times.
    coarsen = twin(MacroCoarsen({'user': 'gender', 'item': 'category'}).fit(test))
    assert torch.equal(coarsen(train)['user'].cluster, data['user'].gender)


SEVERAL = {'user': [4, 6, 'gender'], 'item': ['category', 5, 3]}


@pytest.mark.parametrize('num_windows', [1, 4])
def test_several_resolutions_are_those_of_as_many_calls(num_windows: int) -> None:
    parts = split(planted_log(), num_windows)
    coarsen = MacroCoarsen(SEVERAL).fit(parts[0])
    alone = {'user': SEVERAL['user'][0], 'item': SEVERAL['item'][0]}
    for node_type, groups in SEVERAL.items():
        for place, group in enumerate(groups):
            single = MacroCoarsen({**alone, node_type: group}).fit(parts[0])
            suffix = f'_{group}' if place > 0 else ''
            for part in parts:
                several, one = coarsen(part), single(part)
                for name in ('cluster', 'cluster_since'):
                    assert (name in one[node_type]) == isinstance(group, int) or name == 'cluster'
                    if name in one[node_type]:
                        ours = several[node_type][name.replace('cluster', f'cluster{suffix}')]
                        assert torch.equal(ours, one[node_type][name])
                macro, other = f'macro_{node_type}', NEIGHBOR_TYPE[node_type]
                assert torch.equal(several[f'{macro}{suffix}'].size, one[macro].size)
                assert several[f'{macro}{suffix}'].num_nodes == one[macro].num_nodes
                for relation in ('hop1', 'sees1'):
                    ours = several[f'{macro}{suffix}', relation, other]
                    theirs = one[macro, relation, other]
                    assert torch.equal(ours.edge_index, theirs.edge_index)
                    assert torch.equal(ours.edge_weight, theirs.edge_weight)


def test_several_resolutions_leave_what_models_read_as_it_is() -> None:
    r"""Fine resolutions are never made dense."""
    train, val, _ = split(planted_log())
    alone = {'user': SEVERAL['user'][0], 'item': SEVERAL['item'][0]}
    several, single = MacroCoarsen(SEVERAL).fit(train), MacroCoarsen(alone).fit(train)
    for part in (train, val):
        ours, theirs = several(part), single(part)
        for node_type in NUM:
            assert hops(ours, node_type) == hops(theirs, node_type)
        for edge_type in theirs.edge_types:
            for name, value in theirs[edge_type].items():
                same = torch.equal(torch.as_tensor(ours[edge_type][name]), torch.as_tensor(value))
                assert same, (edge_type, name)
        rows, expected = MacroRows(ours), MacroRows(theirs)
        for node_type in NUM:
            for table, other in zip(rows.hops[node_type], expected.hops[node_type], strict=True):
                assert torch.equal(table, other)
        for batch, other in zip(PairLoader(ours, 64), PairLoader(theirs, 64), strict=True):
            ours_and_theirs = zip(tree_leaves(batch), tree_leaves(other), strict=True)
            assert all(torch.equal(a, b) for a, b in ours_and_theirs)
    assert (several.num_hops, len(several.groupings)) == (2, 4)
    assert several(train)['macro_item_5', 'hop1', 'user'].edge_weight.layout == torch.strided
    assert repr(MacroCoarsen({'user': [4], 'item': ['category']}).fit(train)(train)) == repr(
        single(train)
    )


def test_target_counts_view_resolutions_in_the_order_of_the_list() -> None:
    train, _, _ = split(planted_log())
    names = TargetCounts().fit(MacroCoarsen(SEVERAL).fit(train)(train)).names
    assert names[2:8] == [
        'user x item_cluster', 'user x item_cluster_5', 'user x item_cluster_3',
        'user_cluster x item', 'user_cluster_6 x item', 'user_cluster_gender x item',
    ]  # fmt: skip
    assert len(names) == 2 + 6 + 9


def by_brute_force(
    out: HeteroData, edge_type: tuple[str, str, str], cutoff: int, binary: bool, mode: str
) -> Tensor:
    r"""Eq. 5 over exposures, or over clicks, of the macro nodes that are known by a cutoff."""
    macro, relation, target = edge_type
    events = out[SEES if relation.startswith('sees') else CLICKS]
    before = events.time < cutoff
    R = torch.zeros(NUM['user'], NUM['item'])
    R.index_put_(tuple(events.edge_index[:, before]), torch.ones(()), accumulate=True)
    if binary:
        R = (R > 0).float()
    one_hot = {}
    for node_type in NUM:
        if macro.startswith(f'macro_{node_type}'):
            name = 'cluster' + macro.removeprefix(f'macro_{node_type}')
            cluster = out[node_type][name]
            never = torch.full_like(cluster, torch.iinfo(torch.long).min)
            is_known = (cluster >= 0) & (out[node_type].get(f'{name}_since', never) <= cutoff)
            one_hot = torch.zeros(NUM[node_type], out[macro].num_nodes)
            one_hot[is_known, cluster[is_known]] = 1
    if target == 'item':
        R = R.t()
    if relation[-1] == '1':
        return R @ one_hot
    return (R if mode == 'walk' else (R > 0).float()) @ (R.t() @ one_hot)


@pytest.mark.parametrize('num_windows', [1, 4])
@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('binary', [True, False])
def test_sparse_counts_are_those_of_brute_force(num_windows: int, mode: str, binary: bool) -> None:
    parts = split(planted_log(num_rows=700), num_windows)
    coarsen = MacroCoarsen(SEVERAL, mode=mode, binary=binary, exposure_hops=2, further_hops=2).fit(
        parts[0]
    )
    for part in parts:
        out = coarsen(part)
        checked = 0
        for edge_type in out.edge_types:
            if edge_type[1][:-1] not in ('hop', 'sees'):
                continue
            table = dense_edges(out, edge_type)
            assert torch.equal(
                out[edge_type].edge_index[1].sort().values, out[edge_type].edge_index[1]
            )
            for step, cutoff in enumerate(part[CLICKS].cutoff.tolist()):
                expected = by_brute_force(out, edge_type, cutoff, binary, mode)
                assert torch.equal(table if table.dim() == 2 else table[..., step], expected)
            checked += 1
        assert checked == 2 * 2 * 6
        coarse = dense_edges(out, ('macro_user', 'sees', 'macro_item'))
        item = torch.nn.functional.one_hot(out['item'].cluster, 4).float()
        by_item = dense_edges(out, ('macro_user', 'sees1', 'item'))
        assert torch.equal(coarse, torch.einsum('im,iu...->mu...', item, by_item))


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_clicks_are_at_most_exposures_edge_by_edge(arguments) -> None:
    r"""Of pairs as of events, as each click is an exposure."""
    train, val, _ = split(planted_log())
    coarsen = MacroCoarsen(**arguments).fit(train)
    for part in (train, val):
        out, checked = coarsen(part), 0
        for edge_type in out.edge_types:
            source, relation, target = edge_type
            if edge_type != SEES and relation in ('sees1', 'sees'):
                clicks = 'hop1' if relation == 'sees1' else 'clicks'
                if (source, clicks, target) in out.edge_types:
                    clicked = dense_edges(out, (source, clicks, target))
                    seen = dense_edges(out, edge_type)
                    assert (clicked <= seen).all() and (clicked < seen).any()
                    checked += 1
        assert checked == sum(len(np.atleast_1d(g)) for g in arguments['groups'].values()) + 1


@pytest.mark.parametrize('num_windows', [1, 4])
def test_the_edge_to_the_macro_node_of_the_target_is_what_target_counts_say(
    num_windows: int,
) -> None:
    r"""Section 2: (n, c) of a view at the target is exactly the macro edge, over exposures and over
    clicks, as of the row's window."""
    parts = split(planted_log(), num_windows)
    coarsen = MacroCoarsen({'user': [4, 6], 'item': ['category', 5]}, binary=False)
    parts = [coarsen.fit(parts[0])(part) for part in parts]
    counts, num_late = TargetCounts().fit(parts[0]), 0
    for part in parts:
        clicks = counts(part)[CLICKS]
        rows = clicks.edge_label.numel()
        window = clicks.get('edge_label_window', torch.zeros(rows, dtype=torch.long))
        node = dict(zip(('user', 'item'), clicks.edge_label_index, strict=True))
        checked = 0
        for place, view in enumerate(clicks.count_names):
            for own in NUM:
                other = NEIGHBOR_TYPE[own]
                name = view.removeprefix(f'{own} x ').removesuffix(f' x {own}')
                if name == view or not name.startswith(f'{other}_cluster'):
                    continue
                name = name.removeprefix(f'{other}_')
                macro = f'macro_{other}{name.removeprefix("cluster")}'
                column = part[other][name][node[other]]
                found = []
                for relation in ('sees1', 'hop1'):
                    table = dense_edges(part, (macro, relation, own))
                    table = table if table.dim() == 3 else table.unsqueeze(-1)
                    found.append(table[node[own], column, window])
                edge, said = torch.stack(found, 1), clicks.edge_label_counts[:, place]
                # What a node did before its cluster was known counts from then on in the edge, and
                # for none at the target.
                sees = part[SEES]
                acting, met = sees.edge_index if own == 'user' else sees.edge_index.flip(0)
                never = torch.full_like(part[other][name], torch.iinfo(torch.long).min)
                since = part[other].get(f'{name}_since', never)[met]
                for step, cutoff in enumerate(clicks.cutoff):
                    is_late = (sees.time < since) & (since <= cutoff)
                    before = torch.zeros(NUM[own], part[macro].num_nodes, 2)
                    value = torch.stack([torch.ones_like(sees.clicked), sees.clicked], 1)
                    place = acting[is_late], part[other][name][met[is_late]]
                    before.index_put_(place, value[is_late], accumulate=True)
                    of_step = window == step
                    late = before[node[own], column][of_step]
                    assert torch.equal(edge[of_step], said[of_step] + late)
                    num_late += int(late.sum())
                    assert f'{name}_since' in part[other] or late.sum() == 0
                checked += 1
        assert checked == 4
    assert num_late > 0


def test_fresh_counts_of_earlier_rows_read_no_later_event() -> None:
    r"""Clusters count always for nodes of the first history, and no row sees its future by it."""
    data = planted_log()
    train = split(data)[0]
    moment = int(train[CLICKS].cutoff[2])
    found = []
    for log in (data, replaced_after(data, moment)):
        train = split(log)[0]
        part = MacroCoarsen({'user': [4, 6], 'item': ['category', 5]}).fit(train)(train)
        clicks = TargetCounts()(part, log=log)[CLICKS]
        early = clicks.edge_label_time < moment
        columns = torch.cat([clicks.edge_label_index, clicks.edge_label_time[None]])[:, early]
        found.append((columns, clicks.edge_label_counts[early], clicks.edge_label_counts))
    (rows, counts, every), (other_rows, other_counts, other_every) = found
    assert rows.size(1) > 100 and torch.equal(rows, other_rows)
    assert torch.equal(counts, other_counts)
    assert not torch.equal(every[-100:], other_every[-100:])


def test_another_call_removes_what_an_earlier_one_added() -> None:
    train, _, _ = split(planted_log())
    train['user'].cluster_7 = train['user'].gender
    earlier = MacroCoarsen(SEVERAL, num_hops=3, edge_tensors=True, exposure_hops=2).fit(train)(
        train
    )
    again = MacroCoarsen({'user': 'gender', 'item': 'category'})(earlier)
    expected = MacroCoarsen({'user': 'gender', 'item': 'category'})(train)
    assert set(again.node_types) == set(expected.node_types)
    assert set(again.edge_types) == set(expected.edge_types)
    for node_type in again.node_types:
        assert set(again[node_type].keys()) == set(expected[node_type].keys())
    assert 'cluster_since' in earlier['user'] and 'cluster_6' in earlier['user']
    assert 'cluster_since' not in again['user'] and 'cluster_7' in again['user']


def test_exposures_are_left_out_where_asked_and_where_there_are_none() -> None:
    train, _, _ = split(planted_log())
    for data, number in ((train, 0), (planted_log(), 1)):
        out = MacroCoarsen(GROUPS, exposure_hops=number).fit(data)(data)
        assert not any('sees' in e[1] and 'macro' in str(e) for e in out.edge_types)


def test_nodes_appear_between_windows():
    r"""What the canary above stands on: some users are not there in the first window."""
    train, val, test = split(planted_log())
    window = torch.bucketize(train[CLICKS].time, train[CLICKS].cutoff, right=True)
    first = train[CLICKS].edge_index[0, window == 0].unique().numel()
    numbers = [part[CLICKS].edge_index[0].unique().numel() for part in (train, val, test)]
    assert first < numbers[0] < numbers[2]


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_clusters_stay(arguments):
    r"""A node keeps over all parts the cluster that it had when it was first seen."""
    parts = split(planted_log())
    coarsen = MacroCoarsen(**arguments).fit(parts[0])
    train, val, test = (coarsen(part) for part in parts)
    for node_type in NUM:
        for earlier, later in ((train, val), (train, test)):
            known = earlier[node_type].cluster >= 0
            assert torch.equal(earlier[node_type].cluster[known], later[node_type].cluster[known])


def test_late_nodes_are_assigned_by_their_first_window():
    train, _, _ = split(planted_log())
    coarsen = MacroCoarsen(GROUPS).fit(train)
    user, item = train[CLICKS].edge_index
    window = torch.bucketize(train[CLICKS].time, train[CLICKS].cutoff, right=True)
    late = 0
    for v in user.unique():
        first = window[user == v].min()
        own = item[(user == v) & (window == first)].unique()
        counts = (own % 4).bincount(minlength=4).float()
        centroids = coarsen.groupings['user'].centroids
        nearest = (counts / counts.norm() - centroids).square().sum(1).argmin()
        assert coarsen.cluster['user'][v] == nearest
        late += int(first > 0)
    assert late > 0


@pytest.mark.filterwarnings('ignore:MacroCoarsen was not fitted')
@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_unfitted_call_fits_and_leaves_itself_unchanged(arguments):
    train, _, _ = split(planted_log())
    coarsen = MacroCoarsen(**arguments)
    before = repr(coarsen)
    assert_same(coarsen(train), MacroCoarsen(**arguments).fit(train)(train))
    assert (coarsen.cluster, coarsen.groupings, repr(coarsen)) == ({}, {}, before)
    assert_same(T.Compose([coarsen])(train), coarsen(train))


def test_original_is_unchanged():
    train, _, _ = split(planted_log())
    before = copy.deepcopy(train)
    MacroCoarsen(GROUPS, edge_tensors=True).fit(train)(train)
    assert train.node_types == before.node_types
    assert train.edge_types == before.edge_types
    for store, expected in zip(train.stores, before.stores, strict=True):
        assert list(store.keys()) == list(expected.keys())
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(store[name]), torch.as_tensor(value))


class PlantedDataset(InMemoryDataset):
    def __init__(self, root: str, pre_transform: Callable) -> None:
        super().__init__(root, pre_transform=pre_transform)
        self.load(self.processed_paths[0], data_cls=HeteroData)

    @property
    def processed_file_names(self) -> str:
        return 'data.pt'

    def process(self) -> None:
        self.save([self.pre_transform(planted_log())], self.processed_paths[0])


def test_pre_transform(tmp_path):
    coarsen = MacroCoarsen(GROUPS)
    dataset = PlantedDataset(str(tmp_path), coarsen)
    assert_same(dataset[0], coarsen(planted_log()))
    assert coarsen.cluster == {}
    # PyG keeps the representation as the key of its cache.
    assert repr(coarsen) in torch.load(tmp_path / 'processed/pre_transform.pt', weights_only=False)


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_repr_shows_every_argument(arguments):
    coarsen = MacroCoarsen(**arguments, seed=3)
    text = repr(coarsen)
    assert 'seed=3' in text
    for name in list(inspect.signature(MacroCoarsen).parameters)[1:]:
        assert f'{name}={getattr(coarsen, name)!r}' in text
    assert repr(eval(text)) == text  # noqa: S307
    assert str(arguments['groups']) in text


def test_seed():
    train, _, _ = split(planted_log())
    groups = {'user': 4, 'item': 5}
    first, second, other = (MacroCoarsen(groups, seed=seed).fit(train) for seed in (0, 0, 7))
    assert_same(first(train), second(train))
    assert not torch.equal(first.groupings['user'].centroids, other.groupings['user'].centroids)


def test_spherical():
    train, _, _ = split(planted_log())
    coarsen = MacroCoarsen(GROUPS, spherical=True).fit(train)
    assert coarsen.groupings['user'].spherical
    norm = coarsen.groupings['user'].centroids.norm(dim=1)
    assert torch.allclose(norm, torch.ones(4), atol=1e-5)


def test_raw_behavior_of_both_sides():
    r"""With a projection as wide as the matrix, k-means runs on its very rows (eq. 2)."""
    train, _, _ = split(planted_log(), num_windows=1)
    coarsen = MacroCoarsen({'user': 4, 'item': 5}, seed=2).fit(train)
    R = torch.zeros(NUM['user'], NUM['item'])
    R[tuple(train[CLICKS].edge_index)] = 1
    for node_type, rows, num in (('user', R, 4), ('item', R.t(), 5)):
        known = rows.sum(1) > 0
        rows = torch.nn.functional.normalize(rows[known], dim=1)
        rows = torch.nn.functional.pad(rows, (0, coarsen.projection_dim - rows.size(1)))
        assert torch.equal(coarsen.cluster[node_type][known], Grouping(num, seed=2).fit(rows))


def grown(data: HeteroData, num_items: int) -> HeteroData:
    r"""A user that was not there clicks an item that was not there."""
    data = copy.copy(data)
    data['user'].num_nodes, data['item'].num_nodes = NUM['user'] + 1, num_items
    new = torch.tensor([[NUM['user']], [num_items - 1]])
    data[CLICKS].edge_index = torch.cat([data[CLICKS].edge_index, new], dim=1)
    data[CLICKS].time = torch.cat([data[CLICKS].time, data[CLICKS].time[-1:]])
    return data


def test_nodes_that_arrive_after_fit():
    train, _, _ = split(planted_log(), num_windows=1)
    coarsen = MacroCoarsen({'user': 4, 'item': 5}).fit(train)
    out = coarsen(grown(train, 30))
    for node_type, new, column in (('user', 40, 29), ('item', 29, 40)):
        cluster, known = out[node_type].cluster, coarsen.cluster[node_type] >= 0
        assert torch.equal(cluster[: NUM[node_type]][known], coarsen.cluster[node_type][known])
        row = torch.nn.functional.one_hot(torch.tensor([column]), coarsen.projection_dim)
        assert cluster[new] == coarsen.groupings[node_type].assign(row)[0]
        assert bool((cluster[NUM[node_type] : new] == -1).all())


def test_more_items_than_the_projection_is_wide_arrive_after_fit():
    r"""Rows stay those of the items that were clicked before: others count in the norm alone."""
    train, _, _ = split(planted_log(), num_windows=1)
    coarsen = MacroCoarsen({'user': 4, 'item': 5}, projection_dim=24).fit(train)
    data = grown(train, 60)
    data[CLICKS].edge_index = torch.cat(
        [data[CLICKS].edge_index, torch.tensor([[NUM['user']] * 3, [3, 7, 58]])], dim=1
    )
    data[CLICKS].time = torch.cat([data[CLICKS].time, data[CLICKS].time[-1:].expand(3)])
    cluster = coarsen(data)['user'].cluster
    known = coarsen.cluster['user'] >= 0
    assert torch.equal(cluster[:-1][known], coarsen.cluster['user'][known])
    columns = train[CLICKS].edge_index[1].unique()
    row = torch.zeros(1, 24)
    row[0, torch.searchsorted(columns, torch.tensor([3, 7]))] = 0.5
    assert cluster[-1] == coarsen.groupings['user'].assign(row)[0]


@pytest.mark.parametrize('num_windows', [1, 4])
@pytest.mark.parametrize('projection_dim', [48, 8])
def test_nodes_that_only_come_later_change_no_cluster(num_windows, projection_dim):
    r"""A log has nodes of which its training part has no click yet. They decide nothing, even where
    there are so many that all rows would be wider than the projection."""
    coarsen = MacroCoarsen({'user': 4, 'item': 5}, projection_dim=projection_dim)
    train, _, _ = split(planted_log(), num_windows)
    before = copy.copy(coarsen).fit(train)
    for node_type, num in NUM.items():
        assert num <= 48 < num + 40
        train[node_type].num_nodes = num + 40
    after = coarsen.fit(train)
    for node_type, num in NUM.items():
        centroids = (fit.groupings[node_type].centroids for fit in (before, after))
        assert torch.equal(*centroids)
        assert torch.equal(before.cluster[node_type], after.cluster[node_type][:num])
        assert bool((after.cluster[node_type][num:] == -1).all())
        assert bool((before.cluster[node_type] >= 0).any())


def test_repr_tells_fits_apart():
    r"""PyG's caches know a transform by its text."""
    texts = [repr(MacroCoarsen(GROUPS).fit(split(planted_log(seed))[0])) for seed in (0, 0, 1)]
    assert 'fitted=' in texts[0] and texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize('num_windows', [1, 4])
def test_is_an_ordinary_graph(num_windows, tmp_path):
    train, _, _ = split(planted_log(), num_windows)
    out = MacroCoarsen(GROUPS, edge_tensors=True).fit(train)(train)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert out.validate()
    torch.save(out, tmp_path / 'data.pt')
    assert_same(out, torch.load(tmp_path / 'data.pt', weights_only=False))
    device = torch.device('cuda' if torch.cuda.is_available() else 'meta')
    moved = copy.copy(out).to(device)
    for store in moved.stores:
        for value in store.values():
            assert not isinstance(value, Tensor) or value.device.type == device.type
    both = T.ToUndirected()(out)
    for source, relation, target in out.edge_types:
        if relation.startswith('hop'):
            forth = out[source, relation, target]
            back = both[target, f'rev_{relation}', source]
            assert torch.equal(back.edge_index, forth.edge_index.flip(0))
            assert torch.equal(back.edge_weight, forth.edge_weight)


@pytest.mark.parametrize('groups', [GROUPS, {'user': ['gender', 5], 'item': 'category'}])
def test_an_unfitted_transform_that_learns_from_a_part_warns(groups: dict) -> None:
    log = planted_log()
    train, val, _ = split(log)
    with pytest.warns(
        UserWarning, match=r'not fitted.*clusters of its own: call fit\(train\)'
    ) as caught:
        MacroCoarsen(groups)(val)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MacroCoarsen(groups).fit(train)(val)
        # A whole log has no other part, and of attributes nothing is learned.
        MacroCoarsen(groups)(log)
        MacroCoarsen({'user': 'gender', 'item': 'category'})(val)


@pytest.mark.sparse
def test_to_sparse_tensor():
    train, _, _ = split(planted_log(), num_windows=1)
    out = MacroCoarsen(GROUPS).fit(train)(train)
    table = dense(out, 'user', 1)
    out = T.ToSparseTensor(attr='edge_weight')(out)
    adj_t = out['macro_item', 'hop1', 'user'].adj_t
    assert torch.equal(adj_t.to_dense(), table)


class SAGE(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = SAGEConv((-1, -1), 16)
        self.conv2 = SAGEConv((-1, -1), 16)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def test_ordinary_gnn_trains():
    r"""SAGEConv over the macro and micro graph learns the planted taste: its loss falls below that
    of the click rate, the best there is without the graph, as all users have one feature."""
    torch.manual_seed(0)
    train, _, _ = split(planted_log(), num_windows=1)
    # What was shown is another relation, which says nothing of taste.
    del train[SEES]
    data = T.ToUndirected()(MacroCoarsen(GROUPS).fit(train)(train))
    for node_type in NUM:
        data[node_type].x = torch.ones(NUM[node_type], 1)
        data[f'macro_{node_type}'].x = torch.eye(data[f'macro_{node_type}'].num_nodes)
    model = to_hetero(SAGE(), data.metadata())
    index, label = data[CLICKS].edge_label_index, data[CLICKS].edge_label

    def loss() -> Tensor:
        x = model(data.x_dict, data.edge_index_dict)
        logit = (x['user'][index[0]] * x['item'][index[1]]).sum(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, label)

    rate = label.mean()
    constant = torch.nn.functional.binary_cross_entropy(rate.expand_as(label), label).item()
    first = loss().item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert first > constant
    assert value.item() < 0.75 * constant


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        (
            {'groups': {'user': 3}},
            ValueError,
            "'groups' must be .*'user' and 'item', but got {'user': 3}",
        ),
        ({'groups': [3, 4]}, TypeError, r'got \[3, 4\]'),
        ({'groups': {'user': 0, 'item': 2}}, ValueError, "groups.'user'.*at least 1, but got 0"),
        ({'groups': {'user': -2, 'item': 2}}, ValueError, "'user'.*, but got -2"),
        ({'groups': {'user': 2.0, 'item': 2}}, TypeError, "groups.'user'.*must be an integer.*2.0"),
        ({'groups': {'user': True, 'item': 2}}, TypeError, 'got True'),
        ({'groups': GROUPS, 'num_hops': 0}, ValueError, "'num_hops'.*got 0"),
        ({'groups': GROUPS, 'mode': 'shell'}, ValueError, "'mode'.*'shell'"),
        ({'groups': GROUPS, 'projection_dim': 0}, ValueError, "'projection_dim'.*got 0"),
        ({'groups': GROUPS, 'projection_dim': 1.5}, TypeError, "'projection_dim'.*got 1.5"),
        ({'groups': GROUPS, 'projection_dim': True}, TypeError, "'projection_dim'.*got True"),
        ({'groups': GROUPS, 'spherical': 'no'}, TypeError, "'spherical'.*got 'no'"),
        ({'groups': GROUPS, 'seed': 'a'}, TypeError, "'seed'.*got 'a'"),
        ({'groups': GROUPS, 'seed': -1}, ValueError, "'seed'.*got -1"),
        ({'groups': GROUPS, 'seed': 2**40}, ValueError, "'seed'.*got 1099511627776"),
        (
            {'groups': {'user': 'group', 'item': 'category'}, 'behavior': 'raw'},
            ValueError,
            "'behavior' is 'raw', but.*are learned for none",
        ),
        ({'groups': GROUPS, 'behavior': 'deep'}, ValueError, "'macro', 'raw', but got 'deep'"),
        ({'groups': GROUPS, 'behavior': 3}, ValueError, "'macro', 'raw', but got 3"),
        ({'groups': GROUPS, 'behavior': {'users': 'raw'}}, ValueError, "is {'users': 'raw'}, but"),
        (
            {'groups': GROUPS, 'behavior': {'item': 'raw'}},
            ValueError,
            r"is {'item': 'raw'}.*learned for \['user'\] only",
        ),
        (
            {'groups': {'user': 4, 'item': 5}, 'behavior': 'macro'},
            ValueError,
            "cannot be 'macro' for both",
        ),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        MacroCoarsen(**arguments)


def test_bad_data():
    train, _, _ = split(planted_log())
    with pytest.raises(TypeError, match='MacroCoarsen expects a HeteroData.*got Tensor'):
        MacroCoarsen(GROUPS)(torch.ones(3))
    with pytest.raises(ValueError, match="'groups' names the attribute 'genre' of 'item'.*categ"):
        MacroCoarsen({'user': 4, 'item': 'genre'}).fit(train)
    with pytest.raises(ValueError, match='50 clusters needs at least as many nodes'):
        MacroCoarsen({'user': 50, 'item': 'category'}).fit(train)
    data = copy.copy(train)
    data['item'].category = train['item'].category + 1
    with pytest.raises(IndexError, match='category from 1 to 4, but .* from 0 to 3'):
        MacroCoarsen(GROUPS).fit(data)
    data['item'].category = train['item'].category.float()
    with pytest.raises(TypeError, match="category' of dtype int64, but got torch.float32"):
        MacroCoarsen(GROUPS).fit(data)
    data = copy.copy(train)
    data[CLICKS].time = train[CLICKS].time + 1000
    with pytest.raises(ValueError, match='MacroCoarsen found clicks up to'):
        MacroCoarsen(GROUPS).fit(data)
    coarsen = MacroCoarsen(GROUPS).fit(train)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 24
    data['item'].category, data['item'].num_category = train['item'].category, 4
    data[CLICKS].edge_index = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match='fitted on 40 users, but this data has only 3'):
        coarsen(data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_on_another_device():
    with pytest.raises(ValueError, match='MacroCoarsen works in main memory'):
        MacroCoarsen(GROUPS)(planted_log().to('cuda'))


def test_a_node_that_is_known_after_the_last_cutoff_is_of_no_macro_node() -> None:
    counts = SparseCounts(
        torch.tensor([[0, 1], [0, 1]]), torch.tensor([0, 0]), 2, {'user': 2, 'item': 2}, True
    )
    # Item 0 would be known in a third window.
    macro = MacroNodes(torch.tensor([0, 1]), 2, torch.tensor([2, 0]))
    edge_index, weight = counts.hop('user', 1, macro, 'set')
    assert edge_index.tolist() == [[1], [1]] and weight.tolist() == [[1, 1]]

    data = SyntheticMarket(400, 100, 5000, log=False)[0]
    rolling, single = (TemporalSplit(num_windows=num)(data)[0] for num in (6, 1))
    coarsen = MacroCoarsen({'user': [20], 'item': ['category', 30]}).fit(rolling)
    part = coarsen(single)
    items = part['item']
    is_late = items.cluster_30_since > part['user', 'clicks', 'item'].cutoff.max()
    assert (is_late & (items.cluster_30 >= 0)).any()
    pairs = part['user', 'sees', 'item'].edge_index.unique(dim=1)
    is_known = (items.cluster_30 >= 0) & ~is_late
    weight = part['macro_item_30', 'sees1', 'user'].edge_weight
    assert weight.sum() == is_known[pairs[1]].sum() > 0
