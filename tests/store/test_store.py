import copy
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.compression import decode_counts, encode_counts
from mag.datasets import IdMap
from mag.macro_graph import MacroRows
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES, Resolution
from mag.store.kernels import (
    NodeCounts,
    count_partition,
    neighbor_rows,
    partition_events,
    second_hop,
)
from mag.store.manifest import write_manifest
from mag.store.store import Store
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

NUM = {'user': 37, 'item': 19}
NUM_PARTITIONS = {'user': 4, 'item': 2}
NUM_RECENT = 4
LEARNED: dict[str, Any] = {'user': [4, 'country'], 'item': ['category', 3]}
ATTRIBUTES: dict[str, Any] = {'user': ['country'], 'item': ['category', 'brand']}


def a_log(num_events: int = 3000) -> HeteroData:
    r"""A log whose nodes appear one after the other, several events a second, with items that are
    never clicked."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(num_events) // 7
    share = (time + 200) / (num_events // 7 + 272)
    user = (torch.rand(num_events, generator=generator) * share * NUM['user']).long()
    item = (torch.rand(num_events, generator=generator) * share * NUM['item']).long()
    likes = (user % 3 == item % 3) & (item % 5 > 0)
    label = (torch.rand(num_events, generator=generator) < 0.1 + 0.5 * likes).float()
    label[item == 4] = 0
    data = HeteroData()
    for name, number in NUM.items():
        data[name].num_nodes = number
    data['user'].country, data['user'].num_country = torch.arange(NUM['user']) % 5, 5
    data['item'].category, data['item'].num_category = torch.arange(NUM['item']) % 4, 4
    data['item'].brand, data['item'].num_brand = torch.arange(NUM['item']) % 7, 7
    clicks = data[CLICKS]
    clicks.edge_index, clicks.time = torch.stack([user, item])[:, label == 1], time[label == 1]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), label
    clicks.edge_label_time = time
    return data


def by_row(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)


def write_store(
    folder: Path,
    data: HeteroData,
    coarse: HeteroData,
    groups: Mapping[str, Any],
    counts: str = 'exact',
    row_group: int = 100,
    raw: bool = False,
    parts: dict[str, Any] | None = None,
) -> Store:
    r"""Writes what a build does of a log and of the clusters that a part of it has."""
    clicks, cutoff = data[CLICKS], coarse[CLICKS].cutoff
    num_windows = cutoff.numel()
    time = clicks.edge_label_time
    arrays: dict[str, np.ndarray] = {}
    resolutions, cluster, since, number = [], {}, {}, {}
    for name in NUM:
        for place, group in enumerate(groups[name]):
            of = Resolution(name, group, f'_{group}' if place else '')
            resolutions.append(of)
            number[of.name] = coarse[of.macro].num_nodes
            arrays[f'clusters/{of.name}'] = coarse[name][of.cluster].numpy().astype(np.int32)
            cluster[of.name], since[of.name] = arrays[f'clusters/{of.name}'], None
            if isinstance(group, int):
                of_node = torch.searchsorted(cutoff, coarse[name][f'{of.cluster}_since'])
                of_node[coarse[name][of.cluster] < 0] = num_windows
                since[of.name] = of_node.numpy().astype(np.uint8)
                arrays[f'clusters/{of.name}_window'] = since[of.name]
    records = partition_events(
        *clicks.edge_label_index.numpy().astype(np.int32),
        torch.bucketize(time, cutoff, right=True).numpy().astype(np.uint8),
        clicks.edge_label.numpy() == 1,
        NUM_PARTITIONS,
        num_windows,
    )
    found: dict[str, list[NodeCounts]] = {}
    rows: dict[str, tuple[np.ndarray, ...]] = {}
    for name, other in NEIGHBOR_TYPE.items():
        of_other = [of for of in resolutions if of.node_type == other]
        clusters = [cluster[of.name] for of in of_other] + [np.zeros(NUM[other], np.int32)]
        windows = [since[of.name] for of in of_other] + [None]
        sizes = [number[of.name] for of in of_other] + [1]
        record, offset = records[name]
        num_nodes = [len(range(p, NUM[name], NUM_PARTITIONS[name])) for p in range(len(offset) - 1)]
        found[name] = [
            count_partition(
                [record[offset[part] : offset[part + 1]]], num_nodes[part], clusters, windows,
                num_windows, sizes, NUM_RECENT,
            )
            for part in range(len(offset) - 1)
        ]  # fmt: skip
        arrays[f'nodes/{name}/recent'] = by_row([of.recent for of in found[name]])
        for place, suffix in enumerate([*(of.suffix for of in of_other), '_total']):
            starts = np.cumsum([0, *(int(of.indptr[place][-1]) for of in found[name])])
            indptr = [
                of.indptr[place][:-1] + np.uint64(start)
                for of, start in zip(found[name], starts[:-1], strict=True)
            ]
            arrays[f'nodes/{name}/indptr{suffix}'] = by_row(
                [*indptr, starts[-1:].astype(np.uint64)]
            )
            for what in ('code', 'count'):
                pieces = [getattr(of, what)[place] for of in found[name]]
                arrays[f'nodes/{name}/{what}{suffix}'] = by_row(pieces)
        increments = (arrays[f'nodes/{name}/{what}'] for what in ('indptr', 'code', 'count'))
        of_rows = neighbor_rows(*increments, num_windows, sizes[0])
        rows[name] = of_rows.offset, of_rows.data, np.cumsum([0, *num_nodes[:-1]])
    for name, other in NEIGHBOR_TYPE.items():
        tables, size = [], num_windows * number[name]
        index, count, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for of in found[name]:
            pairs = of.pairs_indptr, of.pairs_neighbor, of.pairs_window
            hop = second_hop(*pairs, *rows[other], num_windows, number[name])
            tables.append(hop.table)
            index.append(hop.over_index + first * size)
            count.append(hop.over_count)
            first += len(hop.table)
        table = by_row(tables)
        if counts == 'log':
            table = encode_counts(torch.from_numpy(table.astype(np.int32))).numpy()
        arrays[f'nodes/{name}/second'] = table
        arrays[f'nodes/{name}/second_over_index'] = by_row(index)
        arrays[f'nodes/{name}/second_over_count'] = by_row(count)
    for name, array in arrays.items():
        path = folder / f'{name}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    ids = {name: IdMap([f'{name}-{node:03}' for node in range(n)]) for name, n in NUM.items()}
    if raw:
        (folder / 'ids').mkdir()
        for name, of in ids.items():
            of.save(folder / 'ids' / f'{name}.parquet')
    else:
        ids = {name: IdMap(np.arange(n)) for name, n in NUM.items()}
    (folder / 'log').mkdir()
    user, item = clicks.edge_label_index.numpy().astype(np.int32)
    columns = {'user': user, 'item': item, 'time': time.numpy(), 'click': clicks.edge_label == 1}
    table = pa.table({name: pa.array(np.asarray(column)) for name, column in columns.items()})
    half = table.num_rows // 2
    for place, piece in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(piece, folder / 'log' / f'{place:06}.parquet', row_group_size=row_group)
    write_manifest(
        str(folder),
        {
            'plan': {},
            'fingerprint': '00ff00ff',
            'num_nodes': NUM,
            'num_partitions': NUM_PARTITIONS,
            'cutoffs': cutoff.tolist(),
            'parts': parts,
            'num_rows': table.num_rows,
            'num_recent': NUM_RECENT,
            'counts': counts,
            'attributes': [],
            'contexts': {},
            'features': [],
            'resolutions': [
                {**of._asdict(), 'name': of.name, 'num_clusters': number[of.name]}
                for of in resolutions
            ],
            'dense': dict.fromkeys(NUM, not raw),
            'lineage': {name: of.lineage for name, of in ids.items()},
            'log': {
                'files': ['log/000000.parquet', 'log/000001.parquet'],
                'columns': {name: name for name in columns},
            },
            'arrays': {
                name: {'dtype': of.dtype.str, 'shape': [*of.shape]} for name, of in arrays.items()
            },
        },
    )
    return Store(folder)


def split(groups: Mapping[str, Any], num_windows: int) -> tuple[HeteroData, HeteroData]:
    r"""The log, and the training part with clusters, recent lists, and counts."""
    data = a_log()
    train, _, _ = TemporalSplit(0.3, 0.7, 0.85, num_windows)(data)
    return data, RecentNeighbors(NUM_RECENT)(MacroCoarsen(groups).fit(train)(train))


def every(num_nodes: int, num_windows: int) -> tuple[Tensor, Tensor]:
    r"""All nodes, and one that is unknown, as of all windows."""
    node = torch.arange(-1, num_nodes).repeat_interleave(num_windows)
    return node, torch.arange(num_windows).repeat(num_nodes + 1)


pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')


@pytest.mark.parametrize('num_windows', [1, 6])
@pytest.mark.parametrize('groups', [LEARNED, ATTRIBUTES])
def test_rows_are_those_in_memory(
    tmp_path: Path, num_windows: int, groups: Mapping[str, Any]
) -> None:
    data, train = split(groups, num_windows)
    store, memory = write_store(tmp_path, data, train, groups), MacroRows(train)
    for name in NUM:
        asked = every(NUM[name], num_windows)
        found, expected = store.rows(name, *asked), memory.rows(name, *asked)
        assert len(found.hops) == 2 and found.recent.dtype == expected.recent.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert all(bool((hop.sum(1) > 0).any()) for hop in found.hops)
        node = torch.tensor([2, -1, 0])
        torch.testing.assert_close(store.rows(name, node), memory.rows(name, node), rtol=0, atol=0)


@pytest.mark.parametrize('num_windows', [1, 6])
def test_neighbors_are_counted_at_all_resolutions(tmp_path: Path, num_windows: int) -> None:
    data, _ = split(LEARNED, num_windows)
    train, _, _ = TemporalSplit(0.3, 0.7, 0.85, num_windows)(data)
    of_events = copy.copy(MacroCoarsen(LEARNED).fit(train))
    of_events.binary = False
    events = of_events(train)
    store = write_store(tmp_path, data, events, LEARNED)
    for name, other in NEIGHBOR_TYPE.items():
        asked = every(NUM[name], num_windows)
        for of in (of for of in store.resolutions if of.node_type == other):
            for kind, relation in (('exposures', 'sees1'), ('clicks', 'hop1')):
                edges = events[of.macro, relation, name]
                expected = torch.zeros(NUM[name] + 1, num_windows, store.num_clusters[of.name])
                macro, node = edges.edge_index
                expected[node + 1, :, macro] = edges.edge_weight.view(-1, num_windows)
                found = store.neighbor_counts(name, of.name, kind, *asked)
                assert torch.equal(found, expected.flatten(0, 1))


@pytest.mark.parametrize(
    ('groups', 'num_windows'), [(ATTRIBUTES, 6), (ATTRIBUTES, 1), (LEARNED, 1)]
)
def test_counts_at_the_target_are_those_in_memory(
    tmp_path: Path, groups: Mapping[str, Any], num_windows: int
) -> None:
    data, train = split(groups, num_windows)
    store, counts = write_store(tmp_path, data, train, groups), TargetCounts().fit(train)
    train = counts(train)
    clicks = train[CLICKS]
    window = clicks.get('edge_label_window')
    found = store.target_counts(*clicks.edge_label_index, window)
    assert torch.equal(found, clicks.edge_label_counts)
    assert [view.name for view in store.target_views] == counts.names
    assert store.count_prior == counts.prior and store.count_rate == clicks.count_rate
    assert not store.target_counts(*torch.full((2, 3), -1)).any()


def test_counts_at_the_target_of_clusters_that_are_known_late(tmp_path: Path) -> None:
    data, train = split(LEARNED, 6)
    store = write_store(tmp_path, data, train, LEARNED)
    user, item = data[CLICKS].edge_label_index
    first = torch.bucketize(data[CLICKS].edge_label_time, train[CLICKS].cutoff, right=True)
    clicked = data[CLICKS].edge_label
    cluster, since = {}, {}
    for of in store.resolutions:
        window = store.cluster_window(of.name)
        cluster[of.name] = torch.from_numpy(store.cluster(of.name).copy())
        none = np.zeros(NUM[of.node_type], np.uint8) if window is None else window
        since[of.name] = torch.from_numpy(none.astype(np.int64))
    assert any(bool(((of > 0) & (of < 6)).any()) for of in since.values())

    def agrees(name: str, node: Tensor, own: int, step: int) -> Tensor:
        r"""Which events are of the cluster that a node is of."""
        known = (cluster[name] >= 0) & (since[name] <= step)
        return (cluster[name][node] == cluster[name][own]) & known[node] & known[own]

    asked = torch.cartesian_prod(*(torch.arange(number) for number in NUM.values()))
    for step in (0, 2, 5):
        expected = []
        for of_user, of_item in asked.tolist():
            own = {'user': user == of_user, 'item': item == of_item}
            groups = {
                name: [
                    agrees(of.name, node, other, step)
                    for of in store.resolutions
                    if of.node_type == name
                ]
                for name, node, other in (('user', user, of_user), ('item', item, of_item))
            }
            columns = [own['user'], own['item']]
            columns += [own['user'] & of for of in groups['item']]
            columns += [own['item'] & of for of in groups['user']]
            columns += [one & other for one in groups['user'] for other in groups['item']]
            is_in = torch.stack(columns) & (first <= step)
            expected.append(torch.stack([is_in.sum(1), (is_in * clicked).sum(1)], dim=1))
        window = torch.full((len(asked),), step)
        assert torch.equal(store.target_counts(*asked.T, window), torch.stack(expected).float())


def test_one_byte_a_count(tmp_path: Path) -> None:
    data, train = split(LEARNED, 3)
    store, memory = write_store(tmp_path, data, train, LEARNED, counts='log'), MacroRows(train)
    for name in NUM:
        asked = every(NUM[name], 3)
        found, expected = store.rows(name, *asked), memory.rows(name, *asked)
        assert torch.equal(found.hops[0], expected.hops[0])
        assert torch.equal(found.hops[1], decode_counts(encode_counts(expected.hops[1])))
        assert not torch.equal(found.hops[1], expected.hops[1])
        assert store.bytes_per_node[name]['second'] == 3 * store.num_clusters[name]


def test_a_store_tells_what_it_is(tmp_path: Path) -> None:
    data, train = split(LEARNED, 3)
    store = write_store(tmp_path, data, train, LEARNED, raw=True)
    assert store.num_nodes == NUM and store.num_windows == 3
    assert torch.equal(store.cutoffs, train[CLICKS].cutoff)
    assert [of.name for of in store.resolutions] == ['user', 'user_country', 'item', 'item_3']
    assert store.num_clusters == {'user': 4, 'user_country': 5, 'item': 4, 'item_3': 3}
    assert np.array_equal(store.cluster('user'), train['user'].cluster)
    assert store.cluster_window('item') is None
    assert store.id_map('item').decode([3]) == ['item-003']
    assert store.id_maps['user'] == store.id_map('user').lineage
    for name, other in NEIGHBOR_TYPE.items():
        of_node = store.bytes_per_node[name]
        assert of_node['recent'] == 3 * NUM_RECENT * 4 and of_node[name] == 4
        assert of_node['second'] == 3 * store.num_clusters[name] * 2
        history = train[SEES].edge_index[0 if name == 'user' else 1]
        assert of_node['count_total'] * NUM[name] <= history.numel()
        last = store.first_windows(name)
        clicks = train[CLICKS]
        for node in range(NUM[name]):
            is_own = clicks.edge_index[0 if name == 'user' else 1] == node
            known = torch.bucketize(clicks.time[is_own], store.cutoffs, right=True)
            assert last[node] == (known.min() if known.numel() else 3)
        assert store.num_clusters[other] == train[MACRO[other]].num_nodes
    again = pickle.loads(pickle.dumps(store))
    assert again.path == store.path and len(pickle.dumps(store)) < 1000
    assert repr(again).endswith('37 users, 19 items, 3 windows)')
    dense = write_store(tmp_path / 'dense', data, train, LEARNED)
    assert dense.id_map('user').encode([7, 99]).tolist() == [7, -1]


def test_a_store_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    data, train = split(LEARNED, 3)
    whole = tmp_path / 'whole'
    write_store(whole, data, train, LEARNED)
    with pytest.raises(FileNotFoundError, match='is no store: it has no manifest.json'):
        Store(tmp_path)

    def broken(name: str) -> Path:
        shutil.copytree(whole, tmp_path / name)
        return tmp_path / name

    path = broken('missing')
    (path / 'nodes/user/code_3.npy').unlink()
    with pytest.raises(ValueError, match=r'is damaged, its nodes/user/code_3.npy cannot be read'):
        Store(path)
    path = broken('short')
    with open(path / 'nodes/user/recent.npy', 'r+b') as file:
        file.truncate(os.path.getsize(path / 'nodes/user/recent.npy') - 4)
    with pytest.raises(ValueError, match=r'its nodes/user/recent.npy cannot be read'):
        Store(path)
    path = broken('other')
    np.save(path / 'clusters/item.npy', np.zeros(NUM['item']))
    with pytest.raises(ValueError, match=r'item.npy is of float64 and shape \[19\], where int32'):
        Store(path)
    path = broken('format')
    manifest = json.loads((path / 'manifest.json').read_text())
    del manifest['checksum']
    write_manifest(str(path), {**manifest, 'format': 7})
    with pytest.raises(ValueError, match='is a store of format 7'):
        Store(path)
    path = broken('lacks')
    del manifest['arrays']['nodes/item/second']
    write_manifest(str(path), manifest)
    with pytest.raises(ValueError, match='second.npy is missing in the manifest: build it again'):
        Store(path)


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda s: s.rows('shop', torch.tensor([0])), ValueError, "'node_type' must be one of"),
        (lambda s: s.rows('user', torch.tensor([37])), IndexError, 'user ids from 37 to 37'),
        (lambda s: s.rows('user', torch.tensor([0.0])), TypeError, "'node' of dtype int64"),
        (
            lambda s: s.rows('user', torch.tensor([0]), torch.tensor([3])),
            IndexError,
            'windows from 3 to 3, but expected them from 0 to 2',
        ),
        (
            lambda s: s.rows('user', torch.tensor([0]), torch.tensor([0, 1])),
            ValueError,
            r"'window' of shape \[1\]",
        ),
        (
            lambda s: s.target_counts(torch.tensor([0]), torch.tensor([0, 1])),
            ValueError,
            r"'item' of shape \[1\]",
        ),
        (
            lambda s: s.neighbor_counts('user', 'user', 'clicks', torch.tensor([0])),
            ValueError,
            "'name' must be one of 'item', 'item_3'",
        ),
        (
            lambda s: s.neighbor_counts('user', 'item', 'likes', torch.tensor([0])),
            ValueError,
            "'kind' must be one of",
        ),
        (lambda s: s.cluster('shop'), ValueError, "'name' must be one of"),
        (lambda s: s.cluster_sizes('shop'), ValueError, "'name' must be one of"),
        (lambda s: s.attribute('shop'), ValueError, "'name' must be one of"),
        (lambda s: s.id_map('shop'), ValueError, "'name' must be one of 'user', 'item'"),
        (lambda s: s.macro_edges('item'), ValueError, "'user' must be one of"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, call: Any, error: type[Exception], match: str
) -> None:
    data, train = split(LEARNED, 3)
    store = write_store(tmp_path, data, train, LEARNED)
    with pytest.raises(error, match=match):
        call(store)
