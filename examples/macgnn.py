r"""Trains MacGNN on real clicks: raw log, macro graph, training, results and a figure.

    python examples/macgnn.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/macgnn.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse
import csv
import json
import os
from pathlib import Path

DATASETS = (
    'movielens-100k', 'movielens-1m', 'movielens-10m', 'kuairand', 'event-log', 'synthetic'
)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train MacGNN on a click log and show what it learned.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    log = parser.add_argument_group('log')
    log.add_argument('--dataset', choices=DATASETS, default='movielens-100k')
    log.add_argument('--root', default='data', help='where raw files and caches go')
    log.add_argument('--path', help='event-log: a CSV or Parquet file, or a pattern of several')
    log.add_argument(
        '--columns', nargs='+', default=[], metavar='ROLE=NAME',
        help='event-log: which column is user, item, time, label, category, weight',
    )  # fmt: skip
    log.add_argument(
        '--split', choices=['global', 'user'],
        help='cut the log at one moment for all, or each user\'s own log; '
        'default: user for movielens-100k, which is too short for one moment, else global',
    )  # fmt: skip
    log.add_argument('--windows', type=int, default=12, help='rolling training windows')

    graph = parser.add_argument_group('macro graph')
    graph.add_argument('--user-clusters', type=int, default=20, help='macro users')
    graph.add_argument(
        '--item-groups', type=lambda text: int(text) if text.isdigit() else text,
        default='category', help='macro items: a categorical attribute, or a number of clusters',
    )  # fmt: skip
    graph.add_argument('--recent', type=int, default=20, help='length of the recent lists')

    model = parser.add_argument_group('model and training')
    model.add_argument('--embedding-dim', type=int, default=10, help='size of the embeddings')
    model.add_argument('--temperature', type=float, default=1.9, help='tau of the macro weights')
    model.add_argument(
        '--form', choices=['paper', 'released'], default='paper',
        help='the model of the paper, or of the code its authors released',
    )  # fmt: skip
    model.add_argument('--epochs', type=int, default=6, help='at most this many passes')
    model.add_argument(
        '--patience', type=int, default=6, help='validations (four an epoch) without improvement'
    )
    model.add_argument('--batch-size', type=int, default=1024, help='pairs a step')
    model.add_argument('--learning-rate', type=float, default=1e-2, help='of Adam')
    model.add_argument('--weight-decay', type=float, default=5e-5, help='of Adam')
    model.add_argument('--seed', type=int, default=0, help='of clusters, weights and order')
    model.add_argument('--accelerator', default='auto', help='cpu, cuda, ... for Lightning')

    run = parser.add_argument_group('run')
    run.add_argument(
        '--output', help='folder of the results; default: runs/macgnn-DATASET-seedSEED'
    )
    run.add_argument(
        '--resume', action=argparse.BooleanOptionalAction, default=True,
        help='go on with the run in the output folder if there is one',
    )  # fmt: skip

    args = parser.parse_args()
    if args.split is None:
        args.split = 'user' if args.dataset == 'movielens-100k' else 'global'
    if args.dataset == 'event-log' and not (args.path and args.columns):
        parser.error('--dataset event-log needs --path and --columns user=... item=... time=...')
    if not all('=' in column for column in args.columns):
        parser.error(f'--columns takes pairs such as user=uid, but got {" ".join(args.columns)}')
    return args


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import torch
from lightning import seed_everything
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from mag.datasets import EventLog, KuaiRand, MovieLens, SyntheticMarket
from mag.loader import PairLoader
from mag.models import MacGNN
from mag.training import ClickTask, evaluate, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit


def main(args: argparse.Namespace) -> None:
    output = Path(args.output or f'runs/macgnn-{args.dataset}-seed{args.seed}')
    output.mkdir(parents=True, exist_ok=True)

    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data))

    # Each training row reads the clicks before its own window; clusters are learned on the first.
    train, val, test = TemporalSplit(num_windows=args.windows, by=args.split)(data)
    groups = {'user': args.user_clusters, 'item': args.item_groups}
    coarsen = MacroCoarsen(groups, seed=args.seed).fit(train)
    to_macro = Compose([RecentNeighbors(args.recent), coarsen])
    train, val, test = to_macro(train), to_macro(val), to_macro(test)

    train_loader = PairLoader(train, args.batch_size, shuffle=True, seed=args.seed)
    val_loader = PairLoader(val, 8 * args.batch_size)
    test_loader = PairLoader(test, 8 * args.batch_size)

    seed_everything(args.seed, verbose=False)
    model = MacGNN.from_data(
        train,
        embedding_dim=args.embedding_dim,
        temperature=args.temperature,
        form=args.form,
    )
    task = ClickTask(model, args.learning_rate, args.weight_decay)
    fit(
        task,
        train_loader,
        val_loader,
        directory=str(output),
        max_epochs=args.epochs,
        patience=args.patience,
        seed=args.seed,
        validate_every=max(1, len(train_loader) // 4),
        resume=args.resume,
        accelerator=args.accelerator,
    )

    results = {
        name: {
            'rows': len(loader.dataset),
            'dropped': part['user', 'clicks', 'item'].num_dropped,
            **evaluate(task, loader),
        }
        for name, loader, part in (('validation', val_loader, val), ('test', test_loader, test))
    }
    print(results_table(results))
    write_json(output / 'results.json', {'arguments': vars(args), 'results': results})
    draw(output, test, dataset.names.get(str(args.item_groups)))
    print(f'In {output}: best.ckpt, metrics.csv, results.json, macgnn.png')


def load_dataset(
    args: argparse.Namespace,
) -> MovieLens | KuaiRand | EventLog | SyntheticMarket:
    if args.dataset == 'synthetic':
        return SyntheticMarket(seed=args.seed)
    root = os.path.join(args.root, args.dataset)
    if args.dataset == 'event-log':
        return EventLog(root, args.path, dict(column.split('=', 1) for column in args.columns))
    if args.dataset == 'kuairand':
        return KuaiRand(root)
    return MovieLens(root, args.dataset.removeprefix('movielens-'))


def describe(name: str, data: HeteroData) -> str:
    clicks = data['user', 'clicks', 'item']
    return (
        f'{name}: {data["user"].num_nodes:,} users, {data["item"].num_nodes:,} items, '
        f'{clicks.edge_label.numel():,} exposures, {clicks.edge_index.size(1):,} clicks'
    )


def results_table(results: dict[str, dict[str, float]]) -> str:
    lines = [f'{"":12}{"rows":>10}{"dropped":>10}{"AUC":>9}{"GAUC":>9}{"logloss":>9}']
    for name, row in results.items():
        lines.append(
            f'{name:12}{row["rows"]:>10,}{row["dropped"]:>10,}'
            f'{row["auc"]:>9.4f}{row["gauc"]:>9.4f}{row["logloss"]:>9.4f}'
        )
    return '\n'.join(lines)


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, path)


def draw(output: Path, data: HeteroData, item_names: list[str] | None) -> None:
    r"""The coarse graph as a heat map, and the learning curve, as :obj:`macgnn.png`."""
    figure = Figure(figsize=(13, 5), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_coarse_graph(left, data, item_names)
    draw_learning_curve(right, output / 'metrics.csv')
    temporary = output / 'macgnn.tmp.png'
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, output / 'macgnn.png')


def draw_coarse_graph(axes: Axes, data: HeteroData, item_names: list[str] | None) -> None:
    coarse = data['macro_user', 'clicks', 'macro_item']
    counts = torch.zeros(data['macro_user'].num_nodes, data['macro_item'].num_nodes)
    counts[coarse.edge_index[0], coarse.edge_index[1]] = coarse.edge_weight
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    # One click is added to both, so that the rarest pairs do not take all the color.
    lift = ((counts + 1) / (expected + 1)).log2()
    order = (lift * expected).svd().U[:, 0].argsort()
    limit = float(lift.abs().quantile(0.98))
    image = axes.imshow(lift[order], cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto')
    axes.figure.colorbar(image, ax=axes, label='log2(clicks / clicks expected by chance)')
    sizes = data['macro_user'].size[order].tolist()
    axes.set_yticks(range(len(sizes)), [f'{size:,} users' for size in sizes], fontsize=7)
    if item_names is not None:
        axes.set_xticks(range(len(item_names)), item_names, rotation=90, fontsize=8)
    axes.set_xlabel('item clusters')
    axes.set_ylabel('user clusters')
    axes.set_title('The macro graph')


def draw_learning_curve(axes: Axes, path: Path) -> None:
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    for name, color in (('train_loss', 'tab:gray'), ('val_logloss', 'tab:blue')):
        points = [(int(row['step']), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*points, strict=True), color=color, label=name.replace('_', ' '))
    axes.set_xlabel('step')
    axes.set_ylabel('log loss')
    other = axes.twinx()
    points = [(int(row['step']), float(row['val_auc'])) for row in rows if row.get('val_auc')]
    other.plot(*zip(*points, strict=True), color='tab:red', marker='.', label='val AUC')
    other.set_ylabel('AUC', color='tab:red')
    # Above the curves, which may run anywhere.
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, frameon=False)


if __name__ == '__main__':
    main(ARGS)
