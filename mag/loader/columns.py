r"""Columns of a log, as models read them, once they are checked."""

from typing import Any

import torch
from torch import Tensor

from mag.checks import check_tensor, check_values


def ids(caller: str, name: str, value: Any, length: int) -> Tensor:
    r"""A column of ids, or several, which is checked."""
    is_table = isinstance(value, Tensor) and value.dim() == 2
    check_tensor(caller, name, value, (length, 'F') if is_table else (length,), 'integers')
    return value


def dense(caller: str, name: str, value: Any, length: int) -> Tensor:
    r"""Dense features as a table of float32, which is checked, shape :obj:`[length, F]`; of none,
    :obj:`[length, 0]`."""
    if value is None:
        return torch.empty(length, 0)
    is_table = isinstance(value, Tensor) and value.dim() == 2
    check_tensor(caller, name, value, (length, 'F') if is_table else (length,), 'floats')
    # Models read float32, of which some doubles are beyond.
    table = value.float() if is_table else value.float().unsqueeze(1)
    check_values(caller, name, table, table.isfinite(), 'finite float32')
    return table


def outcome(caller: str, name: str, value: Any, label: Tensor) -> Tensor:
    r"""What followed an exposure, 0 or 1, as float32: its conversion, shape :obj:`[L]`, or its
    behaviors, shape :obj:`[L, N]`; 0 without a click."""
    what, size = f'edge_label_{name}', label.numel()
    check_tensor(caller, what, value, (size, 'N') if name == 'behavior' else (size,), 'numbers')
    happened = value != 0
    check_values(caller, what, value, ~happened | (value == 1), '0 and 1')
    early = (happened if value.dim() == 1 else happened.any(1)) & (label == 0)
    if bool(early.any()):
        raise ValueError(
            f"{caller} found '{what}' in {int(early.sum())} exposures without a click, such as "
            f'row {int(early.nonzero()[0])}: it tells what followed a click.'
        )
    return value.float()
