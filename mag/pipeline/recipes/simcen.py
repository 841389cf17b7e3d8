from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureBatch, ExposureLoader
from mag.models import SimCEN
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import Loaded, Prepared, Recipe, Served, Split, one_window
from mag.pipeline.request import Request
from mag.schema import CLICKS
from mag.transforms import BucketNumbers


class SimCENRecipe(Recipe):
    r"""Categorical fields of the exposure, and its dense features in buckets.

    Args:
        seed: That of nothing here.
        num_buckets: See :class:`~mag.transforms.BucketNumbers`.
        **arguments: Those of the model.
    """

    model = SimCEN
    reads = ('contexts', 'features')
    split = one_window(0.01)
    task = {'learning_rate': 1e-3, 'weight_decay': 0.0}
    monitor = 'auc'

    def __init__(self, seed: int, num_buckets: int = 10, **arguments: Any) -> None:
        super().__init__(seed, **arguments)
        self.buckets = BucketNumbers(num_buckets)

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        parts = split(data)
        if 'edge_label_x' in data[CLICKS]:
            self.buckets.fit(parts[0])
        parts = [self._tell(part) for part in parts]
        return Prepared(parts[0], parts, data)

    def _tell(self, part: HeteroData) -> HeteroData:
        return part if self.buckets.edges is None else self.buckets(part)

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> ExposureLoader:
        return ExposureLoader(part, **arguments)

    def serve(self, log: RawLog) -> Served:
        part = self._tell(log.part())
        return _Buckets(part, self.loader(part, part), self.buckets)

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.buckets.fitted_state()

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if tensors:
            self.buckets.load_fitted_state(tensors, values)


class _Buckets(Loaded):
    def __init__(self, source: HeteroData, loader: ExposureLoader, buckets: BucketNumbers) -> None:
        super().__init__(source, loader)
        self._buckets = buckets

    def batch(self, request: Request) -> ExposureBatch:
        contexts = dict(request.contexts)
        if request.x is not None:
            contexts |= self._buckets.contexts(request.x)
        return self.loader.request(request.user, request.item, x=request.x, **contexts)
