import torch
from torch import Tensor

from mag.checks import check_integers, check_tensor


class CrossNetMix(torch.nn.Module):
    r"""The mixture of low-rank cross networks from the `"DCN V2: Improved Deep & Cross Network and
    Practical Lessons for Web-scale Learning to Rank Systems" <https://arxiv.org/abs/2008.13535>`_
    paper (eqs. 3 and 4, with one bias a layer, as released)

    .. math::
        \mathbf{x}_{l + 1} = \sum_{e = 1}^{E} g_e(\mathbf{x}_l) \, \mathbf{x}_0 \odot \left(
        \mathbf{U}_l^e \tanh \left( \mathbf{C}_l^e \tanh \left( {\mathbf{V}_l^e}^{\top}
        \mathbf{x}_l \right) \right) + \mathbf{b}_l \right) + \mathbf{x}_l.

    The gates :math:`\mathbf{g}` are a softmax over experts of a linear map without bias, which all
    layers share. :math:`\mathbf{U}`, :math:`\mathbf{C}` and :math:`\mathbf{V}` start as
    Glorot-normal tensors of all experts of a layer, the biases as 0.

    Args:
        channels (int): The number :math:`d` of features.
        num_layers (int, optional): The number of layers. (default: :obj:`2`)
        num_experts (int, optional): The number :math:`E` of experts. (default: :obj:`4`)
        rank (int, optional): The columns of :math:`\mathbf{U}` and :math:`\mathbf{V}`.
            (default: :obj:`32`)

    Shapes:
        - **input:** :math:`(B, d)`
        - **output:** :math:`(B, d)`

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is less than 1.
    """

    def __init__(
        self, channels: int, num_layers: int = 2, num_experts: int = 4, rank: int = 32
    ) -> None:
        super().__init__()
        check_integers(
            1, channels=channels, num_layers=num_layers, num_experts=num_experts, rank=rank
        )
        self.channels, self.num_layers = channels, num_layers
        self.num_experts, self.rank = num_experts, rank
        wide, square = (num_experts, channels, rank), (num_experts, rank, rank)
        self.u = _tensors(num_layers, *wide)
        self.c = _tensors(num_layers, *square)
        self.v = _tensors(num_layers, *wide)
        self.bias = _tensors(num_layers, channels)
        self.gate = torch.nn.Linear(channels, num_experts, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (*self.u, *self.c, *self.v):
            torch.nn.init.xavier_normal_(weight)
        for bias in self.bias:
            torch.nn.init.zeros_(bias)
        self.gate.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): The features, shape :obj:`[B, d]`.

        Raises:
            TypeError: If they are no floats.
            ValueError: If the shape is another.
        """
        check_tensor(self, 'x', x, ('B', self.channels), 'floats')
        out = x
        for u, c, v, bias in zip(self.u, self.c, self.v, self.bias, strict=True):
            # Of each expert, shape [E, B, rank].
            low = torch.matmul(torch.matmul(out, v).tanh(), c.transpose(1, 2)).tanh()
            gate = self.gate(out).softmax(1).t().unsqueeze(-1)
            # The gates add up to 1, so the bias is added once.
            mixed = (gate * low).transpose(0, 1).flatten(1) @ u.transpose(1, 2).flatten(0, 1)
            out = x * (mixed + bias) + out
        return out

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, num_layers={self.num_layers}, '
            f'num_experts={self.num_experts}, rank={self.rank})'
        )


def _tensors(number: int, *shape: int) -> torch.nn.ParameterList:
    return torch.nn.ParameterList(torch.empty(shape) for _ in range(number))
