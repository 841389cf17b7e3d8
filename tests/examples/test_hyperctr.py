import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / 'examples' / 'hyperctr.py'
SMALL = ['--epochs', '1', '--interest-epochs', '2', '--channels', '8', '--accelerator', 'cpu']


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOURCE), *SMALL, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'hyperctr.png').read_bytes()[1:4] == b'PNG'
    results = json.loads((output / 'results.json').read_text())['results']
    for model in results:
        files = {path.name for path in (output / model).iterdir()}
        assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= files
    return results


def test_synthetic_market(tmp_path: Path) -> None:
    first = run(tmp_path, '--exposures', '10000')
    assert first.returncode == 0, first.stderr
    assert (
        'synthetic: 25 users, 50 items with visual, acoustic, text, 10,000 exposures'
        in first.stdout
    )
    results = results_of(tmp_path, 'hyperctr-synthetic-seed0')
    assert results.keys() == {'without', 'visual', 'acoustic', 'text', 'HyperCTR'}
    assert len({row['auc'] for row in results.values()}) == 5
    assert f'{results["HyperCTR"]["auc"]:.4f}' in first.stdout
    # Given again, it loads what it has trained.
    again = run(tmp_path, '--exposures', '10000')
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'hyperctr-synthetic-seed0') == results


def test_tiktok(tmp_path: Path, mag_data: Path) -> None:
    (tmp_path / 'data' / 'tiktok').mkdir(parents=True)
    (tmp_path / 'data' / 'tiktok' / 'raw').symlink_to(mag_data / 'tiktok')
    done = run(tmp_path, '--dataset', 'tiktok', '--batch-size', '8192', '--layers', '1')
    assert done.returncode == 0, done.stderr
    assert '6,710 items with audio, image, 137,444 exposures, 68,722 clicks' in done.stdout
    assert 0.4 < results_of(tmp_path, 'hyperctr-tiktok-seed0')['HyperCTR']['auc'] < 1
