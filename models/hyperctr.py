import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP

from mag.checks import check_booleans, check_ids, check_integers, check_sizes
from mag.lineage import remember_ids
from mag.loader import HistoryBatch
from mag.modality import check_features, has_modality, modality_features
from mag.models._growth import check_grown
from mag.nn import IdEmbedding, SlotHypergraphConv, TensorFusion
from mag.schema import require


class HyperCTR(torch.nn.Module):
    r"""The click model from the `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ paper.

    What a user :math:`u` has clicked last, :math:`i_1, \ldots, i_l`, is read by a transformer layer
    over

    .. math::
        \mathbf{x}_j = \mathbf{e}_u + \mathbf{e}_{i_j} + \mathbf{a}_{i_j}, \qquad
        \mathbf{a}_i = \frac{1}{|M_i|} \sum_{m \in M_i} \left( \mathbf{W}_m \mathbf{f}_{m, i} +
        \mathbf{b}_m \right)

    (eq. 1 to 4), with the features :math:`\mathbf{f}_{m, i}` of the modalities :math:`M_i` that the
    item has, such as what is seen, heard and read; :math:`\mathbf{t}_u` is the output at the newest
    item. Hypergraphs of users, with features :math:`\mathbf{e}_u`, and of items, with
    :math:`\mathbf{e}_i + \mathbf{a}_i`, are convolved in each time slot to :math:`\mathbf{g}`
    (:class:`~mag.nn.SlotHypergraphConv`, eq. 5). A row reads the last slot that ended before its
    own, and

    .. math::
        \hat{y} = \mathrm{MLP} \left( \mathrm{TensorFusion}(\mathbf{t}_u, \mathbf{g}_u) \Vert
        (\mathbf{e}_i + \mathbf{a}_i + \mathbf{g}_i) \right)

    (eq. 6 and 7). A user or an item that is in no hyperedge of the slot has
    :math:`\mathbf{g} = \mathbf{0}`, and a user who has clicked nothing
    :math:`\mathbf{t}_u = \mathbf{0}`; the fusion passes what there is.

    There is no released code. Where the paper is silent this is the smallest consistent reading:

    * The attention is in a standard transformer layer.
    * Modalities are averaged. The paper sums them.
    * The item is what enters the hypergraph, with its content. Without it a new item would be
      nothing.
    * The slot is the last that ended. A row's own slot holds its own click.

    A step convolves the slots before those of its rows whole, so that an epoch takes time in
    proportion to its rows and to the size of the slots. With :obj:`num_neighbors`, training
    convolves the users and items of its rows with so many drawn for each, where that is less: the
    time of an epoch then grows little faster than its rows, at a loss of AUC where hypergraphs tell
    much. In evaluation slots are always convolved whole, and the score of a row is the same in any
    batch.

    Args:
        num_users (int): The number of users.
        features (dict[str, torch.Tensor]): For one modality or more, the features of all items,
            shape :obj:`[num_items, F_m]`. An item whose row is zero has nothing of a modality.
        hypergraphs (dict[str, dict[str, torch.Tensor]], optional): For :obj:`"user"` and
            :obj:`"item"`, the :obj:`hyperedge_index`, :obj:`hyperedge_slot` and, if they are to
            count, :obj:`hyperedge_weight` of :class:`~mag.transforms.InterestHypergraph`;
            :obj:`None` for no hypergraphs ("(-) hypergraph" of Table 4). (default: :obj:`None`)
        embedding_dim (int, optional): Size :math:`d` of embeddings. (default: :obj:`64`)
        num_layers (int, optional): Hypergraph convolutions one after another. (default: :obj:`3`)
        num_neighbors (int, optional): How many neighbors are drawn in training for each user and
            item of a row, see :class:`~mag.nn.SlotHypergraphConv`; the paper tries 15 to 25.
            :obj:`None` for all. (default: :obj:`None`)
        num_heads (int, optional): Heads of the attention. (default: :obj:`2`)
        num_positions (int, optional): How many of the newest items have a position of their own;
            the paper gives none, so that its attention does not see the order.
            (default: :obj:`0`)
        fusion_rank (int, optional): See :class:`~mag.nn.TensorFusion`. (default: :obj:`None`)
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(64, 32)`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, see :class:`~mag.nn.IdEmbedding`. One of them is so in all rows,
            histories and hyperedges of the step or in none. What was clicked, contents and who
            shares a hyperedge stay known. (default: :obj:`0.0`)

    Raises:
        TypeError: If features are no floats, a number no integer, or sizes are no sequence.
        ValueError: If a size is not positive, there is no modality, features have another shape or
            are NaN or infinite, or there are not hypergraphs of both users and items.
    """

    has_modality: Tensor

    def __init__(
        self,
        num_users: int,
        features: Mapping[str, Tensor],
        hypergraphs: Mapping[str, Mapping[str, Tensor]] | None = None,
        embedding_dim: int = 64,
        num_layers: int = 3,
        num_neighbors: int | None = None,
        num_heads: int = 2,
        num_positions: int = 0,
        fusion_rank: int | None = None,
        hidden_channels: Sequence[int] = (64, 32),
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {'embedding_dim': embedding_dim, 'num_layers': num_layers, 'num_heads': num_heads}
        if num_neighbors is not None:
            sizes['num_neighbors'] = num_neighbors
        check_integers(1, num_users=num_users, **sizes)
        if embedding_dim % num_heads != 0:
            raise ValueError(
                f"'embedding_dim' must be a multiple of 'num_heads', but got {embedding_dim} and "
                f'{num_heads}.'
            )
        check_integers(0, num_positions=num_positions)
        check_sizes(hidden_channels=hidden_channels)
        num_items = check_features(features, 'HyperCTR')
        if hypergraphs is not None and set(hypergraphs) != {'user', 'item'}:
            raise ValueError(
                f"'hypergraphs' must be those of 'user' and 'item', but got {list(hypergraphs)}."
            )
        self.modalities = tuple(features)
        self.num_heads = num_heads
        # What is made of the data is not part of what was learned.
        for column, x in enumerate(features.values()):
            self.register_buffer(f'x_{column}', x.float(), persistent=False)
        self.register_buffer('has_modality', has_modality(features), persistent=False)
        self.user_embedding = IdEmbedding('user', num_users, embedding_dim, id_dropout)
        self.item_embedding = IdEmbedding('item', num_items, embedding_dim, id_dropout)
        self.lin_modality = torch.nn.ModuleList(
            torch.nn.Linear(x.size(1), embedding_dim) for x in features.values()
        )
        self.position = torch.nn.Parameter(torch.empty(num_positions, embedding_dim))
        self.attention = torch.nn.TransformerEncoderLayer(
            embedding_dim, num_heads, dim_feedforward=embedding_dim, dropout=0.0, batch_first=True
        )
        self.convs = torch.nn.ModuleDict(
            {
                name: SlotHypergraphConv(
                    embedding_dim,
                    num_layers,
                    {'user': num_users, 'item': num_items}[name],
                    num_neighbors=num_neighbors,
                    **hypergraph,
                )
                for name, hypergraph in (hypergraphs or {}).items()
            }
        )
        self.fusion = TensorFusion((embedding_dim, embedding_dim), embedding_dim, fusion_rank)
        self.head = MLP([2 * embedding_dim, *hidden_channels, 1], norm=None)
        self.reset_parameters()

    @classmethod
    def from_data(
        cls,
        data: HeteroData,
        modalities: Sequence[str] | None = None,
        hypergraph: bool = True,
        weighted: bool = False,
        **kwargs: Any,
    ) -> 'HyperCTR':
        r"""Builds the model for a log.

        Args:
            data (HeteroData): The whole log, with :obj:`data['item'].x_<modality>` and what
                :class:`~mag.transforms.InterestHypergraph` adds: in the hypergraphs of a part,
                rows of a later one would find nothing. What a boolean :obj:`has_<modality>` says
                an item lacks is not read.
            modalities (Sequence[str], optional): Which to read, such as :obj:`["visual"]`, of items
                and of hyperedges. By default all. (default: :obj:`None`)
            hypergraph (bool, optional): If set to :obj:`False`, there are no hypergraphs.
                (default: :obj:`True`)
            weighted (bool, optional): If set to :obj:`True`, hyperedges count by their
                :obj:`hyperedge_weight`, and equally otherwise. (default: :obj:`False`)
            **kwargs (optional): Arguments of :class:`HyperCTR`, such as :obj:`num_layers`.

        Raises:
            TypeError: If features are no floats.
            ValueError: If a modality does not exist, a :obj:`has_<modality>` is no boolean for each
                item, or there are no hypergraphs, or those of other modalities.
        """
        check_booleans(hypergraph=hypergraph, weighted=weighted)
        caller = 'HyperCTR.from_data'
        features, hypergraphs = _read(data, modalities, hypergraph, weighted, caller)
        model = cls(data['user'].num_nodes, features, hypergraphs, **kwargs)
        return remember_ids(model, data)

    def grow(self, data: HeteroData) -> None:
        r"""Adds the users and items of a log that grew, whose embeddings start as that of the
        unknown, and reads the contents and hypergraphs of it. Who was known is scored as before
        where these stayed the same. An optimizer has to be made anew.

        Args:
            data (HeteroData): The whole grown log, as for :meth:`from_data`.

        Raises:
            TypeError: If features are no floats.
            ValueError: If the data has the ids of another log, or fewer nodes than before, or lacks
                modalities or hypergraphs that are read.
        """
        convs: Any = self.convs
        is_weighted = any(conv.is_weighted for conv in convs.values())
        features, hypergraphs = _read(
            data, self.modalities, len(convs) > 0, is_weighted, 'HyperCTR.grow'
        )
        tables = {'users': self.user_embedding, 'items': self.item_embedding}
        known = {what: table.num_ids for what, table in tables.items()}
        found = {
            'users': data['user'].num_nodes,
            'items': check_features(features, 'HyperCTR.grow'),
        }
        check_grown(self, data, known, found)
        for column, (name, x) in enumerate(features.items()):
            width = getattr(self, f'x_{column}').size(1)
            if x.size(1) != width:
                raise ValueError(
                    f'HyperCTR was built for {width} features of {name!r}, but this data has '
                    f'{x.size(1)}.'
                )
        for what, table in tables.items():
            table.grow(found[what])
        for column, x in enumerate(features.values()):
            setattr(self, f'x_{column}', x.to(getattr(self, f'x_{column}')))
        self.has_modality = has_modality(features).to(self.has_modality)
        for name, hypergraph in (hypergraphs or {}).items():
            convs[name].read(found[f'{name}s'], **hypergraph)
            # What was made anew is on the CPU, in single precision.
            convs[name].to(self.position)
        remember_ids(self, data)

    def reset_parameters(self) -> None:
        draw = functools.partial(torch.nn.init.normal_, std=0.01)
        for embedding in (self.user_embedding, self.item_embedding):
            embedding.reset_parameters(draw)
        draw(self.position)
        for module in (*self.lin_modality, *self.convs.values(), self.fusion, self.head):
            module.reset_parameters()
        self.attention.self_attn._reset_parameters()
        for module in self.attention.children():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()  # type: ignore[operator]

    def forward(self, batch: HistoryBatch) -> Tensor:
        r"""
        Args:
            batch (HistoryBatch): Rows with the history of their users, and with their
                :obj:`slot` if there are hypergraphs.

        Returns:
            The logit of each click, shape :obj:`[B]`.

        Raises:
            ValueError: If the slots of the rows are missing.
        """
        groups = self._select(batch)
        users, items = [batch.user], [batch.item, batch.history.clamp(min=0).view(-1)]
        if groups:
            users.append(groups['user'].node)
            items.append(groups['item'].node)
        # As they are read: each row of the batch, of the histories, of the hypergraphs.
        user, *grouped_users = self._users(users)
        own, history, *grouped_items = self._items(items)
        read = self._read_history(batch, user, history)
        group = torch.zeros_like(read)
        if groups:
            convs: Any = self.convs
            group = convs['user'].convolve(grouped_users[0], groups['user'])
            own = own + convs['item'].convolve(grouped_items[0], groups['item'])
        return self.head(torch.cat([self.fusion(read, group), own], dim=1)).view(-1)

    def _select(self, batch: HistoryBatch) -> dict[str, Any]:
        r"""What is convolved of the hypergraphs, of which each row reads the slot before its
        own."""
        if len(self.convs) == 0:
            return {}
        if batch.slot is None:
            raise ValueError(
                "HyperCTR expects batches with a 'slot', but got one without: apply TimeSlots to "
                'the log.'
            )
        nodes = {'user': batch.user, 'item': batch.item}
        return {
            name: conv.select(nodes[name], batch.slot - 1)  # type: ignore[operator]
            for name, conv in self.convs.items()
        }

    def _users(self, asked: list[Tensor]) -> list[Tensor]:
        r"""Embeddings of users, shape :obj:`[n, d]` for each of some ids of shape :obj:`[n]`."""
        embedding = self.user_embedding
        if not embedding.drops:
            return [embedding(ids) for ids in asked]
        # One draw for each user: a row that is not told who asks must not find it in a hyperedge.
        ids, places = _distinct(asked, embedding)
        user = embedding(embedding.drop(ids))
        return [user.index_select(0, place) for place in places]

    def _items(self, asked: list[Tensor]) -> list[Tensor]:
        r"""Embeddings and contents of items, shape :obj:`[n, d]` for each of some ids of shape
        :obj:`[n]`."""
        embedding = self.item_embedding
        ids, places = _distinct(asked, embedding)
        if ids.numel() > embedding.num_ids:
            # All of them, the unknown first.
            content = F.pad(self._content(slice(None)), (0, 0, 1, 0))
        else:
            content = self._content(ids.clamp(min=0)).masked_fill((ids < 0).unsqueeze(1), 0)
        item = embedding(embedding.drop(ids)) + content
        # Not item[...], whose gradient on several threads is another from run to run.
        return [item.index_select(0, place) for place in places]

    def _content(self, item: Tensor | slice) -> Tensor:
        r"""The mean over the modalities that items have, shape :obj:`[n, d]`."""
        has = self.has_modality[item]
        total: Any = 0
        for column, lin in enumerate(self.lin_modality):
            projected = lin(getattr(self, f'x_{column}')[item])
            total = total + projected * has[:, column : column + 1]
        return total / has.sum(1, keepdim=True).clamp(min=1)

    def _read_history(self, batch: HistoryBatch, user: Tensor, item: Tensor) -> Tensor:
        r"""The output of the attention at the newest item, zeros where there is none."""
        is_padding = batch.history < 0
        if is_padding.size(0) == 0:
            # A transformer layer cannot tell its shapes from no rows.
            return torch.zeros_like(user)
        x = item.view(*batch.history.shape, -1) + user.unsqueeze(1)
        num_placed = min(self.position.size(0), x.size(1))
        if num_placed > 0:
            # The newest are last.
            x = torch.cat([x[:, :-num_placed], x[:, -num_placed:] + self.position[-num_placed:]], 1)
        has_none = is_padding[:, -1]
        # Attention to nothing at all would be NaN.
        is_padding = is_padding & ~has_none.unsqueeze(1)
        out = self.attention(x, src_key_padding_mask=is_padding)[:, -1]
        return out.masked_fill(has_none.unsqueeze(1), 0)

    def extra_repr(self) -> str:
        return f'modalities={list(self.modalities)}, num_heads={self.num_heads}'


def _distinct(asked: list[Tensor], embedding: IdEmbedding) -> tuple[Tensor, list[Tensor]]:
    r"""Ids in ascending order, each once, that hold all that are asked for; and the places of
    these among them."""
    number = embedding.num_ids
    for ids in asked:
        check_ids('HyperCTR', f'{embedding.name} ids', ids, number, first=-1)
    sizes = [ids.numel() for ids in asked]
    # A program's shapes cannot depend on which ids are asked for.
    if torch.compiler.is_compiling() or sum(sizes) >= number:
        return torch.arange(-1, number, device=asked[0].device), [ids + 1 for ids in asked]
    ids, place = torch.cat(asked).unique(return_inverse=True)
    return ids, list(place.split(sizes))


def _read(
    data: HeteroData,
    modalities: Sequence[str] | None,
    hypergraph: bool,
    weighted: bool,
    caller: str,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]] | None]:
    r"""The features of the modalities that are read, and the hypergraphs if they are."""
    require(data, caller)
    existing = modality_features(data, caller)
    hypergraphs = None
    modalities = list(existing) if modalities is None else modalities
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if not is_list or not set(modalities) <= set(existing):
        raise ValueError(
            f"{caller} expects 'modalities' to be a list of some of "
            f"{list(existing)}, for which there is data['item'].x_<modality>, but got "
            f'{modalities!r}.'
        )
    if hypergraph:
        interest = data['user'].get('interest')
        if interest is not None and interest.size(1) != len(existing):
            raise ValueError(
                f'{caller} expects the interests that hyperedges were made of to be '
                f"in the modalities of the items, {list(existing)}, but data['user'].interest "
                f'has {interest.size(1)} columns.'
            )
        columns = torch.tensor([list(existing).index(name) for name in modalities])
        hypergraphs = {
            node_type: _hypergraph(data, node_type, columns, weighted, caller)
            for node_type in ('user', 'item')
        }
    features = {name: existing[name] for name in modalities}
    return features, hypergraphs


def _hypergraph(
    data: HeteroData, node_type: str, columns: Tensor, weighted: bool, caller: str
) -> dict[str, Tensor]:
    r"""The hyperedges of some modalities, as arguments of :class:`~mag.nn.SlotHypergraphConv`."""
    store = data[node_type]
    names = ['hyperedge_slot', *(['hyperedge_weight'] if weighted else [])]
    needed = ['hyperedge_index', 'hyperedge_modality', *names]
    missing = [name for name in needed if name not in store]
    if missing:
        raise ValueError(
            f"{caller} expects data['{node_type}'] with {missing}, which "
            f'InterestHypergraph adds; pass hypergraph=False for a model without.'
        )
    kept = torch.isin(store.hyperedge_modality, columns)
    node, hyperedge = store.hyperedge_index[:, kept[store.hyperedge_index[1]]]
    index = torch.stack([node, (kept.cumsum(0) - 1)[hyperedge]])
    return {'hyperedge_index': index, **{name: store[name][kept] for name in names}}
