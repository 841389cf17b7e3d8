import math

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from mag.checks import check_booleans
from mag.schema import require_positive_integers, require_range


class BehaviorGraphConv(MessagePassing):
    r"""The graph convolution over micro-behaviors from the `"GMCM: Graph-based Micro-behavior
    Conversion Model for Post-click Conversion Rate Estimation"
    <https://doi.org/10.1145/3397271.3401425>`_ paper (eq. 15, without its activation)

    .. math::
        \mathbf{H}^{\prime} = \hat{\mathbf{A}} \mathbf{H} \mathbf{\Theta}, \quad
        \hat{\mathbf{A}} = \tilde{\mathbf{D}}^{-1/2} \tilde{\mathbf{A}} \tilde{\mathbf{D}}^{-1/2},
        \quad \tilde{D}_{ii} = \sum_j \tilde{A}_{ij}, \quad
        \tilde{\mathbf{A}} = \max \left( 0, \frac{\mathbf{A} + \mathbf{A}^{\top}}{2} \right)
        + \mathbf{I}, \quad \mathbf{A} = \mathbf{P} + \mathbf{B},

    where :math:`P_{ij}` is the weight of the edge from :math:`j` to :math:`i`, and
    :math:`\mathbf{B}` is learned and starts at 0.

    All samples share one small graph of :math:`N` behaviors, and only the features of its nodes
    differ. As :math:`\mathbf{B}` reaches pairs without an edge, too, :math:`\hat{\mathbf{A}}` is
    dense, and the aggregation is a matrix product; with :obj:`conv.fuse = False`, or in PyG's
    explanations, it is a sum of messages over all :math:`N^2` pairs, in the order of the rows of
    :math:`\hat{\mathbf{A}}`.

    Layers can learn one :math:`\mathbf{B}` together:

    >>> edge_index = torch.tensor([[1, 2, 0, 1], [0, 0, 1, 2]])
    >>> edge_weight = torch.tensor([0.75, 0.25, 1.0, 1.0])
    >>> first = BehaviorGraphConv(16, 8, num_behaviors=3)
    >>> second = BehaviorGraphConv(8, 8, num_behaviors=3)
    >>> second.edge_bias = first.edge_bias
    >>> x = torch.randn(32, 3, 16)
    >>> x = torch.nn.functional.leaky_relu(first(x, edge_index, edge_weight), 0.01)
    >>> second(x, edge_index, edge_weight).shape
    torch.Size([32, 3, 8])

    Args:
        in_channels (int): Size :math:`F` of the features of a behavior.
        out_channels (int): Size :math:`F^{\prime}` of the output.
        num_behaviors (int): The number :math:`N` of behaviors.
        literal (bool, optional): If set to :obj:`True`,
            :math:`\tilde{\mathbf{A}} = \mathbf{A} + \mathbf{I}` as the paper prints it: not
            symmetric, although the graph is called undirected, and with degrees that training can
            take to 0 or below, where the root ends. By default every degree is at least 1.
            (default: :obj:`False`)

    Shapes:
        - **input:** features :math:`(*, N, F)`, edge indices :math:`(2, |\mathcal{E}|)`, edge
          weights :math:`(|\mathcal{E}|)`
        - **output:** :math:`(*, N, F^{\prime})`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_behaviors: int,
        literal: bool = False,
    ) -> None:
        super().__init__(aggr='add')
        require_positive_integers(
            in_channels=in_channels, out_channels=out_channels, num_behaviors=num_behaviors
        )
        check_booleans(literal=literal)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_behaviors = num_behaviors
        self.literal = literal
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer='glorot')
        self.edge_bias = torch.nn.Parameter(torch.empty(num_behaviors, num_behaviors))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.lin.reset_parameters()
        torch.nn.init.zeros_(self.edge_bias)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Features of the behaviors, shape :obj:`[N, F]`, or :obj:`[B, N, F]`
                for a batch, which may be empty.
            edge_index (torch.Tensor): Sources above targets, shape :obj:`[2, E]`, as
                :class:`mag.transforms.BehaviorGraph` makes them.
            edge_weight (torch.Tensor): :math:`\mathbf{P}`, shape :obj:`[E]`; edges of the same pair
                add up.

        Raises:
            IndexError: If an edge names a behavior that does not exist. On a GPU, which would have
                to wait, CUDA's own check ends the process instead.
            TypeError: If :obj:`edge_index` holds no int64.
            ValueError: If a shape is another, or :obj:`literal` meets a degree that is not positive
                (compiled code has no such check, and returns NaN).
        """
        if x.dim() < 2 or x.shape[-2:] != (self.num_behaviors, self.in_channels):
            raise ValueError(
                f'{self!r} expects features of shape [*, {self.num_behaviors}, '
                f'{self.in_channels}], but got {list(x.shape)}.'
            )
        adjacency = self.normalized_adjacency(edge_index, edge_weight)
        x = self.lin(x)
        if self.fuse and not self.explain:
            return self.message_and_aggregate(adjacency, x)
        behavior = torch.arange(self.num_behaviors, device=x.device)
        pairs = torch.cartesian_prod(behavior, behavior).t().flip(0)
        # propagate_type: (x: Tensor, norm: Tensor)
        return self.propagate(pairs, x=x, norm=adjacency.flatten())

    def normalized_adjacency(self, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        r"""The matrix :math:`\hat{\mathbf{A}}` that :meth:`forward` aggregates with, targets in
        rows, shape :obj:`[N, N]`.

        Args:
            edge_index (torch.Tensor): As that of :meth:`forward`.
            edge_weight (torch.Tensor): As that of :meth:`forward`, whose errors it raises.
        """
        self._check_edges(edge_index, edge_weight)
        source, target = edge_index
        # Not index_put, whose sums on several threads are others from run to run. A source that
        # does not exist stays out of range, and is not one of the next row.
        pair = target * self.num_behaviors + source
        pair = pair.where(source < self.num_behaviors, self.num_behaviors**2)
        adjacency = self.edge_bias.view(-1).index_add(0, pair, edge_weight.to(self.edge_bias.dtype))
        adjacency = adjacency.view_as(self.edge_bias)
        loops = torch.eye(self.num_behaviors, dtype=adjacency.dtype, device=adjacency.device)
        if self.literal:
            adjacency = adjacency + loops
            degree = adjacency.sum(dim=1)
            self._check_degree(degree)
        else:
            # Not relu, whose gradient at 0 is 0: the bias of a pair that was never seen would stay
            # what it is at the start.
            adjacency = (adjacency / 2 + adjacency.t() / 2).clamp(min=0) + loops
            # The scale of a matrix is lost when it is normalized, and a row of the largest floats
            # now has a finite sum.
            adjacency = adjacency / (2 * self.num_behaviors)
            degree = adjacency.sum(dim=1)
        scale = degree.rsqrt()
        return scale.unsqueeze(1) * adjacency * scale

    def message(self, x_j: Tensor, norm: Tensor) -> Tensor:
        return norm.unsqueeze(-1) * x_j

    def message_and_aggregate(self, adjacency: Tensor, x: Tensor) -> Tensor:
        # Not matmul, which transposes the whole batch to broadcast a matrix.
        batch = x.reshape(-1, self.num_behaviors, x.size(-1))
        return torch.bmm(adjacency.expand(batch.size(0), -1, -1), batch).view(x.shape)

    def _check_edges(self, edge_index: Tensor, edge_weight: Tensor) -> None:
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(
                f"{self!r} expects 'edge_index' of shape [2, num_edges], but got "
                f'{list(edge_index.shape)}.'
            )
        if edge_index.dtype != torch.long:
            raise TypeError(
                f"{self!r} expects 'edge_index' of dtype int64, but got {edge_index.dtype}."
            )
        if edge_weight.shape != edge_index.shape[1:]:
            raise ValueError(
                f"{self!r} expects 'edge_weight' of shape [{edge_index.size(1)}], one for each "
                f"column of 'edge_index', but got {list(edge_weight.shape)}."
            )
        if torch.compiler.is_compiling() or edge_index.device.type != 'cpu':
            return
        require_range(self, "behaviors of 'edge_index'", edge_index, self.num_behaviors)

    def _check_degree(self, degree: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        bad = ~((degree > 0) & (degree < math.inf))
        if bool(bad.any()):
            behavior = int(bad.nonzero()[0])
            raise ValueError(
                f'{self!r} takes the root of the degrees, which must be positive and finite, but '
                f'behavior {behavior} has the degree {degree[behavior].item():g}. literal=False '
                f'keeps every degree at 1 or more.'
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, '
            f'num_behaviors={self.num_behaviors}, literal={self.literal})'
        )
