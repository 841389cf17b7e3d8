r"""What it takes to be up to date while serving: events a second, reads, scores, and requests.

Events are drawn by power laws, of 100,000 users and 20,000 items in 200 clusters each. They are
appended to a log in a file of SQLite or in Redis, and counted from it in a centre of rows, each for
a few seconds. The rows of a request are then read from both centres and from a replica in memory.
MacGNN and the model of counts at the target score candidates in process, of a snapshot whose rows
are counts of other such events. At the end a server in a process of its own answers clients of one
event loop by gRPC: as many as there are of them wait for an answer each, and one that is turned
away waits 10 ms. Processor time is that of all processes that have a part in it. Redis is a server
that is started here.

    python benchmarks speed.online --markdown benchmarks/speed/online.md \
        --json benchmarks/speed/online.json
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from records import Record, made_here, make_parser, publish, select, table
from scipy.sparse import csr_matrix
from torch import Tensor
from tqdm import tqdm

from mag.datasets import IdMap
from mag.macro_graph import prior_places, target_views
from mag.models import CountNet, MacGNN
from mag.online import (
    EVENT,
    AsyncClient,
    Consumer,
    EventStream,
    FeatureCenter,
    Overloaded,
    Program,
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
    checksum_of,
    connect,
    count_events,
    load_program,
    write_snapshot,
)
from mag.online.node_rows import columns_of
from mag.online.pair_runs import pack_pairs, unpack_pairs
from mag.schema import NEIGHBOR_TYPE
from speed.redis_server import RedisServer

PACKAGES = ('pyg-mag', 'torch', 'numpy', 'grpcio', 'redis')
MODELS = {'macgnn': 'MacGNN', 'count_net': 'CountNet'}
BATCHES = (64, 1000, 8192)
NUM_RECENT = 20
NUM_CLUSTERS = 200
NUM_CATEGORIES = 50
CLICK_SHARE = 0.3
# Candidates of a request to the server, and of one that reads rows.
NUM_CANDIDATES = 1000
# Of the candidates, those that have had an event since they were scored.
SHARES = {'none moved': 0.0, 'a tenth moved': 0.1, 'all moved': 1.0}
# Seconds that one who was turned away waits.
PAUSE = 0.01
TICKS = os.sysconf('SC_CLK_TCK')


class Cost(NamedTuple):
    r"""Seconds that passed, and seconds of the processor: here, and in another process."""

    wall: float
    here: float
    there: float


def draw_nodes(number: int, num_events: int, generator: np.random.Generator) -> np.ndarray:
    r"""Nodes of which the one at rank :math:`r` is drawn in proportion to :math:`1 / r`."""
    chance = 1 / np.arange(1, number + 1)
    bounds = chance.cumsum() / chance.sum()
    ranks = np.minimum(np.searchsorted(bounds, generator.random(num_events)), number - 1)
    return generator.permutation(number)[ranks]


def draw_events(num_nodes: dict[str, int], num_events: int, seed: int) -> np.ndarray:
    r"""Events of a few nodes that are much more active than others."""
    generator = np.random.default_rng(seed)
    events = np.empty(num_events, EVENT)
    for node, number in num_nodes.items():
        events[node] = draw_nodes(number, num_events, generator)
    events['time'] = np.arange(num_events) // 10 + 1_700_000_000
    events['clicked'] = generator.random(num_events) < CLICK_SHARE
    return events


def draw_clusters(num_nodes: dict[str, int], numbers: dict[str, int]) -> dict[str, np.ndarray]:
    r"""The cluster of each node at the only resolution, shape :obj:`[1, N]`."""
    generator = np.random.default_rng(1)
    return {
        node: generator.integers(0, numbers[node], (1, number))
        for node, number in num_nodes.items()
    }


def make_model(name: str, num_nodes: dict[str, int], numbers: dict[str, int]) -> torch.nn.Module:
    r"""A model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    if name == 'macgnn':
        sizes = (num_nodes['user'], num_nodes['item'], numbers['user'], numbers['item'])
        return MacGNN(*sizes).eval()
    prior = prior_places(target_views(['cluster'], ['cluster']))
    num_values = {**num_nodes, 'item_category': NUM_CATEGORIES}
    return CountNet(
        num_values, tuple(num_values), prior, CLICK_SHARE, id_counts={'user': 0, 'item': 1}
    ).eval()


