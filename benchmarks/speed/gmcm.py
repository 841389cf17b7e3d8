r"""What the graph of micro-behaviors costs in training.

At the size of the paper (28 categorical and 230 dense features, 10 behaviors, batches of 2,048) a
step of GMCM is compared with one of the same towers without the graph (MCM-10, whose embeddings of
behaviors are concatenated), and without behaviors at all (Base). A step is forward, loss, backward
and a step of Adam, fused.

    python benchmarks speed.gmcm --markdown benchmarks/speed/gmcm.md
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from records import made_here, publish, table
from timing import in_words, seconds_of, take_turns

from mag.loader import ExposureBatch
from mag.models import GMCM
from mag.nn import BehaviorGraphConv
from speed.training import Subject, make_training_parser

PACKAGES = ('pyg-mag', 'torch')
NUM_SPARSE, NUM_DENSE, NUM_BEHAVIORS = 28, 230, 10
SUBJECTS: dict[str, dict[str, Any]] = {
    'Base': {'merge': 'none'},
    'MCM-10': {'merge': 'concat'},
    'GMCM': {'merge': 'graph'},
    'GMCM, messages': {'merge': 'graph'},
}


def make_batch(size: int, seed: int) -> ExposureBatch:
    generator = torch.Generator().manual_seed(seed)
    click = (torch.rand(size, generator=generator) < 0.2).float()
    behavior = torch.rand(size, NUM_BEHAVIORS, generator=generator) < 0.2
    return ExposureBatch(
        user=torch.zeros(size, dtype=torch.long),
        item=torch.zeros(size, dtype=torch.long),
        sparse=torch.randint(1_000_000, (size, NUM_SPARSE), generator=generator),
        dense=torch.randn(size, NUM_DENSE, generator=generator),
        label=click,
        conversion=click * behavior[:, 0],
        behavior=click.unsqueeze(1) * behavior,
    )


def make_subject(name: str) -> Subject:
    torch.manual_seed(0)
    nodes = torch.arange(NUM_BEHAVIORS)
    pairs = torch.cartesian_prod(nodes, nodes).t()
    edge_index = pairs[:, pairs[0] != pairs[1]]
    model = GMCM(
        [f'field {column}' for column in range(NUM_SPARSE)],
        NUM_DENSE,
        NUM_BEHAVIORS,
        edge_index,
        torch.full((edge_index.size(1),), 1 / (NUM_BEHAVIORS - 1)),
        **SUBJECTS[name],
    )
    for module in model.modules():
        if isinstance(module, BehaviorGraphConv):
            module.fuse = not name.endswith('messages')
    return Subject(model, learning_rate=1e-4)


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    batches = cycle([make_batch(args.batch_size, seed) for seed in range(4)])
    subjects = {name: make_subject(name) for name in SUBJECTS}
    yield '# What the graph of micro-behaviors costs'
    yield ''
    yield (
        f'{NUM_SPARSE} categorical and {NUM_DENSE} dense features, {NUM_BEHAVIORS} behaviors, '
        f'batches of {args.batch_size:,} exposures, towers of 512, 256, 128 and 64, two '
        f'convolutions of 64, an embedding table of 100,000 x 16. Base has no behaviors, MCM-10 '
        f'has them without the graph; "messages" is GMCM with the convolution as a sum of messages '
        f'over all pairs in place of a matrix product. The median of {args.repeats} runs in turn, '
        f'of {args.steps} steps each.'
    )
    for threads in args.threads:
        torch.set_num_threads(threads)
        steps = {
            name: lambda subject=subject: subject.step(next(batches))
            for name, subject in subjects.items()
        }
        for step in steps.values():
            step()
        measurements = {name: partial(seconds_of, step, args.steps) for name, step in steps.items()}
        found = take_turns(measurements, args.repeats)
        seconds = {name: median(found[name]) for name in subjects}
        yield from ('', f'## {in_words(threads)}', '')
        yield from table(
            ['', 'steps/s', 'samples/s', 'time of a step, MCM-10 = 1'],
            [
                [
                    name,
                    f'{1 / seconds[name]:.1f}',
                    f'{args.batch_size / seconds[name]:,.0f}',
                    f'{seconds[name] / seconds["MCM-10"]:.2f}',
                ]
                for name in subjects
            ],
        )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_training_parser('speed.gmcm', __doc__, batch_size=2048, threads=[1, 2])
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
