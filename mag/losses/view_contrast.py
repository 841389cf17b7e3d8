r"""The loss that contrasts two views of the same rows."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mag.checks import check_choice, check_numbers, check_tensor

# So many similarities are held at once.
_BLOCK = 2**20
_LOG_EPSILON = math.log(1e-5)


def view_contrast(
    ego: Tensor, view1: Tensor, view2: Tensor, temperature: float = 0.2, form: str = 'released'
) -> Tensor:
    r"""Draws the views of a row together, and the first view of each row away from the second views
    of all rows, from the `"SimCEN: Simple Contrast-enhanced Network for CTR Prediction"
    <https://doi.org/10.1145/3664647.3681203>`_ paper (released code)

    .. math::
        \mathcal{L} = - \frac{1}{B} \sum_i \log \left( \frac{\exp(p_i / \tau)}{\sum_j \exp(
        \cos(\mathbf{a}_i, \mathbf{b}_j) / \tau)} + 10^{-5} \right), \qquad
        p_i = \frac{\cos(\mathbf{e}_i, \mathbf{a}_i) + \cos(\mathbf{e}_i, \mathbf{b}_i)}{2}.

    What draws together, :math:`p_i`, is the ego's similarity to the two views, which is not among
    those of the denominator: the loss may be negative. With :obj:`form="standard"`
    :math:`p_i = \cos(\mathbf{a}_i, \mathbf{b}_i)`, which is, and the loss is InfoNCE.

    The :math:`B^2` similarities are never held together: memory grows as :math:`B`, and the
    backward pass computes them a second time.

    Args:
        ego (torch.Tensor): The ego :math:`\mathbf{e}` of each row, shape :obj:`[B, t]`. The
            standard form does not read it.
        view1 (torch.Tensor): Its first view :math:`\mathbf{a}`, shape :obj:`[B, t]`.
        view2 (torch.Tensor): Its second view :math:`\mathbf{b}`, shape :obj:`[B, t]`.
        temperature (float, optional): :math:`\tau`. (default: :obj:`0.2`)
        form (str, optional): :obj:`"released"` or :obj:`"standard"`. (default: :obj:`"released"`)

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If rows hold no floats, or the temperature is no number.
        ValueError: If shapes differ, the form is unknown, or the temperature is not positive.
    """
    check_choice(('released', 'standard'), form=form)
    check_numbers('(0, inf)', temperature=temperature)
    check_tensor('view_contrast', 'ego', ego, ('B', 't'), 'floats')
    for name, view in (('view1', view1), ('view2', view2)):
        check_tensor('view_contrast', name, view, tuple(ego.shape), 'floats')
    with torch.autocast(ego.device.type, enabled=False):
        ego, view1, view2 = map(_direction, (ego, view1, view2))
        together = (ego * (view1 + view2) / 2 if form == 'released' else view1 * view2).sum(1)
        against = _LogSums.apply(view1 / temperature, view2)
        ratio = together / temperature - against
        # At low temperatures its exponential has no room in its type.
        return -torch.logaddexp(ratio, torch.full_like(ratio, _LOG_EPSILON)).mean()


def _direction(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # Zeros have no direction, and the gradient of one would be without bounds.
    return x / norm.where(norm > 0, 1)


class _LogSums(torch.autograd.Function):
    r"""The logarithm of the sum over the rows of :obj:`y` of the exponential of their products with
    each row of :obj:`x`, a block of these after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.size = max(_BLOCK // max(len(y), 1), 1)
        # Results have places before the first block: in those that it leaves, the next has no room.
        sums = x.new_empty(len(x))
        for block, out in zip(x.split(ctx.size), sums.split(ctx.size)):
            out.copy_((block @ y.t()).logsumexp(1))
        ctx.save_for_backward(x, y, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, sums = ctx.saved_tensors
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        blocks = zip(*(of.split(ctx.size) for of in (x, sums, grad, grad_x)))
        # Nothing keeps a caller from going back within autocast.
        with torch.autocast(x.device.type, enabled=False):
            for block, log_sum, of_sum, out in blocks:
                share = (block @ y.t()).sub_(log_sum.unsqueeze(1)).exp_().mul_(of_sum.unsqueeze(1))
                out.copy_(share @ y)
                grad_y.addmm_(share.t(), block)
        return grad_x, grad_y