def snapshot_of(
    folder: Path,
    name: str,
    events: np.ndarray,
    num_nodes: dict[str, int],
    numbers: dict[str, int],
    **programs: Any,
) -> Snapshot:
    r"""A snapshot of a model, and of its programs, that holds the counts of events."""
    layout = RowLayout(NUM_RECENT, {node: [number] for node, number in numbers.items()})
    clusters = draw_clusters(num_nodes, numbers)
    nodes = {node: events[node].astype(np.int64) for node in NEIGHBOR_TYPE}
    clicked = events['clicked'] == 1
    clicks = np.flatnonzero(clicked)
    pair, first = np.unique(
        pack_pairs(nodes['user'][clicks], nodes['item'][clicks]), return_index=True
    )
    pairs = np.stack(unpack_pairs(pair))
    is_new_pair = np.zeros(len(events), bool)
    is_new_pair[clicks[first]] = True
    rows = {}
    for node, neighbor in NEIGHBOR_TYPE.items():
        rows[node] = layout.empty(node, num_nodes[node])
        columns = columns_of(layout, neighbor, clusters[neighbor])[nodes[neighbor]]
        count_events(rows[node], nodes[node], nodes[neighbor], columns, clicked, is_new_pair)
    shape = (num_nodes['user'], num_nodes['item'])
    clicked_pairs = csr_matrix((np.ones(len(pair), np.int64), pairs), shape)
    hop_2 = {
        node: between @ rows[neighbor]['pairs'][:, : numbers[node]].astype(np.int64)
        for (node, neighbor), between in zip(
            NEIGHBOR_TYPE.items(), (clicked_pairs, clicked_pairs.T.tocsr()), strict=True
        )
    }
    cells = np.zeros((numbers['user'] + 1, numbers['item'] + 1, 2), np.int64)
    cell = [clusters[node][0][nodes[node]] for node in ('user', 'item')]
    np.add.at(cells[..., 0], tuple(cell), 1)
    np.add.at(cells[..., 1], tuple(cell), clicked)
    path = write_snapshot(
        folder,
        model=name,
        position=len(events),
        checksum=checksum_of(events),
        time=int(events['time'][-1]),
        layout=layout,
        resolutions={node: ['cluster'] for node in numbers},
        clusters=clusters,
        rows=rows,
        hop_2=hop_2 if name == 'macgnn' else {},
        cells={(0, 0): cells},
        pairs=pairs,
        id_maps={
            **{node: IdMap(np.arange(number)) for node, number in num_nodes.items()},
            'category': IdMap(np.arange(NUM_CATEGORIES)),
        },
        attributes={
            'user': {},
            'item': {'category': np.arange(num_nodes['item']) % NUM_CATEGORIES},
        },
        contexts=[],
        weights=make_model(name, num_nodes, numbers).state_dict(),
        **programs,
    )
    return Snapshot.open(path)


def scorer_of(snapshot: Snapshot, log: Path) -> Scorer:
    r"""A scorer of a snapshot that follows a log in a file."""
    numbers = {node: of[0] for node, of in snapshot.layout.num_clusters.items()}
    model = make_model(snapshot.model, snapshot.num_nodes, numbers)
    model.load_state_dict(snapshot.weights())
    return Scorer(snapshot, Replica(snapshot, SqliteStream(log, 'second')), model)


def programs_of(
    model: torch.nn.Module, batch: Any, write: Callable[..., Snapshot]
) -> dict[str, torch.nn.Module]:
    r"""The program of a model and its native code, as a server reads them of a snapshot."""
    program = Program.export(model, batch)
    native = program.to_native(batch)
    snapshot = write(program=program, compiled=native)
    return {
        'program': load_program(snapshot),
        'compiled': load_program(snapshot, [native.facts['sha256']]),
    }


@contextmanager
def redis_of(folder: Path, fsync: str) -> Iterator[tuple[str, int]]:
    r"""A Redis server that keeps a file: its URL and its process."""
    server = RedisServer(folder, '--appendfsync', fsync)
    try:
        yield server.url, server.process.pid
    finally:
        server.kill()


