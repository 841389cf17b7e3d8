r"""Training and evaluation, the same for every model."""

import math
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader
from tqdm import tqdm

from mag.files import read_tensors, remove_leftovers, require_local
from mag.metrics import click_metrics
from mag.schema import require_booleans, require_integers, require_positive_integers
from mag.training.atomic_checkpoint_io import AtomicCheckpointIO
from mag.training.click_module import ClickModule, score
from mag.training.csv_log import CSVLog
from mag.training.loss_log import LossLog
from mag.training.run_config import check_same_config, describe_loader
from mag.training.run_state import Interrupted, RunState

__all__ = ['ClickModule', 'evaluate', 'fit']

MONITORS = {
    'auc': 'max',
    'gauc': 'max',
    'logloss': 'min',
    'cvr_auc': 'max',
    'cvr_mse': 'min',
    'cvr_calibration_error': 'min',
    'ctcvr_auc': 'max',
    'ctcvr_gauc': 'max',
    'ctcvr_mse': 'min',
    'ctcvr_calibration_error': 'min',
}

RUN_FILES = ('last.ckpt', 'best.ckpt', 'metrics.csv')

# Arguments of the Trainer that fit sets itself, and those with which a run would count its steps
# wrongly, pass over early stopping, or end without a checkpoint or a validation.
TAKEN_ARGUMENTS = {
    'accumulate_grad_batches',
    'barebones',
    'check_val_every_n_epoch',
    'default_root_dir',
    'enable_checkpointing',
    'enable_model_summary',
    'enable_progress_bar',
    'fast_dev_run',
    'limit_train_batches',
    'limit_val_batches',
    'max_steps',
    'max_time',
    'min_epochs',
    'min_steps',
    'num_sanity_val_steps',
    'overfit_batches',
    'use_distributed_sampler',
    'val_check_interval',
}


