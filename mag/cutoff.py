r"""The guards against the future: what was fitted or read before a cutoff, and what comes after
it."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from mag.checks import check_ids, check_tensor
from mag.lineage import id_maps, require_same_ids
from mag.schema import CLICKS, cutoffs, windows


def history_clock(data: HeteroData) -> Tensor:
    r"""The clock that :obj:`cutoff` is measured on, one value a click, shape :obj:`[E]`:
    :obj:`position` in the user's own log if the split was made per user, else :obj:`time`."""
    return data[CLICKS][clock_name(data)]


def clock_name(data: HeteroData) -> str:
    r"""The name of that clock."""
    return 'position' if 'position' in data[CLICKS] else 'time'


def window_of_click(
    data: HeteroData, caller: str, edge_type: EdgeType = CLICKS
) -> tuple[Tensor | None, int]:
    r"""The first window whose history holds each click.

    Args:
        data: A part, or a log.
        caller: Whose name the message begins with.
        edge_type: What is asked for, clicks or the exposures that a part may read.

    Returns:
        The window of each click, shape :obj:`[E]`, and the number of windows; or :obj:`None` and 1
        if the data does not roll: with one cutoff and no :obj:`edge_label_window`.

    Raises:
        IndexError: If an exposure is of a window that does not exist.
        ValueError: If a click lies at or after the last cutoff, or the cutoffs do not ascend.
    """
    events = data[edge_type]
    cutoff, num_windows, of_label = windows(data, caller)
    if cutoff is None:
        return None, 1
    name = clock_name(data)
    if name not in events:
        raise ValueError(
            f"{caller} found a 'cutoff' but no '{name}' to compare with it in "
            f'data{list(edge_type)}, which has {list(events.keys())}.'
        )
    clock = events[name]
    check_tensor(caller, name, clock, (events.edge_index.size(1),), 'numbers')
    if of_label is not None:
        check_ids(caller, "windows of 'edge_label_window'", of_label, num_windows)
    if clock.numel() > 0 and bool(clock.max() >= cutoff.max()):
        raise ValueError(
            f'{caller} found {"clicks" if edge_type == CLICKS else "exposures"} up to '
            f'{clock.max().item()}, but the cutoff of this data is '
            f'{cutoff.max().item()}: the history must lie strictly before it. Was the data edited '
            f'after TemporalSplit?'
        )
    if num_windows == 1 and of_label is None:
        return None, 1
    return torch.bucketize(clock.contiguous(), cutoff, right=True), num_windows


class Cutoff(NamedTuple):
    r"""A moment on one of the two clocks that a log is split by."""

    #: :obj:`'time'`, or :obj:`'position'` in the user's own log.
    clock: str
    #: Infinite if nothing tells it.
    moment: float

    def __str__(self) -> str:
        return 'an unknown time' if self.moment == torch.inf else f'{self.clock} {self.moment}'


def first_cutoff(data: HeteroData, caller: str) -> Cutoff:
    r"""The moment as of which something is fitted on :obj:`data`: the first cutoff of a part. Of a
    log without one everything was seen, until after its last click.

    Args:
        data: What it is fitted on.
        caller: Whose name the message begins with.

    Raises:
        ValueError: If the cutoff has a wrong shape.
    """
    clicks = data[CLICKS]
    if 'cutoff' in clicks:
        return Cutoff(clock_name(data), cutoffs(data, caller).min().item())
    time = clicks.get('time')
    is_known = isinstance(time, Tensor) and time.numel() > 0
    return Cutoff('time', int(time.max()) + 1 if is_known else torch.inf)


def require_not_earlier(data: HeteroData, caller: str, fitted: Cutoff) -> None:
    r"""Raises a :class:`ValueError` if what was fitted on one part is used on an earlier one, whose
    future it knows. Data without a cutoff, such as a log to serve, is of any time.

    Args:
        data: What the caller was given.
        caller: Whose name the message begins with.
        fitted: The :func:`first_cutoff` of what it was fitted on.
    """
    if 'cutoff' not in data[CLICKS]:
        return
    given = first_cutoff(data, caller)
    # So that NaN is refused, too.
    if given.clock == fitted.clock and given.moment >= fitted.moment:
        return
    reason = (
        'its rows may read their own future'
        if given.clock == fitted.clock
        else "a time and a position in a user's own log cannot be compared"
    )
    raise ValueError(
        f'{caller} was fitted as of {fitted}, but the first cutoff of this data is {given}, and '
        f'{reason}: fit it on the training part of the same split.'
    )


