r"""On several threads, too, the same training gives the same weights to the last bit.

Where rows of a table are read more than once, gradients are sums, and threads that add to a row
together would do so in another order each time: what no test of values finds.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader, HistoryLoader, JoinedLoader, PairLoader, PathLoader
from mag.models import FLIP, GMCM, CountNet, HyperCTR, MacGNN, SimCEN, SRJGraph, Stack
from mag.nn import (
    BehaviorGraphConv,
    HashEmbedding,
    HypergraphConv,
    IntentionConv,
    MacroConv,
    SlotHypergraphConv,
    TextEncoder,
)
from mag.transforms import (
    BehaviorGraph,
    FieldText,
    InterestHypergraph,
    MacroCoarsen,
    RecentNeighbors,
    TargetCounts,
    TemporalSplit,
    TimeSlots,
    UserInterest,
)

CLICKS = ('user', 'clicks', 'item')
NUM_REPEATS = 2

# What is trained: a function of no arguments, and what it learns.
Learner = tuple[Callable[[], Tensor], torch.nn.Module]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    # In 3 of 16 processes the first run of SRJGraph differed, and no later one. Once it was
    # traced, to an exp of equal inputs that was off by 1e-4. Why is not known.
    torch.rand(100_000).exp()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope='module')
def log() -> HeteroData:
    r"""20,000 exposures of 200 users and 100 items, with all that a model reads."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 200, 100
    data['item'].category, data['item'].num_category = draw(4, 100), 4
    for name in ('visual', 'text'):
        data['item'][f'x_{name}'] = torch.randn(100, 8, generator=generator)
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack([draw(200, 20_000), draw(100, 20_000)])
    clicks.edge_label = draw(2, 20_000).float()
    clicks.edge_label_time = torch.arange(20_000)
    clicks.edge_label_query, clicks.num_query = draw(30, 20_000, 3), 30
    clicks.edge_label_domain, clicks.num_domain = draw(2, 20_000), 2
    clicks.edge_label_conversion = clicks.edge_label * draw(2, 20_000)
    clicks.edge_label_behavior = clicks.edge_label.view(-1, 1) * draw(2, 20_000, 3)
    clicked = clicks.edge_label == 1
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time, clicks.query = clicks.edge_label_time[clicked], clicks.edge_label_query[clicked]
    return data


def train(make: Callable[[], Learner]) -> list[Tensor]:
    r"""The gradients and weights after each of two steps."""
    torch.manual_seed(0)
    loss, module = make()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        for parameter in module.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad.clone())
            found.append(parameter.detach().clone())
    return found


def assert_repeatable(run: Callable[[], list[Tensor]]) -> None:
    first = run()
    assert any(bool((tensor != 0).any()) for tensor in first)
    for _ in range(NUM_REPEATS):
        for tensor, again in zip(first, run(), strict=True):
            assert torch.equal(tensor, again)


def click_learner(model: torch.nn.Module, batch: Any, label: Tensor) -> Learner:
    return lambda: F.binary_cross_entropy_with_logits(model(batch), label), model


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'form': 'released'},
        {'renormalize': True},
        {'weighting': False, 'item_graph': False, 'num_hops': 1},
    ],
)
def test_macgnn(log: HeteroData, arguments: dict[str, Any]) -> None:
    part = TemporalSplit(0.3, 0.8, 0.9, num_windows=3)(log)[0]
    part = MacroCoarsen({'user': 8, 'item': 'category'})(RecentNeighbors(20)(part))
    batch = next(iter(PairLoader(part, 2048, shuffle=True)))
    assert_repeatable(
        lambda: train(
            lambda: click_learner(MacGNN.from_data(part, **arguments), batch, batch.label)
        )
    )


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'rows': 'paper', 'num_crosses': 2, 'id_dropout': 0.1},
        {'rows': 'twin', 'recent': True, 'separate_tables': True},
    ],
)
def test_count_net(log: HeteroData, arguments: dict[str, Any]) -> None:
    part = TemporalSplit(0.3, 0.8, 0.9, num_windows=3)(log)[0]
    part = MacroCoarsen({'user': 8, 'item': 'category'})(RecentNeighbors(20)(part))
    part = TargetCounts()(part)
    loader = JoinedLoader([ExposureLoader(part), PairLoader(part)], 2048, shuffle=True)
    batch = next(iter(loader))

    def make() -> Learner:
        model = CountNet.from_data(part, **arguments)
        # Embeddings near 0 would have most gradients vanish.
        torch.nn.init.normal_(model.embedding.weight)
        return click_learner(model, batch, batch.label)

    assert_repeatable(lambda: train(make))


