import copy
import io
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureBatch, ExposureLoader, JoinedLoader, PairLoader
from mag.logits import Logits
from mag.models import FLIP, CountNet, MacGNN, SimCEN, Stack
from mag.models._field_embedding import FieldEmbedding
from mag.nn import TextEncoder
from mag.pipeline.saved import write_safetensors
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import (
    FieldText,
    MacroCoarsen,
    RecentNeighbors,
    TargetCounts,
    TemporalSplit,
)

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
NAMES = ('macgnn', 'counts', 'views')


class Views(torch.nn.Module):
    r"""The embeddings of the fields, and as a contrast their mean square."""

    def __init__(self, num_values: Mapping[str, int], fields: Any, embedding_dim: int = 4) -> None:
        super().__init__()
        self.embedding = FieldEmbedding('Views', num_values, fields, embedding_dim, std=1.0)
        self.out_channels = len(self.embedding.names) * embedding_dim

    def reset_parameters(self) -> None:
        self.embedding.reset_parameters()

    def features(self, batch: Any) -> Tensor:
        batch = batch if isinstance(batch, ExposureBatch) else batch.features
        return self.embedding(self.embedding.known(batch.sparse)).flatten(1)

    def contrast(self, features: Tensor) -> Tensor:
        return features.square().mean()

    def grow(self, data: HeteroData) -> None:
        numbers = {name: data[name].num_nodes for name in ('user', 'item')}
        self.embedding.grow({**self.embedding.num_values, **numbers})


@pytest.fixture
def part(click_log: HeteroData) -> HeteroData:
    train, _, _ = TemporalSplit(0.1, 0.5, 0.75, num_windows=2)(click_log)
    return prepare(train)


def prepare(part: HeteroData) -> HeteroData:
    coarsen = MacroCoarsen({'user': 'group', 'item': 'category'}, 2)
    return TargetCounts()(coarsen(RecentNeighbors(3)(part)))


def join(part: HeteroData, *args: Any, **kwargs: Any) -> JoinedLoader:
    return JoinedLoader([ExposureLoader(part), PairLoader(part)], *args, **kwargs)


def make_branches(part: HeteroData, *names: str, **arguments: Any) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    counts = CountNet.from_data(part, embedding_dim=4, **arguments)
    branches = {
        'macgnn': MacGNN.from_data(part, embedding_dim=4),
        'counts': counts,
        'views': Views(counts.embedding.num_values, counts.fields),
    }
    for branch in branches.values():
        for parameter in branch.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return {name: branches[name] for name in names or NAMES}


def make(part: HeteroData, *names: str, **arguments: Any) -> Stack:
    return Stack(make_branches(part, *names), (6, 4), **arguments)


def shared(part: HeteroData, **arguments: Any) -> Stack:
    return make(part, 'counts', 'views', share_embeddings=True, **arguments)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_head_reads_the_features_of_all_branches(part: HeteroData) -> None:
    stack, batch = make(part, contrast={'views': 0.1}).eval(), next(iter(join(part, 50)))
    features = {name: branch.features(batch) for name, branch in stack.branches.items()}
    # Two hops, recent neighbors and itself, of both; four fields, and two numbers of five counts.
    assert [of.size(1) for of in features.values()] == [56, 16 + 5 * 2, 16]
    out = stack(batch)
    x = torch.cat([features[name] for name in NAMES], 1)
    torch.testing.assert_close(out.click, stack.head(x).squeeze(1))
    assert list(out.branches) == list(NAMES)
    for name, logit in out.branches.items():
        of = stack.auxiliary_heads[name]
        torch.testing.assert_close(logit, features[name] @ of.weight[0] + of.bias)
    # At inference nothing is contrasted.
    assert out.views is None
    out = stack.train()(batch)
    assert list(out.views) == ['views'] and torch.equal(out.views['views'], features['views'])


