import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData
from torch_geometric.nn.models import LightGCN as PyGLightGCN

from mag.loader import PairBatch

# Not importorskip: that import asks PyPI for a newer version.
if importlib.util.find_spec('deepctr_torch') is None:
    pytest.skip("the baselines need 'pip install pyg-mag[benchmarks]'", allow_module_level=True)
from accuracy import pair_models  # noqa: E402

NUM_USERS, NUM_ITEMS = 12, 9


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    data['user'].gender = torch.arange(NUM_USERS) % 2
    data['user'].num_gender = 2
    data['item'].category = torch.arange(NUM_ITEMS) % 3
    data['item'].num_category = 3
    data['user'].recent = torch.randint(0, NUM_ITEMS, (NUM_USERS, 4), generator=generator)
    data['user'].recent[0] = -1
    data['user'].recent[1] = torch.tensor([-1, -1, 7, 5])
    clicks = data['user', 'clicks', 'item']
    pairs = torch.randperm(NUM_USERS * NUM_ITEMS, generator=generator)[:40]
    clicks.edge_index = torch.stack([pairs // NUM_ITEMS, pairs % NUM_ITEMS])
    clicks.time = torch.arange(40)
    clicks.cutoff = torch.tensor(40)
    return data


def make_batch(data, user, item):
    user, item = torch.as_tensor(user), torch.as_tensor(item)
    return PairBatch(
        user, item, (), (), data['user'].recent[user], torch.empty(len(user), 0), (item % 2).float()
    )


def build(name, data):
    if name == 'lightgcn':
        return pair_models.LightGCN.from_data(data, data)
    return pair_models.DeepCTR.from_data(data, name)


def all_pairs(data):
    user, item = torch.cartesian_prod(torch.arange(NUM_USERS), torch.arange(NUM_ITEMS)).t()
    return make_batch(data, user, item)


@pytest.mark.parametrize('name', [*pair_models.ARCHITECTURES, 'lightgcn'])
def test_learns_which_items_are_clicked(name, data):
    torch.manual_seed(0)
    model = build(name, data)
    batch = all_pairs(data)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(batch)
    assert logits.shape == (NUM_USERS * NUM_ITEMS,)
    assert logits[batch.label == 1].min() > logits[batch.label == 0].max()


@pytest.mark.parametrize('name', list(pair_models.ARCHITECTURES))
def test_logits_are_what_the_library_takes_the_sigmoid_of(name, data):
    torch.manual_seed(0)
    model = build(name, data).eval()
    batch = make_batch(data, [1, 1, 2], [0, 4, 8])
    columns = {
        'user': [[1.0], [1.0], [2.0]],
        'user_gender': [[1.0], [1.0], [0.0]],
        'item': [[0.0], [4.0], [8.0]],
        'category': [[0.0], [1.0], [2.0]],
    }
    if model.reads_history:
        items = [[7, 5, NUM_ITEMS, NUM_ITEMS]] * 2 + [data['user'].recent[2].tolist()]
        columns['hist_item'] = items
        columns['hist_category'] = [
            [3 if item == NUM_ITEMS else item % 3 for item in row] for row in items
        ]
        columns['length'] = [[2.0], [2.0], [4.0]]
    x = torch.cat([torch.tensor(columns[name]).float() for name in model.library.feature_index], 1)
    model.library.out.task = 'binary'
    with torch.no_grad():
        expected = model.library(x).squeeze(-1)
        model.library.out.task = 'regression'
        logits = model(batch)
    assert torch.allclose(logits.sigmoid(), expected, atol=1e-7)
    assert logits.unique().numel() == 3


def test_history_is_padded_on_the_right(data):
    model = build('din', data)
    items, length, categories = model.history(data['user'].recent[:2])
    nothing = float(NUM_ITEMS)
    assert items.tolist() == [[nothing] * 4, [7.0, 5.0, nothing, nothing]]
    assert categories.tolist() == [[3.0] * 4, [1.0, 2.0, 3.0, 3.0]]
    assert length.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize('name', ['din', 'dien'])
def test_padding_changes_nothing_where_there_is_history(name, data):
    torch.manual_seed(0)
    model = build(name, data).eval()
    batch = make_batch(data, [0, 1, 2], [3, 3, 3])
    with torch.no_grad():
        before = model(batch)
        model.library.embedding_dict['item'].weight[NUM_ITEMS] += 10
        model.library.embedding_dict['category'].weight[3] += 10
        after = model(batch)
    assert torch.equal(before[1:], after[1:])
    assert before[0] != after[0]


@pytest.mark.parametrize('name', ['din', 'dien'])
def test_batch_in_which_nobody_has_history(name, data):
    model = build(name, data).eval()
    with torch.no_grad():
        alone = model(make_batch(data, [0, 0], [3, 4]))
        together = model(make_batch(data, [0, 0, 2], [3, 4, 3]))
    assert torch.allclose(alone, together[:2], atol=1e-7)


@pytest.mark.parametrize('name', [*pair_models.ARCHITECTURES, 'lightgcn'])
def test_first_weights_follow_the_seed(name, data):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.detach().flatten() for p in build(name, data).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_light_gcn_propagates_as_the_library_does(data):
    torch.manual_seed(0)
    model = build('lightgcn', data)
    torch.nn.init.normal_(model.bias.weight)
    torch.nn.init.normal_(model.offset)
    reference = PyGLightGCN(NUM_USERS + NUM_ITEMS, 10, 2)
    reference.load_state_dict(model.library.state_dict())
    user, item = data['user', 'clicks', 'item'].edge_index
    item = item + NUM_USERS
    edge_index = torch.stack([torch.cat([user, item]), torch.cat([item, user])])

    batch = make_batch(data, [0, 3, 11], [8, 0, 2])
    logits = model(batch)
    pairs = torch.stack([batch.user, batch.item + NUM_USERS])
    bias = model.bias.weight.squeeze(-1)[pairs].sum(dim=0) + model.offset
    expected = reference(edge_index, pairs) + bias
    assert torch.allclose(logits, expected, atol=1e-6)

    (logits * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    (expected * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    gradient = model.library.embedding.weight.grad
    assert torch.allclose(gradient, reference.embedding.weight.grad, atol=1e-6)
    assert gradient.abs().sum() > 0


def test_light_gcn_trains_on_the_clicks_before_the_first_window(data):
    rolling = data.clone()
    rolling['user', 'clicks', 'item'].cutoff = torch.tensor([15, 25, 40])
    first = data.clone()
    clicks = first['user', 'clicks', 'item']
    clicks.edge_index, clicks.time, clicks.cutoff = (
        clicks.edge_index[:, :15], clicks.time[:15], torch.tensor(15)
    )  # fmt: skip
    model = pair_models.LightGCN.from_data(rolling, data)
    for training, expected in ((True, first), (False, data)):
        matrix = model.graphs[training].matrix.to_dense()
        assert torch.equal(matrix, model.graph(expected).matrix.to_dense())


def test_light_gcn_forgets_embeddings_when_weights_or_history_change(data):
    torch.manual_seed(0)
    model = build('lightgcn', data)
    batch = all_pairs(data)
    with torch.no_grad():
        model.eval()
        first = model(batch)
        assert torch.equal(model(batch), first)
        model.train()
        model.library.embedding.weight.mul_(2)
        model.eval()
        assert torch.allclose(model(batch), 4 * first)
        data['user', 'clicks', 'item'].cutoff = torch.tensor(20)
        model.read_history(data)
        assert not torch.allclose(model(batch), 4 * first)


def test_unknown_architecture(data):
    with pytest.raises(ValueError, match="one of .*'din'.* but got 'dim'"):
        pair_models.DeepCTR.from_data(data, 'dim')