@pytest.mark.parametrize('share_embeddings', [False, True])
def test_stack(log: HeteroData, share_embeddings: bool) -> None:
    part = TemporalSplit(0.3, 0.8, 0.9, num_windows=3)(log)[0]
    part = TargetCounts()(MacroCoarsen({'user': 8, 'item': 'category'})(RecentNeighbors(20)(part)))
    loader = JoinedLoader([ExposureLoader(part), PairLoader(part)], 2048, shuffle=True)
    batch = next(iter(loader))

    def make() -> Learner:
        branches = {
            'counts': CountNet.from_data(part),
            'rows': CountNet.from_data(part, rows='twin'),
        }
        other = {} if share_embeddings else {'macgnn': MacGNN.from_data(part)}
        stack = Stack({**branches, **other}, share_embeddings=share_embeddings)
        for branch in branches.values():
            torch.nn.init.normal_(branch.embedding.weight)
        return lambda: stack.loss(stack(batch), batch), stack

    assert_repeatable(lambda: train(make))


@pytest.mark.parametrize(
    'arguments', [{}, {'second_channels': (60,), 'mlp_channels': (32,), 'batch_norm': False}]
)
def test_simcen(log: HeteroData, arguments: dict[str, Any]) -> None:
    batch = next(iter(ExposureLoader(log, 2048, shuffle=True)))

    def make() -> Learner:
        model = SimCEN.from_data(log, hidden_channels=(96, 96), **arguments)
        # Embeddings near 0 would have most gradients vanish.
        torch.nn.init.normal_(model.embedding.weight)
        return lambda: model.loss(model(batch), batch), model

    assert_repeatable(lambda: train(make))


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'output': 'concat', 'loss': 'ipw_mean'},
        {'merge': 'concat', 'loss': 'esmm'},
        {'merge': 'gru', 'loss': 'doubly_robust'},
        {'merge': 'none', 'loss': 'division'},
    ],
)
def test_gmcm(log: HeteroData, arguments: dict[str, Any]) -> None:
    part = BehaviorGraph()(log)
    batch = next(iter(ExposureLoader(part, 2048, shuffle=True)))

    def make() -> Learner:
        model = GMCM.from_data(part, tower_channels=(32, 16, 8), num_buckets=300, **arguments)
        return lambda: model.loss(model(batch), batch), model

    assert_repeatable(lambda: train(make))


@pytest.mark.parametrize(
    'arguments',
    [{}, {'form': 'literal'}, {'intention': False, 'upstream': False}, {'form': 'released'}],
)
def test_srjgraph(log: HeteroData, arguments: dict[str, Any]) -> None:
    part = TemporalSplit(0.3, 0.8, 0.9, num_windows=1)(log)[0]
    widths = {'user': [10, 1, 3], 'item': [1, 10, 1]}
    batch = next(iter(PathLoader(part, 96, shuffle=True, widths=widths)))
    label = batch[CLICKS].edge_label
    assert_repeatable(
        lambda: train(lambda: click_learner(SRJGraph.from_data(part, **arguments), batch, label))
    )


@pytest.mark.parametrize('sentence', ['row', 'node'])
def test_flip(log: HeteroData, sentence: str) -> None:
    data = FieldText(vocab_size=400)(log)
    batch = next(iter(ExposureLoader(data, 256, shuffle=True)))

    def make() -> Learner:
        encoder = TextEncoder(data[CLICKS].num_tokens, 16, 1, 2, 16)
        model = FLIP.from_data(data, text_encoder=encoder, sentence=sentence)

        def loss() -> Tensor:
            found = model.pretraining_losses(batch)
            return sum(value for value, _ in found.values()) + model.loss(model(batch), batch)

        return loss, model

    assert_repeatable(lambda: train(make))


