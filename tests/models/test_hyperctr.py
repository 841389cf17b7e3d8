import copy
import io

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import HistoryBatch, HistoryLoader
from mag.models import HyperCTR
from mag.training import ClickTask, evaluate, fit
from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')
DAY = 24 * 3600


@pytest.fixture(scope='module')
def log() -> HeteroData:
    return TimeSlots(7 * DAY)(SyntheticMarket(60, 40, 6_000, num_groups=2, log=False)[0])


@pytest.fixture(scope='module')
def market(log: HeteroData) -> HeteroData:
    data = copy.copy(log)
    data['user'].interest = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    return InterestHypergraph()(data)


@pytest.fixture
def batch(market: HeteroData) -> HistoryBatch:
    return HistoryLoader(market, length=6).dataset[torch.arange(20, 6_000, 199)]


def build(data: HeteroData, seed: int = 0, **arguments: object) -> HyperCTR:
    torch.manual_seed(seed)
    model = HyperCTR.from_data(data, embedding_dim=8, **arguments).double().eval()
    # Larger than at the start, so that nothing is lost among the digits.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def content(model: HyperCTR) -> Tensor:
    r"""Item by item, the mean over the modalities that it has."""
    rows = []
    for item in range(model.item_embedding.num_ids):
        found = [
            model.lin_modality[column](getattr(model, f'x_{column}')[item])
            for column in range(len(model.modalities))
            if getattr(model, f'x_{column}')[item].abs().sum() > 0
        ]
        rows.append(sum(found) / len(found) if found else torch.zeros(8).double())
    return torch.stack(rows)


def plain_attention(model: HyperCTR, x: Tensor) -> Tensor:
    r"""Eq. 1 to 4 for one history, at its newest item."""
    layer = model.attention
    query, key, value = linear(
        x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    ).chunk(3, dim=1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weight = (query[-1, part] @ key[:, part].T / 2).softmax(-1)
        heads.append(weight @ value[:, part])
    out = x[-1] + layer.self_attn.out_proj(torch.cat(heads))
    out = layer_norm(out, (8,), layer.norm1.weight, layer.norm1.bias)
    out = out + layer.linear2(layer.linear1(out).relu())
    return layer_norm(out, (8,), layer.norm2.weight, layer.norm2.bias)


def plain_logit(model: HyperCTR, batch: HistoryBatch, row: int) -> Tensor:
    # The first row of each table is that of the unknown.
    user, item = model.user_embedding.weight[1:], model.item_embedding.weight[1:]
    features = item + content(model)
    history = [i for i in batch.history[row].tolist() if i >= 0]
    read, group, own = torch.zeros(8).double(), torch.zeros(8).double(), features[batch.item[row]]
    if history:
        x = features[history] + user[batch.user[row]]
        for place in range(min(len(history), model.position.size(0))):
            x[-1 - place] = x[-1 - place] + model.position[-1 - place]
        read = plain_attention(model, x)
    if len(model.convs) > 0:
        slot = batch.slot[row : row + 1] - 1
        group = model.convs['user'](user, batch.user[row : row + 1], slot)[0]
        own = own + model.convs['item'](features, batch.item[row : row + 1], slot)[0]
    one = torch.ones(1).double()
    outer = torch.outer(torch.cat([read, one]), torch.cat([group, one]))
    fused = outer.flatten() @ model.fusion.weights[0]
    hidden = torch.cat([fused, own])
    for lin in model.head.lins[:-1]:
        hidden = lin(hidden).relu()
    return model.head.lins[-1](hidden)[0]


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'num_layers': 1, 'weighted': True},
        {'num_positions': 4},
        {'num_positions': 9, 'modalities': ['text']},
        {'hypergraph': False},
    ],
)
def test_forward_row_by_row(market: HeteroData, batch: HistoryBatch, arguments: dict) -> None:
    data = copy.copy(market)
    x = market['item'].x_visual.clone()
    x[::3] = 0
    data['item'].x_visual = x
    data['item'].has_text = torch.arange(40) % 4 > 0
    model = build(data, **arguments)
    batch.history[0] = -1
    expected = torch.stack([plain_logit(model, batch, row) for row in range(len(batch.user))])
    with torch.no_grad():
        torch.testing.assert_close(model(batch), expected.detach())


