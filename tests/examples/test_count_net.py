import json
import subprocess
from collections.abc import Callable
from pathlib import Path

COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked', 'category=kind']
SMALL = {'user_clusters': [4], 'item_groups': ['category'], 'windows': 3, 'recent': 5}
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_both_models_on_own_clicks(log: Path, tmp_path: Path, run: Run) -> None:
    arguments = ['--dataset', 'event-log', '--path', str(log), '--columns', *COLUMNS]
    arguments += ['--epochs', '8']
    first = run('count_net', *arguments, batch_size=64, **SMALL)
    assert first.returncode == 0, first.stderr
    assert '60 users, 40 items, 4,000 exposures' in first.stdout
    assert 'seed 0' in first.stdout
    output = tmp_path / 'runs' / 'count_net-event-log-seed0'
    results = json.loads((output / 'results.json').read_text())
    assert results['arguments']['user_clusters'] == [4]
    for name in ('MacGNN', 'CountNet, stale counts', 'CountNet, fresh counts'):
        row = results['results'][name]
        assert row['auc'] > 0.8
        # A click is as likely as not.
        assert row['logloss'] < 0.6
        assert f'{row["auc"]:.4f}' in first.stdout
    stale, fresh = (results['results'][f'CountNet, {name} counts'] for name in ('stale', 'fresh'))
    assert stale != fresh
    assert (output / 'count_net.png').read_bytes()[1:4] == b'PNG'
    for name in ('count_net', 'macgnn'):
        assert (output / name / 'best.ckpt').exists()

    # Finished runs are scored again, not trained again.
    again = run('count_net', *arguments, batch_size=64, **SMALL)
    assert again.returncode == 0, again.stderr
    assert json.loads((output / 'results.json').read_text()) == results
