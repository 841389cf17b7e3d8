r"""Draws how well click models predict against what a score costs: the figure of the README.

Reads the runs of accuracy.counts and the medians of speed.click_models. Each model is a point as it
is, and a second one given the counts at the target.

    python benchmarks accuracy.cost benchmarks/accuracy/results/counts-*.json \
        --speed benchmarks/speed/click_models.json --figure docs/accuracy_cost.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from records import Record, Results, make_parser, select

from accuracy.count_data import DATASETS
from accuracy.counts import MODELS, OURS


class Point(NamedTuple):
    r"""A model.

    Attributes:
        name: Its name in :obj:`MODELS`.
        cost: Microseconds of scoring a row.
        auc: The mean over seeds on the test part, served with stale counts.
    """

    name: str
    cost: float
    auc: float


def points(records: list[Record], dataset: str, speed: Record) -> list[Point]:
    r"""The models of a log that were both run and timed."""
    found = []
    for name, model in MODELS.items():
        runs = select(records, dataset=dataset, protocol='rolling', purpose='run', model=name)
        if model.table == 'models' and runs and name in speed['score']:
            cost = 1e3 * speed['score'][name] / speed['batch_size']
            found.append(Point(name, cost, mean(run['test']['auc'] for run in runs)))
    return found


def draw(panels: dict[str, list[Point]], path: Path) -> None:
    r"""One panel a log."""
    # Here, because only this benchmark needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(6.4 * len(panels), 4.2), squeeze=False, layout='constrained'
    )
    for axes, (dataset, found) in zip(all_axes[0], panels.items(), strict=True):
        of = {point.name: point for point in found}
        last, below, lowest = Point('', 0.0, 0.0), 0, 0.0
        for name, point in sorted(of.items(), key=lambda item: item[1].cost):
            if name in OURS:
                style = {'marker': '*', 's': 220, 'color': '#d55e00', 'zorder': 3}
            elif name.endswith('_counts'):
                style = {'marker': 'o', 's': 30, 'color': '#0072b2', 'zorder': 2}
            else:
                style = {'marker': 'o', 's': 30, 'facecolors': 'white', 'edgecolors': '0.4'}
            axes.scatter(point.cost, point.auc, **style)
            more = of.get(f'{name}_counts')
            if more is not None:
                axes.plot(
                    [point.cost, more.cost], [point.auc, more.auc], color='0.75', lw=1, zorder=1
                )
            if not name.endswith('_counts'):
                is_ours = name in OURS
                # Labels of neighbors stand below each other.
                is_near = point.cost < 1.5 * last.cost and abs(point.auc - last.auc) < 0.002
                below = below + 1 if is_near else 0
                lowest = min(lowest, point.auc) if is_near else point.auc
                last = point
                place = 0, (9 + 9 * below) if is_ours else -11 - 9 * below
                anchor = point.cost, point.auc if is_ours else lowest
                title = MODELS[name].title.removeprefix('CountNet, ')
                axes.annotate(
                    title, anchor, xytext=place, textcoords='offset points',
                    ha='left' if name == 'count_net' else 'center', fontsize=9 if is_ours else 7,
                    color='#d55e00' if is_ours else '0.25', weight='bold' if is_ours else 'normal',
                )  # fmt: skip
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:g}')
        axes.minorticks_off()
        axes.margins(0.12, 0.2)
        axes.set_title(DATASETS[dataset].title)
        axes.set_xlabel('microseconds to score a row, one thread')
        axes.set_ylabel('AUC on the test part')
        axes.spines[['top', 'right']].set_visible(False)
    handles = [
        plt.Line2D([], [], ls='', marker='*', ms=12, color='#d55e00', label='CountNet'),
        plt.Line2D([], [], ls='', marker='o', color='#0072b2', label='given the same counts'),
        plt.Line2D([], [], ls='', marker='o', mfc='white', mec='0.4', label='as it is'),
    ]
    all_axes[0, 0].legend(handles=handles, frameon=False, fontsize=8, loc='lower right')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(args: argparse.Namespace) -> None:
    records = [record for path in args.results for record in Results(Path(path)).records]
    speed = json.loads(Path(args.speed).read_text())
    panels = {dataset: points(records, dataset, speed) for dataset in DATASETS}
    panels = {dataset: found for dataset, found in panels.items() if len(found) > 1}
    if not panels:
        raise ValueError(f'No model of {args.results} was timed in {args.speed}.')
    draw(panels, args.figure)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.cost', __doc__)
    parser.add_argument('results', nargs='+', help='JSON files of accuracy.counts')
    parser.add_argument('--speed', required=True, help='JSON file of speed.click_models')
    parser.add_argument('--figure', type=Path, required=True, help='PNG file to write')
    run(parser.parse_args(arguments))