@pytest.mark.parametrize('arguments', [{}, {'hypergraph': False}])
def test_rows_do_not_read_each_other(
    market: HeteroData, batch: HistoryBatch, arguments: dict
) -> None:
    model = build(market, **arguments)
    whole = model(batch)
    for row in range(0, 30, 7):
        one = model(HistoryBatch(*(None if v is None else v[row : row + 1] for v in batch)))
        torch.testing.assert_close(one[0], whole[row])


def test_only_items_that_are_asked_for_are_projected(market: HeteroData) -> None:
    model = build(market, hypergraph=False)
    sizes = []
    for lin in model.lin_modality:
        lin.register_forward_pre_hook(lambda _, args: sizes.append(args[0].size(0)))
    rows = HistoryLoader(market, length=6).dataset[torch.tensor([5_000, 5_001])]
    asked = torch.cat([rows.item, rows.history.flatten()]).unique()
    assert asked[0] >= 0 and asked.numel() < 14
    model(rows)
    assert sizes == 3 * [asked.numel()]
    # No more than there are.
    model(HistoryLoader(market, length=6).dataset[torch.arange(5_000, 5_100)])
    assert sizes[3:] == 3 * [40]


def test_neighbors_are_drawn_in_training_alone(market: HeteroData, batch: HistoryBatch) -> None:
    model, whole = build(market, num_neighbors=2), build(market, num_neighbors=None)
    # Buffers of the hypergraphs are no part of it.
    whole.load_state_dict(model.state_dict())
    expected = whole(batch)
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=0)
    model.train()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(model(batch))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    # On average they tell much of what the whole slots do.
    torch.manual_seed(0)
    mean = torch.stack([model(batch) for _ in range(50)]).mean(0)
    without = build(market, hypergraph=False)
    own = {n: v for n, v in model.state_dict().items() if 'convs' not in n}
    without.load_state_dict(own)
    error, distance = (
        (mean - expected).square().mean(),
        (without(batch) - expected).square().mean(),
    )
    assert error < 0.3 * distance
    outs[2].sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.numel())


def test_no_slot_reads_its_own_or_a_later_one(market: HeteroData) -> None:
    r"""A canary: clicks planted in a slot change what rows of later slots are told, and nothing
    in the slot itself or before."""
    slot, planted = market[CLICKS].edge_label_slot, 2
    data = copy.deepcopy(market)
    when = market[CLICKS].slot == planted
    assert 0 < when.sum() < when.numel()
    generator = torch.Generator().manual_seed(1)
    data[CLICKS].edge_index[1, when] = torch.randint(40, (int(when.sum()),), generator=generator)
    data = InterestHypergraph()(data)
    loader = HistoryLoader(market, length=6)
    logits = []
    for graph in (market, data):
        logits.append(build(graph)(loader.dataset[torch.arange(6_000)]))
    changed = logits[0] != logits[1]
    assert not changed[slot <= planted].any()
    assert changed[slot == planted + 1].float().mean() > 0.9
    assert slot.max() == planted + 1


def test_users_and_items_that_no_slot_knows(market: HeteroData, batch: HistoryBatch) -> None:
    r"""A row of the first slot has no hypergraph to read, so is what it is without."""
    model, without = build(market), build(market, hypergraph=False)
    without.load_state_dict(
        {name: value for name, value in model.state_dict().items() if 'convs' not in name}
    )
    first = batch._replace(slot=torch.zeros_like(batch.slot))
    torch.testing.assert_close(model(first), without(first))
    assert not torch.allclose(model(batch), without(batch))


@pytest.mark.parametrize('size', [4, 31])
def test_who_is_dropped_is_unknown_in_rows_histories_and_hyperedges(
    market: HeteroData, batch: HistoryBatch, size: int
) -> None:
    # Few rows ask for some of the users and items, all of them for all.
    batch = HistoryBatch(*(None if x is None else x[:size] for x in batch))
    model = build(market, num_layers=1, id_dropout=0.5).train()
    logit = model(batch)
    logit.sum().backward()
    # Who is dropped learns nothing; the rows are those of a model that does not know of them.
    num_dropped, other = 0, copy.deepcopy(model)
    for name in ('user_embedding', 'item_embedding'):
        weight, gradient = getattr(other, name).weight.data, getattr(model, name).weight.grad
        is_dropped = (gradient == 0).all(1)
        weight[is_dropped] = weight[0].clone()
        own = getattr(batch, name.removesuffix('_embedding'))
        num_dropped += int(is_dropped[own + 1].sum())
    assert 0 < num_dropped < 2 * size
    torch.testing.assert_close(logit, other.eval()(batch))


