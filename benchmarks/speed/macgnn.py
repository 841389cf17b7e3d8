r"""How fast MacGNN trains and scores, against DIN with 100 history items from DeepCTR-Torch.

Both read the same rows of MovieLens-1M (training labels from q30 on, rolling windows) in batches of
the same size, and are measured in turn, so that a slow moment of the machine hits both. A training
step is forward, backward and a step of Adam, fused. Then MacGNN's step is taken apart: where the
time goes, and how long its matrix products alone take, called one by one with the same shapes and
strides. Timings mean something only on a machine that does nothing else.

    python benchmarks speed.macgnn --root data/movielens-1m \
        --markdown benchmarks/speed/macgnn.md

The folder --root holds the raw files, raw/ml-1m/*.dat.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from statistics import median, quantiles
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from accuracy.pair_models import DeepCTR
from records import made_here, publish, table
from timing import in_words, seconds_of, take_turns
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.transforms import Compose

from mag.datasets import MovieLens
from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit
from speed.training import Subject, make_training_parser

HISTORY = {'MacGNN': 20, 'DIN': 100}
PACKAGES = ('pyg-mag', 'torch', 'deepctr-torch')
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class Bench(NamedTuple):
    r"""What is measured of a model."""

    subject: Subject
    loader: PairLoader
    batches: list[PairBatch]


def make_benches(args: argparse.Namespace) -> dict[str, Bench]:
    data = MovieLens(args.root, '1m')[0]
    train = TemporalSplit()(data)[0]
    coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(train)
    benches = {}
    for name, num in HISTORY.items():
        torch.manual_seed(0)
        part = Compose([RecentNeighbors(num), coarsen])(train)
        model = MacGNN.from_data(part) if name == 'MacGNN' else DeepCTR.from_data(part, 'din')
        # DIN reads the user's recent items alone; it does not pay for gathering the rest.
        if name == 'DIN':
            del part['item'].recent
        loader = PairLoader(part, args.batch_size, shuffle=True)
        if name == 'DIN':
            loader.dataset.macro_rows.hops = {'user': (), 'item': ()}
        batches = [batch for batch, _ in zip(loader, range(args.steps))]
        benches[name] = Bench(Subject(model, weight_decay=5e-5), loader, batches)
    return benches


def samples_per_second(
    act: Callable[[PairBatch], None], batches: Iterable[PairBatch], steps: int
) -> float:
    rows = 0
    start = perf_counter()
    for batch, _ in zip(batches, range(steps)):
        act(batch)
        rows += batch.user.numel()
    return rows / (perf_counter() - start)


def request_seconds(bench: Bench, num_requests: int, num_candidates: int) -> list[float]:
    r"""Seconds of requests, from a user and candidate ids to their probabilities."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = bench.loader.dataset.exposures.num_nodes
    seconds = []
    for _ in range(num_requests):
        user = int(torch.randint(num_nodes['user'], (), generator=generator))
        items = torch.randint(num_nodes['item'], (num_candidates,), generator=generator)
        seconds.append(seconds_of(lambda: bench.subject.score(bench.loader.request(user, items))))  # noqa: B023
    return seconds


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, float]:
    subject, steps = bench.subject, args.steps
    values = {}
    for mode, act in (('training', subject.step), ('scoring', subject.score)):
        subject.model.train(mode == 'training')
        values[f'{mode} samples/s'] = samples_per_second(act, bench.batches, steps)
        values[f'{mode} samples/s, with loader'] = samples_per_second(act, bench.loader, steps)
    latency = quantiles(request_seconds(bench, args.requests, args.candidates), n=100)
    values['latency p50, ms'] = 1000 * latency[49]
    values['latency p99, ms'] = 1000 * latency[98]
    return values


