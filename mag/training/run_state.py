r"""Checkpoints of a training run, from which it resumes exactly."""

import math
import os
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader

from mag.training.csv_log import CSVLog
from mag.training.random_states import random_state, set_random_states
from mag.training.run_config import check_same_config

SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Interrupted(Exception):
    r"""Raised inside the trainer, after a checkpoint, when the user has asked to stop."""


class RunState(Checkpoint):
    r"""Keeps :obj:`last.ckpt`, from which a run resumes, and :obj:`best.ckpt`, the weights of the
    best validation so far, and stops the run when validation no longer improves.

    :obj:`last.ckpt` is written after each validation and, between validations, about once a
    minute. Beside what Lightning puts there (weights, optimizer, counters) it holds the states of
    the random number generators of every process and of early stopping. Metrics need no place in
    it: they start empty at each validation.

    Args:
        directory (str): Where the checkpoints go.
        monitor (str): The logged name of the validation metric.
        mode (str): :obj:`"max"` or :obj:`"min"`, what is better.
        patience (int): Stop after this many validations without a better value.
        config (dict): Settings that a resumed run must share.
        train_loader (DataLoader): The loader whose sampler is put back to its place in the data.
        validate_every (int or None): Steps between validations, checked against the loader.
        log_every_n_steps (int): Steps between which no checkpoint is written but for validation.
        csv_log (CSVLog): The log, of which each checkpoint holds the rows up to it.
        saved (dict or None): The state of the run to resume, as :meth:`state_dict` made it, with
            its :obj:`config`.

    Raises:
        ValueError: At the start of training, if it would never validate, or if the run to resume
            had other settings.
    """

    def __init__(
        self,
        directory: str,
        monitor: str,
        mode: str,
        patience: int,
        config: dict[str, Any],
        train_loader: DataLoader,
        validate_every: int | None,
        log_every_n_steps: int,
        csv_log: CSVLog,
        saved: dict[str, Any] | None,
    ) -> None:
        self.directory = directory
        self.monitor = monitor
        self.sign = 1.0 if mode == 'max' else -1.0
        self.patience = patience
        self.config = config
        self.train_loader = train_loader
        self.validate_every = validate_every
        self.log_every_n_steps = log_every_n_steps
        self.csv_log = csv_log
        self.saved = saved
        self.best = -math.inf if saved is None else saved['best']
        self.waited = 0 if saved is None else saved['waited']
        self.interrupted = False
        self._trainer: Trainer
        self._batches_saved = 0 if saved is None else saved['batches']
        self._time_saved = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not before: the loader's share of the data depends on the process group, which now exists.
        self._trainer = trainer
        batches_per_epoch = len(self.train_loader)
        # In place: every checkpoint holds them.
        self.config |= {
            'batches per epoch': batches_per_epoch,
            'processes': trainer.world_size,
        }
        total = (trainer.max_epochs or 0) * batches_per_epoch
        if self.validate_every is not None and self.validate_every > total:
            raise ValueError(
                f'validate_every={self.validate_every} is more than the {total} steps of '
                f'{trainer.max_epochs} epochs of {batches_per_epoch}: the model would never be '
                f'validated.'
            )
        batches = 0
        if self.saved is not None:
            check_same_config(self.saved['config'], self.config, self.directory)
            batches = self.saved['batches']
        # Lightning makes its first iterator before it tells the sampler the epoch.
        sampler: Any = self.train_loader.sampler
        sampler.set_epoch(batches // batches_per_epoch)
        sampler.skip = batches % batches_per_epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time_saved = time.monotonic()
        if self.saved is not None:
            # Only now: making the iterators of the loaders has drawn from the generators.
            set_random_states(self.saved['random'][trainer.global_rank])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = self._batches(trainer)
        if batches % self.log_every_n_steps != 0:
            return
        # Lightning would resume after the validation that is due, without running it.
        if batches % trainer.num_training_batches == 0:
            return
        if self.validate_every is not None and batches % self.validate_every == 0:
            return
        due = self.interrupted or time.monotonic() - self._time_saved > SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.broadcast(due):
            self._save_last(trainer)
            self._raise_if_interrupted(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f'The run is to stop by {self.monitor!r}, but a validation of this model gives '
                f'{sorted(name for name in trainer.callback_metrics if name.startswith("val_"))}.'
            )
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        if value > self.best:
            self.best = value
            self.waited = 0
            trainer.save_checkpoint(os.path.join(self.directory, 'best.ckpt'), weights_only=True)
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.patience
        self._save_last(trainer)
        self._raise_if_interrupted(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batches_saved < self._batches(trainer):
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        own = random_state()
        random_states = [own] * self._trainer.world_size
        if self._trainer.world_size > 1:
            torch.distributed.all_gather_object(random_states, own)
        return {
            'batches': self._batches(self._trainer),
            'batches_per_epoch': len(self.train_loader),
            'best': self.best,
            'waited': self.waited,
            'random': random_states,
            'log': self.csv_log.rows,
        }

    @staticmethod
    def _batches(trainer: Trainer) -> int:
        return trainer.fit_loop.total_batch_idx + 1

    def _save_last(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(os.path.join(self.directory, 'last.ckpt'))
        self._batches_saved = self._batches(trainer)
        self._time_saved = time.monotonic()

    def _raise_if_interrupted(self, trainer: Trainer) -> None:
        if trainer.strategy.broadcast(self.interrupted):
            raise Interrupted
