from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_booleans, check_choice, check_integers, check_numbers, check_sizes
from mag.lineage import remember_ids
from mag.loader import JoinedBatch, PairBatch
from mag.models._batch import pair_batch
from mag.models._growth import check_grown
from mag.models._macro_readout import require_macro
from mag.nn import MLP, IdEmbedding, MacroConv
from mag.nn.id_embedding import add_rows, hide
from mag.schema import MACRO, hops, require


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
        kept = {
            'user': self.user_embedding.drop(batch.user),
            'item': self.item_embedding.drop(batch.item),
        }
        user, item = self.user_embedding(kept['user']), self.item_embedding(kept['item'])
        target = {'user': user, 'item': item}
        features = [user, *self._aggregate('user', batch.user_hops, target)]
        if self.recent:
            features.append(self._attend('item', batch.user_recent, target, own, kept))
        features.append(item)
        if self.item_graph:
            features.extend(self._aggregate('item', batch.item_hops, target))
        if self.recent:
            features.append(self._attend('user', batch.item_recent, target, own, kept))
        return torch.cat(features, dim=-1)

    def _aggregate(
        self, node_type: str, hops: tuple[Tensor, ...], target: dict[str, Tensor]
    ) -> list[Tensor]:
        if len(hops) < self.num_hops:
            raise ValueError(
                f'MacGNN reads {self.num_hops} hops, but the batch has {len(hops)} of the '
                f'{node_type}: apply MacroCoarsen with num_hops={self.num_hops}.'
            )
        other = 'item' if node_type == 'user' else 'user'
        out = []
        for hop, counts in enumerate(hops[: self.num_hops], start=1):
            # The attention belongs to the type of the neighbors, and so does the target.
            reached = node_type if hop % 2 == 0 else other
            conv = self.user_conv if reached == 'user' else self.item_conv
            macro = self.macro_user_embedding if reached == 'user' else self.macro_item_embedding
            out.append(conv((macro.weight, target[reached]), counts))
        return out

    def _attend(
        self,
        reached: str,
        recent: Tensor,
        target: dict[str, Tensor],
        own: dict[str, Tensor],
        kept: dict[str, Tensor],
    ) -> Tensor:
        if recent.size(1) == 0:
            raise ValueError(
                f'MacGNN reads recent neighbors, but the batch has no recent {reached}s: apply '
                f'RecentNeighbors, or build MacGNN with recent=False.'
            )
        conv = self.user_conv if reached == 'user' else self.item_conv
        embedding = self.user_embedding if reached == 'user' else self.item_embedding
        ids = hide(recent, own[reached], kept[reached]) if embedding.drops else recent
        return conv.attend(embedding(ids), target[reached], recent >= 0)

    def extra_repr(self) -> str:
        return f'num_hops={self.num_hops}, recent={self.recent}, item_graph={self.item_graph}'
