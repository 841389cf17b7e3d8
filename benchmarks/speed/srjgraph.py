r"""How fast paths are drawn, and what they cost in training: `training.py --model srjgraph`.

The reference is the plain way, as SRJGraph's authors drew their paths: for one sample at a time, a
binary search in the time-sorted clicks of a node and a draw with NumPy, level by level.
"""

import argparse
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from statistics import median
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader
from mag.models import SRJGraph
from mag.schema import CLICKS, OTHER
from mag.transforms import TemporalSplit

PAPER = {'user': [25, 1, 10], 'item': [1, 25, 1]}
# What PlainSampler tells of a click, and so what PathLoader is to copy where the two are compared.
SAME = ('time', 'query')
WIDTHS = {
    'depth 1': {'user': [25], 'item': [1]},
    'depth 2': {'user': [25, 1], 'item': [1, 25]},
    'depth 3, as in the paper': PAPER,
    'depth 4': {'user': [25, 1, 10, 1], 'item': [1, 25, 1, 10]},
    'half the widths': {'user': [12, 1, 5], 'item': [1, 12, 1]},
    'twice the widths': {'user': [50, 1, 20], 'item': [1, 50, 1]},
}


class PlainSampler:
    r"""Draws the paths of one sample at a time, and makes of them the ids, precursors, times and
    queries that a batch of PathLoader holds with the attributes :obj:`SAME`."""

    def __init__(self, data: HeteroData, widths: dict[str, list[int]]) -> None:
        self.widths = widths
        self.category = data['item'].category.tolist()
        self.rng = np.random.default_rng(0)
        self.time, self.query = (data[CLICKS][name].numpy() for name in ('time', 'query'))
        found: dict[tuple[str, int, int], list[tuple[int, int, int]]] = defaultdict(list)
        clicks = zip(*data[CLICKS].edge_index.tolist(), data[CLICKS].time.tolist(), strict=True)
        for click, (user, item, time) in enumerate(clicks):
            found['user', user, self.category[item]].append((time, click, item))
            found['item', item, 0].append((time, click, user))
        self.clicks = {key: sorted(clicks) for key, clicks in found.items()}

    def draw(self, user: int, item: int, time: int) -> list[tuple[int, int, int]]:
        r"""Node, click and precursor of every node of both trees."""
        category = self.category[item]
        nodes = [(user, -1, -1), (item, -1, -1)]
        for root, start in (('user', 0), ('item', 1)):
            node_type, frontier = root, [start]
            for width in self.widths[root]:
                children = []
                for parent in frontier:
                    key = node_type, nodes[parent][0], category if node_type == 'user' else 0
                    known = self.clicks.get(key, [])
                    count = bisect_left(known, (time,))
                    if count == 0:
                        continue
                    for place in sorted(self.rng.choice(count, width), reverse=True):
                        _, click, neighbor = known[place]
                        children.append(len(nodes))
                        nodes.append((neighbor, click, parent))
                frontier, node_type = children, OTHER[node_type]
        return nodes

    def batch(self, data: HeteroData, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        clicks = data[CLICKS]
        samples = zip(
            *clicks.edge_label_index[:, rows].tolist(),
            clicks.edge_label_time[rows].tolist(),
            strict=True,
        )
        trees = [np.array(self.draw(user, item, time)) for user, item, time in samples]
        node, click, precursor = np.concatenate(trees).T
        parts = node, precursor, self.time[click], self.query[click]
        return tuple(torch.from_numpy(part) for part in parts)


def plain_samples_per_second(sampler: PlainSampler, data: HeteroData, size: int) -> float:
    rows = torch.randint(data[CLICKS].edge_label.numel(), (size,))
    start = perf_counter()
    sampler.batch(data, rows)
    return size / (perf_counter() - start)


def samples_per_second(loader: PathLoader, num_batches: int) -> float:
    start = perf_counter()
    rows = sum(batch[CLICKS].edge_label.numel() for batch in islice(loader, num_batches))
    return rows / (perf_counter() - start)


def seconds_of_steps(model: SRJGraph, batches: list[HeteroData]) -> float:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    start = perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch), batch[CLICKS].edge_label).backward()
        optimizer.step()
    return (perf_counter() - start) / len(batches)


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads[0])
    data = SyntheticMarket(log=False)[0]
    train = TemporalSplit()(data)[0]
    plain = PlainSampler(train, PAPER)
    progress = tqdm(total=args.repeats * len(WIDTHS))
    speeds: dict[str, list[float]] = {name: [] for name in (*WIDTHS, 'plain', 'same', 'fixed')}
    seconds: dict[str, list[float]] = {name: [] for name in WIDTHS}
    loaders = {
        name: PathLoader(train, args.batch_size, shuffle=True, widths=widths)
        for name, widths in WIDTHS.items()
    }
    same, fixed = (
        PathLoader(
            train, args.batch_size, shuffle=True, widths=PAPER, fixed=fixed, batch_attributes=SAME
        )
        for fixed in (False, True)
    )
    models = {name: SRJGraph.from_data(train) for name in WIDTHS}
    for _ in range(args.repeats):
        speeds['plain'].append(plain_samples_per_second(plain, train, args.batch_size))
        speeds['same'].append(samples_per_second(same, args.steps))
        speeds['fixed'].append(samples_per_second(fixed, args.steps))
        for name, loader in loaders.items():
            speeds[name].append(samples_per_second(loader, args.steps))
            batches = list(islice(loader, max(1, args.steps // 4)))
            seconds[name].append(seconds_of_steps(models[name], batches))
            progress.update()
    progress.close()

    fastest = {name: median(found) for name, found in speeds.items()}
    yield '# Drawing paths, and training on them'
    yield ''
    yield (
        f'SyntheticMarket of 200,000 exposures, batches of {args.batch_size}, '
        f'{args.threads[0]} thread{"s" * (args.threads[0] > 1)}; the median of {args.repeats} runs '
        f'in turn. The paths of the paper are {PAPER["user"]} from the user and {PAPER["item"]} '
        f'from the item. A step is forward, backward and Adam on a batch that is drawn already.'
    )
    yield ''
    yield (
        'The plain loop makes the ids and precursors of nodes, and the times and queries of '
        f'clicks. With `batch_attributes={list(SAME)}` PathLoader makes the same, and the targets; '
        'by default, and in the second table, it copies all attributes, the contents of items too.'
    )
    yield ''
    yield '| | samples/s | against the plain loop |'
    yield '| --- | --- | --- |'
    for title, speed in (
        ('a plain loop over samples', fastest['plain']),
        ('PathLoader, the same in a batch', fastest['same']),
        ('PathLoader, the same, paths drawn before', fastest['fixed']),
        ('PathLoader, all attributes', fastest['depth 3, as in the paper']),
    ):
        yield f'| {title} | {speed:,.0f} | {speed / fastest["plain"]:.1f} x |'
    yield ''
    yield '| paths | nodes a sample | loading, ms | step, ms | share of loading |'
    yield '| --- | --- | --- | --- | --- |'
    for name, widths in WIDTHS.items():
        nodes = 2 + sum(int(np.cumprod(numbers).sum()) for numbers in widths.values())
        loading, step = args.batch_size / fastest[name], median(seconds[name])
        yield (
            f'| {name} | {nodes} | {1000 * loading:.1f} | {1000 * step:.1f} | '
            f'{loading / (loading + step):.0%} |'
        )
