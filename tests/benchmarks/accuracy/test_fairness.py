import argparse
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mag.schema import CLICKS, SEES

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def test_runs_tables_and_draws(
    arguments: Callable[..., argparse.Namespace], market: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip('matplotlib')
    from accuracy import count_data, counts, fairness

    monkeypatch.setattr(counts, 'LEARNING_RATES', (1e-2,))
    monkeypatch.setattr(counts, 'WEIGHT_DECAYS', {market: (5e-5,)})
    args = arguments(
        market, ['count_net', 'no_macro_nodes', 'wide_deep'], batch_size=256, settings=[], jobs=1
    )
    fairness.run(args)
    records: list[dict[str, Any]] = json.loads(Path(args.out).read_text())
    runs = [record for record in records if record['purpose'] == 'run']
    assert {(run['model'], run['seed']) for run in runs} == {
        (name, seed) for name in args.models for seed in range(2)
    }
    parts = count_data.make_parts(market, 'rolling', '')
    # All that the tenths are made by is older than the first row that anything is measured on.
    assert int(parts.val[SEES].time.max()) < int(parts.val[CLICKS].edge_label_time.min())
    shown = parts.val[SEES].edge_index[1].bincount(minlength=parts.test['item'].num_nodes)
    scored = shown[parts.test[CLICKS].edge_label_index[1]]
    for run in runs:
        for part in ('test', 'fresh') if run['model'] != 'wide_deep' else ('test',):
            groups = run[part]['audit']['item']
            assert sum(group['rows'] for group in groups) == scored.numel()
            assert sum(group['score_share'] for group in groups) == pytest.approx(1)
            for group in groups:
                is_in = (scored >= group['least']) & (scored <= group['most'])
                assert group['rows'] == int(is_in.sum())

    lines = list(fairness.render(records))
    (first, *_) = (line for line in lines if line.startswith('| 1 | '))
    ratio = [run['test']['audit']['item'][0]['score_by_clicks'] for run in runs[:2]]
    assert f'| {sum(ratio) / 2:.3f} / ' in first
    assert sum('favors popular items' in line for line in lines) == 2
    assert sum('favors active users' in line for line in lines) == 2
    fairness.draw(records, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def run_of(model: str, seed: int, *ratios: float | None) -> dict[str, Any]:
    groups = [
        {'number': number, 'score_by_clicks': ratio, 'auc': 0.5 + 0.01 * number}
        for number, ratio in enumerate(ratios, start=1)
    ]
    return {'model': model, 'seed': seed, 'test': {'audit': {'item': groups}}}


def test_favor_is_the_slope_of_the_logarithm() -> None:
    from accuracy import fairness

    run = run_of('count_net', 0, 0.5, 1, None, 4)
    assert fairness.slope('item', fairness.favor, run) == pytest.approx(math.log(2))
    assert fairness.slope('item', fairness.auc, run) == pytest.approx(0.01)
    assert fairness.slope('item', fairness.favor, run_of('count_net', 0, 0.5, None, 0)) is None


def test_claims_need_a_difference_that_seeds_do_not_explain() -> None:
    from accuracy import fairness

    flat = [run_of('no_counts', seed, 1, 1 + 0.01 * seed) for seed in range(3)]
    steep = [run_of('count_net', seed, 1, 1.5 + 0.02 * seed) for seed in range(3)]
    (line,) = fairness.claims('item', [*flat, *steep])
    expected = sum(math.log((1.5 + 0.02 * seed) / (1 + 0.01 * seed)) for seed in range(3)) / 3
    assert line.startswith('CountNet favors popular items more than CountNet w/o counts (ids alone')
    assert f' {expected:+.4f} (p = ' in line
    noisy = [run_of('count_net', seed, 1, (0.5, 2, 1.01)[seed]) for seed in range(3)]
    (line,) = fairness.claims('item', [*flat, *noisy])
    assert 'favors popular items neither more nor less than' in line
    (line,) = fairness.claims(
        'item', [*flat, *(run_of('count_net', seed, 1.5, 1 + 0.02 * seed) for seed in range(3))]
    )
    assert 'favors popular items less than' in line
