r"""How the temperature of MacGNN's counts and the number of macro nodes change what is predicted:
Figure 6 of MacGNN's paper, and CountNet beside it.

Models are trained as in accuracy.counts, on six rolling windows, with the learning rate and weight
decay that were chosen there at its own macro nodes. For the temperature these are 20 clusters of
users and the categories of items. For the number, users and items are both clustered into as many
macro nodes, at one resolution; the temperature is that of accuracy.counts. Validation stands beside
the test part, as whoever chooses a number has nothing else to look at.

    python benchmarks accuracy.macro_nodes run --dataset movielens-1m --root data/movielens-1m \
        --settings benchmarks/accuracy/results/counts-movielens-1m.json --seeds 1 \
        --out benchmarks/accuracy/results/macro-nodes-movielens-1m.json
    python benchmarks accuracy.macro_nodes table benchmarks/accuracy/results/macro-nodes-*.json \
        --figure docs/macro_nodes.png > benchmarks/accuracy/macro_nodes.md
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from records import Record, made_by, make_parser, select, table
from tqdm import tqdm

from accuracy.click_bench import DEFAULTS, Job, open_results, run_on
from accuracy.count_data import DATASETS, Parts, load_parts, save_parts
from accuracy.counts import MODELS
from accuracy.harness import add_commands, describe_rows, prepare, read_records, spread
from mag.schema import CLICKS
from mag.transforms import MacroCoarsen, TargetCounts

TITLES = {'macgnn': 'MacGNN', 'count_net': 'CountNet'}
# What the paper says that is enough.
ENOUGH = 20


class Axis(NamedTuple):
    r"""What is changed.

    Args:
        title: What the figure calls it.
        values: Its values by default.
        models: Those that it changes.
    """

    title: str
    values: tuple[float, ...]
    models: tuple[str, ...]


AXES = {
    'temperature': Axis('temperature', (0.1, 0.3, 0.7, 1.9, 4.0, 10.0), ('macgnn',)),
    'number': Axis('macro nodes a side', (10, 20, 50, 100, 200, 500), ('macgnn', 'count_net')),
}


def with_macro_nodes(parts: Parts, number: int) -> Parts:
    r"""Parts of a log with another number of macro nodes on either side."""
    coarsen = MacroCoarsen({'user': number, 'item': number}, exposure_hops=0).fit(parts.train)
    train, val, test = (coarsen(part) for part in (parts.train, parts.val, parts.test))
    counts = TargetCounts().fit(train)
    windows, fresh = counts(train), counts(test, log=parts.log)
    return parts._replace(
        train=counts(train, log=parts.log), val=counts(val), test=counts(test),
        windows=windows[CLICKS].edge_label_counts, fresh=fresh[CLICKS].edge_label_counts,
    )  # fmt: skip


def tabled(records: list[Record], dataset: str, model: str) -> list[Record]:
    r"""The runs of a model by accuracy.counts on six rolling windows, all of one setting."""
    found = select(records, dataset=dataset, protocol='rolling', purpose='run', model=model)
    if not found:
        raise ValueError(
            f'No file of --settings has a run of {model} on {dataset} in six rolling windows: run '
            f'accuracy.counts first.'
        )
    return found


def noise_of(runs: list[Record]) -> float:
    r"""The difference of AUC on the test part below which there is none: twice the standard
    deviation over the seeds of a model."""
    aucs = [run['test']['auc'] for run in runs]
    return 2 * stdev(aucs) if len(aucs) > 1 else 0.0


def run(args: argparse.Namespace) -> None:
    results = open_results(args)
    prepare(args.threads)
    settings = read_records(args.settings)
    values = {'temperature': args.temperatures, 'number': args.numbers}
    jobs = [
        (dataset, seed, name, axis, value)
        for dataset in args.dataset
        for seed in range(args.seeds)
        for name in args.models
        for axis in AXES
        if name in AXES[axis].models
        for value in values[axis]
    ]
    paths = {
        dataset: save_parts(dataset, 'rolling', args.root, args.checkpoints)
        for dataset in args.dataset
    }

    @lru_cache(maxsize=1)
    def parts_at(dataset: str, axis: str, value: float) -> Parts:
        parts = load_parts(paths[dataset])
        if axis == 'temperature':
            return parts._replace(temperature=value)
        return with_macro_nodes(parts, int(value))

    for dataset, seed, name, axis, value in tqdm(jobs):
        wanted = {'dataset': dataset, 'model': name, 'seed': seed, 'axis': axis, 'value': value}
        if not results.find(**wanted):
            same = tabled(settings, dataset, name)
            job = Job(dataset, 'rolling', name, seed, same[0]['setting'], 'run')
            record = run_on(parts_at(dataset, axis, value), MODELS[name], job, args)
            results.append({**wanted, 'noise': noise_of(same), **record})


class Curve(NamedTuple):
    r"""What one model reaches along an axis, as means over seeds.

    Attributes:
        values: Of the axis.
        val: The AUC of validation at each.
        test: The AUC on the test part at each.
    """

    values: list[float]
    val: list[float]
    test: list[float]

    def at(self, value: float) -> float:
        r"""The AUC on the test part."""
        return self.test[self.values.index(value)]

    def best(self) -> float:
        r"""The value with the highest AUC of validation."""
        return self.values[self.val.index(max(self.val))]


def curve(records: list[Record], axis: str, model: str) -> Curve:
    runs = select(records, axis=axis, model=model)
    values = sorted({run['value'] for run in runs})
    aucs = [
        [mean(run[part]['auc'] for run in select(runs, value=value)) for value in values]
        for part in ('val', 'test')
    ]
    return Curve(values, *aucs)


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, and what becomes of the paper's claims."""
    yield '# Temperature and number of macro nodes'
    yield ''
    yield (
        'AUC on validation and on the test part, mean and standard deviation over seeds, in six '
        'rolling windows, counts served stale. Temperature is that of the softmax over the counts '
        'of macro nodes (eq. 6), of which there are 20 for users and one a category for items. '
        'The number is that of clusters of users, and also that of clusters of items. What seeds '
        'differ by is twice the standard deviation over those of the same model in '
        '[counts.md](counts.md).'
    )
    for dataset, log in DATASETS.items():
        found = sorted(select(records, dataset=dataset), key=lambda record: record['seed'])
        if found:
            yield from ('', f'## {log.title}', '', f'{describe_rows(found[0])}.', '')
            yield from (f'- {line}' for line in claims(found))
            for axis in AXES:
                yield from section(axis, select(found, axis=axis))
    yield ''
    yield from made_by(records)


