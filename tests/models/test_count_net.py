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
from torchmetrics.functional.classification import binary_auroc

from mag.datasets import SyntheticMarket
from mag.loader import (
    ExposureBatch,
    ExposureLoader,
    JoinedBatch,
    JoinedLoader,
    PairBatch,
    PairLoader,
)
from mag.macro_graph import TargetView
from mag.metrics import bayes_optimal
from mag.models import CountNet, MacGNN
from mag.training import ClickTask, evaluate, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
FIELDS = ('user', 'item', 'item_brand', 'query', 'query')
NUM_VALUES = {'user': 5, 'item': 4, 'item_brand': 3, 'query': 6}
STARTS = {'user': 0, 'item': 6, 'item_brand': 11, 'query': 15}
NUM_MACRO = {'user': 3, 'item': 2}
OPTIONS: dict[str, dict[str, Any]] = {
    'plain': {},
    'paper': {'rows': 'paper'},
    'twin': {'rows': 'twin'},
    'recent': {'recent': True},
    'crosses': {'num_crosses': 2},
    'separate': {'rows': 'twin', 'separate_tables': True},
    'separate recent': {'recent': True, 'separate_tables': True},
    'strength': {'id_strength': 2.0},
    'all': {
        'rows': 'twin',
        'recent': True,
        'separate_tables': True,
        'num_crosses': 1,
        'id_strength': 2.0,
    },
}
each_option = pytest.mark.parametrize('options', OPTIONS.values(), ids=list(OPTIONS))
# Enough to compile every line once: tracing takes seconds.
each_path = pytest.mark.parametrize(
    'options', [OPTIONS[name] for name in ('plain', 'paper', 'recent', 'all')]
)


def make(seed: int = 0, **arguments: Any) -> CountNet:
    torch.manual_seed(seed)
    arguments = {'embedding_dim': 2, 'hidden_channels': (6, 4), **arguments}
    given = {'num_macro': NUM_MACRO, 'id_strength': 0.0, **arguments}
    if given['id_strength'] != 0:
        given = {'id_counts': {'user': 0, 'item': 1}, **given}
    return CountNet(NUM_VALUES, FIELDS, [-1, 0], 0.3, **given)


def make_batch(size: int = 8) -> ExposureBatch:
    generator = torch.Generator().manual_seed(1)
    sparse = torch.stack(
        [torch.randint(-1, NUM_VALUES[name], (size,), generator=generator) for name in FIELDS], 1
    )
    seen = torch.randint(0, 9, (size, 2), generator=generator).float()
    counts = torch.stack([seen, (seen * torch.rand(size, 2, generator=generator)).floor()], -1)
    user, item = sparse[:, 0].clamp(min=0), sparse[:, 1].clamp(min=0)
    return ExposureBatch(user, item, sparse, torch.empty(size, 0), counts=counts)


def make_joined(size: int = 8) -> JoinedBatch:
    generator = torch.Generator().manual_seed(2)
    features = make_batch(size)

    def draw(low: int, high: int, width: int) -> Tensor:
        return torch.randint(low, high, (size, width), generator=generator)

    pairs = PairBatch(
        features.user,
        features.item,
        (draw(0, 4, 2).float(), draw(0, 4, 3).float()),
        (draw(0, 4, 3).float(), draw(0, 4, 2).float()),
        draw(-1, NUM_VALUES['item'], 3),
        draw(-1, NUM_VALUES['user'], 4),
    )
    return JoinedBatch(features.user, features.item, pairs=pairs, features=features)


def spread(model: CountNet) -> CountNet:
    r"""The model with embeddings that are not near 0."""
    torch.nn.init.normal_(model.embedding.weight)
    return model


