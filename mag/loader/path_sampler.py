from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import (
    check_booleans,
    check_ids,
    check_keys,
    check_sizes,
    check_tensor,
    check_values,
)
from mag.click_index import ClickIndex, take
from mag.loader.target_chance import TargetChance
from mag.schema import CLICKS, NEIGHBOR_TYPE, require, require_cpu
from mag.unknown import known_places, take_known


class PathSampler:
    r"""Draws paths back through the clicks before a moment, the neighbor sampling of the `"Joint
    Learning of E-commerce Search and Recommendation with a Unified Graph Neural Network"
    <https://doi.org/10.1145/3488560.3498414>`_ paper.

    From the user of a target :math:`(u, p, t)` go :math:`w_1` clicks, from the item of each of them
    :math:`w_2` clicks, and so on; likewise from the target's item :math:`p`. Only clicks strictly
    before :math:`t` are drawn, uniformly, and the children of a node come newest first. Of a user,
    only items are drawn that share an attribute with :math:`p`, by default the category: clicks are
    sorted by user, category and time, so that the candidates are an interval, whose ends are found
    by binary search, and a draw is a number within it.

    Args:
        data (HeteroData): The clicks to draw from.
        widths (dict[str, Sequence[int]], optional): For :obj:`"user"` and :obj:`"item"`, how many
            clicks go from a node at each depth, equally deep. By default those of the paper,
            :obj:`{'user': [25, 1, 10], 'item': [1, 25, 1]}`.
        attribute (str, optional): The categorical attribute of items to filter by; :obj:`None` for
            no filter. (default: :obj:`"category"`)
        replace (bool, optional): If set to :obj:`False`, no click is drawn twice for one node, and
            a node has all its candidates where these are no more than its width.
            (default: :obj:`True`)

    Raises:
        TypeError: If :obj:`widths` is no dictionary of sequences, or :obj:`replace` no boolean.
        ValueError: If a width is not positive, the two are not equally deep, the attribute does not
            exist or hold integers of 0 or more, or there are too many users, categories and moments
            to number their combinations.
    """

    def __init__(
        self,
        data: HeteroData,
        widths: Mapping[str, Sequence[int]] | None = None,
        attribute: str | None = 'category',
        replace: bool = True,
    ) -> None:
        require(data, 'PathSampler', 'edge_index', 'time')
        require_cpu(data, 'PathSampler')
        check_booleans(replace=replace)
        widths = {'user': [25, 1, 10], 'item': [1, 25, 1]} if widths is None else widths
        check_keys(('user', 'item'), widths=widths)
        check_sizes(**{f'widths[{root!r}]': numbers for root, numbers in widths.items()})
        self.widths = {root: list(numbers) for root, numbers in widths.items()}
        if not 0 < len(self.widths['user']) == len(self.widths['item']):
            raise ValueError(
                f"The paths of 'user' and 'item' must be equally deep, but got the widths "
                f'{self.widths}.'
            )
        self.num_nodes = {name: data[name].num_nodes for name in ('user', 'item')}
        self.attribute = attribute
        self.replace = replace
        self.neighbor = {'user': data[CLICKS].edge_index[1], 'item': data[CLICKS].edge_index[0]}
        self.category = _category(data, attribute)
        self._num_categories = 1 + int(self.category.max()) if self.category.numel() > 0 else 1
        user, item = data[CLICKS].edge_index
        num_users, num_items = self.num_nodes.values()
        self.index = {
            'user': ClickIndex(
                user * self._num_categories + self.category[item],
                data[CLICKS].time,
                num_users * self._num_categories,
                caller='PathSampler',
                owners=f'{num_users} users, {self._num_categories} values of {attribute!r}',
            ),
            'item': ClickIndex(
                item,
                data[CLICKS].time,
                num_items,
                caller='PathSampler',
                owners=f'{num_items} items',
            ),
        }

    @property
    def depth(self) -> int:
        r"""How many clicks a path has."""
        return len(self.widths['user'])

    def draw(
        self,
        user: Tensor,
        item: Tensor,
        time: Tensor,
        generator: torch.Generator | TargetChance,
    ) -> dict[str, list[Tensor]]:
        r"""Draws the paths of :math:`B` targets.

        Args:
            user (torch.Tensor): Their users, :obj:`-1` for an unknown one, who has no clicks, shape
                :obj:`[B]`.
            item (torch.Tensor): Their items, :obj:`-1` for an unknown one, which has no clicks and
                shares no attribute with others, shape :obj:`[B]`.
            time (torch.Tensor): Their times, int64 seconds, shape :obj:`[B]`.
            generator (torch.Generator or TargetChance): What draws.

        Returns:
            For the root types :obj:`"user"` and :obj:`"item"`, the drawn clicks of every depth, as
            columns of :obj:`data['user', 'clicks', 'item']`, :obj:`-1` where there is none, each of
            shape :obj:`[B, w_1, ..., w_d]`.

        Raises:
            IndexError: If a user or an item does not exist.
            TypeError: If ids or times are no integers.
            ValueError: If there is not a user, an item and a time for each target.
        """
        check_tensor('PathSampler.draw', 'user', user, ('B',), 'integers')
        check_tensor('PathSampler.draw', 'item', item, (user.numel(),), 'integers')
        check_tensor('PathSampler.draw', 'time', time, (user.numel(),), 'int64 seconds')
        for node_type, node in (('user', user), ('item', item)):
            number = self.num_nodes[node_type]
            check_ids('PathSampler.draw', f'{node_type} ids', node, number, first=-1)
        # An unknown item has a category of none, unless all items are of one, without a filter.
        none = 0 if self.attribute is None else -1
        category = take_known(self.category, item, known_places(item), none)
        paths = {}
        for root, node in (('user', user), ('item', item)):
            node_type = root
            levels: list[Tensor] = []
            for width in self.widths[root]:
                if levels:
                    node, node_type = self._follow(node_type, levels[-1]), NEIGHBOR_TYPE[node_type]
                lead = [-1] + [1] * (node.dim() - 1)
                levels.append(
                    self._draw_clicks(
                        node_type, node, time.view(lead), category.view(lead), width, generator
                    )
                )
            paths[root] = levels
        return paths

    def _draw_clicks(
        self,
        node_type: str,
        node: Tensor,
        time: Tensor,
        category: Tensor,
        width: int,
        generator: torch.Generator | TargetChance,
    ) -> Tensor:
        owner = node
        if node_type == 'user':
            # Or a user of no category would own what another has of the last.
            owner = (node * self._num_categories + category).where(category >= 0, -1)
        newest, count = self.index[node_type].before(owner, time)
        offset = draw_offsets(count, width, self.replace, generator)
        place = (newest - count + 1).unsqueeze(-1) + offset
        place = place.where(offset >= 0, 0)
        if width > 1:
            # The largest place is that of the newest, and 0, for none, is the smallest. NumPy's
            # sort, unlike PyTorch's, makes no permutation and is several times faster.
            place = torch.from_numpy(np.sort(place.numpy())).flip(-1)
        return take(self.index[node_type].click, place)

    def _follow(self, node_type: str, click: Tensor) -> Tensor:
        neighbor = self.neighbor[node_type]
        if neighbor.numel() == 0:
            return click
        return take(neighbor, click.clamp(min=0)).where(click >= 0, -1)


