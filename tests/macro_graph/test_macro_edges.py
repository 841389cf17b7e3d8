from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mag.macro_graph import MacroEdges

# Block A: three users, four items, every table checked by hand.
GOLDEN_CLICKS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 3, 2, 3]])
GOLDEN_TABLES = {
    'set': {
        'user': [
            [[[2, 1], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 2]]],
            [[[3, 0], [1, 1]], [[2, 0], [1, 1]], [[0, 0], [2, 2]]],
            [[[3, 2], [0, 2]], [[3, 2], [0, 2]], [[3, 2], [0, 2]]],
        ],
        'item': [
            [[[1, 0], [0, 0]], [[2, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [1, 1]]],
            [[[2, 1], [0, 0]], [[3, 2], [0, 0]], [[2, 1], [0, 2]], [[1, 1], [0, 2]]],
            [[[3, 0], [1, 1]], [[3, 0], [2, 2]], [[3, 0], [2, 2]], [[2, 0], [2, 2]]],
        ],
    },
    'walk': {
        'user': [
            [[[2, 1], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 2]]],
            [[[3, 0], [1, 1]], [[2, 0], [1, 1]], [[0, 0], [2, 2]]],
            [[[7, 4], [0, 2]], [[4, 3], [0, 2]], [[3, 2], [0, 4]]],
        ],
        'item': [
            [[[1, 0], [0, 0]], [[2, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [1, 1]]],
            [[[2, 1], [0, 0]], [[3, 2], [0, 0]], [[2, 1], [0, 2]], [[1, 1], [0, 2]]],
            [[[3, 0], [1, 1]], [[5, 0], [2, 2]], [[3, 0], [3, 3]], [[2, 0], [3, 3]]],
        ],
    },
}
GOLDEN_SUMS = {
    'set': {
        'user': [[[2, 1], [1, 1], [0, 2]], [[4, 1], [3, 1], [2, 2]], [[3, 4], [3, 4], [3, 4]]],
        'item': [
            [[1, 0], [2, 0], [1, 1], [1, 1]],
            [[2, 1], [3, 2], [2, 3], [1, 3]],
            [[4, 1], [5, 2], [5, 2], [4, 2]],
        ],
    },
    'walk': {
        'user': [[[2, 1], [1, 1], [0, 2]], [[4, 1], [3, 1], [2, 2]], [[7, 6], [4, 5], [3, 6]]],
        'item': [
            [[1, 0], [2, 0], [1, 1], [1, 1]],
            [[2, 1], [3, 2], [2, 3], [1, 3]],
            [[4, 1], [7, 2], [6, 3], [5, 3]],
        ],
    },
}


def golden(mode: str) -> MacroEdges:
    user_cluster, item_cluster = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1, 1])
    edges = MacroEdges(user_cluster, item_cluster, {'user': 2, 'item': 2}, 3, mode)
    return edges.update(GOLDEN_CLICKS)


@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('node', ['user', 'item'])
@pytest.mark.parametrize('hop', [1, 2, 3])
def test_golden_numbers(mode, node, hop):
    edges = golden(mode)
    assert edges.tensors(node, hop).to_dense().tolist() == GOLDEN_TABLES[mode][node][hop - 1]
    assert edges.counts[node][hop - 1].tolist() == GOLDEN_SUMS[mode][node][hop - 1]


def test_golden_matrices():
    r"""The products that the released code builds: its hops are walks."""
    R = np.array([[1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]])
    users, items = np.eye(2)[[0, 0, 1]], np.eye(2)[[0, 0, 1, 1]]
    edges = golden('walk')
    for table, product in zip(
        edges.counts['user'] + edges.counts['item'],
        [R @ items, R @ R.T @ users, R @ R.T @ R @ items]
        + [R.T @ users, R.T @ R @ items, R.T @ R @ R.T @ users],
        strict=True,
    ):
        assert np.array_equal(table, product)
    assert edges.coarse().tolist() == [[3, 2], [0, 2]]


def brute_force(clicks, user_cluster, item_cluster, num_clusters, node, hop, mode, binary):
    r"""Eq. 5 for every node, with dicts and sets."""
    weight = Counter(clicks)
    if binary:
        weight = Counter(set(clicks))
    cluster = {'user': user_cluster, 'item': item_cluster}
    other = {'user': 'item', 'item': 'user'}
    neighbors = {'user': {}, 'item': {}}
    for (user, item), count in weight.items():
        neighbors['user'].setdefault(user, {})[item] = count
        neighbors['item'].setdefault(item, {})[user] = count
    start = node if hop % 2 == 1 else other[node]
    result = np.zeros(
        (len(cluster[node]), num_clusters[start], num_clusters[other[start]]), dtype=np.int64
    )
    for v in range(len(cluster[node])):
        frontier, side = Counter({v: 1}), node
        for _ in range(hop - 1):
            following = Counter()
            for a, walks in frontier.items():
                for b, count in neighbors[side].get(a, {}).items():
                    following[b] += walks * count
            frontier, side = following, other[side]
        for a, walks in frontier.items():
            for b, count in neighbors[side].get(a, {}).items():
                times = walks if mode == 'walk' else 1
                result[v, cluster[side][a], cluster[other[side]][b]] += times * count
    return result


