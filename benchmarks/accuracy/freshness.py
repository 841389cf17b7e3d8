r"""What it is worth that features are fresh: the test part of a log, event by event, scored by one
trained model with features of different ages.

* *Fresh*: a row reads all events before its own position in the log, and no other, also where they
  share its second.
* *An hour old*, *a day old*: a row at time t reads the events before t - 3,600 s, or t - 86,400 s.
  All that a server has is late by so much, its snapshot too.
* *A snapshot old*: all rows read the events before the cutoff of the test part.

The order of events is that of the log. Macro nodes and weights are those of training in all of
them. CountNet reads exact counts at the target. MacGNN reads what a server does, hop 1 and recent
lists as of the row, hop 2 of users summed over their items, and of items the snapshot and what
their own clicks have added, from a replica that is given one event after the other; and with fresh
features once more hop 2 exact. What was run before users' hop 2 was summed had their own clicks.

Training, early stopping and settings are those of accuracy.counts on six rolling windows: learning
rate and weight decay have the least log loss of validation among its trials. Trials that no file of
--settings has are run. What is there in --out is not run again: a larger --seeds adds to it.

    python benchmarks accuracy.freshness run --dataset kuairand --root data/kuairand \
        --settings benchmarks/accuracy/results/counts-kuairand.json \
        --out benchmarks/accuracy/results/freshness-kuairand.json
    python benchmarks accuracy.freshness table benchmarks/accuracy/results/freshness-*.json \
        --findings benchmarks/accuracy/results/freshness-findings.md \
        > benchmarks/accuracy/freshness.md
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from records import Record, made_by, make_parser, select, table
from torch.utils._pytree import tree_map
from torch_geometric.data import HeteroData

from accuracy.click_bench import (
    Job,
    add_plan_commands,
    found_logs,
    make_loader,
    read_parts,
    read_trials,
    run_on,
    run_plan,
    train_clicks,
)
from accuracy.clicks import METRICS
from accuracy.count_data import DATASETS as LOGS
from accuracy.count_data import DAY, HOUR, with_counts
from accuracy.counts import MODELS as COUNT_MODELS
from accuracy.counts import is_of_one_resolution, trials_of
from accuracy.event_replay import counts_as_of, pairs_as_of, read_before, snapshot_position
from accuracy.harness import describe_rows, paired, spread
from mag.loader import JoinedBatch, PairBatch
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate

DATASETS = {name: LOGS[name] for name in ('kuairand', 'movielens-1m')}
MODELS = {name: COUNT_MODELS[name] for name in ('one_resolution', 'macgnn')}
DELAYS = {'fresh': 0.0, 'an hour old': HOUR, 'a day old': DAY}
EXACT, STALE = 'fresh, hop 2 exact', 'a snapshot old'
AGES = ('fresh', EXACT, 'an hour old', 'a day old', STALE)
NOTES = {
    'kuairand': (
        'A snapshot is {age:.1f} hours old on average over the rows, and {span:.1f} at the end: to '
        'most rows features a day old are older than a snapshot.'
    ),
    'movielens-1m': (
        'In the copy of the log that was read times are not those of a clock: they are how much of '
        'their own ratings users had made, in millionths, and events of all users are ordered so. '
        '"An hour" is .36 % of the ratings of a user, and "a day" 8.64 %. A snapshot is '
        '{age_share:.2f} % old on average over the rows, and {span_share:.2f} % at the end.'
    ),
}


# Features are of no seed.
@lru_cache(maxsize=1)
def counted(path: Path) -> dict[str, HeteroData]:
    r"""By their age the test part with the counts that CountNet reads."""
    parts = read_parts(path)
    log, test = parts.log, parts.test
    stale = with_counts(test, test[CLICKS].edge_label_counts, is_of_one_resolution)
    found = {}
    for age, delay in DELAYS.items():
        counts = counts_as_of(log, test, read_before(log, test, delay))
        found[age] = with_counts(stale, counts, is_of_one_resolution)
    return found


@lru_cache(maxsize=1)
def replayed(path: Path) -> dict[str, PairBatch]:
    r"""By their age what MacGNN reads of the rows of the test part."""
    parts = read_parts(path)
    log, test = parts.log, parts.test
    found = {}
    for age, delay in DELAYS.items():
        before, start = read_before(log, test, delay), snapshot_position(log, test, delay)
        found[age], *exact = pairs_as_of(log, test, before, start, exact=age == 'fresh')
        if exact:
            found[EXACT] = exact[0]
    return found


def batches(rows: PairBatch, size: int) -> list[JoinedBatch]:
    r"""Rows in batches of a size, as a model reads them that is given a
    :class:`~mag.loader.JoinedLoader`."""
    found = []
    for place in torch.arange(rows.user.numel()).split(size):
        pairs = tree_map(lambda value, place=place: value[place], rows)
        found.append(JoinedBatch(pairs.user, pairs.item, pairs.label, pairs=pairs))
    return found


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    path, model = paths[job.dataset, job.protocol], MODELS[job.model]
    parts, size = read_parts(path), 8 * args.batch_size
    trained: list[ClickTask] = []

    def train(*arguments: Any) -> tuple[ClickTask, int]:
        task, num_steps = train_clicks(*arguments)
        trained.append(task)
        return task, num_steps

    record = run_on(parts, model, job, args, trainer=train)
    if job.purpose == 'tune':
        return record
    loaders: dict[str, Any] = (
        {age: make_loader(model, part, size) for age, part in counted(path).items()}
        if model.counts
        else {age: batches(rows, size) for age, rows in replayed(path).items()}
    )
    # The part as it is reads what came before its cutoff.
    ages = {age: evaluate(trained[0], loader) for age, loader in loaders.items()}
    time, cutoff = parts.test[CLICKS].edge_label_time, parts.test[CLICKS].cutoff
    seconds = (time - cutoff).double()
    return {
        **record,
        'ages': {**ages, STALE: record['test']},
        'snapshot_seconds': {'mean': float(seconds.mean()), 'most': float(seconds.max())},
    }


def run(args: argparse.Namespace) -> None:
    logs = [(dataset, 'rolling') for dataset in args.dataset]
    run_plan(args, logs, MODELS, trials_of, run_job, args.jobs, read_trials(args))


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, one a log and model."""
    yield '# What freshness is worth'
    yield ''
    # The docstring of this module without its title and its commands.
    title, *paragraphs = (__doc__ or '').split('\n\n')
    yield '\n\n'.join([title, *paragraphs[:-1]])
    yield ''
    yield (
        'Mean and standard deviation over seeds, each of which trains one model that is then '
        'scored with features of all ages. In the columns that compare, the difference to features '
        'a snapshot old, and the p-value of a paired t-test over seeds. GAUC compares rows of one '
        'user that know of each other, and falls where counts are fresh for that reason alone, see '
        '[fresh.md](fresh.md): AUC and logloss tell.'
    )
    runs = select(records, purpose='run')
    for title, found in found_logs(runs):
        yield from ('', f'## {title}', '', f'{describe_rows(found[0])}. {note(found[0])}')
        for name, model in MODELS.items():
            of_model = select(found, model=name)
            yield from ('', f'### {model.title}', '')
            if of_model:
                yield from table(HEADER, rows_of_ages(of_model))
            else:
                yield 'Not run yet.'
    yield ''
    yield from made_by(records)