def test_the_head_reads_embeddings_and_encoded_counts() -> None:
    model, batch = spread(make().eval()), make_batch()
    table = [
        torch.cat([model.embedding.weight[STARTS[name] + 1 + id] for name, id in zip(FIELDS, row)])
        for row in batch.sparse.tolist()
    ]
    x = torch.cat([torch.stack(table), model.encoder(batch.counts)], 1)
    torch.testing.assert_close(model(batch), model.head(x).squeeze(-1))
    assert model.embedding.num_embeddings == 5 + 4 + 3 + 6 + 4


def test_an_id_says_as_much_as_it_was_seen() -> None:
    model, batch = spread(make(id_strength=3.0).eval()), make_batch()
    plain = make().eval()
    plain.load_state_dict(model.state_dict())
    expected = []
    for row in range(8):
        # The same as a plain model whose embeddings are shrunk for this row.
        one = ExposureBatch(*(None if value is None else value[row : row + 1] for value in batch))
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            for column, (name, id) in enumerate(zip(FIELDS[:2], one.sparse[0].tolist())):
                seen = one.counts[0, column, 0]
                # Of nobody all is read that was learned of them.
                share = seen / (seen + 3) if id >= 0 else 1
                plain.embedding.weight[STARTS[name] + 1 + id] *= share
        expected.append(plain(one))
    torch.testing.assert_close(model(batch), torch.cat(expected))
    # One that was never seen says nothing.
    sparse = batch.sparse.clamp(min=0)
    new = batch._replace(counts=torch.zeros_like(batch.counts), sparse=sparse)
    before = model(new)
    new.sparse[:, :2] = 0
    assert torch.equal(model(new), before)


@pytest.mark.parametrize('name', ['user', 'item'])
def test_an_id_is_scaled_where_its_own_count_is_known(parts: list[HeteroData], name: str) -> None:
    model, batch = spread(make(id_strength=3.0, id_counts={name: 1}).eval()), make_batch()
    ids = model.embedding.known(batch.sparse)
    expected = model.embedding(ids)
    seen, place = batch.counts[:, 1, 0], FIELDS.index(name)
    share = (seen / (seen + 3)).where(batch.sparse[:, place] >= 0, 1)
    expected[:, place] *= share.unsqueeze(1)
    torch.testing.assert_close(model.embedding(ids, batch.counts), expected)
    # Ablations count but one of the two.
    counts = TargetCounts([TargetView(**{name: 'id'})]).fit(parts[0])
    built = CountNet.from_data(counts(parts[0]))
    is_scaled = built.embedding.is_weighed
    assert [built.fields[place] for place in is_scaled.nonzero().view(-1)] == [name]


def test_the_unknown_say_what_their_row_learned_though_nobody_counts_them() -> None:
    model, batch = (
        spread(make(id_strength=3.0, id_counts={'user': 0, 'item': 1}).eval()),
        make_batch(),
    )
    places = [FIELDS.index(name) for name in ('user', 'item')]
    sparse, counts = batch.sparse.clamp(min=0), torch.zeros_like(batch.counts)
    sparse[0, places] = -1
    ids = model.embedding.known(sparse)
    expected = model.embedding(ids)
    expected[1:, places] = 0
    assert bool((expected[0, places] != 0).any())
    torch.testing.assert_close(model.embedding(ids, counts), expected)


def softmax_sum(score: list[Tensor], value: list[Tensor]) -> Tensor:
    if not value:
        return torch.zeros(2)
    weight = torch.stack(score).softmax(0)
    return (weight.unsqueeze(1) * torch.stack(value)).sum(0)