def fit(
    module: ClickModule,
    train_loader: DataLoader,
    val_loader: DataLoader,
    *,
    directory: str | os.PathLike[str],
    max_epochs: int = 20,
    patience: int = 5,
    seed: int = 0,
    validate_every: int | None = None,
    log_every_n_steps: int = 50,
    monitor: str = 'auc',
    resume: bool = True,
    progress: bool = True,
    **trainer_arguments: Any,
) -> ClickModule:
    r"""Trains until validation no longer improves, and returns the module with its best weights.

    A run that was killed, at any point, goes on when :func:`fit` is called again with the same
    arguments, and ends as if it had not been: on a CPU with the same weights to the last bit. A
    run that has finished is not trained again; its best weights are loaded. With a larger
    :obj:`max_epochs` or :obj:`patience` it goes on, as if it had not ended if its end was a
    validation; if :obj:`validate_every` does not divide the steps of the former :obj:`max_epochs`,
    its logs have a row more, for the training loss at the former end, and dropout draws other
    numbers from there on. Ctrl-C stops at the next step whose loss is logged, after writing a
    checkpoint; pressed twice it stops at once, and the checkpoint before stays.

    The same arguments are, of a loader, the same number and order of rows, and the same tensors and
    NumPy arrays in the attributes of its dataset, also within lists, tuples, dictionaries and
    further datasets; what else a dataset holds is not compared. The same model says the same of
    itself, has parameters of the same shapes, and the same tensors in buffers that are not saved,
    such as features and hypergraphs.

    In :obj:`directory` are :obj:`last.ckpt`, from which to resume, :obj:`best.ckpt`, the weights
    that are returned, :obj:`metrics.csv` and :obj:`tensorboard/`. Steps in the logs count from one.

    Args:
        module (ClickModule): The model to train. Its first weights are the caller's: call
            :func:`lightning.seed_everything` before building the model.
        train_loader (DataLoader): A loader whose :obj:`sampler` has :obj:`set_epoch` and
            :obj:`skip`, as that of :class:`~mag.loader.PairLoader`, and takes a process's share
            where there are several.
        val_loader (DataLoader): A loader of the rows to validate on.
        directory (str or os.PathLike): Where checkpoints and logs go.
        max_epochs (int, optional): At most this many passes over the training rows.
            (default: :obj:`20`)
        patience (int, optional): Stop after this many validations without a better value.
            (default: :obj:`5`)
        seed (int, optional): Seed of the generators of Python, NumPy and torch during training
            (dropout). The order of the data is the loader's. (default: :obj:`0`)
        validate_every (int, optional): Steps between validations; :obj:`None` validates after each
            epoch. (default: :obj:`None`)
        log_every_n_steps (int, optional): Steps between logged training losses.
            (default: :obj:`50`)
        monitor (str, optional): The validation metric to stop and select by, one of those that
            :func:`evaluate` returns. (default: :obj:`"auc"`)
        resume (bool, optional): If set to :obj:`False`, a run that :obj:`directory` holds is
            deleted, not resumed. (default: :obj:`True`)
        progress (bool, optional): If set to :obj:`False`, no progress bar is shown.
            (default: :obj:`True`)
        **trainer_arguments (optional): Further arguments of :class:`lightning.Trainer`, such as
            :obj:`accelerator`, :obj:`devices` (one unless given) or :obj:`precision="bf16-mixed"`.

    Raises:
        TypeError: If :obj:`module` is no :class:`ClickModule`, a loader cannot be resumed, or
            :obj:`trainer_arguments` holds what :func:`fit` sets itself.
        ValueError: If a number or :obj:`monitor` is out of range, a loader is empty,
            :obj:`directory` is a file, or the run in it was started with other settings or has a
            missing, damaged or foreign checkpoint.
        OSError: If the disk is full.
        FloatingPointError: If the loss becomes NaN or infinite, with step and learning rate.
        KeyboardInterrupt: After Ctrl-C.
    """
    _check_arguments(module, train_loader, val_loader, monitor, trainer_arguments)
    require_positive_integers(
        max_epochs=max_epochs,
        patience=patience,
        log_every_n_steps=log_every_n_steps,
        validate_every=1 if validate_every is None else validate_every,
    )
    require_integers(0, seed=seed)
    if seed >= 2**32:
        raise ValueError(f"'seed' must lie below 2**32, but got {seed}.")
    require_booleans(resume=resume, progress=progress)
    directory = _checked_directory(directory)
    os.makedirs(directory, exist_ok=True)
    last, best = (os.path.join(directory, name) for name in ('last.ckpt', 'best.ckpt'))
    config = {
        'learning_rate': module.learning_rate,
        'weight_decay': module.weight_decay,
        'seed': seed,
        'validate_every': validate_every,
        'monitor': monitor,
        'precision': str(trainer_arguments.get('precision', '32-true')),
        **module.description,
        'train_loader': describe_loader(train_loader),
        'val_loader': describe_loader(val_loader),
    }
    saved, finished = None, False
    for name in RUN_FILES:
        remove_leftovers(os.path.join(directory, name))
    if resume and os.path.exists(last):
        checkpoint = _read(last, 'callbacks', 'config')
        saved = _state_of_run(last, checkpoint)
        check_same_config(saved['config'], config, directory)
        # A run that was killed before its first validation has no best weights yet.
        if saved['best'] > -math.inf:
            check_same_config(_read(best, 'state_dict', 'config')['config'], config, directory)
            finished = (
                saved['batches'] >= max_epochs * saved['batches_per_epoch']
                or saved['waited'] >= patience
            )
    else:
        # A run that was killed before its first checkpoint has left logs.
        _delete_run(directory)
    if not finished:
        seed_everything(seed, workers=True, verbose=False)
        log = CSVLog(os.path.join(directory, 'metrics.csv'), () if saved is None else saved['log'])
        state = RunState(
            directory, f'val_{monitor}', MONITORS[monitor], patience, config, train_loader,
            validate_every, log_every_n_steps, log, saved,
        )  # fmt: skip
        trainer = _trainer(
            directory, max_epochs, validate_every, log_every_n_steps, progress, state, log,
            None if saved is None else saved['batches'], trainer_arguments,
        )  # fmt: skip
        with _gentle_interrupt(state), warnings.catch_warnings():
            # PairLoader makes a batch faster than a worker could send it.
            warnings.filterwarnings('ignore', '.*does not have many workers.*')
            # RunState puts the loader back to its place.
            warnings.filterwarnings('ignore', '.*your dataloader is not resumable.*')
            warnings.filterwarnings('ignore', '.*is smaller than the logging interval.*')
            module.train()
            try:
                trainer.fit(module, train_loader, val_loader, ckpt_path=last if saved else None)
            except Interrupted:
                raise KeyboardInterrupt(
                    f'Training was interrupted. Call fit again to go on from {last}.'
                ) from None
    try:
        module.load_state_dict(_read(best, 'state_dict')['state_dict'])
    except RuntimeError as error:
        raise _unreadable(f'{best!r} holds the weights of another model.') from error
    return module


