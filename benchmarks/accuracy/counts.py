r"""How well CountNet predicts clicks from the counts at the target, what its parts bring, and what
published models reach on the same rows, as they are and given the same counts.

Every model sees the same rows, in batches of the same size, with the same optimizer, the same
running average of its weights and the same early stopping by the log loss of validation. Learning
rate and weight decay are chosen on validation with seed 0, for each model of a log among the same
settings; an ablation takes those of CountNet, as it changes nothing but what it leaves out.
LightGBM, which has neither, is tuned over four settings of its own.

Training rows read the counts strictly before themselves. Validation reads stale counts, those as of
its cutoff. The test part is scored twice: with stale counts, and with fresh ones, where each row
reads what came before it. Click histories are as of the cutoff in both.

    python benchmarks accuracy.counts run --dataset kuairand --root data/kuairand --jobs 16 \
        --out benchmarks/accuracy/results/counts-kuairand.json
    python benchmarks accuracy.counts table benchmarks/accuracy/results/counts-*.json \
        --findings benchmarks/accuracy/results/counts-findings.md \
        > benchmarks/accuracy/counts.md

The processes of --jobs share one machine: runs start as soon as what they wait for is there, those
that take longest first, and each result is written when it is there, so that the command can be
stopped and given again. A run itself is not resumed. Commands that run side by side need an --out
each. The folder --checkpoints keeps the log as it was split and counted, once for all processes.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, Results, made_by, make_parser, select, stamp, table
from torch import nn
from torch_geometric.data import HeteroData

from accuracy.baselines import BASELINES, LOADERS, read_history
from accuracy.boosted_trees import TRIALS as TREE_SETTINGS
from accuracy.boosted_trees import BoostedTrees
from accuracy.clicks import METRICS, Steps
from accuracy.count_data import (
    DATASETS,
    PROTOCOLS,
    Parts,
    kind,
    load_parts,
    save_parts,
    with_counts,
    without_counts,
    without_exposures,
)
from accuracy.harness import (
    PACKAGES,
    add_commands,
    describe_rows,
    difference_to,
    paired,
    prepare,
    spread,
    value_of,
)
from accuracy.jobs import run_jobs
from accuracy.pair_models import HIDDEN
from mag.loader import ExposureLoader, JoinedLoader
from mag.loader.row_loader import RowLoader
from mag.models import CountNet
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit

# Of all commands that train as this one does.
DEFAULTS: Record = {
    'checkpoints': 'output/counts', 'batch_size': 1024, 'max_epochs': 20, 'patience': 6
}  # fmt: skip
LEARNING_RATES = (3e-3, 1e-2)
# On MovieLens-1M the larger one was behind for each of the seven models that were tried with both.
WEIGHT_DECAYS = {'movielens-1m': (1e-5,)}
# Seconds of a step, as a multiple of CountNet's: what takes longest begins first.
EFFORTS = {'dien': 10.0, 'din': 5.0, 'sim': 5.0, 'eta': 5.0, 'graph_transformer': 10.0, 'afm': 10.0}
TREE_TRIALS: tuple[dict[str, float], ...] = tuple(
    {'learning_rate': learning_rate, 'num_leaves': num_leaves}
    for learning_rate, num_leaves in TREE_SETTINGS
)
TABLES = {
    'models': 'Models',
    'ablations': 'What the parts of CountNet bring',
    'options': 'What else CountNet could read',
}


# The kinds of views that TargetCounts counts, by the ends of the names of models without one.
KINDS = {
    'user': 'user',
    'item': 'item',
    'user_macro_item': 'user x item_cluster',
    'macro_user_item': 'user_cluster x item',
    'macro_user_macro_item': 'user_cluster x item_cluster',
}


def is_of_all_time(column: str) -> bool:
    r"""Whether a column of counts is not decayed."""
    return 'half-life' not in column


def is_of_one_resolution(column: str) -> bool:
    r"""Whether a column reads macro nodes of the first resolution, if any."""
    return is_of_all_time(column) and 'cluster_' not in column


def is_not_of(of_kind: str, column: str) -> bool:
    return is_of_all_time(column) and kind(column) != of_kind


def is_any(column: str) -> bool:
    return True


class Model(NamedTuple):
    r"""A row of a table.

    Args:
        title: What the table calls it.
        table: The table it stands in, of :obj:`TABLES`.
        build: From the training part, the validation part and MacGNN's temperature.
        reads: The parts of a :class:`~mag.loader.JoinedBatch` that it reads.
        counts: Whether it is given the counts.
        columns: Which of their columns.
        exposures: Whether they say how much was shown, and not only how much was clicked.
        exact: Whether training rows read them as of their own time, and not of their window.
        average: The running average of the weights.
        tuned_as: The model whose setting it takes, itself by default.
        is_joined: Whether it reads a :class:`~mag.loader.JoinedBatch`, or else an
            :class:`~mag.loader.ExposureBatch`.
        effort: The seconds of a step, CountNet's being 1.
    """

    title: str
    table: str
    build: Callable[[HeteroData, HeteroData, float], nn.Module]
    reads: tuple[str, ...] = ('features',)
    counts: bool = True
    columns: Callable[[str], bool] = is_of_all_time
    exposures: bool = True
    exact: bool = True
    average: float | None = 0.99
    tuned_as: str | None = None
    is_joined: bool = False
    effort: float = 1.0


def count_net(
    train: HeteroData, val: HeteroData, temperature: float, **arguments: Any
) -> nn.Module:
    return CountNet.from_data(train, **arguments)


def ablation(title: str, arguments: dict[str, Any] | None = None, **others: Any) -> Model:
    build = partial(count_net, **(arguments or {}))
    return Model(title, 'ablations', build, **{'tuned_as': 'count_net', **others})


def option(title: str, arguments: dict[str, Any], *reads: str, **others: Any) -> Model:
    build = partial(count_net, **arguments)
    return Model(title, 'options', build, ('features', *reads), is_joined=bool(reads), **others)


def baseline(name: str, counts: bool) -> Model:
    of = BASELINES[name]
    return Model(
        f'{of.title} + counts' if counts else of.title,
        'models',
        partial(build_baseline, name, counts),
        tuple(dict.fromkeys((*of.reads, *(['features'] if counts else [])))),
        counts,
        is_joined=True,
        effort=EFFORTS.get(name, 1.5),
    )


def build_baseline(
    name: str, counts: bool, train: HeteroData, val: HeteroData, temperature: float
) -> nn.Module:
    return BASELINES[name].build(train, val, temperature, counts)


# Both forms of CountNet: at all resolutions that the baselines are given, and at one, which
# validation chose.
OURS = ('count_net', 'one_resolution')
MODELS = {
    'count_net': Model('CountNet', 'models', count_net),
    'one_resolution': ablation('CountNet, one resolution', columns=is_of_one_resolution)._replace(
        table='models'
    ),
    **{
        name if not counts else f'{name}_counts': baseline(name, counts)
        for name in BASELINES
        for counts in (False, True)
    },
    'no_counts': ablation('w/o counts', {'counts': False}, counts=False),
    'no_target': ablation(
        "w/o counts, with MacGNN's rows",
        {'counts': False, 'rows': 'paper'},
        reads=('features', 'pairs'),
        counts=False,
        is_joined=True,
        effort=3.0,
    ),
    'no_exposures': ablation('w/o exposures (clicks alone)', exposures=False),
    'no_ids': ablation('w/o ids', {'ids': False}),
    'no_id_strength': ablation('ids not weighed by how often they were seen', {'id_strength': 0.0}),
    **{
        f'no_{name}': ablation(f'w/o counts of {of_kind}', columns=partial(is_not_of, of_kind))
        for name, of_kind in KINDS.items()
    },
    'windows': ablation('counts as of windows in training', exact=False),
    'no_average': ablation('w/o average of the weights', average=None),
    'decay': option('+ decayed counts', {}, columns=is_any),
    'rows_paper': option("+ MacGNN's rows", {'rows': 'paper'}, 'pairs', effort=3.0),
    'rows_twin': option('+ rows in one softmax (TWIN-V2)', {'rows': 'twin'}, 'pairs', effort=3.0),
    'separate_tables': option(
        '+ rows in one softmax, separate tables (DARE)',
        {'rows': 'twin', 'separate_tables': True},
        'pairs',
        effort=3.0,
    ),
    'recent': option('+ recent lists', {'recent': True}, 'pairs', effort=3.0),
    'crosses': option('+ crosses (DCN V2)', {'num_crosses': 2}, effort=3.0),
    'wide_head': option('with the head of the baselines (200-80)', {'hidden_channels': HIDDEN}),
    'id_dropout': option('+ ids dropped at random', {'id_dropout': 0.1}),
}


class Job(NamedTuple):
    r"""A run that is to be made.

    Attributes:
        dataset: Its log.
        protocol: How that is split.
        model: A name in :obj:`MODELS`.
        seed: That of weights and order.
        setting: What is tuned.
        purpose: :obj:`'tune'` or :obj:`'run'`; only the latter looks at the test part.
    """

    dataset: str
    protocol: str
    model: str
    seed: int
    setting: dict[str, float]
    purpose: str

    @property
    def key(self) -> str:
        return key_of(self._asdict())


def trials_of(dataset: str, name: str) -> Sequence[dict[str, float]]:
    if name.startswith('lightgbm'):
        return TREE_TRIALS
    return [
        {'learning_rate': learning_rate, 'weight_decay': weight_decay}
        for learning_rate in LEARNING_RATES
        for weight_decay in WEIGHT_DECAYS.get(dataset, (1e-5, 3e-4))
    ]


class Plan:
    r"""Which runs are to be made, in view of those that were.

    Args:
        args: Those of the command.
        results: The runs that were made.
        num_rows: Of each log and protocol how many rows are trained on.
    """

    def __init__(
        self, args: argparse.Namespace, results: Results, num_rows: dict[tuple[str, str], int]
    ) -> None:
        self.results, self.seeds, self.num_rows = results, args.seeds, num_rows
        self.cells = [(*log, name) for log in num_rows for name in args.models]
        self.done = {key_of(record): record for record in results.records}

    def keep(self, job: Job, record: Record) -> None:
        self.results.append(record)
        self.done[key_of(record)] = record

    def ready(self) -> list[Job]:
        r"""The runs that could begin now, those that take longest first."""
        jobs = {job.key: job for cell in self.cells for job in self._of_cell(*cell)}
        return sorted(
            (job for key, job in jobs.items() if key not in self.done),
            key=lambda job: -MODELS[job.model].effort * self.num_rows[job.dataset, job.protocol],
        )

    def num_left(self) -> int:
        r"""How many runs are to be made yet."""
        trials = {job.key for cell in self.cells for job in self._trials(*cell)}
        missing = len(trials.difference(self.done))
        for cell in self.cells:
            jobs = self._of_cell(*cell)
            is_tuned = jobs[0].purpose == 'run'
            missing += sum(job.key not in self.done for job in jobs) if is_tuned else self.seeds
        return missing

    def _trials(self, dataset: str, protocol: str, name: str) -> list[Job]:
        name = MODELS[name].tuned_as or name
        return [
            Job(dataset, protocol, name, 0, setting, 'tune') for setting in trials_of(dataset, name)
        ]

    def _of_cell(self, dataset: str, protocol: str, name: str) -> list[Job]:
        r"""The trials of a model, and once they are there, its runs with the best setting."""
        trials = self._trials(dataset, protocol, name)
        found = [self.done[job.key] for job in trials if job.key in self.done]
        if len(found) < len(trials):
            return trials
        best = min(found, key=lambda record: record['val']['logloss'])
        return [
            Job(dataset, protocol, name, seed, best['setting'], 'run') for seed in range(self.seeds)
        ]


def key_of(record: Record) -> str:
    return json.dumps({name: record[name] for name in Job._fields}, sort_keys=True)


# Each log is read once a process; the memory of its columns is that of the file, for all.
@lru_cache(maxsize=8)
def read_parts(path: Path) -> Parts:
    return load_parts(path)


def make_loader(
    model: Model, part: HeteroData, batch_size: int, log: HeteroData | None = None, seed: int = 0
) -> RowLoader:
    r"""Loads what a model reads of a part. In training there is a :obj:`log`: rows are shuffled and
    click histories are those before each row instead of before the cutoff of the part."""
    shuffle = log is not None
    if not model.is_joined:
        return ExposureLoader(part, batch_size, shuffle, seed)
    arguments = {'histories': {'history': log}}
    loaders = [LOADERS[name](part, **arguments.get(name, {})) for name in model.reads]
    return JoinedLoader(loaders, batch_size, shuffle, seed)


def parts_of(model: Model, parts: Parts) -> dict[str, HeteroData]:
    r"""By what they are for, the parts with the counts that a model is given, if any."""
    found = {'train': parts.train, 'val': parts.val, 'test': parts.test}
    if not model.counts:
        return {name: without_counts(part) for name, part in found.items()}
    found['fresh'] = parts.test
    counts = {name: part[CLICKS].edge_label_counts for name, part in found.items()}
    counts['fresh'] = parts.fresh
    if not model.exact:
        counts['train'] = parts.windows
    if not model.exposures:
        counts = {name: without_exposures(value) for name, value in counts.items()}
    return {name: with_counts(part, counts[name], model.columns) for name, part in found.items()}


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    r"""Trains one model; scores it on test only if that is the purpose."""
    return run_on(read_parts(paths[job.dataset, job.protocol]), job, args)


def run_on(
    parts: Parts,
    job: Job,
    args: argparse.Namespace,
    score: Callable[[Any, RowLoader], Record] = evaluate,
) -> Record:
    r"""Trains one model on some parts.

    Args:
        parts: Those of the log of the job.
        job: What is trained.
        args: Those of the command.
        score: What a record holds of the test part, from what was trained and its loader.
    """
    model = MODELS[job.model]
    given = parts_of(model, parts)
    train = make_loader(model, given['train'], args.batch_size, parts.log, job.seed)
    others = {
        name: make_loader(model, part, 8 * args.batch_size)
        for name, part in given.items()
        if name != 'train'
    }
    seed_everything(job.seed, verbose=False)
    built = model.build(given['train'], given['val'], parts.temperature)
    start = time.perf_counter()
    trained, num_steps = built, 0
    if isinstance(built, BoostedTrees):
        rate, num_leaves = job.setting['learning_rate'], int(job.setting['num_leaves'])
        built.fit(given['train'], given['val'], job.seed, rate, num_leaves)
    else:
        trained, num_steps = fit_task(built, model, job, train, others['val'], args)
    seconds = time.perf_counter() - start
    record = {
        **job._asdict(),
        'stop': stop_of(args),
        'accelerator': args.accelerator,
        'rows': [len(loader.dataset) for loader in (train, others['val'], others['test'])],
        'cost': {'seconds': seconds, 'epochs': num_steps / len(train)},
        'val': evaluate(trained, others['val']),
        **stamp(*PACKAGES),
    }
    if job.purpose == 'run':
        read_history(trained, parts.test)
        record |= {name: score(trained, others[name]) for name in others if name != 'val'}
        if parts.optimum is not None:
            record['optimum'] = dict(zip(('auc', 'logloss'), parts.optimum, strict=True))
    return record


def fit_task(
    built: nn.Module,
    model: Model,
    job: Job,
    train: RowLoader,
    val: RowLoader,
    args: argparse.Namespace,
) -> tuple[ClickTask, int]:
    r"""The task with its best weights, and how many steps it took."""
    task = ClickTask(built, **job.setting, average=model.average)
    steps = Steps()
    fit(
        task,
        train,
        val,
        max_epochs=args.max_epochs,
        patience=args.patience,
        seed=job.seed,
        validate_every=min(len(train), max(20, len(train) // 6)),
        monitor='logloss',
        progress=False,
        callbacks=[steps],
        accelerator=args.accelerator,
    )
    return task, steps.count


def stop_of(args: argparse.Namespace) -> Record:
    r"""What ends a run, besides the model and its setting."""
    names = ('batch_size', 'max_epochs', 'patience')
    return {name: getattr(args, name) for name in names}


def open_results(args: argparse.Namespace) -> Results:
    r"""The runs that were made, all of which end as this command's do."""
    results = Results(Path(args.out))
    for record in results.records:
        if record['stop'] != stop_of(args):
            raise ValueError(
                f'{args.out} has runs with {record["stop"]}, not {stop_of(args)}: write these to a '
                f'file of their own, or the table would mix them.'
            )
    return results


