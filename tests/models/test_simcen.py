import copy
import io
import pickle
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.compression import compress_tables
from mag.datasets import SyntheticMarket
from mag.loader import ExposureBatch, ExposureLoader, JoinedBatch, PairBatch
from mag.losses import view_contrast
from mag.models import SimCEN
from mag.nn import ContrastiveProduct, GatedStreams
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import TemporalSplit

CLICKS = ('user', 'clicks', 'item')
FIELDS = ('user', 'item', 'item_brand', 'query', 'query')
NUM_VALUES = {'user': 5, 'item': 4, 'item_brand': 3, 'query': 6}
STARTS = {'user': 0, 'item': 6, 'item_brand': 11, 'query': 15}
OPTIONS: dict[str, dict[str, Any]] = {
    'plain': {},
    'no norm': {'batch_norm': False},
    'no views': {'views': False},
    'mlp': {'mlp_channels': (10, 7)},
    'dual': {'second_channels': (12, 6)},
    'both': {'mlp_channels': (5,), 'second_channels': (6,), 'contrast_form': 'standard'},
}
each_option = pytest.mark.parametrize('options', OPTIONS.values(), ids=list(OPTIONS))
# Enough to compile every line once: tracing takes seconds.
each_path = pytest.mark.parametrize(
    'options', [OPTIONS[name] for name in ('plain', 'no views', 'both')]
)


def make(seed: int = 0, **arguments: Any) -> SimCEN:
    torch.manual_seed(seed)
    arguments = {'embedding_dim': 2, 'hidden_channels': (9, 9), 'alpha': 0.5, **arguments}
    return SimCEN(NUM_VALUES, FIELDS, **arguments)


def make_batch(size: int = 8) -> ExposureBatch:
    generator = torch.Generator().manual_seed(1)
    sparse = torch.stack(
        [torch.randint(-1, NUM_VALUES[name], (size,), generator=generator) for name in FIELDS], 1
    )
    user, item = sparse[:, 0].clamp(min=0), sparse[:, 1].clamp(min=0)
    label = torch.randint(2, (size,), generator=generator).float()
    return ExposureBatch(user, item, sparse, torch.empty(size, 0), label)


def spread(model: SimCEN) -> SimCEN:
    r"""The model with embeddings that are not near 0."""
    for table in (model.embedding, model.second_embedding):
        if table is not None:
            torch.nn.init.normal_(table.weight)
    return model


def embedded(table: Tensor, batch: ExposureBatch) -> Tensor:
    rows = [
        torch.stack([table[STARTS[name] + 1 + id] for name, id in zip(FIELDS, row, strict=True)])
        for row in batch.sparse.tolist()
    ]
    return torch.stack(rows)


