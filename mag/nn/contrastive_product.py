import torch
from torch import Tensor

from mag.checks import check_integers, check_tensor


class ContrastiveProduct(torch.nn.Module):
    r"""Two views of the products of all pairs of fields, from the `"SimCEN: Simple
    Contrast-enhanced Network for CTR Prediction" <https://doi.org/10.1145/3664647.3681203>`_ paper
    (released code)

    .. math::
        \mathbf{M} = \mathbf{E} \mathbf{W} \mathbf{E}^{\top}, \qquad
        \mathbf{v}_1 = \mathbf{W}_1 \, \mathrm{triu}(\mathbf{M}), \qquad
        \mathbf{v}_2 = \mathbf{W}_2 \, \mathrm{tril}(\mathbf{M}),

    with the embeddings :math:`\mathbf{E}` of :math:`F` fields. Both triangles hold the diagonal,
    and so :math:`F (F + 1) / 2` entries, row by row. They differ since :math:`\mathbf{W}` is not
    symmetric.

    Args:
        num_fields (int): The number :math:`F` of fields.
        embedding_dim (int): Size :math:`d` of an embedding.
        out_channels (int, optional): Size :math:`D` of a view; by default that of all embeddings
            together, :math:`F d`. (default: :obj:`None`)

    Shapes:
        - **input:** :math:`(B, F, d)`
        - **output:** :math:`(B, D)`, twice

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is less than 1.
    """

    upper: Tensor
    lower: Tensor

    def __init__(
        self, num_fields: int, embedding_dim: int, out_channels: int | None = None
    ) -> None:
        super().__init__()
        check_integers(1, num_fields=num_fields, embedding_dim=embedding_dim)
        out_channels = num_fields * embedding_dim if out_channels is None else out_channels
        check_integers(1, out_channels=out_channels)
        self.num_fields, self.embedding_dim = num_fields, embedding_dim
        self.out_channels = out_channels
        self.weight = torch.nn.Parameter(torch.empty(embedding_dim, embedding_dim))
        for name, places in (('upper', torch.triu_indices), ('lower', torch.tril_indices)):
            row, column = places(num_fields, num_fields)
            self.register_buffer(name, row * num_fields + column, persistent=False)
        size = self.upper.numel()
        self.lin_upper = torch.nn.Linear(size, out_channels, bias=False)
        self.lin_lower = torch.nn.Linear(size, out_channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.weight, self.lin_upper.weight, self.lin_lower.weight):
            torch.nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""
        Args:
            x (torch.Tensor): The embeddings, shape :obj:`[B, F, d]`.

        Raises:
            TypeError: If they are no floats.
            ValueError: If the shape is another.
        """
        check_tensor(self, 'x', x, ('B', self.num_fields, self.embedding_dim), 'floats')
        product = torch.bmm(x @ self.weight, x.transpose(1, 2)).flatten(1)
        upper, lower = (product.index_select(1, places) for places in (self.upper, self.lower))
        return self.lin_upper(upper), self.lin_lower(lower)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_fields}, {self.embedding_dim}, '
            f'{self.out_channels})'
        )
