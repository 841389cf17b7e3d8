import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from mag.metrics import GroupAUROC


def click_metrics(
    outputs: list[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> dict[str, float]:
    r"""AUC, GAUC (by user, weighted by impressions) and log loss, over all processes.

    Args:
        outputs (list): The logits, labels and users of each batch of this process.
        device (torch.device): Where they are.

    Returns:
        The values under :obj:`"auc"`, :obj:`"gauc"` and :obj:`"logloss"`.

    Raises:
        ValueError: If there are no rows, a logit is NaN or infinite, or no user has both classes.
    """
    # A process may have no batch while others have.
    none = torch.empty(0, device=device)
    logits, target, group = (
        torch.cat(parts) for parts in zip(*outputs, (none, none, none.long()), strict=True)
    )
    # AUC is that of a single group. torchmetrics' own takes the sigmoid of logits, which is 1 for
    # all the large ones; on the other hand it has no log loss of two classes.
    auc, gauc = GroupAUROC().to(device), GroupAUROC().to(device)
    # In this order: to() forgets the type that sums are made in.
    logloss = MeanMetric(nan_strategy='disable').to(device).set_dtype(torch.double)
    auc.update(logits, target, torch.zeros_like(group))
    gauc.update(logits, target, group)
    logloss.update(
        F.binary_cross_entropy_with_logits(logits.double(), target.double(), reduction='none')
    )
    # GAUC comes first because it refuses what has no AUC either.
    values = {
        name: float(metric.compute())
        for name, metric in (('gauc', gauc), ('auc', auc), ('logloss', logloss))
    }
    if not math.isfinite(values['logloss']):
        raise ValueError(
            f'The log loss is {values["logloss"]}: the model returned an infinite logit.'
        )
    return values
