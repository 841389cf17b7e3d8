from collections.abc import Mapping

import torch
from torch import Tensor

from mag.checks import check_tensor
from mag.macro_graph.counts_before import counts_before
from mag.macro_graph.key_table import KeyTable
from mag.macro_graph.target_keys import TargetKeys


class TargetState:
    r"""The counts at the target as of now, which move with every event.

    .. code-block:: python

        state = counts.state(test)
        state.update(user, item, time, clicked)
        batch = loader.request(7, items, counts=state(7, items, time=now))

    An event costs one look-up in the table of each view, however many came before. What is counted
    is what :func:`counts_before` counts of all events together: those of the very moment that is
    asked for are left out, and a decayed count has decayed until then.

    Args:
        keys (TargetKeys): The views.
        half_lives (tuple[float, ...]): Half-lives of the decayed counts, in the unit of times.
    """

    def __init__(self, keys: TargetKeys, half_lives: tuple[float, ...]) -> None:
        self._keys, self._half_lives = keys, half_lives
        self._views = [_View(half_lives) for _ in keys.views]
        self._now = torch.iinfo(torch.long).min

    def update(
        self,
        user: Tensor,
        item: Tensor,
        time: Tensor,
        clicked: Tensor,
        contexts: Mapping[str, Tensor] | None = None,
    ) -> None:
        r"""Counts events, in the order of time, also over several calls.

        Args:
            user (torch.Tensor): Who was shown something, shape :obj:`[E]`.
            item (torch.Tensor): What, shape :obj:`[E]`.
            time (torch.Tensor): When, int64 seconds, ascending, shape :obj:`[E]`.
            clicked (torch.Tensor): 1 for a click, 0 for none, shape :obj:`[E]`.
            contexts (Mapping[str, torch.Tensor], optional): The attributes of exposures that views
                name, shape :obj:`[E]`. (default: :obj:`None`)

        Raises:
            ValueError: If an event is earlier than one that came before.
        """
        self._check(user, item, time)
        check_tensor('TargetState.update', 'clicked', clicked, tuple(user.shape), 'numbers')
        if user.numel() == 0:
            return
        if int(time.min()) < self._now:
            raise ValueError(
                f'TargetState counts events in the order of time, but got one of '
                f'{int(time.min())} after one of {self._now}.'
            )
        weight = torch.stack([torch.ones(user.numel()), clicked], dim=1).double()
        for view, key in zip(self._views, self._keys(user, item, time, contexts or {})):
            view.update(key, time, weight)
        self._now = int(time[-1])

    def __call__(
        self,
        user: Tensor,
        item: Tensor,
        time: Tensor,
        contexts: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        r"""The counts strictly before each moment, shape :obj:`[B, C, 2]`, float32: exposures and
        clicks of each view, and then of each half-life.

        Args:
            user (torch.Tensor): Who will be shown something, shape :obj:`[B]`.
            item (torch.Tensor): What, shape :obj:`[B]`.
            time (torch.Tensor): When, not before the last event, shape :obj:`[B]`.
            contexts (Mapping[str, torch.Tensor], optional): As for :meth:`update`.

        Raises:
            ValueError: If a moment lies before the last event.
        """
        self._check(user, item, time)
        if time.numel() > 0 and int(time.min()) < self._now:
            raise ValueError(
                f'TargetState knows counts as of {self._now} and later, but was asked for those of '
                f'{int(time.min())}.'
            )
        keys = self._keys(user, item, time, contexts or {})
        return torch.cat([view(key, time) for view, key in zip(self._views, keys)], dim=1)

    def _check(self, user: Tensor, item: Tensor, time: Tensor) -> None:
        for name, value in (('user', user), ('item', item), ('time', time)):
            check_tensor('TargetState', name, value, tuple(user.shape[:1]), torch.long)


class _View:
    r"""The counts of one view: of each key the sums before its latest moment, decayed until then,
    and what that moment added, which nobody who asks at that moment may see."""

    def __init__(self, half_lives: tuple[float, ...]) -> None:
        self.half_lives = half_lives
        self.table = KeyTable()
        self.past = torch.zeros(0, 1 + len(half_lives), 2, dtype=torch.double)
        self.latest = torch.zeros(0, 2, dtype=torch.double)
        self.time = torch.zeros(0, dtype=torch.long)

    def update(self, key: Tensor, time: Tensor, weight: Tensor) -> None:
        before = counts_before(key, time, weight, self.half_lives).view(len(key), -1, 2)
        unique, group = key.unique(return_inverse=True)
        row = self._rows(unique)
        place = torch.arange(len(key))
        last = torch.zeros_like(unique).scatter_reduce(0, group, place, 'amax')
        is_last = time == time[last][group]
        added = torch.zeros(len(unique), 2, dtype=torch.double)
        added.index_add_(0, group[is_last], weight[is_last])
        moves = time[last] > self.time[row]
        old, new = row[moves], last[moves]
        self.past[old] = self._decayed(old, time[new]) + before[new]
        self.latest[old] = 0
        self.time[old] = time[new]
        self.latest[row] += added

    def __call__(self, key: Tensor, time: Tensor) -> Tensor:
        row = self.table.find(key)
        is_known = row >= 0
        out = torch.zeros(len(key), 1 + len(self.half_lives), 2)
        row, time = row[is_known], time[is_known]
        later = (time > self.time[row]).view(-1, 1, 1)
        out[is_known] = self._decayed(row, time).where(later, self.past[row]).float()
        return out

    def _decayed(self, row: Tensor, time: Tensor) -> Tensor:
        r"""All sums of some rows as of later moments."""
        age = (time - self.time[row]).double()
        kept = [torch.ones_like(age), *(torch.exp2(-age / life) for life in self.half_lives)]
        return (self.past[row] + self.latest[row].unsqueeze(1)) * torch.stack(kept, 1).unsqueeze(2)

    def _rows(self, key: Tensor) -> Tensor:
        row = self.table.add(key)
        size = self.table.num_rows
        if size > self.time.numel():
            more = 2 * size - self.time.numel()
            none = torch.iinfo(torch.long).min // 2
            self.past = torch.cat([self.past, self.past.new_zeros(more, *self.past.shape[1:])])
            self.latest = torch.cat([self.latest, self.latest.new_zeros(more, 2)])
            self.time = torch.cat([self.time, self.time.new_full((more,), none)])
        return row
