from collections.abc import Sequence

import torch
from torch import Tensor

from mag.checks import check_integers, check_sizes, check_tensor
from mag.nn.cross_net_mix import CrossNetMix

_STD = 1e-4


class DeepCross(torch.nn.Module):
    r"""The encoder of ids of the `"DCN V2" <https://arxiv.org/abs/2008.13535>`_ paper in its
    parallel structure, as `FLIP <https://arxiv.org/abs/2310.19453>`_ takes it: a
    :class:`CrossNetMix` over the concatenated embeddings of the fields, beside a tower of linear
    layers with a ReLU after each,

    .. math::
        \mathbf{h} = \mathrm{CrossNetMix}(\mathbf{x}) \Vert \mathrm{MLP}(\mathbf{x}), \qquad
        \mathbf{x} = \mathbf{e}_1 \Vert \cdots \Vert \mathbf{e}_F.

    The weights of the tower start as :math:`\mathcal{N}(0, \sigma)` with :math:`\sigma = 10^{-4}`,
    as released.

    Args:
        num_fields (int): The number :math:`F` of fields.
        embedding_dim (int): Size :math:`d` of an embedding.
        tower_channels (Sequence[int], optional): Sizes of the layers of the tower.
            (default: :obj:`(300, 300, 128)`)
        num_layers (int, optional): The number of cross layers. (default: :obj:`2`)
        num_experts (int, optional): Their number of experts. (default: :obj:`4`)
        rank (int, optional): The rank of their matrices. (default: :obj:`32`)

    Attributes:
        out_channels (int): The size of :math:`\mathbf{h}`.

    Shapes:
        - **input:** :math:`(B, F, d)`
        - **output:** :math:`(B, C)` with :math:`C = F d +` the last size of the tower

    Raises:
        TypeError: If a size is no integer.
        ValueError: If a size is less than 1, or the tower has no layer.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        tower_channels: Sequence[int] = (300, 300, 128),
        num_layers: int = 2,
        num_experts: int = 4,
        rank: int = 32,
    ) -> None:
        super().__init__()
        check_integers(1, num_fields=num_fields, embedding_dim=embedding_dim)
        check_sizes(tower_channels=tower_channels)
        if not tower_channels:
            raise ValueError(
                f"'tower_channels' must hold a size or more, but got {tower_channels}."
            )
        self.num_fields, self.embedding_dim = num_fields, embedding_dim
        channels = num_fields * embedding_dim
        self.cross = CrossNetMix(channels, num_layers, num_experts, rank)
        layers: list[torch.nn.Module] = []
        for size, following in zip([channels, *tower_channels[:-1]], tower_channels, strict=True):
            layers += [torch.nn.Linear(size, following), torch.nn.ReLU()]
        self.tower = torch.nn.Sequential(*layers)
        self.out_channels = channels + tower_channels[-1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.cross.reset_parameters()
        for layer in self.tower:
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
                torch.nn.init.normal_(layer.weight, std=_STD)

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): The embeddings of the fields, shape :obj:`[B, F, d]`.

        Raises:
            TypeError: If they are no floats.
            ValueError: If the shape is another.
        """
        check_tensor(self, 'x', x, ('B', self.num_fields, self.embedding_dim), 'floats')
        flat = x.flatten(1)
        return torch.cat([self.cross(flat), self.tower(flat)], dim=1)
