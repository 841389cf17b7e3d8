r"""Trains MacGNN on real clicks: raw log, macro graph, training, results and a figure.

    python examples/macgnn.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/macgnn.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Train MacGNN on a click log and show what it learned.', 6)
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
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, draw_macro_graph, save, stop_by, table, write_json
from torch_geometric.transforms import Compose

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

    # Each training row reads the clicks before its own window; clusters are learned on the first.
    train, val, test = TemporalSplit(num_windows=args.windows, by=split_by(args))(data)
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
        monitor=stop_by(val),
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


if __name__ == '__main__':
    main(ARGS)
