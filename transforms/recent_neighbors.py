import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_choice, check_integers
from mag.cutoff import window_of_click
from mag.schema import CLICKS, require, require_cpu


@functional_transform('recent_neighbors')
class RecentNeighbors(BaseTransform):
    r"""Lists the last neighbors of each user and each item, the recent interactions of the
    `"Macro Graph Neural Networks for Online Billion-Scale Recommender Systems"
    <https://doi.org/10.1145/3589334.3645517>`_ paper (eq. 12)
    (functional name: :obj:`recent_neighbors`).

    Adds :obj:`data['user'].recent` (items) and :obj:`data['item'].recent` (users) of shape
    :obj:`[N, num]`, the newest last, padded on the left with :obj:`-1`; or of shape
    :obj:`[N, S, num]`, as of each cutoff, if the data rolls over :math:`S` windows.
    Clicks of the same second keep the order of the log.

    Args:
        num (int, optional): Length of the lists. (default: :obj:`20`)
        form (str, optional): :obj:`"paper"`, or :obj:`"released"` for the code of its authors,
            whose item lists hold the users with the largest ids instead of the last ones.
            (default: :obj:`"paper"`)
    """

    def __init__(self, num: int = 20, form: str = 'paper') -> None:
        check_integers(1, num=num)
        check_choice(('paper', 'released'), form=form)
        self.num = num
        self.form = form

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'RecentNeighbors', 'edge_index', 'time')
        require_cpu(data, 'RecentNeighbors')
        clicks = data[CLICKS]
        window, num_windows = window_of_click(data, 'RecentNeighbors')
        user, item = clicks.edge_index
        item_key = clicks.time if self.form == 'paper' else user
        for node_type, node, neighbor, key in (
            ('user', user, item, clicks.time),
            ('item', item, user, item_key),
        ):
            order = _log_order(node, key)
            data[node_type].recent = last_neighbors(
                node[order],
                neighbor[order],
                data[node_type].num_nodes,
                self.num,
                None if window is None else window[order],
                num_windows,
            )
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(num={self.num}, form={self.form!r})'


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


def _log_order(node: Tensor, key: Tensor) -> Tensor:
    r"""Sorts a log by node, then by :obj:`key`; what ties keeps the order of the log."""
    if bool((key[1:] >= key[:-1]).all()):
        return node.argsort(stable=True)
    by_key = key.argsort(stable=True)
    return by_key[node[by_key].argsort(stable=True)]
