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
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from options import make_output, make_parser

DAY = 24 * 3600


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        'Train HyperCTR on items with several modalities.',
        ('synthetic', 'movielens-100k', 'movielens-1m', 'tiktok'), 'synthetic', 5,
    )  # fmt: skip
    parser.add_argument('--exposures', type=int, default=200_000, help='synthetic: how many')
    # What you may want to change as well. TikTok comes with its slots.
    parser.set_defaults(
        slot_days={'synthetic': 4.0, 'movielens-100k': 30.0, 'movielens-1m': 30.0},
        embedding_dim=32,
        layers=3,
        history=20,
        interest_epochs=10,
        batch_size=512,
        learning_rate=3e-3,
        weight_decay=1e-6,
        patience=4,
    )
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import numpy as np
from lightning import seed_everything
from results import (
    CLICK_COLUMNS,
    describe,
    draw_interests,
    improvements,
    save,
    stop_by,
    table,
    write_json,
)
from torch.nn.functional import one_hot
from torch_geometric.data import HeteroData
from torchmetrics.functional import auroc

from mag.datasets import MicroVideo, MovieLens, SyntheticMarket
from mag.loader import HistoryLoader
from mag.models import HyperCTR
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit
from mag.transforms import InterestHypergraph, TemporalSplit, TextFeatures, TimeSlots, UserInterest


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'hyperctr', args.dataset)
    data, (train, val, test) = load_parts(args)
    interest = UserInterest(num_epochs=args.interest_epochs, seed=args.seed).fit(train)
    slots, names = f'{data[CLICKS].num_slots} slots', ', '.join(interest.modalities)
    print(describe(args.dataset, data, slots, f'modalities {names}'))
    # The clicks of the whole log: each row reads slots that ended before its own.
    data = InterestHypergraph(seed=args.seed)(interest(data))
    truth = data.truth['preferred_modality'] if 'truth' in data else None
    if truth is not None:
        is_preferred = one_hot(truth, len(interest.modalities))
        found = auroc(data['user'].interest.flatten(), is_preferred.flatten(), task='binary')
        print(f'Interests tell the modality that each user prefers with an AUC of {found:.3f}')

    load = partial(HistoryLoader, length=args.history, history=data, seed=args.seed)
    train_loader = load(train, args.batch_size, shuffle=True)
    val_loader, test_loader = (load(part, 4 * args.batch_size) for part in (val, test))
    variants: dict[str, dict[str, Any]] = {
        'without': {'hypergraph': False},
        **{name: {'modalities': [name]} for name in interest.modalities},
        'HyperCTR': {},
    }
    results: dict[str, dict[str, float]] = {}
    for name, arguments in variants.items():
        seed_everything(args.seed, verbose=False)
        model = HyperCTR.from_data(
            data, embedding_dim=args.embedding_dim, num_layers=args.layers, **arguments
        )
        task = ClickTask(model, args.learning_rate, args.weight_decay)
        fit(
            task,
            train_loader,
            val_loader,
            directory=output / name,
            max_epochs=args.epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=-(-len(train_loader) // 2),
            monitor=stop_by(val),
            resume=args.resume,
        )
        results[name] = evaluate(task, test_loader)
    print(table(results, CLICK_COLUMNS), improvements(results, 'without'), sep='\n')
    write_json(output / 'results.json', args, results)
    save(draw_interests(data['user'].interest, interest.modalities, truth), output / 'hyperctr.png')
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
        # Of one user or one item nothing is left that was not clicked, to learn interests from.
        num_users, num_items = max(args.exposures // 800, 4), max(args.exposures // 200, 8)
        data = SyntheticMarket(num_users, num_items, args.exposures, seed=args.seed)[0]
    else:
        movies = MovieLens(root, args.dataset.removeprefix('movielens-'))
        data = TextFeatures(movies.texts, sentence_encoder())(movies[0])
    data = TimeSlots(int(args.slot_days[args.dataset] * DAY))(data)
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


if __name__ == '__main__':
    main(ARGS)
