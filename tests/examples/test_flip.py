import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {'text_encoder': {'channels': 16, 'hidden_channels': 16, 'num_heads': 2}, 'batch_size': 256}


def write_movielens(folder: Path) -> None:
    r"""Thirty users, each of whom rates thirty movies within a hundred days."""
    generator = random.Random(0)
    folder.mkdir(parents=True)
    names = [f'Movie {movie} (19{70 + movie % 20})' for movie in range(1, 31)]
    flags = ['|'.join('1' if place == movie % 5 + 1 else '0' for place in range(19))
             for movie in range(1, 31)]  # fmt: skip
    movies = [f'{movie}|{name}|||url|{of}' for movie, (name, of) in enumerate(zip(names, flags), 1)]
    (folder / 'u.item').write_text('\n'.join(movies), encoding='latin-1')
    users = [
        f'{user}|{20 + user}|{"MF"[user % 2]}|artist|{10000 + user % 7}' for user in range(1, 31)
    ]
    (folder / 'u.user').write_text('\n'.join(users))
    rows = [
        f'{user}\t{movie}\t{5 if user % 5 == movie % 5 else generator.choice([2, 3, 5])}'
        f'\t{generator.randrange(100 * 24 * 3600)}'
        for user in range(1, 31)
        for movie in range(1, 31)
    ]
    (folder / 'u.data').write_text('\n'.join(rows))


def test_movielens(tmp_path: Path, run: Run) -> None:
    write_movielens(tmp_path / 'data' / 'movielens-100k' / 'raw')
    options = ['--epochs', '1', '--pretraining-epochs', '1']
    first = run('flip', *options, **SMALL)
    assert first.returncode == 0, first.stderr
    assert '30 users, 30 items, 900 exposures' in first.stdout
    assert 'An exposure: user is ' in first.stdout and ' item title is movie ' in first.stdout
    output = tmp_path / 'runs' / 'flip-movielens-100k-seed0'
    results = json.loads((output / 'results.json').read_text())['results']
    models = ['from scratch', 'FLIP, ids alone', 'FLIP, text alone', 'FLIP']
    assert list(results)[:4] == models
    for name in models:
        assert 0 < results[name]['logloss'] < 1.5
        assert f'{results[name]["auc"]:.4f}' in first.stdout
    losses = ('instance_contrast', 'masked_id', 'masked_token')
    assert abs(results['alignment']['loss'] - sum(results['alignment'][x] for x in losses)) < 1e-6
    # Each of the eight fields, from what there is.
    fields = {'user', 'user_age', 'user_gender', 'user_occupation', 'user_zip', 'item',
              'item_title', 'item_genres'}  # fmt: skip
    assert set(results['other ids']) == set(results['both, and its own words']) == fields
    # All are artists.
    assert results['the most common value']['user_occupation'] == 1
    assert (output / 'flip.png').read_bytes()[1:4] == b'PNG'
    for name in ('alignment', 'from-scratch', 'flip-ids-alone', 'flip-text-alone', 'flip'):
        assert (output / name / 'best.ckpt').exists()

    # Finished runs are scored again, not trained again.
    again = run('flip', *options, **SMALL)
    assert again.returncode == 0, again.stderr
    assert json.loads((output / 'results.json').read_text())['results'] == results
