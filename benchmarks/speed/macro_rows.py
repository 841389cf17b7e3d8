r"""What a loader of macro rows holds and takes, against one that holds all windows of all nodes.

The latter was the loader before: for each hop a table of counts with a row for every node and
window, in the smallest type that holds them, and the recent lists of the data as they are. Both
check what they are given, and give the same rows, which is compared. They take turns, in one
process, on one thread.

    python benchmarks speed.macro_rows --root data/movielens-1m \
        --markdown benchmarks/speed/macro_rows.md

The folder --root holds the raw files, raw/ml-1m/*.dat.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from records import made_here, make_parser, publish, table
from timing import median_ratio, processor_seconds_of, take_turns
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_ids
from mag.datasets import MovieLens
from mag.loader import Exposures
from mag.macro_graph import MacroRows
from mag.schema import CLICKS, NEIGHBOR_TYPE, hops
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

PACKAGES = ('pyg-mag', 'torch', 'numpy')
BATCH_SIZE = 1024
NUM_BATCHES = 200
NUM_GROUPS = 50
DENSE, ASKED = 'all windows', 'asked for'


class DenseRows:
    r"""All windows of all nodes, held in one table a hop."""

    def __init__(self, part: HeteroData) -> None:
        self.num_windows = part[CLICKS].cutoff.numel()
        self.hops, self.recent = {}, {}
        for name in NEIGHBOR_TYPE:
            self.hops[name] = [self._table(part, edge_type) for edge_type in hops(part, name)]
            recent, other = part[name].recent, NEIGHBOR_TYPE[name]
            check_ids('macro_rows', f'recent {other}s', recent, part[other].num_nodes, first=-1)
            self.recent[name] = recent.flatten(0, 1)

    def _table(self, part: HeteroData, edge_type: tuple[str, str, str]) -> Tensor:
        weight, (macro, node) = part[edge_type].edge_weight, part[edge_type].edge_index
        check_ids('macro_rows', edge_type[0], macro, part[edge_type[0]].num_nodes)
        check_ids('macro_rows', edge_type[2], node, part[edge_type[2]].num_nodes)
        low, high = (bound.item() for bound in weight.aminmax())
        if low < 0 or bool(weight.frac().any()):
            raise ValueError(f'Counts of {edge_type} must be whole numbers from 0 on.')
        dtype = torch.uint8 if high <= 255 else torch.int16 if high < 2**15 else torch.int32
        size = part[edge_type[2]].num_nodes, self.num_windows, part[edge_type[0]].num_nodes
        rows = torch.zeros(size, dtype=dtype)
        rows[node, :, macro] = weight.to(dtype)
        return rows.flatten(0, 1)

    def gather(self, name: str, node: Tensor, window: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if bool((node < 0).any()):
            raise ValueError('Labels know no unknown nodes.')
        row = node * self.num_windows + window
        found = tuple(counts.index_select(0, row).float() for counts in self.hops[name])
        return found, self.recent[name].index_select(0, row)


def make_asked(part: HeteroData, exposures: Exposures) -> MacroRows:
    window = exposures.window
    if window is None:
        raise ValueError('The part does not roll over windows.')
    return MacroRows(
        part, asked={'user': (exposures.user, window), 'item': (exposures.item, window)}
    )


def bytes_held(rows: Any) -> int:
    r"""Those of the tables, and of what tells where a row is."""
    tables = [counts for of in rows.hops.values() for counts in of] + list(rows.recent.values())
    places = [place for place in getattr(rows, 'place', {}).values() if place is not None]
    return sum(of.nbytes for of in tables + places)


def gather_all(rows: Any, batches: list[Exposures]) -> None:
    for batch in batches:
        for name, node in (('user', batch.user), ('item', batch.item)):
            rows.gather(name, node, batch.window)


def require_same(ways: dict[str, Any], exposures: Exposures) -> None:
    for rows in torch.arange(len(exposures)).split(2**16):
        batch = exposures[rows]
        for name, node in (('user', batch.user), ('item', batch.item)):
            (counts, recent), (others, other) = (
                of.gather(name, node, batch.window) for of in ways.values()
            )
            pairs = zip((*counts, recent), (*others, other), strict=True)
            if not all(torch.equal(*pair) for pair in pairs):
                raise RuntimeError(f'Rows of {name}s differ from those of all windows.')


def draw_log(num_exposures: int) -> HeteroData:
    r"""A log in which most users are shown something in few windows: five exposures a user."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = {'user': max(num_exposures // 5, 1), 'item': max(num_exposures // 50, 1)}
    log = HeteroData()
    for name, number in num_nodes.items():
        log[name].num_nodes, log[name].num_group = number, NUM_GROUPS
        log[name].group = torch.arange(number) % NUM_GROUPS
    clicks = log[CLICKS]
    clicks.edge_label_index = torch.stack(
        [(torch.rand(num_exposures, generator=generator) ** 2 * of).long()
         for of in num_nodes.values()]
    )  # fmt: skip
    clicks.edge_label = torch.randint(2, (num_exposures,), generator=generator).float()
    clicks.edge_label_time = torch.arange(num_exposures)
    clicked = clicks.edge_label == 1
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time = clicks.edge_label_time[clicked]
    return log


