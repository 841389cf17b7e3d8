import copy
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import Prepared, Recipe, Split, check_json
from mag.transforms import MacroCoarsen

_Self = TypeVar('_Self', bound='MacroRecipe')


class MacroRecipe(Recipe):
    r"""Of models that read the macro graph.

    Clusters are learned from the first training history; a user or item that comes later gets a
    cluster with the part of the split, or the update, that holds its first click, and stays there.

    Args:
        seed: That of the clusters.
        groups: How users and items are grouped, see :class:`~mag.transforms.MacroCoarsen`.
        **arguments: Those of the model.
    """

    split = {}
    #: How users and items are grouped, unless it is said.
    groups: ClassVar[Mapping[str, Any]]
    #: Arguments of MacroCoarsen.
    coarsen_arguments: ClassVar[Mapping[str, Any]]

    def __init__(
        self, seed: int, groups: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(seed, **arguments)
        check_json('groups', groups)
        groups = self.groups if groups is None else groups
        self.coarsen = MacroCoarsen(groups, seed=seed, **self.coarsen_arguments)

    def tell(self, part: HeteroData) -> HeteroData:
        r"""A part with what does not depend on clusters."""
        return part

    def macro_parts(self, data: HeteroData, split: Split) -> list[HeteroData]:
        parts = []
        for place, part in enumerate(split(data)):
            if place == 0:
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
        return tensors, {'clusters': values}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.coarsen.load_fitted_state(tensors, values['clusters'])

    def summary(self, log: RawLog) -> dict[str, Any]:
        r"""For each grouping how many users or items are in each cluster, by name where it is an
        attribute; and the ten heaviest macro edges, the clicks from a cluster of users on one of
        items."""
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
        heaviest = clicks.argsort(descending=True, stable=True)[:10]
        keys = {node: list(groupings[node]) for node in ('user', 'item')}
        edges = zip(pairs[:, heaviest].t().tolist(), clicks[heaviest].tolist())
        return {
            'clusters': groupings,
            'heaviest macro edges': [
                {'user': keys['user'][u], 'item': keys['item'][i], 'clicks': number}
                for (u, i), number in edges
            ],
        }
