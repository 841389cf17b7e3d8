import csv
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from mag.loader import PairBatch, PairLoader
from mag.training import ClickModule, evaluate, fit

SCRIPT = Path(__file__).with_name('training_run.py')
sys.path.insert(0, str(SCRIPT.parent))
from training_run import RandomBatches, TinyModel, macro_data, train  # noqa: E402


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
    for key in ('state_dict', 'optimizer_states', 'global_step', 'epoch', 'callbacks'):
        assert equal(last[key], expected_last[key]), key
    best, expected_best = load(directory / 'best.ckpt'), load(expected / 'best.ckpt')
    assert equal(best['state_dict'], expected_best['state_dict'])
    assert best['global_step'] == expected_best['global_step']
    assert (directory / 'metrics.csv').read_text() == (expected / 'metrics.csv').read_text()
    assert tensorboard(directory) == tensorboard(expected)


def tensorboard(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(directory / 'tensorboard')).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()['scalars']
    }


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / 'metrics.csv', newline='') as file:
        return list(csv.DictReader(file))


def start(directory: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), '--directory', str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(directory: Path, *arguments: str, returncode: int = 0) -> str:
    process = start(directory, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == returncode, output
    return output


def signal_at(step: int, number: int, directory: Path, *arguments: str) -> tuple[int, str]:
    r"""Starts a run and sends it a signal at about a step."""
    process = start(directory, *arguments)
    assert process.stdout is not None
    output = ''
    for line in process.stdout:
        output += line
        if line.strip() == f'step {step}':
            time.sleep(random.uniform(0, 0.01))
            process.send_signal(number)
            break
    output += process.stdout.read()
    return process.wait(timeout=600), output


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


def test_evaluate_scores_logits_beyond_float32_probabilities() -> None:
    # Logits within [0, 1] look like probabilities in a batch of their own; those above 17 become 1.
    values = evaluate(
        Scores(torch.tensor([0.9, 0.1, 30.0, 20.0, -3.0, -200.0])),
        pairs([0, 0, 0, 0, 0, 0], [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], 2),
    )
    assert values['auc'] == values['gauc'] == 1.0


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
    module, values = train(str(tmp_path), max_epochs=6)
    weights, auc = bare_loop(max_epochs=6, batch_size=20)
    assert weights.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-6)
    logged = [float(row['val_auc']) for row in rows(tmp_path) if row['val_auc']]
    assert logged == pytest.approx(auc, abs=1e-4)
    assert values['auc'] == pytest.approx(max(auc), abs=1e-4)
    assert values['auc'] > 0.7 > auc[0]


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
        ('--validate-every', '10'),
        ('--validate-every', '40', '--seconds-between-checkpoints', '0', '--num-workers', '1'),
    ],
    ids=['validation checkpoints', 'checkpoints between validations'],
)
def test_killed_run_resumes_exactly(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run(tmp_path / 'whole', *arguments)
    # 104 steps in all: once in the first half and once in the second.
    for step in (random.randint(5, 50), random.randint(55, 100)):
        returncode, output = signal_at(step, signal.SIGKILL, tmp_path / 'killed', *arguments)
        assert returncode == -signal.SIGKILL, output
        assert load(tmp_path / 'killed' / 'last.ckpt')['global_step'] <= step + 5
    output = run(tmp_path / 'killed', *arguments)
    assert 'step 1\n' not in output
    assert_same_run(tmp_path / 'killed', tmp_path / 'whole')


def test_interrupted_run_resumes_exactly(tmp_path: Path) -> None:
    run(tmp_path / 'whole')
    returncode, output = signal_at(30, signal.SIGINT, tmp_path / 'interrupted')
    assert returncode != 0
    assert 'KeyboardInterrupt: Training was interrupted. Call fit again to go on' in output
    step = load(tmp_path / 'interrupted' / 'last.ckpt')['global_step']
    assert 30 <= step < 45 and step % 3 == 0
    assert f'step {step}\n' in output and f'step {step + 1}\n' not in output
    run(tmp_path / 'interrupted')
    assert_same_run(tmp_path / 'interrupted', tmp_path / 'whole')


class Fail(lightning.Callback):
    r"""Stands for a kill at a moment that a signal would not hit."""

    def __init__(self, hook: str, count: int) -> None:
        self.count = count
        setattr(self, hook, self.fail)

    def fail(self, *_: Any) -> None:
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
    tmp_path: Path, hook: str, count: int, validate_every: int | None
) -> None:
    train(str(tmp_path / 'whole'), callbacks=(RandomBatches(),), validate_every=validate_every)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        train(
            str(tmp_path / 'failed'),
            callbacks=(RandomBatches(), Fail(hook, count)),
            validate_every=validate_every,
        )
    train(str(tmp_path / 'failed'), callbacks=(RandomBatches(),), validate_every=validate_every)
    assert_same_run(tmp_path / 'failed', tmp_path / 'whole')


