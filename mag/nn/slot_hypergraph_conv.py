import torch
from torch import Tensor

from mag.nn.hypergraph_conv import HypergraphConv
from mag.schema import require_positive_integers, require_range


class SlotHypergraphConv(torch.nn.Module):
    r"""Layers of :class:`HypergraphConv` over the hypergraph of each time slot, as in
    `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ (eq. 5)

    .. math::
        \mathbf{X}^{(l+1)}_t = \mathrm{ReLU} \left( \mathrm{HypergraphConv}_l(\mathbf{X}^{(l)}_t)
        \right), \qquad \mathbf{X}^{(0)}_t = \mathbf{X}.

    The slots share their weights and their input, and are convolved together, as one hypergraph in
    which a node is there once for every slot that knows it. Those that nobody asks for are left
    out, but for compiled and exported programs, whose shapes are fixed before.

    Args:
        channels (int): Size :math:`F` of features, in and out.
        num_layers (int): How many layers; at least one.
        num_nodes (int): How many nodes there are.
        hyperedge_index (torch.Tensor): Nodes above the hyperedges they are in, shape
            :obj:`[2, nnz]`.
        hyperedge_slot (torch.Tensor): The slot of each hyperedge, shape :obj:`[num_hyperedges]`.
        hyperedge_weight (torch.Tensor, optional): The weight of each hyperedge, shape
            :obj:`[num_hyperedges]`. By default each is 1. (default: :obj:`None`)

    Raises:
        IndexError: If an incidence names a node or a hyperedge that does not exist.
        TypeError: If incidences or slots are no int64, or weights no floats.
        ValueError: If a size is not positive, a slot or a weight is negative, or a shape is
            another.

    Shapes:
        - **input:** features :math:`(N, F)`, nodes and slots :math:`(B)`
        - **output:** :math:`(B, F)`
    """

    slot: Tensor
    key: Tensor
    incidence: Tensor
    hyperedge_weight: Tensor | None
    pointers: Tensor

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_nodes: int,
        hyperedge_index: Tensor,
        hyperedge_slot: Tensor,
        hyperedge_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_positive_integers(channels=channels, num_layers=num_layers, num_nodes=num_nodes)
        _check_slot(hyperedge_slot)
        self.channels = channels
        self.num_nodes = num_nodes
        self.num_hyperedges = hyperedge_slot.numel()
        convs = [HypergraphConv(channels, channels) for _ in range(num_layers)]
        convs[0].check(hyperedge_index, hyperedge_weight, num_nodes, self.num_hyperedges)
        self.convs = torch.nn.ModuleList(convs)

        slots, rank = hyperedge_slot.unique(return_inverse=True)
        rank, order = rank.sort(stable=True)
        number = torch.empty_like(order).scatter_(0, order, torch.arange(self.num_hyperedges))
        hyperedge, column = number[hyperedge_index[1]].sort(stable=True)
        # A node within a slot, by ids of its own in the order of slot and node.
        key = rank[hyperedge] * num_nodes + hyperedge_index[0, column]
        key, member = key.unique(return_inverse=True)
        # Where nodes, incidences and hyperedges of each slot begin, and those of the last end.
        first = torch.arange(slots.numel() + 1)
        pointers = [
            torch.searchsorted(ranks.contiguous(), first)
            for ranks in (key // num_nodes, rank[hyperedge], rank)
        ]
        # What is made of the data is not part of what was learned.
        self.register_buffer('slot', slots, persistent=False)
        self.register_buffer('key', key, persistent=False)
        self.register_buffer('incidence', torch.stack([member, hyperedge]), persistent=False)
        weight = None if hyperedge_weight is None else hyperedge_weight[order]
        self.register_buffer('hyperedge_weight', weight, persistent=False)
        self.register_buffer('pointers', torch.stack(pointers), persistent=False)

    def reset_parameters(self) -> None:
        for conv in self.convs:
            conv.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, node: Tensor, slot: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Features of all nodes, shape :obj:`[N, F]`.
            node (torch.Tensor): The nodes that are asked for, shape :obj:`[B]`.
            slot (torch.Tensor): The slot to look each of them up in, shape :obj:`[B]`; one without
                hyperedges, such as :obj:`-1`, knows no node.

        Returns:
            What the node has become in the slot, zeros where it is in no hyperedge.

        Raises:
            IndexError: If a node does not exist; on a GPU, which would have to wait, and in
                compiled code it is one that no slot knows.
            ValueError: If the features are of another number of nodes, or there is not a slot for
                each node.
        """
        if x.size(0) != self.num_nodes:
            raise ValueError(
                f'{self!r} expects features of {self.num_nodes} nodes, but got shape '
                f'{list(x.shape)}.'
            )
        if node.shape != slot.shape:
            raise ValueError(
                f'{self!r} expects a slot for each node, but got nodes of shape '
                f'{list(node.shape)} and slots of shape {list(slot.shape)}.'
            )
        if node.device.type == 'cpu' and not torch.compiler.is_compiling():
            require_range(self, 'nodes', node, self.num_nodes)
        if self.key.numel() == 0:
            # A parameter that waits for a gradient that never comes stops distributed training.
            unused = sum(parameter.sum() for parameter in self.convs.parameters())
            return x.new_zeros(node.numel(), x.size(1)) + 0 * unused
        rank = torch.searchsorted(self.slot, slot).clamp(max=self.slot.numel() - 1)
        is_slot = self.slot[rank] == slot
        wanted = rank * self.num_nodes + node
        place = torch.searchsorted(self.key, wanted).clamp(max=self.key.numel() - 1)
        is_node = (node >= 0) & (node < self.num_nodes)
        is_known = is_slot & is_node & (self.key[place] == wanted)
        # A program's shapes cannot depend on which slots are asked for.
        if torch.compiler.is_compiling():
            key, incidence, weight = self.key, self.incidence, self.hyperedge_weight
            num_hyperedges = self.num_hyperedges
        else:
            needed = rank[is_slot].unique()
            key, incidence, weight, num_hyperedges, shift = self._select(needed)
            place = place + shift[rank]

        hidden = x.index_select(0, key % self.num_nodes)
        for conv in self.convs:
            hidden = conv(hidden, incidence, weight, num_hyperedges).relu()
        # One more than there are nodes, for who is in none.
        hidden = torch.cat([hidden, hidden.new_zeros(1, hidden.size(1))])
        return hidden.index_select(0, place.where(is_known, hidden.size(0) - 1))

    def _select(self, needed: Tensor) -> tuple[Tensor, Tensor, Tensor | None, int, Tensor]:
        r"""The hypergraph of some slots alone, and by how much their nodes move."""
        start = self.pointers[:, needed]
        count = self.pointers[:, needed + 1] - start
        move = count.cumsum(1) - count - start
        nodes, incidences, hyperedges = (
            torch.arange(int(number.sum()), device=needed.device) - shift.repeat_interleave(number)
            for number, shift in zip(count, move, strict=True)
        )
        incidence = self.incidence[:, incidences] + move[::2].repeat_interleave(count[1], dim=1)
        weight = self.hyperedge_weight
        weight = None if weight is None else weight[hyperedges]
        shift = move.new_zeros(self.slot.numel()).index_copy(0, needed, move[0])
        return self.key[nodes], incidence, weight, hyperedges.numel(), shift

    def __repr__(self) -> str:
        weighted = ', weighted' if self.hyperedge_weight is not None else ''
        return (
            f'{self.__class__.__name__}({self.channels}, num_layers={len(self.convs)}, '
            f'num_nodes={self.num_nodes}, num_slots={self.slot.numel()}{weighted})'
        )


def _check_slot(hyperedge_slot: Tensor) -> None:
    if not isinstance(hyperedge_slot, Tensor) or hyperedge_slot.dim() != 1:
        is_tensor = isinstance(hyperedge_slot, Tensor)
        got = list(hyperedge_slot.shape) if is_tensor else type(hyperedge_slot).__name__
        raise ValueError(
            f"SlotHypergraphConv expects 'hyperedge_slot' of shape [num_hyperedges], but got {got}."
        )
    if hyperedge_slot.dtype != torch.long:
        raise TypeError(
            f"SlotHypergraphConv expects 'hyperedge_slot' of dtype int64, but got "
            f'{hyperedge_slot.dtype}.'
        )
    if hyperedge_slot.numel() > 0 and hyperedge_slot.min() < 0:
        raise ValueError(
            f"'hyperedge_slot' must be 0 or more, but got {int(hyperedge_slot.min())}."
        )