@pytest.mark.parametrize('arguments', [{}, {'num_neighbors': 1}, {'hypergraph': False}])
def test_if_all_are_dropped_no_row_tells_users_or_items_apart(
    market: HeteroData, batch: HistoryBatch, arguments: dict
) -> None:
    model = build(market, id_dropout=1 - 1e-12, **arguments).train()
    other = copy.deepcopy(model)
    for embedding in (other.user_embedding, other.item_embedding):
        embedding.weight.data[1:] = embedding.weight.data[1:].flip(0)
    torch.manual_seed(0)
    logit = model(batch)
    torch.manual_seed(0)
    assert torch.equal(logit, other(batch))


def test_padding_changes_nothing(market: HeteroData, batch: HistoryBatch) -> None:
    model = build(market, num_positions=3)
    longer = batch._replace(history=torch.nn.functional.pad(batch.history, (5, 0), value=-1))
    torch.testing.assert_close(model(longer), model(batch))


def test_without_positions_order_counts_for_the_newest_alone(market: HeteroData) -> None:
    rows = HistoryLoader(market, length=4).dataset[torch.arange(5_900, 5_990)]
    model, placed = build(market), build(market, num_positions=4)
    other = rows._replace(history=rows.history[:, [2, 0, 1, 3]])
    full = (rows.history >= 0).all(1)
    torch.testing.assert_close(model(other)[full], model(rows)[full])
    assert not torch.allclose(placed(other)[full], placed(rows)[full])


def test_one_modality_reads_its_own_hyperedges(market: HeteroData) -> None:
    r"""As if the users cared for nothing else, weights included."""
    data = copy.copy(market)
    data['user'].interest = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) / 2 + 0.5
    data['user'].interest[:, 0] -= 0.4
    whole = InterestHypergraph()(data)
    alone = copy.copy(whole)
    for node_type in ('user', 'item'):
        store = whole[node_type]
        kept = (store.hyperedge_modality == 2).nonzero().view(-1).tolist()
        assert 0 < len(kept) < store.hyperedge_slot.numel()
        columns = [
            (node, kept.index(hyperedge))
            for node, hyperedge in store.hyperedge_index.T.tolist()
            if hyperedge in kept
        ]
        alone[node_type].hyperedge_index = torch.tensor(columns).T
        for name in ('slot', 'weight', 'modality'):
            alone[node_type][f'hyperedge_{name}'] = store[f'hyperedge_{name}'][kept]
    batch = HistoryLoader(market, length=6).dataset[torch.arange(20, 6_000, 199)]
    arguments = {'modalities': ['text'], 'weighted': True}
    expected = build(alone, **arguments)(batch)
    torch.testing.assert_close(build(whole, **arguments)(batch), expected)
    every = {'modalities': ['text', 'visual', 'acoustic'], 'weighted': True}
    assert not torch.allclose(build(whole, **every)(batch), expected)


@pytest.mark.parametrize('arguments', [{}, {'hypergraph': False}, {'num_positions': 3}])
def test_a_request_without_candidates(market: HeteroData, arguments: dict) -> None:
    request = HistoryLoader(market, length=6).request(
        0, torch.tensor([]).long(), time=0, slot=1, domain=0
    )
    for model in (build(market, **arguments), build(market, **arguments).train()):
        assert model(request).shape == (0,)


def test_factored_fusion_has_few_weights(market: HeteroData, batch: HistoryBatch) -> None:
    model = build(market, fusion_rank=2)
    assert sum(weight.numel() for weight in model.fusion.parameters()) == 2 * 2 * 9 * 8
    assert model(batch).isfinite().all()


@pytest.mark.parametrize('arguments', [{}, {'weighted': True}, {'hypergraph': False}])
def test_compiled_training_is_one_graph_with_the_same_gradients(
    market: HeteroData, batch: HistoryBatch, arguments: dict
) -> None:
    model = build(market, **arguments).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    outs = [run(batch) for run in (model, compiled)]
    parameters = [value for value in model.parameters() if value.numel() > 0]
    expected, found = (torch.autograd.grad(out.square().sum(), parameters) for out in outs)
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(found, expected)


