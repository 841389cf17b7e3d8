import datetime
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mag.checks import check_integers
from mag.files import replacing

# What is compared by its text: a CSV file that got a first id such as A7 has texts where an earlier
# export of it had numbers.
_TEXTS = ('integer', 'uuid', 'text')
# Maps of these kinds that hold the same ids have one fingerprint.
_FAMILY = {**dict.fromkeys(_TEXTS, 'text'), 'time_ns': 'time'}
# What a column of objects is written as.
_COLUMNS = {'text': '::VARCHAR', 'uuid': '::UUID', 'blob': '::BLOB'}
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
_LINEAGE = 'lineage'
_CHUNK = 1 << 18


class IdMap:
    r"""The raw ids of a log and the nodes, 0 to N-1, that they are in a graph, both ways.

    >>> from mag.datasets import IdMap
    >>> items = IdMap(['tea', 'rice', 'tea'])
    >>> items.encode(['tea', 'salt'])
    array([ 1, -1])
    >>> items.extend(['salt', 'oats']).decode([0, 1, 2, 3])
    array(['rice', 'tea', 'oats', 'salt'], dtype=object)

    Ids are integers, texts, UUIDs, bytes, dates and times, floats or booleans, in a list, an array
    of NumPy, a tensor, or a column that NumPy can read, such as one of pandas. Integers, texts and
    UUIDs are compared by what is written, so that :obj:`7` and :obj:`'7'` are one id and
    :obj:`'007'` is another; a map that holds several of these gives texts back. Times are in UTC.

    A map never changes; :meth:`extend` returns one that has grown, in which all ids keep their
    nodes. :attr:`fingerprint` is that of the ids in their order, and :attr:`lineage` has one for
    each time it grew, by which a graph, a transform or a model tells a map that only grew from
    another one.

    Args:
        raw (Sequence, optional): Raw ids in any order, also repeatedly; they are mapped in
            ascending order. (default: :obj:`()`)

    Raises:
        TypeError: If ids are of a type that has no order, or of several that cannot be compared.
        ValueError: If an id is missing.
    """

    def __init__(self, raw: Any = ()) -> None:
        given = _read(raw, 'IdMap')
        _require_filled(given, 'IdMap')
        self._start(given.kind, _distinct(given.values), None)

    @classmethod
    def in_order(cls, raw: Any, sizes: Sequence[int] | None = None) -> 'IdMap':
        r"""The map of nodes whose ids are known, such as :attr:`ClickDataset.raw_ids`.

        Args:
            raw (Sequence): The id of each node, each once.
            sizes (Sequence[int], optional): How many nodes there were each time the map had grown.
                (default: all at once)

        Raises:
            ValueError: If an id is missing or there twice, or the sizes do not ascend to the number
                of ids.
        """
        given = _read(raw, 'IdMap.in_order')
        _require_filled(given, 'IdMap.in_order')
        number = len(given.values)
        if sizes is not None:
            check_integers(0, **{f'sizes[{place}]': size for place, size in enumerate(sizes)})
            if not sizes or sizes[-1] != number or sorted(set(sizes)) != list(sizes):
                raise ValueError(
                    f"'sizes' must ascend to the number of ids, {number}, but got {list(sizes)}."
                )
        made = cls.__new__(cls)
        made._start(given.kind, given.values.copy(), sizes)
        made._require_distinct()
        return made

    @classmethod
    def of_lineage(cls, raw: Any, lineage: str) -> 'IdMap':
        r"""The map of nodes whose ids are known, and had such a lineage when they were written.

        Args:
            raw (Sequence): The id of each node, each once.
            lineage (str): The :attr:`lineage`.

        Raises:
            ValueError: If it is that of other ids.
        """
        made = cls.in_order(raw, [int(step.partition(':')[0]) for step in lineage.split()])
        if made.lineage != lineage:
            raise ValueError(
                f'Ids have the fingerprint {made.fingerprint}, but those that were written had '
                f'{lineage.split()[-1]}.'
            )
        return made

    def _start(self, kind: str, values: np.ndarray, sizes: Sequence[int] | None) -> None:
        self.kind = kind
        self._values = values
        self.sizes = (len(values),) if sizes is None else tuple(sizes)

    def __len__(self) -> int:
        return len(self._values)

    def encode(self, raw: Any) -> np.ndarray:
        r"""The nodes of raw ids.

        Args:
            raw (Sequence): The ids.

        Returns:
            int64 of the shape of :obj:`raw`, with :obj:`-1` for an id that is not in the map or is
            missing, such as :obj:`None`.

        Raises:
            TypeError: If they are of a type that cannot be compared with the ids of the map.
        """
        given = _read(raw, 'IdMap.encode')
        return self._encode(given).reshape(given.shape)

    def decode(self, nodes: Any) -> np.ndarray:
        r"""The raw ids of nodes, of the shape of :obj:`nodes`.

        Args:
            nodes (Sequence[int]): The nodes.

        Raises:
            IndexError: If there is no such node; :obj:`-1` is none.
            TypeError: If they are no integers.
        """
        nodes = np.asarray(nodes)
        if nodes.size == 0:
            # NumPy takes an empty list for floats.
            nodes = nodes.astype(np.int64)
        if nodes.dtype.kind not in 'iu':
            raise TypeError(f"'nodes' must be integers, but got {nodes.dtype}.")
        if nodes.size and (nodes.min() < 0 or nodes.max() >= len(self)):
            raise IndexError(
                f"'nodes' must lie from 0 to {len(self) - 1}, but got them from {nodes.min()} to "
                f'{nodes.max()}.'
            )
        values = self._values[nodes]
        if self.kind != 'uuid':
            return values
        return _objects(map(uuid.UUID, values.ravel().tolist()), values.size).reshape(values.shape)

    def extend(self, raw: Any) -> 'IdMap':
        r"""The map with new ids after those that it has, ascending among themselves.

        Args:
            raw (Sequence): Ids, new or not, also repeatedly.

        Raises:
            TypeError: If they are of a type that cannot be compared with the ids of the map.
            ValueError: If one is missing.
        """
        given = _read(raw, 'IdMap.extend')
        _require_filled(given, 'IdMap.extend')
        return self._append(given._replace(values=_distinct(given.values), is_missing=None))

    def append(self, raw: Any) -> 'IdMap':
        r"""The map with new ids after those that it has, in their own order.

        Args:
            raw (Sequence): Ids, each once, new or not.

        Raises:
            TypeError: If they are of a type that cannot be compared with the ids of the map.
            ValueError: If one is missing, or new and there twice.
        """
        given = _read(raw, 'IdMap.append')
        _require_filled(given, 'IdMap.append')
        grown = self._append(given)
        grown._require_distinct()
        return grown

    def _append(self, given: '_Raw') -> 'IdMap':
        if not given.values.size:
            return self
        new = given.values[self._encode(given) < 0]
        if not new.size:
            return self
        joined = _joined(self.kind, self._values, given.kind, new)
        grown = IdMap.__new__(IdMap)
        sizes = self.sizes if len(self) else ()
        grown._start(joined.kind, joined.values, (*sizes, len(joined.values)))
        return grown

    @property
    def fingerprint(self) -> str:
        r"""The number of ids and a hash of them in their order, such as
        :obj:`'943:0f3c5a7d9e1b2c48'`."""
        return self.lineage.split()[-1]

    @cached_property
    def lineage(self) -> str:
        r"""The fingerprints of the map each time it had grown, the last of them that of now."""
        starts = range(0, len(self), _CHUNK)
        chunks = (self._values[start : start + _CHUNK] for start in starts)
        return _lineage((_Raw(self.kind, chunk, None, ()) for chunk in chunks), self.sizes)

    def save(self, path: str | os.PathLike[str]) -> None:
        r"""Writes a Parquet file with the column :obj:`id` in node order, under a temporary name
        first.

        Args:
            path (str or os.PathLike): The file.

        Raises:
            OSError: If it cannot be written.
        """
        # Here and in load, because nothing else of a map needs it.
        import duckdb

        lineage = self.lineage
        with replacing(path) as temporary, duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register('nodes', {'id': self._values})
            try:
                connection.execute(
                    f'COPY (SELECT id{_COLUMNS.get(self.kind, "")} AS id FROM nodes) '
                    f'TO {_quote(temporary)} (FORMAT parquet, COMPRESSION zstd, '
                    f'KV_METADATA {{{_LINEAGE}: {_quote(lineage)}}})'
                )
            except duckdb.IOException as error:
                raise OSError(f'{os.fspath(path)!r} cannot be written: {error}') from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> 'IdMap':
        r"""Reads what :meth:`save` wrote.

        Args:
            path (str or os.PathLike): The file.

        Raises:
            FileNotFoundError: If there is no file.
            ValueError: If the file is damaged, or none that :meth:`save` wrote.
        """
        import duckdb

        path = os.fspath(path)
        # One descriptor: another process may put another file there at any moment.
        with open(path, 'rb') as file, duckdb.connect() as connection:
            source = f'/proc/self/fd/{file.fileno()}'
            try:
                metadata = connection.execute(
                    f'SELECT key, value FROM parquet_kv_metadata({_quote(source)})'
                ).fetchall()
                rows = connection.execute(f'SELECT id FROM read_parquet({_quote(source)})')
                raw = rows.fetchnumpy()['id']
            except duckdb.Error as error:
                raise ValueError(
                    f'{path!r} is damaged, or no file that IdMap.save wrote.'
                ) from error
        lineage = dict(metadata).get(_LINEAGE.encode())
        if lineage is None:
            raise ValueError(f'{path!r} is no file that IdMap.save wrote: it has no fingerprint.')
        try:
            made = cls.of_lineage(raw, lineage.decode())
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path!r} is damaged: {error}') from error
        return made

    def _encode(self, given: '_Raw') -> np.ndarray:
        values = given.values
        is_none = given.is_missing is not None and bool(given.is_missing.all())
        # Where all are missing, nothing tells of what kind they are.
        if not len(self) or is_none or not values.size:
            return np.full(values.size, -1)
        if given.kind == self.kind or {given.kind, self.kind} == {'text', 'uuid'}:
            nodes = self._find(values)
        elif given.kind in _TEXTS and self.kind in _TEXTS:
            texts = self if self.kind != 'integer' else self._as_texts
            nodes = texts._find(_as_texts(values))
        else:
            raise TypeError(
                f'An IdMap of ids of the kind {self.kind!r} cannot look up those of the kind '
                f'{given.kind!r}: convert them to that of the map.'
            )
        if given.is_missing is not None:
            nodes[given.is_missing] = -1
        return nodes

    @cached_property
    def _as_texts(self) -> 'IdMap':
        made = IdMap.__new__(IdMap)
        made._start('text', _as_texts(self._values), None)
        return made

    def _find(self, values: np.ndarray) -> np.ndarray:
        r"""The nodes of ids of the map's own kind."""
        sorted_keys, order, most = self._index
        keys = _keys(values)
        # In their order, because places that lie close are found several times faster.
        by_key = keys.argsort()
        place = np.empty_like(by_key)
        place[by_key] = sorted_keys.searchsorted(keys[by_key])
        nodes = np.full(len(values), -1)
        # Another id may have the same hash.
        for step in range(most):
            at = np.minimum(place + step, len(self) - 1)
            asked = ((sorted_keys[at] == keys) & (nodes < 0)).nonzero()[0]
            found = order[at[asked]]
            is_same = _same(self._values[found], values[asked])
            nodes[asked[is_same]] = found[is_same]
        return nodes

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, int]:
        r"""The keys in ascending order, the node of each, and how many share one at most."""
        keys = _keys(self._values)
        order = keys.argsort(kind='stable')
        keys = keys[order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        return keys, order, int(np.diff(np.append(starts, len(keys))).max())

    def _require_distinct(self) -> None:
        is_again = self._find(self._values) != np.arange(len(self)) if len(self) else np.zeros(0)
        if is_again.any():
            place = int(is_again.argmax())
            (again,) = self._values[[place]].tolist()
            raise ValueError(
                f"'raw' must hold each id once, but {again!r} is there again in row {place}."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of texts are others in each process.
        return {name: value for name, value in vars(self).items() if name != '_index'}

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, IdMap) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f'IdMap({len(self)} ids, kind={self.kind!r}, fingerprint={self.fingerprint!r})'


class _Raw(NamedTuple):
    r"""Raw ids as they are compared."""

    kind: str
    #: Shape :obj:`[N]`; texts and bytes are objects.
    values: np.ndarray
    is_missing: np.ndarray | None
    shape: tuple[int, ...]


def lineage_of(chunks: Iterable[Any], sizes: Sequence[int]) -> str:
    r"""The :attr:`IdMap.lineage` of ids that come in chunks, of which no map is made.

    Args:
        chunks (Iterable): Raw ids in node order, each once, however they are cut.
        sizes (Sequence[int]): How many there were each time they had grown.
    """
    return _lineage((_read(chunk, 'lineage_of') for chunk in chunks), sizes)


def _lineage(chunks: Iterable[_Raw], sizes: Sequence[int]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    found, number = [], 0
    for chunk in (chunk for chunk in chunks if chunk.values.size):
        if number == 0:
            digest.update(_FAMILY.get(chunk.kind, chunk.kind).encode())
        inside = [size for size in sizes if number < size <= number + len(chunk.values)]
        parts = np.split(chunk.values, [size - number for size in inside])
        for part, size in zip(parts, [*inside, None]):
            digest.update(_written(chunk.kind, part))
            if size is not None:
                found.append(f'{size}:{digest.hexdigest()}')
        number += len(chunk.values)
    return ' '.join(found) or f'0:{digest.hexdigest()}'


def _written(kind: str, values: np.ndarray) -> bytes:
    r"""Ids as they are hashed: one after another, none of which can be taken for two."""
    if not len(values):
        return b''
    if kind in ('time', 'time_ns'):
        ticks = 1000 if kind == 'time' else 1
        listed: list[Any] = [ticks * time for time in values.view(np.int64).tolist()]
    else:
        listed = values.tolist()
    if kind == 'blob':
        listed = [value.hex() for value in listed]
    elif kind not in ('text', 'uuid'):
        listed = list(map(str, listed))
    return f'{json.dumps(listed, separators=(",", ":"))[1:-1]},'.encode()


def _read(raw: Any, caller: str) -> _Raw:
    r"""Raw ids of any kind."""
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
        return _Raw('integer', _narrowed(values), None, shape)
    if values.dtype.kind == 'b':
        return _Raw('boolean', values, None, shape)
    if values.dtype.kind == 'f' and values.dtype.itemsize <= 8:
        is_nan = np.isnan(values)
        # -0.0 and 0.0 are one id.
        values = np.where(is_nan, 0, values) + values.dtype.type(0)
        return _Raw('float', values, is_nan, shape)
    if values.dtype.kind == 'M':
        is_nat = np.isnat(values)
        kind, values = _in_unit(np.where(is_nat, np.datetime64(0, 'us'), values))
        return _Raw(kind, values, is_nat, shape)
    raise TypeError(f'{caller} expects ids that are {_KNOWN}, but got {values.dtype}.')


def _read_objects(values: np.ndarray, caller: str) -> _Raw:
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
    if '' in kinds or (len(kinds) > 1 and not kinds <= {*_TEXTS}):
        found = ' and '.join(sorted(kind.__name__ for kind in types))
        raise TypeError(f'{caller} expects ids that are {_KNOWN}, but got {found}.')
    kind = kinds.pop() if len(kinds) == 1 else 'text'
    if kind in ('boolean', 'float'):
        return _read(np.array(listed, dtype=bool if kind == 'boolean' else float), caller)
    if kind == 'time':
        return _read(np.array(list(map(_without_zone, listed)), dtype='datetime64[us]'), caller)
    if kind == 'integer':
        for dtype in (np.int64, np.uint64):
            try:
                return _Raw(kind, np.array(listed, dtype=dtype), None, ())
            except OverflowError:
                continue
        kind = 'text'
    if kind == 'blob':
        return _Raw(kind, _objects(map(bytes, listed), len(listed)), None, ())
    if types == {str}:
        return _Raw(kind, values, None, ())
    # Texts of NumPy are made Python's, too.
    return _Raw(kind, _objects(map(str, listed), len(listed)), None, ())


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


def _objects(values: Iterable[Any], number: int) -> np.ndarray:
    made = np.empty(number, dtype=object)
    made[:] = list(values)
    return made


def _as_texts(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == object else _objects(map(str, values.tolist()), len(values))


def _distinct(values: np.ndarray) -> np.ndarray:
    r"""The values in ascending order, each once."""
    if values.dtype != object:
        return np.unique(values)
    distinct = sorted(set(values.tolist()))
    return _objects(distinct, len(distinct))


def _joined(kind: str, first: np.ndarray, new_kind: str, new: np.ndarray) -> _Raw:
    r"""Ids after others that they can be compared with."""
    if not first.size:
        return _Raw(new_kind, new, None, ())
    is_negative = any(v.dtype == np.int64 and bool((v < 0).any()) for v in (first, new))
    if kind == new_kind and not (is_negative and first.dtype != new.dtype):
        if kind == 'integer' and first.dtype != new.dtype:
            first, new = first.astype(np.uint64), new.astype(np.uint64)
        return _Raw(kind, np.concatenate([first, new]), None, ())
    return _Raw('text', np.concatenate([_as_texts(first), _as_texts(new)]), None, ())


def _keys(values: np.ndarray) -> np.ndarray:
    r"""Numbers to sort and find ids by, the same for the same ids."""
    if values.dtype == object:
        # Of texts Python has most hashes already; another process has others.
        return np.fromiter(map(hash, values.tolist()), np.int64, len(values))
    if values.dtype.kind == 'f':
        return values.astype(np.float64)
    return values.astype(np.int64)


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.dtype.kind in 'iu' and one.dtype != other.dtype:
        # One of uint64 would be compared as a float.
        one, other = one.astype(np.int64), other.astype(np.int64)
        return (one == other) & (one >= 0)
    return one == other


def _require_filled(given: _Raw, caller: str) -> None:
    if len(given.shape) != 1:
        raise ValueError(
            f'{caller} expects one id after another, but got shape {list(given.shape)}.'
        )
    if given.is_missing is not None and given.is_missing.any():
        raise ValueError(
            f'{caller} expects an id in every row, but got none in row '
            f'{int(given.is_missing.argmax())}.'
        )


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
