from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mag.checks import check_values
from mag.macro_graph.counts_before import counts_before
from mag.macro_graph.key_table import SPREAD
from mag.macro_graph.target_keys import TargetKeys


class Seen(NamedTuple):
    r"""Exposures, as far as views count them.

    Attributes:
        user (torch.Tensor): Who was shown something, shape :obj:`[E]`.
        item (torch.Tensor): What, shape :obj:`[E]`.
        time (torch.Tensor): When, shape :obj:`[E]`.
        clock (torch.Tensor): The same on the clock that macro nodes become known on, shape
            :obj:`[E]`.
        contexts (Mapping[str, torch.Tensor]): The attributes of exposures that views name, shape
            :obj:`[E]` each.
        clicked (torch.Tensor or None): 1 for a click, 0 for none, shape :obj:`[E]`.
        settled (torch.Tensor or None): When that was known, not before the exposure, shape
            :obj:`[E]`; by default at once.
    """

    user: Tensor
    item: Tensor
    time: Tensor
    clock: Tensor
    contexts: Mapping[str, Tensor]
    clicked: Tensor | None = None
    settled: Tensor | None = None


def target_counts(
    keys: TargetKeys, events: Seen, rows: Seen, half_lives: tuple[float, ...] = ()
) -> Tensor:
    r"""The exposures and clicks that each row's views hold strictly before its time.

    A click that was known late counts from then on, and is as old as its exposure: it has decayed
    as much, and no row has more clicks than exposures.

    Args:
        keys (TargetKeys): The views.
        events (Seen): What is counted.
        rows (Seen): Who asks; what they clicked is not read.
        half_lives (tuple[float, ...], optional): Half-lives of further, decayed counts.
            (default: :obj:`()`)

    Returns:
        Exposures and clicks, float32, shape :obj:`[L, C, 2]`: for each view a column, and then one
        for each half-life.
    """
    num_rows, num_ages = rows.time.numel(), 1 + len(half_lives)
    clicked = torch.as_tensor(events.clicked, dtype=torch.float)
    late = torch.empty(0, dtype=torch.long)
    times = [events.time]
    weights = [torch.stack([torch.ones_like(clicked), clicked], dim=1)]
    if events.settled is not None:
        # A click that was known late is an event of its own.
        late = ((clicked > 0) & (events.settled > events.time)).nonzero().view(-1)
        times.append(events.settled[late])
        weights[0][late, 1] = 0
        weights[0] = weights[0].unsqueeze(1).expand(-1, num_ages, 2)
        weights.append(late_clicks(events.settled[late] - events.time[late], half_lives))
    # A row that is an event reads what that event does; others are events that weigh nothing.
    event = _find(events, rows)
    other = (event < 0).nonzero().view(-1)
    first = clicked.numel() + late.numel()
    event[other] = first + torch.arange(other.numel())
    weights.append(torch.zeros(other.numel(), *weights[0].shape[1:]))
    time, order = torch.cat([*times, rows.time[other]]).sort(stable=True)
    weight = torch.cat(weights)[order]
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel())
    place = place[event]
    contexts = {name: value[other] for name, value in rows.contexts.items()}
    of_events = keys(events.user, events.item, events.clock, events.contexts)
    of_others = keys(rows.user[other], rows.item[other], rows.clock[other], contexts)
    columns = []
    for key, asked in zip(of_events, of_others, strict=True):
        key = torch.cat([key, key[late], asked])[order]
        before = counts_before(key, time, weight, half_lives, place)
        columns.append(before.view(num_rows, num_ages, 2).float())
    counts = torch.cat(columns, dim=1)
    return without_rounding(counts) if half_lives else counts


def _find(events: Seen, rows: Seen) -> Tensor:
    r"""The event of each row, of the same user, item, moments and contexts, shape :obj:`[L]`;
    :obj:`-1` where none is found, which may have several of its user, item and moment."""
    code, order = _code(events).sort()
    asked, row = _code(rows).sort()
    event = torch.full_like(row, -1)
    if code.numel() == 0:
        return event
    # Sorted rows are found several times faster than others.
    found = order[torch.searchsorted(code, asked).clamp_(max=code.numel() - 1)]
    is_same = torch.ones_like(row, dtype=torch.bool)
    pairs = [(events.user, rows.user), (events.item, rows.item)]
    pairs += [(events.time, rows.time), (events.clock, rows.clock)]
    pairs += [(events.contexts[name], value) for name, value in rows.contexts.items()]
    for known, own in pairs:
        is_same &= known[found] == own[row]
    event[row] = found.where(is_same, -1)
    return event


def _code(seen: Seen) -> Tensor:
    r"""A number that exposures of one user, item and moment share, and hardly any others."""
    return (seen.user * SPREAD + seen.item) * SPREAD + seen.time.long()


def late_clicks(delay: Tensor, half_lives: tuple[float, ...]) -> Tensor:
    r"""What clicks weigh that were known some time after their exposures, shape
    :obj:`[E, 1 + H, 2]`, float64.

    Args:
        delay (torch.Tensor): How much later, shape :obj:`[E]`.
        half_lives (tuple[float, ...]): Half-lives in the unit of :obj:`delay`.
    """
    weight = torch.zeros(delay.numel(), 1 + len(half_lives), 2, dtype=torch.double)
    weight[:, 0, 1] = 1
    for place, life in enumerate(half_lives, start=1):
        weight[:, place, 1] = torch.exp2(-delay.double() / life)
    return weight


def without_rounding(counts: Tensor) -> Tensor:
    r"""Counts, shape :obj:`[L, C, 2]`, whose clicks no rounding lifts above their exposures."""
    seen, clicked = counts.unbind(-1)
    return torch.stack([seen, clicked.minimum(seen)], dim=-1)


def check_settled(caller: str, name: str, settled: Tensor, time: Tensor) -> None:
    r"""Raises a :class:`ValueError` if a label was known before its exposure, as in no log."""
    check_values(caller, name, settled, settled >= time, 'no time before the exposure')
