r"""Rows equal a count of the log up to their position, to the last byte, whatever is killed."""

import json
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.online import (
    Consumer,
    Diverged,
    FeatureCenter,
    Fenced,
    RowLayout,
)

# What all processes know: the log, few pairs of which come again and again, and the clusters, which
# some nodes are not in, and others are after.
SETUP = """
import json, os, random, signal, sys, time, zlib

import numpy as np
import torch

from mag.online import (
    EVENT, Consumer, Fenced, RedisCenter, RedisStream, RowLayout, SqliteCenter, SqliteStream,
    connect, sqlite_file,
)

# A busy machine may take longer over a commit than who waits for it should.
sqlite_file._PATIENCE = 60.0

NUM_NODES = {'user': 61, 'item': 41}
LAYOUT = RowLayout(4, {'user': [3, 2], 'item': [5]})
draw = np.random.default_rng(0)
CLUSTERS = {
    name: [torch.from_numpy(draw.integers(-1, num, NUM_NODES[name] - 7)) for num in numbers]
    for name, numbers in LAYOUT.num_clusters.items()
}
LOG = np.empty(300_000, EVENT)
for name, num in NUM_NODES.items():
    LOG[name] = num * draw.random(len(LOG)) ** 2
LOG['time'] = np.arange(len(LOG)) // 3
LOG['clicked'] = draw.random(len(LOG)) < 0.3


def open_both(kind, place, name):
    if kind == 'redis':
        client = connect(place, timeout=30)
        return RedisStream(client, name), RedisCenter(client, LAYOUT, name)
    return SqliteStream(f'{place}/{name}.log'), SqliteCenter(f'{place}/{name}.rows', LAYOUT)


def checksums(center):
    return {
        name: [zlib.crc32(row.tobytes()) for row in center.read(name, np.arange(num))]
        for name, num in NUM_NODES.items()
    }
"""
SHARED: dict[str, Any] = {}
exec(SETUP, SHARED)
LAYOUT: RowLayout = SHARED['LAYOUT']
CLUSTERS: dict[str, list[torch.Tensor]] = SHARED['CLUSTERS']
LOG: np.ndarray = SHARED['LOG']
NUM_NODES: dict[str, int] = SHARED['NUM_NODES']
SIDES = (('user', 'item'), ('item', 'user'))


class Place:
    r"""Where a log and its rows are; they are opened again and again."""

    def __init__(self, kind: str, place: str, name: str) -> None:
        self.arguments = kind, place, name

    def open(self) -> tuple[Any, Any]:
        return SHARED['open_both'](*self.arguments)

    def consumer(self, *arguments: Any, **options: Any) -> Consumer:
        return Consumer(*self.open(), LAYOUT, CLUSTERS, *arguments, **options)


_number = count()


@pytest.fixture(params=['sqlite', 'redis'])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    name = f'centre-{next(_number)}'
    if request.param == 'redis':
        yield Place('redis', request.getfixturevalue('redis_server').url, name)
    else:
        yield Place('sqlite', str(tmp_path), name)


def rebuild(num_events: int) -> dict[str, np.ndarray]:
    r"""The rows of all nodes, counted at once from the log."""
    events, rows = LOG[:num_events], {}
    clicks = np.flatnonzero(events['clicked'])
    pair = events['user'].astype(int) * 1000 + events['item']
    first_clicks = clicks[np.unique(pair[clicks], return_index=True)[1]]
    for node_type, neighbor_type in SIDES:
        node, neighbor = events[node_type], events[neighbor_type].astype(int)
        rows[node_type] = of_type = LAYOUT.empty(node_type, num := NUM_NODES[node_type])
        of_type['seen'] = np.bincount(node, minlength=num)
        for resolution, of_node in enumerate(CLUSTERS[neighbor_type]):
            columns = LAYOUT.columns(node_type, resolution)
            width = columns.stop - columns.start
            cluster = np.full(NUM_NODES[neighbor_type], width - 1)
            cluster[: len(of_node)] = of_node.where(of_node >= 0, width - 1).numpy()
            for name, part in (
                ('exposures', slice(None)),
                ('clicks', clicks),
                ('pairs', first_clicks),
            ):
                key = node[part] * width + cluster[neighbor[part]]
                counts = np.bincount(key, minlength=num * width).reshape(num, width)
                of_type[name][:, columns] = counts
        for one in range(num):
            recent = neighbor[clicks][node[clicks] == one][-LAYOUT.num_recent :]
            if len(recent) > 0:
                of_type['recent'][one, -len(recent) :] = recent
    return rows


