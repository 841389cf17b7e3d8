import argparse
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array


def test_neighbors_are_those_of_sets() -> None:
    from accuracy.neighbors import micro_neighbors

    generator = np.random.default_rng(0)
    clicks = (generator.random((12, 9)) < 0.2).astype(np.float32)
    found = micro_neighbors(csr_array(clicks), np.arange(12))
    items = [set(np.flatnonzero(row)) for row in clicks]
    for user in range(12):
        first = items[user]
        second = {other for other in range(12) if items[other] & first}
        third = set().union(*(items[other] for other in second))
        assert [of_hop[user] for of_hop in found] == [len(first), len(second), len(third)]


def test_the_table_and_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    from accuracy import clicks, neighbors

    from mag.datasets import SyntheticMarket

    data = SyntheticMarket(60, 40, 3_000, log=False)[0]
    market = clicks.Dataset('Market', lambda root: data, 1.0)
    monkeypatch.setitem(clicks.DATASETS, 'kuairand', market)
    found = neighbors.count('kuairand', argparse.Namespace(root='', users=30))
    assert all(of_hop.max() <= 20 for of_hop in found['macro'][1::2])
    # A macro node is reached by whoever reaches one of its nodes.
    for micro, macro in zip(found['micro'], found['macro'], strict=True):
        assert (macro <= micro).all() and ((macro > 0) == (micro > 0)).all()
    lines = neighbors.render('kuairand', found)
    (row,) = [line for line in lines if line.startswith('| 2 ')]
    assert row.split('|')[2].strip() == f'{np.median(found["micro"][1]):,.0f}'
    neighbors.draw(found, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')
