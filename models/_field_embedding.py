from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_tensor
from mag.nn.id_embedding import drop_ids, look_up

_IDS = ('user', 'item')


class FieldEmbedding(torch.nn.Embedding):
    r"""One table for the embeddings of all categorical fields. Of each field the first row stands
    for none, :obj:`-1`; columns of one name share their rows.

    Args:
        caller (str): The model, for messages.
        num_values (Mapping[str, int]): The number of values of each field, by its name.
        fields (Sequence[str]): The name of each column of :obj:`ExposureBatch.sparse`.
        embedding_dim (int): Size :math:`d` of an embedding.
        std (float, optional): The standard deviation that embeddings start with.
            (default: :obj:`0.001`)
        ids (bool, optional): Whether users and items have one of their own.
            (default: :obj:`True`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training. (default: :obj:`0.0`)
        id_strength (float, optional): The :math:`s` of :math:`n / (n + s)`, by which the embeddings
            of users and of items with :math:`n` exposures are scaled; 0 leaves them as they are.
            (default: :obj:`0.0`)
        id_counts (Mapping[str, int], optional): The place of the counts of users, of items or of
            both, whose embeddings are scaled; read if :obj:`id_strength` is positive.
            (default: :obj:`{}`)
    """

    offset: Tensor
    is_id: Tensor
    is_weighed: Tensor
    seen: Tensor

    def __init__(
        self,
        caller: str,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        embedding_dim: int,
        *,
        std: float = 0.001,
        ids: bool = True,
        id_dropout: float = 0.0,
        id_strength: float = 0.0,
        id_counts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        columns = [place for place, name in enumerate(fields) if ids or name not in _IDS]
        names = [fields[place] for place in columns]
        starts, size = _places(names, num_values)
        # Read by the superclass, which draws the first weights.
        self.std = std
        super().__init__(max(size, 1), embedding_dim)
        self.caller = caller
        self.columns, self.names, self.starts = columns, names, starts
        self.num_fields = len(fields)
        self.num_values = {name: num_values[name] for name in starts}
        self.id_dropout, self.id_strength = id_dropout, id_strength
        self.requires_grad_(size > 0)
        offset = torch.tensor([starts[name] for name in names], dtype=torch.long)
        self.register_buffer('offset', offset, persistent=False)
        is_id = torch.tensor([name in _IDS for name in names], dtype=torch.bool)
        self.register_buffer('is_id', is_id, persistent=False)
        is_weighed = torch.tensor([name in id_counts for name in names], dtype=torch.bool)
        self.register_buffer('is_weighed', is_weighed, persistent=False)
        seen = torch.tensor([id_counts.get(name, 0) for name in names], dtype=torch.long)
        self.register_buffer('seen', seen, persistent=False)

    def reset_parameters(self) -> None:
        # Near 0, so that a value says something only once it was seen often enough to move it.
        torch.nn.init.normal_(self.weight, std=self.std)

    def known(self, sparse: Tensor) -> Tensor:
        r"""From the ids of all fields, those of the columns that are read, counted from 1, and 0
        for none and for who is taken for unknown.

        Values are checked on the CPU alone, as a GPU would have to be waited for. What an
        :class:`~mag.loader.ExposureLoader` makes, of rows or of a request, was checked there.

        Raises:
            IndexError: If a field has no such value, whose row in the table is another field's.
            TypeError: If they are no integers.
            ValueError: If the shape is another.
        """
        check_tensor(self.caller, 'batch.sparse', sparse, ('B', self.num_fields), 'integers')
        for column, name in zip(self.columns, self.names):
            of_field = sparse[:, column]
            what = f"values of '{name}'"
            check_ids(self.caller, what, of_field, self.num_values[name], first=-1)
        known = sparse[:, self.columns]
        if self.training and self.id_dropout > 0:
            known = drop_ids(known, self.id_dropout, self.is_id)
        return known + 1

    def forward(self, known: Tensor, counts: Tensor | None = None) -> Tensor:
        r"""The embeddings of what :meth:`known` returns, shape :obj:`[B, F, d]`, of rows with such
        :obj:`counts`, shape :obj:`[B, C, 2]`."""
        embedded = look_up(self.weight, known + self.offset)
        if counts is None or self.id_strength == 0:
            return embedded
        seen = counts[..., 0].index_select(1, self.seen)
        # Who is unknown has no exposures, and yet the row of the unknown says all that it learned.
        is_weighed = self.is_weighed & (known > 0)
        share = (seen / (seen + self.id_strength)).where(is_weighed, 1)
        return embedded * share.to(embedded.dtype).unsqueeze(-1)

    def of(self, name: str, known: Tensor) -> Tensor:
        r"""The embeddings of such ids of one field, of any shape."""
        return look_up(self.weight, known + self.starts[name])

    @torch.no_grad()
    def grow(self, num_values: Mapping[str, int]) -> None:
        r"""Adds rows for values that are new, which start as that of none, of numbers that are not
        below those of before."""
        rows = [self.weight[:0]]
        for name, start in self.starts.items():
            known = self.num_values[name]
            none = self.weight[start : start + 1]
            rows += [
                self.weight[start : start + known + 1],
                none.expand(num_values[name] - known, -1),
            ]
        weight = torch.cat(rows) if self.starts else self.weight
        self.weight = torch.nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.num_embeddings = weight.size(0)
        self.starts, _ = _places(self.names, num_values)
        self.num_values = {name: num_values[name] for name in self.starts}
        offset = [self.starts[name] for name in self.names]
        self.offset = torch.tensor(offset, dtype=torch.long, device=weight.device)


def _places(names: Sequence[str], num_values: Mapping[str, int]) -> tuple[dict[str, int], int]:
    r"""The first row of each field in the one table, and how many rows that has."""
    starts, size = {}, 0
    for name in dict.fromkeys(names):
        starts[name] = size
        size += num_values[name] + 1
    return starts, size


def check_fields(num_values: Any, fields: Any) -> None:
    r"""Raises unless the fields are a sequence of names, and each has a number of values."""
    if not isinstance(num_values, Mapping):
        raise TypeError(
            f"'num_values' must be a dictionary such as {{'user': 5}}, but got {num_values!r}."
        )
    if not isinstance(fields, Sequence) or isinstance(fields, str):
        raise TypeError(
            f"'fields' must be a sequence of names such as ('user', 'item'), but got {fields!r}."
        )
    missing = [name for name in fields if name not in num_values]
    if missing:
        raise ValueError(
            f"'num_values' must tell how many values each field has, but lacks {missing}."
        )
    check_integers(1, **{f'num_values[{name!r}]': num for name, num in num_values.items()})


def check_id_counts(ids: bool, id_counts: Any, num_counts: int) -> None:
    r"""Raises unless there are ids, and counts of users, of items or of both to weigh them by."""
    if not ids or num_counts == 0:
        raise ValueError(
            "'id_counts' weigh ids by how often they were seen, but CountNet was asked to do "
            'without ids or without counts.'
        )
    sentence = "'id_counts' must be a dictionary of 'user', of 'item', or of both"
    if not isinstance(id_counts, Mapping):
        raise TypeError(f'{sentence}, but got {id_counts!r}.')
    if not id_counts or not set(id_counts) <= set(_IDS):
        raise ValueError(f'{sentence}, but got {id_counts!r}.')
    check_integers(
        0, num_counts, **{f'id_counts[{name!r}]': place for name, place in id_counts.items()}
    )