@pytest.mark.parametrize('separate_tables', [False, True])
def test_the_head_reads_macro_rows_and_recent_lists(separate_tables: bool) -> None:
    model = spread(make(rows='twin', recent=True, separate_tables=separate_tables).eval())
    batch = make_joined()
    pairs, readout = batch.pairs, model.readout

    def embedding(name: str, id: int) -> Tensor:
        return model.embedding.weight[STARTS[name] + 1 + id]

    def attention(name: str, id: int) -> Tensor:
        return readout.attention[name][1 + id] if separate_tables else embedding(name, id)

    macro_attention = readout.macro_attention if separate_tables else readout.macro

    def read(reached: str, target: Tensor, neighbors: list[tuple[Tensor, Tensor, float]]) -> Tensor:
        conv = readout.conv[reached]
        key = conv.lin_key.weight @ target
        score = [
            (conv.lin_query.weight @ attended) @ key / 2**0.5 + torch.tensor(float(n)).log()
            for _, attended, n in neighbors
        ]
        return conv.lin_value.weight @ softmax_sum(score, [value for value, _, _ in neighbors])

    rows = []
    for row, (user, item) in enumerate(batch.features.sparse[:, :2].tolist()):
        target = {'user': attention('user', user), 'item': attention('item', item)}
        features = [embedding(*pair) for pair in zip(FIELDS, batch.features.sparse[row].tolist())]
        features.append(model.encoder(batch.features.counts)[row])
        for reached, counts in (
            ('item', pairs.user_hops[0]),
            ('user', pairs.user_hops[1]),
            ('user', pairs.item_hops[0]),
            ('item', pairs.item_hops[1]),
        ):
            present = [(q, n) for q, n in enumerate(counts[row].tolist()) if n > 0]
            macro, attended = readout.macro[reached], macro_attention[reached]
            features.append(
                read(reached, target[reached], [(macro[q], attended[q], n) for q, n in present])
            )
        for reached, recent in (('item', pairs.user_recent), ('user', pairs.item_recent)):
            ids = [id for id in recent[row].tolist() if id >= 0]
            features.append(
                read(
                    reached,
                    target[reached],
                    [(embedding(reached, id), attention(reached, id), 1) for id in ids],
                )
            )
        rows.append(torch.cat(features))
    torch.testing.assert_close(model(batch), model.head(torch.stack(rows)).squeeze(-1))


def test_crosses_lie_between_the_features_and_the_head() -> None:
    model, batch = spread(make(num_crosses=2).eval()), make_batch()
    plain = make().eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items()
                           if not name.startswith('cross')})  # fmt: skip
    read = []
    plain.head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    plain(batch)
    expected = model.head(model.cross(read[0])).squeeze(-1)
    torch.testing.assert_close(model(batch), expected)


def test_the_plain_model_reads_joined_batches_as_their_features() -> None:
    for options in ({}, {'num_crosses': 1}, {'ids': False}):
        model, batch = spread(make(**options).eval()), make_joined()
        assert torch.equal(model(batch), model(batch.features))
        assert torch.equal(model(batch._replace(pairs=None)), model(batch.features))


def test_without_ids_users_and_items_are_told_apart_by_counts_alone() -> None:
    model, batch = make(ids=False).eval(), make_batch()
    assert model.embedding.num_embeddings == 3 + 6 + 2
    other = batch._replace(sparse=batch.sparse.clone())
    other.sparse[:, :2] = 0
    assert torch.equal(model(batch), model(other))
    other.sparse[:, 2] = (other.sparse[:, 2] + 1) % 3
    spread(model)
    assert not torch.equal(model(batch), model(other))
    assert not torch.equal(model(batch), model(batch._replace(counts=batch.counts + 1)))


@each_option
def test_dropped_ids_are_those_of_nobody_in_training_alone(options: dict[str, Any]) -> None:
    model, batch = spread(make(id_dropout=0.999999, **options)), make_joined()
    nobody = batch.features.sparse.clone()
    nobody[:, :2] = -1
    unknown = batch._replace(features=batch.features._replace(sparse=nobody))
    plain = make(**options)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.train()(batch), plain.train()(unknown))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch), plain.eval()(batch))


