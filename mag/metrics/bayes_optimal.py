import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from mag.checks import check_tensor, check_values


def bayes_optimal(probability: Tensor, weight: Tensor | None = None) -> tuple[float, float]:
    r"""The AUC and the log loss of whoever knows the probability of every label: no model can
    expect better.

    .. math::
        \mathrm{AUC}^\star = \frac{\sum_{i \neq j} w_i p_i \, w_j (1 - p_j) \left( [p_i > p_j] +
        \tfrac{1}{2} [p_i = p_j] \right)}{\sum_{i \neq j} w_i p_i \, w_j (1 - p_j)}, \qquad
        \mathrm{logloss}^\star = - \frac{\sum_i w_i \left( p_i \log p_i + (1 - p_i) \log (1 - p_i)
        \right)}{\sum_i w_i}

    Args:
        probability (torch.Tensor): The probability :math:`p` of each label to be 1, shape
            :obj:`[N]`.
        weight (torch.Tensor, optional): The probability :math:`w` of each row to be there, such as
            that of a click for conversions on clicks, shape :obj:`[N]`. (default: :obj:`None`)

    Raises:
        TypeError: If an argument holds no floats.
        ValueError: If the shapes differ, a value is outside :math:`[0, 1]`, or both classes are
            never there.
    """
    check_tensor('bayes_optimal', 'probability', probability, ('N',), 'floats')
    weight = torch.ones_like(probability) if weight is None else weight
    check_tensor('bayes_optimal', 'weight', weight, (probability.numel(),), 'floats')
    for name, value in (('probability', probability), ('weight', weight)):
        good = (value >= 0) & (value <= 1)
        check_values('bayes_optimal', name, value, good, 'numbers from 0 to 1', wait=True)
    # NumPy sums in the same order on any number of threads, and so to the same bits.
    order = probability.cpu().double().argsort()
    p, w = probability.cpu().double()[order].numpy(), weight.cpu().double()[order].numpy()
    positive, negative = w * p, w * (1 - p)
    same_row = (positive * negative).sum()
    pairs = positive.sum() * negative.sum() - same_row
    if not pairs > 0:
        raise ValueError(
            f'There is nothing to rank: {p.size} rows, of which {positive.sum():g} are expected to '
            f'be 1 and {negative.sum():g} to be 0.'
        )
    start = np.flatnonzero(np.diff(p, prepend=-1.0))
    positive, negative = (np.add.reduceat(mass, start) for mass in (positive, negative))
    lower = negative.cumsum() - negative
    ordered = (positive * (lower + negative / 2)).sum() - same_row / 2
    entropy = entr(p) + entr(1 - p)
    return float(ordered / pairs), float((w * entropy).sum() / w.sum())
