r"""How far hop 2 is off while a server goes on from a snapshot.

A snapshot is made of a log but for its last days, with macro nodes by what came before, and a
replica follows the rest. After some hours its hop 2 is compared with that of a count of the whole
log up to then: that of the snapshot alone, what a node's own new clicks have made of it, and, of a
user, the sum of the hop 1 of its items. Of all nodes that have a hop 2 by then, it is the mean of
the sum of absolute differences over the sum of what should be there.

    python benchmarks accuracy.hop_2_age --root data/kuairand \
        --markdown benchmarks/accuracy/hop_2_age.md
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time
from unittest.mock import patch

import numpy as np
import torch
from records import made_here, make_parser, publish, table
from scipy.sparse import csr_array
from torch_geometric.data import HeteroData
from tqdm import tqdm

from accuracy.count_data import DATASETS, HOUR
from mag.id_map import IdMap
from mag.online import (
    EVENT,
    Replica,
    RowLayout,
    Snapshot,
    SqliteStream,
    checksum_of,
    write_snapshot,
)
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE
from mag.transforms import MacroCoarsen, TemporalSplit

PACKAGES = ('pyg-mag', 'torch', 'numpy', 'scipy')
NODES = ('user', 'item')
# Users that are asked for one by one.
NUM_ASKED = 2000


def events_of(data: HeteroData) -> np.ndarray:
    r"""The exposures of a log, in the order of time."""
    clicks = data[CLICKS]
    events = np.empty(clicks.edge_label.numel(), EVENT)
    for row, node in enumerate(NODES):
        events[node] = clicks.edge_label_index[row].numpy()
    events['time'], events['clicked'] = clicks.edge_label_time.numpy(), clicks.edge_label.numpy()
    return events[events['time'].argsort(kind='stable')]


def hops_of(
    events: np.ndarray, clusters: dict[str, np.ndarray], numbers: dict[str, int]
) -> tuple[csr_array, dict[str, np.ndarray], dict[str, np.ndarray]]:
    r"""Who has clicked what, and hops 1 and 2 of users and of items, by a count of all events."""
    clicks = events[events['clicked'] == 1]
    shape = tuple(len(clusters[node]) for node in NODES)
    between = csr_array((np.ones(len(clicks), np.int64), (clicks['user'], clicks['item'])), shape)
    between.data[:] = 1
    matrices = {'user': between, 'item': between.T}
    hop_1 = {}
    for node, neighbor in NEIGHBOR_TYPE.items():
        is_of = clusters[neighbor][:, None] == np.arange(numbers[neighbor])
        hop_1[node] = matrices[node] @ is_of.astype(np.int64)
    hop_2 = {node: matrices[node] @ hop_1[other] for node, other in NEIGHBOR_TYPE.items()}
    return between, hop_1, hop_2


def snapshot_of(
    folder: Path, events: np.ndarray, clusters: dict[str, np.ndarray], numbers: dict[str, int]
) -> Snapshot:
    r"""A snapshot that holds the pairs and hops of events, and nothing else."""
    layout = RowLayout(1, {node: [number] for node, number in numbers.items()})
    between, hop_1, hop_2 = hops_of(events, clusters, numbers)
    rows = {}
    for node, of in hop_1.items():
        rows[node] = layout.empty(node, len(of))
        rows[node]['pairs'][:, :-1] = of
        # At the end are neighbors without a macro node.
        degree = between.sum(axis=1 if node == 'user' else 0)
        rows[node]['pairs'][:, -1] = degree - of.sum(axis=1)
    path = write_snapshot(
        folder,
        model='macgnn',
        position=len(events),
        checksum=checksum_of(events),
        time=int(events['time'][-1]),
        layout=layout,
        resolutions={node: ['cluster'] for node in NEIGHBOR_TYPE},
        clusters={node: of[None] for node, of in clusters.items()},
        rows=rows,
        hop_2=hop_2,
        cells={(0, 0): np.zeros((numbers['user'] + 1, numbers['item'] + 1, 2), np.int64)},
        pairs=np.stack(between.nonzero()),
        id_maps={node: IdMap(np.arange(len(of))) for node, of in clusters.items()},
        attributes={'user': {}, 'item': {}},
        contexts=[],
        weights={'none': torch.zeros(1)},
    )
    return Snapshot.open(path)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    r"""The mean relative difference of the nodes that have a hop 2."""
    total = exact.sum(axis=1)
    off = np.abs(found - exact).sum(axis=1)
    return float((off[total > 0] / total[total > 0]).mean())


def ask(replica: Replica, users: np.ndarray) -> list[float]:
    r"""The seconds of the processor that hop 2 of each user takes alone."""
    seconds = []
    for user in users:
        begun = thread_time()
        replica.hop_2('user', np.array([user]))
        seconds.append(thread_time() - begun)
    return seconds


def clusters_of(data: HeteroData, dataset: str, share: float) -> tuple[int, HeteroData]:
    r"""When the last part of a log begins that has a share of it, and that part, whose macro nodes
    were made of what came before."""
    split = TemporalSplit(0.8 * (1 - share), 0.9 * (1 - share), 1 - share, num_windows=1)
    train, _, test = split(data)
    groups = {node: of[0] for node, of in DATASETS[dataset].groups.items()}
    coarsen = MacroCoarsen(groups, exposure_hops=0).fit(train)
    return int(test[CLICKS].cutoff), coarsen(test)


def measure(args: argparse.Namespace) -> tuple[list[list[str]], str]:
    r"""The rows of the table, and what a user takes."""
    data = DATASETS[args.dataset].load(args.root)
    events = events_of(data)
    last = events['time'][-1] - HOUR * max(args.hours)
    cutoff, part = clusters_of(data, args.dataset, float((events['time'] > last).mean()))
    clusters = {node: part[node].cluster.numpy() for node in NODES}
    numbers = {node: part[MACRO[node]].num_nodes for node in NODES}
    nodes = {node: np.arange(len(of)) for node, of in clusters.items()}
    start = int(np.searchsorted(events['time'], cutoff))
    rows = []
    with TemporaryDirectory() as folder, SqliteStream(Path(folder, 'events.db')) as stream:
        snapshot = snapshot_of(Path(folder), events[:start], clusters, numbers)
        stream.append(events, 0)
        replica = Replica(snapshot, stream)
        for hours in tqdm(args.hours, leave=False):
            end = int(np.searchsorted(events['time'], cutoff + hours * HOUR))
            while replica.position < end:
                replica.follow(min(end - replica.position, 8192))
            exact = hops_of(events[:end], clusters, numbers)[2]
            found = {node: replica.hop_2(node, nodes[node]) for node in NODES}
            if not (found['user'] == exact['user']).all():
                raise RuntimeError(f'Hop 2 of users after {hours} hours is another one.')
            with patch('mag.online.replica._MAX_SUMMED', 0):
                own = {'user': replica.hop_2('user', nodes['user']), 'item': found['item']}
            rows.append(
                [
                    str(hours),
                    f'{end - start:,}',
                    *(
                        f'{error(of[node], exact[node]):.1%}'
                        for node in NODES
                        for of in (snapshot.hop_2, own)
                    ),
                    f'{error(found["user"], exact["user"]):.1%}',
                ]
            )
        number = replica.rows('user', nodes['user'])['pairs'].sum(axis=1)
        asked = np.random.default_rng(0).choice(np.flatnonzero(number > 0), NUM_ASKED)
        median, most = np.quantile(ask(replica, asked), [0.5, 0.99]) * 1e6
    return rows, (
        f'Hop 2 of a user takes {median:.0f} microseconds of the processor (median; 99 of 100 at '
        f'most {most:.0f}): of {NUM_ASKED:,} users with {number[asked].min()} to '
        f'{number[asked].max()} items, one by one.'
    )


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    rows, seconds = measure(args)
    yield '# How far hop 2 is off while a server goes on from a snapshot'
    yield ''
    yield (
        f'{DATASETS[args.dataset].title}: the mean relative difference, over the nodes that have a '
        f'hop 2 by then, from that of a count of the whole log.'
    )
    yield ''
    yield from table(
        [
            'hours', 'events', 'users: snapshot', 'users: and own clicks', 'items: snapshot',
            'items: and own clicks', 'users: summed at the request',
        ],
        rows,
    )  # fmt: skip
    yield ''
    yield seconds
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.hop_2_age', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--dataset', choices=DATASETS, default='kuairand')
    parser.add_argument('--root', default='data/kuairand', help='the folder of the log')
    parser.add_argument('--hours', nargs='+', type=float, default=[1, 24, 72])
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
