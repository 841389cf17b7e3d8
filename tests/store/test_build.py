import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from torch_geometric.data import HeteroData

from mag.command_line import main
from mag.compression import encode_counts
from mag.datasets import EventLog, IdMap, LogSchema
from mag.macro_graph import MacroClusters, MacroNodes, SparseCounts
from mag.macro_graph.last_neighbors import last_neighbors
from mag.schema import CLICKS, NEIGHBOR_TYPE
from mag.store.build import StoreBuild, build
from mag.store.kernels import gather_rows, gather_second
from mag.store.manifest import read_manifest
from mag.store.plan import BuildPlan, Sizes
from mag.store.store import Store
from mag.transforms import TemporalSplit

NUM_ROWS = 3000
COLUMNS = {
    'user': 'who', 'item': 'sku', 'time': 'at', 'label': 'clicked', 'contexts': ['device'],
    'user_attributes': ['country'], 'item_attributes': ['brand', 'kind'],
}  # fmt: skip
GROUPS = {'user': 'country', 'item': ['brand', 'kind']}
CUTOFFS = [1200, 2000, 2001, 2900]


class SmallPlan(BuildPlan):
    r"""A plan that makes many units of few rows."""

    rows = 400

    def num_partitions(self, sizes: Sizes) -> dict[str, int]:
        return {'user': 4, 'item': 2}


def write_log(folder: Path, kind: str, is_sorted: bool, seed: int = 0) -> LogSchema:
    r"""A log of repeated pairs and ties in three files: with texts as ids, or with nodes."""
    generator = np.random.default_rng(seed)
    who, sku = generator.integers(0, 90, NUM_ROWS), generator.integers(0, 40, NUM_ROWS)
    at = 1000 + generator.integers(0, 800, NUM_ROWS) * 3
    if is_sorted:
        at.sort()
    log = {
        'who': who,
        'sku': sku,
        'at': at,
        'clicked': (generator.random(NUM_ROWS) < 0.3).astype(np.int64),
        'device': generator.integers(0, 3, NUM_ROWS),
        'country': who % 7,
        'brand': np.where(sku % 11 == 0, None, (sku % 5).astype(str)),
        'kind': sku % 13,
    }
    if kind != 'nodes':
        log['who'] = np.array([f'user {number * 7 % 90}' for number in who], dtype=object)
        log['sku'] = 3 * sku - 20
    folder.mkdir(exist_ok=True)
    end = 'csv' if kind == 'csv' else 'parquet'
    with duckdb.connect() as connection:
        for place, rows in enumerate(np.array_split(np.arange(NUM_ROWS), 3)):
            connection.register('part', {name: values[rows] for name, values in log.items()})
            connection.execute(f"COPY part TO '{folder / f'{place}.{end}'}' (FORMAT {end})")
            connection.unregister('part')
    return LogSchema(str(folder / f'*.{end}'), COLUMNS)


