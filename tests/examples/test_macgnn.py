import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / 'examples' / 'macgnn.py'
COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked', 'category=kind']
SMALL = {'user_clusters': 4, 'windows': 3, 'recent': 5}
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_own_clicks(log: Path, tmp_path: Path, run: Run) -> None:
    arguments = ['--dataset', 'event-log', '--path', str(log), '--columns', *COLUMNS]
    arguments += ['--epochs', '8']
    first = run('macgnn', *arguments, batch_size=64, **SMALL)
    assert first.returncode == 0, first.stderr
    assert '60 users, 40 items, 4,000 exposures' in first.stdout
    output = tmp_path / 'runs' / 'macgnn-event-log-seed0'
    results = json.loads((output / 'results.json').read_text())
    assert results['arguments']['user_clusters'] == 4
    assert results['results']['test']['rows'] == 400
    assert results['results']['test']['auc'] > 0.8
    assert f'{results["results"]["test"]["auc"]:.4f}' in first.stdout
    assert (output / 'macgnn.png').read_bytes()[1:4] == b'PNG'
    assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= {path.name for path in output.iterdir()}

    # A finished run is scored again, not trained again.
    again = run('macgnn', *arguments, batch_size=64, **SMALL)
    assert again.returncode == 0, again.stderr
    assert json.loads((output / 'results.json').read_text()) == results

    # Results of other settings are never those of this run.
    other = run('macgnn', *arguments, batch_size=64, **{**SMALL, 'windows': 1})
    assert other.returncode != 0
    assert 'started with other settings' in other.stderr


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (['--dataset', 'event-log'], 'needs --path and --columns'),
        (
            ['--dataset', 'event-log', '--path', 'a.csv', '--columns', 'user'],
            '--columns takes pairs such as user=uid, but got user',
        ),
        (['--dataset', 'nothing'], 'invalid choice'),
    ],
)
def test_bad_arguments(tmp_path: Path, run: Run, arguments: list[str], sentence: str) -> None:
    done = run('macgnn', *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not list(tmp_path.iterdir())


def test_simulated_clicks(tmp_path: Path) -> None:
    r"""As the documentation calls it."""
    command = [sys.executable, str(SOURCE), '--dataset', 'synthetic', '--epochs', '1']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '2,000 users, 1,000 items, 200,000 exposures' in done.stdout
    output = tmp_path / 'runs' / 'macgnn-synthetic-seed0'
    assert json.loads((output / 'results.json').read_text())['results']['test']['auc'] > 0.6
    assert (output / 'macgnn.png').read_bytes()[1:4] == b'PNG'
