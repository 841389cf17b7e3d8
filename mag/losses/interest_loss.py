r"""The loss by which users' interests in modalities are learned."""

import torch
from torch import Tensor


def interest_loss(
    positive: Tensor,
    negative: Tensor,
    has_positive: Tensor,
    has_negative: Tensor,
    include_positive: bool = False,
) -> Tensor:
    r"""Tells the features of an item :math:`i` that a user clicked from those of items :math:`j`
    that the user did not click, from the `"Click-Through Rate Prediction with Multi-Modal
    Hypergraphs" <https://doi.org/10.1145/3459637.3482327>`_ paper (eq. 9)

    .. math::
        \mathcal{L} = - \Big( f(u, i, \mathbf{a}^m_i) - \log \sum_j \exp f(u, i, \mathbf{a}^m_j)
        \Big),

    averaged over modalities and over pairs :math:`(u, i)`. Eq. 9 is that without the first minus,
    and is said to be minimised; its sum is over negatives alone.

    What an item lacks takes no part: a pair counts in the modalities that the item and one of the
    negatives have. If no pair counts in any, the loss is 0, with gradients of 0.

    Args:
        positive (torch.Tensor): :math:`f(u, i, \mathbf{a}^m_i)`, shape :obj:`[B, M]`.
        negative (torch.Tensor): :math:`f(u, i, \mathbf{a}^m_j)`, shape :obj:`[B, N, M]`.
        has_positive (torch.Tensor): Which modalities the item has, booleans of shape
            :obj:`[B, M]`.
        has_negative (torch.Tensor): Which each of the others has, booleans of shape
            :obj:`[B, N, M]`.
        include_positive (bool, optional): If set to :obj:`True`, the sum is over the positive, too,
            which makes the loss InfoNCE. (default: :obj:`False`)
    """
    takes_part = has_positive & has_negative.any(1)
    # Where nothing takes part it must stay finite: its gradient would be NaN, and not 0.
    ignored = ~has_negative & takes_part.unsqueeze(1)
    against = negative.masked_fill(ignored, -torch.inf)
    if include_positive:
        against = torch.cat([positive.unsqueeze(1), against], dim=1)
    gain = positive - against.logsumexp(1)
    return -(gain * takes_part).sum() / takes_part.sum().clamp(min=1)
