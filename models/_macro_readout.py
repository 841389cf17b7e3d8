from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_ids
from mag.loader import PairBatch
from mag.nn import MacroConv
from mag.nn.id_embedding import add_rows, all_rows, hide, look_up
from mag.schema import NEIGHBOR_TYPE, hops, reached

# From a node type and ids, 0 for none, to their embeddings.
Embed = Callable[[str, Tensor], Tensor]


class MacroReadout(torch.nn.Module):
    r"""What the macro rows and the recent lists of a user and an item say of the two, as the
    aggregations of :class:`MacGNN` do: neighbors that are users are attended to by the user, and
    those that are items by the item.

    Args:
        embedding_dim (int): Size :math:`d` of all embeddings and of each aggregation.
        num_nodes (Mapping[str, int]): The number of users and of items.
        num_macro (Mapping[str, int]): The number of macro users and of macro items; read if
            :obj:`rows` are.
        num_hops (int): Hops to read of macro rows.
        rows (str or None): The form of :class:`~mag.nn.MacroConv` that reads macro rows, if any.
        recent (bool): Whether the recent lists are read.
        separate_tables (bool): Whether what attends and is attended to has embeddings of its own.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_nodes: Mapping[str, int],
        num_macro: Mapping[str, int],
        num_hops: int,
        rows: str | None,
        recent: bool,
        separate_tables: bool,
    ) -> None:
        super().__init__()
        self.num_hops = num_hops if rows is not None else 0
        self.recent, self.num_nodes = recent, dict(num_nodes)
        num_aggregations = 2 * self.num_hops + 2 * recent
        self.out_channels = num_aggregations * embedding_dim
        self.macro = _tables(num_macro if rows is not None else {}, embedding_dim)
        self.conv = torch.nn.ModuleDict(
            {
                name: MacroConv(embedding_dim, embedding_dim, form=rows or 'paper')
                for name in NEIGHBOR_TYPE
            }
        )
        # Embeddings of the attention alone; row 0 stands for none.
        padded = {name: number + 1 for name, number in num_nodes.items()}
        self.attention = _tables(padded if separate_tables else {}, embedding_dim)
        self.macro_attention = _tables(
            num_macro if separate_tables and rows is not None else {}, embedding_dim
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for tables in (self.macro, self.attention, self.macro_attention):
            for table in tables.values():
                torch.nn.init.xavier_uniform_(table)
        for conv in self.conv.values():
            conv.reset_parameters()  # type: ignore[operator]

    def grow(self, num_nodes: Mapping[str, int], num_macro: Mapping[str, int]) -> None:
        r"""Adds users and items, whose embeddings start as those of none, and macro nodes, whose
        embeddings start as the mean of the others, up to numbers not below those of before."""
        for name, table in self.attention.items():
            self.attention[name] = add_rows(table, num_nodes[name] + 1 - table.size(0), table[:1])
        for tables in (self.macro, self.macro_attention):
            for name, table in tables.items():
                mean = table.mean(0, keepdim=True)
                tables[name] = add_rows(table, num_macro[name] - table.size(0), mean)
        self.num_nodes = dict(num_nodes)

    def forward(self, batch: PairBatch, ids: Mapping[str, Tensor], embed: Embed) -> list[Tensor]:
        r"""
        Args:
            batch (PairBatch): The macro rows and recent lists.
            ids (Mapping[str, torch.Tensor]): The users and items, counted from 1, 0 for one that is
                taken for unknown, shape :obj:`[B]` each.
            embed (Callable): The embeddings of users and items by node type and such ids.

        Returns:
            The aggregations, each of shape :obj:`[B, d]`: of the hops of the user, of those of the
            item, of the user's recent items and of the item's recent users.
        """
        attend = self._attention if self.attention else embed
        target = {name: attend(name, of) for name, of in ids.items()}
        hops = {'user': batch.user_hops, 'item': batch.item_hops}
        recent = {'user': batch.user_recent, 'item': batch.item_recent}
        own = {'user': batch.user, 'item': batch.item}
        out = [
            self._read_hop(name, hop, hops[name], target)
            for name in hops
            for hop in range(1, self.num_hops + 1)
        ]
        if self.recent:
            for name, of in recent.items():
                source = NEIGHBOR_TYPE[name]
                # Who is taken for unknown may be a recent neighbor, too: of a repeated click.
                known = hide(of, own[source], ids[source] - 1) if self.training else of
                out.append(self._read_recent(name, of, known, target, embed))
        return out

    def extra_repr(self) -> str:
        return f'num_hops={self.num_hops}, recent={self.recent}'

    def _attention(self, node_type: str, ids: Tensor) -> Tensor:
        return look_up(self.attention[node_type], ids)

    def _read_hop(
        self, node_type: str, hop: int, hops: tuple[Tensor, ...], target: Mapping[str, Tensor]
    ) -> Tensor:
        if len(hops) < self.num_hops:
            raise ValueError(
                f'CountNet reads {self.num_hops} hops, but the batch has {len(hops)} of the '
                f'{node_type}: apply MacroCoarsen with num_hops={self.num_hops}.'
            )
        source = reached(node_type, hop)
        x_attention = all_rows(self.macro_attention[source]) if self.macro_attention else None
        macro = all_rows(self.macro[source])
        return self.conv[source]((macro, target[source]), hops[hop - 1], x_attention=x_attention)

    def _read_recent(
        self,
        node_type: str,
        recent: Tensor,
        known: Tensor,
        target: Mapping[str, Tensor],
        embed: Embed,
    ) -> Tensor:
        source = NEIGHBOR_TYPE[node_type]
        if recent.size(1) == 0:
            raise ValueError(
                f'CountNet reads recent neighbors, but the batch has no recent {source}s: apply '
                f'RecentNeighbors, or build it with recent=False.'
            )
        check_ids('CountNet', f'recent {source}s', recent, self.num_nodes[source], first=-1)
        ids = known + 1
        x_attention = self._attention(source, ids) if self.attention else None
        return self.conv[source].attend(  # type: ignore[operator]
            embed(source, ids), target[source], recent >= 0, x_attention
        )


def require_macro(data: HeteroData, caller: str, num_hops: int, recent: bool) -> None:
    r"""Raises unless the data has so many hops of macro edges, and recent neighbors if they are
    read.

    Raises:
        ValueError: Names the transform that adds what is missing.
    """
    found = len(hops(data, 'user'))
    if num_hops > found:
        raise ValueError(
            f'{caller} reads {num_hops} hops, but the data has {found}: apply MacroCoarsen with '
            f'num_hops={num_hops}.'
        )
    if recent and 'recent' not in data['user']:
        raise ValueError(
            f'{caller} was asked for recent neighbors, but the data has none: apply '
            f'RecentNeighbors first.'
        )


def _tables(sizes: Mapping[str, int], embedding_dim: int) -> torch.nn.ParameterDict:
    return torch.nn.ParameterDict(
        {name: torch.empty(size, embedding_dim) for name, size in sizes.items()}
    )
