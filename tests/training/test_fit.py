import copy
import csv
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.files import write_tensors
from mag.loader import ExposureBatch, ExposureLoader, PairBatch, PairLoader
from mag.logits import Logits
from mag.models import GMCM
from mag.training import ClickTask, evaluate, fit
from mag.transforms import BehaviorGraph, TemporalSplit

Fork = Callable[..., Any]
SCRIPT = Path(__file__).with_name('training_run.py')
sys.path.insert(0, str(SCRIPT.parent))
from training_run import (  # noqa: E402
    NUM_USERS,
    Gradients,
    RandomBatches,
    TinyModel,
    macro_data,
    train,
)


@pytest.fixture(scope='module', autouse=True)
def one_thread() -> Iterator[None]:
    r"""As in the processes, since sums may differ by a bit with the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None], Path]:
    r"""The folder of an uninterrupted run, trained once for each :obj:`validate_every`."""

    @cache
    def run_whole(validate_every: int | None) -> Path:
        directory = tmp_path_factory.mktemp('whole')
        train(str(directory), callbacks=(RandomBatches(),), validate_every=validate_every)
        return directory

    return run_whole


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same_run(directory: Path, expected: Path) -> None:
    r"""Weights, optimizer, counters, generators and logs, to the last bit."""
    last, expected_last = load(directory / 'last.ckpt'), load(expected / 'last.ckpt')
    assert last.keys() == expected_last.keys()
    for key in last:
        assert equal(last[key], expected_last[key]), key
    best, expected_best = load(directory / 'best.ckpt'), load(expected / 'best.ckpt')
    assert equal(best['state_dict'], expected_best['state_dict'])
    assert best['step'] == expected_best['step']
    assert (directory / 'metrics.csv').read_text() == (expected / 'metrics.csv').read_text()
    assert tensorboard(directory) == tensorboard(expected)


def tensorboard(directory: Path) -> dict[str, list[tuple[int, float]]]:
    # TensorBoard reads files in the order of their names, in which those that one process began in
    # one second differ by a counter alone, and 10 comes before 9.
    files = sorted((directory / 'tensorboard').glob('*tfevents*'), key=first_time)
    with tempfile.TemporaryDirectory() as ordered:
        for index, file in enumerate(files):
            shutil.copy(file, f'{ordered}/{index:04}.tfevents')
        events = EventAccumulator(ordered).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()['scalars']
    }


def first_time(file: Path) -> float:
    # A killed process may leave a file without events.
    return next((event.wall_time for event in EventFileLoader(str(file)).Load()), 0.0)


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / 'metrics.csv', newline='') as file:
        return list(csv.DictReader(file))


def start(fork: Fork, directory: Path, *arguments: str, **env: str) -> Any:
    code = 'import training_run; training_run.main()'
    arguments = ('--directory', str(directory), *arguments)
    return fork(code, *arguments, path=[SCRIPT.parent], env=env)


def signal_at(
    step: int, number: int, fork: Fork, directory: Path, *arguments: str
) -> tuple[int, str]:
    r"""Starts a run and sends it a signal at about a step."""
    process = start(fork, directory, *arguments)
    output = ''
    for line in process.stdout:
        output += line
        if line.strip() == f'step {step}':
            time.sleep(random.uniform(0, 0.01))
            os.kill(process.pid, number)
            break
    done = process.finish()
    return done.returncode, output + done.stdout + done.stderr


def run_two(fork: Fork, directory: Path, *arguments: str, returncode: int = 0) -> str:
    r"""A run of two processes, started as a cluster does it; what they wrote."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    processes = [
        start(fork, directory, '--processes', '2', *arguments, LOCAL_RANK=rank, MASTER_PORT=port)
        for rank in ('0', '1')
    ]
    done = [process.finish() for process in processes]
    output = ''.join(one.stdout + one.stderr for one in done)
    assert [one.returncode for one in done] == [returncode] * 2, output
    return output


class Scores(torch.nn.Module):
    r"""The logit of an item is its score."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, batch: PairBatch) -> Tensor:
        return self.scores[batch.item]


def pairs(user: list[int], label: list[float], batch_size: int) -> DataLoader:
    item = torch.arange(len(user))
    none = torch.empty(len(user), 0)
    batch = PairBatch(torch.tensor(user), item, (), (), none, none, torch.tensor(label))
    batches = [
        PairBatch(*(part if part == () else part[index] for part in batch))
        for index in item.split(batch_size)
    ]
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize('batch_size', [1, 3, 7])
def test_evaluate_gives_the_golden_numbers(batch_size: int) -> None:
    # Block E of the specification's golden numbers.
    label = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    score = torch.tensor([0.9, 0.2, 0.4, 0.5, 0.3, 0.3, 0.8])
    model = Scores(score.logit()).train()
    values = evaluate(model, pairs([0, 0, 0, 0, 1, 1, 2], label, batch_size))
    assert {type(value) for value in values.values()} == {float}
    assert values['auc'] == pytest.approx(0.7916666666666666, abs=1e-6)
    assert values['gauc'] == pytest.approx(0.6666666666666666, abs=1e-12)
    logloss = -sum(math.log(s if y else 1 - s) for s, y in zip(score.tolist(), label)) / len(label)
    assert values['logloss'] == pytest.approx(logloss, abs=1e-6)
    assert model.training


@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.bfloat16])
@pytest.mark.parametrize(
    'logits',
    [
        # Those within [0, 1] look like probabilities in a batch of their own.
        [0.9, 0.1, 30.0, 20.0, -3.0, -200.0],
        # Their probabilities are 1 and 0 in float64 too.
        [50.0, 40.0, 3e38, 60.0, 45.0, 48.0],
        [-50.0, -60.0, -40.0, -800.0, -850.0, -3e38],
    ],
)
def test_evaluate_tells_any_logits_apart(logits: list[float], dtype: torch.dtype) -> None:
    label = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    model = Scores(torch.tensor(logits, dtype=dtype))
    values = evaluate(model, pairs([0] * 6, label, 2))
    higher = sum(logits[i] > logits[j] for i in range(6) for j in range(6) if label[i] > label[j])
    assert values['auc'] == values['gauc'] == higher / 9


def test_evaluate_sums_the_log_loss_in_double() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    label = (torch.arange(1000) % 3 == 0).float().tolist()
    values = evaluate(Scores(logits), pairs([0] * 1000, label, 100))
    losses = [math.log1p(math.exp(x)) - x * y for x, y in zip(logits.tolist(), label, strict=True)]
    assert values['logloss'] == pytest.approx(math.fsum(losses) / 1000, abs=1e-13)


def bare_loop(max_epochs: int, batch_size: int) -> tuple[dict[str, Tensor], list[float]]:
    r"""What fit must do, without Lightning: the best weights by AUC, and each validation's AUC."""
    lightning.seed_everything(1, verbose=False)
    model = TinyModel()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    loader = PairLoader(macro_data(505, 1), batch_size, shuffle=True, seed=3)
    val_loader = PairLoader(macro_data(301, 2), 50)
    # Iterating over a DataLoader draws from the generator; in fit each epoch does so once for
    # training and once for validation, as here.
    torch.manual_seed(5)
    best: dict[str, Tensor] = {}
    auc: list[float] = []
    for epoch in range(max_epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                model(batch), batch.label
            ).backward()
            optimizer.step()
        value = evaluate(model, val_loader)['auc']
        if value > max(auc, default=0):
            best = {f'model.{name}': value.clone() for name, value in model.state_dict().items()}
        auc.append(value)
    return best, auc