def in_memory(
    data: HeteroData, groups: Any, cutoffs: list[int], num_recent: int, **arguments: Any
) -> dict[str, Any]:
    r"""What the store says, by the classes that hold the whole log."""
    clicks = data[CLICKS]
    window = torch.bucketize(clicks.edge_label_time, torch.tensor(cutoffs), right=True)
    num_windows = len(cutoffs)
    num = {name: data[name].num_nodes for name in NEIGHBOR_TYPE}
    edges, click = clicks.edge_label_index, clicks.edge_label > 0
    found: dict[str, Any] = {}

    def table(counts: SparseCounts, node_type: str, hop: int, macro: MacroNodes) -> np.ndarray:
        (source, node), weight = counts.hop(node_type, hop, macro, 'walk')
        dense = torch.zeros(num[node_type], macro.number, num_windows)
        dense[node, source] = weight.view(-1, num_windows)
        return dense.transpose(1, 2).numpy()

    def counts(rows: torch.Tensor, binary: bool) -> SparseCounts:
        return SparseCounts(edges[:, rows], window[rows], num_windows, num, binary)

    of_kind = {
        'exposures': counts(window < num_windows, False),
        'clicks': counts(click & (window < num_windows), False),
        'pairs': counts(click & (window < num_windows), True),
    }
    is_history = click & (window < num_windows)
    clicks.edge_index = edges[:, is_history]
    clusters = MacroClusters(groups, **arguments).fit(data, window[is_history])
    macro = {}
    for of in clusters.resolutions:
        cluster, since = clusters.cluster[of.name], None
        if isinstance(of.group, int):
            node = clicks.edge_index[list(NEIGHBOR_TYPE).index(of.node_type)]
            since = torch.full_like(cluster, num_windows)
            since.scatter_reduce_(0, node, window[is_history], 'amin')
        macro[of.name] = MacroNodes(cluster, clusters.num_clusters(data, of), since)
        found[f'cluster {of.name}'] = cluster.numpy()
    for row, (name, other) in enumerate(NEIGHBOR_TYPE.items()):
        for macro_name, nodes in macro.items():
            if macro_name.startswith(other):
                for kind, of in of_kind.items():
                    found[f'{name} {kind} by {macro_name}'] = table(of, name, 1, nodes)
        found[f'{name} second'] = table(of_kind['pairs'], name, 2, macro[name])
        of_node = edges[row, click].argsort(stable=True)
        is_known = window[click][of_node] < num_windows
        of_node = of_node[is_known]
        found[f'{name} recent'] = last_neighbors(
            edges[row, click][of_node], edges[1 - row, click][of_node], num[name], num_recent,
            window[click][of_node], num_windows,
        ).numpy()  # fmt: skip
    return found


def in_store(folder: str) -> dict[str, Any]:
    r"""The same, read from the files."""
    manifest, found = read_manifest(folder), {}
    num_windows = len(manifest['cutoffs'])

    def load(name: str) -> np.ndarray:
        array = np.load(f'{folder}/{name}.npy')
        expected = manifest['arrays'][name]
        assert (array.dtype.str, [*array.shape]) == (expected['dtype'], expected['shape'])
        return array

    for of in manifest['resolutions']:
        found[f'cluster {of["name"]}'] = load(f'clusters/{of["name"]}')
    for name, other in NEIGHBOR_TYPE.items():
        num_nodes, parts = manifest['num_nodes'][name], manifest['num_partitions'][name]
        base = np.cumsum([0, *(len(range(p, num_nodes, parts)) for p in range(parts))])
        node = np.arange(num_nodes)
        row = base[node % parts] + node // parts
        places = np.repeat(row, num_windows), np.tile(np.arange(num_windows), num_nodes)
        for of in manifest['resolutions']:
            if of['node_type'] == other:
                arrays = [
                    load(f'nodes/{name}/{part}{of["suffix"]}')
                    for part in ('indptr', 'code', 'count')
                ]
                for kind in ('exposures', 'clicks', 'pairs'):
                    size = num_windows, of['num_clusters']
                    rows = gather_rows(*arrays, *places, *size, kind)
                    found[f'{name} {kind} by {of["name"]}'] = rows.reshape(num_nodes, *size)
        second = [load(f'nodes/{name}/second{end}') for end in ('', '_over_index', '_over_count')]
        if manifest['counts'] == 'exact':
            rows = gather_second(*second, *places)
            found[f'{name} second'] = rows.reshape(num_nodes, num_windows, -1)
        else:
            found[f'{name} second'] = second[0][row]
        found[f'{name} recent'] = load(f'nodes/{name}/recent')[row]
    return found


