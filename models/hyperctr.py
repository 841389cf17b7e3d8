from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP
from torch_geometric.nn.module_dict import ModuleDict

from mag.loader import HistoryBatch
from mag.modality import check_features, has_modality, modality_features
from mag.nn import SlotHypergraphConv, TensorFusion
from mag.schema import require, require_positive_integers


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
        num_users (int): How many users there are.
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
        TypeError: If features are no floats.
        ValueError: If a size is not positive, there is no modality, or features have another shape
            or are NaN or infinite.
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
            num_users=num_users, embedding_dim=embedding_dim, num_heads=num_heads
        )
        if embedding_dim % num_heads != 0:
            raise ValueError(
                f"'embedding_dim' must be a multiple of 'num_heads', but got {embedding_dim} and "
                f'{num_heads}.'
            )
        if isinstance(num_positions, bool) or not isinstance(num_positions, int):
            raise TypeError(f"'num_positions' must be an integer, but got {num_positions!r}.")
        if num_positions < 0:
            raise ValueError(f"'num_positions' must be 0 or more, but got {num_positions}.")
        num_items = check_features(features, 'HyperCTR')
        self.modalities = list(features)
        for name, x in features.items():
            # What is made of the data is not part of what was learned.
            self.register_buffer(f'x_{name}', x.float(), persistent=False)
        self.register_buffer('has_modality', has_modality(features), persistent=False)
        self.user_embedding = torch.nn.Embedding(num_users, embedding_dim)
        self.item_embedding = torch.nn.Embedding(num_items, embedding_dim)
        # PyG's takes a modality of any name, such as `type`.
        self.lin_modality = ModuleDict(
            {name: torch.nn.Linear(x.size(1), embedding_dim) for name, x in features.items()}
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
            data (HeteroData): The log, with :obj:`data['item'].x_<modality>` and what
                :class:`~mag.transforms.InterestHypergraph` adds. What a boolean
                :obj:`has_<modality>` says an item lacks is not read.
            modalities (Sequence[str], optional): Which to read, such as :obj:`["visual"]`. By
                default all. (default: :obj:`None`)
            hypergraph (bool, optional): If set to :obj:`False`, there are no hypergraphs.
                (default: :obj:`True`)
            weighted (bool, optional): If set to :obj:`True`, hyperedges count by their
                :obj:`hyperedge_weight`, and equally otherwise. (default: :obj:`False`)
            **kwargs (optional): Arguments of :class:`HyperCTR`, such as :obj:`num_layers`.

        Raises:
            ValueError: If a modality does not exist, a :obj:`has_<modality>` is no boolean for each
                item, or there are no hypergraphs.
        """
        require(data, 'HyperCTR.from_data')
        existing = modality_features(data, 'HyperCTR.from_data')
        modalities = list(existing) if modalities is None else list(modalities)
        unknown = [name for name in modalities if name not in existing]
        if unknown:
            raise ValueError(
                f"HyperCTR.from_data found no data['item'].x_<modality> for {unknown}, but for "
                f'{list(existing)}.'
            )
        if hypergraph:
            names = ['hyperedge_index', 'hyperedge_slot', *(['hyperedge_weight'] * weighted)]
            for node_type in ('user', 'item'):
                missing = [name for name in names if name not in data[node_type]]
                if missing:
                    raise ValueError(
                        f"HyperCTR.from_data expects data['{node_type}'] with {missing}, which "
                        f'InterestHypergraph adds; pass hypergraph=False for a model without.'
                    )
            kwargs['hypergraphs'] = {
                node_type: {name: data[node_type][name] for name in names}
                for node_type in ('user', 'item')
            }
        features = {name: existing[name] for name in modalities}
        return cls(data['user'].num_nodes, features, **kwargs)

    def reset_parameters(self) -> None:
        for weight in (self.user_embedding.weight, self.item_embedding.weight, self.position):
            torch.nn.init.normal_(weight, std=0.01)
        for module in (*self.lin_modality.values(), *self.convs.values(), self.fusion, self.head):
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
        own = item[batch.item]
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
        for name, has in zip(self.modalities, self.has_modality.T, strict=True):
            projected = self.lin_modality[name](getattr(self, f'x_{name}'))
            total = total + projected * has.unsqueeze(1)
        return total / self.has_modality.sum(1, keepdim=True).clamp(min=1)

    def _read_history(self, batch: HistoryBatch, item: Tensor) -> Tensor:
        r"""The output of the attention at the newest item, zeros where there is none."""
        is_padding = batch.history < 0
        x = item[batch.history.clamp(min=0)] + self.user_embedding(batch.user).unsqueeze(1)
        num_placed = min(self.position.size(0), x.size(1))
        if num_placed > 0:
            # The newest are last.
            x = torch.cat([x[:, :-num_placed], x[:, -num_placed:] + self.position[-num_placed:]], 1)
        has_none = is_padding[:, -1]
        # Attention to nothing at all would be NaN.
        is_padding = is_padding & ~has_none.unsqueeze(1)
        out = self.attention(x, src_key_padding_mask=is_padding)[:, -1]
        return out.masked_fill(has_none.unsqueeze(1), 0)
