import math

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from mag.checks import check_choice, check_ids, check_integers, check_tensor, check_values


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
        form (str, optional): :obj:`"paper"`, or :obj:`"literal"` for
            :math:`\tilde{\mathbf{A}} = \mathbf{A} + \mathbf{I}` as the paper prints it: not
            symmetric, although the graph is called undirected, and with degrees that training can
            take to 0 or below, where the root ends. In the form above every degree is at least 1.
            (default: :obj:`"paper"`)

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
        form: str = 'paper',
    ) -> None:
        super().__init__(aggr='add')
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_integers(1, num_behaviors=num_behaviors)
        check_choice(('paper', 'literal'), form=form)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_behaviors = num_behaviors
        self.form = form
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
            TypeError: If :obj:`edge_index` holds no int64, or another argument no floats.
            ValueError: If a shape is another, or :obj:`form="literal"` meets a degree that is not
                positive (compiled code has no such check, and returns NaN).
        """
        check_tensor(self, 'x', x, ('*', self.num_behaviors, self.in_channels), 'floats')
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
        check_tensor(self, 'edge_index', edge_index, (2, 'E'), torch.long)
        check_tensor(self, 'edge_weight', edge_weight, (edge_index.size(1),), 'numbers')
        check_ids(self, "behaviors of 'edge_index'", edge_index, self.num_behaviors)
        source, target = edge_index
        # Not index_put, whose sums on several threads are others from run to run. A source that
        # does not exist stays out of range, and is not one of the next row.
        pair = target * self.num_behaviors + source
        pair = pair.where(source < self.num_behaviors, self.num_behaviors**2)
        adjacency = self.edge_bias.view(-1).index_add(0, pair, edge_weight.to(self.edge_bias.dtype))
        adjacency = adjacency.view_as(self.edge_bias)
        loops = torch.eye(self.num_behaviors, dtype=adjacency.dtype, device=adjacency.device)
        if self.form == 'literal':
            adjacency = adjacency + loops
            degree = adjacency.sum(dim=1)
            good = (degree > 0) & (degree < math.inf)
            expected = "positive and finite numbers, which form='paper' keeps at 1 or more"
            check_values(self, 'degree', degree, good, expected, wait=True)
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

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, '
            f'num_behaviors={self.num_behaviors}, form={self.form!r})'
        )
