r"""What moves a score: the model without a block of what it reads, and the heaviest macro edges."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from mag.loader import ExposureBatch, PairBatch
from mag.logits import as_logits, probabilities
from mag.online.ranker import MacroEdges
from mag.online.replica import Replica
from mag.schema import NEIGHBOR_TYPE

# Rows that the model reads at once, at most, unless a request has more: their macro rows take some
# megabytes.
_MOST_ROWS = 4096


class EdgeCounts(NamedTuple):
    r"""How many neighbors with a click nodes have in each cluster.

    Attributes:
        stock (numpy.ndarray): As of the snapshot, int64, shape :obj:`[B, C]`.
        total (numpy.ndarray): As of now, likewise.
    """

    stock: np.ndarray
    total: np.ndarray


def click_probability(model: Module, batch: Any) -> np.ndarray:
    r"""How likely a model says that each row of a batch is clicked, float64, shape :obj:`[B]`."""
    with torch.inference_mode():
        return probabilities(as_logits(type(model).__name__, model(batch)))['click'].numpy()


def blank_blocks(
    batch: PairBatch | ExposureBatch, fields: Sequence[str] = (), views: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    r"""Of each block of a batch its name, and the batch without it: ids, attributes and contexts
    are unknown, counts are 0, and there are no recent neighbors.

    The blocks of a :class:`~mag.loader.PairBatch` are :obj:`"user id"`, :obj:`"user hop 1"`, ...,
    :obj:`"user recent"` and those of the item; those of an :class:`~mag.loader.ExposureBatch` are
    :obj:`"user id"`, :obj:`"item id"`, its other fields and its views, by their names.

    Args:
        batch (PairBatch or ExposureBatch): What the model reads.
        fields (Sequence[str], optional): The name of each column of :obj:`ExposureBatch.sparse`.
            (default: :obj:`()`)
        views (Sequence[str], optional): The name of each view of :obj:`ExposureBatch.counts`.
            (default: :obj:`()`)
    """
    unknown = torch.full_like(batch.user, -1)
    if isinstance(batch, PairBatch):
        for node in NEIGHBOR_TYPE:
            blanks: dict[str, tuple[str, Any]] = {'id': (node, unknown)}
            hops: tuple[Tensor, ...] = getattr(batch, f'{node}_hops')
            for place, hop in enumerate(hops):
                blank = (*hops[:place], torch.zeros_like(hop), *hops[place + 1 :])
                blanks[f'hop {place + 1}'] = f'{node}_hops', blank
            recent = getattr(batch, f'{node}_recent')
            blanks['recent'] = f'{node}_recent', torch.full_like(recent, -1)
            for name, (attribute, value) in blanks.items():
                yield f'{node} {name}', batch._replace(**{attribute: value})
        return
    for field in dict.fromkeys(fields):
        columns = torch.tensor([name == field for name in fields])
        without = batch._replace(sparse=batch.sparse.masked_fill(columns, -1))
        if field in NEIGHBOR_TYPE:
            yield f'{field} id', without._replace(**{field: unknown})
        else:
            yield field, without
    for place, view in enumerate(views):
        counts = batch.counts.clone()  # type: ignore[union-attr]
        counts[:, place] = 0
        yield view, batch._replace(counts=counts)


def without_blocks(
    model: Module, blanked: Iterator[tuple[str, Any]], size: int
) -> tuple[tuple[str, ...], np.ndarray]:
    r"""The names of blocks, and how likely each of :obj:`size` rows is clicked without each of
    them, float64, shape :obj:`[B, K]`.

    Args:
        model (torch.nn.Module): The model.
        blanked (Iterator): What :func:`blank_blocks` yields.
        size (int): The rows of a batch.
    """
    together = max(1, _MOST_ROWS // max(size, 1))
    names: list[str] = []
    parts = []
    while some := list(islice(blanked, together)):
        names += [name for name, _ in some]
        batches = [batch for _, batch in some]
        joined = type(batches[0])(*map(_joined, zip(*batches)))
        parts.append(click_probability(model, joined).reshape(len(some), size))
    return tuple(names), np.concatenate(parts).T


def _joined(values: tuple[Any, ...]) -> Any:
    r"""One attribute of several batches, one after the other."""
    if values[0] is None:
        return None
    if isinstance(values[0], tuple):
        return tuple(map(_joined, zip(*values)))
    return torch.cat(values)


def edge_counts(replica: Replica, node_type: str, nodes: np.ndarray) -> EdgeCounts:
    r"""Counts nodes' neighbors at the first resolution, those that are in no cluster aside.

    Args:
        replica (Replica): What is known of them.
        node_type (str): :obj:`"user"` or :obj:`"item"`.
        nodes (numpy.ndarray): The nodes, int64, :obj:`-1` for an unknown one, shape :obj:`[B]`.
    """
    snapshot = replica.snapshot
    columns = slice(0, snapshot.layout.num_clusters[NEIGHBOR_TYPE[node_type]][0])
    total = replica.rows(node_type, nodes)['pairs'][:, columns].astype(np.int64)
    stock = np.zeros_like(total)
    was_there = (nodes >= 0) & (nodes < snapshot.num_nodes[node_type])
    stock[was_there] = snapshot.rows[node_type]['pairs'][nodes[was_there], columns]
    return EdgeCounts(stock, total)


def heaviest_edges(counts: EdgeCounts, num_edges: int) -> tuple[MacroEdges, ...]:
    r"""The clusters in which each node has the most neighbors now, heaviest first, equally heavy
    ones in their order; where it has none there is no edge.

    Args:
        counts (EdgeCounts): Of :math:`B` nodes.
        num_edges (int): How many edges a node has at most.
    """
    number = counts.total.shape[1]
    num_edges = min(num_edges, number)
    # Of one number for each, none is equal to another. It fits: 32 bits hold a count.
    rank = counts.total * number + (number - 1 - np.arange(number))
    if num_edges < number:
        # What is left is on the right.
        rank = np.partition(rank, number - num_edges - 1, axis=1)
    rank = -np.sort(-rank[:, number - num_edges :], axis=1)
    clusters, total = number - 1 - rank % number, rank // number
    stock = np.take_along_axis(counts.stock, clusters, axis=1)
    sizes = (total > 0).sum(axis=1)
    return tuple(
        MacroEdges(of[:size], before[:size], now[:size] - before[:size])
        for of, before, now, size in zip(clusters, stock, total, sizes.tolist(), strict=True)
    )
