import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryCalibrationError

from mag.metrics.group_auroc import GroupAUROC, OneClassError

# What is better.
MODES = {
    'auc': 'max',
    'gauc': 'max',
    'logloss': 'min',
    'cvr_auc': 'max',
    'cvr_mse': 'min',
    'cvr_calibration_error': 'min',
    'ctcvr_auc': 'max',
    'ctcvr_gauc': 'max',
    'ctcvr_mse': 'min',
    'ctcvr_calibration_error': 'min',
}


def click_metrics(outputs: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
    r"""The metrics of clicks, and of conversions where these are predicted, over all processes.

    Args:
        outputs (list): What :meth:`mag.training.ClickTask.score` returned for each batch of this
            process.
        device (torch.device): Where they are.

    Returns:
        Of clicks, :obj:`"auc"`, :obj:`"gauc"` (by user, weighted by impressions) and
        :obj:`"logloss"`; if conversions are predicted also, on the clicked rows, :obj:`"cvr_auc"`,
        :obj:`"cvr_mse"` (eq. 21 of GMCM) and :obj:`"cvr_calibration_error"` (the mean distance of
        prediction and rate in 15 bins), and the same under :obj:`"ctcvr_..."` of click and
        conversion together on all rows, with :obj:`"ctcvr_gauc"`. What the rows do not define is
        NaN, and the others stand: an AUC of rows of one class, a GAUC where no user has rows of
        both, and what is measured on clicked rows where there are none.

    Raises:
        ValueError: If there are no rows, or a logit is NaN or infinite.

    Warns for each metric that is NaN, and says why.
    """
    num_columns = _agree_on_maximum(len(outputs[0]) if outputs else 0, device)
    columns = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    # A process may have no batch while others have.
    columns = columns or [torch.empty(0, device=device)] * max(num_columns, 3)
    logits, target, user = columns[0], columns[1], columns[2].long()
    values = {
        'gauc': _gauc('gauc', logits, target, user),
        'auc': _auc('auc', logits, target),
        'logloss': _mean(
            F.binary_cross_entropy_with_logits(logits.double(), target.double(), reduction='none')
        ),
    }
    if not math.isfinite(values['logloss']):
        raise ValueError(
            f'The log loss is {values["logloss"]}: the model returned an infinite logit.'
        )
    if num_columns > 3:
        values |= _conversion_metrics(user, target == 1, *columns[3:])
    return values


def _conversion_metrics(
    user: Tensor, clicked: Tensor, logits: Tensor, log_both: Tensor, conversion: Tensor
) -> dict[str, float]:
    both = log_both.exp()
    try:
        return {
            **_metrics_of_clicked(logits[clicked], conversion[clicked], _mean(clicked.double())),
            'ctcvr_gauc': _gauc('ctcvr_gauc', log_both, conversion, user),
            'ctcvr_auc': _auc('ctcvr_auc', log_both, conversion),
            'ctcvr_mse': _mean((both - conversion).square()),
            'ctcvr_calibration_error': _calibration_error(both, conversion),
        }
    except ValueError as error:
        raise ValueError(f'Of conversions: {error}') from error


def _metrics_of_clicked(logits: Tensor, converted: Tensor, click_rate: float) -> dict[str, float]:
    names = ('cvr_auc', 'cvr_mse', 'cvr_calibration_error')
    # Of all processes: one of them may well have no click.
    if click_rate == 0:
        for name in names:
            _warn_undefined(name, 'no row is clicked')
        return dict.fromkeys(names, math.nan)
    probability = logits.double().sigmoid()
    auc = _auc('cvr_auc', logits, converted)
    mse = _mean((probability - converted).square())
    return dict(zip(names, (auc, mse, _calibration_error(probability, converted)), strict=True))


def _agree_on_maximum(number: int, device: torch.device) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    maximum = torch.tensor(number, device=device)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return int(maximum)


def _auc(name: str, preds: Tensor, target: Tensor) -> float:
    # The AUC of a single group. torchmetrics' own takes the sigmoid of logits, which is 1 for all
    # the large ones; on the other hand it has no log loss of two classes.
    group = torch.zeros_like(target, dtype=torch.long)
    return _gauc(name, preds, target, group, 'its rows are all of one class')


def _gauc(
    name: str,
    preds: Tensor,
    target: Tensor,
    group: Tensor,
    reason: str = 'no user has rows of both classes',
) -> float:
    metric = GroupAUROC().to(preds.device)
    metric.update(preds, target, group)
    try:
        return float(metric.compute())
    except OneClassError:
        _warn_undefined(name, reason)
        return math.nan


def _warn_undefined(name: str, reason: str) -> None:
    warnings.warn(f"'{name}' is not defined here, and NaN, as {reason}.", stacklevel=2)


def _mean(values: Tensor) -> float:
    # In this order: to() forgets the type that sums are made in.
    metric = MeanMetric(nan_strategy='disable').to(values.device).set_dtype(torch.double)
    metric.update(values)
    return float(metric.compute())


def _calibration_error(probability: Tensor, target: Tensor) -> float:
    # Without its checks, which refuse the empty share of a process.
    metric = BinaryCalibrationError(n_bins=15, validate_args=False).to(probability.device)
    metric.update(probability.float(), target.long())
    return float(metric.compute())
