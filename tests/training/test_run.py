import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.files import read_tensors
from mag.training.run import Run, random_state, set_random_states


class Fabric:
    r"""Stands for one process that logs nowhere else."""

    world_size, global_rank, is_global_zero = 1, 0, True
    loggers: list[Any] = []

    def __init__(self) -> None:
        self.strategy = self.precision = self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def barrier(self) -> None:
        pass

    def log_dict(self, values: dict[str, float], step: int) -> None:
        pass


def log(run: Run, step: int, **values: float) -> None:
    run.step = step
    run.log(Fabric(), values)


def save(run: Run) -> None:
    model = torch.nn.Linear(1, 1)
    run.save_last(Fabric(), model, torch.optim.SGD(model.parameters()), None)  # type: ignore[arg-type]


def started(directory: Path, resume: bool = True) -> Run:
    run = Run(str(directory), {}, resume)
    run.start(Fabric(), 10)
    return run


def test_rows_of_one_step_merge_and_columns_grow(tmp_path: Path) -> None:
    run = started(tmp_path)
    log(run, 3, loss=0.5)
    save(run)
    log(run, 6, loss=0.25)
    log(run, 6, auc=0.75)
    save(run)
    text = (tmp_path / 'metrics.csv').read_text()
    assert text.split() == ['step,loss,auc', '3,0.5,', '6,0.25,0.75']


def test_a_resumed_log_goes_on_after_the_rows_of_the_checkpoint(tmp_path: Path) -> None:
    run = started(tmp_path)
    for step in (1, 2):
        log(run, step, loss=step / 8)
    save(run)
    log(run, 3, loss=9.0)
    run = started(tmp_path)
    assert run.step == 2
    log(run, 2, auc=0.5)
    log(run, 3, loss=1.0)
    save(run)
    text = (tmp_path / 'metrics.csv').read_text()
    assert text.split() == ['step,loss,auc', '1,0.125,', '2,0.25,0.5', '3,1.0,']


@pytest.mark.parametrize('resume', [True, False])
def test_what_a_run_without_a_checkpoint_left_is_deleted(tmp_path: Path, resume: bool) -> None:
    (tmp_path / 'metrics.csv').write_text('step,loss\n1,0.5\n')
    (tmp_path / 'tensorboard').mkdir()
    (tmp_path / 'notes.txt').write_text('mine')
    run = started(tmp_path, resume)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
    log(run, 1, auc=0.5)
    save(run)
    assert (tmp_path / 'metrics.csv').read_text().split() == ['step,auc', '1,0.5']


class Unwritable:
    def __reduce__(self) -> str:
        raise RuntimeError('failed on purpose')


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.step = 3
    save(run)
    run.step, run.config['bad'] = 4, Unwritable()
    with pytest.raises(RuntimeError, match='failed on purpose'):
        save(run)
    assert read_tensors(tmp_path / 'last.ckpt')['step'] == 3
    del run.config['bad']
    save(run)
    last = read_tensors(tmp_path / 'last.ckpt')
    assert last['step'] == 4
    assert last['config'] == {'batches per epoch': 10, 'processes': 1}


def test_best_counts_what_was_waited() -> None:
    run = Run('nowhere', {}, resume=False)
    assert [run.is_better(value) for value in (0.5, 0.5, 0.4, 0.6, 0.1)] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert (run.best, run.waited) == (0.6, 1)


def draw() -> list[float]:
    # An odd number of normal draws leaves half a pair in NumPy's state.
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    draw()
    torch.save(random_state(), tmp_path / 'state.pt')
    expected = draw()
    assert draw() != expected
    set_random_states(torch.load(tmp_path / 'state.pt', weights_only=True))
    assert draw() == expected
