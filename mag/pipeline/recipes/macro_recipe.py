import copy
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import Prepared, Recipe, Split, check_json
from mag.schema import CLICKS, categoricals
from mag.transforms import MacroCoarsen

_CLUSTERS = {'user': 20, 'item': 50}
_Self = TypeVar('_Self', bound='MacroRecipe')


class MacroRecipe(Recipe):
    r"""Of models that read the macro graph.

    Clusters are learned from the first training history; a user or item that comes later gets a
    cluster with the part of the split, or the update, that holds its first click, and stays there.

    Args:
        seed: That of the clusters.
        groups: How users and items are grouped, see :class:`~mag.transforms.MacroCoarsen`; by
            default users in 20 clusters, and items by their :obj:`category` or in 50 clusters, but
            no more than one for ten who have a click in the first history.
        **arguments: Those of the model.
    """

    split = {}
    #: Arguments of MacroCoarsen.
    coarsen_arguments: ClassVar[Mapping[str, Any]]

    def __init__(
        self, seed: int, groups: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(seed, **arguments)
        check_json('groups', groups)
        self._given = groups
        if groups is not None:
            self._group(groups)

    def _group(self, groups: Mapping[str, Any]) -> None:
        self.groups = groups
        self.coarsen = MacroCoarsen(groups, seed=self.seed, **self.coarsen_arguments)

    def tell(self, part: HeteroData) -> HeteroData:
        r"""A part with what does not depend on clusters."""
        return part

    def macro_parts(self, data: HeteroData, split: Split) -> list[HeteroData]:
        parts = []
        for place, part in enumerate(split(data)):
            if place == 0:
                if self._given is None:
                    self._group(_default_groups(part))
                self.coarsen.fit(part)
            parts.append(self.coarsen(self.tell(part)))
            self.coarsen = self.coarsen.keep(part)
        return parts

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        parts = self.macro_parts(data, split)
        return Prepared(parts[0], parts, data)

    def keep(self: _Self, log: RawLog) -> _Self:
        kept = copy.copy(self)
        kept.coarsen = self.coarsen.keep(log.part())
        return kept

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.coarsen.fitted_state()
        return tensors, {'groups': self.groups, 'clusters': values}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._group(values['groups'])
        self.coarsen.load_fitted_state(tensors, values['clusters'])

    def summary(self, log: RawLog) -> dict[str, Any]:
        cluster = self.coarsen.cluster
        edge_index, _ = log.clicks()
        groupings = {}
        for of in self.coarsen.resolutions:
            found = cluster[of.name]
            sizes = found[found >= 0].bincount().tolist()
            names = log.raw(of.group) if isinstance(of.group, str) else range(len(sizes))
            groupings[of.name] = {str(name): size for name, size in zip(names, sizes)}
        user, item = cluster['user'][edge_index[0]], cluster['item'][edge_index[1]]
        is_in = (user >= 0) & (item >= 0)
        pairs, clicks = torch.stack([user, item])[:, is_in].unique(dim=1, return_counts=True)
        sizes_of = (len(groupings[node]) for node in ('user', 'item'))
        edges = clicks.new_zeros(*sizes_of).index_put_(tuple(pairs), clicks)
        return describe_clusters(groupings, edges)


def describe_clusters(groupings: Mapping[str, Mapping[str, int]], edges: Tensor) -> dict[str, Any]:
    r"""Clusters and the clicks between them, for people, as values of JSON.

    Args:
        groupings: For each grouping, by the name of the cluster, how many nodes it has.
        edges: The clicks between the first grouping of users and that of items, int64, shape
            :obj:`[M_user, M_item]`.
    """
    users, items = (list(groupings[node]) for node in ('user', 'item'))
    flat = edges.flatten()
    heaviest = flat.argsort(descending=True, stable=True)[:10]
    heaviest = heaviest[flat[heaviest] > 0]
    return {
        'clusters': groupings,
        'macro edges': edges.tolist(),
        'heaviest macro edges': [
            {
                'user': users[place // len(items)],
                'item': items[place % len(items)],
                'clicks': number,
            }
            for place, number in zip(heaviest.tolist(), flat[heaviest].tolist())
        ],
    }


def _default_groups(part: HeteroData) -> dict[str, Any]:
    clicks = part[CLICKS]
    is_first = clicks.time < clicks.cutoff.min()
    groups: dict[str, Any] = {}
    for (node_type, most), ids in zip(_CLUSTERS.items(), clicks.edge_index, strict=True):
        number = ids[is_first].unique().numel()
        groups[node_type] = max(min(most, number // 10), 1)
    if 'category' in categoricals(part['item']):
        groups['item'] = 'category'
    return groups
