import math
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mag.checks import check_choice, check_integers
from mag.loader import BatchIndexSampler, ExposureBatch, JoinedBatch, PairBatch
from mag.loader.exposures import Exposures
from mag.loader.row_loader import RowLoader, RowReader
from mag.store.plan import file_state
from mag.store.store import Store
from mag.store.store_batches import StoreBatches, StoreRows

_PARTS = ('train', 'val', 'test')


class StoreLoader(RowLoader):
    r"""Streams the exposures of a :class:`Store` from its log, as batches of what models read.

    .. code-block:: python

        store = Store('store')
        train_loader = StoreLoader(store, 'train', shuffle=True)
        val_loader = StoreLoader(store, 'val')
        model = MacGNN.from_data(store.graph())
        fit(ClickTask(model), train_loader, val_loader)

    The rows of a window are those from its cutoff on and before the next one, and read what was
    known as of its cutoff. Those whose user or item has no click before it are left out, as
    :class:`~mag.transforms.TemporalSplit` does. A pass over the log at first counts the others.

    Of the log, a buffer of rows is held. When shuffling, each epoch draws an order of the row
    groups of its Parquet files, fills the buffer with as many of them as it holds, shuffles that,
    and goes on with the next ones: row groups that are small against the buffer mix well. The order
    depends on :obj:`(seed, epoch)` alone, and one that is resumed reads on where it was. Without
    shuffling, rows come in the order of the log. Under :mod:`torch.distributed` each process reads
    the rows that follow each other in its share of the epoch; all have the same number of batches,
    see :class:`~mag.loader.BatchIndexSampler`.

    Args:
        store (Store): The store.
        rows (str or list[int], optional): :obj:`"train"`, :obj:`"val"` or :obj:`"test"`, where the
            store has the cutoffs of :class:`~mag.transforms.TemporalSplit`, or the windows, from 0
            on. (default: :obj:`"train"`)
        batch_size (int, optional): Exposures a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, rows are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        batches (str, optional): :obj:`"pairs"` for :class:`~mag.loader.PairBatch`, the macro rows
            that :class:`~mag.models.MacGNN` reads; :obj:`"features"` for
            :class:`~mag.loader.ExposureBatch`, ids, attributes, contexts, features,
            and the counts at the target as of the cutoff, which :class:`~mag.models.CountNet`
            reads; or :obj:`"joined"` for both as :class:`~mag.loader.JoinedBatch`.
            (default: :obj:`"pairs"`)
        buffer_rows (int, optional): Up to how many rows row groups are held and shuffled together,
            one at least. (default: :obj:`1_048_576`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Attributes:
        num_dropped (int): How many rows were left out because their user or item had no click in
            the history.

    Raises:
        FileNotFoundError: If a file of the log is missing.
        ModuleNotFoundError: If pyarrow is not installed.
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, the store has no such part or window, none of
            its rows can be read, or a file of the log is another than the one that it was built
            from.
    """

    dataset: '_StoreReader'

    def __init__(
        self,
        store: Store,
        rows: str | Sequence[int] = 'train',
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        *,
        batches: str = 'pairs',
        buffer_rows: int = 2**20,
        **kwargs: Any,
    ) -> None:
        if not isinstance(store, Store):
            raise TypeError(f"'store' must be a Store, but got {type(store).__name__}.")
        reads = StoreBatches(store, batches)
        check_integers(1, buffer_rows=buffer_rows)
        self._log = _Log(store, _windows(store, rows), reads.contexts, reads.features)
        self.num_dropped = int((self._log.num_asked - self._log.num_rows).sum())
        if not self._log.num_rows.any():
            raise ValueError(
                f'StoreLoader finds no row of {rows!r} in {store.path!r}: of '
                f'{int(self._log.num_asked.sum())} in these windows, all have a user or an item '
                f'without an earlier click.'
            )
        # What decides about the order is compared when a run is resumed.
        reader = _StoreReader(reads, self._log.num_rows, np.array(buffer_rows))
        reader.num_clicks = int(self._log.num_clicks.sum())
        super().__init__(reader, batch_size, shuffle, seed, **kwargs)

    def _sampler(self, rows: Any, batch_size: int, shuffle: bool, seed: int) -> BatchIndexSampler:
        return _StreamSampler(self._log, int(rows.buffer_rows), batch_size, shuffle, seed)

    @property
    def fields(self) -> tuple[str, ...]:
        r"""The name of each column of :obj:`ExposureBatch.sparse`."""
        return self.dataset.reads.fields

    def request(
        self,
        user: int | Tensor,
        items: Tensor,
        x: Tensor | None = None,
        **contexts: int | Tensor,
    ) -> PairBatch | ExposureBatch | JoinedBatch:
        r"""Makes the batch of one request: one user and its candidate items, as of the last cutoff
        of the store, which is the end of the log unless it has cutoffs of its own.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            x (torch.Tensor, optional): The features of the exposures, shape :obj:`[B, F]` or
                :obj:`[F]`, if the log has some and they are read, as :obj:`"pairs"` are not.
            **contexts (int or torch.Tensor): Every context that is read, one for the request or one
                for each item, :obj:`-1` for an unknown one.

        Raises:
            IndexError: If the user, an item or the value of a context does not exist.
            TypeError: If an id is no integer, or :obj:`x` holds no numbers.
            ValueError: If there is not one user, or one for each item, or a context or :obj:`x` is
                missing, unknown or has another shape.
        """
        return self._request(user, items, x=x, contexts=contexts)


