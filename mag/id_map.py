import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mag.checks import check_integers
from mag.files import replacing
from mag.raw_ids import (
    TEXTS,
    RawIds,
    as_objects,
    as_texts,
    distinct,
    is_same,
    joined,
    keys_of,
    read_ids,
    require_filled,
)

# Maps of these kinds that hold the same ids have one fingerprint.
_FAMILY = {**dict.fromkeys(TEXTS, 'text'), 'time_ns': 'time'}
# What a column of objects is written as.
_COLUMNS = {'text': '::VARCHAR', 'uuid': '::UUID', 'blob': '::BLOB'}
#: Where a file of ids keeps its lineage.
LINEAGE = 'lineage'
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
        given = read_ids(raw, 'IdMap')
        require_filled(given, 'IdMap')
        self._start(given.kind, distinct(given.values), None)

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
        given = read_ids(raw, 'IdMap.in_order')
        require_filled(given, 'IdMap.in_order')
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
        given = read_ids(raw, 'IdMap.encode')
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
        ids = as_objects(map(uuid.UUID, values.ravel().tolist()), values.size)
        return ids.reshape(values.shape)

    def extend(self, raw: Any) -> 'IdMap':
        r"""The map with new ids after those that it has, ascending among themselves.

        Args:
            raw (Sequence): Ids, new or not, also repeatedly.

        Raises:
            TypeError: If they are of a type that cannot be compared with the ids of the map.
            ValueError: If one is missing.
        """
        given = read_ids(raw, 'IdMap.extend')
        require_filled(given, 'IdMap.extend')
        return self._append(given._replace(values=distinct(given.values), is_missing=None))

    def append(self, raw: Any) -> 'IdMap':
        r"""The map with new ids after those that it has, in their own order.

        Args:
            raw (Sequence): Ids, each once, new or not.

        Raises:
            TypeError: If they are of a type that cannot be compared with the ids of the map.
            ValueError: If one is missing, or new and there twice.
        """
        given = read_ids(raw, 'IdMap.append')
        require_filled(given, 'IdMap.append')
        grown = self._append(given)
        grown._require_distinct()
        return grown

    def _append(self, given: RawIds) -> 'IdMap':
        if not given.values.size:
            return self
        new = given.values[self._encode(given) < 0]
        if not new.size:
            return self
        all_ids = joined(self.kind, self._values, given.kind, new)
        grown = IdMap.__new__(IdMap)
        sizes = self.sizes if len(self) else ()
        grown._start(all_ids.kind, all_ids.values, (*sizes, len(all_ids.values)))
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
        return _lineage((RawIds(self.kind, chunk, None, ()) for chunk in chunks), self.sizes)

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
                    f'KV_METADATA {{{LINEAGE}: {_quote(lineage)}}})'
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
        lineage = dict(metadata).get(LINEAGE.encode())
        if lineage is None:
            raise ValueError(f'{path!r} is no file that IdMap.save wrote: it has no fingerprint.')
        try:
            made = cls.of_lineage(raw, lineage.decode())
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path!r} is damaged: {error}') from error
        return made

    def _encode(self, given: RawIds) -> np.ndarray:
        values = given.values
        is_none = given.is_missing is not None and bool(given.is_missing.all())
        # Where all are missing, nothing tells of what kind they are.
        if not len(self) or is_none or not values.size:
            return np.full(values.size, -1)
        if given.kind == self.kind or {given.kind, self.kind} == {'text', 'uuid'}:
            nodes = self._find(values)
        elif given.kind in TEXTS and self.kind in TEXTS:
            texts = self if self.kind != 'integer' else self._as_texts
            nodes = texts._find(as_texts(values))
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
        made._start('text', as_texts(self._values), None)
        return made

    def _find(self, values: np.ndarray) -> np.ndarray:
        r"""The nodes of ids of the map's own kind."""
        sorted_keys, order, most = self._index
        keys = keys_of(values)
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
            is_it = is_same(self._values[found], values[asked])
            nodes[asked[is_it]] = found[is_it]
        return nodes

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, int]:
        r"""The keys in ascending order, the node of each, and how many share one at most."""
        keys = keys_of(self._values)
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


def lineage_of(chunks: Iterable[Any], sizes: Sequence[int]) -> str:
    r"""The :attr:`IdMap.lineage` of ids that come in chunks, of which no map is made.

    Args:
        chunks (Iterable): Raw ids in node order, each once, however they are cut.
        sizes (Sequence[int]): How many there were each time they had grown.
    """
    return _lineage((read_ids(chunk, 'lineage_of') for chunk in chunks), sizes)


def _lineage(chunks: Iterable[RawIds], sizes: Sequence[int]) -> str:
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


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
