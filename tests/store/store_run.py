r"""Training from a store, which tests/store/test_store_processes.py starts in processes of their
own."""

import os
from typing import Any

import lightning
import torch
from torch import Tensor

from mag.models import CountNet, MacGNN
from mag.store import Store, StoreLoader
from mag.training import ClickTask, evaluate, fit

BATCHES = {'MacGNN': 'pairs', 'CountNet': 'features'}
BATCH_SIZE, MAX_EPOCHS = 64, 3


def make_task(kind: str, store: Store) -> ClickTask:
    lightning.seed_everything(1, verbose=False)
    of_kind = {'MacGNN': MacGNN, 'CountNet': CountNet}[kind]
    # In which sums of another order differ by a few of sixteen digits.
    model = of_kind.from_data(store.graph(), embedding_dim=4).double()
    return ClickTask(model, learning_rate=1e-2, average=0.9)


def make_loaders(kind: str, store: Store, batch_size: int) -> tuple[StoreLoader, StoreLoader]:
    r"""The rows to train on, of which the buffer holds a few row groups, and those to score."""
    train = StoreLoader(store, 'train', batch_size, True, 3, batches=BATCHES[kind], buffer_rows=500)
    return train, StoreLoader(store, 'val', batch_size, batches=BATCHES[kind])


def pairs_of(batch: Any) -> Tensor:
    r"""Users and items, shape :obj:`[B, 2]`."""
    return torch.stack([batch.user, batch.item], dim=1)


class Watch:
    r"""Keeps what each step reads, and the parameters after the last one, before the checkpoint of
    the first process is loaded by all."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.parameters: dict[str, Tensor] = {}

    def on_train_end(self, task: ClickTask) -> None:
        self.parameters = {name: of.detach().clone() for name, of in task.named_parameters()}

    def on_train_batch_start(self, batch: Any) -> None:
        self.steps.append(pairs_of(batch))


def main(kind: str, path: str, directory: str) -> None:
    r"""The share of one of two processes, whose environment says which."""
    torch.set_num_threads(1)
    store, watch = Store(path), Watch()
    task = make_task(kind, store)
    train, val = make_loaders(kind, store, BATCH_SIZE)
    fit(
        task, train, directory=directory, max_epochs=MAX_EPOCHS, progress=False, devices=2,
        accelerator='cpu', strategy='ddp', precision='64-true', callbacks=[watch],
    )  # fmt: skip
    values = evaluate(task, val)
    scored = [pairs_of(batch) for batch in val]
    found = {
        'steps': watch.steps, 'parameters': watch.parameters, 'weights': task.state_dict(),
        'values': values, 'scored': scored,
        'world_size': torch.distributed.get_world_size(),
        'backend': torch.distributed.get_backend(),
    }  # fmt: skip
    torch.save(found, f'{directory}/{os.environ["LOCAL_RANK"]}.pt')
    # A process that ends with the group alive may be terminated by the group's own threads.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
