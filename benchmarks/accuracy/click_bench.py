r"""What accuracy.counts and the tables after it share: click models that are tuned on validation
and then run with several seeds, on logs that were split and counted once."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, Results, select, stamp, table
from scipy.stats import ttest_rel
from torch import nn
from torch_geometric.data import HeteroData

from accuracy.baselines import BASELINES, LOADERS, read_history
from accuracy.boosted_trees import BoostedTrees
from accuracy.clicks import METRICS, Steps
from accuracy.count_data import (
    DATASETS,
    PROTOCOLS,
    Parts,
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
    read_records,
    spread,
    value_of,
    values_of_both,
)
from accuracy.jobs import run_jobs
from mag.loader import ExposureLoader, JoinedLoader
from mag.loader.row_loader import RowLoader
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit

# Seconds of a step, as a multiple of CountNet's: what takes longest begins first.
EFFORTS = {'dien': 10.0, 'din': 5.0, 'sim': 5.0, 'eta': 5.0, 'graph_transformer': 10.0, 'afm': 10.0}
# Of all commands that train as accuracy.counts does.
DEFAULTS: Record = {
    'checkpoints': 'output/counts', 'batch_size': 1024, 'max_epochs': 20, 'patience': 6
}  # fmt: skip
# That which accuracy.counts chose on validation for most models of the log, and of MovieLens-1M for
# MovieLens-100K, which is not there.
WEIGHT_DECAYS = {
    'movielens-100k': 1e-5, 'movielens-1m': 1e-5, 'kuairand': 3e-4, 'market': 3e-4, 'trivago': 3e-4
}  # fmt: skip
Setting = dict[str, float]
# The settings of a model, by its name, that are tried on a log.
Trials = Callable[[str, str], Sequence[Setting]]


def is_of_all_time(column: str) -> bool:
    r"""Whether a column of counts is not decayed."""
    return 'half-life' not in column


class Model(NamedTuple):
    r"""A row of a table.

    Args:
        title: What the table calls it.
        table: The table it stands in.
        build: From the training part, the validation part and MacGNN's temperature.
        reads: The parts of a :class:`~mag.loader.JoinedBatch` that it reads.
        counts: Whether it is given the counts.
        columns: Which of their columns.
        exposures: Whether they say how much was shown, and not only how much was clicked.
        exact: Whether training rows read them as of their own time, and not of their window.
        average: The running average of the weights.
        tuned_as: The model whose setting it takes, itself by default.
        teacher: The model whose run with the same seed has to be there before its own.
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
    teacher: str | None = None
    is_joined: bool = False
    effort: float = 1.0


def baseline(name: str, counts: bool) -> Model:
    r"""A published model, as it is or given the counts."""
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


class Job(NamedTuple):
    r"""A run that is to be made.

    Attributes:
        dataset: Its log.
        protocol: How that is split.
        model: Its name.
        seed: That of weights and order.
        setting: What is tuned.
        purpose: :obj:`'tune'` or :obj:`'run'`; only the latter looks at the test part.
    """

    dataset: str
    protocol: str
    model: str
    seed: int
    setting: Setting
    purpose: str

    @property
    def key(self) -> str:
        return key_of(self._asdict())


