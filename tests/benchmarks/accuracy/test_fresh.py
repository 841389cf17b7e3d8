import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mag.schema import CLICKS


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, small_groups: None) -> ModuleType:
    from accuracy import fresh

    monkeypatch.setattr(fresh, 'NUM_USERS', 200)
    return fresh


def test_pairs_equal_those_of_a_loop(fresh: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(7, (40,), generator=generator)
    time = torch.randint(20, (40,), generator=generator)
    found = [tuple(pair) for pair in torch.stack(fresh.pairs(user, time), dim=1).tolist()]
    expected = {
        (min(i, j, key=lambda k: (time[k], k)), max(i, j, key=lambda k: (time[k], k)))
        for i, j in product(range(40), repeat=2)
        if user[i] == user[j]
    }
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_the_rate_of_the_user_is_all_wrong_with_two_rows_and_right_at_equal_knowledge(
    fresh: ModuleType,
) -> None:
    assert fresh.simulate(2, history=0) == 0
    assert fresh.simulate(2, history=1_000) == 0
    assert 0 < fresh.simulate(10, history=0) < fresh.simulate(100, history=0) < 0.5
    label, user = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 2, 2])
    first, second = fresh.pairs(user, torch.arange(4))
    tied = torch.full(first.shape, 0.3)
    assert fresh.equal_gauc(tied, label, user, first, second) == 0.5
    # The first user's click is above the other row as of then, the second one's below.
    score = torch.tensor([0.9, 0.1, 0.5, 0.6, 0.2, 0.9])
    assert list(zip(first.tolist(), second.tolist()))[4] == (2, 3)
    assert fresh.equal_gauc(score, label, user, first, second) == 0.5
    score[4] = 0.7
    assert fresh.equal_gauc(score, label, user, first, second) == 1.0


def test_gauc_at_equal_knowledge_is_gauc_where_counts_are_stale(
    arguments: Callable[..., argparse.Namespace], fresh: ModuleType, root: Path
) -> None:
    bench = fresh.FreshBench('movielens-1m', arguments('movielens-1m', [], batch_size=64))
    task = bench.fit('count_net', 0, {'learning_rate': 1e-2, 'weight_decay': 5e-5})
    stale = bench.score(task, fresh.SERVED['none'])
    assert stale['equal_gauc'] == pytest.approx(stale['gauc'])
    assert bench.rate_alone(fresh.SERVED['none']) == {'gauc': 0.5, 'equal_gauc': 0.5}
    rate = bench.rate_alone(fresh.SERVED['all'])
    assert rate['gauc'] < 0.5 and rate['equal_gauc'] == 0.5
    part, earlier = bench.serve(fresh.SERVED['all'])
    assert part[CLICKS].edge_label_counts.equal(bench.fresh[CLICKS].edge_label_counts)
    assert earlier[CLICKS].edge_label_counts.equal(bench.earlier[CLICKS].edge_label_counts)


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], fresh: ModuleType, root: Path
) -> None:
    args = arguments('movielens-1m', ['count_net'], batch_size=64)
    fresh.run(args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    assert [record['purpose'] for record in records] == ['tune', 'run', 'run', 'simulation']
    fresh.run(args)
    assert json.loads(path.read_text()) == records
    lines = list(fresh.render(records))
    values = [record['all']['equal_gauc'] for record in records[1:3]]
    (row,) = [line.split(' | ') for line in lines if line.startswith('| all |')]
    assert row[3].startswith(f'{sum(values) / 2:.4f} ± ')
