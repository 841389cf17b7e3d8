import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from accuracy import counts

    monkeypatch.setattr(counts, 'LEARNING_RATES', (1e-2, 1e-4))
    monkeypatch.setattr(counts, 'WEIGHT_DECAYS', {'market': (5e-5,)})
    return counts


@pytest.fixture
def make_arguments(
    arguments: Callable[..., argparse.Namespace],
) -> Callable[..., argparse.Namespace]:
    def make(dataset: str, models: list[str], **others: object) -> argparse.Namespace:
        defaults = {'batch_size': 256, 'protocol': ['rolling', 'window'], 'jobs': 1}
        return arguments(dataset, models, **{**defaults, **others})

    return make


def read(path: str | Path) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text())


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    r"""What does not depend on when a run was made, and how fast."""
    return {name: value for name, value in record.items() if name not in ('cost', 'date')}


def test_tunes_runs_and_tables(
    make_arguments: Callable[..., argparse.Namespace], counts: ModuleType, market: str
) -> None:
    args = make_arguments(market, ['count_net', 'wide_deep', 'macgnn_counts', 'no_user'])
    counts.run(args)
    records = read(args.out)
    tuned = [record for record in records if record['purpose'] == 'tune']
    runs = [record for record in records if record['purpose'] == 'run']
    # An ablation is not tuned, and the market has no protocol but rolling windows.
    assert len(tuned) == 3 * 2 and len(runs) == 4 * 2
    assert {record['protocol'] for record in records} == {'rolling'}
    # The test part is not looked at before the choice.
    assert not any({'test', 'fresh'} & record.keys() for record in tuned)
    chosen = {}
    for name in args.models:
        trials = [one for one in tuned if one['model'] == name] or chosen['count_net']
        best = min(trials, key=lambda record: record['val']['logloss'])
        chosen[name] = [best]
        of_model = [record for record in runs if record['model'] == name]
        assert [record['setting'] for record in of_model] == [best['setting']] * 2
        # Only counts can be fresh.
        assert ['fresh' in record for record in of_model] == [name != 'wide_deep'] * 2
    assert {record['optimum']['auc'] for record in runs} == {runs[0]['optimum']['auc']}

    lines = list(counts.render(records))
    rows = {line.split(' | ')[0]: line.split(' | ') for line in lines if line.startswith('| ')}
    assert '| MacGNN + counts' in rows and '| w/o counts of user' in rows
    values = [record['test']['auc'] for record in runs if record['model'] == 'wide_deep']
    assert rows['| Wide & Deep'][1].startswith(f'{sum(values) / 2:.4f} ± ')
    assert rows['| whoever knows the truth'][1] == f'{runs[0]["optimum"]["auc"]:.4f}'


def test_processes_go_on_where_one_stopped(
    make_arguments: Callable[..., argparse.Namespace], counts: ModuleType, market: str
) -> None:
    from accuracy.click_bench import key_of

    args = make_arguments(market, ['count_net', 'deepfm_counts'])
    counts.run(args)
    whole = read(args.out)
    left = [record for record in whole if record['model'] == 'count_net'][:3]
    Path(args.out).write_text(json.dumps(left))
    args.jobs = 2
    counts.run(args)
    resumed = read(args.out)
    assert resumed[:3] == left
    by_key = sorted(map(numbers, resumed), key=key_of)
    assert by_key == sorted(map(numbers, whole), key=key_of)
    counts.run(args)
    assert read(args.out) == resumed

    args.patience = 7
    with pytest.raises(ValueError, match="has runs with .*'patience': 2.*'patience': 7"):
        counts.run(args)


def test_a_table_row_worked_out_by_hand(counts: ModuleType) -> None:
    def record(model: str, seed: int, auc: float, **others: Any) -> dict[str, Any]:
        return {
            'dataset': 'kuairand', 'protocol': 'rolling', 'model': model, 'seed': seed,
            'setting': {'learning_rate': 0.01, 'weight_decay': 1e-5}, 'purpose': 'run',
            'rows': [1000, 20, 30], 'cost': {'seconds': 4.0, 'epochs': 2.0},
            'val': {'logloss': 0.6}, 'test': {'auc': auc, 'gauc': 0.5, 'logloss': 0.7},
            'command': 'python', 'date': '2020-01-01', 'packages': {'torch': '2'}, **others,
        }  # fmt: skip

    fresh = [{'auc': auc, 'gauc': auc / 3, 'logloss': 1 - auc} for auc in (0.8, 0.75)]
    records = [
        record('count_net', 0, 0.7, fresh=fresh[0], optimum={'auc': 0.9, 'logloss': 0.4}),
        record('count_net', 1, 0.6, fresh=fresh[1], optimum={'auc': 0.9, 'logloss': 0.4}),
        record('din', 0, 0.5),
        record('din', 1, 0.5),
        record('deepfm', 0, 0.4),
        record('deepfm', 1, 0.4),
    ]
    lines = list(counts.render(records))
    # The differences of DIN are -0.2 and -0.1: t = -0.15 / (0.0707 / sqrt(2)) = -3, and with one
    # degree of freedom p = 1 - 2 arctan(3) / pi = 0.20.
    assert (
        '| DIN | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 | 0.7000 ± 0.0000 | -0.1500 (p = 0.2) |  |  '
        '| 0.6000 ± 0.0000 | 0.01, 1e-05 | 2.0 | 4 | 500 | 2 |'
    ) in lines
    text = '\n'.join(lines)
    assert (
        '- Of models as they are, DIN has the highest AUC, 0.5000, and that of CountNet is ' in text
    )
    assert '+0.1500 (p = 0.2)' in text and '0.2500 AUC more than CountNet' in text
    assert 'Served with fresh counts, CountNet gains AUC +0.1250' in text


