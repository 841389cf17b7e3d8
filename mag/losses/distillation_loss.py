r"""The loss by which a model learns what another one answers."""

import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_numbers, check_tensor


def distillation_loss(logit: Tensor, teacher_logit: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The mean cross-entropy between the clicks that a teacher expects and those that a student
    does, both at a temperature, from `"Distilling the Knowledge in a Neural Network"
    <https://arxiv.org/abs/1503.02531>`_ (section 2) for two classes,

    .. math::
        T^2 \, \mathrm{BCE} \left( \sigma(t / T), \sigma(z / T) \right),

    whose gradient :math:`T (\sigma(z / T) - \sigma(t / T))` is of one size at all temperatures: at
    a high one it is :math:`(z - t) / 4`, and logits are matched. No gradient reaches the teacher.

    Args:
        logit (torch.Tensor): The logits :math:`z` of the student, shape :obj:`[B]`.
        teacher_logit (torch.Tensor): The logits :math:`t` of the teacher, shape :obj:`[B]`.
        temperature (float, optional): The :math:`T`, above 0. (default: :obj:`1.0`)

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If logits are no floats, or the temperature is no number.
        ValueError: If the shapes differ, or the temperature is not positive.
    """
    check_numbers('(0, inf)', temperature=temperature)
    check_tensor('distillation_loss', 'logit', logit, ('B',), 'floats')
    check_tensor('distillation_loss', 'teacher_logit', teacher_logit, tuple(logit.shape), 'floats')
    soft_label = (teacher_logit.detach().float() / temperature).sigmoid()
    loss = F.binary_cross_entropy_with_logits(logit.float() / temperature, soft_label)
    return temperature**2 * loss
