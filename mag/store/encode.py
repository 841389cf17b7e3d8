r"""From files of events to a log of integers in the order of time, by DuckDB within its memory."""

import os
import os.path as osp
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import duckdb
import numpy as np
from tqdm import tqdm

from mag.datasets import LogSchema
from mag.datasets._event_files import EventFiles, find_files
from mag.datasets._log_roles import rules_of
from mag.datasets._parquet import scan_parquet
from mag.datasets._sql import INTEGERS, column_kinds, count_rows, in_seconds, quote, quote_name
from mag.datasets._values import check_table
from mag.files import format_bytes
from mag.id_map import LINEAGE, lineage_of
from mag.schema import NEIGHBOR_TYPE
from mag.store.units import Units

# What a store keeps of a log, as the schema calls it.
ROLES = (
    'user', 'item', 'time', 'label', 'conversion', 'behaviors', 'contexts', 'features', 'category',
    'user_attributes', 'item_attributes',
)  # fmt: skip
# Above it, a node does not fit the log.
_MOST_NODES = 2**31 - 1
_CHUNK = 2**20
# Else DuckDB writes beside a file that a killed process began, and a kill leaves that one, too.
_IN_PLACE = 'USE_TMP_FILE false'
# How many rows DuckDB writes at once, and reads at least.
_ROW_GROUP, _VECTOR = 122_880, 2048
_EVENT = ('user', 'item', 'time', 'click')


class Run(NamedTuple):
    r"""Rows of a file that follow each other.

    Attributes:
        select (str): The SQL that gives the rows of the file, which a condition may follow.
        first (int): The first of them.
        num_rows (int): How many there are.
    """

    select: str
    first: int
    num_rows: int

    @property
    def query(self) -> str:
        r"""The SQL that gives them."""
        end = self.first + self.num_rows
        return f'{self.select} WHERE file_row_number >= {self.first} AND file_row_number < {end}'


class Log(NamedTuple):
    r"""A log in the order of time.

    Attributes:
        files (list): Its files.
        columns (dict): What is in which column, by what it is called.
        selects (list): For each file, the SQL that gives users, items, times, clicks, what else
            there is, and numbers of rows as :obj:`row`.
        num_rows (list): The number of rows of each.
    """

    files: list[str]
    columns: dict[str, str | None]
    selects: list[str]
    num_rows: list[int]

    def runs(self, most: int) -> list[Run]:
        r"""All of it in runs of a number of rows at most."""
        return [run for of in zip(self.selects, self.num_rows) for run in _cut(*of, most)]

    def table(self, *columns: str) -> str:
        r"""The SQL of a table of some columns, and of the place of each row as
        :obj:`log_position`, which is no name of an attribute."""
        starts = np.cumsum([0, *self.num_rows]).tolist()
        names = ', '.join(columns)
        parts = (
            f'SELECT {names}, row + {start} AS log_position FROM ({select})'
            for select, start in zip(self.selects, starts)
        )
        return f'({" UNION ALL ".join(parts)})'