def expected_rows(positions: dict[int, int], num_shards: int) -> dict[str, np.ndarray]:
    r"""Those of each shard as of its position."""
    rows = {name: LAYOUT.empty(name, num) for name, num in NUM_NODES.items()}
    for shard in range(num_shards):
        rebuilt = rebuild(positions.get(shard, 0))
        for name in rows:
            rows[name][shard::num_shards] = rebuilt[name][shard::num_shards]
    return rows


def check_rows(center: FeatureCenter, num_shards: int = 1) -> dict[int, int]:
    r"""Asserts that each row equals a count of the log, and returns the positions."""
    positions = center.positions()
    for name, rows in expected_rows(positions, num_shards).items():
        found = center.read(name, np.arange(NUM_NODES[name]))
        assert found.tobytes() == rows.tobytes(), (name, positions)
    return positions


def finish(place: Place, num_shards: int, end: int) -> None:
    r"""Tells the log up to an end, counts it, and checks all rows."""
    stream, center = place.open()
    position = stream.end
    stream.append(LOG[position:end], position)
    for shard in range(num_shards):
        consumer = place.consumer(shard, num_shards)
        before = consumer.position
        assert consumer.run() == end - before
    assert check_rows(center, num_shards) == dict.fromkeys(range(num_shards), end)


@pytest.mark.parametrize('num_shards', [1, 3])
def test_rows_are_those_of_the_log_whatever_the_steps(place: Place, num_shards: int) -> None:
    r"""Also where they are forgotten and read again."""
    stream, center = place.open()
    draw, told = random.Random(num_shards), 0
    consumers = [
        place.consumer(shard, num_shards, max_bytes=3000 if shard == 0 else 2**30)
        for shard in range(num_shards)
    ]
    for _ in range(40):
        if draw.random() < 0.4:
            more = draw.choice((1, 50, 400))
            stream.append(LOG[told : told + more], told)
            told += more
        consumer, before = consumers[shard := draw.randrange(num_shards)], center.positions()
        number = consumer.step(draw.choice((1, 30, 1000)))
        assert number == consumer.position - before[shard]
        assert (number == 0) == (before[shard] == told)
        assert center.positions() == before | {shard: consumer.position}
        check_rows(center, num_shards)
        if draw.random() < 0.2:
            consumers[shard] = place.consumer(shard, num_shards)
            assert consumers[shard].position == consumer.position
    before = center.positions()
    for consumer in consumers:
        assert consumer.run() == told - before[consumer.shard]
        assert consumer.step() == 0
    check_rows(center, num_shards)
    assert f'num_shards={num_shards}, position={told})' in repr(consumers[0])


def test_who_is_told_to_stop_stops_between_steps(place: Place) -> None:
    stream, center = place.open()
    stream.append(LOG[:20_000], 0)
    consumer, answers = place.consumer(), iter([False, True])
    assert consumer.run(until=lambda: next(answers)) == 8192
    assert check_rows(center) == {0: 8192}
    assert consumer.run() == 20_000 - 8192
    assert check_rows(center) == {0: 20_000}


def test_a_zombie_is_fenced_and_the_other_goes_on(place: Place) -> None:
    stream, center = place.open()
    stream.append(LOG[:1000], 0)
    zombie = place.consumer()
    zombie.step(100)
    later = place.consumer()
    for _ in range(2):
        with pytest.raises(Fenced, match='claim of shard 0 as of position 100'):
            zombie.step(200)
        assert later.step(300) == 300
        with pytest.raises(Fenced):
            zombie.step(1000)
        check_rows(center)
    later.run()
    # At its end a zombie has nothing to write, and is not told.
    assert check_rows(center) == {0: 1000}


