import torch
from torch import Tensor

from mag.checks import check_integers, check_tensor


class CrossNet(torch.nn.Module):
    r"""The cross network from the `"DCN V2: Improved Deep & Cross Network and Practical Lessons for
    Web-scale Learning to Rank Systems" <https://arxiv.org/abs/2008.13535>`_ paper (eq. 1)

    .. math::
        \mathbf{x}_{l + 1} = \mathbf{x}_0 \odot \left( \mathbf{W}_l \mathbf{x}_l + \mathbf{b}_l
        \right) + \mathbf{x}_l,

    whose output after :math:`L` layers holds products of up to :math:`L + 1` of the features. With
    a :obj:`rank`, the matrices are :math:`\mathbf{W}_l = \mathbf{U}_l \mathbf{V}_l^{\top}` (eq. 2).

    Args:
        channels (int): The number :math:`d` of features.
        num_layers (int): The number :math:`L` of layers.
        rank (int, optional): The columns of :math:`\mathbf{U}_l` and :math:`\mathbf{V}_l`; by
            default the matrices are whole. (default: :obj:`None`)

    Shapes:
        - **input:** :math:`(B, d)`
        - **output:** :math:`(B, d)`

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is less than 1.
    """

    def __init__(self, channels: int, num_layers: int, rank: int | None = None) -> None:
        super().__init__()
        check_integers(1, channels=channels, num_layers=num_layers)
        if rank is not None:
            check_integers(1, rank=rank)
        self.channels, self.num_layers, self.rank = channels, num_layers, rank
        self.layers = torch.nn.ModuleList(self._matrix() for _ in range(num_layers))

    def _matrix(self) -> torch.nn.Module:
        if self.rank is None:
            return torch.nn.Linear(self.channels, self.channels)
        return torch.nn.Sequential(
            torch.nn.Linear(self.channels, self.rank, bias=False),
            torch.nn.Linear(self.rank, self.channels),
        )

    def reset_parameters(self) -> None:
        for module in self.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()

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
        for matrix in self.layers:
            out = x * matrix(out) + out
        return out

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, num_layers={self.num_layers}, '
            f'rank={self.rank})'
        )
