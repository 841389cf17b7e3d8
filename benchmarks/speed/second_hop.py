r"""What two hops take: the kernel of a store against the sparse product of MacroEdges, in SciPy.

Users and items of a power-law log are in random clusters. SciPy multiplies the clicks as of each
window by a table of hop 1 in float64, the longer table's rows in order, as MacroEdges does. The
kernel sums hop 1 as rows of bytes. Both take turns, in one process, and their counts are compared.

Timed is processor time on one thread, which is the time on a machine that does nothing else.

    python benchmarks speed.second_hop --markdown benchmarks/speed/second_hop.md
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import duckdb
import numpy as np
import scipy
from records import made_here, make_parser, publish, table
from timing import median_ratio, processor_seconds_of, take_turns

from mag.schema import NEIGHBOR_TYPE
from mag.store.kernels import (
    NeighborRows,
    SecondHop,
    count_partition,
    gather_rows,
    gather_second,
    neighbor_rows,
    partition_events,
    second_hop,
)
from speed.power_law_log import write_power_law_log

PACKAGES = ('pyg-mag', 'numba', 'numpy', 'scipy')
NUM_CLUSTERS = {'user': 200, 'item': 300}
# All nodes are in one partition.
BASE = np.zeros(1, np.int64)


class Side(NamedTuple):
    r"""The two ways to count the second hop of one type of node.

    Attributes:
        num_pairs (int): How many distinct clicks there are.
        make_rows (callable): Makes rows of bytes of increments of hop 1.
        by_kernel (callable): Counts all windows, from such rows.
        by_scipy (list[callable]): Count one window each, from clicks and hop 1 as of it.
    """

    num_pairs: int
    make_rows: Callable[[], NeighborRows]
    by_kernel: Callable[[], SecondHop]
    by_scipy: list[Callable[[], np.ndarray]]


def read_log(num_clicks: int) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_power_law_log(Path(folder, 'log.parquet'), num_clicks)
        query = 'SELECT user, item FROM read_parquet(?) ORDER BY time'
        log = duckdb.connect().execute(query, [str(path)]).fetchnumpy()
    return {name: np.ascontiguousarray(ids, np.int32) for name, ids in log.items()}


def make_sides(log: dict[str, np.ndarray], num_windows: int) -> dict[str, Side]:
    r"""Both sides of a log, cut into windows of as many clicks."""
    num_clicks = len(log['user'])
    window = (np.arange(num_clicks) * num_windows // num_clicks).astype(np.uint8)
    click = np.ones(num_clicks, dtype=bool)
    records = partition_events(
        log['user'], log['item'], window, click, dict.fromkeys(log, 1), num_windows
    )
    num_nodes = {name: int(ids.max()) + 1 for name, ids in log.items()}
    generator = np.random.default_rng(0)
    cluster = {
        name: generator.integers(NUM_CLUSTERS[name], size=number, dtype=np.int32)
        for name, number in num_nodes.items()
    }
    counts = {
        name: count_partition(
            [of.record],
            num_nodes[name],
            [cluster[NEIGHBOR_TYPE[name]]],
            [None],
            num_windows,
            [NUM_CLUSTERS[NEIGHBOR_TYPE[name]]],
            0,
        )
        for name, of in records.items()
    }
    sides = {}
    for name, other in NEIGHBOR_TYPE.items():
        of, far, size = counts[name], counts[other], (num_windows, NUM_CLUSTERS[name])
        increments = far.indptr[0], far.code[0], far.count[0]
        pairs = of.pairs_indptr, of.pairs_neighbor, of.pairs_window
        make_rows = partial(neighbor_rows, *increments, *size)
        by_scipy: list[Callable[[], np.ndarray]] = []
        for step in range(num_windows):
            degree = of.pairs_indptr[1:] - of.pairs_indptr[:-1]
            node = np.repeat(np.arange(num_nodes[name]), degree.astype(np.int64))
            seen = of.pairs_window <= step
            shape = num_nodes[name], num_nodes[other]
            edges = node[seen], of.pairs_neighbor[seen]
            clicks = scipy.sparse.csr_matrix((np.ones(len(edges[0])), edges), shape)
            if shape[0] < shape[1]:
                clicks = clicks.tocsc()
            every = np.arange(num_nodes[other]), np.full(num_nodes[other], step)
            first = gather_rows(*increments, *every, *size, 'pairs').astype(np.float64)
            by_scipy.append(partial(clicks.__matmul__, first))
        sides[name] = Side(
            len(of.pairs_neighbor),
            make_rows,
            partial(second_hop, *pairs, *make_rows(), BASE, *size),
            by_scipy,
        )
    return sides


def require_same(side: Side) -> None:
    second = side.by_kernel()
    for step, product in enumerate(side.by_scipy):
        every = np.arange(len(second.table)), np.full(len(second.table), step)
        if not np.array_equal(gather_second(*second, *every), product()):
            raise RuntimeError(f'The counts of window {step} differ from those of SciPy.')


def call_all(products: Sequence[Callable[[], np.ndarray]]) -> None:
    for product in products:
        product()


def measure(log: dict[str, np.ndarray], num_windows: int, repeats: int) -> Iterator[list[str]]:
    r"""The rows of one log."""
    for name, side in make_sides(log, num_windows).items():
        require_same(side)
        seconds = take_turns(
            {
                'scipy': partial(processor_seconds_of, partial(call_all, side.by_scipy)),
                'kernel': partial(processor_seconds_of, side.by_kernel),
                'rows': partial(processor_seconds_of, side.make_rows),
            },
            repeats,
        )
        nanoseconds = {way: median(of) / side.num_pairs * 1e9 for way, of in seconds.items()}
        yield [
            f'{len(log["user"]):,}',
            f'{num_windows}',
            f'{name}s',
            f'{side.num_pairs:,}',
            *(f'{of:.0f}' for of in nanoseconds.values()),
            f'{median_ratio(seconds["scipy"], seconds["kernel"]):.1f}',
        ]


def run(args: argparse.Namespace) -> Iterator[str]:
    yield '# What two hops take'
    yield ''
    yield (
        f'Counts of hop 2 over {NUM_CLUSTERS["user"]} random clusters of users and '
        f'{NUM_CLUSTERS["item"]} of items, of power-law logs with 100 clicks a user and 250 an '
        f'item, by the kernel of a store and by the sparse products of MacroEdges, one a window, '
        f'whose counts are the same. Processor time on one thread, in nanoseconds a distinct '
        f'click, for all windows; the median of {args.repeats} runs in turn, and of their ratios. '
        f'Each is given hop 1 in the form that it sums: a table of float64, or rows of bytes, '
        f'which take what the last column but one tells.'
    )
    yield ''
    yield from table(
        ['clicks', 'windows', 'hop 2 of', 'distinct clicks', 'SciPy, ns', 'kernel, ns',
         'rows of bytes, ns', 'times as fast'],
        [
            row
            for num_clicks in args.clicks
            for log in [read_log(num_clicks)]
            for num_windows in args.windows
            for row in measure(log, num_windows, args.repeats)
        ],
    )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.second_hop', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--clicks', nargs='+', type=int, default=[1_000_000, 10_000_000])
    parser.add_argument('--windows', nargs='+', type=int, default=[1, 6])
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
