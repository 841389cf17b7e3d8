import copy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from mag.datasets import LogSchema
from mag.loader import ExposureBatch, PairBatch
from mag.store import BuildPlan, Store, StoreLoader, build
from mag.training import ClickTask, evaluate

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from store_run import (  # noqa: E402
    BATCH_SIZE,
    BATCHES,
    MAX_EPOCHS,
    make_loaders,
    make_task,
    pairs_of,
)

NUM_USERS, NUM_ITEMS, NUM_ROWS = 90, 40, 3001
COLUMNS = {
    'user': 'user', 'item': 'item', 'time': 'time', 'label': 'click',
    'user_attributes': ['country'], 'item_attributes': ['brand'],
}  # fmt: skip


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    r"""The store of a log in which no pair is there twice."""
    folder = tmp_path_factory.mktemp('store')
    generator = np.random.default_rng(0)
    pair = generator.permutation(NUM_USERS * NUM_ITEMS)[:NUM_ROWS]
    user, item = pair // NUM_ITEMS, pair % NUM_ITEMS
    chance = 0.1 + 0.6 * (user % 3 == item % 3)
    log = {
        'user': user, 'item': item, 'time': 1000 + np.arange(NUM_ROWS),
        'click': (generator.random(NUM_ROWS) < chance).astype(np.int64),
        'country': user % 7, 'brand': item % 5,
    }  # fmt: skip
    pq.write_table(pa.table(log), folder / 'log.parquet', row_group_size=150)
    schema = LogSchema(str(folder / 'log.parquet'), COLUMNS)
    plan = BuildPlan(
        schema, folder / 'store', {'user': 'country', 'item': 'brand'}, num_windows=3,
        num_recent=5, memory_limit='1GiB',
    )  # fmt: skip
    return Store(build(plan, progress=False))


def run_two(
    fork: Callable[..., Any], kind: str, store: Store, directory: Path
) -> list[dict[str, Any]]:
    r"""What two processes found, started as torchrun does it."""
    directory.mkdir()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    code = 'import sys, store_run; store_run.main(*sys.argv[1:])'
    processes = [
        fork(
            code, kind, store.path, str(directory), path=[FOLDER],
            env={'LOCAL_RANK': rank, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port},
        )
        for rank in ('0', '1')
    ]  # fmt: skip
    for process in processes:
        done = process.finish()
        assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(directory / f'{rank}.pt') for rank in range(2)]


def part_of(batch: Any, rows: Tensor) -> Any:
    r"""Some rows of a batch, with numbers of the precision of the weights."""
    if isinstance(batch, Tensor):
        found = batch[rows]
        return found.double() if found.is_floating_point() else found
    if isinstance(batch, (PairBatch, ExposureBatch)):
        return type(batch)(*(part_of(value, rows) for value in batch))
    return tuple(part_of(value, rows) for value in batch) if isinstance(batch, tuple) else batch


def train_on_unions(
    kind: str, store: Store, num_rows: int
) -> tuple[ClickTask, list[Tensor], StoreLoader]:
    r"""A task that one process has trained, each step on rows of both halves of the epoch. With
    what the steps read, and the rows to score."""
    task = make_task(kind, store)
    train, val = make_loaders(kind, store, num_rows)
    optimizer, share, steps = task.configure_optimizers(), num_rows // 2, []
    for epoch in range(MAX_EPOCHS):
        train.sampler.set_epoch(epoch)
        (whole,) = train
        for rows in torch.arange(share).split(BATCH_SIZE):
            first, second = part_of(whole, rows), part_of(whole, share + rows)
            optimizer.zero_grad()
            # Each half has the statistics of its own batch; the running ones are of the first.
            kept = copy.deepcopy(dict(task.named_buffers()))
            (task.loss(second) / 2).backward()
            for name, buffer in task.named_buffers():
                buffer.copy_(kept[name])
            (task.loss(first) / 2).backward()
            optimizer.step()
            task.after_step()
            steps.append(torch.cat([pairs_of(first), pairs_of(second)]))
    return task, steps, val


@pytest.mark.parametrize('kind', BATCHES)
def test_two_processes_train_as_one_on_the_rows_of_both(
    kind: str, store: Store, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    first, second = run_two(fork, kind, store, tmp_path / 'run')
    assert first['world_size'] == 2 and first['backend'] == 'gloo'

    # Each row of an epoch is read by one process, but for the one that no other can stand beside.
    rows = torch.cat([pairs_of(batch) for batch in make_loaders(kind, store, BATCH_SIZE)[0]])
    assert len(rows) % 2 == 1 and len(rows.unique(dim=0)) == len(rows)
    num_steps = len(first['steps'])
    assert num_steps == len(second['steps']) and num_steps % MAX_EPOCHS == 0
    for epoch in range(MAX_EPOCHS):
        of_epoch = slice(epoch * num_steps // MAX_EPOCHS, (epoch + 1) * num_steps // MAX_EPOCHS)
        shares = [torch.cat(found['steps'][of_epoch]) for found in (first, second)]
        read = torch.cat(shares)
        assert len(shares[0]) == len(shares[1]) == len(rows) // 2
        assert len(read.unique(dim=0)) == len(read)
        assert len(torch.cat([read, rows]).unique(dim=0)) == len(rows)

    task, steps, val = train_on_unions(kind, store, len(rows))
    assert len(steps) == num_steps > 2 * MAX_EPOCHS
    for union, *shares in zip(steps, first['steps'], second['steps'], strict=True):
        assert torch.equal(torch.cat(shares), union)
    assert first['parameters'].keys() == dict(task.named_parameters()).keys()
    for name, weight in first['parameters'].items():
        assert torch.equal(second['parameters'][name], weight), name
        assert torch.equal(first['weights'][name], weight), name
    assert first['weights'].keys() == task.state_dict().keys()
    for name, weight in task.state_dict().items():
        assert torch.equal(first['weights'][name], second['weights'][name]), name
        # The averages of statistics take steps of single precision where that is the default.
        rtol = 1e-6 if name in dict(task.named_buffers()) else 1e-9
        torch.testing.assert_close(first['weights'][name], weight, rtol=rtol, atol=rtol / 100)

    # Rows to score are shared as well, and all processes know the metrics of the whole.
    scored = torch.cat(first['scored'] + second['scored'])
    assert torch.equal(scored, torch.cat([pairs_of(batch) for batch in val]))
    assert len(torch.cat(first['scored'])) < len(scored)
    assert first['values'] == second['values']
    task.load_state_dict(first['weights'])
    assert first['values'] == pytest.approx(evaluate(task, val), abs=1e-9)
    assert first['values']['logloss'] < evaluate(make_task(kind, store), val)['logloss']
