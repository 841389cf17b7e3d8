r"""How well the clicks of more and of less active users are predicted: Figure 7 of MacGNN's paper,
and CountNet beside it.

The users of the test part are put into fifths by how many exposures they had before its cutoff;
those who had equally many are in one. Models are trained on all users, as in accuracy.counts on six
rolling windows, with the learning rate and weight decay of least log loss on validation among its
trials. Trials that no file of --settings has are run.

    python benchmarks accuracy.activity run --dataset movielens-1m --root data/movielens-1m \
        --settings benchmarks/accuracy/results/counts-movielens-1m.json --seeds 1 \
        --out benchmarks/accuracy/results/activity-movielens-1m.json
    python benchmarks accuracy.activity table benchmarks/accuracy/results/activity-*.json \
        --figure docs/activity.png > benchmarks/accuracy/activity.md
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from records import Record, made_by, make_parser, select, table
from torch import Tensor
from torch_geometric.data import HeteroData

from accuracy.click_bench import DEFAULTS, Job, read_parts, run_on, run_plan, stop_of
from accuracy.count_data import DATASETS
from accuracy.counts import MODELS, trials_of
from accuracy.harness import (
    add_commands,
    describe_rows,
    difference_to,
    read_records,
    score_groups,
    spread,
)
from mag.loader.row_loader import RowLoader
from mag.schema import CLICKS, SEES
from mag.training import predict

NAMES = ('count_net', 'macgnn', 'wide_deep', 'din', 'sim', 'graph_transformer')
NUM_GROUPS = 5
ALL = 'all'
METRICS = {'auc': 'AUC', 'gauc': 'GAUC'}


def groups_of(test: HeteroData) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
    r"""The rows of each fifth of the users of a test part, by the number of their exposures before
    its cutoff; and of each its rows, its users, and the least and the most exposures of these."""
    activity = test[SEES].edge_index[0].bincount(minlength=test['user'].num_nodes)
    user = test[CLICKS].edge_label_index[0]
    of_user = activity[user.unique()].double()
    shares = torch.arange(1, NUM_GROUPS, dtype=torch.double) / NUM_GROUPS
    fifth = torch.bucketize(activity[user].double(), of_user.quantile(shares))
    groups = {ALL: torch.ones_like(user, dtype=torch.bool)}
    groups |= {f'{number + 1}': fifth == number for number in range(NUM_GROUPS)}
    sizes = {}
    for name, is_in in groups.items():
        found = activity[user[is_in]]
        sizes[name] = {
            'rows': found.numel(), 'users': user[is_in].unique().numel(),
            'least': int(found.min()), 'most': int(found.max()),
        }  # fmt: skip
    return groups, sizes


def score(test: HeteroData, groups: dict[str, Tensor], trained: Any, loader: RowLoader) -> Record:
    r"""What a model reaches in each group of the rows of the test part, which a loader loads."""
    clicks = test[CLICKS]
    probability = predict(trained, loader)['click']
    return score_groups(probability, clicks.edge_label, groups, clicks.edge_label_index[0])


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    parts = read_parts(paths[job.dataset, job.protocol])
    groups, sizes = groups_of(parts.test)
    model, scored = MODELS[job.model], partial(score, parts.test, groups)
    return {'groups': sizes, **run_on(parts, model, job, args, scored)}


def run(args: argparse.Namespace) -> None:
    trials = select(read_records(args.settings), purpose='tune', stop=stop_of(args))
    logs = [(dataset, 'rolling') for dataset in args.dataset]
    run_plan(args, logs, MODELS, trials_of, run_job, trials=trials)


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, and who is ahead where."""
    yield '# Users by activity'
    yield ''
    yield (
        'AUC and GAUC on the test part, served with stale counts, mean and standard deviation over '
        'seeds, for fifths of its users by how many exposures they had before its cutoff, in six '
        'rolling windows. In brackets the p-value of a paired t-test over seeds, where there are '
        'several, behind the difference to CountNet.'
    )
    runs = select(records, purpose='run')
    for dataset, log in DATASETS.items():
        found = sorted(select(runs, dataset=dataset), key=lambda record: record['seed'])
        if found:
            yield from ('', f'## {log.title}', '', f'{describe_rows(found[0])}.', '')
            yield from (f'- {line}' for line in claims(found))
            for metric in METRICS:
                yield from section(metric, found)
    yield ''
    yield from made_by(runs)


