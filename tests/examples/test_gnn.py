import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked']
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.sparse
def test_own_clicks(log: Path, tmp_path: Path, run: Run) -> None:
    arguments = ['--dataset', 'event-log', '--path', str(log), '--columns', *COLUMNS]
    settings = {'windows': 3, 'batch_size': 64, 'channels': 16, 'learning_rate': 1e-2}
    done = run('gnn', *arguments, '--epochs', '8', **settings)
    assert done.returncode == 0, done.stderr
    assert '60 users, 40 items, 4,000 exposures' in done.stdout
    output = tmp_path / 'runs' / 'gnn-event-log-seed0'
    results = json.loads((output / 'results.json').read_text())['results']
    # Who clicks what is planted.
    assert results['test']['auc'] > 0.8
    assert f'{results["test"]["auc"]:.4f}' in done.stdout