@st.composite
def graphs(draw):
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    num_clusters = {'user': draw(st.integers(1, 3)), 'item': draw(st.integers(1, 3))}
    pairs = st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))
    clicks = draw(st.lists(pairs, max_size=16))
    clusters = [
        draw(st.lists(st.integers(0, num_clusters[node] - 1), min_size=num, max_size=num))
        for node, num in (('user', num_users), ('item', num_items))
    ]
    return clicks, *clusters, num_clusters


@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('binary', [True, False])
@settings(max_examples=20, deadline=None)
@given(graph=graphs())
def test_brute_force(mode, binary, graph):
    clicks, user_cluster, item_cluster, num_clusters = graph
    edges = MacroEdges(
        torch.tensor(user_cluster), torch.tensor(item_cluster), num_clusters, 4, mode, binary
    ).update(torch.tensor(clicks, dtype=torch.long).view(-1, 2).t())
    for node in ('user', 'item'):
        for hop in range(1, 5):
            expected = brute_force(*graph, node, hop, mode, binary)
            assert np.array_equal(edges.tensors(node, hop).to_dense().numpy(), expected)
            assert np.array_equal(edges.counts[node][hop - 1], expected.sum(axis=1))


def random_edges(seed, num_users=30, num_items=20, num_clicks=150):
    generator = torch.Generator().manual_seed(seed)
    clicks = torch.stack(
        [
            (torch.rand(num_clicks, generator=generator) ** 2 * num_users).long(),
            (torch.rand(num_clicks, generator=generator) ** 2 * num_items).long(),
        ]
    )
    user_cluster = torch.randint(4, (num_users,), generator=generator)
    item_cluster = torch.randint(3, (num_items,), generator=generator)
    return clicks, user_cluster, item_cluster, {'user': 4, 'item': 3}, generator


def assert_equal(edges: MacroEdges, rebuilt: MacroEdges) -> None:
    for node in ('user', 'item'):
        for table, expected in zip(edges.counts[node], rebuilt.counts[node], strict=True):
            assert np.array_equal(table, expected)


def assert_tensors_equal(edges: MacroEdges, rebuilt: MacroEdges) -> None:
    for node in ('user', 'item'):
        for hop in range(1, edges.num_hops + 1):
            expected = rebuilt.tensors(node, hop).to_dense()
            assert torch.equal(edges.tensors(node, hop).to_dense(), expected)


@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('binary', [True, False])
@pytest.mark.parametrize('seed', range(2))
def test_update_equals_rebuild(mode, binary, seed):
    clicks, user_cluster, item_cluster, num_clusters, generator = random_edges(seed)
    arguments = (num_clusters, 4, mode, binary)
    edges = MacroEdges(user_cluster, item_cluster, *arguments)
    start = 0
    while start < clicks.size(1):
        end = start + int(torch.randint(1, 40, (1,), generator=generator))
        edges.update(clicks[:, start:end])
        # What was counted before is clicked again, which counts only without `binary`.
        if binary:
            edges.update(clicks[:, :end:3])
        start = end
        rebuilt = MacroEdges(user_cluster, item_cluster, *arguments).update(clicks[:, :end])
        assert_equal(edges, rebuilt)
    assert_tensors_equal(edges, rebuilt)


@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('seed', range(2))
def test_update_with_new_nodes_equals_rebuild(mode, seed):
    r"""Nodes arrive at the end of the tables, and nodes without a cluster get theirs."""
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(seed)
    edges = MacroEdges(user_cluster[:0], item_cluster[:0], num_clusters, 3, mode)
    for end in range(10, 160, 10):
        known = clicks[:, :end]
        clusters = []
        for row, cluster in enumerate((user_cluster, item_cluster)):
            so_far = torch.full((int(known[row].max()) + 1,), -1)
            so_far[known[row]] = cluster[known[row]]
            clusters.append(so_far)
        edges.update(clicks[:, end - 10 : end], *clusters)
        rebuilt = MacroEdges(*clusters, num_clusters, 3, mode).update(known)
        assert_equal(edges, rebuilt)
    assert_tensors_equal(edges, rebuilt)
    assert edges.counts['user'][0].sum() == clicks.unique(dim=1).size(1)


