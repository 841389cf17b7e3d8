from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP

from mag.checks import check_booleans, check_integers
from mag.loader import HistoryBatch
from mag.modality import check_features, has_modality, modality_features
from mag.nn import SlotHypergraphConv, TensorFusion
from mag.schema import require, require_positive_integers, require_sizes


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

    (eq. 6 and 7). Whom the slot does not know has :math:`\mathbf{g} = \mathbf{0}`, and who has
    clicked nothing :math:`\mathbf{t}_u = \mathbf{0}`; the fusion passes what there is. There is no
    released code. Where the paper is silent this is the smallest consistent reading: a standard
    transformer layer, the mean of the modalities where the paper sums, the item as it enters the
    hypergraph, with its content, without which a new item would be nothing, and the last completed
    slot, as a row's own would hold its own click.

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
        num_heads (int, optional): Heads of the attention. (default: :obj:`2`)
        num_positions (int, optional): How many of the newest items have a position of their own;
            the paper gives none, so that its attention does not see the order.
            (default: :obj:`0`)
        fusion_rank (int, optional): See :class:`~mag.nn.TensorFusion`. (default: :obj:`None`)
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(64, 32)`)

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
        num_heads: int = 2,
        num_positions: int = 0,
        fusion_rank: int | None = None,
        hidden_channels: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        require_positive_integers(
            num_users=num_users,
            embedding_dim=embedding_dim,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        if embedding_dim % num_heads != 0:
            raise ValueError(
                f"'embedding_dim' must be a multiple of 'num_heads', but got {embedding_dim} and "
                f'{num_heads}.'
            )
        check_integers(0, num_positions=num_positions)
        require_sizes(hidden_channels=hidden_channels)
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
        self.user_embedding = torch.nn.Embedding(num_users, embedding_dim)
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
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
        require(data, 'HyperCTR.from_data')
        check_booleans(hypergraph=hypergraph, weighted=weighted)
        existing = modality_features(data, 'HyperCTR.from_data')
        modalities = list(existing) if modalities is None else modalities
        is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
        if not is_list or not set(modalities) <= set(existing):
            raise ValueError(
                f"HyperCTR.from_data expects 'modalities' to be a list of some of "
                f"{list(existing)}, for which there is data['item'].x_<modality>, but got "
                f'{modalities!r}.'
            )
        if hypergraph:
            interest = data['user'].get('interest')
            if interest is not None and interest.size(1) != len(existing):
                raise ValueError(
                    f'HyperCTR.from_data expects the interests that hyperedges were made of to be '
                    f"in the modalities of the items, {list(existing)}, but data['user'].interest "
                    f'has {interest.size(1)} columns.'
                )
            columns = torch.tensor([list(existing).index(name) for name in modalities])
            kwargs['hypergraphs'] = {
                node_type: _hypergraph(data, node_type, columns, weighted)
                for node_type in ('user', 'item')
            }
        features = {name: existing[name] for name in modalities}
        return cls(data['user'].num_nodes, features, **kwargs)

    def reset_parameters(self) -> None:
        for weight in (self.user_embedding.weight, self.item_embedding.weight, self.position):
            torch.nn.init.normal_(weight, std=0.01)
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
        user, item = self.user_embedding.weight, self.item_embedding.weight
        item = item + self._content()
        own = item.index_select(0, batch.item)
        read = self._read_history(batch, item)
        if len(self.convs) == 0:
            group = torch.zeros_like(read)
        else:
            if batch.slot is None:
                raise ValueError(
                    'HyperCTR looks rows up in the hypergraph of the slot before their own, but '
                    "the batch has no 'slot': apply TimeSlots to the log."
                )
            completed = batch.slot - 1
            group = self.convs['user'](user, batch.user, completed)
            own = own + self.convs['item'](item, batch.item, completed)
        return self.head(torch.cat([self.fusion(read, group), own], dim=1)).view(-1)

    def _content(self) -> Tensor:
        r"""The mean over the modalities that an item has, shape :obj:`[num_items, d]`."""
        total = torch.zeros_like(self.item_embedding.weight)
        for column, lin in enumerate(self.lin_modality):
            projected = lin(getattr(self, f'x_{column}'))
            total = total + projected * self.has_modality[:, column : column + 1]
        return total / self.has_modality.sum(1, keepdim=True).clamp(min=1)

    def _read_history(self, batch: HistoryBatch, item: Tensor) -> Tensor:
        r"""The output of the attention at the newest item, zeros where there is none."""
        is_padding = batch.history < 0
        if is_padding.size(0) == 0:
            # A transformer layer cannot tell its shapes from no rows.
            return item.new_zeros(0, item.size(1))
        # Not item[...], whose gradient on several threads is another from run to run.
        x = item.index_select(0, batch.history.clamp(min=0).view(-1))
        x = x.view(*batch.history.shape, -1) + self.user_embedding(batch.user).unsqueeze(1)
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


def _hypergraph(
    data: HeteroData, node_type: str, columns: Tensor, weighted: bool
) -> dict[str, Tensor]:
    r"""The hyperedges of some modalities, as arguments of :class:`~mag.nn.SlotHypergraphConv`."""
    store = data[node_type]
    names = ['hyperedge_slot', *(['hyperedge_weight'] if weighted else [])]
    needed = ['hyperedge_index', 'hyperedge_modality', *names]
    missing = [name for name in needed if name not in store]
    if missing:
        raise ValueError(
            f"HyperCTR.from_data expects data['{node_type}'] with {missing}, which "
            f'InterestHypergraph adds; pass hypergraph=False for a model without.'
        )
    kept = torch.isin(store.hyperedge_modality, columns)
    node, hyperedge = store.hyperedge_index[:, kept[store.hyperedge_index[1]]]
    index = torch.stack([node, (kept.cumsum(0) - 1)[hyperedge]])
    return {'hyperedge_index': index, **{name: store[name][kept] for name in names}}