def section(axis: str, runs: list[Record]) -> Iterable[str]:
    names = [name for name in AXES[axis].models if select(runs, model=name)]
    rows = []
    for value in sorted({run['value'] for run in runs}):
        cells = [f'{value:g}']
        for name in names:
            of_model = select(runs, model=name, value=value)
            for part in ('val', 'test'):
                cells.append(spread([run[part]['auc'] for run in of_model]) if of_model else '')
            cells.append(f'{len(of_model)}')
        rows.append(cells)
    if rows:
        header = [AXES[axis].title]
        for name in names:
            header += [f'{TITLES[name]}, {part}' for part in ('validation', 'test', 'seeds')]
        yield from ('', *table(header, rows))


def claims(runs: list[Record]) -> Iterable[str]:
    r"""For each claim of the paper whether it holds, see :func:`noise_of`."""
    of_temperature = curve(runs, 'temperature', 'macgnn')
    if len(of_temperature.values) > 1:
        best, least = of_temperature.best(), min(of_temperature.values)
        lost = of_temperature.at(best) - of_temperature.at(least)
        noise = select(runs, model='macgnn')[0]['noise']
        verdict = 'holds' if lost > noise else 'does not hold'
        yield (
            f'That too small a temperature hurts {verdict}: MacGNN has '
            f'{of_temperature.at(least):.4f} at {least:g} and {of_temperature.at(best):.4f} at '
            f'{best:g}, the best on validation, a difference of {lost:+.4f} where '
            f'seeds differ by {noise:.4f}; from '
            f'{min(of_temperature.test):.4f} to {max(of_temperature.test):.4f} in all.'
        )
    for name in AXES['number'].models:
        found = curve(runs, 'number', name)
        if ENOUGH in found.values and len(found.values) > 1:
            best = found.best()
            gained = found.at(best) - found.at(ENOUGH)
            noise = select(runs, model=name)[0]['noise']
            verdict = 'does not hold' if gained > noise else 'holds'
            yield (
                f'That {ENOUGH} macro nodes are enough {verdict} for {TITLES[name]}: it has '
                f'{found.at(ENOUGH):.4f} with {ENOUGH} a side and {found.at(best):.4f} with '
                f'{best:g}, the best on validation, a difference of {gained:+.4f} '
                f'where seeds differ by {noise:.4f}; from '
                f'{min(found.test):.4f} to {max(found.test):.4f} in all.'
            )


def draw(records: list[Record], path: Path) -> None:
    r"""One panel an axis, one row a log."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    datasets = [dataset for dataset in DATASETS if select(records, dataset=dataset)]
    figure, all_axes = plt.subplots(
        len(datasets), len(AXES), figsize=(11, 3.4 * len(datasets)), squeeze=False, sharey='row',
        layout='constrained',
    )  # fmt: skip
    colors = {'macgnn': '#0072b2', 'count_net': '#d55e00'}
    for dataset, row in zip(datasets, all_axes, strict=True):
        for (axis, of_axis), axes in zip(AXES.items(), row, strict=True):
            for name in of_axis.models:
                found = curve(select(records, dataset=dataset), axis, name)
                if found.values:
                    style = {'color': colors[name], 'marker': 'o', 'ms': 4}
                    axes.plot(found.values, found.test, label=f'{TITLES[name]}, test', **style)
                    axes.plot(
                        found.values, found.val, ls=':', label=f'{TITLES[name]}, validation',
                        **style, mfc='white',
                    )  # fmt: skip
            axes.set_xscale('log')
            values = sorted({run['value'] for run in select(records, dataset=dataset, axis=axis)})
            axes.set_xticks(values, [f'{value:g}' for value in values])
            axes.minorticks_off()
            axes.set_xlabel(of_axis.title)
            axes.set_title(DATASETS[dataset].title)
            axes.spines[['top', 'right']].set_visible(False)
        row[0].set_ylabel('AUC')
    all_axes[0, -1].legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.macro_nodes', __doc__)
    runner = add_commands(parser, DATASETS, TITLES, run, render, draw, **DEFAULTS)
    runner.add_argument(
        '--settings', nargs='+', required=True, help='JSON files of accuracy.counts'
    )
    for axis, number_type in (('temperature', float), ('number', int)):
        runner.add_argument(
            f'--{axis}s', nargs='*', type=number_type, default=list(AXES[axis].values),
            help=f'values of the {axis}',
        )  # fmt: skip
    args = parser.parse_args(arguments)
    args.act(args)