def test_the_loss_is_that_of_all_of_each_and_of_the_contrasts(part: HeteroData) -> None:
    stack = make(part, auxiliary=0.6, contrast={'views': 0.01})
    batch = next(iter(join(part, 50)))
    out = stack(batch)

    def entropy(logit: Tensor) -> Tensor:
        probability = logit.double().sigmoid()
        return -probability.where(batch.label == 1, 1 - probability).log().mean()

    each = sum(entropy(out.branches[name]) for name in NAMES) / 3
    contrast = stack.branches['views'].features(batch).square().mean()
    expected = entropy(out.click) + 0.6 * each + 0.01 * contrast
    torch.testing.assert_close(stack.loss(out, batch).double(), expected)
    # What a task minimises.
    torch.testing.assert_close(ClickTask(stack).loss(batch).double(), expected)
    alone = make(part, auxiliary=0.0)
    out = alone(batch)
    assert (out.branches, out.views, len(alone.auxiliary_heads)) == (None, None, 0)
    torch.testing.assert_close(alone.loss(out, batch).double(), entropy(out.click))


def test_simcen_is_contrasted_as_it_is_alone(part: HeteroData) -> None:
    # What is dropped is drawn.
    arguments = {'through_dropout': 0.0, 'dropouts': (0, 0, 0)}
    simcen = SimCEN.from_data(part, hidden_channels=(12, 12), **arguments)
    counts, (batch,) = CountNet.from_data(part), ExposureLoader(part, 900)
    for branch in (simcen, counts):
        torch.nn.init.normal_(branch.embedding.weight)
    alone = simcen.loss(simcen(batch), batch)
    entropy = F.binary_cross_entropy_with_logits(simcen(batch).click, batch.label)
    stack = Stack(
        {'simcen': simcen, 'counts': counts}, contrast={'simcen': 0.01}, share_embeddings=True
    )
    assert counts.embedding.weight is simcen.embedding.weight
    found = stack.loss(stack(batch), batch) - stack.loss(stack(batch)._replace(views=None), batch)
    torch.testing.assert_close(found, alone - entropy, atol=1e-5, rtol=1e-3)


def test_macro_graph_text_and_crosses_under_one_head(part: HeteroData) -> None:
    part = FieldText()(part)
    encoder = TextEncoder(part[CLICKS].num_tokens, 8, 1, 1, 8)
    branches = {
        'flip': FLIP.from_data(
            part, text_encoder=encoder, sentence='node', embedding_dim=4, regularization=0.0
        ),
        'simcen': SimCEN.from_data(part, embedding_dim=4, hidden_channels=(12, 12)),
        'counts': CountNet.from_data(part, embedding_dim=4),
        'macgnn': MacGNN.from_data(part, embedding_dim=4),
    }
    contrast = {'flip': 0.1, 'simcen': 0.01}
    stack = Stack(branches, contrast=contrast, without=['macgnn'], share_embeddings=True)
    tables = {id(branch.embedding.weight) for branch in stack.branches.values()}
    assert tables == {id(branches['flip'].embedding.weight)}
    # Beside it a weight of each value, which FLIP alone has.
    assert branches['flip'].linear.weight.shape == (25 + 15 + 3 + 4 + 4, 1)
    (batch,) = join(part, 900)
    stack.loss(stack(batch), batch).backward()
    assert bool(stack.branches['flip'].text.encoder.token.weight.grad.any())
    assert bool(stack.branches['flip'].embedding.weight.grad.any())
    # What texts say may be kept there, too.
    click = stack.eval()(batch).click
    stack.branches['flip'].precompute()
    torch.testing.assert_close(stack(batch).click, click)
    apart = Stack(branches, contrast=contrast)
    assert {name: of.size(1) for name, of in apart.train()(batch).views.items()} == {
        'flip': 256, 'simcen': 12
    }  # fmt: skip


def test_every_parameter_but_of_the_heads_of_branches_gets_a_gradient(part: HeteroData) -> None:
    batch = next(iter(join(part, 50)))
    for stack in (make(part), make(part, auxiliary=0.0), shared(part)):
        stack.loss(stack(batch), batch).backward()
        for name, parameter in stack.named_parameters():
            is_own_head = '.head.' in name
            assert (parameter.grad is None) is is_own_head, name
            assert is_own_head or bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize('without', [(), ('views',), ('macgnn', 'views'), ['counts', 'macgnn']])
