import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def same_process_afterwards() -> Iterator[None]:
    r"""Benchmarks set up the process that they run in, which here is that of the other tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    r"""A log in MovieLens-1M's layout, of 40 users who like every other movie."""
    folder = tmp_path / 'data' / 'raw' / 'ml-1m'
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    user, item = generator.integers(40, size=4000), generator.integers(30, size=4000)
    rating = np.where((user + item) % 2 == 0, 5, 1)
    lines = [f'{u + 1}::{i + 1}::{r}::{t}\n' for t, (u, i, r) in enumerate(zip(user, item, rating))]
    (folder / 'ratings.dat').write_text(''.join(lines))
    (folder / 'movies.dat').write_text(
        ''.join(f'{i + 1}::Film {i} (1990)::{"Drama" if i % 3 else "War"}\n' for i in range(30))
    )
    (folder / 'users.dat').write_text(''.join(f'{u + 1}::F::25::3::0\n' for u in range(40)))
    return tmp_path / 'data'


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., argparse.Namespace]:
    r"""Makes the arguments of a short run, whose results and checkpoints go to a folder of the
    test's own."""

    def make(dataset: str, models: list[str], **others: object) -> argparse.Namespace:
        defaults = {
            'dataset': [dataset],
            'models': models,
            'root': str(tmp_path / 'data'),
            'out': str(tmp_path / 'results.json'),
            'checkpoints': str(tmp_path / 'checkpoints'),
            'seeds': 2,
            'max_epochs': 1,
            'patience': 2,
            'threads': 1,
            'accelerator': 'cpu',
        }
        return argparse.Namespace(**{**defaults, **others})

    return make


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> str:
    r"""The name of a log that takes a second."""
    from accuracy import count_data

    tiny = count_data.DATASETS['market']._replace(
        load=count_data.market(60, 40, 4_000), groups={'user': [3, 6], 'item': ['category', 4]}
    )
    monkeypatch.setitem(count_data.DATASETS, 'market', tiny)
    return 'market'


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Lets CountNet's benches run on :obj:`root`: one trial, and few macro nodes."""
    from accuracy import count_bench, count_data

    monkeypatch.setattr(count_bench, 'TRIALS', ((1e-2, 5e-5),))
    log = count_data.DATASETS['movielens-1m']
    groups = {'user': [3], 'item': ['category', 4]}
    monkeypatch.setitem(count_data.DATASETS, 'movielens-1m', log._replace(groups=groups))
