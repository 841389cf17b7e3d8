import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mag.schema import CLICKS, SEES


@pytest.fixture
def cold(small_groups: None) -> ModuleType:
    from accuracy import cold

    return cold


def test_groups_are_what_they_are_called(
    arguments: Callable[..., argparse.Namespace], cold: ModuleType, root: Path
) -> None:
    bench = cold.ColdBench('movielens-1m', arguments('movielens-1m', [], batch_size=64), seed=0)
    train, val, test = bench.train, bench.val, bench.test
    rows = test[CLICKS].edge_label_index
    cutoff = test[CLICKS].cutoff
    early = bench.log[CLICKS].edge_label_time < cutoff
    labelled, seen, logged = (
        [set(index[row].tolist()) for row in range(2)]
        for index in (
            train[CLICKS].edge_label_index,
            test[SEES].edge_index,
            bench.log[CLICKS].edge_label_index[:, early],
        )
    )
    # Fresh counts and stale ones read the same past.
    assert seen == logged
    assert all(bool(group.any()) for group in bench.groups.values())
    for row in range(2):
        for group, states in cold.GROUPS.items():
            nodes = set(rows[row, bench.groups[group]].tolist())
            assert (nodes <= labelled[row]) == (states[row] == 'trained')
            assert nodes.isdisjoint(labelled[row]) == (states[row] != 'trained')
            assert nodes.isdisjoint(seen[row]) == (states[row] == 'none')
    # A click is an exposure, and the clicks of those with nothing are gone, too.
    for row in range(2):
        assert set(test[CLICKS].edge_index[row].tolist()) <= seen[row]
    # Nobody is chosen by labels that training does not have.
    held = [set(index.tolist()) for index in val[CLICKS].edge_label_index]
    assert all(nodes <= known for nodes, known in zip(held, labelled))


def test_counts_of_who_has_nothing_are_empty_when_stale(
    arguments: Callable[..., argparse.Namespace], cold: ModuleType, root: Path
) -> None:
    bench = cold.ColdBench('movielens-1m', arguments('movielens-1m', [], batch_size=64), seed=0)
    for group, view in (('users with nothing', 'user'), ('items with nothing', 'item')):
        stale, fresh = (
            part[CLICKS].edge_label_counts[bench.groups[group], bench.counts.names.index(view)]
            for part in (bench.test, bench.fresh)
        )
        assert stale.sum() == 0 and fresh.sum() > 0


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], cold: ModuleType, root: Path
) -> None:
    args = arguments('movielens-1m', ['count_net', 'no_ids'], batch_size=64)
    cold.run(args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    assert [record['purpose'] for record in records] == ['tune', *['run'] * 4]
    cold.run(args)
    assert json.loads(path.read_text()) == records
    lines = list(cold.render(records))
    of_users = [line.split(' | ') for line in lines if line.startswith('| users with nothing')]
    assert len(of_users) == 2
    runs = [record for record in records[1:] if record['model'] == 'no_ids']
    values = [record['test']['users with nothing']['auc'] for record in runs]
    assert of_users[0][4].startswith(f'{sum(values) / 2:.4f} ± ')