@pytest.mark.parametrize('mode', ['set', 'walk'])
@pytest.mark.parametrize('binary', [True, False])
@pytest.mark.parametrize('num_clicks', [0, 600, 2000])
def test_update_of_few_rows_equals_rebuild(mode, binary, num_clicks):
    r"""A few clicks change little of a large graph, and then only those rows are carried on; where
    few clicks are known, more than are there may be new."""
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(0, 300, 200, 2060)
    arguments = user_cluster, item_cluster, num_clusters, 3, mode, binary
    edges = MacroEdges(*arguments).update(clicks[:, :num_clicks])
    for start, end in ((0, 1), (1, 3), (3, 10), (10, 60)):
        edges.update(clicks[:, num_clicks + start : num_clicks + end])
        assert_equal(edges, MacroEdges(*arguments).update(clicks[:, : num_clicks + end]))
    assert_tensors_equal(edges, MacroEdges(*arguments).update(clicks[:, : num_clicks + 60]))


def test_update_is_not_additive_at_hop_two():
    r"""A click of user 1 on item 0 also changes user 0, who clicked item 0 before."""
    edges = MacroEdges(torch.tensor([0, 1]), torch.tensor([0]), {'user': 2, 'item': 1})
    edges.update(torch.tensor([[0], [0]]))
    assert edges.counts['user'][1].tolist() == [[1, 0], [0, 0]]
    edges.update(torch.tensor([[1], [0]]))
    assert edges.counts['user'][1].tolist() == [[1, 1], [1, 1]]
    assert edges.counts['item'][1].tolist() == [[2]]


@pytest.mark.parametrize('binary', [True, False])
def test_invariants(binary):
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(1)
    edges = MacroEdges(user_cluster, item_cluster, num_clusters, 2, 'walk', binary).update(clicks)
    R = torch.zeros(30, 20, dtype=torch.double)
    R.index_put_(tuple(clicks), torch.ones(150).double(), accumulate=True)
    if binary:
        R = (R > 0).double()
    assert np.array_equal(edges.counts['user'][0].sum(axis=1), R.sum(1))
    assert np.array_equal(edges.counts['item'][0].sum(axis=1), R.sum(0))
    assert np.array_equal(edges.counts['user'][1].sum(axis=1), (R @ R.t()).sum(1))
    assert np.array_equal(edges.counts['item'][1].sum(axis=1), (R.t() @ R).sum(1))
    coarse = torch.zeros(4, 3, dtype=torch.double)
    user, item = R.nonzero(as_tuple=True)
    coarse.index_put_((user_cluster[user], item_cluster[item]), R[user, item], accumulate=True)
    assert np.array_equal(edges.coarse(), coarse)
    assert coarse.sum() == R.sum()


def test_chunks_of_sets(monkeypatch):
    r"""Neighborhood sets made a few rows at a time are the same sets."""
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(2)
    whole = MacroEdges(user_cluster, item_cluster, num_clusters, 4).update(clicks)
    monkeypatch.setattr('mag.macro_graph.clustered_clicks.CHUNK_PAIRS', 50)
    assert_equal(MacroEdges(user_cluster, item_cluster, num_clusters, 4).update(clicks), whole)


def test_refuses_what_does_not_fit():
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(3)
    edges = MacroEdges(user_cluster, item_cluster, num_clusters, 3, max_bytes=1000)
    with pytest.raises(ValueError, match=r"sets N\^\(2\) of 30 users would take.*mode='walk'"):
        edges.update(clicks)
    edges = MacroEdges(user_cluster, item_cluster, num_clusters, 2, max_bytes=1000).update(clicks)
    with pytest.raises(ValueError, match='full macro edges of hop 2 of 30 users over 3 x 4'):
        edges.tensors('user', 2)


def test_refusal_states_an_upper_bound():
    r"""What is refused is between the 12 bytes of each pair that there is, and of each that there
    could be."""
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(3)
    edges = MacroEdges(user_cluster, item_cluster, num_clusters, 2).update(clicks)
    reach = {
        'user': edges.clicks['user'] @ edges.clicks['item'],
        'item': edges.clicks['item'] @ edges.clicks['user'],
    }
    exact = max(12 * pairs.nnz for pairs in reach.values())
    possible = max(12 * pairs.shape[0] ** 2 for pairs in reach.values())
    with pytest.raises(ValueError, match='would take'):
        MacroEdges(user_cluster, item_cluster, num_clusters, 3, max_bytes=exact - 1).update(clicks)
    MacroEdges(user_cluster, item_cluster, num_clusters, 3, max_bytes=possible).update(clicks)


