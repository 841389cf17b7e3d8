r"""What it takes to count the macro graph at the target, against pandas' cumulative sums by group.

Of each row 13 views are counted, exposures and clicks strictly before it: users and items, two
resolutions of users, three of items, and their crosses. The reference makes the same keys, groups
by them, and subtracts what a row's own moment added from the cumulative sums. Both take turns, in
one process, and their counts are compared; memory is the most of tensors that one call holds at
once beyond the log. A state counts the log in batches, and then event by event.

Timed is processor time on one thread, which is the time on a machine that does nothing else. On
several threads it is the time that passes.

    python benchmarks speed.target_counts --markdown benchmarks/speed/target_counts.md
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from records import made_here, make_parser, publish, table
from timing import (
    bytes_of,
    in_words,
    median_ratio,
    quiet_seconds_of,
    take_turns,
)
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import Seen, TargetKeys, TargetState, target_counts, target_views

PACKAGES = ('pyg-mag', 'torch', 'numpy', 'scipy', 'pandas')
# Macro nodes of each resolution.
USERS = (20, 200)
ITEMS = (20, 50, 500)


def make_log(num_rows: int) -> tuple[TargetKeys, Seen]:
    r"""A log of a hundred exposures a user and a thousand an item, some at the same moment."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, size: int = num_rows) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    data = HeteroData()
    for node_type, share, sizes in (('user', 100, USERS), ('item', 1000, ITEMS)):
        data[node_type].num_nodes = num_nodes = num_rows // share + 1
        for size in sizes:
            data[node_type][f'cluster_{size}'] = draw(size, num_nodes)
            data[node_type][f'num_cluster_{size}'] = size
    views = target_views(
        [f'cluster_{size}' for size in USERS], [f'cluster_{size}' for size in ITEMS]
    )
    time = draw(num_rows).sort().values
    user, item = draw(data['user'].num_nodes), draw(data['item'].num_nodes)
    return TargetKeys(data, views, {}, 'target_counts'), Seen(user, item, time, time, {}, draw(2))


def count_by_pandas(keys: TargetKeys, log: Seen) -> Tensor:
    r"""The counts by cumulative sums of groups, shape :obj:`[L, V, 2]`."""
    clicked = torch.as_tensor(log.clicked)
    columns = []
    for key in keys(log.user, log.item, log.clock, log.contexts):
        frame = pd.DataFrame({'key': key, 'time': log.time, 'seen': 1, 'clicked': clicked})
        values = frame[['seen', 'clicked']]
        before = values.groupby(frame['key']).cumsum() - values
        # What a moment adds is not seen in it: all of its rows read the counts of its first.
        first = before.groupby([frame['key'], frame['time']], sort=False).transform('first')
        columns.append(torch.tensor(first.to_numpy(), dtype=torch.float))
    return torch.stack(columns, dim=1)


def events_per_second(num_rows: int, batch: int, num_events: int) -> float:
    r"""How many events a state counts in a second, once it holds the log."""
    keys, log = make_log(num_rows)
    state = TargetState(keys, ())
    clicked = torch.as_tensor(log.clicked)
    state.update(log.user, log.item, log.time, clicked)

    def update() -> None:
        for first in range(0, num_events, batch):
            rows = slice(first, first + batch)
            state.update(log.user[rows], log.item[rows], log.time[rows] + num_rows, clicked[rows])

    return num_events / quiet_seconds_of(update)


def measure(num_rows: int, args: argparse.Namespace) -> list[str]:
    r"""The row of one size."""
    keys, log = make_log(num_rows)
    ours, theirs = partial(target_counts, keys, log, log), partial(count_by_pandas, keys, log)
    if not torch.equal(ours(), theirs()):
        raise RuntimeError(f'The counts of {num_rows} rows differ from those of pandas.')
    calls = {
        name: partial(quiet_seconds_of, of) for name, of in (('mag', ours), ('pandas', theirs))
    }
    seconds = take_turns(calls, args.repeats)
    return [
        f'{num_rows:,}',
        f'{median(seconds["mag"]):.2f}',
        f'{median(seconds["pandas"]):.2f}',
        f'{median_ratio(seconds["mag"], seconds["pandas"]):.2f}',
        f'{bytes_of(ours) / num_rows:,.0f}',
        *(
            f'{events_per_second(num_rows, batch, args.events // (1 if batch > 1 else 10)):,.0f}'
            for batch in (1000, 1)
        ),
    ]


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(args.threads)
    yield '# What it takes to count the macro graph at the target'
    yield ''
    yield (
        f'Exposures and clicks before each row in {len(make_log(1000)[0].views)} views, of random '
        f'logs with a hundred rows a user and a thousand an item, against cumulative sums by group '
        f'in pandas, whose counts are the same. On {in_words(args.threads)}; the median of '
        f'{args.repeats} runs in turn, and of their ratios; memory is the most of tensors that a '
        f'call holds at once. The last columns tell how many events a second a state counts that '
        f'holds the log, from one run.'
    )
    yield ''
    yield from table(
        ['rows', 'mag, s', 'pandas, s', 'pandas = 1', 'bytes a row', 'events/s, 1,000 a call',
         'events/s, one a call'],
        [measure(num_rows, args) for num_rows in args.rows],
    )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.target_counts', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--rows', nargs='+', type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument('--threads', type=int, default=1, help='default: %(default)s')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    parser.add_argument(
        '--events', type=int, default=20_000, help='that a state counts; default: %(default)s'
    )
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