def test_branches_are_left_out_by_name(part: HeteroData, without: Any) -> None:
    branches = make_branches(part)
    stack = Stack(copy.deepcopy(branches), (6, 4), contrast={'views': 0.1}, without=without)
    kept = [name for name in NAMES if name not in without]
    assert list(stack.branches) == list(stack.auxiliary_heads) == kept
    assert stack.contrast == ({'views': 0.1} if 'views' in kept else {})
    channels = sum(branches[name].out_channels for name in kept)
    # The head with the slopes of its Dice, and a logit a branch.
    head = 6 * channels + 6 + 6 + 6 * 4 + 4 + 4 + 4 + 1
    own = sum(size(branches[name]) for name in kept)
    assert size(stack) == own + head + channels + len(kept)
    # What they had learned before they keep.
    for name in kept:
        weights = branches[name].state_dict()
        for key, value in stack.branches[name].state_dict().items():
            assert torch.equal(value, weights[key])


def test_branches_that_read_features_alone_take_their_batches(part: HeteroData) -> None:
    stack = make(part, 'counts', 'views').eval()
    (joined,), (batch,) = join(part, 900), ExposureLoader(part, 900)
    assert torch.equal(stack(batch).click, stack(joined).click)
    with pytest.raises(TypeError, match='^MacGNN expects a PairBatch or a JoinedBatch, but got'):
        make(part)(batch)
    pairs = make(part, 'macgnn').eval()
    assert pairs(PairLoader(part, 8).request(0, torch.arange(8))).click.shape == (8,)


def test_one_table_is_read_and_trained_by_all(part: HeteroData) -> None:
    branches = make_branches(part, 'counts', 'views')
    kept = {name: branch.embedding.weight.clone() for name, branch in branches.items()}
    stack = Stack(branches, (6, 4), share_embeddings=True)
    counts, views = (branch.embedding for branch in stack.branches.values())
    assert counts.weight is views.weight and torch.equal(counts.weight, kept['counts'])
    apart = make(part, 'counts', 'views')
    # 25 users, 15 items, 3 groups and 4 categories, and none of each, by 4.
    assert size(apart) - size(stack) == 4 * (25 + 15 + 3 + 4 + 4)
    apart.branches['views'].embedding.weight.data.copy_(kept['counts'])
    batch = next(iter(join(part, 50)))
    for model in (stack, apart):
        torch.manual_seed(1)
        for head in (model.head, *model.auxiliary_heads.values()):
            head.reset_parameters()
        model.loss(model(batch), batch).backward()
    assert torch.equal(apart(batch).click, stack(batch).click)
    both = sum(branch.embedding.weight.grad for branch in apart.branches.values())
    torch.testing.assert_close(counts.weight.grad, both)


def test_a_shared_table_stays_one(part: HeteroData, tmp_path: Any) -> None:
    r"""In copies, averages, on another device, in files and after it grew."""
    stack, batch = shared(part), next(iter(join(part, 50)))
    task = ClickTask(stack, 0.1, average=0.9)
    optimizer = task.configure_optimizers()
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(
        list(stack.parameters())
    )
    for _ in range(3):
        optimizer.zero_grad()
        task.loss(batch).backward()
        optimizer.step()
        task.after_step()
    mean = task.averaged.module
    assert len(list(mean.parameters())) == len(list(stack.parameters()))
    write_safetensors(str(tmp_path / 'stack.safetensors'), stack.state_dict())
    read = shared(part)
    read.load_state_dict(load_file(tmp_path / 'stack.safetensors'))
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    loaded = shared(part)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = {'read': read, 'loaded': loaded, 'copied': copy.deepcopy(stack), 'double': mean}
    copies['double'] = copy.deepcopy(stack).double().float()
    for name, other in {'trained': stack, 'mean': mean, **copies}.items():
        counts, views = (branch.embedding for branch in other.branches.values())
        assert counts.weight is views.weight, name
    for name, other in copies.items():
        assert torch.equal(other.eval()(batch).click, stack.eval()(batch).click), name
    assert not torch.equal(mean.eval()(batch).click, stack(batch).click)


