from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mag.checks import check_choice
from mag.loader import ExposureBatch, JoinedBatch, PairBatch
from mag.store.store import Store

_BATCHES = ('pairs', 'features', 'joined')


class StoreRows(NamedTuple):
    r"""Rows of the log of a store.

    Attributes:
        user (torch.Tensor): Who was shown something, int64, shape :obj:`[B]`.
        item (torch.Tensor): What, int64, shape :obj:`[B]`.
        window (torch.Tensor): The window whose history each reads, int64, shape :obj:`[B]`.
        label (torch.Tensor or None): 1 for a click, 0 for none, float32, shape :obj:`[B]`.
        context (torch.Tensor): The codes of the contexts that are read, int64, shape
            :obj:`[B, C]`.
        x (torch.Tensor): The features that are read, float32, shape :obj:`[B, F]`.
    """

    user: Tensor
    item: Tensor
    window: Tensor
    label: Any
    context: Tensor
    x: Tensor


class StoreBatches:
    r"""What models read of rows of a :class:`Store`.

    Args:
        store (Store): The store.
        batches (str): :obj:`"pairs"`, :obj:`"features"` or :obj:`"joined"`, see
            :class:`StoreLoader`.

    Attributes:
        contexts (list[str]): The contexts that are read, in the order of their columns.
        features (list[str]): The features that are.

    Raises:
        ValueError: If there are no such batches.
    """

    def __init__(self, store: Store, batches: str) -> None:
        check_choice(_BATCHES, batches=batches)
        self.store, self.batches = store, batches
        is_told = batches != 'pairs'
        self.contexts = [*store.contexts] if is_told else []
        self.features = store.features if is_told else []

    @property
    def fields(self) -> tuple[str, ...]:
        r"""The name of each column of :obj:`ExposureBatch.sparse`."""
        found = []
        for node_type, attributes in self.store.attributes.items():
            found += [node_type, *(f'{node_type}_{name}' for name in attributes)]
        return (*found, *self.contexts)

    def latest(
        self, user: Tensor, item: Tensor, contexts: Mapping[str, Tensor], x: Tensor | None
    ) -> Any:
        r"""The batch of candidates, as of the last cutoff of the store, which is the
        end of the log unless it has cutoffs of its own.

        Args:
            user: Their users, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            item: The items, likewise.
            contexts: By name each context that is read, shape :obj:`[B]`.
            x: The features that are, shape :obj:`[B, F]`.
        """
        context = torch.empty(len(user), len(self.contexts), dtype=torch.long)
        for place, name in enumerate(self.contexts):
            context[:, place] = contexts[name]
        window = torch.full_like(user, self.store.num_windows - 1)
        x = torch.empty(len(user), 0) if x is None else x
        return self.batch(StoreRows(user, item, window, None, context, x))

    def batch(self, rows: StoreRows) -> Any:
        r"""The batch of some rows, whose nodes and windows are known to exist."""
        user, item, window, label, context, x = rows
        pairs = features = None
        if self.batches != 'features':
            user_hops, user_recent = self.store.gather('user', user, window)
            item_hops, item_recent = self.store.gather('item', item, window)
            pairs = PairBatch(user, item, user_hops, item_hops, user_recent, item_recent, label)
        if self.batches != 'pairs':
            counts = self.store.gather_target(user, item, window)
            sparse = torch.stack(self._sparse({'user': user, 'item': item}), dim=1)
            sparse = torch.cat([sparse, context], dim=1)
            features = ExposureBatch(user, item, sparse, x, label, counts=counts)
        if pairs is None or features is None:
            return pairs or features
        return JoinedBatch(user, item, label, pairs=pairs, features=features)

    def _sparse(self, nodes: dict[str, Tensor]) -> list[Tensor]:
        found = []
        for node_type, node in nodes.items():
            found.append(node)
            place = node.numpy()
            for name in self.store.attributes[node_type]:
                code = self.store.attribute(name)[np.maximum(place, 0)].astype(np.int64)
                code[place < 0] = -1
                found.append(torch.from_numpy(code))
        return found
