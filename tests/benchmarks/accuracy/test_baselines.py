import copy
import importlib.util
import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData

# Not importorskip: that import of deepctr_torch asks PyPI for a newer version.
if not all(importlib.util.find_spec(name) for name in ('deepctr_torch', 'lightgbm')):
    pytest.skip("the baselines need 'pip install pyg-mag[benchmarks]'", allow_module_level=True)
from accuracy import baselines, graph_models, long_history_models  # noqa: E402
from accuracy.boosted_trees import BoostedTrees  # noqa: E402
from accuracy.deepctr_layers import use_faster_layers  # noqa: E402
from accuracy.pair_models import make_library  # noqa: E402

from mag.schema import CLICKS  # noqa: E402
from mag.training import ClickTask, evaluate  # noqa: E402
from mag.training.scoring import to_device  # noqa: E402
from mag.transforms import (  # noqa: E402
    MacroCoarsen,
    RecentNeighbors,
    TargetCounts,
    TemporalSplit,
)

TRAINED = [name for name in baselines.BASELINES if name != 'lightgbm']
NUM_USERS, NUM_ITEMS = 25, 15


@pytest.fixture(scope='module')
def parts() -> list[HeteroData]:
    r"""Training, validation and test part of a random log, whose exposures have a query of up to
    three terms: with macro nodes, recent lists and counts."""
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    data['user'].gender, data['user'].num_gender = torch.arange(NUM_USERS) % 2, 2
    data['item'].category, data['item'].num_category = torch.arange(NUM_ITEMS) % 4, 4
    clicks = data[CLICKS]
    num = 1200
    user = torch.randint(NUM_USERS - 1, (num,), generator=generator)
    item = torch.randint(NUM_ITEMS, (num,), generator=generator)
    clicked = (user + item) % 3 == 0
    clicks.edge_label_index = torch.stack([user, item])
    clicks.edge_label, clicks.edge_label_time = clicked.float(), torch.arange(num)
    clicks.edge_label_query = torch.randint(-1, 6, (num, 3), generator=generator)
    clicks.num_query = 6
    clicks.edge_index, clicks.time = clicks.edge_label_index[:, clicked], torch.arange(num)[clicked]
    train, val, test = TemporalSplit(num_windows=2)(data)
    coarsen = MacroCoarsen({'user': 4, 'item': 'category'}).fit(train)
    train, val, test = (coarsen(RecentNeighbors(4)(part)) for part in (train, val, test))
    counts = TargetCounts().fit(train)
    return [counts(train, log=data), counts(val), counts(test)]


def build(name, parts, counts, seed=0):
    torch.manual_seed(seed)
    return baselines.BASELINES[name].build(parts[0], parts[1], 1.9, counts)


def first_batch(name, part, counts, size=64):
    return next(iter(baselines.make_loader(name, part, counts, size)))


BOTH = pytest.mark.parametrize('counts', [False, True], ids=['as_is', 'counts'])