HEADER = (
    'features', 'AUC', 'AUC to a snapshot old', 'GAUC', 'logloss', 'logloss to a snapshot old',
    'seeds',
)  # fmt: skip


def note(run: Record) -> str:
    age, span = (run['snapshot_seconds'][name] for name in ('mean', 'most'))
    return NOTES[run['dataset']].format(
        age=age / HOUR, span=span / HOUR, age_share=age / 1e4, span_share=span / 1e4
    )


def rows_of_ages(runs: list[Record]) -> Iterator[list[str]]:
    for age in AGES:
        if age not in runs[0]['ages']:
            continue
        auc, gauc, logloss = ([run['ages'][age][metric] for run in runs] for metric in METRICS)
        yield [
            age, spread(auc), change(age, 'auc', runs), spread(gauc), spread(logloss),
            change(age, 'logloss', runs), f'{len(runs)}',
        ]  # fmt: skip


def change(age: str, metric: str, runs: list[Record]) -> str:
    r"""The difference to features a snapshot old."""
    ours, theirs = ([run['ages'][one][metric] for run in runs] for one in (age, STALE))
    if age == STALE:
        return ''
    return paired(ours, theirs) if len(runs) > 1 else f'{ours[0] - theirs[0]:+.4f}'


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.freshness', __doc__)
    runner = add_plan_commands(parser, DATASETS, MODELS, run, render)
    runner.add_argument('--settings', nargs='*', default=[], help='JSON files of accuracy.counts')
    args = parser.parse_args(arguments)
    args.act(args)
