from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mag.loader.row_loader import RowLoader
from mag.models import CountNet, MacGNN
from mag.pipeline.recipes.count_net import CountNetRecipe
from mag.pipeline.recipes.macgnn import MacGNNRecipe
from mag.pipeline.recipes.macro_recipe import describe_clusters
from mag.pipeline.recipes.recipe import Prepared, Recipe, Served, Split
from mag.pipeline.request import Request
from mag.pipeline.stored_log import StoredLog
from mag.transforms import MacroCoarsen

if TYPE_CHECKING:
    from mag.store import Store


class StoreRecipe(Recipe):
    r"""Of models that read a store, where all that is fitted is fitted already.

    Args:
        seed: That of nothing here.
        groups: If told, how users and items must be grouped there.
        **arguments: Those of the model.
    """

    split = {}
    #: What the model reads, see :class:`~mag.store.StoreLoader`.
    batches: ClassVar[str]

    def __init__(
        self, seed: int, groups: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(seed, **arguments)
        self._groups = groups

    def prepare(self, data: 'Store', split: Split, progress: bool) -> Prepared:
        if self._groups is not None:
            asked = MacroCoarsen(self._groups).resolutions
            if asked != data.resolutions:
                raise ValueError(
                    f"'groups' must be those of the store in {data.path!r}, "
                    f'{data.manifest["plan"]["groups"]}, but got {self._groups}: leave them out, '
                    f'or build a store with them.'
                )
        return Prepared(data.graph(), ('train', 'val', 'test'), data)

    def loader(self, part: str, history: 'Store', **arguments: Any) -> RowLoader:
        from mag.store import StoreLoader

        return StoreLoader(history, part, batches=self.batches, **arguments)

    def serve(self, log: StoredLog) -> Served:
        return _StoredRows(log.store, self.batches)

    def summary(self, log: StoredLog) -> dict[str, Any]:
        store, groupings = log.store, {}
        for of in store.resolutions:
            names: Any = range(store.num_clusters[of.name])
            if isinstance(of.group, str):
                names = store.id_map(of.group).decode(names)
            sizes = store.cluster_sizes(of.name).tolist()
            groupings[of.name] = {str(name): size for name, size in zip(names, sizes)}
        return describe_clusters(groupings, store.macro_edges().long())


class StoredCountNetRecipe(StoreRecipe):
    r"""Counts at the target as of the cutoff before each row; of a request, as of the end."""

    model = CountNet
    reads = CountNetRecipe.reads
    task = CountNetRecipe.task
    monitor = CountNetRecipe.monitor
    batches = 'features'


class StoredMacGNNRecipe(StoreRecipe):
    r"""Macro rows and recent neighbors, likewise."""

    model = MacGNN
    task = MacGNNRecipe.task
    monitor = MacGNNRecipe.monitor
    batches = 'pairs'


class _StoredRows(Served):
    def __init__(self, store: 'Store', batches: str) -> None:
        from mag.store.store_batches import StoreBatches

        self.source = store.graph()
        self._batches = StoreBatches(store, batches)

    def batch(self, request: Request) -> Any:
        return self._batches.latest(request.user, request.item, request.contexts, request.x)