def test_equals_a_bare_loop_and_learns(tmp_path: Path) -> None:
    task, values = train(str(tmp_path), max_epochs=6)
    weights, auc = bare_loop(max_epochs=6, batch_size=20)
    assert weights.keys() == task.state_dict().keys()
    for name, value in task.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-6)
    logged = [float(row['val_auc']) for row in rows(tmp_path) if row['val_auc']]
    assert logged == pytest.approx(auc, abs=1e-4)
    assert values['auc'] == pytest.approx(max(auc), abs=1e-4)
    assert values['auc'] > 0.7 > auc[0]


def fit_without_validation(**arguments: Any) -> ClickTask:
    lightning.seed_everything(1, verbose=False)
    task = ClickTask(TinyModel(), 1e-2, 1e-4)
    loader = PairLoader(macro_data(505, 1), 20, shuffle=True, seed=3)
    return fit(
        task, loader, seed=5, log_every_n_steps=3, progress=False, accelerator='cpu',
        **{'max_epochs': 3, **arguments},
    )  # fmt: skip


def test_without_validation_the_last_weights_are_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    task = fit_without_validation()
    assert [path.name for path in tmp_path.rglob('*')] == ['temporary']

    kept = fit_without_validation(directory=tmp_path / 'run')
    assert equal(kept.state_dict(), task.state_dict())
    last = load(tmp_path / 'run' / 'last.ckpt')
    assert equal(last['state_dict'], task.state_dict()) and last['step'] == 78
    assert not (tmp_path / 'run' / 'best.ckpt').exists()
    assert [row['step'] for row in rows(tmp_path / 'run')] == [str(3 * n) for n in range(1, 27)]
    # Without a validation in between, weights are those of a bare loop.
    lightning.seed_everything(1, verbose=False)
    bare = ClickTask(TinyModel(), 1e-2, 1e-4)
    optimizer = bare.configure_optimizers()
    loader = PairLoader(macro_data(505, 1), 20, shuffle=True, seed=3)
    lightning.seed_everything(5, verbose=False)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            bare.loss(batch).backward()
            optimizer.step()
    assert equal(bare.state_dict(), task.state_dict())


def test_a_run_without_validation_resumes_exactly(tmp_path: Path) -> None:
    whole = fit_without_validation(directory=tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='failed on purpose'):
        fit_without_validation(directory=tmp_path / 'run', callbacks=[Fail('on_train_start', 1)])
    fit_without_validation(directory=tmp_path / 'run', max_epochs=1)
    resumed = fit_without_validation(directory=tmp_path / 'run', callbacks=(steps := Steps(),))
    assert steps.steps[0] == 27
    assert equal(resumed.state_dict(), whole.state_dict())
    with pytest.warns(UserWarning, match='already finished'):
        again = fit_without_validation(directory=tmp_path / 'run', callbacks=[Forbid()])
    assert equal(again.state_dict(), whole.state_dict())
    with pytest.raises(ValueError, match='val_loader rows is missing there, 301 here'):
        train(str(tmp_path / 'run'), max_epochs=3, seed=5)


def test_logs(tmp_path: Path) -> None:
    train(str(tmp_path), max_epochs=2, validate_every=20)
    # 26 steps an epoch: a loss every 3 steps, before each validation and at the end.
    steps = sorted({*range(3, 52, 3), 20, 40, 52})
    assert [int(row['step']) for row in rows(tmp_path)] == steps
    assert [int(row['step']) for row in rows(tmp_path) if row['val_auc']] == [20, 40]
    assert all(float(row['train_loss']) > 0 for row in rows(tmp_path))
    logged = tensorboard(tmp_path)
    assert [step for step, _ in logged['train_loss']] == steps
    assert [step for step, _ in logged['val_gauc']] == [20, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'best.ckpt',
        'last.ckpt',
        'metrics.csv',
        'tensorboard',
    ]


@pytest.mark.parametrize(
    'arguments',
    [
        ('10',),
        ('40', '--seconds-between-checkpoints', '0', '--num-workers', '1'),
    ],
    ids=['validation checkpoints', 'checkpoints between validations'],
)
def test_killed_run_resumes_exactly(
    tmp_path: Path, fork: Fork, whole: Callable[[int | None], Path], arguments: tuple[str, ...]
) -> None:
    validate_every = int(arguments[0])
    arguments = ('--validate-every', *arguments)
    # 104 steps in all: once in the first half and once in the second.
    for step in (random.randint(10, 50), random.randint(55, 100)):
        returncode, output = signal_at(step, signal.SIGKILL, fork, tmp_path, *arguments)
        assert returncode == -signal.SIGKILL, output
        assert load(tmp_path / 'last.ckpt')['step'] <= step + 5
    assert 'step 1\n' not in output
    steps = go_on(tmp_path, validate_every)
    assert 1 < steps[0] <= step + 6 and steps[-1] == 104
    assert_same_run(tmp_path, whole(validate_every))


