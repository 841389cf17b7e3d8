import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mag.macro_graph import MacroEdges, MacroNodes, SparseCounts
from mag.online import EVENT, RowLayout, count_events
from mag.schema import CLICKS
from mag.transforms import RecentNeighbors

NUM_CLUSTERS = {'user': [3, 2], 'item': [4]}
NUM_NODES = {'user': 13, 'item': 11}
SIDES = (('user', 'item'), ('item', 'user'))


def draw_events(seed: int, num: int, num_nodes: dict[str, int] = NUM_NODES) -> np.ndarray:
    r"""A log with many repeats of few pairs, and of few moments."""
    random = np.random.default_rng(seed)
    events = np.empty(num, EVENT)
    for node_type, number in num_nodes.items():
        events[node_type] = (number * random.random(num) ** 2).astype(int)
    events['time'] = np.sort(random.integers(0, num // 4 + 1, num))
    events['clicked'] = random.random(num) < 0.5
    return events


def draw_clusters(seed: int) -> dict[str, list[torch.Tensor]]:
    r"""Clusters at all resolutions; some nodes are in none."""
    random = torch.Generator().manual_seed(seed)
    return {
        node_type: [
            torch.randint(-1, number, (NUM_NODES[node_type],), generator=random)
            for number in numbers
        ]
        for node_type, numbers in NUM_CLUSTERS.items()
    }


def count_one_by_one(
    layout: RowLayout, clusters: dict[str, list[torch.Tensor]], events: np.ndarray
) -> dict[str, np.ndarray]:
    r"""The rows of all nodes by a loop over events."""
    rows = {name: layout.empty(name, number) for name, number in NUM_NODES.items()}
    pairs = set()
    for event in events:
        pair = int(event['user']), int(event['item'])
        is_new = event['clicked'] == 1 and pair not in pairs
        pairs |= {pair} if is_new else set()
        for node_type, neighbor_type in SIDES:
            row, neighbor = rows[node_type][event[node_type]], event[neighbor_type]
            row['seen'] += 1
            for resolution, of_node in enumerate(clusters[neighbor_type]):
                counts = layout.columns(node_type, resolution)
                cluster = int(of_node[neighbor])
                cluster = NUM_CLUSTERS[neighbor_type][resolution] if cluster < 0 else cluster
                row['exposures'][counts][cluster] += 1
                row['clicks'][counts][cluster] += event['clicked']
                row['pairs'][counts][cluster] += is_new
            if event['clicked']:
                row['recent'][:] = [*row['recent'][1:], neighbor]
    return rows


def count_in_parts(
    layout: RowLayout,
    clusters: dict[str, list[torch.Tensor]],
    events: np.ndarray,
    bounds: list[int],
) -> dict[str, np.ndarray]:
    r"""The same by :func:`count_events` of one part after the other."""
    rows = {name: layout.empty(name, number) for name, number in NUM_NODES.items()}
    clicked = events['clicked'] == 1
    key = np.where(clicked, events['user'] * 1000 + events['item'], -1)
    is_new_pair = np.zeros(len(events), bool)
    is_new_pair[np.unique(key, return_index=True)[1]] = True
    is_new_pair &= clicked
    for start, stop in pairwise([0, *bounds, len(events)]):
        part = slice(start, stop)
        for node_type, neighbor_type in SIDES:
            columns = torch.stack(
                [
                    layout.columns(node_type, resolution).start
                    + of_node.where(of_node >= 0, NUM_CLUSTERS[neighbor_type][resolution])
                    for resolution, of_node in enumerate(clusters[neighbor_type])
                ],
                dim=1,
            ).numpy()
            neighbor = events[neighbor_type][part]
            count_events(
                rows[node_type],
                events[node_type][part],
                neighbor,
                columns[neighbor],
                clicked[part],
                is_new_pair[part],
            )
    return rows


@pytest.mark.parametrize('seed', range(12))
def test_rows_are_those_of_a_loop_over_events(seed: int) -> None:
    layout, clusters = RowLayout(1 + seed % 4, NUM_CLUSTERS), draw_clusters(seed)
    events = draw_events(seed, 400)
    bounds = sorted(np.random.default_rng(seed).integers(0, 400, seed).tolist())
    expected = count_one_by_one(layout, clusters, events)
    found = count_in_parts(layout, clusters, events, bounds)
    for node_type in NUM_NODES:
        assert found[node_type].tobytes() == expected[node_type].tobytes()


@pytest.mark.parametrize('seed', range(4))
def test_rows_are_those_that_are_counted_in_memory(seed: int) -> None:
    r"""As offline: exposures and clicks as they repeat, pairs of clicks, and the last neighbors."""
    layout, clusters = RowLayout(5, NUM_CLUSTERS), draw_clusters(seed)
    events = draw_events(seed, 600)
    rows = count_in_parts(layout, clusters, events, [77, 78, 300])
    index = torch.from_numpy(np.stack([events['user'], events['item']]).astype(np.int64))
    clicked = torch.from_numpy(events['clicked'] == 1)
    counted = {
        'exposures': SparseCounts(index, None, 1, NUM_NODES, binary=False),
        'clicks': SparseCounts(index[:, clicked], None, 1, NUM_NODES, binary=False),
        'pairs': SparseCounts(index[:, clicked], None, 1, NUM_NODES, binary=True),
    }
    for node_type, neighbor_type in SIDES:
        for resolution, of_node in enumerate(clusters[neighbor_type]):
            number = NUM_CLUSTERS[neighbor_type][resolution]
            for name, counts in counted.items():
                (macro, node), weight = counts.hop(node_type, 1, MacroNodes(of_node, number), 'set')
                expected = torch.zeros(NUM_NODES[node_type], number)
                expected[node, macro] = weight
                found = rows[node_type][name][:, layout.columns(node_type, resolution)]
                np.testing.assert_array_equal(found[:, :-1], expected.numpy())
    data = HeteroData()
    for node_type, number in NUM_NODES.items():
        data[node_type].num_nodes = number
    data[CLICKS].edge_index = index[:, clicked]
    data[CLICKS].time = torch.from_numpy(events['time'].astype(np.int64))[clicked]
    data = RecentNeighbors(5)(data)
    for node_type in NUM_NODES:
        np.testing.assert_array_equal(rows[node_type]['recent'], data[node_type].recent.numpy())


def test_pairs_are_the_binary_macro_edges_of_hop_1() -> None:
    layout = RowLayout(1, NUM_CLUSTERS)
    clusters = {name: [of.clamp(min=0) for of in parts] for name, parts in draw_clusters(0).items()}
    events = draw_events(0, 500)
    rows = count_in_parts(layout, clusters, events, [])
    clicks = events[events['clicked'] == 1]
    edges = MacroEdges(
        clusters['user'][0], clusters['item'][0], {'user': 3, 'item': 4}, num_hops=1
    ).update(torch.from_numpy(np.stack([clicks['user'], clicks['item']]).astype(np.int64)))
    for node_type, _ in SIDES:
        columns = layout.columns(node_type, 0)
        found = rows[node_type]['pairs'][:, columns][:, :-1]
        np.testing.assert_array_equal(found, edges.counts[node_type][0])


def test_a_row_is_packed_in_words_of_one_byte_order() -> None:
    layout = RowLayout(2, {'user': [1], 'item': [2]})
    rows = layout.empty('user', 1)
    count_events(
        rows,
        np.array([0, 0]),
        np.array([258, 7]),
        np.array([[0], [2]]),
        np.array([True, False]),
        np.array([True, False]),
    )
    words = [2, 2**32 - 1, 258, *(1, 0, 1), *(1, 0, 0), *(1, 0, 0)]
    assert rows.tobytes() == b''.join(word.to_bytes(4, 'little') for word in words)


def test_no_events_change_nothing() -> None:
    layout = RowLayout(2, NUM_CLUSTERS)
    rows, none = layout.empty('user', 3), np.empty(0, np.int64)
    count_events(rows, none, none, none.reshape(0, 1), none == 1, none == 1)
    assert rows.tobytes() == layout.empty('user', 3).tobytes()


def test_columns_of_resolutions_follow_each_other() -> None:
    layout = RowLayout(2, NUM_CLUSTERS)
    assert layout.columns('item', 0) == slice(0, 4)
    assert layout.columns('item', 1) == slice(4, 7)
    assert layout.columns('user', 0) == slice(0, 5)
    assert layout.dtypes['item']['exposures'].shape == (7,)
    assert layout == RowLayout(2, {'item': (4,), 'user': (3, 2)})
    assert layout != RowLayout(2, {'item': [4], 'user': [2, 3]})
    assert hash(layout) == hash(RowLayout(2, NUM_CLUSTERS))


def test_a_count_never_wraps() -> None:
    layout = RowLayout(1, {'user': [1], 'item': [1]})
    rows = layout.empty('user', 2)
    rows['seen'][1] = 2**32 - 3
    two = np.array([1, 1]), np.array([0, 0]), np.array([[0], [0]]), np.ones(2, bool)
    count_events(rows, *two, two[3])
    assert rows['seen'].tolist() == [0, 2**32 - 1]
    before = rows.tobytes()
    with pytest.raises(OverflowError, match='up to 4294967295 events .* row 1 of 2 would have'):
        count_events(rows, *two, two[3])
    assert rows.tobytes() == before


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: RowLayout(0, NUM_CLUSTERS), ValueError, "'num_recent' must be at least 1"),
        (lambda: RowLayout(2, {'user': [1]}), ValueError, "dictionary of 'user' and 'item'"),
        (
            lambda: RowLayout(2, {'user': '3', 'item': [1]}),
            TypeError,
            "'num_clusters['user']' must be a sequence of numbers of clusters, one a resolution",
        ),
        (lambda: RowLayout(2, {'user': [], 'item': [1]}), TypeError, 'but got []'),
        (
            lambda: RowLayout(2, {'user': [3, 0], 'item': [1]}),
            ValueError,
            "'num_clusters['user'][1]' must be at least 1, but got 0",
        ),
        (lambda: RowLayout(2, NUM_CLUSTERS).columns('user', 1), ValueError, 'below 1, but got 1'),
        (lambda: RowLayout(2, NUM_CLUSTERS).columns('shop', 0), ValueError, "got 'shop'"),
        (lambda: RowLayout(2, NUM_CLUSTERS).empty('user', -1), ValueError, 'at least 0'),
    ],
)
def test_bad_layouts_are_refused(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
