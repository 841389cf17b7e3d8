r"""Raw ids of any kind, as they are compared, joined and looked up."""

import datetime
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# What is compared by its text: a CSV file that got a first id such as A7 has texts where an earlier
# export of it had numbers.
TEXTS = ('integer', 'uuid', 'text')
# By what all ids of a list are, the kind of a map.
_KINDS: dict[str, tuple[type, ...]] = {
    'boolean': (bool, np.bool_),
    'integer': (int, np.integer),
    'float': (float, np.floating),
    'text': (str,),
    'uuid': (uuid.UUID,),
    'blob': (bytes, bytearray, memoryview),
    'time': (datetime.date, np.datetime64),
}
_KNOWN = 'integers, texts, UUIDs, bytes, dates and times, floats or booleans'


class RawIds(NamedTuple):
    r"""Raw ids as they are compared."""

    kind: str
    #: Shape :obj:`[N]`; texts and bytes are objects.
    values: np.ndarray
    is_missing: np.ndarray | None
    shape: tuple[int, ...]


def read_ids(raw: Any, caller: str) -> RawIds:
    r"""Reads ids in whatever holds them.

    Args:
        raw (Sequence): A list, an array of NumPy, a tensor or a column that NumPy can read.
        caller (str): The name of the caller, for the message.

    Raises:
        TypeError: If they are of a type that has no order, or of several that cannot be compared.
    """
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu()
    if hasattr(raw, 'to_numpy') and hasattr(getattr(raw, 'dtype', None), 'tz'):
        # Objects would have no nanoseconds.
        raw = raw.to_numpy('datetime64[ns]')
    elif hasattr(raw, 'to_numpy') and not isinstance(getattr(raw, 'dtype', None), np.dtype):
        # Of a column of pandas that lacks a number, NumPy would make floats.
        raw = raw.to_numpy(dtype=object) if hasattr(raw, 'isna') else raw.to_numpy()
    if isinstance(raw, np.ma.MaskedArray):
        raw = np.where(np.ma.getmaskarray(raw), np.array(None), np.ma.getdata(raw))
    # Else NumPy would make texts of a list of numbers and texts.
    values = np.array(raw, dtype=object) if isinstance(raw, (list, tuple)) else np.asarray(raw)
    shape, values = values.shape, values.ravel()
    if values.dtype.kind in 'UTS':
        values = values.astype(object)
    if values.dtype == object:
        return _read_objects(values, caller)._replace(shape=shape)
    if values.dtype.kind in 'iu':
        return RawIds('integer', _narrowed(values), None, shape)
    if values.dtype.kind == 'b':
        return RawIds('boolean', values, None, shape)
    if values.dtype.kind == 'f' and values.dtype.itemsize <= 8:
        is_nan = np.isnan(values)
        # -0.0 and 0.0 are one id.
        values = np.where(is_nan, 0, values) + values.dtype.type(0)
        return RawIds('float', values, is_nan, shape)
    if values.dtype.kind == 'M':
        is_nat = np.isnat(values)
        kind, values = _in_unit(np.where(is_nat, np.datetime64(0, 'us'), values))
        return RawIds(kind, values, is_nat, shape)
    raise TypeError(f'{caller} expects ids that are {_KNOWN}, but got {values.dtype}.')


def require_filled(given: RawIds, caller: str) -> None:
    r"""Raises a :class:`ValueError` unless there is an id in each row of one column."""
    if len(given.shape) != 1:
        raise ValueError(
            f'{caller} expects one id after another, but got shape {list(given.shape)}.'
        )
    if given.is_missing is not None and given.is_missing.any():
        raise ValueError(
            f'{caller} expects an id in every row, but got none in row '
            f'{int(given.is_missing.argmax())}.'
        )


def distinct(values: np.ndarray) -> np.ndarray:
    r"""The values in ascending order, each once."""
    if values.dtype != object:
        return np.unique(values)
    listed = sorted(set(values.tolist()))
    return as_objects(listed, len(listed))


def joined(kind: str, first: np.ndarray, new_kind: str, new: np.ndarray) -> RawIds:
    r"""Ids after others that they can be compared with."""
    if not first.size:
        return RawIds(new_kind, new, None, ())
    is_negative = any(v.dtype == np.int64 and bool((v < 0).any()) for v in (first, new))
    if kind == new_kind and not (is_negative and first.dtype != new.dtype):
        if kind == 'integer' and first.dtype != new.dtype:
            first, new = first.astype(np.uint64), new.astype(np.uint64)
        return RawIds(kind, np.concatenate([first, new]), None, ())
    return RawIds('text', np.concatenate([as_texts(first), as_texts(new)]), None, ())


