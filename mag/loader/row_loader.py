from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mag.loader.batch_index_sampler import BatchIndexSampler


class RowLoader(DataLoader):
    r"""Base class of the loaders whose dataset makes a whole batch from a tensor of rows.

    Args:
        rows (Dataset): What is indexed by tensors of rows and has a length.
        batch_size (int): Rows a batch.
        shuffle (bool): If set to :obj:`True`, rows are shuffled anew each epoch.
        seed (int): Seed of the shuffling.
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`.

    Raises:
        TypeError: If :obj:`kwargs` holds what decides how batches are made.
    """

    def __init__(
        self, rows: Dataset, batch_size: int, shuffle: bool, seed: int, **kwargs: Any
    ) -> None:
        taken = {'dataset', 'sampler', 'batch_sampler', 'drop_last', 'collate_fn'} & set(kwargs)
        if taken:
            raise TypeError(
                f'{type(self).__name__} makes its batches itself and takes no {sorted(taken)}.'
            )
        sampler = BatchIndexSampler(len(rows), batch_size, shuffle, seed)  # type: ignore[arg-type]
        super().__init__(rows, batch_size=None, sampler=sampler, collate_fn=_keep_batch, **kwargs)


def check_requested(node_type: str, node: Tensor, num_nodes: int) -> None:
    r"""Raises an :class:`IndexError` if a request names a node that does not exist."""
    if node.numel() > 0 and not 0 <= node.min() <= node.max() < num_nodes:
        raise IndexError(
            f'The request names {node_type} ids from {node.min()} to {node.max()}, but '
            f'there are {num_nodes} {node_type}s.'
        )


def _keep_batch(batch: Any) -> Any:
    r"""In place of the default, which would turn a batch, or tuples within it, into lists."""
    return batch