@pytest.mark.parametrize('separate_tables', [False, True])
@pytest.mark.parametrize('id_dropout', [0.0, 0.999999])
def test_dropped_ids_are_not_read_as_recent_neighbors_either(
    id_dropout: float, separate_tables: bool
) -> None:
    model = spread(make(recent=True, separate_tables=separate_tables, id_dropout=id_dropout))
    batch = make_joined()
    # A repeated click: the user is among the recent users of the item, and the other way around.
    user, item = torch.full((8,), 1), torch.full((8,), 2)
    sparse = batch.features.sparse.clone()
    sparse[:, 0], sparse[:, 1] = user, item
    batch = batch._replace(
        features=batch.features._replace(user=user, item=item, sparse=sparse),
        pairs=batch.pairs._replace(
            user=user,
            item=item,
            user_recent=torch.tensor([[3, 2, -1]]).expand(8, 3),
            item_recent=torch.tensor([[1, 0]]).expand(8, 2),
        ),
    )
    model.train()(batch).square().sum().backward()
    tables = {'user': model.embedding.weight.grad[1:6], 'item': model.embedding.weight.grad[7:11]}
    for name, own, other in (('user', 1, 0), ('item', 2, 3)):
        grads = [tables[name]]
        if separate_tables:
            grads.append(model.readout.attention[name].grad[1:])
        for grad in grads:
            assert bool(grad[own].any()) == (id_dropout == 0.0)
            assert bool(grad[other].any())


