from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import MacroClusters, grouping
from mag.macro_graph.grouping import random_signs
from mag.macro_graph.macro_clusters import Group
from mag.schema import CLICKS, NEIGHBOR_TYPE
from mag.store.clusters import StoreClusters
from mag.store.kernels import first_clicks, first_windows, partition_events, sum_signs

NUM = {'user': 301, 'item': 157}
NUM_PARTITIONS = {'user': 4, 'item': 2}
NUM_WINDOWS = 3


class InMemory:
    r"""The records of a log in two pieces, as a build writes them."""

    def __init__(self, log: 'Log', num_nodes: dict[str, int]) -> None:
        self.num_nodes, self.num_partitions = num_nodes, NUM_PARTITIONS
        self.num_windows = NUM_WINDOWS
        columns = [column.numpy() for column in log]
        half = len(log.window) // 2
        self._pieces = [
            partition_events(*(x[piece] for x in columns), NUM_PARTITIONS, NUM_WINDOWS)
            for piece in (slice(half), slice(half, None))
        ]

    def records(self, node_type: str, partition: int) -> list[np.ndarray]:
        pieces = [piece[node_type] for piece in self._pieces]
        return [of.record[of.offset[partition] : of.offset[partition + 1]] for of in pieces]

    def size(self, node_type: str, partition: int) -> int:
        return len(range(partition, self.num_nodes[node_type], self.num_partitions[node_type]))


class Log(NamedTuple):
    r"""Events in the order of time."""

    user: Tensor
    item: Tensor
    window: Tensor
    click: Tensor


def random_log(seed: int, num: dict[str, int] = NUM, num_events: int = 4000) -> Log:
    r"""A log with repeated pairs, nodes that come later or never click, and events after the last
    cutoff."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (num_events,), generator=generator)

    window = draw(NUM_WINDOWS + 1).sort().values
    share = (window + 2) / (NUM_WINDOWS + 2)
    node = {
        name: (torch.rand(num_events, generator=generator) ** 2 * share * number).long()
        for name, number in num.items()
    }
    return Log(node['user'], node['item'], window, draw(3) == 0)


def by_store(
    log: Log, num: dict[str, int], clusters: MacroClusters, cluster: dict[str, Tensor]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    r"""Clusters and windows of all nodes, by resolution; those of attributes are given."""
    store = StoreClusters(
        InMemory(log, num),
        clusters,
        {
            of.name: of.group if isinstance(of.group, int) else int(cluster[of.name].max()) + 1
            for of in clusters.resolutions
        },
    )
    known = {name: x.numpy().astype(np.int32) for name, x in cluster.items()}
    found = {}
    for node_type in store.order:
        is_macro = clusters.behaviors[node_type] == 'macro'
        neighbor = known[NEIGHBOR_TYPE[node_type]] if is_macro else None
        fitted = store.fit(node_type, neighbor)
        number = NUM_PARTITIONS[node_type]
        parts = [store.assign(node_type, p, fitted, neighbor) for p in range(number)]
        for name in parts[0][0]:
            of_node = np.empty(num[node_type], np.int32)
            window = np.empty(num[node_type], np.uint8)
            for partition, (own, since) in enumerate(parts):
                assert own[name].dtype == np.int32 and since.dtype == np.uint8
                of_node[partition::number] = own[name]
                window[partition::number] = since
            known[name] = of_node
            found[name] = of_node, window
    return found


def in_memory(log: Log, num: dict[str, int]) -> tuple[HeteroData, Tensor]:
    data = HeteroData()
    is_known = log.click & (log.window < NUM_WINDOWS)
    data[CLICKS].edge_index = torch.stack([log.user, log.item])[:, is_known]
    for name, number in num.items():
        data[name].num_nodes = number
        data[name].category = torch.arange(number) % 6
    return data, log.window[is_known]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('is_spherical', [False, True])
@pytest.mark.parametrize('projection_dim', [8, 70, 512])
@pytest.mark.parametrize(
    ('groups', 'behavior'),
    [
        ({'user': 7, 'item': 5}, None),
        ({'user': [7, 20], 'item': 'category'}, None),
        ({'user': 6, 'item': [4, 9, 'category']}, {'user': 'macro', 'item': 'raw'}),
        ({'user': 'category', 'item': [3, 11]}, 'raw'),
    ],
)
def test_clusters_are_those_in_memory(
    seed: int,
    is_spherical: bool,
    projection_dim: int,
    groups: dict[str, Group],
    behavior: str | dict[str, str] | None,
) -> None:
    log = random_log(seed)
    data, window = in_memory(log, NUM)
    arguments = {'spherical': is_spherical, 'projection_dim': projection_dim, 'seed': seed}
    expected = MacroClusters(groups, behavior, **arguments).fit(data, window)
    clusters = MacroClusters(groups, behavior, **arguments)
    attributes = {
        of.name: data[of.node_type].category
        for of in clusters.resolutions
        if of.group == 'category'
    }
    found = by_store(log, NUM, clusters, attributes)
    assert found.keys() == expected.groupings.keys()
    assert not clusters.cluster
    for name, (cluster, since) in found.items():
        assert cluster.tolist() == expected.cluster[name].tolist()
        row = data[CLICKS].edge_index[0 if name.startswith('user') else 1]
        for node in range(len(cluster)):
            first = window[row == node].min() if (row == node).any() else NUM_WINDOWS
            assert since[node] == first
        assert {*since} == {0, 1, 2, 3} and (cluster == -1).any()


def test_clusters_of_a_sample_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Samples of 70 and 40 users of more than 100, in four partitions."""
    monkeypatch.setattr(grouping, '_FEW_POINTS', 40)
    monkeypatch.setattr(grouping, '_POINTS_PER_CLUSTER', 7)
    log = random_log(5, num_events=8000)
    data, window = in_memory(log, NUM)
    groups: dict[str, Group] = {'user': [10, 4], 'item': 3}
    first = window == 0
    assert len(data[CLICKS].edge_index[0][first].unique()) > 100
    expected = MacroClusters(groups, {'user': 'macro', 'item': 'raw'}).fit(data, window)
    clusters = MacroClusters(groups, {'user': 'macro', 'item': 'raw'})
    for name, (cluster, _) in by_store(log, NUM, clusters, {}).items():
        assert cluster.tolist() == expected.cluster[name].tolist()


