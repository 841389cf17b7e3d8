from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.macro_recipe import MacroRecipe
from mag.pipeline.recipes.recipe import Recipe, Served
from mag.pipeline.request import Request
from mag.transforms import RecentNeighbors


class MacGNNRecipe(MacroRecipe):
    r"""Macro rows and recent neighbors, as of the end of the log."""

    model = MacGNN
    task = {'learning_rate': 1e-2, 'weight_decay': 5e-5}
    monitor = 'auc'
    coarsen_arguments = {'exposure_hops': 0}

    def tell(self, part: HeteroData) -> HeteroData:
        return RecentNeighbors(20)(part)

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> PairLoader:
        return PairLoader(part, **arguments)

    def serve(self, log: RawLog) -> Served:
        return _MacroRows(self, log)


class _MacroRows(Served):
    def __init__(self, recipe: MacGNNRecipe, log: RawLog) -> None:
        part = recipe.coarsen(recipe.tell(log.part()))
        self._state, self._cluster = recipe.coarsen.state(part), recipe.coarsen.cluster
        self.source = _sizes(part, log)

    def batch(self, request: Request) -> PairBatch:
        (user_hops, user_recent), (item_hops, item_recent) = (
            self._state.rows(name, node)
            for name, node in (('user', request.user), ('item', request.item))
        )
        return PairBatch(request.user, request.item, user_hops, item_hops, user_recent, item_recent)

    def update(self, recipe: Recipe, log: RawLog, first: int) -> bool:
        coarsen = cast(MacGNNRecipe, recipe).coarsen
        for of in coarsen.resolutions:
            # Of attributes, a value may be new, and that of a node be known since.
            is_new = isinstance(of.group, str) and (
                len(log.maps[of.group]) > self.source[of.macro].num_nodes
            )
            if is_new or _moves(self._cluster[of.name], coarsen.cluster[of.name]):
                return False
        last = {name: log.events[name][first:] for name in ('user', 'item', 'label')}
        clicks = torch.stack([last['user'], last['item']])[:, last['label'] == 1]
        self._state.update(clicks, coarsen.cluster['user'], coarsen.cluster['item'])
        self._cluster, self.source = coarsen.cluster, _sizes(self.source, log)
        return True


def _moves(known: Tensor, found: Tensor) -> bool:
    r"""Whether a node has another cluster than it had."""
    return bool(((known >= 0) & (found[: known.numel()] != known)).any())


def _sizes(part: HeteroData, log: RawLog) -> HeteroData:
    r"""What a model is built from and grows by: a part with the nodes of a log and no edge."""
    source = HeteroData()
    source.id_maps = {name: ids.lineage for name, ids in log.maps.items()}
    for name in part.node_types:
        is_known = name in ('user', 'item')
        source[name].num_nodes = len(log.maps[name]) if is_known else part[name].num_nodes
        if is_known:
            source[name].recent = part[name].recent[:0]
    for edge_type in part.edge_types:
        source[edge_type].edge_index = torch.empty(2, 0, dtype=torch.long)
    return source
