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
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from records import Record, made_by, make_parser, select, table
from torch import nn
from torch_geometric.data import HeteroData

from accuracy.baselines import BASELINES
from accuracy.boosted_trees import TRIALS as TREE_SETTINGS
from accuracy.click_bench import (
    COSTS,
    Job,
    Model,
    add_plan_commands,
    baseline,
    cost_cells,
    found_logs,
    is_of_all_time,
    logs_of,
    models_of,
    read_parts,
    run_on,
    run_plan,
    score_cells,
)
from accuracy.clicks import METRICS
from accuracy.count_data import DATASETS, kind
from accuracy.harness import describe_rows, difference_to, paired, spread, value_of
from accuracy.pair_models import HIDDEN
from mag.models import CountNet

LEARNING_RATES = (3e-3, 1e-2)
# On MovieLens-1M the larger one was behind for each of the seven models that were tried with both.
WEIGHT_DECAYS = {'movielens-1m': (1e-5,)}
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


def is_of_one_resolution(column: str) -> bool:
    r"""Whether a column reads macro nodes of the first resolution, if any."""
    return is_of_all_time(column) and 'cluster_' not in column


def is_not_of(of_kind: str, column: str) -> bool:
    return is_of_all_time(column) and kind(column) != of_kind


def is_any(column: str) -> bool:
    return True


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


def trials_of(dataset: str, name: str) -> Sequence[dict[str, float]]:
    if name.startswith('lightgbm'):
        return TREE_TRIALS
    return [
        {'learning_rate': learning_rate, 'weight_decay': weight_decay}
        for learning_rate in LEARNING_RATES
        for weight_decay in WEIGHT_DECAYS.get(dataset, (1e-5, 3e-4))
    ]


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    r"""Trains one model; scores it on test only if that is the purpose."""
    return run_on(read_parts(paths[job.dataset, job.protocol]), MODELS[job.model], job, args)


def run(args: argparse.Namespace) -> None:
    run_plan(args, logs_of(args), MODELS, trials_of, run_job, args.jobs)


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
    for title, found in found_logs(runs):
        yield from ('', f'## {title}', '', f'{describe_rows(found[0])}.')
        yield from section(found)
    yield ''
    yield from made_by(records)


def section(runs: list[Record]) -> Iterable[str]:
    yield from summary(runs)
    for name, title in TABLES.items():
        rows = [row_of(model, runs) for model in models_of(name, MODELS, runs)]
        if name == 'models' and 'optimum' in runs[0]:
            rows.append(row_of_optimum(runs[0]['optimum']))
        if rows:
            yield from ('', f'### {title}', '')
            yield from table(HEADER, rows)


HEADER = (
    'model', 'AUC', 'GAUC', 'logloss', 'AUC to CountNet', 'AUC fresh', 'GAUC fresh', *COSTS
)  # fmt: skip


def row_of(name: str, runs: list[Record]) -> list[str]:
    found = select(runs, model=name)
    return [
        MODELS[name].title,
        *score_cells(found),
        difference_to('count_net', runs, name, partial(value_of, 'auc')),
        # What is given no counts has none that could be fresh.
        *(
            spread([one['fresh'][metric] for one in found]) if 'fresh' in found[0] else ''
            for metric in ('auc', 'gauc')
        ),
        *cost_cells(found),
    ]


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
    add_plan_commands(parser, DATASETS, MODELS, run, render, protocols=('rolling', 'window'))
    args = parser.parse_args(arguments)
    args.act(args)
