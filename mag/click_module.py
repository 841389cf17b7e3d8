import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor

from mag.click_metrics import click_metrics


class ClickModule(LightningModule):
    r"""Trains any click model: binary cross-entropy, Adam with coupled weight decay (the decay is
    added to the gradient, as MacGNN's authors do), and AUC, GAUC and log loss on validation.

    Args:
        model (torch.nn.Module): :obj:`model(batch)` returns logits of shape :obj:`[B]`;
            :obj:`batch.label` holds the clicks and :obj:`batch.user` the groups of GAUC.
        learning_rate (float, optional): The step size of Adam. (default: :obj:`1e-2`)
        weight_decay (float, optional): The share of a parameter that is added to its gradient.
            (default: :obj:`5e-5`)

    Raises:
        TypeError: If :obj:`model` is no :class:`torch.nn.Module`.
        ValueError: If :obj:`learning_rate` is not positive or :obj:`weight_decay` is negative.
    """

    def __init__(
        self, model: torch.nn.Module, learning_rate: float = 1e-2, weight_decay: float = 5e-5
    ) -> None:
        super().__init__()
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f'model must be a torch.nn.Module, but got {type(model).__name__}.')
        if not 0 < learning_rate < math.inf:
            raise ValueError(f'learning_rate must be positive, but got {learning_rate}.')
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f'weight_decay must be at least 0, but got {weight_decay}.')
        self.save_hyperparameters(ignore='model', logger=False)
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, batch: Any) -> Tensor:
        r"""The logits of :obj:`batch`, shape :obj:`[B]`."""
        return self.model(batch)

    def loss(self, batch: Any) -> Tensor:
        r"""The mean binary cross-entropy of :obj:`batch`."""
        logits, label, _ = score(self.model, batch)
        return F.binary_cross_entropy_with_logits(logits.float(), label.float())

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        # On a CPU there is nothing to move; to look at each tensor takes a tenth of a millisecond.
        if device.type == 'cpu':
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self.loss(batch)

    def on_validation_epoch_start(self) -> None:
        # A validation that was broken off has left some.
        self._outputs.clear()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self._outputs.append(score(self.model, batch))

    def on_validation_epoch_end(self) -> None:
        values = click_metrics(self._outputs, self.device)
        self._outputs.clear()
        values = {f'val_{name}': value for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics({'epoch': self.current_epoch, **values}, self.global_step)
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = all(
            parameter.is_floating_point() and parameter.device.type in ('cpu', 'cuda')
            for parameter in self.parameters()
        )
        return torch.optim.Adam(
            self.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=fused
        )


def score(model: torch.nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    r"""The logits, labels and users of a batch, each of shape :obj:`[B]`.

    Raises:
        ValueError: If there are no labels or not one logit a row.
    """
    logits = model(batch)
    if batch.label is None:
        raise ValueError('Training and evaluation need labels, but batch.label is None.')
    if logits.shape != batch.label.shape:
        raise ValueError(
            f'{type(model).__name__} must return one logit a row, shape '
            f'{list(batch.label.shape)} like batch.label, but returned {list(logits.shape)}.'
        )
    return logits, batch.label, batch.user
