r"""The area under the ROC curve within groups (GAUC), which torchmetrics does not have."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mag.checks import check_choice, check_tensor, check_values

WEIGHTINGS = ('impressions', 'positives', 'none')


class OneClassError(ValueError):
    r"""Says that there is nothing to rank: no group has both a click and a row without one."""


def group_auroc(
    preds: Tensor, target: Tensor, group: Tensor, weighting: str = 'impressions'
) -> tuple[Tensor, int]:
    r"""The area under the ROC curve within groups, averaged over the groups (GAUC).

    .. math::
        \mathrm{GAUC} = \frac{\sum_g w_g \, \mathrm{AUC}_g}{\sum_g w_g}, \qquad
        \mathrm{AUC}_g = \frac{1}{P_g N_g} \sum_{i: y_i = 1} \sum_{j: y_j = 0}
        \left( [s_i > s_j] + \tfrac{1}{2} [s_i = s_j] \right)

    over the groups with :math:`P_g > 0` positives and :math:`N_g > 0` negatives; the other groups
    have no AUC and are left out. With a single group it is the AUC. The pairs are counted in
    integers: the result is exact up to one rounding a group, whatever the dtype of :obj:`preds`.

    Args:
        preds (torch.Tensor): Scores of any scale, larger for a likelier click, floating point,
            shape :obj:`[N]`. Only their order counts: logits and probabilities give the same
            value, unless rounding makes probabilities tie.
        target (torch.Tensor): Clicks, 0 or 1, shape :obj:`[N]`.
        group (torch.Tensor): The group of each row, usually the user, non-negative integers,
            shape :obj:`[N]`.
        weighting (str, optional): :math:`w_g`: :obj:`"impressions"` is the group's number of rows,
            :obj:`"positives"` its number of clicks, :obj:`"none"` is 1.
            (default: :obj:`"impressions"`)

    Returns:
        The average as a float64 scalar, and the number of groups that were left out.

    Raises:
        TypeError: If :obj:`preds` is not floating point or :obj:`group` is not integer.
        ValueError: If the shapes differ, there are no rows, a prediction is NaN, a target is
            neither 0 nor 1, a group is negative, :obj:`weighting` is unknown or no group has both
            a click and a row without one.
    """
    check_choice(WEIGHTINGS, weighting=weighting)
    _check_rows('group_auroc', preds, target, group)
    if preds.numel() == 0:
        raise ValueError(
            'There is nothing to evaluate: group_auroc needs at least one row, but got none.'
        )
    clicked = target == 1
    for name, value, good, expected in (
        ('preds', preds, ~preds.isnan(), 'numbers'),
        ('target', target, clicked | (target == 0), '0 and 1'),
        ('group', group, group >= 0, 'ids of at least 0'),
    ):
        check_values('group_auroc', name, value, good, expected, wait=True)

    positives, negatives, pairs = _count_pairs(preds, clicked, group)
    kept = (positives > 0) & (negatives > 0)
    num_dropped = int((~kept).sum())
    if num_dropped == kept.numel():
        raise OneClassError(
            f'group_auroc found no group with both classes: {num_dropped} groups over '
            f'{preds.numel()} rows, of which {int(clicked.sum())} are clicks.'
        )
    positives, negatives = positives[kept].double(), negatives[kept].double()
    auroc = pairs[kept].double() / (2 * positives * negatives)
    weight = {
        'impressions': positives + negatives,
        'positives': positives,
        'none': torch.ones_like(positives),
    }[weighting]
    return (weight * auroc).sum() / weight.sum(), num_dropped


def _count_pairs(preds: Tensor, clicked: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of each group its positives, its negatives, and twice the pairs that are ordered rightly."""
    # Group, prediction and target of a row are packed into one integer (31, 32 and 1 bits), because
    # sorting values is several times faster than sorting an order to gather by.
    if int(group.max()) >= 2**30:
        group = group.unique(return_inverse=True)[1]
    key = group.long() << 33
    key.add_(_order(preds), alpha=2).add_(clicked)
    # NumPy's sort uses the processor's vector instructions, torch's does not.
    key = key.sort().values if key.is_cuda else torch.from_numpy(np.sort(key.numpy()))

    # Runs of equal group and prediction: `end` is the row after a run, counts are over all rows
    # up to it.
    tie = key >> 1
    end = _ends(tie)
    positives_end = (key & 1).cumsum(0)[end - 1]
    negatives_end = end - positives_end
    positives = _differences(positives_end)
    # A positive beats the negatives before its run twice, and ties with those of its run once.
    pairs_end = (positives * (negatives_end + _previous(negatives_end))).cumsum(0)

    group_end = _ends((tie[end - 1] + 2**31) >> 32) - 1
    positives = _differences(positives_end[group_end])
    negatives_end = negatives_end[group_end]
    pairs = _differences(pairs_end[group_end]) - 2 * positives * _previous(negatives_end)
    return positives, _differences(negatives_end), pairs