def streams(tower: torch.nn.Module, x: Tensor) -> list[Tensor]:
    read = torch.cat([x.flatten(1), *tower.product(x)], dim=1)
    for layer in tower.layers:
        read = layer(read)
    return list(read.split(read.size(1) // 3, dim=1))


def test_the_head_reads_the_ego_and_both_views_through_which_it_passes() -> None:
    model, batch = spread(make().eval()), make_batch()
    ego, view1, view2 = streams(model.tower, embedded(model.embedding.weight, batch))
    read = torch.cat([ego, ego + view1, ego + view2], dim=1)
    assert model.out_channels == 9
    torch.testing.assert_close(model.features(batch), read)
    expected = read @ model.head.weight.view(-1) + model.head.bias
    torch.testing.assert_close(model(batch).click, expected)


def test_layers_are_those_of_the_paper() -> None:
    first, second = make().tower.layers
    assert (first.in_channels, first.skip, first.has_bias) == (3 * 10, False, False)
    assert (second.in_channels, second.skip, second.has_bias) == (9, True, True)
    first, second = make(second_channels=(12, 6)).second_tower.layers
    assert (first.out_channels, first.skip, first.has_bias) == (12, False, False)
    # A second tower adds no views, so that its widths may differ.
    assert (second.out_channels, second.skip, second.has_bias) == (6, False, True)
    drop = make(dropouts=(0.1, 0.2, 0.3), activations=('gelu', 'relu', 'leaky_relu'))
    for layer in drop.tower.layers:
        assert layer.dropouts == (0.1, 0.2, 0.3)
        assert layer.activations == ('gelu', 'relu', 'leaky_relu')
    assert make(batch_norm=False).tower.layers[0].norm is None


def test_a_second_tower_has_a_table_of_its_own_and_is_read_before_the_ego_passes_through() -> None:
    model, batch = spread(make(second_channels=(12, 6)).eval()), make_batch()
    read = [
        stream
        for tower, table in (
            (model.tower, model.embedding), (model.second_tower, model.second_embedding)
        )
        for stream in streams(tower, embedded(table.weight, batch))
    ]  # fmt: skip
    torch.testing.assert_close(model.features(batch), torch.cat(read, dim=1))
    contrasts = [
        view_contrast(ego, ego + view1, ego + view2, 0.2)
        for ego, view1, view2 in (read[:3], read[3:])
    ]
    torch.testing.assert_close(model.contrast(model.features(batch)), sum(contrasts))


@pytest.mark.parametrize('views', [True, False])
def test_an_mlp_reads_the_ego(views: bool) -> None:
    options = {'mlp_channels': (10, 7)} if views else {'views': False, 'hidden_channels': (10, 7)}
    model, batch = spread(make(**options).eval()), make_batch()
    x = embedded(model.embedding.weight, batch).flatten(1)
    for lin, norm in ((model.mlp[0], model.mlp[1]), (model.mlp[4], model.mlp[5])):
        x = F.relu(norm(lin(x)))
    features = model.features(batch)
    assert features.shape == (8, 7 + 9 * views)
    torch.testing.assert_close(features[:, -7:], x)
    drop = make(**options, dropouts=(0.4, 0, 0), activations=('gelu', 'relu', 'relu')).mlp
    assert [module.p for module in drop if isinstance(module, torch.nn.Dropout)] == [0.4, 0.4]
    assert [type(module).__name__ for module in drop].count('GELU') == 2


# Rows of all tables, fields and size of an embedding, and the parameters in the authors' logs.
PUBLISHED = {
    'MovieLens-latest': (88_596, 3, 16, {}, 2_031_809),
    'Frappe': (5_383, 10, 16, {}, 878_705),
    'Avazu': (3_750_999, 24, 16, {'batch_norm': False}, 61_341_041),
    'Criteo': (5_549_252, 39, 16, {}, 91_204_609),
    'KuaiVideo': (632_406 + 10_002, 7, 64, {}, 42_332_737),
    'Frappe, dual': (5_383, 10, 16, {'second_channels': (960, 480)}, 2_039_009),
    'Avazu, dual': (
        3_750_999,
        24,
        16,
        {'batch_norm': False, 'second_channels': (960, 480)},
        123_286_241,
    ),
    # Two biases of a sum, that of the head and that of the MLP, are one here.
    'Frappe, MLP': (5_383, 10, 16, {'mlp_channels': (800, 400)}, 1_330_706 - 1),
    'Criteo, MLP': (5_549_252, 39, 16, {'mlp_channels': (1024, 512, 256)}, 92_504_578 - 1),
}


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize('setting', PUBLISHED.values(), ids=list(PUBLISHED))
def test_parameters_are_those_of_the_published_settings(setting: tuple[Any, ...]) -> None:
    rows, num_fields, size, options, published = setting
    with torch.device('meta'):
        # One row of a table stands for none.
        model = SimCEN({'value': rows - 1}, ['value'] * num_fields, size, **options)
    assert count(model) == published


def test_parameters_are_those_of_micro_video() -> None:
    # Two of its five fields, the item and those clicked before, are frozen images, each read
    # through a matrix of its own.
    images = [torch.nn.Linear(64, 64, bias=False) for _ in range(2)]
    tables = [torch.nn.Embedding(rows, 64) for rows in (10_988, 514)]
    sizes = [3 * 5 * 64, 480, 480, 480]
    layers = [
        GatedStreams(*pair, skip=place > 0, bias=place > 0)
        for place, pair in enumerate(zip(sizes, sizes[1:]))
    ]
    parts = [*images, *tables, ContrastiveProduct(5, 64), *layers, torch.nn.Linear(480, 1)]
    assert count(*parts) == 1_763_137
    # The same of a model, but for how fields are read.
    rest = make(embedding_dim=64, hidden_channels=sizes[1:])
    assert count(rest.tower, rest.head) == count(*parts[4:])


@each_option
def test_the_loss_is_that_of_clicks_contrast_and_embeddings(options: dict[str, Any]) -> None:
    model = spread(make(**options, embedding_regularization=0.1, through_dropout=0.5))
    model.temperature = 0.7
    batch = make_batch()
    out = model(batch)
    expected = F.binary_cross_entropy_with_logits(out.click, batch.label)
    prefixes = ('', 'second_') if model.second_tower is not None else ('',)
    for prefix in prefixes if model.tower is not None else ():
        parts = [out.views[f'{prefix}{name}'] for name in ('ego', 'view1', 'view2')]
        assert all(part.shape == (8, parts[0].size(1)) for part in parts)
        expected = expected + 0.5 * view_contrast(*parts, 0.7, model.contrast_form)
    expected = expected + 0.05 * model.embedding.weight.square().sum()
    if model.second_embedding is not None:
        expected = expected + 0.05 * model.second_embedding.weight.square().sum()
    torch.testing.assert_close(model.loss(out, batch), expected)


def test_the_loss_of_compressed_tables_is_that_of_their_rows() -> None:
    torch.manual_seed(0)
    batch = make_batch()._replace(sparse=torch.randint(-1, 299, (8, 2)))
    model = spread(SimCEN({'value': 299}, ['value'] * 2, 8, (9,), embedding_regularization=0.1))
    compress_tables(model, num_codes=2, num_bits=4)
    out = model(batch)
    clicks = F.binary_cross_entropy_with_logits(out.click, batch.label)
    contrast = 0.01 * view_contrast(**out.views)
    rows = model.embedding(torch.arange(300).view(-1, 1).expand(-1, 2))[:, 0]
    expected = clicks + contrast + 0.05 * rows.square().sum()
    torch.testing.assert_close(model.loss(out, batch), expected)


def test_there_are_views_where_they_are_contrasted() -> None:
    batch = make_batch()
    assert set(make()(batch).views) == {'ego', 'view1', 'view2'}
    assert make().eval()(batch).views is None
    assert make(alpha=0.0)(batch).views is None
    assert make(views=False)(batch).views is None
    dual = make(second_channels=(6,))(batch).views
    names = ('ego', 'view1', 'view2')
    assert list(dual) == [*names, *(f'second_{name}' for name in names)]
    model = make().eval()
    out = model(batch)
    expected = F.binary_cross_entropy_with_logits(out.click, batch.label)
    torch.testing.assert_close(model.loss(out, batch), expected)


def test_the_ego_is_partly_dropped_where_it_passes_through() -> None:
    model, batch = spread(make(through_dropout=0.5, dropouts=(0, 0, 0))), make_batch(2_000)
    views = model(batch).views
    ego, first, second = streams(model.tower, embedded(model.embedding.weight, batch))
    torch.testing.assert_close(views['ego'], ego)
    through = views['view1'] - first
    torch.testing.assert_close(views['view2'] - second, through)
    dropped = through.abs() < 1e-6
    torch.testing.assert_close(through, (2 * ego).masked_fill(dropped, 0), atol=1e-5, rtol=1e-5)
    assert dropped[ego > 1e-3].float().mean().item() == pytest.approx(0.5, abs=0.05)


@each_option
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    # A normalization takes a bias away.
    model = spread(make(**{**options, 'batch_norm': False}, dropouts=(0, 0, 0)))
    batch = make_batch(64)
    model.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        if name.endswith('tower.layers.0.bias'):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_the_contrast_reaches_the_embeddings_alone() -> None:
    model, batch = spread(make()), make_batch()
    model.contrast(model.features(batch)).backward()
    assert bool(model.embedding.weight.grad.abs().sum() > 0) and model.head.weight.grad is None


def test_it_reads_joined_batches_as_their_features() -> None:
    model, batch = spread(make().eval()), make_batch()
    empty = torch.full((8, 2), -1)
    pairs = PairBatch(batch.user, batch.item, (empty, empty), (empty, empty), empty, empty)
    joined = JoinedBatch(batch.user, batch.item, batch.label, pairs=pairs, features=batch)
    assert torch.equal(model(joined).click, model(batch).click)
    assert torch.equal(model.features(joined), model.features(batch))
    out = model.train()(joined)
    assert torch.equal(model.loss(out, joined), model.loss(out, batch))


@each_path
def test_compiled_training_is_one_graph_with_the_same_gradients(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options, dropouts=(0, 0, 0), through_dropout=0.0)), make_batch()
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    for scorer in (model, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        model.loss(scorer(batch), batch).backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        if parameter.requires_grad:
            torch.testing.assert_close(other.grad, parameter.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_scores_are_the_same() -> None:
    model, batch = spread(make(hidden_channels=(9,)).eval()), make_batch()
    torch.compiler.reset()
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(batch).click
        torch.testing.assert_close(out, model(batch).click, atol=1e-5, rtol=1e-4)


@each_path
def test_export_scores_batches_of_other_sizes(options: dict[str, Any]) -> None:
    model = spread(make(**options).eval())
    size, example = torch.export.Dim('batch', min=2), make_batch()
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: size}, example)
    program = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    scorer = torch.export.load(file).module(check_guards=False)
    for batch in (example, make_batch(30), make_batch(3)):
        torch.testing.assert_close(scorer(batch).click, model(batch).click)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
@each_option
def test_cuda_agrees_with_cpu(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options, dropouts=(0, 0, 0), through_dropout=0.0)), make_batch(32)
    twin = copy.deepcopy(model).cuda()
    on_device = torch.utils._pytree.tree_map_only(Tensor, lambda value: value.cuda(), batch)
    model.loss(model(batch), batch).backward()
    twin.loss(twin(on_device), on_device).backward()
    for (name, parameter), copied in zip(model.named_parameters(), twin.parameters()):
        if parameter.requires_grad:
            torch.testing.assert_close(
                copied.grad.cpu(), parameter.grad, msg=name, atol=1e-4, rtol=1e-3
            )


