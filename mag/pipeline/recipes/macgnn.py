from typing import Any

from torch_geometric.data import HeteroData

from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.macro_recipe import MacroRecipe
from mag.pipeline.recipes.recipe import Served
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
        return _MacroRows(self.coarsen(self.tell(log.part())))


class _MacroRows(Served):
    def __init__(self, part: HeteroData) -> None:
        self.source = part
        self._loader = PairLoader(part)

    def batch(self, request: Request) -> PairBatch:
        return self._loader.request(request.user, request.item)