class Forbid(lightning.Callback):
    def on_train_start(self, *_: Any) -> None:
        raise RuntimeError('trained again')


def test_finished_run_is_returned_and_can_be_extended(tmp_path: Path) -> None:
    module, values = train(str(tmp_path / 'run'), max_epochs=2)
    again, values_again = train(str(tmp_path / 'run'), max_epochs=2, callbacks=(Forbid(),))
    assert values_again == values
    assert equal(again.state_dict(), module.state_dict())
    train(str(tmp_path / 'run'), max_epochs=4)
    train(str(tmp_path / 'whole'), max_epochs=4)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


def test_early_stopping(tmp_path: Path) -> None:
    # A learning rate this small leaves the ranking as it is after the first steps.
    arguments: dict[str, Any] = {'learning_rate': 1e-9, 'weight_decay': 0.0, 'validate_every': 5}
    _, values = train(str(tmp_path), patience=3, monitor='logloss', max_epochs=50, **arguments)
    logged = [float(row['val_logloss']) for row in rows(tmp_path) if row['val_logloss']]
    best = logged.index(min(logged))
    assert len(logged) == best + 1 + 3
    assert load(tmp_path / 'best.ckpt')['global_step'] == 5 * (best + 1)
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
    assert load(tmp_path / 'last.ckpt')['global_step'] == 26
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
        ({'batch_size': 30, 'max_epochs': 2}, 'batches per epoch is 26 there, 17 here'),
    ):
        with pytest.raises(ValueError, match=f'{tmp_path} was started .*{sentence}.*resume=False'):
            train(str(tmp_path), **{'max_epochs': 1, **arguments})
    loader = PairLoader(macro_data(505, 1), 20, shuffle=True, seed=3)
    with pytest.raises(ValueError, match=r'model.user.weight|user.weight is \[30, 8\] there'):
        fit(
            ClickModule(TinyModel(embedding_dim=4), 1e-2, 1e-4),
            loader,
            loader,
            directory=str(tmp_path),
            seed=5,
        )


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
            ClickModule(NaNLoss(step), 0.02),
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
    module, values = train(str(tmp_path), max_epochs=6, precision='bf16-mixed')
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert values['auc'] > 0.7


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(str(tmp_path), max_epochs=1, progress=True)
    shown = ''.join(capsys.readouterr())
    assert '26/26' in shown and 'train_loss=' in shown and 'val_auc=' in shown


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    # Dropout and running statistics see a process's own rows; without them the sums are the same.
    output = run(
        tmp_path / 'two',
        *('--processes', '2', '--plain', '--num-rows', '480', '--max-epochs', '2'),
        *('--out', str(tmp_path / 'two_')),
    )
    run(
        tmp_path / 'one',
        *('--plain', '--num-rows', '480', '--max-epochs', '2', '--batch-size', '40'),
        *('--out', str(tmp_path / 'one_')),
    )
    first, second, one = (load(tmp_path / f'{name}.pt') for name in ('two_0', 'two_1', 'one_0'))
    assert 'step 24\n' in output
    assert equal(first['weights'], second['weights'])
    assert equal(first['gradients'], second['gradients'])
    assert first['values'] == second['values']
    for name, gradient in one['gradients'].items():
        torch.testing.assert_close(first['gradients'][name], gradient, rtol=1e-5, atol=1e-7)
    for name, weight in one['weights'].items():
        torch.testing.assert_close(first['weights'][name], weight, rtol=1e-3, atol=1e-4)
    # 301 rows are an odd number: the shares differ in length and no row is counted twice.
    module = ClickModule(TinyModel(plain=True))
    module.load_state_dict(first['weights'])
    expected = evaluate(module, PairLoader(macro_data(301, 2), 50))
    assert first['values']['logloss'] == pytest.approx(expected['logloss'], abs=1e-6)
    # Logits of equal pairs tie in one division into batches and differ by a bit in another.
    assert first['values'] == pytest.approx(expected, abs=1e-3)
    validated = [row for row in rows(tmp_path / 'two') if row['val_auc']]
    best = max(validated, key=lambda row: float(row['val_auc']))
    assert float(best['val_gauc']) == pytest.approx(first['values']['gauc'], abs=1e-9)
    assert [row['step'] for row in rows(tmp_path / 'two')] == [
        row['step'] for row in rows(tmp_path / 'one')
    ]


