r"""What the benchmarks of accuracy share: how they run models, compare them and are called."""

import argparse
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from records import Record, Results, made_by, select, stamp
from scipy.stats import ttest_rel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mag.metrics import group_auroc
from mag.training import ClickTask, fit

PACKAGES = ('pyg-mag', 'torch', 'torch-geometric', 'deepctr-torch', 'fuxictr')


def prepare(threads: int) -> None:
    r"""Sets up this process for runs on a CPU."""
    torch.set_num_threads(threads)
    # Adam's second moments sink into denormal numbers, which take a processor many times as long.
    torch.set_flush_denormal(True)
    warnings.filterwarnings('ignore', 'Sparse ')
    # A run may be asked for once more, to be scored.
    warnings.filterwarnings('ignore', '.* has already finished')


def fit_run(
    task: ClickTask,
    train_loader: DataLoader,
    val_loader: DataLoader,
    run: tuple[str, ...],
    seed: int,
    args: argparse.Namespace,
    **arguments: Any,
) -> None:
    r"""Fits the model of a run in a folder of its own, and validates twice an epoch unless
    :obj:`arguments` say otherwise.

    Args:
        task: What to train.
        train_loader: The rows to train on.
        val_loader: The rows to validate on.
        run: What tells the run from others beside its seed: a log and a model, say.
        seed: Of the run.
        args: Those of the command.
        **arguments: Further arguments of :func:`mag.training.fit`.
    """
    settings = {'validate_every': -(-len(train_loader) // 2), **arguments}
    fit(
        task,
        train_loader,
        val_loader,
        directory=Path(args.checkpoints, *run[:-1], f'{run[-1]}-{seed}'),
        max_epochs=args.max_epochs,
        patience=args.patience,
        seed=seed,
        progress=False,
        accelerator=args.accelerator,
        **settings,
    )


def run_missing(
    run_one: Callable[[str, str, int, argparse.Namespace], Record], args: argparse.Namespace
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
        results.append(run | run_one(dataset, name, seed, args) | stamp(*PACKAGES))


def tune(
    run_trial: Callable[[dict[str, float]], Record],
    trials: Iterable[tuple[float, float]],
    wanted: Record,
    results: Results,
    gain: Callable[[dict[str, float]], float],
) -> dict[str, float]:
    r"""The learning rate and weight decay that are best on validation.

    Args:
        run_trial: Trains with a setting, and does not score the test part.
        trials: The settings.
        wanted: What the records of these trials share.
        results: Where trials are found that were run before, and where others are put.
        gain: What is best where it is largest, from the metrics of validation.
    """
    gains = []
    for learning_rate, weight_decay in trials:
        setting = {'learning_rate': learning_rate, 'weight_decay': weight_decay}
        found = results.find(**wanted, **setting, purpose='tune')
        if not found:
            found = [run_trial(setting)]
            results.append({**found[0], 'purpose': 'tune'})
        gains.append((gain(found[0]['val']), setting))
    return max(gains, key=lambda trial: trial[0])[1]


def score_groups(
    probability: Tensor, label: Tensor, groups: Mapping[str, Tensor], user: Tensor | None = None
) -> Record:
    r"""AUC and log loss of groups of rows, and where users are told GAUC.

    Args:
        probability: What was predicted, shape :obj:`[L]`.
        label: What was clicked, shape :obj:`[L]`.
        groups: By its name which rows are of a group, shape :obj:`[L]`.
        user: The user of each row, shape :obj:`[L]`.
    """
    scores = {}
    for name, is_in in groups.items():
        found, clicked = probability[is_in].double(), label[is_in]
        auc, _ = group_auroc(found, clicked, torch.zeros_like(clicked, dtype=torch.long))
        logloss = F.binary_cross_entropy(found, clicked.double())
        scores[name] = {'auc': float(auc), 'logloss': float(logloss)}
        if user is not None:
            scores[name]['gauc'] = float(group_auroc(found, clicked, user[is_in])[0])
    return scores


def describe_rows(run: Record) -> str:
    train, val, test = run['rows']
    return f'{train:,} rows trained, {val:,} validated, {test:,} tested'


def spread(values: list[float]) -> str:
    r"""Mean and standard deviation."""
    return f'{mean(values):.4f}' + (f' ± {stdev(values):.4f}' if len(values) > 1 else '')


def value_of(metric: str, run: Record, part: str = 'test') -> float:
    return run[part][metric]


def difference_to(
    base: str, runs: list[Record], name: str, value: Callable[[Record], float | None]
) -> str:
    r"""The mean difference of a model to the base, over the seeds at which both have a value, and
    the p-value of a paired t-test; nothing for the base itself, and for fewer than two seeds."""
    ours, theirs = values_of_both(base, runs, name, value)
    return '' if name == base or len(ours) < 2 else paired(ours, theirs)


def values_of_both(
    base: str, runs: list[Record], name: str, value: Callable[[Record], float | None]
) -> tuple[list[float], list[float]]:
    r"""The values of a model and of the base, over the seeds at which both have one."""
    pairs = [
        (ours, theirs)
        for run in select(runs, model=name)
        for other in select(runs, model=base, seed=run['seed'])[:1]
        if (ours := value(run)) is not None and (theirs := value(other)) is not None
    ]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def paired(ours: list[float], theirs: list[float]) -> str:
    r"""The mean difference of paired values, and the p-value of a paired t-test."""
    return f'{mean(ours) - mean(theirs):+.4f} (p = {ttest_rel(ours, theirs).pvalue:.2g})'


def rows_of(
    runs: list[Record], models: Mapping[str, Any], cells: Callable[[str, list[Record]], list[str]]
) -> list[list[str]]:
    r"""The rows of a table: of each model that was run its title, the cells of its name and its
    runs, and how many seeds there are."""
    found = {name: select(runs, model=name) for name in models}
    return [
        [models[name].title, *cells(name, of_model), f'{len(of_model)}']
        for name, of_model in found.items()
        if of_model
    ]


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


def add_commands(
    parser: argparse.ArgumentParser,
    datasets: Iterable[str],
    models: Iterable[str],
    run: Callable[[argparse.Namespace], None],
    render: Callable[[list[Record]], Iterable[str]],
    draw: Callable[[list[Record], Path], None] | None = None,
    **defaults: Any,
) -> argparse.ArgumentParser:
    r"""Gives a parser the commands `run` and `table`, and returns that of `run`.

    Args:
        parser: The parser of a benchmark.
        datasets: The logs to choose from.
        models: The models to choose from.
        run: What `run` does.
        render: The lines of the table of `table`.
        draw: Draws the figure of `table` into a file, if it has one.
        **defaults: Those of checkpoints, batch_size, max_epochs and patience, and of learning_rate
            where it is not tuned.
    """
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser(
        'run', help='train and score', formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    runner.add_argument('--dataset', nargs='+', choices=list(datasets), required=True)
    runner.add_argument('--root', default='data', help='folder with raw/ of a real log')
    runner.add_argument('--out', required=True, help='JSON file that results are appended to')
    runner.add_argument('--models', nargs='+', choices=list(models), default=list(models))
    runner.add_argument('--seeds', type=int, default=5, help='runs of each model')
    runner.add_argument('--checkpoints', help='folder of the runs, to resume from')
    runner.add_argument('--batch-size', type=int, help='rows a step')
    runner.add_argument('--max-epochs', type=int, help='at most this many passes')
    runner.add_argument('--patience', type=int, help='validations without improvement')
    if 'learning_rate' in defaults:
        runner.add_argument('--learning-rate', type=float, help='of Adam')
        runner.add_argument('--weight-decay', type=float, default=1e-6, help='of Adam')
    runner.add_argument('--threads', type=int, default=1, help='threads of torch')
    runner.add_argument('--accelerator', default='cpu', help='cpu, cuda, ... of Fabric')
    runner.set_defaults(act=run, **defaults)
    tabler = commands.add_parser('table', help='print the Markdown table of result files')
    tabler.add_argument('results', nargs='+', help='JSON files of run')
    tabler.add_argument('--findings', help='Markdown to put before the tables')
    tabler.set_defaults(act=lambda args: print_table(args, render, draw), figure=None)
    if draw is not None:
        tabler.add_argument('--figure', type=Path, help='PNG file to write')
    return runner


def read_records(paths: Iterable[str]) -> list[Record]:
    r"""The records of several files."""
    return [record for path in paths for record in Results(Path(path)).records]


def print_table(
    args: argparse.Namespace,
    render: Callable[[list[Record]], Iterable[str]],
    draw: Callable[[list[Record], Path], None] | None,
) -> None:
    r"""Prints the table of the files of :obj:`args`, with the findings after its title, and draws
    its figure if asked to."""
    records = read_records(args.results)
    if draw is not None and args.figure is not None:
        draw(records, args.figure)
    findings = [] if args.findings is None else ['', Path(args.findings).read_text().rstrip()]
    title, *lines = render(records)
    print('\n'.join([title, *findings, *lines]))
