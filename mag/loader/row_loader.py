from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mag.loader.batch_index_sampler import BatchIndexSampler
from mag.loader.exposures import Exposures


class RowReader(Dataset):
    r"""Base class of what a loader adds to labelled rows: what a model reads of them.

    Args:
        exposures (Exposures): The rows.
    """

    def __init__(self, exposures: Exposures) -> None:
        self.exposures = exposures

    def __len__(self) -> int:
        return len(self.exposures)

    def __getitem__(self, rows: Tensor) -> Any:
        return self.batch(self.exposures[rows])

    def batch(self, exposures: Exposures) -> Any:
        r"""The batch of some rows, or of the candidates of a request."""
        raise NotImplementedError

    def arguments(self) -> set[str]:
        r"""What a request tells besides the user and the items."""
        raise NotImplementedError


class RowLoader(DataLoader):
    r"""Base class of the loaders whose dataset makes a whole batch from a tensor of rows.

    Args:
        rows (RowReader): What makes the batches.
        batch_size (int): Rows a batch.
        shuffle (bool): If set to :obj:`True`, rows are shuffled anew each epoch.
        seed (int): Seed of the shuffling.
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`.

    Raises:
        TypeError: If :obj:`kwargs` holds what decides how batches are made.
    """

    dataset: RowReader

    def __init__(
        self, rows: RowReader, batch_size: int, shuffle: bool, seed: int, **kwargs: Any
    ) -> None:
        taken = {'dataset', 'sampler', 'batch_sampler', 'drop_last', 'collate_fn'} & set(kwargs)
        if taken:
            raise TypeError(
                f'{type(self).__name__} makes its batches itself and takes no {sorted(taken)}.'
            )
        sampler = self._sampler(rows, batch_size, shuffle, seed)
        super().__init__(rows, batch_size=None, sampler=sampler, collate_fn=_keep_batch, **kwargs)

    def _sampler(
        self, rows: RowReader, batch_size: int, shuffle: bool, seed: int
    ) -> BatchIndexSampler:
        r"""What tells the rows of each batch."""
        return BatchIndexSampler(len(rows), batch_size, shuffle, seed)

    def _request(self, user: Any, items: Any, **arguments: Any) -> Any:
        r"""The batch of a request, from the arguments of :meth:`Exposures.request`."""
        candidates = self.dataset.exposures.request(
            user,
            items,
            **arguments,
            reads=self.dataset.arguments(),
            caller=f'{type(self).__name__}.request',
        )
        return self.dataset.batch(candidates)


def _keep_batch(batch: Any) -> Any:
    r"""In place of the default, which would turn a batch, or tuples within it, into lists."""
    return batch