class Plan:
    r"""Which runs are to be made, in view of those that were.

    Args:
        args: Those of the command.
        models: All models by name, of which :obj:`args` name some.
        trials_of: The settings that each is tuned over.
        results: The runs that were made.
        num_rows: Of each log and protocol how many rows are trained on.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        models: Mapping[str, Model],
        trials_of: Trials,
        results: Results,
        num_rows: dict[tuple[str, str], int],
    ) -> None:
        self.models, self.trials_of = models, trials_of
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
            key=lambda job: (
                -self.models[job.model].effort * self.num_rows[job.dataset, job.protocol]
            ),
        )

    def num_left(self) -> int:
        r"""How many runs are to be made yet."""
        trials = {job.key for cell in self.cells for job in self._trials(*cell)}
        missing = len(trials.difference(self.done))
        for cell in self.cells:
            jobs = self._of_cell(*cell)
            is_tuned = all(job.purpose == 'run' for job in jobs)
            made = sum(job.key in self.done for job in jobs) if is_tuned else 0
            missing += self.seeds - made
        return missing

    def _settings(self, dataset: str, name: str) -> Sequence[Setting]:
        return self.trials_of(dataset, self.models[name].tuned_as or name)

    def _trials(self, dataset: str, protocol: str, name: str) -> list[Job]:
        settings = self._settings(dataset, name)
        name = self.models[name].tuned_as or name
        # Where there is nothing to choose from, nothing has to be tried.
        tried = settings if len(settings) > 1 else ()
        return [Job(dataset, protocol, name, 0, setting, 'tune') for setting in tried]

    def _of_cell(self, dataset: str, protocol: str, name: str) -> list[Job]:
        r"""The trials of a model, and once they are there, its runs with the best setting."""
        trials = self._trials(dataset, protocol, name)
        found = [self.done[job.key] for job in trials if job.key in self.done]
        if len(found) < len(trials):
            return trials
        setting = (
            min(found, key=lambda record: record['val']['logloss'])['setting']
            if trials
            else self._settings(dataset, name)[0]
        )
        teacher = self.models[name].teacher
        return [
            Job(dataset, protocol, name, seed, setting, 'run')
            for seed in range(self.seeds)
            if teacher is None or run_of(self.done.values(), dataset, protocol, teacher, seed)
        ]


def trials_of_rates(dataset: str, rates: Sequence[float]) -> list[Setting]:
    r"""A trial of a log for each learning rate, where weight decay is not tuned."""
    decay = WEIGHT_DECAYS[dataset]
    return [{'learning_rate': rate, 'weight_decay': decay} for rate in rates]


def run_of(
    records: Iterable[Record], dataset: str, protocol: str, name: str, seed: int
) -> Record | None:
    r"""The run of a model with a seed, if it was made."""
    wanted = {'dataset': dataset, 'protocol': protocol, 'model': name, 'seed': seed}
    found = select(list(records), **wanted, purpose='run')
    return found[0] if found else None


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


def fit_task(
    task: ClickTask,
    job: Job,
    train: RowLoader,
    val: RowLoader,
    args: argparse.Namespace,
    directory: Path | None = None,
) -> int:
    r"""Trains a task to its best weights, and returns how many steps that took.

    Args:
        task: What is trained.
        job: With which seed.
        train: The rows to train on.
        val: Those to validate on.
        args: Those of the command.
        directory: Where the run is kept, if it is to be read again.
    """
    steps = Steps()
    fit(
        task,
        train,
        val,
        directory=directory,
        max_epochs=args.max_epochs,
        patience=args.patience,
        seed=job.seed,
        validate_every=min(len(train), max(20, len(train) // 6)),
        monitor='logloss',
        progress=False,
        callbacks=[steps],
        accelerator=args.accelerator,
    )
    return steps.count


def train_clicks(
    built: nn.Module,
    model: Model,
    job: Job,
    train: RowLoader,
    val: RowLoader,
    args: argparse.Namespace,
) -> tuple[ClickTask, int]:
    r"""The task of a model with its best weights, and how many steps it took."""
    task = ClickTask(built, **job.setting, average=model.average)
    return task, fit_task(task, job, train, val, args)


def run_on(
    parts: Parts,
    model: Model,
    job: Job,
    args: argparse.Namespace,
    score: Callable[[Any, RowLoader], Record] = evaluate,
    trainer: Callable[..., tuple[ClickTask, int]] = train_clicks,
) -> Record:
    r"""Trains one model on some parts, and scores it on test only if that is the purpose.

    Args:
        parts: Those of the log of the job.
        model: What is trained.
        job: With which seed and setting, and to what purpose.
        args: Those of the command.
        score: What a record holds of the test part, from what was trained and its loader.
        trainer: Trains it, as :func:`train_clicks` does.
    """
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
        trained, num_steps = trainer(built, model, job, train, others['val'], args)
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


def stop_of(args: argparse.Namespace) -> Record:
    r"""What ends a run, besides the model and its setting."""
    names = ('batch_size', 'max_epochs', 'patience')
    return {name: getattr(args, name) for name in names}


def read_trials(args: argparse.Namespace) -> list[Record]:
    r"""The trials in the files of --settings that end as this command's runs do."""
    return select(read_records(args.settings), purpose='tune', stop=stop_of(args))


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


