import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / 'examples' / 'hyperctr.py'
SMALL = ['--epochs', '1', '--interest-epochs', '2', '--embedding-dim', '8', '--accelerator', 'cpu']


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOURCE), *SMALL, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'hyperctr.png').read_bytes()[1:4] == b'PNG'
    results = json.loads((output / 'results.json').read_text())['results']
    for model in results:
        files = {path.name for path in (output / model).iterdir()}
        assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= files
    return results


def test_synthetic_market(tmp_path: Path) -> None:
    first = run(tmp_path, '--exposures', '20000', '--interest-epochs', '10')
    assert first.returncode == 0, first.stderr
    assert (
        'synthetic: 25 users, 100 items with visual, acoustic, text, 20,000 exposures'
        in first.stdout
    )
    assert 0.6 < float(first.stdout.split('with an AUC of ')[1].split()[0]) < 1
    results = results_of(tmp_path, 'hyperctr-synthetic-seed0')
    assert results.keys() == {'without', 'visual', 'acoustic', 'text', 'HyperCTR'}
    assert len({row['auc'] for row in results.values()}) == 5
    assert f'{results["HyperCTR"]["auc"]:.4f}' in first.stdout
    # Given again, it loads what it has trained.
    again = run(tmp_path, '--exposures', '20000', '--interest-epochs', '10')
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'hyperctr-synthetic-seed0') == results


def test_tiktok(tmp_path: Path, mag_data: Path) -> None:
    (tmp_path / 'data' / 'tiktok').mkdir(parents=True)
    (tmp_path / 'data' / 'tiktok' / 'raw').symlink_to(mag_data / 'tiktok')
    done = run(tmp_path, '--dataset', 'tiktok', '--batch-size', '8192', '--layers', '1')
    assert done.returncode == 0, done.stderr
    assert '6,710 items with audio, image, 137,444 exposures, 68,722 clicks' in done.stdout
    assert 0.4 < results_of(tmp_path, 'hyperctr-tiktok-seed0')['HyperCTR']['auc'] < 1


def write_movielens(folder: Path) -> None:
    r"""Thirty users, each of whom rates thirty movies within a hundred days."""
    draw = random.Random(0)
    raw = folder / 'data' / 'movielens-1m' / 'raw'
    raw.mkdir(parents=True)
    ratings = [
        f'{user}::{movie}::{draw.randint(1, 5)}::{draw.randint(0, 100 * 24 * 3600)}'
        for user in range(1, 31)
        for movie in range(1, 31)
    ]
    (raw / 'ratings.dat').write_text('\n'.join(ratings) + '\n')
    words, genres = ['Dog', 'War', 'Love', 'Ship', 'Night'], ['Comedy', 'Drama', 'War|Horror']
    movies = [
        f'{movie}::{" ".join(draw.sample(words, 2))} (1995)::{draw.choice(genres)}'
        for movie in range(1, 31)
    ]
    (raw / 'movies.dat').write_text('\n'.join(movies) + '\n')
    users = [f'{user}::M::25::1::00000' for user in range(1, 31)]
    (raw / 'users.dat').write_text('\n'.join(users) + '\n')


@pytest.mark.skipif(
    importlib.util.find_spec('wordllama') is None,
    reason="the titles are read by an encoder: 'pip install pyg-mag[text]'",
)
def test_movielens(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    done = run(tmp_path, '--dataset', 'movielens-1m', '--slot-days', '10')
    assert done.returncode == 0, done.stderr
    assert '30 users, 30 items with genre, text, 900 exposures' in done.stdout
    assert done.stdout.split('clicks in ')[1].startswith('10 slots')
    results = results_of(tmp_path, 'hyperctr-movielens-1m-seed0')
    assert results.keys() == {'without', 'genre', 'text', 'HyperCTR'}
    assert len({row['logloss'] for row in results.values()}) == 4


def test_movielens_without_an_encoder(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'wordllama.py').write_text('raise ImportError')
    variables = {'PYTHONPATH': str(tmp_path / 'modules')}
    done = run(tmp_path, '--dataset', 'movielens-1m', **variables)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith('there is none: pip install wordllama')