def processor_seconds(process: int | None) -> float:
    r"""The processor time of another process; of none, 0."""
    if process is None:
        return 0.0
    times = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(times[11]) + int(times[12])) / TICKS


def memory(process: int | None) -> dict[str, float]:
    r"""What a process holds for itself and what it has mapped of files, in MiB."""
    lines = Path('/proc', str(process or 'self'), 'status').read_text().splitlines()
    found = dict(line.split(':', 1) for line in lines)
    return {name: int(found[name].split()[0]) / 1024 for name in ('RssAnon', 'RssFile')}


def cost_of(act: Callable[[], Any], process: int | None = None) -> Cost:
    r"""What a call takes, here and in another process."""
    there, here, wall = processor_seconds(process), process_time(), perf_counter()
    act()
    wall, here = perf_counter() - wall, process_time() - here
    return Cost(wall, here, processor_seconds(process) - there)


def for_seconds(act: Callable[[], int], seconds: float) -> int:
    r"""Calls until the time has passed or nothing is left, and returns the sum."""
    total, end = 0, monotonic() + seconds
    while monotonic() < end and (number := act()) > 0:
        total += number
    return total


def rate(part: str, way: str, batch: int, act: Callable[[], int], process: int | None) -> Record:
    r"""The record of how many events a call gets through."""
    found: list[int] = []
    cost = cost_of(lambda: found.append(act()), process)
    busy = cost.here + cost.there
    return {
        'part': part, 'way': way, 'batch': batch, 'events': found[0],
        'each_second': found[0] / cost.wall, 'each_processor_second': found[0] / busy,
        'server_share': cost.there / busy,
    }  # fmt: skip


def append_all(stream: EventStream, events: np.ndarray, batch: int, seconds: float) -> int:
    position = stream.end

    def act() -> int:
        nonlocal position
        first = position % (len(events) - batch + 1)
        position = stream.append(events[first : first + batch], position)
        return batch

    return for_seconds(act, seconds)


def _stream_in_file(folder: Path, durability: str, name: str) -> SqliteStream:
    return SqliteStream(folder / f'{durability}-{name}.db', durability)


def ingest(
    folder: Path, events: np.ndarray, num_nodes: dict[str, int], args: argparse.Namespace
) -> list[Record]:
    r"""The records of appending, applying and reading."""
    numbers = dict.fromkeys(NEIGHBOR_TYPE, args.clusters)
    layout = RowLayout(NUM_RECENT, {node: [number] for node, number in numbers.items()})
    clusters = {
        node: [torch.from_numpy(of) for of in found]
        for node, found in draw_clusters(num_nodes, numbers).items()
    }
    records = []
    with ExitStack() as stack:
        logs: dict[str, tuple[Callable[[str], EventStream], int | None]] = {}
        for durability in ('second', 'always'):
            logs[f'SQLite, {durability}'] = (
                partial(_stream_in_file, folder, durability),
                None,
            )
        for fsync in ('everysec', 'always'):
            url, process = stack.enter_context(redis_of(folder / fsync, fsync))
            client = stack.enter_context(connect(url, timeout=30))
            logs[f'Redis, {fsync}'] = (partial(RedisStream, client), process)
            if fsync == 'everysec':
                everysec, redis_process = client, process
        for way, (open_stream, process) in tqdm(logs.items(), 'append', leave=False):
            for batch in BATCHES:
                with open_stream(f'of-{batch}') as stream:
                    act = partial(append_all, stream, events, batch, args.seconds)
                    records.append(rate('append', way, batch, act, process))
                    # Redis holds all of it in memory.
                    stream.trim(stream.end)
        centers: dict[str, tuple[Callable[[str], FeatureCenter], EventStream, int | None]] = {
            'SQLite': (
                lambda name: SqliteCenter(folder / f'{name}.db', layout),
                stack.enter_context(SqliteStream(folder / 'all.db', 'second')),
                None,
            ),
            'Redis, everysec': (
                lambda name: RedisCenter(everysec, layout, name),
                RedisStream(everysec, 'all'),
                redis_process,
            ),
        }
        user, items = request_of(num_nodes, NUM_CANDIDATES)
        for way, (open_center, stream, process) in tqdm(centers.items(), 'apply', leave=False):
            stream.append(events, 0)
            for batch in BATCHES:
                with open_center(f'rows-{batch}') as center:
                    consumer = Consumer(stream, center, layout, clusters)
                    act = partial(for_seconds, partial(consumer.step, batch), 2 * args.seconds)
                    records.append(rate('apply', way, batch, act, process))
                    if batch == BATCHES[-1]:
                        records.append(read(way, center.read, user, items, process, args))
        path = folder / 'snapshots'
        snapshot = snapshot_of(path, 'count_net', events, num_nodes, numbers)
        replica = Replica(snapshot, stack.enter_context(SqliteStream(folder / 'more.db')))
        records.append(read('replica', replica.rows, user, items, None, args))
    return records


