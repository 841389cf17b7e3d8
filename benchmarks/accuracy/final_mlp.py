r"""FinalMLP from FuxiCTR, a library by its authors."""

import sys
from types import SimpleNamespace

from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.fields import EMBEDDING_DIM, Batch, Fields

# FuxiCTR imports Ray, which prepares its tables; a model here reads batches.
sys.modules.setdefault(
    'fuxictr.preprocess.tokenizer',
    SimpleNamespace(load_pretrain_emb=None),  # type: ignore
)
from fuxictr.pytorch.layers import MLP_Block  # noqa: E402
from model_zoo.LongCTR.FinalMLP.FinalMLP import (  # noqa: E402
    FeatureSelection,
    InteractionAggregation,
)


class HeadwiseAggregation(InteractionAggregation):
    r"""The bilinear form of two streams, whose heads are products of tables: the library repeats
    the form for each row."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        heads = [vector.view(len(vector), self.num_heads, -1).transpose(0, 1) for vector in (x, y)]
        form = self.w_xy.view(self.num_heads, self.head_x_dim, self.head_y_dim)
        products = (heads[0] @ form * heads[1]).sum((0, 2)).unsqueeze(1)
        return self.w_x(x) + self.w_y(y) + products


class FinalMLP(nn.Module):
    r"""The two-stream model of the `"FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction"
    <https://arxiv.org/abs/2304.00902>`_ paper: each stream is an MLP over the features that a gate
    of its own selects, and both are merged by a bilinear form.

    The layers are those of FuxiCTR, put together as in its model for rows without sequences, which
    its package leaves out; sizes and dropouts are those of its authors for MovieLens.

    Args:
        data: A part of the log.
    """

    def __init__(self, data: HeteroData) -> None:
        super().__init__()
        self.fields = Fields(data, counts=False)
        in_channels = self.fields.out_channels
        self.select = FeatureSelection(None, in_channels, EMBEDDING_DIM, fs_hidden_units=[800])
        self.streams = nn.ModuleList(
            MLP_Block(in_channels, [size], dropout_rates=dropout, batch_norm=True)
            for size, dropout in ((400, 0.4), (800, 0.2))
        )
        self.merge = HeadwiseAggregation(400, 800, num_heads=10)
        self.apply(_reset)

    def forward(self, batch: Batch) -> Tensor:
        x = self.fields(batch.features)
        # The gates are the same for all rows, for each of which the library would compute them.
        gates = self.select(None, x.new_ones(1, x.size(1)))
        pairs = zip(self.streams, gates, strict=True)
        return self.merge(*(stream(x * gate) for stream, gate in pairs)).squeeze(-1)


def _reset(module: nn.Module) -> None:
    # As FuxiCTR's models do.
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)
