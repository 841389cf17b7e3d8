r"""What a task brings is what is trained: losses, metrics, optimizers, schedules."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch_geometric.data import HeteroData

from mag.files import read_tensors
from mag.loader import BatchIndexSampler
from mag.nn import IdEmbedding
from mag.training import ClickTask, Task, evaluate, fit, predict


class Points(torch.utils.data.Dataset):
    r"""Points on a line with noise."""

    def __init__(self, num_rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(num_rows, 2, generator=generator)
        self.y = self.x @ torch.tensor([2.0, -1.0]) + torch.randn(num_rows, generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[rows], self.y[rows]


def points(num_rows: int, seed: int, shuffle: bool = False) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        Points(num_rows, seed),
        batch_size=None,
        sampler=BatchIndexSampler(num_rows, 10, shuffle, seed=3),
        collate_fn=lambda batch: batch,
    )


class Regression(Task):
    r"""What no module of mag knows: a loss, a metric, two groups of parameters and a schedule."""

    modes = {'error': 'min', 'bias': 'max'}

    def __init__(self, gamma: float = 0.9, learning_rate: float = 0.1, loss: Any = F.mse_loss):
        super().__init__()
        self.lin = torch.nn.Linear(2, 1)
        self.gamma = gamma
        self.learning_rate = learning_rate
        self.criterion = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x).squeeze(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])

    def score(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return self(batch[0]), batch[1]

    def measure(self, scores: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
        preds, target = (torch.cat(column) for column in zip(*scores))
        error = preds - target
        return {'error': float(error.square().mean()), 'bias': float(error.mean())}

    def predict(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {'y': self(batch[0])}

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        groups = [
            {'params': [self.lin.weight], 'momentum': 0.5},
            {'params': [self.lin.bias], 'lr': 0.01},
        ]
        optimizer = torch.optim.SGD(groups, self.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)


def run(directory: Path, task: Task | None = None, first: int = 1, **arguments: Any) -> Task:
    if task is None:
        torch.manual_seed(first)
        task = Regression()
    arguments = {'max_epochs': 3, 'monitor': 'error', 'progress': False, **arguments}
    loaders = points(95, 1, shuffle=True), points(50, 2)
    return fit(task, *loaders, directory=directory, accelerator='cpu', **arguments)


def flat(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: flat(part) for name, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple)) else value


class Fail:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, step: int) -> None:
        if step == self.step:
            raise RuntimeError('failed on purpose')


class Forbid:
    def on_train_start(self) -> None:
        raise RuntimeError('trained again')


def test_a_task_of_ones_own_is_stepped_as_a_bare_loop_would(tmp_path: Path) -> None:
    run(tmp_path)
    torch.manual_seed(1)
    task = Regression()
    optimizer, schedule = task.configure_optimizers()
    loader = points(95, 1, shuffle=True)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            task.loss(batch).backward()
            optimizer.step()
            schedule.step()
    last = read_tensors(tmp_path / 'last.ckpt')
    assert last['step'] == 30
    for name, value in task.state_dict().items():
        assert torch.equal(last['state_dict'][name], value)
    rates = [group['lr'] for group in last['optimizer']['param_groups']]
    assert rates == pytest.approx([0.1 * 0.9**30, 0.01 * 0.9**30])
    assert rates == [group['lr'] for group in optimizer.param_groups]


def test_schedule_and_groups_resume_exactly(tmp_path: Path) -> None:
    arguments = {'log_every_n_steps': 2, 'validate_every': 7}
    run(tmp_path / 'whole', **arguments)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        run(tmp_path / 'failed', callbacks=[Fail(18)], **arguments)
    run(tmp_path / 'failed', **arguments)
    whole, failed = (read_tensors(tmp_path / name / 'last.ckpt') for name in ('whole', 'failed'))
    assert whole.keys() == failed.keys()
    for name, value in whole.items():
        assert flat(value) == flat(failed[name]), name


@pytest.mark.parametrize('monitor', ['error', 'bias'])
def test_best_is_what_the_task_says_is_better(tmp_path: Path, monitor: str) -> None:
    run(tmp_path, monitor=monitor, validate_every=3, patience=100)
    last = read_tensors(tmp_path / 'last.ckpt')
    values = {row['step']: row[f'val_{monitor}'] for row in last['rows'] if 'val_error' in row}
    choose = {'error': min, 'bias': max}[monitor]
    assert len(values) == 10
    assert values[read_tensors(tmp_path / 'best.ckpt')['step']] == choose(values.values())


def smooth(preds: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(preds, target, beta=0.5)


def smoother(preds: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(preds, target, beta=0.7)


def with_beta(beta: float) -> Any:
    return lambda preds, target: F.smooth_l1_loss(preds, target, beta=beta)


class Doubled(Regression):
    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 2 * super().loss(batch)


@pytest.mark.parametrize(
    ('make', 'sentence'),
    [
        (lambda: Regression(gamma=0.8), 'hyper-parameter gamma is 0.9 there, 0.8 here'),
        (lambda: Regression(learning_rate=0.2), 'hyper-parameter learning_rate is 0.1 there, 0.2'),
        (lambda: Regression(loss=smooth), 'hyper-parameter criterion is mse_loss.* smooth.* here'),
        (Doubled, 'code of loss is [0-9a-f]{8} there, [0-9a-f]{8} here'),
    ],
)
def test_another_task_is_refused(tmp_path: Path, make: Any, sentence: str) -> None:
    run(tmp_path)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=f'started with other settings: .*{sentence}.*resume=Fal'):
        run(tmp_path, make(), callbacks=[Forbid()])


@pytest.mark.parametrize(
    ('there', 'here'), [(smooth, smoother), (with_beta(0.5), with_beta(0.7))], ids=['code', 'cell']
)
def test_another_number_within_a_loss_is_refused(tmp_path: Path, there: Any, here: Any) -> None:
    def make(loss: Any) -> Regression:
        torch.manual_seed(1)
        return Regression(loss=loss)

    run(tmp_path, make(there))
    with pytest.raises(ValueError, match='other settings: hyper-parameter criterion is '):
        run(tmp_path, make(here), callbacks=[Forbid()])
    with pytest.warns(UserWarning, match='already finished'):
        run(tmp_path, make(there), callbacks=[Forbid()])


class OwnLoss(torch.nn.Module):
    r"""A user's model of clicks, whose loss has a number that its representation does not tell."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(2, 1)
        self.gamma = gamma

    def forward(self, batch: Any) -> Tensor:
        return self.lin(batch[0]).squeeze(1)

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return (output - batch[1]).abs().pow(self.gamma).mean()