def test_interrupted_run_resumes_exactly(
    tmp_path: Path, fork: Fork, whole: Callable[[int | None], Path]
) -> None:
    returncode, output = signal_at(30, signal.SIGINT, fork, tmp_path)
    assert returncode != 0
    assert 'KeyboardInterrupt: Training was interrupted. Call fit again to go on' in output
    step = load(tmp_path / 'last.ckpt')['step']
    assert 30 <= step < 45 and step % 3 == 0
    assert f'step {step}\n' in output and f'step {step + 1}\n' not in output
    assert go_on(tmp_path, None) == list(range(step + 1, 105))
    assert_same_run(tmp_path, whole(None))


class Steps:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, step: int) -> None:
        self.steps.append(step)


def go_on(directory: Path, validate_every: int | None) -> list[int]:
    r"""Resumes here what another process began; returns the steps it takes."""
    steps = Steps()
    train(str(directory), callbacks=(RandomBatches(), steps), validate_every=validate_every)
    return steps.steps


class Fail:
    r"""Stands for a kill at a moment that a signal would not hit."""

    def __init__(self, hook: str, count: int) -> None:
        self.count = count
        setattr(self, hook, self.fail)

    def fail(self) -> None:
        self.count -= 1
        if self.count == 0:
            raise RuntimeError('failed on purpose')


@pytest.mark.parametrize(
    ('hook', 'count'),
    [
        ('on_train_start', 1),
        ('on_before_optimizer_step', 26),
        ('on_validation_batch_end', 9),
        ('on_validation_end', 2),
        ('on_train_epoch_end', 2),
        ('on_train_epoch_start', 3),
        ('on_train_end', 1),
    ],
)
@pytest.mark.parametrize('validate_every', [None, 20])
def test_failed_run_resumes_exactly(
    tmp_path: Path,
    whole: Callable[[int | None], Path],
    hook: str,
    count: int,
    validate_every: int | None,
) -> None:
    with pytest.raises(RuntimeError, match='failed on purpose'):
        train(
            str(tmp_path),
            callbacks=(RandomBatches(), Fail(hook, count)),
            validate_every=validate_every,
        )
    go_on(tmp_path, validate_every)
    assert_same_run(tmp_path, whole(validate_every))


class Forbid:
    def on_train_start(self) -> None:
        raise RuntimeError('trained again')


def test_finished_run_is_returned_and_can_be_extended(tmp_path: Path) -> None:
    task, values = train(str(tmp_path / 'run'), max_epochs=2)
    sentence = f'{tmp_path / "run"} has already finished: nothing was trained.*Pass resume=False'
    with pytest.warns(UserWarning, match=sentence) as warned:
        again, values_again = train(str(tmp_path / 'run'), max_epochs=2, callbacks=(Forbid(),))
    assert len(warned) == 1 and warned[0].filename == SCRIPT.as_posix()
    assert values_again == values
    assert equal(again.state_dict(), task.state_dict())
    train(str(tmp_path / 'run'), max_epochs=4)
    train(str(tmp_path / 'whole'), max_epochs=4)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


def test_extended_run_logs_the_loss_at_its_former_end(tmp_path: Path) -> None:
    for max_epochs in (1, 2):
        train(str(tmp_path / 'run'), max_epochs=max_epochs, validate_every=20)
    train(str(tmp_path / 'whole'), max_epochs=2, validate_every=20)
    steps, expected = ([row['step'] for row in rows(tmp_path / name)] for name in ('run', 'whole'))
    assert '26' in steps and '26' not in expected
    assert [step for step in steps if step != '26'] == expected


def test_early_stopping(tmp_path: Path) -> None:
    # A learning rate this small leaves the ranking as it is after the first steps.
    arguments: dict[str, Any] = {'learning_rate': 1e-9, 'weight_decay': 0.0, 'validate_every': 5}
    _, values = train(str(tmp_path), patience=3, monitor='logloss', max_epochs=50, **arguments)
    logged = [float(row['val_logloss']) for row in rows(tmp_path) if row['val_logloss']]
    best = logged.index(min(logged))
    assert len(logged) == best + 1 + 3
    assert load(tmp_path / 'best.ckpt')['step'] == 5 * (best + 1)
    assert values['logloss'] == pytest.approx(min(logged), abs=1e-6)
    # Killed between the last checkpoint and the end, it must not go on after all.
    train(
        str(tmp_path), patience=3, monitor='logloss', max_epochs=50, callbacks=(Forbid(),),
        **arguments,
    )  # fmt: skip


def test_start_over(tmp_path: Path) -> None:
    train(str(tmp_path), max_epochs=3)
    (tmp_path / 'notes.txt').write_text('mine')
    train(str(tmp_path), max_epochs=1, learning_rate=1e-3, resume=False)
    assert load(tmp_path / 'last.ckpt')['step'] == 26
    assert int(rows(tmp_path)[-1]['step']) == 26
    assert [step for step, _ in tensorboard(tmp_path)['val_auc']] == [26]
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


def test_other_settings_are_refused(tmp_path: Path) -> None:
    train(str(tmp_path), max_epochs=1)
    for arguments, sentence in (
        ({'learning_rate': 1e-3}, 'learning_rate is 0.01 there, 0.001 here'),
        ({'weight_decay': 0.0}, 'weight_decay is 0.0001 there, 0.0 here'),
        ({'seed': 6}, 'seed is 5 there, 6 here'),
        ({'monitor': 'gauc'}, 'monitor is auc there, gauc here'),
        ({'validate_every': 7}, 'validate_every is None there, 7 here'),
        ({'precision': 'bf16-mixed'}, 'precision is 32-true there, bf16-mixed here'),
        ({'dropout': 0.5}, r'Dropout\(p=0.3, inplace=False\) there; the model has.*p=0.5.* here'),
        ({'batch_size': 30}, 'train_loader batch size is 20 there, 30 here'),
        ({'num_rows': 500}, 'train_loader rows is 505 there, 500 here'),
    ):
        with pytest.raises(ValueError, match=f'{tmp_path} was started .*{sentence}.*resume=False'):
            train(str(tmp_path), **{'max_epochs': 1, **arguments})
    loader = PairLoader(macro_data(505, 1), 20, shuffle=True, seed=3)
    with pytest.raises(
        ValueError, match=r'parameter model.user.weight is \[30, 8\] there, \[30, 4\]'
    ):
        fit(
            ClickTask(TinyModel(embedding_dim=4), 1e-2, 1e-4),
            loader,
            loader,
            directory=str(tmp_path),
            seed=5,
        )


