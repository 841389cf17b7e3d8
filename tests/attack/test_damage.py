r"""Every file that is read is damaged: a sentence with the file and the remedy, or what it was."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mag.datasets import EventLog, LogSchema
from mag.macro_graph import Grouping
from mag.pipeline import Pipeline
from mag.training import ClickTask

sys.path.insert(0, str(Path(__file__).parents[1] / 'training'))
from training_run import train  # noqa: E402

COLUMNS = {'user': 'u', 'item': 'i', 'time': 't', 'category': 'c'}
CLICKS = ('user', 'clicks', 'item')


@pytest.fixture(scope='module', autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def damages(content: bytes, draw: random.Random) -> Iterator[bytes]:
    r"""The content with another bit, cut, longer, with a hole, and with two places exchanged."""
    while True:
        place, end = sorted(draw.sample(range(len(content)), 2))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        yield bytes(flipped)
        yield content[:place]
        yield content + draw.randbytes(9)
        yield content[:place] + bytes(end - place) + content[end:]
        yield content[:place] + content[end : end + 1] + content[place + 1 :]


def attack_file(
    path: Path, read: Callable[[], object], remedy: str, number: int, seed: int
) -> None:
    r"""Damages one file again and again, and looks at what reading it gives."""
    content = path.read_bytes()
    expected = read()
    for _, damaged in zip(range(number), damages(content, random.Random(f'{seed} {path.name}'))):
        path.write_bytes(damaged)
        try:
            found = read()
        except ValueError as error:
            sentence = str(error)
            assert path.name in sentence
            assert remedy in sentence
            assert '\n' not in sentence
        else:
            # A hole where zeros were, two equal places, or other white space.
            assert damaged == content or path.suffix == '.json'
            assert found == expected
    path.write_bytes(content)
    assert read() == expected


def take_away(path: Path, read: Callable[[], object]) -> None:
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=path.name):
        read()


@pytest.mark.parametrize('name', ['data.pt', 'user.parquet', 'item.parquet', 'cache.json'])
def test_cache(tmp_path: Path, name: str, attack_factor: int, attack_seed: int) -> None:
    log, root = tmp_path / 'log.csv', tmp_path / 'root'
    log.write_text('u,i,t,c\n' + ''.join(f'a{n % 9},{n % 5},{n},c{n % 5}\n' for n in range(40)))

    def read() -> object:
        dataset = EventLog(root, log, COLUMNS, log=False)
        store = dataset[0][CLICKS]
        ids = {node: ids.tolist() for node, ids in dataset.raw_ids.items()}
        return store.edge_index.tolist(), store.time.tolist(), ids, dataset.names

    read()
    path = root / 'processed' / name
    attack_file(path, read, 'force_reload=True', 60 * attack_factor, attack_seed)
    take_away(path, read)


def test_grouping(tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    path = tmp_path / 'grouping.pt'
    grouping = Grouping(4)
    grouping.fit(torch.from_numpy(np.random.default_rng(0).random((30, 5), dtype=np.float32)))
    grouping.save(path)

    def read() -> object:
        loaded = Grouping.load(path)
        assert loaded.centroids is not None
        return repr(loaded), loaded.centroids.tolist()

    attack_file(path, read, 'Fit the grouping again', 200 * attack_factor, attack_seed)
    take_away(path, read)


def test_pipeline(tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    rows = [f'a{n % 9},{n * n % 7},{n},c{n * n % 7},{n // 3 % 2}\n' for n in range(400)]
    (tmp_path / 'log.csv').write_text('u,i,t,c,l\n' + ''.join(rows))
    log = LogSchema(tmp_path / 'log.csv', COLUMNS | {'label': 'l'})
    pipeline = Pipeline('macgnn', groups={'user': 2, 'item': 2}, max_epochs=1, embedding_dim=4)
    pipeline.fit(log, progress=False).save(tmp_path / 'shop')

    def read() -> object:
        loaded = Pipeline.load(tmp_path / 'shop')
        return loaded.score('a3', [1, 2]).tolist(), loaded.metrics

    for path in sorted((tmp_path / 'shop').iterdir()):
        attack_file(path, read, 'again', 10 * attack_factor, attack_seed)
        content = path.read_bytes()
        take_away(path, read)
        path.write_bytes(content)


@pytest.mark.parametrize('name', ['last.ckpt', 'best.ckpt'])
def test_checkpoint(tmp_path: Path, name: str, attack_factor: int, attack_seed: int) -> None:
    directory = tmp_path / 'run'
    train(str(directory), max_epochs=1)

    def read() -> object:
        # The run has finished, so that its best weights are read and nothing is trained.
        module, values = train(str(directory), max_epochs=1)
        assert isinstance(module, ClickTask)
        return {key: value.tolist() for key, value in module.state_dict().items()}, values

    attack_file(directory / name, read, 'resume=False', 25 * attack_factor, attack_seed)
    # Without its last checkpoint a run begins anew, as one that was killed before it.
    if name == 'best.ckpt':
        take_away(directory / name, read)


def test_log_of_a_run_is_never_read(tmp_path: Path) -> None:
    train(str(tmp_path / 'whole'), max_epochs=2)
    train(str(tmp_path / 'run'), max_epochs=1)
    (tmp_path / 'run' / 'metrics.csv').write_bytes(os.urandom(100))
    train(str(tmp_path / 'run'), max_epochs=2)
    logs = [(tmp_path / run / 'metrics.csv').read_text() for run in ('run', 'whole')]
    assert logs[0] == logs[1]
