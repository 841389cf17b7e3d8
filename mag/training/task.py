from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Task(torch.nn.Module):
    r"""What a run minimises, measures and steps: :func:`~mag.training.fit` knows nothing else.

    A resumed run compares what a task and its modules hold as attributes (numbers, words, tensors,
    functions, and tuples, lists and dictionaries of these), and the code of :meth:`loss` and
    :meth:`configure_optimizers`, but not of what it calls. Names that begin with an underscore are
    not compared.

    Attributes:
        modes (dict[str, str]): For each metric of :meth:`measure`, :obj:`"max"` or :obj:`"min"`,
            what is better.
    """

    modes: Mapping[str, str] = {}

    def loss(self, batch: Any) -> Tensor:
        r"""What a step on :obj:`batch` minimises, a scalar."""
        raise NotImplementedError(f'{type(self).__name__} has no loss.')

    def check_rows(self, dataset: Any) -> None:
        r"""Raises a :class:`ValueError` if nothing can be learned from the rows of a
        :obj:`dataset`, before the first step."""

    def after_step(self) -> None:
        r"""What follows each step of the optimizer, such as an average of the weights."""

    def score(self, batch: Any) -> tuple[Tensor, ...]:
        r"""What :meth:`measure` needs of a batch of validation."""
        raise NotImplementedError(f'{type(self).__name__} has no metrics.')

    def measure(self, scores: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
        r"""The metrics of the whole, over all processes, from the scores of this one's batches."""
        raise NotImplementedError(f'{type(self).__name__} has no metrics.')

    def predict(self, batch: Any) -> dict[str, Tensor]:
        r"""What is predicted for each row of a batch, which needs no labels, by its name."""
        raise NotImplementedError(f'{type(self).__name__} predicts nothing.')

    def configure_optimizers(self) -> Optimizer | tuple[Optimizer, LRScheduler]:
        r"""The optimizer, and as may be a schedule of its rates, which advances after each step."""
        raise NotImplementedError(f'{type(self).__name__} has no optimizer.')