def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    arguments = ('--processes', '2', '--max-epochs', '2', '--validate-every', '5')
    run(tmp_path / 'whole', *arguments)
    output = run(tmp_path / 'failed', *arguments, '--fail-at', '17', returncode=1)
    assert 'failed on purpose' in output
    output = run(tmp_path / 'failed', *arguments)
    assert 'step 15\n' not in output
    assert_same_run(tmp_path / 'failed', tmp_path / 'whole')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
def test_gpu(tmp_path: Path, precision: str) -> None:
    module, values = train(
        str(tmp_path), max_epochs=6, accelerator='gpu', devices=1, precision=precision
    )
    assert values['auc'] > 0.7
    assert evaluate(module.cpu(), PairLoader(macro_data(301, 2), 50)) == pytest.approx(
        values, abs=1e-3
    )


def good(**arguments: Any) -> dict[str, Any]:
    loader = PairLoader(macro_data(50, 1), 20)
    return {
        'module': ClickModule(TinyModel()),
        'train_loader': loader,
        'val_loader': loader,
        'accelerator': 'cpu',
        'progress': False,
        **arguments,
    }


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'module': TinyModel()}, TypeError, r'got TinyModel: wrap.*ClickModule\(model'),
        ({'max_epochs': 0}, ValueError, 'max_epochs must be a whole number of .* but got 0'),
        ({'max_epochs': 1.5}, ValueError, 'max_epochs .* but got 1.5'),
        ({'patience': 0}, ValueError, 'patience must be .* but got 0'),
        ({'log_every_n_steps': 0}, ValueError, 'log_every_n_steps must be .* but got 0'),
        ({'validate_every': 0}, ValueError, 'validate_every must be .* but got 0'),
        (
            {'validate_every': 7, 'max_epochs': 2},
            ValueError,
            'validate_every=7 is more than the 6 steps of 2 epochs of 3',
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
        ({'use_distributed_sampler': True}, TypeError, r"fit sets \['use_distributed_sampler'\]"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        fit(**good(**arguments), directory=str(tmp_path))


def test_bad_models() -> None:
    with pytest.raises(TypeError, match=r'torch.nn.Module, but got str'):
        ClickModule('model')  # type: ignore[arg-type]
    for learning_rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f'learning_rate must be .* but got {learning_rate}'):
            ClickModule(TinyModel(), learning_rate=learning_rate)
    with pytest.raises(ValueError, match='weight_decay must be at least 0, but got -1'):
        ClickModule(TinyModel(), weight_decay=-1)


def test_bad_batches() -> None:
    labelled = pairs([0, 0], [1.0, 0.0], 2)
    unlabelled = DataLoader([next(iter(labelled))._replace(label=None)], batch_size=None)
    module = ClickModule(Scores(torch.tensor([[1.0], [0.0]])))
    for call, sentence in (
        (lambda: evaluate(module, unlabelled), 'need labels, but batch.label is None'),
        (lambda: module.loss(next(iter(unlabelled))), 'need labels, but batch.label is None'),
        (lambda: evaluate(module, labelled), r'shape \[2\] like batch.label, .* \[2, 1\]'),
        (lambda: module.loss(next(iter(labelled))), r'Scores must .* \[2\] .* returned \[2, 1\]'),
        (lambda: evaluate(module, DataLoader([])), 'the loader yielded no batch'),
        (
            lambda: evaluate(Scores(torch.tensor([0.0, math.nan])), labelled),
            '1 NaN among 2 predictions',
        ),
        (
            lambda: evaluate(Scores(torch.ones(2)), pairs([0, 0], [1.0, 1.0], 2)),
            'no group with both classes',
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