def test_another_gamma_of_a_models_own_loss_is_refused(tmp_path: Path) -> None:
    class Distance(ClickTask):
        modes = Regression.modes
        measure = Regression.measure

        def score(self, batch: Any) -> tuple[Tensor, ...]:
            return self.model(batch), batch[1]

    def make(gamma: float) -> Task:
        torch.manual_seed(1)
        return Distance(OwnLoss(gamma))

    run(tmp_path, make(2.0))
    with pytest.raises(ValueError, match='hyper-parameter model.gamma is 2.0 there, 1.5 here'):
        run(tmp_path, make(1.5), callbacks=[Forbid()])


def test_other_first_weights_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    sentence = (
        'other settings: the first weights have the checksum [0-9a-f]{8} there, [0-9a-f]{8} here: '
        'seed the generators before the model is built.*resume=False'
    )
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, first=2, callbacks=[Forbid()])
    run(tmp_path, first=2, resume=False)
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, first=1, callbacks=[Forbid()])


def test_the_same_task_goes_on_unless_its_weights_were_changed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    task = Regression()
    with pytest.raises(RuntimeError, match='failed on purpose'):
        run(tmp_path / 'run', task, callbacks=[Fail(15)])
    run(tmp_path / 'run', task, max_epochs=2)
    run(tmp_path / 'run', task)
    whole = run(tmp_path / 'whole')
    for name, value in whole.state_dict().items():
        assert torch.equal(task.state_dict()[name], value)
    # To another directory they are where they have come to.
    run(tmp_path / 'more', task)
    config = [read_tensors(tmp_path / name / 'last.ckpt')['config'] for name in ('run', 'more')]
    assert config[0]['first weights'] != config[1]['first weights']
    task.lin.reset_parameters()
    with pytest.raises(ValueError, match='the first weights have'):
        run(tmp_path / 'run', task, callbacks=[Forbid()])


