import torch
from torch import Tensor


def last_neighbors(
    node: Tensor,
    neighbor: Tensor,
    num_nodes: int,
    num: int,
    window: Tensor | None = None,
    num_windows: int = 1,
) -> Tensor:
    r"""The last :obj:`num` neighbors of each node from edges in the order of nodes.

    Args:
        node (torch.Tensor): Ascending node ids, shape :obj:`[E]`.
        neighbor (torch.Tensor): Their neighbors, oldest first within a node, shape :obj:`[E]`.
        num_nodes (int): The number of nodes :math:`N`.
        num (int): Length of the lists.
        window (torch.Tensor, optional): The first window whose history holds each edge, shape
            :obj:`[E]`.
        num_windows (int, optional): The number of windows :math:`S`. (default: :obj:`1`)

    Returns:
        Shape :obj:`[N, num]`, or :obj:`[N, S, num]` with windows; newest last, padded on the left
        with :obj:`-1`.
    """
    if window is None:
        size = node.bincount(minlength=num_nodes)
        return _take_last(_pad(neighbor), size.cumsum(0) - size, size.cumsum(0), num)
    recent = neighbor.new_empty(num_nodes, num_windows, num)
    if bool(((window[1:] < window[:-1]) & (node[1:] == node[:-1])).any()):
        for step in range(num_windows):
            is_past = window <= step
            recent[:, step] = last_neighbors(node[is_past], neighbor[is_past], num_nodes, num)
        return recent
    # The history of a window is a prefix of each node's edges, so one pass finds all ends.
    size = (node * num_windows + window).bincount(minlength=num_nodes * num_windows)
    end = size.cumsum(0).view(num_nodes, num_windows)
    start = torch.cat([end.new_zeros(1), end[:-1, -1]])[:num_nodes]
    padded = _pad(neighbor)
    for step in range(num_windows):
        recent[:, step] = _take_last(padded, start, end[:, step], num)
    return recent


def _pad(neighbor: Tensor) -> Tensor:
    return torch.nn.functional.pad(neighbor, (1, 0), value=-1)


def _take_last(padded: Tensor, start: Tensor, end: Tensor, num: int) -> Tensor:
    r"""The last :obj:`num` of the neighbors from :obj:`start` to :obj:`end` for each node, shape
    :obj:`[N, num]`; :obj:`padded` holds them one place further, after a :obj:`-1`."""
    position = end.unsqueeze(1) - torch.arange(num, 0, -1)
    return padded[(position + 1).where(position >= start.unsqueeze(1), 0)]
