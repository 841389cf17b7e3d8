r"""Probabilities too close to 0 or 1 for their own type, as logarithms."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_complement(log_probability: Tensor) -> Tensor:
    r"""The logarithm of :math:`1 - p` from that of :math:`p`, exact where :math:`p` is tiny, and
    finite, with finite gradients, where it is 1.

    Args:
        log_probability (torch.Tensor): :math:`\log p \leq 0`, any shape.
    """
    tiny = torch.finfo(log_probability.dtype).eps
    # Either form has all digits where the other loses them. The one that is not taken must have a
    # finite gradient, too, since it is multiplied by zero.
    large = torch.log(-torch.expm1(log_probability.clamp(min=-1, max=-tiny)))
    small = torch.log1p(-torch.exp(log_probability.clamp(max=-0.5)))
    return torch.where(log_probability > -math.log(2), large, small)


def logit_of_quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    r"""The logit of :math:`\sigma(a) / \sigma(b)`, where the quotient is at most 1.

    Args:
        numerator (torch.Tensor): The logit :math:`a`, any shape.
        denominator (torch.Tensor): The logit :math:`b`, of the same shape.
    """
    log_quotient = F.logsigmoid(numerator.float()) - F.logsigmoid(denominator.float())
    log_quotient = log_quotient.clamp(max=-1e-6)
    return log_quotient - log_complement(log_quotient)