def test_a_file_of_parts_is_made_anew_by_other_code(
    tmp_path: Path, market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import count_data

    def save() -> tuple[Path, int]:
        path = count_data.save_parts(market, 'rolling', '', str(tmp_path))
        return path, path.stat().st_mtime_ns

    first = save()
    assert save() == first
    monkeypatch.setattr(count_data, 'sources', lambda: 'others')
    assert save()[1] > first[1]
    parts = count_data.load_parts(first[0])
    made = count_data.make_parts(market, 'rolling', '')
    clicks = ('user', 'clicks', 'item')
    for name in ('train', 'val', 'test'):
        read, same = getattr(parts, name)[clicks], getattr(made, name)[clicks]
        assert read.edge_label_counts.equal(same.edge_label_counts)
        assert read.count_prior == same.count_prior and read.count_names == same.count_names
    assert parts.fresh.equal(made.fresh) and parts.optimum == made.optimum
    # Fresh counts hold at least what stale ones do.
    stale = parts.test[clicks].edge_label_counts[:, :1, 0]
    assert (parts.fresh[:, :1, 0] >= stale).all() and (parts.fresh[:, :1, 0] > stale).any()


def test_columns_are_left_out_with_their_kind(market: str) -> None:
    from accuracy import count_data, counts
    from accuracy.click_bench import parts_of

    clicks = ('user', 'clicks', 'item')
    parts = count_data.make_parts(market, 'rolling', '')
    names = parts.train[clicks].count_names
    # Two ids, two and two of them with macro nodes of the other, and four pairs of these; each of
    # all time and with two half-lives.
    assert len(names) == 3 * (2 + 2 + 2 + 4) == parts.fresh.size(1)
    assert {count_data.kind(name) for name in names} == set(counts.KINDS.values())

    given = parts_of(counts.MODELS['count_net'], parts)['train'][clicks]
    assert given.edge_label_counts.shape[1:] == (10, 2)
    assert not any('half-life' in name for name in given.count_names)
    user, item = given.count_names.index('user'), given.count_names.index('item')
    expected = [
        user if name.startswith('user x') else item if name.endswith('x item') else -1
        for name in given.count_names
    ]
    assert given.count_prior == expected

    given = parts_of(counts.MODELS['no_user'], parts)['test'][clicks]
    assert 'user' not in given.count_names and len(given.count_names) == 9
    # What expected the rate of the user expects that of all exposures.
    assert given.count_prior[given.count_names.index('user x item_cluster')] == -1
    kept = [names.index(name) for name in given.count_names]
    assert given.edge_label_counts.equal(parts.test[clicks].edge_label_counts[:, kept])

    given = parts_of(counts.MODELS['no_exposures'], parts)['fresh'][clicks].edge_label_counts
    assert given[..., 0].equal(given[..., 1]) and given[:, :2, 1].equal(parts.fresh[:, [0, 3], 1])

    one = parts_of(counts.MODELS['one_resolution'], parts)['train'][clicks].count_names
    assert len(one) == 5
    windows = parts_of(counts.MODELS['windows'], parts)['train'][clicks].edge_label_counts
    assert windows[:, 0].equal(parts.windows[:, 0])
    assert 'edge_label_counts' not in parts_of(counts.MODELS['din'], parts)['val'][clicks]


def test_what_fails_stops_no_other_run() -> None:
    from accuracy.jobs import run_jobs

    done: dict[int, float] = {}

    def run(job: int) -> dict[str, float]:
        return {'value': 1 / job}

    def keep(job: int, record: dict[str, float]) -> None:
        done[job] = record['value']

    def ready() -> list[int]:
        # The last one waits for the first one.
        return [job for job in (0, 1, 2) if job not in done] + [4] * (1 in done and 4 not in done)

    with pytest.raises(RuntimeError, match=r'1 runs failed: \[0\]\.'):
        run_jobs(ready, run, keep, num_processes=1, threads=torch.get_num_threads(), total=4)
    assert done == {1: 1.0, 2: 0.5, 4: 0.25}
