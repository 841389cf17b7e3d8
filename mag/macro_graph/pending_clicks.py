from typing import NamedTuple

import torch
from torch import Tensor


class Clicks(NamedTuple):
    r"""Clicks that become known late, in the order in which they do.

    Attributes:
        settled (torch.Tensor): When each is known, ascending, shape :obj:`[P]`.
        keys (torch.Tensor): Its key in each view, shape :obj:`[P, V]`.
        weight (torch.Tensor): What it weighs from then on, shape :obj:`[P, 1 + H, 2]`.
    """

    settled: Tensor
    keys: Tensor
    weight: Tensor


class PendingClicks:
    r"""Clicks that are not known yet, which leave in the order in which they become known.

    They lie in sorted runs, of which each is twice as long as the next at least: to add one takes
    the logarithm of their number on average, and so does a look at which come first.
    """

    def __init__(self) -> None:
        self._runs: list[Clicks] = []

    def __len__(self) -> int:
        return sum(run.settled.numel() for run in self._runs)

    def add(self, clicks: Clicks) -> None:
        r"""Keeps clicks, which come in any order."""
        run = _in_order([clicks])
        while self._runs and self._runs[-1].settled.numel() < 2 * run.settled.numel():
            run = _in_order([self._runs.pop(), run])
        self._runs.append(run)

    def take(self, moment: int) -> Clicks | None:
        r"""Gives away those that are known at a moment, in order, if there are any."""
        due, left = [], []
        for run in self._runs:
            place = int(torch.searchsorted(run.settled, moment, right=True))
            due.append(_part(run, slice(0, place)))
            left.append(_part(run, slice(place, None)))
        self._runs = [run for run in left if run.settled.numel() > 0]
        return _joined(due)

    def before(self, moment: int) -> Clicks | None:
        r"""Those that are known strictly before a moment, in order, if there are any."""
        return _joined(
            [
                _part(run, slice(0, int(torch.searchsorted(run.settled, moment))))
                for run in self._runs
            ]
        )


def _part(run: Clicks, place: slice) -> Clicks:
    return Clicks(*(column[place] for column in run))


def _joined(runs: list[Clicks]) -> Clicks | None:
    runs = [run for run in runs if run.settled.numel() > 0]
    return _in_order(runs) if runs else None


def _in_order(runs: list[Clicks]) -> Clicks:
    columns = [torch.cat(column) for column in zip(*runs, strict=True)]
    order = columns[0].sort(stable=True).indices
    return Clicks(*(column[order] for column in columns))
