import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mag.compression import encode_counts
from mag.datasets import EventLog, IdMap, LogSchema
from mag.macro_graph import MacroNodes, SparseCounts
from mag.macro_graph.last_neighbors import last_neighbors
from mag.schema import CLICKS, NEIGHBOR_TYPE
from mag.store.build import build
from mag.store.kernels import gather_rows, gather_second
from mag.store.manifest import read_manifest
from mag.store.plan import BuildPlan, Sizes
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


def in_memory(data: HeteroData, cutoffs: list[int], num_recent: int) -> dict[str, Any]:
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
    macro = {}
    for name, groups in GROUPS.items():
        for place, group in enumerate([groups] if isinstance(groups, str) else groups):
            nodes = MacroNodes(data[name][group], data[name][f'num_{group}'])
            macro[f'{name}{f"_{group}" if place else ""}'] = nodes
            found[f'cluster {name}{f"_{group}" if place else ""}'] = nodes.cluster.numpy()
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


def hashes(folder: str | Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file()
    }


@pytest.mark.parametrize('kind', ['nodes', 'texts', 'csv'])
@pytest.mark.parametrize('is_sorted', [True, False])
def test_a_store_equals_the_counts_in_memory(tmp_path: Path, kind: str, is_sorted: bool) -> None:
    schema = write_log(tmp_path / 'log', kind, is_sorted)
    data = EventLog(str(tmp_path / 'memory'), schema, log=False)
    plan = SmallPlan(schema, tmp_path / 'store', GROUPS, CUTOFFS, num_recent=4, threads=2)
    folder = build(plan, progress=False)
    expected, found = in_memory(data[0], CUTOFFS, 4), in_store(folder)
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