class Encoder:
    r"""Makes the log of a store.

    Args:
        schema (LogSchema): The log.
        units (Units): What runs the units.
        memory (int): How many bytes DuckDB may take.
        rows (int): How many rows are held at once.
    """

    def __init__(self, schema: LogSchema, units: Units, memory: int, rows: int) -> None:
        self.schema, self.units, self.memory, self.rows = schema, units, memory, rows
        self.fields = schema.log_fields

    @contextmanager
    def connect(self, database: str = ':memory:') -> Iterator[duckdb.DuckDBPyConnection]:
        r"""A connection that keeps to the memory, and spills into the folder of the build."""
        with duckdb.connect(database) as connection:
            connection.execute(f"SET memory_limit = '{self.memory}B'")
            connection.execute(f'SET threads = {self.units.threads}')
            connection.execute(f'SET temp_directory = {quote(self.units.path("work/spill"))}')
            connection.execute("SET TimeZone = 'UTC'")
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise ValueError(
                    f'The log of {len(self.fields)} columns needs more than the '
                    f'{format_bytes(self.memory)} of memory that there are to encode it: take a '
                    f"larger 'memory_limit', fewer threads or fewer columns."
                ) from error

    def encode(self) -> Log:
        r"""Makes the ids and the log, as far as the files are not that already.

        Raises:
            ValueError: If a file is not what the schema says.
        """
        opened = self.units.run('open', self._open)
        scanned = self.units.run('scan', lambda: self._scan(opened))
        for name in NEIGHBOR_TYPE:
            self.units.run(f'ids-{name}', partial(self._map_ids, opened, scanned, name))
        if scanned['is_log']:
            columns: dict[str, str | None] = {'click': None}
            for name, field in self.fields.items():
                columns['click' if name == 'label' else name] = field.column
            return Log(opened['files'], columns, self._selects(opened), opened['num_rows'])
        runs = [
            run
            for of in zip(self._selects(opened), opened['num_rows'], strict=True)
            for run in _cut(*of, self.rows)
        ]
        names, order = (
            {f'encode-{place:06}': run for place, run in enumerate(runs)},
            self._order(opened),
        )
        for folder in ('work/encoded', 'log'):
            os.makedirs(self.units.path(folder), exist_ok=True)
        with self.connect() as connection:
            self.units.run_all(
                'encode',
                ' rows',
                {name: run.num_rows for name, run in names.items()},
                lambda name: self._encode(connection.cursor(), names[name], name, scanned, order),
                lambda name, path: self.units.wrote(path),
            )
        is_sorted = self.units.run('sorted', lambda: self._are_sorted([*names], order))
        files = self.units.run('sort', lambda: self._sort([*names], is_sorted, order))
        shutil.rmtree(self.units.path('work/encoded'), ignore_errors=True)
        _remove(self.units.path('work/read.parquet'))
        selects = [
            f'SELECT *, file_row_number AS row FROM {scan_parquet(self.units.path(file))}'
            for file in files
        ]
        with self.connect() as connection:
            num_rows = [count_rows(connection, f'({select})') for select in selects]
        columns = {name: name for name in (*_EVENT, *self._others())}
        return Log(files, columns, selects, num_rows)

    def write_attribute(self, log: Log, node_type: str, name: str, file: str) -> dict[str, Any]:
        r"""Writes the code of a categorical of each node, that of its first row in time, and what
        codes are called. Codes are in ascending order of values, unknown ones first."""
        path = self.units.path('work/codes.parquet')
        with self.connect() as connection:
            connection.execute(f"""
                CREATE TABLE first AS
                SELECT {node_type}::INTEGER AS node,
                       arg_min_null({_known(name)}, log_position) AS value
                FROM {log.table(node_type, quote_name(name))} GROUP BY node
            """)
            connection.execute("""
                CREATE TABLE code AS
                SELECT value, (row_number() OVER (ORDER BY value NULLS FIRST) - 1)::INTEGER AS code
                FROM (SELECT DISTINCT value FROM first)
            """)
            connection.execute(f"""
                COPY (
                    SELECT code FROM first JOIN code ON first.value IS NOT DISTINCT FROM code.value
                    ORDER BY node
                ) TO {quote(path)} (FORMAT parquet)
            """)
            num_nodes = count_rows(connection, 'first')
            self.units.allocate(file, np.int32, [num_nodes])
            for run in _cut(f'SELECT code FROM {scan_parquet(path)}', num_nodes, self.rows):
                code = connection.execute(run.query).fetchnumpy()['code']
                self.units.write(file, code, run.first)
            found = self._write_ids(connection, _named('code'), name, 'names')
        _remove(path)
        return found

    def write_context(self, log: Log, name: str) -> dict[str, Any]:
        r"""Writes the values of a categorical of exposures in the order of their codes, which is
        that of :meth:`write_attribute`, and what they are called."""
        with self.connect() as connection:
            connection.execute(f"""
                CREATE TABLE code AS
                SELECT DISTINCT {_known(name)} AS value FROM {log.table(quote_name(name))}
            """)
            return self._write_ids(connection, _named('code'), name, 'names')

    def facts(self, log: Log) -> dict[str, int]:
        r"""When the log begins and ends, in seconds, and how many clicks it has."""
        with self.connect() as connection:
            found = connection.execute(
                'SELECT min(time) AS first_time, max(time) AS last_time, '
                f'count_if(click) AS num_clicks FROM {log.table("time", "click")}'
            ).fetchnumpy()
        return {name: int(value[0]) for name, value in found.items()}

    def raw_id(self, node_type: str, node: int) -> Any:
        r"""The id that a node has in the files."""
        if self.units.results['scan']['is_dense'][node_type]:
            return node
        ids = scan_parquet(self.names(node_type))
        with self.connect() as connection:
            query = f'SELECT id FROM {ids} WHERE file_row_number = {node}'
            return connection.execute(query).fetchall()[0][0]

    def times(self, log: Log, position: np.ndarray) -> np.ndarray:
        r"""The times at some places of the log."""
        places = ', '.join(map(str, position.tolist()))
        with self.connect() as connection:
            found = connection.execute(
                f'SELECT log_position, time FROM {log.table("time")} '
                f'WHERE log_position IN ({places})'
            ).fetchall()
        by_position = dict(found)
        return np.array([by_position[place] for place in position.tolist()])

    def _open(self) -> dict[str, Any]:
        r"""What the files hold. Delimited ones become a Parquet file."""
        # A log that stays where it is must be found from anywhere.
        paths = [
            os.path.abspath(path) for path in find_files(self.schema.path, self.schema.format())
        ]
        files = EventFiles(paths, self.fields, 'log', self.schema.format())
        if not files.is_parquet:
            queries = [self._read(files)]
        with self.connect() as connection:
            if files.is_parquet:
                queries = files.parquet_queries(connection, ('file_row_number',))
            kinds = column_kinds(connection, f'({queries[0]})')
            num_rows = [count_rows(connection, f'({query})') for query in queries]
            if files.is_parquet:
                rules = rules_of(self.fields, kinds)
                for path, query in zip(paths, queries, strict=True):
                    rows = f'(SELECT *, file_row_number AS rowid FROM ({query}))'
                    where = lambda row, path=path: f'{path}, row {row + 1}'  # noqa: E731
                    check_table(connection, rows, rules, where, files.titles)
        if not sum(num_rows):
            raise ValueError(f'{", ".join(paths)} must hold rows, but got none.')
        return {
            'files': paths,
            'queries': queries,
            'kinds': kinds,
            'num_rows': num_rows,
            'is_parquet': files.is_parquet,
        }

    def _read(self, files: EventFiles) -> str:
        database, path = (self.units.path(f'work/read.{end}') for end in ('duckdb', 'parquet'))
        _remove(database)
        with self.connect(database) as connection:
            files.read(connection)
            rules = rules_of(self.fields, column_kinds(connection, 'log'))
            check_table(connection, 'log', rules, files.locate, files.titles)
            files.read_numbers(connection)
            connection.execute(f'COPY log TO {quote(path)} (FORMAT parquet)')
        _remove(database)
        self.units.wrote(path)
        names = ', '.join(map(quote_name, (*self.fields, 'file_row_number')))
        return f'SELECT {names} FROM {scan_parquet(path)}'

    def _others(self) -> dict[str, str]:
        r"""What else is kept, and the SQL that gives it."""
        kinds = {'flag': '::UTINYINT', 'number': '::FLOAT'}
        return {
            name: f'{quote_name(name)}{kinds.get(field.kind, "")}'
            for name, field in self.fields.items()
            if name not in (*_EVENT, 'label')
        }

    def _order(self, opened: Mapping[str, Any]) -> str:
        r"""The column by which rows are in order: times may be finer than the seconds that are
        kept."""
        is_plain = opened['kinds']['time'] in INTEGERS and self.schema.time_unit == 's'
        return 'time' if is_plain else '_moment'

    def _selects(self, opened: Mapping[str, Any]) -> list[str]:
        r"""For each file, the SQL that gives its rows in one form."""
        seconds = in_seconds('time', opened['kinds']['time'], self.schema.time_unit)
        click = 'label > 0' if 'label' in self.fields else 'true'
        others = ''.join(f', {of} AS {quote_name(name)}' for name, of in self._others().items())
        moment = ', time AS _moment' if self._order(opened) == '_moment' else ''
        # The numbers of rows go by their own name, so that a condition reaches the file.
        return [
            f'SELECT user, item, {seconds} AS time{moment}, {click} AS click{others}, '
            f'file_row_number AS row FROM ({query})'
            for query in opened['queries']
        ]

    def _scan(self, opened: Mapping[str, Any]) -> dict[str, Any]:
        r"""Reads the log once, to see whether it has to be encoded."""
        kinds, num_rows = opened['kinds'], sum(opened['num_rows'])
        seen: dict[str, np.ndarray] = {}
        num_nodes = dict.fromkeys(NEIGHBOR_TYPE, 0)
        for name in NEIGHBOR_TYPE:
            if kinds[name] in INTEGERS:
                # Mapped, as it may be as long as the log.
                path = self.units.path(f'work/seen_{name}.npy')
                seen[name] = np.lib.format.open_memmap(path, 'w+', np.bool_, (num_rows,))
        last, is_sorted = None, True
        runs = [
            run
            for of in zip(self._selects(opened), opened['num_rows'], strict=True)
            for run in _cut(*of, self.rows)
        ]
        with (
            self.connect() as connection,
            tqdm(
                desc='scan', total=num_rows, unit=' rows', unit_scale=True,
                disable=not self.units.progress,
            ) as bar,
        ):  # fmt: skip
            for run in runs:
                if not seen and not is_sorted:
                    break
                names = ', '.join((*seen, 'time'))
                rows = connection.execute(f'SELECT {names} FROM ({run.query})').fetchnumpy()
                time = rows['time']
                if run.num_rows:
                    is_sorted &= last is None or bool(time[0] >= last)
                    is_sorted &= bool((time[1:] >= time[:-1]).all())
                    last = time[-1]
                for name in [*seen]:
                    low, high = int(rows[name].min(initial=0)), int(rows[name].max(initial=0))
                    # With fewer rows than ids, some have none.
                    if low < 0 or high >= num_rows:
                        del seen[name]
                        continue
                    seen[name][rows[name]] = True
                    num_nodes[name] = max(num_nodes[name], high + 1)
                bar.update(run.num_rows)
        is_dense = {
            name: name in seen and bool(seen[name][: num_nodes[name]].all())
            for name in NEIGHBOR_TYPE
        }
        seen.clear()
        for name in NEIGHBOR_TYPE:
            _remove(self.units.path(f'work/seen_{name}.npy'))
        is_plain = self._order(opened) == 'time'
        is_log = opened['is_parquet'] and all(is_dense.values()) and is_sorted and is_plain
        return {'is_dense': is_dense, 'num_nodes': num_nodes, 'is_log': is_log}

    def _map_ids(
        self, opened: Mapping[str, Any], scanned: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        r"""Writes the ids of a node type in ascending order, unless they are the nodes."""
        if scanned['is_dense'][name]:
            number = scanned['num_nodes'][name]
            chunks: Iterable[np.ndarray] = (
                np.arange(first, min(first + _CHUNK, number)) for first in range(0, number, _CHUNK)
            )
            return {'num_nodes': number, 'lineage': lineage_of(chunks, [number])}
        rows = ' UNION ALL '.join(f'SELECT {name} AS id FROM ({q})' for q in opened['queries'])
        with self.connect() as connection:
            found = self._write_ids(
                connection, f'SELECT DISTINCT id FROM ({rows}) ORDER BY id', name, 'ids'
            )
        return {'num_nodes': found['number'], 'lineage': found['lineage']}

    def _write_ids(
        self, connection: duckdb.DuckDBPyConnection, query: str, name: str, folder: str
    ) -> dict[str, Any]:
        r"""Writes the ids that a query gives, in its order, as a file that
        :meth:`~mag.datasets.IdMap.load` reads."""
        unmarked, path = self.units.path(f'work/{name}.parquet'), self.names(name, folder)
        os.makedirs(osp.dirname(path), exist_ok=True)
        connection.execute(f'COPY ({query}) TO {quote(unmarked)} (FORMAT parquet)')
        number = count_rows(connection, scan_parquet(unmarked))
        if number > _MOST_NODES:
            raise ValueError(
                f'A store holds at most {_MOST_NODES:,} {name}s, but the log has {number:,}.'
            )
        lineage = lineage_of(
            _chunks(connection.execute(f'SELECT id FROM {scan_parquet(unmarked)}')), [number]
        )
        # What tells a file of ids from any other.
        connection.execute(
            f'COPY (SELECT * FROM {scan_parquet(unmarked)}) '
            f'TO {quote(path)} (FORMAT parquet, COMPRESSION zstd, {_IN_PLACE}, '
            f'KV_METADATA {{{LINEAGE}: {quote(lineage)}}})'
        )
        _remove(unmarked)
        self.units.wrote(path)
        return {'number': number, 'lineage': lineage}

    def names(self, name: str, folder: str = 'ids') -> str:
        r"""The file of the ids of a node type, or of the names of an attribute or a context."""
        return self.units.path(f'{folder}/{name}.parquet')

    def _encode(
        self,
        connection: duckdb.DuckDBPyConnection,
        run: Run,
        name: str,
        scanned: Mapping[str, Any],
        order: str,
    ) -> str:
        r"""Writes a run as integers, in order, and gives the file."""
        nodes, joins = {}, ''
        for node in NEIGHBOR_TYPE:
            nodes[node] = f'rows.{node}::INTEGER'
            if not scanned['is_dense'][node]:
                nodes[node] = f'{node}_node.file_row_number::INTEGER'
                joins += f' JOIN {scan_parquet(self.names(node))} AS {node}_node'
                joins += f' ON rows.{node} = {node}_node.id'
        others = ''.join(f', rows.{quote_name(other)}' for other in self._others())
        times = ', '.join(f'rows.{column}' for column in dict.fromkeys(['time', order]))
        path = self._encoded(name)
        connection.execute(f"""
            COPY (
                SELECT {nodes['user']} AS user, {nodes['item']} AS item, {times}, rows.click
                       {others}
                FROM ({run.query}) AS rows {joins}
                ORDER BY rows.{order}, rows.row
            ) TO {quote(path)} (FORMAT parquet, COMPRESSION zstd)
        """)
        return path

    def _encoded(self, name: str) -> str:
        return self.units.path(f'work/encoded/{name}.parquet')

    def _are_sorted(self, names: Sequence[str], order: str) -> bool:
        r"""Whether no run begins before the former one ends."""
        runs = ' UNION ALL '.join(
            f'SELECT {place} AS place, min({order}) AS low, max({order}) AS high '
            f'FROM {scan_parquet(self._encoded(name))}'
            for place, name in enumerate(names)
        )
        with self.connect() as connection:
            found = connection.execute(f"""
                SELECT count_if(low < former) FROM (
                    SELECT low, lag(high) OVER (ORDER BY place) AS former FROM ({runs})
                )
            """).fetchall()
        return bool(found[0][0] == 0)

    def _sort(self, names: Sequence[str], is_sorted: bool, order: str) -> list[str]:
        r"""Makes one log of the runs."""
        if is_sorted:
            files = [f'log/{place:06}.parquet' for place in range(len(names))]
            for name, file in zip(names, files, strict=True):
                self._keep(name, self.units.path(file), order)
            return files
        # Each run is in order, and so the rows of one moment are in that of the log.
        rows = ' UNION ALL '.join(
            f'SELECT *, {place} AS _run, file_row_number AS row '
            f'FROM {scan_parquet(self._encoded(name))}'
            for place, name in enumerate(names)
        )
        path = self.units.path('log/000000.parquet')
        # Of times, seconds are kept.
        left_out = ', '.join(sorted({'_run', 'row', order} - {'time'}))
        with self.connect() as connection:
            connection.execute(
                f'COPY (SELECT * EXCLUDE ({left_out}) FROM ({rows}) ORDER BY {order}, _run, row) '
                f'TO {quote(path)} (FORMAT parquet, COMPRESSION zstd, {_IN_PLACE}, '
                f'ROW_GROUP_SIZE {min(_ROW_GROUP, max(self.rows, _VECTOR))})'
            )
        self.units.wrote(path)
        return ['log/000000.parquet']

    def _keep(self, name: str, path: str, order: str) -> None:
        r"""Makes a file of the log of a run."""
        if order != 'time':
            rows = f'SELECT * EXCLUDE ({order}) FROM {scan_parquet(self._encoded(name))}'
            form = f'FORMAT parquet, COMPRESSION zstd, {_IN_PLACE}'
            with self.connect() as connection:
                connection.execute(f'COPY ({rows}) TO {quote(path)} ({form})')
        # A killed process may have moved it.
        elif osp.exists(self._encoded(name)):
            os.replace(self._encoded(name), path)
        self.units.wrote(path)


def _known(name: str) -> str:
    r"""The SQL of a value; what is called unknown in the files and what is missing are one, as
    EventLog takes them."""
    column = quote_name(name)
    return f"CASE WHEN {column}::VARCHAR NOT IN ('', 'unknown') THEN {column} END"


def _named(table: str) -> str:
    r"""The SQL that gives values in the order of their codes, and what they are called."""
    return (
        f"SELECT coalesce(value::VARCHAR, 'unknown') AS id, value FROM {table} "
        f'ORDER BY value NULLS FIRST'
    )


def _cut(select: str, num_rows: int, most: int) -> Iterator[Run]:
    for first in range(0, num_rows, most):
        yield Run(select, first, min(most, num_rows - first))


def _chunks(found: duckdb.DuckDBPyConnection) -> Iterator[np.ndarray]:
    r"""The one column of a query, a number of rows at a time."""
    while rows := found.fetchmany(_CHUNK):
        yield np.array([value for (value,) in rows], dtype=object)


def _remove(path: str) -> None:
    for name in (path, f'{path}.wal'):
        if osp.exists(name):
            os.remove(name)
