from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from mag.checks import (
    check_choice,
    check_ids,
    check_integers,
    check_keys,
    check_numbers,
    check_tensor,
)
from mag.schema import NEIGHBOR_TYPE, hops, require, windows
from mag.unknown import known_places, take_known

# Edges whose counts are looked at, or copied, at once: they stay in the cache.
_CHUNK = 2**14
# Bytes of a table of which few rows are held that are made at once: they stay in the cache.
_PIECE = 2**20
# The largest count that each type holds, smallest type first.
_LARGEST = {dtype: torch.iinfo(dtype).max for dtype in (torch.uint8, torch.int16, torch.int32)}
# Those of recent lists, which hold -1.
_ID_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64)


class MacroRow(NamedTuple):
    r"""What the macro graph tells of :math:`B` nodes of one type.

    Attributes:
        hops (tuple[torch.Tensor, ...]): Their counts over the macro nodes of hop 1, 2, ..., each of
            shape :obj:`[B, M_k]`, float32.
        recent (torch.Tensor): Their last neighbors, newest last, :obj:`-1` where there is none,
            shape :obj:`[B, R]`.
    """

    hops: tuple[Tensor, ...]
    recent: Tensor


class MacroRows(Dataset):
    r"""The macro rows of all nodes, as of every window. Training and requests read the same.

    .. code-block:: python

        macro_rows = MacroRows(train)
        hops, recent = macro_rows.rows('user', torch.tensor([3, 7]), torch.tensor([0, 11]))

    Rows are kept one a node and window, and gathered by indexing, as float32. They are held in the
    smallest type that counts fit in exactly, for each table: a byte up to 255, two up to 32,767,
    else four; recent lists likewise.
    With :obj:`asked`, only the rows that are asked for are made and held, and those as of the last
    window, which requests read; all are held where that takes no more.

    Args:
        data (HeteroData): A part that went through :class:`~mag.transforms.MacroCoarsen`, and
            :class:`~mag.transforms.RecentNeighbors` (without, the recent lists are empty).
        max_bytes (int, optional): What the rows may take in memory before they are refused.
            (default: 8 GiB)
        asked (dict[str, tuple[torch.Tensor, torch.Tensor]], optional): For :obj:`"user"` and
            :obj:`"item"`, nodes and the windows as of which their rows will be asked for, such as
            those of the labels, int64, shape :obj:`[L]` each. By default all nodes as of all
            windows.
        caller (str, optional): Whose name messages begin with. (default: :obj:`"MacroRows"`)

    Attributes:
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        num_windows (int): How many windows there are.
        hops (dict[str, tuple[torch.Tensor, ...]]): For each node type, a table of counts for each
            hop, whose rows are those held, in the order of nodes and then of windows.
        recent (dict[str, torch.Tensor]): The recent lists, likewise.
        place (dict[str, torch.Tensor or None]): For each node type, the row of node :math:`v` as of
            window :math:`s`, at :math:`v S + s`, :obj:`-1` if it is not held; :obj:`None` if all
            are held, and it is :math:`v S + s`.

    Raises:
        IndexError: If a macro edge, a recent list or what is asked for names a node or a window
            that does not exist.
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`, or nodes or windows
            are no integers.
        ValueError: If the macro edges are missing, hold counts that are negative or not finite,
            have another number of windows than the data, or would take more than
            :obj:`max_bytes`.
    """

    def __init__(
        self,
        data: HeteroData,
        max_bytes: int = 8 * 2**30,
        *,
        asked: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        caller: str = 'MacroRows',
    ) -> None:
        require(data, caller)
        check_integers(1, max_bytes=max_bytes)
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        self.num_windows = windows(data, caller).num
        if asked is not None:
            self._check_asked(asked, caller)
        counts = {name: self._counts(data, name, caller) for name in self.num_nodes}
        recent = {name: self._recent(data, name, caller) for name in self.num_nodes}
        tables: dict[str, list[_Table]] = {name: [*of, recent[name]] for name, of in counts.items()}
        held = {
            name: None if asked is None else self._held(name, *asked[name], tables[name])
            for name in self.num_nodes
        }
        self._refuse_too_large(tables, held, max_bytes, caller)
        self.place = {name: self._place(name, cells) for name, cells in held.items()}
        self.hops = {name: tuple(hop.rows(held[name]) for hop in of) for name, of in counts.items()}
        self.recent = {name: lists.rows(held[name]) for name, lists in recent.items()}

    def rows(self, node_type: str, node: Tensor, window: Tensor | None = None) -> MacroRow:
        r"""The macro rows of some nodes as of some windows.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            node (torch.Tensor): The nodes, int64, :obj:`-1` for an unknown one, whose counts are 0
                and who has no neighbors, shape :obj:`[B]`.
            window (torch.Tensor, optional): The window of each, shape :obj:`[B]`. By default the
                last.

        Raises:
            IndexError: If a node or a window does not exist, or its row was not asked for.
            TypeError: If one is no integer.
            ValueError: If there is not one window for each node, or no such node type.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_tensor('MacroRows', 'node', node, ('B',), torch.long)
        check_ids('MacroRows', f'{node_type} ids', node, self.num_nodes[node_type], first=-1)
        if window is not None:
            check_tensor('MacroRows', 'window', window, (node.numel(),), torch.long)
            check_ids('MacroRows', 'windows', window, self.num_windows)
            self._require_held(node_type, node, window)
        return self.gather(node_type, node, window)

    def gather(self, node_type: str, node: Tensor, window: Tensor | None = None) -> MacroRow:
        r"""What :meth:`rows` returns, of nodes and windows that are known to exist and to be held:
        it would take a window that does not exist for one of another node."""
        known = known_places(node)
        row, place = self._cell(node, window), self.place[node_type]
        if place is not None:
            # Of an unknown node no row is read.
            row = place.index_select(0, row if known is None else row.clamp_(min=0))
        return MacroRow(
            tuple(take_known(table, row, known, 0).float() for table in self.hops[node_type]),
            take_known(self.recent[node_type], row, known, -1).long(),
        )

    def _cell(self, node: Tensor, window: Tensor | None) -> Tensor:
        if self.num_windows == 1:
            return node
        last = self.num_windows - 1
        return torch.add(last if window is None else window, node, alpha=self.num_windows)

    def _require_held(self, node_type: str, node: Tensor, window: Tensor) -> None:
        place = self.place[node_type]
        if place is None:
            return
        is_missing = (place[self._cell(node, window).clamp(min=0)] < 0) & (node >= 0)
        if bool(is_missing.any()):
            first = int(is_missing.nonzero()[0])
            raise IndexError(
                f'MacroRows holds no row of {int(is_missing.sum())} of {node.numel()} {node_type}s,'
                f' such as {int(node[first])} as of window {int(window[first])}: tell them in '
                f"'asked', or ask as of the last window, {self.num_windows - 1}."
            )

    def _check_asked(self, asked: Mapping[str, tuple[Tensor, Tensor]], caller: str) -> None:
        check_keys(self.num_nodes, asked=asked)
        for name, (node, window) in asked.items():
            check_tensor(caller, f'nodes of asked[{name!r}]', node, ('L',), torch.long)
            check_ids(caller, f'{name} ids that are asked for', node, self.num_nodes[name])
            shape = (node.numel(),)
            check_tensor(caller, f'windows of asked[{name!r}]', window, shape, torch.long)
            check_ids(caller, f'windows that are asked for {name}s', window, self.num_windows)

    def _held(
        self, node_type: str, node: Tensor, window: Tensor, tables: list['_Table']
    ) -> Tensor | None:
        r"""The cells, :math:`v S + s`, whose rows are held, ascending; :obj:`None` if all are."""
        is_held = torch.zeros(self.num_nodes[node_type], self.num_windows, dtype=torch.bool)
        is_held[:, -1] = True
        # NumPy, as this is most of what asking for rows costs, and PyTorch takes twice as long.
        is_held.view(-1).numpy()[self._cell(node, window).numpy()] = True
        cells = is_held.view(-1).nonzero().view(-1)
        all_bytes = is_held.numel() * sum(table.row_bytes for table in tables)
        return cells if _held_bytes(tables, cells) < all_bytes else None

    def _place(self, node_type: str, held: Tensor | None) -> Tensor | None:
        if held is None:
            return None
        dtype = _place_type(held)
        place = torch.full((self.num_nodes[node_type] * self.num_windows,), -1, dtype=dtype)
        return place.index_copy_(0, held, torch.arange(held.numel(), dtype=dtype))

    def _counts(self, data: HeteroData, node_type: str, caller: str) -> list['_Counts']:
        r"""The macro edges of each hop."""
        edge_types = hops(data, node_type)
        if not edge_types:
            raise ValueError(
                f"{caller} found no macro edges of '{node_type}' in the data: apply MacroCoarsen "
                f'first.'
            )
        return [self._count(data, edge_type, caller) for edge_type in edge_types]

    def _count(self, data: HeteroData, edge_type: EdgeType, caller: str) -> '_Counts':
        macro_type, hop, node_type = edge_type
        num_nodes, num_macro = self.num_nodes[node_type], data[macro_type].num_nodes
        edge_index, what = data[edge_type].get('edge_index'), f'of {hop} of {node_type}s'
        check_tensor(caller, f'edge_index {what}', edge_index, (2, 'E'), torch.long)
        macro, node = edge_index
        check_ids(caller, f'macro nodes {what}', macro, num_macro)
        check_ids(caller, f'{node_type} ids of {hop}', node, num_nodes)
        # Not view(..., -1): without any edge, nothing would tell how many windows there are.
        weight = self._by_window(data[edge_type].get('edge_weight'), 2)
        shape = macro.numel(), self.num_windows
        check_tensor(caller, f'edge_weight {what}', weight, shape, 'numbers')
        bounds = [bound.item() for bound in weight.aminmax()] if weight.numel() > 0 else [0, 0]
        for bound in bounds:
            check_numbers('[0, inf)', **{f'edge_weight {what}': bound})
        if bool((node[1:] < node[:-1]).any()):
            order = node.argsort()
            macro, node, weight = macro[order], node[order], weight[order]
        size = num_nodes, self.num_windows, num_macro
        return _Counts(size, _smallest_type(weight, bounds[1]), macro, node, weight)

    def _by_window(self, value: Any, dim: int) -> Any:
        r"""A value with a dimension of windows, which may be missing where there is one window."""
        is_short = isinstance(value, Tensor) and value.dim() == dim - 1
        return value.unsqueeze(1) if is_short and self.num_windows == 1 else value

    def _refuse_too_large(
        self,
        tables: dict[str, list['_Table']],
        held: dict[str, Tensor | None],
        max_bytes: int,
        caller: str,
    ) -> None:
        num_bytes = sum(_held_bytes(of, held[name]) for name, of in tables.items())
        if num_bytes > max_bytes:
            raise ValueError(
                f'{caller} would hold the counts of {self.num_nodes["user"]:,} users and '
                f'{self.num_nodes["item"]:,} items over {self.num_windows} windows in '
                f'{num_bytes / 2**20:,.0f} MiB, more than the {max_bytes / 2**20:,.0f} MiB of '
                f"'max_bytes': take fewer windows or clusters, or a larger 'max_bytes'."
            )

    def _recent(self, data: HeteroData, node_type: str, caller: str) -> '_Lists':
        num_nodes, other = self.num_nodes[node_type], NEIGHBOR_TYPE[node_type]
        recent, num_others = data[node_type].get('recent'), self.num_nodes[other]
        if recent is None:
            recent = torch.empty(num_nodes, self.num_windows, 0, dtype=torch.long)
        recent = self._by_window(recent, 3)
        what, shape = f"data['{node_type}'].recent", (num_nodes, self.num_windows, 'num')
        check_tensor(caller, what, recent, shape, torch.long)
        check_ids(caller, f'{other}s in {what}', recent, num_others, first=-1)
        dtype = next(dtype for dtype in _ID_TYPES if num_others - 1 <= torch.iinfo(dtype).max)
        return _Lists((num_nodes, self.num_windows, recent.size(2)), dtype, recent)


@dataclass
class _Table:
    r"""What tells something of each node as of each window, of which few may be held.

    Attributes:
        shape: Nodes, windows and columns.
        dtype: The type that holds what it tells.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.shape[2] * self.dtype.itemsize

    def rows(self, held: Tensor | None) -> Tensor:
        r"""The rows of some cells, :math:`v S + s`, ascending, or of all."""
        num_nodes, num_windows, width = self.shape
        if held is None:
            table = torch.empty(self.shape, dtype=self.dtype)
            self.fill(table, 0, num_nodes)
            return table.flatten(0, 1)
        table = torch.empty(held.numel(), width, dtype=self.dtype)
        # Whole nodes, as the counts of an edge as of all windows lie side by side.
        step = min(max(_PIECE // max(num_windows * self.row_bytes, 1), 1), num_nodes)
        starts = torch.arange(0, num_nodes + step, max(step, 1))
        cuts = torch.searchsorted(held, starts * num_windows).tolist()
        piece = torch.empty(step, num_windows, width, dtype=self.dtype)
        for start, first, last in zip(starts.tolist(), cuts, cuts[1:]):
            end = min(start + step, num_nodes)
            self.fill(piece[: end - start], start, end)
            cells = held[first:last] - start * num_windows
            torch.index_select(piece.flatten(0, 1), 0, cells, out=table[first:last])
        return table

    def fill(self, piece: Tensor, start: int, end: int) -> None:
        r"""Writes what it tells of the nodes from :obj:`start` to :obj:`end`, shape
        :obj:`[n, S, M]`."""
        raise NotImplementedError


@dataclass
class _Counts(_Table):
    r"""The macro edges of one hop, in the order of the nodes."""

    macro: Tensor
    node: Tensor
    weight: Tensor

    def fill(self, piece: Tensor, start: int, end: int) -> None:
        piece.zero_()
        first, last = torch.searchsorted(self.node, torch.tensor([start, end])).tolist()
        # In pieces, as a copy of all weights in another type may be as large as the table.
        for macro, node, weight in zip(
            *(of[first:last].split(_CHUNK) for of in (self.macro, self.node, self.weight)),
            strict=True,
        ):
            piece[node - start, :, macro] = weight.to(self.dtype)


@dataclass
class _Lists(_Table):
    r"""The recent lists."""

    recent: Tensor

    def fill(self, piece: Tensor, start: int, end: int) -> None:
        piece.copy_(self.recent[start:end])


def _held_bytes(tables: list[_Table], held: Tensor | None) -> int:
    r"""The bytes of the rows of some cells, or of all, and of what tells where they are."""
    num_nodes, num_windows, _ = tables[0].shape
    num_cells = num_nodes * num_windows
    row_bytes = sum(table.row_bytes for table in tables)
    if held is None:
        return num_cells * row_bytes
    return held.numel() * row_bytes + num_cells * _place_type(held).itemsize


def _place_type(held: Tensor) -> torch.dtype:
    return torch.int32 if held.numel() <= torch.iinfo(torch.int32).max else torch.long


def _smallest_type(weight: Tensor, high: float) -> torch.dtype:
    r"""The type of the fewest bytes that holds weights of 0 and more exactly, or float32."""
    is_float = weight.is_floating_point() and weight.numel() > 0
    # Not any(), which takes three times as long.
    if is_float and any(float(part.frac().max()) > 0 for part in weight.split(_CHUNK)):
        return torch.float32
    return next((dtype for dtype, largest in _LARGEST.items() if high <= largest), torch.float32)
