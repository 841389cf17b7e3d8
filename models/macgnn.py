from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import (
    check_booleans,
    check_choice,
    check_integers,
    check_numbers,
    check_sizes,
    check_tensor,
)
from mag.lineage import remember_ids
from mag.loader import JoinedBatch, PairBatch
from mag.models._batch import pair_batch
from mag.models._growth import check_grown
from mag.models._macro_readout import require_macro
from mag.nn import MLP, IdEmbedding, MacroConv
from mag.nn.id_embedding import add_rows, hide
from mag.schema import MACRO, NEIGHBOR_TYPE, hops, require


class MacGNN(torch.nn.Module):
    r"""The click model from the `"Macro Graph Neural Networks for Online Billion-Scale Recommender
    Systems" <https://doi.org/10.1145/3589334.3645517>`_ paper.

    For a user :math:`u` and an item :math:`i` it reads the counts of both over a few macro nodes at
    every hop, and the last neighbors of both,

    .. math::
        \hat{y}_{ui} = \mathrm{MLP} \left( \mathbf{e}_u \Vert \mathbf{z}^{(1)}_u \Vert \cdots \Vert
        \mathbf{z}^{(k)}_u \Vert \mathbf{z}^{rs}_u \Vert \mathbf{e}_i \Vert \mathbf{z}^{(1)}_i
        \Vert \cdots \Vert \mathbf{z}^{(k)}_i \Vert \mathbf{z}^{rs}_i \right)

    (eq. 14), where :math:`\mathbf{z}^{(l)}` comes from :class:`~mag.nn.MacroConv` (eq. 6 to 11) and
    :math:`\mathbf{z}^{rs}` from its attention over recent neighbors (eq. 12 and 13). There are two
    sets of attention weights, one for neighbors that are users, attended to by the user, and one
    for neighbors that are items, attended to by the item.

    :obj:`form="released"` is what the authors ran: their softmax of the attention is 1 everywhere,
    the other one takes in macro nodes with count 0, and :class:`~mag.nn.Dice` is one of their own.
    The item lists of their data are :class:`~mag.transforms.RecentNeighbors` of the same form.

    Args:
        num_users (int): The number of users.
        num_items (int): The number of items.
        num_macro_users (int): The number of user clusters.
        num_macro_items (int): The number of item clusters.
        num_hops (int, optional): Hops to read. (default: :obj:`2`)
        embedding_dim (int, optional): Size :math:`d` of all embeddings. The aggregations have
            :math:`2d`. (default: :obj:`10`)
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(200, 80)`)
        temperature (float, optional): :math:`\tau` of eq. 6. (default: :obj:`1.9`)
        form (str, optional): :obj:`"paper"` or :obj:`"released"`. (default: :obj:`"paper"`)
        attention (bool, optional): Whether neighbors are attended to. Without ("w/o attention"),
            every :math:`\alpha` is 1. (default: as :obj:`form` has it)
        mask_zero (bool, optional): Whether absent macro nodes and paddings are left out of the
            softmaxes. (default: as :obj:`form` has it)
        weighting (bool, optional): If set to :obj:`False`, counts do not weight the macro nodes
            ("w/o weighting" of Table 4). (default: :obj:`True`)
        recent (bool, optional): If set to :obj:`False`, recent neighbors are not read
            ("w/o recent"). (default: :obj:`True`)
        item_graph (bool, optional): If set to :obj:`False`, the item's macro rows are not read
            ("w/o itemgraph"). (default: :obj:`True`)
        renormalize (bool, optional): See :class:`~mag.nn.MacroConv`. (default: :obj:`False`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, see :class:`~mag.nn.IdEmbedding`. Such an id is not read as a recent
            neighbor in that row either; others are read as ever. (default: :obj:`0.0`)

    A user or an item that is unknown, :obj:`-1`, has an embedding of its own. In the form
    :obj:`"released"` it is also that of paddings, which that form takes in.

    The ablation "w/o highorder" is :obj:`num_hops=1`.

    Of a program made by :func:`torch.export.export`, call
    :obj:`program.module(check_guards=False)`: torch 2.13 writes its guards wrongly where the name
    of one input begins with another's, as :obj:`user_hops` does.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_macro_users: int,
        num_macro_items: int,
        num_hops: int = 2,
        embedding_dim: int = 10,
        hidden_channels: Sequence[int] = (200, 80),
        temperature: float = 1.9,
        form: str = 'paper',
        attention: bool | None = None,
        mask_zero: bool | None = None,
        weighting: bool = True,
        recent: bool = True,
        item_graph: bool = True,
        renormalize: bool = False,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        attention = form == 'paper' if attention is None else attention
        mask_zero = form == 'paper' if mask_zero is None else mask_zero
        check_choice(('paper', 'released'), form=form)
        check_integers(1, num_users=num_users, num_items=num_items, num_hops=num_hops)
        check_integers(1, num_macro_users=num_macro_users, num_macro_items=num_macro_items)
        check_integers(1, embedding_dim=embedding_dim)
        check_sizes(hidden_channels=hidden_channels)
        check_booleans(attention=attention, recent=recent, item_graph=item_graph)
        check_numbers('[0, 1)', id_dropout=id_dropout)
        self.num_hops = num_hops
        self.recent = recent
        self.item_graph = item_graph

        self.reads_paddings = not mask_zero
        self.user_embedding, self.item_embedding = (
            IdEmbedding(name, number, embedding_dim, id_dropout, draw_unknown=True)
            for name, number in (('user', num_users), ('item', num_items))
        )
        self.macro_user_embedding = torch.nn.Embedding(num_macro_users, embedding_dim)
        self.macro_item_embedding = torch.nn.Embedding(num_macro_items, embedding_dim)
        self.user_conv, self.item_conv = (
            MacroConv(
                embedding_dim,
                2 * embedding_dim,
                temperature=temperature,
                form='paper' if attention else 'released',
                mask_zero=mask_zero,
                weighting=weighting,
                renormalize=renormalize,
            )
            for _ in range(2)
        )
        # A parameter that waits for a gradient that never comes stops distributed training.
        reads_macro_users = num_hops > 1 or item_graph
        self.macro_user_embedding.requires_grad_(reads_macro_users)
        if not reads_macro_users and not recent:
            self.user_conv.requires_grad_(False)

        num_aggregations = num_hops * (2 if item_graph else 1) + (2 if recent else 0)
        self.out_channels = 2 * embedding_dim * (1 + num_aggregations)
        self.head = MLP([self.out_channels, *hidden_channels, 1], form)
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'MacGNN':
        r"""Builds the model for a graph that went through :class:`~mag.transforms.MacroCoarsen`.

        Args:
            data (HeteroData): Any part of the log; all parts share their sizes.
            **kwargs (optional): Arguments of :class:`MacGNN`. By default all hops of the data are
                read, and the recent neighbors if there are any.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has no macro edges, or fewer hops or neighbors than asked for.
        """
        require(data, 'MacGNN.from_data')
        num_hops = max(len(hops(data, 'user')), 1)
        kwargs = {'num_hops': num_hops, 'recent': 'recent' in data['user'], **kwargs}
        require_macro(data, 'MacGNN.from_data', kwargs['num_hops'], kwargs['recent'])
        model = cls(
            data['user'].num_nodes,
            data['item'].num_nodes,
            data[MACRO['user']].num_nodes,
            data[MACRO['item']].num_nodes,
            **kwargs,
        )
        return remember_ids(model, data)

    def reset_parameters(self) -> None:
        for embedding in (
            self.user_embedding,
            self.item_embedding,
            self.macro_user_embedding,
            self.macro_item_embedding,
        ):
            torch.nn.init.xavier_uniform_(embedding.weight)
        if not self.reads_paddings:
            # Until it has learned something, who is unknown says nothing.
            for embedding in (self.user_embedding, self.item_embedding):
                torch.nn.init.zeros_(embedding.weight[0])
        self.user_conv.reset_parameters()
        self.item_conv.reset_parameters()
        self.head.reset_parameters()

    def grow(self, data: HeteroData) -> None:
        r"""Adds the users and items of a log that grew, whose embeddings start as that of the
        unknown, and its new macro nodes, such as those of new categories, whose embeddings start as
        the mean of the others. Who was known is scored as before, but in the form
        :obj:`"released"`, which takes in macro nodes without clicks, too. An optimizer has to be
        made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, fewer nodes than before, or fewer
                hops or recent neighbors than are read.
        """
        require(data, 'MacGNN.grow')
        require_macro(data, 'MacGNN.grow', self.num_hops, self.recent)
        nodes = {'user': self.user_embedding, 'item': self.item_embedding}
        macro = {'user': self.macro_user_embedding, 'item': self.macro_item_embedding}
        known = {f'{name}s': table.num_ids for name, table in nodes.items()}
        known |= {f'macro {name}s': table.num_embeddings for name, table in macro.items()}
        found = {f'{name}s': data[name].num_nodes for name in nodes}
        found |= {f'macro {name}s': data[MACRO[name]].num_nodes for name in macro}
        check_grown(self, data, known, found)
        for name, embedding in nodes.items():
            embedding.grow(found[f'{name}s'])
        for name, table in macro.items():
            number = found[f'macro {name}s']
            mean = table.weight.mean(0, keepdim=True)
            table.weight = add_rows(table.weight, number - table.num_embeddings, mean)
            table.num_embeddings = number
        remember_ids(self, data)

    def forward(self, batch: PairBatch | JoinedBatch) -> Tensor:
        r"""
        Args:
            batch (PairBatch or JoinedBatch): Pairs with their macro rows, see
                :class:`~mag.loader.PairBatch`.

        Returns:
            The logit of each click, shape :obj:`[B]`.

        Raises:
            IndexError: If a user, an item or a recent neighbor does not exist.
            TypeError: If the batch is of another kind.
            ValueError: If the batch has fewer hops than the model reads, or no recent neighbors.
        """
        return self.head(self.features(batch)).squeeze(-1)

    def features(self, batch: PairBatch | JoinedBatch) -> Tensor:
        r"""What the head reads, shape :obj:`[B, 14 d]` with two hops and everything on, in the
        order :math:`[\mathbf{e}_u, \mathbf{z}_u^{(1)}, \ldots, \mathbf{z}_u^{rs}, \mathbf{e}_i,
        \mathbf{z}_i^{(1)}, \ldots, \mathbf{z}_i^{rs}]`.

        Args:
            batch (PairBatch or JoinedBatch): Pairs with their macro rows; for the errors see
                :meth:`forward`.
        """
        batch = pair_batch('MacGNN', batch)
        own = {'user': batch.user, 'item': batch.item}
        tables = {'user': self.user_embedding, 'item': self.item_embedding}
        kept = {name: table.drop(own[name]) for name, table in tables.items()}
        hops = {'user': batch.user_hops, 'item': batch.item_hops}
        recent = {'user': batch.user_recent, 'item': batch.item_recent}
        nodes = {}
        for name, neighbor in NEIGHBOR_TYPE.items():
            read = recent[name]
            if self.recent and tables[neighbor].drops:
                read = hide(read, own[neighbor], kept[neighbor])
            nodes[name] = self._node(name, kept[name], hops[name], recent[name], read)
        return self._join(nodes['user'], nodes['item'])

    def item_state(
        self, item: Tensor, item_hops: tuple[Tensor, ...], item_recent: Tensor
    ) -> Tensor:
        r"""All that :meth:`score_request` reads of items, which depends on no user: the embedding
        :math:`\mathbf{e}_i`, :math:`\mathbf{z}_i^{(l)}` of even hops, which the item itself
        attends to (eq. 6 to 9), the weights :math:`w_{iq}` of odd hops (eq. 6), and the embeddings
        of the recent neighbors. It can be kept while the item's rows stay as they are.

        Args:
            item (torch.Tensor): Item ids, shape :obj:`[B]`.
            item_hops (tuple[torch.Tensor, ...]): As in :class:`~mag.loader.PairBatch`.
            item_recent (torch.Tensor): Likewise.

        Returns:
            Shape :obj:`[B, C]`; for the errors see :meth:`forward`.
        """
        node = self._node('item', item, item_hops, item_recent, item_recent)
        parts = [node.embedding, *node.even]
        for weight, present in node.odd:
            # Where a weight rounds to 0 there is a count nevertheless.
            floor = torch.finfo(weight.dtype).tiny
            parts.append(weight.where(~present, weight.clamp(min=floor)))
        if node.recent is not None:
            of_recent, mask = node.recent
            parts += [mask.to(of_recent.dtype), of_recent.flatten(1)]
        return torch.cat(parts, dim=1)

    def score_request(
        self, user: Tensor, user_hops: tuple[Tensor, ...], user_recent: Tensor, state: Tensor
    ) -> Tensor:
        r"""The logits of one user and many items: what does not depend on the item,
        :math:`\mathbf{z}_u^{(l)}` of even hops, is computed once. The rest is the attention of the
        items to the user's macro nodes and recent items, that of the user to the items', and the
        head (eq. 7 to 14).

        Args:
            user (torch.Tensor): The id of the user, shape :obj:`[1]`.
            user_hops (tuple[torch.Tensor, ...]): Its counts, each of shape :obj:`[1, M_k]`.
            user_recent (torch.Tensor): Its last items, shape :obj:`[1, R]`.
            state (torch.Tensor): What :meth:`item_state` made of the items, shape :obj:`[B, C]`.

        Returns:
            The logits, shape :obj:`[B]`; for the errors see :meth:`forward`.
        """
        node = self._node('user', user, user_hops, user_recent, user_recent)
        return self.head(self._join(node, self._item(state))).squeeze(-1)

    def _item(self, state: Tensor) -> '_Node':
        r"""Takes a state apart."""
        dim = self.item_embedding.embedding_dim
        num_even = self.num_hops // 2 if self.item_graph else 0
        num_odd = self.num_hops - self.num_hops // 2 if self.item_graph else 0
        num_macro = self.macro_user_embedding.num_embeddings
        sizes = [dim, *[2 * dim] * num_even, *[num_macro] * num_odd]
        check_tensor('MacGNN', 'state', state, ('B', 'C'), 'floats')
        num_recent, left = divmod(state.size(1) - sum(sizes), dim + 1)
        if left != 0 or (num_recent > 0) != self.recent:
            raise ValueError(
                f'MacGNN reads states that its item_state made, but got shape {[*state.shape]}.'
            )
        if self.recent:
            sizes += [num_recent, num_recent * dim]
        embedding, *parts = state.split(sizes, dim=1)
        odd = [(weight, weight > 0) for weight in parts[num_even : num_even + num_odd]]
        recent = None
        if self.recent:
            recent = parts[-1].unflatten(1, (num_recent, dim)), parts[-2] > 0
        return _Node(embedding, odd, parts[:num_even], recent)

    def _node(
        self, node_type: str, ids: Tensor, hops: tuple[Tensor, ...], recent: Tensor, read: Tensor
    ) -> '_Node':
        r"""What is read of nodes before they are paired. :obj:`read` are the recent neighbors
        after those that are taken for unknown."""
        neighbor = NEIGHBOR_TYPE[node_type]
        tables = {'user': self.user_embedding, 'item': self.item_embedding}
        embedding = tables[node_type](ids)
        odd: list[tuple[Tensor, Tensor]] = []
        even: list[Tensor] = []
        if node_type == 'user' or self.item_graph:
            if len(hops) < self.num_hops:
                raise ValueError(
                    f'MacGNN reads {self.num_hops} hops, but the batch has {len(hops)} of the '
                    f'{node_type}: apply MacroCoarsen with num_hops={self.num_hops}.'
                )
            for hop, counts in enumerate(hops[: self.num_hops], start=1):
                # The attention belongs to the type of the neighbors, and so does the target.
                conv, macro = self._reached(node_type if hop % 2 == 0 else neighbor)
                if counts.size(1) != macro.size(0) or counts.size(0) != ids.size(0):
                    raise ValueError(
                        f'MacGNN expects counts of shape {[ids.size(0), macro.size(0)]} for '
                        f'{ids.size(0)} targets and {macro.size(0)} macro nodes, but got shape '
                        f'{[*counts.shape]}.'
                    )
                if hop % 2 == 0:
                    even.append(conv((macro, embedding), counts))
                else:
                    odd.append((conv.weigh(counts), counts > 0))
        if not self.recent:
            return _Node(embedding, odd, even, None)
        if recent.size(1) == 0:
            raise ValueError(
                f'MacGNN reads recent neighbors, but the batch has no recent {neighbor}s: apply '
                f'RecentNeighbors, or build MacGNN with recent=False.'
            )
        return _Node(embedding, odd, even, (tables[neighbor](read), recent >= 0))

    def _join(self, user: '_Node', item: '_Node') -> Tensor:
        r"""What the head reads of pairs. One user may be paired with many items."""
        features = [*self._read('user', user, item), *self._read('item', item, user)]
        return torch.cat([of.expand(item.embedding.size(0), -1) for of in features], dim=-1)

    def _read(self, node_type: str, node: '_Node', target: '_Node') -> list[Tensor]:
        conv, macro = self._reached(NEIGHBOR_TYPE[node_type])
        odd = [conv.combine(macro, target.embedding, *of) for of in node.odd]
        hops = [*odd, *node.even]
        # Hops 1, 3, ... and 2, 4, ... take turns.
        hops[::2], hops[1::2] = odd, node.even
        if node.recent is not None:
            of_recent, mask = node.recent
            hops.append(conv.attend(of_recent, target.embedding, mask))
        return [node.embedding, *hops]

    def _reached(self, node_type: str) -> tuple[MacroConv, Tensor]:
        if node_type == 'user':
            return self.user_conv, self.macro_user_embedding.weight
        return self.item_conv, self.macro_item_embedding.weight

    def extra_repr(self) -> str:
        return f'num_hops={self.num_hops}, recent={self.recent}, item_graph={self.item_graph}'


class _Node(NamedTuple):
    r"""What is read of nodes of one type: their embeddings, weights and presence of the macro nodes
    of odd hops, which who they are paired with attends to, the aggregations of even hops, and
    embeddings and presence of recent neighbors."""

    embedding: Tensor
    odd: list[tuple[Tensor, Tensor]]
    even: Sequence[Tensor]
    recent: tuple[Tensor, Tensor] | None
