import argparse
from pathlib import Path

import numpy as np
import pytest

from mag.online import EVENT, Replica


@pytest.fixture
def args(root: Path, small_groups: None) -> argparse.Namespace:
    return argparse.Namespace(dataset='movielens-1m', root=str(root), hours=[0.05, 0.2])


def test_the_table_tells_how_far_each_is_off(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import hop_2_age

    monkeypatch.setattr(hop_2_age, 'NUM_ASKED', 20)
    rows = [line for line in hop_2_age.run(args) if line.startswith('| ')][2:]
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
    assert [row[:2] for row in cells] == [['0.05', '180'], ['0.2', '720']]
    off = np.array([[float(cell.rstrip('%')) for cell in row[2:]] for row in cells])
    assert (off[:, 4] == 0).all()
    # The own clicks leave something, and more is to come.
    assert (off[:, [0, 2]] > off[:, [1, 3]]).all() and (off[1, :4] > off[0, :4]).all()


def test_hop_2_that_differs_ends_the_run(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import hop_2_age

    monkeypatch.setattr(Replica, '_sum_items', lambda self, users: 0)
    with pytest.raises(RuntimeError, match='Hop 2 of users after 0.05 hours is another one'):
        hop_2_age.measure(args)


def test_hops_are_those_of_a_loop() -> None:
    from accuracy.hop_2_age import error, hops_of

    random = np.random.default_rng(0)
    events = np.zeros(60, EVENT)
    events['user'], events['item'] = random.integers(0, 6, 60), random.integers(0, 5, 60)
    events['clicked'] = random.random(60) < 0.5
    clusters = {'user': np.array([0, 1, -1, 2, 0, 1]), 'item': np.array([1, 0, -1, 1, 0])}
    between, hop_1, hop_2 = hops_of(events, clusters, {'user': 3, 'item': 2})
    pairs = {(u, i) for u, i, _, clicked in events.tolist() if clicked}
    assert set(zip(*map(np.ndarray.tolist, between.nonzero()))) == pairs
    for user in range(6):
        items = [i for u, i in pairs if u == user]
        of_items = [clusters['item'][i] for i in items]
        assert hop_1['user'][user].tolist() == [of_items.count(0), of_items.count(1)]
        reached = [clusters['user'][u] for u, i in pairs if i in items]
        assert hop_2['user'][user].tolist() == [reached.count(of) for of in range(3)]
    exact = np.array([[2, 2], [0, 0], [1, 0]])
    # Who has none is left out.
    assert error(np.array([[1, 1], [5, 5], [1, 1]]), exact) == (2 / 4 + 1 / 1) / 2
