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
import json
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train SRJGraph on search and recommendation together.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    log = parser.add_argument_group('log')
    log.add_argument('--dataset', choices=['synthetic', 'trivago'], default='synthetic')
    log.add_argument('--root', default='data', help='where raw files and caches go')
    log.add_argument('--exposures', type=int, default=100_000, help='synthetic: how many')

    paths = parser.add_argument_group('paths')
    paths.add_argument(
        '--user-widths', type=int, nargs='+', default=[10, 1, 5], metavar='N',
        help='clicks drawn at each depth from the user; the paper: 25 1 10',
    )  # fmt: skip
    paths.add_argument(
        '--item-widths', type=int, nargs='+', default=[1, 10, 1], metavar='N',
        help='clicks drawn at each depth from the item; the paper: 1 25 1',
    )  # fmt: skip
    paths.add_argument(
        '--attribute',
        help='what items drawn from a user share with the target, such as category; by default '
        'nothing',
    )

    model = parser.add_argument_group('model and training')
    model.add_argument('--num-buckets', type=int, default=50_000, help='rows of the DNN embedding')
    model.add_argument('--epochs', type=int, default=4, help='at most this many passes')
    model.add_argument(
        '--patience', type=int, default=4, help='validations (two an epoch) without improvement'
    )
    model.add_argument('--batch-size', type=int, default=512, help='exposures a step')
    model.add_argument('--learning-rate', type=float, default=5e-3, help='of Adam')
    model.add_argument('--weight-decay', type=float, default=1e-6, help='of Adam')
    model.add_argument('--seed', type=int, default=0, help='of the market, weights and order')
    model.add_argument('--accelerator', default='auto', help='cpu, cuda, ... for Lightning')

    run = parser.add_argument_group('run')
    run.add_argument(
        '--output', help='folder of the results; default: runs/srjgraph-DATASET-seedSEED'
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
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MLP

from mag.datasets import SyntheticMarket, Trivago
from mag.loader import ExposureBatch, ExposureLoader, PathLoader
from mag.metrics import relative_improvement
from mag.models import SRJGraph
from mag.nn import HashEmbedding
from mag.schema import CLICKS, REVERSE_CLICKS, label_attributes
from mag.training import ClickTask, evaluate, fit
from mag.transforms import TemporalSplit

DAY = 24 * 3600


class DNN(torch.nn.Module):
    r"""What a click model can do without a graph: the same features of target and query."""

    def __init__(self, fields: tuple[str, ...], num_buckets: int) -> None:
        super().__init__()
        self.embedding = HashEmbedding(fields, num_buckets, 16)
        self.head = MLP([16 * len(fields), 256, 64, 1])

    def forward(self, batch: ExposureBatch) -> Tensor:
        return self.head(self.embedding(batch.sparse)).squeeze(-1)


def main(args: argparse.Namespace) -> None:
    output = Path(args.output or f'runs/srjgraph-{args.dataset}-seed{args.seed}')
    output.mkdir(parents=True, exist_ok=True)

    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data))
    parts = TemporalSplit(0.3, 0.8, 0.9, num_windows=1, keep_cold=True)(data)

    def paths(part: HeteroData, shuffle: bool = False) -> PathLoader:
        # Each exposure draws from all that came before itself, also within its own part.
        return PathLoader(
            part,
            args.batch_size if shuffle else 4 * args.batch_size,
            shuffle,
            widths={'user': args.user_widths, 'item': args.item_widths},
            attribute=args.attribute,
            history=data,
            seed=args.seed,
        )

    def features(part: HeteroData, shuffle: bool = False) -> ExposureLoader:
        return ExposureLoader(
            part, args.batch_size if shuffle else 4 * args.batch_size, shuffle, args.seed
        )

    seed_everything(args.seed, verbose=False)
    dnn = DNN(features(parts[0]).fields, args.num_buckets)
    srjgraph = SRJGraph.from_data(parts[0])
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, model, load in (('DNN', dnn, features), ('SRJGraph', srjgraph, paths)):
        train_loader = load(parts[0], shuffle=True)
        task = ClickTask(model, args.learning_rate, args.weight_decay)
        fit(
            task,
            train_loader,
            load(parts[1]),
            directory=str(output / name),
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=-(-len(train_loader) // 2),
            resume=args.resume,
            accelerator=args.accelerator,
        )
        results[name] = {
            domain: evaluate(task, load(of_domain(parts[2], number)))
            for number, domain in enumerate(dataset.names['domain'])
        }
    print(results_table(results))
    write_json(output / 'results.json', {'arguments': vars(args), 'results': results})
    draw(output / 'srjgraph.png', srjgraph.cpu().eval(), paths(of_domain(parts[2], 1)))
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


def describe(name: str, data: HeteroData) -> str:
    clicks = data[CLICKS]
    return (
        f'{name}: {data["user"].num_nodes:,} users, {data["item"].num_nodes:,} items, '
        f'{clicks.edge_label.numel():,} exposures, {int(clicks.edge_label_domain.sum()):,} of them '
        f'from search, {int(clicks.edge_label.sum()):,} clicks'
    )


def of_domain(part: HeteroData, number: int) -> HeteroData:
    r"""The exposures of one domain, with the clicks of both."""
    part = copy.copy(part)
    clicks = part[CLICKS]
    rows = clicks.edge_label_domain == number
    for name in label_attributes(part):
        clicks[name] = clicks[name][:, rows] if name == 'edge_label_index' else clicks[name][rows]
    return part


def results_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f'{"":12}{"domain":>16}{"AUC":>9}{"GAUC":>9}{"logloss":>9}{"RelaImpr":>10}']
    for name, domains in results.items():
        for domain, row in domains.items():
            base = results['DNN'][domain]['auc']
            gain = f'{relative_improvement(row["auc"], base):+.1f} %' if base > 0.5 else '-'
            lines.append(
                f'{name:12}{domain:>16}{row["auc"]:>9.4f}{row["gauc"]:>9.4f}'
                f'{row["logloss"]:>9.4f}{gain:>10}'
            )
    return '\n'.join(lines)


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, path)


