import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import HeteroData

from mag.checks import check_numbers
from mag.logits import Logits, as_logits, log_both, probabilities
from mag.metrics.click_metrics import MODES, click_metrics
from mag.schema import CLICKS
from mag.training.task import Task


class ClickTask(Task):
    r"""Learns clicks, and conversions where the model predicts them: with Adam and coupled weight
    decay (the decay is added to the gradient, as MacGNN's authors do). Another optimizer, or a
    schedule, is a method :meth:`configure_optimizers` of a subclass.

    Args:
        model (torch.nn.Module): :obj:`model(batch)` returns the logits of clicks, shape
            :obj:`[B]`, or :class:`~mag.logits.Logits`; :obj:`batch.label` holds the clicks,
            :obj:`batch.user` the groups of GAUC and :obj:`batch.conversion` the conversions. A
            :class:`~torch_geometric.data.HeteroData` holds them where PyG's loaders of links put
            them. A model with a method :obj:`loss(output, batch)`, which returns a scalar, is
            trained with it; else with the binary cross-entropy of the clicks.
        learning_rate (float, optional): The step size of Adam. (default: :obj:`1e-2`)
        weight_decay (float, optional): The share of a parameter that is added to its gradient.
            (default: :obj:`5e-5`)
        average (float, optional): The share of itself that a running average of the weights keeps
            at each step, such as :obj:`0.99`. In evaluation the task scores with the average,
            :obj:`task.averaged`, which is smoother than the weights of one step; the model itself
            is never changed by it, and grows by :meth:`grow`. (default: :obj:`None`)

    Raises:
        TypeError: If :obj:`model` is no :class:`torch.nn.Module`, or a number is none.
        ValueError: If :obj:`learning_rate` is not positive, :obj:`weight_decay` is negative, or
            :obj:`average` does not lie between 0 and 1.
    """

    modes = MODES

    averaged: torch.nn.Module | None

    def __init__(
        self,
        model: torch.nn.Module,
        learning_rate: float = 1e-2,
        weight_decay: float = 5e-5,
        average: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"'model' must be a torch.nn.Module, but got {type(model).__name__}.")
        check_numbers('(0, inf)', learning_rate=learning_rate)
        check_numbers('[0, inf)', weight_decay=weight_decay)
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.average = average
        self.averaged = None
        if average is not None:
            check_numbers('(0, 1)', average=average)
            self.averaged = AveragedModel(
                model, multi_avg_fn=_running_average(average), use_buffers=True
            ).requires_grad_(False)

    def forward(self, batch: Any) -> Tensor | Logits:
        if self.averaged is None or self.training:
            return self.model(batch)
        return self.averaged(batch)

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew, to the model and to the average of its weights, by the
        model's own :obj:`grow`. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If the model does not grow, or :obj:`data` is no
                :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data is of another log, or lacks what was there or is read.
        """
        if not callable(getattr(self.model, 'grow', None)):
            raise TypeError(
                f'{type(self).__name__}.grow needs a model with a method grow(data), but '
                f'{type(self.model).__name__} has none.'
            )
        self.model.grow(data)  # type: ignore[operator]
        if isinstance(self.averaged, AveragedModel):
            self.averaged.module.grow(data)  # type: ignore[operator]

    def train(self, mode: bool = True) -> 'ClickTask':
        r"""Sets what the task is about to do, training or evaluation.

        Raises:
            ValueError: If the model grew, and the average of its weights did not.
        """
        self._require_one_size()
        return super().train(mode)

    def _require_one_size(self) -> None:
        if not isinstance(self.averaged, AveragedModel):
            return
        pairs = zip(self.model.parameters(), self.averaged.module.parameters(), strict=True)
        for current, mean in pairs:
            if current.shape != mean.shape:
                raise ValueError(
                    f'{type(self.model).__name__} has a parameter of shape {list(current.shape)}, '
                    f'but the average of its weights has one of {list(mean.shape)}: call '
                    f'task.grow(data), not model.grow(data) alone, so that both grow.'
                )

    def check_rows(self, dataset: Any) -> None:
        r"""Raises a :class:`ValueError` if all rows of a dataset with :obj:`exposures`, such as
        those of the loaders of mag, or with :obj:`num_clicks`, such as that of a store, are clicks
        or none is; where the model has a loss of its own, unless their conversions differ."""
        exposures: Any = getattr(dataset, 'exposures', None)
        label = getattr(exposures, 'label', None)
        if label is None and not hasattr(dataset, 'num_clicks'):
            return
        number = len(dataset) if label is None else label.numel()
        num_clicks = dataset.num_clicks if label is None else int(label.count_nonzero())
        is_mixed = 0 < num_clicks < number if label is None else (label != label[:1]).any()
        if is_mixed:
            return
        conversion = exposures.conversion if self._has_loss else None
        if conversion is not None and bool((conversion != conversion[:1]).any()):
            return
        found = (
            f'none of {number} of train_loader is a click: take a part of the log that has some'
            if num_clicks == 0
            else f'all {number} of train_loader are clicks: apply mag.transforms.SampleNegatives '
            f'to the log, before it is split'
        )
        raise ValueError(
            f'{type(self).__name__} learns from rows with a click and rows without one, but '
            f'{found}.'
        )

    @property
    def _has_loss(self) -> bool:
        # A model may as well keep a loss function under that name.
        return inspect.ismethod(getattr(self.model, 'loss', None))

    def after_step(self) -> None:
        if isinstance(self.averaged, AveragedModel):
            try:
                self.averaged.update_parameters(self.model)
            except RuntimeError:
                # A loop may set no mode, and to compare all shapes at each step takes time.
                self._require_one_size()
                raise

    def loss(self, batch: Any) -> Tensor:
        r"""The model's own loss of :obj:`batch`, or the mean binary cross-entropy of its clicks."""
        return self._loss_of(self.model(batch), batch)

    def _loss_of(self, output: Tensor | Logits, batch: Any) -> Tensor:
        if self._has_loss:
            return self.model.loss(output, batch)  # type: ignore[operator]
        logit, label, *_ = self._scores(output, batch)
        return F.binary_cross_entropy_with_logits(logit.float(), label.float())

    def score(self, batch: Any) -> tuple[Tensor, ...]:
        r"""The logits, labels and users of a batch, each of shape :obj:`[B]`; if the model predicts
        conversions, also their logits, the logarithms of the probabilities that click and
        conversion both happen, and the conversions."""
        return self._scores(self(batch), batch)

    def _scores(self, output: Tensor | Logits, batch: Any) -> tuple[Tensor, ...]:
        name = type(self.model).__name__
        logits = as_logits(name, output)
        label, user, conversion = _labels(batch)
        for of, value in (('click', logits.click), ('conversion', logits.conversion)):
            if value is not None and value.shape != label.shape:
                raise ValueError(
                    f'{name} must return one logit of the {of} a row, shape {list(label.shape)} '
                    f'like the labels, but returned {list(value.shape)}.'
                )
        if logits.conversion is None:
            return logits.click, label, user
        if conversion is None:
            raise ValueError(f'{name} predicts conversions, but batch.conversion is None.')
        return logits.click, label, user, logits.conversion, log_both(logits), conversion

    def measure(self, scores: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
        return click_metrics(scores, device)

    def predict(self, batch: Any) -> dict[str, Tensor]:
        name = type(self.model).__name__
        logits = as_logits(name, self(batch))
        if logits.click.dim() != 1:
            raise ValueError(
                f'{name} must return one logit of the click a row, shape [B], but returned '
                f'{list(logits.click.shape)}.'
            )
        return probabilities(logits)

    def configure_optimizers(self) -> Optimizer | tuple[Optimizer, LRScheduler]:
        parameters = list(self.model.parameters())
        fused = all(p.is_floating_point() and p.device.type in ('cpu', 'cuda') for p in parameters)
        return torch.optim.Adam(
            parameters, self.learning_rate, weight_decay=self.weight_decay, fused=fused
        )


def _labels(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Clicks, users and conversions."""
    if isinstance(batch, HeteroData):
        clicks, name = batch[CLICKS], 'edge_label'
        label, conversion = clicks.get('edge_label'), clicks.get('edge_label_conversion')
        user = batch['user'].n_id[clicks.edge_label_index[0]]
    else:
        label, user, name = batch.label, batch.user, 'batch.label'
        conversion = getattr(batch, 'conversion', None)
    if label is None:
        raise ValueError(f'Training and evaluation need labels, but {name} is None.')
    return label, user, conversion


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _running_average(average: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    ema = get_ema_multi_avg_fn(average)

    def update(averaged: _Tensors, current: _Tensors, num_averaged: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            ema(averaged, current, num_averaged)
        else:
            # An average of places in a table is no place, and torch rounds it to float32.
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    return update