@BOTH
@pytest.mark.parametrize('name', TRAINED)
def test_learns(name, counts, parts):
    model = build(name, parts, counts)
    batch = first_batch(name, parts[0], counts, 256)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(15):
        logits = model(batch)
        assert logits.shape == batch.user.shape and logits.isfinite().all()
        loss = F.binary_cross_entropy_with_logits(logits, batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    waits = [key for key, value in model.named_parameters() if value.requires_grad]
    got = [key for key, value in model.named_parameters() if value.grad is not None]
    assert waits == got
    # What always clicks with the share of clicks.
    rate = batch.label.mean()
    assert losses[-1] < 0.97 * F.binary_cross_entropy(rate.expand_as(batch.label), batch.label)


@BOTH
@pytest.mark.parametrize('name', TRAINED)
def test_reads_the_counts_if_asked_to(name, counts, parts):
    # A part without counts is enough, where they are not read.
    bare = copy.copy(parts[2])
    del bare[CLICKS].edge_label_counts
    model = build(name, parts, counts).eval()
    # Some start from zero weights for counts.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        batch = first_batch(name, parts[2], counts)
        before = model(batch)
        if counts:
            more = batch.features.counts + torch.tensor([2.0, 1.0])
            after = model(batch._replace(features=batch.features._replace(counts=more)))
            assert not torch.allclose(before, after)
        else:
            assert torch.equal(before, model(first_batch(name, bare, counts)))


@pytest.mark.parametrize('name', TRAINED)
def test_first_weights_follow_the_seed(name, parts):
    weights = []
    for seed in (3, 3, 4):
        model = build(name, parts, True, seed)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


@BOTH
@pytest.mark.parametrize('name', TRAINED)
def test_an_average_of_the_weights_scores_as_the_model_where_they_stand(name, counts, parts):
    task = ClickTask(build(name, parts, counts), average=0.5)
    for _ in range(3):
        task.after_step()
    baselines.read_history(task, parts[2])
    loader = baselines.make_loader(name, parts[2], counts, 64)
    values, expected = evaluate(task, loader), evaluate(ClickTask(task.model), loader)
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@BOTH
@pytest.mark.parametrize('name', TRAINED)
def test_a_gpu_gives_the_same(name, counts, parts):
    model = build(name, parts, counts).eval()
    loader = baselines.make_loader(name, parts[2], counts, 64)
    expected = evaluate(ClickTask(model), loader)
    values = evaluate(ClickTask(model.cuda()), loader)
    assert values == pytest.approx(expected, abs=1e-4)


# The meta device has no sparse products, and does not know how many rows DIEN takes.
@BOTH
@pytest.mark.parametrize('name', sorted({*TRAINED} - {'dien', 'lightgcn', 'pinsage'}))
def test_all_tensors_move_with_the_model(name, counts, parts):
    model = build(name, parts, counts).to('meta')
    batch = to_device(first_batch(name, parts[0], counts), torch.device('meta'))
    logits = model(batch)
    logits.sum().backward()
    assert logits.device.type == 'meta' and logits.shape == (64,)


@pytest.mark.parametrize('name', ['din', 'dien', 'eta', 'graph_transformer'])
def test_does_without_categories(name, parts):
    bare = copy.copy(parts[0])
    del bare['item'].category, bare['item'].num_category
    model = build(name, [bare, parts[1]], False)
    assert model(first_batch(name, bare, False)).isfinite().all()


def test_sim_needs_categories(parts):
    bare = copy.copy(parts[0])
    del bare['item'].category, bare['item'].num_category
    with pytest.raises(ValueError, match=r"data\['item'\] has no category: ETA does without\.$"):
        build('sim', [bare, parts[1]], False)


def test_counts_must_be_there(parts):
    bare = copy.copy(parts[0])
    del bare[CLICKS].count_prior
    for name in baselines.BASELINES:
        with pytest.raises(ValueError, match='no counts at the target: apply TargetCounts, or'):
            build(name, [bare, parts[1]], True)


@pytest.mark.parametrize('architecture', ['afm', 'din', 'dien'])
def test_faster_layers_compute_the_same(architecture, parts):
    model = build(architecture, parts, False)
    batch = first_batch(architecture, parts[0], False, 128)
    slow = copy.deepcopy(model)
    torch.manual_seed(0)
    columns, history = model.library.dnn_feature_columns, []
    plain = [one for one in columns if not one.name.startswith('hist_')]
    history = [one for one in columns if one.name.startswith('hist_')]
    slow.library = make_library(architecture, plain, history)
    slow.library.load_state_dict(model.library.state_dict())
    results = []
    for each in (model, slow):
        logits = each(batch)
        F.binary_cross_entropy_with_logits(logits, batch.label).backward()
        results.append([logits, *(value.grad for value in each.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert [type(one) for one in model.modules()] != [type(one) for one in slow.modules()]
    use_faster_layers(slow)
    assert [type(one) for one in model.modules()] == [type(one) for one in slow.modules()]


def test_lists_are_those_of_the_field_and_of_the_window(parts):
    model = build('din', parts, False)
    names = list(model.library.feature_index)
    assert names[:4] == ['user', 'user_gender', 'item', 'item_category']
    assert names[4:7] == ['query', 'query_5', 'query_6']
    assert names[7:] == ['hist_item', 'length', 'hist_category'.replace('_', '_item_')]
    # Columns of one name share their embeddings.
    assert model.library.embedding_dict['query'].num_embeddings == 7
    assert 'query_5' not in model.library.embedding_dict


def test_sim_finds_the_newest_clicks_of_the_category(parts):
    model = build('sim', parts, False)
    generator = torch.Generator().manual_seed(1)
    history = torch.randint(-1, NUM_ITEMS, (40, 150), generator=generator)
    item = torch.randint(NUM_ITEMS, (40,), generator=generator)
    found = model.search(item, history)
    for row in range(40):
        same = [one for one in history[row].tolist() if one >= 0 and one % 4 == item[row] % 4]
        newest = same[-long_history_models.NUM_FOUND :]
        padding = [-1] * (long_history_models.NUM_FOUND - len(newest))
        assert found[row].tolist() == padding + newest
    # Fewer clicks than are attended to.
    short = torch.tensor([[-1, 3, 5, 7, 3]])
    assert model.search(torch.tensor([11]), short).tolist() == [[-1] * 17 + [3, 7, 3]]


def test_eta_finds_the_nearest_fingerprints(parts):
    model = build('eta', parts, False)
    bits = model.fingerprints() > 0
    generator = torch.Generator().manual_seed(1)
    history = torch.randint(-1, NUM_ITEMS, (30, 50), generator=generator)
    item = torch.randint(NUM_ITEMS, (30,), generator=generator)
    found = model.search(item, history)
    for row in range(30):
        there = [place for place in range(50) if history[row, place] >= 0]
        there.sort(
            key=lambda place: (int((bits[history[row, place]] ^ bits[item[row]]).sum()), -place)
        )
        places = sorted(there[: long_history_models.NUM_FOUND])
        assert found[row].tolist() == history[row][places].tolist()
    # On which side of each plane.
    x = torch.cat(model.fields.embed_items(torch.arange(NUM_ITEMS)), dim=1)
    assert torch.equal(bits, x @ model.planes > 0)


def test_histories_of_the_test_part_end_at_its_cutoff(parts):
    batch = first_batch('sim', parts[2], False, 10**6)
    clicks = parts[2][CLICKS]
    for row in range(0, batch.user.numel(), 7):
        before = (clicks.edge_index[0] == batch.user[row]) & (clicks.time < clicks.cutoff)
        expected = clicks.edge_index[1][before][-long_history_models.LENGTH :].tolist()
        history = batch.histories.history[row]
        assert history[history >= 0].tolist() == expected


def test_pin_sage_neighbors_are_those_visited_most():
    generator = torch.Generator().manual_seed(0)
    node = torch.randint(5, (400,), generator=generator) * 2
    visited = torch.randint(10, (400,), generator=generator)
    found = graph_models.most_visited(node, visited, 10, 3)
    expected = []
    for one in range(10):
        visits = Counter(w for v, w in zip(node.tolist(), visited.tolist()) if v == one != w)
        best = sorted(visits.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
        expected += [(one, *pair) for pair in best]
    assert list(zip(*(column.tolist() for column in found))) == expected


def test_pin_sage_walks_over_edges():
    # A path of four nodes, and one alone.
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    generator = torch.Generator().manual_seed(0)
    start = torch.arange(4).repeat(500)
    visits = graph_models.walk(edge_index, 5, start, 3, generator)
    edges = set(zip(*edge_index.tolist()))
    steps = torch.cat([start.unsqueeze(0), visits])
    for one, other in itertools.pairwise(steps):
        assert set(zip(one.tolist(), other.tolist())) <= edges
    # Both neighbors are equally likely.
    assert visits[0][start == 1].float().mean() == pytest.approx(1, abs=0.1)


def test_pin_sage_weights_are_shares_of_visits(monkeypatch):
    # Two users and three items, the last of which nobody clicked.
    edge_index = torch.tensor([[0, 0, 1, 2, 3, 3], [2, 3, 3, 0, 0, 1]])
    node, neighbor, weight = graph_models.neighborhoods(edge_index, 5, 2, 2000, 2)
    matrix = torch.zeros(5, 5).index_put((node, neighbor), weight)
    assert torch.allclose(matrix.sum(1), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    # From 0 a walk visits 2 or 3 and then, of them, 0, 0 or 1: other nodes than itself are
    # 2 (1/2), 3 (1/2) and 1 (1/4), of which the two most frequent are kept.
    assert matrix[0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0], abs=0.03)
    # From 1 it visits 3 (1) and then 0 (1/2).
    assert matrix[1].tolist() == pytest.approx([1 / 3, 0, 0, 2 / 3, 0], abs=0.03)
    monkeypatch.setattr(graph_models, 'MAX_VISITS', 1)
    apart = graph_models.neighborhoods(edge_index, 5, 2, 2000, 2)
    assert torch.equal(apart[0], node) and torch.allclose(apart[2], weight, atol=0.05)


def test_pin_sage_without_any_click():
    empty = torch.empty(2, 0, dtype=torch.long)
    assert [one.numel() for one in graph_models.neighborhoods(empty, 5, 2, 3, 2)] == [0, 0, 0]


def test_pin_sage_convolves_as_the_paper_says(parts):
    model = build('pinsage', parts, False).eval()
    weights = model.graphs[False][0].matrix.to_dense()
    assert torch.equal(model.graphs[False][1].matrix.to_dense(), weights.t())
    ids = (('user', NUM_USERS), ('item', NUM_ITEMS))
    h = torch.cat([model.fields.embed(name, torch.arange(num)) for name, num in ids])
    for neighbor, join in zip(model.neighbor, model.join, strict=True):
        rows = []
        for v in range(len(h)):
            n = sum(weights[v, w] * neighbor(h[w]).relu() for w in range(len(h)))
            z = join(torch.cat([h[v], n])).relu()
            rows.append(z / z.norm().clamp(min=1e-12))
        h = torch.stack(rows)
    assert torch.allclose(model.nodes(), h, atol=1e-5)
    expected = torch.autograd.grad(h.square().cumsum(1).sum(), model.fields.embedding.weight)[0]
    out = model.nodes().square().cumsum(1).sum()
    assert torch.allclose(
        torch.autograd.grad(out, model.fields.embedding.weight)[0], expected, atol=1e-5
    )


@pytest.mark.parametrize('name', ['lightgcn', 'pinsage'])
def test_graph_of_training_ends_at_the_first_cutoff(name, parts):
    model = build(name, parts, False)
    model = model if name == 'pinsage' else model.model
    batch = first_batch(name, parts[2], False)
    with torch.no_grad():
        model.eval()
        before = model(batch)
        baselines.read_history(model, parts[2])
        after = model(batch)
        model.train()
        training = model.nodes()
    assert not torch.equal(before, after)
    later = copy.copy(parts[0])
    clicks = later[CLICKS]
    is_late = clicks.time >= clicks.cutoff.min()
    assert is_late.any()
    clicks.edge_index = clicks.edge_index.where(~is_late, 0)
    baselines.read_history(model, later)
    with torch.no_grad():
        model.eval()
        assert torch.allclose(model.nodes(), training, atol=1e-6)


def test_graph_masks_by_hand():
    # Target of category 0, the user's items of 1, none, 0 and 0, the item's users none and one.
    category = torch.tensor([[0, 1, -1, 0, 0]])
    has_item = torch.tensor([[True, True, False, True, True]])
    masks = graph_models.graph_masks(category, has_item, torch.tensor([[False, True]]))
    click = [
        # u  i  .  .  .  .  u  u
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 1],
        [1, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 1],
    ]
    every = [[int(column in (0, 1, 2, 4, 5, 7, row)) for column in range(8)] for row in range(8)]
    assert masks.exp().tolist() == [click, every]


def test_paddings_of_the_graph_transformer_say_nothing(parts):
    model = build('graph_transformer', parts, False).eval()
    batch = first_batch('graph_transformer', parts[2], False)
    with torch.no_grad():
        before = model(batch)
        for name in ('user', 'item'):
            model.fields.embedding.weight[model.fields.start[name]] += 10
        assert torch.equal(model(batch), before)


@BOTH
def test_boosted_trees(counts, parts):
    train, val, test = parts
    values = []
    for seed in (0, 0, 1):
        trees = baselines.BASELINES['lightgbm'].build(train, val, 1.9, counts)
        assert isinstance(trees, BoostedTrees)
        trees.fit(train, val, seed, 0.1, 7)
        loader = baselines.make_loader('lightgbm', test, counts, 64)
        values.append(evaluate(ClickTask(trees), loader))
    assert values[0] == values[1] != values[2]
    assert values[0]['auc'] > 0.55
    # It stopped where the log loss of validation was lowest.
    best = trees.booster.best_iteration
    loss = trees.booster.best_score['valid_0']['binary_logloss']
    own = evaluate(ClickTask(trees), baselines.make_loader('lightgbm', val, counts, 64))
    assert best < 2000 and own['logloss'] == pytest.approx(loss, abs=1e-5)


def test_trees_read_log_counts_and_rates(parts):
    trees = baselines.BASELINES['lightgbm'].build(parts[0], parts[1], 1.9, True)
    features = first_batch('lightgbm', parts[0], True).features
    table = trees.table(features)
    num_fields, num_views = features.sparse.size(1), features.counts.size(1)
    assert table.shape == (64, num_fields + 3 * num_views)
    assert table[:, :num_fields].tolist() == features.sparse.tolist()
    n, c = features.counts.unbind(-1)
    rate = parts[0][CLICKS].count_rate
    seen = torch.from_numpy(table[:, num_fields:]).split(num_views, dim=1)
    assert torch.allclose(seen[0], n.log1p())
    # The view of the user, whose prior is the rate of all.
    user = (c[:, 0] + 10 * rate) / (n[:, 0] + 10)
    assert torch.allclose(seen[1][:, 0], user) and torch.allclose(seen[2][:, 0], user - rate)
