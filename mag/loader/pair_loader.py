import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader.pair_batch import PairBatch
from mag.loader.row_loader import RowLoader, check_batches, check_request
from mag.schema import CLICKS, OTHER, require, require_positive_integers, require_range

# Edges whose counts are copied at once.
_CHUNK = 2**20
# The largest count that each type holds, smallest type first.
_LARGEST = {dtype: torch.iinfo(dtype).max for dtype in (torch.uint8, torch.int16, torch.int32)}


class PairLoader(RowLoader):
    r"""Loads the exposures of a macro graph as batches of user-item pairs with their macro rows,
    :class:`PairBatch`.

    .. code-block:: python

        train_loader = PairLoader(train, batch_size=1024, shuffle=True)
        for batch in train_loader:
            loss = binary_cross_entropy_with_logits(model(batch), batch.label)

    Macro rows are kept dense, one a node (and window), and gathered by indexing, as float32. They
    are held in the smallest type that counts fit in exactly, for each table: a byte up to 255, two
    up to 32,767, else four. If the data rolls over windows, each exposure reads the rows as of its
    own window.
    The same code makes one request's batch at serving time, see :meth:`request`.

    Args:
        data (HeteroData): A part that went through :class:`~mag.transforms.MacroCoarsen`, and
            :class:`~mag.transforms.RecentNeighbors` (without, the recent lists are empty).
        batch_size (int, optional): Pairs a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, pairs are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        max_bytes (int, optional): What the macro rows of all nodes and windows may take in memory
            before they are refused. (default: 8 GiB)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        ValueError: If the macro edges are missing, they would take more than :obj:`max_bytes`, or
            an exposure lies before the cutoff of its window or, without a cutoff, before the last
            click.

    Warns if there are no times to tell that by.
    """

    dataset: '_MacroRows'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        max_bytes: int = 8 * 2**30,
        **kwargs: Any,
    ) -> None:
        require(data, 'PairLoader', 'edge_index')
        check_batches(batch_size, shuffle, seed)
        require_positive_integers(max_bytes=max_bytes)
        super().__init__(_MacroRows(data, max_bytes), batch_size, shuffle, seed, **kwargs)

    def request(self, user: int | Tensor, items: Tensor) -> PairBatch:
        r"""Makes the batch of one request: one user and its candidate items, as of the last cutoff.

        Args:
            user (int or torch.Tensor): The user, or a user for each item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, shape :obj:`[B]`.

        Raises:
            IndexError: If the user or an item does not exist.
            TypeError: If an id is no integer.
            ValueError: If there is not one user, or one for each item.
        """
        pairs = check_request('PairLoader.request', user, items, self.dataset.num_nodes)
        return self.dataset.request(*pairs)


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
        r"""A table of shape :obj:`[N * S, M]`, row :math:`v S + s` for node :math:`v` as of cutoff
        :math:`s`."""
        table = torch.zeros(self.shape, dtype=self.dtype)
        # In pieces, as a copy of all weights in another type may be as large as the table.
        for macro, node, weight in zip(
            *(part.split(_CHUNK) for part in (self.macro, self.node, self.weight)), strict=True
        ):
            table[node, :, macro] = weight.to(self.dtype)
        return table.flatten(0, 1)


