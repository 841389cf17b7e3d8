import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_tensor, check_values
from mag.cutoff import Cutoff, first_cutoff, require_not_earlier
from mag.lineage import id_maps, require_same_ids
from mag.schema import CLICKS, require, require_cpu
from mag.transforms._fitted import fitted

FOLLOWS = ('behavior', 'follows', 'behavior')

_BEHAVIOR = 'edge_label_behavior'
_NEEDED = ('edge_index', 'edge_label_index', 'edge_label', _BEHAVIOR)
# Exposures that are counted at once: 80 MB of float64 with ten behaviors.
_CHUNK = 2**20


@functional_transform('behavior_graph')
class BehaviorGraph(BaseTransform):
    r"""Counts which micro-behaviors happen after the same click, the purchase-related
    micro-behavior graph from the `"GMCM: Graph-based Micro-behavior Conversion Model for Post-click
    Conversion Rate Estimation" <https://doi.org/10.1145/3397271.3401425>`_ paper

    .. math::
        P_{ij} = \frac{C_{ij}}{\sum_{k} C_{ik}}, \qquad C_{ij} = \left| \left\{ \text{clicks after
        which } i \text{ and } j \text{ both happened} \right\} \right|, \quad i \neq j

    (functional name: :obj:`behavior_graph`).

    .. code-block:: python

        train, val, test = TemporalSplit()(data)
        graph = BehaviorGraph().fit(train)
        train, val, test = graph(train), graph(val), graph(test)

    :meth:`fit` reads the labels of a training part, as a model does: of the exposures in
    :obj:`data['user', 'clicks', 'item']`, those with :obj:`edge_label` 1, and their rows of
    :obj:`edge_label_behavior`, shape :obj:`[L, B]`. A click counts each pair once, and no behavior
    with itself. Every part then gets the same graph, whatever followed its own clicks. A part whose
    first cutoff is earlier than that of the part it was fitted on is refused: the graph knows its
    future.
    An unfitted transform that is called fits on what it is given and leaves itself unchanged.

    Adds

    * the node type :obj:`behavior` with :obj:`num_nodes` :math:`B`, in the order of the columns;
    * :obj:`data['behavior', 'follows', 'behavior']` with, for each pair that was seen, an edge from
      :math:`j` to :math:`i` in :obj:`edge_index`, :obj:`edge_weight` :math:`P_{ij}` (float32) and
      :obj:`count` :math:`C_{ij}` (int64), shape :obj:`[E]`, in the order of :math:`i`. A behavior
      that was never seen with another has no edge.

    Every edge has an edge back, with a weight of its own, so that :obj:`T.ToUndirected`, which adds
    the two, is not needed.

    Attributes:
        count (torch.Tensor, optional): :math:`C` as fitted, shape :obj:`[B, B]`, int64; else
            :obj:`None`.

    Raises:
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`.
        ValueError: If a column of the schema is missing or has the wrong shape, a behavior is
            neither 0 nor 1 or happened without a click, there is no click to count, or the data has
            another number of behaviors than was fitted or an earlier first cutoff.
    """

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self._cutoff: Cutoff | None = None
        self._id_maps: dict[str, str] = {}

    def fit(self, data: HeteroData) -> 'BehaviorGraph':
        r"""Counts the pairs of behaviors after the clicks of a training part.

        Args:
            data (HeteroData): The part, whose exposures have :obj:`edge_label_behavior`.

        Raises:
            ValueError: If behaviors are missing, have another shape or are neither 0 nor 1, or
                nobody clicked.
        """
        require(data, 'BehaviorGraph', *_NEEDED)
        require_cpu(data, 'BehaviorGraph')
        behavior, clicked = data[CLICKS].edge_label_behavior, data[CLICKS].edge_label == 1
        shape = (clicked.numel(), 'num_behaviors')
        check_tensor('BehaviorGraph', _BEHAVIOR, behavior, shape, 'numbers')
        if not bool(clicked.any()) or behavior.size(1) == 0:
            raise ValueError(
                f'BehaviorGraph expects a click and a behavior or more, but got '
                f'{int(clicked.sum())} clicks in {clicked.numel()} exposures and '
                f'{behavior.size(1)} behaviors.'
            )
        is_good = (behavior == 0) | ((behavior == 1) & clicked.unsqueeze(1))
        expected = '0 and 1, and of 0 alone in a row that was not clicked'
        check_values('BehaviorGraph', _BEHAVIOR, behavior, is_good, expected)
        # In float64, which adds ones exactly up to 2**53; float32 would stop at 2**24.
        count = torch.zeros(behavior.size(1), behavior.size(1), dtype=torch.float64)
        for rows, kept in zip(behavior.split(_CHUNK), clicked.split(_CHUNK)):
            happened = rows[kept].double()
            count.addmm_(happened.t(), happened)
        # After what may be refused, so that a failed fit leaves the last one.
        self._cutoff = first_cutoff(data, 'BehaviorGraph')
        self._id_maps = id_maps(data)
        self.count = count.long().fill_diagonal_(0)
        return self

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        r"""What was fitted, as tensors and as values of JSON, for :meth:`load_fitted_state`."""
        tensors = {} if self.count is None else {'count': self.count}
        return tensors, {'cutoff': self._cutoff, 'id_maps': self._id_maps}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave."""
        self.count = tensors['count']
        self._cutoff = Cutoff(*values['cutoff'])
        self._id_maps = dict(values['id_maps'])

    def forward(self, data: HeteroData) -> HeteroData:
        if self.count is None:
            return copy.copy(self).fit(data).forward(data)
        require(data, 'BehaviorGraph')
        require_same_ids('BehaviorGraph was fitted on', self._id_maps, id_maps(data))
        if self._cutoff is not None:
            require_not_earlier(data, 'BehaviorGraph', self._cutoff)
        num_behaviors = self.count.size(0)
        behavior = data[CLICKS].get(_BEHAVIOR)
        # A request to score has no labels, and needs none.
        if behavior is not None:
            shape = ('num_exposures', num_behaviors)
            check_tensor('The fitted BehaviorGraph', _BEHAVIOR, behavior, shape, 'numbers')
        target, source = self.count.nonzero(as_tuple=True)
        count = self.count[target, source]
        data['behavior'].num_nodes = num_behaviors
        follows = data[FOLLOWS]
        follows.edge_index = torch.stack([source, target])
        follows.edge_weight = (count.double() / self.count.sum(dim=1)[target]).float()
        follows.count = count
        return data

    def __repr__(self) -> str:
        learned = '' if self.count is None else fitted([self.count])
        return f'{self.__class__.__name__}({learned})'
