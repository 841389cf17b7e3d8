import torch
from torch import Tensor

from mag.nn.hypergraph_conv import HypergraphConv
from mag.schema import require_positive_integers


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
        ValueError: If a size is not positive, or a slot is negative.

    Shapes:
        - **input:** features :math:`(N, F)`, nodes and slots :math:`(B)`
        - **output:** :math:`(B, F)`
    """

    key: Tensor
    incidence: Tensor
    hyperedge_slot: Tensor
    hyperedge_weight: Tensor | None

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
        _check_range('nodes', hyperedge_index[0], num_nodes)
        _check_range('hyperedges', hyperedge_index[1], hyperedge_slot.numel())
        if hyperedge_slot.numel() > 0 and hyperedge_slot.min() < 0:
            raise ValueError(
                f"'hyperedge_slot' must be 0 or more, but got {int(hyperedge_slot.min())}."
            )
        self.num_nodes = num_nodes
        self.convs = torch.nn.ModuleList(
            HypergraphConv(channels, channels) for _ in range(num_layers)
        )
        node, hyperedge = hyperedge_index
        # A node within a slot, by ids of its own in the order of slot and node.
        key, member = (hyperedge_slot[hyperedge] * num_nodes + node).unique(return_inverse=True)
        # What is made of the data is not part of what was learned.
        self.register_buffer('key', key, persistent=False)
        self.register_buffer('incidence', torch.stack([member, hyperedge]), persistent=False)
        self.register_buffer('hyperedge_slot', hyperedge_slot, persistent=False)
        self.register_buffer('hyperedge_weight', hyperedge_weight, persistent=False)
        self.num_slots = int(hyperedge_slot.max()) + 1 if hyperedge_slot.numel() > 0 else 0

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
            IndexError: If a node does not exist.
            ValueError: If the features are of another number of nodes.
        """
        if x.size(0) != self.num_nodes:
            raise ValueError(
                f'SlotHypergraphConv expects features of {self.num_nodes} nodes, but got shape '
                f'{list(x.shape)}.'
            )
        if node.device.type == 'cpu' and not torch.compiler.is_compiling():
            _check_range('nodes', node, self.num_nodes)
        if self.key.numel() == 0:
            return x.new_zeros(node.numel(), x.size(1))
        is_slot = (slot >= 0) & (slot < self.num_slots)
        wanted = slot * self.num_nodes + node
        place = torch.searchsorted(self.key, wanted).clamp(max=self.key.numel() - 1)
        is_known = is_slot & (self.key[place] == wanted)
        key, incidence, weight = self.key, self.incidence, self.hyperedge_weight
        num_hyperedges = self.hyperedge_slot.numel()
        # A program's shapes cannot depend on which slots are asked for.
        if not torch.compiler.is_compiling():
            needed = torch.zeros(self.num_slots, dtype=torch.bool, device=x.device)
            needed[slot[is_slot]] = True
            has_node, has_hyperedge = needed[key // self.num_nodes], needed[self.hyperedge_slot]
            number, hyperedge_number = has_node.cumsum(0) - 1, has_hyperedge.cumsum(0) - 1
            member, hyperedge = incidence[:, has_hyperedge[incidence[1]]]
            incidence = torch.stack([number[member], hyperedge_number[hyperedge]])
            key, place = key[has_node], number[place]
            weight = None if weight is None else weight[has_hyperedge]
            num_hyperedges = int(has_hyperedge.sum())

        hidden = x[key % self.num_nodes]
        for conv in self.convs:
            hidden = conv(hidden, incidence, weight, num_hyperedges).relu()
        # One more than there are nodes, for who is in none.
        hidden = torch.cat([hidden, hidden.new_zeros(1, hidden.size(1))])
        return hidden[torch.where(is_known, place, hidden.size(0) - 1)]


def _check_range(name: str, ids: Tensor, number: int) -> None:
    if ids.numel() > 0 and not 0 <= ids.min() <= ids.max() < number:
        raise IndexError(
            f'SlotHypergraphConv found {name} from {int(ids.min())} to {int(ids.max())}, but '
            f'expected them from 0 to {number - 1}.'
        )
