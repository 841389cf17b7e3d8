r"""What all models make of a user or an item that nothing is known of, and of a log that grew."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import IdMap
from mag.loader import (
    ExposureBatch,
    ExposureLoader,
    HistoryBatch,
    HistoryLoader,
    JoinedLoader,
    PairLoader,
    PathLoader,
)
from mag.logits import Logits
from mag.models import FLIP, GMCM, CountNet, HyperCTR, MacGNN, SimCEN, SRJGraph, Stack
from mag.nn import TextEncoder
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import (
    FieldText,
    MacroCoarsen,
    RecentNeighbors,
    TargetCounts,
    TemporalSplit,
    TimeSlots,
)

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
GROUPS = {'user': 'group', 'item': 'category'}


class Case(NamedTuple):
    r"""A model of a log, which knows how a request is made."""

    model: torch.nn.Module
    request: Callable[..., Any]
    data: HeteroData
    loader: Any


def prepared(log: HeteroData) -> HeteroData:
    train, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=2)(log)
    return TargetCounts()(MacroCoarsen(GROUPS, 2)(RecentNeighbors(3)(train)))


def macgnn(log: HeteroData, **kwargs: Any) -> Case:
    data = prepared(log)
    loader = PairLoader(data)
    return Case(MacGNN.from_data(data, **kwargs), loader.request, data, loader)


def count_net(log: HeteroData, **kwargs: Any) -> Case:
    data = prepared(log)
    loader = JoinedLoader([ExposureLoader(data), PairLoader(data)])
    num_counts = data[CLICKS].edge_label_counts.size(1)

    def request(user: Any, items: Tensor) -> Any:
        # As of a user and an item that were both shown, so that ids are weighed by something.
        counts = torch.tensor([3.0, 1.0]).expand(items.numel(), num_counts, 2)
        return loader.request(user, items, counts=counts)

    kwargs = {'rows': 'twin', 'recent': True, 'separate_tables': True, **kwargs}
    return Case(CountNet.from_data(data, **kwargs), request, data, loader)


def stack(log: HeteroData, **kwargs: Any) -> Case:
    case = count_net(log, **kwargs)
    kwargs.pop('id_strength', None)
    branches = {'counts': case.model, 'macgnn': MacGNN.from_data(case.data, **kwargs)}
    return case._replace(model=Stack(branches))


def simcen(log: HeteroData, **kwargs: Any) -> Case:
    loader = ExposureLoader(log)
    # Enough to reach both tables; statistics of a batch would tell of the rows beside one.
    arguments = {
        'hidden_channels': (9,),
        'second_channels': (6,),
        'dropouts': (0, 0, 0),
        'batch_norm': False,
        **kwargs,
    }
    return Case(SimCEN.from_data(log, **arguments), loader.request, log, loader)


def srjgraph(log: HeteroData, **kwargs: Any) -> Case:
    loader = PathLoader(log, widths={'user': [3, 1], 'item': [3, 1]})

    def request(user: Any, items: Tensor) -> HeteroData:
        return loader.request(user, items, time=1_000)

    return Case(SRJGraph.from_data(log, hidden_channels=(8,), **kwargs), request, log, loader)


def hyperctr(log: HeteroData, **kwargs: Any) -> Case:
    log = copy.copy(log)
    generator = torch.Generator().manual_seed(0)
    # What is new has no content, as what is unknown.
    content = torch.randn(15, 4, generator=generator)
    log['item'].x_text = F.pad(content, (0, 0, 0, log['item'].num_nodes - 15))
    log['user'].interest = torch.rand(27, 1, generator=generator)[: log['user'].num_nodes]
    log = TimeSlots(125)(log)
    # Of the first users and items alone, of whom a log that grew has the same.
    for node_type, number in (('user', 20), ('item', 12)):
        store = log[node_type]
        node = torch.arange(number).repeat(3)
        hyperedge = torch.arange(3 * number) // 5
        store.hyperedge_index = torch.stack([node, hyperedge])
        store.hyperedge_slot = torch.arange(int(hyperedge.max()) + 1) % 4
        store.hyperedge_modality = torch.zeros_like(store.hyperedge_slot)
    loader = HistoryLoader(log, length=4)

    def request(user: Any, items: Tensor) -> HistoryBatch:
        return loader.request(user, items, time=400)

    return Case(HyperCTR.from_data(log, embedding_dim=8, **kwargs), request, log, loader)


def gmcm(log: HeteroData, **kwargs: Any) -> Case:
    log = copy.copy(log)
    log['item'].x = torch.arange(1.0 + log['item'].num_nodes)[1:]
    log[CLICKS].edge_label_conversion = log[CLICKS].edge_label
    loader = ExposureLoader(log)
    arguments = {'merge': 'none', 'num_buckets': 500, 'tower_channels': (8, 4), **kwargs}
    return Case(GMCM.from_data(log, **arguments), loader.request, log, loader)


def flip(log: HeteroData, **kwargs: Any) -> Case:
    # What does not occur teaches no words: those of a log that grew are the same.
    data = FieldText(vocab_size=80)(log)
    loader = ExposureLoader(data)
    encoder = TextEncoder(data[CLICKS].num_tokens, 8, 1, 2, 8, dropout=0.0)
    # At 0 ids would learn from their own loss alone.
    kwargs = {'embedding_dim': 4, 'sentence': 'node', 'alpha': 0.5, **kwargs}
    model = FLIP.from_data(data, text_encoder=encoder, **kwargs)
    return Case(model, loader.request, data, loader)


CASES = {
    'gmcm': gmcm,
    'macgnn': macgnn,
    'count_net': count_net,
    'stack': stack,
    'simcen': simcen,
    'srjgraph': srjgraph,
    'hyperctr': hyperctr,
    'flip': flip,
}
each_case = pytest.mark.parametrize('make', CASES.values(), ids=list(CASES))
# Those with a row for each id.
each_table = pytest.mark.parametrize('make', list(CASES.values())[1:], ids=list(CASES)[1:])


def score(model: torch.nn.Module, batch: Any) -> Tensor:
    r"""The logits of clicks."""
    out = model(batch)
    return out.click if isinstance(out, Logits) else out


def spread(case: Case) -> Case:
    r"""With embeddings of the unknown, too, that are not near 0, ready to score."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    case.model.eval()
    return case


