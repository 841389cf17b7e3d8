r"""The arguments of a request as tensors, with one entry for each candidate."""

import reprlib
from typing import Any

import torch
from torch import Tensor

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
