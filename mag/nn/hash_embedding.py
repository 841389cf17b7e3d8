import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mag.checks import check_integers, check_tensor

_PRIME = 2**31 - 1


class HashEmbedding(torch.nn.Module):
    r"""One embedding table for all categorical fields, whose ids are hashed into its rows: eq. 9 of
    the `"GMCM: Graph-based Micro-behavior Conversion Model for Post-click Conversion Rate
    Estimation" <https://doi.org/10.1145/3397271.3401425>`_ paper.

    .. math::
        \mathbf{x}_e = \mathbf{W}_e[h_1(x_1)] \Vert \cdots \Vert \mathbf{W}_e[h_F(x_F)], \qquad
        h_f(x) = ((a_f x^2 + b_f x + c_f) \bmod (2^{31} - 1)) \bmod d_h

    A polynomial of degree two hashes any three ids independently (Wegman and Carter, 1981): two ids
    of a field, and the same id of two fields, share a row with a probability of about
    :math:`1 / d_h`. One of degree one would do so too, but maps consecutive ids to steps of one
    size, which with bad luck come round often. The function of a field depends on its name alone,
    so it keeps its rows when others come and go; columns of the same name, such as the terms of a
    query, share one. The memory does not grow with the number of ids, and an id never seen in
    training needs no special case.

    Args:
        fields (Sequence[str]): The name of each column.
        num_buckets (int): The number :math:`d_h` of rows.
        embedding_dim (int): The size :math:`d_e` of each.
        with_unknown (Sequence[str], optional): The fields of which the id :obj:`-1` is not hashed,
            but has a row of its own after those of the buckets, which starts as zeros.
            (default: :obj:`()`)

    Shapes:
        - **input:** integer ids :math:`(B, F)`, negative ones too
        - **output:** :math:`(B, F \cdot d_e)`

    Raises:
        TypeError: If :obj:`fields` is no sequence, or a size or an id no integer.
        ValueError: If :obj:`fields` holds something else than names, a size is out of range, or the
            number of columns differs.

    .. code-block:: pycon

        >>> embedding = HashEmbedding(['user', 'query', 'query'], num_buckets=1000, embedding_dim=4)
        >>> embedding(torch.tensor([[7, 3, 3]])).shape
        torch.Size([1, 12])
    """

    coefficient: Tensor
    row_of_unknown: Tensor

    def __init__(
        self,
        fields: Sequence[str],
        num_buckets: int,
        embedding_dim: int,
        with_unknown: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(fields, str) or not isinstance(fields, Sequence):
            raise TypeError(f"'fields' must be a sequence of names, but got {fields!r}.")
        if not fields or not all(isinstance(name, str) for name in fields):
            raise ValueError(f"'fields' must hold one name or more, but got {fields!r}.")
        if isinstance(with_unknown, str) or not isinstance(with_unknown, Sequence):
            raise TypeError(
                f"'with_unknown' must be a sequence of names, but got {with_unknown!r}."
            )
        foreign = [name for name in with_unknown if name not in fields]
        if foreign:
            raise ValueError(
                f"'with_unknown' must name some of the fields {list(fields)}, but got {foreign}."
            )
        check_integers(1, _PRIME + 1, num_buckets=num_buckets)
        check_integers(1, embedding_dim=embedding_dim)
        self.fields = tuple(fields)
        self.num_buckets = num_buckets
        self.embedding_dim = embedding_dim
        unknown = [name for name in dict.fromkeys(fields) if name in with_unknown]
        num_rows = num_buckets + len(unknown)
        self.weight = torch.nn.Parameter(torch.empty(num_rows, embedding_dim))
        rows = [num_buckets + unknown.index(name) if name in unknown else -1 for name in fields]
        self.register_buffer('row_of_unknown', torch.tensor(rows))
        self.register_buffer('coefficient', torch.stack([_coefficients(name) for name in fields]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight[: self.num_buckets], std=0.05)
        self.weight[self.num_buckets :] = 0

    def buckets(self, ids: Tensor) -> Tensor:
        r"""The row of each id, shape :obj:`[B, F]`.

        Args:
            ids (torch.Tensor): An id of each field, shape :obj:`[B, F]`.
        """
        square, linear, constant = self.coefficient.t()
        is_unknown = (ids == -1) & (self.row_of_unknown >= 0)
        ids = ids.long().remainder(_PRIME)
        # All factors are below 2^31, so each product fits into 64 bits.
        hashed = (square * ids + linear) % _PRIME
        bucket = (hashed * ids + constant) % _PRIME % self.num_buckets
        return self.row_of_unknown.where(is_unknown, bucket)

    def forward(self, ids: Tensor) -> Tensor:
        check_tensor(self, 'ids', ids, ('B', len(self.fields)), 'integers')
        rows = self.weight.index_select(0, self.buckets(ids).reshape(-1))
        return rows.view(ids.size(0), len(self.fields) * self.embedding_dim)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({list(self.fields)}, num_buckets={self.num_buckets}, '
            f'embedding_dim={self.embedding_dim})'
        )


def _coefficients(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(1, _PRIME, (3,), generator=generator)