@pytest.mark.parametrize('kind', ['nodes', 'texts', 'csv'])
@pytest.mark.parametrize('is_sorted', [True, False])
def test_a_store_equals_the_counts_in_memory(tmp_path: Path, kind: str, is_sorted: bool) -> None:
    schema = write_log(tmp_path / 'log', kind, is_sorted)
    data = EventLog(str(tmp_path / 'memory'), schema, log=False)
    plan = SmallPlan(schema, tmp_path / 'store', GROUPS, CUTOFFS, num_recent=4, threads=2)
    folder = build(plan, progress=False)
    expected, found = in_memory(data[0], GROUPS, CUTOFFS, 4), in_store(folder)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    manifest = read_manifest(folder)
    for name in NEIGHBOR_TYPE:
        ids = data.id_maps[name]
        assert manifest['lineage'][name] == ids.lineage
        is_dense = kind == 'nodes'
        assert manifest['dense'][name] == is_dense
        if not is_dense:
            assert IdMap.load(f'{folder}/ids/{name}.parquet') == ids
    files = [os.path.join(folder, file) for file in manifest['log']['files']]
    columns = manifest['log']['columns']
    # A log that is one of nodes in the order of time stays where it is.
    assert os.path.isabs(manifest['log']['files'][0]) == (kind == 'nodes' and is_sorted)
    with duckdb.connect() as connection:
        names = ', '.join(
            f'"{columns[name]}"' for name in ('user', 'item', 'time', 'click', 'device')
        )
        rows = connection.execute(f'SELECT {names} FROM read_parquet({files})').fetchall()
    clicks = data[0][CLICKS]
    logged = torch.tensor([[int(value) for value in row] for row in rows]).T
    assert torch.equal(logged[:2], clicks.edge_label_index)
    assert torch.equal(logged[2], clicks.edge_label_time)
    assert torch.equal(logged[3], clicks.edge_label.long())
    assert torch.equal(logged[4], clicks.edge_label_device)
    assert not (tmp_path / 'store.building').exists()
    assert not (tmp_path / 'store' / 'work').exists()


@pytest.mark.parametrize(
    'groups',
    [
        {'user': [6, 3], 'item': ['brand', 4]},
        {'user': 'country', 'item': 5},
        {'user': 4, 'item': 3},
    ],
)
def test_learned_clusters_are_those_in_memory(tmp_path: Path, groups: dict[str, Any]) -> None:
    schema = write_log(tmp_path / 'log', 'texts', False)
    data = EventLog(str(tmp_path / 'memory'), schema, log=False)[0]
    # The first window knows few clicks, so that many nodes come later.
    cutoffs = [1080, 1200, 2900]
    plan = SmallPlan(schema, tmp_path / 'store', groups, cutoffs, num_recent=4, threads=1)
    expected, found = in_memory(data, groups, cutoffs, 4), in_store(build(plan, progress=False))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    assert (found['cluster item'] >= 0).any()


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('behavior', {'user': 'macro'}),
        ('behavior', 'raw'),
        ('spherical', True),
        # Fewer dimensions than items, which are then projected.
        ('projection_dim', 8),
    ],
)
def test_clusters_can_be_chosen_as_in_memory(tmp_path: Path, name: str, value: Any) -> None:
    schema = write_log(tmp_path / 'log', 'texts', False)
    data = EventLog(str(tmp_path / 'memory'), schema, log=False)[0]
    # By default the behavior of users is raw with the one groups, and macro with the other.
    groups: dict[str, Any] = {'user': 6, 'item': 'brand' if value == 'raw' else 5}
    of_default, of_choice = (
        in_memory(data, groups, [1080, 1200, 2900], 4, **arguments)
        for arguments in ({}, {name: value})
    )
    folder = tmp_path / 'store'
    arguments = {'num_recent': 4, name: value}
    plan = SmallPlan(schema, folder, groups, [1080, 1200, 2900], **arguments)
    found = in_store(build(plan, progress=False))
    for what, values in of_choice.items():
        assert np.array_equal(found[what], values), what
    assert not np.array_equal(found['cluster user'], of_default['cluster user'])
    # What is resolved tells, not how it was written.
    other = SmallPlan(schema, folder, groups, [1080, 1200, 2900], num_recent=4)
    with pytest.raises(ValueError, match=rf"differs in '{name}': choose another folder"):
        build(other, progress=False)


@pytest.fixture(scope='module')
def schema(tmp_path_factory: pytest.TempPathFactory) -> LogSchema:
    return write_log(tmp_path_factory.mktemp('log'), 'texts', False)