@pytest.mark.parametrize(
    'arguments',
    [{}, {'weighted': True, 'num_positions': 5}, {'hypergraph': False, 'fusion_rank': 4}],
)
def test_hyperctr(log: HeteroData, arguments: dict[str, Any]) -> None:
    data = TimeSlots(5_000)(log)
    data['user'].interest = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    data = InterestHypergraph(max_size=20)(data)
    batch = next(iter(HistoryLoader(data, 1024, shuffle=True)))
    assert_repeatable(
        lambda: train(
            lambda: click_learner(
                HyperCTR.from_data(data, embedding_dim=32, **arguments), batch, batch.label
            )
        )
    )


def test_user_interest(log: HeteroData) -> None:
    def run() -> list[Tensor]:
        transform = UserInterest(32, num_epochs=1, batch_size=2048)
        transform.fit(log, progress=False, accelerator='cpu')
        assert transform._score is not None
        return [*transform._score.state_dict().values(), transform(log)['user'].interest]

    assert_repeatable(run)


def draw_edges(num_sources: int, num_targets: int, num_edges: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack(
        [
            torch.randint(num_sources, (num_edges,), generator=generator),
            torch.randint(num_targets, (num_edges,), generator=generator),
        ]
    )


class WithTables(torch.nn.Module):
    r"""A layer, and all that it reads as a learned table."""

    def __init__(self, layer: torch.nn.Module, **tables: Tensor) -> None:
        super().__init__()
        self.layer = layer
        for name, table in tables.items():
            self.register_parameter(name, torch.nn.Parameter(table))


def intention_conv() -> Learner:
    edges = draw_edges(500, 100, 4_000)
    learned = WithTables(IntentionConv(32, 8), x=torch.randn(500, 32), guide=torch.randn(100, 8))
    center = torch.randn(100, 32)
    return (
        lambda: learned.layer((learned.x, center), edges, learned.guide).square().mean(),
        learned,
    )


def intention_conv_dense() -> Learner:
    conv = IntentionConv(32, 8)
    child, center, guide = torch.randn(100, 60, 32), torch.randn(100, 32), torch.randn(100, 8)
    return lambda: conv.dense(child, center, guide).square().mean(), conv


def macro_conv() -> Learner:
    edges = draw_edges(50, 2_000, 40_000).unique(dim=1)
    learned = WithTables(
        MacroConv(16, 32, renormalize=True), macro=torch.randn(50, 16), x=torch.randn(2_000, 16)
    )
    learned.count = torch.nn.Parameter(1 + torch.rand(edges.size(1)))
    return lambda: learned.layer((learned.macro, learned.x), edges, learned.count).sum(), learned


def hypergraph_conv() -> Learner:
    incidences = draw_edges(300, 40, 40_000)
    learned = WithTables(HypergraphConv(32, 32), x=torch.randn(300, 32), weight=torch.rand(40))
    return (
        lambda: learned.layer(learned.x, incidences, learned.weight.exp()).square().mean(),
        learned,
    )


def slot_hypergraph_conv() -> Learner:
    incidences, slot = draw_edges(300, 40, 20_000), torch.arange(40) % 4
    layer = SlotHypergraphConv(32, 2, 300, incidences, slot)
    learned = WithTables(layer, x=torch.randn(300, 32))
    node, wanted = draw_edges(300, 4, 4_000)
    return lambda: learned.layer(learned.x, node, wanted).square().mean(), learned


def behavior_graph_conv() -> Learner:
    edges = draw_edges(5, 5, 50_000)
    learned = WithTables(BehaviorGraphConv(16, 16, 5), weight=torch.rand(50_000))
    x = torch.randn(2_000, 5, 16)
    return lambda: learned.layer(x, edges, learned.weight).square().mean(), learned


def hash_embedding() -> Learner:
    embedding = HashEmbedding(['user', 'item'], 100, 32)
    ids = draw_edges(500, 500, 4_000).t()
    return lambda: embedding(ids).pow(3).sum(), embedding


def text_encoder() -> Learner:
    encoder = TextEncoder(50, 32, hidden_channels=64)
    tokens, is_token = draw_edges(50, 50, 12_000)[0].view(600, 20), torch.rand(600, 20) < 0.7
    return lambda: encoder(tokens, is_token).pow(3).mean(), encoder


@pytest.mark.parametrize(
    'make',
    [
        intention_conv,
        intention_conv_dense,
        macro_conv,
        hypergraph_conv,
        slot_hypergraph_conv,
        behavior_graph_conv,
        hash_embedding,
        text_encoder,
    ],
)
def test_layers(make: Callable[[], Learner]) -> None:
    assert_repeatable(lambda: train(make))
