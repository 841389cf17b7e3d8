import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData

from mag.checks import check_ids, check_tensor, check_values
from mag.loader.requests import as_floats, as_integers, as_seconds, one_for_each, row_for_each
from mag.schema import CLICKS, categoricals, require, windows


class Exposures(Dataset):
    r"""The labelled rows of a log: who was shown what and when, and what is known of it. They are
    checked here, once, and what reads them trusts them.

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
        reader (str, optional): Who asks, for messages. (default: :obj:`"Exposures"`)
        needs (Collection[str], optional): Which of :obj:`edge_label` and :obj:`edge_label_time`
            have to be there. (default: :obj:`()`)

    Attributes:
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        num_windows (int): How many windows the log rolls over.
        ranges (dict[str, tuple[int, int]]): For each context, its least value, :obj:`-1` where
            there can be none, and the number from which on there are no more.

    Raises:
        IndexError: If a user, an item or a window does not exist.
        TypeError: If ids, times or contexts are no integers, or dense features no floats.
        ValueError: If a column has another length than the others, a label is neither 0 nor 1, a
            conversion or a behavior follows no click, or a dense feature is not finite.
    """

    def __init__(
        self, data: HeteroData, reader: str = 'Exposures', *, needs: Collection[str] = ()
    ) -> None:
        require(data, reader)
        clicks = data[CLICKS]
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        self.num_windows = windows(data, reader).num
        self._rows: Tensor | None = None
        none = torch.empty(0, dtype=torch.long)
        self._columns: dict[str, Any] = {'user': none, 'item': none}
        self._contexts: dict[str, Tensor] = {}
        # When the first slot begins, and how long each is.
        self._slots: tuple[int, int] | None = None
        if 'slot_start' in clicks and 'slot_length' in clicks:
            self._slots = clicks.slot_start, clicks.slot_length
        if 'edge_label_index' in clicks:
            told = {'edge_label', 'edge_label_time'}.intersection(clicks.keys())
            require(data, reader, 'edge_label_index', *sorted(told.union(needs)))
            self._columns['user'], self._columns['item'] = clicks.edge_label_index
            self._columns['time'] = clicks.get('edge_label_time')
            self._read_window(clicks, reader)
            self._read_labels(clicks, reader)
            self._read_contexts(clicks, reader)
        size = len(self)
        x = clicks.get('edge_label_x') if 'edge_label_index' in clicks else None
        self._columns['x'] = dense(reader, 'edge_label_x', x, size)
        number = {**categoricals(clicks, 'edge_label_')}
        if 'num_slots' in clicks:
            # The slot that follows the last one of the log reads that one.
            number['slot'] = clicks.num_slots + 1
        # A log need not tell how many there are, and one without exposures does not tell whether
        # there can be none.
        self.ranges = {
            name: (
                -1 if column.numel() == 0 or int(column.min()) < 0 else 0,
                number.get(name, 2**63),
            )
            for name, column in self._contexts.items()
        }

    def __len__(self) -> int:
        return len(self._columns['user'] if self._rows is None else self._rows)

    def __getitem__(self, rows: Tensor) -> 'Exposures':
        chosen = copy.copy(self)
        chosen._rows = rows if self._rows is None else self._rows[rows]
        return chosen

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
        r"""When they were shown, int64 seconds, shape :obj:`[B]`; :obj:`None` if nothing tells."""
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
        return self._take(self._columns.get('conversion'))

    @property
    def behavior(self) -> Tensor | None:
        r"""The micro-behaviors after the click, float32, shape :obj:`[B, N]`."""
        return self._take(self._columns.get('behavior'))

    @property
    def x(self) -> Tensor:
        r"""The dense features, float32, shape :obj:`[B, F]`."""
        return self._take(self._columns['x'])

    @property
    def contexts(self) -> dict[str, Tensor]:
        r"""By name, the categorical contexts, and :obj:`slot` and :obj:`domain`, shape :obj:`[B]`
        or :obj:`[B, F]`."""
        return {name: self._take(column) for name, column in self._contexts.items()}

    def context(self, name: str) -> Any:
        r"""One of :obj:`contexts`, if the log has it."""
        return self._take(self._contexts.get(name))

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
        *,
        reads: Collection[str] | None = None,
        reader: str = 'Exposures.request',
    ) -> 'Exposures':
        r"""The rows of one request: one user and its candidate items.

        Args:
            user (int or torch.Tensor): The user, or a user for each item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, shape :obj:`[B]`.
            time (int or torch.Tensor, optional): When, int64 seconds, or a time for each item.
            x (torch.Tensor, optional): The dense features, shape :obj:`[B, F]` or :obj:`[F]`.
            contexts (dict[str, int or torch.Tensor], optional): Every context that is read, one for
                the request or one for each item. The slot need not be told where
                :class:`~mag.transforms.TimeSlots` made it: it is that of the time.
            reads (Collection[str], optional): The contexts that are read, and :obj:`"x"` if dense
                features are. By default all.
            reader (str, optional): Who asks, for messages. (default: :obj:`"Exposures.request"`)

        Raises:
            IndexError: If the user, an item or the value of a context does not exist; :obj:`-1`,
                for none, does where the log has it.
            TypeError: If an id, a time or a context is no integer, or :obj:`x` holds no numbers.
            ValueError: If there is not one of each for the request, or one for each item, a context
                is missing or unknown, or :obj:`x` is NaN or infinite.
        """
        when = None if time is None else as_seconds(time)
        told = {}
        for name, value in (contexts or {}).items():
            (told[name],) = as_integers(**{name: value})
        names = self.context_names(reads)
        slots = self._slots if 'slot' in names and 'slot' not in told and time is not None else None
        known = [name for name in names if name != 'slot' or slots is None]
        if set(told) != set(known):
            raise ValueError(
                f'A request for this log must tell {sorted(known) or "no context"}, but told '
                f'{sorted(told) or "none"}.'
            )
        for name, value in told.items():
            first, number = self.ranges[name]
            check_ids(reader, f"values of '{name}'", value, number, first)
        user, items = self._pairs(user, items, reader)
        size = items.numel()
        columns: dict[str, Any] = {'user': user, 'item': items}
        if when is not None:
            columns['time'] = one_for_each('time', when, size)
        if reads is None or 'x' in reads:
            given = torch.empty(size, 0) if x is None else as_floats('x', x)
            columns['x'] = row_for_each('x', given, size, self._columns['x'].size(1))
        for name, value in told.items():
            column = self._contexts[name]
            told[name] = (
                row_for_each(name, value.long(), size, column.size(1))
                if column.dim() == 2
                else one_for_each(name, value.long(), size)
            )
        if slots is not None:
            start, length = slots
            told['slot'] = (columns['time'] - start).clamp(min=0) // length
        candidates = copy.copy(self)
        candidates._rows, candidates._columns = None, columns
        candidates._contexts = {name: told[name] for name in names}
        return candidates

    def _pairs(self, user: Any, items: Any, reader: str) -> tuple[Tensor, Tensor]:
        r"""A user and an item for each candidate."""
        user, items = as_integers(user=user, items=items)
        if items.dim() != 1 or tuple(user.shape) not in {(), (1,), tuple(items.shape)}:
            raise ValueError(
                f'A request takes items of shape [B], and one user or a user for each item, but '
                f'got items of shape {list(items.shape)} and users of shape {list(user.shape)}.'
            )
        user, items = user.long().expand(items.shape), items.long()
        for node_type, node in (('user', user), ('item', items)):
            check_ids(reader, f'{node_type} ids', node, self.num_nodes[node_type])
        return user, items

    def _take(self, column: Tensor | None) -> Any:
        if column is None or self._rows is None:
            return column
        return column.index_select(0, self._rows)

    def _read_window(self, clicks: Any, reader: str) -> None:
        window = clicks.get('edge_label_window')
        if window is not None:
            check_tensor(reader, 'edge_label_window', window, (len(self),), torch.long)
            check_ids(reader, "windows of 'edge_label_window'", window, self.num_windows)
        self._columns['window'] = window

    def _read_labels(self, clicks: Any, reader: str) -> None:
        r"""Clicks, and what followed them: where clicks are not told, it says nothing."""
        label = clicks.get('edge_label')
        if label is None:
            return
        self._columns['label'] = label.float()
        for name, shape in (('conversion', (len(self),)), ('behavior', (len(self), 'N'))):
            value, what = clicks.get(f'edge_label_{name}'), f'edge_label_{name}'
            if value is None:
                continue
            check_tensor(reader, what, value, shape, 'numbers')
            happened = value != 0
            check_values(reader, what, value, ~happened | (value == 1), '0 and 1')
            early = (happened if value.dim() == 1 else happened.any(1)) & (label == 0)
            if bool(early.any()):
                raise ValueError(
                    f"{reader} found '{what}' in {int(early.sum())} exposures without a click, "
                    f'such as row {int(early.nonzero()[0])}: it tells what followed a click.'
                )
            self._columns[name] = value.float()

    def _read_contexts(self, clicks: Any, reader: str) -> None:
        # A log need not tell how many slots and domains there are.
        others = [name for name in ('slot', 'domain') if f'edge_label_{name}' in clicks]
        for name in sorted({*categoricals(clicks, 'edge_label_'), *others}):
            what = f'edge_label_{name}'
            self._contexts[name] = ids(reader, what, clicks[what], len(self))


def ids(reader: str, name: str, value: Any, length: int) -> Tensor:
    r"""A column of ids, or several, which is checked."""
    is_table = isinstance(value, Tensor) and value.dim() == 2
    check_tensor(reader, name, value, (length, 'F') if is_table else (length,), 'integers')
    return value


def dense(reader: str, name: str, value: Any, length: int) -> Tensor:
    r"""Dense features as a table of float32, which is checked, shape :obj:`[length, F]`; of none,
    :obj:`[length, 0]`."""
    if value is None:
        return torch.empty(length, 0)
    is_table = isinstance(value, Tensor) and value.dim() == 2
    check_tensor(reader, name, value, (length, 'F') if is_table else (length,), 'floats')
    # Models read float32, of which some doubles are beyond.
    table = value.float() if is_table else value.float().unsqueeze(1)
    check_values(reader, name, table, table.isfinite(), 'finite float32')
    return table
