from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureBatch, ExposureLoader
from mag.models import CountNet
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.macro_recipe import MacroRecipe
from mag.pipeline.recipes.recipe import Prepared, Recipe, Served, Split
from mag.pipeline.request import Request
from mag.transforms import TargetCounts


class CountNetRecipe(MacroRecipe):
    r"""Counts at the target: training rows read what came before themselves, others what did before
    a cutoff, and requests what did before them."""

    model = CountNet
    reads = ('contexts',)
    task = {'learning_rate': 1e-2, 'weight_decay': 1e-5, 'average': 0.99}
    monitor = 'logloss'
    # Of macro nodes the counts at the target alone are read.
    coarsen_arguments = {'num_hops': 1, 'exposure_hops': 0}

    def __init__(
        self, seed: int, groups: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(seed, groups, **arguments)
        self.counts = TargetCounts()

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        parts = self.macro_parts(data, split)
        counts = self.counts.fit(parts[0])
        parts = [counts(parts[0], log=data), *map(counts, parts[1:])]
        return Prepared(parts[0], parts, data)

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> ExposureLoader:
        return ExposureLoader(part, **arguments)

    def serve(self, log: RawLog) -> Served:
        return _Counts(self, log)

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().fitted_state()
        return tensors, {**values, 'counts': self.counts.fitted_state()}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().load_fitted_state(tensors, values)
        self.counts.load_fitted_state(values['counts'])


class _Counts(Served):
    def __init__(self, recipe: CountNetRecipe, log: RawLog) -> None:
        self.source = part = recipe.counts(recipe.coarsen(log.part()))
        self._loader, self._state = ExposureLoader(part), recipe.counts.state(part)
        self._cluster, self._log = recipe.coarsen.cluster, log

    def batch(self, request: Request) -> ExposureBatch:
        user, item, contexts = request.user, request.item, request.contexts
        counts = self._state(user, item, request.time, contexts)
        return self._loader.request(user, item, counts=counts, **contexts)

    def update(self, recipe: Recipe, log: RawLog, first: int) -> bool:
        cluster = cast(CountNetRecipe, recipe).coarsen.cluster
        is_same = (
            all(len(ids) == len(self._log.maps[name]) for name, ids in log.maps.items())
            and _equal(cluster, self._cluster)
            and all(_equal(of, self._log.attributes[node]) for node, of in log.attributes.items())
        )
        if is_same:
            last = {name: value[first:] for name, value in log.events.items()}
            self._state.update(last['user'], last['item'], last['time'], last['label'], last)
        return is_same


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
