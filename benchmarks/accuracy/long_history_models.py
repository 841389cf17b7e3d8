r"""Models that search a long history for what resembles the target, and attend to that alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.fields import Batch, Fields
from accuracy.pair_models import HIDDEN
from mag.click_index import take
from mag.nn import MLP

# How far back clicks are searched, how many of them are attended to, and how many newest ones
# besides.
LENGTH = 200
NUM_FOUND = 20
NUM_RECENT = 20


class LongHistoryModel(nn.Module):
    r"""Multi-head target attention to the newest clicks, and to those that a search among all
    found, beside the fields of the exposure.

    A click is the embeddings of its item and of that item's category, where items have one. A zero
    is among what is attended to, so that the attention can find that nothing matters, and there is
    something where a search finds nothing.

    Args:
        data (HeteroData): A part of the log.
        counts (bool): Whether the counts at the target are read.
        num_heads (int, optional): Heads of either attention. (default: :obj:`2`)
    """

    def __init__(self, data: HeteroData, counts: bool, num_heads: int = 2) -> None:
        super().__init__()
        self.fields = Fields(data, counts)
        self.channels = (1 + self.fields.has_category) * self.fields.embedding.embedding_dim
        self.recent_attention, self.found_attention = (
            nn.MultiheadAttention(self.channels, num_heads, add_zero_attn=True, batch_first=True)
            for _ in range(2)
        )
        self.head = MLP([self.fields.out_channels + 2 * self.channels, *HIDDEN, 1])

    def forward(self, batch: Batch) -> Tensor:
        history = batch.histories.history
        target = self.embed(batch.item.unsqueeze(1))
        read = [
            self.attend(self.recent_attention, target, history[:, -NUM_RECENT:]),
            self.attend(self.found_attention, target, self.search(batch.item, history)),
        ]
        features = torch.cat([self.fields(batch.features), *read], dim=1)
        return self.head(features).squeeze(-1)

    def embed(self, item: Tensor) -> Tensor:
        r"""Items and what is known of them, :obj:`-1` for none, shape :obj:`[*, channels]`."""
        return torch.cat(self.fields.embed_items(item), dim=-1)

    def attend(self, attention: nn.MultiheadAttention, target: Tensor, items: Tensor) -> Tensor:
        r"""What the target reads of items, shape :obj:`[B, channels]`."""
        clicks = self.embed(items)
        out, _ = attention(target, clicks, clicks, key_padding_mask=items < 0, need_weights=False)
        return out.squeeze(1)

    def search(self, item: Tensor, history: Tensor) -> Tensor:
        r"""The clicks to attend to, :obj:`-1` for none, shape :obj:`[B, NUM_FOUND]`.

        Args:
            item: The targets, shape :obj:`[B]`.
            history: Clicked items, newest last, :obj:`-1` for none, shape :obj:`[B, length]`.
        """
        raise NotImplementedError


class SIM(LongHistoryModel):
    r"""The hard search of `"Search-based User Interest Modeling with Lifelong Sequential Behavior
    Data for Click-Through Rate Prediction" <https://arxiv.org/abs/2006.05639>`_: the newest clicks
    of the target's category.

    The newest clicks of all are attended to as those are, where the paper has DIEN.

    Raises:
        ValueError: If items have no categories.
    """

    def __init__(self, data: HeteroData, counts: bool) -> None:
        super().__init__(data, counts)
        if not self.fields.has_category:
            raise ValueError(
                "SIM searches the clicks of the target's category, but data['item'] has no "
                'category: ETA does without.'
            )

    def search(self, item: Tensor, history: Tensor) -> Tensor:
        category = self.fields.category
        wanted = take(category, item + 1).unsqueeze(1)
        is_found = (take(category, history + 1) == wanted) & (wanted >= 0) & (history >= 0)
        return best(history, is_found.long())


class ETA(LongHistoryModel):
    r"""The search of `"End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model"
    <https://arxiv.org/abs/2108.04468>`_: the clicks whose fingerprints differ from the target's in
    the fewest bits.

    The fingerprint of an item is on which side of random planes its embedding lies (SimHash), so
    that it moves with the embedding.

    Args:
        data (HeteroData): A part of the log.
        counts (bool): Whether the counts at the target are read.
        num_bits (int, optional): The number of planes. (default: :obj:`32`)
    """

    planes: Tensor

    def __init__(self, data: HeteroData, counts: bool, num_bits: int = 32) -> None:
        super().__init__(data, counts)
        self.register_buffer('planes', torch.randn(self.channels, num_bits))

    @torch.no_grad()
    def fingerprints(self) -> Tensor:
        r"""1 or -1 for each bit of each item, shape :obj:`[num_items, num_bits]`."""
        items = torch.arange(self.fields.category.numel() - 1, device=self.planes.device)
        return torch.where(self.embed(items) @ self.planes > 0, 1.0, -1.0)

    @torch.no_grad()
    def search(self, item: Tensor, history: Tensor) -> Tensor:
        bits = self.fingerprints()
        clicked = F.embedding(history.clamp(min=0), bits)
        # Of b bits, those that agree less those that differ, and from 1 up.
        alike = torch.bmm(clicked, bits[item].unsqueeze(2)).squeeze(2).long() + bits.size(1) + 1
        return best(history, alike.where(history >= 0, 0))


def best(history: Tensor, score: Tensor) -> Tensor:
    r"""The clicks of the highest scores, the newer of equals, in the order of the history behind
    :obj:`-1` for none, shape :obj:`[B, NUM_FOUND]`.

    Args:
        history: Clicked items, newest last, shape :obj:`[B, length]`.
        score: Their scores, whole numbers, 0 where a click is not wanted, shape
            :obj:`[B, length]`.
    """
    length = history.size(1)
    place = torch.arange(length, device=history.device)
    rank = (score * length + place).masked_fill(score == 0, -1)
    rank, found = rank.topk(min(NUM_FOUND, length), sorted=False)
    # A place that is not wanted comes before all others.
    found, order = found.masked_fill(rank < 0, -1).sort(dim=1)
    items = history.gather(1, found.clamp(min=0)).masked_fill(found < 0, -1)
    return F.pad(items, (NUM_FOUND - items.size(1), 0), value=-1)