def test_a_shared_table_grows_once(click_log: HeteroData, part: HeteroData) -> None:
    task = ClickTask(shared(part).eval(), average=0.9).eval()
    (batch,) = join(part, 900)
    before, number = task(batch).click, size(task.model)
    for name, more in (('user', 2), ('item', 3)):
        store = click_log[name]
        of = 'group' if name == 'user' else 'category'
        store[of] = torch.cat([store[of], store[of][:more]])
        store.num_nodes += more
    later = prepare(TemporalSplit(0.1, 0.5, 0.75, num_windows=2)(click_log)[0])
    task.grow(later)
    for stack in (task.model, task.averaged.module):
        counts, views = (branch.embedding for branch in stack.branches.values())
        assert counts.weight is views.weight
        assert size(stack) == number + 4 * 5
        torch.testing.assert_close(stack(batch).click, before)
    assert stack(join(later).request(26, torch.tensor([17]), counts=torch.ones(1, 5, 2))).click > -9


def test_what_one_branch_refuses_is_in_none(
    part: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: HeteroData) -> None:
        raise ValueError('There is no room.')

    stack = Stack(make_branches(part, 'counts', 'views'))
    monkeypatch.setattr(stack.branches['views'], 'grow', refuse)
    number = size(stack)
    part['user'].num_nodes += 2
    part['user'].group = torch.cat([part['user'].group, part['user'].group[:2]])
    with pytest.raises(ValueError, match=r'There is no room\.'):
        stack.grow(part)
    assert size(stack) == number


def test_a_reset_starts_all_anew(part: HeteroData) -> None:
    stack = shared(part)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(7)
    stack.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in stack.parameters())
    # The table is the first branch's, which starts near 0.
    assert stack.branches['views'].embedding.weight.std() < 0.01


def test_a_request_is_scored_as_the_rows_of_a_log(click_log: HeteroData) -> None:
    # The rows of a part that is trained on read the log as it was in their window.
    test = prepare(TemporalSplit(0.1, 0.5, 0.75, num_windows=2)(click_log)[2])
    stack, loader = make(test).eval(), join(test, 50)
    batch = next(iter(loader))
    request = loader.request(batch.user, batch.item, counts=batch.features.counts)
    torch.testing.assert_close(stack(request).click, stack(batch).click)


def test_predictions_and_metrics_are_those_of_the_head(part: HeteroData) -> None:
    stack = make(part).eval()
    (batch,) = join(part, 900)
    predicted = predict(stack, join(part, 100))
    assert list(predicted) == ['click', *NAMES]
    out = stack(batch)
    torch.testing.assert_close(predicted['click'], out.click.double().sigmoid())
    torch.testing.assert_close(predicted['counts'], out.branches['counts'].double().sigmoid())
    expected = F.binary_cross_entropy_with_logits(out.click, batch.label).item()
    assert evaluate(stack, join(part, 100))['logloss'] == pytest.approx(expected, abs=1e-6)


