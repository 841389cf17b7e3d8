import argparse

import pytest
import torch

pytest.importorskip('numba')


def test_the_table_has_a_row_for_each_size() -> None:
    from speed import store_clusters

    args = argparse.Namespace(users=[2000, 3000], dims=[64, 100], repeats=1)
    rows = [line for line in store_clusters.run(args) if line.startswith('| ')][2:]
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
    assert [(row[0], row[2], row[6]) for row in cells] == [
        (users, dim, users) for users in ('2,000', '3,000') for dim in ('64', '100')
    ]
    assert all(float(row[place]) > 0 for row in cells for place in (3, 4, 5, 7))


def test_projections_that_differ_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import store_clusters

    monkeypatch.setattr(store_clusters, 'by_kernel', lambda clicks, dim: torch.ones(2000, dim))
    with pytest.raises(RuntimeError, match='2,000 users to 128 signs differ'):
        store_clusters.measure(2000, 128, 1)
