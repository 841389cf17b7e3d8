r"""A real log through all that counts: in memory, SQL, kernels on one machine, and Spark."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow
import pytest
import torch
from torch import Tensor

from mag.datasets import EventLog, LogSchema
from mag.macro_graph import MacroRows
from mag.macro_graph.macro_rows import MacroRow
from mag.schema import CLICKS, NEIGHBOR_TYPE
from mag.store import BuildPlan, Store, build, sql
from mag.store.spark import build_on_spark
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

NUM_RECENT = 20


class Source(NamedTuple):
    r"""A log as it is released: the query that reads it, the unit of its times, and attributes of
    users and items by which they are grouped."""

    query: str
    time_unit: str
    user: str
    item: str

    @property
    def groups(self) -> dict[str, Any]:
        return {'user': [20, self.user], 'item': [self.item, 15]}


# A rating is an exposure, and a click from four stars on. Of both logs a part of the users, which
# takes seconds.
MOVIELENS = """
        SELECT rating.user, rating.item, time, (stars >= 4)::INTEGER AS label, occupation, genre
        FROM read_csv('{folder}/ratings.dat', delim = '::', header = false,
                      names = ['user', 'item', 'stars', 'time']) AS rating
        JOIN read_csv('{folder}/users.dat', delim = '::', header = false, all_varchar = true,
                      names = ['user', 'gender', 'age', 'occupation', 'zip']) AS who
        ON rating.user = who.user::INTEGER
        JOIN (
            SELECT split_part(line, '::', 1)::INTEGER AS item,
                   split_part(split_part(line, '::', 3), '|', 1) AS genre
            FROM read_csv('{folder}/movies.dat', delim = '\t', header = false, quote = '',
                          encoding = 'latin-1', names = ['line'])
        ) AS film ON rating.item = film.item
        WHERE rating.user % 5 = 0
        ORDER BY rating.user, rating.item
"""
KUAIRAND = """
        SELECT shown.user_id AS "user", shown.video_id AS item, time_ms AS time,
               is_click AS label, user_active_degree, video_type
        FROM read_csv('{folder}/data/log_standard_4_22_to_5_08_pure.csv') AS shown
        JOIN read_csv('{folder}/data/user_features_pure.csv') AS who
        ON shown.user_id = who.user_id
        JOIN read_csv('{folder}/data/video_features_basic_pure.csv') AS video
        ON shown.video_id = video.video_id
        WHERE shown.user_id % 2 = 0
        ORDER BY shown.user_id, shown.video_id, time_ms, is_click
"""
SOURCES = {
    'ml-1m': Source(MOVIELENS, 's', 'occupation', 'genre'),
    'KuaiRand-Pure': Source(KUAIRAND, 'ms', 'user_active_degree', 'video_type'),
}


class Real(NamedTuple):
    r"""What one machine tells of a log, in memory and on disk."""

    plan: Callable[[str], BuildPlan]
    cutoffs: list[int]
    store: Store
    rows: dict[str, MacroRow]

    def every(self, node_type: str) -> tuple[Tensor, Tensor]:
        r"""All nodes as of all windows."""
        number, num_windows = self.store.num_nodes[node_type], len(self.cutoffs)
        node = torch.arange(number).repeat_interleave(num_windows)
        return node, torch.arange(num_windows).repeat(number)

    def tables(self) -> dict[str, pyarrow.Table]:
        r"""What queries read."""
        files = [f'{self.store.path}/{name}' for name in self.store.manifest['log']['files']]
        with duckdb.connect() as connection:
            rows = f"""
                SELECT "user", item, time, click, file_row_number AS log_row
                FROM read_parquet({files}, file_row_number = true)
            """
            tables = {'log': connection.sql(rows).to_arrow_table()}
        for name in NEIGHBOR_TYPE:
            cluster, window = self.store.cluster(name), self.store.cluster_window(name)
            columns = {'node': torch.arange(len(cluster)).numpy(), 'cluster': cluster}
            columns['cluster_window'] = cluster * 0 if window is None else window.astype('int32')
            tables[f'{name}_clusters'] = pyarrow.table(columns)
        return tables


@pytest.fixture(scope='module', params=SOURCES)
def real(
    request: pytest.FixtureRequest, mag_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Real:
    source, folder = SOURCES[request.param], tmp_path_factory.mktemp('real')
    with duckdb.connect() as connection:
        query = source.query.format(folder=mag_data / request.param)
        connection.execute(f"COPY ({query}) TO '{folder}/log.parquet' (FORMAT parquet)")
    columns = {
        'user': 'user', 'item': 'item', 'time': 'time', 'label': 'label',
        'user_attributes': [source.user], 'item_attributes': [source.item],
    }  # fmt: skip
    schema = LogSchema(str(folder / 'log.parquet'), columns, time_unit=source.time_unit)
    data = EventLog(str(folder / 'memory'), schema, log=False)[0]
    part = TemporalSplit(num_windows=3, keep_cold=True)(data)[0]
    cutoffs = part[CLICKS].cutoff.tolist()

    def plan(name: str) -> BuildPlan:
        return BuildPlan(schema, folder / name, source.groups, cutoffs, num_recent=NUM_RECENT)

    coarse = RecentNeighbors(NUM_RECENT)(MacroCoarsen(source.groups).fit(part)(part))
    store, memory = Store(build(plan('store'), progress=False)), MacroRows(coarse)
    found = Real(plan, cutoffs, store, {})
    for name in NEIGHBOR_TYPE:
        found.rows[name] = memory.rows(name, *found.every(name))
    return found


def test_one_machine_counts_what_memory_does(real: Real) -> None:
    assert real.store.manifest['num_rows'] > 100_000
    for name, expected in real.rows.items():
        found = real.store.rows(name, *real.every(name))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert all(bool((hop > 0).any()) for hop in expected.hops)


@pytest.mark.parametrize('node_type', NEIGHBOR_TYPE)
def test_queries_count_what_memory_does(
    real: Real,
    engine: Callable[[str, Mapping[str, pyarrow.Table]], dict[str, Tensor]],
    node_type: str,
) -> None:
    tables, expected = real.tables(), real.rows[node_type]
    number, num_windows = real.store.num_nodes[node_type], len(real.cutoffs)
    clusters = f'{NEIGHBOR_TYPE[node_type]}_clusters'
    got = engine(sql.hop_one('log', clusters, node_type, real.cutoffs), tables)
    counts = torch.zeros(number, num_windows, expected.hops[0].size(1))
    counts[got['node'].long(), got['first_window'].long(), got['cluster'].long()] = got[
        'pairs'
    ].float()
    assert torch.equal(counts.cumsum(1).flatten(0, 1), expected.hops[0])
    got = engine(sql.recents('log', node_type, real.cutoffs, NUM_RECENT), tables)
    recent = torch.full((number, num_windows, NUM_RECENT), -1)
    place = got['node'].long(), got['as_of'].long(), NUM_RECENT - got['age'].long()
    recent[place] = got['neighbor'].long()
    assert torch.equal(recent.flatten(0, 1), expected.recent)


def test_spark_writes_the_bytes_of_one_machine(real: Real, session: Any, tmp_path: Path) -> None:
    folder = Path(build_on_spark(real.plan(tmp_path.name), session, progress=False))
    names = {path.relative_to(real.store.path) for path in Path(real.store.path).rglob('*.*')}
    assert names == {path.relative_to(folder) for path in folder.rglob('*.*')}
    for name in names:
        assert (folder / name).read_bytes() == (real.store.path / name).read_bytes(), name