def loaders(**changes: Any) -> tuple[PairLoader, PairLoader]:
    arguments = {'batch_size': 20, 'shuffle': True, 'seed': 3, **changes.get('arguments', {})}
    parts = {'train': macro_data(505, 1), 'val': macro_data(301, 2)}
    for name, change in changes.items():
        if name in parts:
            change(parts[name])
    return PairLoader(parts['train'], **arguments), PairLoader(parts['val'], 50)


def flip_label(data: HeteroData) -> None:
    label = data['user', 'clicks', 'item'].edge_label
    label[7] = 1 - label[7]


def swap_rows(data: HeteroData) -> None:
    data['user', 'clicks', 'item'].edge_label_index[:, [3, 4]] = data[
        'user', 'clicks', 'item'
    ].edge_label_index[:, [4, 3]]


def add_count(data: HeteroData) -> None:
    data['macro_user', 'hop2', 'user'].edge_weight[5] += 1


def roll(data: HeteroData) -> None:
    r"""Into two windows of equal counts."""
    clicks = data['user', 'clicks', 'item']
    clicks.cutoff = torch.arange(2)
    clicks.edge_label_window = torch.arange(clicks.edge_label.numel()) % 2
    for edge_type in data.edge_types:
        if edge_type[1].startswith('hop'):
            store = data[edge_type]
            store.edge_weight = store.edge_weight[:, None].expand(-1, 2)


def add_recent(data: HeteroData) -> None:
    data['user'].recent = torch.full((NUM_USERS, 3), -1)


@pytest.mark.parametrize('max_epochs', [1, 2])
def test_other_loaders_are_refused(tmp_path: Path, max_epochs: int) -> None:
    def fit_again(**changes: Any) -> None:
        lightning.seed_everything(1, verbose=False)
        fit(
            ClickTask(TinyModel()),
            *loaders(**changes),
            directory=str(tmp_path),
            max_epochs=max_epochs if changes else 1,
            progress=False,
            accelerator='cpu',
            callbacks=[Forbid()] if (tmp_path / 'last.ckpt').exists() else [],
        )

    fit_again()
    for changes, names in (
        ({'arguments': {'seed': 4}}, ['train_loader seed is 3 there, 4 here']),
        ({'arguments': {'shuffle': False}}, ['train_loader shuffle is True there, False here']),
        ({'arguments': {'batch_size': 21}}, ['train_loader batch size is 20 there, 21 here']),
        ({'train': flip_label}, ['train_loader exposures.label']),
        ({'train': swap_rows}, ['train_loader exposures.item', 'train_loader exposures.user']),
        ({'train': add_count}, ['train_loader macro_rows.hops.user']),
        (
            {'train': roll},
            ['train_loader exposures.window is missing there', 'train_loader macro_rows.hops'],
        ),
        ({'train': add_recent}, ['train_loader macro_rows.recent']),
        ({'val': flip_label}, ['val_loader exposures.label']),
        ({'val': add_recent}, ['val_loader macro_rows.recent']),
    ):
        sentence = '.*'.join(['was started with other settings: ', *names, 'pass resume=False'])
        with pytest.raises(ValueError, match=sentence):
            fit_again(**changes)
    fit_again()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ('name', 'damage'),
    [
        ('last.ckpt', lambda path: path.write_text('not a checkpoint')),
        ('last.ckpt', cut),
        ('last.ckpt', lambda path: torch.save({'state_dict': {}, 'callbacks': {}}, path)),
        ('last.ckpt', lambda path: torch.save(torch.ones(3), path)),
        ('best.ckpt', lambda path: path.unlink()),
        ('best.ckpt', lambda path: path.write_bytes(b'')),
        ('best.ckpt', cut),
    ],
)
@pytest.mark.parametrize('max_epochs', [1, 2])
def test_damaged_checkpoint_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], max_epochs: int
) -> None:
    train(str(tmp_path), max_epochs=1)
    damage(tmp_path / name)
    with pytest.raises(
        ValueError, match=f"^'{tmp_path / name}' (is|was|holds) .* pass resume=False"
    ) as error:
        train(str(tmp_path), max_epochs=max_epochs, callbacks=(Forbid(),))
    assert 'weights_only' not in str(error.value)
    train(str(tmp_path), max_epochs=1, resume=False)


