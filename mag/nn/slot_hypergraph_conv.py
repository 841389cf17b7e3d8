from typing import Any, NamedTuple

import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_tensor, check_values
from mag.nn.hypergraph_conv import HypergraphConv, node_degree


class _Part(NamedTuple):
    r"""What is convolved of all hypergraphs."""

    #: The node that each row is a copy of, shape :obj:`[K]`.
    node: Tensor
    #: Rows above hyperedges, shape :obj:`[2, nnz]`.
    incidence: Tensor
    #: The degree of each row in its slot, shape :obj:`[K]`.
    degree: Tensor
    #: What a hyperedge gives of the sum of its members, shape :obj:`[M]`.
    scale: Tensor
    #: Of how many hyperedges in the slot each hyperedge of a row stands for one, shape :obj:`[K]`.
    share: Tensor | None
    #: The row of each node that is asked for, shape :obj:`[B]`.
    place: Tensor
    #: Whether it is in a hyperedge at all, shape :obj:`[B]`.
    is_member: Tensor


class SlotHypergraphConv(torch.nn.Module):
    r"""Layers of :class:`HypergraphConv` over the hypergraph of each time slot, as in
    `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ (eq. 5)

    .. math::
        \mathbf{X}^{(l+1)}_t = \mathrm{ReLU} \left( \mathrm{HypergraphConv}_l(\mathbf{X}^{(l)}_t)
        \right), \qquad \mathbf{X}^{(0)}_t = \mathbf{X}.

    The slots share their weights and their input, and are convolved together, as one hypergraph in
    which a node is there once for every slot that it is in. Those that nobody asks for are left
    out, but for compiled and exported programs, whose shapes are fixed before.

    In training, with :obj:`num_neighbors`, a step convolves the nodes that are asked for, neighbors
    drawn for each, and the hyperedges by which they were drawn, wherever these are fewer than the
    incidences of the slots. Its cost then goes with the number of nodes that are asked for, and not
    with the size of the slots. A node takes the mean of its hyperedges among the drawn for that of
    all, and the mean of a hyperedge's other members among the drawn for that of all others. This
    approximates what the whole slot makes of it, also on average over draws, as hyperedges and
    members by which others were drawn count as well, and ReLU is not linear. A layer is exact once
    all hyperedges of the node and all their members are among the drawn.
    Otherwise, and always in evaluation, slots are convolved whole, so that what a node becomes does
    not depend on what else is asked for.

    Args:
        channels (int): Size :math:`F` of features, in and out.
        num_layers (int): How many layers; at least one.
        num_nodes (int): How many nodes there are.
        hyperedge_index (torch.Tensor): Nodes above the hyperedges they are in, shape
            :obj:`[2, nnz]`.
        hyperedge_slot (torch.Tensor): The slot of each hyperedge, shape :obj:`[num_hyperedges]`.
        hyperedge_weight (torch.Tensor, optional): The weight of each hyperedge, shape
            :obj:`[num_hyperedges]`. By default each is 1. (default: :obj:`None`)
        num_neighbors (int, optional): How many neighbors are drawn in training for each node that
            is asked for: members of its hyperedges, a hyperedge and then a member with the same
            chance, by torch's generator; one may be drawn twice. :obj:`None` for all.
            (default: :obj:`None`)

    Raises:
        IndexError: If an incidence names a node or a hyperedge that does not exist.
        TypeError: If incidences or slots are no int64, weights no floats, or a number no integer.
        ValueError: If a size is not positive, a slot or a weight is negative, or a shape is
            another.

    Shapes:
        - **input:** features :math:`(N, F)`, nodes and slots :math:`(B)`
        - **output:** :math:`(B, F)`
    """

    slot: Tensor
    key: Tensor
    incidence: Tensor
    weight: Tensor
    degree: Tensor
    size: Tensor
    pointers: Tensor
    member_pointer: Tensor
    hyperedge_pointer: Tensor
    by_member: Tensor

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_nodes: int,
        hyperedge_index: Tensor,
        hyperedge_slot: Tensor,
        hyperedge_weight: Tensor | None = None,
        num_neighbors: int | None = None,
    ) -> None:
        super().__init__()
        check_integers(1, channels=channels, num_layers=num_layers, num_nodes=num_nodes)
        if num_neighbors is not None:
            check_integers(1, num_neighbors=num_neighbors)
        self.channels = channels
        self.num_neighbors = num_neighbors
        convs = [HypergraphConv(channels, channels) for _ in range(num_layers)]
        self.convs = torch.nn.ModuleList(convs)
        self.read(num_nodes, hyperedge_index, hyperedge_slot, hyperedge_weight)

    def read(
        self,
        num_nodes: int,
        hyperedge_index: Tensor,
        hyperedge_slot: Tensor,
        hyperedge_weight: Tensor | None = None,
    ) -> None:
        r"""Takes other hypergraphs, such as those of a log that grew, in the place of those of
        before; for the arguments and errors see the constructor."""
        check_integers(1, num_nodes=num_nodes)
        caller, name = type(self).__name__, 'hyperedge_slot'
        check_tensor(caller, name, hyperedge_slot, ('num_hyperedges',), torch.long)
        check_values(caller, name, hyperedge_slot, hyperedge_slot >= 0, '0 or more')
        conv: Any = self.convs[0]
        conv.check(hyperedge_index, hyperedge_weight, num_nodes, hyperedge_slot.numel())
        self.num_nodes, self.num_hyperedges = num_nodes, hyperedge_slot.numel()

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
        self.is_weighted = hyperedge_weight is not None
        weight = torch.ones(order.numel()) if hyperedge_weight is None else hyperedge_weight[order]
        self.register_buffer('weight', weight, persistent=False)
        degree = node_degree(self.incidence, weight, key.numel())
        self.register_buffer('degree', degree, persistent=False)
        self.register_buffer('pointers', torch.stack(pointers), persistent=False)
        # Where the hyperedges of each member, and the members of each hyperedge, begin and end.
        size = hyperedge.bincount(minlength=self.num_hyperedges)
        for name, count in (
            ('member', member.bincount(minlength=key.numel())),
            ('hyperedge', size),
        ):
            pointer = torch.cat([count.new_zeros(1), count.cumsum(0)])
            self.register_buffer(f'{name}_pointer', pointer, persistent=False)
        self.register_buffer('size', size.clamp(min=1), persistent=False)
        self.register_buffer('by_member', member.argsort(stable=True), persistent=False)

    def reset_parameters(self) -> None:
        for conv in self.convs:
            conv.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, node: Tensor, slot: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Features of all nodes, shape :obj:`[N, F]`.
            node (torch.Tensor): The nodes that are asked for, :obj:`-1` for an unknown one, which
                is in no hyperedge, shape :obj:`[B]`.
            slot (torch.Tensor): The slot to look each of them up in, shape :obj:`[B]`; one without
                hyperedges, such as :obj:`-1`, has no node.

        Returns:
            What the node has become in the slot, zeros where it is in no hyperedge.

        Raises:
            IndexError: If a node does not exist; on a GPU, which would have to wait, and in
                compiled code it is one that is in no slot.
            TypeError: If features are no floats, or nodes or slots no int64.
            ValueError: If the features are of another number of nodes, or there is not a slot for
                each node.
        """
        check_tensor(self, 'x', x, (self.num_nodes, self.channels), 'floats')
        part = self.select(node, slot)
        return self.convolve(x.index_select(0, part.node), part)

    def select(self, node: Tensor, slot: Tensor) -> _Part:
        r"""What :meth:`convolve` needs to tell what nodes have become in slots: the rows of it are
        the nodes whose features it needs."""
        check_tensor(self, 'node', node, ('B',), torch.long)
        check_tensor(self, 'slot', slot, (node.size(0),), torch.long)
        check_ids(self, 'nodes', node, self.num_nodes, first=-1)
        if self.key.numel() == 0:
            return _Part(self.key, self.incidence, self.degree, self.weight, None, node, node < 0)
        rank = torch.searchsorted(self.slot, slot).clamp(max=self.slot.numel() - 1)
        is_slot = self.slot[rank] == slot
        wanted = rank * self.num_nodes + node
        place = torch.searchsorted(self.key, wanted).clamp(max=self.key.numel() - 1)
        is_node = (node >= 0) & (node < self.num_nodes)
        is_member = is_slot & is_node & (self.key[place] == wanted)
        # A program's shapes cannot depend on which slots are asked for.
        if torch.compiler.is_compiling():
            node = self.key % self.num_nodes
            scale = self._weight() / self.size
            return _Part(node, self.incidence, self.degree, scale, None, place, is_member)
        needed = rank[is_slot].unique()
        if self.training and self.num_neighbors is not None:
            asked = place[is_member].unique()
            first = self.pointers[1]
            num_incidences = int((first[needed + 1] - first[needed]).sum())
            if asked.numel() * (1 + self.num_neighbors) < num_incidences:
                return self._drawn(asked, self.num_neighbors, place, is_member)
        return self._whole(needed, rank, place, is_member)

    def convolve(self, x: Tensor, part: _Part) -> Tensor:
        r"""What :meth:`forward` returns, from the features of the rows of what was selected, shape
        :obj:`[K, F]`."""
        if self.key.numel() == 0:
            # A parameter that waits for a gradient that never comes stops distributed training.
            unused = sum(parameter.sum() for parameter in self.convs.parameters())
            return x.new_zeros(part.place.numel(), self.channels) + 0 * unused
        # Ones that are added up in half precision stop at 256 or 2048.
        dtype = torch.promote_types(x.dtype, torch.float32)
        degree, scale = part.degree.to(dtype), part.scale.to(dtype)
        share = None if part.share is None else part.share.to(dtype).unsqueeze(1)
        for conv in self.convs:
            x = conv.convolve(x, part.incidence, degree, scale)  # type: ignore[operator]
            x = (x if share is None else (share * x).to(x.dtype)).relu()
        # One more than there are rows, for who is in no hyperedge.
        x = torch.cat([x, x.new_zeros(1, x.size(1))])
        return x.index_select(0, part.place.where(part.is_member, x.size(0) - 1))

    def _whole(self, needed: Tensor, rank: Tensor, place: Tensor, is_member: Tensor) -> _Part:
        r"""The hypergraphs of some slots."""
        start = self.pointers[:, needed]
        count = self.pointers[:, needed + 1] - start
        move = count.cumsum(1) - count - start
        nodes, incidences, hyperedges = (
            torch.arange(int(number.sum()), device=needed.device) - shift.repeat_interleave(number)
            for number, shift in zip(count, move, strict=True)
        )
        incidence = self.incidence[:, incidences] + move[::2].repeat_interleave(count[1], dim=1)
        shift = move.new_zeros(self.slot.numel()).index_copy(0, needed, move[0])
        return _Part(
            self.key[nodes] % self.num_nodes,
            incidence,
            self.degree[nodes],
            self._weight(hyperedges) / self.size[hyperedges],
            None,
            place + shift[rank],
            is_member,
        )

    def _drawn(self, asked: Tensor, num_neighbors: int, place: Tensor, is_member: Tensor) -> _Part:
        r"""The hypergraph of what is asked for and of drawn neighbors."""
        owner = asked.unsqueeze(1).expand(-1, num_neighbors)
        start = self.member_pointer[owner]
        column = self.by_member[_draw(start, self.member_pointer[owner + 1] - start)]
        drawn = self.incidence[1, column]
        # Another member, where there is one: the last takes the place of the owner.
        start = self.hyperedge_pointer[drawn]
        last = self.hyperedge_pointer[drawn + 1] - 1
        neighbor = _draw(start, (last - start).clamp(min=1))
        neighbor = self.incidence[0, neighbor.where(neighbor != column, last)]
        row = torch.cat([asked, neighbor.flatten()]).unique()
        hyperedge = drawn.unique()
        # Which of their members are among the rows.
        start, size = self.hyperedge_pointer[hyperedge], self.size[hyperedge]
        shift = (size.cumsum(0) - size - start).repeat_interleave(size)
        member = self.incidence[0, torch.arange(shift.numel(), device=row.device) - shift]
        local = torch.searchsorted(row, member).clamp(max=row.numel() - 1)
        is_row = row[local] == member
        number = torch.arange(hyperedge.numel(), device=row.device).repeat_interleave(size)
        local, number = local[is_row], number[is_row]
        # With s members, of which n are rows, one gives itself 1 / s, and the other rows share the
        # rest. They give all rows alike, and each what then is missing, as a hyperedge of its own.
        num_rows = number.bincount(minlength=hyperedge.numel())
        weight = self._weight(hyperedge)
        scale = weight * (size - 1) / (size * (num_rows - 1).clamp(min=1))
        missing = (weight / size - scale)[number]
        own = missing.new_zeros(row.numel()).index_add(0, local, missing)
        alone = torch.arange(row.numel(), device=row.device)
        single = torch.stack([alone, alone + hyperedge.numel()])
        num_hyperedges = self.member_pointer[row + 1] - self.member_pointer[row]
        return _Part(
            self.key[row] % self.num_nodes,
            torch.cat([torch.stack([local, number]), single], dim=1),
            self.degree[row],
            torch.cat([scale, own]),
            num_hyperedges / local.bincount(minlength=row.numel()),
            torch.searchsorted(row, place).clamp(max=row.numel() - 1),
            is_member,
        )

    def _weight(self, hyperedge: Tensor | slice = slice(None)) -> Tensor:
        # Half precision is not enough to divide it.
        weight = self.weight[hyperedge]
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def __repr__(self) -> str:
        weighted = ', weighted' if self.is_weighted else ''
        return (
            f'{self.__class__.__name__}({self.channels}, num_layers={len(self.convs)}, '
            f'num_nodes={self.num_nodes}, num_slots={self.slot.numel()}{weighted})'
        )


def _draw(start: Tensor, count: Tensor) -> Tensor:
    r"""One of so many places from each start on, all with the same chance."""
    chance = torch.rand(start.shape, dtype=torch.float64, device=start.device)
    # A product may round up to the count itself.
    return start + (chance * count).long().minimum(count - 1)
