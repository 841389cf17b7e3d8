import argparse

import numpy as np
import pytest

pytest.importorskip('numba')


def make_log() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        'user': generator.integers(20, size=2000, dtype=np.int32),
        'item': generator.integers(50, size=2000, dtype=np.int32),
    }


def test_what_is_compared_is_the_same() -> None:
    from speed import second_hop

    for side in second_hop.make_sides(make_log(), num_windows=3).values():
        second_hop.require_same(side)
        assert 0 < side.num_pairs <= 1000 and len(side.by_scipy) == 3
        assert side.by_kernel().table.any()


def test_counts_that_differ_end_the_run() -> None:
    from speed import second_hop

    side = second_hop.make_sides(make_log(), num_windows=2)['item']
    first, second = side.by_scipy
    with pytest.raises(RuntimeError, match='The counts of window 1 differ from those of SciPy'):
        second_hop.require_same(side._replace(by_scipy=[first, lambda: second() + 1]))


def test_the_table_has_a_row_for_each_size_and_side() -> None:
    from speed import second_hop

    args = argparse.Namespace(clicks=[3000], windows=[1, 2], repeats=1)
    rows = [line for line in second_hop.run(args) if line.startswith('| ')][2:]
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
    sides = [row[:3] for row in cells]
    assert sides == [['3,000', w, side] for w in ('1', '2') for side in ('users', 'items')]
    assert all(float(cell) >= 0 for row in cells for cell in row[4:])
