import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.schema import CLICKS, SEES

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def test_fifths_are_of_users_by_what_they_saw_before(market: str) -> None:
    from accuracy import activity, count_data

    test = count_data.make_parts(market, 'rolling', '').test
    groups, sizes = activity.groups_of(test)
    rows = test[CLICKS].edge_label_index[0].tolist()
    seen = test[SEES].edge_index[0].tolist()
    assert (test[SEES].time < test[CLICKS].cutoff).all()
    assert groups.pop('all').all() and sizes.pop('all')['rows'] == len(rows)
    # Each row is in one fifth, and so is each user.
    assert torch.stack(list(groups.values())).sum(0).eq(1).all()
    last = 0
    for name, is_in in groups.items():
        users = {user for user, inside in zip(rows, is_in.tolist(), strict=True) if inside}
        found = [seen.count(user) for user in users]
        least, most = min(found), max(found)
        expected = {'rows': int(is_in.sum()), 'users': len(users), 'least': least, 'most': most}
        assert sizes[name] == expected
        assert last < least
        last = most
    # Fifths but for who saw equally many.
    num_users = len(set(rows))
    assert all(abs(size['users'] - num_users / 5) < 0.1 * num_users for size in sizes.values())


def test_tunes_what_is_missing_runs_and_tables(
    arguments: Callable[..., argparse.Namespace], market: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip('matplotlib')
    from accuracy import activity, counts
    from accuracy.click_bench import stop_of

    monkeypatch.setattr(counts, 'LEARNING_RATES', (1e-2, 1e-4))
    monkeypatch.setattr(counts, 'WEIGHT_DECAYS', {market: (5e-5,)})
    # Few users and rows: a fifth may hold none of both kinds of rows.
    monkeypatch.setattr(activity, 'NUM_GROUPS', 2)
    args = arguments(
        market, ['count_net', 'wide_deep', 'macgnn'], batch_size=256, settings=[], seeds=1
    )
    stop = stop_of(args)
    trials = [
        {'dataset': market, 'protocol': 'rolling', 'model': 'macgnn', 'seed': 0, 'purpose': 'tune',
         'setting': {'learning_rate': rate, 'weight_decay': 5e-5}, 'stop': stop,
         'val': {'logloss': loss}}
        for rate, loss in ((1e-2, 0.6), (1e-4, 0.5))
    ]  # fmt: skip
    (tmp_path / 'counts.json').write_text(json.dumps(trials))
    args.settings = [str(tmp_path / 'counts.json')]
    activity.run(args)
    path = Path(args.out)
    records: list[dict[str, Any]] = json.loads(path.read_text())
    tuned = [record['model'] for record in records if record['purpose'] == 'tune']
    runs = {record['model']: record for record in records if record['purpose'] == 'run'}
    assert sorted(tuned) == ['count_net'] * 2 + ['wide_deep'] * 2
    assert set(runs) == set(args.models)
    # As the trials say that were made before.
    assert runs['macgnn']['setting']['learning_rate'] == 1e-4
    activity.run(args)
    assert json.loads(path.read_text()) == records

    lines = list(activity.render(records))
    rows = [line.split(' | ') for line in lines if line.startswith('| 1 ')]
    assert len(rows) == 2
    for row, metric in zip(rows, ('auc', 'gauc'), strict=True):
        expected = [f'{runs[name]["test"]["1"][metric]:.4f}' for name in
                    ('count_net', 'macgnn', 'wide_deep')]  # fmt: skip
        assert [cell.rstrip(' |') for cell in row[4:]] == expected
    activity.draw(records, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_groups_are_scored_as_if_they_were_alone() -> None:
    from accuracy.harness import score_groups

    probability = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.5, 0.1])
    label = torch.tensor([1, 0, 0, 1, 1, 0])
    user = torch.tensor([0, 0, 1, 1, 1, 1])
    groups = {'all': torch.ones(6, dtype=torch.bool), 'second': user == 1}
    found = score_groups(probability, label, groups, user)
    # Of 9 pairs 7 are in order; within users 1 of 1 and 2 of 4, weighed by 2 and 4 rows.
    assert found['all']['auc'] == pytest.approx(7 / 9)
    assert found['all']['gauc'] == pytest.approx((2 * 1 + 4 * 0.5) / 6)
    assert found['second']['auc'] == found['second']['gauc'] == pytest.approx(0.5)
    loss = -torch.tensor([0.4, 0.4, 0.5, 0.9], dtype=torch.double).log().mean()
    assert found['second']['logloss'] == pytest.approx(float(loss), abs=1e-6)
    assert 'gauc' not in score_groups(probability, label, groups)['all']
    # Turned round, all others are.
    assert score_groups(1 - probability, label, groups)['all']['auc'] == pytest.approx(2 / 9)


def test_claims_are_of_the_best_other_in_each_fifth() -> None:
    from accuracy import activity

    def run(model: str, *aucs: float) -> dict[str, Any]:
        scores = {
            name: {'auc': auc, 'gauc': auc - 0.1} for name, auc in zip(('all', '1', '2'), aucs)
        }
        return {'model': model, 'seed': 0, 'test': scores, 'groups': {'all': {}, '1': {}, '2': {}}}

    runs = [
        run('count_net', 0.8, 0.7, 0.9), run('macgnn', 0.9, 0.6, 0.8),
        run('wide_deep', 0.7, 0.65, 0.7), run('din', 0.7, 0.5, 0.85),
    ]  # fmt: skip
    macgnn, count_net = activity.claims(runs)
    assert 'MacGNN is ahead of all others (Wide & Deep, DIN)' in macgnn
    assert 'does not hold by AUC, in 0 of 2 fifths (-0.0500, -0.0500), and' in macgnn
    assert 'holds by AUC, in 2 of 2 fifths (+0.0500, +0.0500), and holds by GAUC' in count_net
