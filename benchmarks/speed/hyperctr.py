r"""What HyperCTR's hypergraphs cost in training, and how it grows.

Each row of the table changes one size: how many users a simulated market has, each with as many
exposures, the most members of a hyperedge, how many modalities the items have, or how many
neighbors a step draws. Unless it draws, it convolves the slots before those of its rows whole. What
users care for is drawn and not learned, each modality with a chance of a half. A step of HyperCTR,
which is forward, backward and Adam, fused, is compared with one of the same model without
hypergraphs, on the same batches.

    python benchmarks speed.hyperctr --markdown benchmarks/speed/hyperctr.md
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any, NamedTuple

import torch
from records import made_here, publish, table
from timing import bytes_of, in_words, median_ratio, seconds_of, take_turns
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import HistoryBatch, HistoryLoader
from mag.models import HyperCTR
from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots
from speed.training import Subject, make_training_parser

PACKAGES = ('pyg-mag', 'torch')
EMBEDDING_DIM = 32
EXPOSURES_PER_USER = 100
# So many that a popular item has hundreds of users in a slot.
USERS_PER_ITEM = 10
CONTENT_SIZE = 16
SLOT = 4 * 24 * 3600


class Size(NamedTuple):
    r"""What a row of the table is measured at."""

    num_users: int = 2_000
    max_size: int = 100
    num_modalities: int = 3
    num_neighbors: int | None = None


SIZES = {
    'base': Size(),
    'a quarter of the users': Size(num_users=500),
    '4 times the users': Size(num_users=8_000),
    'hyperedges of 3': Size(max_size=3),
    'hyperedges of 10': Size(max_size=10),
    'hyperedges of 30': Size(max_size=30),
    '1 modality': Size(num_modalities=1),
    '6 modalities': Size(num_modalities=6),
    '20 neighbors': Size(num_neighbors=20),
    '4 times the users, 20 neighbors': Size(num_users=8_000, num_neighbors=20),
}


class Bench(NamedTuple):
    r"""What is measured at one size."""

    subject: Subject
    without: Subject
    loader: HistoryLoader
    batches: list[HistoryBatch]
    num_incidences: int


def make_log(size: Size) -> HeteroData:
    r"""A market with its slots, and with drawn contents of as many modalities as are asked for."""
    data = SyntheticMarket(
        size.num_users,
        size.num_users // USERS_PER_ITEM,
        EXPOSURES_PER_USER * size.num_users,
        log=False,
    )[0]
    item = data['item']
    for name in [name for name in item.keys() if name.startswith('x_')]:
        del item[name]
    generator = torch.Generator().manual_seed(0)
    for number in range(size.num_modalities):
        item[f'x_{number}'] = torch.randn(item.num_nodes, CONTENT_SIZE, generator=generator)
    return TimeSlots(SLOT)(data)


def with_hypergraphs(data: HeteroData, size: Size) -> HeteroData:
    generator = torch.Generator().manual_seed(0)
    data['user'].interest = torch.rand(size.num_users, size.num_modalities, generator=generator)
    return InterestHypergraph(max_size=size.max_size)(data)


def make_subject(data: HeteroData, **arguments: Any) -> Subject:
    torch.manual_seed(0)
    model = HyperCTR.from_data(data, embedding_dim=EMBEDDING_DIM, **arguments)
    return Subject(model)


def make_bench(size: Size, batch_size: int, steps: int) -> Bench:
    data = make_log(size)
    train = TemporalSplit(0.5, 0.8, 0.9, num_windows=1, keep_cold=True)(data)[0]
    data = with_hypergraphs(data, size)
    loader = HistoryLoader(train, batch_size, shuffle=True, history=data)
    return Bench(
        make_subject(data, num_neighbors=size.num_neighbors),
        make_subject(data, hypergraph=False),
        loader,
        list(islice(loader, steps)),
        sum(data[name].hyperedge_index.size(1) for name in ('user', 'item')),
    )


def bytes_of_step(subject: Subject, batch: HistoryBatch) -> int:
    # Gradients of a step before would be freed within this one and count against it.
    subject.optimizer.zero_grad()
    return bytes_of(lambda: subject.step(batch))


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    base, threads = Size(), args.threads[0]
    torch.set_num_threads(threads)
    yield '# What the hypergraphs of HyperCTR cost'
    yield ''
    yield (
        f'SyntheticMarket with {EXPOSURES_PER_USER} exposures a user, an item for '
        f'{USERS_PER_ITEM} users and slots of 4 days; {base.num_users:,} users, hyperedges of at '
        f'most {base.max_size} members and {base.num_modalities} modalities unless said otherwise. '
        f'Embeddings of {EMBEDDING_DIM}, 3 layers, histories of 20 clicks, batches of '
        f'{args.batch_size:,}, {in_words(threads)}; the median of '
        f'{args.repeats} runs in turn, of {args.steps} steps each. A step convolves '
        f'the slots before those of its rows, so nearly all that training reads, or neighbors '
        f'drawn for each user and item. An epoch is loading and steps for the 30 % of all '
        f'exposures that train; memory is the most that a step holds at once.'
    )
    yield ''
    yield from table(
        [
            '', 'users', 'incidences', 'loading, ms', 'step, ms', 'step w/o hypergraphs, ms',
            'share of hypergraphs', 'an epoch, s', 'memory, MB', 'memory w/o hypergraphs, MB',
        ],
        [
            [name, f'{size.num_users:,}', *measure(size, args)]
            for name, size in SIZES.items()
        ],
    )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def measure(size: Size, args: argparse.Namespace) -> list[str]:
    r"""The cells of a row, from the number of incidences on."""
    bench = make_bench(size, args.batch_size, args.steps)
    subjects = {'step': bench.subject, 'without': bench.without}
    for subject in subjects.values():
        subject.step(bench.batches[0])

    def seconds_of_loading() -> float:
        num_batches = min(args.steps, len(bench.loader))
        return seconds_of(lambda: list(islice(bench.loader, num_batches))) / num_batches

    def seconds_of_steps(subject: Subject) -> float:
        batches = cycle(bench.batches)
        return seconds_of(lambda: subject.step(next(batches)), args.steps)

    measurements: dict[str, Callable[[], float]] = {'loading': seconds_of_loading}
    for name, subject in subjects.items():
        measurements[name] = partial(seconds_of_steps, subject)
    seconds = take_turns(measurements, args.repeats)
    epoch = (median(seconds['loading']) + median(seconds['step'])) * len(bench.loader)
    # Pair by pair, so that a slow moment of the machine hits both.
    share = 1 - median_ratio(seconds['without'], seconds['step'])
    memory = [bytes_of_step(subject, bench.batches[0]) for subject in subjects.values()]
    return [
        f'{bench.num_incidences:,}',
        *(f'{1000 * median(found):.1f}' for found in seconds.values()),
        f'{share:.0%}',
        f'{epoch:.1f}',
        *(f'{size / 1e6:,.1f}' for size in memory),
    ]


def main(arguments: Sequence[str]) -> None:
    parser = make_training_parser('speed.hyperctr', __doc__, batch_size=512, threads=[1])
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
