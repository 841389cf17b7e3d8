r"""The ways from a log to the counts of its macro graph that `scale.py` measures, each in a process
of its own.

All count one log: exposures and clicks of both sides by cluster, distinct pairs, two hops, and the
last neighbors.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import duckdb
import torch
from timing import Stages
from torch_geometric.data import HeteroData

from mag.datasets import LogSchema
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES
from mag.transforms import MacroCoarsen, RecentNeighbors

if TYPE_CHECKING:
    from mag.store import BuildPlan

COLUMNS = {'user': 'user', 'item': 'item', 'time': 'time'}
#: The clusters of those ways that are given them, as columns of the log.
GIVEN = {'user': 'segment', 'item': 'family'}
NUM_GIVEN = {'segment': 200, 'family': 300}
NUM_RECENT = 20
_SECONDS_BETWEEN_LOOKS = 0.05
_LOOKS_AT_DISK_EVERY = 20
#: The stage of each unit of a build, by what its name begins with; the first that fits.
_STAGE = {
    'fits': 'read',
    'groups': 'clusters',
    'fit': 'clusters',
    'assign': 'clusters',
    'centroids': 'clusters',
    'map': 'map',
    'memory': 'map',
    'checksum': 'rest',
    'nodes': 'count',
    'close-second': 'hop 2',
    'close': 'count',
    'second': 'hop 2',
    'spark-map': 'map',
    'spark-assign': 'clusters',
    'spark-count': 'count',
    'spark-second': 'hop 2',
}


class Watch:
    r"""Looks at the memory of this process and at a folder while something runs.

    Args:
        folder: Whose files are looked at.

    Attributes:
        anonymous: The most bytes that were held without those of mapped files.
        disk: The most bytes that files took on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.anonymous = self.disk = 0
        self._folder = folder
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> 'Watch':
        self._thread.start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._has_ended.set()
        self._thread.join()
        self.disk = max(self.disk, bytes_on_disk(self._folder))

    def _look(self) -> None:
        looks = 0
        while not self._has_ended.is_set():
            self.anonymous = max(self.anonymous, anonymous_bytes())
            if looks % _LOOKS_AT_DISK_EVERY == 0:
                self.disk = max(self.disk, bytes_on_disk(self._folder))
            looks += 1
            sleep(_SECONDS_BETWEEN_LOOKS)


def anonymous_bytes() -> int:
    r"""What this process holds now without mapped files, as Linux tells it."""
    lines = Path('/proc/self/status').read_text().splitlines()
    told = dict(line.split(':', 1) for line in lines)
    return int(told['RssAnon'].split()[0]) * 1024