@each_option
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = spread(make(**options))
    model(make_joined()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_paddings_and_absent_macro_nodes_do_not_matter() -> None:
    model, batch = spread(make(**OPTIONS['all']).eval()), make_joined()
    pairs = batch.pairs
    longer = pairs._replace(
        user_recent=F.pad(pairs.user_recent, (2, 0), value=-1),
        item_recent=F.pad(pairs.item_recent, (3, 0), value=-1),
    )
    torch.testing.assert_close(model(batch._replace(pairs=longer)), model(batch))
    # Who has no history at all gets a finite answer.
    empty = PairBatch(*(_zeros(value) for value in pairs))
    assert bool(model(batch._replace(pairs=empty)).isfinite().all())


def _zeros(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(torch.zeros_like(counts) for counts in value)
    return None if value is None else torch.full_like(value, -1)


@each_path
def test_compiled_training_is_one_graph_with_the_same_gradients(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)), make_joined()
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    for scorer in (model, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        scorer(batch).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_scores_are_the_same() -> None:
    model, batch = make(rows='twin', num_hops=1).eval(), make_joined()
    torch.compiler.reset()
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(batch)
        torch.testing.assert_close(out, model(batch), atol=1e-5, rtol=1e-4)


@each_path
def test_export_scores_batches_of_other_sizes(options: dict[str, Any]) -> None:
    model = spread(make(**options).eval())
    size = torch.export.Dim('batch', min=2)
    for example, others in (
        (make_joined(), [make_joined(30), make_joined(3)]),
        *([(make_batch(), [make_batch(30)])] if model.readout is None else []),
    ):
        shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: size}, example)
        program = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        # torch writes its guards by replacing names in text: "user" is the start of "user_hops".
        scorer = torch.export.load(file).module(check_guards=False)
        for batch in (example, *others):
            torch.testing.assert_close(scorer(batch), model(batch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
@each_path
def test_cuda_agrees_with_cpu(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)), make_joined()
    twin = copy.deepcopy(model).cuda()
    on_device = torch.utils._pytree.tree_map_only(Tensor, lambda value: value.cuda(), batch)
    torch.compiler.reset()
    for scorer in (twin, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        model.zero_grad()
        twin.zero_grad()
        out, other = model(batch), scorer(on_device)
        torch.testing.assert_close(other.cpu(), out, atol=1e-5, rtol=1e-4)
        out.square().sum().backward()
        other.square().sum().backward()
        for (name, parameter), copied in zip(model.named_parameters(), twin.parameters()):
            torch.testing.assert_close(
                copied.grad.cpu(), parameter.grad, msg=name, atol=1e-4, rtol=1e-3
            )


@each_option
def test_bfloat16(options: dict[str, Any]) -> None:
    model, batch = make(**options).eval(), make_joined()
    with torch.autocast('cpu', torch.bfloat16):
        logit = model(batch)
    torch.testing.assert_close(logit.float(), model(batch), atol=0.03, rtol=0.05)


@each_option
def test_copies_agree_and_a_reset_starts_over(options: dict[str, Any]) -> None:
    model, batch = make(**options).eval(), make_joined()
    other = make(1, **options).eval()
    assert not torch.equal(other(batch), model(batch))
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch), model(batch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in model.parameters())


@pytest.fixture(scope='module')
def parts() -> list[HeteroData]:
    data = SyntheticMarket(200, 60, 20_000, seed=0, log=False)[0]
    split = TemporalSplit(num_windows=3)(data)
    coarsen = MacroCoarsen({'user': 8, 'item': 'category'}).fit(split[0])
    train, val, test = (coarsen(RecentNeighbors(5)(part)) for part in split)
    counts = TargetCounts().fit(train)
    return [counts(train, log=data), counts(val), counts(test)]


def join(part: HeteroData, *args: Any, **kwargs: Any) -> JoinedLoader:
    return JoinedLoader([ExposureLoader(part), PairLoader(part)], *args, **kwargs)


def test_it_learns_from_a_log(parts: list[HeteroData]) -> None:
    train, val, test = parts
    torch.manual_seed(0)
    values = {}
    for counts in (True, False):
        task = ClickTask(CountNet.from_data(train, counts=counts), 3e-3, 1e-4, average=0.9)
        fit(
            task, ExposureLoader(train, 512, shuffle=True), ExposureLoader(val), max_epochs=3,
            monitor='logloss', progress=False, accelerator='cpu',
        )  # fmt: skip
        values[counts] = evaluate(task, ExposureLoader(test))['auc']
    assert values[True] > values[False] + 0.01
    assert values[True] > 0.6


@pytest.mark.parametrize('views', [None, [TargetView('cluster', 'category')]])
def test_ids_are_as_they_are_where_nothing_says_how_often_they_were_seen(
    parts: list[HeteroData], views: list[TargetView] | None
) -> None:
    train = copy.copy(parts[0])
    if views is not None:
        train = TargetCounts(views).fit(train)(train)
    model = CountNet.from_data(train, counts=views is not None, embedding_dim=4).eval()
    spread(model)
    batch = next(iter(ExposureLoader(train, 64)))
    ids = model.embedding.known(batch.sparse)
    assert model.id_strength == 0
    assert torch.equal(model.embedding(ids, batch.counts), model.embedding(ids))
    if views is None:
        counted = model(batch)
        assert torch.equal(model(batch._replace(counts=torch.zeros_like(batch.counts))), counted)


@each_option
def test_sizes_are_those_of_the_log(parts: list[HeteroData], options: dict[str, Any]) -> None:
    train = parts[0]
    model = CountNet.from_data(train, embedding_dim=4, **options)
    assert model.fields == ExposureLoader(train).fields
    assert len(model.encoder.prior) == train[CLICKS].edge_label_counts.size(1)
    # By default, too, an id says as much as it was seen.
    assert model.embedding.id_strength == options.get('id_strength', 100)
    names = train[CLICKS].count_names
    assert [names[place] for place in model.embedding.seen.tolist()[:1]] == ['user']
    assert names[model.embedding.seen[model.fields.index('item')]] == 'item'
    if 'rows' in options:
        assert model.readout.num_hops == 2
        assert model.readout.macro['user'].shape == (8, 4)
        assert len(model.readout.macro['item']) == train['macro_item'].num_nodes
    batch = next(iter(join(train, 8)))
    assert model(batch).shape == (8,)


@each_option
def test_a_request_is_scored_as_the_rows_of_a_log(
    parts: list[HeteroData], options: dict[str, Any]
) -> None:
    test = parts[2]
    torch.manual_seed(0)
    model = spread(CountNet.from_data(test, embedding_dim=4, **options).eval())
    loader = join(test, 50)
    batch = next(iter(loader))
    contexts = {
        name.removeprefix('edge_label_'): test[CLICKS][name][:50]
        for name in ('edge_label_query', 'edge_label_domain')
    }
    counts = test[CLICKS].edge_label_counts[:50]
    request = loader.request(batch.user, batch.item, counts=counts, **contexts)
    torch.testing.assert_close(model(request), model(batch))


@pytest.mark.parametrize('options', [OPTIONS['twin'], OPTIONS['all']], ids=['twin', 'all'])
def test_options_learn_from_joined_loaders(
    parts: list[HeteroData], options: dict[str, Any]
) -> None:
    train, val, test = parts
    torch.manual_seed(0)
    task = ClickTask(CountNet.from_data(train, **options), 3e-3, 1e-4, average=0.9)
    fit(
        task, join(train, 512, shuffle=True), join(val), max_epochs=2, monitor='logloss',
        progress=False, accelerator='cpu',
    )  # fmt: skip
    assert evaluate(task, join(test))['auc'] > 0.6


def liking_categories() -> tuple[HeteroData, Tensor]:
    r"""A log of 200 users who each like about three of ten categories and click what they like with
    probability .6, all else with .15; and the probability of each exposure."""
    generator = torch.Generator().manual_seed(0)
    num_users, num_items, num_categories, num_exposures = 200, 40, 10, 60_000
    likes = torch.rand(num_users, num_categories, generator=generator) < 0.3
    user = torch.randint(num_users, (num_exposures,), generator=generator)
    item = torch.randint(num_items, (num_exposures,), generator=generator)
    probability = torch.where(likes[user, item % num_categories], 0.6, 0.15)
    clicked = torch.rand(num_exposures, generator=generator) < probability
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    data['item'].category = torch.arange(num_items) % num_categories
    data['item'].num_category = num_categories
    clicks = data[CLICKS]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), clicked.float()
    clicks.edge_label_time = torch.arange(num_exposures)
    clicks.edge_index, clicks.time = clicks.edge_label_index[:, clicked], clicked.nonzero().view(-1)
    return data, probability


