r"""Whether models that read the macro graph favor popular items and active users, beside models of
ids alone.

Items are put into tenths by how often they were shown in the training history, before the cutoff of
validation, and users by how often something was shown to them; those of equal numbers are in one,
and tenths have about as many rows of the test part (`mag.metrics.popularity_audit`). What a tenth
gets of the sum of all predictions is compared with what it gets of the clicks. The slope of the
logarithm of that ratio over the tenths is how much a model favors the popular, and the difference
of two models' slopes is tested over seeds.

Models are trained on six rolling windows as in accuracy.counts, with the learning rate and weight
decay of least log loss on validation among its trials. Trials that no file of --settings has are
run.

    python benchmarks accuracy.fairness run --dataset movielens-1m --root data/movielens-1m \
        --settings benchmarks/accuracy/results/counts-movielens-1m.json \
        --out benchmarks/accuracy/results/fairness-movielens-1m.json
    python benchmarks accuracy.fairness table benchmarks/accuracy/results/fairness-*.json \
        --figure docs/fairness.png > benchmarks/accuracy/fairness.md
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from records import Record, made_by, make_parser, select, table
from scipy.stats import linregress, ttest_rel

from accuracy.click_bench import (
    Job,
    Model,
    add_plan_commands,
    found_logs,
    is_of_all_time,
    read_parts,
    read_trials,
    run_on,
    run_plan,
)
from accuracy.count_data import DATASETS, Parts
from accuracy.counts import MODELS as COUNT_MODELS
from accuracy.counts import ablation, trials_of
from accuracy.harness import (
    describe_rows,
    difference_to,
    paired,
    score_groups,
    spread,
    value_of,
    values_of_both,
)
from mag.loader.row_loader import RowLoader
from mag.metrics import popularity_audit
from mag.schema import CLICKS, SEES
from mag.training import predict


def is_of_no_macro_node(column: str) -> bool:
    return is_of_all_time(column) and 'cluster' not in column


MODELS: dict[str, Model] = {
    'count_net': COUNT_MODELS['count_net'],
    'no_macro_nodes': ablation(
        'CountNet w/o macro nodes (counts of user and item)', columns=is_of_no_macro_node
    ),
    'no_counts': COUNT_MODELS['no_counts']._replace(title='CountNet w/o counts (ids alone)'),
    **{name: COUNT_MODELS[name] for name in ('macgnn', 'wide_deep', 'dcn_v2')},
}
# What coarsens, and what is the same, or most like it, without.
PAIRS = (
    ('count_net', 'no_counts'), ('count_net', 'no_macro_nodes'), ('count_net', 'wide_deep'),
    ('count_net', 'dcn_v2'), ('macgnn', 'wide_deep'), ('macgnn', 'dcn_v2'),
)  # fmt: skip
BASE = 'wide_deep'
# By what each is put into tenths.
TENTHS = {'item': 'items by popularity', 'user': 'users by activity'}
LEVEL = 0.05
FIELDS = (
    'number', 'least', 'most', 'nodes', 'rows', 'clicks', 'auc', 'gauc', 'calibration',
    'calibration_error', 'row_share', 'score_share', 'click_share', 'score_by_rows',
    'score_by_clicks',
)  # fmt: skip


def score(parts: Parts, trained: Any, loader: RowLoader) -> Record:
    r"""The metrics of the test part, and the audit by the history of training."""
    probability = predict(trained, loader)['click']
    clicks, history = parts.test[CLICKS], parts.val[SEES].edge_index
    user, item = clicks.edge_label_index
    activity, popularity = (
        nodes.bincount(minlength=parts.test[name].num_nodes)
        for name, nodes in zip(('user', 'item'), history, strict=True)
    )
    audit = popularity_audit(
        probability, clicks.edge_label, user, item, popularity, activity, weighting='rows'
    )
    everything = {'all': torch.ones_like(user, dtype=torch.bool)}
    return {
        **score_groups(probability, clicks.edge_label, everything, user)['all'],
        'audit': {
            name: [{field: getattr(group, field) for field in FIELDS} for group in groups]
            for name, groups in audit.items()
        },
    }


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    parts = read_parts(paths[job.dataset, job.protocol])
    return run_on(parts, MODELS[job.model], job, args, partial(score, parts))


def run(args: argparse.Namespace) -> None:
    logs = [(dataset, 'rolling') for dataset in args.dataset]
    run_plan(args, logs, MODELS, trials_of, run_job, args.jobs, read_trials(args))


def favor(group: Record) -> float | None:
    r"""The logarithm of what a tenth gets of the score by what it gets of the clicks."""
    ratio = group['score_by_clicks']
    return math.log(ratio) if ratio else None


def auc(group: Record) -> float | None:
    return group['auc']


def slope(of: str, measure: Callable[[Record], float | None], run: Record) -> float | None:
    r"""By how much a measure rises from one tenth to the next, by least squares; nothing where
    fewer than two tenths have it."""
    groups = run['test']['audit'][of]
    points = [(group['number'], value) for group in groups if (value := measure(group)) is not None]
    return float(linregress(*zip(*points)).slope) if len(points) > 1 else None


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, and whether coarsening favors the popular."""
    yield '# Does coarsening favor popular items?'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part, served with stale counts, in six '
        'rolling windows. Tenths are of items by how often they were shown before the cutoff of '
        'validation, and of users by how much they were shown, with about as many rows each; those '
        'of equal numbers are in one. The ratio is the share of the sum of all predictions by the '
        'share of the clicks: above 1, a tenth gets more than it deserves. Favor is the slope of '
        'its logarithm from tenth to tenth, and that of AUC likewise: above 0, the more popular '
        'get more. In brackets p-values of paired t-tests over seeds, without correction for their '
        'number.'
    )
    runs = select(records, purpose='run')
    for title, found in found_logs(runs):
        yield from ('', f'## {title}', '', f'{describe_rows(found[0])}.')
        for of, what in TENTHS.items():
            yield from ('', f'### Tenths of {what}', '')
            yield from (f'- {line}' for line in claims(of, found))
            yield from ('', *table(HEADER, rows_of_models(of, found)), '')
            yield from tenths(of, found)
    yield ''
    yield from made_by(records)


