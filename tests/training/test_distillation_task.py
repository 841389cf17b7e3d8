r"""A student learns from labels and from a teacher, who stays as it is."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import IdMap
from mag.files import read_tensors
from mag.loader import ExposureLoader
from mag.logits import Logits
from mag.losses import distillation_loss
from mag.models import CountNet, Stack
from mag.training import ClickTask, DistillationTask, LightningTask, evaluate, fit

CLICKS = ('user', 'clicks', 'item')
NUM_USERS, NUM_ITEMS = 30, 20


def truth(user: Tensor, item: Tensor) -> Tensor:
    r"""The logit of each click: users like items of their own kind."""
    return torch.where(user % 3 == item % 3, 1.5, -1.5) + (user % 2) - 0.5


class Oracle(torch.nn.Module):
    r"""Knows the truth, and has a weight that scales it."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, batch: Any) -> Logits:
        return Logits(self.dropout(self.scale * truth(batch.user, batch.item)))


def market(num_rows: int, seed: int) -> HeteroData:
    r"""A log whose labels are drawn, so that a row tells little of what is likely."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(NUM_USERS, (num_rows,), generator=generator)
    item = torch.randint(NUM_ITEMS, (num_rows,), generator=generator)
    clicked = torch.rand(num_rows, generator=generator) < truth(user, item).sigmoid()
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    clicks = data[CLICKS]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), clicked.float()
    clicks.edge_label_time = torch.arange(num_rows)
    clicks.edge_index, clicks.time = clicks.edge_label_index[:, clicked], clicked.nonzero().view(-1)
    return data


class Factors(torch.nn.Module):
    r"""A product of embeddings, with all that a run has to restore."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.user = torch.nn.Embedding(NUM_USERS, 8)
        self.item = torch.nn.Embedding(NUM_ITEMS, 8)
        self.bias = torch.nn.Embedding(NUM_USERS, 1)
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, batch: Any) -> Tensor:
        product = self.norm(self.user(batch.user)) * self.item(batch.item)
        return product.sum(1) + self.bias(batch.user).squeeze(1)


class Halved(Factors):
    r"""Has a loss of its own."""

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return 0.5 * (output - batch.label).square().mean()


def make(student: torch.nn.Module | None = None, **arguments: Any) -> DistillationTask:
    student = Factors() if student is None else student
    return DistillationTask(student, **{'teacher': Oracle(), 'learning_rate': 2e-2, **arguments})


def run(task: ClickTask, num_rows: int = 600, seed: int = 1, **arguments: Any) -> ClickTask:
    train, val = ExposureLoader(market(num_rows, seed), 50, True), ExposureLoader(market(200, 99))
    arguments = {'max_epochs': 3, 'monitor': 'logloss', **arguments}
    return fit(task, train, val, progress=False, accelerator='cpu', **arguments)


def distance(task: ClickTask) -> float:
    r"""How far the probabilities are from the truth: their mean Kullback-Leibler divergence, over
    all pairs."""
    pairs = torch.cartesian_prod(torch.arange(NUM_USERS), torch.arange(NUM_ITEMS)).t()
    batch = next(iter(ExposureLoader(market(10, 0), 10)))._replace(user=pairs[0], item=pairs[1])
    with torch.no_grad():
        logit, wanted = task.eval()(batch), truth(*pairs).sigmoid()
    entropy = F.binary_cross_entropy(wanted, wanted)
    return float(F.binary_cross_entropy_with_logits(logit, wanted) - entropy)


@pytest.mark.parametrize('student', [Factors, Halved])
@pytest.mark.parametrize(('soft_weight', 'temperature'), [(0.0, 1.0), (0.3, 2.0), (1.0, 4.0)])
def test_the_loss_is_that_of_labels_and_of_the_teacher(
    student: type[Factors], soft_weight: float, temperature: float
) -> None:
    task = make(student(), soft_weight=soft_weight, temperature=temperature)
    batch = next(iter(ExposureLoader(market(60, 0), 60)))
    logit = copy.deepcopy(task.model)(batch)
    hard = ClickTask(student()).loss(batch)
    # The teacher does not drop out what it knows.
    soft = distillation_loss(logit, truth(batch.user, batch.item), temperature)
    expected = (1 - soft_weight) * hard + soft_weight * soft
    torch.testing.assert_close(task.loss(batch), expected)


def test_the_student_comes_nearer_to_the_truth_than_without() -> None:
    r"""Labels are drawn, and the teacher knows of what."""
    found = []
    for seed in range(3):
        tasks = (
            ClickTask(Factors(seed), 3e-2),
            make(Factors(seed), learning_rate=3e-2, soft_weight=0.9),
        )
        alone, taught = (run(task, 1_000, seed, max_epochs=8) for task in tasks)
        found.append((distance(alone), distance(taught)))
    for without, with_teacher in found:
        assert without > 0.1 and with_teacher < 0.3 * without, found


def test_the_teacher_is_copied_and_stays_as_it_is() -> None:
    teacher = Oracle().train()
    task = make(teacher=teacher, average=0.9)
    names = {name.partition('.')[0] for name in task.state_dict()}
    assert names == {'model', 'averaged'}
    optimizer = task.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert trained == {id(parameter) for parameter in task.model.parameters()}
    assert {id(parameter) for parameter in task.parameters()} >= trained
    assert id(teacher.scale) not in {id(parameter) for parameter in task.parameters()}
    (copied,) = task._teacher
    run(task.train())
    assert not copied.training and not copied.scale.requires_grad and float(copied.scale) == 1
    # What becomes of the other is nobody's matter here.
    assert teacher.training and teacher.scale.requires_grad
    task.double()
    assert copied.scale.dtype == torch.double and teacher.scale.dtype == torch.float


@pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')
def test_the_teacher_goes_where_the_student_goes() -> None:
    task = make().cuda()
    assert task._teacher[0].scale.is_cuda
    batch = next(iter(ExposureLoader(market(60, 0), 60)))
    on_device = torch.utils._pytree.tree_map_only(Tensor, lambda value: value.cuda(), batch)
    torch.testing.assert_close(task.loss(on_device).cpu(), make().loss(batch))


def test_a_task_teaches_by_the_average_that_it_scores_with() -> None:
    teacher = ClickTask(Factors(3), average=0.5)
    for parameter in teacher.averaged.parameters():
        torch.nn.init.normal_(parameter)
    batch = next(iter(ExposureLoader(market(60, 0), 60)))
    task = make(teacher=teacher, soft_weight=1.0)
    logit = copy.deepcopy(task.model)(batch)
    expected = distillation_loss(logit, teacher.eval()(batch))
    torch.testing.assert_close(task.loss(batch), expected)


class Fail:
    def on_train_batch_end(self, step: int) -> None:
        if step == 17:
            raise RuntimeError('failed on purpose')


def test_a_run_goes_on_as_if_it_had_not_been_broken_off(tmp_path: Path) -> None:
    arguments = {'average': 0.9, 'soft_weight': 0.4, 'temperature': 2.0}
    options = {'validate_every': 7}
    run(make(**arguments), directory=tmp_path / 'whole', **options)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        run(make(**arguments), directory=tmp_path / 'failed', callbacks=[Fail()], **options)
    run(make(**arguments), directory=tmp_path / 'failed', **options)
    whole, failed = (
        read_tensors(tmp_path / name / 'last.ckpt')['state_dict'] for name in ('whole', 'failed')
    )
    assert whole.keys() == failed.keys()
    assert all(torch.equal(value, failed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'teacher': Oracle(2.0)}, 'teacher_checksum is .[0-9a-f]{8}. there, .[0-9a-f]{8}. here'),
        ({'teacher': Factors()}, 'teacher_checksum is '),
        ({'soft_weight': 0.4}, 'soft_weight is 0.5 there, 0.4 here'),
        ({'temperature': 2.0}, 'temperature is 1.0 there, 2.0 here'),
    ],
)
def test_another_teacher_is_refused(
    tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    run(make(), directory=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=f'other settings: hyper-parameter {sentence}'):
        run(make(**arguments), directory=tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match='already finished'):
        run(make(), directory=tmp_path, max_epochs=1)


def test_a_trainer_distils_too() -> None:
    task = LightningTask(make()).double()
    assert task.task._teacher[0].scale.dtype == torch.double
    assert {name.split('.')[1] for name in task.state_dict()} == {'model'}


def models(data: HeteroData) -> tuple[CountNet, Stack]:
    student, first, second = (CountNet.from_data(data, counts=False) for _ in range(3))
    return student, Stack({'one': first, 'other': second})


def test_a_stack_teaches_its_branch_and_both_grow() -> None:
    data, later = market(200, 0), market(200, 0)
    maps = {'user': IdMap(range(NUM_USERS)), 'item': IdMap(range(NUM_ITEMS))}
    more = maps['user'].extend(range(NUM_USERS + 2))
    data.id_maps = {name: of.lineage for name, of in maps.items()}
    later.id_maps = {**data.id_maps, 'user': more.lineage}
    later['user'].num_nodes += 2
    later[CLICKS].edge_label_index[0, :2] = torch.tensor([30, 31])
    student, teacher = models(data)
    task = DistillationTask(student, teacher, average=0.9)
    sizes = sum(parameter.numel() for parameter in task._teacher[0].parameters())
    known = task.teacher_checksum
    loader = ExposureLoader(later, 50, True)
    # The student alone has grown.
    task.model.grow(later)
    task.averaged.module.grow(later)
    with pytest.raises(ValueError, match="Stack has rows for 30 values of 'user', but train_load"):
        fit(task, loader, max_epochs=1, progress=False)
    task.grow(later)
    grown = sum(parameter.numel() for parameter in task._teacher[0].parameters())
    assert grown == sizes + 2 * 2 * 16 and task.teacher_checksum != known
    assert not any(parameter.requires_grad for parameter in task._teacher[0].parameters())
    fit(task, loader, max_epochs=1, progress=False)
    assert 0 < evaluate(task, ExposureLoader(later, 50))['logloss'] < 1


def test_what_does_not_go_together_is_refused() -> None:
    student, teacher = models(market(50, 0))
    student.id_maps, teacher.id_maps = {'user': 'aa'}, {'user': 'bb'}
    with pytest.raises(ValueError, match='^The teacher was built for the users of .* bb, but the '):
        DistillationTask(student, teacher)
    with pytest.raises(TypeError, match='needs a teacher with a method grow.data., but Oracle'):
        DistillationTask(student, Oracle()).grow(market(50, 0))
    batch = next(iter(ExposureLoader(market(50, 0), 50)))
    wide = torch.nn.Module()
    wide.forward = lambda batch: torch.zeros(50, 1)
    with pytest.raises(ValueError, match=r'a row, shape \[50\] like the student, but .* \[50, 1\]'):
        DistillationTask(student, wide).loss(batch)