def evaluate(
    module: torch.nn.Module, loader: DataLoader, progress: bool = False
) -> dict[str, float]:
    r"""The metrics of a model: AUC, GAUC and log loss of clicks, and those of conversions where it
    predicts them, see :func:`mag.metrics.click_metrics`.

    Where a process group exists, each process scores its share, and all return the values of the
    whole.

    Args:
        module (torch.nn.Module): A :class:`ClickModule` or the model itself. It is scored in the
            precision of its weights, on their device.
        loader (DataLoader): A loader of labelled batches.
        progress (bool, optional): If set to :obj:`True`, a progress bar is shown.
            (default: :obj:`False`)

    Returns:
        The values under :obj:`"auc"`, :obj:`"gauc"`, :obj:`"logloss"`, and of conversions
        :obj:`"cvr_auc"`, :obj:`"ctcvr_auc"` and so on.

    Raises:
        ValueError: If the loader is empty or unlabelled, a logit is NaN or infinite, or no user has
            both classes.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device('cpu'))
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            outputs = [
                score(module, move_data_to_device(batch, device))
                for batch in tqdm(loader, 'evaluate', disable=not progress)
            ]
            return click_metrics(outputs, device)
    finally:
        module.train(training)


def _checked_directory(directory: Any) -> str:
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"'directory' must be a path, but got {directory!r}.")
    require_local('directory', directory)
    directory = os.path.abspath(directory)
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f"'directory' must be a directory, but {directory!r} is a file.")
    return directory


def _check_arguments(
    module: ClickModule,
    train_loader: DataLoader,
    val_loader: DataLoader,
    monitor: str,
    trainer_arguments: dict[str, Any],
) -> None:
    if not isinstance(module, ClickModule):
        raise TypeError(
            f'fit trains a ClickModule, but got {type(module).__name__}: '
            f'wrap the model, as in ClickModule(model, learning_rate=1e-2).'
        )
    if monitor not in MONITORS:
        raise ValueError(f"'monitor' must be one of {tuple(MONITORS)}, but got {monitor!r}.")
    sampler = getattr(train_loader, 'sampler', None)
    if not (hasattr(sampler, 'set_epoch') and hasattr(sampler, 'skip')):
        raise TypeError(
            f'fit needs a train_loader that can be resumed, with a sampler that has set_epoch and '
            f'skip, such as mag.loader.PairLoader, but got {type(train_loader).__name__} with the '
            f'sampler {type(sampler).__name__}.'
        )
    for name, loader in (('train_loader', train_loader), ('val_loader', val_loader)):
        if len(loader) == 0:
            raise ValueError(f'{name} is empty: it has no batches.')
    callbacks = trainer_arguments.get('callbacks') or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"'callbacks' must be a list of lightning.Callback, but it holds {callback!r}."
            )
    taken = sorted(TAKEN_ARGUMENTS & trainer_arguments.keys())
    if taken:
        raise TypeError(f'fit sets {taken} of the Trainer itself; they cannot be passed.')


def _read(path: str, *keys: str) -> dict[str, Any]:
    r"""A checkpoint that has all :obj:`keys`."""
    try:
        checkpoint = read_tensors(path)
    except FileNotFoundError:
        raise _unreadable(f'{path!r} is missing.') from None
    except ValueError as error:
        raise _unreadable(str(error)) from None
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= set(keys):
        raise _unreadable(f'{path!r} is no checkpoint that fit wrote.')
    return checkpoint


def _state_of_run(path: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
    r"""What :class:`RunState` put into a checkpoint."""
    state = checkpoint['callbacks'].get(RunState.__qualname__)
    if state is None:
        raise _unreadable(f'{path!r} is no checkpoint that fit wrote.')
    return {**state, 'config': checkpoint['config']}


def _unreadable(sentence: str) -> ValueError:
    return ValueError(
        f'{sentence} Choose another directory, or pass resume=False to start over there.'
    )


def _trainer(
    directory: str,
    max_epochs: int,
    validate_every: int | None,
    log_every_n_steps: int,
    progress: bool,
    state: RunState,
    log: CSVLog,
    last_step: int | None,
    trainer_arguments: dict[str, Any],
) -> Trainer:
    loggers = [
        log,
        TensorBoardLogger(
            directory,
            name='',
            version='tensorboard',
            default_hp_metric=False,
            # TensorBoard drops what a killed run wrote after its last checkpoint.
            purge_step=None if last_step is None else last_step + 1,
        ),
    ]
    callbacks: list[Callback] = [LossLog(log_every_n_steps), state]
    if progress:
        # Drawing the bar each step would take as long as a small step itself.
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    arguments = {
        'logger': loggers,
        'devices': 1,
        **trainer_arguments,
        'callbacks': [*(trainer_arguments.get('callbacks') or []), *callbacks],
        'plugins': [*(trainer_arguments.get('plugins') or []), AtomicCheckpointIO(state.config)],
    }
    return Trainer(
        max_epochs=max_epochs,
        default_root_dir=directory,
        val_check_interval=validate_every or 1.0,
        check_val_every_n_epoch=1 if validate_every is None else None,
        log_every_n_steps=log_every_n_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        **arguments,
    )


@rank_zero_only
def _delete_run(directory: str) -> None:
    for name in RUN_FILES:
        if os.path.exists(os.path.join(directory, name)):
            os.remove(os.path.join(directory, name))
    shutil.rmtree(os.path.join(directory, 'tensorboard'), ignore_errors=True)


@contextmanager
def _gentle_interrupt(state: RunState) -> Iterator[None]:
    r"""Ctrl-C lets the run write a checkpoint first; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        if state.interrupted:
            raise KeyboardInterrupt
        state.interrupted = True

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
