import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

WIDTHS = {'user': [4, 1], 'item': [1, 4]}
Run = Callable[..., subprocess.CompletedProcess[str]]


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'srjgraph.png').read_bytes()[1:4] == b'PNG'
    for model in ('DNN', 'SRJGraph'):
        files = {path.name for path in (output / model).iterdir()}
        assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= files
    return json.loads((output / 'results.json').read_text())['results']


def test_synthetic_market(tmp_path: Path, run: Run) -> None:
    options = ['--exposures', '10000', '--epochs', '2']
    first = run('srjgraph', *options, widths=WIDTHS, batch_size=256)
    assert first.returncode == 0, first.stderr
    assert 'synthetic: 125 users, 10 items, 10,000 exposures' in first.stdout
    results = results_of(tmp_path, 'srjgraph-synthetic-seed0')
    for domains in results.values():
        assert domains.keys() == {'recommendation', 'search'}
        assert all(0.5 < row['auc'] < 1 for row in domains.values())
    assert f'{results["SRJGraph"]["search"]["auc"]:.4f}' in first.stdout
    gain = (results['SRJGraph']['search']['auc'] - 0.5) / (results['DNN']['search']['auc'] - 0.5)
    assert f'over DNN: SRJGraph {100 * (gain - 1):+.1f} %' in first.stdout
    # Given again, it loads what it has trained.
    again = run('srjgraph', *options, widths=WIDTHS, batch_size=256)
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'srjgraph-synthetic-seed0') == results


def test_trivago(tmp_path: Path, mag_data: Path, run: Run) -> None:
    raw = tmp_path / 'data' / 'trivago' / 'raw'
    raw.mkdir(parents=True)
    (raw / 'trivago').symlink_to(mag_data / 'trivago')
    widths = {'user': [2, 1], 'item': [1, 2]}
    done = run('srjgraph', '--dataset', 'trivago', '--epochs', '1', widths=widths, batch_size=8192)
    assert done.returncode == 0, done.stderr
    assert '312,539 exposures, 16,401 clicks, 151,255 of the exposures from search' in done.stdout
    results = results_of(tmp_path, 'srjgraph-trivago-seed0')
    assert results['SRJGraph']['search']['logloss'] < 0.4


@pytest.mark.parametrize(
    'num_exposures, seed, domains',
    [
        (60, 0, ['recommendation', 'search']),
        # No search is left for the test.
        (40, 1, ['recommendation']),
    ],
)
def test_a_small_log_whose_validation_has_no_auc(
    tmp_path: Path, run: Run, num_exposures: int, seed: int, domains: list[str]
) -> None:
    options = ['--exposures', str(num_exposures), '--seed', str(seed), '--epochs', '1']
    done = run('srjgraph', *options)
    assert done.returncode == 0, done.stderr
    assert 'val_auc=nan' in done.stderr
    results = results_of(tmp_path, f'srjgraph-synthetic-seed{seed}')
    for rows in results.values():
        assert list(rows) == domains
        assert all(0 < row['logloss'] < 1 for row in rows.values())
    has_none = math.isnan(results['DNN'][domains[-1]]['auc'])
    assert ('Of rows of one class there is no AUC to improve.' in done.stdout) == has_none
    assert has_none == (seed == 0)
