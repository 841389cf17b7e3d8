from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from mag.checks import check_tensor, check_values
from mag.macro_graph.counts_before import check_half_lives, counts_before
from mag.macro_graph.key_table import KeyTable
from mag.macro_graph.pending_clicks import Clicks, PendingClicks
from mag.macro_graph.target_counts import check_settled, late_clicks, without_rounding
from mag.macro_graph.target_keys import TargetKeys

# Events that are counted at once: each enters once a view, and few of them stay in the cache.
_PIECE = 2**14
# Before all events, and not so long that an age would be too large for int64.
_NEVER = torch.iinfo(torch.long).min // 2


class TargetState:
    r"""The counts at the target as of now, which move with every event.

    .. code-block:: python

        state = counts.state(test)
        state.update(user, item, time, clicked)
        batch = loader.request(7, items, counts=state(7, items, time=now))

    An event costs one look-up for each view, however many came before; the views share one table,
    so that a request of a hundred candidates takes hardly longer than that of one. What is counted
    is what :func:`counts_before` counts of all events together: those of the very moment that is
    asked for are left out, and a decayed count has decayed until then.

    A click that is known late is told with its exposure, and when it is known: it is kept until the
    clock passes that moment. A request reads those that have become known since the last event.

    Args:
        keys (TargetKeys): The views.
        half_lives (tuple[float, ...]): Half-lives of the decayed counts, in the unit of times.

    Raises:
        TypeError: If half-lives are no sequence of numbers.
        ValueError: If one is not positive.
    """

    def __init__(self, keys: TargetKeys, half_lives: tuple[float, ...]) -> None:
        check_half_lives(half_lives)
        self._keys, self._half_lives = keys, half_lives
        self._sums = _Sums(half_lives)
        # By which the keys of a view are none of another's.
        self._first_key = torch.tensor([0, *accumulate(keys.num_keys)][:-1])
        self._pending = PendingClicks()
        self._now = torch.iinfo(torch.long).min

    def update(
        self,
        user: Tensor,
        item: Tensor,
        time: Tensor,
        clicked: Tensor,
        contexts: Mapping[str, Tensor] | None = None,
        settled: Tensor | None = None,
    ) -> None:
        r"""Counts events, in the order of time, also over several calls.

        Args:
            user (torch.Tensor): Who was shown something, shape :obj:`[E]`.
            item (torch.Tensor): What, shape :obj:`[E]`.
            time (torch.Tensor): When, int64 seconds, ascending, shape :obj:`[E]`.
            clicked (torch.Tensor): 1 for a click, 0 for none, shape :obj:`[E]`.
            contexts (Mapping[str, torch.Tensor], optional): The attributes of exposures that views
                name, shape :obj:`[E]`. (default: :obj:`None`)
            settled (torch.Tensor, optional): When it is known whether it was clicked, int64
                seconds, not before :obj:`time`, shape :obj:`[E]`; by default at once.
                (default: :obj:`None`)

        Raises:
            IndexError: If a user, an item or a value of an attribute does not exist.
            TypeError: If one of them or a time is no integer.
            ValueError: If an event is earlier than one that came before, shapes differ,
                :obj:`clicked` is neither 0 nor 1, or a label was known before its exposure.
        """
        self._check(user, item, time)
        size, caller = user.numel(), 'TargetState.update'
        check_tensor(caller, 'clicked', clicked, (size,), 'numbers')
        is_good = (clicked == 0) | (clicked == 1)
        check_values(caller, 'clicked', clicked, is_good, '1 for a click and 0 for none')
        if settled is not None:
            check_tensor(caller, 'settled', settled, (size,), torch.long)
        # What unknown users see would be counted as of one.
        self._keys.require_known(user, item)
        keys = self._keys_of(user, item, time, contexts)
        if user.numel() == 0:
            return
        if int(time.min()) < self._now:
            raise ValueError(
                f'TargetState counts events in the order of time, but got one of '
                f'{int(time.min())} after one of {self._now}.'
            )
        if bool((time[1:] < time[:-1]).any()):
            raise ValueError(
                "TargetState.update expects 'time' to ascend, but it does not: sort the events."
            )
        if settled is not None:
            check_settled(caller, 'settled', settled, time)
        weight = torch.stack([torch.ones(size), clicked], dim=1).double()
        weight = weight.unsqueeze(1).repeat(1, 1 + len(self._half_lives), 1)
        if settled is not None:
            late = ((clicked == 1) & (settled > time)).nonzero().view(-1)
            weight[late, :, 1] = 0
            aged = late_clicks(settled[late] - time[late], self._half_lives)
            self._pending.add(Clicks(settled[late], keys[late], aged))
        self._now = int(time[-1])
        due = self._pending.take(self._now)
        if due is not None:
            time, order = torch.cat([time, due.settled]).sort(stable=True)
            keys = torch.cat([keys, due.keys])[order]
            weight = torch.cat([weight, due.weight])[order]
        num_views = keys.size(1)
        pieces = zip(keys.split(_PIECE), time.split(_PIECE), weight.split(_PIECE), strict=True)
        for key, when, what in pieces:
            self._sums.update(
                key.flatten(),
                when.repeat_interleave(num_views),
                what.repeat_interleave(num_views, dim=0),
            )

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
            user (torch.Tensor): Who will be shown something, :obj:`-1` for an unknown user, who
                reads what one who is new does: no exposures of their own, and of macro nodes those
                of who is in none. Shape :obj:`[B]`.
            item (torch.Tensor): What, :obj:`-1` for an unknown item, shape :obj:`[B]`.
            time (torch.Tensor): When, not before the last event, shape :obj:`[B]`.
            contexts (Mapping[str, torch.Tensor], optional): As for :meth:`update`.

        Raises:
            IndexError: If a user, an item or a value of an attribute does not exist.
            TypeError: If one of them or a time is no integer.
            ValueError: If a moment lies before the last event, or shapes differ.
        """
        self._check(user, item, time)
        if time.numel() > 0 and int(time.min()) < self._now:
            raise ValueError(
                f'TargetState knows counts as of {self._now} and later, but was asked for those of '
                f'{int(time.min())}.'
            )
        keys = self._keys_of(user, item, time, contexts)
        num_views = keys.size(1)
        counts = self._sums(keys.flatten(), time.repeat_interleave(num_views))
        counts = counts.unflatten(0, (-1, num_views))
        known = self._pending.before(int(time.max())) if time.numel() > 0 else None
        if known is not None:
            counts += self._late(known, keys, time)
        return without_rounding(counts.flatten(1, 2).float())

    def _late(self, clicks: Clicks, keys: Tensor, time: Tensor) -> Tensor:
        r"""What clicks add that have become known since the last event."""
        num_clicks = clicks.settled.numel()
        asks = clicks.weight.new_zeros(time.numel(), *clicks.weight.shape[1:])
        times, order = torch.cat([clicks.settled, time]).sort(stable=True)
        weight = torch.cat([clicks.weight, asks])[order]
        key = torch.cat([clicks.keys, keys])[order]
        out = torch.empty(order.numel(), *asks.shape[1:], dtype=torch.double)
        columns = []
        for of_view in key.unbind(1):
            before = counts_before(of_view.contiguous(), times, weight, self._half_lives)
            out[order] = before.view(out.shape)
            columns.append(out[num_clicks:].clone())
        return torch.stack(columns, dim=1)

    def _keys_of(
        self, user: Tensor, item: Tensor, time: Tensor, contexts: Mapping[str, Tensor] | None
    ) -> Tensor:
        r"""The keys of events in all views, shape :obj:`[E, V]`."""
        return torch.stack(self._keys(user, item, time, contexts or {}), dim=1) + self._first_key

    def _check(self, user: Tensor, item: Tensor, time: Tensor) -> None:
        check_tensor('TargetState', 'user', user, ('B',), torch.long)
        for name, value in (('item', item), ('time', time)):
            check_tensor('TargetState', name, value, (user.numel(),), torch.long)


class _Sums:
    r"""The counts of all views: of each key the sums before its latest moment, decayed until then,
    and what that moment added, which nobody who asks at that moment may see."""

    def __init__(self, half_lives: tuple[float, ...]) -> None:
        self.half_lives = half_lives
        self.table = KeyTable()
        # Those before and that of the moment lie together, so that memory is waited for once. The
        # first row is that of all keys of which nothing was counted.
        self.sums = torch.zeros(1, 2, 1 + len(half_lives), 2, dtype=torch.double)
        self.time = torch.full((1,), _NEVER)
        self.now = _NEVER

    def update(self, key: Tensor, time: Tensor, weight: Tensor) -> None:
        unique, group = key.unique(return_inverse=True)
        # Groups are fewer than keys could be, and so sorted faster.
        before = counts_before(group, time, weight, self.half_lives).view(len(key), -1, 2)
        row = self._rows(unique)
        place = torch.arange(len(key))
        last = torch.zeros_like(unique).scatter_reduce(0, group, place, 'amax')
        is_last = time == time[last][group]
        added = torch.zeros(len(unique), *weight.shape[1:], dtype=torch.double)
        added.index_add_(0, group[is_last], weight[is_last])
        moves = time[last] > self.time[row]
        old, new = row[moves], last[moves]
        self.sums[old, 0] = self._decayed(old, time[new]) + before[new]
        self.sums[old, 1] = 0
        self.time[old] = time[new]
        self.sums[row, 1] += added
        self.now = int(time[-1])

    def __call__(self, key: Tensor, time: Tensor) -> Tensor:
        return self._decayed(self.table.find(key) + 1, time)

    def _decayed(self, row: Tensor, time: Tensor) -> Tensor:
        r"""All sums of some rows strictly before moments that are not earlier than theirs."""
        past, latest = self.sums.index_select(0, row).unbind(1)
        if not self.half_lives and bool((time > self.now).all()):
            return past + latest
        age = (time - self.time.index_select(0, row)).double()
        sums = past.addcmul(latest, (age > 0).double().view(-1, 1, 1))
        for place, life in enumerate(self.half_lives, start=1):
            sums[:, place] *= torch.exp2(age / -life).unsqueeze(1)
        return sums

    def _rows(self, key: Tensor) -> Tensor:
        row = self.table.add(key) + 1
        size = 1 + self.table.num_rows
        if size > self.time.numel():
            more = 2 * size - self.time.numel()
            self.sums = torch.cat([self.sums, self.sums.new_zeros(more, *self.sums.shape[1:])])
            self.time = torch.cat([self.time, self.time.new_full((more,), _NEVER)])
        return row
