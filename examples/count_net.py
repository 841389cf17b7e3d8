r"""Trains CountNet and MacGNN on the same clicks: what counts at the target bring.

    python examples/count_net.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/count_net.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Train CountNet on a click log, and MacGNN beside it.', 6)
    # What you may want to change as well.
    parser.set_defaults(
        windows=12,
        user_clusters=[20],
        item_groups=['category', 50],  # MacGNN reads the first
        recent=20,
        batch_size=1024,
        learning_rate=1e-2,
        weight_decay=1e-5,
        average=0.99,
        macgnn={'embedding_dim': 10, 'temperature': 1.9},
        macgnn_learning_rate=1e-2,
        macgnn_weight_decay=5e-5,
        patience=6,
    )
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, draw_count_net, save, stop_by, table, write_json
from torch_geometric.transforms import Compose

from mag.loader import ExposureLoader, PairLoader
from mag.models import CountNet, MacGNN
from mag.training import ClickTask, Task, evaluate, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'count_net', args.dataset)
    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data, f'seed {args.seed}'))

    train, val, test = TemporalSplit(num_windows=args.windows, by=split_by(args))(data)
    groups = {'user': args.user_clusters, 'item': args.item_groups}
    coarsen = MacroCoarsen(groups, seed=args.seed).fit(train)
    to_macro = Compose([RecentNeighbors(args.recent), coarsen])
    train, val, test = to_macro(train), to_macro(val), to_macro(test)
    # Training rows read what came before themselves; the others, what came before their part.
    # Fresh test rows read what came before themselves, too.
    counts = TargetCounts().fit(train)
    fresh = counts(test, log=data)
    train, val, test = counts(train, log=data), counts(val), counts(test)

    def fit_model(name: str, task: ClickTask, loader: type, monitor: str) -> Task:
        train_loader = loader(train, args.batch_size, shuffle=True, seed=args.seed)
        return fit(
            task,
            train_loader,
            loader(val, 8 * args.batch_size),
            directory=output / name,
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=max(1, len(train_loader) // 4),
            monitor=monitor,
            resume=args.resume,
        )

    seed_everything(args.seed, verbose=False)
    task = ClickTask(
        MacGNN.from_data(train, **args.macgnn), args.macgnn_learning_rate, args.macgnn_weight_decay
    )
    macgnn = fit_model('macgnn', task, PairLoader, stop_by(val))
    seed_everything(args.seed, verbose=False)
    task = ClickTask(
        CountNet.from_data(train), args.learning_rate, args.weight_decay, average=args.average
    )
    count_net = fit_model('count_net', task, ExposureLoader, 'logloss')

    size = 8 * args.batch_size
    results = {
        'MacGNN, validation': evaluate(macgnn, PairLoader(val, size)),
        'CountNet, validation': evaluate(count_net, ExposureLoader(val, size)),
        'MacGNN': evaluate(macgnn, PairLoader(test, size)),
        'CountNet, stale counts': evaluate(count_net, ExposureLoader(test, size)),
        'CountNet, fresh counts': evaluate(count_net, ExposureLoader(fresh, size)),
    }
    print(table(results, CLICK_COLUMNS))
    write_json(output / 'results.json', args, results)
    names = dataset.names.get(str(args.item_groups[0]))
    save(draw_count_net(output, test, results, names), output / 'count_net.png')
    print(f'In {output}: macgnn/, count_net/, results.json, count_net.png')


if __name__ == '__main__':
    main(ARGS)
