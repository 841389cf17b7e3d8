import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / 'examples' / 'srjgraph.py'
SMALL = ['--epochs', '2', '--batch-size', '256', '--accelerator', 'cpu', '--user-widths', '4', '1']


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOURCE), *SMALL, '--item-widths', '1', '4', *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'srjgraph.png').read_bytes()[1:4] == b'PNG'
    for model in ('DNN', 'SRJGraph'):
        files = {path.name for path in (output / model).iterdir()}
        assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= files
    return json.loads((output / 'results.json').read_text())['results']


def test_synthetic_market(tmp_path: Path) -> None:
    first = run(tmp_path, '--exposures', '10000')
    assert first.returncode == 0, first.stderr
    assert 'synthetic: 125 users, 10 items, 10,000 exposures' in first.stdout
    results = results_of(tmp_path, 'srjgraph-synthetic-seed0')
    for domains in results.values():
        assert domains.keys() == {'recommendation', 'search'}
        assert all(0.5 < row['auc'] < 1 for row in domains.values())
    assert f'{results["SRJGraph"]["search"]["auc"]:.4f}' in first.stdout
    # Given again, it loads what it has trained.
    again = run(tmp_path, '--exposures', '10000')
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'srjgraph-synthetic-seed0') == results


def test_trivago(tmp_path: Path, mag_data: Path) -> None:
    raw = tmp_path / 'data' / 'trivago' / 'raw'
    raw.mkdir(parents=True)
    (raw / 'trivago').symlink_to(mag_data / 'trivago')
    done = run(tmp_path, '--dataset', 'trivago', '--epochs', '1', '--batch-size', '8192')
    assert done.returncode == 0, done.stderr
    assert '312,539 exposures, 151,255 of them from search, 16,401 clicks' in done.stdout
    results = results_of(tmp_path, 'srjgraph-trivago-seed0')
    assert results['SRJGraph']['search']['logloss'] < 0.4
