import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch_geometric.data import HeteroData

from mag.checks import check_numbers
from mag.logits import Logits, as_logits
from mag.metrics.click_metrics import MODES, click_metrics
from mag.schema import CLICKS
from mag.training.task import Task


class ClickTask(Task):
    r"""Learns clicks, and conversions where the model predicts them: with Adam and coupled weight
    decay (the decay is added to the gradient, as MacGNN's authors do).

    Another optimizer, or a schedule, is a method of a subclass:

    .. code-block:: python

        class Decayed(ClickTask):
            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate)
                return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)

    Args:
        model (torch.nn.Module): :obj:`model(batch)` returns the logits of clicks, shape
            :obj:`[B]`, or :class:`~mag.logits.Logits`; :obj:`batch.label` holds the clicks,
            :obj:`batch.user` the groups of GAUC and :obj:`batch.conversion` the conversions. In a
            :class:`~torch_geometric.data.HeteroData`, as :class:`~mag.loader.PathLoader` and PyG's
            loaders of links make, clicks, users and conversions are found where these put them. A
            model with a method :obj:`loss(output, batch)`, which returns a scalar, is trained with
            it; else with the binary cross-entropy of the clicks.
        learning_rate (float, optional): The step size of Adam. (default: :obj:`1e-2`)
        weight_decay (float, optional): The share of a parameter that is added to its gradient.
            (default: :obj:`5e-5`)

    Raises:
        TypeError: If :obj:`model` is no :class:`torch.nn.Module`, or a number is none.
        ValueError: If :obj:`learning_rate` is not positive or :obj:`weight_decay` is negative.
    """

    modes = MODES

    def __init__(
        self, model: torch.nn.Module, learning_rate: float = 1e-2, weight_decay: float = 5e-5
    ) -> None:
        super().__init__()
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"'model' must be a torch.nn.Module, but got {type(model).__name__}.")
        check_numbers('(0, inf)', learning_rate=learning_rate)
        check_numbers('[0, inf)', weight_decay=weight_decay)
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def forward(self, batch: Any) -> Tensor | Logits:
        r"""What the model returns for :obj:`batch`."""
        return self.model(batch)

    def loss(self, batch: Any) -> Tensor:
        r"""The model's own loss of :obj:`batch`, or the mean binary cross-entropy of its clicks."""
        loss: Any = getattr(self.model, 'loss', None)
        # A model may as well keep a loss function under that name.
        if inspect.ismethod(loss):
            return loss(self.model(batch), batch)
        logit, label, *_ = score(self.model, batch)
        return F.binary_cross_entropy_with_logits(logit.float(), label.float())

    def score(self, batch: Any) -> tuple[Tensor, ...]:
        return score(self.model, batch)

    def measure(self, scores: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
        return click_metrics(scores, device)

    def predict(self, batch: Any) -> dict[str, Tensor]:
        r"""Probabilities in float64, each of shape :obj:`[B]`: of a :obj:`"click"`; where the model
        predicts conversions, of a :obj:`"conversion"` after a click and of both,
        :obj:`"click_and_conversion"`; and of a click by each branch, under its name."""
        logits = as_logits(type(self.model).__name__, self.model(batch))
        scores = {'click': logits.click.double().sigmoid()}
        if logits.conversion is not None:
            scores['conversion'] = logits.conversion.double().sigmoid()
            both = _log_both(logits.click, logits.conversion, logits.both)
            scores['click_and_conversion'] = both.exp()
        for name, logit in (logits.branches or {}).items():
            scores[name] = logit.double().sigmoid()
        return scores

    def configure_optimizers(self) -> Optimizer | tuple[Optimizer, LRScheduler]:
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
        TypeError: If the model returns neither a tensor nor :class:`~mag.logits.Logits`.
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
    log_both = _log_both(logits.click, logits.conversion, logits.both)
    return logits.click, label, user, logits.conversion, log_both, conversion


def _log_both(click: Tensor, conversion: Tensor, both: Tensor | None) -> Tensor:
    # In float64: probabilities that are products come closer to each other than float32 can tell.
    if both is not None:
        return F.logsigmoid(both.double())
    return F.logsigmoid(click.double()) + F.logsigmoid(conversion.double())


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