def test_cutoffs_are_those_of_the_split(schema: LogSchema, tmp_path: Path) -> None:
    folder = build(SmallPlan(schema, tmp_path / 'store', GROUPS, num_windows=5), progress=False)
    data = EventLog(str(tmp_path / 'memory'), schema, log=False)[0]
    parts = TemporalSplit(num_windows=5, keep_cold=True)(data)
    train, val, test = (part[CLICKS].cutoff.tolist() for part in parts)
    manifest = read_manifest(folder)
    assert manifest['parts'] == {'train': train, 'val': val[0], 'test': test[0]}
    end = int(data[CLICKS].edge_label_time[-1]) + 1
    assert manifest['cutoffs'] == [*train, *val, *test, end]


def test_counts_of_hop_2_in_one_byte_are_those_of_encode_counts(
    schema: LogSchema, tmp_path: Path
) -> None:
    exact, log = (
        SmallPlan(schema, tmp_path / counts, GROUPS, CUTOFFS, num_recent=4, counts=counts)
        for counts in ('exact', 'log')
    )
    expected = in_store(build(exact, progress=False))
    found = in_store(build(log, progress=False))
    for name in NEIGHBOR_TYPE:
        second = torch.from_numpy(expected.pop(f'{name} second'))
        assert second.max() > 16
        assert np.array_equal(found.pop(f'{name} second'), encode_counts(second).numpy())
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
    assert read_manifest(str(tmp_path / 'log'))['log_counts'] == {'largest': 2**24, 'error': 0.029}


def test_a_file_that_is_damaged_is_found(schema: LogSchema, tmp_path: Path) -> None:
    groups: dict[str, Any] = {'user': 'country', 'item': ['brand', 3]}
    folder = Path(build(SmallPlan(schema, tmp_path / 'store', groups, CUTOFFS), progress=False))
    store = Store(folder)
    store.verify(progress=False)
    kept = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    assert store.manifest['files'].keys() == kept - {'manifest.json'}
    assert {'ids/user.parquet', 'nodes/item/second.npy', 'clusters/centroids.safetensors'} <= kept
    for name in sorted(store.manifest['files']):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        # One bit of a value is nothing that opening sees.
        with pytest.raises(ValueError, match=f'is damaged, its {name} is not what was written'):
            store.verify(progress=False)
        (folder / name).write_bytes(content)
    (folder / 'ids/user.parquet').unlink()
    with pytest.raises(ValueError, match='is damaged, its ids/user.parquet is missing: build it'):
        store.verify(progress=False)


def test_another_plan_or_another_log_is_refused(tmp_path: Path) -> None:
    schema, out = write_log(tmp_path / 'log', 'nodes', True), tmp_path / 'store'
    plan = SmallPlan(schema, out, GROUPS, CUTOFFS)
    folder = build(plan, progress=False)
    state = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    # Neither threads nor the object count.
    assert build(SmallPlan(schema, out, GROUPS, CUTOFFS, threads=1), progress=False) == folder
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == state
    for changed, name in (
        (SmallPlan(schema, out, GROUPS, CUTOFFS, num_recent=3), 'num_recent'),
        (SmallPlan(schema, out, GROUPS, CUTOFFS[1:]), 'cutoffs'),
        (SmallPlan(schema, out, {**GROUPS, 'item': 'kind'}, CUTOFFS), 'groups'),
    ):
        with pytest.raises(ValueError, match=rf"differs in '{name}'.*: choose another folder"):
            build(changed, progress=False)
    # It was begun, and not ended.
    (tmp_path / 'other.building' / 'work').mkdir(parents=True)
    (tmp_path / 'other.building' / 'work' / 'plan.json').write_text(json.dumps(plan.facts))
    other = SmallPlan(schema, tmp_path / 'other', GROUPS, CUTOFFS, seed=1)
    with pytest.raises(ValueError, match="differs in 'seed'"):
        build(other, progress=False)
    file = tmp_path / 'log' / '1.parquet'
    os.utime(file, ns=(0, 0))
    with pytest.raises(ValueError, match=r"differs in the file '.*1\.parquet'"):
        build(SmallPlan(schema, out, GROUPS, CUTOFFS), progress=False)