def bytes_on_disk(folder: Path) -> int:
    r"""What the files of a folder take, some of which may be gone meanwhile."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                # Files that are written in places have holes.
                total += os.stat(os.path.join(path, file)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


@contextmanager
def units_as_laps(stages: Stages) -> Iterator[None]:
    r"""Ends a stage with each unit of a build."""
    from mag.store.units import Units

    finish = Units._finish

    def lap(self: Units, name: str, result: Any) -> None:
        finish(self, name, result)
        stages.lap(next((of for start, of in _STAGE.items() if name.startswith(start)), 'read'))

    with patch.object(Units, '_finish', lap):
        yield


def store(
    stages: Stages,
    log: Path,
    groups: Mapping[str, Any],
    attributes: list[str],
    label: bool,
    windows: Mapping[str, Any],
    memory_limit: str,
) -> dict[str, float]:
    r"""Builds a store beside the log, which is thrown away.

    Args:
        stages: The stopwatch.
        log: A Parquet file that `power_law_log.py` wrote.
        groups: Those of the plan.
        attributes: Columns of the log that are attributes of items, or of users if they are
            clusters of these.
        label: Whether there is a column of clicks.
        windows: The plan's :obj:`cutoffs` or :obj:`num_windows`.
        memory_limit: What the build may hold.
    """
    from mag.store import build

    with tempfile.TemporaryDirectory(dir=log.parent) as root:
        plan = plan_of(log, Path(root), groups, attributes, label, windows, memory_limit)
        stages.lap('read')
        with Watch(Path(root)) as watch, units_as_laps(stages):
            path = build(plan, progress=False)
        stages.lap('rest')
        manifest = json.loads(Path(path, 'manifest.json').read_text())
    return {
        **{f'{name}s': number for name, number in manifest['num_nodes'].items()},
        'anonymous': watch.anonymous,
        'disk': watch.disk,
        'kept': manifest['bytes'],
    }


def plan_of(
    log: Path,
    root: Path,
    groups: Mapping[str, Any],
    attributes: list[str],
    label: bool,
    windows: Mapping[str, Any],
    memory_limit: str,
) -> 'BuildPlan':
    r"""The plan of :func:`store`, whose store goes into a folder."""
    from mag.store import BuildPlan

    columns: dict[str, Any] = dict(COLUMNS)
    columns['user_attributes'] = [name for name in attributes if name == GIVEN['user']]
    columns['item_attributes'] = [name for name in attributes if name != GIVEN['user']]
    if label:
        columns['label'] = 'click'
    schema = LogSchema(str(log), {role: of for role, of in columns.items() if of})
    return BuildPlan(
        schema, root / 'store', groups, **windows, num_recent=NUM_RECENT,
        memory_limit=memory_limit,
    )  # fmt: skip


def memory(stages: Stages, log: Path, end: int) -> dict[str, float]:
    r"""Counts a log that is held, by transforms, whose products are SciPy's. Clusters are
    :data:`GIVEN`."""
    with Watch(log.parent) as watch:
        columns = (
            duckdb.connect()
            .execute(f"""
            SELECT user, item, time, click, segment, family FROM read_parquet('{log}')
        """)
            .torch()
        )
        data = HeteroData()
        for node_type, name in GIVEN.items():
            node = columns[node_type].long()
            code = torch.empty(int(node.max()) + 1, dtype=torch.long)
            code[node] = columns[name].long()
            data[node_type].num_nodes = code.numel()
            data[node_type][name], data[node_type][f'num_{name}'] = code, NUM_GIVEN[name]
        edge_index = torch.stack([columns[name].long() for name in NEIGHBOR_TYPE])
        is_click = columns['click'] > 0
        sees, clicks = data[SEES], data[CLICKS]
        sees.edge_index, sees.time, sees.clicked = edge_index, columns['time'], columns['click']
        clicks.edge_index, clicks.time = edge_index[:, is_click], columns['time'][is_click]
        clicks.cutoff = torch.tensor([end])
        del columns, edge_index, is_click
        stages.lap('read')
        data = RecentNeighbors(NUM_RECENT)(data)
        stages.lap('recent lists')
        data = MacroCoarsen(GIVEN)(data)
        stages.lap('counts')
    facts = {
        f'hop 2 of {name}s': float(data[macro, 'hop2', name].edge_weight.sum())
        for name, macro in MACRO.items()
    }
    return {**facts, 'anonymous': watch.anonymous}


def in_duckdb(stages: Stages, log: Path, end: int) -> dict[str, float]:
    r"""Counts a log by the queries of `mag.store.sql`, which have no second hop."""
    from mag.store import sql

    with tempfile.TemporaryDirectory(dir=log.parent) as root, Watch(Path(root)) as watch:
        connection = duckdb.connect()
        connection.execute(f"SET threads = 2; SET temp_directory = '{root}/spill'")
        connection.execute(f"""
            CREATE VIEW log AS SELECT user, item, time, click > 0 AS click,
                file_row_number AS log_row FROM read_parquet('{log}', file_row_number = true)
        """)
        for node_type, name in GIVEN.items():
            connection.execute(f"""
                CREATE TABLE of_{node_type} AS
                SELECT DISTINCT {node_type} AS node, {name} AS cluster, 0 AS cluster_window
                FROM read_parquet('{log}')
            """)
        stages.lap('read')

        def write(query: str) -> None:
            connection.execute(f"COPY ({query}) TO '{root}/counts.parquet' (FORMAT parquet)")

        write(sql.distinct_pairs('log', [end]))
        stages.lap('pairs')
        for node_type, neighbor in NEIGHBOR_TYPE.items():
            write(sql.hop_one('log', f'of_{neighbor}', node_type, [end]))
        stages.lap('hop 1')
        for node_type in NEIGHBOR_TYPE:
            write(sql.recents('log', node_type, [end], NUM_RECENT))
        stages.lap('recent lists')
    return {'anonymous': watch.anonymous}


def on_spark(stages: Stages, log: Path, end: int, memory_limit: str) -> dict[str, float]:
    r"""Builds the store by Spark on two threads of this machine, whose processes are not this
    one."""
    from mag.store.spark import build_on_spark, spark_session

    with tempfile.TemporaryDirectory(dir=log.parent) as root:
        plan = plan_of(
            log, Path(root), GIVEN, [*GIVEN.values()], True, {'cutoffs': [end]}, memory_limit
        )
        session = spark_session('local[2]')
        stages.lap('start')
        with units_as_laps(stages):
            build_on_spark(plan, session, progress=False)
        stages.lap('rest')
        session.stop()
    return {}


def give_clusters(log: Path, path: Path) -> Path:
    r"""Writes a log again with clusters of both sides, at random, as columns."""
    columns = ', '.join(
        f'(hash({node_type}) % {NUM_GIVEN[name]})::USMALLINT AS {name}'
        for node_type, name in GIVEN.items()
    )
    duckdb.sql(f"""
        COPY (SELECT *, {columns} FROM read_parquet('{log}')) TO '{path}' (FORMAT parquet)
    """)
    return path
