from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mag.checks import check_booleans, check_integers


class BatchIndexSampler(Sampler[Tensor]):
    r"""Yields the row indices of whole batches as tensors, so that a batch is gathered by indexing
    and never row by row.

    The order of an epoch depends on :obj:`(seed, epoch)` alone. Under
    :mod:`torch.distributed` each process gets every :obj:`world_size`-th row and all processes get
    the same number of batches: when shuffling, the few rows left over are dropped; otherwise they
    make the last batch of some processes one row longer, and every row is seen once.
    A last row that would be a batch of its own joins the batch before, since one row has no batch
    statistics.

    Args:
        num_rows (int): The number of rows.
        batch_size (int): Rows a batch (of one process).
        shuffle (bool, optional): If set to :obj:`True`, rows are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)

    Attributes:
        skip (int): The number of batches that the next iteration leaves out at its start; set it to
            resume within an epoch. It goes back to zero when an iteration begins.

    Raises:
        TypeError: If :obj:`shuffle` is no boolean, or a number no integer.
        ValueError: If :obj:`batch_size` is not positive, or another number is negative.
    """

    def __init__(
        self, num_rows: int, batch_size: int, shuffle: bool = False, seed: int = 0
    ) -> None:
        check_integers(1, batch_size=batch_size)
        check_booleans(shuffle=shuffle)
        check_integers(0, num_rows=num_rows, seed=seed)
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        r"""Sets the epoch that the next iteration shuffles for."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        rank, world_size = self._process()
        if self.shuffle:
            self._require_rows(world_size)
            rows = torch.randperm(self.num_rows, generator=self._generator())
            rows = rows[: self.num_rows - self.num_rows % world_size]
        else:
            rows = torch.arange(self.num_rows)
        rows = rows[rank::world_size]
        num_batches = len(self)
        skip, self.skip = self.skip, 0
        for batch in range(skip, num_batches):
            start = batch * self.batch_size
            stop = None if batch == num_batches - 1 else start + self.batch_size
            yield rows[start:stop]

    def __len__(self) -> int:
        if self.num_rows == 0:
            return 0
        num_rows = self.num_rows // self._process()[1]
        lonely = num_rows > self.batch_size > 1 and num_rows % self.batch_size == 1
        return max(1, -(-num_rows // self.batch_size) - lonely)

    def _require_rows(self, world_size: int) -> None:
        r"""Raises a :class:`ValueError` if there are fewer rows than processes to share them."""
        if 0 < self.num_rows < world_size:
            raise ValueError(
                f'{type(self).__name__} cannot shuffle {self.num_rows} rows over {world_size} '
                f'processes: some would train on nothing.'
            )

    def _generator(self) -> torch.Generator:
        r"""What shuffles an epoch."""
        # A generator's seeds end at 2^64.
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**64)

    @staticmethod
    def _process() -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