@pytest.mark.parametrize('name', ['last.ckpt', 'best.ckpt'])
@pytest.mark.parametrize('max_epochs', [1, 2])
def test_nothing_in_a_received_checkpoint_is_run(
    tmp_path: Path, name: str, max_epochs: int, planted: Any
) -> None:
    directory, canary = tmp_path / 'run', tmp_path / 'canary'
    train(str(directory), max_epochs=1)
    checkpoint = load(directory / name)
    checkpoint['config']['planted'] = planted(canary)
    # Whoever plants a file can work out its checksum.
    write_tensors(checkpoint, directory / name)
    with pytest.raises(ValueError, match=f'{name}. was not written by mag: .* pass resume=False'):
        train(str(directory), max_epochs=max_epochs)
    assert not canary.exists()
    torch.load(directory / name, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'learning_rate': 0.5}, 'hyper-parameter learning_rate is 0.5 there'),
        ({'plain': True}, 'the model has'),
    ],
)
def test_best_weights_of_another_run_are_refused(
    tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    train(str(tmp_path / 'run'), max_epochs=1)
    train(str(tmp_path / 'other'), max_epochs=1, **arguments)
    shutil.copy(tmp_path / 'other' / 'best.ckpt', tmp_path / 'run')
    with pytest.raises(ValueError, match=f'started with other settings: {sentence}'):
        train(str(tmp_path / 'run'), max_epochs=1)


def test_full_disk_is_named_and_leaves_the_former_checkpoint(small_disk: Path) -> None:
    directory = small_disk / 'run'
    train(str(directory), max_epochs=1)
    before = (directory / 'last.ckpt').read_bytes()
    free = shutil.disk_usage(small_disk).free
    (small_disk / 'others').write_bytes(bytes(free))
    with pytest.raises(OSError, match=r"The disk is full: '.*' needs .*Free some"):
        train(str(directory), max_epochs=2)
    assert (directory / 'last.ckpt').read_bytes() == before
    (small_disk / 'others').unlink()
    train(str(directory), max_epochs=2)
    train(str(directory.parent / 'whole'), max_epochs=2)
    for name in ('state_dict', 'optimizer'):
        whole = load(small_disk / 'whole' / 'last.ckpt')[name]
        assert equal(load(directory / 'last.ckpt')[name], whole)


def test_leftovers_of_a_kill_are_removed_at_the_next_start(tmp_path: Path) -> None:
    train(str(tmp_path), max_epochs=1)
    for name in ('last.ckpt', 'best.ckpt', 'metrics.csv'):
        (tmp_path / f'{name}.0123abcd.tmp').write_text('half')
    train(str(tmp_path), max_epochs=1)
    assert not list(tmp_path.glob('*.tmp'))


def test_run_without_a_validation_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mag.training.run.SECONDS_BETWEEN_CHECKPOINTS', 0)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        train(str(tmp_path), validate_every=40, callbacks=(Fail('on_before_optimizer_step', 35),))
    assert load(tmp_path / 'last.ckpt')['step'] == 33
    with pytest.raises(ValueError, match='validate_every=40 is more than the 26 steps of 1 epochs'):
        train(str(tmp_path), validate_every=40, max_epochs=1)
    train(str(tmp_path), validate_every=40, max_epochs=2)
    assert load(tmp_path / 'best.ckpt')['step'] == 40


class NaNLoss(TinyModel):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, batch: PairBatch) -> Tensor:
        self.step -= self.training
        return super().forward(batch) * (float('nan') if self.step == 0 else 1)


@pytest.mark.parametrize('step', [1, 8, 26, 30])
def test_nan_loss_names_step_and_learning_rate(tmp_path: Path, step: int) -> None:
    loader = PairLoader(macro_data(505, 1), 20, shuffle=True)
    with pytest.raises(
        FloatingPointError, match=f'became nan at step {step} with learning rate 0.02'
    ):
        fit(
            ClickTask(NaNLoss(step), 0.02),
            loader,
            PairLoader(macro_data(301, 2), 50),
            directory=str(tmp_path),
            progress=False,
            log_every_n_steps=10,
            accelerator='cpu',
        )
    if step > 26:
        assert all(
            value.isfinite().all() for value in load(tmp_path / 'last.ckpt')['state_dict'].values()
        )


