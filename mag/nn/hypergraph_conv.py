import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from mag.checks import check_booleans, check_ids, check_integers, check_tensor, check_values


class HypergraphConv(MessagePassing):
    r"""The hypergraph convolution from the `"Hypergraph Neural Networks"
    <https://arxiv.org/abs/1809.09401>`_ paper (eq. 11, without its activation), the HGCN of
    `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ (eq. 5)

    .. math::
        \mathbf{X}^{\prime} = \mathbf{D}_v^{-1/2} \mathbf{H} \mathbf{W} \mathbf{D}_e^{-1}
        \mathbf{H}^{\top} \mathbf{D}_v^{-1/2} \mathbf{X} \mathbf{\Theta}, \quad
        D_v(v) = \sum_e w_e H_{ve}, \quad D_e(e) = \sum_v H_{ve},

    where :math:`H_{ve}` counts how often node :math:`v` is listed in hyperedge :math:`e`, and
    :math:`\mathbf{W}` holds the weights :math:`w_e` of hyperedges.

    :class:`torch_geometric.nn.HypergraphConv` differs in two ways: its rows are means,
    :math:`\mathbf{D}_v^{-1}` in place of the two roots, and its weights are in
    :math:`\mathbf{D}_v` alone, never in :math:`\mathbf{W}` (`issue 6918
    <https://github.com/pyg-team/pytorch_geometric/issues/6918>`_). Without weights, this layer's
    result is :math:`\mathbf{D}_v^{1/2}` times that of PyG's for
    :math:`\mathbf{D}_v^{-1/2} \mathbf{X}`.

    The matrix in front of :math:`\mathbf{X}` is never made: features go from nodes to hyperedges,
    and back, so that time and memory grow with the number of incidences. It is symmetric, its
    eigenvalues lie in :math:`[0, 1]`, and :math:`\mathbf{D}_v^{1/2} \mathbf{1}` is an eigenvector
    of eigenvalue 1. A node in no hyperedge, or in such of weight 0 only, gets 0 (and the bias), an
    empty hyperedge changes nothing, and the gradients of both are finite.

    Weights are an argument, so that a parameter makes them learned:

    >>> conv = HypergraphConv(16, 8)
    >>> x = torch.randn(4, 16)
    >>> hyperedge_index = torch.tensor([[0, 1, 2, 2, 3], [0, 0, 0, 1, 1]])
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> out = conv(x, hyperedge_index, torch.nn.functional.softplus(weight))
    >>> out.shape
    torch.Size([4, 8])

    Args:
        in_channels (int): Size :math:`F` of the features of a node.
        out_channels (int): Size :math:`F^{\prime}` of the output.
        bias (bool, optional): If set to :obj:`True`, the layer learns a bias, added to the output.
            HGNN's authors add theirs before the propagation, where it depends on the degrees.
            (default: :obj:`False`)

    Shapes:
        - **input:** node features :math:`(N, F)`, incidences :math:`(2, \textrm{nnz})`, hyperedge
          weights :math:`(M)` *(optional)*
        - **output:** :math:`(N, F^{\prime})`
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(aggr='add', node_dim=0)
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_booleans(bias=bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer='glorot')
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.lin.reset_parameters()
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        hyperedge_index: Tensor,
        hyperedge_weight: Tensor | None = None,
        num_hyperedges: int | None = None,
    ) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Features of the nodes, shape :obj:`[N, F]`.
            hyperedge_index (torch.Tensor): Nodes above the hyperedges they are in, one column an
                incidence, in any order, shape :obj:`[2, nnz]`.
            hyperedge_weight (torch.Tensor, optional): :math:`\mathbf{W}`, not negative, shape
                :obj:`[M]`; :obj:`None` for ones. (default: :obj:`None`)
            num_hyperedges (int, optional): The number :math:`M` of hyperedges; :obj:`None` takes
                the number of weights or, without them, what :obj:`hyperedge_index` names, for which
                a GPU has to wait and a compiled graph to break. (default: :obj:`None`)

        Raises:
            IndexError: If an incidence names a node or a hyperedge that does not exist. On a GPU,
                which would have to wait, CUDA's own check ends the process instead.
            TypeError: If :obj:`hyperedge_index` holds no int64, or features or weights no floats.
            ValueError: If a shape is another, the numbers of weights and of hyperedges differ, or a
                weight is negative, infinite or NaN (on a GPU, and in compiled code, such a weight
                makes NaN).
        """
        check_tensor(self, 'x', x, ('num_nodes', self.in_channels), 'floats')
        if num_hyperedges is None and hyperedge_weight is not None:
            num_hyperedges = hyperedge_weight.size(0)
        self.check(hyperedge_index, hyperedge_weight, x.size(0), num_hyperedges)
        if num_hyperedges is None:
            has_any = hyperedge_index.size(1) > 0
            num_hyperedges = int(hyperedge_index[1].max()) + 1 if has_any else 0
        # Ones that are added up in half precision stop at 256 or 2048.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = x.new_ones(num_hyperedges) if hyperedge_weight is None else hyperedge_weight
        weight = weight.to(dtype)
        degree = node_degree(hyperedge_index, weight, x.size(0))
        ones = torch.ones_like(hyperedge_index[1], dtype=dtype)
        size = torch.zeros_like(weight).index_add(0, hyperedge_index[1], ones)
        return self.convolve(x, hyperedge_index, degree, weight / size.clamp(min=1))

    def check(
        self,
        hyperedge_index: Tensor,
        hyperedge_weight: Tensor | None,
        num_nodes: int,
        num_hyperedges: int | None,
    ) -> None:
        r"""Raises what :meth:`forward` does for a hypergraph."""
        check_tensor(self, 'hyperedge_index', hyperedge_index, (2, 'nnz'), torch.long)
        if hyperedge_weight is not None:
            name, weight = 'hyperedge_weight', hyperedge_weight
            size = 'num_hyperedges' if num_hyperedges is None else num_hyperedges
            check_tensor(self, name, weight, (size,), 'floats')
            # Degrees have roots.
            is_good = (weight >= 0) & weight.isfinite()
            check_values(self, name, weight, is_good, '0 or more, such as of softplus, and finite')
        for name, ids, number in zip(
            ('nodes', 'hyperedges'), hyperedge_index, (num_nodes, num_hyperedges)
        ):
            if number is not None:
                check_ids(self, f"{name} of 'hyperedge_index'", ids, number)

    def convolve(self, x: Tensor, hyperedge_index: Tensor, degree: Tensor, scale: Tensor) -> Tensor:
        r"""What :meth:`forward` returns, for a hypergraph that was checked, with the diagonals
        :math:`\mathbf{D}_v`, shape :obj:`[N]`, and :math:`\mathbf{W} \mathbf{D}_e^{-1}`, shape
        :obj:`[M]`, in the type to add up in."""
        x = self.lin(x)
        dtype = x.dtype
        root, scale = _inverse_root(degree).unsqueeze(1), scale.unsqueeze(1)
        size = (x.size(0), scale.size(0))
        # propagate_type: (x: Tensor)
        out = self.propagate(hyperedge_index, x=root * x.to(root.dtype), size=size)
        # propagate_type: (x: Tensor)
        out = self.propagate(hyperedge_index.flip(0), x=scale * out, size=size[::-1])
        out = (root * out).to(dtype)
        return out if self.bias is None else out + self.bias

    def __repr__(self) -> str:
        bias = ', bias=True' if self.bias is not None else ''
        return f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}{bias})'


def node_degree(hyperedge_index: Tensor, hyperedge_weight: Tensor, num_nodes: int) -> Tensor:
    r"""The weights of the hyperedges that each node is in, added up, shape :obj:`[N]`."""
    node, hyperedge = hyperedge_index
    weight = hyperedge_weight.index_select(0, hyperedge)
    return hyperedge_weight.new_zeros(num_nodes).index_add(0, node, weight)


def _inverse_root(degree: Tensor) -> Tensor:
    r"""One over the root of each degree, and 0 for a degree of 0."""
    is_zero = degree == 0
    # Twice: the gradient of the branch that is not taken would be NaN.
    return degree.masked_fill(is_zero, 1).rsqrt().masked_fill(is_zero, 0)
