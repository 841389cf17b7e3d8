r"""How many neighbors a user has in the micro and in the macro graph: Figure 1 of MacGNN's paper.

Hop 1 are the items that a user clicked before the test part, hop 2 the users who clicked one of
them, hop 3 the items that one of these clicked. In the macro graph they are the macro nodes that
these are of. Micro neighbors are counted exactly, for a sample of the users who clicked.

    python benchmarks accuracy.neighbors --dataset movielens-1m --root data/movielens-1m \
        --markdown benchmarks/accuracy/neighbors.md --figure docs/neighbors.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from records import made_here, make_parser, publish, table
from scipy.sparse import csr_array

from accuracy.clicks import DATASETS
from mag.schema import CLICKS, MACRO
from mag.transforms import MacroCoarsen, TemporalSplit

HOPS = 3
SHARES = (0.5, 0.9, 1.0)


def micro_neighbors(clicks: csr_array, users: np.ndarray) -> list[np.ndarray]:
    r"""Of each hop, the number of neighbors of each user."""
    reached, found = clicks[users], []
    for hop in range(1, HOPS + 1):
        if hop > 1:
            reached = reached @ (clicks.T if hop % 2 == 0 else clicks)
            # Paths become neighbors.
            reached.data[:] = 1
        found.append(np.diff(reached.indptr))
    return found


def count(dataset: str, args: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    r"""For ``'micro'`` and ``'macro'``, of each hop the number of neighbors of each user."""
    train, _, test = TemporalSplit(num_windows=1)(DATASETS[dataset].load(args.root))
    coarsen = MacroCoarsen({'user': 20, 'item': 'category'}, num_hops=HOPS).fit(train)
    test = coarsen(test)
    user, item = test[CLICKS].edge_index
    size = test['user'].num_nodes, test['item'].num_nodes
    clicks = csr_array((np.ones(user.numel(), np.float32), (user, item)), shape=size)
    clicks.sum_duplicates()
    clicks.data[:] = 1
    generator = torch.Generator().manual_seed(0)
    known = user.unique()
    sample = known[torch.randperm(known.numel(), generator=generator)[: args.users]]
    macro = []
    for hop in range(1, HOPS + 1):
        reached = test[MACRO['item' if hop % 2 else 'user'], f'hop{hop}', 'user'].edge_index[1]
        macro.append(reached.bincount(minlength=size[0])[sample].numpy())
    return {'micro': micro_neighbors(clicks, sample.numpy()), 'macro': macro}


def render(dataset: str, found: dict[str, list[np.ndarray]]) -> list[str]:
    rows = [
        [
            f'{hop}',
            *(
                f'{np.quantile(number, share):,.0f}'
                for number in (micro, macro)
                for share in SHARES
            ),
            f'{micro.mean() / macro.mean():,.0f}',
        ]
        for hop, (micro, macro) in enumerate(zip(found['micro'], found['macro'], strict=True), 1)
    ]
    names = ['median', '90 %', 'most']
    header = ['hop', *(f'{graph}, {name}' for graph in ('micro', 'macro') for name in names)]
    return [
        f'# How many neighbors a user of {DATASETS[dataset].title} has',
        '',
        f'In the clicks before the test part (micro) and over 20 groups of users and the '
        f'categories of items (macro): the median over {len(found["micro"][0]):,} users, what 90 % '
        f'have at most, and the most; and how many times more there are on average in the micro '
        f'graph.',
        '',
        *table([*header, 'times'], rows),
        '',
        made_here('pyg-mag', 'scipy'),
    ]


def draw(found: dict[str, list[np.ndarray]], path: Path) -> None:
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout='constrained')
    for place, (graph, color) in enumerate((('micro', '0.6'), ('macro', '#d55e00'))):
        boxes = axes.boxplot(
            found[graph], positions=np.arange(HOPS) * 3 + place, widths=0.8, patch_artist=True,
            whis=(0, 100), medianprops={'color': 'black'},
        )  # fmt: skip
        for box in boxes['boxes']:
            box.set(facecolor=color, label=f'{graph} graph' if box is boxes['boxes'][0] else None)
    axes.set_yscale('log')
    axes.set_xticks(np.arange(HOPS) * 3 + 0.5, [f'hop {hop}' for hop in range(1, HOPS + 1)])
    axes.set_ylabel('neighbors of a user')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.neighbors', __doc__)
    parser.add_argument('--dataset', choices=DATASETS, required=True)
    parser.add_argument('--root', default='data', help='folder with raw/ of a real log')
    parser.add_argument('--users', type=int, default=2000, help='how many are sampled')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--figure', type=Path, help='PNG file to write')
    args = parser.parse_args(arguments)
    found = count(args.dataset, args)
    publish(render(args.dataset, found), args.markdown)
    if args.figure is not None:
        draw(found, args.figure)
