from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple
from torch_geometric.data import HeteroData

from mag.loader.exposure_batch import ExposureBatch
from mag.loader.history_batch import HistoryBatch
from mag.loader.pair_batch import PairBatch


class JoinedBatch(NamedTuple):
    r"""A batch of :math:`B` exposures with what several loaders read of them.

    Attributes:
        user (torch.Tensor): User ids, shape :obj:`[B]`.
        item (torch.Tensor): Item ids, shape :obj:`[B]`.
        label (torch.Tensor or None): 1 for a click, 0 for none, shape :obj:`[B]`.
        conversion (torch.Tensor or None): 1 for a click that converted, shape :obj:`[B]`.
        behavior (torch.Tensor or None): The micro-behaviors after the click, shape :obj:`[B, N]`.
        pairs (PairBatch or None): Their macro rows.
        features (ExposureBatch or None): Their features.
        histories (HistoryBatch or None): What their users clicked before.
        paths (HeteroData or None): Their paths.
    """

    user: Tensor
    item: Tensor
    label: Tensor | None = None
    conversion: Tensor | None = None
    behavior: Tensor | None = None
    pairs: PairBatch | None = None
    features: ExposureBatch | None = None
    histories: HistoryBatch | None = None
    paths: HeteroData | None = None


# An exported program that takes batches is saved under this name, and its example batch is read
# back without unpickling code.
_register_namedtuple(JoinedBatch, serialized_type_name='mag.loader.JoinedBatch')
torch.serialization.add_safe_globals([JoinedBatch])
