r"""What the time of a log is measured on when it is split."""

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.schema import CLICKS


def user_position(data: HeteroData) -> tuple[Tensor, Tensor]:
    r"""Where clicks and exposures stand in their user's own log: the share of the user's exposures
    that came strictly before, in :math:`[0, 1]`. Rows of one moment share one position.

    Returns:
        Positions of clicks, shape :obj:`[E]`, and of exposures, shape :obj:`[L]`, float64.
    """
    clicks = data[CLICKS]
    time = torch.cat([clicks.time, clicks.edge_label_time])
    user = torch.cat([clicks.edge_index[0], clicks.edge_label_index[0]])
    moments, moment = time.unique(return_inverse=True)
    key = user * moments.numel() + moment
    num_clicks = clicks.time.numel()
    before = torch.searchsorted(key[num_clicks:].sort().values, key)
    size = clicks.edge_label_index[0].bincount(minlength=data['user'].num_nodes)
    start = size.cumsum(0) - size
    # A user without exposures has no labels, and so no order that could matter.
    position = (before - start[user]).double() / size[user].clamp(min=1)
    return position[:num_clicks], position[num_clicks:]
