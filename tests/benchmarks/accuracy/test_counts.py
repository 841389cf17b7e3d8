import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from accuracy import counts

    monkeypatch.setattr(counts, 'TRIALS', ((1e-2, 5e-5), (1e-4, 5e-5)))
    groups = (('user', 3), ('user', 6), ('item', 'category'), ('item', 4))
    monkeypatch.setattr(counts, 'GROUPS', groups)
    return counts


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], counts: ModuleType, root: Path
) -> None:
    args = arguments('movielens-1m', ['count_net', 'no_counts'], batch_size=64, max_epochs=2)
    counts.run(args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    tuned = [record for record in records if record['purpose'] == 'tune']
    runs = [record for record in records if record['purpose'] == 'run']
    assert len(tuned) == 2 * 2 and len(runs) == 2 * 2
    # The test part is not looked at before the choice.
    assert not any({'test', 'fresh'} & record.keys() for record in tuned)
    for name in args.models:
        trials = [record for record in tuned if record['model'] == name]
        best = min(trials, key=lambda record: record['val']['logloss'])
        chosen = [record for record in runs if record['model'] == name]
        assert {record['learning_rate'] for record in chosen} == {best['learning_rate']}
        # Only counts can be fresh.
        is_same = [record['test'] == record['fresh'] for record in chosen]
        assert is_same == [name == 'no_counts'] * 2
    counts.run(args)
    assert json.loads(path.read_text()) == records

    lines = list(counts.render(records))
    rows = [line.split(' | ') for line in lines if re.match(r'\| .*served', line)]
    assert [row[0] for row in rows] == [
        f'| {title}, served {served}'
        for title in ('CountNet', 'w/o counts')
        for served in ('stale', 'fresh')
    ]
    for row, part in zip(rows[:2], ('test', 'fresh'), strict=True):
        values = [record[part]['auc'] for record in runs if record['model'] == 'count_net']
        assert row[1].startswith(f'{sum(values) / 2:.4f} ± ')


def test_macro_nodes_of_all_resolutions_stand_beside_each_other(
    arguments: Callable[..., argparse.Namespace], counts: ModuleType, root: Path
) -> None:
    bench = counts.Bench('movielens-1m', arguments('movielens-1m', ['count_net'], batch_size=64))
    for part in (bench.train, bench.test):
        assert part['user'].cluster_3.max() == 2 and part['user'].cluster_6.max() == 5
        assert 'cluster_6_since' in part['user'] and 'cluster_category' in part['item']
        # Two ids, two and two of them with macro nodes of the other, and four pairs of these.
        assert len(part['user', 'clicks', 'item'].count_names) == 2 + 2 + 2 + 4