@pytest.mark.parametrize('is_written', [False, True])
def test_a_step_without_an_answer_counts_once(place: Place, is_written: bool) -> None:
    stream, center = place.open()
    stream.append(LOG[:1000], 0)
    consumer = place.consumer()
    consumer.step(100)
    commit = consumer.center._commit

    def without_answer(*arguments: Any) -> None:
        if is_written:
            commit(*arguments)
        raise TimeoutError('no answer')

    consumer.center._commit = without_answer  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        consumer.step(100)
    del consumer.center._commit
    assert check_rows(center) == {0: 200 if is_written else 100}
    if is_written:
        with pytest.raises(Fenced, match='or its rows are as of another position'):
            consumer.step(100)
        consumer = place.consumer()
    else:
        assert consumer.step(300) == 300
    consumer.run()
    assert check_rows(center) == {0: 1000}


def test_a_count_that_would_wrap_is_refused_before_anything_is_written(place: Place) -> None:
    stream, center = place.open()
    rows = LAYOUT.empty('item', 1)
    rows['seen'] = 2**32 - 1
    nodes = LOG['item'][:1].astype(np.int64)
    center.commit(center.claim(0), 0, {'item': (nodes, rows)})
    stream.append(LOG[:10], 0)
    consumer = place.consumer()
    for _ in range(2):
        with pytest.raises(OverflowError, match='counts up to 4294967295 events'):
            consumer.step()
    assert center.positions() == {0: 0}
    assert center.read('item', nodes).tobytes() == rows.tobytes()
    users = center.read('user', np.arange(NUM_NODES['user']))
    assert users.tobytes() == LAYOUT.empty('user', NUM_NODES['user']).tobytes()


def test_events_that_are_no_longer_held_are_not_passed_over(place: Place) -> None:
    stream, center = place.open()
    stream.append(LOG[:100], 0)
    consumer = place.consumer()
    consumer.step(40)
    stream.append(LOG[100:200], 100)
    stream.trim(200)
    assert stream.start > 40
    for one in (consumer, place.consumer()):
        with pytest.raises(ValueError, match='was read from position 40: the events between are'):
            one.step()
    assert check_rows(center) == {0: 40}


def test_a_log_that_ends_before_the_rows_is_refused_until_it_is_told_again(place: Place) -> None:
    stream, center = place.open()
    stream.append(LOG[:100], 0)
    place.consumer().run()
    kind, where, name = place.arguments
    again, _ = SHARED['open_both'](kind, where, f'{name}-again')
    again.append(LOG[:60], 0)
    consumer = Consumer(again, center, LAYOUT, CLUSTERS)
    with pytest.raises(ValueError, match='ends at position 60, but was read from position 100'):
        consumer.step()
    again.append(LOG[60:150], 60)
    assert consumer.step() == 50
    assert check_rows(center) == {0: 150}


def test_rows_of_events_that_the_log_has_no_more_are_refused(place: Place) -> None:
    r"""Not where the same events came again in other batches."""
    stream, center = place.open()
    stream.append(LOG[:100], 0)
    place.consumer().run()
    kind, where, name = place.arguments
    logs = [SHARED['open_both'](kind, where, f'{name}-{number}')[0] for number in range(2)]
    logs[0].append(LOG[:40], 0)
    logs[0].append(LOG[40:150], 40)
    logs[1].append(LOG[:99], 0)
    logs[1].append(LOG[100:200], 99)
    for _ in range(2):
        with pytest.raises(
            Diverged, match='has rows of 100 events that are not all those of .* co'
        ):
            Consumer(logs[1], center, LAYOUT, CLUSTERS).step()
    assert check_rows(center) == {0: 100}
    assert Consumer(logs[0], center, LAYOUT, CLUSTERS).step() == 50
    assert check_rows(center) == {0: 150}
    with pytest.raises(Diverged, match='count the log anew in another centre'):
        Consumer(logs[1], center, LAYOUT, CLUSTERS).step()


