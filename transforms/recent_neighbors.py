from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_choice, check_integers
from mag.cutoff import window_of_click
from mag.macro_graph.last_neighbors import last_neighbors
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


def _log_order(node: Tensor, key: Tensor) -> Tensor:
    r"""Sorts a log by node, then by :obj:`key`; what ties keeps the order of the log."""
    if bool((key[1:] >= key[:-1]).all()):
        return node.argsort(stable=True)
    by_key = key.argsort(stable=True)
    return by_key[node[by_key].argsort(stable=True)]