class _MacroRows(torch.utils.data.Dataset):
    r"""The macro rows of all nodes, indexed by tensors of exposures."""

    def __init__(self, data: HeteroData, max_bytes: int) -> None:
        clicks = data[CLICKS]
        cutoff = clicks.get('cutoff')
        self.num_windows = cutoff.numel() if cutoff is not None and cutoff.dim() == 1 else 1
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        counts = {node_type: self._counts(data, node_type) for node_type in ('user', 'item')}
        self._check_size(counts, max_bytes)
        self.hops = {
            node_type: tuple(hop.dense() for hop in hops) for node_type, hops in counts.items()
        }
        self.recent = {node_type: self._recent(data, node_type) for node_type in ('user', 'item')}
        self.user, self.item = torch.empty(2, 0, dtype=torch.long)
        self.label = torch.empty(0)
        self.window: Tensor | None = None
        if 'edge_label_index' in clicks:
            require(data, 'PairLoader', 'edge_label_index', 'edge_label')
            self.user, self.item = clicks.edge_label_index
            self.label = clicks.edge_label.float()
            self.window = clicks.get('edge_label_window')
            self._check_labels(clicks)
            self._check_cutoff(clicks)

    def __len__(self) -> int:
        return self.user.numel()

    def __getitem__(self, index: Tensor) -> PairBatch:
        window = None if self.window is None else self.window[index]
        return self._gather(self.user[index], self.item[index], window, self.label[index])

    def request(self, user: Tensor, item: Tensor) -> PairBatch:
        window = torch.full_like(user, self.num_windows - 1) if self.num_windows > 1 else None
        return self._gather(user, item, window, None)

    def _gather(
        self, user: Tensor, item: Tensor, window: Tensor | None, label: Tensor | None
    ) -> PairBatch:
        user_row, item_row = user, item
        if window is not None:
            user_row = user * self.num_windows + window
            item_row = item * self.num_windows + window
        return PairBatch(
            user,
            item,
            tuple(table.index_select(0, user_row).float() for table in self.hops['user']),
            tuple(table.index_select(0, item_row).float() for table in self.hops['item']),
            self.recent['user'].index_select(0, user_row),
            self.recent['item'].index_select(0, item_row),
            label,
        )

    def _counts(self, data: HeteroData, node_type: str) -> list[_Counts]:
        r"""The macro edges of each hop, which are checked here."""
        relations = sorted(
            (int(relation[3:]), source)
            for source, relation, target in data.edge_types
            if target == node_type and relation.startswith('hop')
        )
        if not relations:
            raise ValueError(
                f"PairLoader found no macro edges of '{node_type}' in the data: apply "
                f'MacroCoarsen first.'
            )
        found = []
        for hop, source in relations:
            store = data[source, f'hop{hop}', node_type]
            macro, node = store.edge_index
            weight = store.edge_weight
            # Not view(..., -1): without any edge, nothing would tell how many windows there are.
            weight = weight.unsqueeze(1) if weight.dim() == 1 else weight
            if weight.size(1) != self.num_windows:
                raise ValueError(
                    f'PairLoader expects one weight for each of {self.num_windows} windows on '
                    f'{(source, f"hop{hop}", node_type)}, but got shape '
                    f'{list(store.edge_weight.shape)}.'
                )
            num_nodes, num_macro = self.num_nodes[node_type], data[source].num_nodes
            require_range('PairLoader', f'macro nodes of hop {hop}', macro, num_macro)
            require_range('PairLoader', f'{node_type}s of hop {hop}', node, num_nodes)
            low, high = (
                (bound.item() for bound in weight.aminmax()) if weight.numel() > 0 else (0, 0)
            )
            # NaN is neither.
            if not (low >= 0 and high < math.inf):
                raise ValueError(
                    f'PairLoader expects counts that are finite and at least 0, but '
                    f'{(source, f"hop{hop}", node_type)} has others.'
                )
            shape = num_nodes, self.num_windows, num_macro
            found.append(_Counts(macro, node, weight, shape, _smallest_type(weight, high)))
        return found

    def _check_size(self, counts: dict[str, list[_Counts]], max_bytes: int) -> None:
        num_bytes = sum(hop.num_bytes() for hops in counts.values() for hop in hops)
        if num_bytes > max_bytes:
            raise ValueError(
                f'PairLoader would hold the counts of {self.num_nodes["user"]:,} users and '
                f'{self.num_nodes["item"]:,} items over {self.num_windows} windows in '
                f'{num_bytes / 2**20:,.0f} MiB, more than the {max_bytes / 2**20:,.0f} MiB of '
                f"'max_bytes': take fewer windows or clusters, or a larger 'max_bytes'."
            )

    def _recent(self, data: HeteroData, node_type: str) -> Tensor:
        num_nodes = self.num_nodes[node_type]
        recent = data[node_type].get('recent')
        if recent is None:
            return torch.empty(num_nodes * self.num_windows, 0, dtype=torch.long)
        lead = (num_nodes, self.num_windows) if self.num_windows > 1 else (num_nodes,)
        if recent.shape[:-1] not in (lead, (num_nodes, self.num_windows)):
            raise ValueError(
                f"PairLoader expects data['{node_type}'].recent of shape {[*lead, 'num']}, but got "
                f'{list(recent.shape)}: apply RecentNeighbors to the part, not before the split.'
            )
        other = OTHER[node_type]
        require_range(
            'PairLoader',
            f"{other}s in data['{node_type}'].recent",
            recent,
            self.num_nodes[other],
            first=-1,
        )
        return recent.reshape(num_nodes * self.num_windows, -1)

    def _check_labels(self, clicks: Any) -> None:
        for name in ('edge_label', 'edge_label_window'):
            value = clicks.get(name)
            if value is not None and value.shape != self.user.shape:
                raise ValueError(
                    f"PairLoader expects '{name}' of shape [{self.user.numel()}], one entry for "
                    f"each column of 'edge_label_index', but got {list(value.shape)}."
                )
        if self.window is None or self.window.numel() == 0:
            return
        if self.window.min() < 0 or self.window.max() >= self.num_windows:
            raise IndexError(
                f'PairLoader found windows from {self.window.min()} to {self.window.max()} in '
                f"'edge_label_window', but {self.num_windows} cutoffs: expected windows from 0 to "
                f'{self.num_windows - 1}.'
            )

    def _check_cutoff(self, clicks: Any) -> None:
        if self.window is None and self.num_windows > 1:
            raise ValueError(
                f"PairLoader found {self.num_windows} cutoffs but no 'edge_label_window' that "
                f'tells which of them belongs to each exposure.'
            )
        cutoff = clicks.get('cutoff')
        clock_name = 'position' if 'edge_label_position' in clicks else 'time'
        clock, history = clicks.get(f'edge_label_{clock_name}'), clicks.get(clock_name)
        has_clicks = clicks.edge_index.size(1) > 0
        if len(self) == 0 or (cutoff is None and not has_clicks):
            return
        if clock is None or (cutoff is None and history is None):
            if not has_clicks:
                return
            missing = 'edge_label_time' if clock is None else clock_name
            warnings.warn(
                f'PairLoader cannot check that no exposure reads its own future, as the clicks '
                f"have no '{missing}': keep the times that the dataset wrote, or make sure that "
                f'the macro rows were counted before the first exposure.',
                stacklevel=4,
            )
            return
        if cutoff is None:
            if history.max() >= clock.min():
                raise ValueError(
                    f'PairLoader found exposures from {clock.min().item()} on and clicks up to '
                    f'{history.max().item()}: the exposures would see their own future. Use the '
                    f'parts that TemporalSplit returns; to serve requests from a whole log, delete '
                    f"its 'edge_label_index'."
                )
            return
        early = clock < (cutoff if self.window is None else cutoff[self.window])
        if bool(early.any()):
            row = int(early.nonzero()[0])
            raise ValueError(
                f'PairLoader found {int(early.sum())} exposures before the cutoff of the macro '
                f'rows they would read, such as row {row} at {clock[row].item()}: they would see '
                f'their own future. Use the parts that TemporalSplit returns.'
            )


def _smallest_type(weight: Tensor, high: float) -> torch.dtype:
    r"""The type of the fewest bytes that holds weights of 0 and more exactly, or float32."""
    if weight.is_floating_point() and any(bool(part.frac().any()) for part in weight.split(_CHUNK)):
        return torch.float32
    return next((dtype for dtype, largest in _LARGEST.items() if high <= largest), torch.float32)