def test_export_scores_batches_of_other_sizes(part: HeteroData) -> None:
    stack = make(part, contrast={'views': 0.1}).eval()
    example, other = next(iter(join(part, 20))), next(iter(join(part, 50)))
    number = torch.export.Dim('batch', min=2)
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: number}, example)
    program = torch.export.export(stack, (example,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    # torch writes its guards by replacing names in text: "user" is the start of "user_hops".
    scorer = torch.export.load(file).module(check_guards=False)
    for batch in (example, other):
        out = scorer(batch)
        assert isinstance(out, Logits)
        torch.testing.assert_close(out.click, stack(batch).click)
        torch.testing.assert_close(out.branches, stack(batch).branches)


def test_compiled_training_is_one_graph_with_the_same_gradients(part: HeteroData) -> None:
    stack, batch = shared(part, contrast={'views': 0.1}), next(iter(join(part, 20)))
    twin = copy.deepcopy(stack)
    torch.compiler.reset()
    for scorer in (stack, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        stack.loss(scorer(batch), batch).backward()
    for (name, parameter), other in zip(stack.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_scores_are_the_same(part: HeteroData) -> None:
    stack, batch = make(part, 'counts', 'views').eval(), next(iter(ExposureLoader(part, 20)))
    torch.compiler.reset()
    with torch.no_grad():
        out = torch.compile(stack, fullgraph=True)(batch)
        torch.testing.assert_close(out.click, stack(batch).click, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
def test_cuda_agrees_with_cpu(part: HeteroData) -> None:
    stack, batch = shared(part, contrast={'views': 0.1}).eval(), next(iter(join(part, 50)))
    twin = copy.deepcopy(stack).cuda()
    counts, views = (branch.embedding for branch in twin.branches.values())
    assert counts.weight is views.weight
    on_device = torch.utils._pytree.tree_map_only(Tensor, lambda value: value.cuda(), batch)
    out, other = stack(batch), twin(on_device)
    torch.testing.assert_close(other.click.cpu(), out.click, atol=1e-5, rtol=1e-4)
    loss = twin.loss(other, on_device)
    torch.testing.assert_close(loss.cpu(), stack.loss(out, batch), atol=1e-5, rtol=1e-4)


def test_bfloat16(part: HeteroData) -> None:
    stack, batch = make(part, contrast={'views': 0.1}).eval(), next(iter(join(part, 50)))
    with torch.autocast('cpu', torch.bfloat16):
        out = stack(batch)
        loss = stack.loss(out, batch)
    torch.testing.assert_close(out.click.float(), stack(batch).click, atol=0.05, rtol=0.05)
    torch.testing.assert_close(loss, stack.loss(stack(batch), batch), atol=0.01, rtol=0.05)


def taste(num_rows: int) -> tuple[HeteroData, Tensor]:
    r"""A log whose clicks follow from two numbers that are known of a row, one of the user and one
    of the item, of which each branch reads one."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(40, (num_rows,), generator=generator)
    item = torch.randint(40, (num_rows,), generator=generator)
    logit = torch.where(user % 2 == 0, 1.5, -1.5) + torch.where(item % 2 == 0, 1.5, -1.5)
    clicked = torch.rand(num_rows, generator=generator) < logit.sigmoid()
    data = HeteroData()
    data['user'].num_nodes = data['item'].num_nodes = 40
    clicks = data[CLICKS]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), clicked.float()
    clicks.edge_label_time = torch.arange(num_rows)
    clicks.edge_index, clicks.time = clicks.edge_label_index[:, clicked], clicked.nonzero().view(-1)
    return data, logit


class OneField(Views):
    r"""Reads one of the two fields."""

    def __init__(self, name: str) -> None:
        super().__init__({'user': 40, 'item': 40}, ('user', 'item'))
        self.place = ('user', 'item').index(name)
        self.out_channels = 4

    def features(self, batch: Any) -> Tensor:
        return super().features(batch)[:, 4 * self.place :][:, :4]


def test_the_stack_knows_what_its_branches_know_apart() -> None:
    data, logit = taste(8_000)
    train, val, _ = TemporalSplit(0.01, 0.8, 0.99, num_windows=1, keep_cold=True)(data)
    values = {}
    for without in ((), ('user',), ('item',)):
        torch.manual_seed(0)
        branches = {name: OneField(name) for name in ('user', 'item')}
        task = ClickTask(Stack(branches, (8,), without=without), 3e-2, 0.0)
        fit(
            task, ExposureLoader(train, 256, shuffle=True), ExposureLoader(val), max_epochs=4,
            monitor='logloss', progress=False, accelerator='cpu',
        )  # fmt: skip
        values[without] = evaluate(task, ExposureLoader(val))['logloss']
    rows = val[CLICKS].edge_label_time
    best = F.binary_cross_entropy_with_logits(logit[rows], data[CLICKS].edge_label[rows]).item()
    assert values[()] < best + 0.02
    assert min(values['user',], values['item',]) > best + 0.1
