r"""What is left when things break while serving: kills, power cuts, swaps, a Redis that is gone.

A producer appends a known log of events, with repeats and with parts that come too early, and two
consumers count it, each its half of the nodes. In each round all of them, and in some rounds Redis,
are killed by SIGKILL at random moments and in random order, or the power is cut: Redis's
append-only file is cut at a random place and mended by redis-check-aof, files of SQLite are copied
while their writers are stopped, and what is written ahead is cut. Then every row is compared, byte
by byte, with a count of the known log up to the position that the rows say to be as of, by other
code; and what the log holds, with what was sent. A server is swapped between snapshots of two
models while clients ask and record, and each answer is compared with one that is computed offline
as of the position that it states. At last a server answers while its Redis is stopped, and killed.

    python benchmarks speed.online_drills --markdown benchmarks/speed/online_drills.md \
        --json benchmarks/speed/online_drills.json
"""

import argparse
import asyncio
import gc
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from records import Record, made_here, make_parser, publish, select, table
from redis import RedisError
from tqdm import tqdm

from mag.online import (
    AsyncClient,
    Consumer,
    EventStream,
    FeatureCenter,
    Fenced,
    Overloaded,
    RedisCenter,
    RedisStream,
    Replica,
    RowLayout,
    Scorer,
    Server,
    Snapshot,
    SnapshotRanker,
    SqliteCenter,
    SqliteStream,
    connect,
    sqlite_file,
    swap,
)
from mag.schema import NEIGHBOR_TYPE
from speed.online import (
    PACKAGES,
    draw_clusters,
    draw_events,
    make_model,
    quantiles,
    request_of,
    snapshot_of,
)
from speed.redis_server import RedisServer

NUM_NODES = {'user': 300, 'item': 200}
NUM_CLUSTERS = {'user': 20, 'item': 30}
NUM_SHARDS = 2
LAYOUT = RowLayout(20, {node: [number] for node, number in NUM_CLUSTERS.items()})
# What a producer counts of itself, where a kill leaves it.
COUNTERS = ('repeated', 'early', 'answered', 'lost')
# A file that is cut is to hold all that was written.
KEPT_WHOLE = ('--appendfsync', 'everysec', '--auto-aof-rewrite-percentage', '0')
# What a process goes on after.
BROKEN = (RedisError, sqlite3.Error)


