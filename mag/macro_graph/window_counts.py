import copy

import numpy as np
import torch
from torch import Tensor
from torch_geometric.typing import EdgeType
from tqdm import tqdm

from mag.macro_graph.macro_edges import MacroEdges
from mag.schema import MACRO, hop_type


def count_by_window(
    edges: MacroEdges, clicks: Tensor, window: Tensor | None = None, num_windows: int = 1
) -> tuple[MacroEdges, dict[EdgeType, tuple[Tensor, Tensor]]]:
    r"""Counts the macro edges of all nodes and of the coarse graph, as of each cutoff.

    Args:
        edges (MacroEdges): Those of no click, which stay as they are.
        clicks (torch.Tensor): The clicks, users above items, shape :obj:`[2, E]`.
        window (torch.Tensor, optional): The first window that knows each, shape :obj:`[E]`, see
            :func:`~mag.cutoff.window_of_click`. (default: :obj:`None`)
        num_windows (int, optional): The number of windows :math:`S`. (default: :obj:`1`)

    Returns:
        The macro edges of all clicks; and for each edge type, such as
        :obj:`('macro_item', 'hop1', 'user')`, its :obj:`edge_index` from macro nodes to nodes, and
        the counts as :obj:`edge_weight`, float32, of shape :obj:`[num_edges]`, or
        :obj:`[num_edges, S]` with windows.
    """
    # Counts only grow, so the edges as of the last cutoff are all there ever were.
    every = copy.deepcopy(edges).update(clicks)
    counted, places = {}, {}
    for edge_type, table in _tables(every).items():
        counts = torch.from_numpy(table)
        target, source = counts.nonzero(as_tuple=True)
        if window is None:
            weight = counts[target, source].float()
        else:
            weight = torch.empty(source.numel(), num_windows)
        counted[edge_type] = torch.stack([source, target]), weight
        places[edge_type] = torch.add(source, target, alpha=counts.size(1))
    if window is None:
        return every, counted
    # Window by window come as many tables again, the last of which are those of all clicks.
    del every, table, counts
    edges = copy.deepcopy(edges)
    for step in tqdm(range(num_windows), 'Counting by window', leave=False, delay=3):
        edges.update(clicks[:, window == step])
        for edge_type, table in _tables(edges).items():
            _, weight = counted[edge_type]
            # One number for each place costs a third of two.
            weight[:, step] = torch.from_numpy(table).reshape(-1).take(places[edge_type])
    return edges, counted


def _tables(edges: MacroEdges) -> dict[EdgeType, np.ndarray]:
    r"""The counts of every edge type, target nodes in rows and source nodes in columns."""
    tables = {
        hop_type(node_type, hop): table
        for node_type, counts in edges.counts.items()
        for hop, table in enumerate(counts, start=1)
    }
    tables[MACRO['user'], 'clicks', MACRO['item']] = edges.coarse().T
    return tables
