import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.schema import CLICKS, require, window_of_click


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
        item_order (str, optional): :obj:`"time"`, or :obj:`"user"` to reproduce the released code,
            whose item lists hold the users with the largest ids instead of the last ones.
            (default: :obj:`"time"`)
    """

    def __init__(self, num: int = 20, item_order: str = 'time') -> None:
        if isinstance(num, bool) or not isinstance(num, int) or num < 1:
            raise ValueError(f"'num' must be a positive integer, but got {num!r}.")
        if item_order not in ('time', 'user'):
            raise ValueError(f"'item_order' must be 'time' or 'user', but got {item_order!r}.")
        self.num = num
        self.item_order = item_order

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'RecentNeighbors', 'edge_index', 'time')
        clicks = data[CLICKS]
        window, num_windows = window_of_click(data, 'RecentNeighbors')
        user, item = clicks.edge_index
        order = clicks.time if self.item_order == 'time' else user
        for node_type, node, neighbor, key in (
            ('user', user, item, clicks.time),
            ('item', item, user, order),
        ):
            by_key = _stable_order(key)
            by_node = by_key[_stable_order(node[by_key])]
            node, neighbor = node[by_node], neighbor[by_node]
            num_nodes = data[node_type].num_nodes
            if window is None:
                recent = last_neighbors(node, neighbor, num_nodes, self.num)
            else:
                since = window[by_node]
                recent = torch.stack(
                    [
                        last_neighbors(node[known], neighbor[known], num_nodes, self.num)
                        for known in (since <= step for step in range(num_windows or 0))
                    ],
                    dim=1,
                )
            data[node_type].recent = recent
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(num={self.num}, item_order={self.item_order!r})'


def last_neighbors(node: Tensor, neighbor: Tensor, num_nodes: int, num: int) -> Tensor:
    r"""The last :obj:`num` neighbors of each node from edges in the order of nodes.

    Args:
        node (torch.Tensor): Ascending node ids, shape :obj:`[E]`.
        neighbor (torch.Tensor): Their neighbors, oldest first within a node, shape :obj:`[E]`.
        num_nodes (int): The number of nodes :math:`N`.
        num (int): Length of the lists.

    Returns:
        Shape :obj:`[N, num]`, newest last, padded on the left with :obj:`-1`.
    """
    end = node.bincount(minlength=num_nodes).cumsum(0)
    back = end[node] - torch.arange(node.numel())
    kept = back <= num
    recent = neighbor.new_full((num_nodes, num), -1)
    recent[node[kept], num - back[kept]] = neighbor[kept]
    return recent


def _stable_order(key: Tensor) -> Tensor:
    if bool((key[1:] >= key[:-1]).all()):
        return torch.arange(key.numel())
    return key.argsort(stable=True)
