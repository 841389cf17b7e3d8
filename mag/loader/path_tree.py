import torch
from torch import Tensor

from mag.click_index import take
from mag.schema import NEIGHBOR_TYPE


class PathTree:
    r"""Numbers the drawn nodes of a batch, depth by depth. The targets' own come first, and each
    child after them has the number of its edge.

    Args:
        num_targets (int): The number of targets :math:`B`.

    Attributes:
        target (dict[str, list[torch.Tensor]]): By node type and depth, the target that each node
            belongs to.
        click (dict[str, list[torch.Tensor]]): By the type of the child and depth, the click that
            each edge is.
        precursor (dict[str, list[torch.Tensor]]): Likewise, the number of the node that each edge
            leads to.
    """

    def __init__(self, num_targets: int) -> None:
        rows = torch.arange(num_targets)
        self.target = {'user': [rows], 'item': [rows]}
        self.click: dict[str, list[Tensor]] = {'user': [], 'item': []}
        self.precursor: dict[str, list[Tensor]] = {'user': [], 'item': []}
        self.size = {'user': num_targets, 'item': num_targets}
        # The last level of each root's tree: its type, its clicks, and the number of the first.
        self.last = {root: (root, rows, 0) for root in ('user', 'item')}

    def add(self, root: str, click: Tensor) -> None:
        r"""Adds the next depth of one root's tree.

        Args:
            root (str): :obj:`"user"` or :obj:`"item"`.
            click (torch.Tensor): The drawn clicks, :obj:`-1` where there is none, shape
                :obj:`[B, w_1, ..., w_d]`.
        """
        parent_type, parent_click, first = self.last[root]
        child_type, width = NEIGHBOR_TYPE[parent_type], click.size(-1)
        # Where no click was drawn, this is a number that no child asks for.
        parent = (parent_click.view(-1, 1) >= 0).cumsum(0) + (first - 1)
        target = self.target[root][0].view(-1, 1).expand_as(click.flatten(1))
        # Places of the drawn clicks; several times faster than a mask, which is counted each time.
        place = (click.view(-1) >= 0).nonzero().view(-1)
        self.last[root] = child_type, click, self.size[child_type]
        self.size[child_type] += place.numel()
        self.click[child_type].append(take(click, place))
        self.precursor[child_type].append(take(parent.expand(-1, width), place))
        self.target[child_type].append(take(target, place))