def measure(
    name: str, log: HeteroData, groups: dict[str, Any], repeats: int
) -> Iterator[list[str]]:
    r"""The rows of one log."""
    train = TemporalSplit(keep_cold=True)(log)[0]
    part = RecentNeighbors(20)(MacroCoarsen(groups, exposure_hops=0).fit(train)(train))
    exposures = Exposures(part, 'macro_rows', outcomes=False)
    make: dict[str, Callable[[], Any]] = {
        DENSE: partial(DenseRows, part),
        ASKED: partial(make_asked, part, exposures),
    }
    ways = {way: of() for way, of in make.items()}
    require_same(ways, exposures)
    seconds = take_turns(
        {way: partial(processor_seconds_of, of) for way, of in make.items()}, repeats
    )
    generator = torch.Generator().manual_seed(0)
    batches = [
        exposures[torch.randint(len(exposures), (BATCH_SIZE,), generator=generator)]
        for _ in range(NUM_BATCHES)
    ]
    gathered = take_turns(
        {
            way: partial(processor_seconds_of, partial(gather_all, of, batches))
            for way, of in ways.items()
        },
        repeats,
    )
    num_cells = sum(len(recent) for recent in ways[DENSE].recent.values())
    for way, rows in ways.items():
        held = sum(len(recent) for recent in rows.recent.values())
        yield [
            name,
            way,
            f'{held:,} of {num_cells:,}',
            f'{bytes_held(rows) / 2**20:.1f}',
            f'{1000 * median(seconds[way]):.1f}',
            f'{1000 * median(gathered[way]) / NUM_BATCHES:.3f}',
            f'{median_ratio(gathered[way], gathered[DENSE]):.2f}',
        ]


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    yield '# What a loader of macro rows holds and takes'
    yield ''
    yield (
        f'Training parts of 12 windows with 20 recent neighbors. Either all windows of all nodes '
        f'are held, counts in the smallest type and recent lists in eight bytes a neighbor, as the '
        f'data has them; or the rows that labels ask for, those as of the last window, and what '
        f'tells where they are, recent lists in the smallest type too. Both give the same rows. '
        f'Counts are over 20 clusters of users and the categories of items of MovieLens-1M, and '
        f'over {NUM_GROUPS} groups of each of the other log, of {args.exposures:,} exposures drawn '
        f'at random, five a user. Seconds are those of the processor on one thread; the median of '
        f'{args.repeats} runs in turn, and of their ratios. A batch is that of {BATCH_SIZE:,} '
        f'labels, drawn at random.'
    )
    yield ''
    logs = {
        'MovieLens-1M': (
            MovieLens(args.root, '1m')[0],
            {'user': args.clusters, 'item': 'category'},
        ),
        'five exposures a user': (draw_log(args.exposures), {'user': 'group', 'item': 'group'}),
    }
    yield from table(
        ['log', 'held', 'rows', 'MiB held', 'to make, ms', 'a batch, ms', 'a batch, ratio'],
        [row for name, of in logs.items() for row in measure(name, *of, args.repeats)],
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.macro_rows', __doc__)
    parser.add_argument('--root', required=True, help='folder with raw/, and of the cache')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--clusters', type=int, default=20, help='of users; default: %(default)s')
    parser.add_argument('--exposures', type=int, default=250_000, help='default: %(default)s')
    parser.add_argument('--repeats', type=int, default=15, help='default: %(default)s')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
