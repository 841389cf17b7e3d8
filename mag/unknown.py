r"""What is read of a user or an item that nothing is known of, :obj:`-1`."""

import torch
from torch import Tensor


def known_places(node: Tensor) -> Tensor | None:
    r"""The places of the known nodes; :obj:`None` if all are, as in training, where to look costs
    less than to copy a batch."""
    is_known = node >= 0
    return None if bool(is_known.all()) else is_known.nonzero().view(-1)


def take_known(table: Tensor, row: Tensor, known: Tensor | None, unknown: Tensor | int) -> Tensor:
    r"""Rows of a table of nodes, and what stands for an unknown one in its place.

    Args:
        table: Shape :obj:`[N, *]`.
        row: The row of each node, whatever it is of an unknown one, shape :obj:`[B]`.
        known: What :func:`known_places` told of the nodes.
        unknown: What stands for an unknown one, shape :obj:`[*]`.
    """
    if known is None:
        return table.index_select(0, row)
    # No unsigned type holds -1.
    dtype = unknown.dtype if isinstance(unknown, Tensor) else table.dtype
    out = table.new_empty(row.numel(), *table.shape[1:], dtype=dtype)
    out[:] = unknown
    return out.index_copy_(0, known, table.index_select(0, row[known]).to(dtype))


def unknown_row(table: Tensor) -> Tensor:
    r"""What is expected of a node that nothing is known of: of whole numbers, which are values of
    categorical attributes, :obj:`-1`, for none; of others their mean over all nodes.

    Args:
        table: Of all nodes, shape :obj:`[N, *]`.
    """
    if not table.is_floating_point():
        # What is true of none is false.
        if table.dtype == torch.bool:
            return table.new_zeros(table.shape[1:])
        dtype = table.dtype if table.dtype.is_signed else torch.long
        return torch.full(table.shape[1:], -1, dtype=dtype)
    if table.size(0) == 0:
        return table.new_zeros(table.shape[1:])
    return table.mean(0)
