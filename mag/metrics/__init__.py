r"""Metrics of click and conversion prediction."""

from mag.metrics.bayes_optimal import bayes_optimal
from mag.metrics.click_metrics import click_metrics
from mag.metrics.group_auroc import GroupAUROC, group_auroc
from mag.metrics.popularity_audit import AuditGroup, popularity_audit
from mag.metrics.relative_improvement import relative_improvement

__all__ = [
    'AuditGroup',
    'GroupAUROC',
    'bayes_optimal',
    'click_metrics',
    'group_auroc',
    'popularity_audit',
    'relative_improvement',
]
