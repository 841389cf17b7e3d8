import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'gmcm.png').read_bytes()[1:4] == b'PNG'
    assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= {path.name for path in output.iterdir()}
    return json.loads((output / 'results.json').read_text())


def test_synthetic_market(tmp_path: Path, run: Run) -> None:
    options = ['--exposures', '20000', '--epochs', '3']
    first = run('gmcm', *options, num_buckets=2000, batch_size=512)
    assert first.returncode == 0, first.stderr
    assert 'synthetic: 200 users, 100 items, 20,000 exposures' in first.stdout
    found = results_of(tmp_path, 'gmcm-synthetic-graph-ipw-seed0')
    assert (found['arguments']['epochs'], found['arguments']['num_buckets']) == (3, 2000)
    results = found['results']
    assert results['test']['rows'] == 2_000
    assert results['test']['ctcvr_auc'] > 0.7
    assert f'{results["test"]["ctcvr_auc"]:.4f}' in first.stdout
    # A constant would be .02 to .03 from the truth.
    assert 0 < results['truth']['over all exposures'] < 0.05
    assert f'{results["truth"]["over all exposures"]:.4f} over all exposures' in first.stdout
    # Given again, it loads what it has trained.
    again = run('gmcm', *options, num_buckets=2000, batch_size=512)
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'gmcm-synthetic-graph-ipw-seed0')['results'] == results


def test_without_a_graph(tmp_path: Path, run: Run) -> None:
    options = ['--exposures', '6000', '--epochs', '1', '--loss', 'esmm']
    done = run('gmcm', *options, num_buckets=2000, merge='none')
    assert done.returncode == 0, done.stderr
    results_of(tmp_path, 'gmcm-synthetic-none-esmm-seed0')


def test_a_small_log_whose_validation_has_no_conversion(tmp_path: Path, run: Run) -> None:
    done = run('gmcm', '--exposures', '60', '--epochs', '1', num_buckets=200)
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path, 'gmcm-synthetic-graph-ipw-seed0')['results']
    assert math.isnan(results['validation']['ctcvr_auc'])
    assert 0 < results['test']['logloss'] < 1


@pytest.mark.parametrize(
    ('name', 'release', 'described'),
    [
        ('kuairand', 'KuaiRand-Pure', '222,444 exposures, 100,008 clicks, 70,234 conversions'),
        ('trivago', 'trivago', '312,539 exposures, 16,401 clicks, 13,596 conversions'),
    ],
)
def test_real_logs(
    tmp_path: Path, mag_data: Path, run: Run, name: str, release: str, described: str
) -> None:
    raw = tmp_path / 'data' / name / 'raw'
    raw.mkdir(parents=True)
    (raw / release).symlink_to(mag_data / release)
    small = {'num_buckets': 2000, 'tower_channels': [64, 16], 'batch_size': 4096}
    done = run('gmcm', '--dataset', name, '--epochs', '1', **small)
    assert done.returncode == 0, done.stderr
    assert described in done.stdout
    results = results_of(tmp_path, f'gmcm-{name}-graph-ipw-seed0')['results']
    assert 0.5 < results['test']['ctcvr_auc'] < 1
    assert 'truth' not in results