class Record:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_train_start(self, task: Task) -> None:
        self.calls.append(('start', type(task)))

    def on_train_epoch_start(self, epoch: int) -> None:
        self.calls.append(('epoch', epoch))

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor]) -> None:
        self.calls.append(('batch', len(batch[1])))

    def on_before_optimizer_step(self, task: Any, optimizer: torch.optim.Optimizer) -> None:
        assert task.lin.weight.grad is optimizer.param_groups[0]['params'][0].grad
        self.calls.append(('gradient', task.lin.weight.grad is not None))

    def on_train_batch_end(self, step: int, loss: Tensor) -> None:
        self.calls.append(('step', step, loss.requires_grad))

    def on_validation_batch_end(self) -> None:
        self.calls.append(('scored',))

    def on_validation_end(self, step: int, values: dict[str, float]) -> None:
        self.calls.append(('values', step, list(values)))

    def on_train_epoch_end(self, epoch: int) -> None:
        self.calls.append(('end of epoch', epoch))

    def on_train_end(self, step: int) -> None:
        self.calls.append(('end', step))


def test_callbacks_are_called_with_what_they_take(tmp_path: Path) -> None:
    record = Record()
    fit(
        Regression(), points(20, 1, shuffle=True), points(10, 2), directory=tmp_path, max_epochs=2,
        monitor='error', progress=False, accelerator='cpu', callbacks=[record],
    )  # fmt: skip
    expected: list[tuple[Any, ...]] = [('start', Regression)]
    for epoch in range(2):
        expected.append(('epoch', epoch))
        for step in (2 * epoch + 1, 2 * epoch + 2):
            expected += [('batch', 10), ('gradient', True), ('step', step, False)]
        expected += [('scored',), ('values', 2 * epoch + 2, ['error', 'bias'])]
        expected.append(('end of epoch', epoch))
    assert record.calls == [*expected, ('end', 4)]


def test_a_task_that_does_not_say_what_it_minimises(tmp_path: Path) -> None:
    class Empty(Task):
        modes = {'error': 'min'}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)

    with pytest.raises(NotImplementedError, match='^Empty has no loss.$'):
        run(tmp_path, Empty())


def test_without_tensorboard_a_run_is_logged_to_csv_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mag.training.run.find_spec', lambda name: None)
    run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['best.ckpt', 'last.ckpt', 'metrics.csv']
    header, *rows = (tmp_path / 'metrics.csv').read_text().splitlines()
    assert header == 'step,epoch,train_loss,val_error,val_bias'
    assert [row.split(',')[0] for row in rows] == ['10', '20', '30']


