from collections.abc import Mapping, Sequence
from typing import Any

from torch_geometric.data import HeteroData

from mag.loader import PathLoader
from mag.models import SRJGraph
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import (
    Loaded,
    Prepared,
    Recipe,
    Served,
    Split,
    check_json,
    one_window,
)
from mag.pipeline.request import Request

_WIDTHS = {'user': [10, 1, 5], 'item': [1, 10, 1]}


class SRJGraphRecipe(Recipe):
    r"""Paths through the clicks that came before each row.

    Args:
        seed: That of the paths.
        widths: How many neighbors they take, see :class:`~mag.loader.PathLoader`.
        attribute: What items drawn from a user share with the target.
        **arguments: Those of the model.
    """

    model = SRJGraph
    reads = ('contexts',)
    split = one_window(0.3)
    task = {'learning_rate': 5e-3, 'weight_decay': 1e-6}
    monitor = 'auc'

    def __init__(
        self,
        seed: int,
        widths: Mapping[str, Sequence[int]] | None = None,
        attribute: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(seed, **arguments)
        check_json('widths', widths)
        widths = _WIDTHS if widths is None else widths
        self._of_paths = {'widths': widths, 'attribute': attribute, 'seed': seed}

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        parts = split(data)
        return Prepared(parts[0], parts, data)

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> PathLoader:
        return PathLoader(part, history=history, **{**self._of_paths, **arguments})

    def serve(self, log: RawLog) -> Served:
        part = log.part()
        return _Paths(part, self.loader(part, part))


class _Paths(Loaded):
    def batch(self, request: Request) -> HeteroData:
        return self.loader.request(request.user, request.item, request.time, **request.contexts)
