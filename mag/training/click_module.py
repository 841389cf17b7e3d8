import inspect
import math
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.logits import Logits, as_logits
from mag.metrics import click_metrics
from mag.schema import CLICKS
from mag.training.run_config import describe_model


class ClickModule(LightningModule):
    r"""Trains any model of clicks, and of conversions: Adam with coupled weight decay (the decay is
    added to the gradient, as MacGNN's authors do), and metrics on validation.

    Args:
        model (torch.nn.Module): :obj:`model(batch)` returns the logits of clicks, shape
            :obj:`[B]`, or :class:`~mag.logits.Logits`; :obj:`batch.label` holds
            the clicks, :obj:`batch.user` the groups of GAUC and :obj:`batch.conversion` the
            conversions. In a :class:`~torch_geometric.data.HeteroData`, as
            :class:`~mag.loader.PathLoader` and PyG's loaders of links make, clicks, users and
            conversions are found where these put them. A model with a method
            :obj:`loss(output, batch)`, which returns a scalar, is trained with it; else with the
            binary cross-entropy of the clicks.
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
            raise TypeError(f"'model' must be a torch.nn.Module, but got {type(model).__name__}.")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"'learning_rate' must be positive, but got {learning_rate}.")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"'weight_decay' must be at least 0, but got {weight_decay}.")
        self.save_hyperparameters(ignore='model', logger=False)
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._outputs: list[tuple[Tensor, ...]] = []

    @cached_property
    def description(self) -> dict[str, Any]:
        r"""What a resumed run compares of the model, as it was before the first :func:`fit`: a
        precision such as :obj:`"bf16-true"` changes what is not saved."""
        return describe_model(self.model)

    def forward(self, batch: Any) -> Tensor | Logits:
        r"""What the model returns for :obj:`batch`."""
        return self.model(batch)

    def loss(self, batch: Any) -> Tensor:
        r"""The model's own loss of :obj:`batch`, or the mean binary cross-entropy of its clicks."""
        loss: Any = getattr(self.model, 'loss', None)
        # A model may as well keep a loss function under that name.
        if inspect.ismethod(loss):
            return loss(self.model(batch), batch)
        logits, label, *_ = score(self.model, batch)
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


def score(model: torch.nn.Module, batch: Any) -> tuple[Tensor, ...]:
    r"""The columns of a batch that metrics are made of, each of shape :obj:`[B]`.

    Returns:
        The logits, labels and users; if the model predicts conversions, also their logits, the
        logarithms of the probabilities that click and conversion both happen, and the conversions.

    Raises:
        ValueError: If labels are missing or there is not one logit a row.
    """
    name = type(model).__name__
    logits = as_logits(name, model(batch))
    label, user, conversion = _labels(batch)
    for of, value in (('click', logits.click), ('conversion', logits.conversion)):
        if value is not None and value.shape != label.shape:
            raise ValueError(
                f'{name} must return one logit of the {of} a row, shape {list(label.shape)} like '
                f'the labels, but returned {list(value.shape)}.'
            )
    if logits.conversion is None:
        return logits.click, label, user
    if conversion is None:
        raise ValueError(f'{name} predicts conversions, but batch.conversion is None.')
    return logits.click, label, user, logits.conversion, log_both(logits), conversion


def log_both(logits: Logits) -> Tensor:
    r"""The logarithm of the probability that click and conversion both happen, in float64:
    probabilities that are products come closer to each other than float32 can tell."""
    if logits.both is not None:
        return F.logsigmoid(logits.both.double())
    return F.logsigmoid(logits.click.double()) + F.logsigmoid(logits.conversion.double())


def _labels(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Clicks, users and conversions."""
    if isinstance(batch, HeteroData):
        clicks = batch[CLICKS]
        if 'edge_label' not in clicks:
            raise ValueError('Training and evaluation need labels, but the batch has none.')
        user = batch['user'].n_id[clicks.edge_label_index[0]]
        return clicks.edge_label, user, clicks.get('edge_label_conversion')
    if batch.label is None:
        raise ValueError('Training and evaluation need labels, but batch.label is None.')
    return batch.label, batch.user, getattr(batch, 'conversion', None)
