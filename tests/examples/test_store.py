import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / 'examples' / 'store.py'
SMALL = {'user_clusters': 4, 'item_clusters': 3, 'windows': 3, 'recent': 5, 'batch_size': 64}
Run = Callable[..., subprocess.CompletedProcess[str]]


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / 'results.json').read_text())


def described(log: Path, folder: Path) -> str:
    r"""The file that describes the log of the examples."""
    path = folder / 'own.yaml'
    path.write_text(
        f'path: {log}\n'
        'columns: {user: who, item: what, time: when, label: clicked, item_attributes: [kind]}\n'
    )
    return str(path)


def test_own_clicks(log: Path, tmp_path: Path, run: Run) -> None:
    arguments = ['--schema', described(log, tmp_path), '--epochs', '8']
    first = run('store', *arguments, **SMALL)
    assert first.returncode == 0, first.stderr
    output = tmp_path / 'runs' / 'store-own-seed0'
    results = read(output)
    manifest = json.loads((output / 'store' / 'manifest.json').read_text())
    assert manifest['num_nodes'] == {'user': 60, 'item': 40} and manifest['counts'] == 'log'
    assert [of['name'] for of in manifest['resolutions']] == ['user', 'item', 'item_3']
    for name in ('CountNet', 'MacGNN'):
        row = results['results'][name]
        assert row['rows'] == 400 and row['auc'] > 0.8
        assert f'{row["auc"]:.4f}' in first.stdout
        assert (output / name / 'best.ckpt').exists()

    # The store is opened again, and finished runs are scored again.
    again = run('store', *arguments, **SMALL)
    assert again.returncode == 0, again.stderr
    assert read(output) == results


def test_a_log_that_is_made_is_written_once(tmp_path: Path, run: Run) -> None:
    output = tmp_path / 'runs' / 'store-synthetic-seed0'
    times = []
    for _ in range(2):
        done = run('store', '--dataset', 'synthetic', '--epochs', '1', windows=1, batch_size=8192)
        assert done.returncode == 0, done.stderr
        times.append((output / 'log.parquet').stat().st_mtime_ns)
    assert times[0] == times[1] and read(output)['results']['CountNet']['auc'] > 0.6


def test_two_processes(log: Path, tmp_path: Path) -> None:
    r"""As the documentation calls it."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [
        *torchrun,
        '--nproc_per_node',
        '2',
        str(SOURCE),
        '--schema',
        described(log, tmp_path),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # One of them tells the results, which are those of all rows.
    assert done.stdout.count('test rows') == 1
    results = read(tmp_path / 'runs' / 'store-own-seed0')['results']
    assert results['CountNet']['auc'] > 0.8
    for row in results.values():
        assert row['rows'] == 400
        assert f'{row["auc"]:.4f}' in done.stdout
