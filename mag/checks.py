r"""Checks of arguments: one function a kind, one line a call.

What is of another type raises a :class:`TypeError`, an id that does not exist an
:class:`IndexError`, and any other value a :class:`ValueError`; each in a sentence that names the
argument and restates what was given. Values of tensors are looked at outside of compiled code only,
whose graph would break, and on a CPU, unless the caller would wait for a GPU anyway.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


_KINDS = {
    'integers': _is_integer,
    'int64 seconds': _is_integer,
    'floats': lambda dtype: dtype.is_floating_point,
    'numbers': lambda dtype: not dtype.is_complex,
}


def described(value: Any) -> str:
    r"""What a message says of a value: the shape of a tensor, a short value itself, else its
    type."""
    if isinstance(value, Tensor):
        return f'shape {list(value.shape)}'
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return type(value).__name__


def check_integers(least: int | None = None, below: int | None = None, **values: Any) -> None:
    r"""Raises unless all :obj:`values` are integers from :obj:`least` to below :obj:`below`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"'{name}' must be an integer, but got {value!r}.")
        if least is not None and value < least:
            raise ValueError(f"'{name}' must be at least {least}, but got {value}.")
        if below is not None and value >= below:
            raise ValueError(f"'{name}' must lie below {below}, but got {value}.")


def check_sizes(**values: Any) -> None:
    r"""Raises unless all :obj:`values` are sequences of positive integers, such as
    :obj:`(64, 32)`."""
    for name, value in values.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(
                f"'{name}' must be a sequence of sizes such as (64, 32), but got {value!r}."
            )
        check_integers(1, **{f'{name}[{place}]': size for place, size in enumerate(value)})


def check_booleans(**values: Any) -> None:
    r"""Raises unless all :obj:`values` are booleans: a word such as :obj:`"no"` would be taken for
    true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"'{name}' must be True or False, but got {value!r}.")


def check_numbers(interval: str, **values: Any) -> None:
    r"""Raises unless all :obj:`values` are numbers in an interval, such as :obj:`"(0, 1]"`.

    >>> check_numbers('(0, 1]', floor=0.5)
    >>> check_numbers('(0, 1]', floor=0)
    Traceback (most recent call last):
    ValueError: 'floor' must be a number in (0, 1], but got 0.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(','))
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"'{name}' must be a number in {interval}, but got {value!r}.")
        above = value > low if interval[0] == '(' else value >= low
        below = value < high if interval[-1] == ')' else value <= high
        # NaN is neither.
        if not (above and below):
            raise ValueError(f"'{name}' must be a number in {interval}, but got {value!r}.")


def check_choice(choices: Collection[Any], **values: Any) -> None:
    r"""Raises unless all :obj:`values` are among the :obj:`choices`."""
    for name, value in values.items():
        # A value that cannot be hashed or compared with all is none of them.
        if not any(value is choice or value == choice for choice in choices):
            raise ValueError(
                f"'{name}' must be one of {', '.join(map(repr, choices))}, but got {value!r}."
            )


def check_unicode(name: str, texts: Iterable[str], of: str = 'place') -> None:
    r"""Raises unless all texts can be written: a lone surrogate, half of a character, cannot.

    Args:
        name: The argument.
        texts: The texts.
        of: What the message calls the place of a text. (default: :obj:`"place"`)
    """
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"'{name}' must be Unicode, but that of {of} {row} is not ({error}): decode it "
                f"anew, or pass it through text.encode('utf-8', 'replace').decode()."
            ) from error


def check_keys(keys: Collection[str], **values: Any) -> None:
    r"""Raises unless all :obj:`values` are dictionaries of the :obj:`keys`."""
    for name, value in values.items():
        sentence = f"'{name}' must be a dictionary of {' and '.join(map(repr, keys))}"
        if not isinstance(value, Mapping):
            raise TypeError(f'{sentence}, but got {value!r}.')
        if set(value) != set(keys):
            raise ValueError(f'{sentence}, but got {value!r}.')


