from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_numbers, check_tensor


class IdEmbedding(torch.nn.Embedding):
    r"""Embeddings of the users or of the items of a log, and one of who is unknown, :obj:`-1`.

    In training a model takes a share of the known ids for unknown, see :meth:`drop`, so that the
    row of the unknown learns what holds of anybody, and the rest of the model to do without an id.
    Without that share the row stays what it was at first, zeros: it says nothing.

    .. code-block:: pycon

        >>> embedding = IdEmbedding('user', 3, embedding_dim=4)
        >>> embedding(torch.tensor([2, -1])).shape
        torch.Size([2, 4])
        >>> embedding.grow(5)
        >>> embedding
        IdEmbedding('user', 5, 4, dropout=0.0)

    Args:
        name (str): What the ids are of, such as :obj:`"user"`, for messages.
        num_ids (int): The number of known ids.
        embedding_dim (int): Size :math:`d` of an embedding.
        dropout (float, optional): The share of known ids that are taken for unknown in a step of
            training. (default: :obj:`0.0`)
        draw_unknown (bool, optional): If set to :obj:`True`, the row of the unknown starts as
            another's does, by chance. (default: :obj:`False`)

    Attributes:
        weight (torch.Tensor): The row of the unknown, and then those of all ids, shape
            :obj:`[1 + num_ids, d]`.

    Shapes:
        - **input:** ids :math:`(*)`, from -1
        - **output:** :math:`(*, d)`

    Raises:
        IndexError: If an id does not exist.
        TypeError: If a number or an id is no integer, or the share no number.
        ValueError: If a size is not positive, or the share not in :math:`[0, 1)`.
    """

    def __init__(
        self,
        name: str,
        num_ids: int,
        embedding_dim: int,
        dropout: float = 0.0,
        draw_unknown: bool = False,
    ) -> None:
        check_integers(1, num_ids=num_ids, embedding_dim=embedding_dim)
        check_numbers('[0, 1)', dropout=dropout)
        self.draw_unknown = draw_unknown
        super().__init__(num_ids + 1, embedding_dim)
        self.name, self.dropout = name, dropout

    @property
    def num_ids(self) -> int:
        r"""The number of known ids."""
        return self.num_embeddings - 1

    @property
    def num_values(self) -> dict[str, int]:
        r"""The same by :obj:`name`, as a table of several fields has it."""
        return {self.name: self.num_ids}

    @property
    def drops(self) -> bool:
        r"""Whether :meth:`drop` does anything now."""
        return self.training and self.dropout > 0

    @torch.no_grad()
    def reset_parameters(self, draw: Callable[[Tensor], Any] = torch.nn.init.normal_) -> None:
        r"""Starts anew.

        Args:
            draw (Callable, optional): What draws the rows, in place.
                (default: :func:`torch.nn.init.normal_`)
        """
        draw(self.weight if self.draw_unknown else self.weight[1:])
        if not self.draw_unknown:
            self.weight[0] = 0

    def drop(self, ids: Tensor) -> Tensor:
        r"""Takes a share of the ids for unknown, each by a draw of its own, in training alone.

        Args:
            ids (torch.Tensor): Ids of any shape, :obj:`-1` for an unknown one.
        """
        if not self.drops:
            return ids
        return drop_ids(ids, self.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        check_tensor('IdEmbedding', f'{self.name} ids', ids, ('*',), 'integers')
        check_ids('IdEmbedding', f'{self.name} ids', ids, self.num_ids, first=-1)
        return look_up(self.weight, ids.long() + 1)

    def grow(self, num_ids: int) -> None:
        r"""Adds rows for ids that are new; they start as that of the unknown. Others stay as they
        are, in a parameter of its own, which an optimizer has to be told of.

        Args:
            num_ids (int): How many ids are known then.

        Raises:
            TypeError: If it is no integer.
            ValueError: If there are fewer than before.
        """
        check_integers(self.num_ids, num_ids=num_ids)
        self.weight = add_rows(self.weight, num_ids - self.num_ids, self.weight[:1])
        self.num_embeddings = num_ids + 1

    def extra_repr(self) -> str:
        return f'{self.name!r}, {self.num_ids}, {self.embedding_dim}, dropout={self.dropout}'


def drop_ids(ids: Tensor, share: float, is_id: Tensor | bool = True) -> Tensor:
    r"""Takes a share of ids for unknown, :obj:`-1`, each by a draw of its own.

    Args:
        ids: Ids of any shape.
        share: How many of them.
        is_id: Which of them may be, of a shape that is broadcast to that of the ids.
    """
    dropped = torch.rand(ids.shape, device=ids.device) < share
    return ids.masked_fill(dropped & is_id, -1)


def hide(ids: Tensor, own: Tensor, kept: Tensor) -> Tensor:
    r"""What a row reads besides, such as its recent neighbors, where its own id may come again: if
    that was taken for unknown, it is so there, too.

    Args:
        ids: What the rows read, shape :obj:`[B, *]`.
        own: The id of each row, shape :obj:`[B]`.
        kept: The same after :meth:`IdEmbedding.drop`.
    """
    hidden = own.where(kept < 0, -1).view(-1, *[1] * (ids.dim() - 1))
    return ids.masked_fill(ids == hidden, -1)


class Table(Protocol):
    r"""A table that is kept in another form than a tensor, such as a smaller one."""

    @property
    def weight(self) -> Tensor: ...

    def index_select(self, dim: int, index: Tensor) -> Tensor: ...

    def size(self, dim: int) -> int: ...


def look_up(weight: Tensor | Table, rows: Tensor) -> Tensor:
    r"""Rows of a table, of any shape. As by an embedding, but its backward takes a third of the
    time."""
    return weight.index_select(0, rows.reshape(-1)).view(*rows.shape, weight.size(1))


def all_rows(weight: Tensor | Table) -> Tensor:
    r"""A table as a tensor, shape :obj:`[N, d]`."""
    return weight if isinstance(weight, Tensor) else weight.weight


@torch.no_grad()
def add_rows(weight: Tensor, number: int, row: Tensor) -> torch.nn.Parameter:
    r"""A table with so many rows more, each a copy of one of shape :obj:`[1, d]`."""
    grown = torch.cat([weight, row.expand(number, -1)])
    return torch.nn.Parameter(grown, requires_grad=weight.requires_grad)
