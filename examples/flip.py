r"""Trains FLIP on ids and on the same rows as text: aligned first or not, both branches or one; a
table, and a figure of what a masked field is recovered from.

    python examples/flip.py

on MovieLens-100K, whose users and movies are told in words; or on more of it:

    python examples/flip.py --dataset movielens-1m
"""

import argparse
from typing import Any

from options import make_output, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        'Train FLIP on a log and on what is written about it.',
        ('movielens-100k', 'movielens-1m'), 'movielens-100k', 3,
    )  # fmt: skip
    parser.add_argument(
        '--pretraining-epochs', type=int, default=2, help='passes in which ids and text are aligned'
    )
    # What you may want to change as well.
    parser.set_defaults(
        text_encoder={'channels': 64, 'hidden_channels': 128},  # the default is twice as wide
        sentence='node',  # or 'row', as in the paper, which takes more time
        projection_dropout=0.0,  # the paper's .2 keeps the contrast at chance on a log this small
        pretraining_batch_size=256,
        pretraining_rate=1e-3,
        batch_size=1024,
        learning_rate=2e-3,
        regularization=1e-4,
        patience=2,
    )
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import torch
from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, draw_recovery, save, stop_by, table, write_json
from torch import Tensor

from mag.loader import ExposureLoader
from mag.models import FLIP
from mag.nn import TextEncoder
from mag.schema import CLICKS
from mag.training import AlignmentTask, ClickTask, Task, evaluate, fit
from mag.transforms import FieldText, TemporalSplit

VARIANTS = {
    'from scratch': 'both',
    'FLIP, ids alone': 'ids',
    'FLIP, text alone': 'text',
    'FLIP': 'both',
}
# What is there besides a masked id.
SOURCES: dict[str, dict[str, Any]] = {
    'other ids': {'text': 'none'},
    'words of other fields': {'ids': False},
    'both': {},
    'both, and its own words': {'text': 'all'},
}


def main(args: argparse.Namespace) -> None:
    # Numbers too small for their type to be fast are taken for 0.
    torch.set_flush_denormal(True)
    output = make_output(args, 'flip', args.dataset)
    dataset = load_dataset(args)
    data = dataset[0]
    split = TemporalSplit(0.01, 0.8, 0.9, num_windows=1, by=split_by(args), keep_cold=True)
    train, val, test = split(data)
    text = FieldText(**dataset.field_text()).fit(train)
    train, val, test = text(train), text(val), text(test)
    print(describe(args.dataset, data, f'{train[CLICKS].num_tokens:,} tokens'))
    user, item = train[CLICKS].edge_label_index[:, 0].tolist()
    print(f'An exposure: {text.sentence(user, item)}')
    pretraining_loader, train_loader = (
        ExposureLoader(train, size, shuffle=True, seed=args.seed)
        for size in (args.pretraining_batch_size, args.batch_size)
    )
    val_loader, test_loader = (ExposureLoader(part, 2 * args.batch_size) for part in (val, test))

    def make(branches: str) -> FLIP:
        seed_everything(args.seed, verbose=False)
        return FLIP.from_data(
            train,
            text_encoder=TextEncoder(train[CLICKS].num_tokens, **args.text_encoder),
            sentence=args.sentence,
            branches=branches,
            projection_dropout=args.projection_dropout,
            regularization=args.regularization,
        )

    def fit_task(
        name: str, task: Task, epochs: int, monitor: str, loader: ExposureLoader = train_loader
    ) -> Task:
        return fit(
            task,
            loader,
            val_loader,
            directory=output / name.replace(', ', ' ').replace(' ', '-').lower(),
            max_epochs=epochs,
            patience=args.patience,
            seed=args.seed,
            monitor=monitor,
            resume=args.resume,
        )

    num_steps = args.pretraining_epochs * len(pretraining_loader)
    aligned = make('both')
    alignment = AlignmentTask(aligned, args.pretraining_rate, num_steps=num_steps)
    fit_task('alignment', alignment, args.pretraining_epochs, 'loss', pretraining_loader)
    losses = evaluate(alignment, test_loader)
    print('Test losses of the alignment:', ', '.join(f'{k} {v:.4f}' for k, v in losses.items()))
    recovered = recover(aligned.eval(), next(iter(test_loader)))

    results: dict[str, dict[str, float]] = {}
    for name, branches in VARIANTS.items():
        model = make(branches)
        if name != 'from scratch':
            model.load_state_dict(aligned.state_dict())
        # The model adds the squares of the embeddings to its loss itself.
        task = fit_task(name, ClickTask(model, args.learning_rate, 0.0), args.epochs, stop_by(val))
        results[name] = evaluate(task, test_loader)
    print(table(results, CLICK_COLUMNS))
    write_json(output / 'results.json', args, {**results, 'alignment': losses, **recovered})
    save(draw_recovery(recovered), output / 'flip.png')
    print(f'In {output}: a folder a model, results.json, flip.png')


def recover(model: FLIP, batch: Any) -> dict[str, dict[str, float]]:
    r"""The share of rows whose masked id is found first, by what it is found from and by field."""
    found: dict[str, dict[str, float]] = {'the most common value': {}}
    for place, field in enumerate(model.fields):
        target: Tensor = batch.sparse[:, place]
        known = target >= 0
        target = target[known]
        share = target.bincount().max() / len(target)
        found['the most common value'][field] = float(share)
        for name, arguments in SOURCES.items():
            first = model.recover(batch, field, **arguments).argmax(1)[known]
            share = (first == target).float().mean()
            found.setdefault(name, {})[field] = float(share)
    return found


if __name__ == '__main__':
    main(ARGS)