def _order(preds: Tensor) -> Tensor:
    r"""32-bit integers in the order of the predictions, equal where these are equal."""
    narrow = preds.float()
    if preds.dtype == torch.double and not torch.equal(narrow.double(), preds):
        return preds.unique(return_inverse=True)[1] - 2**31
    # The bits of non-negative floats are ordered as integers, those of negative floats in reverse.
    # Adding zero turns -0.0, whose bits differ, into 0.0.
    bits = (narrow + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _ends(values: Tensor) -> Tensor:
    r"""The position after each run of equal values."""
    return F.pad((values[1:] != values[:-1]).nonzero().view(-1) + 1, (0, 1), value=values.numel())


def _previous(values: Tensor) -> Tensor:
    return F.pad(values[:-1], (1, 0))


def _differences(values: Tensor) -> Tensor:
    return values - _previous(values)


def _check_rows(caller: str, preds: Tensor, target: Tensor, group: Tensor) -> None:
    check_tensor(caller, 'preds', preds, ('N',), 'floats')
    check_tensor(caller, 'target', target, (preds.numel(),), 'numbers')
    check_tensor(caller, 'group', group, (preds.numel(),), 'integers')


class GroupAUROC(Metric):
    r"""The area under the ROC curve within groups, averaged over the groups (GAUC), over batches
    and processes; see :func:`group_auroc` for the formula.

    Every row is kept until :meth:`compute`, since the AUC of a group cannot be put together from
    those of its parts.

    Args:
        weighting (str, optional): :obj:`"impressions"`, :obj:`"positives"` or :obj:`"none"`.
            (default: :obj:`"impressions"`)
        **kwargs (optional): Arguments of :class:`torchmetrics.Metric`.

    Attributes:
        num_dropped (int): After :meth:`compute`, the number of groups of one class, which were
            left out.

    Raises:
        TypeError: If the predictions are not floating point or the groups are not integer.
        ValueError: On any other input that :func:`group_auroc` refuses: shapes when they are given,
            values at :meth:`compute`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    preds: list[Tensor]
    target: list[Tensor]
    group: list[Tensor]

    def __init__(self, weighting: str = 'impressions', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice(WEIGHTINGS, weighting=weighting)
        self.weighting = weighting
        self.num_dropped: int | None = None
        for name in ('preds', 'target', 'group'):
            self.add_state(name, default=[], dist_reduce_fx='cat')

    def update(self, preds: Tensor, target: Tensor, group: Tensor) -> None:
        r"""Adds rows.

        Args:
            preds (torch.Tensor): Scores, larger for a likelier click, shape :obj:`[N]`.
            target (torch.Tensor): Clicks, 0 or 1, shape :obj:`[N]`.
            group (torch.Tensor): The group of each row, shape :obj:`[N]`.
        """
        _check_rows('GroupAUROC', preds, target, group)
        # All processes must hold the same types to gather each other's rows.
        self.preds.append(preds.detach().double())
        self.target.append(target.detach().float())
        self.group.append(group.detach().long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        r"""Gathers the rows of all processes, of which some may have none."""
        if not self.preds:
            none = torch.empty(0, device=self.device)
            self.update(none, none, none.long())
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        r"""The average over all rows so far, a float64 scalar."""
        value, self.num_dropped = group_auroc(
            dim_zero_cat(self.preds),
            dim_zero_cat(self.target),
            dim_zero_cat(self.group),
            self.weighting,
        )
        return value
