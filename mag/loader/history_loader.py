from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_integers
from mag.click_index import ClickIndex, take
from mag.cutoff import require_history
from mag.loader.exposures import Exposures
from mag.loader.history_batch import HistoryBatch
from mag.loader.row_loader import RowLoader, RowReader
from mag.schema import CLICKS, require, require_cpu

# What a batch holds of an exposure besides user, item and label, if the log does.
_CONTEXTS = ('slot', 'domain')


class HistoryLoader(RowLoader):
    r"""Loads the exposures of a log with the last clicks of their users, :class:`HistoryBatch`.

    .. code-block:: python

        train_loader = HistoryLoader(train, shuffle=True, length=50, history=data)
        for batch in train_loader:
            loss = binary_cross_entropy_with_logits(model(batch), batch.label)

    For an exposure :math:`(u, i, t)` these are the items of the last :obj:`length` clicks of
    :math:`u` strictly before :math:`t`, newest last, padded on the left with :obj:`-1` as by
    :class:`~mag.transforms.RecentNeighbors`, whose lists are as of a cutoff and not of each
    exposure. Clicks of the same second keep the order of the log; those of the second :math:`t`
    are left out, since which came first is not known. Clicks are sorted by user and time, so that
    a history is an interval, whose ends are found by binary search.

    Args:
        data (HeteroData): The part whose exposures are loaded. :obj:`edge_label`,
            :obj:`edge_label_slot` and :obj:`edge_label_domain` are in batches where they are in the
            data; without :obj:`edge_label_index` there are none and the loader serves requests.
        batch_size (int, optional): Exposures a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, exposures are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        length (int, optional): Length of the histories. (default: :obj:`20`)
        history (HeteroData, optional): The clicks to read: with :obj:`history=train` the histories
            of a later part are frozen at the last cutoff of training, and with the whole log each
            exposure is served all clicks before itself. By default those of :obj:`data`, which end
            at the last cutoff. (default: :obj:`None`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        TypeError: If times, slots or domains are no integers.
        ValueError: If :obj:`history` is of another log, there are no times to compare, or an
            attribute of the exposures has another length than they.
    """

    dataset: '_HistoryReader'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        *,
        length: int = 20,
        history: HeteroData | None = None,
        **kwargs: Any,
    ) -> None:
        histories = _HistoryReader(data, data if history is None else history, length)
        super().__init__(histories, batch_size, shuffle, seed, **kwargs)

    def request(
        self, user: int | Tensor, items: Tensor, time: int | Tensor, **contexts: int | Tensor
    ) -> HistoryBatch:
        r"""Makes the batch of one request: one user and its candidate items.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            time (int or torch.Tensor): When, int64 seconds, or a time for each item, shape
                :obj:`[B]`.
            **contexts (int or torch.Tensor): :obj:`slot` and :obj:`domain`, where the exposures of
                the log have them, one for the request or one for each item. The slot may be
                left out where :class:`~mag.transforms.TimeSlots` made it: it is that of the time.

        Raises:
            IndexError: If the user, an item or a domain does not exist, or a slot comes after that
                which follows the log.
            TypeError: If an id, a time or a context is no integer.
            ValueError: If there is not one of each for the request, or one for each item, or a
                context is missing or unknown.
        """
        return self._request(user, items, time=time, contexts=contexts)


class _HistoryReader(RowReader):
    r"""Reads the last clicks of users."""

    def __init__(self, data: HeteroData, history: HeteroData, length: int) -> None:
        require(data, 'HistoryLoader')
        require(history, 'HistoryLoader', 'edge_index', 'time')
        require_cpu(history, 'HistoryLoader')
        check_integers(1, length=length)
        require_history(data, 'HistoryLoader', history)
        super().__init__(
            Exposures(data, 'HistoryLoader', needs=('edge_label_time',), outcomes=False)
        )
        user, item = history[CLICKS].edge_index
        num_users = data['user'].num_nodes
        self.clicks = ClickIndex(
            user,
            history[CLICKS].time,
            num_users,
            caller='HistoryLoader',
            owners=f'{num_users} users',
        )
        # In front of the clicks stands what is found where there is none.
        self.clicked = torch.cat([torch.tensor([-1]), item[self.clicks.click[1:]]])
        self.place = torch.arange(1 - length, 1)

    def arguments(self) -> set[str]:
        return {'time', *self.exposures.context_names(_CONTEXTS)}

    def batch(self, exposures: Exposures) -> HistoryBatch:
        user = exposures.user
        newest, count = self.clicks.before(user, exposures.time)
        place = newest.unsqueeze(1) + self.place
        place = place.where(self.place > -count.unsqueeze(1), 0)
        return HistoryBatch(
            user,
            exposures.item,
            take(self.clicked, place),
            exposures.context('slot'),
            exposures.context('domain'),
            exposures.label,
        )
