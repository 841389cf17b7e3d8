import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)

LOG = ('market', 'rolling')


def record(
    model: str,
    seed: int,
    purpose: str = 'run',
    rate: float = 0.01,
    loss: float = 0.5,
    **others: Any,
) -> dict[str, Any]:
    return {
        'dataset': 'market', 'protocol': 'rolling', 'model': model, 'seed': seed,
        'setting': {'learning_rate': rate}, 'purpose': purpose, 'val': {'logloss': loss}, **others,
    }  # fmt: skip


def test_a_student_waits_for_its_teacher_of_the_same_seed(tmp_path: Path) -> None:
    from accuracy.click_bench import Job, Model, Plan
    from records import Results

    models = {
        'small': Model('Small', 'models', lambda *parts: None),  # type: ignore
        'large': Model('Large', 'models', lambda *parts: None, effort=2.0),  # type: ignore
    }
    models['student'] = models['small']._replace(tuned_as='small', teacher='large')
    args = argparse.Namespace(models=list(models), seeds=2)
    results = Results(tmp_path / 'results.json')
    rates = (0.1, 0.01)
    trials = [{'learning_rate': rate} for rate in rates]
    plan = Plan(args, models, lambda dataset, name: trials, results, {LOG: 10})

    def waiting() -> list[tuple[str, int, str]]:
        return [(job.model, job.seed, job.purpose) for job in plan.ready()]

    def keep(name: str, seed: int, purpose: str, *others: float) -> None:
        made = record(name, seed, purpose, *others)
        plan.keep(Job(**{field: made[field] for field in Job._fields}), made)

    # Four trials and six runs, the large model first.
    assert waiting() == [(name, 0, 'tune') for name in ('large', 'large', 'small', 'small')]
    assert plan.num_left() == 10
    for name in ('large', 'small'):
        for rate, loss in zip(rates, (0.6, 0.5)):
            keep(name, 0, 'tune', rate, loss)
    runs = [('large', 0, 'run'), ('large', 1, 'run'), ('small', 0, 'run'), ('small', 1, 'run')]
    assert waiting() == runs and plan.num_left() == 6
    # That which is best on validation is run.
    assert {job.setting['learning_rate'] for job in plan.ready()} == {0.01}
    keep('large', 1, 'run')
    assert ('student', 1, 'run') in waiting() and ('student', 0, 'run') not in waiting()
    assert plan.num_left() == 5


def test_where_there_is_no_choice_nothing_is_tried(tmp_path: Path) -> None:
    from accuracy.click_bench import Model, Plan
    from records import Results

    models = {'small': Model('Small', 'models', lambda *parts: None)}  # type: ignore
    args = argparse.Namespace(models=['small'], seeds=2)
    results = Results(tmp_path / 'results.json')
    plan = Plan(args, models, lambda dataset, name: [{'learning_rate': 0.3}], results, {LOG: 10})
    assert [(job.seed, job.purpose) for job in plan.ready()] == [(0, 'run'), (1, 'run')]
    assert plan.num_left() == 2


def test_a_claim_holds_where_seeds_agree() -> None:
    from accuracy.click_bench import Claim, verdicts

    scores = {'ours': (0.50, 0.52), 'theirs': (0.60, 0.6201), 'others': (0.5, 0.53)}
    runs = [
        record(name, seed, test={'logloss': logloss, 'auc': 1 - logloss})
        for name, values in scores.items()
        for seed, logloss in enumerate(values)
    ]
    claims = [
        Claim('ours is ahead', 'ours', 'theirs'),
        Claim('theirs is', 'theirs', 'ours'),
        Claim('ours is better than others', 'ours', 'others'),
        Claim('nobody ran', 'ours', 'nobody'),
    ]
    # Differences of -.1 and -.1001 over two seeds: t = -.10005 / .00005, p = 2 / (pi t) = .00032.
    # Those of 0 and -.01: t = -1, p = .5.
    assert list(verdicts(claims, runs)) == [
        '- That ours is ahead holds: logloss -0.1000 (p = 0.00032), AUC +0.1000 (p = 0.00032).',
        '- That theirs is does not hold: logloss +0.1000 (p = 0.00032), AUC -0.1000 (p = 0.00032).',
        '- That ours is better than others does not hold: logloss -0.0050 (p = 0.5), '
        'AUC +0.0050 (p = 0.5).',
    ]
