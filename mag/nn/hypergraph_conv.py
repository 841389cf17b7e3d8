import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from mag.checks import check_booleans
from mag.schema import require_positive_integers, require_range


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
        require_positive_integers(in_channels=in_channels, out_channels=out_channels)
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
            TypeError: If :obj:`hyperedge_index` holds no int64, or the weights are no floats.
            ValueError: If a shape is another, the numbers of weights and of hyperedges differ, or a
                weight is negative, infinite or NaN (on a GPU, and in compiled code, such a weight
                makes NaN).
        """
        if x.dim() != 2 or x.size(1) != self.in_channels:
            raise ValueError(
                f'{self!r} expects features of shape [num_nodes, {self.in_channels}], but got '
                f'{list(x.shape)}.'
            )
        self._check_shapes(hyperedge_index, hyperedge_weight, num_hyperedges)
        if hyperedge_weight is not None:
            num_hyperedges = hyperedge_weight.size(0)
        elif num_hyperedges is None:
            has_any = hyperedge_index.size(1) > 0
            num_hyperedges = int(hyperedge_index[1].max()) + 1 if has_any else 0
        self._check_values(hyperedge_index, hyperedge_weight, x.size(0), num_hyperedges)

        node, hyperedge = hyperedge_index
        x = self.lin(x)
        dtype = x.dtype
        # Ones that are added up in half precision stop at 256 or 2048.
        x = x.to(torch.promote_types(dtype, torch.float32))
        ones = torch.ones_like(node, dtype=x.dtype)
        if hyperedge_weight is None:
            weight = x.new_ones(num_hyperedges)
        else:
            weight = hyperedge_weight.to(x.dtype)
        node_degree = x.new_zeros(x.size(0)).index_add(0, node, weight.index_select(0, hyperedge))
        hyperedge_size = x.new_zeros(num_hyperedges).index_add(0, hyperedge, ones)
        root = _inverse_root(node_degree).unsqueeze(1)
        scale = (weight / hyperedge_size.clamp(min=1)).unsqueeze(1)

        size = (x.size(0), num_hyperedges)
        # propagate_type: (x: Tensor)
        out = self.propagate(hyperedge_index, x=root * x, size=size)
        # propagate_type: (x: Tensor)
        out = self.propagate(hyperedge_index.flip(0), x=scale * out, size=size[::-1])
        out = (root * out).to(dtype)
        return out if self.bias is None else out + self.bias

    def check(
        self,
        hyperedge_index: Tensor,
        hyperedge_weight: Tensor | None,
        num_nodes: int,
        num_hyperedges: int,
    ) -> None:
        r"""Raises what :meth:`forward` would for a hypergraph."""
        self._check_shapes(hyperedge_index, hyperedge_weight, num_hyperedges)
        self._check_values(hyperedge_index, hyperedge_weight, num_nodes, num_hyperedges)

    def _check_shapes(
        self,
        hyperedge_index: Tensor,
        hyperedge_weight: Tensor | None,
        num_hyperedges: int | None,
    ) -> None:
        if hyperedge_index.dim() != 2 or hyperedge_index.size(0) != 2:
            raise ValueError(
                f"{self!r} expects 'hyperedge_index' of shape [2, num_incidences], but got "
                f'{list(hyperedge_index.shape)}.'
            )
        if hyperedge_index.dtype != torch.long:
            raise TypeError(
                f"{self!r} expects 'hyperedge_index' of dtype int64, but got "
                f'{hyperedge_index.dtype}.'
            )
        if hyperedge_weight is None:
            return
        if not hyperedge_weight.is_floating_point():
            raise TypeError(
                f"{self!r} expects 'hyperedge_weight' of floats, but got {hyperedge_weight.dtype}."
            )
        if hyperedge_weight.dim() != 1:
            raise ValueError(
                f"{self!r} expects 'hyperedge_weight' of shape [num_hyperedges], but got "
                f'{list(hyperedge_weight.shape)}.'
            )
        if num_hyperedges is not None and hyperedge_weight.size(0) != num_hyperedges:
            raise ValueError(
                f"{self!r} expects a weight for each hyperedge, but 'num_hyperedges' is "
                f"{num_hyperedges} and 'hyperedge_weight' has shape "
                f'{list(hyperedge_weight.shape)}.'
            )

    def _check_values(
        self,
        hyperedge_index: Tensor,
        hyperedge_weight: Tensor | None,
        num_nodes: int,
        num_hyperedges: int,
    ) -> None:
        if torch.compiler.is_compiling() or hyperedge_index.device.type != 'cpu':
            return
        for name, ids, number in zip(
            ('nodes', 'hyperedges'), hyperedge_index, (num_nodes, num_hyperedges)
        ):
            require_range(self, f"{name} of 'hyperedge_index'", ids, number)
        if hyperedge_weight is None:
            return
        bad = ~((hyperedge_weight >= 0) & hyperedge_weight.isfinite())
        if bool(bad.any()):
            raise ValueError(
                f"{self!r} expects 'hyperedge_weight' of 0 or more and finite, but got "
                f'{hyperedge_weight[bad][0].item()}: its degrees have roots. A learned weight '
                f'stays positive through torch.nn.functional.softplus.'
            )

    def __repr__(self) -> str:
        bias = ', bias=True' if self.bias is not None else ''
        return f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}{bias})'


def _inverse_root(degree: Tensor) -> Tensor:
    r"""One over the root of each degree, and 0 for a degree of 0."""
    is_zero = degree == 0
    # Twice: the gradient of the branch that is not taken would be NaN.
    return degree.masked_fill(is_zero, 1).rsqrt().masked_fill(is_zero, 0)
