from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP

from mag.checks import (
    check_choice,
    check_ids,
    check_integers,
    check_numbers,
    check_sizes,
    check_tensor,
    check_values,
)
from mag.lineage import remember_ids
from mag.loader import ExposureBatch, ExposureFeatures
from mag.logits import Logits
from mag.losses import (
    behavior_loss,
    click_and_conversion_loss,
    conversion_loss,
    doubly_robust_loss,
    logit_of_quotient,
    propensity_weights,
)
from mag.models._growth import check_grown
from mag.nn import BehaviorMerge, HashEmbedding
from mag.nn.id_embedding import drop_ids
from mag.schema import CLICKS, NEIGHBOR_TYPE, require

MERGES = ('graph', 'concat', 'gru', 'none')
# How each loss weights the labels that only clicks have.
LOSSES = {
    'ipw': 'self_normalized',
    'ipw_mean': 'mean',
    'naive': 'clicks',
    'doubly_robust': 'self_normalized',
    'esmm': 'clicks',
    'division': 'clicks',
}
_SLOPE = 0.01


class GMCM(torch.nn.Module):
    r"""The conversion model from the `"GMCM: Graph-based Micro-behavior Conversion Model for
    Post-click Conversion Rate Estimation" <https://doi.org/10.1145/3397271.3401425>`_ paper.

    A tower predicts the click of an exposure (eq. 11). The trunk :math:`\mathbf{h}` of another
    (eq. 13) gives each micro-behavior an embedding, convolved over the graph of behaviors,

    .. math::
        \mathbf{H}^{(0)}_i = \sigma (\mathbf{h} \, \mathbf{\Theta}_i), \qquad \mathbf{H}^{(l)} =
        \sigma \left( \hat{\mathbf{A}} \mathbf{H}^{(l-1)} \mathbf{\Theta}^{(l)} \right)

    (eq. 14 and 15, :class:`~mag.nn.BehaviorGraphConv`, one learned bias for all layers), from which
    the behaviors (eq. 16) and, pooled, the conversion (eq. 17) are predicted. Behaviors are labels,
    not inputs: when an exposure is scored, nothing has followed it. The loss is that of the click
    plus those of conversion and behaviors on the clicks, weighted by inverse propensities
    (eq. 18 and 19, see :meth:`loss`).

    Other models are the same towers with other arguments:

    ================ ============================================================================
    Base             :obj:`merge="none", loss="naive"`
    ESMM             :obj:`merge="none", loss="esmm"`
    Division         :obj:`merge="none", loss="division"`: the second tower predicts click and
                     conversion together, and is divided by the first
    MCM-10           :obj:`merge="concat"`: no graph
    MCM-2            the same, on data with two columns of :obj:`edge_label_behavior`
    MCM-GRU          :obj:`merge="gru"`: a GRU over the behaviors, in the order of columns
    ================ ============================================================================

    Where the paper says nothing: activations are leaky ReLUs of slope 0.01, after batch
    normalization in the towers; the two towers read the same features; the second tower of
    :obj:`merge="none"` is as deep as the first.

    Args:
        fields (Sequence[str]): The names of the categorical columns, see
            :class:`~mag.loader.ExposureFeatures`.
        num_dense (int, optional): The number of dense features. (default: :obj:`0`)
        num_behaviors (int, optional): The number :math:`N` of micro-behaviors, 0 only with
            :obj:`merge="none"`. (default: :obj:`0`)
        edge_index (torch.Tensor, optional): The graph of behaviors, shape :obj:`[2, E]`, with
            :obj:`merge="graph"`. (default: :obj:`None`)
        edge_weight (torch.Tensor, optional): Its co-occurrence probabilities, shape :obj:`[E]`.
            (default: :obj:`None`)
        merge (str, optional): How the embeddings of behaviors become one: :obj:`"graph"`,
            :obj:`"concat"`, :obj:`"gru"`, or :obj:`"none"`, without behaviors.
            (default: :obj:`"graph"`)
        loss (str, optional): :obj:`"ipw"`, :obj:`"ipw_mean"`, :obj:`"naive"`,
            :obj:`"doubly_robust"`, :obj:`"esmm"` or :obj:`"division"`, see :meth:`loss`.
            (default: :obj:`"ipw"`)
        output (str, optional): How the graph is pooled (:math:`f_{output}` of eq. 17):
            :obj:`"mean"`, :obj:`"sum"` or :obj:`"concat"`. (default: :obj:`"mean"`)
        num_buckets (int, optional): Rows of the embedding table. (default: :obj:`100_000`)
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`16`)
        tower_channels (Sequence[int], optional): Hidden sizes of a tower; the trunk has all but the
            last. (default: :obj:`(512, 256, 128, 64)`)
        hidden_channels (int, optional): Size of a behavior's embedding. (default: :obj:`64`)
        num_layers (int, optional): The number of convolutions. (default: :obj:`2`)
        floor (float, optional): Smaller click probabilities are taken for this one in the weights.
            (default: :obj:`1e-2`)
        form (str, optional): :obj:`"paper"`, or :obj:`"literal"` for eq. 15 and, with
            :obj:`loss="ipw"`, eq. 18 exactly as printed, see :class:`~mag.nn.BehaviorGraphConv` and
            :meth:`loss`. (default: :obj:`"paper"`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown,
            :obj:`-1`, in a step of training, so that the rest learns to do without them, and their
            rows of the table what holds of anybody. (default: :obj:`0.0`)

    Raises:
        TypeError: If a number is no integer, or :obj:`fields` or sizes are no sequence.
        ValueError: If an argument, or a weight of an edge, is out of range or does not go with
            another.
    """

    mean: Tensor
    deviation: Tensor
    edge_index: Tensor | None
    edge_weight: Tensor | None
    conversion_tower: MLP
    imputation_tower: MLP

    def __init__(
        self,
        fields: Sequence[str],
        num_dense: int = 0,
        num_behaviors: int = 0,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        merge: str = 'graph',
        loss: str = 'ipw',
        output: str = 'mean',
        num_buckets: int = 100_000,
        embedding_dim: int = 16,
        tower_channels: Sequence[int] = (512, 256, 128, 64),
        hidden_channels: int = 64,
        num_layers: int = 2,
        floor: float = 1e-2,
        form: str = 'paper',
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice(MERGES, merge=merge)
        check_choice(LOSSES, loss=loss)
        check_choice(('mean', 'sum', 'concat'), output=output)
        check_choice(('paper', 'literal'), form=form)
        check_integers(1, hidden_channels=hidden_channels, num_layers=num_layers)
        check_sizes(tower_channels=tower_channels)
        if len(tower_channels) < 2:
            raise ValueError(
                f"'tower_channels' must hold two sizes or more, but got {tower_channels!r}."
            )
        check_numbers('(0, 1]', floor=floor)
        check_numbers('[0, 1)', id_dropout=id_dropout)
        check_integers(0, num_dense=num_dense, num_behaviors=num_behaviors)
        if merge != 'none' and num_behaviors < 1:
            raise ValueError(
                f'GMCM with merge={merge!r} needs the micro-behaviors after a click, but '
                f"num_behaviors is {num_behaviors}; without them, take merge='none'."
            )
        if merge == 'graph':
            _check_graph(edge_index, edge_weight, num_behaviors)
        self.merge = merge
        self.objective = loss
        self.floor = floor
        self.form = form
        self.num_behaviors = num_behaviors if merge != 'none' else 0

        self.id_dropout = id_dropout
        ids = [name for name in NEIGHBOR_TYPE if name in fields]
        self.embedding = HashEmbedding(fields, num_buckets, embedding_dim, ids)
        self.register_buffer('mean', torch.zeros(num_dense))
        self.register_buffer('deviation', torch.ones(num_dense))
        # Copies: weights that are loaded later must not be written into the caller's graph.
        for name, edges in (('edge_index', edge_index), ('edge_weight', edge_weight)):
            self.register_buffer(name, None if edges is None or merge != 'graph' else edges.clone())
        in_channels = num_dense + len(fields) * embedding_dim
        self.click_tower = _tower([in_channels, *tower_channels, 1], plain_last=True)
        if loss == 'doubly_robust':
            self.imputation_tower = _tower([in_channels, *tower_channels, 1], plain_last=True)
        if merge == 'none':
            self.conversion_tower = _tower([in_channels, *tower_channels, 1], plain_last=True)
        else:
            self.trunk = _tower([in_channels, *tower_channels[:-1]], plain_last=False)
            self.behavior_weight = torch.nn.Parameter(
                torch.empty(num_behaviors, tower_channels[-2], hidden_channels)
            )
            self.behavior_head = torch.nn.Parameter(torch.empty(num_behaviors, hidden_channels))
            behaviors = BehaviorMerge(
                hidden_channels, num_behaviors, merge, output, num_layers, form
            )
            self.conversion_head = torch.nn.Linear(behaviors.out_channels, 1, bias=False)
            self.behaviors = behaviors
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'GMCM':
        r"""Builds the model for a log, with the mean and standard deviation of its dense features.

        Args:
            data (HeteroData): A training part; with :obj:`merge="graph"` one that went through
                :class:`~mag.transforms.BehaviorGraph`.
            **kwargs (optional): Arguments of :class:`GMCM`.

        Raises:
            ValueError: If the data has no conversions, or no behaviors or graph where these are
                asked for.
        """
        require(data, 'GMCM.from_data', 'edge_index', 'edge_label_index', 'edge_label_conversion')
        clicks = data[CLICKS]
        if kwargs.get('merge', 'graph') == 'graph':
            if 'behavior' not in data.node_types:
                raise ValueError(
                    f'GMCM.from_data needs the graph of behaviors, but the data has the node types '
                    f"{data.node_types}: apply BehaviorGraph first, or take another 'merge'."
                )
            follows = data['behavior', 'follows', 'behavior']
            kwargs |= {'edge_index': follows.edge_index, 'edge_weight': follows.edge_weight}
        features = ExposureFeatures(data)
        behavior = clicks.get('edge_label_behavior')
        if behavior is not None:
            check_tensor('GMCM.from_data', 'edge_label_behavior', behavior, ('L', 'N'), 'numbers')
        num_behaviors = 0 if behavior is None else behavior.size(1)
        model = cls(features.fields, features.num_dense, num_behaviors, **kwargs)
        mean, deviation = features.moments()
        model.mean.copy_(mean)
        model.deviation.copy_(deviation)
        return remember_ids(model, data)

    def reset_parameters(self) -> None:
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]
        if self.merge != 'none':
            # Each slice is a layer of its own.
            for weight in self.behavior_weight:
                torch.nn.init.xavier_uniform_(weight)
            torch.nn.init.xavier_uniform_(self.behavior_head)

    def grow(self, data: HeteroData) -> None:
        r"""Takes a log that grew: its table has a bucket for any id, new ones among them, so that
        nothing is added, and what was known is scored as before.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, other fields, or another number of
                dense features.
        """
        features = ExposureFeatures(data, caller='GMCM.grow')
        known = list(self.embedding.fields), self.mean.numel()
        found = list(features.fields), features.num_dense
        if known != found:
            raise ValueError(
                f'GMCM was built for the fields {known[0]} and {known[1]} dense features, but this '
                f'data has {found[0]} and {found[1]}.'
            )
        check_grown(self, data, {}, {})
        remember_ids(self, data)

    def forward(self, batch: ExposureBatch) -> Logits:
        r"""
        Args:
            batch (ExposureBatch): Exposures with their features, see
                :class:`~mag.loader.ExposureBatch`.

        Returns:
            The logits of click, conversion and behaviors, see
            :class:`~mag.logits.Logits`.

        Raises:
            ValueError: If the batch has another number of features.
        """
        check_tensor('GMCM', 'dense', batch.dense, ('B', self.mean.numel()), 'floats')
        sparse = batch.sparse
        if self.training and self.id_dropout > 0:
            sparse = drop_ids(sparse, self.id_dropout, self.embedding.row_of_unknown >= 0)
        x = torch.cat([(batch.dense - self.mean) / self.deviation, self.embedding(sparse)], dim=1)
        click = self.click_tower(x).squeeze(-1)
        imputation = None
        if self.objective == 'doubly_robust':
            imputation = self.imputation_tower(x).squeeze(-1)
        behavior = None
        if self.merge == 'none':
            conversion = self.conversion_tower(x).squeeze(-1)
        else:
            hidden = self.behavior_embedding(x)
            behavior = (hidden * self.behavior_head).sum(-1)
            conversion = self.conversion_head(self.behaviors.pool(hidden)).squeeze(-1)
        if self.objective != 'division':
            return Logits(click, conversion, behavior, imputation=imputation)
        return Logits(click, logit_of_quotient(conversion, click), behavior, both=conversion)

    def behavior_embedding(self, x: Tensor) -> Tensor:
        r"""The embeddings of the behaviors (eq. 13 to 15), shape :obj:`[B, N, hidden_channels]`.

        Args:
            x (torch.Tensor): Features of exposures, the dense ones standardized and before the
                embeddings of the others, shape :obj:`[B, F]`.
        """
        hidden = torch.einsum('bc,nch->bnh', self.trunk(x), self.behavior_weight)
        return self.behaviors(F.leaky_relu(hidden, _SLOPE), self.edge_index, self.edge_weight)

    def loss(self, logits: Logits, batch: ExposureBatch) -> Tensor:
        r"""The loss of the click (eq. 12) plus that of conversion and behaviors (eq. 18).

        With :math:`\mathrm{loss}` as given to the constructor, those of conversion and behaviors
        are

        * :obj:`"ipw"`: on clicks, weighted by inverse click probabilities that are normalized to
          sum to 1, and through which no gradient flows;
        * :obj:`"ipw"` with :obj:`form="literal"`: eq. 18 as printed, over all exposures;
        * :obj:`"ipw_mean"`: not normalized; :obj:`"naive"`: not weighted (see
          :func:`~mag.losses.propensity_weights`);
        * :obj:`"doubly_robust"`: beyond the paper, see
          :func:`~mag.losses.doubly_robust_loss`; behaviors as in :obj:`"ipw"`;
        * :obj:`"esmm"` and :obj:`"division"`: that of click and conversion together, over all
          exposures, whose gradient reaches both towers of ESMM and only the second of Division;
          behaviors as in :obj:`"naive"`.

        A batch without clicks has no loss of conversion and behaviors, but for those over all
        exposures.

        Args:
            logits (Logits): What :meth:`forward` returned for the batch.
            batch (ExposureBatch): The exposures, with their labels.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the batch has no clicks, conversions or behaviors to learn from, or the
                logits none of conversions.
        """
        label, conversion, behavior = batch.label, batch.conversion, batch.behavior
        lacks_behavior = logits.behavior is not None and behavior is None
        if label is None or conversion is None or lacks_behavior:
            names = ['label', 'conversion', *(['behavior'] if lacks_behavior else [])]
            missing = [name for name in names if getattr(batch, name) is None]
            raise ValueError(f'GMCM learns from batches with {missing}, but these are None.')
        if logits.conversion is None:
            raise ValueError("GMCM learns from logits of conversions, but 'conversion' is None.")
        is_as_printed = self.form == 'literal' and self.objective == 'ipw'
        weighting = 'all' if is_as_printed else LOSSES[self.objective]
        weight = propensity_weights(label, logits.click, weighting, self.floor)
        total = F.binary_cross_entropy_with_logits(logits.click.float(), label.float())
        if logits.imputation is not None:
            total = total + doubly_robust_loss(
                logits.conversion, logits.imputation, conversion, weight
            )
        elif logits.both is not None:
            total = total + F.binary_cross_entropy_with_logits(
                logits.both.float(), conversion.float()
            )
        elif self.objective == 'esmm':
            total = total + click_and_conversion_loss(logits.click, logits.conversion, conversion)
        else:
            total = total + conversion_loss(logits.conversion, conversion, weight)
        if logits.behavior is not None and behavior is not None:
            total = total + behavior_loss(logits.behavior, behavior, weight)
        return total

    def extra_repr(self) -> str:
        return (
            f'merge={self.merge!r}, loss={self.objective!r}, floor={self.floor}, form={self.form!r}'
        )


def _check_graph(edge_index: Any, edge_weight: Any, num_behaviors: int) -> None:
    check_tensor('GMCM', 'edge_index', edge_index, (2, 'E'), torch.long)
    check_ids('GMCM', "behaviors of 'edge_index'", edge_index, num_behaviors)
    check_tensor('GMCM', 'edge_weight', edge_weight, (edge_index.size(1),), 'numbers')
    good = (edge_weight >= 0) & (edge_weight <= 1)
    check_values('GMCM', 'edge_weight', edge_weight, good, 'probabilities, from 0 to 1', wait=True)


def _tower(channels: list[int], plain_last: bool) -> MLP:
    return MLP(
        channels, act='leaky_relu', act_kwargs={'negative_slope': _SLOPE}, plain_last=plain_last
    )
