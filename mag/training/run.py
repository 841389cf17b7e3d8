import csv
import errno
import math
import os
import random
import shutil
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mag.files import full_disk, read_tensors, remove_leftovers, replacing, write_tensors
from mag.fingerprint import check_same_config
from mag.training.task import Task

SECONDS_BETWEEN_CHECKPOINTS = 60.0

FILES = ('last.ckpt', 'best.ckpt', 'metrics.csv')


class Run:
    r"""A run on disk: :obj:`last.ckpt`, from which it resumes, :obj:`best.ckpt`, the weights of the
    best validation so far, and :obj:`metrics.csv`, which is written whole each time and never read:
    the last checkpoint holds its rows.

    Args:
        directory (str): Where these files are.
        config (dict): The settings that a resumed run must share, which each checkpoint holds.
        resume (bool): If set to :obj:`False`, a run that is there is not looked at.

    Attributes:
        saved (dict or None): The last checkpoint of the run to resume.
        step (int): The steps made so far.
        best (float): The best value so far, negative where smaller is better.
        waited (int): The validations since then.
        rows (list[dict]): The log so far, a row a step.

    Raises:
        ValueError: If the run that is there was started with other settings, or has a missing,
            damaged or foreign checkpoint.
    """

    def __init__(self, directory: str, config: dict[str, Any], resume: bool) -> None:
        self.directory = directory
        self.config = config
        self.saved: dict[str, Any] | None = None
        self.step, self.best, self.waited = 0, -math.inf, 0
        self.rows: list[dict[str, Any]] = []
        for name in FILES:
            remove_leftovers(self.path(name))
        if resume and os.path.exists(self.path('last.ckpt')):
            saved = self.saved = self._read('last.ckpt')
            self.step, self.best, self.waited = saved['step'], saved['best'], saved['waited']
            self.rows = saved['rows']
            # A run that was killed before its first validation has no best weights yet.
            if self.best > -math.inf:
                self._read('best.ckpt')

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def start(self, fabric: Any, num_batches: int) -> None:
        r"""Adds to the settings what is known only where there are processes, and deletes what is
        left of a run that is not resumed."""
        self.config |= {'batches per epoch': num_batches, 'processes': fabric.world_size}
        self._time_saved = time.monotonic()
        if self.saved is not None:
            check_same_config(self.saved['config'], self.config, self.directory)
        elif fabric.is_global_zero:
            for name in FILES:
                if os.path.exists(self.path(name)):
                    os.remove(self.path(name))
            shutil.rmtree(self.path('tensorboard'), ignore_errors=True)

    def loggers(self) -> list[Any]:
        r"""A log for TensorBoard, if it is installed."""
        if find_spec('tensorboard') is None:
            return []
        from lightning.fabric.loggers import TensorBoardLogger

        # TensorBoard drops what a killed run wrote after its last checkpoint.
        purge_step = None if self.saved is None else self.step + 1
        return [TensorBoardLogger(self.directory, '', 'tensorboard', purge_step=purge_step)]

    def log(self, fabric: Any, values: Mapping[str, float]) -> None:
        r"""Adds values to the row of this step, and to what else logs."""
        if not self.rows or self.rows[-1]['step'] != self.step:
            self.rows.append({'step': self.step})
        self.rows[-1].update(values)
        try:
            fabric.log_dict(values, self.step)
        except ValueError as error:
            # That of a thread of TensorBoard's, in other words.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENOSPC:
                raise
            raise full_disk(self.directory, self.path('tensorboard')) from error

    def is_better(self, value: float) -> bool:
        r"""Whether a validation is the best so far; else the run has waited one longer."""
        if value > self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def is_due(self) -> bool:
        return time.monotonic() - self._time_saved > SECONDS_BETWEEN_CHECKPOINTS

    def save_best(self, fabric: Any, task: Task) -> None:
        if fabric.is_global_zero:
            best = {'state_dict': task.state_dict(), 'step': self.step, 'config': self.config}
            write_tensors(best, self.path('best.ckpt'))
        fabric.barrier()

    def save_last(
        self, fabric: Any, task: Task, optimizer: Optimizer, schedule: LRScheduler | None
    ) -> None:
        random_states = [random_state()] * fabric.world_size
        if fabric.world_size > 1:
            torch.distributed.all_gather_object(random_states, random_states[0])
        if fabric.is_global_zero:
            for logger in fabric.loggers:
                logger.save()
            columns = dict.fromkeys(name for row in self.rows for name in row)
            with replacing(self.path('metrics.csv')) as path, open(path, 'w', newline='') as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(self.rows)
            last = {
                'step': self.step,
                'best': self.best,
                'waited': self.waited,
                'rows': self.rows,
                'config': self.config,
                'state_dict': task.state_dict(),
                'optimizer': optimizer.state_dict(),
                'schedule': None if schedule is None else schedule.state_dict(),
                'precision': fabric.strategy.precision.state_dict(),
                'random_states': random_states,
            }
            write_tensors(last, self.path('last.ckpt'))
        self._time_saved = time.monotonic()
        fabric.barrier()

    def restore(
        self, fabric: Any, task: Task, optimizer: Optimizer, schedule: LRScheduler | None
    ) -> None:
        if self.saved is None:
            return
        task.load_state_dict(self.saved['state_dict'])
        optimizer.load_state_dict(self.saved['optimizer'])
        if schedule is not None:
            schedule.load_state_dict(self.saved['schedule'])
        fabric.strategy.precision.load_state_dict(self.saved['precision'])
        self.restore_random_states(fabric)

    def restore_random_states(self, fabric: Any) -> None:
        if self.saved is not None:
            set_random_states(self.saved['random_states'][fabric.global_rank])

    def load_weights(self, name: str, task: Task) -> None:
        r"""Puts the weights of one of the two checkpoints into the task."""
        try:
            task.load_state_dict(self._read(name)['state_dict'])
        except RuntimeError as error:
            sentence = f'{self.path(name)!r} holds the weights of another model.'
            raise self._unreadable(sentence) from error

    def _read(self, name: str) -> dict[str, Any]:
        try:
            checkpoint = read_tensors(self.path(name))
        except FileNotFoundError:
            raise self._unreadable(f'{self.path(name)!r} is missing.') from None
        except ValueError as error:
            raise self._unreadable(str(error)) from None
        keys = {'config', 'state_dict', 'step'}
        if name == 'last.ckpt':
            keys |= {'optimizer', 'random_states', 'rows'}
        is_whole = isinstance(checkpoint, dict) and checkpoint.keys() >= keys
        if not is_whole or not isinstance(checkpoint['config'], dict):
            raise self._unreadable(f'{self.path(name)!r} is no checkpoint that fit wrote.')
        check_same_config(checkpoint['config'], self.config, self.directory)
        return checkpoint

    def _unreadable(self, sentence: str) -> ValueError:
        return ValueError(
            f'{sentence} Choose another directory, or pass resume=False to start over there.'
        )


def random_state() -> dict[str, Any]:
    r"""The states of the global generators of Python, NumPy and torch, in plain types."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        'python': random.getstate(),
        'numpy': (name, np.asarray(keys).tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(state: dict[str, Any]) -> None:
    r"""Puts back what :func:`random_state` returned."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
