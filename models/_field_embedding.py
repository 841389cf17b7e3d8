from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_IDS = ('user', 'item')


class FieldEmbedding(torch.nn.Embedding):
    r"""One table for the embeddings of all categorical fields. Of each field the first row stands
    for none, :obj:`-1`; columns of one name share their rows.

    Args:
        num_values (Mapping[str, int]): The number of values of each field, by its name.
        fields (Sequence[str]): The name of each column of :obj:`ExposureBatch.sparse`.
        embedding_dim (int): Size :math:`d` of an embedding.
        ids (bool): Whether users and items have one of their own.
        id_dropout (float): The share of users and of items that are taken for unknown in a step of
            training.
    """

    offset: Tensor
    is_id: Tensor

    def __init__(
        self,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        embedding_dim: int,
        ids: bool,
        id_dropout: float,
    ) -> None:
        columns = [place for place, name in enumerate(fields) if ids or name not in _IDS]
        names = [fields[place] for place in columns]
        starts, size = {}, 0
        for name in dict.fromkeys(names):
            starts[name] = size
            size += num_values[name] + 1
        super().__init__(max(size, 1), embedding_dim)
        self.columns, self.starts, self.id_dropout = columns, starts, id_dropout
        self.requires_grad_(size > 0)
        offset = torch.tensor([starts[name] for name in names], dtype=torch.long)
        self.register_buffer('offset', offset, persistent=False)
        is_id = torch.tensor([name in _IDS for name in names], dtype=torch.bool)
        self.register_buffer('is_id', is_id, persistent=False)

    def reset_parameters(self) -> None:
        # Near 0, so that a value says something only once it was seen often enough to move it.
        torch.nn.init.normal_(self.weight, std=0.001)

    def known(self, sparse: Tensor) -> Tensor:
        r"""From the ids of all fields, those of the columns that are read, counted from 1, and 0
        for none and for who is taken for unknown."""
        known = sparse[:, self.columns] + 1
        if self.training and self.id_dropout > 0:
            dropped = torch.rand(known.shape, device=known.device) < self.id_dropout
            known = known.masked_fill(dropped & self.is_id, 0)
        return known

    def forward(self, known: Tensor) -> Tensor:
        r"""The embeddings of what :meth:`known` returns, shape :obj:`[B, F, d]`."""
        return look_up(self.weight, known + self.offset)

    def of(self, name: str, known: Tensor) -> Tensor:
        r"""The embeddings of such ids of one field, of any shape."""
        return look_up(self.weight, known + self.starts[name])


def look_up(weight: Tensor, ids: Tensor) -> Tensor:
    r"""As an embedding, but its backward takes a third of the time."""
    return weight.index_select(0, ids.reshape(-1)).view(*ids.shape, weight.size(1))
