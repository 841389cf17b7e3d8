import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np

NUM_KILLS = 24
# One process, so that libraries are loaded once: it builds a store, and then another one that is
# killed again and again, at random moments and at random calls of the system, until it is done.
KILL_AND_GO_ON = """
import glob, json, os, random, signal, sys, time

from mag.datasets import LogSchema
from mag.store.build import build
from mag.store.plan import BuildPlan

log, out, num_kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
CALLS = {'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'shutil.rmtree'}


class SmallPlan(BuildPlan):
    rows = 300

    def num_partitions(self, sizes):
        return {'user': 4, 'item': 4}


def plan(name):
    return SmallPlan(
        LogSchema.load(log), os.path.join(out, name), {'user': ['country', 3], 'item': 'brand'},
        [1200, 2000, 2900], num_recent=4,
    )


def start(num_calls):
    process = os.fork()
    if process == 0:
        def count(event, arguments):
            nonlocal num_calls
            is_write = event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if is_write or event in CALLS:
                num_calls -= 1
                if num_calls == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        if num_calls:
            sys.addaudithook(count)
        build(plan('killed'), progress=False)
        os._exit(0)
    return process


started = time.time()
build(plan('whole'), progress=False)
duration = time.time() - started
chance = random.Random(0)
killed = 0
places = []
while True:
    is_by_call = chance.random() < 0.75
    process = start(chance.randint(1, 40) if is_by_call and killed < num_kills else 0)
    if not is_by_call and killed < num_kills:
        time.sleep(chance.uniform(0, duration / 12))
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
    places.append(len(glob.glob(os.path.join(out, 'killed.building/work/done/*.json'))))
print(json.dumps({'killed': killed, 'places': places}))
"""


def write_log(folder: Path) -> Path:
    r"""A log whose ids are texts, and whose times do not ascend."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with duckdb.connect() as connection:
        for place in range(3):
            who, sku = generator.integers(0, 60, 800), generator.integers(0, 30, 800)
            part = {
                'who': np.array([f'user {number * 7 % 60}' for number in who], dtype=object),
                'sku': 3 * sku,
                'at': 1000 + generator.integers(0, 800, 800) * 3,
                'clicked': generator.random(800) < 0.3,
                'country': who % 7,
                'page': generator.integers(0, 5, 800),
                'brand': sku % 5,
            }
            connection.register('part', part)
            connection.execute(f"COPY part TO '{folder / f'{place}.parquet'}' (FORMAT parquet)")
            connection.unregister('part')
    columns = {
        'user': 'who', 'item': 'sku', 'time': 'at', 'label': 'clicked',
        'user_attributes': ['country'], 'item_attributes': ['brand'], 'contexts': ['page'],
    }  # fmt: skip
    log = folder / 'log.json'
    log.write_text(json.dumps({'path': '*.parquet', 'columns': columns}))
    return log


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    log = write_log(tmp_path / 'log')
    arguments = [str(log), str(tmp_path), str(NUM_KILLS)]
    # Children are forked, which threads of OpenMP do not survive.
    done = subprocess.run(
        [sys.executable, '-c', KILL_AND_GO_ON, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['killed'] == NUM_KILLS
    # They fell on many units, and none that was done was done again.
    assert found['places'] == sorted(found['places'])
    assert len({*found['places']}) > NUM_KILLS // 4, found['places']
    expected = hashes(tmp_path / 'whole')
    assert len(expected) > 20
    assert hashes(tmp_path / 'killed') == expected
    assert not list(tmp_path.glob('killed.*'))
