import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader
from mag.models import SRJGraph
from mag.training import ClickTask, evaluate, fit
from mag.transforms import TemporalSplit

CLICKS = ('user', 'clicks', 'item')
REVERSE = ('item', 'rev_clicks', 'user')
EDGES = {'user': CLICKS, 'item': REVERSE}
NEIGHBOR_TYPE = {'user': 'item', 'item': 'user'}
WIDTHS = {'user': [3, 1, 2], 'item': [1, 3, 1]}


@pytest.fixture(scope='module')
def parts() -> tuple[HeteroData, HeteroData, HeteroData]:
    return TemporalSplit(0.3, 0.8, 0.9, num_windows=3)(
        SyntheticMarket(60, 40, 4_000, num_groups=2, log=False)[0]
    )


@pytest.fixture
def train(parts: tuple[HeteroData, ...]) -> HeteroData:
    return parts[0]


@pytest.fixture
def batch(parts: tuple[HeteroData, ...]) -> HeteroData:
    return next(iter(PathLoader(parts[0], 20, shuffle=True, widths=WIDTHS)))


def build(data: HeteroData, seed: int = 0, **arguments: object) -> SRJGraph:
    torch.manual_seed(seed)
    model = SRJGraph.from_data(data, **arguments).double().eval()
    # Off their first values, which are equal for all.
    for name, parameter in model.named_parameters():
        if 'norm' in name:
            torch.nn.init.normal_(parameter)
    return model


def embed(model: SRJGraph, batch: HeteroData, name: str, node: int) -> Tensor:
    # The first row of each table is that of the unknown.
    parts = [model.embedding[name].weight[1 + batch[name].n_id[node]]]
    for attribute, embedding in model.attribute_embedding[name].items():
        parts.append(embedding.weight[1 + batch[name][attribute][node]])
    return torch.cat(parts)


def embed_query(model: SRJGraph, terms: Tensor) -> Tensor:
    table = model.term_embedding.weight
    return sum(
        (table[term + 1] for term in terms.tolist() if term >= 0), torch.zeros_like(table[0])
    )


def triple(model: SRJGraph, batch: HeteroData, name: str, node: int) -> Tensor:
    num_targets = batch[CLICKS].edge_label.numel()
    if node < num_targets:
        precursor, terms = node, batch[CLICKS].edge_label_query[node]
        query = embed_query(model, terms)
    else:
        store = batch[EDGES[name]]
        edge = (store.edge_index[0] == node).nonzero().item()
        precursor = store.edge_index[1, edge].item()
        query = embed_query(model, store.query[edge])
        query = query if model.query else torch.zeros_like(query)
    pair = {
        name: embed(model, batch, name, node),
        NEIGHBOR_TYPE[name]: embed(model, batch, NEIGHBOR_TYPE[name], precursor),
    }
    return torch.cat([pair['user'], query, pair['item']])


def aggregate(
    model: SRJGraph, batch: HeteroData, name: str, node: int, depth: int, intention: Tensor
) -> Tensor:
    r"""What a node has learned from its children, one node at a time."""
    own = triple(model, batch, name, node)
    if depth == 0:
        return own
    store = batch[EDGES[NEIGHBOR_TYPE[name]]]
    children = store.edge_index[0, store.edge_index[1] == node].tolist()
    learned = [
        aggregate(model, batch, NEIGHBOR_TYPE[name], child, depth - 1, intention)
        for child in children
    ]
    if not model.upstream:
        kept = torch.zeros_like(own)
        size = model.size[name]
        place = slice(0, size) if name == 'user' else slice(len(own) - size, len(own))
        kept[place] = own[place]
        own = kept
    guide = intention if model.intention else torch.zeros_like(intention)
    child = torch.stack(learned) if learned else torch.empty(0, len(own), dtype=own.dtype)
    return model.convs[name].dense(child[None], own[None], guide[None])[0]


