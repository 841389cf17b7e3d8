import copy

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.transforms import RecentNeighbors, TemporalSplit

CLICKS = ('user', 'clicks', 'item')


def random_history(seed: int, num_clicks: int = 300, last_time: int = 60) -> HeteroData:
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 15, 12
    data[CLICKS].edge_index = torch.stack(
        [
            (torch.rand(num_clicks, generator=generator) ** 2 * 14).long(),
            (torch.rand(num_clicks, generator=generator) ** 2 * 12).long(),
        ]
    )
    data[CLICKS].time = torch.randint(last_time, (num_clicks,), generator=generator)
    return data


def brute_force(data: HeteroData, num: int, form: str, known: torch.Tensor) -> dict:
    r"""Lists of each node from the clicks that are `known`, by sorting them one node at a time."""
    user, item = data[CLICKS].edge_index.tolist()
    time = data[CLICKS].time.tolist()
    lists = {}
    for node_type, node, neighbor in (('user', user, item), ('item', item, user)):
        by_user = node_type == 'item' and form == 'released'
        lists[node_type] = []
        for v in range(data[node_type].num_nodes):
            own = [edge for edge in range(len(node)) if node[edge] == v and known[edge]]
            own.sort(key=lambda edge: user[edge] if by_user else time[edge])  # noqa: B023
            last = [neighbor[edge] for edge in own][-num:]
            lists[node_type].append([-1] * (num - len(last)) + last)
    return lists


@pytest.mark.parametrize('form', ['paper', 'released'])
@pytest.mark.parametrize('ordered', [True, False])
@pytest.mark.parametrize('num', [1, 4, 400])
def test_brute_force(form, ordered, num):
    data = random_history(0)
    if ordered:
        order = data[CLICKS].time.argsort(stable=True)
        data[CLICKS].edge_index = data[CLICKS].edge_index[:, order]
        data[CLICKS].time = data[CLICKS].time[order]
    expected = brute_force(data, num, form, torch.ones(300))
    out = RecentNeighbors(num, form)(data)
    for node_type in ('user', 'item'):
        assert out[node_type].recent.tolist() == expected[node_type]
        assert out[node_type].recent.dtype == torch.long
    # The last user has no click.
    assert out['user'].recent[14].tolist() == [-1] * num


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_windows(form):
    data = random_history(1)
    data[CLICKS].cutoff = torch.tensor([5, 20, 21, 60])
    out = RecentNeighbors(4, form)(data)
    for step, cutoff in enumerate([5, 20, 21, 60]):
        expected = brute_force(data, 4, form, data[CLICKS].time < cutoff)
        for node_type in ('user', 'item'):
            assert out[node_type].recent[:, step].tolist() == expected[node_type]


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_windows_by_user(form):
    r"""Cutoffs on positions: in an item's list, a later window may add a click that is earlier."""
    data = random_history(2)
    generator = torch.Generator().manual_seed(2)
    data[CLICKS].position = torch.rand(300, generator=generator, dtype=torch.double) * 0.9
    data[CLICKS].cutoff = torch.tensor([0.2, 0.5, 0.9], dtype=torch.double)
    out = RecentNeighbors(4, form)(data)
    for step, cutoff in enumerate([0.2, 0.5, 0.9]):
        expected = brute_force(data, 4, form, data[CLICKS].position < cutoff)
        for node_type in ('user', 'item'):
            assert out[node_type].recent[:, step].tolist() == expected[node_type]


@pytest.mark.parametrize('by', ['global', 'user'])
def test_after_temporal_split(by):
    data = random_history(3)
    store = data[CLICKS]
    store.edge_label_index, store.edge_label_time = store.edge_index, store.time
    store.edge_label = torch.ones(300)
    train, _, test = TemporalSplit(0.3, 0.7, 0.8, num_windows=3, by=by)(data)
    rolled, plain = RecentNeighbors(3)(train), RecentNeighbors(3)(test)
    assert rolled['user'].recent.shape == (15, 3, 3)
    assert plain['item'].recent.shape == (12, 3)
    clock = train[CLICKS].time if by == 'global' else train[CLICKS].position
    for step, cutoff in enumerate(train[CLICKS].cutoff):
        expected = brute_force(train, 3, 'time', clock < cutoff)
        for node_type in ('user', 'item'):
            assert rolled[node_type].recent[:, step].tolist() == expected[node_type]
    expected = brute_force(test, 3, 'time', torch.ones(test[CLICKS].time.numel()))
    assert plain['user'].recent.tolist() == expected['user']


def test_ties_keep_the_order_of_the_log():
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 4
    data[CLICKS].edge_index = torch.tensor([[0, 0, 0, 0, 1], [3, 1, 2, 0, 3]])
    data[CLICKS].time = torch.tensor([5, 5, 5, 1, 4])
    out = RecentNeighbors(3)(data)
    assert out['user'].recent.tolist() == [[3, 1, 2], [-1, -1, 3]]
    assert out['item'].recent.tolist() == [[-1, -1, 0], [-1, -1, 0], [-1, -1, 0], [-1, 1, 0]]


def test_released_item_order():
    r"""The released code keeps the largest user ids of an item, not its last users."""
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 1
    data[CLICKS].edge_index = torch.tensor([[2, 1, 0], [0, 0, 0]])
    data[CLICKS].time = torch.tensor([1, 2, 3])
    assert RecentNeighbors(2)(data)['item'].recent.tolist() == [[1, 0]]
    assert RecentNeighbors(2, form='released')(data)['item'].recent.tolist() == [[1, 2]]


@pytest.mark.parametrize('cutoff', [None, torch.tensor([3, 5])])
def test_no_clicks(cutoff):
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 1
    data[CLICKS].edge_index = torch.empty(2, 0, dtype=torch.long)
    data[CLICKS].time = torch.empty(0, dtype=torch.long)
    if cutoff is not None:
        data[CLICKS].cutoff = cutoff
    out = RecentNeighbors(2)(data)
    assert out['user'].recent.flatten().unique().tolist() == [-1]
    assert out['user'].recent.shape == ((2, 2) if cutoff is None else (2, 2, 2))


def test_original_is_unchanged():
    data = random_history(0)
    before = copy.deepcopy(data)
    RecentNeighbors(3)(data)
    assert 'recent' not in data['user']
    assert torch.equal(data[CLICKS].edge_index, before[CLICKS].edge_index)
    assert torch.equal(data[CLICKS].time, before[CLICKS].time)


def test_repr():
    assert repr(RecentNeighbors(7, 'released')) == "RecentNeighbors(num=7, form='released')"


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        ({'num': 0}, "'num'.*got 0"),
        ({'num': -3}, "'num'.*got -3"),
        ({'form': 'user'}, "'form' must be one of 'paper', 'released', but got 'user'"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        RecentNeighbors(**arguments)


def test_a_length_that_is_no_integer():
    with pytest.raises(TypeError, match="'num' must be an integer, but got 2.0"):
        RecentNeighbors(2.0)


def test_bad_data():
    data = random_history(0)
    del data[CLICKS].time
    with pytest.raises(ValueError, match=r"RecentNeighbors needs .* to have \['time'\]"):
        RecentNeighbors()(data)
    data = random_history(0)
    data[CLICKS].cutoff = torch.tensor(30)
    with pytest.raises(ValueError, match='RecentNeighbors found clicks up to 59.*is 30'):
        RecentNeighbors()(data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_on_another_device():
    with pytest.raises(ValueError, match='RecentNeighbors works in main memory'):
        RecentNeighbors()(random_history(0).to('cuda'))
