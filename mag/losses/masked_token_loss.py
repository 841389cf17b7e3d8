r"""The loss by which masked words are recovered."""

import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_tensor


def masked_token_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""The cross-entropy of the masked tokens, a mean over them, as in the `"FLIP: Fine-grained
    Alignment between ID-based Models and Pretrained Language Models for CTR Prediction"
    <https://arxiv.org/abs/2310.19453>`_ paper. Without masked tokens it is 0, with gradients of 0,
    where the released code has NaN.

    Args:
        logits (torch.Tensor): The logits of all tokens at each masked place, shape :obj:`[K, V]`.
        target (torch.Tensor): The tokens that were masked, shape :obj:`[K]`.

    Raises:
        TypeError: If the logits are no floats, or the tokens no integers.
        ValueError: If a shape does not fit the other.
    """
    check_tensor('masked_token_loss', 'logits', logits, ('K', 'V'), 'floats')
    check_tensor('masked_token_loss', 'target', target, (logits.size(0),), 'integers')
    loss = F.cross_entropy(logits.float(), target.long(), reduction='sum')
    return loss / max(logits.size(0), 1)
