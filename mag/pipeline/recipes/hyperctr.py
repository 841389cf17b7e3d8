from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_integers
from mag.loader import HistoryBatch, HistoryLoader
from mag.models import HyperCTR
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.recipe import Loaded, Prepared, Recipe, Served, Split, one_window
from mag.pipeline.request import Request
from mag.schema import CLICKS
from mag.transforms import InterestHypergraph, TimeSlots, UserInterest

# Slots of a log whose length is not said.
_SLOTS = 20


class HyperCTRRecipe(Recipe):
    r"""Histories, and the hypergraphs of the slots that ended before each row.

    Args:
        seed: That of what is learned and drawn.
        granularity: The length of a slot in seconds, by default a twentieth of the time that the
            log covers.
        length: How many clicks of a user are read.
        **arguments: Those of the model.
    """

    model = HyperCTR
    reads = ('contents',)
    # Half of what is trained on comes before any label, to learn interests from.
    split = one_window(0.5)
    task = {'learning_rate': 3e-3, 'weight_decay': 1e-6}
    monitor = 'auc'
    is_in_model = True

    def __init__(
        self, seed: int, granularity: int | None = None, length: int = 20, **arguments: Any
    ) -> None:
        super().__init__(seed, **arguments)
        if granularity is not None:
            check_integers(1, granularity=granularity)
        check_integers(1, length=length)
        self.granularity, self.length = granularity, length
        self.interest = UserInterest(seed=seed)

    def prepare(self, data: HeteroData, split: Split, progress: bool) -> Prepared:
        data = self._in_slots(data)
        parts = split(data)
        self.interest.fit(parts[0], progress=progress)
        history = self._history(data)
        return Prepared(history, parts, history)

    def _in_slots(self, data: HeteroData) -> HeteroData:
        if self.granularity is None:
            time = data[CLICKS].edge_label_time
            self.granularity = max(int(time.max() - time.min()) // _SLOTS, 1)
        return TimeSlots(self.granularity)(data)

    def _history(self, data: HeteroData) -> HeteroData:
        r"""The whole log, of which each row reads slots that ended before its own."""
        return InterestHypergraph(seed=self.seed)(self.interest(data))

    def loader(self, part: HeteroData, history: HeteroData, **arguments: Any) -> HistoryLoader:
        return HistoryLoader(part, length=self.length, history=history, **arguments)

    def serve(self, log: RawLog) -> Served:
        history = self._history(self._in_slots(log.graph()))
        return _Histories(history, self.loader(history, history))

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.interest.fitted_state()
        return tensors, {'interest': values, 'granularity': self.granularity}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.granularity = values['granularity']
        self.interest.load_fitted_state(tensors, values['interest'])

    def summary(self, log: RawLog) -> dict[str, Any]:
        return {'modalities': list(self.interest.modalities), 'seconds of a slot': self.granularity}


class _Histories(Loaded):
    def batch(self, request: Request) -> HistoryBatch:
        return self.loader.request(request.user, request.item, request.time)
