from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class HistoryBatch(NamedTuple):
    r"""A batch of :math:`B` exposures with what their users clicked before.

    Attributes:
        user (torch.Tensor): User ids, shape :obj:`[B]`.
        item (torch.Tensor): Item ids, shape :obj:`[B]`.
        history (torch.Tensor): The items that the user clicked last, strictly before the exposure,
            newest last, padded on the left with :obj:`-1`, shape :obj:`[B, length]`.
        slot (torch.Tensor or None): The time slot that serves each exposure, shape :obj:`[B]`.
        domain (torch.Tensor or None): The domain of each exposure, shape :obj:`[B]`.
        label (torch.Tensor or None): 1 for a click, 0 for none, shape :obj:`[B]`.
    """

    user: Tensor
    item: Tensor
    history: Tensor
    slot: Tensor | None = None
    domain: Tensor | None = None
    label: Tensor | None = None


# An exported program that takes batches is saved under this name, and its example batch is read
# back without unpickling code.
_register_namedtuple(HistoryBatch, serialized_type_name='mag.loader.HistoryBatch')
torch.serialization.add_safe_globals([HistoryBatch])