def run(args: argparse.Namespace) -> None:
    logs = [
        (dataset, protocol)
        for dataset, protocol in product(args.dataset, args.protocol)
        if protocol in DATASETS[dataset].protocols
    ]
    run_plan(args, logs, run_job, args.jobs)


def run_plan(
    args: argparse.Namespace,
    logs: Sequence[tuple[str, str]],
    run: Callable[[argparse.Namespace, dict[tuple[str, str], Path], Job], Record],
    num_processes: int = 1,
    trials: Sequence[Record] = (),
) -> None:
    r"""Tunes and runs the models of a command on logs and protocols, beside what was made.

    Args:
        args: Those of the command.
        logs: Each log and how it is split.
        run: Makes a run, given :obj:`args` and where the parts of each log are.
        num_processes: How many runs at once.
        trials: Those of another file, which need not be made again.
    """
    results = open_results(args)
    prepare(args.threads)
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda log: save_parts(log[0], log[1], args.root, args.checkpoints), logs)
        paths = dict(zip(logs, made, strict=True))
    num_rows = {
        log: load_parts(path).train[CLICKS].edge_label.numel() for log, path in paths.items()
    }
    plan = Plan(args, results, num_rows)
    plan.done = {key_of(record): record for record in trials} | plan.done
    run_jobs(
        plan.ready, partial(run, args, paths), plan.keep, num_processes, args.threads,
        plan.num_left(),
    )  # fmt: skip


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, three a log and protocol."""
    yield '# Counts at the target'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part, served with stale counts, those '
        'as of its cutoff, unless a column says fresh: then each row reads what came strictly '
        'before it. Higher AUC and GAUC and lower logloss are better. P-values are of paired '
        't-tests over seeds, without correction for their number. Learning rate and weight decay '
        'are chosen on validation with seed 0 in four trials for each model, on MovieLens-1M in '
        'two (of LightGBM in four of learning rate and leaves of a tree); ablations take the '
        'setting of CountNet. All stop by the log '
        'loss of validation, and score with a running average of their weights. Seconds and rows a '
        'second are of training with validation, several runs sharing the cores of one machine.'
    )
    runs = select(records, purpose='run')
    for dataset, protocol in product(DATASETS, PROTOCOLS):
        found = select(runs, dataset=dataset, protocol=protocol)
        if found:
            found.sort(key=lambda record: record['seed'])
            title = f'{DATASETS[dataset].title}, {PROTOCOLS[protocol].title}'
            yield from ('', f'## {title}', '', f'{describe_rows(found[0])}.')
            yield from section(found)
    yield ''
    yield from made_by(records)


def section(runs: list[Record]) -> Iterable[str]:
    yield from summary(runs)
    for name, title in TABLES.items():
        rows = [
            row_of(model_name, runs)
            for model_name, model in MODELS.items()
            if model.table == name and select(runs, model=model_name)
        ]
        if name == 'models' and 'optimum' in runs[0]:
            rows.append(row_of_optimum(runs[0]['optimum']))
        if rows:
            yield from ('', f'### {title}', '')
            yield from table(HEADER, rows)


HEADER = (
    'model', 'AUC', 'GAUC', 'logloss', 'AUC to CountNet', 'AUC fresh', 'GAUC fresh',
    'logloss of validation', 'setting', 'epochs', 'seconds', 'rows/s', 'seeds',
)  # fmt: skip


def row_of(name: str, runs: list[Record]) -> list[str]:
    found = select(runs, model=name)
    return [
        MODELS[name].title,
        *(spread([one['test'][metric] for one in found]) for metric in METRICS),
        difference_to('count_net', runs, name, partial(value_of, 'auc')),
        # What is given no counts has none that could be fresh.
        *(
            spread([one['fresh'][metric] for one in found]) if 'fresh' in found[0] else ''
            for metric in ('auc', 'gauc')
        ),
        spread([one['val']['logloss'] for one in found]),
        ', '.join(f'{value:g}' for value in found[0]['setting'].values()),
        f'{mean(one["cost"]["epochs"] for one in found):.1f}',
        f'{mean(one["cost"]["seconds"] for one in found):.0f}',
        rows_per_second(found),
        f'{len(found)}',
    ]


def rows_per_second(runs: list[Record]) -> str:
    r"""Rows trained a second; trees do not take them one after the other."""
    rates = [run['cost']['epochs'] * run['rows'][0] / run['cost']['seconds'] for run in runs]
    return f'{mean(rates):,.0f}' if min(rates) > 0 else ''


def row_of_optimum(optimum: dict[str, float]) -> list[str]:
    cells = ['whoever knows the truth', f'{optimum["auc"]:.4f}', '', f'{optimum["logloss"]:.4f}']
    return cells + [''] * (len(HEADER) - len(cells))


def summary(runs: list[Record]) -> Iterable[str]:
    r"""How far CountNet is ahead of the best of the others, what fresh counts bring, and how far it
    is from the optimum where that is known."""
    ours = select(runs, model='count_net')
    if not ours:
        return
    lines = []
    auc = partial(value_of, 'auc')
    for what, counts in (('as they are', False), ('given the counts', True)):
        others = {
            name: mean(value_of('auc', run) for run in found)
            for name, model in MODELS.items()
            if model.table == 'models' and model.counts == counts and name not in OURS
            if (found := select(runs, model=name))
        }
        if others:
            best = max(others, key=others.__getitem__)
            lead, lead_of_one = (difference_to(best, runs, name, auc) for name in OURS)
            # One seed tells no difference.
            if not lead:
                continue
            lines.append(
                f'of models {what}, {MODELS[best].title} has the highest AUC, {others[best]:.4f}, '
                f'and that of CountNet is {lead}'
                + (f', with one resolution {lead_of_one}' if lead_of_one else '')
            )
    if len(ours) > 1:
        gains = []
        for metric, title in zip(METRICS, HEADER[1:], strict=False):
            fresh, stale = ([one[part][metric] for one in ours] for part in ('fresh', 'test'))
            gains.append(f'{title} {paired(fresh, stale)}')
        lines.append(f'served with fresh counts, CountNet gains {", ".join(gains)}')
    if 'optimum' in ours[0]:
        left = ours[0]['optimum']['auc'] - mean(value_of('auc', run) for run in ours)
        lines.append(f'whoever knows the truth has {left:.4f} AUC more than CountNet')
    yield ''
    yield from (f'- {line[0].upper()}{line[1:]}.' for line in lines)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.counts', __doc__)
    runner = add_commands(parser, DATASETS, MODELS, run, render, **DEFAULTS)
    runner.add_argument(
        '--protocol', nargs='+', choices=list(PROTOCOLS), default=list(PROTOCOLS),
        help='how training labels are chosen; trivago and the market roll',
    )  # fmt: skip
    runner.add_argument('--jobs', type=int, default=1, help='runs at once, each in a process')
    args = parser.parse_args(arguments)
    args.act(args)