def models_of(runs: list[Record]) -> list[str]:
    return [name for name in NAMES if select(runs, model=name)]


def range_of(sizes: dict[str, int]) -> str:
    return f'{sizes["least"]:,} to {sizes["most"]:,}'


def section(metric: str, runs: list[Record]) -> Iterable[str]:
    names = models_of(runs)
    rows = []
    for group, sizes in runs[0]['groups'].items():
        cells = [group, range_of(sizes), f'{sizes["users"]:,}', f'{sizes["rows"]:,}']
        for name in names:
            value = partial(value_in, group, metric)
            difference = difference_to('count_net', runs, name, value)
            cells.append(f'{spread([value(run) for run in select(runs, model=name)])} {difference}')
        rows.append([cell.rstrip() for cell in cells])
    header = ['fifth', 'exposures before', 'users', 'rows', *(MODELS[name].title for name in names)]
    yield from ('', f'### {METRICS[metric]}', '', *table(header, rows))


def value_in(group: str, metric: str, run: Record) -> float:
    return run['test'][group][metric]


def means_of(runs: list[Record], model: str, metric: str) -> dict[str, float]:
    r"""Of each group the mean over seeds."""
    found = select(runs, model=model)
    return {
        group: mean(value_in(group, metric, run) for run in found) for group in runs[0]['groups']
    }


def claims(runs: list[Record]) -> Iterable[str]:
    r"""In which fifths MacGNN and CountNet are ahead of each of the others, and by how much."""
    names = models_of(runs)
    fifths = [group for group in runs[0]['groups'] if group != ALL]
    for ours in ('macgnn', 'count_net'):
        others = [name for name in names if name not in ('macgnn', 'count_net')]
        if ours not in names or not others:
            continue
        told = []
        for metric, title in METRICS.items():
            mine = means_of(runs, ours, metric)
            theirs = [means_of(runs, name, metric) for name in others]
            leads = [mine[one] - max(their[one] for their in theirs) for one in fifths]
            num_ahead = sum(lead > 0 for lead in leads)
            verdict = 'holds' if num_ahead == len(fifths) else 'does not hold'
            told.append(
                f'{verdict} by {title}, in {num_ahead} of {len(fifths)} fifths '
                f'({", ".join(f"{lead:+.4f}" for lead in leads)})'
            )
        yield (
            f'That {MODELS[ours].title} is ahead of all others '
            f'({", ".join(MODELS[name].title for name in others)}) for users of any activity '
            f'{", and ".join(told)}: to the best of them in each fifth, from the least active on.'
        )


def draw(records: list[Record], path: Path) -> None:
    r"""One row a log, one panel a metric."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    runs = select(records, purpose='run')
    datasets = [dataset for dataset in DATASETS if select(runs, dataset=dataset)]
    figure, all_axes = plt.subplots(
        len(datasets), len(METRICS), figsize=(10, 3.6 * len(datasets)), squeeze=False,
        layout='constrained',
    )  # fmt: skip
    colors = dict(zip(NAMES, ('#d55e00', '#0072b2', '0.6', '#009e73', '#cc79a7', '#e69f00')))
    for dataset, row in zip(datasets, all_axes, strict=True):
        found = select(runs, dataset=dataset)
        sizes = {name: size for name, size in found[0]['groups'].items() if name != ALL}
        for (metric, title), axes in zip(METRICS.items(), row, strict=True):
            for name in models_of(found):
                values = means_of(found, name, metric)
                axes.plot(
                    list(sizes), [values[group] for group in sizes], marker='o', ms=4,
                    lw=2.2 if name == 'count_net' else 1.2, color=colors[name],
                    label=MODELS[name].title,
                )  # fmt: skip
            axes.set_xticks(range(len(sizes)), [range_of(size) for size in sizes.values()])
            axes.set_xlabel('exposures of the user before the test part, in fifths of the users')
            axes.set_ylabel(title)
            axes.set_title(DATASETS[dataset].title)
            axes.spines[['top', 'right']].set_visible(False)
    all_axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.activity', __doc__)
    runner = add_commands(parser, DATASETS, NAMES, run, render, draw, **DEFAULTS)
    runner.add_argument('--settings', nargs='*', default=[], help='JSON files of accuracy.counts')
    args = parser.parse_args(arguments)
    args.act(args)
