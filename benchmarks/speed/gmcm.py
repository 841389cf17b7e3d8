r"""What the graph of micro-behaviors costs in training: `training.py --model gmcm`.

At the size of the paper (28 categorical and 230 dense features, 10 behaviors, batches of 2,048) a
step of GMCM is compared with one of the same towers without the graph (MCM-10, whose embeddings of
behaviors are concatenated), and without behaviors at all (Base). A step is forward, loss, backward
and a step of Adam, fused.
"""

import argparse
from collections.abc import Iterator
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from mag.loader import ExposureBatch
from mag.models import GMCM

NUM_SPARSE, NUM_DENSE, NUM_BEHAVIORS = 28, 230, 10
SUBJECTS: dict[str, dict[str, Any]] = {
    'Base': {'merge': 'none'},
    'MCM-10': {'merge': 'concat'},
    'GMCM': {'merge': 'graph'},
    'GMCM, messages': {'merge': 'graph'},
}


class Subject(NamedTuple):
    r"""A model with its optimizer."""

    model: GMCM
    optimizer: torch.optim.Optimizer

    def step(self, batch: ExposureBatch) -> None:
        self.optimizer.zero_grad()
        self.model.loss(self.model(batch), batch).backward()
        self.optimizer.step()


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
    for conv in model.convs:
        setattr(conv, 'fuse', not name.endswith('messages'))  # noqa: B010  (to mypy it is a module)
    return Subject(model, torch.optim.Adam(model.parameters(), 1e-4, fused=True))


def steps_per_second(subject: Subject, batches: list[ExposureBatch], steps: int) -> float:
    start = perf_counter()
    for batch, _ in zip(cycle(batches), range(steps)):
        subject.step(batch)
    return steps / (perf_counter() - start)


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    batches = [make_batch(args.batch_size, seed) for seed in range(4)]
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
    progress = tqdm(total=len(args.threads) * args.repeats * len(subjects))
    for threads in args.threads:
        torch.set_num_threads(threads)
        speeds: dict[str, list[float]] = {name: [] for name in subjects}
        for subject in subjects.values():
            subject.step(batches[0])
        for _ in range(args.repeats):
            for name, subject in subjects.items():
                speeds[name].append(steps_per_second(subject, batches, args.steps))
                progress.update()
        yield ''
        yield f'## {threads} thread{"s" * (threads > 1)}'
        yield ''
        yield '| | steps/s | samples/s | time of a step, MCM-10 = 1 |'
        yield '| --- | --- | --- | --- |'
        base = median(speeds['MCM-10'])
        for name in subjects:
            speed = median(speeds[name])
            yield (
                f'| {name} | {speed:.1f} | {speed * args.batch_size:,.0f} | {base / speed:.2f} |'
            )
    progress.close()