def grown_log(log: HeteroData) -> HeteroData:
    r"""The log with two users and three items more, of whom nothing is known but their groups."""
    log = copy.copy(log)
    for node_type, name, more in (('user', 'group', 2), ('item', 'category', 3)):
        store = log[node_type]
        store[name] = torch.cat([store[name], store[name][:more]])
        store.num_nodes += more
    return log


@each_case
def test_the_unknown_are_answered_alike_in_any_batch(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    case = spread(make(click_log))
    items = torch.tensor([4, -1, 7, -1])
    known = score(case.model, case.request(3, items))
    nobody = score(case.model, case.request(-1, items))
    for logit in (known, nobody):
        assert bool(logit.isfinite().all()) and logit[1] == logit[3]
    # Who asks, and what is shown, matters, and the last of each is nobody special.
    assert not torch.isclose(known, nobody).any()
    last = {name: case.data[name].num_nodes - 1 for name in ('user', 'item')}
    everybody = score(case.model, case.request(last['user'], torch.tensor([4, last['item']])))
    assert not torch.isclose(nobody[:2], everybody).all()


@each_case
def test_a_share_of_ids_is_taken_for_unknown_and_teaches_their_row(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    for share in (0.0, 0.999999):
        case = make(click_log, id_dropout=share)
        case.model.train()
        score(case.model, case.request(3, torch.arange(15))).square().sum().backward()
        for name, gradient in unknown_gradients(case.model):
            assert bool((gradient != 0).any()) is (share > 0), name


@pytest.mark.parametrize('make', [macgnn, count_net, simcen, stack, srjgraph, gmcm, flip])
def test_who_is_dropped_is_answered_as_the_unknown(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    case, plain = spread(make(click_log, id_dropout=0.999999)), make(click_log)
    plain.model.load_state_dict(case.model.state_dict())
    batch = without_own(case.request(3, torch.tensor([1, 4, 8])))
    logit = score(case.model.train(), batch)
    assert torch.equal(logit, score(plain.model.train(), as_unknown(batch)))
    # In evaluation nobody is dropped.
    plain.model.load_state_dict(case.model.state_dict())
    assert torch.equal(score(case.model.eval(), batch), score(plain.model.eval(), batch))


def test_who_is_dropped_is_answered_as_the_unknown_where_nothing_else_is_known() -> None:
    # With neither content, nor history, nor hyperedges.
    model = HyperCTR(5, {'text': torch.zeros(4, 3)}, embedding_dim=8, id_dropout=0.999999)
    spread(Case(model, print, HeteroData(), None))
    history = torch.full((3, 2), -1)
    batch = HistoryBatch(torch.tensor([0, 3, -1]), torch.tensor([3, 0, -1]), history)
    logit = model.eval()(batch)
    assert logit.unique().numel() == 3
    torch.testing.assert_close(model.train()(batch), logit[2].expand(3))


def without_own(batch: Any) -> Any:
    r"""The batch without the row's own user and item among the recent neighbors."""
    if isinstance(batch, HeteroData | ExposureBatch):
        return batch
    if hasattr(batch, 'pairs'):
        return batch._replace(pairs=without_own(batch.pairs))
    own = {'user_recent': batch.item, 'item_recent': batch.user}
    recent = {name: getattr(batch, name) for name in own}
    return batch._replace(
        **{name: ids.where(ids != own[name].unsqueeze(1), -1) for name, ids in recent.items()}
    )


def unknown_gradients(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    r"""The gradients of the rows of unknown users and items."""
    if isinstance(model, Stack):
        return [pair for branch in model.branches.values() for pair in unknown_gradients(branch)]
    if isinstance(model, CountNet | FLIP | SimCEN):
        gradient = model.embedding.weight.grad
        return [(name, gradient[model.embedding.starts[name]]) for name in ('user', 'item')]
    if isinstance(model, GMCM):
        return list(zip(('user', 'item'), model.embedding.weight.grad[500:], strict=True))
    is_one = isinstance(model, SRJGraph)
    tables = {
        name: model.embedding[name] if is_one else getattr(model, f'{name}_embedding')
        for name in ('user', 'item')
    }
    return [(name, table.weight.grad[0]) for name, table in tables.items()]


@each_table
def test_a_grown_log_scores_as_before_and_new_ids_as_unknown_ones(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    # An id that was seen little says little where ids are weighed, unlike the row of the unknown.
    # Words tell who is new from who is unknown.
    arguments = {
        count_net: {'id_strength': 0.0},
        stack: {'id_strength': 0.0},
        flip: {'branches': 'ids'},
    }.get(make, {})
    case = spread(make(click_log, **arguments))
    later = make(grown_log(click_log), **arguments)
    users, items = torch.arange(25).repeat_interleave(15), torch.arange(15).repeat(25)
    before = score(case.model, case.request(users, items))
    with pytest.raises(IndexError, match='from -1 to (24|14)'):
        score(case.model, later.request(26, torch.tensor([17])))
    case.model.grow(later.data)
    assert torch.equal(score(case.model, later.request(users, items)), before)
    with torch.no_grad():
        for parameter in later.model.parameters():
            parameter.zero_()
    # All else is that of a model built for the grown log.
    later.model.load_state_dict(case.model.state_dict())
    later.model.eval()
    for user, item in ((26, 4), (7, 17), (26, 17)):
        new = later.request(user, torch.tensor([item]))
        logit = score(case.model, new)
        assert torch.equal(score(later.model, new), logit)
        unknown = as_unknown(new, 25, 15)
        torch.testing.assert_close(score(case.model, unknown), logit, atol=1e-6, rtol=1e-5)
    # A gradient reaches new rows.
    case.model.train()
    score(case.model, later.request(26, torch.tensor([17, 4]))).sum().backward()
    assert all(
        bool(parameter.grad.isfinite().all())
        for parameter in case.model.parameters()
        if parameter.grad is not None
    )


@each_case
def test_a_loader_of_the_grown_log_is_refused_until_the_tables_grew(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    maps = {'user': IdMap(range(25)), 'item': IdMap(range(15)), 'category': IdMap(list('abcd'))}
    more = {'user': maps['user'].extend(range(27)), 'item': maps['item'].extend(range(18))}
    later_log = grown_log(click_log)
    click_log.id_maps = {name: known.lineage for name, known in maps.items()}
    later_log.id_maps = {**click_log.id_maps, **{name: of.lineage for name, of in more.items()}}
    case, later = make(click_log), make(later_log)
    task = ClickTask(case.model, average=0.5)
    if make is gmcm:
        predict(task, later.loader)
        return
    sentence = "rows for (25 values of 'user'|15 values of 'item'), .* call model.grow.data. "
    for score_all in (predict, evaluate):
        with pytest.raises(ValueError, match=sentence):
            score_all(task, later.loader)
    with pytest.raises(ValueError, match=sentence):
        fit(task, later.loader, max_epochs=1, progress=False)
    expected = predict(task, case.loader)
    task.grow(later.data)
    for score_all in (predict, evaluate):
        score_all(task, later.loader)
    assert torch.equal(predict(task, case.loader)['click'], expected['click'])


def as_unknown(batch: Any, num_users: int = 0, num_items: int = 0) -> Any:
    r"""The batch with ids of nobody for all users and items from some number on; all else that is
    known of them stays."""
    if isinstance(batch, ExposureBatch):
        sparse = batch.sparse.clone()
        for column, number in ((0, num_users), (2, num_items)):
            sparse[:, column][sparse[:, column] >= number] = -1
        return batch._replace(sparse=sparse)
    if hasattr(batch, 'pairs'):
        pairs, features = (as_unknown(of, num_users, num_items) for of in batch[5:7])
        return batch._replace(pairs=pairs, features=features)
    if isinstance(batch, HeteroData):
        batch = copy.copy(batch)
        for name, number in (('user', num_users), ('item', num_items)):
            node = batch[name].n_id
            is_own = node == node[batch[name].batch]
            batch[name].n_id = node.where((node < number) | ~is_own, -1)
        return batch
    user, item = batch.user, batch.item
    return batch._replace(
        user=user.where(user < num_users, -1), item=item.where(item < num_items, -1)
    )


@each_table
def test_a_log_that_shrank_is_refused(click_log: HeteroData, make: Callable[..., Case]) -> None:
    case = make(grown_log(click_log))
    state = copy.deepcopy(case.model.state_dict())
    with pytest.raises(ValueError, match='was built for 27 .*, but this data has only 25'):
        case.model.grow(make(click_log).data)
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())
    name = type(case.model).__name__
    with pytest.raises(TypeError, match=f'{name}.grow expects a HeteroData'):
        case.model.grow(None)


def test_a_hashed_table_has_a_row_for_any_id_of_a_grown_log(click_log: HeteroData) -> None:
    case, later = spread(gmcm(click_log)), gmcm(grown_log(click_log))
    items = torch.arange(15)
    before = score(case.model, case.request(3, items))
    case.model.grow(later.data)
    assert torch.equal(score(case.model, later.request(3, items)), before)
    assert bool(score(case.model, later.request(26, torch.tensor([17]))).isfinite())
    del later.data['item'].x
    with pytest.raises(ValueError, match='and 1 dense features, but this data has .* and 0'):
        case.model.grow(later.data)


@each_case
def test_ids_of_another_log_are_refused_and_those_of_the_grown_one_kept(
    click_log: HeteroData, make: Callable[..., Case]
) -> None:
    case, later = make(click_log), make(grown_log(click_log))
    case.model.id_maps = {'user': 'aa', 'item': 'cc'}
    later.data.id_maps = {'user': 'bb', 'item': 'cc'}
    with pytest.raises(ValueError, match='was built for the users of the id map aa, but .* of bb'):
        case.model.grow(later.data)
    later.data.id_maps = {'user': 'aa bb', 'item': 'cc dd'}
    case.model.grow(later.data)
    assert case.model.id_maps == {'user': 'aa bb', 'item': 'cc dd'}
