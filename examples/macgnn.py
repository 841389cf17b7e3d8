r"""Trains MacGNN on real clicks: raw log, macro graph, training, results and a figure.

    python examples/macgnn.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/macgnn.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse
import os

from options import make_output, make_parser

DATASETS = (
    'movielens-100k', 'movielens-1m', 'movielens-10m', 'kuairand', 'event-log', 'synthetic'
)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        'Train MacGNN on a click log and show what it learned.', DATASETS, 'movielens-100k', 6
    )
    parser.add_argument('--path', help='event-log: a CSV or Parquet file, or a pattern of several')
    parser.add_argument(
        '--columns', nargs='+', default=[], metavar='ROLE=NAME',
        help='event-log: which column is user, item, time, label, category, weight',
    )  # fmt: skip
    # What you may want to change as well.
    parser.set_defaults(
        windows=12,
        user_clusters=20,
        item_groups='category',  # or a number of clusters, as for users
        recent=20,
        embedding_dim=10,
        temperature=1.9,
        batch_size=1024,
        learning_rate=1e-2,
        weight_decay=5e-5,
        patience=6,
    )
    args = parser.parse_args()
    if args.dataset == 'event-log' and not (args.path and args.columns):
        parser.error('--dataset event-log needs --path and --columns user=... item=... time=...')
    if not all('=' in column for column in args.columns):
        parser.error(f'--columns takes pairs such as user=uid, but got {" ".join(args.columns)}')
    return args


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from lightning import seed_everything
from results import CLICK_COLUMNS, describe, draw_macro_graph, save, table, write_json
from torch_geometric.transforms import Compose

from mag.datasets import EventLog, KuaiRand, MovieLens, SyntheticMarket
from mag.loader import PairLoader
from mag.models import MacGNN
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'macgnn', args.dataset)
    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data))

    # MovieLens-100K is too short to be cut at one moment for all users.
    by = 'user' if args.dataset == 'movielens-100k' else 'global'
    # Each training row reads the clicks before its own window; clusters are learned on the first.
    train, val, test = TemporalSplit(num_windows=args.windows, by=by)(data)
    groups = {'user': args.user_clusters, 'item': args.item_groups}
    coarsen = MacroCoarsen(groups, seed=args.seed).fit(train)
    to_macro = Compose([RecentNeighbors(args.recent), coarsen])
    train, val, test = to_macro(train), to_macro(val), to_macro(test)

    train_loader = PairLoader(train, args.batch_size, shuffle=True, seed=args.seed)
    val_loader = PairLoader(val, 8 * args.batch_size)
    test_loader = PairLoader(test, 8 * args.batch_size)

    seed_everything(args.seed, verbose=False)
    model = MacGNN.from_data(train, embedding_dim=args.embedding_dim, temperature=args.temperature)
    task = ClickTask(model, args.learning_rate, args.weight_decay)
    fit(
        task,
        train_loader,
        val_loader,
        directory=output,
        max_epochs=args.epochs,
        patience=args.patience,
        seed=args.seed,
        validate_every=max(1, len(train_loader) // 4),
        resume=args.resume,
    )

    results = {
        name: {
            'rows': len(loader.dataset),
            'dropped': part[CLICKS].num_dropped,
            **evaluate(task, loader),
        }
        for name, loader, part in (('validation', val_loader, val), ('test', test_loader, test))
    }
    print(table(results, {'rows': 'rows', 'dropped': 'dropped', **CLICK_COLUMNS}))
    write_json(output / 'results.json', args, results)
    save(
        draw_macro_graph(output, test, dataset.names.get(str(args.item_groups))),
        output / 'macgnn.png',
    )
    print(f'In {output}: best.ckpt, metrics.csv, results.json, macgnn.png')


def load_dataset(args: argparse.Namespace) -> MovieLens | KuaiRand | EventLog | SyntheticMarket:
    if args.dataset == 'synthetic':
        return SyntheticMarket(seed=args.seed)
    root = os.path.join(args.root, args.dataset)
    if args.dataset == 'event-log':
        return EventLog(root, args.path, dict(column.split('=', 1) for column in args.columns))
    if args.dataset == 'kuairand':
        return KuaiRand(root)
    return MovieLens(root, args.dataset.removeprefix('movielens-'))


if __name__ == '__main__':
    main(ARGS)
