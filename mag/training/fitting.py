r"""Fits a task: what a run is, whether it goes on, and where it ends."""

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from mag.checks import check_booleans, check_choice, check_integers
from mag.files import require_local
from mag.fingerprint import describe_loader, describe_task
from mag.lineage import require_ids_of
from mag.training.loop import HOOKS, train
from mag.training.run import Run
from mag.training.task import Task


def fit(
    task: Task,
    train_loader: DataLoader,
    val_loader: DataLoader | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    max_epochs: int = 20,
    patience: int = 5,
    seed: int = 0,
    validate_every: int | None = None,
    log_every_n_steps: int = 50,
    monitor: str = 'auc',
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    **fabric_arguments: Any,
) -> Task:
    r"""Trains until validation no longer improves, and returns the task with its best weights; or,
    without validation, for all epochs, and returns it with its last.

    A run that was killed, at any point, goes on when :func:`fit` is called again with the same
    arguments, and ends as if it had not been: on a CPU with the same weights to the last bit. A run
    that has finished is not trained again: a warning says so, and its weights are loaded. With a
    larger :obj:`max_epochs` or :obj:`patience` it goes on, as if it had not ended; only if
    :obj:`validate_every` does not divide the steps of the former :obj:`max_epochs` have its logs a
    row more, for the training loss at the former end. Ctrl-C stops at the next step whose loss is
    logged, after writing a checkpoint; pressed twice it stops at once.

    The same arguments are, of a loader, the same number and order of rows, and the same tensors and
    NumPy arrays in the attributes of its dataset, also within lists, tuples, dictionaries and
    further datasets; what else a dataset holds is not compared. The same task has the same first
    weights, says the same of itself and has the same tensors in buffers that are not saved, the
    same attributes and the same losses, see :class:`Task`.

    In :obj:`directory` are :obj:`last.ckpt`, from which to resume, :obj:`best.ckpt`, the best
    weights, :obj:`metrics.csv` and, where TensorBoard is installed, :obj:`tensorboard/`. Steps in
    the logs count from one.

    Args:
        task (Task): What to train, such as :obj:`ClickTask(model)`. Its first weights are the
            caller's: call :func:`lightning.seed_everything` before building the model. Afterwards
            it is on the device where it was.
        train_loader (DataLoader): A loader whose :obj:`sampler` has :obj:`set_epoch` and
            :obj:`skip`, as that of :class:`~mag.loader.PairLoader`, and takes a process's share
            where there are several.
        val_loader (DataLoader, optional): A loader of the rows to validate on.
            (default: :obj:`None`)
        directory (str or os.PathLike, optional): Where checkpoints and logs go. Without one the run
            cannot be resumed, and leaves nothing. (default: :obj:`None`)
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
        monitor (str, optional): The validation metric to stop and select by, one of
            :obj:`task.modes`, which also says what is better. (default: :obj:`"auc"`)
        resume (bool, optional): If set to :obj:`False`, a run that :obj:`directory` holds is
            deleted, not resumed. (default: :obj:`True`)
        progress (bool, optional): If set to :obj:`False`, no progress bar is shown.
            (default: :obj:`True`)
        callbacks (list, optional): Objects with some of the methods that :obj:`HOOKS` names, which
            are called with what it says they may take. (default: :obj:`()`)
        **fabric_arguments (optional): Further arguments of :class:`lightning.fabric.Fabric`, such
            as :obj:`accelerator`, :obj:`devices` (one unless given), :obj:`loggers` or
            :obj:`precision="bf16-mixed"`.

    Raises:
        TypeError: If :obj:`task` is no :class:`Task`, a loader cannot be resumed, or an argument
            has another type or is unknown.
        ValueError: If a number or :obj:`monitor` is out of range, a loader is empty, all rows to
            train on are clicks or none is where the task learns clicks, a model was built for
            another log than a loader has, or has not grown with it, :obj:`directory` is a file or
            is missing where there are several processes, or the run in it was started with other
            settings or has a missing, damaged or foreign checkpoint.
        OSError: If the disk is full.
        FloatingPointError: If the loss becomes NaN or infinite, with step and learning rate.
        KeyboardInterrupt: After Ctrl-C.
    """
    steps = {'validate_every': 1 if validate_every is None else validate_every}
    check_integers(
        1, max_epochs=max_epochs, patience=patience, log_every_n_steps=log_every_n_steps, **steps
    )
    check_integers(0, 2**32, seed=seed)
    check_booleans(resume=resume, progress=progress)
    _check_task_and_loaders(task, train_loader, val_loader)
    if val_loader is not None or task.modes:
        check_choice(task.modes, monitor=monitor)
    if val_loader is None and validate_every is not None:
        raise ValueError("'validate_every' asks for validations, but 'val_loader' is None.")
    _check_callbacks(callbacks)
    is_kept = directory is not None
    with nullcontext(directory) if is_kept else tempfile.TemporaryDirectory() as folder:
        folder = _checked_directory(folder)
        description = _description(task, folder)
        config = {
            'seed': seed,
            'validate_every': validate_every,
            'monitor': monitor,
            'precision': str(fabric_arguments.get('precision') or '32-true'),
            **description,
            'train_loader': describe_loader(train_loader),
            'val_loader': {} if val_loader is None else describe_loader(val_loader),
        }
        run = Run(folder, config, resume)
        if _is_finished(run, max_epochs, patience, val_loader):
            warnings.warn(
                f'The run in {folder} has already finished: nothing was trained, and its weights '
                f'are loaded. Pass resume=False to train anew.',
                stacklevel=2,
            )
        else:
            parameter = next(task.parameters(), torch.empty(0))
            fabric = _launch(run if is_kept else None, callbacks, fabric_arguments)
            fabric.seed_everything(seed, workers=False, verbose=False)
            try:
                train(
                    fabric, task, train_loader, val_loader, run, max_epochs, patience,
                    validate_every, log_every_n_steps, monitor, progress, is_kept,
                )  # fmt: skip
            finally:
                task.to(parameter.device)
                _remember(task, folder, description)
        run.load_weights('last.ckpt' if val_loader is None else 'best.ckpt', task)
        _remember(task, folder, description)
    return task


