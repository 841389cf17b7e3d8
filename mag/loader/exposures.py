import functools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData

from mag.checks import check_ids, check_tensor, check_values
from mag.lineage import id_maps
from mag.loader.columns import dense, ids, outcome
from mag.loader.requests import dense_for_each, one_for_each, pairs, row_for_each, to_tensor
from mag.schema import CLICKS, categoricals, require, windows


class Exposures(Dataset):
    r"""The labelled rows of a log: who was shown what, when, with which features, and what
    followed. They are checked here, once, and what reads them trusts them.

    .. code-block:: python

        exposures = Exposures(train)
        rows = exposures[torch.tensor([4, 2])]
        rows.user, rows.label, rows.contexts['query']
        candidates = exposures.request(7, torch.arange(1_000), time=1_700_000_000)

    Rows of it are exposures again, whose columns are gathered when they are asked for.
    So are the candidates of a request, which have no labels.

    Args:
        data (HeteroData): A part of a log. Without :obj:`edge_label_index` there are no rows, and
            requests alone are served.
        caller (str, optional): Whose name messages begin with. (default: :obj:`"Exposures"`)
        needs (Collection[str], optional): Which of :obj:`edge_label` and :obj:`edge_label_time`
            have to be there. (default: :obj:`()`)
        outcomes (bool, optional): If set to :obj:`False`, conversions and behaviors, whose check
            takes longer than all others, are checked when they are first read, see
            :meth:`check_outcomes`. (default: :obj:`True`)

    Attributes:
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        id_maps (dict[str, str]): What the ids of the graph have grown from, if it says so.
        num_windows (int): How many windows the log rolls over.

    Raises:
        IndexError: If a user, an item or a window does not exist.
        TypeError: If ids, times or contexts are no integers, or dense features no floats.
        ValueError: If a column has another length than the others, a label is neither 0 nor 1, a
            conversion or a behavior follows no click, a dense feature is not finite, or counts are
            negative, infinite, or more of clicks than of exposures.
    """

    def __init__(
        self,
        data: HeteroData,
        caller: str = 'Exposures',
        *,
        needs: Collection[str] = (),
        outcomes: bool = True,
    ) -> None:
        require(data, caller)
        clicks = data[CLICKS]
        self.caller = caller
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        self.id_maps = id_maps(data)
        self.num_windows = windows(data, caller).num
        self._rows: Tensor | None = None
        none = torch.empty(0, dtype=torch.long)
        self._columns: dict[str, Any] = {'user': none, 'item': none}
        self._contexts: dict[str, Tensor] = {}
        # What followed the clicks, before it is checked.
        self._outcomes: dict[str, Any] = {}
        # The number of values of the contexts, where the log has it.
        self._num_values = categoricals(clicks, 'edge_label_')
        if 'num_slots' in clicks:
            # The slot that follows the last one of the log reads that one.
            self._num_values['slot'] = clicks.num_slots + 1
        # When the first slot begins, and how long each is.
        self._slots: tuple[int, int] | None = None
        if 'slot_start' in clicks and 'slot_length' in clicks:
            self._slots = clicks.slot_start, clicks.slot_length
        x = None
        if 'edge_label_index' in clicks:
            there = {'edge_label', 'edge_label_time'}.intersection(clicks.keys())
            require(data, caller, 'edge_label_index', *sorted(there.union(needs)))
            self._read(clicks)
            x = clicks.get('edge_label_x')
        self._columns['x'] = dense(caller, 'edge_label_x', x, len(self))
        if outcomes:
            self.check_outcomes()

    def __len__(self) -> int:
        return len(self._columns['user'] if self._rows is None else self._rows)

    def __getitem__(self, rows: Tensor) -> 'Exposures':
        return self._with(_rows=rows if self._rows is None else self._rows[rows])

    @property
    def rows(self) -> Any:
        r"""Which rows of the log they are, shape :obj:`[B]`; :obj:`None` if all, or candidates of a
        request."""
        return self._rows

    @property
    def user(self) -> Tensor:
        r"""Their users, shape :obj:`[B]`."""
        return self._take(self._columns['user'])

    @property
    def item(self) -> Tensor:
        r"""Their items, shape :obj:`[B]`."""
        return self._take(self._columns['item'])

    @property
    def time(self) -> Any:
        r"""When they were shown, int64 seconds, shape :obj:`[B]`; :obj:`None` of a log
        without times."""
        return self._take(self._columns.get('time'))

    @property
    def window(self) -> Tensor | None:
        r"""The window whose history each reads, shape :obj:`[B]`; :obj:`None` if it is the last of
        all."""
        return self._take(self._columns.get('window'))

    @property
    def label(self) -> Tensor | None:
        r"""1 for a click, 0 for none, float32, shape :obj:`[B]`."""
        return self._take(self._columns.get('label'))

    @property
    def conversion(self) -> Tensor | None:
        r"""1 for a click that converted, float32, shape :obj:`[B]`."""
        return self._take(self._outcome('conversion'))

    @property
    def behavior(self) -> Tensor | None:
        r"""The micro-behaviors after the click, float32, shape :obj:`[B, N]`."""
        return self._take(self._outcome('behavior'))

    @property
    def x(self) -> Tensor:
        r"""The dense features, float32, shape :obj:`[B, F]`."""
        return self._take(self._columns['x'])

    @property
    def counts(self) -> Tensor | None:
        r"""The counts at the target, float32, shape :obj:`[B, C, 2]`."""
        return self._take(self._columns.get('counts'))

    @property
    def contexts(self) -> dict[str, Tensor]:
        r"""By name, the categorical contexts, and :obj:`slot` and :obj:`domain`, shape :obj:`[B]`
        or :obj:`[B, F]`."""
        return {name: self._take(column) for name, column in self._contexts.items()}

    def context(self, name: str) -> Any:
        r"""One of :obj:`contexts`, if the log has it."""
        return self._take(self._contexts.get(name))

    @functools.cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        r"""For each context, its least value, :obj:`-1` where there can be none, and the number
        from which on there are no more. A log need not tell how many there are, and one without
        exposures does not tell whether there can be none."""
        return {
            name: (
                -1 if column.numel() == 0 or int(column.min()) < 0 else 0,
                self._num_values.get(name, 2**63),
            )
            for name, column in self._contexts.items()
        }

    def context_names(self, among: Collection[str] | None = None) -> list[str]:
        r"""The names of the contexts that the log has."""
        return [name for name in self._contexts if among is None or name in among]

    def request(
        self,
        user: int | Tensor,
        items: Tensor,
        time: int | Tensor | None = None,
        x: Tensor | None = None,
        contexts: Mapping[str, Any] | None = None,
        counts: Tensor | None = None,
        *,
        reads: Collection[str] | None = None,
        caller: str = 'Exposures.request',
    ) -> 'Exposures':
        r"""The rows of one request: one user and its candidate items.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            time (int or torch.Tensor, optional): When, int64 seconds, or a time for each item.
            x (torch.Tensor, optional): The dense features, shape :obj:`[B, F]` or :obj:`[F]`.
            contexts (dict[str, int or torch.Tensor], optional): Every context that is read, one for
                the request or one for each item. The slot may be left out where
                :class:`~mag.transforms.TimeSlots` made it: it is that of the time.
            counts (torch.Tensor, optional): The counts at the target as of now, such as a
                :class:`~mag.macro_graph.TargetState` tells, shape :obj:`[B, C, 2]`.
            reads (Collection[str], optional): The contexts that are read, :obj:`"x"` if dense
                features are, :obj:`"counts"` if those are, and :obj:`"time"` if the request has to
                have one. By default all contexts, dense features and counts.
            caller (str, optional): Whose name messages begin with.
                (default: :obj:`"Exposures.request"`)

        Raises:
            IndexError: If the user, an item or the value of a context does not exist; :obj:`-1`,
                for none, does where the log has it.
            TypeError: If an id, a time or a context is no integer, or :obj:`x` holds no numbers.
            ValueError: If there is not one of each for the request, or one for each item, a context
                is missing or unknown, :obj:`x` is NaN or infinite, or counts are negative,
                infinite, or more of clicks than of exposures.
        """
        names = self.context_names(reads)
        given = {
            name: to_tensor(name, value, 'hold integer ids')
            for name, value in (contexts or {}).items()
        }
        is_timed = time is not None or (reads is not None and 'time' in reads)
        when = to_tensor('time', time, 'be int64 seconds') if is_timed else None
        is_placed = 'slot' in names and 'slot' not in given and is_timed and self._slots is not None
        wanted = [name for name in names if name != 'slot' or not is_placed]
        if set(given) != set(wanted):
            raise ValueError(
                f'A request for this log must tell {sorted(wanted) or "no context"}, but told '
                f'{sorted(given) or "none"}.'
            )
        for name, value in given.items():
            first, number = self.ranges[name]
            check_ids(caller, f"values of '{name}'", value, number, first)
        user, items = pairs(caller, user, items, self.num_nodes)
        size = items.numel()
        columns: dict[str, Any] = {'user': user, 'item': items}
        if when is not None:
            columns['time'] = one_for_each('time', when, size)
        if reads is None or 'x' in reads:
            columns['x'] = dense_for_each(x, size, self._columns['x'].size(1))
        if 'counts' in self._columns and (reads is None or 'counts' in reads):
            shape = (size, *self._columns['counts'].shape[1:])
            check_tensor(caller, 'counts', counts, shape, 'floats')
            columns['counts'] = _checked_counts(caller, 'counts', torch.as_tensor(counts))
        elif counts is not None:
            raise ValueError(
                f'{caller} was told counts, but the log has none: apply TargetCounts, or leave '
                f'them out.'
            )
        for name, value in given.items():
            column = self._contexts[name]
            given[name] = (
                row_for_each(name, value.long(), size, column.size(1))
                if column.dim() == 2
                else one_for_each(name, value.long(), size)
            )
        if is_placed and self._slots is not None:
            start, length = self._slots
            given['slot'] = (columns['time'] - start).clamp(min=0) // length
        return self._with(
            _rows=None,
            _columns=columns,
            _contexts={name: given[name] for name in names},
            _outcomes={},
        )

    def check_outcomes(self) -> None:
        r"""Raises unless conversions and behaviors are 0 or 1, and follow a click.

        Raises:
            TypeError: If one is no tensor of numbers.
            ValueError: If one has another length than there are exposures, holds something else, or
                follows no click.
        """
        for name in self._outcomes:
            self._outcome(name)

    def _with(self, **attributes: Any) -> 'Exposures':
        r"""A copy with other attributes; copy.copy takes longer than a small batch."""
        other = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, **attributes}
        return other

    def _take(self, column: Tensor | None) -> Any:
        if column is None or self._rows is None:
            return column
        return column.index_select(0, self._rows)

    def _read(self, clicks: Any) -> None:
        self._columns['user'], self._columns['item'] = clicks.edge_label_index
        self._columns['time'] = clicks.get('edge_label_time')
        self._columns['window'] = window = clicks.get('edge_label_window')
        if window is not None:
            check_tensor(self.caller, 'edge_label_window', window, (len(self),), torch.long)
            what = "windows of 'edge_label_window'"
            check_ids(self.caller, what, window, self.num_windows)
        if 'edge_label_counts' in clicks:
            counts = clicks.edge_label_counts
            check_tensor(self.caller, 'edge_label_counts', counts, (len(self), 'C', 2), 'floats')
            self._columns['counts'] = _checked_counts(self.caller, 'edge_label_counts', counts)
        # Without clicks, what followed them says nothing.
        if 'edge_label' in clicks:
            self._columns['label'] = clicks.edge_label.float()
            self._outcomes = {
                name: clicks[f'edge_label_{name}']
                for name in ('conversion', 'behavior')
                if f'edge_label_{name}' in clicks
            }
        # A log need not tell how many slots and domains there are.
        others = [name for name in ('slot', 'domain') if f'edge_label_{name}' in clicks]
        for name in sorted({*categoricals(clicks, 'edge_label_'), *others}):
            what = f'edge_label_{name}'
            self._contexts[name] = ids(self.caller, what, clicks[what], len(self))

    def _outcome(self, name: str) -> Any:
        r"""What followed the clicks, of all rows; it is checked when it is first read."""
        if name in self._outcomes and name not in self._columns:
            value, label = self._outcomes[name], self._columns['label']
            self._columns[name] = outcome(self.caller, name, value, label)
        return self._columns.get(name)


def _checked_counts(caller: str, name: str, counts: Tensor) -> Tensor:
    r"""Counts as float32, which were checked: what reads them would make NaN of others."""
    counts = counts.float()
    seen, clicked = counts.unbind(-1)
    # So that NaN is refused, too.
    is_good = (clicked >= 0) & (clicked <= seen) & (seen < torch.inf)
    expected = 'clicks from 0 to the exposures beside them, which are finite'
    check_values(caller, name, clicked, is_good, expected)
    return counts
