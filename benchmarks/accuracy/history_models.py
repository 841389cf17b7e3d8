r"""Published models that read the batches of HistoryLoader, to compare HyperCTR with.

All have the embeddings, the contents of items and the head that HyperCTR has, in the same sizes
and from the same first values; they differ in what they make of clicks.
"""

import torch
import torch.nn.functional as F
from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP, SAGEConv
from torch_geometric.utils import to_undirected

from mag.loader import HistoryBatch
from mag.modality import has_modality, modality_features
from mag.schema import CLICKS

HIDDEN_CHANNELS = (64, 32)


class ItemEmbedding(nn.Module):
    r"""Ids of items, and the mean over the modalities that each has of what is projected of it."""

    has: Tensor

    def __init__(self, data: HeteroData, embedding_dim: int) -> None:
        super().__init__()
        store = data['item']
        features = modality_features(data, type(self).__name__)
        self.id = make_embedding(store.num_nodes, embedding_dim)
        self.projections = nn.ModuleList(
            nn.Linear(x.size(1), embedding_dim) for x in features.values()
        )
        for number, x in enumerate(features.values()):
            self.register_buffer(f'x_{number}', x, persistent=False)
        has = has_modality(features).T.unsqueeze(2)
        self.register_buffer('has', has, persistent=False)

    def forward(self) -> Tensor:
        r"""All items, shape :obj:`[num_items, embedding_dim]`."""
        return self.id.weight + self.contents().sum(0) / self.has.sum(0).clamp(min=1)

    def contents(self) -> Tensor:
        r"""The modalities of all items, zeros where an item has none, shape
        :obj:`[num_modalities, num_items, embedding_dim]`."""
        return torch.stack(
            [
                projection(getattr(self, f'x_{number}')) * self.has[number]
                for number, projection in enumerate(self.projections)
            ]
        )


class HistoryModel(nn.Module):
    r"""A vector of the user's last clicks beside those of user and target, and a head.

    Args:
        data (HeteroData): A training part.
        embedding_dim (int): Size of all vectors.
    """

    def __init__(self, data: HeteroData, embedding_dim: int) -> None:
        super().__init__()
        self.user = make_embedding(data['user'].num_nodes, embedding_dim)
        self.item = ItemEmbedding(data, embedding_dim)
        self.head = MLP([3 * embedding_dim, *HIDDEN_CHANNELS, 1], norm=None)

    def forward(self, batch: HistoryBatch) -> Tensor:
        item = self.item()
        target = item[batch.item]
        history, length = left_aligned(batch.history)
        read = self.read(item[history], length, target)
        return self.head(torch.cat([self.user(batch.user), target, read], dim=1)).view(-1)

    def read(self, clicks: Tensor, length: Tensor, target: Tensor) -> Tensor:
        r"""What the target needs of the clicks, zeros where there are none.

        Args:
            clicks: Clicked items, oldest first, :obj:`[B, num_clicks, embedding_dim]`.
            length: How many of a row are clicks; behind them are paddings, :obj:`[B]`.
            target: The item to predict, :obj:`[B, embedding_dim]`.

        Returns:
            One vector a row, :obj:`[B, embedding_dim]`.
        """
        raise NotImplementedError


class GRU4Rec(HistoryModel):
    r"""A recurrent network over the clicks, by its state after the newest."""

    def __init__(self, data: HeteroData, embedding_dim: int) -> None:
        super().__init__(data, embedding_dim)
        self.gru = nn.GRU(embedding_dim, embedding_dim, batch_first=True)

    def read(self, clicks: Tensor, length: Tensor, target: Tensor) -> Tensor:
        states, _ = self.gru(clicks)
        newest = (length - 1).clamp(min=0)
        read = states[torch.arange(length.numel(), device=length.device), newest]
        return read.masked_fill((length == 0).unsqueeze(1), 0)


class DIN(HistoryModel):
    r"""Attention of the target to the clicks."""

    def __init__(self, data: HeteroData, embedding_dim: int) -> None:
        super().__init__(data, embedding_dim)
        self.attention = AttentionSequencePoolingLayer((80, 40), embedding_dim=embedding_dim)

    def read(self, clicks: Tensor, length: Tensor, target: Tensor) -> Tensor:
        return self.attention(target.unsqueeze(1), clicks, length.unsqueeze(1)).squeeze(1)


class ModalityPropagation(nn.Module):
    r"""Layers between users and items, who start from a preference of one modality and from the
    content there; every layer adds the embedding of the id."""

    def __init__(self, num_users: int, embedding_dim: int, num_layers: int) -> None:
        super().__init__()
        self.preference = make_embedding(num_users, embedding_dim)
        self.convs = nn.ModuleList(
            SAGEConv(embedding_dim, embedding_dim) for _ in range(num_layers)
        )

    def forward(self, content: Tensor, ids: Tensor, edge_index: Tensor) -> Tensor:
        x = torch.cat([self.preference.weight, content])
        for conv in self.convs:
            x = F.leaky_relu(conv(x, edge_index)) + ids
        return x


class MMGCN(nn.Module):
    r"""Propagation, modality by modality, between users and the items that they clicked before the
    first label, and the sum over modalities, after MMGCN.

    Args:
        data (HeteroData): A training part.
        embedding_dim (int): Size of all vectors.
        num_layers (int): How far clicks are followed.
    """

    edge_index: Tensor

    def __init__(self, data: HeteroData, embedding_dim: int, num_layers: int = 2) -> None:
        super().__init__()
        self.num_users = data['user'].num_nodes
        self.user = make_embedding(self.num_users, embedding_dim)
        self.item = ItemEmbedding(data, embedding_dim)
        self.propagations = nn.ModuleList(
            ModalityPropagation(self.num_users, embedding_dim, num_layers)
            for _ in self.item.projections
        )
        self.head = MLP([2 * embedding_dim, *HIDDEN_CHANNELS, 1], norm=None)
        clicks = data[CLICKS]
        # A click at or after a label may be that label's own.
        user, item = clicks.edge_index[:, clicks.time < clicks.cutoff.min()]
        edge_index = to_undirected(torch.stack([user, self.num_users + item]))
        self.register_buffer('edge_index', edge_index, persistent=False)

    def forward(self, batch: HistoryBatch) -> Tensor:
        nodes = self.propagate()
        rows = torch.cat([nodes[batch.user], nodes[self.num_users + batch.item]], dim=1)
        return self.head(rows).view(-1)

    def propagate(self) -> Tensor:
        r"""Users and, after them, items, summed over modalities."""
        ids = torch.cat([self.user.weight, self.item.id.weight])
        total = torch.zeros_like(ids)
        for propagate, content in zip(self.propagations, self.item.contents()):
            total = total + propagate(content, ids, self.edge_index)
        return total


def make_embedding(num: int, embedding_dim: int) -> nn.Embedding:
    embedding = nn.Embedding(num, embedding_dim)
    # As HyperCTR's: PyTorch's default is so large that much of it is still there at the end.
    nn.init.normal_(embedding.weight, std=0.01)
    return embedding


def left_aligned(history: Tensor) -> tuple[Tensor, Tensor]:
    r"""Histories with their paddings behind and no longer before, where they are item 0, and how
    many clicks there are."""
    length = (history >= 0).sum(1)
    place = torch.arange(history.size(1), device=history.device) - length.unsqueeze(1)
    return history.gather(1, place % history.size(1)).clamp(min=0), length