HEADER = (
    'model', 'AUC', f'AUC to {MODELS[BASE].title}', 'favor', f'favor to {MODELS[BASE].title}',
    'slope of AUC', f'slope of AUC to {MODELS[BASE].title}', 'ratio of the least', 'of the most',
    'calibration error of the least', 'of the most', 'seeds',
)  # fmt: skip


def names_of(runs: list[Record]) -> list[str]:
    return [name for name in MODELS if select(runs, model=name)]


def rows_of_models(of: str, runs: list[Record]) -> Iterable[list[str]]:
    for name in names_of(runs):
        found = select(runs, model=name)
        cells = [MODELS[name].title]
        for value in (
            partial(value_of, 'auc'), partial(slope, of, favor), partial(slope, of, auc)
        ):  # fmt: skip
            cells += [spread_of(value, found), difference_to(BASE, runs, name, value)]
        for field in ('score_by_clicks', 'calibration_error'):
            cells += [spread_of(partial(at, of, place, field), found) for place in (0, -1)]
        yield [*cells, f'{len(found)}']


def at(of: str, place: int, field: str, run: Record) -> float | None:
    return run['test']['audit'][of][place][field]


def spread_of(value: Callable[[Record], float | None], runs: list[Record]) -> str:
    found = [number for run in runs if (number := value(run)) is not None]
    return spread(found) if found else ''


