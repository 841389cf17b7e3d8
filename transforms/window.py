import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage
from torch_geometric.typing import EdgeType

from mag.checks import check_integers, check_tensor
from mag.click_index import first_click
from mag.cutoff import clock_name, history_clock, window_of_click
from mag.schema import (
    CLICKS,
    MACRO,
    NEIGHBOR_TYPE,
    SEES,
    click_attributes,
    label_attributes,
    require,
    require_cpu,
    windows,
)
from mag.transforms.behavior_graph import FOLLOWS

_MACRO_TYPES = tuple(MACRO.values())
# What counts or numbers all windows.
_OF_THE_PART = ('edge_label_window', 'num_dropped', 'num_unsettled')


def window(data: HeteroData, number: int) -> HeteroData:
    r"""The view of one window of a part that rolls over several: its exposures, and of all else
    what happened strictly before its cutoff.

    The :obj:`edge_index` of a rolling part reaches its last cutoff, and so holds nearly all of the
    clicks that are labels of earlier windows. Loaders of mag read of it what each row may. A
    generic graph network reads it whole, with the answers in it, and has to be given views:

    .. code-block:: python

        for number in range(train['user', 'clicks', 'item'].cutoff.numel()):
            view = T.ToUndirected()(window(train, number))
            for batch in LinkNeighborLoader(
                view,
                [10, 10],
                edge_label_index=(CLICKS, view[CLICKS].edge_label_index),
                edge_label=view[CLICKS].edge_label,
            ):
                ...

    A view is a shallow copy that holds, of window :math:`s`,

    * :obj:`data['user', 'clicks', 'item']`: the clicks strictly before :obj:`cutoff[s]`, the
      exposures of that window alone, and :obj:`cutoff` of shape :obj:`[1]`. There is no
      :obj:`edge_label_window`, and :obj:`num_dropped` and :obj:`num_unsettled`, which count the
      whole part, are left out;
    * :obj:`data['user', 'sees', 'item']`, where it is there: the exposures strictly before it,
      with the clicks that were settled by then; with :obj:`by="user"` by the user's own first
      exposure in the window, or after it;
    * edges of other types that have a :obj:`time`, such as those of a log of who follows whom, or
      reversed clicks: those strictly before it. With :obj:`by="user"`, where windows begin at a
      share of each user's own log, they need the :obj:`position` in it, as reversed clicks have;
    * where :class:`~mag.transforms.RecentNeighbors` was applied, :obj:`recent` of shape
      :obj:`[N, num]`;
    * where :class:`~mag.transforms.MacroCoarsen` was, the macro edges that count something by then,
      with :obj:`edge_weight` of shape :obj:`[E]`, and the clusters that were known by then: of
      other nodes :obj:`cluster` is :obj:`-1`, and :obj:`size` counts them in no macro node.
      :obj:`macro_edges_k`, which are as of the last cutoff, stay in the view of the last window
      alone.

    All views of a part have the same nodes, so that one model is trained on all of them.

    Args:
        data (HeteroData): A part that :class:`~mag.transforms.TemporalSplit` returns.
        number (int): The window, from 0.

    Raises:
        IndexError: If there is no such window.
        TypeError: If :obj:`number` is no integer, or the data no
            :class:`~torch_geometric.data.HeteroData`.
        ValueError: If the data is no part, a click lies at or after the last cutoff, or there are
            other edges or hyperedges of which nothing tells when they happened.
    """
    require(data, 'window', 'edge_index')
    require_cpu(data, 'window')
    _require_part(data)
    check_integers(number=number)
    cutoff, num_windows, of_label = windows(data, 'window')
    if cutoff is None or not 0 <= number < num_windows:
        raise IndexError(
            f'window expects a number from 0 to {num_windows - 1}, as this part has {num_windows} '
            f'{"window" if num_windows == 1 else "windows"}, but got {number}.'
        )
    # Raises unless all of the history has a time before the last cutoff.
    window_of_click(data, 'window')
    moment, view = cutoff[number], data.__copy__()
    _cut_events(data[CLICKS], view[CLICKS], click_attributes(data), history_clock(data) < moment)
    if SEES in data.edge_types:
        window_of_click(data, 'window', SEES)
    for edge_type in data.edge_types:
        if edge_type not in (CLICKS, FOLLOWS) and not edge_type[0].startswith(_MACRO_TYPES):
            source, store = data[edge_type], view[edge_type]
            _cut_events(source, store, source.edge_attrs(), source[clock_name(data)] < moment)
            if 'clicked' in store and 'settled' in store:
                start = _start(data, edge_type, store.edge_index, moment)
                store.clicked = store.clicked * (store.settled < start)
    if of_label is not None:
        _keep_labels(data, view, of_label == number)
    view[CLICKS].cutoff = moment.view(1)
    for name in _OF_THE_PART:
        view[CLICKS].pop(name, None)
    for node_type in MACRO:
        _cut_nodes(view, node_type, number, num_windows, moment)
    for edge_type in data.edge_types:
        if edge_type[0].startswith(_MACRO_TYPES):
            _cut_macro_edges(data[edge_type], view[edge_type], number)
    return view


