r"""What it takes to move macro rows by new clicks, against making them anew of all clicks.

Both begin with a part of the whole log and end with what a request reads: two hops over 20 clusters
of users and 50 of items, and the last 20 neighbors. Made anew are recent lists, macro edges and the
tables of a loader; moved is a state that holds the log but for the clicks that are new. The rows of
all nodes are compared. Seconds are those of the processor, on one thread.

    python benchmarks speed.macro_state --markdown benchmarks/speed/macro_state.md
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from records import made_here, make_parser, publish, table
from timing import median_ratio, processor_seconds_of
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.macro_graph import MacroRows
from mag.transforms import MacroCoarsen, RecentNeighbors

PACKAGES = ('pyg-mag', 'torch', 'numpy', 'scipy')
CLICKS = ('user', 'clicks', 'item')
CLUSTERS = {'user': 20, 'item': 50}
# Clicks that are new at once.
SIZES = (1, 100, 10_000)


def draw_clicks(number: int, num_nodes: dict[str, int]) -> Tensor:
    r"""Clicks of users on items of which a few are much more active than others, shape
    :obj:`[2, number]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [(torch.rand(number, generator=generator) ** 2 * of).long() for of in num_nodes.values()]
    )


def part_of(edge_index: Tensor, num_nodes: dict[str, int]) -> HeteroData:
    r"""A part whose history is clicks that come one a second."""
    part = HeteroData()
    for node_type, number in num_nodes.items():
        part[node_type].num_nodes, part[node_type].num_group = number, CLUSTERS[node_type]
        part[node_type].group = torch.arange(number) % CLUSTERS[node_type]
    part[CLICKS].edge_index, part[CLICKS].time = edge_index, torch.arange(edge_index.size(1))
    part[CLICKS].cutoff = torch.tensor(edge_index.size(1))
    return part


def measure(num_clicks: int, args: argparse.Namespace) -> list[str]:
    r"""The row of one size."""
    num_nodes = {'user': num_clicks // 11 + 1, 'item': num_clicks // 50 + 1}
    clicks = draw_clicks(num_clicks, num_nodes)
    coarsen, recent = MacroCoarsen({'user': 'group', 'item': 'group'}), RecentNeighbors(20)
    last = num_clicks - args.repeats * sum(SIZES)
    state = coarsen.state(coarsen(recent(part_of(clicks[:, :last], num_nodes))))

    def make() -> MacroRows:
        return MacroRows(coarsen(recent(part_of(clicks, num_nodes))))

    anew: list[float] = []
    moved: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in tqdm(range(args.repeats), f'{num_clicks} clicks', leave=False):
        anew.append(processor_seconds_of(make))
        for size, seconds in moved.items():
            new, last = clicks[:, last : last + size], last + size
            seconds.append(processor_seconds_of(partial(state.update, new)))
    rows = make()
    for node_type, number in num_nodes.items():
        for node in torch.arange(number).split(2**16):
            one, other = state.rows(node_type, node), rows.rows(node_type, node)
            pairs = zip((*one.hops, one.recent), (*other.hops, other.recent), strict=True)
            if not all(torch.equal(*pair) for pair in pairs):
                raise RuntimeError(f'Rows of {num_clicks} clicks that were moved are others.')
    return [
        f'{num_clicks:,}',
        *(f'{number:,}' for number in num_nodes.values()),
        f'{median(anew):.2f}',
        *(
            f'{median(seconds):.4f} ({1 / median_ratio(seconds, anew):,.0f} times faster)'
            for seconds in moved.values()
        ),
    ]


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    yield '# What it takes to move macro rows by new clicks'
    yield ''
    yield (
        f'Recent lists, two hops over {CLUSTERS["user"]} clusters of users and {CLUSTERS["item"]} '
        f'of items, and the tables that requests read, made anew of all clicks, against a state '
        f'that takes in those that are new, whose rows are the same. Seconds of the processor on '
        f'one thread; the median of {args.repeats} runs in turn, and of their ratios.'
    )
    yield ''
    new = [f'{size:,} new click{"s" * (size > 1)}, s' for size in SIZES]
    yield from table(
        ['clicks', 'users', 'items', 'anew, s', *new],
        [measure(number, args) for number in args.clicks],
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.macro_state', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--clicks', nargs='+', type=int, default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