def test_a_store_that_another_process_has_just_built_is_taken(
    schema: LogSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SmallPlan(schema, tmp_path / 'store', GROUPS, CUTOFFS)
    module = sys.modules[StoreBuild.__module__]
    locked = module.locked

    def slow(path: str, wait: bool) -> Any:
        monkeypatch.undo()
        build(plan, progress=False)
        return locked(path, wait)

    monkeypatch.setattr(module, 'locked', slow)
    assert build(plan, progress=False) == str(tmp_path / 'store')
    assert [*tmp_path.iterdir()] == [tmp_path / 'store']


def test_more_values_than_are_counted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mag.store.plan.MAX_CLUSTERS', 6)
    plan = SmallPlan(write_log(tmp_path / 'log', 'nodes', True), tmp_path / 'store', GROUPS)
    with pytest.raises(ValueError, match="has 7 clusters of users by 'country', but a store count"):
        build(plan, progress=False)


def test_a_log_of_many_columns_is_read_in_shorter_runs_or_refused(
    schema: LogSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {name: COLUMNS[name] for name in ('user', 'item', 'time', 'label')}
    narrow = LogSchema(schema.path, columns)
    groups: dict[str, Any] = {'user': 2, 'item': 2}
    plans = [BuildPlan(of, tmp_path / 'store', groups) for of in (narrow, schema)]
    # 256 bytes a row, and 64 for each of four more columns.
    assert plans[1].rows == plans[0].spare // (2 * 512) < plans[0].rows
    monkeypatch.setattr(BuildPlan, 'spare', 2**20)
    monkeypatch.setattr(BuildPlan, 'check_fits', lambda *_: None)
    with pytest.raises(ValueError, match="log of 8 columns needs more than .*'memory_limit'"):
        build(plans[1], progress=False)


def test_files_that_were_begun_are_written_in_their_place(
    schema: LogSchema, tmp_path: Path
) -> None:
    for file in ('ids/user', 'names/device', 'log/000000'):
        path = tmp_path / 'store.building' / f'{file}.parquet'
        path.parent.mkdir(parents=True)
        path.write_bytes(b'begun')
        # Where DuckDB would write beside it.
        path.with_name(f'tmp_{path.name}').mkdir()
    store = Store(build(SmallPlan(schema, tmp_path / 'store', GROUPS, CUTOFFS), progress=False))
    store.verify(progress=False)
    assert not [name for name in store.manifest['files'] if 'tmp_' in name]


def test_a_folder_of_something_else_is_refused(schema: LogSchema, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(ValueError, match='must be a new folder or a store'):
        build(SmallPlan(schema, tmp_path, GROUPS, CUTOFFS), progress=False)
    assert [*tmp_path.iterdir()] == [tmp_path / 'file']


def test_what_does_not_fit_is_refused_before_work(
    schema: LogSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type('Usage', (), {'free': 10_000})
    monkeypatch.setattr('mag.store.plan.shutil.disk_usage', lambda folder: usage)
    with pytest.raises(ValueError, match=r'needs up to .* of disk, but .* has 9\.8 KiB free'):
        build(SmallPlan(schema, tmp_path / 'store', GROUPS, CUTOFFS), progress=False)
    monkeypatch.setattr(usage, 'free', 2**60)
    number = {'user': 10**6, 'item': 10**6, 'item_kind': 9}
    sizes = Sizes(100, {'user': 10, 'item': 10}, number, 14)
    plan = BuildPlan(schema, tmp_path / 'store', GROUPS, memory_limit='640MiB')
    with pytest.raises(ValueError, match=r'does not fit a memory of 640\.0 MiB: take a larger'):
        plan.check_fits(sizes)
    # A sample of 2,560,000 users and its squares.
    many = BuildPlan(schema, tmp_path / 'store', {'user': 10_000, 'item': 5})
    number = {'user': 10_000, 'item': 5}
    sizes = Sizes(10**8, {'user': 10**7, 'item': 10**5}, number, 14)
    message = r'Clusters of 10,000,000 users are learned from a sample that takes 4\.9 GiB, but'
    with pytest.raises(ValueError, match=message):
        many.check_fits(sizes)
    few = BuildPlan(schema, tmp_path / 'store', {'user': 10_000, 'item': 5}, projection_dim=16)
    few.check_fits(sizes)
    assert not [*tmp_path.iterdir()]


def test_a_plan_says_what_it_will_do(schema: LogSchema, tmp_path: Path) -> None:
    plan = BuildPlan(schema, tmp_path / 'store', GROUPS, num_windows=3, threads=1)
    text = plan.describe()
    assert 'about 3,000, of 9' in text
    assert 'windows     6, clusters' in text
    assert 'memory      2.0 GiB at most, 1 threads, 1 partitions of users and 1 of items' in text
    assert 'time        about 0:00:01' in text
    # Half a microsecond a row, and a twentieth for each window.
    # Places of nodes fit records of SQL, which have a sign.
    large = BuildPlan(schema, tmp_path / 'store', GROUPS, memory_limit='1TiB')
    sizes = Sizes(10, {'user': 2**23, 'item': 2**23 + 1}, {}, 1)
    assert large.num_partitions(sizes) == {'user': 1, 'item': 2}
    sizes = plan.estimate()._replace(num_rows=10**9, num_windows=2)
    assert 'time        about 0:10:00' in plan.describe(sizes)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'memory_limit': '2 GB'}, "'memory_limit' must be a number of bytes, such as '2GiB'"),
        ({'memory_limit': 1000}, "'memory_limit' must be at least 640MiB, but got 1000"),
        ({'cutoffs': [3, 2]}, r"'cutoffs' must be 1 to 127 moments that ascend, but got \[3, 2\]"),
        ({'groups': {'user': 'brand', 'item': 'brand'}}, "names the attribute 'brand' of users"),
        ({'cutoffs': [3, 2**63]}, r"'cutoffs\[1\]' must lie below 9223372036854775808"),
        ({'groups': {'user': 2**17 + 1, 'item': 2}}, 'has 131,073 clusters of users by'),
        ({'groups': {'user': 2, 'item': [2, 2**22 + 1]}}, 'but a store counts 4,194,304 at most'),
        ({'counts': 'float'}, "'counts' must be"),
        ({'num_windows': 126}, "'num_windows'"),
        ({'threads': 0}, "'threads'"),
        ({'projection_dim': 0}, "'projection_dim' must be at least 1, but got 0"),
        ({'behavior': 'raw'}, "'behavior' is 'raw', but with 'groups' .* clusters are learned for"),
    ],
)
def test_bad_plans_are_refused(
    schema: LogSchema, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BuildPlan(**{'log': schema, 'out': tmp_path / 'store', 'groups': GROUPS, **changed})


def test_what_a_store_does_not_keep_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / 'log', 'texts', True).path
    with pytest.raises(ValueError, match='A store keeps user, .* of a log, but got weight'):
        BuildPlan(LogSchema(path, {**COLUMNS, 'weight': 'price'}), tmp_path / 'store', GROUPS)
    with duckdb.connect() as connection:
        table = connection.sql('SELECT 1 AS who, 2 AS sku, 3 AS at').df()
    schema = LogSchema(table, {'user': 'who', 'item': 'sku', 'time': 'at'})
    with pytest.raises(TypeError, match='must name files'):
        BuildPlan(schema, tmp_path / 'store', {'user': 2, 'item': 2})


