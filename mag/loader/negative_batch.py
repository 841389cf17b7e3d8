from typing import NamedTuple

from torch import Tensor


class NegativeBatch(NamedTuple):
    r"""A batch of :math:`B` clicks with items that the same users did not click.

    Attributes:
        user (torch.Tensor): User ids, shape :obj:`[B]`.
        item (torch.Tensor): The item that each clicked, shape :obj:`[B]`.
        negative (torch.Tensor): Items that each did not click, shape :obj:`[B, N]`.
    """

    user: Tensor
    item: Tensor
    negative: Tensor
