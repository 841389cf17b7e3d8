r"""Trains a stack of click models, each of its branches alone, in pairs and all, and distils it
into the smallest of them: what each branch brings, to whom, and what of it a small model keeps.

    python examples/stack.py --dataset movielens-100k

Your own clicks, as CSV or Parquet:

    python examples/stack.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Train a stack of click models, and all smaller ones beside it.', 4)
    # What you may want to change as well.
    parser.set_defaults(
        branches=['counts', 'simcen', 'flip'],  # 'macgnn' is another
        windows=12,
        user_clusters=[20],
        item_groups=['category', 50],  # MacGNN reads the first
        recent=20,
        simcen={'hidden_channels': [240, 240]},
        text_encoder={'channels': 64, 'num_layers': 1, 'num_heads': 2, 'hidden_channels': 128},
        pretraining_epochs=2,
        pretraining_batch_size=256,
        pretraining_rate=1e-3,
        contrast={'simcen': 0.01},
        batch_size=1024,
        learning_rate=3e-3,
        weight_decay=1e-5,
        average=0.95,
        patience=4,
        soft_weight=0.5,
        temperature=2.0,
    )
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import copy
import timeit
from itertools import combinations
from typing import Any

import torch
from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, draw_stack, save, table, write_json
from torch_geometric.transforms import Compose

from mag.loader import ExposureLoader, JoinedLoader, PairLoader
from mag.models import FLIP, CountNet, MacGNN, SimCEN, Stack
from mag.nn import TextEncoder
from mag.schema import CLICKS
from mag.training import AlignmentTask, ClickTask, DistillationTask, Task, evaluate, fit, predict
from mag.transforms import FieldText, MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

COLUMNS = {**CLICK_COLUMNS, 'milliseconds': 'ms / 1,000'}


def main(args: argparse.Namespace) -> None:
    # Numbers too small for their type to be fast are taken for 0.
    torch.set_flush_denormal(True)
    output = make_output(args, 'stack', args.dataset)
    dataset = load_dataset(args)
    data = dataset[0]
    print(describe(args.dataset, data, f'seed {args.seed}'))

    train, val, test = TemporalSplit(num_windows=args.windows, by=split_by(args))(data)
    groups = {'user': args.user_clusters, 'item': args.item_groups}
    coarsen = MacroCoarsen(groups, seed=args.seed).fit(train)
    text = FieldText(**dataset.field_text()).fit(train)
    # The text tells the genres by which items were grouped.
    read = Compose([RecentNeighbors(args.recent), coarsen, text])
    train, val, test = read(train), read(val), read(test)
    counts = TargetCounts().fit(train)
    train, val, test = counts(train, log=data), counts(val), counts(test)

    def load(part: Any, *options: Any, **more: Any) -> JoinedLoader:
        return JoinedLoader([ExposureLoader(part), PairLoader(part)], *options, **more)

    train_loader = load(train, args.batch_size, shuffle=True, seed=args.seed)
    val_loader, test_loader = (load(part, 8 * args.batch_size) for part in (val, test))

    def fit_task(
        name: str,
        task: Task,
        epochs: int,
        monitor: str = 'logloss',
        loader: JoinedLoader = train_loader,
    ) -> Task:
        print(f'{name}:')
        return fit(
            task,
            loader,
            val_loader,
            directory=output / name,
            max_epochs=epochs,
            patience=args.patience,
            seed=args.seed,
            validate_every=max(1, len(loader) // 2),
            monitor=monitor,
            resume=args.resume,
        )

    make = {
        'macgnn': lambda: MacGNN.from_data(train),
        'counts': lambda: CountNet.from_data(train),
        'simcen': lambda: SimCEN.from_data(train, **args.simcen),
        'flip': lambda: FLIP.from_data(
            train,
            text_encoder=TextEncoder(train[CLICKS].num_tokens, **args.text_encoder),
            sentence='node',
            projection_dropout=0.0,  # with the paper's a small log teaches no contrast
        ),
    }
    seed_everything(args.seed, verbose=False)
    branches = {name: make[name]() for name in args.branches}
    if 'flip' in branches:
        # What it learns here of texts and ids, each of its stacks begins with.
        loader = load(train, args.pretraining_batch_size, shuffle=True, seed=args.seed)
        num_steps = args.pretraining_epochs * len(loader)
        task = AlignmentTask(branches['flip'], args.pretraining_rate, num_steps=num_steps)
        fit_task('pretraining', task, args.pretraining_epochs, 'loss', loader)

    step = {'learning_rate': args.learning_rate, 'weight_decay': args.weight_decay}
    step['average'] = args.average
    contrast = {name: args.contrast[name] for name in args.contrast if name in branches}
    tasks: dict[str, Task] = {}
    for number in range(1, len(branches) + 1):
        for kept in combinations(branches, number):
            seed_everything(args.seed, verbose=False)
            without = [name for name in branches if name not in kept]
            stack = Stack(copy.deepcopy(branches), contrast=contrast, without=without)
            name = '+'.join(kept)
            tasks[name] = fit_task(name, ClickTask(stack, **step), args.epochs)
    *_, everything = tasks

    smallest = min(branches, key=lambda name: sum(p.numel() for p in branches[name].parameters()))
    soft = {'soft_weight': args.soft_weight, 'temperature': args.temperature}
    for name, teaching in (('untaught', None), ('taught', tasks[everything])):
        seed_everything(args.seed, verbose=False)
        student = make[smallest]()
        learning = (
            ClickTask(student, **step)
            if teaching is None
            else DistillationTask(student, teaching, **step, **soft)
        )
        tasks[f'{smallest}-{name}'] = fit_task(f'{smallest}-{name}', learning, args.epochs)

    candidates = next(iter(load(test, 1_000)))

    def score(task: Task) -> dict[str, float]:
        for module in task.eval().modules():
            if isinstance(module, FLIP):
                module.precompute()
        with torch.inference_mode():
            seconds = timeit.repeat(lambda: task(candidates), number=1, repeat=10)
        return {**evaluate(task, test_loader), 'milliseconds': 1_000 * min(seconds)}

    results = {name: score(task) for name, task in tasks.items()}
    print(table(results, COLUMNS))
    write_json(output / 'results.json', args, results)
    predicted = {name: predict(tasks[name], test_loader)['click'] for name in tasks}
    save(draw_stack(val, test, predicted, list(branches)), output / 'stack.png')
    print(f'In {output}: a folder for each row, results.json, stack.png')


if __name__ == '__main__':
    main(ARGS)
