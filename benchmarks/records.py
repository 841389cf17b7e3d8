r"""What the benchmarks of accuracy share: how runs are set up, recorded and told of."""

import argparse
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import ttest_rel
from torch.utils.data import DataLoader
from tqdm import tqdm

from mag.training import ClickTask, fit

Record = dict[str, Any]


def prepare(threads: int) -> None:
    r"""Sets up this process for runs on a CPU, without a word of Lightning's."""
    torch.set_num_threads(threads)
    # Adam's second moments sink into denormal numbers, which take a processor many times as long.
    torch.set_flush_denormal(True)
    warnings.filterwarnings('ignore', '.*Sparse .*')
    for name in ('lightning', 'lightning.pytorch'):
        logging.getLogger(name).setLevel(logging.ERROR)


class Results:
    r"""Records of runs in a JSON file that is replaced whole after each, so that a kill loses at
    most the run at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = json.loads(path.read_text()) if path.exists() else []

    def find(self, **wanted: Any) -> list[Record]:
        return select(self.records, **wanted)

    def append(self, record: Record) -> None:
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f'{self.path.name}.tmp')
        temporary.write_text(json.dumps(self.records, indent=1) + '\n')
        os.replace(temporary, self.path)


class Steps:
    r"""Counts the steps of this process, so that seconds and epochs stay of one run: what was
    trained before a kill is in neither."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self) -> None:
        self.count += 1


def select(records: list[Record], **wanted: Any) -> list[Record]:
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in wanted.items())
    ]


def stamp(*packages: str) -> Record:
    r"""When and how a record was made."""
    return {
        'date': date.today().isoformat(),
        'command': shlex.join(['python', 'benchmarks/accuracy.py', *sys.argv[1:]]),
        'packages': {name: version(name) for name in packages},
    }


def made_by(records: list[Record]) -> Iterable[str]:
    r"""The last lines of a table: its commands, dates and versions."""
    commands = sorted({record['command'] for record in records})
    dates = sorted({record['date'] for record in records})
    packages = ', '.join(f'{name} {number}' for name, number in records[0]['packages'].items())
    yield 'Made by ' + ' and '.join(f'`{command}`' for command in commands) + ','
    yield f'{" to ".join(dict.fromkeys([dates[0], dates[-1]]))}, {packages}.'


def sections(
    records: list[Record],
    datasets: Iterable[str],
    section: Callable[[str, list[Record]], Iterable[str]],
) -> Iterable[str]:
    r"""The lines of each log that was run, in the order of seeds, and the last lines of a table."""
    for dataset in datasets:
        runs = sorted(select(records, dataset=dataset), key=lambda run: run['seed'])
        if runs:
            yield from section(dataset, runs)
    yield ''
    yield from made_by(records)


def spread(values: list[float]) -> str:
    r"""Mean and standard deviation."""
    return f'{mean(values):.4f}' + (f' ± {stdev(values):.4f}' if len(values) > 1 else '')


def paired_difference(ours: list[float], theirs: list[float]) -> str:
    r"""The mean difference of two models on the same seeds, and the p-value of a paired t-test."""
    return f'{mean(ours) - mean(theirs):+.4f} (p = {ttest_rel(ours, theirs).pvalue:.2g})'


def difference_to(
    base: str, runs: list[Record], name: str, value: Callable[[Record], float | None]
) -> str:
    r"""The paired difference of a model to the base, over the seeds at which both have a value;
    nothing for the base itself, and for fewer than two seeds."""
    pairs = [
        (value(run), value(other))
        for run in select(runs, model=name)
        for other in select(runs, model=base, seed=run['seed'])[:1]
    ]
    pairs = [pair for pair in pairs if None not in pair]
    if name == base or len(pairs) < 2:
        return ''
    ours, theirs = (list(column) for column in zip(*pairs))
    return paired_difference(ours, theirs)


