import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import EdgeStorage
from torch_geometric.transforms import BaseTransform

from mag.checks import check_tensor, check_values
from mag.cutoff import (
    Cutoff,
    first_cutoff,
    require_not_earlier,
    require_same_nodes,
    require_whole_log,
)
from mag.lineage import id_maps, require_same_ids
from mag.macro_graph import (
    Seen,
    TargetKeys,
    TargetState,
    TargetView,
    prior_places,
    target_counts,
    target_views,
)
from mag.macro_graph.counts_before import check_half_lives
from mag.macro_graph.target_counts import check_settled
from mag.schema import CLICKS, SEES, categoricals, cutoffs, require, require_cpu, windows
from mag.transforms._clock import user_position


@functional_transform('target_counts')
class TargetCounts(BaseTransform):
    r"""Reads the macro graph at the target: of every labelled row it counts the exposures and the
    clicks before it of its user, of its item, of its user with the macro node of its item, of the
    macro node of its user with its item, and of both macro nodes, at every resolution (functional
    name: :obj:`target_counts`).

    .. code-block:: python

        train, val, test = TemporalSplit()(data)
        coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(train)
        train, val, test = coarsen(train), coarsen(val), coarsen(test)
        counts = TargetCounts().fit(train)
        train, val, test = counts(train, log=data), counts(val), counts(test)

    The third kind is the macro edge between a user and the one macro node that its item is of,
    counted over exposures and over clicks; where :class:`~mag.models.MacGNN` reads the edges to all
    macro nodes, this reads the one that matters, and what was shown in vain.

    A row reads what came strictly before it. What that is depends on what is known when it is
    served:

    * a part alone is read as of its cutoff, or as of the row's own window if it rolls: counts are
      *stale*, as where the features of a day are made the night before;
    * with the whole :obj:`log` a row reads all exposures strictly before its own time: counts are
      *fresh*, as where they move with every event. Rows of the same second do not see each other.

    Training on fresh counts reads more than windows do, and is no leak. A test with fresh counts
    tells what fresh serving is worth, by AUC and log loss. GAUC compares rows of one user that read
    counts of different moments, which puts each pair in the wrong order a little: its loss is one
    of the metric, see :obj:`benchmarks/accuracy/fresh.md`.

    Where the log tells when a label was known, :obj:`settled`, a click counts from then on. A node
    counts as one of its macro node from the moment at which that became known.

    Adds to :obj:`data['user', 'clicks', 'item']`

    * :obj:`edge_label_counts`, exposures and clicks, shape :obj:`[L, C, 2]`, float32: a column a
      view, and then one a half-life;
    * :obj:`count_names`, :obj:`count_prior` and :obj:`count_rate`: the name of each column, the
      place of the column whose rate it is expected to have (:obj:`-1` for that of all exposures),
      and the rate of all exposures in the first training history.

    Args:
        views (Sequence[TargetView], optional): What is counted; by default what the macro nodes of
            the graph give, :obj:`data['user'].cluster`, and those of other resolutions under names
            such as :obj:`cluster_200`. Any categorical attribute of users, items and exposures
            makes a view, such as :obj:`TargetView('id', 'brand')` or
            :obj:`TargetView(item='id', exposure='hour')`. (default: :obj:`None`)
        half_lives (Sequence[float], optional): For each, all views are counted once more, an event
            losing half of its weight in that time, in seconds. (default: :obj:`()`)
    """

    def __init__(
        self,
        views: Sequence[TargetView] | None = None,
        half_lives: Sequence[float] = (),
    ) -> None:
        if views is not None:
            if not isinstance(views, Sequence) or not all(isinstance(v, TargetView) for v in views):
                raise TypeError(f"'views' must be a list of TargetView, but got {views!r}.")
            if not views:
                raise ValueError(
                    f"'views' must name something to count, but got {views!r}: leave it out to "
                    f'count by the macro nodes of the graph.'
                )
            names = [view.name for view in views]
            if len(set(names)) < len(names):
                raise ValueError(f"'views' must name each view once, but got {names}.")
        check_half_lives(half_lives)
        self.views = None if views is None else list(views)
        self.half_lives = tuple(half_lives)
        self._fitted: list[TargetView] = []
        self._rate = 0.5
        self._cutoff: Cutoff | None = None
        self._id_maps: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        r"""The names of the columns."""
        ages = ['', *(f', half-life {life:g}' for life in self.half_lives)]
        return [f'{view.name}{age}' for view in self._fitted for age in ages]

    @property
    def prior(self) -> list[int]:
        r"""For each column the place of the one whose rate it is expected to have, or -1."""
        return prior_places(self._fitted, 1 + len(self.half_lives))

    def fit(self, data: HeteroData) -> 'TargetCounts':
        r"""Learns the rate of all exposures from the history of a training part, of its first
        window if it rolls, and finds its macro nodes.

        Args:
            data (HeteroData): The part.

        Raises:
            ValueError: If the part holds no exposures that it may read, or has no macro nodes where
                no views are given, or a view's prior is none of the views.
        """
        _require_part(data)
        sees, clock = _history(data)
        views = self.views
        if views is None:
            views = target_views(*(_macro_nodes(data, name) for name in ('user', 'item')))
        names = [view.name for view in views]
        for view in views:
            if view.expected is not None and view.expected not in names:
                raise ValueError(
                    f'TargetCounts expects the rate of {view.name!r} to be that of '
                    f'{view.expected!r}, but counts {names} only: add that view, or name another '
                    f'prior.'
                )
        # Here, too, so that a view that the graph lacks is told before any part is counted.
        TargetKeys(data, views, categoricals(sees), 'TargetCounts')
        self._fitted = views
        cutoff = cutoffs(data, 'TargetCounts')[0]
        clicked = sees.clicked
        if 'settled' in sees:
            # A position says nothing of when a click was known; the first label's time does.
            is_timed = 'position' not in sees
            moment = cutoff if is_timed else data[CLICKS].edge_label_time.min()
            clicked = clicked * (sees.settled < moment)
        clicked = clicked[clock < cutoff]
        # One exposure of each kind more, so that the rate is never 0 or 1.
        self._rate = (float(clicked.sum()) + 1) / (clicked.numel() + 2)
        self._cutoff = first_cutoff(data, 'TargetCounts')
        self._id_maps = id_maps(data)
        return self

    def __call__(self, data: HeteroData, log: HeteroData | None = None) -> HeteroData:
        return self.forward(copy.copy(data), log)

    def forward(self, data: HeteroData, log: HeteroData | None = None) -> HeteroData:
        if self._cutoff is None:
            return copy.copy(self).fit(data).forward(data, log)
        require(data, 'TargetCounts', 'edge_label_index', 'edge_label_time')
        _require_part(data)
        require_same_ids('TargetCounts was fitted on', self._id_maps, id_maps(data))
        require_not_earlier(data, 'TargetCounts', self._cutoff)
        events, rows = self._stale(data) if log is None else self._fresh(data, log)
        clicks = data[CLICKS]
        clicks.edge_label_counts = target_counts(self._keys(data), events, rows, self.half_lives)
        clicks.count_names, clicks.count_prior = self.names, self.prior
        clicks.count_rate = self._rate
        return data

    def state(self, data: HeteroData, log: HeteroData | None = None) -> TargetState:
        r"""The counts as of the cutoff of a part, or with a whole :obj:`log` as of its end, which
        move with every event from then on. Where the log tells when a click was known,
        :obj:`settled`, those that were not known yet are counted when their time comes.

        Args:
            data (HeteroData): A part, whose macro nodes are read.
            log (HeteroData, optional): The log it was cut from. (default: :obj:`None`)

        Raises:
            ValueError: As when the transform is called, or if the part was cut by position, as
                time alone goes on.
        """
        if self._cutoff is None:
            raise ValueError('TargetCounts has no state yet: fit it on a training part.')
        require(data, 'TargetCounts', 'edge_label_index', 'edge_label_time')
        _require_part(data)
        require_same_ids('TargetCounts was fitted on', self._id_maps, id_maps(data))
        if 'position' in data[CLICKS]:
            raise ValueError(
                'TargetCounts moves counts in time, but this part was cut by position: split with '
                "by='global'."
            )
        events, _ = self._stale(data) if log is None else self._fresh(data, log)
        order = events.time.sort(stable=True).indices
        contexts = {name: value[order] for name, value in events.contexts.items()}
        columns = (events.user, events.item, events.time, torch.as_tensor(events.clicked))
        user, item, time, clicked = (column[order] for column in columns)
        settled = None if events.settled is None else events.settled[order]
        state = TargetState(self._keys(data), self.half_lives)
        state.update(user, item, time, clicked, contexts, settled)
        return state

    def fitted_state(self) -> dict[str, Any]:
        r"""What was fitted, as values of JSON, for :meth:`load_fitted_state`."""
        return {
            'views': self._fitted,
            'rate': self._rate,
            'cutoff': self._cutoff,
            'id_maps': self._id_maps,
        }

    def load_fitted_state(self, values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave for a transform with the same arguments."""
        self._fitted = [TargetView(*view) for view in values['views']]
        self._rate = values['rate']
        self._cutoff = None if values['cutoff'] is None else Cutoff(*values['cutoff'])
        self._id_maps = dict(values['id_maps'])

    def _keys(self, data: HeteroData) -> TargetKeys:
        return TargetKeys(data, self._fitted, categoricals(data[SEES]), 'TargetCounts')

    def _stale(self, data: HeteroData) -> tuple[Seen, Seen]:
        r"""What a part may read, and its rows as of their cutoffs."""
        sees, clock = _history(data)
        if 'position' in sees and (self.half_lives or 'settled' in sees):
            raise ValueError(
                'TargetCounts cannot tell when a click was known, or how old it is, by its '
                "position in the user's own log: pass the whole log, as in counts(test, "
                "log=data), or split with by='global'."
            )
        clicks = data[CLICKS]
        cutoff, window = cutoffs(data, 'TargetCounts'), windows(data, 'TargetCounts').of_label
        asked = cutoff.expand(clicks.edge_label_time.shape) if window is None else cutoff[window]
        user, item = sees.edge_index
        events = Seen(
            user, item, clock, clock, self._contexts(sees, ''), sees.clicked, sees.get('settled')
        )
        user, item = clicks.edge_label_index
        return events, Seen(user, item, asked, asked, self._contexts(clicks, 'edge_label_'))

    def _fresh(self, data: HeteroData, log: HeteroData) -> tuple[Seen, Seen]:
        r"""What came before the last row of a part in the log, and its rows as of their time."""
        require(log, 'TargetCounts', 'edge_label_index', 'edge_label', 'edge_label_time')
        require_whole_log(log, 'TargetCounts', 'Pass the log that the part was cut from')
        require_same_nodes(data, 'TargetCounts', log=log)
        if 'edge_label_settled' in log[CLICKS]:
            require(log, 'TargetCounts', 'edge_label_index', 'edge_label_settled')
            label = log[CLICKS]
            known, time = label.edge_label_settled, label.edge_label_time
            check_settled('TargetCounts', 'edge_label_settled', known, time)
        clicks, source = data[CLICKS], log[CLICKS]
        clock, asked = source.edge_label_time, clicks.edge_label_time
        if 'position' in clicks:
            # Macro nodes become known at a position of the user's own log.
            _, clock = user_position(log)
        user, item = source.edge_label_index
        contexts = self._contexts(source, 'edge_label_')
        settled = source.get('edge_label_settled')
        events = Seen(
            user, item, source.edge_label_time, clock, contexts, source.edge_label, settled
        )
        known = clicks.get('edge_label_position', asked)
        user, item = clicks.edge_label_index
        return events, Seen(user, item, asked, known, self._contexts(clicks, 'edge_label_'))

    def _contexts(self, store: EdgeStorage, prefix: str) -> dict[str, Tensor]:
        names = sorted({view.exposure for view in self._fitted if view.exposure is not None})
        contexts = {name: store.get(f'{prefix}{name}') for name in names}
        size = store['edge_label_index' if prefix else 'edge_index'].size(1)
        for name, value in contexts.items():
            check_tensor('TargetCounts', f'{prefix}{name}', value, (size,), 'integers')
        return contexts

    def __repr__(self) -> str:
        # PyG's caches know a transform by its text, so that fits on different data must differ.
        names = [view.name for view in self._fitted]
        fitted = f', rate={self._rate!r}, fitted={self._cutoff}, names={names}' if names else ''
        return f'{self.__class__.__name__}({self.views}, half_lives={self.half_lives}{fitted})'


def _history(data: HeteroData) -> tuple[EdgeStorage, Tensor]:
    r"""The exposures that a part may read, and the clock that it was cut by."""
    sees = data[SEES]
    check_tensor('TargetCounts', 'edge_index', sees.get('edge_index'), (2, 'E'), torch.long)
    size = sees.edge_index.size(1)
    check_tensor('TargetCounts', 'time', sees.get('time'), (size,), 'int64 seconds')
    clicked = sees.get('clicked')
    check_tensor('TargetCounts', 'clicked', clicked, (size,), 'numbers')
    is_good = (clicked == 0) | (clicked == 1)
    check_values('TargetCounts', 'clicked', clicked, is_good, '1 for a click and 0 for none')
    for name, kind in (('settled', 'int64 seconds'), ('position', 'numbers')):
        if name in sees:
            check_tensor('TargetCounts', name, sees[name], (size,), kind)
    if 'settled' in sees:
        check_settled('TargetCounts', 'settled', sees.settled, sees.time)
    return sees, sees.get('position', sees.time)


def _require_part(data: HeteroData) -> None:
    r"""Raises unless the data is a part with the exposures that it may read."""
    require(data, 'TargetCounts', 'edge_index')
    require_cpu(data, 'TargetCounts')
    if SEES not in data.edge_types or 'cutoff' not in data[CLICKS]:
        raise ValueError(
            f'TargetCounts reads the exposures before the cutoff of a part, {SEES}, but the data '
            f'has {data.edge_types}: pass the parts that TemporalSplit returns.'
        )


def _macro_nodes(data: HeteroData, node_type: str) -> list[str]:
    r"""The attributes that hold macro nodes."""
    names = [
        name
        for name in data[node_type].keys()
        if name == 'cluster' or (name.startswith('cluster_') and not name.endswith('_since'))
    ]
    if not names:
        raise ValueError(
            f'TargetCounts found no macro nodes of {node_type}s: apply MacroCoarsen first, or name '
            f'what to count in views.'
        )
    return names
