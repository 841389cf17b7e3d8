from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from mag.schema import NEIGHBOR_TYPE, reached


class MacroNodes(NamedTuple):
    r"""The macro nodes of one type of node at one resolution.

    Attributes:
        cluster (torch.Tensor): That of each node, :obj:`-1` for none, shape :obj:`[N]`.
        number (int): How many macro nodes there are.
        window (torch.Tensor or None): The first window that knows it, shape :obj:`[N]`;
            :obj:`None` where all do.
    """

    cluster: Tensor
    number: int
    window: Tensor | None = None


class SparseCounts:
    r"""Counts the macro edges that are kept sparse, as of each cutoff: those of exposures, and
    those of clicks at fine resolutions.

    An event counts at a macro node from the first window on that knows both, the event and that its
    node is one of the macro node. A click is never known before its node; an exposure may be, and
    would tell an earlier row what its node is clicked for later.

    Cost and memory are linear in the events and in the edges found; two hops multiply sparse
    matrices, once a window.

    Args:
        edge_index (torch.Tensor): The events, users above items, shape :obj:`[2, E]`.
        window (torch.Tensor or None): The first window that knows each, shape :obj:`[E]`, see
            :func:`~mag.cutoff.window_of_click`.
        num_windows (int): The number of windows :math:`S`.
        num_nodes (dict[str, int]): The number of users and items.
        binary (bool): If set to :obj:`False`, repeated events of a pair add up.
    """

    def __init__(
        self,
        edge_index: Tensor,
        window: Tensor | None,
        num_windows: int,
        num_nodes: dict[str, int],
        binary: bool,
    ) -> None:
        first = torch.zeros_like(edge_index[0]) if window is None else window
        if binary:
            pair = edge_index[0] * num_nodes['item'] + edge_index[1]
            pair, place = pair.unique(return_inverse=True)
            edge_index = torch.stack([pair // num_nodes['item'], pair % num_nodes['item']])
            first = first.new_full(pair.shape, num_windows).scatter_reduce_(0, place, first, 'amin')
        self.binary = binary
        self.num_nodes = num_nodes
        self._node = dict(zip(('user', 'item'), edge_index, strict=True))
        self._first = first
        self._shape = (1 if window is None else num_windows), window is None

    def hop(self, node_type: str, hop: int, macro: MacroNodes, mode: str) -> tuple[Tensor, Tensor]:
        r"""The macro edges that reach the nodes of a type in so many hops.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            hop (int): 1 or 2.
            macro (MacroNodes): The macro nodes, of the type that so many hops arrive at.
            mode (str): :obj:`"set"` or :obj:`"walk"`, see :class:`~mag.macro_graph.MacroEdges`.

        Returns:
            Macro nodes above nodes, in the order of the nodes, shape :obj:`[2, num_edges]`; and the
            counts, float32, exact up to :math:`2^{24}`, shape :obj:`[num_edges]`, or
            :obj:`[num_edges, S]` with windows.
        """
        if hop == 1:
            source, window = self._macro(NEIGHBOR_TYPE[node_type], macro)
            target = self._node[node_type]
            key = target * macro.number + source
            is_known = source >= 0
            return self._sum(key[is_known], window[is_known], macro.number)
        keys, counts, windows = [], [], []
        for step in range(self._shape[0]):
            table = self._second(node_type, macro, mode, step).tocoo()
            keys.append(torch.from_numpy(table.row.astype(np.int64) * macro.number + table.col))
            counts.append(torch.from_numpy(table.data).float())
            windows.append(torch.full_like(keys[-1], step))
        return self._arrange(torch.cat(keys), torch.cat(windows), torch.cat(counts), macro.number)

    def coarse(self, user: MacroNodes, item: MacroNodes) -> tuple[Tensor, Tensor]:
        r"""The edges of the coarse graph, macro users above macro items, as :meth:`hop` gives
        them."""
        of_user, user_window = self._macro('user', user)
        of_item, item_window = self._macro('item', item)
        is_known = (of_user >= 0) & (of_item >= 0)
        key = of_item * user.number + of_user
        window = torch.maximum(user_window, item_window)
        return self._sum(key[is_known], window[is_known], user.number)

    def _macro(self, node_type: str, macro: MacroNodes) -> tuple[Tensor, Tensor]:
        r"""The macro node of each event, and the first window that knows both."""
        node = self._node[node_type]
        if macro.window is None:
            return macro.cluster[node], self._first
        # What becomes known after the last window is of no macro node yet.
        num_windows, _ = self._shape
        cluster = macro.cluster.masked_fill(macro.window >= num_windows, -1)
        return cluster[node], torch.maximum(self._first, macro.window[node])

    def _sum(self, key: Tensor, window: Tensor, number: int) -> tuple[Tensor, Tensor]:
        edge_index, weight = self._arrange(key, window, torch.ones(key.shape), number)
        # Counts only grow.
        return edge_index, weight if weight.dim() == 1 else weight.cumsum_(1)

    def _arrange(
        self, key: Tensor, window: Tensor, count: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        r"""Sums counts by edge and window."""
        num_windows, is_flat = self._shape
        edge, place = key.unique(return_inverse=True)
        weight = torch.zeros(edge.numel() * num_windows)
        weight.index_add_(0, place * num_windows + window, count)
        edge_index = torch.stack([edge % number, edge // number])
        return edge_index, weight if is_flat else weight.view(-1, num_windows)

    def _second(
        self, node_type: str, macro: MacroNodes, mode: str, step: int
    ) -> 'scipy.sparse.csr_matrix':
        r"""The counts of hop 2 as of one window."""
        other = reached(node_type, 1)
        is_seen = (self._first <= step).numpy()
        row, column = (self._node[name].numpy()[is_seen] for name in (node_type, other))
        shape = self.num_nodes[node_type], self.num_nodes[other]
        steps = scipy.sparse.csr_matrix((np.ones(len(row)), (row, column)), shape)
        is_known = macro.cluster >= 0
        if macro.window is not None:
            is_known &= macro.window <= step
        node = is_known.nonzero().view(-1).numpy()
        one_hot = scipy.sparse.csr_matrix(
            (np.ones(len(node)), (node, macro.cluster.numpy()[node])), (shape[0], macro.number)
        )
        first = scipy.sparse.csr_matrix(steps.T @ one_hot)
        if mode == 'set' and not self.binary:
            # Eq. 5 counts each neighbor once, however often it was met.
            steps.data[:] = 1
        return scipy.sparse.csr_matrix(steps @ first)
