from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader.history_batch import HistoryBatch
from mag.loader.row_loader import (
    RowLoader,
    as_integers,
    check_batches,
    check_contexts,
    check_history,
    check_request,
    to_tensor,
)
from mag.schema import CLICKS, require, require_cpu, require_positive_integers, require_range

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
        length (int, optional): Length of the histories. (default: :obj:`20`)
        history (HeteroData, optional): The clicks to read: with :obj:`history=train` the histories
            of a later part are frozen at the last cutoff of training, and with the whole log each
            exposure is served all clicks before itself. By default those of :obj:`data`, which end
            at the last cutoff. (default: :obj:`None`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        TypeError: If times, slots or domains are no integers.
        ValueError: If :obj:`history` is of another log, there are no times to compare, or an
            attribute of the exposures has another length than they.
    """

    dataset: '_Exposures'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 1024,
        shuffle: bool = False,
        length: int = 20,
        history: HeteroData | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_batches(batch_size, shuffle, seed)
        exposures = _Exposures(data, data if history is None else history, length)
        super().__init__(exposures, batch_size, shuffle, seed, **kwargs)

    def request(
        self, user: int | Tensor, items: Tensor, time: int | Tensor, **contexts: int | Tensor
    ) -> HistoryBatch:
        r"""Makes the batch of one request: one user and its candidate items.

        Args:
            user (int or torch.Tensor): The user, or a user for each item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, shape :obj:`[B]`.
            time (int or torch.Tensor): When, int64 seconds, or a time for each item, shape
                :obj:`[B]`.
            **contexts (int or torch.Tensor): :obj:`slot` and :obj:`domain`, where the exposures of
                the log have them, one for the request or one for each item. The slot need not be
                told where :class:`~mag.transforms.TimeSlots` made it: it is that of the time.

        Raises:
            IndexError: If the user, an item or a domain does not exist, or a slot comes after that
                which follows the log.
            TypeError: If an id, a time or a context is no integer.
            ValueError: If there is not one of each for the request, or one for each item, or a
                context is missing or unknown.
        """
        when = to_tensor('time', time, 'be int64 seconds')
        if when.dtype != torch.long:
            raise TypeError(f"'time' must be int64 seconds, but has dtype {when.dtype}.")
        told = dict(zip(contexts, as_integers(**contexts), strict=True))
        known = self.dataset.contexts
        slots = None if 'slot' in told or 'slot' not in known else self.dataset.slots
        check_contexts(told, [name for name in known if name != 'slot' or slots is None])
        for name, value in told.items():
            _check_range('HistoryLoader.request', name, value, self.dataset.num_values[name])
        told['time'] = when
        user, items = check_request('HistoryLoader.request', user, items, self.dataset.num_nodes)
        for name, value in told.items():
            if tuple(value.shape) not in {(), (1,), tuple(items.shape)}:
                raise ValueError(
                    f"A request of {items.numel()} items expects one '{name}' or one for each "
                    f'item, but got shape {list(value.shape)}.'
                )
            told[name] = value.long().expand(items.shape).contiguous()
        when = told.pop('time')
        if slots is not None:
            start, length = slots
            told['slot'] = (when - start).clamp(min=0) // length
        history = self.dataset.clicks.before(user, when)
        return HistoryBatch(user, items, history, **told)


class _Clicks:
    r"""The clicks of a log in the order of user and time."""

    def __init__(self, data: HeteroData, length: int) -> None:
        require(data, 'HistoryLoader', 'edge_index', 'time')
        require_cpu(data, 'HistoryLoader')
        require_positive_integers(length=length)
        self.moments, moment = data[CLICKS].time.unique(return_inverse=True)
        # One more than there are moments: a request may come after all of them.
        self.num_ranks = self.moments.numel() + 1
        num_users = data['user'].num_nodes
        if num_users * self.num_ranks >= 2**63:
            raise ValueError(
                f'HistoryLoader numbers the combinations of {num_users} users and '
                f'{self.moments.numel()} moments, which are too many for int64.'
            )
        user, item = data[CLICKS].edge_index
        self.key, order = (user * self.num_ranks + moment).sort(stable=True)
        # In front of the clicks stands what is found where there is none.
        self.item = torch.cat([torch.tensor([-1]), item[order]])
        self.place = torch.arange(1 - length, 1)

    def before(self, user: Tensor, time: Tensor) -> Tensor:
        r"""The last items that each user clicked strictly before a time, shape
        :obj:`[B, length]`."""
        first = user * self.num_ranks
        start = torch.searchsorted(self.key, first)
        stop = torch.searchsorted(self.key, first + torch.searchsorted(self.moments, time))
        place = stop.unsqueeze(1) + self.place
        place = place.where(place > start.unsqueeze(1), 0)
        return self.item.index_select(0, place.view(-1)).view(place.shape)


class _Exposures(torch.utils.data.Dataset):
    r"""The exposures of a part, indexed by tensors of rows."""

    def __init__(self, data: HeteroData, history: HeteroData, length: int) -> None:
        require(data, 'HistoryLoader')
        self.clicks = _Clicks(history, length)
        check_history('HistoryLoader', data, history)
        self.num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        self.user, self.item = torch.empty(2, 0, dtype=torch.long)
        self.time = torch.empty(0, dtype=torch.long)
        store = data[CLICKS]
        if 'edge_label_index' in store:
            require(data, 'HistoryLoader', 'edge_label_index', 'edge_label_time')
            self.user, self.item = store.edge_label_index
            self.time = store.edge_label_time
        self.label: Tensor | None = None
        if 'edge_label' in store:
            require(data, 'HistoryLoader', 'edge_label_index', 'edge_label')
            self.label = store.edge_label.float()
        self.contexts = {
            name: self._context(f'edge_label_{name}', store[f'edge_label_{name}'])
            for name in _CONTEXTS
            if f'edge_label_{name}' in store
        }
        # The slot that follows the last one of the log reads that one.
        num_slots = store.get('num_slots')
        self.num_values = {
            'slot': None if num_slots is None else num_slots + 1,
            'domain': store.get('num_domain'),
        }
        # When the first slot begins, and how long each is.
        self.slots: tuple[int, int] | None = None
        if 'slot_start' in store and 'slot_length' in store:
            self.slots = store.slot_start, store.slot_length

    def __len__(self) -> int:
        return self.user.numel()

    def __getitem__(self, index: Tensor) -> HistoryBatch:
        user = self.user[index]
        return HistoryBatch(
            user,
            self.item[index],
            self.clicks.before(user, self.time[index]),
            **{name: column[index] for name, column in self.contexts.items()},
            label=None if self.label is None else self.label[index],
        )

    def _context(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != self.user.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"HistoryLoader expects '{name}' of shape [{len(self)}], one entry an exposure, "
                f'but got {shape}.'
            )
        return as_integers(**{name: value})[0]


def _check_range(reader: str, name: str, value: Tensor, number: int | None) -> None:
    # A log need not tell how many there are.
    require_range(reader, f"values of '{name}'", value, 2**63 if number is None else number)