def test_what_the_rows_were_not_counted_with_is_refused_and_fences_nobody(place: Place) -> None:
    stream, center = place.open()
    stream.append(LOG[:100], 0)
    consumer = place.consumer(1, 2)
    consumer.step(50)
    shorter = CLUSTERS | {'user': [of[:-1] for of in CLUSTERS['user']]}
    longer = CLUSTERS | {'item': [torch.cat([of, of[:3]]) for of in CLUSTERS['item']]}
    others = CLUSTERS | {'item': [torch.zeros_like(of) for of in CLUSTERS['item']]}
    uneven = CLUSTERS | {'user': [CLUSTERS['user'][0], CLUSTERS['user'][1][:-1]]}
    words = CLUSTERS | {'user': [of.double() for of in CLUSTERS['user']]}
    beyond = CLUSTERS | {'item': [of.clamp(min=0) + 3 for of in CLUSTERS['item']]}
    for layout, clusters, shard, num_shards, error, message in [
        (LAYOUT, shorter, 1, 2, ValueError, 'counted with clusters of users 54 x 2, checksum'),
        (LAYOUT, longer, 1, 2, ValueError, 'not 37 x 1, checksum'),
        (LAYOUT, others, 1, 2, ValueError, 'clusters of items 34 x 1, checksum'),
        (LAYOUT, CLUSTERS, 0, 1, ValueError, 'counted with num_shards 2, not 1: go on with'),
        (LAYOUT, CLUSTERS, 2, 2, ValueError, "'shard' must lie below 2, but got 2"),
        (LAYOUT, CLUSTERS, 0, 0, ValueError, "'num_shards' must be at least 1"),
        (RowLayout(5, LAYOUT.num_clusters), CLUSTERS, 1, 2, ValueError, "'layout' must be that of"),
        (LAYOUT, uneven, 1, 2, ValueError, "'clusters['user'][1]' of shape [54], but got shape"),
        (LAYOUT, words, 1, 2, TypeError, "'clusters['user'][0]' of dtype int64"),
        (LAYOUT, beyond, 1, 2, IndexError, "clusters in clusters['item'][0] from 3 to 7"),
        (
            LAYOUT,
            CLUSTERS | {'user': CLUSTERS['user'][:1]},
            1,
            2,
            ValueError,
            "'clusters' must have one of users for each of the 2 resolutions of the layout, but",
        ),
        (LAYOUT, {'user': []}, 1, 2, ValueError, "'clusters' must be a dictionary of 'user' and"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            Consumer(stream, center, layout, clusters, shard, num_shards)
    assert consumer.step() == 50


# One process, so that libraries are loaded once: consumers that it starts are killed one by one.
KILL_CONSUMERS = f"""{SETUP}
place, num_shards = json.loads(sys.argv[1])
chance = random.Random(num_shards)
num_killed = num_fenced = 0
signal.alarm(500)
while num_killed < 15:
    # Now and then two have one shard.
    shards = list(range(num_shards)) + chance.choice(([], [], [0], [num_shards - 1]))
    processes = []
    receiver, sender = os.pipe()
    for shard in shards:
        processes.append(os.fork())
        if processes[-1] == 0:
            chance.seed(f'{{num_killed}} {{len(processes)}}')
            try:
                consumer = Consumer(*open_both(*place), LAYOUT, CLUSTERS, shard, num_shards)
                os.write(sender, b'.')
                while True:
                    consumer.step(chance.choice((1, 10, 50)))
                    # Of two that write to a file without a pause, one may wait for long.
                    time.sleep(0.01)
            except Fenced:
                os.write(sender, b'f')
                os._exit(7)
            finally:
                os._exit(1)
    seen, awaited = b'', b'f' if len(shards) > num_shards else chance.choice((b'', b'.', b'.'))
    while awaited not in seen:
        seen += os.read(receiver, 1)
    time.sleep(chance.uniform(0, 0.1))
    for process in processes:
        os.kill(process, signal.SIGKILL)
    for process in processes:
        status = os.waitpid(process, 0)[1]
        num_killed += os.WIFSIGNALED(status)
        num_fenced += os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 7:
            sys.exit('a consumer failed')
    os.close(receiver)
    os.close(sender)
    stream, center = open_both(*place)
    # What was sent before the kill may come after it: a claim lets no more of it in.
    claims = {{shard: center.claim(shard) for shard in range(num_shards)}}
    print(json.dumps([{{shard: claim.position for shard, claim in claims.items()}},
                      checksums(center)]), flush=True)
print(num_fenced)
"""


@pytest.mark.parametrize('num_shards', [1, 2])
def test_killed_consumers_count_each_event_once(
    place: Place, num_shards: int, fork: Callable[..., Any]
) -> None:
    stream, center = place.open()
    stream.append(LOG[:60_000], 0)
    done = fork(KILL_CONSUMERS, json.dumps([place.arguments, num_shards])).finish()
    assert done.returncode == 0, done.stderr
    *kills, num_fenced = done.stdout.splitlines()
    reached = []
    for positions, found in map(json.loads, kills):
        reached.append({int(shard): position for shard, position in positions.items()})
        for name, rows in expected_rows(reached[-1], num_shards).items():
            assert [zlib.crc32(row.tobytes()) for row in rows] == found[name], reached
    for shard in range(num_shards):
        of_shard = [positions[shard] for positions in reached]
        assert of_shard == sorted(of_shard)
        assert len(set(of_shard)) > 3
        assert 0 < of_shard[-1] < 60_000
    assert int(num_fenced) > 0
    finish(place, num_shards, 60_000)


# They end where the server does.
FOLLOW = f"""{SETUP}
from redis import RedisError

place, num_shards, seed, shard = json.loads(sys.argv[1])
chance = random.Random(f'{{seed}} {{shard}}')
try:
    stream, center = open_both(*place)
    consumer = Consumer(stream, center, LAYOUT, CLUSTERS, shard, num_shards)
    print('ready', flush=True)
    while True:
        consumer.step(chance.choice((1, 10, 100)))
except (Fenced, RedisError):
    print(consumer.position)
except ValueError as error:
    # The server came back without the last events, maybe in the middle of a read.
    if 'ends at position' not in str(error) and 'is damaged' not in str(error):
        raise
    print(consumer.position)
"""
TELL = f"""{SETUP}
from redis import RedisError

place, seed = json.loads(sys.argv[1])
chance = random.Random(seed)
try:
    stream, _ = open_both(*place)
    print('ready', flush=True)
    while (position := stream.end) < len(LOG):
        stream.append(LOG[position : position + chance.choice((1, 30, 150))], position)
        time.sleep(0.001)
except RedisError:
    pass
"""


def start(server: Any, length: int | None = None) -> None:
    r"""Starts a killed server on what is left of its file, as after :obj:`redis-check-aof --fix`:
    where that ends within a transaction, the server itself would leave its beginning there, and
    take what follows for the rest of it when it is started once more."""
    path = server.append_only_file
    content = path.read_bytes()[:length]
    begun = content.rfind(b'*1\r\n$5\r\nMULTI\r\n')
    is_whole = begun < 0 or b'*1\r\n$4\r\nEXEC\r\n' in content[begun:]
    path.write_bytes(content if is_whole else content[:begun])
    server.start()


@pytest.mark.parametrize('num_shards', [1, 2])
def test_a_redis_that_is_killed_or_loses_power_counts_each_event_once(
    num_shards: int, redis_server: Any, fork: Callable[..., Any]
) -> None:
    r"""Kills, power cuts while nobody is there, and power cuts that others live through."""
    chance = random.Random(num_shards)
    place = Place('redis', redis_server.url, f'centre-{next(_number)}')
    num_back = 0
    for kill in range(9):
        processes = [fork(TELL, json.dumps([place.arguments, kill]))] + [
            fork(FOLLOW, json.dumps([place.arguments, num_shards, kill, shard]))
            for shard in range(num_shards)
        ]
        for process in processes:
            assert process.stdout.readline() == 'ready\n', process.finish().stderr
        time.sleep(chance.uniform(0.05, 0.3))
        size = redis_server.append_only_file.stat().st_size
        length = max(size - chance.randrange(20_000, 70_000), 0)
        if kill % 3 == 2:
            redis_server.kill()
            start(redis_server, length)
            time.sleep(0.2)
        redis_server.kill()
        ended = [process.finish() for process in processes]
        start(redis_server, length if kill % 3 == 1 else None)
        for done in ended:
            assert done.returncode == 0, done.stderr
        _, center = place.open()
        reached = check_rows(center, num_shards)
        told = {shard: int(done.stdout) for shard, done in enumerate(ended[1:])}
        num_back += any(reached.get(shard, 0) < position for shard, position in told.items())
    assert num_back > 0
    assert min(reached.values()) > 100
    stream, _ = place.open()
    finish(place, num_shards, max(stream.end, *reached.values()) + 1000)
