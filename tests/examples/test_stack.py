import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked', 'category=kind']
SMALL = {
    'user_clusters': [4],
    'item_groups': ['category'],
    'windows': 3,
    'recent': 5,
    'simcen': {'hidden_channels': [48]},
    'text_encoder': {'channels': 8, 'num_layers': 1, 'num_heads': 1, 'hidden_channels': 8},
    'pretraining_epochs': 1,
    'batch_size': 256,
    'learning_rate': 2e-2,
    'average': 0.8,
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize('branches', [['counts', 'flip'], ['simcen', 'macgnn']])
def test_stacks_of_own_clicks(log: Path, tmp_path: Path, run: Run, branches: Sequence[str]) -> None:
    arguments = ['--dataset', 'event-log', '--path', str(log), '--columns', *COLUMNS]
    arguments += ['--epochs', '5']
    first = run('stack', *arguments, branches=branches, **SMALL)
    assert first.returncode == 0, first.stderr
    assert '60 users, 40 items, 4,000 exposures' in first.stdout
    output = tmp_path / 'runs' / 'stack-event-log-seed0'
    results = json.loads((output / 'results.json').read_text())['results']
    smallest = branches[0]
    assert list(results) == [
        *branches, '+'.join(branches), f'{smallest}-untaught', f'{smallest}-taught'
    ]  # fmt: skip
    for name, row in results.items():
        assert f'{row["auc"]:.4f}' in first.stdout and row['milliseconds'] > 0
        assert (output / name / 'best.ckpt').exists()
    assert len({row['logloss'] for row in results.values()}) == 5
    if 'counts' in branches:
        # Who clicks what is planted.
        assert results['+'.join(branches)]['auc'] > 0.7, results
    assert (output / 'pretraining' / 'best.ckpt').exists() == ('flip' in branches)
    assert (output / 'stack.png').read_bytes()[1:4] == b'PNG'
    if 'flip' not in branches:
        # Finished runs are scored again, not trained again.
        again = run('stack', *arguments, branches=branches, **SMALL)
        assert again.returncode == 0, again.stderr
        scored = json.loads((output / 'results.json').read_text())['results']
        for name, row in scored.items():
            del row['milliseconds'], results[name]['milliseconds']
        assert scored == results