def draw(path: Path, model: SRJGraph, loader: PathLoader) -> None:
    r"""Whom the user of one target attends to: the target with most different clicks to choose
    from, of the first batch."""
    batch = next(iter(loader))
    with torch.inference_mode():
        _, attention = model(batch, return_attention_weights=True)
    edges = batch[REVERSE_CLICKS]
    num_edges = edges.num_sampled_edges[0]
    user, click = edges.edge_index[1, :num_edges], edges.e_id[:num_edges]
    variety = torch.stack([user, click]).unique(dim=1)[0].bincount()
    target = int(variety.argmax())
    rows = (user == target).nonzero().view(-1)
    clicks = batch[CLICKS]
    asked = [term for term in clicks.edge_label_query[target].tolist() if term >= 0]
    labels, colors = ['itself'], ['tab:gray']
    for row in rows.tolist():
        item = int(batch['item'].n_id[edges.edge_index[0, row]])
        days = (int(clicks.edge_label_time[target]) - int(edges.time[row])) / DAY
        words = [term for term in edges.query[row].tolist() if term >= 0]
        reached = f'search for {words}' if edges.domain[row] == 1 else 'recommended'
        labels.append(f'item {item}, {days:.1f} days before, {reached}')
        colors.append('tab:orange' if set(words) & set(asked) else 'tab:blue')
    own = torch.tensor([target])
    weights = attention['user'][torch.cat([own, clicks.edge_label_time.numel() + rows])]

    figure = Figure(figsize=(9, 1 + 0.3 * len(labels)), layout='constrained')
    ax = figure.subplots()
    ax.barh(range(len(labels)), weights, color=colors)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel('attention (orange: clicked on a query that shares a term)')
    ax.set_title(
        f'User {int(batch["user"].n_id[target])} is shown item {int(batch["item"].n_id[target])} '
        f'on a search for {asked}'
    )
    temporary = path.with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)


if __name__ == '__main__':
    main(ARGS)