def test_export_scores_batches_of_other_sizes(market: HeteroData, batch: HistoryBatch) -> None:
    model = build(market)
    size = torch.export.Dim('batch', min=2)
    shapes = HistoryBatch(*(None if value is None else {0: size} for value in batch))
    program = torch.export.export(model, (batch,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    scorer = torch.export.load(file).module()
    loader = HistoryLoader(market, length=6)
    for rows in (torch.arange(3), torch.arange(0, 6_000, 7)):
        other = loader.dataset[rows]
        torch.testing.assert_close(scorer(other), model(other))


def test_bfloat16_autocast_is_close(market: HeteroData, batch: HistoryBatch) -> None:
    model = build(market).float()
    expected = model(batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model(batch).float()
    without = copy.deepcopy(model)
    for parameter in without.convs.parameters():
        parameter.data.zero_()
    # Much closer than without what the hypergraphs tell.
    error, told = (out - expected).abs().max(), (without(batch) - expected).abs().max()
    assert error < 0.05 * expected.std() < 0.2 * told


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
def test_cuda_agrees_with_cpu(market: HeteroData, batch: HistoryBatch) -> None:
    model = build(market, weighted=True)
    expected = model(batch)
    on_device = HistoryBatch(*(None if value is None else value.cuda() for value in batch))
    torch.testing.assert_close(model.cuda()(on_device).cpu(), expected)


def test_learns(log: HeteroData, market: HeteroData, tmp_path) -> None:
    parts = TemporalSplit(0.2, 0.8, 0.9, num_windows=1, keep_cold=True)(log)
    loaders = [
        HistoryLoader(part, 128, shuffle=part is parts[0], length=10, history=market)
        for part in parts
    ]
    torch.manual_seed(0)
    module = ClickTask(HyperCTR.from_data(market, embedding_dim=16), 3e-3, 1e-6)
    before = evaluate(module, loaders[2])
    fit(module, *loaders[:2], directory=str(tmp_path), max_epochs=5, progress=False)
    assert evaluate(module, loaders[2])['auc'] > max(before['auc'], 0.55)


def test_bad_input(market: HeteroData, batch: HistoryBatch) -> None:
    with pytest.raises(ValueError, match=r"some of \['visual', 'acoustic', 'text'\], .* got \['sm"):
        HyperCTR.from_data(market, modalities=['smell'])
    with pytest.raises(ValueError, match='HyperCTR needs the features of a modality or more'):
        HyperCTR.from_data(market, modalities=[])
    with pytest.raises(ValueError, match="'modalities' to be a list of some of .* got 'visual'"):
        HyperCTR.from_data(market, modalities='visual')
    with pytest.raises(ValueError, match="'modalities' to be a list of some of .* got 3"):
        HyperCTR.from_data(market, modalities=3)
    fewer = copy.copy(market)
    del fewer['item'].x_acoustic
    with pytest.raises(ValueError, match=r"\['visual', 'text'\], but .*interest has 3 columns"):
        HyperCTR.from_data(fewer, modalities=['text'])
    HyperCTR.from_data(fewer, modalities=['text'], hypergraph=False)
    with pytest.raises(ValueError, match="'num_layers' must be at least 1, but got 0"):
        HyperCTR.from_data(market, hypergraph=False, num_layers=0)
    for hypergraph in (False, True):
        with pytest.raises(ValueError, match="'num_neighbors' must be at least 1, but got 0"):
            HyperCTR.from_data(market, hypergraph=hypergraph, num_neighbors=0)
    with pytest.raises(TypeError, match="'num_neighbors' must be an integer, but got 1.5"):
        HyperCTR.from_data(market, num_neighbors=1.5)
    with pytest.raises(TypeError, match="'hidden_channels' must be a sequence of sizes"):
        HyperCTR.from_data(market, hidden_channels=64)
    with pytest.raises(ValueError, match=r"of 'user' and 'item', but got \['user'\]"):
        HyperCTR(60, {'text': torch.rand(40, 2)}, {'user': {}})
    bare = copy.copy(market)
    del bare['item'].hyperedge_slot
    with pytest.raises(ValueError, match=r"data\['item'\] with \['hyperedge_slot'\], which Inter"):
        HyperCTR.from_data(bare)
    with pytest.raises(
        ValueError, match="'embedding_dim' must be a multiple of 'num_heads', but got 9"
    ):
        HyperCTR.from_data(market, embedding_dim=9)
    with pytest.raises(ValueError, match="'num_positions' must be at least 0, but got -1"):
        HyperCTR.from_data(market, num_positions=-1)
    with pytest.raises(ValueError, match="batches with a 'slot', but got one without: apply TimeS"):
        build(market)(batch._replace(slot=None))
