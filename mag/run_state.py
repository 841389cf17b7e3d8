r"""Checkpoints of a training run, from which it resumes exactly."""

import difflib
import math
import os
import random
import re
import time
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader

SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Interrupted(Exception):
    r"""Raised inside the trainer, after a checkpoint, when the user has asked to stop."""


class AtomicCheckpointIO(TorchCheckpointIO):
    r"""Writes a checkpoint beside its destination and renames it, so that a kill leaves the old
    checkpoint or the new one. (Lightning writes to the system's temporary folder and moves the
    file, which is a copy, not a rename, if that folder is on another file system.)"""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        temporary = f'{path}.tmp'
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)


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
        saved (dict or None): The state of the run to resume, as :meth:`state_dict` made it.

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
        self.config = {
            **self.config,
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
        random_states = [random_state()] * self._trainer.world_size
        if self._trainer.world_size > 1:
            torch.distributed.all_gather_object(random_states, random_state())
        return {
            'config': self.config,
            'batches': self._batches(self._trainer),
            'batches_per_epoch': len(self.train_loader),
            'best': self.best,
            'waited': self.waited,
            'random': random_states,
        }

    @staticmethod
    def _batches(trainer: Trainer) -> int:
        return trainer.fit_loop.total_batch_idx + 1

    def _save_last(self, trainer: Trainer) -> None:
        # Before the checkpoint: a resumed run keeps the rows up to it and no others.
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(os.path.join(self.directory, 'last.ckpt'))
        self._batches_saved = self._batches(trainer)
        self._time_saved = time.monotonic()

    def _raise_if_interrupted(self, trainer: Trainer) -> None:
        if trainer.strategy.broadcast(self.interrupted):
            raise Interrupted


def check_same_config(saved: dict[str, Any], config: dict[str, Any], directory: str) -> None:
    r"""Raises if a run was started with other settings.

    Raises:
        ValueError: Names each setting that differs, with both values.
    """
    differences = []
    for name in [name for name in config if name in saved and saved[name] != config[name]]:
        if name == 'model':
            lines = difflib.ndiff(saved[name].splitlines(), config[name].splitlines())
            words = {'-': 'there', '+': 'here'}
            differences += [
                f'the model has {line[2:].strip()} {words[line[0]]}'
                for line in lines
                if line[0] in words
            ]
        elif name == 'parameters':
            for key in sorted(saved[name].keys() | config[name].keys()):
                there, here = saved[name].get(key, 'missing'), config[name].get(key, 'missing')
                if there != here:
                    differences.append(f'parameter {key} is {there} there, {here} here')
        else:
            differences.append(f'{name} is {saved[name]} there, {config[name]} here')
    if differences:
        raise ValueError(
            f'The run in {directory} was started with other settings: {"; ".join(differences)}. '
            f'Choose another directory, or pass resume=False to start over there.'
        )


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    r"""What :func:`check_same_config` compares of a model."""
    return {
        # Addresses of functions differ between processes.
        'model': re.sub(r' at 0x[0-9a-f]+', '', repr(model)),
        'parameters': {name: list(value.shape) for name, value in model.state_dict().items()},
    }


def random_state() -> dict[str, Any]:
    r"""The states of the global generators of Python, NumPy and torch, in plain types, which
    :func:`torch.load` reads with :obj:`weights_only=True`."""
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
