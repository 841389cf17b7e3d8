import json
import os
import os.path as osp
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import numpy as np
from torch_geometric.data import HeteroData, InMemoryDataset
from tqdm import tqdm

from mag.datasets._cache import Cache, write_graph
from mag.datasets._fingerprint import compare_files, hash_files
from mag.datasets._known_log import KnownLog, KnownLogReader
from mag.datasets._log_checks import check_log
from mag.datasets._log_to_graph import LogToGraph
from mag.datasets._parquet import read_columns
from mag.datasets._read_errors import explain_read_error
from mag.datasets._sql import drop_tables, quote
from mag.datasets.log_table import LogTable
from mag.files import require_local
from mag.id_map import IdMap


class ClickDataset(InMemoryDataset):
    r"""Base class of all click logs: raw files in, one cached
    :class:`~torch_geometric.data.HeteroData` out.

    .. code-block:: python

        class Shop(ClickDataset):
            raw_file_names = ['shop.csv']
            arguments = {}

            def read(self, connection):
                connection.execute(f"CREATE TABLE log AS FROM read_csv('{self.raw_paths[0]}')")
                return LogTable(time_unit='ms', contexts=('device',))

    A subclass names its raw files, its :attr:`arguments`, fills one DuckDB table in :meth:`read`,
    and says what the table holds; mapping ids, sorting by time and caching happen here and are the
    same for all.

    The cache is the directory :obj:`root/processed`: :obj:`data.pt`, :obj:`user.parquet` and
    :obj:`item.parquet` (one row a node, column :obj:`id` is the id in the raw files), and
    :obj:`cache.json` (fingerprint, names, statistics, checksums).
    It is written beside its final place and renamed at the end, so it is there whole or not at all.
    A damaged or exchanged file is refused, and nothing that a file holds is run.

    The fingerprint holds the class, :attr:`schema_version`, :attr:`arguments`, the :obj:`repr` of
    :obj:`pre_transform` and, for each raw file in the order of reading, its name, its path from
    :obj:`root`, size, modification time and content hash.
    A file whose path, size and modification time are unchanged is taken as unchanged, so opening a
    cache costs no read of the raw files; when only the path or the time differs (copied, checked
    out again) the hash decides.

    Args:
        root (str): Directory of :obj:`raw` and :obj:`processed`.
        transform (callable, optional): Applied on every access.
        pre_transform (callable, optional): Applied once, before caching; a transform whose
            :obj:`repr` says what it does, and no bare function, of which only the name is known.
        force_reload (bool, optional): Whether to make the cache again.
        log (bool, optional): Whether to print progress.
        ids (ClickDataset, str or dict, optional): An earlier dataset of the same shop, the root
            of one, or the :attr:`id_maps` of one: ids that it has keep their nodes, and new ones
            are appended, see :class:`EventLog`.

    Raises:
        FileNotFoundError: If a raw file is missing.
        TypeError: If :obj:`root` is no path, or :meth:`read` returns no :class:`LogTable`.
        ValueError: If the cache is damaged, or was made with other arguments, by another version or
            from other raw files, if :obj:`root` is a file or on another machine, if
            :obj:`pre_transform` is a bare function or puts objects into the data that a cache
            cannot hold, or if :meth:`read` fills a table that is no log.
        OSError: If the disk is full.
    """

    #: Raised by one whenever :meth:`process` writes something else.
    schema_version = 2

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
        ids: 'ClickDataset | str | os.PathLike[str] | Mapping[str, IdMap] | None' = None,
    ) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise TypeError(f"'root' must be a path, but got {root!r}.")
        if osp.isfile(osp.expanduser(root)):
            raise ValueError(f"'root' must be a directory, but {os.fspath(root)!r} is a file.")
        require_local('root', root)
        if ' at 0x' in repr(pre_transform):
            raise ValueError(
                f"'pre_transform' must have a repr that says what it does, as the cache keeps no "
                f'more of it, but got {pre_transform!r}: write it as a BaseTransform with a '
                f"__repr__, or pass it as 'transform'."
            )
        self._known = KnownLogReader(ids.root if isinstance(ids, ClickDataset) else ids)
        super().__init__(
            osp.abspath(osp.expanduser(root)),
            transform,
            pre_transform,
            log=log,
            force_reload=force_reload,
        )
        self._manifest, data = self._cache.read_whole(self._read_cache)
        self.data, self.slices = HeteroData.from_dict(data), None

    @property
    def arguments(self) -> dict[str, Any]:
        r"""The arguments that decide what is cached, as JSON values."""
        raise NotImplementedError

    @property
    def source_files(self) -> list[str]:
        r"""The raw files that :meth:`read` reads, none if one is missing; by default those of
        :attr:`raw_file_names` in :obj:`root/raw`."""
        paths = self.raw_paths
        return paths if all(map(osp.exists, paths)) else []

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        r"""Creates the table :obj:`log` with a row for each exposure, in the order of the files.

        Its columns are :obj:`user`, :obj:`item` (raw ids), :obj:`time`, :obj:`label` (0 or 1),
        those that the result names, and optionally :obj:`weight`, :obj:`click_time` and
        :obj:`settled`. Optionally there are also the tables :obj:`user_attribute` and
        :obj:`item_attribute` with a column :obj:`id` and one column per attribute, of lists where
        it has several values.

        :obj:`click_time` is when the exposure was clicked, not before :obj:`time`; any time where
        it was not clicked. Without this column a click happens at the time of its exposure, or
        counts from :obj:`settled` on, where that is there.

        :obj:`settled` is when all labels of the exposure are known, clicked or not, and not before
        :obj:`time`; it becomes :obj:`edge_label_settled`.

        Returns:
            What the table holds.
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

    def _tell_nodes(self, connection: duckdb.DuckDBPyConnection, known: KnownLog) -> None:
        r"""Called when the tables :obj:`user_node` and :obj:`item_node` have the columns
        :obj:`node` and :obj:`id` of all nodes, also of those that an earlier log knows: fills
        :obj:`user_attribute` and :obj:`item_attribute` where :meth:`read` has not.
        """

    def report_duplicates(self, num_duplicates: int) -> None:
        r"""Called when rows that repeat another have just been cached; by
        default nothing is said of them.
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
    def id_maps(self) -> dict[str, IdMap]:
        r"""For :obj:`'user'` and :obj:`'item'` the map from raw ids to nodes and back, and for each
        categorical attribute that from names to codes. The graph has their lineages,
        :obj:`data.id_maps`."""
        names, raw = self.names, self.raw_ids
        return {
            name: IdMap.of_lineage(raw[name] if name in raw else names[name], lineage)
            for name, lineage in self._manifest['id_maps'].items()
        }

    @property
    def names(self) -> dict[str, list[str]]:
        r"""For every categorical attribute, the name of each code in the raw
        files; for :obj:`'behavior'`, :obj:`'conversion'` and
        :obj:`'feature'`, the columns of :obj:`edge_label_behavior`,
        :obj:`edge_label_conversion` and :obj:`edge_label_x`; for
        :obj:`'query'`, the terms, the first of which, :obj:`''`, is the
        empty query.
        """
        return self._manifest['names']

    @property
    def num_duplicates(self) -> int:
        r"""The number of rows that repeat an earlier row's user, item, time
        and, where there is one, query.
        """
        return self._manifest['num_duplicates']

    def describe(self, node: str) -> dict[str, np.ndarray]:
        r"""Returns the raw :obj:`id` and the words there are about every node
        of one type, in node order.
        """
        return self._cache.read_whole(lambda: self._read_nodes(node))

    def field_text(self) -> dict[str, Any]:
        r"""What is told of this log in words, as arguments of
        :class:`~mag.transforms.FieldText`: the :attr:`names`, the
        :attr:`raw_ids`, and the :obj:`descriptions` that :meth:`describe`
        has of every node.
        """
        words = {node: self.describe(node) for node in ('user', 'item')}
        raw_ids = {node: columns.pop('id') for node, columns in words.items()}
        return {'names': self.names, 'raw_ids': raw_ids, 'descriptions': words}

    def _read_nodes(self, node: str) -> dict[str, np.ndarray]:
        with self._cache.opening(self._manifest, f'{node}.parquet') as path:
            return read_columns(path)

    def process(self) -> None:
        with self._cache.writing() as folder:
            num_duplicates = self._write(folder)
        if num_duplicates:
            self.report_duplicates(num_duplicates)

    def _download(self) -> None:
        self._cache.remove_leftovers()
        # A finished cache outlives its raw files.
        if self._cache.exists() and not self.force_reload:
            return
        with self._cache.lock():
            super()._download()

    def _process(self) -> None:
        self._cache.remove_leftovers()
        if not self._cache.exists() or self.force_reload:
            with self._cache.lock():
                # Another process may have made it while this one waited.
                if not self._cache.exists() or self.force_reload:
                    self.process()

    @property
    def _cache(self) -> Cache:
        return Cache(self.processed_dir)

    def _read_cache(self) -> tuple[dict[str, Any], dict[str, Any]]:
        manifest = self._cache.read_manifest('fingerprint', 'names', 'num_duplicates')
        cached = manifest['fingerprint']
        differences = [
            f'{key} was {cached.get(key)!r}, is now {value!r}'
            for key, value in self._settings().items()
            if cached.get(key) != value
        ]
        differences = differences or compare_files(cached['files'], self.source_files, self.root)
        if differences:
            raise ValueError(
                f'The cache in {self.processed_dir!r} does not fit: {"; ".join(differences)}. '
                f"Pass force_reload=True to make it again, or choose another 'root'."
            )
        return manifest, self._cache.read_graph(manifest, 'data.pt')

    def _settings(self) -> dict[str, Any]:
        settings = {
            'class': type(self).__name__,
            'schema_version': self.schema_version,
            'pre_transform': repr(self.pre_transform),
            'ids': self._known.settings,
        }
        return settings | json.loads(json.dumps(self.arguments))

    def _write(self, folder: str) -> int:
        files = hash_files(self.source_files, self.root)
        # A log in memory has none.
        if not files and self.raw_file_names:
            raise FileNotFoundError(
                f'{type(self).__name__} needs '
                f'{", ".join(osp.relpath(path, self.raw_dir) for path in self.raw_paths)} in '
                f'{self.raw_dir!r}, but did not find all.'
            )
        steps = tqdm(total=5, desc='Reading', disable=not self.log, leave=False)
        connection = duckdb.connect()
        try:
            # Tables beyond this spill to disk; the rest of the memory is for the tensors.
            connection.execute("SET memory_limit = '4GB'")
            connection.execute(f'SET temp_directory = {quote(osp.join(folder, "spilled"))}')
            connection.execute('SET enable_progress_bar = false')
            connection.execute("SET TimeZone = 'UTC'")
            table, known = self._read(connection), self._known.read()
            graph = LogToGraph(connection, table, known)
            steps.update()

            steps.set_description('Mapping ids')
            graph.map_ids()
            self._tell_nodes(connection, known)
            steps.update()

            steps.set_description('Sorting by time')
            num_duplicates = graph.sort()
            steps.update()

            steps.set_description('Building')
            data = graph.build()
            self.extend(connection, data, graph.names)
            known.add_modalities(data)
            lineages = dict(data.id_maps)
            steps.update()

            steps.set_description('Writing')
            for node in ('user', 'item'):
                graph.write_nodes(node, osp.join(folder, f'{node}.parquet'))
        finally:
            connection.close()
            steps.close()
        shutil.rmtree(osp.join(folder, 'spilled'), ignore_errors=True)
        write_graph(
            self._transformed(data).to_dict(),
            osp.join(folder, 'data.pt'),
            repr(self.pre_transform),
        )
        facts = {
            'fingerprint': self._settings() | {'files': files},
            'names': graph.names,
            'id_maps': lineages,
            'num_duplicates': num_duplicates,
        }
        self._cache.write_manifest(folder, facts)
        return num_duplicates

    def _read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        try:
            table = self.read(connection)
        except duckdb.Error:
            drop_tables(connection)
            # DuckDB blames the wrong column when it skips the columns nobody asked for.
            connection.execute("SET disabled_optimizers = 'unused_columns'")
            try:
                table = self.read(connection)
            except duckdb.Error as error:
                raise explain_read_error(error) from error
        # It also lets another column be empty than the one that must not.
        check_log(connection, table, type(self).__name__, ', '.join(self.source_files))
        return table

    def _transformed(self, data: HeteroData) -> HeteroData:
        if self.pre_transform is None:
            return data
        data = self.pre_transform(data)
        if not isinstance(data, HeteroData):
            raise TypeError(
                f"'pre_transform' must return a HeteroData, but got {type(data).__name__} from "
                f'{self.pre_transform!r}.'
            )
        return data
