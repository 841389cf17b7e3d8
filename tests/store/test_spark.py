from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mag.macro_graph import SparseCounts
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES
from mag.store.kernels import gather_rows, gather_second
from mag.store.spark import count_on_spark
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
