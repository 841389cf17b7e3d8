import math
from typing import Optional

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.utils import is_sparse, softmax

from mag.checks import check_choice, check_ids, check_integers, check_tensor, check_values


class IntentionConv(MessagePassing):
    r"""The intention- and upstream-aware attention from the `"Joint Learning of E-commerce Search
    and Recommendation with a Unified Graph Neural Network"
    <https://doi.org/10.1145/3488560.3498414>`_ paper (eq. 8 to 11)

    .. math::
        \mathbf{e}^{(l)}_n &= \mathrm{Transformer} \left( (\mathbf{e}^I \Vert \mathbf{e}^{(0)}_n)
        \mathbf{W}^I, \; \left[ \mathbf{e}^{(0)}_n, \mathbf{e}^{(l-1)}_{m_1}, \ldots,
        \mathbf{e}^{(l-1)}_{m_t} \right] \right)

    where the intention :math:`\mathbf{e}^I` is what the target is about, the upstream-enhanced
    :math:`\mathbf{e}^{(0)}_n` of the center :math:`n` holds how it was reached, and its children
    :math:`m_1, \ldots, m_t` come newest first. Of the transformer the paper says no more than
    where it is from. What it leaves open is as in the code that its authors released,

    .. math::
        \mathbf{k}_j &= \mathrm{LN} \left( (\mathbf{x}_j + \mathbf{p}_j) \mathbf{W}_K +
        \mathbf{b}_K \right), \qquad \mathbf{q} = \mathrm{LN} \left( (\mathbf{e}^I \Vert
        \mathbf{e}^{(0)}_n) \mathbf{W}^I \mathbf{W}_Q + \mathbf{b}_Q \right) \\
        \mathbf{o} &= \sum_j \mathrm{softmax}_j \left( \mathbf{q}^{\top} \mathbf{k}_j / \sqrt{F}
        \right) \mathbf{x}_j, \qquad \mathbf{e}^{(l)}_n = \mathrm{LN} \left( \mathbf{o} + \mathbf{o}
        \mathbf{W}_f + \mathbf{b}_f \right)

    with one head, learned positions :math:`\mathbf{p}_0, \mathbf{p}_1, \ldots` of the center and of
    its children, in the keys alone, and values that are not projected.

    Any graph will do: a center attends to itself and to the sources of its edges, in the order in
    which :obj:`edge_index` lists them.

    >>> conv = IntentionConv(8, 4)
    >>> x, center, intention = torch.randn(5, 8), torch.randn(2, 8), torch.randn(2, 4)
    >>> edge_index = torch.tensor([[0, 1, 2, 4], [0, 0, 0, 1]])
    >>> out = conv((x, center), edge_index, intention)
    >>> out.shape
    torch.Size([2, 8])

    Where every center has as many children, the same maths without indices:

    >>> conv.dense(x[:4].view(2, 2, 8), center, intention).shape
    torch.Size([2, 8])

    Args:
        channels (int): Size :math:`F` of nodes.
        intention_channels (int): Size of the intention.
        num_positions (int, optional): How many places have a position of their own, the center's
            among them; children further back share the last. (default: :obj:`26`)
        form (str, optional): :obj:`"paper"`, which is the formula above and what the authors
            released, or :obj:`"literal"` for the transformer that eq. 11 cites: values are
            projected, and the output goes through a ReLU. (default: :obj:`"paper"`)

    Shapes:
        - **input:** children and centers :math:`((M, F), (N, F))`, edge indices
          :math:`(2, |\mathcal{E}|)`, intentions of the centers :math:`(N, F_I)`
        - **output:** :math:`(N, F)`
    """

    def __init__(
        self,
        channels: int,
        intention_channels: int,
        num_positions: int = 26,
        form: str = 'paper',
    ) -> None:
        super().__init__(aggr='add', node_dim=0)
        check_integers(1, channels=channels, intention_channels=intention_channels)
        check_integers(1, num_positions=num_positions)
        check_choice(('paper', 'literal'), form=form)
        self.channels = channels
        self.intention_channels = intention_channels
        self.num_positions = num_positions
        self.form = form
        self.lin_intention = Linear(intention_channels + channels, channels)
        self.lin_query = Linear(channels, channels)
        self.lin_key = Linear(channels, channels)
        self.lin_value = Linear(channels, channels, bias=False) if form == 'literal' else None
        self.lin_out = Linear(channels, channels)
        self.lin_last = Linear(channels, channels) if form == 'literal' else None
        self.position = torch.nn.Parameter(torch.empty(num_positions, channels))
        self.norm_query, self.norm_key, self.norm_out = (
            torch.nn.LayerNorm(channels, eps=1e-9) for _ in range(3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for module in self.children():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        # Truncated at two deviations, as the authors' are; PyTorch's default is at forty.
        for weight in (self.lin_query.weight, self.lin_key.weight, self.position):
            torch.nn.init.trunc_normal_(weight, std=0.05, a=-0.1, b=0.1)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Tensor,
        intention: Tensor,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""
        Args:
            x (torch.Tensor or tuple[torch.Tensor, torch.Tensor]): The children
                :math:`\mathbf{e}^{(l-1)}`, shape :obj:`[M, F]`, and the centers
                :math:`\mathbf{e}^{(0)}`, shape :obj:`[N, F]`; one tensor if they are the same.
            edge_index (torch.Tensor): From children to centers; those of a center newest first.
            intention (torch.Tensor): :math:`\mathbf{e}^I` for each center, shape :obj:`[N, F_I]`.
            return_attention_weights (bool, optional): If set to :obj:`True`, also returns the
                attention of each center to itself, and then of each edge, shape :obj:`[N + E]`.
                (default: :obj:`False`)

        Raises:
            IndexError: If an edge is of a child or a center that does not exist.
            TypeError: If :obj:`edge_index` is an adjacency matrix, or another argument no tensor of
                its type.
            ValueError: If a shape is another.
        """
        child, center = x if isinstance(x, tuple) else (x, x)
        check_tensor(self, 'child', child, ('M', self.channels), 'floats')
        self._check_center(center, intention)
        if is_sparse(edge_index):
            raise TypeError(
                f"{self} expects 'edge_index' to list edges, whose order tells the newest child, "
                f'but got {type(edge_index).__name__}, an adjacency matrix without an order.'
            )
        check_tensor(self, 'edge_index', edge_index, (2, 'E'), torch.long)
        check_ids(self, "children of 'edge_index'", edge_index[0], child.size(0))
        check_ids(self, "centers of 'edge_index'", edge_index[1], center.size(0))
        num_centers = center.size(0)
        loop = torch.arange(num_centers, device=center.device)
        # A center is the first of its own keys.
        place = torch.cat([torch.zeros_like(loop), 1 + _rank_in_group(edge_index[1])])
        edges = torch.stack(
            [
                torch.cat([loop, edge_index[0] + num_centers]),
                torch.cat([loop, edge_index[1]]),
            ]
        )
        values = torch.cat([center, child])
        size = (values.size(0), num_centers)
        query = self._query(center, intention)
        position = self._position(place)
        # edge_updater_type: (query: Tensor, value: Tensor, position: Tensor)
        attention = self.edge_updater(
            edges, query=(None, query), value=(values, None), position=position, size=size
        )
        if self.lin_value is not None:
            values = self.lin_value(values)
        # propagate_type: (value: Tensor, attention: Tensor)
        out = self._finish(
            self.propagate(edges, value=(values, None), attention=attention, size=size)
        )
        return (out, attention) if return_attention_weights else out

    def dense(
        self,
        child: Tensor,
        center: Tensor,
        intention: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        r"""The same for centers of a fixed number of children.

        Args:
            child (torch.Tensor): The children, newest first, shape :obj:`[N, T, F]`.
            center (torch.Tensor): The centers, shape :obj:`[N, F]`.
            intention (torch.Tensor): Their intentions, shape :obj:`[N, F_I]`.
            mask (torch.Tensor, optional): Which children are there; the others, after them, are
                paddings. Shape :obj:`[N, T]`. (default: :obj:`None`)

        Raises:
            TypeError: If an argument is no tensor of its type.
            ValueError: If a shape is another, or a child comes after a padding.
        """
        self._check_center(center, intention)
        check_tensor(self, 'child', child, (center.size(0), 'T', self.channels), 'floats')
        if mask is not None:
            check_tensor(self, 'mask', mask, tuple(child.shape[:2]), torch.bool)
            # Not a slice, from which torch.export would take that there are children.
            is_whole = mask == mask.long().cummin(dim=1).values
            check_values(self, 'mask', mask, is_whole, 'no child after a padding')
        values = torch.cat([center.unsqueeze(1), child], dim=1)
        place = torch.arange(values.size(1), device=values.device)
        keys = self._key(values, self._position(place))
        score = (keys @ self._query(center, intention).unsqueeze(-1)).squeeze(-1)
        score = score / math.sqrt(self.channels)
        if mask is not None:
            score = score.masked_fill(~torch.nn.functional.pad(mask, (1, 0), value=True), -math.inf)
        if self.lin_value is not None:
            values = self.lin_value(values)
        return self._finish((score.softmax(-1).unsqueeze(1) @ values).squeeze(1))

    def edge_update(
        self,
        query_i: Tensor,
        value_j: Tensor,
        position: Tensor,
        index: Tensor,
        size_i: Optional[int],  # noqa: UP045  (PyG's inspector reads no unions of its own)
    ) -> Tensor:
        score = (query_i * self._key(value_j, position)).sum(-1) / math.sqrt(self.channels)
        return softmax(score, index, num_nodes=size_i)

    def message(self, value_j: Tensor, attention: Tensor) -> Tensor:
        return attention.unsqueeze(-1) * value_j

    def explain_message(
        self,
        inputs: Tensor,
        dim_size: Optional[int],  # noqa: UP045  (as above)
    ) -> Tensor:
        # What centers tell themselves comes first and is no edge, which PyG looks for at the end.
        edges = super().explain_message(inputs[dim_size:], dim_size)
        return torch.cat([inputs[:dim_size], edges])

    def _position(self, place: Tensor) -> Tensor:
        # Not self.position[place], whose gradient on several threads is another from run to run.
        return self.position.index_select(0, place.clamp(max=self.num_positions - 1))

    def _query(self, center: Tensor, intention: Tensor) -> Tensor:
        query = self.lin_intention(torch.cat([intention, center], dim=-1))
        return self.norm_query(self.lin_query(query))

    def _key(self, value: Tensor, position: Tensor) -> Tensor:
        return self.norm_key(self.lin_key(value + position))

    def _finish(self, out: Tensor) -> Tensor:
        hidden = self.lin_out(out)
        if self.lin_last is not None:
            hidden = self.lin_last(hidden.relu())
        return self.norm_out(out + hidden)

    def _check_center(self, center: Tensor, intention: Tensor) -> None:
        check_tensor(self, 'center', center, ('N', self.channels), 'floats')
        shape = (center.size(0), self.intention_channels)
        check_tensor(self, 'intention', intention, shape, 'floats')

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.channels}, {self.intention_channels}, '
            f'num_positions={self.num_positions}, form={self.form!r})'
        )


def _rank_in_group(group: Tensor) -> Tensor:
    r"""How many equal values come before each."""
    order = group.argsort(stable=True)
    place = torch.arange(group.numel(), device=group.device)
    ordered = group[order]
    # The first of all starts at 0 whatever it is compared with. There are no slices here, as
    # torch.export would take from them that there are at least so many edges.
    start = torch.where(ordered != ordered.roll(1), place, 0).cummax(0).values
    return torch.empty_like(place).scatter_(0, order, place - start)
