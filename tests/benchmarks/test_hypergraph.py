import argparse
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_hypergraphs_grow_with_incidences_and_have_large_hyperedges():
    import hypergraph

    for num_incidences in (1000, 20_000):
        index, num_nodes = hypergraph.make_hypergraph(num_incidences)
        assert index.shape == (2, num_incidences) and num_nodes == num_incidences // 10
        assert index.min() == 0 and index.max() < num_nodes
        size = index[1].bincount(minlength=num_nodes)
        assert size.max() > 5 * size.float().mean()


def test_the_memory_of_a_step_is_the_most_at_once():
    import hypergraph

    def step():
        for size in (1_000_000, 3_000_000, 2_000_000):
            torch.ones(size, dtype=torch.uint8)

    assert hypergraph.bytes_of(step) == pytest.approx(3_000_000, rel=0.01)


def test_the_table_has_a_row_for_each_layer_and_size():
    import hypergraph

    args = argparse.Namespace(
        incidences=[200, 1000], channels=4, threads=torch.get_num_threads(), repeats=2, work=1000
    )
    rows = [line for line in hypergraph.run(args) if line.startswith('| ')][2:]
    names = [tuple(cell.strip() for cell in row.split('|')[1:3]) for row in rows]
    assert names == [(size, name) for size in ('200', '1,000') for name in hypergraph.NAMES]
    assert all(row.split('|')[4].strip() == '1.00' for row in rows[::3])
