import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from mag.checks import check_choice, check_ids, check_integers, check_numbers, check_tensor
from mag.schema import NEIGHBOR_TYPE, hops, require, windows
from mag.unknown import known_places, take_known

# Edges whose counts are copied at once.
_CHUNK = 2**20
# The largest count that each type holds, smallest type first.
_LARGEST = {dtype: torch.iinfo(dtype).max for dtype in (torch.uint8, torch.int16, torch.int32)}


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

    Rows are kept dense, one a node and window, and gathered by indexing, as float32. They are held
    in the smallest type that counts fit in exactly, for each table: a byte up to 255, two up to
    32,767, else four.

    Args:
        data (HeteroData): A part that went through :class:`~mag.transforms.MacroCoarsen`, and
            :class:`~mag.transforms.RecentNeighbors` (without, the recent lists are empty).
        max_bytes (int, optional): What the rows may take in memory before they are refused.
            (default: 8 GiB)
        caller (str, optional): Whose name messages begin with. (default: :obj:`"MacroRows"`)

    Attributes:
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        num_windows (int): How many windows there are.
        hops (dict[str, tuple[torch.Tensor, ...]]): For each node type, a table of counts for each
            hop, row :math:`v S + s` for node :math:`v` as of cutoff :math:`s`.
        recent (dict[str, torch.Tensor]): The recent lists, likewise.

    Raises:
        IndexError: If a macro edge or a recent list names a node that does not exist.
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`.
        ValueError: If the macro edges are missing, hold counts that are negative or not finite,
            have another number of windows than the data, or would take more than
            :obj:`max_bytes`.
    """

    def __init__(
        self, data: HeteroData, max_bytes: int = 8 * 2**30, *, caller: str = 'MacroRows'
    ) -> None:
        require(data, caller)
        check_integers(1, max_bytes=max_bytes)
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        self.num_windows = windows(data, caller).num
        counts = {name: self._counts(data, name, caller) for name in self.num_nodes}
        self._refuse_too_large(counts, max_bytes, caller)
        self.hops = {name: tuple(hop.dense() for hop in found) for name, found in counts.items()}
        self.recent = {name: self._recent(data, name, caller) for name in self.num_nodes}

    def rows(self, node_type: str, node: Tensor, window: Tensor | None = None) -> MacroRow:
        r"""The macro rows of some nodes as of some windows.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            node (torch.Tensor): The nodes, int64, :obj:`-1` for an unknown one, whose counts are 0
                and who has no neighbors, shape :obj:`[B]`.
            window (torch.Tensor, optional): The window of each, shape :obj:`[B]`. By default the
                last.

        Raises:
            IndexError: If a node or a window does not exist.
            TypeError: If one is no integer.
            ValueError: If there is not one window for each node, or no such node type.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_tensor('MacroRows', 'node', node, ('B',), torch.long)
        check_ids('MacroRows', f'{node_type} ids', node, self.num_nodes[node_type], first=-1)
        if window is not None:
            check_tensor('MacroRows', 'window', window, (node.numel(),), torch.long)
            check_ids('MacroRows', 'windows', window, self.num_windows)
        return self.gather(node_type, node, window)

    def gather(self, node_type: str, node: Tensor, window: Tensor | None = None) -> MacroRow:
        r"""What :meth:`rows` returns, of nodes and windows that are known to exist: it would take a
        window that does not for one of another node."""
        row = node
        if self.num_windows > 1:
            row = node * self.num_windows + (self.num_windows - 1 if window is None else window)
        known = known_places(node)
        return MacroRow(
            tuple(take_known(table, row, known, 0).float() for table in self.hops[node_type]),
            take_known(self.recent[node_type], row, known, -1),
        )

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
        size = num_nodes, self.num_windows, num_macro
        return _Counts(macro, node, weight, size, _smallest_type(weight, bounds[1]))

    def _by_window(self, value: Any, dim: int) -> Any:
        r"""A value with a dimension of windows, which may be missing where there is one window."""
        is_short = isinstance(value, Tensor) and value.dim() == dim - 1
        return value.unsqueeze(1) if is_short and self.num_windows == 1 else value

    def _refuse_too_large(
        self, counts: dict[str, list['_Counts']], max_bytes: int, caller: str
    ) -> None:
        num_bytes = sum(hop.num_bytes() for found in counts.values() for hop in found)
        if num_bytes > max_bytes:
            raise ValueError(
                f'{caller} would hold the counts of {self.num_nodes["user"]:,} users and '
                f'{self.num_nodes["item"]:,} items over {self.num_windows} windows in '
                f'{num_bytes / 2**20:,.0f} MiB, more than the {max_bytes / 2**20:,.0f} MiB of '
                f"'max_bytes': take fewer windows or clusters, or a larger 'max_bytes'."
            )

    def _recent(self, data: HeteroData, node_type: str, caller: str) -> Tensor:
        num_nodes, other = self.num_nodes[node_type], NEIGHBOR_TYPE[node_type]
        recent = data[node_type].get('recent')
        if recent is None:
            return torch.empty(num_nodes * self.num_windows, 0, dtype=torch.long)
        recent = self._by_window(recent, 3)
        what, shape = f"data['{node_type}'].recent", (num_nodes, self.num_windows, 'num')
        check_tensor(caller, what, recent, shape, torch.long)
        check_ids(caller, f'{other}s in {what}', recent, self.num_nodes[other], first=-1)
        return recent.reshape(num_nodes * self.num_windows, -1)


class _Counts(NamedTuple):
    r"""The macro edges of one hop, and the size and type of the table that will hold them."""

    macro: Tensor
    node: Tensor
    weight: Tensor
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def dense(self) -> Tensor:
        r"""A table of shape :obj:`[N * S, M]`."""
        table = torch.zeros(self.shape, dtype=self.dtype)
        # In pieces, as a copy of all weights in another type may be as large as the table.
        for macro, node, weight in zip(
            *(part.split(_CHUNK) for part in (self.macro, self.node, self.weight)), strict=True
        ):
            table[node, :, macro] = weight.to(self.dtype)
        return table.flatten(0, 1)


def _smallest_type(weight: Tensor, high: float) -> torch.dtype:
    r"""The type of the fewest bytes that holds weights of 0 and more exactly, or float32."""
    if weight.is_floating_point() and any(bool(part.frac().any()) for part in weight.split(_CHUNK)):
        return torch.float32
    return next((dtype for dtype, largest in _LARGEST.items() if high <= largest), torch.float32)