def _require_part(data: HeteroData) -> None:
    r"""Raises unless the data is a part whose edges say when they happened."""
    if 'cutoff' not in data[CLICKS]:
        raise ValueError(
            "window expects a part with a 'cutoff', as TemporalSplit returns, but got a whole log."
        )
    others: list[EdgeType | str] = []
    clock = clock_name(data)
    for edge_type in data.edge_types:
        # What follows what is of the first history, whatever the window.
        if edge_type in (CLICKS, SEES, FOLLOWS) or edge_type[0].startswith(_MACRO_TYPES):
            continue
        store = data[edge_type]
        if clock not in store:
            others.append(edge_type)
            continue
        kind = 'int64 seconds' if clock == 'time' else 'numbers'
        what = f'{clock} of data{list(edge_type)}'
        check_tensor('window', what, store[clock], (store.edge_index.size(1),), kind)
    others += [name for name in NEIGHBOR_TYPE if 'hyperedge_index' in data[name]]
    if others:
        raise ValueError(
            f'window found edges or hyperedges of {others} without a {clock!r}, and '
            f'nothing else tells which of them were there in a window: give the edges one, or '
            f'apply what adds them to the views, and not to the part.'
        )


def _start(data: HeteroData, edge_type: EdgeType, edge_index: Tensor, moment: Tensor) -> Tensor:
    r"""When a window begins, in seconds: one number or, where each user's own log was split, one
    for each exposure, the first of its user that does not come before the window."""
    if clock_name(data) == 'time':
        return moment
    clicks, sees = data[CLICKS], data[SEES]
    late, late_label = sees.position >= moment, clicks.edge_label_position >= moment
    time = torch.cat([sees.time[late], clicks.edge_label_time[late_label]])
    user = torch.cat([sees.edge_index[0, late], clicks.edge_label_index[0, late_label]])
    start = first_click(time, user, data['user'].num_nodes)
    return start[edge_index[0 if edge_type[0] == 'user' else 1]]


def _cut_events(
    source: EdgeStorage, store: EdgeStorage, names: list[str], is_before: Tensor
) -> None:
    r"""Keeps the events before a moment, which are a slice where they are in the order of time."""
    num_kept = int(is_before.sum())
    kept: Tensor | slice = slice(0, num_kept) if bool(is_before[:num_kept].all()) else is_before
    for name in names:
        value = source[name]
        store[name] = value[:, kept] if name == 'edge_index' else value[kept]


def _keep_labels(data: HeteroData, view: HeteroData, of_window: Tensor) -> None:
    rows = of_window.nonzero().view(-1)
    for name in label_attributes(data):
        value = data[CLICKS][name]
        view[CLICKS][name] = value[:, rows] if name == 'edge_label_index' else value[rows]


def _cut_nodes(
    view: HeteroData, node_type: str, number: int, num_windows: int, moment: Tensor
) -> None:
    r"""Keeps what was known of users or items by then."""
    nodes = view[node_type]
    recent = nodes.get('recent')
    if isinstance(recent, Tensor) and recent.dim() == 3:
        nodes.recent = recent[:, number]
    for name in list(nodes.keys()):
        if name.startswith('macro_edges_') and number < num_windows - 1:
            del nodes[name]
        elif name.startswith('cluster') and f'{name}_since' in nodes:
            known = nodes[f'{name}_since'] <= moment
            nodes[name] = cluster = nodes[name].where(known, -1)
            macro = view[MACRO[node_type] + name.removeprefix('cluster')]
            macro.size = cluster[cluster >= 0].bincount(minlength=macro.num_nodes)


def _cut_macro_edges(source: EdgeStorage, store: EdgeStorage, number: int) -> None:
    weight = source.edge_weight
    # Of a part that does not roll, all counts are as of the one cutoff.
    if weight.dim() == 2:
        weight = weight[:, number]
        counted = weight > 0
        store.edge_index, store.edge_weight = source.edge_index[:, counted], weight[counted]
