r"""What a baseline reads of an exposure: the fields that CountNet reads, and the counts at the
target."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from mag.click_index import take
from mag.loader import ExposureBatch, ExposureFeatures, HistoryBatch, PairBatch
from mag.nn import CountEncoder
from mag.schema import CLICKS

# What CountNet has.
EMBEDDING_DIM = 16
# Where embeddings of fields start: as MacGNN's, whose bounds follow from the size of a table, those
# of a field of few values would be so large that products of many such fields drown all else.
EMBEDDING_STD = 0.01


class Batch(Protocol):
    r"""A :class:`~mag.loader.JoinedBatch` in which those parts are that a model reads."""

    @property
    def user(self) -> Tensor: ...

    @property
    def item(self) -> Tensor: ...

    @property
    def features(self) -> ExposureBatch: ...

    @property
    def pairs(self) -> PairBatch: ...

    @property
    def histories(self) -> HistoryBatch: ...


class Fields(nn.Module):
    r"""An embedding of every field of :obj:`ExposureBatch.sparse`, one after the other, and behind
    them what :class:`~mag.nn.CountEncoder` makes of the counts, if they are read.

    Columns of one name share their embeddings, of which the first stands for none.

    Args:
        data (HeteroData): A part of the log.
        counts (bool): Whether the counts at the target are read.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`16`)
    """

    offset: Tensor
    category: Tensor

    def __init__(self, data: HeteroData, counts: bool, embedding_dim: int = EMBEDDING_DIM) -> None:
        super().__init__()
        features = ExposureFeatures(data, caller=type(self).__name__)
        self.start, size = {}, 0
        for name in dict.fromkeys(features.fields):
            self.start[name] = size
            size += features.num_values[name] + 1
        offset = torch.tensor([self.start[name] for name in features.fields])
        self.register_buffer('offset', offset, persistent=False)
        self.embedding = nn.Embedding(size, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        # What a click is known by.
        self.has_category = 'item_category' in self.start
        self.register_buffer('category', category_table(data), persistent=False)
        self.encoder = count_encoder(data) if counts else None
        self.out_channels = len(features.fields) * embedding_dim
        if self.encoder is not None:
            self.out_channels += self.encoder.out_channels

    def forward(self, batch: ExposureBatch) -> Tensor:
        r"""The embeddings and the counts of each row, shape :obj:`[B, out_channels]`."""
        rows = self._rows(batch.sparse + 1 + self.offset).flatten(1)
        if self.encoder is None:
            return rows
        return torch.cat([rows, self.encoder(batch.counts)], dim=1)

    def embed(self, name: str, ids: Tensor) -> Tensor:
        r"""The embeddings of values of one field, :obj:`-1` for none."""
        return self._rows(ids + (1 + self.start[name]))

    def embed_items(self, item: Tensor) -> list[Tensor]:
        r"""The embeddings of items, :obj:`-1` for none, and of their categories where the log has
        some."""
        rows = [self.embed('item', item)]
        if self.has_category:
            rows.append(self.embed('item_category', take(self.category, item + 1)))
        return rows

    def _rows(self, index: Tensor) -> Tensor:
        # As self.embedding(index), but its backward takes a third of the time.
        rows = self.embedding.weight.index_select(0, index.reshape(-1))
        return rows.view(*index.shape, self.embedding.embedding_dim)


def count_encoder(data: HeteroData, learned: bool = True) -> CountEncoder:
    r"""What CountNet reads of the counts of :obj:`data`; if not :obj:`learned`, of a fixed
    strength of 10."""
    clicks = data[CLICKS]
    if 'count_prior' not in clicks:
        raise ValueError(
            'The data has no counts at the target: apply TargetCounts, or build the model with '
            'counts=False.'
        )
    return CountEncoder(clicks.count_prior, clicks.count_rate, learned=learned)


def category_table(data: HeteroData) -> Tensor:
    r"""The category of each item behind a :obj:`-1`, that of none, shape :obj:`[1 + num_items]`;
    no item has one where the log knows none."""
    num_items = data['item'].num_nodes
    category = data['item'].get('category', torch.full((num_items,), -1))
    return torch.cat([torch.tensor([-1]), category])