def check_tensor(
    caller: Any, name: str, value: Any, shape: Sequence[int | str], kind: str | torch.dtype
) -> None:
    r"""Raises unless :obj:`value` is a tensor of a shape and a type.

    >>> check_tensor('PathLoader', 'edge_index', torch.ones(3), (2, 'E'), torch.long)
    Traceback (most recent call last):
    ValueError: PathLoader expects 'edge_index' of shape [2, E], but got shape [3].

    Args:
        caller: Who checks, or its name.
        name: The argument.
        value: What was given.
        shape: A size for each dimension, or what it counts, where any will do; :obj:`"*"` first
            stands for any number of leading dimensions.
        kind: :obj:`"integers"`, :obj:`"int64 seconds"`, which are integers, :obj:`"floats"`,
            :obj:`"numbers"`, which may be boolean, or a type such as :obj:`torch.long`.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{caller} expects '{name}' to be a tensor of shape {_listed(shape)}, but got "
            f'{described(value)}.'
        )
    sizes = list(value.shape)
    is_open = bool(shape) and shape[0] == '*'
    wanted = list(shape[1:] if is_open else shape)
    tail = sizes[len(sizes) - len(wanted) :] if is_open else sizes
    if len(tail) != len(wanted) or any(
        isinstance(want, int) and size != want for size, want in zip(tail, wanted)
    ):
        raise ValueError(
            f"{caller} expects '{name}' of shape {_listed(shape)}, but got shape {sizes}."
        )
    is_kind = value.dtype == kind if isinstance(kind, torch.dtype) else _KINDS[kind](value.dtype)
    if not is_kind:
        of_kind = f'dtype {str(kind).removeprefix("torch.")}'
        raise TypeError(
            f"{caller} expects '{name}' of {kind if isinstance(kind, str) else of_kind}, but got "
            f'{value.dtype}.'
        )


def check_ids(
    caller: Any, what: str, ids: Tensor, number: int, first: int = 0, wait: bool = False
) -> None:
    r"""Raises unless all :obj:`ids` lie from :obj:`first` to :obj:`number - 1`.

    Args:
        caller: Who checks, or its name.
        what: What the ids are of.
        ids: Integers of any shape.
        number: How many there are.
        first: The least id. (default: :obj:`0`)
        wait: Whether to wait for a GPU. (default: :obj:`False`)
    """
    if _is_hidden(ids, wait) or ids.numel() == 0:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < first or high >= number:
        raise IndexError(
            f'{caller} found {what} from {low} to {high}, but expected them from {first} to '
            f'{number - 1}.'
        )


def check_values(
    caller: Any, name: str, value: Tensor, good: Tensor, expected: str, wait: bool = False
) -> None:
    r"""Raises unless all entries of a tensor are :obj:`good`.

    >>> label = torch.tensor([1.0, 0.0, 5.0])
    >>> check_values('fit', 'edge_label', label, (label == 0) | (label == 1), '0 or 1')
    Traceback (most recent call last):
    ValueError: fit expects 'edge_label' of 0 or 1, but 1 of 3 is not, such as 5.0 in row 2.

    Args:
        caller: Who checks, or its name.
        name: The argument.
        value: Its values.
        good: Which of them are as expected, of the same shape.
        expected: What that is.
        wait: Whether to wait for a GPU. (default: :obj:`False`)
    """
    if _is_hidden(value, wait):
        return
    if not bool(good.all()):
        place = tuple((~good).nonzero()[0].tolist())
        num_bad = int((~good).sum())
        column = f', column {place[1]}' if len(place) > 1 else ''
        raise ValueError(
            f"{caller} expects '{name}' of {expected}, but {num_bad} of {good.numel()} "
            f'{"is" if num_bad == 1 else "are"} not, such as {value[place].item()} in row '
            f'{place[0]}{column}.'
        )


def _listed(shape: Sequence[int | str]) -> str:
    # Only where it is asked for: compiled code knows no text of a size that varies.
    return f'[{", ".join(map(str, shape))}]'


def _is_hidden(value: Tensor, wait: bool) -> bool:
    return torch.compiler.is_compiling() or (value.device.type != 'cpu' and not wait)
