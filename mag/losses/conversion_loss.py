r"""Losses of conversion models, whose labels exist for clicked exposures only.

Notation: :math:`o` is the click, :math:`y` the conversion, :math:`\hat{r}` the predicted click
probability and :math:`\hat{p}` the predicted probability of a conversion after a click.
"""

import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_choice, check_numbers
from mag.losses.log_probability import log_complement

WEIGHTINGS = ('clicks', 'self_normalized', 'mean', 'all')


def propensity_weights(
    click: Tensor, click_logit: Tensor, weighting: str = 'self_normalized', floor: float = 1e-2
) -> Tensor:
    r"""The weights :math:`w` with which the losses :math:`\ell` of a batch's exposures add up to
    :math:`\sum_i w_i \ell_i`.

    No gradient flows through them: a model could else lower its conversion loss by raising click
    probabilities.

    Args:
        click (torch.Tensor): The clicks, 0 or 1, shape :obj:`[B]`.
        click_logit (torch.Tensor): The logits of their predicted probabilities :math:`\hat{r}`,
            shape :obj:`[B]`.
        weighting (str, optional): :obj:`"self_normalized"`: :math:`\frac{o_i}{\hat{r}_i} / \sum_j
            \frac{o_j}{\hat{r}_j}`, inverse propensities that sum to 1. :obj:`"mean"`:
            :math:`\frac{o_i}{B \hat{r}_i}`, whose variance is larger. :obj:`"all"`:
            :math:`\frac{1}{B \hat{r}_i}`, eq. 18 of `GMCM <https://doi.org/10.1145/3397271.3401425>`_
            as printed, which takes an exposure without a click for one without a conversion.
            :obj:`"clicks"`: :math:`o_i / \sum_j o_j`, no propensities: the naive loss on clicks.
            A batch without clicks has weights of zero, but for :obj:`"all"`.
            (default: :obj:`"self_normalized"`)
        floor (float, optional): Smaller probabilities are taken for this one.
            (default: :obj:`1e-2`)

    Raises:
        TypeError: If :obj:`floor` is no number.
        ValueError: If :obj:`weighting` is unknown or :obj:`floor` is no probability above 0.
    """
    check_choice(WEIGHTINGS, weighting=weighting)
    check_numbers('(0, 1]', floor=floor)
    click = click.float()
    if weighting == 'clicks':
        return click / click.sum().clamp(min=1)
    inverse = 1 / click_logit.detach().float().sigmoid().clamp(min=floor)
    if weighting == 'all':
        return inverse / click.numel()
    if weighting == 'mean':
        return click * inverse / click.numel()
    # An inverse propensity is at least 1, so this changes nothing but a sum of zero.
    return click * inverse / (click * inverse).sum().clamp(min=1)


def conversion_loss(logit: Tensor, conversion: Tensor, weight: Tensor) -> Tensor:
    r"""The weighted binary cross-entropy :math:`\sum_i w_i \, \mathrm{BCE}(y_i, \hat{p}_i)`.

    Args:
        logit (torch.Tensor): The logits of :math:`\hat{p}`, shape :obj:`[B]`.
        conversion (torch.Tensor): The conversions :math:`y`, shape :obj:`[B]`.
        weight (torch.Tensor): The weights, see :func:`propensity_weights`, shape :obj:`[B]`.
    """
    return weight @ F.binary_cross_entropy_with_logits(
        logit.float(), conversion.float(), reduction='none'
    )


def behavior_loss(logit: Tensor, behavior: Tensor, weight: Tensor) -> Tensor:
    r"""The weighted binary cross-entropy of the micro-behaviors, a mean over their :math:`N`
    columns: the second term of eq. 18.

    Args:
        logit (torch.Tensor): The logits, shape :obj:`[B, N]`.
        behavior (torch.Tensor): What followed each click, 0 or 1, shape :obj:`[B, N]`.
        weight (torch.Tensor): The weights, see :func:`propensity_weights`, shape :obj:`[B]`.
    """
    loss = F.binary_cross_entropy_with_logits(logit.float(), behavior.float(), reduction='none')
    return weight @ loss.mean(1)


def click_and_conversion_loss(
    click_logit: Tensor, conversion_logit: Tensor, conversion: Tensor
) -> Tensor:
    r"""The mean binary cross-entropy of :math:`\hat{r} \hat{p}`, that an exposure is clicked and
    converted, over all exposures, from `"Entire Space Multi-Task Model"
    <https://arxiv.org/abs/1804.07931>`_ (ESMM). Its gradient reaches both towers, by design.

    Args:
        click_logit (torch.Tensor): The logits of :math:`\hat{r}`, shape :obj:`[B]`.
        conversion_logit (torch.Tensor): The logits of :math:`\hat{p}`, shape :obj:`[B]`.
        conversion (torch.Tensor): The conversions, 0 without a click, shape :obj:`[B]`.
    """
    log_probability = F.logsigmoid(click_logit.float()) + F.logsigmoid(conversion_logit.float())
    label = conversion.float()
    loss = label * log_probability + (1 - label) * log_complement(log_probability)
    return -loss.mean()


def doubly_robust_loss(
    logit: Tensor, imputation_logit: Tensor, conversion: Tensor, weight: Tensor
) -> Tensor:
    r"""The loss of the conversion, imputed for all exposures and corrected on the clicked ones,
    from `"Doubly Robust Joint Learning for Recommendation on Data Missing Not at Random"
    <https://proceedings.mlr.press/v97/wang19n.html>`_,

    .. math::
        \frac{1}{B} \sum_i \hat{e}_i + \sum_i w_i (e_i - \hat{e}_i) + \sum_i w_i (e_i -
        \hat{e}_i)^2, \qquad e_i = \mathrm{BCE}(y_i, \hat{p}_i), \quad \hat{e}_i =
        \mathrm{BCE}(\tilde{p}_i, \hat{p}_i),

    unbiased if either the propensities in :math:`w` or the imputed :math:`\tilde{p}` are right. The
    first two terms train the conversion, the last one the imputation.

    Args:
        logit (torch.Tensor): The logits of :math:`\hat{p}`, shape :obj:`[B]`.
        imputation_logit (torch.Tensor): The logits of :math:`\tilde{p}`, shape :obj:`[B]`.
        conversion (torch.Tensor): The conversions :math:`y`, shape :obj:`[B]`.
        weight (torch.Tensor): The weights, see :func:`propensity_weights`, shape :obj:`[B]`.
    """
    logit, imputed = logit.float(), imputation_logit.float().sigmoid()
    error = F.binary_cross_entropy_with_logits(logit, conversion.float(), reduction='none')
    imputed_error = F.binary_cross_entropy_with_logits(logit, imputed.detach(), reduction='none')
    loss = imputed_error.mean() + weight @ (error - imputed_error)
    # BCE is linear in its label: the difference of the errors is that of the labels, times this.
    difference = (conversion.float() - imputed) * logit.detach()
    return loss + weight @ difference.square()
