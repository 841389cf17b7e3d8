r"""What a trained model is worth, and what it predicts."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mag.files import replacing
from mag.training.click_task import ClickTask
from mag.training.task import Task

# Rows that are held at a time while a file is written.
CHUNK = 1 << 20


def evaluate(
    model: torch.nn.Module, loader: DataLoader, progress: bool = False
) -> dict[str, float]:
    r"""The metrics of a model: AUC, GAUC and log loss of clicks, and those of conversions where it
    predicts them, see :func:`mag.metrics.click_metrics`; or those of another task.

    Where a process group exists, each process scores its share, and all return the values of the
    whole.

    Args:
        model (torch.nn.Module): A model of clicks, or a :class:`Task`. It is scored in the
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
    with _scoring(model) as (task, device):
        batches = tqdm(loader, 'evaluate', disable=not progress)
        return task.measure([task.score(to_device(batch, device)) for batch in batches], device)


@overload
def predict(
    model: torch.nn.Module, loader: DataLoader, path: None = None, progress: bool = False
) -> dict[str, Tensor]: ...


@overload
def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    path: str | os.PathLike[str],
    progress: bool = False,
) -> None: ...


def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Tensor] | None:
    r"""What a model predicts for the rows of a loader, in their order. They need no labels.

    Args:
        model (torch.nn.Module): A model of clicks, or a :class:`Task`. It is scored in the
            precision of its weights, on their device.
        loader (DataLoader): A loader that does not shuffle.
        path (str or os.PathLike, optional): A Parquet file to write to, with a column a score, from
            which nothing is held in memory but for a million rows. It is there once it is whole.
            (default: :obj:`None`)
        progress (bool, optional): If set to :obj:`True`, a progress bar is shown.
            (default: :obj:`False`)

    Returns:
        Of models of clicks the probabilities :obj:`"click"`, and where they are predicted
        :obj:`"conversion"` (after a click) and :obj:`"click_and_conversion"`, each of shape
        :obj:`[N]` on the CPU; or :obj:`None` if they were written to :obj:`path`.

    Raises:
        OSError: If the disk is full.
        ValueError: If the loader shuffles or is empty, or several processes share its rows.
    """
    if getattr(loader.sampler, 'shuffle', False):
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
        predicted = (
            {name: value.cpu() for name, value in task.predict(to_device(batch, device)).items()}
            for batch in tqdm(loader, 'predict', disable=not progress)
        )
        if path is None:
            return _joined(list(predicted))
        _write(predicted, path)
        return None


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


def _write(predicted: Iterator[dict[str, Tensor]], path: str | os.PathLike[str]) -> None:
    # Here, because training and evaluation do without.
    import duckdb

    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"'path' must be in a folder that is there, but got {os.fspath(path)!r}.")
    # DuckDB writes a Parquet file from one query: until then the rows wait in a table on that disk.
    with (
        tempfile.TemporaryDirectory('.tmp', f'{name}.', folder) as waiting,
        duckdb.connect(os.path.join(waiting, 'rows.duckdb')) as connection,
    ):
        command = 'CREATE TABLE scores AS'
        for chunk in _chunks(predicted):
            connection.register('chunk', {name: value.numpy() for name, value in chunk.items()})
            connection.execute(f'{command} SELECT * FROM chunk')
            command = 'INSERT INTO scores'
        with replacing(path) as temporary:
            connection.execute('COPY scores TO $path (FORMAT parquet)', {'path': temporary})


def _chunks(predicted: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    r"""Batches put together into about :obj:`CHUNK` rows."""
    parts: list[dict[str, Tensor]] = []
    num_rows = 0
    for part in predicted:
        parts.append(part)
        num_rows += len(next(iter(part.values())))
        if num_rows >= CHUNK:
            yield _joined(parts)
            parts, num_rows = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