def run_plan(
    args: argparse.Namespace,
    logs: Sequence[tuple[str, str]],
    models: Mapping[str, Model],
    trials_of: Trials,
    run: Callable[[argparse.Namespace, dict[tuple[str, str], Path], Job], Record],
    num_processes: int = 1,
    trials: Sequence[Record] = (),
) -> None:
    r"""Tunes and runs the models of a command on logs and protocols, beside what was made.

    Args:
        args: Those of the command.
        logs: Each log and how it is split.
        models: All models by name, of which :obj:`args` name some.
        trials_of: The settings that each is tuned over.
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
    plan = Plan(args, models, trials_of, results, num_rows)
    plan.done = {key_of(record): record for record in trials} | plan.done
    run_jobs(
        plan.ready, partial(run, args, paths), plan.keep, num_processes, args.threads,
        plan.num_left(),
    )  # fmt: skip
    waiting = plan.num_left()
    if waiting > 0:
        raise ValueError(
            f'{waiting} runs wait for a teacher of whom {args.out} has no run: name it in --models.'
        )


def score_cells(runs: list[Record]) -> list[str]:
    r"""Mean and standard deviation of each metric on the test part."""
    return [spread([run['test'][metric] for run in runs]) for metric in METRICS]


# What :func:`cost_cells` tells.
COSTS = ('logloss of validation', 'setting', 'epochs', 'seconds', 'rows/s', 'seeds')


def cost_cells(runs: list[Record]) -> list[str]:
    r"""What the choices were made by, and what training took."""
    return [
        spread([run['val']['logloss'] for run in runs]),
        ', '.join(f'{value:g}' for value in runs[0]['setting'].values()),
        f'{mean(run["cost"]["epochs"] for run in runs):.1f}',
        f'{mean(run["cost"]["seconds"] for run in runs):.0f}',
        rows_per_second(runs),
        f'{len(runs)}',
    ]


def rows_per_second(runs: list[Record]) -> str:
    r"""Rows trained a second; trees do not take them one after the other."""
    rates = [run['cost']['epochs'] * run['rows'][0] / run['cost']['seconds'] for run in runs]
    return f'{mean(rates):,.0f}' if min(rates) > 0 else ''


def models_of(table_name: str, models: Mapping[str, Model], runs: list[Record]) -> list[str]:
    r"""The models of a table that were run."""
    return [
        name
        for name, model in models.items()
        if model.table == table_name and select(runs, model=name)
    ]


class Claim(NamedTuple):
    r"""That one model is better than another.

    Args:
        what: What is claimed, behind "that".
        better: The model that is said to be better.
        worse: The other one.
    """

    what: str
    better: str
    worse: str


COMPARED = (
    'Higher AUC and GAUC and lower logloss are better. P-values are of paired t-tests over seeds, '
    'without correction for their number; a claim holds where logloss is lower at p < .05.'
)


def verdicts(claims: Iterable[Claim], runs: list[Record]) -> Iterable[str]:
    r"""Of each claim whether it holds by the log loss, at p < .05 over seeds."""
    for what, better, worse in claims:
        logloss, auc = (
            values_of_both(worse, runs, better, partial(value_of, metric))
            for metric in ('logloss', 'auc')
        )
        if len(logloss[0]) > 1:
            test = ttest_rel(*logloss)
            verdict = 'holds' if test.statistic < 0 and test.pvalue < 0.05 else 'does not hold'
            yield f'- That {what} {verdict}: logloss {paired(*logloss)}, AUC {paired(*auc)}.'


def compare(
    records: list[Record],
    models: Mapping[str, Model],
    tables: Mapping[str, str],
    base: str,
    claims: Sequence[Claim],
) -> Iterable[str]:
    r"""Tables of each log and protocol, in which every model is compared with one.

    Args:
        records: Trials and runs.
        models: The rows.
        tables: The title of each table.
        base: The model that the others are compared with.
        claims: What is told before the tables.
    """
    title_of_base = models[base].title
    header = [
        'model', 'AUC', 'GAUC', 'logloss', f'AUC to {title_of_base}',
        f'logloss to {title_of_base}', *COSTS,
    ]  # fmt: skip
    for title, found in found_logs(select(records, purpose='run')):
        yield from ('', f'## {title}', '', f'{describe_rows(found[0])}.', '')
        yield from verdicts(claims, found)
        for table_name, title_of_table in tables.items():
            rows = []
            for name in models_of(table_name, models, found):
                of_model = select(found, model=name)
                differences = [
                    difference_to(base, found, name, partial(value_of, metric))
                    for metric in ('auc', 'logloss')
                ]
                scores, costs = score_cells(of_model), cost_cells(of_model)
                rows.append([models[name].title, *scores, *differences, *costs])
            if rows:
                yield from ('', f'### {title_of_table}', '', *table(header, rows))


def logs_of(args: argparse.Namespace) -> list[tuple[str, str]]:
    r"""The logs of a command, each with those of its protocols that the log is split by."""
    return [
        (dataset, protocol)
        for dataset, protocol in product(args.dataset, args.protocol)
        if protocol in DATASETS[dataset].protocols
    ]


def found_logs(runs: list[Record]) -> Iterable[tuple[str, list[Record]]]:
    r"""The title of each log and protocol that was run, and its runs in the order of seeds."""
    for dataset, protocol in product(DATASETS, PROTOCOLS):
        found = select(runs, dataset=dataset, protocol=protocol)
        if found:
            found.sort(key=lambda record: record['seed'])
            yield f'{DATASETS[dataset].title}, {PROTOCOLS[protocol].title}', found


def add_plan_commands(
    parser: argparse.ArgumentParser,
    datasets: Iterable[str],
    models: Iterable[str],
    run: Callable[[argparse.Namespace], None],
    render: Callable[[list[Record]], Iterable[str]],
    draw: Callable[[list[Record], Path], None] | None = None,
    protocols: Sequence[str] = (),
) -> argparse.ArgumentParser:
    r"""Gives a parser the commands `run` and `table`, see
    :func:`~accuracy.harness.add_commands`, with what a plan needs to know, of which the protocols
    are asked for where there are some to choose from, and returns that of `run`."""
    runner = add_commands(parser, datasets, models, run, render, draw, **DEFAULTS)
    if protocols:
        runner.add_argument(
            '--protocol', nargs='+', choices=protocols, default=list(protocols),
            help='how training labels are chosen; trivago and the market roll',
        )  # fmt: skip
    runner.add_argument('--jobs', type=int, default=1, help='runs at once, each in a process')
    return runner