def tenths(of: str, runs: list[Record]) -> Iterable[str]:
    r"""The ratio and the AUC in each tenth, the mean over seeds."""
    names = names_of(runs)
    groups = runs[0]['test']['audit'][of]
    rows = [
        [
            f'{group["number"]}', range_of(group), f'{group["nodes"]:,}', f'{group["rows"]:,}',
            f'{group["clicks"] / group["rows"]:.3f}',
            *(
                '{} / {}'.format(*(mean_of(of, place, field, name, runs) for field in
                                   ('score_by_clicks', 'auc')))
                for name in names
            ),
        ]
        for place, group in enumerate(groups)
    ]  # fmt: skip
    titles = [f'{MODELS[name].title}: ratio / AUC' for name in names]
    header = ['tenth', 'exposures before', f'{of}s', 'rows', 'click rate', *titles]
    return table(header, rows)


def range_of(group: Record) -> str:
    return f'{group["least"]:,.0f} to {group["most"]:,.0f}'


def mean_of(of: str, place: int, field: str, name: str, runs: list[Record]) -> str:
    values = [at(of, place, field, run) for run in select(runs, model=name)]
    found = [value for value in values if value is not None]
    return f'{mean(found):.3f}' if found else '-'


def claims(of: str, runs: list[Record]) -> Iterable[str]:
    r"""Of each pair, whether what coarsens favors the popular more than what does not."""
    value = partial(slope, of, favor)
    whom = 'popular items' if of == 'item' else 'active users'
    for name, other in PAIRS:
        ours, theirs = values_of_both(other, runs, name, value)
        if len(ours) < 2:
            continue
        is_told = ttest_rel(ours, theirs).pvalue <= LEVEL
        more = 'more than' if mean(ours) > mean(theirs) else 'less than'
        yield (
            f'{MODELS[name].title} favors {whom} '
            f'{more if is_told else "neither more nor less than"} {MODELS[other].title}: '
            f'{mean(ours):+.4f} and {mean(theirs):+.4f}, {paired(ours, theirs)}.'
        )


def draw(records: list[Record], path: Path) -> None:
    r"""One row a log; the ratio and the AUC by tenth of items, and then of users, a line a
    model."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    logs = list(found_logs(select(records, purpose='run')))
    panels = [(of, field) for of in TENTHS for field in ('score_by_clicks', 'auc')]
    figure, all_axes = plt.subplots(
        len(logs), len(panels), figsize=(16, 3.6 * len(logs)), squeeze=False, layout='constrained'
    )
    colors = dict(zip(MODELS, ('#d55e00', '#e69f00', '#cc79a7', '#0072b2', '#009e73', '0.5')))
    for (title, runs), row in zip(logs, all_axes, strict=True):
        for (of, field), axes in zip(panels, row, strict=True):
            for name in names_of(runs):
                numbers, values = curve(of, field, select(runs, model=name))
                axes.plot(
                    numbers, values, marker='o', ms=3, color=colors[name],
                    lw=2.2 if name in ('count_net', 'macgnn') else 1.2, label=MODELS[name].title,
                )  # fmt: skip
            axes.set_xlabel(f'tenth of {TENTHS[of]} in training')
            if field == 'score_by_clicks':
                axes.axhline(1, color='0.8', zorder=0)
                axes.set_ylabel('share of the score / share of the clicks')
            else:
                axes.set_ylabel('AUC')
            axes.set_title(title)
            axes.spines[['top', 'right']].set_visible(False)
    all_axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curve(of: str, field: str, runs: list[Record]) -> tuple[list[int], list[float]]:
    r"""The tenths that have a value in all runs of a model, and its mean in each."""
    points = []
    for place, group in enumerate(runs[0]['test']['audit'][of]):
        values = [value for run in runs if (value := at(of, place, field, run)) is not None]
        if len(values) == len(runs):
            points.append((group['number'], mean(values)))
    return [number for number, _ in points], [value for _, value in points]


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.fairness', __doc__)
    runner = add_plan_commands(parser, DATASETS, MODELS, run, render, draw)
    runner.add_argument('--settings', nargs='*', default=[], help='JSON files of accuracy.counts')
    args = parser.parse_args(arguments)
    args.act(args)
