from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mag.macro_graph.counts_before import counts_before
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
        settled (torch.Tensor or None): When that was known, shape :obj:`[E]`; by default at once.
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
    num_rows = rows.time.numel()
    clicked = torch.as_tensor(events.clicked, dtype=torch.float)
    late = torch.empty(0, dtype=torch.long)
    times = [events.time]
    weights = [torch.stack([torch.ones_like(clicked), clicked], dim=1)]
    if events.settled is not None:
        # A click that was known late is an event of its own.
        late = clicked.nonzero().view(-1)
        times.append(events.settled[late])
        weights[0][:, 1] = 0
        weights.append(torch.tensor([[0.0, 1.0]]).expand(late.numel(), 2))
    weights.append(torch.zeros(num_rows, 2))
    time, order = torch.cat([*times, rows.time]).sort(stable=True)
    weight = torch.cat(weights)[order]
    num_before = order.numel() - num_rows
    is_row = order >= num_before
    row = order[is_row] - num_before
    columns = []
    of_events = keys(events.user, events.item, events.clock, events.contexts)
    of_rows = keys(rows.user, rows.item, rows.clock, rows.contexts)
    for event, asked in zip(of_events, of_rows, strict=True):
        key = torch.cat([event, event[late], asked])[order]
        before = counts_before(key, time, weight, half_lives)[is_row]
        column = torch.empty(num_rows, 1 + len(half_lives), 2)
        column[row] = before.view(num_rows, -1, 2).float()
        columns.append(column)
    return torch.cat(columns, dim=1)
