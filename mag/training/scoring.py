r"""What a trained model is worth, and what it predicts."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from tqdm import tqdm

from mag.files import replacing
from mag.lineage import require_ids_of
from mag.training.click_task import ClickTask
from mag.training.task import Task


def evaluate(
    model: torch.nn.Module, loader: DataLoader, progress: bool = False
) -> dict[str, float]:
    r"""The metrics of a model: AUC, GAUC and log loss of clicks, and those of conversions where it
    predicts them, see :func:`mag.metrics.click_metrics`; or those of another task. What the rows do
    not define, such as the AUC of a log of clicks alone, is NaN with a warning.

    Where a process group exists, each process scores its share, and all return the values of the
    whole.

    Args:
        model (torch.nn.Module): A model of clicks, or a :class:`Task`. It is scored in the
            precision of its weights, on their device.
        loader (DataLoader): A loader of labelled batches.
        progress (bool, optional): If set to :obj:`True`, a progress bar is shown.
            (default: :obj:`False`)

    Raises:
        ValueError: If the loader is empty, unlabelled or of another log than the model was built
            for, the model has not grown with its log, or a logit is NaN or infinite.
    """
    with _scoring(model) as (task, device):
        require_ids_of(task, loader, 'the loader')
        batches = tqdm(loader, 'evaluate', disable=not progress)
        return task.measure([task.score(to_device(batch, device)) for batch in batches], device)


@overload
def predict(
    model: torch.nn.Module, loader: DataLoader, path: None = None, progress: bool = False
) -> dict[str, Tensor]: ...


@overload
def predict(
    model: torch.nn.Module, loader: DataLoader, path: str | os.PathLike, progress: bool = False
) -> None: ...


def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    path: str | os.PathLike | None = None,
    progress: bool = False,
) -> dict[str, Tensor] | None:
    r"""What a model predicts for the rows of a loader, in their order. They need no labels.

    Args:
        model (torch.nn.Module): A model of clicks, or a :class:`Task`. It is scored in the
            precision of its weights, on their device.
        loader (DataLoader): A loader that does not shuffle.
        path (str or os.PathLike, optional): A Parquet file to write to, a column a score, so that
            memory holds one batch. It is there once it is whole. (default: :obj:`None`)
        progress (bool, optional): If set to :obj:`True`, a progress bar is shown.
            (default: :obj:`False`)

    Returns:
        What :meth:`Task.predict` gives, such as :func:`mag.logits.probabilities`, each of shape
        :obj:`[N]` on the CPU; or :obj:`None` if it was written to :obj:`path`.

    Raises:
        OSError: If the disk is full.
        ValueError: If the loader shuffles, is empty or of another log than the model was built for,
            the model has not grown with its log, or several processes share its rows.
    """
    # PyTorch's own sampler of an ordered loader does not say that it is one.
    is_ordered = isinstance(loader.sampler, SequentialSampler)
    if getattr(loader.sampler, 'shuffle', not is_ordered):
        raise ValueError(
            'predict gives scores in the order of rows, but the loader shuffles them: pass '
            'shuffle=False to it.'
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        number = torch.distributed.get_world_size()
        if number > 1:
            raise ValueError(f'predict runs in one process, but {number} share the rows here.')
    if len(loader) == 0:
        raise ValueError('There is nothing to predict: the loader is empty.')
    with _scoring(model) as (task, device):
        require_ids_of(task, loader, 'the loader')
        predicted = (
            {name: value.cpu() for name, value in task.predict(to_device(batch, device)).items()}
            for batch in tqdm(loader, 'predict', disable=not progress)
        )
        if path is not None:
            _write(predicted, path)
            return None
        batches = list(predicted)
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def to_device(batch: Any, device: torch.device) -> Any:
    # On a CPU there is nothing to move; to look at each tensor takes a tenth of a millisecond.
    if device.type == 'cpu':
        return batch
    from lightning.fabric.utilities import move_data_to_device

    return move_data_to_device(batch, device)


@contextmanager
def _scoring(model: torch.nn.Module) -> Iterator[tuple[Task, torch.device]]:
    r"""The task of a model, ready to score, and its device."""
    task = getattr(model, 'task', model)
    task = task if isinstance(task, Task) else ClickTask(model)
    device = next((parameter.device for parameter in task.parameters()), torch.device('cpu'))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield task, device
    finally:
        model.train(training)


def _write(batches: Iterator[dict[str, Tensor]], path: str | os.PathLike) -> None:
    import duckdb

    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"'path' must be in a folder that is there, but got {os.fspath(path)!r}.")
    # DuckDB writes a Parquet file from one query: until then the rows wait in a table on that disk.
    with (
        tempfile.TemporaryDirectory('.tmp', f'{name}.', folder) as waiting,
        duckdb.connect(os.path.join(waiting, 'rows.duckdb')) as rows,
    ):
        # One transaction: to make each batch safe would take longer than to score it.
        rows.begin()
        for number, batch in enumerate(batches):
            rows.register('batch', {name: value.numpy() for name, value in batch.items()})
            command = 'INSERT INTO scores' if number else 'CREATE TABLE scores AS'
            rows.execute(f'{command} SELECT * FROM batch')
        rows.commit()
        with replacing(path) as temporary:
            rows.execute('COPY scores TO $path (FORMAT parquet)', {'path': temporary})