def test_what_users_like_is_found_almost_as_well_as_it_can_be() -> None:
    data, probability = liking_categories()
    split = TemporalSplit(num_windows=3)(data)
    coarsen = MacroCoarsen({'user': 8, 'item': 'category'}).fit(split[0])
    split = [coarsen(RecentNeighbors(20)(part)) for part in split]
    counts = TargetCounts().fit(split[0])
    parts = [counts(part, log=data) for part in split]
    labels = parts[2][CLICKS]
    known = probability[labels.edge_label_time]
    best = binary_auroc(known, labels.edge_label.int()).item()
    assert best == pytest.approx(bayes_optimal(known)[0], abs=0.02)
    # The user's click share in the item's category alone.
    column = labels.count_names.index('user x item_cluster')
    seen, clicked = labels.edge_label_counts[:, column].unbind(-1)
    share = (clicked + 10 * labels.count_rate) / (seen + 10)
    found = {'share': binary_auroc(share, labels.edge_label.int()).item()}
    for model, loader in ((CountNet, ExposureLoader), (MacGNN, PairLoader)):
        torch.manual_seed(0)
        task = ClickTask(model.from_data(parts[0]), 3e-3, 1e-5, average=0.9)
        fit(
            task, loader(parts[0], 512, shuffle=True), loader(parts[1], 4096), max_epochs=4,
            monitor='logloss', progress=False, accelerator='cpu',
        )  # fmt: skip
        found[model.__name__] = evaluate(task, loader(parts[2], 4096))['auc']
    # The truth has two values: among rows of one value a score is ahead or behind by chance.
    assert found['CountNet'] == pytest.approx(best, abs=0.01)
    assert best - 0.01 < found['share'] < found['CountNet']
    assert found['MacGNN'] < best - 0.08


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: make(id_dropout=1.0), ValueError, r"'id_dropout' must be a number in \[0, 1\)"),
        (
            lambda: make(id_strength=-1.0),
            ValueError,
            r"'id_strength' must be a number in \[0, inf\)",
        ),
        (lambda: make(id_strength=1.0, ids=False), ValueError, 'without ids or without counts'),
        (lambda: make(id_strength=1.0, id_counts=3), TypeError, "'id_counts' must be a dict"),
        (lambda: make(id_strength=1.0, id_counts={}), ValueError, 'of both, but got {}'),
        (lambda: make(id_strength=1.0, id_counts={'tag': 0}), ValueError, "but got {'tag': 0}"),
        (
            lambda: make(id_strength=1.0, id_counts={'user': 0, 'item': 2}),
            ValueError,
            "'item'.*' must lie below 2, but got 2",
        ),
        (lambda: make(ids='no'), TypeError, "'ids' must be True or False, but got 'no'"),
        (lambda: make(embedding_dim=0), ValueError, "'embedding_dim' must be at least 1"),
        (lambda: make(rows='released'), ValueError, "'rows' must be one of None, 'paper', 'twin'"),
        (lambda: make(recent=1), TypeError, "'recent' must be True or False, but got 1"),
        (lambda: make(num_crosses=-1), ValueError, "'num_crosses' must be at least 0, but got -1"),
        (lambda: make(rows='twin', num_hops=0), ValueError, "'num_hops' must be at least 1"),
        (lambda: make(rows='twin', ids=False), ValueError, 'attends by the ids of users and items'),
        (lambda: make(separate_tables=True), ValueError, "neither 'rows' nor 'recent'"),
        (
            lambda: CountNet(NUM_VALUES, FIELDS, [], 0.5, rows='twin'),
            TypeError,
            "'num_macro' must be a dictionary of 'user' and 'item', but got None",
        ),
        (lambda: CountNet({}, ['user'], [], 0.5), ValueError, "lacks \\['user'\\]"),
        (lambda: make()(make_batch()._replace(counts=None)), ValueError, 'batch.counts is None'),
        (lambda: make()(make_joined().pairs), TypeError, 'JoinedBatch, but got PairBatch'),
        (
            lambda: make()(make_joined()._replace(features=None)),
            ValueError,
            'batch.features is None: join ExposureLoader',
        ),
        (lambda: make(rows='twin')(make_batch()), ValueError, 'load JoinedLoader'),
        (
            lambda: make(recent=True)(make_joined()._replace(pairs=None)),
            ValueError,
            'load JoinedLoader',
        ),
        (
            lambda: make(rows='twin', num_hops=3)(make_joined()),
            ValueError,
            'reads 3 hops, but the batch has 2 of the user: apply MacroCoarsen with num_hops=3',
        ),
        (lambda: make(recent=True)(forgetful()), ValueError, 'no recent items: apply Recent'),
        (lambda: CountNet.from_data(log()), ValueError, 'apply TargetCounts, or pass counts=False'),
        (
            lambda: CountNet.from_data(log(), counts=False, rows='twin'),
            ValueError,
            'reads 1 hops, but the data has 0: apply MacroCoarsen',
        ),
        (
            lambda: CountNet.from_data(log(), counts=False, recent=True),
            ValueError,
            'apply RecentNeighbors first',
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


def log() -> HeteroData:
    return SyntheticMarket(20, 10, 500, log=False)[0]


def forgetful() -> JoinedBatch:
    batch = make_joined()
    return batch._replace(pairs=batch.pairs._replace(user_recent=torch.empty(8, 0).long()))