@pytest.mark.parametrize('name', ['position', 'Run'])
def test_an_attribute_may_be_called_as_the_order_of_the_log_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'log.parquet'
    with duckdb.connect() as connection:
        # The first row of each user in time has the value 10 - who, which is not its least.
        connection.execute(f"""
            COPY (
                SELECT i % 7 AS who, i % 5 AS sku, (i * 37) % 1009 AS "at", i % 2 AS clicked,
                       CASE WHEN "at" = min("at") OVER (PARTITION BY who) THEN 10 - who
                            ELSE i % 3 END AS value
                FROM range(1009) AS t(i)
            ) TO '{path}' (FORMAT parquet)
        """)
    columns = {role: COLUMNS[role] for role in ('user', 'item', 'time', 'label')}
    schema = LogSchema(str(path), {**columns, 'user_attributes': {name: 'value'}})
    plan = SmallPlan(schema, tmp_path / 'store', {'user': name, 'item': 2}, [800])
    store = Store(build(plan, progress=False))
    assert store.attribute(name).tolist() == [6, 5, 4, 3, 2, 1, 0]
    with duckdb.connect() as connection:
        rows = connection.execute(f"""
            SELECT "time", "{name}" FROM read_parquet('{tmp_path}/store/log/*.parquet')
        """).fetchnumpy()
    assert (np.diff(rows['time']) >= 0).all() and {*rows[name].tolist()} == {*range(11)} - {3}


