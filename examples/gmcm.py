r"""Trains GMCM: what follows a click, and whether it is bought; results and a figure of the graph.

    python examples/gmcm.py

on a simulated market whose truth is available, so that predictions are compared with the true
conversion probability of every exposure, also of those nobody clicked. On real logs, whose files
are in data/NAME/raw:

    python examples/gmcm.py --dataset kuairand
    python examples/gmcm.py --dataset trivago
"""

import argparse
import os

from options import make_output, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        'Train GMCM on a log with conversions and show what it learned.',
        ('synthetic', 'kuairand', 'trivago'), 'synthetic', 4,
    )  # fmt: skip
    parser.add_argument('--exposures', type=int, default=200_000, help='synthetic: how many')
    parser.add_argument(
        '--loss', choices=['ipw', 'naive', 'doubly_robust', 'esmm', 'division'], default='ipw'
    )
    # What you may want to change as well.
    parser.set_defaults(
        selection_bias=2.0,  # synthetic: how strongly what is worth buying is also clicked
        merge='graph',  # of the embeddings of behaviors, or 'concat', 'gru', 'none'
        num_buckets=50_000,
        tower_channels=(512, 256, 128, 64),
        batch_size=2048,
        learning_rate=1e-3,
        weight_decay=1e-6,
        patience=4,
    )
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from lightning import seed_everything
from results import describe, draw_behaviors, save, stop_by, table, write_json
from torch_geometric.data import HeteroData

from mag.datasets import KuaiRand, SyntheticMarket, Trivago
from mag.loader import ExposureLoader
from mag.models import GMCM
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import BehaviorGraph, TemporalSplit

COLUMNS = {
    'rows': 'rows',
    'auc': 'click AUC',
    'cvr_auc': 'CVR AUC',
    'cvr_mse': 'CVR MSE',
    'ctcvr_auc': 'CTCVR AUC',
    'ctcvr_gauc': 'CTCVR GAUC',
}


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'gmcm', args.dataset, args.merge, args.loss)
    dataset = load_dataset(args)
    data = dataset[0]
    conversions = int(data[CLICKS].edge_label_conversion.sum())
    print(describe(args.dataset, data, f'{conversions:,} conversions'))

    # The features of an exposure are there when it is shown, so users without a past can stay.
    train, val, test = TemporalSplit(0.01, 0.8, 0.9, num_windows=1, keep_cold=True)(data)
    graph = BehaviorGraph().fit(train)
    train, val, test = graph(train), graph(val), graph(test)

    train_loader = ExposureLoader(train, args.batch_size, shuffle=True, seed=args.seed)
    val_loader = ExposureLoader(val, 4 * args.batch_size)
    test_loader = ExposureLoader(test, 4 * args.batch_size)

    seed_everything(args.seed, verbose=False)
    model = GMCM.from_data(
        train,
        merge=args.merge,
        loss=args.loss,
        num_buckets=args.num_buckets,
        tower_channels=args.tower_channels,
    )
    task = ClickTask(model, args.learning_rate, args.weight_decay)
    fit(
        task,
        train_loader,
        val_loader,
        directory=output,
        max_epochs=args.epochs,
        patience=args.patience,
        seed=args.seed,
        validate_every=-(-len(train_loader) // 2),
        monitor=stop_by(val, 'ctcvr_auc'),
        resume=args.resume,
    )

    results = {
        name: {'rows': len(loader.dataset), **evaluate(task, loader)}
        for name, loader in (('validation', val_loader), ('test', test_loader))
    }
    print(table(results, COLUMNS))
    if 'truth' in data:
        results['truth'] = compare_with_truth(task, test, test_loader)
        print(
            'Mean squared distance of the conversion probability from the true one: '
            + ', '.join(f'{value:.4f} {name}' for name, value in results['truth'].items())
        )
    write_json(output / 'results.json', args, results)
    save(draw_behaviors(train, model, dataset.names['behavior']), output / 'gmcm.png')
    print(f'In {output}: best.ckpt, metrics.csv, results.json, gmcm.png')


def load_dataset(args: argparse.Namespace) -> SyntheticMarket | KuaiRand | Trivago:
    if args.dataset == 'synthetic':
        return SyntheticMarket(
            max(args.exposures // 100, 1),
            max(args.exposures // 200, 1),
            args.exposures,
            selection_bias=args.selection_bias,
            seed=args.seed,
        )
    root = os.path.join(args.root, args.dataset)
    return KuaiRand(root) if args.dataset == 'kuairand' else Trivago(root)


def compare_with_truth(
    task: ClickTask, test: HeteroData, loader: ExposureLoader
) -> dict[str, float]:
    r"""The mean squared error of the conversion probability, for which a simulation is needed."""
    clicks = test[CLICKS]
    truth = test.truth['conversion_probability'][clicks.edge_label_row]
    error = (predict(task, loader)['conversion'] - truth).square()
    clicked = clicks.edge_label == 1
    return {
        'over all exposures': float(error.mean()),
        'over the clicked': float(error[clicked].mean()),
        'over the others': float(error[~clicked].mean()),
    }


if __name__ == '__main__':
    main(ARGS)
