import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_choice, check_integers, check_tensor
from mag.click_index import first_click
from mag.cutoff import require_whole_log
from mag.negatives import (
    NEVER,
    ClickedByThen,
    ItemsByArrival,
    ItemsByEvents,
    draw_negatives,
    hash_clicks,
)
from mag.schema import CLICKS, OUTCOMES, label_attributes, require, require_cpu

_NEEDED = ('edge_index', 'time', 'edge_label_index', 'edge_label', 'edge_label_time')


@functional_transform('sample_negatives')
class SampleNegatives(BaseTransform):
    r"""Adds to each clicked exposure of a whole log others at its time that are not clicked, of
    items that its user has not clicked by then, for logs that hold nothing but clicks
    (functional name: :obj:`sample_negatives`).

    >>> from torch_geometric.data import HeteroData
    >>> from mag.transforms import SampleNegatives
    >>> data = HeteroData()
    >>> data['user'].num_nodes, data['item'].num_nodes = 2, 4
    >>> clicks = data['user', 'clicks', 'item']
    >>> clicks.edge_index = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])
    >>> clicks.time = torch.tensor([10, 20, 30, 40])
    >>> clicks.edge_label_index, clicks.edge_label_time = clicks.edge_index, clicks.time
    >>> clicks.edge_label = torch.ones(4)
    >>> clicks.edge_label_index  # before
    tensor([[0, 1, 0, 1],
            [0, 1, 2, 3]])
    >>> out = SampleNegatives(num=1)(data)['user', 'clicks', 'item']
    >>> out.edge_label_index  # after
    tensor([[0, 1, 1, 0, 0, 1, 1],
            [0, 1, 0, 2, 1, 3, 2]])
    >>> out.edge_label
    tensor([1., 1., 0., 1., 0., 1., 0.])
    >>> out.edge_label_time
    tensor([10, 20, 20, 30, 30, 40, 40])
    >>> out.num_without_negatives
    1

    The clicks themselves stay what they are. An exposure that is added stands after the one it is
    added to, and has its user, its time, and all else that is told of it, such as contexts and
    weight; its label is 0, and so is what may follow a click, :obj:`edge_label_conversion` and
    :obj:`edge_label_behavior`. Where the log tells when a label was known,
    :obj:`edge_label_settled`, its own is known as soon as those of all exposures of its user up to
    then, as each decides what is left out.

    An item is drawn from those that are known: that have an exposure or a click strictly before the
    time of the row, of whichever user. So later rows, new items among them, change no draw. A click
    on an item that nobody knew stays a row of label 1, and no row of label 0 has such an item:
    :class:`TemporalSplit` leaves it out unless :obj:`keep_cold` is set. Where a user has clicked
    all that is known, as in the first moments of a log, nothing is drawn:
    :obj:`num_without_negatives` says for how many clicks, and a warning does if they are more than
    a fifth.

    Draws are exact, with replacement, whatever a user has clicked, in time that is linear in the
    log up to logarithms. Each depends on :obj:`seed`, on the user, the item and the time of its
    click, and on what came before, but not on the order of the log.

    Added exposures are exposures from then on: what counts what was shown, such as
    :class:`TargetCounts`, counts them.

    Args:
        num (int, optional): How many exposures to add to each that was clicked; one item may be
            drawn twice. (default: :obj:`1`)
        by (str, optional): :obj:`"uniform"` draws all known items with the same chance,
            :obj:`"popularity"` with one that grows with their clicks strictly before the time of
            the row, and :obj:`"exposure"` with their exposures before, clicked or not. An item
            without any is not drawn. (default: :obj:`"uniform"`)
        exclude (str, optional): :obj:`"past"` leaves out what the user has clicked up to the time
            of the row, its own item and others of that time among them; a click counts from the
            time of its exposure on. What is clicked later may be drawn. :obj:`"all"` leaves out
            whatever the user clicks in the whole log, which leaks: an item that was drawn is never
            clicked later, and a known item that is never drawn for a user tells of clicks to come,
            those of the test part among them. (default: :obj:`"past"`)
        seed (int, optional): Seed of the draws. (default: :obj:`0`)

    Raises:
        IndexError: If a click or an exposure names a node that does not exist.
        TypeError: If an argument, a time or the data is of another type.
        ValueError: If an argument is out of range; or if the data is a part already, has no
            exposure that was clicked, none for which an item is left to draw, or with
            :obj:`by="exposure"` none that was not clicked.
    """

    def __init__(
        self, num: int = 1, by: str = 'uniform', exclude: str = 'past', seed: int = 0
    ) -> None:
        check_integers(1, num=num)
        check_choice(('uniform', 'popularity', 'exposure'), by=by)
        check_choice(('past', 'all'), exclude=exclude)
        check_integers(0, seed=seed)
        self.num = num
        self.by = by
        self.exclude = exclude
        self.seed = seed

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'SampleNegatives', *_NEEDED)
        require_cpu(data, 'SampleNegatives')
        require_whole_log(
            data,
            'SampleNegatives',
            'Apply SampleNegatives before TemporalSplit, which keeps what it adds',
        )
        clicks = data[CLICKS]
        for name in label_attributes(data):
            if name != 'edge_label_index':
                shape = (clicks.edge_label.numel(), *getattr(clicks[name], 'shape', ())[1:])
                check_tensor('SampleNegatives', name, clicks[name], shape, 'numbers')
        if 'edge_label_settled' in clicks:
            require(data, 'SampleNegatives', 'edge_label_index', 'edge_label_settled')
        positive = (clicks.edge_label == 1).nonzero().view(-1)
        if positive.numel() == 0:
            raise ValueError(
                f'SampleNegatives adds to exposures that were clicked, but none of '
                f'{clicks.edge_label.numel()} was.'
            )
        drawn = self._draw(data, positive)
        has_drawn = drawn[:, 0] >= 0
        self._check(positive.numel(), int(has_drawn.sum()))

        size = torch.ones_like(clicks.edge_label, dtype=torch.long)
        size[positive[has_drawn]] += self.num
        row = torch.arange(size.numel()).repeat_interleave(size)
        is_drawn = torch.ones_like(row, dtype=torch.bool)
        is_drawn[size.cumsum(0) - size] = False
        added = {
            name: clicks[name][..., row] if name == 'edge_label_index' else clicks[name][row]
            for name in label_attributes(data)
        }
        added['edge_label_index'][1, is_drawn] = drawn[has_drawn].view(-1)
        for name in ('edge_label', *(f'edge_label_{outcome}' for outcome in OUTCOMES)):
            if name in added:
                added[name][is_drawn] = 0
        if 'edge_label_settled' in added:
            added['edge_label_settled'][is_drawn] = _all_settled(clicks)[row[is_drawn]]
        time = added['edge_label_time']
        order: Any = slice(None)
        if bool((time[1:] < time[:-1]).any()):
            order = time.argsort(stable=True)
        for name, value in added.items():
            clicks[name] = value[..., order] if name == 'edge_label_index' else value[order]
        clicks.num_without_negatives = int((~has_drawn).sum())
        return data

    def _draw(self, data: HeteroData, positive: Tensor) -> Tensor:
        r"""Items for each exposure that was clicked, shape :obj:`[R, num]`, or :obj:`-1`."""
        clicks, num_items = data[CLICKS], data['item'].num_nodes
        if self.by == 'exposure' and positive.numel() == clicks.edge_label.numel():
            raise ValueError(
                f'SampleNegatives draws by exposures, but all of {positive.numel()} in this log '
                f"were clicked, and so tell no more than clicks: pass by='popularity'."
            )
        moments, moment = torch.cat([clicks.time, clicks.edge_label_time]).unique(
            return_inverse=True
        )
        num_moments, num_clicks = moments.numel(), clicks.time.numel()
        of_click, of_label = moment[:num_clicks], moment[num_clicks:]
        # A click counts from its exposure on, so that no two rows of one moment disagree.
        clicked_index = torch.cat([clicks.edge_index, clicks.edge_label_index[:, positive]], dim=1)
        clicked_moment = torch.cat([of_click, of_label[positive]])
        if self.exclude == 'all':
            clicked_moment = torch.zeros_like(clicked_moment)
        user, item = clicked_index.numpy()
        clicked = ClickedByThen(user, item, clicked_moment.numpy(), num_items, num_moments)
        items: ItemsByArrival | ItemsByEvents
        if self.by == 'uniform':
            known = torch.cat([clicks.edge_index[1], clicks.edge_label_index[1]])
            first = first_click(moment, known, num_items)
            items = ItemsByArrival((first + 1).where(first < num_moments, NEVER).numpy())
        else:
            is_shown = self.by == 'exposure'
            event = clicks.edge_label_index[1] if is_shown else clicks.edge_index[1]
            when = of_label if is_shown else of_click
            items = ItemsByEvents(event.numpy(), when.numpy(), num_items, num_moments)
        user, item = clicks.edge_label_index[:, positive].numpy()
        time = clicks.edge_label_time[positive].numpy()
        chance = hash_clicks(self.seed, user, item, time, self.num)
        drawn = draw_negatives(items, clicked, user, of_label[positive].numpy(), chance)
        return torch.from_numpy(drawn)

    def _check(self, num_clicked: int, num_drawn: int) -> None:
        if num_drawn == 0:
            raise ValueError(
                f'{self!r} leaves no item to draw: at each of {num_clicked} clicks its user has '
                f'clicked all that was known before.'
            )
        if num_drawn < 0.8 * num_clicked:
            warnings.warn(
                f'SampleNegatives added nothing to {num_clicked - num_drawn} of {num_clicked} '
                f'clicks, whose users have clicked all that was known before.',
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num={self.num}, by={self.by!r}, exclude={self.exclude!r}, '
            f'seed={self.seed})'
        )


def _all_settled(clicks: Any) -> Tensor:
    r"""When the labels of all exposures of a row's user up to its time were known, shape
    :obj:`[L]`."""
    user, time = clicks.edge_label_index[0], clicks.edge_label_time
    moments, moment = time.unique(return_inverse=True)
    row = user * moments.numel() + moment
    ordered, order = row.sort()
    values, settled = clicks.edge_label_settled.unique(return_inverse=True)
    # Users ascend, so that each begins anew.
    latest = (user * values.numel() + settled)[order].cummax(0).values % values.numel()
    return values[latest[torch.searchsorted(ordered, row, right=True) - 1]]
