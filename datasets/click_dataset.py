import json
import os
import os.path as osp
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch_geometric.data import HeteroData, InMemoryDataset
from tqdm import tqdm

from mag.datasets._fingerprint import hash_file
from mag.datasets._parquet import scan_parquet
from mag.datasets._read_errors import explain_read_error
from mag.datasets._sql import count_rows, quote
from mag.files import (
    checksum,
    full_disk,
    read_tensors,
    replacing,
    require_local,
    write_tensors,
)

DOMAINS = ('recommendation', 'search')
_MAX_TERMS = 10


class ClickDataset(InMemoryDataset):
    r"""Base class of all click logs: raw files in, one cached
    :class:`~torch_geometric.data.HeteroData` out.

    A subclass names its raw files (:attr:`source_files`), its
    :attr:`arguments`, and fills one DuckDB table in :meth:`read`; mapping ids,
    sorting by time and caching happen here and are the same for all.

    The cache is the directory :obj:`root/processed`:
    :obj:`data.pt`, :obj:`user.parquet` and :obj:`item.parquet` (one row a
    node, column :obj:`id` is the id in the raw files), and :obj:`cache.json`
    (fingerprint, names, statistics).
    It is written beside its final place and renamed at the end, so it is
    there whole or not at all.

    :obj:`cache.json` has the checksums of the other files and its own. They
    are compared when the files are read, so that a damaged or exchanged file
    is refused, and nothing that a file holds is run.

    The fingerprint holds the class, :attr:`schema_version`,
    :attr:`arguments`, the :obj:`repr` of :obj:`pre_transform` and, for each
    raw file in the order of reading, its name, its path from :obj:`root`,
    size, modification time and content hash.
    A file whose path, size and modification time are unchanged is taken as
    unchanged, so opening a cache costs no read of the raw files; when only
    the path or the time differs (copied, checked out again) the hash decides.

    Args:
        root (str): Directory of :obj:`raw` and :obj:`processed`.
        transform (callable, optional): Applied on every access.
        pre_transform (callable, optional): Applied once, before caching; a
            transform whose :obj:`repr` says what it does, and no bare
            function, of which only the name is known.
        force_reload (bool, optional): Whether to make the cache again.
        log (bool, optional): Whether to print progress.

    Raises:
        ValueError: If the cache is damaged, or was made with other arguments,
            by another version or from other raw files, if :obj:`root` is a
            file or on another machine, or if :obj:`pre_transform` is a bare
            function or puts objects into the data that a cache cannot hold.
        OSError: If the disk is full.
    """

    #: Raised by one whenever :meth:`process` writes something else.
    schema_version = 1

    #: SQL expression over the log's :obj:`time` column that gives seconds.
    seconds = 'time'

    #: Whether rows with the same user, item, time and, where there is one,
    #: query are one row.
    merge_duplicates = False

    #: Columns of the log, 0 or 1, that tell what followed the click; written
    #: as 0 where there was no click.
    behaviors: tuple[str, ...] = ()

    #: Column of the log, 0 or 1, that tells whether the click converted;
    #: written as 0 where there was no click.
    conversion: str | None = None

    #: Columns of the log that are categoricals of an exposure.
    contexts: tuple[str, ...] = ()

    #: Columns of the log that are numbers of an exposure, none missing.
    features: tuple[str, ...] = ()

    #: Column of the log, the list of the terms of the search that led to the
    #: exposure, NULL where a recommendation did. What is missing, empty or
    #: called unknown is no term, and a search without terms has the term
    #: 'unknown'; of a longer search the first 10 terms are kept.
    query: str | None = None

    #: Columns of the attribute tables that describe a node in words; they are
    #: kept beside the ids and are no features.
    descriptions: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise TypeError(f"'root' must be a path, got {root!r}")
        if osp.isfile(osp.expanduser(root)):
            raise ValueError(f"'root' must be a directory, but {os.fspath(root)!r} is a file")
        require_local('root', root)
        if ' at 0x' in repr(pre_transform):
            raise ValueError(
                f"'pre_transform' must have a repr that says what it does, as the cache keeps no "
                f'more of it, got {pre_transform!r}; write it as a BaseTransform with a __repr__, '
                f"or pass it as 'transform'"
            )
        super().__init__(
            osp.abspath(osp.expanduser(root)),
            transform,
            pre_transform,
            log=log,
            force_reload=force_reload,
        )
        self._cache, data = self._open_cache()
        self.data, self.slices = HeteroData.from_dict(data), None

    @property
    def arguments(self) -> dict[str, Any]:
        r"""The arguments that decide what is cached, as JSON values."""
        raise NotImplementedError

    @property
    def source_files(self) -> list[str]:
        r"""The raw files that :meth:`read` reads, those that exist."""
        raise NotImplementedError

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        r"""Creates the table :obj:`log` with the columns :obj:`user`,
        :obj:`item` (raw ids), :obj:`time`, :obj:`label` (0 or 1), the
        :attr:`behaviors`, the :attr:`conversion`, the :attr:`contexts`, the
        :attr:`features`, the :attr:`query`, and optionally :obj:`weight`,
        :obj:`click_time` and :obj:`settled`, in file order; optionally also
        :obj:`user_attribute` and :obj:`item_attribute` with a column
        :obj:`id` and one column per attribute.

        :obj:`click_time` is when the exposure was clicked, in the unit of
        :obj:`time` and not before it; any number where it was not clicked.
        Without this column a click happens at the time of its exposure.

        :obj:`settled`, likewise optional, is when all labels of the exposure
        are known, clicked or not, in the unit of :obj:`time` and not before
        it; it becomes :obj:`edge_label_settled`.
        """
        raise NotImplementedError

    def extend(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: HeteroData,
        names: dict[str, list[str]],
    ) -> None:
        r"""Adds what only this dataset has to :obj:`data` and
        :obj:`names`.
        """

    @property
    def processed_file_names(self) -> list[str]:
        return ['data.pt', 'user.parquet', 'item.parquet', 'cache.json']

    @property
    def raw_ids(self) -> dict[str, np.ndarray]:
        r"""For :obj:`'user'` and :obj:`'item'`, the id in the raw files of
        every node, in node order.
        """
        return {node: self.describe(node)['id'] for node in ('user', 'item')}

    @property
    def names(self) -> dict[str, list[str]]:
        r"""For every categorical attribute, the name of each code in the raw
        files; for :obj:`'behavior'`, :obj:`'conversion'` and
        :obj:`'feature'`, the columns of :obj:`edge_label_behavior`,
        :obj:`edge_label_conversion` and :obj:`edge_label_x`; for
        :obj:`'query'`, the terms, the first of which, :obj:`''`, is the
        empty query.
        """
        return self._cache['names']

    @property
    def num_duplicates(self) -> int:
        r"""The number of rows that repeat an earlier row's user, item, time
        and, where there is one, query.
        """
        return self._cache['num_duplicates']

    def describe(self, node: str) -> dict[str, np.ndarray]:
        r"""Returns the raw :obj:`id` and the words there are about every node
        of one type, in node order.
        """
        self._check_file(self._cache, f'{node}.parquet')
        path = osp.join(self.processed_dir, f'{node}.parquet')
        with duckdb.connect() as connection:
            columns = connection.execute(f'SELECT * FROM {scan_parquet(path)}').fetchnumpy()
        return {
            name: np.where(np.ma.getmaskarray(column), np.array(None), np.ma.getdata(column))
            if np.ma.is_masked(column)
            else np.ma.getdata(column)
            for name, column in columns.items()
        }

    def process(self) -> None:
        staging = self._staging
        shutil.rmtree(staging, ignore_errors=True)
        os.makedirs(staging)
        try:
            self._write_cache(staging)
            self._replace_cache(staging)
        except duckdb.Error as error:
            if 'No space left on device' not in str(error):
                raise
            raise full_disk(self.root, self.processed_dir) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _download(self) -> None:
        self._remove_leftovers()
        # A finished cache outlives its raw files.
        if self._has_cache() and not self.force_reload:
            return
        with self._lock():
            super()._download()

    def _process(self) -> None:
        self._remove_leftovers()
        if not self._has_cache() or self.force_reload:
            with self._lock():
                # Another process may have made it while this one waited.
                if not self._has_cache() or self.force_reload:
                    self.process()

    def _lock(self, timeout: float = -1) -> FileLock:
        os.makedirs(self.root, exist_ok=True)
        return FileLock(osp.join(self.root, '.lock'), timeout)

    @property
    def _staging(self) -> str:
        return f'{self.processed_dir}.partial'

    @property
    def _replaced(self) -> str:
        return f'{self.processed_dir}.replaced'

    def _remove_leftovers(self) -> None:
        r"""Deletes what a killed process left, and takes a cache back that it
        was about to replace.
        """
        if not osp.exists(self._staging) and not osp.exists(self._replaced):
            return
        try:
            with self._lock(timeout=0):
                if osp.exists(self._replaced) and not osp.exists(self.processed_dir):
                    os.replace(self._replaced, self.processed_dir)
                for folder in (self._staging, self._replaced):
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Another process is at work (a timeout is an OSError, too), or owns the folder.
            return

    def _has_cache(self) -> bool:
        if not osp.isdir(self.processed_dir) or not os.listdir(self.processed_dir):
            return False
        if not osp.exists(osp.join(self.processed_dir, 'cache.json')):
            raise ValueError(
                f"{self.processed_dir!r} holds files, but no cache of mag's; choose another 'root' "
                f'or move that directory away'
            )
        return True

    def _open_cache(self) -> tuple[dict[str, Any], dict[str, Any]]:
        r"""What :obj:`cache.json` and :obj:`data.pt` hold."""
        try:
            return self._read_cache()
        except ValueError as error:
            # Another process may be replacing the cache, which is whole again when it is done.
            try:
                lock = self._lock().acquire()
            except OSError:
                raise error from None
            with lock:
                return self._read_cache()

    def _read_cache(self) -> tuple[dict[str, Any], dict[str, Any]]:
        cache = self._read_manifest()
        self._check_fingerprint(cache['fingerprint'])
        self._check_file(cache, 'data.pt')
        try:
            data = read_tensors(osp.join(self.processed_dir, 'data.pt'))
        except ValueError as error:
            raise self._damaged('data.pt', str(error)) from error
        if not isinstance(data, dict):
            raise self._damaged('data.pt', 'it holds no graph')
        return cache, data

    def _read_manifest(self) -> dict[str, Any]:
        try:
            with open(osp.join(self.processed_dir, 'cache.json'), encoding='utf-8') as file:
                cache = json.load(file)
            if cache.pop('checksum') != _checksum_of(cache):
                raise ValueError('its checksum is not that of what was written')
        except FileNotFoundError as error:
            raise self._damaged('cache.json', 'it is missing') from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged('cache.json', 'it is not what was written') from error
        return cache

    def _check_file(self, cache: dict[str, Any], name: str) -> None:
        path = osp.join(self.processed_dir, name)
        try:
            found = checksum(path)
        except FileNotFoundError as error:
            raise self._damaged(name, 'it is missing') from error
        if found != cache['files'][name]:
            raise self._damaged(
                name, 'it is not what was written, or another process has made the cache again'
            )

    def _damaged(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f'The cache in {self.processed_dir!r} is damaged, its {name} cannot be read: {reason}. '
            f'Pass force_reload=True to make it again'
        )

    def _check_fingerprint(self, cached: dict[str, Any]) -> None:
        differences = [
            f'{key} was {cached.get(key)!r}, is now {value!r}'
            for key, value in self._settings().items()
            if cached.get(key) != value
        ]
        differences = differences or self._compare_sources(cached['files'])
        if differences:
            raise ValueError(
                f'The cache in {self.processed_dir!r} does not fit: {"; ".join(differences)}. '
                f"Pass force_reload=True to make it again, or choose another 'root'"
            )

    def _compare_sources(self, files: list[dict[str, Any]]) -> list[str]:
        differences = []
        before = {file['name']: file for file in files}
        now = {file['name']: file for file in self._describe_files(self.source_files)}
        if now:
            differences += [f'{name} is gone' for name in sorted(before.keys() - now.keys())]
            differences += [f'{name} is new' for name in sorted(now.keys() - before.keys())]
        else:
            # A finished cache outlives its raw files, but not a change of what is left of them.
            now = {
                name: self._describe_file(self._path_of(file), name)
                for name, file in before.items()
                if osp.exists(self._path_of(file))
            }
        for name in sorted(before.keys() & now.keys()):
            differences += self._compare_files(before[name], now[name])
        if before.keys() == now.keys() and list(before) != list(now):
            differences.append(f'the files were {", ".join(before)}, are now {", ".join(now)}')
        return differences

    def _settings(self) -> dict[str, Any]:
        settings = {
            'class': type(self).__name__,
            'schema_version': self.schema_version,
            'pre_transform': repr(self.pre_transform),
        }
        return settings | json.loads(json.dumps(self.arguments))

    def _describe_files(self, paths: list[str]) -> list[dict[str, Any]]:
        if not paths:
            return []
        base = osp.commonpath([osp.dirname(osp.abspath(path)) for path in paths])
        return [self._describe_file(path, osp.relpath(path, base)) for path in paths]

    def _describe_file(self, path: str, name: str) -> dict[str, Any]:
        status = os.stat(path)
        return {
            'name': name,
            'path': osp.relpath(path, self.root),
            'size': status.st_size,
            'modified': status.st_mtime_ns,
        }

    def _path_of(self, file: dict[str, Any]) -> str:
        return osp.normpath(osp.join(self.root, file['path']))

    def _compare_files(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        if before['size'] != now['size']:
            return [f'{now["name"]} had {before["size"]:,} bytes, has now {now["size"]:,}']
        is_untouched = before | now == before
        if not is_untouched and before['hash'] != hash_file(self._path_of(now)):
            return [f'{now["name"]} has the same size and other content']
        return []

    def _write_cache(self, directory: str) -> None:
        files = self._describe_files(self.source_files)
        for file in files:
            file['hash'] = hash_file(self._path_of(file))

        steps = tqdm(total=5, desc='Reading', disable=not self.log, leave=False)
        connection = duckdb.connect()
        try:
            # Tables beyond this spill to disk; the rest of the memory is for the tensors.
            connection.execute("SET memory_limit = '4GB'")
            connection.execute(f'SET temp_directory = {quote(osp.join(directory, "spilled"))}')
            connection.execute('SET enable_progress_bar = false')
            self._read(connection)
            steps.update()

            steps.set_description('Mapping ids')
            for node in ('user', 'item'):
                _map_ids(connection, node)
            for name in self.contexts:
                _map_names(connection, name)
            if self.query is not None:
                _map_queries(connection, self.query)
            steps.update()

            steps.set_description('Sorting by time')
            num_duplicates = self._sort(connection)
            steps.update()

            steps.set_description('Building')
            names: dict[str, list[str]] = {}
            data = self._to_data(connection, names)
            for node in ('user', 'item'):
                self._add_attributes(connection, data, node, names)
            self.extend(connection, data, names)
            steps.update()

            steps.set_description('Writing')
            for node in ('user', 'item'):
                self._write_nodes(connection, node, osp.join(directory, f'{node}.parquet'))
        finally:
            connection.close()
            steps.close()
        shutil.rmtree(osp.join(directory, 'spilled'), ignore_errors=True)

        if self.pre_transform is not None:
            data = self.pre_transform(data)
            if not isinstance(data, HeteroData):
                raise TypeError(
                    f"'pre_transform' must return a HeteroData, "
                    f'{self.pre_transform!r} returned {type(data).__name__}'
                )
        self._write_data(data, osp.join(directory, 'data.pt'))
        cache = {
            'fingerprint': self._settings() | {'files': files},
            'names': names,
            'num_duplicates': num_duplicates,
            'files': {
                name: checksum(osp.join(directory, name))
                for name in self.processed_file_names
                if name != 'cache.json'
            },
        }
        path = osp.join(directory, 'cache.json')
        with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as json_file:
            json.dump(cache | {'checksum': _checksum_of(cache)}, json_file)

    def _write_data(self, data: HeteroData, path: str) -> None:
        # `InMemoryDataset.save` holds two more copies of the data in memory.
        write_tensors(data.to_dict(), path)
        try:
            torch.load(path, weights_only=True, mmap=True)
        except Exception as error:
            raise ValueError(
                f"'pre_transform' must put tensors, numbers, words, lists and dictionaries into "
                f'the data, as a cache holds nothing else, but {self.pre_transform!r} puts objects '
                f'of other classes there'
            ) from error

    def _read(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            self.read(connection)
        except duckdb.Error:
            # DuckDB blames the wrong column when it skips the columns nobody asked for.
            connection.execute("SET disabled_optimizers = 'unused_columns'")
            try:
                self.read(connection)
            except duckdb.Error as error:
                raise explain_read_error(error) from error
        if count_rows(connection, 'log') == 0:
            raise ValueError(f'no rows in {", ".join(self.source_files)}')
        # It also lets another column be empty than the one that must not.
        for name in ('user', 'item', 'time', 'label'):
            count = count_rows(connection, f'log WHERE {name} IS NULL')
            if count:
                raise ValueError(
                    f'{count:,} rows without {name} in {", ".join(self.source_files)}; '
                    f'expected none'
                )

    def _replace_cache(self, staging: str) -> None:
        shutil.rmtree(self._replaced, ignore_errors=True)
        if osp.exists(self.processed_dir):
            os.replace(self.processed_dir, self._replaced)
        os.replace(staging, self.processed_dir)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _sort(self, connection: duckdb.DuckDBPyConnection) -> int:
        merged = {
            name: f'max({name})' for name in ('label', 'weight', *self.behaviors, self.conversion)
        }
        merged |= {'click_time': 'min(click_time)', 'settled': 'max(settled)'}
        # `arg_min` skips NULL, and so would take the value of a later row.
        merged |= {
            name: f'arg_min_null({name}, rowid)' for name in (*self.contexts, *self.features)
        }
        keys = 'user, item, time'
        if self.query is not None:
            merged[self.query] = self.query
            keys += f', {self.query}'
        columns = [
            name for name, *_ in connection.execute('DESCRIBE log').fetchall() if name in merged
        ]
        log = 'SELECT *, rowid AS log_position FROM log'
        if self.merge_duplicates:
            log = f"""
                SELECT user, item, time, min(rowid) AS log_position,
                       {', '.join(f'{merged[name]} AS {name}' for name in columns)}
                FROM log GROUP BY {keys}
            """
        codes = {name: f'{name}_name.code AS {name}' for name in self._mapped}
        joins = (
            f'JOIN {name}_name ON log.{name} IS NOT DISTINCT FROM {name}_name.raw'
            for name in self._mapped
        )
        connection.execute(f"""
            CREATE TABLE event AS
            SELECT user_node.node AS user, item_node.node AS item, time,
                   {', '.join(codes.get(name, f'log.{name}') for name in columns)}
            FROM ({log}) AS log
            JOIN user_node ON log.user = user_node.id
            JOIN item_node ON log.item = item_node.id
            {' '.join(joins)}
            ORDER BY time, log_position
        """)
        if self.merge_duplicates:
            num_distinct = count_rows(connection, 'event')
        else:
            num_distinct = count_rows(connection, f'(SELECT DISTINCT {keys} FROM event)')
        num_duplicates = count_rows(connection, 'log') - num_distinct
        connection.execute('DROP TABLE log')
        return num_duplicates

    def _to_data(
        self, connection: duckdb.DuckDBPyConnection, names: dict[str, list[str]]
    ) -> HeteroData:
        columns = _fetch_events(connection, self.seconds, self._mapped)
        edge_label_index = columns.pop('index')
        edge_label_time = columns.pop('time')
        edge_label = columns.pop('label')
        click = edge_label > 0
        # A log of clicks alone is held once.
        has_clicks_only = bool(click.all()) and 'click_time' not in columns
        click_time = columns.get('click_time', edge_label_time)
        if 'click_time' in columns:
            click = click.nonzero().view(-1)
            click = click[click_time[click].argsort(stable=True)]

        data = HeteroData()
        for node in ('user', 'item'):
            data[node].num_nodes = count_rows(connection, f'{node}_node')
        store = data['user', 'clicks', 'item']
        store.edge_index = edge_label_index if has_clicks_only else edge_label_index[:, click]
        store.time = edge_label_time if has_clicks_only else click_time[click]
        store.edge_label_index = edge_label_index
        store.edge_label = edge_label
        store.edge_label_time = edge_label_time
        if 'settled' in columns:
            store.edge_label_settled = columns['settled']
        if 'weight' in columns:
            store.edge_label_weight = columns['weight']
            store.edge_weight = columns['weight'][click]
        if self.behaviors:
            behavior = torch.stack([columns.pop(name) for name in self.behaviors], dim=1)
            store.edge_label_behavior = behavior.mul_(edge_label.view(-1, 1))
            names['behavior'] = list(self.behaviors)
        if self.conversion is not None:
            store.edge_label_conversion = columns[self.conversion].mul_(edge_label)
            names['conversion'] = [self.conversion]
        if self.features:
            store.edge_label_x = torch.stack([columns.pop(name) for name in self.features], dim=1)
            names['feature'] = list(self.features)
        for name in self.contexts:
            known = connection.execute(
                f'SELECT DISTINCT code, name FROM {name}_name ORDER BY code'
            ).fetchall()
            names[name] = ['unknown' if value is None else str(value) for _, value in known]
            store[f'edge_label_{name}'] = columns[name]
            store[f'num_{name}'] = len(names[name])
        if self.query is not None:
            terms, is_search, names['query'] = _fetch_queries(connection, self.query)
            names['domain'] = list(DOMAINS)
            for name, value in (('query', terms), ('domain', is_search)):
                of_exposure = value[columns[self.query]]
                store[f'edge_label_{name}'] = of_exposure
                store[name] = of_exposure if has_clicks_only else of_exposure[click]
                store[f'num_{name}'] = len(names[name])
        return data

    @property
    def _mapped(self) -> tuple[str, ...]:
        # The columns of the log of which the events hold codes.
        return self.contexts if self.query is None else (*self.contexts, self.query)

    def _add_attributes(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: HeteroData,
        node: str,
        names: dict[str, list[str]],
    ) -> None:
        attributes = [
            name for name in _attributes(connection, node) if name not in self.descriptions
        ]
        if not attributes:
            return
        # What is called unknown in the files and what is missing there are one category.
        merged = ', '.join(
            f"CASE WHEN {name}::VARCHAR <> 'unknown' THEN {name} END AS {name}"
            for name in attributes
        )
        connection.execute(f"""
            CREATE TABLE {node}_joined AS
            SELECT node, {merged}
            FROM {node}_node LEFT JOIN {node}_attribute USING (id)
        """)
        codes = ', '.join(
            f'dense_rank() OVER (ORDER BY {name} NULLS FIRST) - 1 AS {name}' for name in attributes
        )
        columns = connection.execute(
            f'SELECT {codes} FROM {node}_joined ORDER BY node'
        ).fetchnumpy()
        for name in attributes:
            values = connection.execute(
                f'SELECT DISTINCT {name} FROM {node}_joined ORDER BY 1 NULLS FIRST'
            ).fetchall()
            names[name] = ['unknown' if value is None else str(value) for (value,) in values]
            data[node][name] = torch.from_numpy(columns[name].astype(np.int64))
            data[node][f'num_{name}'] = len(names[name])

    def _write_nodes(self, connection: duckdb.DuckDBPyConnection, node: str, path: str) -> None:
        words = [name for name in _attributes(connection, node) if name in self.descriptions]
        attributes = f'LEFT JOIN {node}_attribute USING (id)' if words else ''
        connection.execute(f"""
            COPY (SELECT {', '.join(['id', *words])} FROM {node}_node {attributes} ORDER BY node)
            TO {quote(path)} (FORMAT parquet, COMPRESSION zstd)
        """)


def _checksum_of(cache: dict[str, Any]) -> str:
    r"""The checksum of what a :obj:`cache.json` says, whatever its white space."""
    return f'{zlib.crc32(json.dumps(cache, sort_keys=True).encode()):08x}'


def _attributes(connection: duckdb.DuckDBPyConnection, node: str) -> list[str]:
    columns = connection.execute(
        'SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index',
        [f'{node}_attribute'],
    ).fetchall()
    return [name for (name,) in columns if name != 'id']


def _map_ids(connection: duckdb.DuckDBPyConnection, node: str) -> None:
    connection.execute(f"""
        CREATE TABLE {node}_node AS
        SELECT (row_number() OVER (ORDER BY id) - 1)::INTEGER AS node, id
        FROM (SELECT DISTINCT {node} AS id FROM log)
    """)


def _map_names(connection: duckdb.DuckDBPyConnection, column: str) -> None:
    # What is called unknown in the files and what is missing there are one category.
    connection.execute(f"""
        CREATE TABLE {column}_name AS
        SELECT raw, name, (dense_rank() OVER (ORDER BY name NULLS FIRST) - 1)::INTEGER AS code
        FROM (
            SELECT DISTINCT {column} AS raw,
                   CASE WHEN {column}::VARCHAR <> 'unknown' THEN {column} END AS name
            FROM log
        )
    """)


def _map_queries(connection: duckdb.DuckDBPyConnection, column: str) -> None:
    # Queries are mapped like the names of a context, as there are fewer of them than of exposures.
    connection.execute(f"""
        CREATE TABLE {column}_name AS
        SELECT raw, (row_number() OVER () - 1)::INTEGER AS code,
               CASE WHEN len(terms) = 0 THEN [NULL] ELSE terms[:{_MAX_TERMS}] END AS terms
        FROM (
            SELECT DISTINCT {column} AS raw,
                   list_filter({column}, lambda term:
                       term::VARCHAR NOT IN ('', 'unknown')
                   ) AS terms
            FROM log
        )
    """)
    # From 1, as 0 is the empty query.
    connection.execute(f"""
        CREATE TABLE {column}_term AS
        SELECT term, (row_number() OVER (ORDER BY term NULLS FIRST))::INTEGER AS code
        FROM (SELECT DISTINCT unnest(terms) AS term FROM {column}_name)
    """)


def _fetch_events(
    connection: duckdb.DuckDBPyConnection, seconds: str, mapped: tuple[str, ...]
) -> dict[str, Tensor]:
    connection.execute(f'CREATE MACRO seconds(time) AS {seconds}')
    num_rows = count_rows(connection, 'event')
    names = [name for name, *_ in connection.execute('DESCRIBE event').fetchall()]
    index = torch.empty(2, num_rows, dtype=torch.long)
    columns = {'user': index[0], 'item': index[1]}
    times = [name for name in names if name in ('time', 'click_time', 'settled')]
    for name in (*times, *mapped):
        columns[name] = torch.empty(num_rows, dtype=torch.long)
    columns |= {name: torch.empty(num_rows) for name in names if name not in columns}
    in_seconds = ', '.join(f'seconds({name}) AS {name}' for name in times)
    # In pieces, as one query would hold the whole result twice.
    for start in range(0, num_rows, 1 << 20):
        stop = min(start + (1 << 20), num_rows)
        piece = connection.execute(f"""
            SELECT * REPLACE ({in_seconds}) FROM event
            WHERE rowid >= {start} AND rowid < {stop}
        """).fetchnumpy()
        for name, column in columns.items():
            column[start:stop] = torch.from_numpy(piece[name])
    del columns['user'], columns['item']
    return columns | {'index': index}


def _fetch_queries(
    connection: duckdb.DuckDBPyConnection, column: str
) -> tuple[Tensor, Tensor, list[str]]:
    is_search = connection.execute(
        f'SELECT raw IS NOT NULL AS is_search FROM {column}_name ORDER BY code'
    ).fetchnumpy()['is_search']
    found = connection.execute(f"""
        SELECT query.code AS query, position, known.code AS term
        FROM (
            SELECT code, unnest(terms) AS term, generate_subscripts(terms, 1) - 1 AS position
            FROM {column}_name
        ) AS query
        JOIN {column}_term AS known ON query.term IS NOT DISTINCT FROM known.term
    """).fetchnumpy()
    terms = np.full((is_search.size, found['position'].max(initial=0) + 1), -1)
    terms[~is_search, 0] = 0
    terms[found['query'], found['position']] = found['term']
    known = connection.execute(f'SELECT term::VARCHAR FROM {column}_term ORDER BY code').fetchall()
    names = ['', *('unknown' if term is None else term for (term,) in known)]
    return torch.from_numpy(terms), torch.from_numpy(is_search).long(), names