def draw_offsets(
    count: Tensor, width: int, replace: bool, generator: torch.Generator | TargetChance
) -> Tensor:
    r"""Draws :obj:`width` of the numbers from 0 to :obj:`count - 1`, for each count.

    Args:
        count (torch.Tensor): How many there are to draw from, any shape.
        width (int): How many to draw.
        replace (bool): Whether a number can be drawn again. Without, all are drawn where they are
            no more than :obj:`width`; else any subset is as likely as any other.
        generator (torch.Generator or TargetChance): What draws.

    Returns:
        Shape :obj:`[*count.shape, width]`, :obj:`-1` for none.
    """
    # In float64 the share of a number is wrong by at most 2^-53 times the count.
    shape = (*count.shape, width)
    if isinstance(generator, TargetChance):
        chance = generator.rand(shape)
    else:
        chance = torch.rand(shape, dtype=torch.double, generator=generator)
    if replace:
        drawn = (chance * count.unsqueeze(-1)).long()
        return drawn.where(count.unsqueeze(-1) > 0, -1)
    # Floyd's algorithm: each number is drawn from one more than the one before, and where that was
    # drawn already, the one more is taken.
    drawn = torch.full_like(chance, -1, dtype=torch.long)
    for column in range(width):
        last = count - width + column
        number = (chance[..., column] * (last + 1).clamp(min=0)).long()
        taken = (drawn[..., :column] == number.unsqueeze(-1)).any(-1)
        drawn[..., column] = torch.where(taken, last, number).where(last >= 0, -1)
    return drawn


def _category(data: HeteroData, attribute: str | None) -> Tensor:
    num_items = data['item'].num_nodes
    if attribute is None:
        return torch.zeros(num_items, dtype=torch.long)
    name = f"data['item'].{attribute}"
    category = data['item'].get(attribute)
    if category is None:
        raise ValueError(
            f"PathSampler filters by {name}, but data['item'] has {list(data['item'].keys())}: "
            f'pass attribute=None for no filter.'
        )
    check_tensor('PathSampler', name, category, (num_items,), 'integers')
    check_values('PathSampler', name, category, category >= 0, 'at least 0')
    return category