def count_rows(events: np.ndarray, clusters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    r"""The rows of all nodes, counted at once, by no code of :mod:`mag.online`."""
    clicks = np.flatnonzero(events['clicked'])
    pair = events['user'].astype(np.int64) << 32 | events['item']
    firsts = clicks[np.unique(pair[clicks], return_index=True)[1]]
    rows = {}
    for node_type, neighbor_type in NEIGHBOR_TYPE.items():
        node, neighbor = events[node_type], events[neighbor_type]
        number, width = NUM_NODES[node_type], NUM_CLUSTERS[neighbor_type] + 1
        of_type = rows[node_type] = LAYOUT.empty(node_type, number)
        of_type['seen'] = np.bincount(node, minlength=number)
        cell = node * width + clusters[neighbor_type][0][neighbor]
        for name, part in (
            ('exposures', slice(None)), ('clicks', clicks), ('pairs', firsts),
        ):  # fmt: skip
            counts = np.bincount(cell[part], minlength=number * width)
            of_type[name] = counts.reshape(number, width)
        for one in range(number):
            recent = neighbor[clicks][node[clicks] == one][-LAYOUT.num_recent :]
            if len(recent) > 0:
                of_type['recent'][one, -len(recent) :] = recent
    return rows


class Place:
    r"""Where a log and its rows are, in files or in a Redis server."""

    def __init__(self, folder: Path, server: RedisServer | None) -> None:
        self.folder, self.server = folder, server

    def stream(self) -> EventStream:
        if self.server is not None:
            return RedisStream(connect(self.server.url, timeout=30))
        return SqliteStream(self.folder / 'log', 'second')

    def center(self) -> FeatureCenter:
        if self.server is not None:
            return RedisCenter(connect(self.server.url, timeout=30), LAYOUT)
        return SqliteCenter(self.folder / 'rows', LAYOUT)


def produce(place: Place, log: np.ndarray, seed: str, counters: np.ndarray) -> None:
    r"""Appends the log without end: now and then again, or a part before those that it follows."""
    chance = random.Random(seed)
    with place.stream() as stream:
        while True:
            with suppress(*BROKEN):
                end, size = stream.end, chance.choice((1, 30, 150))
                first, fate = end, chance.random()
                # What was answered and is gone, it sends again.
                counters[3] += max(int(counters[2]) - end, 0)
                counters[2] = end
                if fate < 0.2:
                    first = max(end - chance.randrange(1, 300), 0)
                    counters[0] += end - first
                elif fate < 0.3:
                    try:
                        stream.append(log[end + size : end + 2 * size], end + size)
                    except ValueError:
                        counters[1] += 1
                counters[2] = stream.append(log[first : end + size], first)
            sleep(0.001)


def consume(place: Place, clusters: dict[str, np.ndarray], shard: int, seed: str) -> None:
    r"""Counts a shard of the log without end."""
    chance = random.Random(seed)
    while True:
        try:
            consumer = consumer_of(place, clusters, shard)
            while True:
                consumer.step(chance.choice((1, 30, 300)))
                sleep(0.001)
        except (Fenced, *BROKEN):
            sleep(0.01)
        except ValueError as error:
            # A log that lost events is told them again.
            if 'ends at position' not in str(error):
                raise


def consumer_of(place: Place, clusters: dict[str, np.ndarray], shard: int) -> Consumer:
    tensors = {node: [torch.from_numpy(of) for of in found] for node, found in clusters.items()}
    return Consumer(place.stream(), place.center(), LAYOUT, tensors, shard, NUM_SHARDS)


def run(act: Callable[..., None], arguments: tuple[Any, ...]) -> int:
    r"""Runs something in a process that is to be killed, and returns its number."""
    process = os.fork()
    if process > 0:
        return process
    try:
        act(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def end(process: int) -> None:
    r"""Kills a process, which must be there to be killed."""
    os.kill(process, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
        raise RuntimeError('A process of a drill failed before it was killed.')


def cut_files(place: Place, folder: Path, chance: random.Random) -> Place:
    r"""What a power cut leaves of files whose writers are stopped."""
    folder.mkdir()
    for name in ('log', 'rows'):
        shutil.copy(place.folder / name, folder / name)
        ahead = folder / f'{name}-wal'
        if (place.folder / ahead.name).exists():
            shutil.copy(place.folder / ahead.name, ahead)
            size = ahead.stat().st_size
            os.truncate(ahead, max(size - chance.randrange(400_000), 0))
    return Place(folder, None)


def drill(
    folder: Path, where: str, breaks: str, rounds: int, seed: int, args: argparse.Namespace
) -> Record:
    r"""The record of some rounds of kills or power cuts."""
    folder.mkdir()
    chance = random.Random(f'{seed} {where} {breaks}')
    log = draw_events(NUM_NODES, args.log, seed)
    clusters = draw_clusters(NUM_NODES, NUM_CLUSTERS)
    server = RedisServer(folder / 'redis', *KEPT_WHOLE) if where == 'Redis' else None
    place = Place(folder, server)
    with place.stream(), place.center():
        pass
    counters = np.frombuffer(mmap.mmap(-1, 8 * len(COUNTERS)), np.int64)
    totals = dict.fromkeys(
        ('killed producers', 'killed consumers', 'killed servers', 'power cuts', 'rows', 'differ',
         'bytes'), 0,
    )  # fmt: skip
    positions = {}
    try:
        for number in tqdm(range(rounds), f'{where}, {breaks}', leave=False):
            kinds = {
                run(produce, (place, log, f'{seed} {number}', counters)): 'killed producers',
                **{
                    run(consume, (place, clusters, shard, f'{seed} {number} {shard}')):
                        'killed consumers'
                    for shard in range(NUM_SHARDS)
                },
            }  # fmt: skip
            sleep(chance.uniform(0.1, args.seconds))
            order = [*kinds]
            chance.shuffle(order)
            is_cut = breaks == 'power cuts'
            totals['power cuts'] += is_cut
            if is_cut and server is None:
                for process in order:
                    os.kill(process, signal.SIGSTOP)
                place = cut_files(place, folder / f'after-{number}', chance)
            elif server is not None and (is_cut or number % 2 == 0):
                # Who lives on meets a server that has gone back.
                order, left = order[: (alive := chance.randrange(3))], order[alive:]
                end_all(order, kinds, totals, 0)
                server.kill()
                totals['killed servers'] += 1
                server.mend(chance.randrange(70_000) if is_cut else 0)
                server.start()
                sleep(chance.uniform(0, 0.1))
                order = left
            end_all(order, kinds, totals, chance.uniform(0, 0.05))
            with place.stream() as stream, place.center() as center:
                positions = compare(log, clusters, stream, center, totals)
        # To the end of what is there, once nothing breaks any more.
        with place.stream() as stream:
            stream.append(log[(last := stream.end) : last + 1000], last)
            counters[3] += max(int(counters[2]) - last, 0)
        for shard in range(NUM_SHARDS):
            consumer_of(place, clusters, shard).run()
        with place.stream() as stream, place.center() as center:
            positions = compare(log, clusters, stream, center, totals)
            if set(positions.values()) != {stream.end}:
                raise RuntimeError(
                    f'Shards are as of {positions}, but the log ends at {stream.end}.'
                )
            events = stream.end
    finally:
        if server is not None:
            server.kill()
    return {
        'part': breaks, 'where': where, 'seed': seed, 'rounds': rounds, 'events': events,
        **totals, **dict(zip(COUNTERS, counters.tolist(), strict=True)),
    }  # fmt: skip


def end_all(order: list[int], kinds: dict[int, str], totals: dict[str, int], pause: float) -> None:
    r"""Kills processes one after the other, and counts them."""
    for process in order:
        end(process)
        totals[kinds[process]] += 1
        sleep(pause)


def compare(
    log: np.ndarray,
    clusters: dict[str, np.ndarray],
    stream: EventStream,
    center: FeatureCenter,
    totals: dict[str, int],
) -> dict[int, int]:
    r"""Counts rows, and those that differ, and returns the positions of shards."""
    held: list[np.ndarray] = []
    last, position = stream.end, 0
    while position < last:
        held.append(stream.read(position))
        position += len(held[-1])
    if b''.join(of.tobytes() for of in held) != log[:last].tobytes():
        raise RuntimeError(f'{stream!r} holds other events than those that were sent.')
    positions = center.positions()
    for shard in range(NUM_SHARDS):
        expected = count_rows(log[: positions.get(shard, 0)], clusters)
        for node, rows in expected.items():
            nodes = np.arange(shard, len(rows), NUM_SHARDS)
            found = center.read(node, nodes).view(f'V{rows.itemsize}')
            want = rows[nodes].view(f'V{rows.itemsize}')
            totals['rows'] += len(nodes)
            totals['bytes'] += rows[nodes].nbytes
            totals['differ'] += int((found != want).sum())
    return positions


def scorer_of(snapshot: Snapshot, stream: EventStream) -> Scorer:
    model = make_model(snapshot.model, snapshot.num_nodes, NUM_CLUSTERS)
    model.load_state_dict(snapshot.weights())
    return Scorer(snapshot, Replica(snapshot, stream), model)


async def swaps(folder: Path, seed: int, args: argparse.Namespace) -> Record:
    r"""The record of swaps between snapshots while clients ask and record."""
    folder.mkdir()
    log = draw_events(NUM_NODES, args.log, seed)
    half = len(log) // 2
    snapshots = [
        snapshot_of(folder, name, log[:position], NUM_NODES, NUM_CLUSTERS)
        for name, position in (('macgnn', half // 2), ('count_net', half))
    ]
    with SqliteStream(folder / 'log', 'second') as stream:
        stream.append(log[:half], 0)
    ids = snapshots[0].id_maps

    def load(name: str) -> SnapshotRanker:
        return SnapshotRanker(
            lambda: scorer_of(Snapshot.open(folder / name), SqliteStream(folder / 'log', 'second'))
        )

    names = [Path(of.path).name for of in snapshots]
    server = Server(
        load(names[0]), port=0, load=load, admin_port=0,
        open_stream=lambda: SqliteStream(folder / 'log', 'second'),
        nodes=lambda node_type, raw: ids[node_type].encode(raw),
    )  # fmt: skip
    await server.start()
    answers: list[tuple[int, Any]] = []
    failures: list[str] = []
    ended = asyncio.Event()
    _, items = request_of(NUM_NODES, 50)

    async def ask(first: int) -> None:
        user = first
        while not ended.is_set():
            user = (user + 7) % NUM_NODES['user']
            try:
                answers.append((user, await client.rank(user, items.tolist(), timeout=60)))
            except Overloaded:
                await asyncio.sleep(0.01)
            except Exception as error:
                failures.append(repr(error))

    async def record() -> int:
        position = half
        while not ended.is_set() and position + 20 < len(log):
            part = log[position : position + 20]
            try:
                position = await client.record(
                    part['user'].tolist(), part['item'].tolist(), part['time'].tolist(),
                    part['clicked'].astype(bool).tolist(), position=position, timeout=60,
                )  # fmt: skip
            except Exception as error:
                failures.append(repr(error))
            await asyncio.sleep(0.01)
        return position

    async with AsyncClient(f'127.0.0.1:{server.port}') as client:
        recorder = asyncio.create_task(record())
        askers = [asyncio.create_task(ask(number)) for number in (1, 2, 3)]
        for number in range(args.swaps):
            await asyncio.sleep(args.seconds)
            try:
                await asyncio.to_thread(
                    swap, f'127.0.0.1:{server.admin_port}', names[(number + 1) % 2]
                )
            except Exception as error:
                failures.append(repr(error))
        await asyncio.sleep(args.seconds)
        ended.set()
        position = await recorder
        await asyncio.gather(*askers)
    await server.stop()
    farthest = 0.0
    with SqliteStream(folder / 'log', 'second') as stream:
        offline = dict(zip(names, (scorer_of(of, stream) for of in snapshots), strict=True))
        for user, answer in sorted(answers, key=lambda of: of[1].position):
            scorer = offline[answer.snapshot]
            while (more := answer.position - scorer.replica.position) > 0:
                scorer.replica.follow(more)
            want = scorer.score(user, items.tolist()).probabilities['click'].numpy()
            farthest = max(farthest, float(np.abs(want - answer.probability).max()))
    return {
        'part': 'swaps', 'seed': seed, 'swaps': args.swaps, 'answers': len(answers),
        'recorded': position - half, 'failures': len(failures),
        'positions': len({answer.position for _, answer in answers}),
        'degraded': sum(bool(answer.degraded) for _, answer in answers), 'farthest': farthest,
        'snapshots': len({answer.snapshot for _, answer in answers}),
    }  # fmt: skip


def serve(path: str, url: str, told: Any) -> None:
    r"""A server that follows a log in Redis, in a process of its own, which tells its port."""
    torch.set_num_threads(1)

    async def main() -> None:
        server = Server(
            SnapshotRanker(lambda: scorer_of(Snapshot.open(path), RedisStream(connect(url)))),
            port=0,
        )
        await server.start()
        told.send(server.port)
        await asyncio.Event().wait()

    asyncio.run(main())


def outages(folder: Path, seed: int, args: argparse.Namespace) -> list[Record]:
    r"""The records of a server whose Redis is there, hangs and is gone, in turn."""
    folder.mkdir()
    events = draw_events(NUM_NODES, args.log // 4, seed)
    path = snapshot_of(folder, 'count_net', events, NUM_NODES, NUM_CLUSTERS).path
    redis = RedisServer(folder / 'redis', *KEPT_WHOLE)
    with connect(redis.url) as client:
        RedisStream(client).append(events, 0)
    context = multiprocessing.get_context('spawn')
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(path, redis.url, tell), daemon=True)
    process.start()
    try:
        if not told.poll(300):
            raise RuntimeError('The server did not start.')
        return asyncio.run(_outages(told.recv(), redis, seed, args))
    finally:
        redis.process.send_signal(signal.SIGCONT)
        redis.kill()
        process.kill()
        process.join()


async def _outages(
    port: int, redis: RedisServer, seed: int, args: argparse.Namespace
) -> list[Record]:
    found: dict[str, list[tuple[float, Any]]] = {'normal': [], 'hung': [], 'down': []}
    _, items = request_of(NUM_NODES, args.asked)
    async with AsyncClient(f'127.0.0.1:{port}') as client:

        async def ask(kind: str, number: int) -> None:
            for place in range(number):
                begun = perf_counter()
                answer: Any
                try:
                    answer = await client.rank(
                        place % NUM_NODES['user'], items.tolist(), timeout=20
                    )
                except Exception as error:
                    answer = error
                found[kind].append((perf_counter() - begun, answer))
                await asyncio.sleep(0)

        async def phase(kind: str, number: int) -> None:
            await asyncio.gather(*(ask(kind, number // 2) for _ in range(2)))

        async def healthy() -> None:
            while (await client.rank(0, items.tolist(), timeout=20)).degraded:
                await asyncio.sleep(0.01)

        # What drills before have left is not looked through while requests wait.
        gc.collect()
        gc.freeze()
        await phase('normal', 100)
        found['normal'].clear()
        for _ in range(args.outages):
            await phase('normal', args.requests)
            redis.process.send_signal(signal.SIGSTOP)
            await phase('hung', args.requests)
            redis.process.send_signal(signal.SIGCONT)
            await healthy()
            await phase('normal', args.requests)
            redis.kill()
            await phase('down', args.requests)
            redis.mend()
            await asyncio.to_thread(redis.start)
            await healthy()
    normal = quantiles([seconds for seconds, _ in found['normal']])
    return [
        {
            'part': 'outages', 'kind': kind, 'seed': seed, 'outages': args.outages,
            'requests': len(of), 'failures': sum(isinstance(a, Exception) for _, a in of),
            'degraded': sum(bool(getattr(answer, 'degraded', ())) for _, answer in of),
            **(quantile := quantiles([seconds for seconds, _ in of])),
            'longest': 1000 * max(seconds for seconds, _ in of),
            'ratio': quantile['p99'] / normal['p99'],
        }
        for kind, of in found.items()
    ]  # fmt: skip


def measure(args: argparse.Namespace) -> list[Record]:
    # A busy machine may take longer over a commit than who waits for it should.
    sqlite_file._PATIENCE = 60.0
    with tempfile.TemporaryDirectory(prefix='mag-drills-') as temporary:
        folder = Path(temporary)
        # First: what is forked has no threads of others.
        records = [
            drill(folder / f'{where}-{breaks}', where, breaks, rounds, args.seed, args)
            for breaks, rounds in (('kills', args.kills), ('power cuts', args.cuts))
            for where in ('SQLite', 'Redis')
        ]
        records.append(asyncio.run(swaps(folder / 'swaps', args.seed, args)))
        return records + outages(folder / 'outages', args.seed, args)


def render(records: list[Record], load: tuple[float, float]) -> Iterator[str]:
    (swap_record,) = select(records, part='swaps')
    broken = [*select(records, part='kills'), *select(records, part='power cuts')]
    asked = select(records, part='outages')
    yield '# What is left when things break while serving'
    yield ''
    yield (
        f'The machine was not quiet: {load[0]:.1f} to {load[1]:.1f} programs wanted its '
        f'{os.cpu_count()} cores. All random choices are those of seed {broken[0]["seed"]}; what '
        f'the processes have done when they are killed is not.'
    )
    yield ''
    yield '## Kills and power cuts'
    yield ''
    yield (
        f'One producer that repeats itself and comes too early, {NUM_SHARDS} consumers and, in '
        f'Redis, the server: SIGKILL at random moments. Power cuts shorten the append-only file, '
        f'everysec, by up to 70,000 bytes, then redis-check-aof --fix, and what SQLite wrote ahead '
        f'by up to 400,000. After each round all rows are compared with a count of the log by '
        f'other code, and all events with those that were sent. Lost are events that the producer '
        f'was told of and that were gone: it sends them again.'
    )
    yield ''
    names = (
        'killed producers', 'killed consumers', 'killed servers', 'power cuts', 'events',
        'repeated', 'early', 'lost', 'rows', 'differ',
    )  # fmt: skip
    titles = (
        'producers', 'consumers', 'servers killed', 'power cuts', 'events', 'sent twice',
        'too early', 'lost and sent again', 'rows compared', 'differ',
    )  # fmt: skip
    yield from table(
        ['where', *titles],
        [[of['where'], *(f'{of[name]:,}' for name in names)] for of in broken],
        '---:',
    )
    yield ''
    yield '## Swaps under load'
    yield ''
    yield (
        'Between a snapshot of MacGNN and one of the model of counts at the target, of different '
        'positions, while three clients ask and one records: each answer is compared with that of '
        'a scorer that reads the log up to the position which the answer states.'
    )
    yield ''
    yield from table(
        ['swaps', 'answers', 'of positions', 'events recorded', 'failures', 'degraded',
         'farthest from offline'],
        [[
            *(
                f'{swap_record[name]:,}'
                for name in ('swaps', 'answers', 'positions', 'recorded', 'failures', 'degraded')
            ),
            f'{swap_record["farthest"]:.0e}',
        ]],
        '---:',
    )  # fmt: skip
    yield ''
    yield '## Redis hangs, and is gone'
    yield ''
    yield (
        f'Two clients ask a server whose log is in Redis, which is stopped by SIGSTOP, and killed, '
        f'{asked[0]["outages"]} times each, from the first request of an outage to the last: '
        f'milliseconds, and how many times the p99 of normal it is. The time-out of Redis is a '
        f'second.'
    )
    yield ''
    yield from table(
        ['Redis', 'requests', 'failures', 'degraded', 'p50', 'p99', 'longest', 'times'],
        [
            [
                of['kind'],
                *(f'{of[name]:,}' for name in ('requests', 'failures', 'degraded')),
                *(f'{of[name]:.1f}' for name in ('p50', 'p99', 'longest')),
                f'{of["ratio"]:.2f}',
            ]
            for of in asked
        ],
        '---:',
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.online_drills', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--json', type=Path, help='file for what was measured')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--log', type=int, default=400_000, help='events that may be sent')
    parser.add_argument('--kills', type=int, default=10, help='rounds of kills of each log')
    parser.add_argument('--cuts', type=int, default=10, help='power cuts of each log')
    parser.add_argument('--seconds', type=float, default=0.6, help='of a round, at most')
    parser.add_argument('--swaps', type=int, default=6)
    parser.add_argument('--outages', type=int, default=2, help='of each kind')
    parser.add_argument('--requests', type=int, default=600, help='of each phase of an outage')
    parser.add_argument('--asked', type=int, default=200, help='candidates')
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    records = measure(args)
    publish(render(records, (before, os.getloadavg()[0])), args.markdown)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1) + '\n')
