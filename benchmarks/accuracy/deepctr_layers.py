r"""Layers of DeepCTR-Torch that compute the same in less time on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from deepctr_torch.layers.activation import Dice
from deepctr_torch.layers.core import LocalActivationUnit
from deepctr_torch.layers.interaction import AFMLayer
from deepctr_torch.layers.sequence import AUGRUCell, DynamicGRU
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


class FieldwiseAFM(AFMLayer):
    r"""The attention of AFM, whose pairs are made field by field: the library slices out each of
    them, of which there are hundreds."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        fields = torch.cat(inputs, dim=1)
        num_fields = fields.size(1)
        products = torch.cat(
            [fields[:, one : one + 1] * fields[:, one + 1 :] for one in range(num_fields - 1)],
            dim=1,
        )
        hidden = F.relu(products @ self.attention_W + self.attention_b)
        share = (hidden @ self.projection_h).softmax(dim=1)
        return self.dropout((share.mT @ products).squeeze(1)) @ self.projection_p


class SplitActivationUnit(LocalActivationUnit):
    r"""The attention of DIN and DIEN, whose first layer is split by what it reads, so that nothing
    is repeated for each click and no table of four times the size is made.

    .. math::
        \mathbf{W} [\mathbf{q} \Vert \mathbf{k} \Vert \mathbf{q} - \mathbf{k} \Vert \mathbf{q} \odot
        \mathbf{k}] = (\mathbf{W}_1 + \mathbf{W}_3) \mathbf{q} + (\mathbf{W}_2 - \mathbf{W}_3)
        \mathbf{k} + \mathbf{W}_4 (\mathbf{q} \odot \mathbf{k})
    """

    def forward(self, query: Tensor, user_behavior: Tensor) -> Tensor:
        first, *others = self.dnn.linears
        of_query, of_click, of_difference, of_product = first.weight.chunk(4, dim=1)
        x = F.linear(user_behavior, of_click - of_difference)
        x = x + F.linear(query * user_behavior, of_product)
        x = x + F.linear(query, of_query + of_difference, first.bias)
        activate, *activates = self.dnn.activation_layers
        x = activate(x)
        for layer, activate in zip(others, activates, strict=True):
            x = activate(layer(x))
        return self.dense(x)


class JoinedAUGRU(DynamicGRU):
    r"""A GRU with an attentional update gate, whose states are joined at the end: the library
    writes each step into one tensor, which autograd copies as a whole at every step. What inputs
    add to the gates is one product for all steps."""

    def forward(self, inputs: Any, att_scores: Any = None, hx: Tensor | None = None) -> Any:
        cell, sizes = self.rnn, inputs.batch_sizes.tolist()
        state = inputs.data.new_zeros(sizes[0], self.hidden_size) if hx is None else hx
        split = [2 * self.hidden_size, self.hidden_size]
        of_inputs = F.linear(inputs.data, cell.weight_ih, cell.bias_ih).split(sizes)
        scores = att_scores.data.view(-1, 1).split(sizes)
        states = []
        for of_input, score in zip(of_inputs, scores, strict=True):
            # Rows are in the order of their lengths, so that those which end are the last.
            state = state[: len(of_input)]
            of_state = F.linear(state, cell.weight_hh, cell.bias_hh)
            gate, candidate = of_input.split(split, dim=1)
            state_gate, state_candidate = of_state.split(split, dim=1)
            reset, update = (gate + state_gate).sigmoid().chunk(2, dim=1)
            new = torch.tanh(candidate + reset * state_candidate)
            state = torch.lerp(state, new, score * update)
            states.append(state)
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
        elif isinstance(module, AFMLayer):
            module.__class__ = FieldwiseAFM
        elif isinstance(module, LocalActivationUnit):
            module.__class__ = SplitActivationUnit
        elif isinstance(module, DynamicGRU) and isinstance(module.rnn, AUGRUCell):
            module.__class__ = JoinedAUGRU
        elif isinstance(module, InterestExtractor):
            module.__class__ = PaddedExtractor
