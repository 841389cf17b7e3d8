import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / 'benchmarks'
NUM_RECENT = 20


@pytest.fixture
def reference():
    for name in ('pandas', 'sklearn'):
        pytest.importorskip(name, reason="the reference needs 'pip install pyg-mag[benchmarks]'")
    from speed import reference_coarsening

    return reference_coarsening


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    r"""A log in MovieLens-1M's layout: distinct times, some pairs rated twice, ids with gaps."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp('movielens')
    num_ratings = 6000
    user = generator.integers(0, 70, num_ratings) ** 2 // 70 * 3 + 1
    item = generator.integers(0, 90, num_ratings) ** 2 // 90 * 2 + 5
    rating = generator.integers(1, 6, num_ratings)
    time = generator.permutation(num_ratings) * 7 + 1000
    lines = [f'{u}::{i}::{r}::{t}\n' for u, i, r, t in zip(user, item, rating, time)]
    (folder / 'ratings.dat').write_text(''.join(lines), encoding='latin-1')
    genres = ['Drama|War', 'Comedy', 'Action|Comedy|War', 'War', "Children's|Drama"]
    movies = [f'{i}::Movie {i} (19{i % 90 + 10})::{genres[i % 5]}\n' for i in range(1, 200)]
    (folder / 'movies.dat').write_text(''.join(movies), encoding='latin-1')
    users = [f'{u}::F::25::{u % 5}::00000\n' for u in np.unique(user)]
    (folder / 'users.dat').write_text(''.join(users), encoding='latin-1')
    return folder


@pytest.fixture
def macro_parts(folder):
    from speed import mag_coarsening
    from timing import Stages

    data = mag_coarsening.read_movie_lens(folder)
    groups = {'user': 4, 'item': 'category'}
    train, _, test = mag_coarsening.coarsen(Stages(), data, groups, 0.8, num_windows=1)
    return {'train': train, 'test': test}


def reference_rows(reference, folder, part, user_ids, monkeypatch):
    r"""The reference's rows, with mag's user clusters in place of its own."""
    from timing import Stages

    def mag_clusters(matrix, category_of_item, num_clusters):
        cluster = np.zeros(matrix.shape[0], dtype=int)
        cluster[user_ids] = part['user'].cluster.clamp(min=0)
        return cluster

    monkeypatch.setattr(reference, 'cluster_users', mag_clusters)
    return reference.run(folder, Stages(), num_clusters=4)


def expected_row(batch, row, ids, category_order):
    r"""A row of mag's batch in the reference's layout: raw ids, a padding category, zeros last."""

    def recent(nodes, node_type):
        known = ids[node_type][nodes[nodes >= 0]].tolist()
        return known + [0] * (NUM_RECENT - len(known))

    def by_category(counts):
        return [0, *counts[category_order].tolist()]

    return [
        ids['user'][batch.user[row]],
        *by_category(batch.user_hops[0][row]),
        *batch.user_hops[1][row].tolist(),
        *recent(batch.user_recent[row], 'item'),
        ids['item'][batch.item[row]],
        *batch.item_hops[0][row].tolist(),
        *by_category(batch.item_hops[1][row]),
        *recent(batch.item_recent[row], 'user'),
        batch.label[row].item(),
    ]


@pytest.mark.parametrize('name', ['train', 'test'])
def test_mag_and_reference_agree_on_every_row(
    name, folder, reference, macro_parts, monkeypatch, tmp_path
):
    from mag.datasets import MovieLens
    from mag.loader import PairLoader

    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'ml-1m').symlink_to(folder, target_is_directory=True)
    dataset = MovieLens(tmp_path, '1m', log=False)
    ids = dataset.raw_ids
    part = macro_parts[name]
    rows = reference_rows(reference, folder, part, ids['user'], monkeypatch)[name]

    # The reference numbers genres from 1 in the order of movies.dat, mag in that of the alphabet.
    first_genres = ['Comedy', 'Action', 'War', "Children's", 'Drama']
    category_order = torch.tensor([dataset.names['category'].index(g) for g in first_genres])
    loader = PairLoader(part, batch_size=100)
    found = [
        expected_row(batch, row, ids, category_order)
        for batch in loader
        for row in range(len(batch.label))
    ]
    # mag keeps the last fifth of the reference's training window for validation.
    num_rows = {'train': 480, 'test': 600}[name]
    assert len(found) == num_rows
    assert rows[:num_rows].tolist() == found


def test_reference_loops_agree(folder, reference):
    from timing import Stages

    plain = reference.run(folder, Stages(), num_clusters=4)
    tight = reference.run(folder, Stages(), num_clusters=4, tight=True)
    assert len(plain['train']) == len(plain['test']) == 600
    for name in ('train', 'test'):
        assert np.array_equal(plain[name], tight[name])


def test_reference_rolls_over_the_same_windows(folder, reference):
    from speed import mag_coarsening
    from timing import Stages

    found = mag_coarsening.movie_lens(Stages(), folder, num_windows=3)
    for tight in (False, True):
        expected = reference.measure(Stages(), folder, tight=tight, num_windows=3)
        assert expected == found


def test_objective_is_the_summed_squared_distance():
    from scipy.sparse import csr_matrix
    from speed.mag_coarsening import objective

    generator = np.random.default_rng(0)
    rows = generator.random((30, 7)) * (generator.random((30, 7)) < 0.4)
    cluster = generator.integers(0, 4, 30)
    expected = sum(
        ((rows[cluster == p] - rows[cluster == p].mean(axis=0)) ** 2).sum() for p in range(4)
    )
    assert objective(csr_matrix(rows), cluster, 4) == pytest.approx(expected, rel=1e-12)
    assert objective(csr_matrix(rows), np.arange(30), 30) == pytest.approx(0, abs=1e-12)


def test_power_law_log(tmp_path):
    from speed.power_law_log import write_power_law_log

    log = write_power_law_log(tmp_path / 'log.parquet', 100_000, num_users=2000, num_items=500)
    columns = duckdb.sql(f"SELECT * FROM '{log}'").fetchnumpy()
    assert len(columns['user']) == 100_000
    assert (np.diff(columns['time']) == 3).all()
    assert (columns['category'] == columns['item'] % 50).all()
    for name, size, exponent in (('user', 2000, 0.6), ('item', 500, 0.9)):
        count = np.bincount(columns[name], minlength=size)
        assert count.shape == (size,)
        # The share of the first half of the ranks under the continuous law.
        law = ((size / 2 + 1) ** (1 - exponent) - 1) / ((size + 1) ** (1 - exponent) - 1)
        assert count[: size // 2].sum() / 100_000 == pytest.approx(law, abs=0.01)
    favorite = [
        np.bincount(columns['category'][columns['user'] == user]).max() for user in range(20)
    ]
    activity = np.bincount(columns['user'])[:20]
    assert (favorite / activity).mean() == pytest.approx(0.5 + 0.5 / 50, abs=0.06)


def test_power_law_log_does_not_depend_on_threads(tmp_path):
    from speed.power_law_log import write_power_law_log

    digest = []
    for threads in (1, 2):
        duckdb.sql(f'SET threads = {threads}')
        log = write_power_law_log(tmp_path / f'{threads}.parquet', 300_000, seed=1)
        digest.append(duckdb.sql(f"SELECT bit_xor(hash(COLUMNS(*))) FROM '{log}'").fetchall())
    duckdb.sql('RESET threads')
    assert digest[0] == digest[1]


def test_power_law_log_says_what_is_wrong(tmp_path):
    from speed.power_law_log import write_power_law_log

    with pytest.raises(ValueError, match="'num_items' must be a multiple of the 50 .* got 70"):
        write_power_law_log(tmp_path / 'log.parquet', 1000, num_items=70)


def test_command_writes_the_tables(folder, reference, tmp_path):
    markdown = tmp_path / 'coarsening.md'
    command = [sys.executable, str(BENCHMARKS), 'speed.coarsening', '--parts', 'movielens', 'scale']
    command += ['--movielens', str(folder), '--repeats', '1', '--clicks', '5000', '--scale-repeats']
    command += ['1', '--markdown', str(markdown)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    text = markdown.read_text(encoding='utf-8')
    for way in ('plain', 'plain, tight loop', 'mag'):
        for windows in ('1 window', '12 windows'):
            assert f'| {way}, {windows} |' in text
    assert '480 train, 120 validation, 600 test' in text
    assert '| 5,000 | 50 | 50 |' in text