class MatrixProducts(TorchDispatchMode):
    r"""Collects the operands of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        r"""Additions and multiplications."""
        return sum(2 * args[-2].numel() * args[-1].size(-1) for _, args in self.calls)

    def replay(self) -> None:
        for func, args in self.calls:
            func(*args)


def median_seconds_of(act: Callable[[], None], repeats: int) -> float:
    r"""The median, after a warm-up."""
    return median([seconds_of(act) for _ in range(repeats + 3)][3:])


def take_apart(bench: Bench, threads: int, repeats: int) -> Iterator[str]:
    r"""A roofline and a profile of MacGNN's step, as Markdown."""
    subject, batches = bench.subject, cycle(bench.batches)
    subject.model.train()
    products = MatrixProducts()
    with products:
        subject.step(next(batches))
    with torch.no_grad():
        bare = median_seconds_of(products.replay, repeats)
    step = median_seconds_of(lambda: subject.step(next(batches)), repeats)
    compiled = Subject(cast(nn.Module, torch.compile(subject.model)), weight_decay=5e-5)
    fused = median_seconds_of(lambda: compiled.step(next(batches)), repeats)
    yield (
        f'{in_words(threads)}: a step takes {1000 * step:.2f} ms; its '
        f'{len(products.calls)} matrix products ({products.operations / 1e6:.0f} million '
        f'operations) alone take {1000 * bare:.2f} ms at '
        f'{products.operations / bare / 1e9:.0f} GFLOP/s, {bare / step:.0%} of the step. Under '
        f'`torch.compile`, which fuses what is not a product, a step takes {1000 * fused:.2f} ms, '
        f'of which the products are {bare / fused:.0%}.'
    )
    yield ''
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            subject.step(next(batches))
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        shares[event.key] += event.self_cpu_time_total / total
        calls[event.key] += event.count
    largest = sorted(shares, key=lambda key: -shares[key])[:12]
    rows = [[f'`{key}`', f'{shares[key]:.1%}', f'{calls[key] / repeats:.0f}'] for key in largest]
    rest = 1 - sum(shares[key] for key in largest)
    rows.append([f'the other {len(shares) - 12}', f'{rest:.1%}', ''])
    yield from table(['operation', 'share of the step', 'calls a step'], rows)


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    benches = make_benches(args)
    yield '# Training and scoring'
    yield ''
    yield (
        f'MovieLens-1M, rolling windows; batches of {args.batch_size:,} rows; MacGNN with '
        f'{HISTORY["MacGNN"]} recent neighbors, DIN of DeepCTR-Torch with {HISTORY["DIN"]} history '
        f'items, both with embeddings of 10 and a head of 200 and 80. The median of '
        f'{args.repeats} runs in turn, of {args.steps} steps and {args.requests} requests each. A '
        f'request scores {args.candidates:,} candidates for one user, from ids to probabilities.'
    )
    profiles: list[str] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for bench in benches.values():
            bench.subject.model.train()
            bench.subject.step(bench.batches[0])
        values = take_turns(
            {name: partial(measure, bench, args) for name, bench in benches.items()},
            args.repeats,
        )
        rows = []
        for quantity in values['DIN'][0]:
            ours, theirs = (
                median(run[quantity] for run in values[name]) for name in ('MacGNN', 'DIN')
            )
            if quantity.startswith('latency'):
                rows.append([quantity, f'{ours:.2f}', f'{theirs:.2f}', f'{theirs / ours:.1f} x'])
            else:
                rows.append([quantity, f'{ours:,.0f}', f'{theirs:,.0f}', f'{ours / theirs:.1f} x'])
        yield from ('', f'## {in_words(threads)}', '')
        yield from table(['', 'MacGNN', 'DIN', 'MacGNN ahead by'], rows)
        profiles += ['', *take_apart(benches['MacGNN'], threads, args.steps)]
    yield ''
    yield "## Where MacGNN's training step goes"
    yield from profiles
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_training_parser('speed.macgnn', __doc__, batch_size=1024, threads=[1, 2])
    parser.add_argument('--root', required=True, help='folder with raw/, and of the cache')
    parser.add_argument('--requests', type=int, default=200, help='default: %(default)s')
    parser.add_argument('--candidates', type=int, default=1000, help='default: %(default)s')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
