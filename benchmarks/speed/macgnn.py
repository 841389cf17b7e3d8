r"""How fast MacGNN trains and scores, against DIN with 100 history items from DeepCTR-Torch.

Both read the same rows of MovieLens-1M (training labels from q30 on, rolling windows) in batches of
the same size, and are measured in turn, so that a slow moment of the machine hits both. A training
step is forward, backward and a step of Adam, fused. Then MacGNN's step is taken apart: where the
time goes, and how long its matrix products alone take, called one by one with the same shapes and
strides. Timings mean something only on a machine that does nothing else.

    python benchmarks/training.py --root data/movielens-1m --markdown benchmarks/training.md

The folder --root holds the raw files, raw/ml-1m/*.dat. What GMCM's graph costs is in
gmcm_training.py, what SRJGraph's paths cost in srjgraph_training.py, and what HyperCTR's
hypergraphs cost in hyperctr_training.py; they need none:

    python benchmarks/training.py --model gmcm --batch-size 2048 \
        --markdown benchmarks/training-gmcm.md
    python benchmarks/training.py --model srjgraph --batch-size 128 --threads 1 \
        --markdown benchmarks/training-srjgraph.md
    python benchmarks/training.py --model hyperctr --batch-size 512 --threads 1 \
        --markdown benchmarks/training-hyperctr.md
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from statistics import median, quantiles
from time import perf_counter
from typing import Any, NamedTuple, cast

import gmcm_training
import hyperctr_training
import srjgraph_training
import torch
import torch.nn.functional as F
from baselines import DeepCTR
from report import made_by, publish
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.transforms import Compose
from tqdm import tqdm

from mag.datasets import MovieLens
from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.training import click_task
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

HISTORY = {'MacGNN': 20, 'DIN': 100}
PACKAGES = ('pyg-mag', 'torch', 'deepctr-torch')
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class Subject(NamedTuple):
    r"""A model with its optimizer and its batches."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: PairLoader
    batches: list[PairBatch]

    def step(self, batch: PairBatch) -> None:
        logits, label, _ = click_task.score(self.model, batch)
        loss = F.binary_cross_entropy_with_logits(logits, label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def score(self, batch: PairBatch) -> None:
        with torch.inference_mode():
            self.model(batch).sigmoid()


def make_subjects(args: argparse.Namespace) -> dict[str, Subject]:
    data = MovieLens(args.root, '1m')[0]
    train = TemporalSplit()(data)[0]
    coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(train)
    subjects = {}
    for name, num in HISTORY.items():
        torch.manual_seed(0)
        part = Compose([RecentNeighbors(num), coarsen])(train)
        model = MacGNN.from_data(part) if name == 'MacGNN' else DeepCTR.from_data(part, 'din')
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=5e-5, fused=True)
        loader = PairLoader(part, args.batch_size, shuffle=True)
        if name == 'DIN':
            # DIN reads the user's recent items alone; it does not pay for gathering the rest.
            rows = loader.dataset.macro_rows
            rows.hops = {'user': (), 'item': ()}
            rows.recent['item'] = rows.recent['item'].new_empty(len(rows.recent['item']), 0)
        batches = [batch for batch, _ in zip(loader, range(args.steps))]
        subjects[name] = Subject(model, optimizer, loader, batches)
    return subjects


def samples_per_second(
    act: Callable[[PairBatch], None], batches: Iterable[PairBatch], steps: int
) -> float:
    rows = 0
    start = perf_counter()
    for batch, _ in zip(batches, range(steps)):
        act(batch)
        rows += batch.user.numel()
    return rows / (perf_counter() - start)