@each_option
def test_bfloat16(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    expected = model(batch).click
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model(batch).click.float(), expected, atol=0.1, rtol=0.1)
        loss = model.loss(model.train()(batch), batch)
    assert loss.dtype == torch.float and bool(loss.isfinite())
    loss.backward()


@each_option
def test_copies_agree_and_a_reset_starts_over(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    other = spread(make(1, **options)).eval()
    assert not torch.equal(other(batch).click, model(batch).click)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch).click, model(batch).click)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in model.parameters())


def test_it_starts_as_the_authors_start_theirs() -> None:
    model = make(embedding_dim=30, hidden_channels=(90,))
    assert model.embedding.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    model = make(views=False, hidden_channels=(90, 60))
    assert model.mlp[4].weight.std().item() == pytest.approx((2 / 150) ** 0.5, rel=0.05)
    assert model.mlp[4].bias.tolist() == [0.0] * 60 and model.head.bias.tolist() == [0.0]


@pytest.fixture(scope='module')
def parts() -> list[HeteroData]:
    data = SyntheticMarket(200, 60, 20_000, seed=0, log=False)[0]
    return list(TemporalSplit(num_windows=1)(data))


@pytest.mark.parametrize('options', [{}, {'alpha': 0.0}, {'views': False}])
def test_it_learns_from_a_log(parts: list[HeteroData], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = SimCEN.from_data(parts[0], hidden_channels=(48, 48), **options)
    task = ClickTask(model, 1e-2, 0.0, average=0.9)
    loaders = [ExposureLoader(part, 512, shuffle=place == 0) for place, part in enumerate(parts)]
    fit(
        task, loaders[0], loaders[1], max_epochs=2, monitor='logloss', progress=False,
        accelerator='cpu',
    )  # fmt: skip
    assert evaluate(task, loaders[2])['auc'] > 0.58
    assert set(predict(task, loaders[2])) == {'click'}


def crossed_log() -> tuple[HeteroData, HeteroData]:
    r"""Two parts of a log whose clicks depend on whether the kind of a user is that of the item:
    neither of the two tells anything by itself."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in (20_000, 4_000):
        data = HeteroData()
        data['user'].num_nodes, data['item'].num_nodes = 40, 40
        user, item = (torch.randint(40, (size,), generator=generator) for _ in range(2))
        share = torch.where(user % 4 == item % 4, 0.8, 0.2)
        clicks = data[CLICKS]
        clicks.edge_label_index = torch.stack([user, item])
        clicks.edge_label = (torch.rand(size, generator=generator) < share).float()
        clicks.edge_label_time = torch.arange(size)
        clicked = clicks.edge_label == 1
        clicks.edge_index = clicks.edge_label_index[:, clicked]
        clicks.time = clicks.edge_label_time[clicked]
        parts.append(data)
    return parts[0], parts[1]


def test_it_finds_crosses() -> None:
    train, test = crossed_log()
    torch.manual_seed(0)
    task = ClickTask(SimCEN.from_data(train, hidden_channels=(24, 24)), 1e-2, 0.0)
    fit(
        task, ExposureLoader(train, 500, shuffle=True), max_epochs=6, progress=False,
        accelerator='cpu',
    )  # fmt: skip
    # The best that can be known: of the share .8 against .2, with a quarter of the rows.
    assert evaluate(task, ExposureLoader(test))['auc'] > 0.72


def test_a_request_is_scored_as_the_rows_of_a_log(parts: list[HeteroData]) -> None:
    test = parts[2]
    model = spread(SimCEN.from_data(test, hidden_channels=(9,)).eval())
    loader = ExposureLoader(test, 50)
    assert model.fields == loader.fields
    batch = next(iter(loader))
    contexts = {
        name.removeprefix('edge_label_'): test[CLICKS][name][:50]
        for name in ('edge_label_query', 'edge_label_domain')
    }
    request = loader.request(batch.user, batch.item, **contexts)
    torch.testing.assert_close(model(request).click, model(batch).click)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: SimCEN({}, []), ValueError, 'reads categorical fields, but was given none'),
        (lambda: make(embedding_dim=0), ValueError, "'embedding_dim' must be at least 1, but got"),
        (lambda: make(hidden_channels=(10,)), ValueError, 'must be a multiple of 3, .* got 10'),
        (lambda: make(second_channels=(10,)), ValueError, 'must be a multiple of 3, .* got 10'),
        (lambda: make(hidden_channels=(9, 6)), ValueError, "'in_channels' 9 and 'out_channels' 6"),
        (lambda: make(hidden_channels=()), ValueError, "'hidden_channels' must hold one width"),
        (lambda: make(mlp_channels=()), ValueError, "'mlp_channels' must hold one width"),
        (lambda: make(mlp_channels=8), TypeError, "'mlp_channels' must be a sequence of sizes"),
        (lambda: make(alpha=-1), ValueError, r"'alpha' must be a number in \[0, inf\), but got -1"),
        (lambda: make(temperature=0), ValueError, r"'temperature' must be a number in \(0, inf\)"),
        (lambda: make(contrast_form='x'), ValueError, "'contrast_form' must be one of 'released'"),
        (lambda: make(through_dropout=1), ValueError, r"'through_dropout' must be a number in \[0"),
        (lambda: make(dropouts=(1, 0, 0)), ValueError, r"'dropouts\[0\]' must be a number in \[0"),
        (lambda: make(activations='relu'), TypeError, "'activations' must be three, .* got 'relu'"),
        (lambda: make(views='no'), TypeError, "'views' must be True or False, but got 'no'"),
        (
            lambda: make(views=False, mlp_channels=(4,), second_channels=(3,)),
            ValueError,
            r"\['mlp_channels', 'second_channels'\] lie beside .* built with views=False",
        ),
        (
            lambda: make(embedding_regularization=-1),
            ValueError,
            r"'embedding_regularization' must be a number in \[0, inf\)",
        ),
        (
            lambda: make(views=False).contrast(torch.rand(2, 9)),
            ValueError,
            'built with views=False, and has none to contrast',
        ),
        (
            lambda: make().contrast(torch.rand(2, 8)),
            ValueError,
            r"'features' of shape \[B, 9\], but got shape \[2, 8\]",
        ),
        (lambda: make()(make_batch(1)), ValueError, 'needs two rows or more, but got one'),
        (
            lambda: make().loss(make()(make_batch()), make_batch()._replace(label=None)),
            ValueError,
            'batch.label is None',
        ),
        (lambda: make()(make_batch().sparse), TypeError, 'JoinedBatch, but got Tensor'),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