def test_bfloat16(tmp_path: Path) -> None:
    task, values = train(str(tmp_path), max_epochs=6, precision='bf16-mixed')
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}
    assert values['auc'] > 0.7


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(str(tmp_path), max_epochs=1, progress=True)
    shown = ''.join(capsys.readouterr())
    assert '26/26' in shown and 'train_loss=' in shown and 'val_auc=' in shown


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    # Dropout and running statistics see a process's own rows; without them the sums are the same.
    # Not forked: each of the two is a script, of which the first starts the other.
    command = [sys.executable, str(SCRIPT), '--directory', str(tmp_path / 'two')]
    command += ['--processes', '2', '--plain', '--num-rows', '480', '--max-epochs', '2']
    command += ['--out', str(tmp_path / 'two_')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    gradients = Gradients()
    one, _ = train(
        str(tmp_path / 'one'),
        plain=True,
        num_rows=480,
        max_epochs=2,
        batch_size=40,
        callbacks=(gradients,),
    )
    first, second = (load(tmp_path / f'two_{rank}.pt') for rank in range(2))
    assert 'step 24\n' in done.stdout
    assert equal(first['weights'], second['weights'])
    assert equal(first['gradients'], second['gradients'])
    assert first['values'] == second['values']
    for name, gradient in gradients.first.items():
        torch.testing.assert_close(first['gradients'][name], gradient, rtol=1e-5, atol=1e-7)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(first['weights'][name], weight, rtol=1e-3, atol=1e-4)
    # 301 rows are an odd number: the shares differ in length and no row is counted twice.
    task = ClickTask(TinyModel(plain=True))
    task.load_state_dict(first['weights'])
    expected = evaluate(task, PairLoader(macro_data(301, 2), 50))
    assert first['values']['logloss'] == pytest.approx(expected['logloss'], abs=1e-6)
    # Logits of equal pairs tie in one division into batches and differ by a bit in another.
    assert first['values'] == pytest.approx(expected, abs=1e-3)
    validated = [row for row in rows(tmp_path / 'two') if row['val_auc']]
    best = max(validated, key=lambda row: float(row['val_auc']))
    assert float(best['val_gauc']) == pytest.approx(first['values']['gauc'], abs=1e-9)
    assert [row['step'] for row in rows(tmp_path / 'two')] == [
        row['step'] for row in rows(tmp_path / 'one')
    ]


def test_two_processes_resume_exactly(tmp_path: Path, fork: Fork) -> None:
    arguments = ('--max-epochs', '2', '--validate-every', '5')
    run_two(fork, tmp_path / 'whole', *arguments)
    output = run_two(fork, tmp_path / 'failed', *arguments, '--fail-at', '17', returncode=1)
    assert 'failed on purpose' in output
    output = run_two(fork, tmp_path / 'failed', *arguments)
    assert 'step 15\n' not in output
    assert_same_run(tmp_path / 'failed', tmp_path / 'whole')
    # Both processes validated with the running statistics of the first, which are those it saves.
    best = load(tmp_path / 'whole' / 'best.ckpt')
    task = ClickTask(TinyModel())
    task.load_state_dict(best['state_dict'])
    values = evaluate(task, PairLoader(macro_data(301, 2), 50))
    (logged,) = (row for row in rows(tmp_path / 'whole') if row['step'] == str(best['step']))
    assert float(logged['val_logloss']) == pytest.approx(values['logloss'], abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
def test_gpu(tmp_path: Path, precision: str) -> None:
    task, values = train(
        str(tmp_path), max_epochs=6, accelerator='gpu', devices=1, precision=precision
    )
    assert values['auc'] > 0.7
    assert evaluate(task.cpu(), PairLoader(macro_data(301, 2), 50)) == pytest.approx(
        values, abs=1e-3
    )


def good(**arguments: Any) -> dict[str, Any]:
    loader = PairLoader(macro_data(50, 1), 20)
    return {
        'task': ClickTask(TinyModel()),
        'train_loader': loader,
        'val_loader': loader,
        'accelerator': 'cpu',
        'progress': False,
        **arguments,
    }


class Optimizers(ClickTask):
    def __init__(self, made: Any) -> None:
        super().__init__(TinyModel())
        self.made = made

    def configure_optimizers(self) -> Any:
        return self.made


class NoMetric(ClickTask):
    def __init__(self) -> None:
        super().__init__(TinyModel())

    def measure(self, *_: Any) -> dict[str, float]:
        return {'auc': math.nan}


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'task': TinyModel()}, TypeError, r'got TinyModel: wrap.*ClickTask\(model'),
        ({'max_epochs': 0}, ValueError, "'max_epochs' must be at least 1, but got 0"),
        ({'max_epochs': 1.5}, TypeError, "'max_epochs' must be an integer, but got 1.5"),
        ({'max_epochs': True}, TypeError, "'max_epochs' must be an integer, but got True"),
        ({'patience': 0}, ValueError, "'patience' must be .* but got 0"),
        ({'log_every_n_steps': 0}, ValueError, "'log_every_n_steps' must be .* but got 0"),
        ({'validate_every': 0}, ValueError, "'validate_every' must be .* but got 0"),
        ({'seed': -1}, ValueError, "'seed' must be at least 0, but got -1"),
        ({'seed': 2**32}, ValueError, "'seed' must lie below 4294967296, but got 4294967296"),
        ({'seed': 1.5}, TypeError, "'seed' must be an integer, but got 1.5"),
        ({'resume': 'no'}, TypeError, "'resume' must be True or False, but got 'no'"),
        ({'progress': 1}, TypeError, "'progress' must be True or False, but got 1"),
        ({'callbacks': [1]}, TypeError, "'callbacks' must be a list of objects.*got 1"),
        ({'callbacks': 'stop'}, TypeError, "'callbacks' must be .* got 'stop'"),
        (
            {'callbacks': [EarlyStopping('val_auc')]},
            TypeError,
            "'callbacks' .* not of lightning.Callback, .* got <lightning.*EarlyStopping",
        ),
        ({'callbacks': Steps()}, TypeError, "'callbacks' must be a list .* got <.*Steps"),
        ({'val_loader': 'x'}, TypeError, "'val_loader' must be a DataLoader, but got 'x'"),
        ({'val_loader': None, 'monitor': 'f1'}, ValueError, "one of .*'auc', .* but got 'f1'"),
        ({'task': Optimizers([1])}, TypeError, r'Optimizers returned \[1\]'),
        ({'task': NoMetric()}, FloatingPointError, "to stop by 'auc', but .* gives nan"),
        ({'directory': __file__}, ValueError, "'directory' must be a directory, .*is a file"),
        ({'directory': 7}, TypeError, "'directory' must be a path, but got 7"),
        ({'directory': 'a::b'}, ValueError, "'directory' must be a folder of this machine.*a::b"),
        (
            {'validate_every': 7, 'max_epochs': 2},
            ValueError,
            'validate_every=7 is more than the 6 steps of 2 epochs of 3',
        ),
        (
            {'val_loader': None, 'validate_every': 2},
            ValueError,
            "'validate_every' asks for validations, .* 'val_loader' is None",
        ),
        (
            {'directory': None, 'devices': 2},
            ValueError,
            "2 processes need a 'directory' to share, but got None",
        ),
        ({'monitor': 'val_auc'}, ValueError, "one of .*'auc', .* but got 'val_auc'"),
        (
            {'train_loader': DataLoader([1])},
            TypeError,
            'set_epoch and skip.*got DataLoader with the sampler SequentialSampler',
        ),
        ({'train_loader': [1]}, TypeError, 'got list with the sampler NoneType'),
        ({'train_loader': PairLoader(macro_data(0, 1))}, ValueError, 'train_loader is empty'),
        ({'val_loader': PairLoader(macro_data(0, 1))}, ValueError, 'val_loader is empty'),
        *(
            (argument, TypeError, f"unexpected keyword argument '{next(iter(argument))}'")
            for argument in (
                {'use_distributed_sampler': True},
                {'accumulate_grad_batches': 2},
                {'max_steps': 10},
                {'max_time': '00:00:00:01'},
                {'min_epochs': 3},
                {'min_steps': 10},
                {'enable_checkpointing': False},
                {'barebones': True},
                {'fast_dev_run': True},
                {'limit_train_batches': 2},
                {'limit_val_batches': 0},
                {'overfit_batches': 2},
            )
        ),
    ],
)
def test_bad_arguments(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        fit(**{'directory': tmp_path, **good(**arguments)})


def test_bad_models() -> None:
    with pytest.raises(TypeError, match=r'torch.nn.Module, but got str'):
        ClickTask('model')  # type: ignore[arg-type]
    for learning_rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"'learning_rate' must be .* but got {learning_rate}"):
            ClickTask(TinyModel(), learning_rate=learning_rate)
    with pytest.raises(
        ValueError, match=r"'weight_decay' must be a number in \[0, inf\), but got -1"
    ):
        ClickTask(TinyModel(), weight_decay=-1)


