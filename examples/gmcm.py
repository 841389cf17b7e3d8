r"""Trains GMCM: what follows a click, and whether it is bought; results and a figure of the graph.

    python examples/gmcm.py

on a simulated market whose truth is known, so that predictions are compared with the true
conversion probability of every exposure, also of those nobody clicked. On real logs, whose files
are in data/NAME/raw:

    python examples/gmcm.py --dataset kuairand
    python examples/gmcm.py --dataset trivago
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train GMCM on a log with conversions and show what it learned.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    log = parser.add_argument_group('log')
    log.add_argument('--dataset', choices=['synthetic', 'kuairand', 'trivago'], default='synthetic')
    log.add_argument('--root', default='data', help='where raw files and caches go')
    log.add_argument('--exposures', type=int, default=200_000, help='synthetic: how many')
    log.add_argument(
        '--selection-bias', type=float, default=2.0,
        help='synthetic: how strongly what is worth buying is also clicked',
    )  # fmt: skip

    model = parser.add_argument_group('model and training')
    model.add_argument('--merge', choices=['graph', 'concat', 'gru', 'none'], default='graph')
    model.add_argument(
        '--loss', choices=['ipw', 'naive', 'doubly_robust', 'esmm', 'division'], default='ipw'
    )
    model.add_argument('--num-buckets', type=int, default=50_000, help='rows of the embedding')
    model.add_argument('--epochs', type=int, default=4, help='at most this many passes')
    model.add_argument(
        '--patience', type=int, default=4, help='validations (two an epoch) without improvement'
    )
    model.add_argument('--batch-size', type=int, default=2048, help='exposures a step')
    model.add_argument('--learning-rate', type=float, default=1e-3, help='of Adam')
    model.add_argument('--weight-decay', type=float, default=1e-6, help='of Adam')
    model.add_argument('--seed', type=int, default=0, help='of the market, weights and order')
    model.add_argument('--accelerator', default='auto', help='cpu, cuda, ... for Lightning')

    run = parser.add_argument_group('run')
    run.add_argument(
        '--output', help='folder of the results; default: runs/gmcm-DATASET-MERGE-LOSS-seedSEED'
    )
    run.add_argument(
        '--resume', action=argparse.BooleanOptionalAction, default=True,
        help='go on with the run in the output folder if there is one',
    )  # fmt: skip
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import torch
from lightning import seed_everything
from matplotlib.figure import Figure
from torch_geometric.data import HeteroData

from mag.datasets import KuaiRand, SyntheticMarket, Trivago
from mag.loader import ExposureLoader
from mag.models import GMCM
from mag.nn import BehaviorGraphConv
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import BehaviorGraph, TemporalSplit

COLUMNS = {
    'auc': 'click AUC',
    'cvr_auc': 'CVR AUC',
    'cvr_mse': 'CVR MSE',
    'ctcvr_auc': 'CTCVR AUC',
    'ctcvr_gauc': 'CTCVR GAUC',
}


def main(args: argparse.Namespace) -> None:
    name = f'gmcm-{args.dataset}-{args.merge}-{args.loss}-seed{args.seed}'
    output = Path(args.output or f'runs/{name}')
    output.mkdir(parents=True, exist_ok=True)

    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data))

    # What a model reads is known when an exposure is shown, so users without a past can stay.
    train, val, test = TemporalSplit(0.01, 0.8, 0.9, num_windows=1, keep_cold=True)(data)
    graph = BehaviorGraph().fit(train)
    train, val, test = graph(train), graph(val), graph(test)

    train_loader = ExposureLoader(train, args.batch_size, shuffle=True, seed=args.seed)
    val_loader = ExposureLoader(val, 4 * args.batch_size)
    test_loader = ExposureLoader(test, 4 * args.batch_size)

    seed_everything(args.seed, verbose=False)
    model = GMCM.from_data(train, merge=args.merge, loss=args.loss, num_buckets=args.num_buckets)
    task = ClickTask(model, args.learning_rate, args.weight_decay)
    fit(
        task,
        train_loader,
        val_loader,
        directory=str(output),
        max_epochs=args.epochs,
        patience=args.patience,
        seed=args.seed,
        validate_every=-(-len(train_loader) // 2),
        monitor='ctcvr_auc',
        resume=args.resume,
        accelerator=args.accelerator,
    )

    results = {
        name: {'rows': len(loader.dataset), **evaluate(task, loader)}
        for name, loader in (('validation', val_loader), ('test', test_loader))
    }
    print(results_table(results))
    if 'truth' in data:
        results['truth'] = compare_with_truth(task, test, test_loader)
        print(
            'Mean squared distance of the conversion probability from the true one: '
            + ', '.join(f'{value:.4f} {name}' for name, value in results['truth'].items())
        )
    write_json(output / 'results.json', {'arguments': vars(args), 'results': results})
    draw(output / 'gmcm.png', train, model, dataset.names['behavior'])
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


def describe(name: str, data: HeteroData) -> str:
    clicks = data[CLICKS]
    return (
        f'{name}: {data["user"].num_nodes:,} users, {data["item"].num_nodes:,} items, '
        f'{clicks.edge_label.numel():,} exposures, {int(clicks.edge_label.sum()):,} clicks, '
        f'{int(clicks.edge_label_conversion.sum()):,} conversions'
    )


def results_table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f'{"":12}{"rows":>10}' + ''.join(f'{title:>12}' for title in COLUMNS.values())]
    for name, row in results.items():
        values = ''.join(f'{row[metric]:>12.4f}' for metric in COLUMNS)
        lines.append(f'{name:12}{row["rows"]:>10,}{values}')
    return '\n'.join(lines)


def compare_with_truth(
    task: ClickTask, test: HeteroData, loader: ExposureLoader
) -> dict[str, float]:
    r"""The mean squared error of the conversion probability, which only a simulation can tell."""
    clicks = test[CLICKS]
    truth = test.truth['conversion_probability'][clicks.edge_label_row]
    error = (predict(task, loader)['conversion'] - truth).square()
    clicked = clicks.edge_label == 1
    return {
        'over all exposures': float(error.mean()),
        'over the clicked': float(error[clicked].mean()),
        'over the others': float(error[~clicked].mean()),
    }


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, path)


def draw(path: Path, data: HeteroData, model: GMCM, names: list[str]) -> None:
    r"""The graph of behaviors as the convolution sees it, but for its loops: as counted, and with
    the learned bias."""
    follows = data['behavior', 'follows', 'behavior']
    edges = follows.edge_index, follows.edge_weight
    counted = BehaviorGraphConv(1, 1, len(names)).normalized_adjacency(*edges).detach()
    panels = [('Counted on training clicks', counted, 'Blues')]
    conv = model.cpu().convs[0] if model.merge == 'graph' else None
    if isinstance(conv, BehaviorGraphConv):
        learned = conv.normalized_adjacency(*edges).detach()
        panels += [
            ('Learned', learned, 'Blues'),
            ('Learned - counted', learned - counted, 'RdBu_r'),
        ]
    figure = Figure(figsize=(5.5 * len(panels), 5), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (title, matrix, colors) in zip(axes[0], panels, strict=True):
        # The loops, by far the largest, would take all the color.
        matrix = matrix.clone().fill_diagonal_(torch.nan)
        limit = float(matrix.abs().nan_to_num(0).max())
        image = ax.imshow(matrix, cmap=colors, vmin=0 if colors == 'Blues' else -limit, vmax=limit)
        figure.colorbar(image, ax=ax, shrink=0.7)
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [''] * len(names))
        ax.set_title(title)
    temporary = path.with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)


if __name__ == '__main__':
    main(ARGS)