def request_seconds(subject: Subject, num_requests: int, num_candidates: int) -> list[float]:
    r"""Seconds of requests, from a user and candidate ids to their probabilities."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = subject.loader.dataset.exposures.num_nodes
    seconds = []
    for _ in range(num_requests):
        user = int(torch.randint(num_nodes['user'], (), generator=generator))
        items = torch.randint(num_nodes['item'], (num_candidates,), generator=generator)
        start = perf_counter()
        subject.score(subject.loader.request(user, items))
        seconds.append(perf_counter() - start)
    return seconds


def measure(subject: Subject, args: argparse.Namespace) -> dict[str, float]:
    model, steps = subject.model, args.steps
    model.train()
    values = {
        'training samples/s': samples_per_second(subject.step, subject.batches, steps),
        'training samples/s, with loader': samples_per_second(subject.step, subject.loader, steps),
    }
    model.eval()
    values['scoring samples/s'] = samples_per_second(subject.score, subject.batches, steps)
    values['scoring samples/s, with loader'] = samples_per_second(
        subject.score, subject.loader, steps
    )
    latency = quantiles(request_seconds(subject, args.requests, args.candidates), n=100)
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


def seconds_of(act: Callable[[], None], repeats: int) -> float:
    r"""The median, after a warm-up."""
    seconds = []
    for _ in range(repeats + 3):
        start = perf_counter()
        act()
        seconds.append(perf_counter() - start)
    return median(seconds[3:])


def take_apart(subject: Subject, threads: int, repeats: int) -> Iterator[str]:
    r"""A roofline and a profile of MacGNN's step, as Markdown."""
    subject.model.train()
    batches = cycle(subject.batches)
    products = MatrixProducts()
    with products:
        subject.step(next(batches))
    with torch.no_grad():
        bare = seconds_of(products.replay, repeats)
    step = seconds_of(lambda: subject.step(next(batches)), repeats)
    compiled = subject._replace(model=cast(nn.Module, torch.compile(subject.model)))
    fused = seconds_of(lambda: compiled.step(next(batches)), repeats)
    yield (
        f'{threads} thread{"s" * (threads > 1)}: a step takes {1000 * step:.2f} ms; its '
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
    yield '| operation | share of the step | calls a step |'
    yield '| --- | --- | --- |'
    for key in largest:
        yield f'| `{key}` | {shares[key]:.1%} | {calls[key] / repeats:.0f} |'
    yield f'| the other {len(shares) - 12} | {1 - sum(shares[key] for key in largest):.1%} | |'


def run_macgnn(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    subjects = make_subjects(args)
    yield '# Training and scoring'
    yield ''
    yield (
        f'MovieLens-1M, rolling windows; batches of {args.batch_size:,} rows; MacGNN with '
        f'{HISTORY["MacGNN"]} recent neighbors, DIN of DeepCTR-Torch with {HISTORY["DIN"]} history '
        f'items, both with embeddings of 10 and a head of 200 and 80. The median of '
        f'{args.repeats} runs in turn, of {args.steps} steps and {args.requests} requests each. A '
        f'request scores {args.candidates:,} candidates for one user, from ids to probabilities.'
    )
    progress = tqdm(total=len(args.threads) * args.repeats * len(subjects))
    profiles: list[str] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        values: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
        for subject in subjects.values():
            subject.model.train()
            subject.step(subject.batches[0])
        for _ in range(args.repeats):
            for name, subject in subjects.items():
                values[name].append(measure(subject, args))
                progress.update()
        yield ''
        yield f'## {threads} thread{"s" * (threads > 1)}'
        yield ''
        yield '| | MacGNN | DIN | MacGNN ahead by |'
        yield '| --- | --- | --- | --- |'
        for quantity in values['DIN'][0]:
            ours, theirs = (
                median(run[quantity] for run in values[name]) for name in ('MacGNN', 'DIN')
            )
            if quantity.startswith('latency'):
                yield f'| {quantity} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} x |'
            else:
                yield f'| {quantity} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} x |'
        profiles += ['', *take_apart(subjects['MacGNN'], threads, args.steps)]
    progress.close()
    yield ''
    yield "## Where MacGNN's training step goes"
    yield from profiles


RUNS = {
    'macgnn': run_macgnn,
    'gmcm': gmcm_training.run,
    'srjgraph': srjgraph_training.run,
    'hyperctr': hyperctr_training.run,
}


def run(args: argparse.Namespace) -> Iterator[str]:
    yield from RUNS[args.model](args)
    yield ''
    yield made_by('training.py', PACKAGES)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', choices=RUNS, default='macgnn')
    parser.add_argument('--root', help='folder with raw/, and of the cache; macgnn needs it')
    parser.add_argument('--markdown', help='file to write; default: print')
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2], help='default: 1 2')
    parser.add_argument('--batch-size', type=int, default=1024, help='default: 1024')
    parser.add_argument('--steps', type=int, default=20, help='steps a run, default: 20')
    parser.add_argument('--requests', type=int, default=200, help='requests a run, default: 200')
    parser.add_argument('--candidates', type=int, default=1000, help='default: 1000')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each, default: 5')
    args = parser.parse_args()
    if args.model == 'macgnn' and args.root is None:
        parser.error('--model macgnn needs --root')
    return args


def main() -> None:
    args = parse_args()
    publish(run(args), args.markdown)


if __name__ == '__main__':
    main()
