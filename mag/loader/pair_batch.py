from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class PairBatch(NamedTuple):
    r"""A batch of :math:`B` user-item pairs with their macro rows.

    Attributes:
        user (torch.Tensor): User ids, shape :obj:`[B]`.
        item (torch.Tensor): Item ids, shape :obj:`[B]`.
        user_hops (tuple[torch.Tensor, ...]): The user's counts over the macro nodes of hop 1, 2,
            ..., each of shape :obj:`[B, M_k]`.
        item_hops (tuple[torch.Tensor, ...]): The item's counts, likewise.
        user_recent (torch.Tensor): The user's last items, newest last, :obj:`-1` where there is
            none, shape :obj:`[B, R]`.
        item_recent (torch.Tensor): The item's last users, likewise.
        label (torch.Tensor or None): 1 for a click, 0 for none, shape :obj:`[B]`.
    """

    user: Tensor
    item: Tensor
    user_hops: tuple[Tensor, ...]
    item_hops: tuple[Tensor, ...]
    user_recent: Tensor
    item_recent: Tensor
    label: Tensor | None = None


# An exported program that takes batches is saved under this name, and its example batch is read
# back without unpickling code.
_register_namedtuple(PairBatch, serialized_type_name='mag.loader.PairBatch')
torch.serialization.add_safe_globals([PairBatch])
