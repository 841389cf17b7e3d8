r"""Trains HyperCTR on what people see, hear and read; results with and without hypergraphs, and a
figure of the modalities that users click for.

    python examples/hyperctr.py

on a simulated market whose users prefer one modality each. On TikTok's micro-videos, with
interactions.csv, image_feat.npy and audio_feat.npy in data/tiktok/raw:

    python examples/hyperctr.py --dataset tiktok

On MovieLens, whose items have genres, and titles that a small sentence encoder reads
(pip install wordllama):

    python examples/hyperctr.py --dataset movielens-100k
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of a slot, where --slot-days says nothing; TikTok's come with the data.
SLOT_DAYS = {'synthetic': 4.0, 'movielens-100k': 30.0, 'movielens-1m': 30.0}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train HyperCTR on items with several modalities.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    log = parser.add_argument_group('log')
    log.add_argument('--dataset', choices=[*SLOT_DAYS, 'tiktok'], default='synthetic')
    log.add_argument('--root', default='data', help='where raw files and caches go')
    log.add_argument('--exposures', type=int, default=200_000, help='synthetic: how many')
    log.add_argument(
        '--slot-days',
        type=float,
        help='length of a slot; default: 4 on synthetic, 30 on movielens; not for tiktok',
    )

    model = parser.add_argument_group('model and training')
    model.add_argument('--embedding-dim', type=int, default=32, help='size of embeddings')
    model.add_argument('--layers', type=int, default=3, help='hypergraph convolutions')
    model.add_argument('--history', type=int, default=20, help='newest clicks to attend to')
    model.add_argument('--interest-epochs', type=int, default=10, help='passes of pre-training')
    model.add_argument('--epochs', type=int, default=5, help='at most this many passes')
    model.add_argument(
        '--patience', type=int, default=4, help='validations (two an epoch) without improvement'
    )
    model.add_argument('--batch-size', type=int, default=512, help='exposures a step')
    model.add_argument('--learning-rate', type=float, default=3e-3, help='of Adam')
    model.add_argument('--weight-decay', type=float, default=1e-6, help='of Adam')
    model.add_argument('--seed', type=int, default=0, help='of the market, weights and order')
    model.add_argument('--accelerator', default='auto', help='cpu, cuda, ... for Lightning')

    run = parser.add_argument_group('run')
    run.add_argument(
        '--output', help='folder of the results; default: runs/hyperctr-DATASET-seedSEED'
    )
    run.add_argument(
        '--resume', action=argparse.BooleanOptionalAction, default=True,
        help='go on with the run in the output folder if there is one',
    )  # fmt: skip
    args = parser.parse_args()
    if args.dataset == 'tiktok' and args.slot_days is not None:
        parser.error('--slot-days: the slots of tiktok come with the data')
    return args


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import numpy as np
import torch
from lightning import seed_everything
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import one_hot
from torch_geometric.data import HeteroData
from torchmetrics.functional import auroc

from mag.datasets import MicroVideo, MovieLens, SyntheticMarket
from mag.loader import HistoryLoader
from mag.metrics import relative_improvement
from mag.models import HyperCTR
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit
from mag.transforms import (
    InterestHypergraph,
    TemporalSplit,
    TextFeatures,
    TimeSlots,
    UserInterest,
)

DAY = 24 * 3600


def main(args: argparse.Namespace) -> None:
    output = Path(args.output or f'runs/hyperctr-{args.dataset}-seed{args.seed}')
    output.mkdir(parents=True, exist_ok=True)

    data, parts = load_parts(args)
    interest = UserInterest(num_epochs=args.interest_epochs, seed=args.seed)
    interest.fit(parts[0], accelerator=args.accelerator)
    print(describe(args.dataset, data, interest.modalities))
    # The clicks of the whole log: each row reads slots that ended before its own.
    data = InterestHypergraph(seed=args.seed)(interest(data))
    truth = data.truth['preferred_modality'] if 'truth' in data else None
    if truth is not None:
        found = auroc(
            data['user'].interest.flatten(),
            one_hot(truth, len(interest.modalities)).flatten(),
            task='binary',
        )
        print(f'Interests tell the modality that each user prefers with an AUC of {found:.3f}')

    def load(part: HeteroData, shuffle: bool = False) -> HistoryLoader:
        return HistoryLoader(
            part,
            args.batch_size if shuffle else 4 * args.batch_size,
            shuffle,
            length=args.history,
            history=data,
            seed=args.seed,
        )

    variants: dict[str, dict[str, Any]] = {
        'without': {'hypergraph': False},
        **{name: {'modalities': [name]} for name in interest.modalities},
        'HyperCTR': {},
    }
    results: dict[str, dict[str, float]] = {}
    for name, arguments in variants.items():
        seed_everything(args.seed, verbose=False)
        task = ClickTask(
            HyperCTR.from_data(
                data, embedding_dim=args.embedding_dim, num_layers=args.layers, **arguments
            ),
            args.learning_rate,
            args.weight_decay,
        )
        train_loader = load(parts[0], shuffle=True)
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
        results[name] = evaluate(task, load(parts[2]))
    print(results_table(results))
    write_json(output / 'results.json', {'arguments': vars(args), 'results': results})
    draw(output / 'hyperctr.png', data['user'].interest, interest.modalities, truth)
    print(f'In {output}: {", ".join(variants)}, results.json, hyperctr.png')


def load_parts(args: argparse.Namespace) -> tuple[HeteroData, tuple[HeteroData, ...]]:
    r"""The log with its time slots, and its parts; half of what is trained on comes before any
    label, to learn interests from."""
    root = os.path.join(args.root, args.dataset)
    if args.dataset == 'tiktok':
        videos = MicroVideo(root, seed=args.seed)
        data = TimeSlots(1)(videos[0])
        shares = videos.split_shares
        split = TemporalSplit(
            0.4, shares['val_start'], shares['test_start'], num_windows=1, keep_cold=True
        )
        return data, split(data)
    if args.dataset == 'synthetic':
        num_users, num_items = max(args.exposures // 800, 1), max(args.exposures // 200, 1)
        data = SyntheticMarket(num_users, num_items, args.exposures, seed=args.seed)[0]
    else:
        movies = MovieLens(root, args.dataset.removeprefix('movielens-'))
        data = TextFeatures(movies.texts, sentence_encoder())(movies[0])
    slot_days = SLOT_DAYS[args.dataset] if args.slot_days is None else args.slot_days
    data = TimeSlots(int(slot_days * DAY))(data)
    return data, TemporalSplit(0.5, 0.8, 0.9, num_windows=1, keep_cold=True)(data)


def sentence_encoder() -> Callable[[list[str]], np.ndarray]:
    try:
        import wordllama
    except ImportError:
        raise SystemExit(
            'MovieLens has titles and genres, which a sentence encoder makes features of, and '
            'there is none: pip install wordllama'
        ) from None
    # Its weights and tokenizer come with the package, where it does not look by itself.
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True).embed


def describe(name: str, data: HeteroData, modalities: tuple[str, ...]) -> str:
    clicks = data[CLICKS]
    return (
        f'{name}: {data["user"].num_nodes:,} users, {data["item"].num_nodes:,} items with '
        f'{", ".join(modalities)}, {clicks.edge_label.numel():,} exposures, '
        f'{int(clicks.edge_label.sum()):,} clicks in {clicks.num_slots} slots'
    )


def results_table(results: dict[str, dict[str, float]]) -> str:
    lines = [f'{"":12}{"AUC":>9}{"GAUC":>9}{"logloss":>9}{"RelaImpr":>10}']
    base = results['without']['auc']
    for name, row in results.items():
        gain = f'{relative_improvement(row["auc"], base):+.1f} %' if base > 0.5 else '-'
        lines.append(
            f'{name:12}{row["auc"]:>9.4f}{row["gauc"]:>9.4f}{row["logloss"]:>9.4f}{gain:>10}'
        )
    return '\n'.join(lines)


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=2))
    os.replace(temporary, path)


def draw(path: Path, interest: Tensor, modalities: tuple[str, ...], truth: Tensor | None) -> None:
    r"""How users divide by the modality of their largest interest, and where it is known by the
    one that they prefer."""
    known = interest.sum(1) > 0
    favorite = interest[known].argmax(1)
    if truth is None:
        groups, labels = torch.zeros_like(favorite), ['all users']
    else:
        groups, labels = truth[known], [f'prefer {name}' for name in modalities]
    counts = torch.zeros(len(labels), len(modalities))
    counts.index_put_((groups, favorite), torch.ones(len(favorite)), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)

    figure = Figure(figsize=(7, 1.5 + 0.5 * len(labels)), layout='constrained')
    ax = figure.subplots()
    left = torch.zeros(len(labels))
    for column, name in enumerate(modalities):
        ax.barh(labels, share[:, column], left=left, label=name)
        left = left + share[:, column]
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    ax.set_xlabel('share of users by the modality of their largest interest')
    ax.legend(ncols=len(modalities), loc='lower center', bbox_to_anchor=(0.5, 1))
    temporary = path.with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)


if __name__ == '__main__':
    main(ARGS)