def plain_logit(model: SRJGraph, batch: HeteroData, row: int, depth: int) -> Tensor:
    user, item = (embed(model, batch, name, row) for name in ('user', 'item'))
    query = embed_query(model, batch[CLICKS].edge_label_query[row])
    intention = torch.cat([user, query, item])
    learned = [aggregate(model, batch, name, row, depth, intention) for name in ('user', 'item')]
    domain = int(batch[CLICKS].edge_label_domain[row])
    features = torch.cat([user, item, query, *learned])
    return model.heads.mlps[domain](model.heads.norms[domain](features[None]))[0, 0]


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'query': False},
        {'intention': False},
        {'upstream': False},
        {'form': 'literal', 'num_positions': 2},
    ],
)
def test_forward_node_by_node(
    train: HeteroData, batch: HeteroData, arguments: dict[str, object]
) -> None:
    model = build(train, **arguments)
    with torch.no_grad():
        logit = model(batch)
        expected = torch.stack([plain_logit(model, batch, row, 3) for row in range(20)])
    assert logit.std() > 0
    torch.testing.assert_close(logit, expected)


def test_sizes_are_those_of_the_paper() -> None:
    model = SRJGraph(
        {'user': 7, 'item': 9},
        {
            'user': {'gender': 2, 'age': 6},
            'item': {'brand': 3, 'seller': 3, 'category': 3, 'price': 3},
        },
        num_terms=5,
    )
    assert model.size == {'user': 24, 'item': 48}
    assert model.convs['user'].channels == 88
    assert model.convs['user'].lin_intention.in_channels == 176
    assert model.heads.norms[0].num_features == 264


def test_ablations_leave_out_what_they_say(train: HeteroData, batch: HeteroData) -> None:
    other = copy.deepcopy(batch)
    for edge_type in (CLICKS, REVERSE):
        other[edge_type].query = other[edge_type].query.flip(0)
    assert torch.equal(build(train, query=False)(batch), build(train, query=False)(other))
    assert not torch.allclose(build(train)(batch), build(train)(other))
    # The query of the target itself stays.
    other = copy.deepcopy(batch)
    other[CLICKS].edge_label_query = other[CLICKS].edge_label_query.flip(0)
    changed = build(train, query=False)(batch) - build(train, query=False)(other)
    assert changed.abs().max() > 1e-6
    full, without = build(train), build(train, intention=False)
    without.load_state_dict(full.state_dict())
    assert not torch.allclose(full(batch), without(batch))


def test_rows_do_not_read_each_other(parts: tuple[HeteroData, ...]) -> None:
    loader = PathLoader(parts[0], 40, widths=WIDTHS, fixed=True)
    model = build(parts[0])
    whole = next(iter(loader))
    logit = model(whole)
    part = loader.dataset[torch.arange(10, 20)]
    torch.testing.assert_close(model(part), logit[10:20])


def test_padding_of_queries_changes_nothing(train: HeteroData, batch: HeteroData) -> None:
    other = copy.deepcopy(batch)
    for store, name in (
        (other[CLICKS], 'query'),
        (other[REVERSE], 'query'),
        (other[CLICKS], 'edge_label_query'),
    ):
        padding = torch.full((len(store[name]), 3), -1)
        store[name] = torch.cat([store[name], padding], dim=1)
    model = build(train)
    torch.testing.assert_close(model(batch), model(other))
    # The empty query is a term, and no padding.
    assert model.term_embedding.weight[1].abs().sum() > 0


def test_queries_of_no_terms_are_zero(train: HeteroData, batch: HeteroData) -> None:
    other = copy.deepcopy(batch)
    for store, name in (
        (batch[CLICKS], 'query'),
        (batch[REVERSE], 'query'),
        (batch[CLICKS], 'edge_label_query'),
    ):
        store[name] = store[name][:, :0]
    model = build(train)
    logit = model(batch)
    with torch.no_grad():
        model.term_embedding.weight.zero_()
    torch.testing.assert_close(logit, model(other))


