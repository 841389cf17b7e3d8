import zlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mag.checks import check_integers
from mag.loader.batch_index_sampler import BatchIndexSampler
from mag.loader.negative_batch import NegativeBatch
from mag.negatives import UnclickedItems


class NegativeLoader(DataLoader):
    r"""Loads pairs of a user and an item that the user clicked, with items that the user did not
    click, drawn anew for each batch, all with the same chance: :class:`NegativeBatch`.

    .. code-block:: python

        pairs = train['user', 'clicks', 'item'].edge_index.unique(dim=1)
        loader = NegativeLoader(pairs, num_users, num_items, shuffle=True)

    The negatives of a batch depend on :obj:`seed` and the pairs in it alone, so that they are the
    same for any number of workers and in a run that is resumed, and others in another epoch of a
    shuffled loader. Who clicked every item has no negatives, and is left out.

    Args:
        pairs (torch.Tensor): Users above items they clicked, each pair once, in ascending order,
            shape :obj:`[2, P]`.
        num_users (int): The number of users.
        num_items (int): The number of items.
        batch_size (int, optional): Pairs a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, pairs are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling and of the negatives. (default: :obj:`0`)
        num_negatives (int, optional): Items a pair; one may be drawn twice. (default: :obj:`10`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        IndexError: If a user or an item does not exist.
        TypeError: If pairs are no integers, or an argument has another type.
        ValueError: If pairs do not ascend, or a number is out of range.
    """

    dataset: '_NegativeReader'

    def __init__(
        self,
        pairs: Tensor,
        num_users: int,
        num_items: int,
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        *,
        num_negatives: int = 10,
        **kwargs: Any,
    ) -> None:
        check_integers(1, num_negatives=num_negatives)
        reader = _NegativeReader(pairs, num_users, num_items, seed, num_negatives)
        sampler = BatchIndexSampler(len(reader), batch_size, shuffle, seed)
        super().__init__(reader, batch_size=None, sampler=sampler, **kwargs)


class _NegativeReader(Dataset):
    r"""Draws the negatives of whole batches."""

    def __init__(
        self, pairs: Tensor, num_users: int, num_items: int, seed: int, num_negatives: int
    ) -> None:
        self.seed, self.num_negatives = seed, num_negatives
        self.unclicked = UnclickedItems(pairs, num_users, num_items)
        self.user, self.item = pairs[:, self.unclicked.count[pairs[0]] > 0]

    def __len__(self) -> int:
        return self.user.numel()

    def __getitem__(self, rows: Tensor) -> NegativeBatch:
        user = self.user[rows]
        # Workers need not know the epoch, and a shuffled batch never returns.
        seed = zlib.crc32(rows.numpy().tobytes(), self.seed)
        generator = torch.Generator().manual_seed(seed)
        negative = self.unclicked.draw(user, self.num_negatives, generator)
        return NegativeBatch(user, self.item[rows], negative)
