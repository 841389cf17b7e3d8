r"""What is told in a request, as tensors."""

import reprlib
from typing import Any

import torch
from torch import Tensor


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
    r"""Arguments of a request as tensors.

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


def as_seconds(time: Any) -> Tensor:
    r"""The time of a request as a tensor.

    Raises:
        TypeError: If it is not of int64.
    """
    tensor = to_tensor('time', time, 'be int64 seconds')
    if tensor.dtype != torch.long:
        raise TypeError(f"'time' must be int64 seconds, but has dtype {tensor.dtype}.")
    return tensor


def as_floats(name: str, value: Any) -> Tensor:
    r"""Dense features of a request as float32.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If one is NaN or infinite.
    """
    x = to_tensor(name, value, 'hold numbers').float()
    if not bool(x.isfinite().all()):
        raise ValueError(f"'{name}' must be finite, but got {x[~x.isfinite()][0].item()}.")
    return x


def one_for_each(name: str, value: Tensor, size: int) -> Tensor:
    r"""What is told once, or for each candidate, as one for each, shape :obj:`[size]`.

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
    r"""What is told once, or for each candidate, as a row for each, shape :obj:`[size, width]`.

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
