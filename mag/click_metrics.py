import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from mag.metrics import GroupAUROC


class ClickMetrics(torch.nn.Module):
    r"""AUC, GAUC (by user, weighted by impressions) and log loss, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.auc = BinaryAUROC(thresholds=None, validate_args=False)
        self.gauc = GroupAUROC()
        # torchmetrics has no log loss of two classes.
        self.logloss = MeanMetric(nan_strategy='disable').set_dtype(torch.double)

    def compute(self, outputs: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        r"""The values under :obj:`"auc"`, :obj:`"gauc"` and :obj:`"logloss"`.

        Args:
            outputs (list): The logits, labels and users of each batch.

        Raises:
            ValueError: If there is no batch, a logit is NaN, or no user has both classes.
        """
        if not outputs:
            raise ValueError('There is nothing to evaluate: the loader yielded no batch.')
        logits, target, group = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        logits, target = logits.double(), target.double()
        self.gauc.update(logits, target, group)
        # torchmetrics takes predictions within [0, 1] for probabilities and others for logits, and
        # in float32 distinct large logits would become equal probabilities.
        self.auc.update(logits.sigmoid(), target.long())
        self.logloss.update(F.binary_cross_entropy_with_logits(logits, target, reduction='none'))
        # GAUC comes first because it refuses what has no AUC either.
        gauc, auc, logloss = (
            float(metric.compute()) for metric in (self.gauc, self.auc, self.logloss)
        )
        for metric in (self.gauc, self.auc, self.logloss):
            metric.reset()
        return {'auc': auc, 'gauc': gauc, 'logloss': logloss}
