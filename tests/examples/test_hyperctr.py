import importlib.util
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = {'interest_epochs': 2, 'embedding_dim': 8}
Run = Callable[..., subprocess.CompletedProcess[str]]


def results_of(folder: Path, name: str) -> dict:
    output = folder / 'runs' / name
    assert (output / 'hyperctr.png').read_bytes()[1:4] == b'PNG'
    results = json.loads((output / 'results.json').read_text())['results']
    for model in results:
        files = {path.name for path in (output / model).iterdir()}
        assert {'best.ckpt', 'last.ckpt', 'metrics.csv'} <= files
    return results


def test_synthetic_market(tmp_path: Path, run: Run) -> None:
    options = ['--exposures', '20000', '--epochs', '1']
    first = run('hyperctr', *options, embedding_dim=8)
    assert first.returncode == 0, first.stderr
    assert 'synthetic: 25 users, 100 items, 20,000 exposures' in first.stdout
    assert 'modalities visual, acoustic, text' in first.stdout
    assert 0.6 < float(first.stdout.split('with an AUC of ')[1].split()[0]) < 1
    results = results_of(tmp_path, 'hyperctr-synthetic-seed0')
    assert results.keys() == {'without', 'visual', 'acoustic', 'text', 'HyperCTR'}
    assert len({row['auc'] for row in results.values()}) == 5
    assert f'{results["HyperCTR"]["auc"]:.4f}' in first.stdout
    # Given again, it loads what it has trained.
    again = run('hyperctr', *options, embedding_dim=8)
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path, 'hyperctr-synthetic-seed0') == results


def test_a_small_log(tmp_path: Path, run: Run) -> None:
    done = run('hyperctr', '--exposures', '60', '--epochs', '1', **SMALL)
    assert done.returncode == 0, done.stderr
    assert 'synthetic: 4 users, 8 items, 60 exposures' in done.stdout
    assert 0 < results_of(tmp_path, 'hyperctr-synthetic-seed0')['HyperCTR']['logloss'] < 1


def test_tiktok(tmp_path: Path, mag_data: Path, run: Run) -> None:
    (tmp_path / 'data' / 'tiktok').mkdir(parents=True)
    (tmp_path / 'data' / 'tiktok' / 'raw').symlink_to(mag_data / 'tiktok')
    small = {'batch_size': 8192, 'layers': 1, 'history': 4, **SMALL}
    done = run('hyperctr', '--dataset', 'tiktok', '--epochs', '1', **small)
    assert done.returncode == 0, done.stderr
    assert '6,710 items, 137,444 exposures, 68,722 clicks' in done.stdout
    assert 'modalities audio, image' in done.stdout
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
def test_movielens(tmp_path: Path, run: Run) -> None:
    write_movielens(tmp_path)
    options = ['--dataset', 'movielens-1m', '--epochs', '1']
    done = run('hyperctr', *options, slot_days={'movielens-1m': 10}, **SMALL)
    assert done.returncode == 0, done.stderr
    assert '30 users, 30 items, 900 exposures' in done.stdout
    assert 'clicks, 10 slots, modalities genre, text' in done.stdout
    results = results_of(tmp_path, 'hyperctr-movielens-1m-seed0')
    assert results.keys() == {'without', 'genre', 'text', 'HyperCTR'}
    assert len({row['logloss'] for row in results.values()}) == 4


def test_movielens_without_an_encoder(tmp_path: Path, run: Run) -> None:
    write_movielens(tmp_path)
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'wordllama.py').write_text('raise ImportError')
    done = run('hyperctr', '--dataset', 'movielens-1m', extra=[tmp_path / 'modules'])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith('there is none: pip install wordllama')
