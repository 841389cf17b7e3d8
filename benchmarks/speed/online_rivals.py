r"""What a request costs by gRPC, by FastAPI and JSON, and with DIN in place of MacGNN.

Four servers, each in a process of its own with one thread of torch, rank the same candidates for
the same users: MacGNN behind :class:`mag.online.Server`; the same ranker behind FastAPI and
uvicorn, asked by httpx over connections that are kept; the model of counts at the target; and DIN
of deepctr-torch, which attends to the last clicks of the user, repeated for each candidate, behind
:class:`mag.online.Server` again. DIN's histories are in memory and do not follow the log. Weights
are random. Servers take turns, round by round, and medians of rounds are told.

    python benchmarks speed.online_rivals --markdown benchmarks/speed/online_rivals.md \
        --json benchmarks/speed/online_rivals.json
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIN
from fastapi import FastAPI
from pydantic import BaseModel
from records import Record, made_here, make_parser, publish, select, table

from mag.online import (
    AsyncClient,
    Overloaded,
    Ranked,
    Server,
    Snapshot,
    SnapshotRanker,
    SqliteStream,
)
from speed.online import (
    NUM_CANDIDATES,
    PAUSE,
    draw_events,
    processor_seconds,
    quantiles,
    request_of,
    scorer_of,
    server_of,
    snapshot_of,
)

PACKAGES = (
    'pyg-mag', 'torch', 'numpy', 'grpcio', 'fastapi', 'uvicorn', 'pydantic', 'httpx',
    'deepctr-torch',
)  # fmt: skip
WAYS = {
    'grpc': 'MacGNN, gRPC',
    'json': 'MacGNN, FastAPI and JSON',
    'count_net': 'CountNet, gRPC',
    'din': 'DIN, gRPC',
}
Ask = Callable[[int], Awaitable[np.ndarray]]


class Request(BaseModel):
    user: int
    items: list[int]
    time: int = 0
    context: dict[str, str | int | float] = {}


def histories(events: np.ndarray, num_users: int, length: int) -> np.ndarray:
    r"""The last items that each user clicked, plus one, oldest first, and 0 after them."""
    clicks = events[events['clicked'] == 1]
    clicks = clicks[np.argsort(clicks['user'], kind='stable')]
    user = clicks['user'].astype(np.int64)
    number = np.bincount(user, minlength=num_users)
    place = np.arange(len(user)) - (number.cumsum() - number)[user]
    place -= np.maximum(number - length, 0)[user]
    found = np.zeros((num_users, length), np.int64)
    found[user[place >= 0], place[place >= 0]] = clicks['item'][place >= 0] + 1
    return found


class DinRanker:
    r"""Ranks by DIN, of the user, the item, and the last items that the user clicked."""

    def __init__(self, history: np.ndarray, num_items: int) -> None:
        torch.manual_seed(0)
        columns = [
            SparseFeat('user', len(history), embedding_dim=10),
            SparseFeat('item', num_items + 1, embedding_dim=10),
            VarLenSparseFeat(
                SparseFeat('hist_item', num_items + 1, 10, embedding_name='item'),
                history.shape[1],
                length_name='length',
            ),
        ]
        self.model = DIN(columns, ['item'], device='cpu').eval()
        self.history = torch.from_numpy(history)

    def rank(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
    ) -> Ranked:
        history = self.history[int(user)]
        values = {
            'user': torch.tensor([int(user)]),
            'item': torch.tensor([int(item) + 1 for item in items])[:, None],
            'hist_item': history,
            'length': (history > 0).sum().reshape(1),
        }
        read = torch.empty(len(items), 3 + len(history))
        for name, (first, last) in self.model.feature_index.items():
            read[:, first:last] = values[name]
        with torch.inference_mode():
            return Ranked(self.model(read)[:, 0].numpy(), 0, 'din')

    def close(self) -> None:
        pass


def app_of(ranker: SnapshotRanker) -> FastAPI:
    r"""A ranker behind FastAPI, which asks it in threads."""
    app = FastAPI()

    @app.post('/rank')
    def rank(request: Request) -> dict[str, Any]:
        found = ranker.rank(request.user, request.items, request.time, request.context)
        return {
            'probability': found.probability.tolist(),
            'position': found.position,
            'snapshot': found.snapshot,
        }

    return app


def serve(way: str, path: str, log: Path, history: np.ndarray, num_items: int, told: Any) -> None:
    r"""A server until :obj:`SIGTERM`, in a process of its own, which tells its port."""
    torch.set_num_threads(1)
    if way == 'json':
        ranker = SnapshotRanker(lambda: scorer_of(Snapshot.open(path), log))
        # Of a socket that does not name TCP, asyncio leaves Nagle's algorithm on: 40 ms a request.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
            listening.bind(('127.0.0.1', 0))
            listening.listen()
            told.send(listening.getsockname()[1])
            config = uvicorn.Config(app_of(ranker), log_level='warning')
            uvicorn.Server(config).run([listening])
        return

    async def main() -> None:
        if way == 'din':
            server = Server(DinRanker(history, num_items), port=0)
        else:
            server = server_of(path, log)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await server.start()
        told.send(server.port)
        await ended.wait()
        await server.stop()

    asyncio.run(main())


async def asking(stack: AsyncExitStack, way: str, port: int, items: list[int]) -> Ask:
    r"""What asks a server over connections that are kept, and again when it is turned away."""
    if way == 'json':
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f'http://127.0.0.1:{port}', timeout=20)
        )

        async def by_json(user: int) -> np.ndarray:
            answer = await http.post('/rank', json={'user': user, 'items': items})
            return np.array(answer.raise_for_status().json()['probability'])

        return by_json
    client = await stack.enter_async_context(AsyncClient(f'127.0.0.1:{port}'))

    async def by_grpc(user: int) -> np.ndarray:
        while True:
            try:
                answer = await client.rank(user, items, timeout=20)
                return np.asarray(answer.probability)
            except Overloaded:
                await asyncio.sleep(PAUSE)

    return by_grpc


async def ask(
    ports: dict[str, int], processes: dict[str, int], num_nodes: dict[str, int],
    args: argparse.Namespace,
) -> tuple[list[Record], dict[str, np.ndarray]]:  # fmt: skip
    r"""The records of rounds in which servers take turns, and what each answers for user 0."""
    items = request_of(num_nodes, args.asked)[1].tolist()
    records: list[Record] = []
    async with AsyncExitStack() as stack:
        asks = {way: await asking(stack, way, port, items) for way, port in ports.items()}
        answers = {way: await act(0) for way, act in asks.items()}
        if not np.allclose(answers['grpc'], answers['json'], rtol=0, atol=1e-6):
            raise RuntimeError('FastAPI answers otherwise than gRPC.')
        for act in asks.values():
            for user in range(5):
                await act(user % num_nodes['user'])

        async def one(act: Ask, seconds: list[float], left: Iterator[int]) -> None:
            for place in left:
                begun = perf_counter()
                await act(place % num_nodes['user'])
                seconds.append(perf_counter() - begun)

        for number in range(args.rounds):
            for clients in args.clients:
                for way, act in asks.items():
                    seconds: list[float] = []
                    left = iter(range(args.requests))
                    there, here = processor_seconds(processes[way]), process_time()
                    await asyncio.gather(*(one(act, seconds, left) for _ in range(clients)))
                    here = process_time() - here
                    there = processor_seconds(processes[way]) - there
                    records.append(
                        {
                            'way': way, 'clients': clients, 'round': number,
                            'candidates': len(items), **quantiles(seconds),
                            'server': 1000 * there / len(seconds),
                            'client': 1000 * here / len(seconds),
                        }
                    )  # fmt: skip
    return records, answers


def measure(args: argparse.Namespace) -> tuple[list[Record], dict[str, np.ndarray]]:
    num_nodes = {'user': args.users, 'item': args.items}
    numbers = dict.fromkeys(num_nodes, args.macro)
    events = draw_events(num_nodes, args.log, 1)
    history = histories(events, args.users, args.history)
    context = multiprocessing.get_context('spawn')
    processes: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    ports: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix='mag-rivals-') as temporary:
        folder = Path(temporary)
        paths = {
            name: snapshot_of(folder, name, events, num_nodes, numbers).path
            for name in ('macgnn', 'count_net')
        }
        try:
            for way in WAYS:
                log = folder / f'{way}.db'
                with SqliteStream(log, 'second') as stream:
                    stream.append(events, 0)
                told, tell = context.Pipe(duplex=False)
                path = paths['count_net' if way == 'count_net' else 'macgnn']
                process = processes[way] = context.Process(
                    target=serve, args=(way, path, log, history, args.items, tell), daemon=True
                )
                process.start()
                ends[way] = told
            for way, told in ends.items():
                if not told.poll(300):
                    raise RuntimeError(f'The server of {WAYS[way]} did not start.')
                ports[way] = told.recv()
            pids = {way: process.pid for way, process in processes.items()}
            return asyncio.run(ask(ports, pids, num_nodes, args))
        finally:
            for process in processes.values():
                process.terminate()
                process.join(20)
                process.kill()


def render(
    records: list[Record], load: tuple[float, float], args: argparse.Namespace
) -> Iterator[str]:
    yield '# The same requests by gRPC, by JSON, and of DIN'
    yield ''
    yield (
        f'{args.asked:,} candidates, {args.macro} x {args.macro} macro nodes, {args.users:,} users '
        f'and {args.items:,} items, DIN with the last {args.history} clicks. Medians of '
        f'{args.rounds} rounds of {args.requests} requests, in milliseconds: from question to '
        f'answer, of which p99 is nearly the slowest of a round, '
        f'and of the processor of the server and of all clients for each answer. Ratios '
        f'are to MacGNN by gRPC with as many clients. The machine was not quiet: on average '
        f'{load[0]:.1f} programs wanted its {os.cpu_count()} cores in the minute before, and '
        f'{load[1]:.1f} in the last one, these among them.'
    )
    yield ''
    rows = []
    for clients in args.clients:
        medians = {
            way: {
                name: float(
                    np.median([of[name] for of in select(records, way=way, clients=clients)])
                )
                for name in ('p50', 'p99', 'server', 'client')
            }
            for way in WAYS
        }
        base = medians['grpc']
        for way, of in medians.items():
            both = (of['server'] + of['client']) / (base['server'] + base['client'])
            rows.append(
                [WAYS[way], str(clients), *(f'{value:.1f}' for value in of.values()),
                 f'{of["p50"] / base["p50"]:.2f}', f'{both:.2f}']
            )  # fmt: skip
    yield from table(
        ['served', 'clients', 'p50', 'p99', 'server', 'client', 'ratio of p50',
         'ratio of processor'],
        rows,
        '---:',
    )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.online_rivals', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--json', type=Path, help='file for what was measured')
    parser.add_argument('--users', type=int, default=20_000)
    parser.add_argument('--items', type=int, default=20_000)
    parser.add_argument('--macro', type=int, default=100, help='macro nodes, a side')
    parser.add_argument('--log', type=int, default=250_000, help='events of the log')
    parser.add_argument('--history', type=int, default=100, help='clicks that DIN reads')
    parser.add_argument('--asked', type=int, default=NUM_CANDIDATES, help='candidates')
    parser.add_argument('--clients', nargs='+', type=int, default=[1, 4])
    parser.add_argument('--requests', type=int, default=100, help='of a round')
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    records, _ = measure(args)
    publish(render(records, (before, os.getloadavg()[0]), args), args.markdown)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1) + '\n')