@pytest.mark.parametrize('is_sorted', [True, False])
def test_rows_of_one_second_are_in_the_order_of_their_own_times(
    tmp_path: Path, is_sorted: bool
) -> None:
    millisecond = np.array([1_700, 1_100, 1_900, 1_100, 2_500, 2_400])
    if is_sorted:
        millisecond.sort()
    for place, rows in enumerate(np.split(np.arange(6), 2)):
        table = {'who': ['ann'] * 3, 'what': rows, 'at': millisecond[rows]}
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / f'{place}.parquet')
    schema = LogSchema(
        str(tmp_path / '*.parquet'), {'user': 'who', 'item': 'what', 'time': 'at'}, time_unit='ms'
    )
    plan = BuildPlan(schema, tmp_path / 'store', {'user': 1, 'item': 1}, cutoffs=[9], num_recent=6)
    with pytest.warns(UserWarning, match='Each of the 6 rows'):
        store = Store(build(plan, progress=False))
    expected = millisecond.argsort(kind='stable')
    assert store.rows('user', torch.tensor([0])).recent[0].tolist() == expected.tolist()
    files = [f'{store.path}/{name}' for name in store.manifest['log']['files']]
    log = duckdb.connect().execute(f'SELECT * FROM read_parquet({files})').fetchnumpy()
    assert [*log] == ['user', 'item', 'time', 'click']
    assert log['time'].tolist() == (millisecond[expected] // 1000).tolist()


def test_names_of_columns_of_its_own_are_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / 'log', 'texts', True).path
    schema = LogSchema(path, {**COLUMNS, 'contexts': {'Click': 'device'}})
    with pytest.raises(ValueError, match="has a column of its own that is called 'Click': write"):
        BuildPlan(schema, tmp_path / 'store', GROUPS)


def test_a_row_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'log.parquet'
    rows = "VALUES (1, 2, 3, 1, 0, 'a', 'b', 'c'), (1, 2, 4, 7, 0, 'a', 'b', 'c')"
    names = 'who, sku, "at", clicked, device, country, brand, kind'
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * FROM ({rows}) AS t({names})) TO '{path}'")
    plan = BuildPlan(LogSchema(str(path), COLUMNS), tmp_path / 'store', GROUPS, [4])
    with pytest.raises(
        ValueError, match=r"log\.parquet, row 2: column 'clicked' \(label\) must hold 0 or 1"
    ):
        build(plan, progress=False)
    assert not (tmp_path / 'store').exists()


