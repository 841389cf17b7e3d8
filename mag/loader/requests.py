r"""The arguments of a request as tensors, with one entry for each candidate."""

import reprlib
from typing import Any

import torch
from torch import Tensor

from mag.checks import check_ids

# What an argument must do, and which types do.
_DUTIES = {
    'hold integer ids': lambda dtype: (
        not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    ),
    # A float cannot hold unix seconds exactly.
    'be int64 seconds': lambda dtype: dtype == torch.long,
    'hold numbers': lambda dtype: not dtype.is_complex,
}


def to_tensor(name: str, value: Any, duty: str) -> Tensor:
    r"""An argument of a request as a tensor.

    Args:
        name: Its name.
        value: What was given, a number or a tensor.
        duty: What it must do: :obj:`"hold integer ids"`, :obj:`"be int64 seconds"` or :obj:`"hold
            numbers"`.

    Raises:
        TypeError: If it does not.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    # For each kind of what is no number, PyTorch has another error.
    except (TypeError, ValueError, RuntimeError):
        found = f'got {reprlib.repr(value)}'
    else:
        if _DUTIES[duty](tensor.dtype):
            return tensor
        found = f'has dtype {tensor.dtype}'
    raise TypeError(f"'{name}' must {duty}, but {found}.")


def pairs(caller: str, user: Any, items: Any, num_nodes: dict[str, int]) -> tuple[Tensor, Tensor]:
    r"""A user and an item for each candidate, :obj:`-1` for an unknown one, each of shape
    :obj:`[size]`.

    Raises:
        IndexError: If a user or an item does not exist.
        TypeError: If an id is no integer.
        ValueError: If there is not one user, or one for each item.
    """
    user = to_tensor('user', user, 'hold integer ids')
    items = to_tensor('items', items, 'hold integer ids')
    if items.dim() != 1 or tuple(user.shape) not in {(), (1,), tuple(items.shape)}:
        raise ValueError(
            f'A request takes items of shape [B], and one user or a user for each item, but got '
            f'items of shape {list(items.shape)} and users of shape {list(user.shape)}.'
        )
    check_ids(caller, 'user ids', user, num_nodes['user'], first=-1)
    check_ids(caller, 'item ids', items, num_nodes['item'], first=-1)
    return user.long().expand(items.shape), items.long()


def one_for_each(name: str, value: Tensor, size: int) -> Tensor:
    r"""What is given once, or for each candidate, as one for each, shape :obj:`[size]`.

    Raises:
        ValueError: If it has another shape.
    """
    if tuple(value.shape) not in {(), (1,), (size,), (size, 1)}:
        raise ValueError(
            f"A request of {size} items expects one '{name}' or one for each item, but got shape "
            f'{list(value.shape)}.'
        )
    return value.view(-1).expand(size).contiguous()


def row_for_each(name: str, value: Tensor, size: int, width: int) -> Tensor:
    r"""What is given once, or for each candidate, as a row for each, shape :obj:`[size, width]`.

    Raises:
        ValueError: If it has another shape.
    """
    is_column = width == 1 and value.dim() < 2
    table = value.view(-1, 1) if is_column else value
    if list(table.shape) not in ([width], [1, width], [size, width]):
        raise ValueError(
            f"A request of {size} items expects '{name}' of shape [{size}, {width}] or [{width}], "
            f'but got {list(value.shape)}.'
        )
    return table.expand(size, width)


def dense_for_each(x: Any, size: int, width: int) -> Tensor:
    r"""Dense features, given once or for each candidate, as float32, shape :obj:`[size, width]`.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If one is NaN or infinite, or they have another shape.
    """
    given = torch.empty(size, 0) if x is None else to_tensor('x', x, 'hold numbers').float()
    if not bool(given.isfinite().all()):
        raise ValueError(f"'x' must be finite, but got {given[~given.isfinite()][0].item()}.")
    return row_for_each('x', given, size, width)