def test_pieces_of_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    log = random_log(1)
    groups: dict[str, Group] = {'user': 7, 'item': 5}
    whole = by_store(log, NUM, MacroClusters(groups), {})
    monkeypatch.setattr('mag.store.clusters._piece', lambda width: 10)
    for name, (cluster, _) in by_store(log, NUM, MacroClusters(groups), {}).items():
        assert cluster.tolist() == whole[name][0].tolist()


def test_more_clusters_than_nodes_are_refused() -> None:
    log = random_log(0, num_events=40)
    clusters = MacroClusters({'user': 200, 'item': 5})
    with pytest.raises(ValueError, match='Grouping into 200 clusters needs at least as many nodes'):
        by_store(log, NUM, clusters, {})


@pytest.mark.parametrize('projection_dim', [1, 64, 100])
def test_sums_of_signs(projection_dim: int) -> None:
    rng = np.random.default_rng(0)
    number = np.array([0, 1, 2, 3, 64, 1000, 0, 7])
    indptr = np.append(0, number.cumsum())
    neighbor = rng.integers(0, 10**9, indptr[-1], dtype=np.int32)
    total = sum_signs(indptr, neighbor, projection_dim, 3)
    signs = random_signs(neighbor.astype(np.int64), projection_dim, 3)
    for node, (start, end) in enumerate(zip(indptr[:-1], indptr[1:], strict=True)):
        assert total[node].tolist() == signs[start:end].sum(axis=0).tolist()
    assert total.dtype == np.float32


def test_first_clicks() -> None:
    r"""Node 0 repeats a pair, node 1 clicks in window 1 first, node 2 only sees."""
    node, neighbor = np.array([0, 2, 0, 0, 1, 0, 1, 1]), np.array([9, 1, 4, 9, 3, 2, 8, 5])
    window = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    click = np.array([1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
    number = {'user': 1, 'item': 1}
    record = partition_events(node, neighbor, window, click, number, 3)['user'].record
    records = [record[:3], record[3:]]
    first = first_windows(records, 4, 3)
    assert first.tolist() == [0, 1, 3, 3]
    indptr, found = first_clicks(records, first)
    assert indptr.tolist() == [0, 2, 4, 4, 4] and found.tolist() == [4, 9, 3, 8]
