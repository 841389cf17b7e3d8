import json
import subprocess
from collections.abc import Callable
from pathlib import Path

COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked', 'category=kind']
SMALL = {
    'simcen': {'hidden_channels': [24, 24]},
    'cross_network': {'num_crosses': 1, 'hidden_channels': [16]},
    'learning_rate': 1e-2,
}
MODELS = ('SimCEN', 'without contrast', 'without views', 'cross network')
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_views_and_contrast_on_own_clicks(log: Path, tmp_path: Path, run: Run) -> None:
    arguments = ['--dataset', 'event-log', '--path', str(log), '--columns', *COLUMNS]
    arguments += ['--epochs', '6']
    first = run('simcen', *arguments, batch_size=128, **SMALL)
    assert first.returncode == 0, first.stderr
    assert '60 users, 40 items, 4,000 exposures' in first.stdout
    assert 'seed 0' in first.stdout
    output = tmp_path / 'runs' / 'simcen-event-log-seed0'
    results = json.loads((output / 'results.json').read_text())
    assert results['arguments']['simcen'] == SMALL['simcen']
    for name in MODELS:
        row = results['results'][name]
        # Who clicks what is a product of the two.
        assert row['auc'] > 0.8, name
        assert f'{row["auc"]:.4f}' in first.stdout
        assert f'{name}, validation' in results['results']
        assert (output / name.replace(' ', '_') / 'best.ckpt').exists()
    assert results['results']['SimCEN'] != results['results']['without contrast']
    assert (output / 'simcen.png').read_bytes()[1:4] == b'PNG'

    # Finished runs are scored again, not trained again.
    again = run('simcen', *arguments, batch_size=128, **SMALL)
    assert again.returncode == 0, again.stderr
    assert json.loads((output / 'results.json').read_text()) == results
