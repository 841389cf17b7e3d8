import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mag.losses import masked_id_loss
from mag.models._field_embedding import FieldEmbedding

NUM_NOISE = 25


class MaskedIds(torch.nn.Module):
    r"""Tells which id of a field was masked, among the ids of all fields.

    Args:
        num_values (Mapping[str, int]): The number of values of each field, by its name.
        fields (Sequence[str]): The name of each column.
        embedding_dim (int): The size of what an id is compared with.
        value_counts (Mapping[str, Tensor]): How often each value of a field was seen; what never
            was counts as once.
    """

    count: Tensor

    def __init__(
        self,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        embedding_dim: int,
        value_counts: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.table = FieldEmbedding('FLIP', num_values, fields, embedding_dim)
        number = self.table.num_embeddings
        self.bias = torch.nn.Parameter(torch.empty(number))
        self.register_buffer('count', torch.ones(number, dtype=torch.long))
        for name, counts in value_counts.items():
            first = self.table.starts[name] + 1
            self.count[first : first + len(counts)] = counts.clamp(min=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        bound = self.table.embedding_dim**-0.5
        torch.nn.init.uniform_(self.table.weight, -bound, bound)
        # At first the scores of an id are those of noise.
        self.bias.copy_((self._probability() * len(self.bias)).log())

    def _probability(self) -> Tensor:
        return self.count / self.count.sum()

    def rows(self, known: Tensor) -> Tensor:
        r"""The rows in the table of what :meth:`FieldEmbedding.known` gives."""
        return known + self.table.offset

    def loss(self, hidden: Tensor, target: Tensor, generator: torch.Generator | None) -> Tensor:
        r"""The loss of masked ids, whose noise is drawn here.

        Args:
            hidden: What was recovered of each, shape :obj:`[M, d]`.
            target: The rows of the ids that were masked, shape :obj:`[M]`.
            generator: What draws; by default the global one.
        """
        shape = (len(target), NUM_NOISE)
        draw = torch.rand(shape, dtype=torch.double, device=target.device, generator=generator)
        below = self.count.cumsum(0)
        # Each count is a stretch of the whole numbers below their sum.
        noise = torch.searchsorted(below, (draw * below[-1]).long(), right=True)
        probability = self._probability()
        return masked_id_loss(hidden, target, noise, self.table.weight, self.bias, probability)

    def scores(self, hidden: Tensor, name: str) -> Tensor:
        r"""The scores of all values of one field, shape :obj:`[M, N]`."""
        first = self.table.starts[name] + 1
        of_field = slice(first, first + self.table.num_values[name])
        return hidden @ self.table.weight[of_field].t() + self.bias[of_field]

    @torch.no_grad()
    def grow(self, num_values: Mapping[str, int]) -> None:
        r"""Adds ids that are new, each as one that was seen once."""
        starts, known = self.table.starts, self.table.num_values
        count, bias = self.count, self.bias
        first_bias = math.log(len(count)) - math.log(int(count.sum()))
        self.table.grow(num_values)
        self.count = count.new_ones(self.table.num_embeddings)
        self.bias = torch.nn.Parameter(bias.new_full((len(self.count),), first_bias))
        for name, there in starts.items():
            here, size = self.table.starts[name], known[name] + 1
            self.count[here : here + size] = count[there : there + size]
            self.bias[here : here + size] = bias[there : there + size]