def test_bad_batches() -> None:
    labelled = pairs([0, 0], [1.0, 0.0], 2)
    unlabelled = DataLoader([next(iter(labelled))._replace(label=None)], batch_size=None)
    task = ClickTask(Scores(torch.tensor([[1.0], [0.0]])))
    for call, sentence in (
        (lambda: evaluate(task, unlabelled), 'need labels, but batch.label is None'),
        (lambda: task.loss(next(iter(unlabelled))), 'need labels, but batch.label is None'),
        (lambda: evaluate(task, labelled), r'shape \[2\] like the labels, .* \[2, 1\]'),
        (lambda: task.loss(next(iter(labelled))), r'Scores must .* \[2\] .* returned \[2, 1\]'),
        (lambda: evaluate(task, DataLoader([])), 'nothing to evaluate: .* one row, but got none'),
        (
            lambda: evaluate(Scores(torch.tensor([0.0, math.nan])), labelled),
            '1 of 2 is not, such as nan in row',
        ),
        (
            lambda: evaluate(Scores(torch.tensor([math.inf, 1.0])), labelled),
            'log loss is nan: the model returned an infinite logit',
        ),
        (
            lambda: evaluate(Scores(torch.tensor([1.0, math.inf])), labelled),
            'log loss is inf: the model returned an infinite logit',
        ),
        (
            lambda: evaluate(Scores(torch.ones(2)), pairs([0, 0], [1.0, 1.0], 2)),
            'no group with both classes',
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


CLICKS = ('user', 'clicks', 'item')


@cache
def market() -> tuple[HeteroData, HeteroData]:
    r"""Training and validation part of a small shop."""
    train_part, val_part, _ = TemporalSplit(0.1, 0.7, 0.98, num_windows=1)(
        SyntheticMarket(50, 30, 3000, log=False)[0]
    )
    return BehaviorGraph()(train_part), val_part


def train_conversions(
    directory: Path,
    train_part: HeteroData | None = None,
    shuffle: bool = True,
    callbacks: tuple[Any, ...] = (),
    max_epochs: int = 2,
    monitor: str = 'ctcvr_auc',
    **arguments: Any,
) -> tuple[ClickTask, dict[str, float]]:
    train_part = market()[0] if train_part is None else train_part
    train_loader = ExposureLoader(train_part, 100, shuffle=shuffle, seed=3)
    val_loader = ExposureLoader(market()[1], 200)
    lightning.seed_everything(1, verbose=False)
    model = GMCM.from_data(
        train_part,
        **{
            'tower_channels': (16, 8, 8),
            'hidden_channels': 6,
            'num_buckets': 997,
            'embedding_dim': 4,
            **arguments,
        },
    )
    task = ClickTask(model, 5e-3, 1e-5)
    fit(
        task,
        train_loader,
        val_loader,
        directory=str(directory),
        max_epochs=max_epochs,
        patience=100,
        log_every_n_steps=3,
        validate_every=7,
        monitor=monitor,
        progress=False,
        accelerator='cpu',
        callbacks=list(callbacks),
    )
    return task, evaluate(task, val_loader)


def test_conversions_are_trained_and_selected_by(tmp_path: Path) -> None:
    task, values = train_conversions(tmp_path, max_epochs=4)
    validated = [row for row in rows(tmp_path) if row['val_auc']]
    assert {f'val_{name}' for name in values} == {
        name for name in validated[0] if name.startswith('val_')
    }
    assert set(values) == set(ClickTask.modes)
    best = max(validated, key=lambda row: float(row['val_ctcvr_auc']))
    for name, value in values.items():
        assert value == pytest.approx(float(best[f'val_{name}']), abs=1e-6), name
    assert load(tmp_path / 'best.ckpt')['step'] == int(best['step'])
    assert values['ctcvr_auc'] > 0.7
    # What was logged is the model's own loss, of clicks, conversions and behaviors.
    losses = [float(row['train_loss']) for row in rows(tmp_path)]
    assert losses[0] > 1.8 > 2 * math.log(2)
    assert losses[-1] < losses[0] - 0.5


def test_smallest_calibration_error_is_best(tmp_path: Path) -> None:
    _, values = train_conversions(tmp_path, monitor='cvr_calibration_error')
    logged = [float(row['val_cvr_calibration_error']) for row in rows(tmp_path) if row['val_auc']]
    assert values['cvr_calibration_error'] == pytest.approx(min(logged), abs=1e-6)


def test_conversion_steps_are_those_of_a_bare_loop(tmp_path: Path) -> None:
    task, _ = train_conversions(tmp_path)
    lightning.seed_everything(1, verbose=False)
    model = GMCM.from_data(
        market()[0], tower_channels=(16, 8, 8), hidden_channels=6, num_buckets=997, embedding_dim=4
    )
    # Biases before a normalization have a gradient of roundings, which Adam makes large.
    optimizer = torch.optim.Adam(model.parameters(), 5e-3, weight_decay=1e-5, fused=True)
    loader = ExposureLoader(market()[0], 100, shuffle=True, seed=3)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            model.loss(model(batch), batch).backward()
            optimizer.step()
    last = load(tmp_path / 'last.ckpt')
    assert last['step'] == 2 * len(loader)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(last['state_dict'][f'model.{name}'], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('hook', ['on_before_optimizer_step', 'on_validation_end'])
def test_failed_conversion_run_resumes_exactly(tmp_path: Path, hook: str) -> None:
    train_conversions(tmp_path / 'whole')
    count = {'on_before_optimizer_step': 26, 'on_validation_end': 2}[hook]
    with pytest.raises(RuntimeError, match='failed on purpose'):
        train_conversions(tmp_path / 'failed', callbacks=(Fail(hook, count),))
    steps = Steps()
    train_conversions(tmp_path / 'failed', callbacks=(steps,))
    assert steps.steps[0] > 1
    assert_same_run(tmp_path / 'failed', tmp_path / 'whole')


def test_other_conversion_runs_are_refused(tmp_path: Path) -> None:
    train_conversions(tmp_path, max_epochs=1)
    content, query = (copy.copy(market()[0]) for _ in range(2))
    content['item'].x_text = content['item'].x_text + 1
    query[CLICKS].edge_label_query = query[CLICKS].edge_label_query.flip(0)
    bought = copy.copy(market()[0])
    bought[CLICKS].edge_label_conversion = bought[CLICKS].edge_label
    for arguments, sentence in (
        ({'loss': 'naive'}, "loss='ipw'.* there; the model has .*loss='naive'.* here"),
        ({'output': 'sum'}, "output='mean'.* there; the model has .*output='sum'.* here"),
        ({'form': 'literal'}, "form='paper'.* there; the model has .*form='literal'.* here"),
        ({'monitor': 'auc'}, 'monitor is ctcvr_auc there, auc here'),
        ({'train_part': content}, 'train_loader features.'),
        ({'train_part': query}, 'train_loader features.'),
        ({'train_part': bought}, 'train_loader features.exposures.conversion'),
    ):
        with pytest.raises(ValueError, match=f'other settings: .*{sentence}'):
            train_conversions(tmp_path, **{'max_epochs': 1, 'callbacks': (Forbid(),), **arguments})
    train_conversions(tmp_path, max_epochs=1, callbacks=(Forbid(),))


@pytest.mark.parametrize('loss', ['ipw', 'ipw_mean', 'naive', 'doubly_robust', 'esmm', 'division'])
def test_batches_without_clicks_are_trained_on(tmp_path: Path, loss: str) -> None:
    data = copy.copy(market()[0])
    clicks = data[CLICKS]
    for name in ('edge_label', 'edge_label_conversion', 'edge_label_behavior'):
        clicks[name] = clicks[name].clone()
        clicks[name][100:400] = 0
    loader = ExposureLoader(data, 100)
    assert [bool(batch.label.any()) for batch in loader][:5] == [True, False, False, False, True]
    task, values = train_conversions(tmp_path, data, shuffle=False, max_epochs=1, loss=loss)
    assert all(map(math.isfinite, values.values()))
    last = load(tmp_path / 'last.ckpt')
    assert last['step'] == len(loader)
    assert all(bool(value.isfinite().all()) for value in last['state_dict'].values())


def test_monitor_that_the_model_does_not_give(tmp_path: Path) -> None:
    sentence = r"by 'ctcvr_auc', but .* gives .*'auc', 'gauc', 'logloss'\]"
    with pytest.raises(ValueError, match=sentence):
        train(str(tmp_path), max_epochs=1, monitor='ctcvr_auc')


class ConversionsWithoutLoss(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.5, -1.0]))

    def forward(self, batch: ExposureBatch) -> Logits:
        click, conversion = self.bias.unsqueeze(1) + 0.1 * (batch.user - batch.item)
        return Logits(click, conversion)


def test_without_a_loss_of_its_own_a_model_learns_clicks() -> None:
    batch = next(iter(ExposureLoader(market()[0], 100)))
    task = ClickTask(ConversionsWithoutLoss())
    loss = task.loss(batch)
    logit = 0.5 + 0.1 * (batch.user - batch.item)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert task.model.bias.grad[1] == 0 != task.model.bias.grad[0]
    assert set(evaluate(task, ExposureLoader(market()[0], 100))) == set(ClickTask.modes)
    with pytest.raises(ValueError, match='predicts conversions, but batch.conversion is None'):
        task.loss(batch._replace(conversion=None))


def test_a_click_model_is_trained_and_judged_as_before() -> None:
    task = ClickTask(TinyModel(plain=True))
    loader = PairLoader(macro_data(301, 2), 50)
    batch = next(iter(loader))
    logit = task(batch)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.label)
    assert torch.equal(task.loss(batch), expected)
    assert list(evaluate(task, loader)) == ['gauc', 'auc', 'logloss']