def request_of(num_nodes: dict[str, int], number: int) -> tuple[int, np.ndarray]:
    r"""A user and candidates, each once if there are as many items."""
    items = np.random.default_rng(2).permutation(num_nodes['item'])
    return 7, np.resize(items, number).astype(np.int64)


def read(
    way: str,
    rows: Callable[[str, np.ndarray], np.ndarray],
    user: int,
    items: np.ndarray,
    process: int | None,
    args: argparse.Namespace,
) -> Record:
    r"""The record of reading what a request needs."""

    def act() -> None:
        rows('user', np.array([user], np.int64))
        rows('item', items)

    act()
    there = processor_seconds(process)
    costs = [cost_of(act) for _ in range(args.repeats)]
    there = (processor_seconds(process) - there) / args.repeats
    return {
        'part': 'read', 'way': way, 'rows': 1 + len(items), **quantiles([of.wall for of in costs]),
        'here': 1000 * float(np.median([of.here for of in costs])), 'there': 1000 * there,
    }  # fmt: skip


def quantiles(seconds: Sequence[float]) -> Record:
    r"""Milliseconds."""
    shares = {'p50': 0.5, 'p99': 0.99, 'p99.9': 0.999}
    return {name: 1000 * float(np.quantile(seconds, share)) for name, share in shares.items()}


def score(
    folder: Path, name: str, numbers: tuple[int, int], events: np.ndarray, args: argparse.Namespace
) -> list[Record]:
    r"""The records of scoring in this process."""
    sizes = dict(zip(NEIGHBOR_TYPE, numbers, strict=True))
    num_nodes = {'user': args.served_users, 'item': args.served_items}
    write = partial(snapshot_of, folder, name, events, num_nodes, sizes)
    snapshot = write()
    kept = scorer_of(snapshot, folder / 'log.db')
    stream = kept.replica.stream
    with stream:
        if stream.end == 0:
            stream.append(events, 0)
        follow(kept.replica)
        eager = Scorer(snapshot, kept.replica, kept.model, max_bytes=0)
        example = eager.batch(0, [0, 1])
        others = {
            way: Scorer(snapshot, kept.replica, model)
            for way, model in programs_of(kept.model, example, write).items()
        }
        records = []
        for number in args.candidates:
            user, candidates = request_of(num_nodes, number)
            items = candidates.tolist()
            ways: dict[str, tuple[Callable[[], Any], float]] = {
                'batch': (partial(eager.batch, user, items), 0),
                'eager': (partial(eager.score, user, items), 0),
                **{way: (partial(of.score, user, items), 0) for way, of in others.items()},
            }
            if kept.table is not None:
                for way, share in SHARES.items():
                    ways[way] = partial(kept.score, user, items), share
            times: dict[str, list[float]] = {way: [] for way in ways}
            scores: dict[str, Tensor] = {}
            for _ in range(args.repeats):
                for way, (act, share) in ways.items():
                    if share > 0:
                        move(kept.replica, candidates[: int(share * number)])
                    times[way].append(cost_of(act).here)
            for way, scorer in {'eager': eager, **others, 'tables': kept}.items():
                scores[way] = scorer.score(user, items).probabilities['click']
                if not torch.allclose(scores[way], scores['eager'], rtol=0, atol=1e-6):
                    raise RuntimeError(f'{name} scores {number} candidates otherwise by its {way}.')
            medians = {way: 1000 * float(np.median(of)) for way, of in times.items()}
            records.append(
                {
                    'part': 'score',
                    'model': name,
                    'macro': list(numbers),
                    'candidates': number,
                    **medians,
                }  # fmt: skip
            )
    return records


