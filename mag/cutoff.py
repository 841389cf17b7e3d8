r"""The guards against the future: what was fitted or read before a cutoff, and what comes after
it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_ids, check_tensor
from mag.schema import CLICKS, _checked_cutoff, windows


def history_clock(data: HeteroData) -> Tensor:
    r"""The clock that :obj:`cutoff` is measured on, one value a click, shape :obj:`[E]`:
    :obj:`position` in the user's own log if the split was made per user, else :obj:`time`."""
    return data[CLICKS][_clock_name(data)]


def window_of_click(data: HeteroData, reader: str) -> tuple[Tensor | None, int]:
    r"""The first window whose history holds each click.

    Returns:
        The window of each click, shape :obj:`[E]`, and the number of windows; or :obj:`None` and 1
        if the data does not roll: with one cutoff and no :obj:`edge_label_window`.

    Raises:
        IndexError: If an exposure is of a window that does not exist.
        ValueError: If a click lies at or after the last cutoff, or the cutoffs do not ascend.
    """
    clicks = data[CLICKS]
    cutoff, num_windows, of_label = windows(data, reader)
    if cutoff is None:
        return None, 1
    if _clock_name(data) not in clicks:
        raise ValueError(
            f"{reader} found a 'cutoff' but no 'time' to compare with it in "
            f'data{list(CLICKS)}, which has {list(clicks.keys())}.'
        )
    clock = history_clock(data)
    check_tensor(reader, _clock_name(data), clock, (clicks.edge_index.size(1),), 'numbers')
    if of_label is not None:
        check_ids(reader, "windows of 'edge_label_window'", of_label, num_windows)
    if clock.numel() > 0 and bool(clock.max() >= cutoff.max()):
        raise ValueError(
            f'{reader} found clicks up to {clock.max().item()}, but the cutoff of this data is '
            f'{cutoff.max().item()}: the history must lie strictly before it. Was the data edited '
            f'after TemporalSplit?'
        )
    if num_windows == 1 and of_label is None:
        return None, 1
    return torch.bucketize(clock, cutoff, right=True), num_windows


class Cutoff(NamedTuple):
    r"""A moment on one of the two clocks that a log is split by."""

    #: :obj:`'time'`, or :obj:`'position'` in the user's own log.
    clock: str
    #: Infinite if nothing tells it.
    moment: float

    def __str__(self) -> str:
        return 'an unknown time' if self.moment == torch.inf else f'{self.clock} {self.moment}'


def first_cutoff(data: HeteroData, reader: str) -> Cutoff:
    r"""The moment as of which something is fitted on :obj:`data`: the first cutoff of a part. Of a
    log without one everything was seen, until after its last click.

    Args:
        data: What it is fitted on.
        reader: The name of the caller, for the message.

    Raises:
        ValueError: If the cutoff has a wrong shape.
    """
    clicks = data[CLICKS]
    if 'cutoff' in clicks:
        return Cutoff(_clock_name(data), _checked_cutoff(reader, clicks.cutoff).min().item())
    time = clicks.get('time')
    is_known = isinstance(time, Tensor) and time.numel() > 0
    return Cutoff('time', int(time.max()) + 1 if is_known else torch.inf)


def require_not_earlier(data: HeteroData, reader: str, fitted: Cutoff) -> None:
    r"""Raises a :class:`ValueError` if what was fitted on one part is used on an earlier one, whose
    future it knows. Data without a cutoff, such as a log to serve, is of any time.

    Args:
        data: What the caller was given.
        reader: The name of the caller, for the message.
        fitted: The :func:`first_cutoff` of what it was fitted on.
    """
    if 'cutoff' not in data[CLICKS]:
        return
    given = first_cutoff(data, reader)
    # So that NaN is refused, too.
    if given.clock == fitted.clock and given.moment >= fitted.moment:
        return
    reason = (
        'its rows may read their own future'
        if given.clock == fitted.clock
        else "a time and a position in a user's own log cannot be compared"
    )
    raise ValueError(
        f'{reader} was fitted as of {fitted}, but the first cutoff of this data is {given}, and '
        f'{reason}: fit it on the training part of the same split.'
    )


def require_whole_log(data: HeteroData, reader: str, advice: str = '') -> None:
    r"""Raises a :class:`ValueError` if :obj:`data` is a part of a log.

    Args:
        data: What the caller was given.
        reader: The name of the caller, for the message.
        advice: What to do instead. (default: :obj:`''`)
    """
    if 'cutoff' in data[CLICKS]:
        raise ValueError(
            f'{reader} expects a whole log, but this data has the cutoff '
            f'{data[CLICKS].cutoff.tolist()}: it is a part already.'
            f'{advice and f" {advice}."}'
        )


def _clock_name(data: HeteroData) -> str:
    return 'position' if 'position' in data[CLICKS] else 'time'
