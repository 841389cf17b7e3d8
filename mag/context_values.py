r"""The values of contexts, as requests tell them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mag.id_map import IdMap

#: What a log has where nothing is told.
UNKNOWN = 'unknown'


def encode_context(ids: IdMap, given: Any) -> Tensor:
    r"""The numbers of the values of a context, :obj:`-1` for one that the log does not have.

    Args:
        ids: The names of the values.
        given: A value, or one for each item.
    """
    spellings = [_spellings(value) for value in as_values(given)]
    found = torch.full((len(spellings),), -1)
    for place in range(max(map(len, spellings), default=0)):
        names = [of[min(place, len(of) - 1)] for of in spellings]
        found = found.where(found >= 0, torch.from_numpy(ids.encode(names)))
    return found


def _spellings(value: Any) -> tuple[Any, ...]:
    r"""The names that a log may have for a value of a context, the likeliest first. A file has
    words, and a table makes fractions of whole numbers where one is missing."""
    if is_nothing(value):
        return (UNKNOWN,)
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower(), str(value), str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(value), f'{value}.0'
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(value), str(int(value))
    # Bytes are refused by the map.
    return (value if isinstance(value, bytes) else str(value),)


def is_nothing(value: Any) -> bool:
    r"""Whether a log has nothing there: of floats, NaN is what tables hold then."""
    is_none = value is None or type(value).__name__ in ('NAType', 'NaTType')
    return is_none or (isinstance(value, (str, float)) and (value == '' or value != value))


def as_values(value: Any) -> list[Any]:
    r"""One value as a list of one, and others as a list."""
    if hasattr(value, 'tolist') and np.ndim(value) > 0:
        # A tensor or a column; of a masked array what is missing becomes None.
        return value.tolist()
    if hasattr(value, 'to_numpy'):
        return value.to_numpy().tolist()
    is_several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return list(value) if is_several else [value]


def for_each(name: str, value: Tensor, number: int) -> Tensor:
    r"""What is told once, or for each item, for each item."""
    if value.size(0) not in (1, number):
        raise ValueError(
            f"A request of {number} items takes one '{name}', or one for each item, but got "
            f'{value.size(0)}.'
        )
    return value.expand(number, *value.shape[1:])
