r"""What a model reads of items alone, kept between requests."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mag.online.replica import Replica

# The rows of some nodes as a model reads them: counts of each hop, and recent neighbors.
Read = Callable[[str, np.ndarray], tuple[tuple[Tensor, ...], Tensor]]


@runtime_checkable
class SplitModel(Protocol):
    r"""A model that scores a request in two steps, such as :class:`~mag.models.MacGNN`: two pure
    functions of tensors, whose results are those of a call on the same pairs up to rounding."""

    def item_state(
        self, item: Tensor, item_hops: tuple[Tensor, ...], item_recent: Tensor
    ) -> Tensor:
        r"""All that is read of items before they are paired, a function of the row of each alone.

        Args:
            item (torch.Tensor): The items, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            item_hops (tuple[torch.Tensor, ...]): Their counts at each hop, each of shape
                :obj:`[B, M_k]`.
            item_recent (torch.Tensor): Their last users, shape :obj:`[B, R]`.

        Returns:
            Shape :obj:`[B, C]`.
        """

    def score_request(
        self, user: Tensor, user_hops: tuple[Tensor, ...], user_recent: Tensor, state: Tensor
    ) -> Tensor:
        r"""The logits of one user and many items, shape :obj:`[B]`.

        Args:
            user (torch.Tensor): The user, shape :obj:`[1]`.
            user_hops (tuple[torch.Tensor, ...]): Its counts, each of shape :obj:`[1, M_k]`.
            user_recent (torch.Tensor): Its last items, shape :obj:`[1, R]`.
            state (torch.Tensor): The states of the items, shape :obj:`[B, C]`.
        """


class SplitBatch(NamedTuple):
    r"""A request of one user as :meth:`SplitModel.score_request` reads it.

    Attributes:
        user (torch.Tensor): The user, shape :obj:`[1]`.
        item (torch.Tensor): The items, shape :obj:`[B]`.
        user_hops (tuple[torch.Tensor, ...]): The user's counts, each of shape :obj:`[1, M_k]`.
        user_recent (torch.Tensor): The user's last items, shape :obj:`[1, R]`.
        state (torch.Tensor): The states of the items, shape :obj:`[B, C]`.
    """

    user: Tensor
    item: Tensor
    user_hops: tuple[Tensor, ...]
    user_recent: Tensor
    state: Tensor


class ItemTable:
    r"""The states of the items of a snapshot, by :meth:`SplitModel.item_state`, as of the last
    event that a replica has counted.

    A state is computed when its item is asked for and its row has moved since. It is a function of
    that row alone, so that an answer does not depend on what was asked before.
    The thread that follows the log by the replica is the only one that reads and writes: what it
    hands out are copies, as of one position, which nothing changes afterwards.

    Memory is that of a state and 8 bytes for each item that was asked for.

    Args:
        model (SplitModel): The model, whose weights stay as they are.
        replica (Replica): Where rows move.
        read (Callable): Reads the rows of some nodes of the replica.

    Attributes:
        num_bytes (int): What all items together take.
    """

    def __init__(self, model: SplitModel, replica: Replica, read: Read) -> None:
        self._model, self._replica, self._read = model, replica, read
        number = replica.snapshot.num_nodes['item'] + 1
        size = self._states(np.array([-1]))
        # The system gives memory when a state is written. The last is that of the unknown.
        self._table = torch.empty(number, size.size(1), dtype=size.dtype)
        self._as_of = np.full(number, -1)
        self._num_restarts = replica.num_restarts
        self.num_bytes = self._table.nbytes + self._as_of.nbytes

    def states(self, items: np.ndarray) -> Tensor:
        r"""A copy of the states of some items, shape :obj:`[B, C]`.

        Args:
            items (numpy.ndarray): Items, int64, :obj:`-1` for an unknown one, shape
                :obj:`[B]`. One that came later is unknown to the model, and its row is read anew.
        """
        is_new = items >= len(self._as_of) - 1
        if is_new.any():
            with torch.inference_mode():
                states = self.states(np.where(is_new, -1, items))
                states[torch.from_numpy(is_new)] = self._states(items[is_new])
                return states
        if self._num_restarts != self._replica.num_restarts:
            self._num_restarts = self._replica.num_restarts
            self._as_of.fill(-1)
        is_stale = self._replica.moved_since('item', items, self._as_of[items])
        with torch.inference_mode():
            if is_stale.any():
                stale = np.unique(items[is_stale])
                place = torch.from_numpy(stale).remainder(len(self._table))
                self._table.index_copy_(0, place, self._states(stale))
                self._as_of[stale] = self._replica.position
            return self._table.index_select(0, torch.from_numpy(items).remainder(len(self._table)))

    def _states(self, items: np.ndarray) -> Tensor:
        hops, recent = self._read('item', items)
        with torch.inference_mode():
            known = np.where(items < self._replica.snapshot.num_nodes['item'], items, -1)
            return self._model.item_state(torch.from_numpy(known), hops, recent)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self._replica!r}, num_bytes={self.num_bytes})'