class _StoreReader(RowReader):
    r"""Reads what the store tells of rows."""

    #: How many of the rows are clicks.
    num_clicks: int

    def __init__(
        self, reads: StoreBatches, rows_of_group: np.ndarray, buffer_rows: np.ndarray
    ) -> None:
        super().__init__(Exposures(reads.store.graph(), 'StoreLoader'))
        self.reads = reads
        self.rows_of_group, self.buffer_rows = rows_of_group, buffer_rows
        self.fingerprint = np.frombuffer(reads.store.fingerprint.encode(), np.uint8)

    def __len__(self) -> int:
        return int(self.rows_of_group.sum())

    def __getitem__(self, rows: StoreRows) -> Any:  # type: ignore[override]
        return self.reads.batch(rows)

    def arguments(self) -> set[str]:
        return {*self.reads.contexts, *(['x'] if self.reads.features else [])}

    def batch(self, exposures: Exposures) -> Any:
        x = exposures.x if self.reads.features else None
        return self.reads.latest(exposures.user, exposures.item, exposures.contexts, x)


def log_files(store: Store) -> tuple[list[str], list[Any]]:
    r"""The paths and the metadata of the Parquet files of the log of a store, in its order.

    Raises:
        FileNotFoundError: If one is missing.
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If one is another than the one that the store was built from.
    """
    parquet = _parquet()
    # Files that are read where they were have paths that begin at the root.
    paths = [osp.join(store.path, file) for file in store.manifest['log']['files']]
    for path in paths:
        if not osp.exists(path):
            raise FileNotFoundError(
                f'The log of the store in {store.path!r} lacks {path!r}: put it back, or build '
                f'the store again.'
            )
    metadata = [parquet.read_metadata(path) for path in paths]
    found = sum(of.num_rows for of in metadata)
    if found != store.manifest['num_rows']:
        raise ValueError(
            f'The store in {store.path!r} was built from {store.manifest["num_rows"]:,} rows, '
            f'but its log has {found:,} now: build it again.'
        )
    built = store.manifest['plan']['files']
    for path in paths:
        # A file of the store itself is none of these.
        if path in built and file_state(path) != built[path]:
            raise ValueError(
                f'{path!r} was changed since the store in {store.path!r} was built from it: '
                f'put it back as it was, or build the store again.'
            )
    return paths, metadata


