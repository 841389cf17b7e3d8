import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.compression import QuantizedEmbedding, TableBytes, compress_tables
from mag.loader import ExposureLoader, JoinedBatch, JoinedLoader, PairBatch, PairLoader
from mag.models import CountNet, MacGNN
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
NUM_USERS, NUM_ITEMS, SIZE = 400, 60, 10


@pytest.fixture(scope='module')
def data() -> HeteroData:
    r"""5,000 exposures, coarsened and counted."""
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    data['item'].category, data['item'].num_category = torch.arange(NUM_ITEMS) % 20, 20
    users = torch.randint(NUM_USERS, (5000,), generator=generator)
    items = torch.randint(NUM_ITEMS, (5000,), generator=generator)
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack([users, items])
    clicks.edge_label, clicks.edge_label_time = (users + items) % 2, torch.arange(5000)
    is_click = clicks.edge_label == 1
    clicks.edge_index = clicks.edge_label_index[:, is_click]
    clicks.time = clicks.edge_label_time[is_click]
    train, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=2)(data)
    coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(train)
    train = coarsen(RecentNeighbors(3)(train))
    return TargetCounts().fit(train)(train)


def macgnn(data: HeteroData) -> MacGNN:
    torch.manual_seed(0)
    return MacGNN.from_data(data, embedding_dim=SIZE).eval()


def count_net(data: HeteroData) -> CountNet:
    torch.manual_seed(0)
    model = CountNet.from_data(
        data, embedding_dim=SIZE, rows='twin', recent=True, separate_tables=True
    )
    # They start so near 0 that nothing would be seen of them.
    torch.nn.init.normal_(model.embedding.weight)
    return model.eval()


def a_batch(model: torch.nn.Module, data: HeteroData) -> PairBatch | JoinedBatch:
    loader = JoinedLoader([ExposureLoader(data), PairLoader(data)], batch_size=512)
    batch: JoinedBatch = next(iter(loader))
    return batch.pairs if isinstance(model, MacGNN) and batch.pairs is not None else batch


def read(model: torch.nn.Module, data: HeteroData) -> Tensor:
    return model(a_batch(model, data))


NODES = {
    'macgnn': {'user_embedding': NUM_USERS + 1, 'item_embedding': NUM_ITEMS + 1,
               'macro_user_embedding': 20, 'macro_item_embedding': 20},
    # Users, items and their categories, and of each none.
    'count_net': {'embedding': NUM_USERS + NUM_ITEMS + 20 + 3, 'readout.attention.user':
                  NUM_USERS + 1, 'readout.attention.item': NUM_ITEMS + 1, 'readout.macro.user': 20,
                  'readout.macro.item': 20, 'readout.macro_attention.user': 20,
                  'readout.macro_attention.item': 20},
}  # fmt: skip
MODELS: dict[str, Callable[[HeteroData], MacGNN | CountNet]] = {
    'macgnn': macgnn, 'count_net': count_net
}  # fmt: skip


@pytest.mark.parametrize('name', MODELS)
def test_a_model_reads_the_decoded_tables(name: str, data: HeteroData) -> None:
    model = MODELS[name](data)
    plain, before = copy.deepcopy(model), read(model, data).detach()
    found = compress_tables(model, num_codes=5, num_bits=4)
    # Two codes a byte, and 16 centroids of as many numbers as a row has.
    sizes = {
        of if '.' in of else f'{of}.weight': TableBytes(4 * SIZE * rows, 3 * rows + 64 * SIZE)
        for of, rows in NODES[name].items()
    }
    assert found == sizes
    for path, weight in list(plain.named_parameters()):
        if path in found:
            quantized = QuantizedEmbedding.from_weight(weight, 5, 4)
            weight.data.copy_(quantized.weight)
    after = read(model, data).detach()
    assert torch.equal(after, read(plain, data))
    assert float((after - before).abs().max()) > 1e-4
    # Near to what it was: the two order nearly all pairs of rows alike.
    assert float(torch.corrcoef(torch.stack([before, after]))[0, 1]) > 0.7
    assert not set(found) & {path for path, _ in model.named_parameters()}


def test_what_would_not_become_smaller_is_left(data: HeteroData) -> None:
    model = macgnn(data)
    before = model.macro_user_embedding.weight
    found = compress_tables(model, num_codes=2)
    # 401 rows and 256 centroids; all others have fewer rows than that.
    assert found.pop('user_embedding.weight') == TableBytes(40 * 401, 2 * 401 + 40 * 256)
    assert all(size.before == size.after for size in found.values())
    assert model.macro_user_embedding.weight is before
    assert isinstance(model.user_embedding.weight, QuantizedEmbedding)
    assert isinstance(model.item_embedding.weight, torch.nn.Parameter)


@pytest.mark.parametrize('name', MODELS)
def test_a_state_comes_back(name: str, data: HeteroData) -> None:
    model, other = (MODELS[name](data) for _ in range(2))
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    compress_tables(model, 5, 4)
    compress_tables(other, 5, 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(read(other, data), read(model, data))


def test_shared_tables_stay_shared() -> None:
    one, other = torch.nn.Embedding(900, 4), torch.nn.Embedding(900, 4)
    other.weight = one.weight
    model = torch.nn.ModuleDict({'one': one, 'again': one, 'other': other})
    found = compress_tables(model, 2, 4)
    assert model['one'] is model['again'] is model['other']
    # It is there once.
    assert found == {'one.weight': TableBytes(4 * 4 * 900, 900 + 4 * 4 * 16)}
    assert isinstance(model['one'], QuantizedEmbedding)


def test_what_two_models_share_stays_shared(data: HeteroData) -> None:
    one, other = count_net(data), count_net(data)
    other.embedding = one.embedding
    model = torch.nn.ModuleList([one, other])
    expected = [name for name, _ in model.named_parameters() if name.endswith('embedding.weight')]
    found = compress_tables(model, 5, 4)
    assert [name for name in found if name.endswith('embedding.weight')] == expected
    assert one.embedding.weight is other.embedding.weight
    assert isinstance(one.embedding.weight, QuantizedEmbedding)
    read(one, data), read(other, data)


@pytest.mark.parametrize('name', MODELS)
def test_a_compressed_model_compiles_and_exports(name: str, data: HeteroData) -> None:
    model = MODELS[name](data)
    compress_tables(model, 5, 4)
    batch = a_batch(model, data)
    expected = model(batch)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(batch), expected)
    program = torch.export.export(model, (batch,))
    torch.testing.assert_close(program.module(check_guards=False)(batch), expected)


def test_the_rest_learns_on(data: HeteroData) -> None:
    model = count_net(data).train()
    compress_tables(model, 5, 4)
    read(model, data).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    with pytest.raises(ValueError, match='CountNet has compressed tables, which do not grow'):
        model.grow(data)