def follow(replica: Replica) -> None:
    while replica.follow() > 0:
        pass


def move(replica: Replica, items: np.ndarray) -> None:
    r"""An event of each item, which is counted."""
    events = np.zeros(len(items), EVENT)
    events['user'], events['item'] = items % replica.snapshot.num_nodes['user'], items
    events['time'], events['clicked'] = replica.time, 1
    replica.stream.append(events, replica.position)
    follow(replica)


def server_of(path: str, log: Path) -> Server:
    r"""A server of a snapshot that follows a log in a file, and appends to it."""
    ids = Snapshot.open(path).id_maps
    return Server(
        SnapshotRanker(lambda: scorer_of(Snapshot.open(path), log)),
        port=0,
        open_stream=lambda: SqliteStream(log, 'second'),
        nodes=lambda node_type, raw: ids[node_type].encode(raw),
    )


def serve(path: str, log: Path, told: Any) -> None:
    r"""A server until :obj:`SIGTERM`, in a process of its own, which tells its port."""
    torch.set_num_threads(1)

    async def main() -> None:
        server, ended = server_of(path, log), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await server.start()
        told.send((server.port, server.max_in_flight))
        await ended.wait()
        await server.stop()

    asyncio.run(main())


def answer(
    folder: Path, name: str, numbers: tuple[int, int], events: np.ndarray, args: argparse.Namespace
) -> list[Record]:
    r"""The records of a server that clients ask."""
    sizes = dict(zip(NEIGHBOR_TYPE, numbers, strict=True))
    num_nodes = {'user': args.served_users, 'item': args.served_items}
    path = snapshot_of(folder, name, events, num_nodes, sizes).path
    log = folder / f'{name}.db'
    with SqliteStream(log, 'second') as stream:
        stream.append(events, 0)
    context = multiprocessing.get_context('spawn')
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(path, log, tell), daemon=True)
    process.start()
    try:
        if not told.poll(300):
            raise RuntimeError(f'The server of {name} did not start.')
        port, limit = told.recv()
        facts = {'model': name, 'macro': list(numbers), 'limit': limit}
        found = asyncio.run(ask(port, process.pid, num_nodes, args))
        return [{**facts, **record} for record in found]
    finally:
        process.terminate()
        process.join(20)
        process.kill()


async def ask(
    port: int, process: int | None, num_nodes: dict[str, int], args: argparse.Namespace
) -> list[Record]:
    r"""The records of clients that ask a server, in a process if it has one of its own."""
    user, items = request_of(num_nodes, args.asked)
    asked = items.tolist()
    records: list[Record] = []
    async with AsyncClient(f'127.0.0.1:{port}') as client:

        async def one(seconds: list[float], left: Iterator[int]) -> int:
            r"""Asks until each is answered, and returns how often it was turned away."""
            num_shed = 0
            for place in left:
                while True:
                    begun = perf_counter()
                    try:
                        await client.rank(place % num_nodes['user'], asked, timeout=20)
                    except Overloaded:
                        num_shed += 1
                        await asyncio.sleep(PAUSE)
                    else:
                        seconds.append(perf_counter() - begun)
                        break
            return num_shed

        await one([], iter(range(20)))
        for num_clients in args.clients:
            number = args.requests if num_clients == 1 else args.requests // 2
            seconds: list[float] = []
            left = iter(range(number))
            there, here, wall = processor_seconds(process), process_time(), perf_counter()
            shed = await asyncio.gather(*(one(seconds, left) for _ in range(num_clients)))
            wall, here = perf_counter() - wall, process_time() - here
            there = processor_seconds(process) - there
            records.append(
                {
                    'part': 'answer',
                    'clients': num_clients,
                    'candidates': len(asked),
                    'answered': len(seconds),
                    'shed': sum(shed),
                    **quantiles(seconds),
                    'each_second': len(seconds) / wall,
                    'here': 1000 * here / len(seconds),
                    'there': 1000 * there / len(seconds),
                }  # fmt: skip
            )
        visible, appended = [], []
        for place in range(args.events):
            begun = perf_counter()
            end = await client.record([user], [asked[place % len(asked)]], [2 * 10**9], [True])
            appended.append(perf_counter() - begun)
            while (await client.rank(user, asked, timeout=20)).position < end:
                pass
            visible.append(perf_counter() - begun)
        records.append(
            {
                'part': 'visible',
                'events': args.events,
                **quantiles(visible),
                'appended': quantiles(appended)['p50'],
                **memory(process),
            }  # fmt: skip
        )
    return records