def as_texts(values: np.ndarray) -> np.ndarray:
    r"""What is written of numbers; texts and UUIDs are texts as they are."""
    return values if values.dtype == object else as_objects(map(str, values.tolist()), len(values))


def as_objects(values: Iterable[Any], number: int) -> np.ndarray:
    r"""An array of that many objects, of which NumPy makes nothing else."""
    made = np.empty(number, dtype=object)
    made[:] = list(values)
    return made


def keys_of(values: np.ndarray) -> np.ndarray:
    r"""Numbers to sort and find ids by, the same for the same ids."""
    if values.dtype == object:
        # Of texts Python has most hashes already; another process has others.
        return np.fromiter(map(hash, values.tolist()), np.int64, len(values))
    if values.dtype.kind == 'f':
        return values.astype(np.float64)
    return values.astype(np.int64)


def is_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    r"""Where two arrays of one kind hold the same id."""
    if one.dtype.kind in 'iu' and one.dtype != other.dtype:
        # One of uint64 would be compared as a float.
        one, other = one.astype(np.int64), other.astype(np.int64)
        return (one == other) & (one >= 0)
    return one == other


def _read_objects(values: np.ndarray, caller: str) -> RawIds:
    listed = values.tolist()
    types = set(map(type, listed))
    is_missing = None
    if any(_is_none(kind) for kind in types) or (float in types and len(types) > 1):
        is_missing = np.fromiter((_is_none(type(v)) or v != v for v in listed), bool, len(listed))
    if is_missing is not None and is_missing.any():
        there = _read_objects(values[~is_missing], caller)
        filled = np.zeros(len(values), dtype=there.values.dtype)
        filled[~is_missing] = there.values
        return there._replace(values=filled, is_missing=is_missing)
    kinds = {_kind_of(kind) for kind in types}
    if '' in kinds or (len(kinds) > 1 and not kinds <= {*TEXTS}):
        found = ' and '.join(sorted(kind.__name__ for kind in types))
        raise TypeError(f'{caller} expects ids that are {_KNOWN}, but got {found}.')
    kind = kinds.pop() if len(kinds) == 1 else 'text'
    if kind in ('boolean', 'float'):
        return read_ids(np.array(listed, dtype=bool if kind == 'boolean' else float), caller)
    if kind == 'time':
        return read_ids(np.array(list(map(_without_zone, listed)), dtype='datetime64[us]'), caller)
    if kind == 'integer':
        for dtype in (np.int64, np.uint64):
            try:
                return RawIds(kind, np.array(listed, dtype=dtype), None, ())
            except OverflowError:
                continue
        kind = 'text'
    if kind == 'blob':
        return RawIds(kind, as_objects(map(bytes, listed), len(listed)), None, ())
    if types == {str}:
        return RawIds(kind, values, None, ())
    # Texts of NumPy are made Python's, too.
    return RawIds(kind, as_objects(map(str, listed), len(listed)), None, ())


def _kind_of(kind: type) -> str:
    return next((name for name, types in _KINDS.items() if issubclass(kind, types)), '')


def _is_none(kind: type) -> bool:
    # Those of pandas, which need not be installed.
    return kind is type(None) or kind.__name__ in ('NAType', 'NaTType')


def _without_zone(value: Any) -> Any:
    if getattr(value, 'tzinfo', None) is None:
        return value
    return value.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def _in_unit(values: np.ndarray) -> tuple[str, np.ndarray]:
    r"""Times in microseconds, or in nanoseconds where one is between them."""
    in_microseconds = values.astype('datetime64[us]')
    if np.datetime_data(values.dtype)[0] in ('ns', 'ps', 'fs', 'as'):
        values = values.astype('datetime64[ns]')
        if bool((in_microseconds != values).any()):
            return 'time_ns', values
    return 'time', in_microseconds


def _narrowed(values: np.ndarray) -> np.ndarray:
    r"""Integers as int64, or as uint64 where one is too large."""
    is_large = values.dtype == np.uint64 and values.size and values.max() >= 2**63
    return values if is_large else values.astype(np.int64)
