import argparse
import importlib.util

import pytest
import torch

# Not importorskip: where it is missing, the reason is what to install.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('dhg') is None,
    reason="DeepHypergraph is compared with: 'pip install pyg-mag[benchmarks]'",
)


def test_hypergraphs_grow_with_incidences_and_have_large_hyperedges():
    from speed import hypergraph

    for num_incidences in (1000, 20_000):
        index, num_nodes = hypergraph.make_hypergraph(num_incidences)
        assert index.shape == (2, num_incidences) and num_nodes == num_incidences // 10
        assert index.min() == 0 and index.max() < num_nodes
        size = index[1].bincount(minlength=num_nodes)
        assert size.max() > 5 * size.float().mean()


def test_the_table_has_a_row_for_each_layer_and_size():
    from speed import hypergraph

    args = argparse.Namespace(
        incidences=[200, 1000], channels=4, threads=torch.get_num_threads(), repeats=2, work=1000
    )
    rows = [line for line in hypergraph.run(args) if line.startswith('| ')][2:]
    names = [tuple(cell.strip() for cell in row.split('|')[1:3]) for row in rows]
    assert names == [(size, name) for size in ('200', '1,000') for name in hypergraph.NAMES]
    assert all(row.split('|')[4].strip() == '1.00' for row in rows[::4])


def test_what_is_compared_is_the_same():
    r"""DeepHypergraph's layer and mag's, on hypergraphs without a member listed twice."""
    from speed import hypergraph

    from mag.nn import HypergraphConv

    index, num_nodes = hypergraph.make_hypergraph(600)
    index = index.unique(dim=1)
    graph = hypergraph.make_dhg(index, num_nodes)
    # It merges hyperedges of the same members.
    members = [index[0, index[1] == hyperedge].tolist() for hyperedge in range(num_nodes)]
    kept = list({tuple(sorted(nodes)): None for nodes in members if nodes})
    assert len(kept) == graph.num_e
    index = torch.tensor([(node, i) for i, nodes in enumerate(kept) for node in nodes]).t()
    ours = HypergraphConv(5, 4)
    theirs = hypergraph.HGNNConv(5, 4, bias=False, is_last=True)
    theirs.theta.weight.data = ours.lin.weight.data
    x = torch.randn(num_nodes, 5)
    torch.testing.assert_close(ours(x, index), theirs(x, graph))
    weight = torch.rand(len(kept)) + 0.5
    weighted = hypergraph.Hypergraph(num_nodes, kept, weight.tolist())
    torch.testing.assert_close(ours(x, index, weight), theirs(x, weighted))


def test_matrices_too_large_to_make_are_left_out(monkeypatch: pytest.MonkeyPatch):
    from speed import hypergraph

    monkeypatch.setattr(hypergraph, 'MOST_ENTRIES', hypergraph.count_pairs(200))
    args = argparse.Namespace(
        incidences=[200, 1000], channels=4, threads=torch.get_num_threads(), repeats=1, work=1000
    )
    names = [line.split('|')[2].strip() for line in hypergraph.run(args) if line.startswith('| ')]
    assert names[2:] == [*hypergraph.NAMES, *hypergraph.NAMES[:-1]]
