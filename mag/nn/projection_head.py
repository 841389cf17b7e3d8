import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_integers, check_numbers, check_tensor


class ProjectionHead(torch.nn.Module):
    r"""Takes what an encoder gives to where two modalities are compared, as in the `"FLIP"
    <https://arxiv.org/abs/2310.19453>`_ paper (its released code)

    .. math::
        \mathbf{z} = \mathrm{LayerNorm} \left( \mathbf{p} + \mathrm{Dropout} \left( \mathbf{W}_2
        \, \mathrm{GELU}(\mathbf{p}) + \mathbf{b}_2 \right) \right), \qquad \mathbf{p} =
        \mathbf{W}_1 \mathbf{h} + \mathbf{b}_1.

    Args:
        in_channels (int): The size of :math:`\mathbf{h}`.
        out_channels (int, optional): The size of :math:`\mathbf{z}`. (default: :obj:`128`)
        dropout (float, optional): The share that is dropped. (default: :obj:`0.2`)

    Shapes:
        - **input:** :math:`(B, C_{in})`
        - **output:** :math:`(B, C_{out})`

    Raises:
        TypeError: If a size is no integer, or the share no number.
        ValueError: If a size is less than 1, or the share not in :math:`[0, 1)`.
    """

    def __init__(self, in_channels: int, out_channels: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_numbers('[0, 1)', dropout=dropout)
        self.in_channels, self.out_channels, self.dropout = in_channels, out_channels, dropout
        self.projection = torch.nn.Linear(in_channels, out_channels)
        self.lin = torch.nn.Linear(out_channels, out_channels)
        self.norm = torch.nn.LayerNorm(out_channels)

    def reset_parameters(self) -> None:
        for layer in (self.projection, self.lin, self.norm):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): What the encoder gave, shape :obj:`[B, C_in]`.

        Raises:
            TypeError: If it is no floats.
            ValueError: If the shape is another.
        """
        check_tensor(self, 'x', x, ('B', self.in_channels), 'floats')
        projected = self.projection(x)
        change = F.dropout(self.lin(F.gelu(projected)), self.dropout, self.training)
        return self.norm(projected + change)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}, dropout={self.dropout}'