def require_exposures_after_clicks(data: HeteroData, caller: str) -> None:
    r"""Raises a :class:`ValueError` unless all exposures come after the clicks that their macro
    rows count. Warns where no times tell.

    Args:
        data: A part, whose exposures were checked.
        caller: Whose name the message begins with.
    """
    clicks, (cutoff, num_windows, window) = data[CLICKS], windows(data, caller)
    if window is None and num_windows > 1:
        raise ValueError(
            f"{caller} found {num_windows} cutoffs but no 'edge_label_window' that tells which "
            f'of them belongs to each exposure.'
        )
    clock_name = 'position' if 'edge_label_position' in clicks else 'time'
    clock, history = clicks.get(f'edge_label_{clock_name}'), clicks.get(clock_name)
    has_clicks = clicks.edge_index.size(1) > 0
    if not has_clicks and (cutoff is None or clock is None):
        return
    if clock is None or (cutoff is None and history is None):
        missing = 'edge_label_time' if clock is None else clock_name
        warnings.warn(
            f'{caller} cannot check that no exposure reads its own future, as the clicks have no '
            f"'{missing}': keep the times that the dataset wrote, or make sure that the macro rows "
            f'were counted before the first exposure.',
            stacklevel=4,
        )
        return
    if cutoff is None:
        if history.max() >= clock.min():
            raise ValueError(
                f'{caller} found exposures from {clock.min().item()} on and clicks up to '
                f'{history.max().item()}: the exposures would see their own future. Use the parts '
                f'that TemporalSplit returns; to serve requests from a whole log, delete its '
                f"'edge_label_index'."
            )
        return
    early = clock < (cutoff if window is None else cutoff.index_select(0, window))
    if bool(early.any()):
        row = int(early.nonzero()[0])
        raise ValueError(
            f'{caller} found {int(early.sum())} exposures before the cutoff of the macro rows '
            f'they would read, such as row {row} at {clock[row].item()}: they would see their own '
            f'future. Use the parts that TemporalSplit returns.'
        )


def require_history(data: HeteroData, caller: str, history: HeteroData) -> None:
    r"""Raises a :class:`ValueError` unless exposures of :obj:`data` can be compared by time with
    clicks of :obj:`history`.

    Args:
        data: The part whose exposures are loaded.
        caller: Whose name the message begins with.
        history: The clicks that are read.
    """
    require_same_nodes(data, caller, history=history)
    if 'position' in history[CLICKS]:
        raise ValueError(
            f"{caller} compares times, but the data was split by each user's own log, which leaves "
            f'clicks in the history that happened later: pass history= the whole log, or split '
            f"with by='global'."
        )


def require_same_nodes(data: HeteroData, caller: str, **others: HeteroData) -> None:
    r"""Raises a :class:`ValueError` unless :obj:`others` have as many users and items as
    :obj:`data`, and the same ones, as graphs of one log do."""
    for name, other in others.items():
        require_same_ids(f'{caller} was given data with', id_maps(data), id_maps(other), repr(name))
        for node_type in ('user', 'item'):
            there, here = other[node_type].num_nodes, data[node_type].num_nodes
            if there != here:
                raise ValueError(
                    f"{caller} expects '{name}' of the same log, but it has {there} {node_type}s "
                    f'where the data has {here}.'
                )


def require_whole_log(data: HeteroData, caller: str, advice: str = '') -> None:
    r"""Raises a :class:`ValueError` if :obj:`data` is a part of a log.

    Args:
        data: What the caller was given.
        caller: Whose name the message begins with.
        advice: What to do instead. (default: :obj:`''`)
    """
    if 'cutoff' in data[CLICKS]:
        raise ValueError(
            f'{caller} expects a whole log, but this data has the cutoff '
            f'{data[CLICKS].cutoff.tolist()}: it is a part already.'
            f'{advice and f" {advice}."}'
        )
