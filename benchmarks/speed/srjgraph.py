r"""How fast paths are drawn, and what they cost in training.

The reference is the plain way, as SRJGraph's authors drew their paths: for one sample at a time, a
binary search in the time-sorted clicks of a node and a draw with NumPy, level by level.

    python benchmarks speed.srjgraph --markdown benchmarks/speed/srjgraph.md
"""

import argparse
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from statistics import median

import numpy as np
import torch
from records import made_here, publish, table
from timing import in_words, seconds_of, take_turns
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader
from mag.models import SRJGraph
from mag.schema import CLICKS
from mag.transforms import TemporalSplit
from speed.training import Subject, make_training_parser

PACKAGES = ('pyg-mag', 'torch')
PAPER = {'user': [25, 1, 10], 'item': [1, 25, 1]}
# The attributes of a click that PlainSampler copies, and PathLoader where the two are compared.
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
                    clicks = self.clicks.get(key, [])
                    count = bisect_left(clicks, (time,))
                    if count == 0:
                        continue
                    for place in sorted(self.rng.choice(count, width), reverse=True):
                        _, click, neighbor = clicks[place]
                        children.append(len(nodes))
                        nodes.append((neighbor, click, parent))
                frontier, node_type = children, 'item' if node_type == 'user' else 'user'
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


def seconds_of_plain(sampler: PlainSampler, data: HeteroData, size: int) -> float:
    r"""Of a batch that is drawn in a plain loop."""
    rows = torch.randint(data[CLICKS].edge_label.numel(), (size,))
    return seconds_of(lambda: sampler.batch(data, rows))


def seconds_of_loading(loader: PathLoader, num_batches: int) -> float:
    r"""Of a batch."""
    num_batches = min(num_batches, len(loader))
    return seconds_of(lambda: list(islice(loader, num_batches))) / num_batches


def seconds_of_steps(subject: Subject, loader: PathLoader, num_batches: int) -> float:
    r"""Of a step on a batch that is drawn already."""
    batches = list(islice(loader, num_batches))
    following = iter(batches)
    return seconds_of(lambda: subject.step(next(following)), len(batches))


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads[0])
    data = SyntheticMarket(log=False)[0]
    train = TemporalSplit()(data)[0]
    make_loader = partial(PathLoader, train, args.batch_size, shuffle=True)
    make_same = partial(make_loader, widths=PAPER, batch_attributes=SAME)
    loaders = {
        'PathLoader, the same in a batch': make_same(),
        'PathLoader, the same, paths drawn before': make_same(fixed=True),
        **{name: make_loader(widths=widths) for name, widths in WIDTHS.items()},
    }
    plain = PlainSampler(train, PAPER)
    measurements: dict[str, Callable[[], float]] = {
        'a plain loop over samples': partial(seconds_of_plain, plain, train, args.batch_size)
    }
    for name, loader in loaders.items():
        measurements[name] = partial(seconds_of_loading, loader, args.steps)
    for name in WIDTHS:
        subject, num_steps = Subject(SRJGraph.from_data(train)), max(1, args.steps // 4)
        measurements[f'step, {name}'] = partial(seconds_of_steps, subject, loaders[name], num_steps)
    found = take_turns(measurements, args.repeats)
    seconds = {name: median(values) for name, values in found.items()}
    seconds['PathLoader, all attributes'] = seconds['depth 3, as in the paper']
    yield '# Drawing paths, and training on them'
    yield ''
    yield (
        f'SyntheticMarket of 200,000 exposures, batches of {args.batch_size}, '
        f'{in_words(args.threads[0])}; the median of {args.repeats} runs '
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
    base = seconds['a plain loop over samples']
    yield from table(
        ['', 'samples/s', 'against the plain loop'],
        [
            [name, f'{args.batch_size / seconds[name]:,.0f}', f'{base / seconds[name]:.1f} x']
            for name in (
                'a plain loop over samples',
                'PathLoader, the same in a batch',
                'PathLoader, the same, paths drawn before',
                'PathLoader, all attributes',
            )
        ],
    )
    yield ''
    rows = []
    for name, widths in WIDTHS.items():
        nodes = 2 + sum(int(np.cumprod(numbers).sum()) for numbers in widths.values())
        loading, step = seconds[name], seconds[f'step, {name}']
        share = loading / (loading + step)
        rows.append(
            [name, f'{nodes}', f'{1000 * loading:.1f}', f'{1000 * step:.1f}', f'{share:.0%}']
        )
    yield from table(
        ['paths', 'nodes a sample', 'loading, ms', 'step, ms', 'share of loading'], rows
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_training_parser('speed.srjgraph', __doc__, batch_size=128, threads=[1])
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
