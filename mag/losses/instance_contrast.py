r"""The loss by which two encoders come to give alike vectors for one row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_numbers, check_tensor


def instance_contrast(one: Tensor, other: Tensor, temperature: float = 0.7) -> Tensor:
    r"""Tells which of the vectors of one modality belongs to which of the other, from the `"FLIP:
    Fine-grained Alignment between ID-based Models and Pretrained Language Models for CTR
    Prediction" <https://arxiv.org/abs/2310.19453>`_ paper (its released code)

    .. math::
        \mathcal{L} = - \frac{1}{2 B} \sum_{i = 1}^{B} \left( \log \frac{\exp s_{i i}}{\sum_j \exp
        s_{i j}} + \log \frac{\exp s_{i i}}{\sum_j \exp s_{j i}} \right), \qquad s_{i j} =
        \frac{\mathbf{z}_i^{\top} \mathbf{z}'_j}{\tau}.

    The vectors are not normalised: what gives them bounds them, see
    :class:`~mag.nn.ProjectionHead`.

    Args:
        one (torch.Tensor): The vectors :math:`\mathbf{z}` of one modality, shape :obj:`[B, C]`.
        other (torch.Tensor): Those :math:`\mathbf{z}'` of the other, shape :obj:`[B, C]`.
        temperature (float, optional): The :math:`\tau`. (default: :obj:`0.7`)

    Raises:
        TypeError: If the vectors are no floats, or :obj:`temperature` is no number.
        ValueError: If the shapes differ, or :obj:`temperature` is not positive.
    """
    check_numbers('(0, inf)', temperature=temperature)
    check_tensor('instance_contrast', 'one', one, ('B', 'C'), 'floats')
    check_tensor('instance_contrast', 'other', other, tuple(one.shape), 'floats')
    score = (one.float() @ other.float().t()) / temperature
    own = torch.arange(score.size(0), device=score.device)
    return (F.cross_entropy(score, own) + F.cross_entropy(score.t(), own)) / 2


def gather_rows(x: Tensor) -> Tensor:
    r"""The rows of all processes, by rank, of a tensor of which each has some; without processes
    the tensor itself. A gradient flows into a process's own rows alone.

    Args:
        x (torch.Tensor): Shape :obj:`[B, C]`; :obj:`B` may differ between processes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    world_size = torch.distributed.get_world_size()
    sizes = [torch.empty(1, dtype=torch.long, device=x.device) for _ in range(world_size)]
    torch.distributed.all_gather(sizes, torch.tensor([x.size(0)], device=x.device))
    # Every process has to give as many rows.
    most = max(map(int, sizes))
    padded = F.pad(x.detach(), (0, 0, 0, most - x.size(0))).contiguous()
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded)
    rows = [part[: int(size)] for part, size in zip(gathered, sizes, strict=True)]
    rows[torch.distributed.get_rank()] = x
    return torch.cat(rows)