def measure(args: argparse.Namespace) -> list[Record]:
    num_nodes = {'user': args.users, 'item': args.items}
    served = {'user': args.served_users, 'item': args.served_items}
    with tempfile.TemporaryDirectory(prefix='mag-online-') as temporary:
        folder = Path(temporary)
        for name in ('rows', 'score', 'answer'):
            (folder / name).mkdir()
        records = ingest(folder / 'rows', draw_events(num_nodes, args.log, 0), num_nodes, args)
        events = draw_events(served, args.log // 4, 1)
        macro = [tuple(map(int, of.split('x'))) for of in args.macro]
        for numbers in tqdm(macro, 'score', leave=False):
            for name in MODELS:
                records += score(folder / 'score', name, numbers, events, args)
        for name in tqdm(MODELS, 'answer', leave=False):
            numbers = tuple(map(int, args.answered.split('x')))
            records += answer(folder / 'answer', name, numbers, events, args)
    return records


def thousands(value: float) -> str:
    return f'{value:,.0f}'


def render(
    records: list[Record], load: tuple[float, float], args: argparse.Namespace
) -> Iterator[str]:
    yield '# What it takes to be up to date while serving'
    yield ''
    yield (
        f'The machine was not quiet: on average {load[0]:.1f} programs wanted its '
        f'{os.cpu_count()} cores in the minute before, and {load[1]:.1f} in the last one, these '
        f'among them. So seconds that pass are many more than they would be alone; those of the '
        f'processor, of all processes together, grow, too: from one run to a busier one some rows '
        f'nearly doubled, and where each batch waits for the disk up to four times as much.'
    )
    for part, title, verb in (
        ('append', 'Events appended', 'Appended to an empty log, batch by batch'),
        (
            'apply',
            'Events applied',
            f'Counted by one consumer for {2 * args.seconds:g} seconds in a centre that is empty '
            f'at first',
        ),
    ):
        yield ''
        yield f'## {title}'
        yield ''
        yield (
            f'{verb}, of {args.users:,} users and {args.items:,} items'
            + (
                f' in {args.clusters} clusters a side, with the last {NUM_RECENT} neighbors'
                if part == 'apply'
                else ''
            )
            + '. The share is that of the Redis server.'
        )
        yield ''
        yield from table(
            ['where', 'batch', 'events', 'a second', 'a processor second', 'share of server'],
            [
                [
                    of['way'],
                    *(
                        thousands(of[name])
                        for name in ('batch', 'events', 'each_second', 'each_processor_second')
                    ),
                    f'{of["server_share"]:.0%}',
                ]
                for of in select(records, part=part)
            ],
            '---:',
        )
    yield ''
    yield '## Rows read'
    yield ''
    yield f'{1 + NUM_CANDIDATES:,} rows, of a user and items, in milliseconds.'
    yield ''
    yield from table(
        ['from', 'p50', 'p99', 'processor here', 'processor of server'],
        [
            [of['way'], *(f'{of[name]:.2f}' for name in ('p50', 'p99', 'here', 'there'))]
            for of in select(records, part='read')
        ],
        '---:',
    )
    yield ''
    yield '## Scores in process'
    yield ''
    yield (
        f'Milliseconds of the processor, the median of {args.repeats} in turn: what the model '
        f'reads of a request alone, and with the scores of the model, of its exported program, '
        f'of native code that AOTInductor makes of that, or by item tables, which agree to 1e-6. '
        f'Of the candidates none, a tenth, or all have had an event since their items were '
        f'computed. {args.served_users:,} users and '
        f'{args.served_items:,} items; MacGNN with two hops.'
    )
    yield ''
    yield from table(
        ['model', 'macro nodes', 'candidates', 'read', 'eager', 'program', 'compiled',
         *(f'item tables, {way}' for way in SHARES)],
        [
            [
                MODELS[of['model']],
                ' x '.join(map(str, of['macro'])),
                thousands(of['candidates']),
                *(f'{of[name]:.2f}' for name in ('batch', 'eager', 'program', 'compiled')),
                *(f'{of[way]:.2f}' if way in of else '' for way in SHARES),
            ]
            for of in select(records, part='score')
        ],
        '---:',
    )  # fmt: skip
    asked = select(records, part='answer')
    yield ''
    yield '## Requests by gRPC'
    yield ''
    yield (
        f'{asked[0]["candidates"]:,} candidates, {args.answered.replace("x", " x ")} macro nodes, '
        f'one server that takes {asked[0]["limit"]} requests at once and tells others so, which is '
        f'"shed": clients ask again after {1000 * PAUSE:.0f} ms. Milliseconds from '
        f'the question that was answered on, and, for each answer, those of the processor of the '
        f'server and of all clients, which are in one event loop.'
    )
    yield ''
    yield from table(
        ['model', 'clients', 'answered', 'shed', 'p50', 'p99', 'p99.9', 'a second', 'server',
         'clients'],
        [
            [
                MODELS[of['model']],
                *(thousands(of[name]) for name in ('clients', 'answered', 'shed')),
                *(f'{of[name]:.1f}' for name in ('p50', 'p99', 'p99.9')),
                thousands(of['each_second']),
                *(f'{of[name]:.1f}' for name in ('there', 'here')),
            ]
            for of in asked
        ],
        '---:',
    )  # fmt: skip
    yield ''
    yield '## From an event to an answer that has seen it'
    yield ''
    yield (
        f'Recorded by gRPC, then ranked until the answer is as of a position after it, both in '
        f'turn by one client: milliseconds of {args.events} events.'
    )
    yield ''
    yield from table(
        ['model', 'p50', 'p99', 'of which recorded, p50'],
        [
            [MODELS[of['model']], *(f'{of[name]:.1f}' for name in ('p50', 'p99', 'appended'))]
            for of in select(records, part='visible')
        ],
        '---:',
    )
    yield ''
    yield '## Memory of the server'
    yield ''
    yield (
        'After all that, in MiB: its own, with what Python and the libraries take, and what it has '
        'mapped of files, the snapshot and those libraries.'
    )
    yield ''
    yield from table(
        ['model', 'own', 'mapped'],
        [
            [MODELS[of['model']], *(f'{of[name]:.0f}' for name in ('RssAnon', 'RssFile'))]
            for of in select(records, part='visible')
        ],
        '---:',
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.online', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--json', type=Path, help='file for what was measured')
    parser.add_argument('--users', type=int, default=100_000)
    parser.add_argument('--items', type=int, default=20_000)
    parser.add_argument('--clusters', type=int, default=NUM_CLUSTERS, help='of rows, a side')
    parser.add_argument('--log', type=int, default=1_000_000, help='events of the log')
    parser.add_argument('--seconds', type=float, default=2.0, help='of each log; twice a centre')
    parser.add_argument('--served-users', type=int, default=20_000)
    parser.add_argument('--served-items', type=int, default=20_000)
    parser.add_argument('--macro', nargs='+', default=['20x20', '100x100', '200x300'])
    parser.add_argument('--candidates', nargs='+', type=int, default=[10, 100, 1000, 2000])
    parser.add_argument('--repeats', type=int, default=50, help='of reads and scores')
    parser.add_argument('--answered', default='100x100', help='macro nodes of the server')
    parser.add_argument('--asked', type=int, default=NUM_CANDIDATES, help='candidates by gRPC')
    parser.add_argument('--clients', nargs='+', type=int, default=[1, 2, 4, 8])
    parser.add_argument('--requests', type=int, default=2000, help='of one client; half of more')
    parser.add_argument('--events', type=int, default=200, help='that are waited for')
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    records = measure(args)
    publish(render(records, (before, os.getloadavg()[0]), args), args.markdown)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1) + '\n')
