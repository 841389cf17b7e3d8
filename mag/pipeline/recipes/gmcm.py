from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureBatch, ExposureLoader
from mag.models import GMCM
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import Loaded, Prepared, Recipe, Served, Split, one_window
from mag.pipeline.request import Request
from mag.schema import CLICKS
from mag.transforms import BehaviorGraph


class GMCMRecipe(Recipe):
    r"""Features of the exposure, and what followed it. Without behaviors in the log there is no
    graph of them."""

    model = GMCM
    reads = ('contexts', 'features', 'outcomes', 'contents')
    split = one_window(0.01)
    task = {'learning_rate': 1e-3, 'weight_decay': 1e-6}
    monitor = 'ctcvr_auc'
    predicts = ('click', 'conversion', 'click_and_conversion')

    def __init__(self, seed: int, **arguments: Any) -> None:
        super().__init__(seed, **arguments)
        self.graph: BehaviorGraph | None = None

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        if 'edge_label_conversion' not in data[CLICKS]:
            raise ValueError(
                'GMCM predicts what is bought after a click, but the log does not tell: name a '
                "column for 'conversion'."
            )
        parts = split(data)
        merge = self.arguments.get('merge')
        if merge == 'graph' or (merge is None and 'edge_label_behavior' in data[CLICKS]):
            self.graph = BehaviorGraph().fit(parts[0])
        parts = [self._tell(part) for part in parts]
        return Prepared(parts[0], parts, data)

    def build(self, source: HeteroData) -> GMCM:
        default = {'merge': 'none' if self.graph is None else 'graph'}
        return GMCM.from_data(source, **{**default, **self.arguments})

    def _tell(self, part: HeteroData) -> HeteroData:
        return part if self.graph is None else self.graph(part)

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> ExposureLoader:
        return ExposureLoader(part, **arguments)

    def serve(self, log: RawLog) -> Served:
        part = self._tell(log.part())
        return _Features(part, self.loader(part, part))

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return ({}, {}) if self.graph is None else self.graph.fitted_state()

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if tensors:
            self.graph = BehaviorGraph()
            self.graph.load_fitted_state(tensors, values)

    def summary(self, log: RawLog) -> dict[str, Any]:
        if self.graph is None or self.graph.count is None:
            return {}
        return {'behaviors after the same click': self.graph.count.tolist()}


class _Features(Loaded):
    def batch(self, request: Request) -> ExposureBatch:
        return self.loader.request(request.user, request.item, x=request.x, **request.contexts)
