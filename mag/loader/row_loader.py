import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import HeteroData

from mag.loader.batch_index_sampler import BatchIndexSampler
from mag.schema import CLICKS, require_range


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


def check_history(reader: str, data: HeteroData, history: HeteroData) -> None:
    r"""Raises a :class:`ValueError` unless exposures of :obj:`data` can be compared by time with
    clicks of :obj:`history`."""
    for node_type in ('user', 'item'):
        there, here = history[node_type].num_nodes, data[node_type].num_nodes
        if there != here:
            raise ValueError(
                f"{reader} expects 'history' of the same log, but it has {there} {node_type}s "
                f'where the data has {here}.'
            )
    if 'position' in history[CLICKS]:
        raise ValueError(
            f"{reader} compares times, but the data was split by each user's own log, which leaves "
            f'clicks in the history that happened later: pass history= the whole log, or split '
            f"with by='global'."
        )


def check_batches(batch_size: int, shuffle: bool, seed: int) -> None:
    r"""Raises what :class:`BatchIndexSampler` would, before a loader has worked for long."""
    BatchIndexSampler(0, batch_size, shuffle, seed)


def to_tensor(name: str, value: Any, expected: str) -> Tensor:
    r"""An argument of a request as a tensor.

    Raises:
        TypeError: If it is none, in a sentence that says what it must be.
    """
    try:
        return torch.as_tensor(value)
    # For each kind of what is no number, PyTorch has another error.
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"'{name}' must {expected}, but got {reprlib.repr(value)}.") from None


def as_integers(**values: Any) -> list[Tensor]:
    r"""The arguments of a request as tensors.

    Raises:
        TypeError: Names the argument that holds no integers.
    """
    tensors = []
    for name, value in values.items():
        tensor = to_tensor(name, value, 'hold integer ids')
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"'{name}' must hold integer ids, but has dtype {tensor.dtype}.")
        tensors.append(tensor)
    return tensors


def check_request(
    reader: str, user: int | Tensor, items: Tensor, num_nodes: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    r"""Makes of the user and the items of a request a user and an item for each pair.

    Args:
        reader (str): The name of the method that was called, for the message.
        user (int or torch.Tensor): The user, or a user for each item, shape :obj:`[B]`.
        items (torch.Tensor): The candidates, shape :obj:`[B]`.
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.

    Raises:
        IndexError: If the user or an item does not exist.
        TypeError: If an id is no integer.
        ValueError: If there is not one user, or one for each item.
    """
    user, items = as_integers(user=user, items=items)
    if items.dim() != 1 or tuple(user.shape) not in {(), (1,), tuple(items.shape)}:
        raise ValueError(
            f'A request takes items of shape [B], and one user or a user for each item, but '
            f'got items of shape {list(items.shape)} and users of shape {list(user.shape)}.'
        )
    user, items = user.long().expand(items.shape), items.long()
    check_ids(reader, num_nodes, user=user, item=items)
    return user, items


def check_contexts(told: Collection[str], known: Collection[str]) -> None:
    r"""Raises a :class:`ValueError` unless a request tells all contexts of a log and no others."""
    if set(told) != set(known):
        raise ValueError(
            f'A request for this log must tell {sorted(known) or "no context"}, but told '
            f'{sorted(told) or "none"}.'
        )


def check_ids(reader: str, num_nodes: Mapping[str, int], **ids: Tensor) -> None:
    r"""Raises an :class:`IndexError` if a node does not exist, by its type, on behalf of
    :obj:`reader`."""
    for node_type, node in ids.items():
        require_range(reader, f'{node_type} ids', node, num_nodes[node_type])


def _keep_batch(batch: Any) -> Any:
    r"""In place of the default, which would turn a batch, or tuples within it, into lists."""
    return batch
