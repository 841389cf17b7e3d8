r"""The graph of clicks between users and items, for models that propagate over the whole of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.cutoff import history_clock
from mag.schema import CLICKS


def clicks_before(data: HeteroData) -> Tensor:
    r"""The clicks before the first cutoff of a part, from users to items, which are numbered after
    the users, shape :obj:`[2, E]`.

    So no labelled row of a training part is among them.
    """
    clicks = data[CLICKS]
    user, item = clicks.edge_index[:, history_clock(data) < clicks.cutoff.min()]
    return torch.stack([user, item + data['user'].num_nodes])


class NodeMap:
    r"""A constant sparse matrix over nodes, which a copy of a model shares.

    A buffer would not do: torch cannot copy sparse ones, and an average of the weights would also
    average them.

    Args:
        matrix (Tensor): Its rows, as a sparse CSR tensor.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __deepcopy__(self, memo: dict[int, Any]) -> 'NodeMap':
        return self

    def on(self, device: torch.device) -> Tensor:
        r"""The matrix on a device, where it stays."""
        self.matrix = self.matrix.to(device)
        return self.matrix


class Propagate(torch.autograd.Function):
    r"""A linear map and, for its gradient, the transposed map.

    Torch differentiates a sparse product by sorting the transpose anew at every step, which takes
    ten times as long as the product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        propagate: Callable[[Tensor], Tensor],
        transposed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.transposed = transposed
        return propagate(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed(gradients[0]), None, None
