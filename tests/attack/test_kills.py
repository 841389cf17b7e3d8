r"""Whatever writes is killed at random moments: what was there before is there, or what was to be,
and the next start leaves nothing lying about."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.datasets import EventLog, LogSchema
from mag.files import read_tensors
from mag.macro_graph import Grouping
from mag.pipeline import Pipeline

COLUMNS = {'user': 'u', 'item': 'i', 'time': 't'}
CLICKS = ('user', 'clicks', 'item')

Do = Callable[..., float]


@pytest.fixture(scope='module')
def do() -> Iterator[Do]:
    r"""Does something in a process of its own and kills it after :obj:`delay` seconds; returns how
    long it took."""
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', str(Path(__file__).with_name('killed.py'))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def do(name: str, *arguments: object, delay: float | None = None) -> float:
        print(json.dumps([name, arguments, delay]), file=process.stdin, flush=True)
        status, seconds = json.loads(process.stdout.readline())
        assert status in ((0,) if delay is None else (0, -signal.SIGKILL))
        return seconds

    yield do
    process.stdin.close()
    process.wait()


def test_cache(do: Do, tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    log, root = tmp_path / 'log.csv', tmp_path / 'root'
    log.write_text('u,i,t\n' + ''.join(f'{n},{n % 7},{n * 1000}\n' for n in range(3_000)))
    do('make_cache', str(root), str(log), 's')
    seconds = do('make_cache', str(root), str(log), 's')
    unit, found = 's', set()
    for moment in moments(attack_seed, 15 * attack_factor):
        new = 'ms' if unit == 's' else 's'
        do('make_cache', str(root), str(log), new, delay=moment * seconds)
        # The cache says itself what it is of, and the other unit is refused.
        works = [option for option in ('s', 'ms') if fits(root, log, option)]
        assert len(works) == 1
        found.add(works[0] == new)
        (unit,) = works
        dataset = EventLog(root, log, COLUMNS, unit, log=False)
        scale = 1000 if unit == 's' else 1
        assert torch.equal(dataset[0][CLICKS].time, torch.arange(3_000) * scale)
        assert dataset.raw_ids['user'].tolist() == list(range(3_000))
        assert os.listdir(root) == ['processed']
    assert found == {False, True}


def fits(root: Path, log: Path, unit: str) -> bool:
    try:
        EventLog(root, log, COLUMNS, unit, log=False)
    except ValueError as error:
        assert 'does not fit: time_unit was' in str(error)
        return False
    return True


def test_grouping(do: Do, tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    path = tmp_path / 'grouping.pt'
    seconds = max(do('save_grouping', str(path), 0) for _ in range(2))
    for seed, moment in enumerate(moments(attack_seed, 30 * attack_factor), 1):
        before = Grouping.load(path).seed
        do('save_grouping', str(path), seed, delay=moment * seconds)
        grouping = Grouping.load(path)
        assert grouping.seed in (before, seed)
        assert bool((grouping.centroids == grouping.seed).all())
        # At most what this kill left; what earlier ones left is gone.
        assert len(os.listdir(tmp_path)) <= 2
    do('save_grouping', str(path), 0)
    assert os.listdir(tmp_path) == ['grouping.pt']


def test_pipeline(do: Do, tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    rows = [f'{n % 9},{n * n % 7},{n},{n // 3 % 2}\n' for n in range(400)]
    (tmp_path / 'log.csv').write_text('u,i,t,l\n' + ''.join(rows))
    log = LogSchema(tmp_path / 'log.csv', COLUMNS | {'label': 'l'})
    scores = []
    for seed in (0, 1):
        groups = {'user': 2, 'item': 2}
        pipeline = Pipeline('macgnn', groups=groups, max_epochs=1, seed=seed, embedding_dim=4)
        pipeline.fit(log, progress=False).save(tmp_path / str(seed))
        scores.append(pipeline.score(3, [1, 2]).tolist())
    above = tmp_path / 'above'
    seconds = max(do('save_pipeline', str(tmp_path / '0'), str(above / 'shop')) for _ in range(2))
    found = set()
    for moment in moments(attack_seed, 20 * attack_factor):
        before = Pipeline.load(above / 'shop').seed
        source = str(tmp_path / str(1 - before))
        do('save_pipeline', source, str(above / 'shop'), delay=moment * seconds)
        pipeline = Pipeline.load(above / 'shop')
        assert pipeline.score(3, [1, 2]).tolist() == scores[pipeline.seed]
        found.add(pipeline.seed == before)
        assert os.listdir(above) == ['shop']
    assert found == {False, True}


def test_training(do: Do, tmp_path: Path, attack_factor: int, attack_seed: int) -> None:
    whole = tmp_path / 'whole'
    seconds = do('train', str(whole))
    for number, moment in enumerate(moments(attack_seed, 4 * attack_factor)):
        run = tmp_path / str(number)
        do('train', str(run), delay=moment * seconds)
        do('train', str(run), delay=random.Random(number).random() * seconds)
        do('train', str(run))
        for name in ('last.ckpt', 'best.ckpt'):
            assert equal(read_tensors(run / name), read_tensors(whole / name)), name
        assert (run / 'metrics.csv').read_text() == (whole / 'metrics.csv').read_text()
        assert sorted(os.listdir(run)) == sorted(os.listdir(whole))


def moments(seed: int, number: int) -> list[float]:
    r"""Shares of the time that something takes: some late ones, where files are renamed."""
    draw = random.Random(seed)
    return [draw.uniform(0.0, 1.1) if n % 2 else draw.uniform(0.7, 1.1) for n in range(number)]


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