def fit_run(
    task: ClickTask,
    train_loader: DataLoader,
    val_loader: DataLoader,
    run: tuple[str, str, int],
    args: argparse.Namespace,
    **arguments: Any,
) -> None:
    r"""Fits the model of a run, which is a log, a model and a seed; it validates twice an epoch."""
    dataset, name, seed = run
    fit(
        task,
        train_loader,
        val_loader,
        directory=str(Path(args.checkpoints, dataset, f'{name}-{seed}')),
        max_epochs=args.max_epochs,
        patience=args.patience,
        seed=seed,
        validate_every=-(-len(train_loader) // 2),
        progress=False,
        accelerator=args.accelerator,
        **arguments,
    )


def run_missing(
    args: argparse.Namespace, run_one: Callable[[str, str, int, argparse.Namespace], Record]
) -> None:
    r"""Runs every model and seed on every log of which :obj:`args.out` has no record yet."""
    prepare(args.threads)
    results = Results(Path(args.out))
    for record in results.records:
        other = record.get('learning_rate', args.learning_rate)
        if other != args.learning_rate:
            raise ValueError(
                f'{args.out} has runs at a learning rate of {other}, not {args.learning_rate}: '
                f'write these to a file of their own, or the table would mix them.'
            )
    jobs = [
        (dataset, name, seed)
        for dataset in args.dataset
        for seed in range(args.seeds)
        for name in args.models
        if not results.find(dataset=dataset, model=name, seed=seed)
    ]
    for dataset, name, seed in tqdm(jobs):
        run = {'dataset': dataset, 'model': name, 'seed': seed, 'learning_rate': args.learning_rate}
        results.append(run | run_one(dataset, name, seed, args))


def add_run_and_table(
    commands: Any,
    name: str,
    subject: str,
    datasets: Mapping[str, Any],
    models: Mapping[str, Any],
    run: Callable[[argparse.Namespace], None],
    render: Callable[[list[Record]], Iterable[str]],
    **defaults: Any,
) -> argparse.ArgumentParser:
    r"""Adds `run-NAME` and `table-NAME` to the commands of accuracy.py.

    Args:
        commands: What argparse adds them to.
        name: NAME.
        subject: What is trained and scored, for the help.
        datasets: The logs to choose from.
        models: The models to choose from.
        run: What `run-NAME` does.
        render: The lines of the table of `table-NAME`.
        **defaults: Those of batch_size, max_epochs, patience and learning_rate.

    Returns:
        The parser of `run-NAME`, for arguments of its own.
    """
    runner = commands.add_parser(
        f'run-{name}', help=f'train and score {subject}',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    runner.add_argument(
        '--dataset', nargs='+', choices=datasets, required=True, metavar='DATASET',
        help=f"which of {', '.join(datasets)}",
    )  # fmt: skip
    runner.add_argument('--root', default='data', help='folder with raw/ of a real log')
    runner.add_argument('--out', required=True, help='JSON file that results are appended to')
    runner.add_argument(
        '--models', nargs='+', choices=models, default=list(models), metavar='MODEL',
        help=f"which of {', '.join(models)}",
    )  # fmt: skip
    runner.add_argument('--seeds', type=int, default=5, help='runs of each model')
    runner.add_argument(
        '--checkpoints', default=f'output/{name}', help='folder of the runs, to resume from'
    )
    runner.add_argument('--batch-size', type=int, help='rows a step')
    runner.add_argument('--max-epochs', type=int, help='at most this many passes')
    runner.add_argument('--patience', type=int, help='validations without improvement')
    runner.add_argument('--learning-rate', type=float, help='of Adam')
    runner.add_argument('--weight-decay', type=float, default=1e-6, help='of Adam')
    runner.add_argument('--threads', type=int, default=1, help='threads of torch')
    runner.add_argument('--accelerator', default='cpu', help='cpu, cuda, ... for Lightning')
    runner.set_defaults(act=run, **defaults)
    tabler = commands.add_parser(f'table-{name}', help='print the Markdown table of result files')
    tabler.add_argument('results', nargs='+', help=f'JSON files of run-{name}')
    tabler.add_argument('--findings', help='Markdown to put before the tables')
    tabler.set_defaults(act=lambda args: print_table(args, render))
    return runner


def print_table(args: argparse.Namespace, render: Callable[[list[Record]], Iterable[str]]) -> None:
    r"""Prints the table of the files of :obj:`args`, with the findings after its title."""
    records = [record for path in args.results for record in Results(Path(path)).records]
    findings = [] if args.findings is None else ['', Path(args.findings).read_text().rstrip()]
    title, *sections = render(records)
    print('\n'.join([title, *findings, *sections]))
