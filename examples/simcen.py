r"""Trains SimCEN, without its contrast and without its views, and a cross network on the same rows:
what the two views of the products of fields bring.

    python examples/simcen.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/simcen.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse
from collections.abc import Callable
from typing import Any

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Train SimCEN on a click log, and what it is made of.', 6)
    # What you may want to change as well.
    parser.set_defaults(
        num_buckets=10,  # of a dense feature
        simcen={
            'hidden_channels': [240, 240, 240],
            'temperature': 0.25,
            'embedding_regularization': 0.01,
        },
        cross_network={'num_crosses': 3, 'hidden_channels': [240, 240]},
        batch_size=1024,
        learning_rate=1e-3,
        weight_decay=0.0,
        monitor='auc',
        patience=4,
    )
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, draw_views, save, stop_by, table, write_json
from torch.nn import Module

from mag.loader import ExposureLoader
from mag.models import CountNet, SimCEN
from mag.schema import CLICKS
from mag.training import ClickTask, Task, evaluate, fit
from mag.transforms import BucketNumbers, TemporalSplit


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'simcen', args.dataset)
    data = load_dataset(args)[0]
    print(describe(args.dataset, data, f'seed {args.seed}'))

    # What is known of an exposure is there when it is shown, so users without a past can stay.
    split = TemporalSplit(0.01, 0.8, 0.9, num_windows=1, keep_cold=True, by=split_by(args))
    parts = split(data)
    if 'edge_label_x' in data[CLICKS]:
        buckets = BucketNumbers(args.num_buckets, modalities=[]).fit(parts[0])
        parts = [buckets(part) for part in parts]
    train, val, test = parts

    def fit_model(name: str, make: Callable[[], Module]) -> Task:
        seed_everything(args.seed, verbose=False)
        train_loader = ExposureLoader(train, args.batch_size, shuffle=True, seed=args.seed)
        return fit(
            ClickTask(make(), args.learning_rate, args.weight_decay),
            train_loader,
            ExposureLoader(val, 8 * args.batch_size),
            directory=output / name.replace(' ', '_'),
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=max(1, len(train_loader) // 2),
            monitor=stop_by(val, args.monitor),
            resume=args.resume,
        )

    def make_simcen(**changed: Any) -> Callable[[], Module]:
        return lambda: SimCEN.from_data(train, **{**args.simcen, **changed})

    models = {
        'SimCEN': make_simcen(),
        'without contrast': make_simcen(alpha=0.0),
        'without views': make_simcen(views=False),
        'cross network': lambda: CountNet.from_data(train, counts=False, **args.cross_network),
    }
    tasks = {name: fit_model(name, make) for name, make in models.items()}
    results = {
        f'{name}{of}': evaluate(task, ExposureLoader(part, 8 * args.batch_size))
        for of, part in ((', validation', val), ('', test))
        for name, task in tasks.items()
    }
    print(table(results, CLICK_COLUMNS))
    write_json(output / 'results.json', args, results)
    with_views: dict[str, Any] = {
        name: tasks[name].model for name in ('SimCEN', 'without contrast')
    }
    figure = draw_views(output, with_views, ExposureLoader(test, 8 * args.batch_size))
    save(figure, output / 'simcen.png')
    print(f'In {output}: a folder for each model, results.json, simcen.png')


if __name__ == '__main__':
    main(ARGS)