def test_a_command_builds_a_store(tmp_path: Path) -> None:
    path = write_log(tmp_path / 'log', 'csv', True).path
    log = tmp_path / 'log.json'
    log.write_text(json.dumps({'path': path, 'columns': COLUMNS}))
    groups = ['--users', 'country', '--items', 'brand,kind']
    out = str(tmp_path / 'store')
    cutoffs = ','.join(map(str, CUTOFFS))
    done = CliRunner().invoke(
        main,
        ['build', str(log), '--out', out, *groups, '--cutoffs', cutoffs, '--threads', '1']
        + ['--spherical', '--projection-dim', '8'],
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == f'{out}\n'
    assert 'rows        about' in done.stderr
    manifest = read_manifest(out)
    assert manifest['cutoffs'] == CUTOFFS
    assert [manifest['plan'][name] for name in ('spherical', 'projection_dim')] == [True, 8]
    done = CliRunner().invoke(main, ['build', str(log), '--out', out, *groups])
    assert done.exit_code == 1
    assert (
        "differs in 'cutoffs', 'num_windows', 'spherical', 'projection_dim': choose another folder"
        in done.output
    )


class NarrowPlan(BuildPlan):
    r"""A plan that leaves little memory to count in."""

    spare = 30 * 2**20
    rows = 2**16

    def num_partitions(self, sizes: Sizes) -> dict[str, int]:
        return {'user': 4, 'item': 4}


@pytest.mark.parametrize('share', [0.2, 0.9])
def test_a_node_of_most_events_is_counted_within_memory_or_refused(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, number = tmp_path / 'log.parquet', 1_000_000
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (
                SELECT CASE WHEN i % 100 < {100 * share} THEN 'bot' ELSE 'user' || i % 50 END
                       AS who, i % 20 AS sku, i AS "at", true AS clicked
                FROM range({number}) AS t(i)
            ) TO '{path}' (FORMAT parquet)
        """)
    columns = {name: COLUMNS[name] for name in ('user', 'item', 'time', 'label')}
    schema = LogSchema(str(path), columns)
    monkeypatch.setattr('mag.store.encode.Encoder.connect', lambda self, database=':memory:': (
        duckdb.connect(database)
    ))  # fmt: skip
    plan = NarrowPlan(schema, tmp_path / 'store', {'user': 3, 'item': 4}, [900_000], num_recent=4)
    if share < 0.5:
        build(plan, progress=False)
        return
    expected = (
        r"Of 900,000 events, 810,000 are of the user 'bot', and must be counted at once, which "
        r'needs .* MiB, but of a memory of 2\.0 GiB 30\.0 MiB are left: build anew with '
        r"memory_limit='4\d\dMiB', or without the events of this user\."
    )
    with pytest.raises(ValueError, match=expected):
        build(plan, progress=False)
    assert not list((tmp_path / 'store.building').glob('nodes*'))


WITHIN_MEMORY = """
import resource, sys

import numpy as np
import pyarrow
import pyarrow.parquet

from mag.datasets import LogSchema
from mag.store.build import StoreBuild, build
from mag.store.plan import BuildPlan

LIMIT = 640 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
plan = BuildPlan(
    LogSchema.load(sys.argv[1]), sys.argv[2], {'user': 'country', 'item': 'brand'},
    [100_000 * step for step in range(1, 13)], num_recent=4, memory_limit=LIMIT, threads=1,
)
build(plan, progress=False)
try:
    np.ones((30_000, 12, 500), np.float32)
except MemoryError:
    print('no place')
"""


def test_memory_is_kept_to_where_dense_counts_do_not_fit(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (
                SELECT hash(i) % 30_000 AS who, hash(i + 7) % 2000 AS sku, i * 4 AS "at",
                       i % 3 = 0 AS clicked, who % 500 AS country, sku % 10 AS brand
                FROM range(300_000) AS t(i)
            ) TO '{tmp_path / 'log.parquet'}' (FORMAT parquet)
        """)
    columns = {name: COLUMNS[name] for name in ('user', 'item', 'time', 'label')}
    columns |= {'user_attributes': ['country'], 'item_attributes': ['brand']}
    log = tmp_path / 'log.json'
    log.write_text(json.dumps({'path': 'log.parquet', 'columns': columns}))
    done = subprocess.run(
        [sys.executable, '-c', WITHIN_MEMORY, str(log), str(tmp_path / 'store')],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # One table of the counts alone would have been too much.
    assert done.stdout == 'no place\n'
    manifest = read_manifest(str(tmp_path / 'store'))
    # Of 30,000, some are never drawn.
    assert manifest['arrays']['nodes/user/second']['shape'] == [29_997, 12, 500]