class ScaledModel(TinyModel):
    def __init__(self) -> None:
        super().__init__(plain=True)
        self.register_buffer('scale', torch.tensor(0.3), persistent=False)

    def forward(self, batch: PairBatch) -> Tensor:
        x = [self.user(batch.user), self.item(batch.item), *batch.user_hops, *batch.item_hops]
        return self.scale * self.out(torch.cat(x, dim=-1).to(self.scale.dtype)).squeeze(-1)


def test_a_run_in_low_precision_goes_on_in_the_same_process(tmp_path: Path) -> None:
    r"""Lightning turns what is not saved to the precision, too, and it is still the same model."""
    loaders = [
        PairLoader(macro_data(505, 1), 100, shuffle=True, seed=3),
        PairLoader(macro_data(301, 2), 50),
    ]
    arguments: dict[str, Any] = {
        'directory': str(tmp_path), 'progress': False, 'precision': 'bf16-true'
    }  # fmt: skip
    task = ClickTask(ScaledModel())
    fit(task, *loaders, max_epochs=1, **arguments)
    assert task.model.scale.dtype == torch.bfloat16
    fit(task, *loaders, max_epochs=2, **arguments)
    other = ClickTask(ScaledModel())
    other.model.scale += 1
    with pytest.raises(
        ValueError, match='buffer model.scale is [0-9a-f]{8} there, [0-9a-f]{8} here'
    ):
        fit(other, *loaders, max_epochs=3, **arguments)


def test_the_average_of_the_weights_is_scored_with(tmp_path: Path) -> None:
    def make(average: float | None) -> ClickTask:
        torch.manual_seed(1)
        return ClickTask(TinyModel(plain=True), 1e-2, 1e-4, average)

    loader = PairLoader(macro_data(505, 1), 100, shuffle=True, seed=3)
    val_loader = PairLoader(macro_data(301, 2), 50)
    weights: list[dict[str, Tensor]] = []

    class Keep:
        def on_train_batch_end(self, task: ClickTask) -> None:
            weights.append({name: w.clone() for name, w in task.model.state_dict().items()})

    arguments: dict[str, Any] = {'max_epochs': 2, 'progress': False, 'accelerator': 'cpu'}
    task, plain = make(0.9), make(None)
    fit(task, loader, callbacks=[Keep()], **arguments)
    fit(plain, loader, **arguments)
    # The steps are those of a run without an average.
    for name, value in plain.model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value)
    expected = weights[0]
    for step in weights[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * step[name] for name in expected}
    for name, value in task.averaged.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    values = evaluate(task.averaged.module, val_loader)
    assert evaluate(task, val_loader) == values
    assert values != evaluate(plain, val_loader)
    # What a run keeps holds the average, too.
    kept = make(0.9)
    fit(kept, loader, directory=tmp_path, **{**arguments, 'max_epochs': 1})
    again = make(0.9)
    fit(again, loader, directory=tmp_path, **arguments)
    for name, value in task.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_places_in_tables_are_not_averaged() -> None:
    model = TinyModel(plain=True)
    # An average in float32 would be 8473359.
    model.register_buffer('offset', torch.tensor([8_473_353]))
    task = ClickTask(model, average=0.99)
    for _ in range(2):
        task.after_step()
    assert task.averaged.module.offset.tolist() == [8_473_353]


def test_a_share_of_an_average_lies_between_0_and_1() -> None:
    for average in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"'average' must be a number in \(0, 1\), but got"):
            ClickTask(TinyModel(), average=average)