def stream_events(store: Store, num_rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    r"""All exposures in the log of a store, in its order: users, items, times in seconds, and
    whether they were clicked, by pieces of up to some rows.

    Args:
        store: The store.
        num_rows: How many rows a piece has at most.

    Raises:
        FileNotFoundError: If a file of the log is missing.
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If one is another than the one that the store was built from.
    """
    columns = store.manifest['log']['columns']
    names = [columns[name] for name in ('user', 'item', 'time', 'click')]
    told = [name for name in names if name is not None]
    for path in log_files(store)[0]:
        with _parquet().ParquetFile(path) as reader:
            for piece in reader.iter_batches(num_rows, columns=[*dict.fromkeys(told)]):
                user, item, time, *click = (
                    piece.column(name).to_numpy(zero_copy_only=False) for name in told
                )
                yield user, item, time, click[0] > 0 if click else np.ones(len(time), np.bool_)


class _Log:
    r"""The rows of some windows in the Parquet files of a store, by row group.

    Attributes:
        num_asked (numpy.ndarray): How many rows of each row group are of the windows.
        num_rows (numpy.ndarray): How many of them have a user and an item with an earlier click.
        num_clicks (numpy.ndarray): How many of these are clicks.
    """

    def __init__(
        self,
        store: Store,
        windows: list[int],
        contexts: Sequence[str],
        features: Sequence[str],
    ) -> None:
        self._columns: dict[str, str | None] = store.manifest['log']['columns']
        self._names = [self._columns[name] for name in ('user', 'item', 'time')]
        if self._columns['click'] is not None:
            self._names.append(self._columns['click'])
        self._cutoffs = np.array(store.manifest['cutoffs'])
        self._values = {name: _values(store, name) for name in contexts}
        self._features = features
        # A row before all cutoffs is of window -1, whose place is the last.
        self._is_asked = np.zeros(len(self._cutoffs) + 1, np.bool_)
        self._is_asked[windows] = True
        self._first = {name: store.first_windows(name) for name in store.num_nodes}
        self._paths, self._metadata = log_files(store)
        self._groups = [
            (place, group)
            for place, metadata in enumerate(self._metadata)
            for group in range(metadata.num_row_groups)
        ]
        self.num_asked = np.zeros(len(self._groups), np.int64)
        self.num_rows = np.zeros(len(self._groups), np.int64)
        self.num_clicks = np.zeros(len(self._groups), np.int64)
        for place in range(len(self._groups)):
            if self._may_be_asked(place):
                (*_, label), is_asked, is_known = self._scan(self._table(place, self._names))
                self.num_asked[place] = is_asked.sum()
                self.num_rows[place] = is_known.sum()
                self.num_clicks[place] = label[is_known].sum()

    def read(self, group: int) -> StoreRows:
        r"""The rows of a row group, in the order of the log."""
        more = (self._columns[name] for name in (*self._values, *self._features))
        table = self._table(group, [*self._names, *more])
        (user, item, window, label), _, is_known = self._scan(table)
        known = table.filter(is_known)
        contexts = [
            _codes(known.column(self._columns[name]), values)
            for name, values in self._values.items()
        ]
        features = [_numbers(known.column(self._columns[name])) for name in self._features]
        user, item, window = (of[is_known].astype(np.int64) for of in (user, item, window))
        return StoreRows(
            torch.from_numpy(user),
            torch.from_numpy(item),
            torch.from_numpy(window),
            torch.from_numpy(label[is_known]).float(),
            _stacked(contexts, len(known), np.int64),
            _stacked(features, len(known), np.float32),
        )

    def _may_be_asked(self, group: int) -> bool:
        r"""Whether the times of a row group, as far as its file tells them, lie in the windows."""
        file, place = self._groups[group]
        of_group = self._metadata[file].row_group(place)
        for column in map(of_group.column, range(of_group.num_columns)):
            told = column.statistics if column.path_in_schema == self._columns['time'] else None
            if told is not None and told.has_min_max:
                ends = np.array([told.min, told.max])
                first, last = self._cutoffs.searchsorted(ends, side='right') - 1
                return bool(self._is_asked[np.arange(first, last + 1)].any())
        return True

    def _table(self, group: int, names: Sequence[str | None]) -> Any:
        r"""Some columns of a row group, of which two may be one."""
        file, place = self._groups[group]
        with _parquet().ParquetFile(self._paths[file], metadata=self._metadata[file]) as reader:
            return reader.read_row_group(place, columns=[*dict.fromkeys(names)])

    def _scan(self, table: Any) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
        r"""Users, items, windows and labels of a row group; and which rows are asked for, and have
        a user and an item with an earlier click."""
        user, item, time, *click = (table.column(name).to_numpy() for name in self._names)
        window = self._cutoffs.searchsorted(time, side='right') - 1
        is_asked = self._is_asked[window]
        is_known = is_asked.copy()
        for name, node in (('user', user), ('item', item)):
            is_known &= self._first[name][node] <= window
        label = click[0] > 0 if click else np.ones(len(time), np.bool_)
        return (user, item, window, label), is_asked, is_known


class _StreamSampler(BatchIndexSampler):
    r"""Yields the rows of whole batches, read from the log in the order of the epoch."""

    def __init__(
        self, log: _Log, buffer_rows: int, batch_size: int, shuffle: bool, seed: int
    ) -> None:
        super().__init__(int(log.num_rows.sum()), batch_size, shuffle, seed)
        self._log, self._buffer_rows = log, buffer_rows

    def __iter__(self) -> Iterator[StoreRows]:  # type: ignore[override]
        rank, world_size = self._process()
        num_batches = len(self)
        if self.shuffle:
            self._require_rows(world_size)
            share = self.num_rows // world_size
            start, stop = rank * share, (rank + 1) * share
        else:
            start, stop = (self.num_rows * place // world_size for place in (rank, rank + 1))
        skip, self.skip = self.skip, 0
        sizes = [self.batch_size] * num_batches
        if sizes:
            # The last batch takes what is left.
            sizes[-1] = stop - start - self.batch_size * (num_batches - 1)
        yield from _cut(self._stream(start + skip * self.batch_size, stop), sizes[skip:])

    def _stream(self, start: int, stop: int) -> Iterator[StoreRows]:
        r"""The rows of an epoch from one place to another, as they are read."""
        num_rows, generator = self._log.num_rows, self._generator()
        order = np.arange(len(num_rows))
        if self.shuffle:
            order = torch.randperm(len(num_rows), generator=generator).numpy()
        first = 0
        for groups in self._buffers(order[num_rows[order] > 0].tolist()):
            last = first + int(num_rows[groups].sum())
            # So that an order that is resumed draws what it had drawn.
            shuffled = torch.randperm(last - first, generator=generator) if self.shuffle else None
            if start < last and first < stop:
                rows = _joined([self._log.read(group) for group in groups])
                asked = slice(max(start - first, 0), stop - first)
                place = asked if shuffled is None else shuffled[asked]
                yield StoreRows(*(column[place] for column in rows))
            first = last

    def _buffers(self, groups: list[int]) -> Iterator[list[int]]:
        r"""Row groups that are held together."""
        held: list[int] = []
        for group in groups:
            size = self._log.num_rows[[*held, group]].sum()
            if held and (not self.shuffle or size > self._buffer_rows):
                yield held
                held = []
            held.append(group)
        if held:
            yield held


def _cut(pieces: Iterator[StoreRows], sizes: list[int]) -> Iterator[StoreRows]:
    r"""The same rows in pieces of other sizes."""
    left = StoreRows(*(torch.empty(0, dtype=torch.long) for _ in StoreRows._fields))
    for size in sizes:
        held = []
        while size > 0:
            if len(left.user) == 0:
                left = next(pieces)
            held.append(StoreRows(*(column[:size] for column in left)))
            left = StoreRows(*(column[size:] for column in left))
            size -= len(held[-1].user)
        yield _joined(held)


def _joined(parts: list[StoreRows]) -> StoreRows:
    return StoreRows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _values(store: Store, name: str) -> Any:
    r"""The values of a context in the order of their codes."""
    path = osp.join(store.path, 'names', f'{name}.parquet')
    return _parquet().read_table(path, columns=['value']).column('value').combine_chunks()


def _codes(column: Any, values: Any) -> np.ndarray:
    from pyarrow.compute import index_in

    found = index_in(column.cast(values.type), value_set=values)
    # What is none of them was called unknown, which comes first.
    return found.fill_null(0).to_numpy().astype(np.int64)


def _numbers(column: Any) -> np.ndarray:
    # As EventLog does: an integer may have more digits than a float32, a double fewer.
    return column.cast('float64', safe=False).to_numpy().astype(np.float32)


def _stacked(columns: Sequence[np.ndarray], num_rows: int, dtype: Any) -> Tensor:
    found = np.empty((num_rows, len(columns)), dtype)
    for place, column in enumerate(columns):
        found[:, place] = column
    return torch.from_numpy(found)


def _windows(store: Store, rows: Any) -> list[int]:
    r"""The windows that are asked for."""
    if isinstance(rows, str):
        check_choice(_PARTS, rows=rows)
        parts = store.manifest['parts']
        if parts is None:
            raise ValueError(
                f'The store in {store.path!r} was built with cutoffs of its own, which tell no '
                f'{rows!r}: name the windows, such as rows=[0, 1].'
            )
        cutoffs: list[int] = store.cutoffs.tolist()
        # A log of few moments may have parts that begin when the next one does.
        end = {'train': parts['val'], 'val': parts['test']}.get(rows, math.inf)
        moments = parts['train'] if rows == 'train' else [parts[rows]]
        return [cutoffs.index(moment) for moment in moments if moment < end]
    if not isinstance(rows, Sequence):
        raise TypeError(f"'rows' must be a part or a list of windows, but got {rows!r}.")
    for place, window in enumerate(rows):
        check_integers(0, below=store.num_windows, **{f'rows[{place}]': window})
    return [*rows]


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "StoreLoader reads the log of a store with pyarrow, which the extra 'scale' installs: "
            "pip install 'pyg-mag[scale]'."
        ) from error
    return pyarrow.parquet
