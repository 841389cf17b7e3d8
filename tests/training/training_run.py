r"""A small training run, which tests/training/test_fit.py starts in processes of their own."""

import argparse
import os
import random
import time
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

import mag.training.run
from mag.loader import PairBatch, PairLoader
from mag.training import ClickTask, evaluate, fit

NUM_USERS, NUM_ITEMS = 30, 40


def macro_data(num_rows: int, seed: int) -> HeteroData:
    r"""Random macro rows, and exposures whose clicks follow a hidden taste."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    data['macro_user'].num_nodes, data['macro_item'].num_nodes = 3, 4
    for source, relation, target in (
        ('macro_item', 'hop1', 'user'),
        ('macro_user', 'hop2', 'user'),
        ('macro_user', 'hop1', 'item'),
        ('macro_item', 'hop2', 'item'),
    ):
        shape = (data[source].num_nodes, data[target].num_nodes)
        counts = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(len(relation)))
        store = data[source, relation, target]
        store.edge_index = counts.nonzero().t()
        store.edge_weight = counts[counts > 0].float()
    user = torch.randint(NUM_USERS, (num_rows,), generator=generator)
    item = torch.randint(NUM_ITEMS, (num_rows,), generator=generator)
    noise = 2 * torch.rand(num_rows, generator=generator) - 1
    clicks = data['user', 'clicks', 'item']
    clicks.edge_index = torch.stack([user, item])
    clicks.edge_label_index = torch.stack([user, item])
    clicks.time, clicks.edge_label_time = torch.zeros_like(user), torch.ones_like(user)
    clicks.edge_label = ((user * 7).sin() + (item * 3).sin() + noise > 0).float()
    return data


class TinyModel(torch.nn.Module):
    r"""Embeddings, macro rows, dropout and running statistics: all that a resume has to restore."""

    def __init__(self, embedding_dim: int = 8, dropout: float = 0.3, plain: bool = False) -> None:
        super().__init__()
        self.user = torch.nn.Embedding(NUM_USERS, embedding_dim)
        self.item = torch.nn.Embedding(NUM_ITEMS, embedding_dim)
        self.norm = torch.nn.Identity() if plain else torch.nn.BatchNorm1d(2 * embedding_dim + 14)
        self.dropout = torch.nn.Identity() if plain else torch.nn.Dropout(dropout)
        self.out = torch.nn.Linear(2 * embedding_dim + 14, 1)

    def forward(self, batch: PairBatch) -> Tensor:
        x = [self.user(batch.user), self.item(batch.item), *batch.user_hops, *batch.item_hops]
        return self.out(self.dropout(self.norm(torch.cat(x, dim=-1)))).squeeze(-1)


class RandomBatches:
    r"""Draws from Python and NumPy in training, and tells the steps to whoever may want to kill."""

    def __init__(self, draw: bool = True) -> None:
        self.draw = draw

    def on_train_batch_start(self, batch: PairBatch) -> None:
        if self.draw:
            batch.label.mul_(0.9 + 0.1 * random.random() * np.random.rand())

    def on_train_batch_end(self, step: int) -> None:
        # In one piece, into which the other process cannot write.
        print(f'step {step}\n', end='', flush=True)


def train(
    directory: str,
    max_epochs: int = 4,
    batch_size: int = 20,
    num_rows: int = 505,
    num_workers: int = 0,
    dropout: float = 0.3,
    plain: bool = False,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    callbacks: tuple[Any, ...] = (),
    **arguments: Any,
) -> tuple[ClickTask, dict[str, float]]:
    lightning.seed_everything(1, verbose=False)
    task = ClickTask(TinyModel(8, dropout, plain), learning_rate, weight_decay)
    train_loader = PairLoader(
        macro_data(num_rows, 1), batch_size, shuffle=True, seed=3, num_workers=num_workers
    )
    val_loader = PairLoader(macro_data(301, 2), 50)
    arguments = {
        'patience': 100,
        'seed': 5,
        'progress': False,
        'accelerator': 'cpu',
        'log_every_n_steps': 3,
        'callbacks': list(callbacks),
        **arguments,
    }
    fit(task, train_loader, val_loader, directory=directory, max_epochs=max_epochs, **arguments)
    return task, evaluate(task, val_loader)


class Gradients:
    r"""Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, task: ClickTask) -> None:
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in task.named_parameters()}


class FailAt:
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, step: int) -> None:
        # Slow enough for a signal to hit the step that it is meant for.
        time.sleep(0.003)
        if step == self.step:
            raise RuntimeError('failed on purpose')


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--directory', required=True)
    parser.add_argument('--validate-every', type=int)
    parser.add_argument('--num-workers', type=int, default=0)
    parser.add_argument('--seconds-between-checkpoints', type=float)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--max-epochs', type=int, default=4)
    parser.add_argument('--num-rows', type=int, default=505)
    parser.add_argument('--plain', action='store_true')
    parser.add_argument('--fail-at', type=int)
    parser.add_argument('--out')
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seconds_between_checkpoints is not None:
        mag.training.run.SECONDS_BETWEEN_CHECKPOINTS = options.seconds_between_checkpoints
    gradients = Gradients()
    task, values = train(
        options.directory,
        max_epochs=options.max_epochs,
        num_rows=options.num_rows,
        num_workers=options.num_workers,
        plain=options.plain,
        validate_every=options.validate_every,
        devices=options.processes,
        callbacks=(RandomBatches(not options.plain), gradients, FailAt(options.fail_at)),
    )
    if options.out is not None:
        rank = int(os.environ.get('LOCAL_RANK', 0))
        result = {'weights': task.state_dict(), 'gradients': gradients.first, 'values': values}
        torch.save(result, f'{options.out}{rank}.pt')
    if torch.distributed.is_initialized():
        # A process that ends with the group alive may be terminated by the group's own threads.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
