r"""Trains SRJGraph on search and recommendation together; results of each, and a figure of what one
target pays attention to.

    python examples/srjgraph.py

on a simulated market whose queries reveal what a user looks for and on which occasion, so that of
the earlier clicks those of the same occasion matter. On real sessions, with train.csv in
data/trivago/raw:

    python examples/srjgraph.py --dataset trivago
"""

import argparse
import copy
import os
from functools import partial

from options import make_output, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        'Train SRJGraph on search and recommendation together.',
        ('synthetic', 'trivago'), 'synthetic', 4,
    )  # fmt: skip
    parser.add_argument('--exposures', type=int, default=100_000, help='synthetic: how many')
    # What you may want to change as well.
    parser.set_defaults(
        widths={'user': [10, 1, 5], 'item': [1, 10, 1]},  # of paths; the paper: 25 1 10 and 1 25 1
        attribute=None,  # or what items drawn from a user share with the target: 'category'
        num_buckets=50_000,
        batch_size=512,
        learning_rate=5e-3,
        weight_decay=1e-6,
        patience=4,
    )
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import torch
from lightning import seed_everything
from results import (
    CLICK_COLUMNS,
    describe,
    draw_attention,
    improvements,
    save,
    stop_by,
    table,
    write_json,
)
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP

from mag.datasets import SyntheticMarket, Trivago
from mag.loader import ExposureBatch, ExposureLoader, PathLoader
from mag.models import SRJGraph
from mag.nn import HashEmbedding
from mag.schema import CLICKS, label_attributes
from mag.training import ClickTask, evaluate, fit
from mag.transforms import TemporalSplit


class DNN(torch.nn.Module):
    r"""What a click model can do without a graph: the same features of target and query."""

    def __init__(self, fields: tuple[str, ...], num_buckets: int) -> None:
        super().__init__()
        self.embedding = HashEmbedding(fields, num_buckets, 16)
        self.head = MLP([16 * len(fields), 256, 64, 1])

    def forward(self, batch: ExposureBatch) -> Tensor:
        return self.head(self.embedding(batch.sparse)).squeeze(-1)


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'srjgraph', args.dataset)
    dataset = load_dataset(args)
    data = dataset[0]
    searches = int(data[CLICKS].edge_label_domain.sum())
    print(describe(args.dataset, data, f'{searches:,} of the exposures from search'))
    train, val, test = TemporalSplit(0.3, 0.8, 0.9, num_windows=1, keep_cold=True)(data)
    tests = {
        domain: of_domain(test, number)
        for number, domain in enumerate(dataset.names['domain'])
        # A small log may end without a search.
        if bool((test[CLICKS].edge_label_domain == number).any())
    }

    features = partial(ExposureLoader, seed=args.seed)
    # Each exposure draws from all that came before itself, also within its own part.
    paths = partial(
        PathLoader, widths=args.widths, attribute=args.attribute, history=data, seed=args.seed
    )
    seed_everything(args.seed, verbose=False)
    dnn = DNN(features(train).fields, args.num_buckets)
    srjgraph = SRJGraph.from_data(train)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, model, load in (('DNN', dnn, features), ('SRJGraph', srjgraph, paths)):
        train_loader = load(train, args.batch_size, shuffle=True)
        task = ClickTask(model, args.learning_rate, args.weight_decay)
        fit(
            task,
            train_loader,
            load(val, 4 * args.batch_size),
            directory=output / name,
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=-(-len(train_loader) // 2),
            monitor=stop_by(val),
            resume=args.resume,
        )
        results[name] = {
            domain: evaluate(task, load(part, 4 * args.batch_size))
            for domain, part in tests.items()
        }
    for domain in tests:
        rows = {name: result[domain] for name, result in results.items()}
        print(f'{domain.capitalize()}:\n{table(rows, CLICK_COLUMNS)}\n{improvements(rows, "DNN")}')
    write_json(output / 'results.json', args, results)
    batch = next(iter(paths(tests.get('search', test), 4 * args.batch_size)))
    save(draw_attention(srjgraph, batch), output / 'srjgraph.png')
    print(f'In {output}: DNN/, SRJGraph/, results.json, srjgraph.png')


def load_dataset(args: argparse.Namespace) -> SyntheticMarket | Trivago:
    if args.dataset == 'trivago':
        return Trivago(os.path.join(args.root, args.dataset))
    return SyntheticMarket(
        max(args.exposures // 400, 1),
        max(args.exposures // 1000, 1),
        args.exposures,
        num_groups=2,
        occasion_strength=4.0,
        id_lifetime=7.0,
        seed=args.seed,
    )


def of_domain(part: HeteroData, number: int) -> HeteroData:
    r"""The exposures of one domain, with the clicks of both."""
    part = copy.copy(part)
    clicks = part[CLICKS]
    rows = clicks.edge_label_domain == number
    for name in label_attributes(part):
        clicks[name] = clicks[name][:, rows] if name == 'edge_label_index' else clicks[name][rows]
    return part


if __name__ == '__main__':
    main(ARGS)
