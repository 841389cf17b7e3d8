from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class ExposureBatch(NamedTuple):
    r"""A batch of :math:`B` exposures with their features and what followed.

    Attributes:
        user (torch.Tensor): User ids, shape :obj:`[B]`.
        item (torch.Tensor): Item ids, shape :obj:`[B]`.
        sparse (torch.Tensor): The ids of all categorical fields, :obj:`-1` where there is none, in
            the order of :obj:`ExposureLoader.fields`, shape :obj:`[B, F_s]`.
        dense (torch.Tensor): The dense features, shape :obj:`[B, F_d]`.
        label (torch.Tensor or None): 1 for a click, 0 for none, shape :obj:`[B]`.
        conversion (torch.Tensor or None): 1 for a click that converted, shape :obj:`[B]`.
        behavior (torch.Tensor or None): The micro-behaviors after the click, shape
            :obj:`[B, N]`.
        counts (torch.Tensor or None): The exposures and clicks before each of its views, where
            :class:`~mag.transforms.TargetCounts` counted them, shape :obj:`[B, C, 2]`.
    """

    user: Tensor
    item: Tensor
    sparse: Tensor
    dense: Tensor
    label: Tensor | None = None
    conversion: Tensor | None = None
    behavior: Tensor | None = None
    counts: Tensor | None = None


# An exported program that takes batches is saved under this name, and its example batch is read
# back without unpickling code.
_register_namedtuple(ExposureBatch, serialized_type_name='mag.loader.ExposureBatch')
torch.serialization.add_safe_globals([ExposureBatch])