class Log(lightning.fabric.loggers.CSVLogger):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.logged: list[tuple[int | None, list[str]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        self.logged.append((step, sorted(metrics)))


def test_any_logger_of_fabric_logs(tmp_path: Path) -> None:
    log = Log(tmp_path)
    run(tmp_path / 'run', max_epochs=1, loggers=[log])
    assert log.logged == [(10, ['epoch', 'train_loss']), (10, ['epoch', 'val_bias', 'val_error'])]


def test_seeds_of_all_generators(tmp_path: Path) -> None:
    class Draw:
        def on_train_start(self) -> None:
            drawn.append((random.random(), float(torch.rand(()))))

    drawn: list[tuple[float, float]] = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        run(tmp_path / name, max_epochs=1, seed=seed, callbacks=[Draw()])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]


class Rows(torch.utils.data.Dataset):
    r"""A dataset of exposures, as those of the loaders of mag."""

    def __init__(self, label: list[float], conversion: list[float] | None = None) -> None:
        self.exposures = SimpleNamespace(
            label=torch.tensor(label),
            conversion=None if conversion is None else torch.tensor(conversion),
        )


def test_rows_of_one_class_are_refused_where_nothing_else_is_learned() -> None:
    clicks, conversions = ClickTask(torch.nn.Linear(1, 1)), ClickTask(OwnLoss(1.0))
    for task in (clicks, conversions):
        task.check_rows(Rows([0.0, 1.0, 1.0], [0.0, 0.0, 0.0]))
        # Who knows what those hold.
        task.check_rows(Points(3, 0))
        task.check_rows([1, 2])
        for label, found in ((1.0, 'all 3 of train_loader are clicks'), (0.0, 'none of 3')):
            with pytest.raises(ValueError, match=found):
                task.check_rows(Rows([label] * 3, [0.0] * 3))
            with pytest.raises(ValueError, match=found):
                task.check_rows(Rows([label] * 3))
    # What follows a click is learned from clicks alone, but not by a model of clicks.
    conversions.check_rows(Rows([1.0] * 3, [0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match='apply mag.transforms.SampleNegatives'):
        clicks.check_rows(Rows([1.0] * 3, [0.0, 1.0, 0.0]))


class Growing(torch.nn.Module):
    r"""A model of clicks with a row for each user."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = IdEmbedding('user', 3, 1)

    def forward(self, batch: Any) -> Tensor:
        return self.embedding(batch.user).squeeze(1)

    def grow(self, data: HeteroData) -> None:
        self.embedding.grow(data['user'].num_nodes)


def test_a_task_grows_the_model_and_the_average_of_its_weights(tmp_path: Path) -> None:
    later = HeteroData()
    later['user'].num_nodes = 5
    task = ClickTask(Growing(), average=0.5)
    mean: Any = task.averaged
    batch = SimpleNamespace(user=torch.arange(3), label=torch.tensor([0.0, 1.0, 1.0]))
    with torch.no_grad():
        task.after_step()
        task.model.embedding.weight += 1
        task.after_step()
    before = task.eval().predict(batch)['click']
    task.model.grow(later)
    sentence = (
        r'^Growing has a parameter of shape \[6, 1\], but the average of its weights has one of '
        r'\[4, 1\]: call task.grow\(data\), not model.grow\(data\) alone, so that both grow\.$'
    )
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    for call in (
        lambda: evaluate(task, loader),
        lambda: predict(task, loader),
        lambda: fit(task, points(20, 1), directory=tmp_path, max_epochs=1, progress=False),
        # What a loop calls that sets no mode, such as Lightning's.
        task.after_step,
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    task.grow(later)
    assert torch.equal(predict(task, loader)['click'], before)
    # A new row starts as that of the unknown, in the average as its own does.
    assert mean.module.embedding.weight.flatten().tolist()[4:] == [0.5, 0.5]
    assert task.model.embedding.weight.flatten().tolist()[4:] == [1.0, 1.0]
    with torch.no_grad():
        task.train().after_step()
    assert mean.module.embedding.weight.flatten().tolist()[4:] == [0.75, 0.75]
    assert not any(parameter.requires_grad for parameter in mean.parameters())


def test_a_model_that_does_not_grow_is_told() -> None:
    with pytest.raises(TypeError, match=r'^ClickTask.grow needs .* grow\(data\), but Linear has'):
        ClickTask(torch.nn.Linear(1, 1)).grow(HeteroData())
