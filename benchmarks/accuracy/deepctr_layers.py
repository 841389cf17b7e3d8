r"""Layers of DeepCTR-Torch that compute the same in less time on a CPU."""

from typing import Any

import torch
from deepctr_torch.layers.activation import Dice
from deepctr_torch.layers.sequence import DynamicGRU
from deepctr_torch.models.dien import InterestExtractor
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class FlatDice(Dice):
    r"""Dice over lists, whose places are rows of one table: torch normalises a table several times
    faster than what the library makes of it, the transpose of a list.

    .. math::
        (\alpha (1 - p) + p) \, x = (\alpha + (1 - \alpha) \, p) \, x, \qquad
        p = \mathrm{sigmoid}(\mathrm{BatchNorm}(x))
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        share = self.sigmoid(self.bn(rows))
        alpha = self.alpha.view(-1)
        return (rows * torch.addcmul(alpha, share, 1 - alpha)).view_as(x)


class JoinedGRU(DynamicGRU):
    r"""A GRU whose states are joined at the end: the library writes each step into one tensor,
    which autograd copies as a whole at every step."""

    def forward(self, inputs: Any, att_scores: Any = None, hx: Tensor | None = None) -> Any:
        sizes = inputs.batch_sizes.tolist()
        if hx is None:
            hx = inputs.data.new_zeros(sizes[0], self.hidden_size)
        states = []
        for x, score in zip(inputs.data.split(sizes), att_scores.data.split(sizes), strict=True):
            # Rows are in the order of their lengths, so that those which end are the last.
            hx = self.rnn(x, hx[: len(x)], score)
            states.append(hx)
        return PackedSequence(
            torch.cat(states), inputs.batch_sizes, inputs.sorted_indices, inputs.unsorted_indices
        )


class PaddedExtractor(InterestExtractor):
    r"""DIEN's first GRU over padded lists of one click or more: of packed ones, torch fills a
    gradient of the whole with zeros at every step. What comes behind a list is not read."""

    def forward(
        self, keys: Tensor, keys_length: Tensor, neg_keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.gru(keys)[0], keys.new_zeros(1)


def use_faster_layers(library: nn.Module) -> None:
    r"""Lets the layers of a model compute by those above; parameters stay as they are."""
    for module in library.modules():
        if isinstance(module, Dice):
            module.__class__ = FlatDice
        elif isinstance(module, DynamicGRU):
            module.__class__ = JoinedGRU
        elif isinstance(module, InterestExtractor):
            module.__class__ = PaddedExtractor
