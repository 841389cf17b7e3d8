r"""The loop that trains any task."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from mag.training.run import Run
from mag.training.scoring import to_device
from mag.training.task import Task

# What fit calls of each callback, by keyword, as far as the callback takes it.
HOOKS = (
    'on_train_start',  # task
    'on_train_epoch_start',  # task, epoch
    'on_train_batch_start',  # task, batch
    'on_before_optimizer_step',  # task, optimizer: gradients are there
    'on_train_batch_end',  # task, step, loss
    'on_validation_batch_end',  # task
    'on_validation_end',  # task, step, values
    'on_train_epoch_end',  # task, epoch
    'on_train_end',  # task, step
)


def train(
    fabric: Any,
    task: Task,
    train_loader: DataLoader,
    val_loader: DataLoader | None,
    run: Run,
    max_epochs: int,
    patience: int,
    validate_every: int | None,
    log_every_n_steps: int,
    monitor: str,
    progress: bool,
    is_kept: bool,
) -> None:
    r"""Takes the steps of a run, on every process of :obj:`fabric`; arguments and errors are those
    of :func:`~mag.training.fit`. :obj:`is_kept` tells whether the run can be resumed."""
    # Only now: a process's share of the rows depends on the process group, which is there.
    num_batches = len(train_loader)
    num_steps = max_epochs * num_batches
    validate_every = num_batches if validate_every is None else validate_every
    if validate_every > num_steps:
        raise ValueError(
            f'validate_every={validate_every} is more than the {num_steps} steps of {max_epochs} '
            f'epochs of {num_batches}: the model would never be validated.'
        )
    run.start(fabric, num_batches)
    wrapped = fabric.setup_module(task)
    wrapped.mark_forward_method('loss')
    # Only now: the weights are on their device.
    made = task.configure_optimizers()
    optimizer, schedule = made if isinstance(made, tuple) else (made, None)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f'configure_optimizers must return an optimizer, or an optimizer and a schedule, but '
            f'{type(task).__name__} returned {made!r}.'
        )
    step_optimizer = fabric.setup_optimizers(optimizer).step
    run.restore(fabric, task, optimizer, schedule)
    sampler: Any = train_loader.sampler
    losses: list[Tensor] = []
    shown: dict[str, float] = {}
    is_shown = progress and fabric.is_global_zero

    task.train()
    fabric.call('on_train_start', task=task)
    with (
        _gentle_interrupt() as is_interrupted,
        tqdm(total=num_steps, initial=run.step, disable=not is_shown) as bar,
    ):
        while run.step < num_steps and run.waited < patience:
            epoch, skip = divmod(run.step, num_batches)
            bar.set_description(f'epoch {epoch + 1}/{max_epochs}', refresh=False)
            fabric.call('on_train_epoch_start', task=task, epoch=epoch)
            sampler.set_epoch(epoch)
            sampler.skip = skip
            batches = iter(train_loader)
            if skip:
                # Making the iterator has drawn from the generators, and had before the checkpoint.
                run.restore_random_states(fabric)
            for batch in batches:
                batch = _prepare(fabric, batch)
                fabric.call('on_train_batch_start', task=task, batch=batch)
                optimizer.zero_grad()
                with fabric.autocast():
                    loss = wrapped.loss(batch)
                fabric.backward(loss)
                fabric.call('on_before_optimizer_step', task=task, optimizer=optimizer)
                step_optimizer()
                task.after_step()
                if schedule is not None:
                    schedule.step()
                run.step += 1
                # Looking at each loss would make a GPU wait.
                losses.append(loss.detach())
                bar.update()
                fabric.call('on_train_batch_end', task=task, step=run.step, loss=losses[-1])

                validates = val_loader is not None and run.step % validate_every == 0
                ends = run.step == num_steps
                if not (validates or ends or run.step % log_every_n_steps == 0):
                    continue
                rate = optimizer.param_groups[0]['lr']
                shown['train_loss'] = _mean_loss(fabric, losses, run.step, rate)
                losses.clear()
                run.log(fabric, {'epoch': epoch, 'train_loss': shown['train_loss']})
                if validates:
                    values = _validate(fabric, task, val_loader)
                    validated = {f'val_{name}': value for name, value in values.items()}
                    shown |= validated
                    run.log(fabric, {'epoch': epoch, **validated})
                    if run.is_better(_gain(task, values, monitor)):
                        run.save_best(fabric, task)
                    fabric.call('on_validation_end', task=task, step=run.step, values=values)
                bar.set_postfix(shown, refresh=False)
                stops = fabric.broadcast(is_interrupted())
                if validates or ends or stops or fabric.broadcast(run.is_due()):
                    run.save_last(fabric, task, optimizer, schedule)
                if stops:
                    raise KeyboardInterrupt(
                        f'Training was interrupted. Call fit again to go on from '
                        f'{run.path("last.ckpt")}.'
                        if is_kept
                        else "Training was interrupted. With a 'directory' it could go on."
                    )
                if run.waited >= patience:
                    break
            fabric.call('on_train_epoch_end', task=task, epoch=epoch)
    fabric.call('on_train_end', task=task, step=run.step)
    for logger in fabric.loggers:
        logger.finalize('success')


def _validate(fabric: Any, task: Task, loader: Any) -> dict[str, float]:
    if fabric.world_size > 1:
        # Running statistics are those of the first process, which saves them.
        for buffer in task.buffers():
            torch.distributed.broadcast(buffer, 0)
    task.eval()
    with torch.inference_mode():
        scores = []
        for batch in loader:
            with fabric.autocast():
                scores.append(task.score(_prepare(fabric, batch)))
            fabric.call('on_validation_batch_end', task=task)
        values = task.measure(scores, fabric.device)
    task.train()
    return values


def _prepare(fabric: Any, batch: Any) -> Any:
    r"""A batch on the device, and in the precision, of the weights."""
    return fabric.strategy.precision.convert_input(to_device(batch, fabric.device))


def _mean_loss(fabric: Any, losses: list[Tensor], step: int, learning_rate: float) -> float:
    r"""The mean of the last losses, those up to :obj:`step`, over all processes."""
    stacked = fabric.all_reduce(torch.stack(losses).double(), reduce_op='mean')
    for place in (~stacked.isfinite()).nonzero()[:1]:
        raise FloatingPointError(
            f'The training loss became {stacked[place].item()} at step '
            f'{step + 1 - len(losses) + int(place)} with learning rate {learning_rate}. Try a '
            f'smaller one, or look for NaN in the batches.'
        )
    return stacked.mean().item()


def _gain(task: Task, values: dict[str, float], monitor: str) -> float:
    r"""The value of a validation to stop and select by, of which more is better."""
    if monitor not in values:
        raise ValueError(
            f'The run is to stop by {monitor!r}, but a validation of this model gives '
            f'{sorted(values)}.'
        )
    if not math.isfinite(values[monitor]):
        others = sorted(name for name in values if math.isfinite(values[name]))
        advice = f": pass as 'monitor' one of {others}" if others else ''
        raise FloatingPointError(
            f'The run is to stop by {monitor!r}, but a validation gives {values[monitor]}{advice}.'
        )
    return values[monitor] if task.modes[monitor] == 'max' else -values[monitor]


@contextmanager
def _gentle_interrupt() -> Iterator[Callable[[], bool]]:
    r"""Says whether Ctrl-C was pressed, which lets the run write a checkpoint first; pressed again
    it stops the run at once."""
    pressed = threading.Event()

    def interrupt(*_: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # No other thread may ask for signals.
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, interrupt) if is_main else None
    try:
        yield pressed.is_set
    finally:
        if is_main:
            signal.signal(signal.SIGINT, previous)