def _launch(run: Run | None, callbacks: Sequence[Any], arguments: dict[str, Any]) -> Any:
    # Here, because it takes longer to import than all the rest.
    from lightning.fabric import Fabric

    loggers = [*(run.loggers() if run else []), *(arguments.pop('loggers', None) or [])]
    # Fabric repeats what it was asked for, in its own log or, where it is imported, the Trainer's.
    logs = [logging.getLogger(name) for name in ('lightning.fabric', 'lightning.pytorch')]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(max(log.level, logging.WARNING))
    try:
        fabric = Fabric(**{'devices': 1, **arguments}, callbacks=[*callbacks], loggers=loggers)
        num_processes = getattr(fabric.strategy, 'num_processes', 1)
        if run is None and num_processes > 1:
            raise ValueError(
                f"{num_processes} processes need a 'directory' to share, but got None."
            )
        fabric.launch()
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)
    return fabric


def _is_finished(run: Run, max_epochs: int, patience: int, val_loader: DataLoader | None) -> bool:
    if run.saved is None or (val_loader is not None and run.best == -math.inf):
        return False
    num_steps = max_epochs * run.saved['config']['batches per epoch']
    return run.step >= num_steps or run.waited >= patience


def _description(task: Task, directory: str) -> dict[str, Any]:
    r"""What a resumed run compares of a task, as it was before its first :func:`fit` there, which
    has changed weights since, and in a precision such as :obj:`"bf16-true"` what is not saved."""
    now = describe_task(task)
    known = getattr(task, '_known', None)
    return known[2] if known is not None and known[:2] == (directory, now) else now


def _remember(task: Task, directory: str, description: dict[str, Any]) -> None:
    task._known = (directory, describe_task(task), description)  # type: ignore[assignment]


def _check_task_and_loaders(task: Any, train_loader: Any, val_loader: Any) -> None:
    if not isinstance(task, Task):
        raise TypeError(
            f'fit trains a Task, but got {type(task).__name__}: wrap the model, as in '
            f'ClickTask(model, learning_rate=1e-2).'
        )
    sampler = getattr(train_loader, 'sampler', None)
    if not (hasattr(sampler, 'set_epoch') and hasattr(sampler, 'skip')):
        raise TypeError(
            f'fit needs a train_loader that can be resumed, with a sampler that has set_epoch and '
            f'skip, such as mag.loader.PairLoader, but got {type(train_loader).__name__} with the '
            f'sampler {type(sampler).__name__}.'
        )
    if val_loader is not None and not isinstance(val_loader, DataLoader):
        raise TypeError(f"'val_loader' must be a DataLoader, but got {val_loader!r}.")
    for name, loader in (('train_loader', train_loader), ('val_loader', val_loader)):
        if loader is not None and len(loader) == 0:
            raise ValueError(f'{name} is empty: it has no batches.')
        require_ids_of(task, loader, name)
    task.check_rows(train_loader.dataset)


def _check_callbacks(callbacks: Any) -> None:
    is_list = isinstance(callbacks, (list, tuple))
    for callback in callbacks if is_list else [callbacks]:
        # A callback of Lightning's Trainer takes other arguments.
        is_foreign = hasattr(callback, 'on_fit_start')
        if not is_list or is_foreign or not any(hasattr(callback, hook) for hook in HOOKS):
            raise TypeError(
                f"'callbacks' must be a list of objects with methods such as "
                f'on_train_batch_end(step), not of lightning.Callback, but got {callback!r}.'
            )


def _checked_directory(directory: Any) -> str:
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"'directory' must be a path, but got {directory!r}.")
    require_local('directory', directory)
    directory = os.path.abspath(directory)
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f"'directory' must be a directory, but {directory!r} is a file.")
    os.makedirs(directory, exist_ok=True)
    return directory
