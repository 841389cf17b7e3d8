import math

import torch
from torch import Tensor

from mag.checks import check_integers, check_sizes, check_tensor


class TensorFusion(torch.nn.Module):
    r"""The fusion of two vectors from the `"Tensor Fusion Network for Multimodal Sentiment
    Analysis" <https://arxiv.org/abs/1707.07250>`_ paper, as in `"Click-Through Rate Prediction with
    Multi-Modal Hypergraphs" <https://doi.org/10.1145/3459637.3482327>`_ (eq. 6)

    .. math::
        \mathbf{t} = \mathbf{W}^{\top} \mathrm{vec} \left(
        \begin{bmatrix} \mathbf{x} \\ 1 \end{bmatrix} \otimes
        \begin{bmatrix} \mathbf{y} \\ 1 \end{bmatrix} \right),

    in which each vector passes by itself, thanks to the other's 1, and every pair of their entries
    as a product. :math:`\mathbf{W}` has :math:`(d_x + 1)(d_y + 1)` rows; with a :obj:`rank` it is
    factored (`"Efficient Low-rank Multimodal Fusion with Modality-Specific Factors"
    <https://arxiv.org/abs/1806.00064>`_),

    .. math::
        \mathbf{t} = \sum_{r=1}^{R} \left( \mathbf{U}_r^{\top}
        \begin{bmatrix} \mathbf{x} \\ 1 \end{bmatrix} \right) \circ \left( \mathbf{V}_r^{\top}
        \begin{bmatrix} \mathbf{y} \\ 1 \end{bmatrix} \right),

    with :math:`R \, (d_x + d_y + 2)` rows.

    Args:
        in_channels (tuple[int, int]): Sizes :math:`d_x` and :math:`d_y`.
        out_channels (int): Size of the output.
        rank (int, optional): :math:`R`; :obj:`None` for the whole :math:`\mathbf{W}`.
            (default: :obj:`None`)

    Shapes:
        - **input:** :math:`(B, d_x)` and :math:`(B, d_y)`
        - **output:** :math:`(B, d_{out})`
    """

    def __init__(
        self, in_channels: tuple[int, int], out_channels: int, rank: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels)
        if len(in_channels) != 2:
            raise ValueError(f"'in_channels' must be two sizes, but got {in_channels!r}.")
        check_integers(1, out_channels=out_channels, **({} if rank is None else {'rank': rank}))
        first, second = in_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.rank = rank
        shapes: list[tuple[int, ...]]
        if rank is None:
            shapes = [((first + 1) * (second + 1), out_channels)]
        else:
            shapes = [(size + 1, rank, out_channels) for size in in_channels]
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(torch.empty(s)) for s in shapes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.weights:
            bound = math.sqrt(6 / (weight.size(0) + self.out_channels))
            if self.rank is not None:
                # The sum over ranks of products of two is then as large whatever the rank.
                bound /= self.rank**0.25
            torch.nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Shape :obj:`[B, in_channels[0]]`.
            y (torch.Tensor): Shape :obj:`[B, in_channels[1]]`.

        Raises:
            TypeError: If an input holds no floats.
            ValueError: If a shape is another.
        """
        check_tensor(self, 'x', x, ('B', self.in_channels[0]), 'floats')
        check_tensor(self, 'y', y, (x.size(0), self.in_channels[1]), 'floats')
        x, y = (torch.nn.functional.pad(value, (0, 1), value=1.0) for value in (x, y))
        if self.rank is None:
            return (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1) @ self.weights[0]
        first, second = (
            torch.einsum('bi,iro->bro', value, weight)
            for value, weight in zip((x, y), self.weights, strict=True)
        )
        return (first * second).sum(1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, rank={self.rank})'
        )