def test_a_refused_update_leaves_no_trace():
    clicks, user_cluster, item_cluster, num_clusters, _ = random_edges(3)
    edges = MacroEdges(user_cluster[:20], item_cluster, num_clusters, 3)
    edges.update(clicks[:, clicks[0] < 20][:, :60])
    whole = MacroEdges(user_cluster, item_cluster, num_clusters, 3)
    whole.update(torch.cat([clicks[:, clicks[0] < 20][:, :60], clicks], dim=1))
    kept = {node: [table.copy() for table in tables] for node, tables in edges.counts.items()}
    edges.max_bytes = 1000
    for new, error in ((clicks, ValueError), (torch.tensor([[0], [20]]), IndexError)):
        with pytest.raises(error):
            edges.update(new, user_cluster)
        assert len(edges.cluster['user']) == 20
        for node, tables in kept.items():
            for table, expected in zip(edges.counts[node], tables, strict=True):
                assert np.array_equal(table, expected)
    edges.max_bytes = 2**30
    assert_equal(edges.update(clicks, user_cluster), whole)


def test_no_users():
    empty = torch.empty(0, dtype=torch.long)
    edges = MacroEdges(empty, torch.tensor([0, 1]), {'user': 2, 'item': 2}, 3)
    assert edges.tensors('user', 3).shape == (0, 2, 2)
    assert edges.tensors('item', 3).to_dense().sum() == 0


CLUSTER = torch.tensor([0, 1])
SIZES = {'user': 2, 'item': 2}


@pytest.mark.parametrize(
    ('make', 'error', 'match'),
    [
        (lambda: MacroEdges(CLUSTER, CLUSTER, SIZES, 0), ValueError, "'num_hops'.*0"),
        (lambda: MacroEdges(CLUSTER, CLUSTER, SIZES, True), TypeError, "'num_hops'.*True"),
        (lambda: MacroEdges(CLUSTER, CLUSTER, SIZES, 2, 'shell'), ValueError, "'mode'.*'shell'"),
        (lambda: MacroEdges(CLUSTER, CLUSTER, {'user': 2}), ValueError, "'user' and 'item'.*got"),
        (lambda: MacroEdges(CLUSTER, CLUSTER, {'user': 2.0, 'item': 2}), TypeError, '2.0'),
        (lambda: MacroEdges(CLUSTER, CLUSTER, {'user': 0, 'item': 2}), ValueError, 'at least 1'),
        (lambda: MacroEdges(CLUSTER + 1, CLUSTER, SIZES), IndexError, 'from 1 to 2.* from -1 to 1'),
        (
            lambda: MacroEdges(CLUSTER, CLUSTER - 2, SIZES),
            IndexError,
            "'item_cluster' from -2 to -1",
        ),
        (lambda: MacroEdges(CLUSTER.float(), CLUSTER, SIZES), TypeError, 'integers.*float32'),
        (lambda: MacroEdges([0, 1], CLUSTER, SIZES), TypeError, "'user_cluster'.*got list"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ((torch.tensor([0, 1]),), ValueError, r'shape \[2, E\], but got shape \[2\]'),
        ((torch.zeros(2, 3),), TypeError, 'integers.*float32'),
        (([[0], [0]],), TypeError, 'got list'),
        (
            (torch.tensor([[2], [0]]),),
            IndexError,
            'user ids from 2 to 2, but expected them from 0 to 1',
        ),
        ((torch.tensor([[0], [-1]]),), IndexError, 'item ids from -1 to -1'),
        ((torch.tensor([[0], [0]]), torch.tensor([1, 1])), ValueError, 'keep the clusters'),
        ((torch.tensor([[0], [0]]), torch.tensor([0])), ValueError, 'of the 2 users'),
        (
            (torch.tensor([[2], [0]]), torch.tensor([0, 1, -1])),
            ValueError,
            "'user ids' of nodes with a cluster, but 1 of 1 is not, such as 2 in row 0",
        ),
    ],
)
def test_bad_updates(arguments, error, match):
    with pytest.raises(error, match=match):
        MacroEdges(CLUSTER, CLUSTER, SIZES).update(*arguments)


def test_bad_tensors():
    edges = MacroEdges(CLUSTER, CLUSTER, SIZES)
    assert edges.tensors('user', 2).to_dense().tolist() == [[[0, 0], [0, 0]]] * 2
    with pytest.raises(ValueError, match="'node'.*'shop'"):
        edges.tensors('shop', 1)
    with pytest.raises(ValueError, match="'hop' must lie below 3, but got 3"):
        edges.tensors('user', 3)


def test_repr():
    assert repr(golden('set')) == (
        "MacroEdges(3 users, 4 items, 7 clicks, num_hops=3, mode='set', binary=True)"
    )
