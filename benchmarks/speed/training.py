r"""What the benchmarks of training share: a step as `mag.training.fit` takes it, and arguments."""

import argparse
from pathlib import Path
from typing import Any

import torch
from records import make_parser
from torch import nn

from mag.training import ClickTask


class Subject:
    r"""A model with its loss and optimizer: Adam, fused."""

    def __init__(
        self, model: nn.Module, learning_rate: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        self.model = model
        self.task = ClickTask(model, learning_rate, weight_decay)
        self.optimizer: Any = self.task.configure_optimizers()

    def step(self, batch: Any) -> None:
        r"""Forward, loss, backward and a step of the optimizer."""
        self.optimizer.zero_grad()
        self.task.loss(batch).backward()
        self.optimizer.step()

    def score(self, batch: Any) -> None:
        with torch.inference_mode():
            self.model(batch).sigmoid()


def make_training_parser(
    name: str, description: str | None, *, batch_size: int, threads: list[int]
) -> argparse.ArgumentParser:
    r"""The parser of a benchmark of training.

    Args:
        name: Its module, such as ``'speed.gmcm'``.
        description: The docstring of the module.
        batch_size: The default.
        threads: The default.
    """
    parser = make_parser(name, description)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument(
        '--threads', nargs='+', type=int, default=threads, help='default: %(default)s'
    )
    parser.add_argument('--batch-size', type=int, default=batch_size, help='default: %(default)s')
    parser.add_argument('--steps', type=int, default=20, help='steps a run; default: %(default)s')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    return parser