def test_each_domain_has_its_head(train: HeteroData, batch: HeteroData) -> None:
    model = build(train).train()
    searched = batch[CLICKS].edge_label_domain == 1
    assert 0 < searched.sum() < 20
    model(batch)[searched].sum().backward()
    reached = [
        any(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
        for head in model.heads.mlps
    ]
    assert reached == [False, True]


def test_a_domain_with_one_row_or_none_trains(parts: tuple[HeteroData, ...]) -> None:
    loader = PathLoader(parts[0], 40, widths=WIDTHS)
    domain = parts[0][CLICKS].edge_label_domain
    rows = torch.cat([(domain == 0).nonzero().view(-1)[:5], (domain == 1).nonzero()[0]])
    model = build(parts[0]).train()
    before = model.heads.norms[1].running_mean.clone()
    for index in (rows, rows[:5], rows[5:]):
        loss = model(loader.dataset[index]).square().sum()
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # The rows of another domain are no statistics of this one.
    assert torch.equal(model.heads.norms[1].running_mean, before)
    model(loader.dataset[(domain == 1).nonzero().view(-1)[:9]])
    assert not torch.equal(model.heads.norms[1].running_mean, before)


def test_an_absent_domain_leaves_no_parameter_without_a_gradient(
    parts: tuple[HeteroData, ...],
) -> None:
    r"""Distributed training would wait for it."""
    loader = PathLoader(parts[0], 40, widths=WIDTHS)
    rows = (parts[0][CLICKS].edge_label_domain == 1).nonzero().view(-1)[:6]
    model = build(parts[0]).train()
    model(loader.dataset[rows]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all((parameter.grad == 0).all() for parameter in model.heads.mlps[0].parameters())


def test_modes_stay_as_they_are(parts: tuple[HeteroData, ...]) -> None:
    loader = PathLoader(parts[0], 40, widths=WIDTHS)
    domain = parts[0][CLICKS].edge_label_domain
    rows = torch.cat([(domain == 0).nonzero().view(-1)[:5], (domain == 1).nonzero()[0]])
    model = build(parts[0]).train()
    model.heads.norms[0].eval()
    before = model.heads.norms[0].running_mean.clone()
    modes = [module.training for module in model.modules()]
    model(loader.dataset[rows])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.heads.norms[0].running_mean, before)


def test_released_queries(train: HeteroData, batch: HeteroData) -> None:
    r"""The sum of a row for each term and padding, where the empty query is paddings alone."""
    model = build(train, form='released')
    terms = torch.tensor([[3, 5, -1, -1], [0, -1, -1, -1]])
    weight = model.term_embedding.weight
    expected = torch.stack([weight[4] + weight[6] + 2 * weight[0], 4 * weight[0]])
    torch.testing.assert_close(model.term_embedding(terms), expected)
    assert not torch.allclose(model(batch), build(train)(batch))


def test_targets_without_a_history(parts: tuple[HeteroData, ...]) -> None:
    part = copy.copy(parts[0])
    part[CLICKS].edge_label_time = torch.zeros_like(parts[0][CLICKS].edge_label_time)
    loader = PathLoader(part, 12, history=parts[2])
    batch = loader.dataset[torch.arange(12)]
    model = build(parts[0])
    expected = torch.stack([plain_logit(model, batch, row, 3) for row in range(12)])
    torch.testing.assert_close(model(batch), expected)


def test_a_log_without_queries_and_domains(parts: tuple[HeteroData, ...]) -> None:
    train = copy.copy(parts[0])
    for name in ('query', 'domain', 'num_query', 'num_domain'):
        del train[CLICKS][name]
    for name in ('edge_label_query', 'edge_label_domain'):
        del train[CLICKS][name]
    model = build(train)
    assert model.heads.num_domains == 1
    batch = next(iter(PathLoader(train, 30, widths=WIDTHS)))
    assert model(batch).shape == (30,)


def test_learns(parts: tuple[HeteroData, ...], tmp_path) -> None:
    train, val, test = parts
    torch.manual_seed(0)
    module = ClickTask(SRJGraph.from_data(train), 3e-3, 1e-6)
    loaders = [
        PathLoader(part, 128, shuffle=part is train, widths={'user': [5], 'item': [3]})
        for part in parts
    ]
    before = evaluate(module, loaders[2])
    fit(module, *loaders[:2], directory=str(tmp_path), max_epochs=4, progress=False)
    after = evaluate(module, loaders[2])
    assert after['auc'] > max(before['auc'], 0.55)
    assert after['gauc'] != after['auc']


@pytest.fixture
def one_thread() -> Iterator[None]:
    r"""So that sums, and with them what is learned, are the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_finds_the_clicks_of_the_same_occasion(one_thread: None, tmp_path) -> None:
    r"""What a search looks for is told by the earlier clicks of its occasion alone, and of which
    occasion they were by their queries: without either the truth cannot be read. Paths of depth 1
    have no center but the target, whose upstream is the intention itself, so that either of the two
    can guide and both have to be left out."""
    data = SyntheticMarket(
        150, 50, 50_000, num_groups=1, occasion_strength=6.0, id_lifetime=7.0, log=False
    )[0]
    parts = TemporalSplit(0.3, 0.8, 0.9, num_windows=1, keep_cold=True)(data)
    loaders = [
        PathLoader(
            part,
            256,
            shuffle=part is parts[0],
            widths={'user': [10], 'item': [1]},
            attribute=None,
            history=data,
        )
        for part in parts
    ]
    auc = {}
    for name, arguments in (
        ('whole', {}),
        ('without guidance', {'intention': False, 'upstream': False}),
        ('without queries', {'query': False}),
    ):
        torch.manual_seed(0)
        module = ClickTask(SRJGraph.from_data(parts[0], **arguments), 1e-2, 1e-6)
        fit(
            module,
            *loaders[:2],
            directory=str(tmp_path / name),
            max_epochs=3,
            progress=False,
        )
        auc[name] = evaluate(module, loaders[2])['auc']
    assert auc['whole'] > max(auc['without guidance'], auc['without queries']) + 0.01, auc


def test_compiled_logits_and_gradients_are_the_same(train: HeteroData) -> None:
    batch = next(iter(PathLoader(train, 20, widths={'user': [3, 2], 'item': [2, 3]})))
    model = build(train).train()
    twin = copy.deepcopy(model)
    # Inductor would spend minutes on what is asserted here.
    logits = [scorer(batch) for scorer in (model, torch.compile(twin, backend='aot_eager'))]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-10)
    for logit in logits:
        logit.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


class FromTensors(torch.nn.Module):
    r"""SRJGraph on the tensors of a batch, as torch.export takes no HeteroData. Those of nodes and
    edges come depth by depth, so that their sizes are no constants."""

    def __init__(self, model: SRJGraph) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        nodes: dict[str, dict[str, list[Tensor]]],
        edges: dict[str, dict[str, list[Tensor]]],
        target: dict[str, Tensor],
    ) -> Tensor:
        batch = HeteroData()
        for name, edge_type in EDGES.items():
            for attribute, levels in nodes[name].items():
                batch[name][attribute] = torch.cat(levels)
            for attribute, levels in edges[name].items():
                batch[edge_type][attribute] = torch.cat(levels, dim=along(attribute))
            batch[name].num_sampled_nodes = [level.size(0) for level in nodes[name]['n_id']]
            batch[edge_type].num_sampled_edges = [level.size(0) for level in edges[name]['query']]
        for attribute, value in target.items():
            batch[CLICKS][attribute] = value
        return self.model(batch)


def along(attribute: str) -> int:
    r"""The dimension of an attribute that counts edges."""
    return 1 if attribute.endswith('_index') else 0


def as_tensors(model: SRJGraph, batch: HeteroData) -> tuple[dict, dict, dict]:
    nodes, edges = {}, {}
    for name, edge_type in EDGES.items():
        nodes[name] = {
            attribute: batch[name][attribute].split(batch[name].num_sampled_nodes)
            for attribute in ('n_id', 'batch', *model.attribute_embedding[name].keys())
        }
        store = batch[edge_type]
        edges[name] = {
            attribute: store[attribute].split(store.num_sampled_edges, along(attribute))
            for attribute in ('edge_index', 'query')
        }
    names = ('edge_label_index', 'edge_label_query', 'edge_label_domain')
    return nodes, edges, {name: batch[CLICKS][name] for name in names}


def test_export_scores_batches_of_other_sizes_and_widths(
    train: HeteroData, batch: HeteroData
) -> None:
    model = build(train)
    inputs = as_tensors(model, batch)
    shapes = torch.utils._pytree.tree_map_with_path(
        lambda path, _: {
            along(
                next(step.key for step in reversed(path) if hasattr(step, 'key'))
            ): torch.export.Dim.AUTO
        },
        inputs,
    )
    program = torch.export.export(FromTensors(model), inputs, dynamic_shapes=shapes)
    # torch's guards on names of nested inputs are wrong, see the tests of MacGNN.
    scorer = program.module(check_guards=False)
    for size, widths in (
        (20, WIDTHS),
        (7, {'user': [5, 2, 1], 'item': [2, 2, 2]}),
        (64, {'user': [4, 1, 3], 'item': [1, 4, 2]}),
    ):
        other = next(iter(PathLoader(train, size, widths=widths, seed=1)))
        torch.testing.assert_close(
            scorer(*as_tensors(model, other)), model(other), rtol=0, atol=1e-10
        )


def test_a_domain_without_a_head_raises(train: HeteroData, batch: HeteroData) -> None:
    with pytest.raises(IndexError, match='domains from 0 to 1, but expected them from 0 to 0'):
        build(train, num_domains=1)(batch)
    batch[CLICKS].edge_label_domain -= 1
    with pytest.raises(IndexError, match='domains from -1 to 0'):
        build(train)(batch)


def test_targets_without_queries_or_domains_raise(train: HeteroData, batch: HeteroData) -> None:
    model = build(train)
    for name in ('edge_label_query', 'edge_label_domain'):
        other = copy.copy(batch)
        del other[CLICKS][name]
        with pytest.raises(ValueError, match=rf"has no \['{name}'\]"):
            model(other)
    for name, value, message in (
        ('edge_label_domain', batch[CLICKS].edge_label_domain[:5], r'\[20\], but got shape \[5\]'),
        (
            'edge_label_query',
            batch[CLICKS].edge_label_query[:5],
            r'shape \[20, Q\], but got shape \[5',
        ),
        (
            'edge_label_query',
            batch[CLICKS].edge_label_query - 1,
            'terms from -2 to 29, but expected them from -1 to 30',
        ),
        (
            'edge_label_query',
            batch[CLICKS].edge_label_query + 999,
            'but expected them from -1 to 30',
        ),
    ):
        other = copy.copy(batch)
        other[CLICKS][name] = value
        with pytest.raises((IndexError, ValueError), match=message):
            model(other)


def test_half_precision(train: HeteroData, batch: HeteroData) -> None:
    model = build(train).float()
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast('cpu', torch.bfloat16):
            logit = model(batch)
    assert logit.dtype == torch.float
    assert (logit - expected).abs().max() < 0.1 * expected.std() + 0.05


def test_attributes_of_any_name(train: HeteroData) -> None:
    data = copy.copy(train)
    data['item']['type'], data['item'].num_type = train['item'].brand, train['item'].num_brand
    batch = next(iter(PathLoader(data, 20, widths=WIDTHS)))
    assert build(data)(batch).isfinite().all()
    few = build(data, attributes={'user': {}, 'item': {'type': data['item'].num_type}})
    assert few.size == {'user': 16, 'item': 24}
    assert few(batch).isfinite().all()


def test_bad_sizes(train: HeteroData) -> None:
    for arguments, message in (
        (({'user': 3},), r"'num_nodes' must be of 'user' and 'item', but got \{'user': 3\}"),
        (({'user': 3, 'item': 0},), "'num_nodes.'item'.' must be at least 1, but got 0"),
        (({'user': 3, 'item': 4}, {'users': {}}), "'attributes' must be of 'user' and 'item'"),
        (
            ({'user': 3, 'item': 4}, {'item': {'brand': 0}}),
            "'brand'.' must be at least 1, but got 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            SRJGraph(*arguments)
    # What is left out is as by default.
    model = SRJGraph({'user': 3, 'item': 4}, {'item': {'brand': 2}}, attribute_dim={'user': 2})
    assert model.size == {'user': 16, 'item': 24}

    data = copy.copy(train)
    data['item'].brand = train['item'].brand - 1
    with pytest.raises(IndexError, match=r"values of data\['item'\]\.brand from -1 to"):
        SRJGraph.from_data(data)
    data['item'].brand = train['item'].brand.view(-1, 1)
    with pytest.raises(ValueError, match=r"brand' of shape \[40\], but got shape \[40, 1\]"):
        SRJGraph.from_data(data)


def test_another_batch_raises(train: HeteroData, batch: HeteroData) -> None:
    model = build(train)
    with pytest.raises(TypeError, match='which are HeteroData, but got dict'):
        model(batch.to_dict())
    with pytest.raises(ValueError, match=r"'user' has no \['n_id', 'batch', 'num_sampled_nodes'\]"):
        model(train)
    few = [name for name in model.attribute_embedding['item'].keys() if name != 'brand']
    few += [*model.attribute_embedding['user'].keys(), 'query']
    for names, message in (
        (few, r"'item' has no \['brand'\]"),
        ([*few[:-1], 'brand'], r"'user', 'clicks', 'item'\) has no \['query'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(next(iter(PathLoader(train, 20, widths=WIDTHS, batch_attributes=names))))
    # A node that two paths share, as PyG's loaders have it.
    batch['item'].num_sampled_nodes[1] -= 1
    with pytest.raises(ValueError, match='each node is a target or has one edge'):
        model(batch)
