r"""The loss by which masked ids are recovered without a softmax over all values of all fields."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_tensor


def masked_id_loss(
    hidden: Tensor, target: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, probability: Tensor
) -> Tensor:
    r"""Noise-contrastive estimation of the masked ids, from the `"FLIP: Fine-grained Alignment
    between ID-based Models and Pretrained Language Models for CTR Prediction"
    <https://arxiv.org/abs/2310.19453>`_ paper (its released code): tells the masked id :math:`t` of
    each of :math:`M` entries from :math:`k` ids that were drawn with probabilities :math:`p`

    .. math::
        \mathcal{L} = - \frac{1}{M} \sum_{i = 1}^{M} \left( \log \sigma(r_{t_i}) + \sum_{j \in
        \mathrm{noise}(i)} \log \left( 1 - \sigma(r_j) \right) \right), \qquad r_j =
        \mathbf{h}_i^{\top} \mathbf{o}_j + b_j - \ln Z - \ln p_j - \ln k,

    with :math:`\ln Z = \ln N`. A bias that starts as :math:`b_j = \ln p_j + \ln Z` takes the noise
    out at first. Without entries the loss is 0, with gradients of 0.

    Args:
        hidden (torch.Tensor): The :math:`\mathbf{h}` of each masked entry, shape :obj:`[M, d]`.
        target (torch.Tensor): The ids that were masked, shape :obj:`[M]`.
        noise (torch.Tensor): The ids that were drawn, shape :obj:`[M, k]`.
        weight (torch.Tensor): The :math:`\mathbf{o}` of all ids, shape :obj:`[N, d]`.
        bias (torch.Tensor): The :math:`b` of all ids, shape :obj:`[N]`.
        probability (torch.Tensor): The :math:`p` of all ids, positive, shape :obj:`[N]`.

    Raises:
        TypeError: If ids are no integers, or the others no floats.
        ValueError: If a shape does not fit the others.
    """
    name = 'masked_id_loss'
    check_tensor(name, 'hidden', hidden, ('M', 'd'), 'floats')
    check_tensor(name, 'target', target, (hidden.size(0),), 'integers')
    check_tensor(name, 'noise', noise, (hidden.size(0), 'k'), 'integers')
    check_tensor(name, 'weight', weight, ('N', hidden.size(1)), 'floats')
    for of, value in (('bias', bias), ('probability', probability)):
        check_tensor(name, of, value, (weight.size(0),), 'floats')
    ids = torch.cat([target.unsqueeze(1), noise], dim=1)
    rows = weight.index_select(0, ids.flatten()).view(*ids.shape, weight.size(1))
    score = torch.einsum('md,mkd->mk', hidden.float(), rows.float())
    # Of an id alone, so that what is taken per entry is one number.
    of_id = bias.float() - probability.float().log()
    constant = math.log(weight.size(0)) + math.log(max(noise.size(1), 1))
    logit = score + of_id.index_select(0, ids.flatten()).view(ids.shape) - constant
    label = torch.zeros_like(logit)
    label[:, 0] = 1
    loss = F.binary_cross_entropy_with_logits(logit, label, reduction='sum')
    return loss / max(hidden.size(0), 1)
