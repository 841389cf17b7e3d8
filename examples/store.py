r"""Trains CountNet and MacGNN from a store, the macro graph of a log that need not fit in memory,
on one process or several.

    python examples/store.py --dataset movielens-1m
    torchrun --nproc_per_node 2 examples/store.py --dataset movielens-1m

Your own clicks, described as in docs/your_log.md:

    python examples/store.py --schema log.yaml
"""

import argparse
from pathlib import Path

from options import LOGS, make_output, make_parser


def parse_args() -> argparse.Namespace:
    datasets = [name for name in LOGS if name != 'event-log']
    parser = make_parser('Train from a store that is built on disk.', datasets, 'movielens-100k', 6)
    parser.add_argument('--schema', help='a YAML or JSON file that describes your own log')
    # What you may want to change as well.
    parser.set_defaults(
        windows=6,
        user_clusters=20,
        item_clusters=20,  # beside the groups that the log tells, such as categories
        recent=20,
        counts='log',  # one byte a count of hop 2, or 'exact'
        memory_limit='1GiB',  # of the build
        batch_size=1024,  # of each process
        learning_rate=1e-2,
        weight_decay=5e-5,
        patience=6,
    )
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import os
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from lightning import seed_everything
from logs import load_dataset
from results import CLICK_COLUMNS, table, write_json

from mag.datasets import LogSchema
from mag.files import replacing
from mag.models import CountNet, MacGNN
from mag.schema import CLICKS
from mag.store import BuildPlan, Store, StoreLoader, build
from mag.training import ClickTask, evaluate, fit

COLUMNS = {
    'user': 'user', 'item': 'item', 'time': 'time', 'label': 'click',
    'item_attributes': ['category'],
}  # fmt: skip
# What each model reads of a row.
MODELS: dict[str, Any] = {'CountNet': (CountNet, 'features'), 'MacGNN': (MacGNN, 'pairs')}


def write_log(args: argparse.Namespace, path: Path) -> LogSchema:
    r"""A log as the Parquet file that others would have of it."""
    # A file that was written again is another one, to which its store does not belong.
    if not path.exists():
        data = load_dataset(args)[0]
        user, item = data[CLICKS].edge_label_index.numpy()
        log = {
            'user': user,
            'item': item,
            'time': data[CLICKS].edge_label_time.numpy(),
            'click': data[CLICKS].edge_label.long().numpy(),
            'category': data['item'].category.numpy()[item],
        }
        with replacing(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(log), temporary, row_group_size=2**14)
    return LogSchema(str(path), COLUMNS)


def build_store(args: argparse.Namespace, output: Path) -> None:
    schema = LogSchema.load(args.schema) if args.schema else write_log(args, output / 'log.parquet')
    groups = {
        'user': args.user_clusters,
        'item': [*schema.named('item_attributes'), args.item_clusters],
    }
    plan = BuildPlan(
        schema, output / 'store', groups, num_windows=args.windows, num_recent=args.recent,
        counts=args.counts, memory_limit=args.memory_limit, seed=args.seed,
    )  # fmt: skip
    build(plan)


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'store', Path(args.schema).stem if args.schema else args.dataset)
    # torchrun tells each process how many there are, and which one it is.
    num_processes = int(os.environ.get('WORLD_SIZE', 1))
    rank = int(os.environ.get('RANK', 0))
    if rank == 0:
        build_store(args, output)
    if num_processes > 1:
        torch.distributed.init_process_group()
        torch.distributed.barrier()

    store = Store(output / 'store')
    results = {}
    for name, (kind, batches) in MODELS.items():
        # Each process reads its share of the rows from the same files.
        loader = StoreLoader(
            store, 'train', args.batch_size, shuffle=True, seed=args.seed, batches=batches
        )
        val, test = (
            StoreLoader(store, part, 8 * args.batch_size, batches=batches)
            for part in ('val', 'test')
        )
        seed_everything(args.seed, verbose=False)
        task = ClickTask(kind.from_data(store.graph()), args.learning_rate, args.weight_decay)
        fit(
            task,
            loader,
            val,
            directory=output / name,
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=max(1, len(loader) // 4),
            monitor='logloss',
            resume=args.resume,
            devices=num_processes,
        )
        results[name] = {'rows': len(test.dataset), **evaluate(task, test)}

    if rank == 0:
        print(table(results, {'rows': 'test rows', **CLICK_COLUMNS}))
        write_json(output / 'results.json', args, results)
        print(f'In {output}: store/, {", ".join(f"{name}/" for name in MODELS)}, results.json')
    if num_processes > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(ARGS)
