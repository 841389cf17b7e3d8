r"""How well GMCM and its variants predict conversions.

On SyntheticMarket, of which each seed draws another, the conversion probability of every test
exposure is known, also of those without a click: "true MSE" is the mean squared distance of a
prediction from it. No real log has it. Every model sees the same rows, in batches of the same size,
with the same optimizer and the same early stopping on validation. The command can be stopped and
given again:

    python benchmarks accuracy.conversions run --dataset market-0.5 market-1 market-2 \
        --out benchmarks/accuracy/results/conversion-market.json
    python benchmarks accuracy.conversions table \
        benchmarks/accuracy/results/conversion-*.json \
        --findings benchmarks/accuracy/results/conversion-findings.md \
        > benchmarks/accuracy/conversions.md
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, make_parser, select, table
from torch_geometric.data import HeteroData

from accuracy.harness import (
    add_commands,
    describe_rows,
    difference_to,
    fit_run,
    rows_of,
    run_missing,
    sections,
    spread,
    value_of,
)
from mag.datasets import KuaiRand, SyntheticMarket, Trivago
from mag.loader import ExposureLoader
from mag.metrics import bayes_optimal
from mag.models import GMCM
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, predict
from mag.transforms import BehaviorGraph, TemporalSplit

SPLIT = TemporalSplit(0.01, 0.8, 0.9, num_windows=1, keep_cold=True)
NUM_EXPOSURES = 120_000
METRICS = {
    'auc': 'click AUC',
    'cvr_auc': 'CVR AUC',
    'cvr_mse': 'CVR MSE',
    'ctcvr_auc': 'CTCVR AUC',
    'ctcvr_gauc': 'CTCVR GAUC',
    'ctcvr_mse': 'CTCVR MSE',
}
TRUTH = {
    'true_mse': 'true MSE',
    'true_mse_clicked': 'on clicked',
    'true_mse_unclicked': 'on unclicked',
    'true_bias': 'mean prediction - truth',
}


class Dataset(NamedTuple):
    r"""A log with conversions; only a market depends on the seed."""

    title: str
    load: Callable[[str, int], HeteroData]


def market(bias: float) -> Dataset:
    def load(root: str, seed: int) -> HeteroData:
        return SyntheticMarket(
            NUM_EXPOSURES // 100,
            NUM_EXPOSURES // 200,
            NUM_EXPOSURES,
            selection_bias=bias,
            seed=seed,
            log=False,
        )[0]

    return Dataset(f'SyntheticMarket, selection bias {bias:g}', load)


DATASETS = {
    'market-0.5': market(0.5),
    'market-1': market(1.0),
    'market-2': market(2.0),
    'kuairand': Dataset('KuaiRand-Pure', lambda root, seed: KuaiRand(root)[0]),
    'trivago': Dataset('trivago', lambda root, seed: Trivago(root)[0]),
}


class Model(NamedTuple):
    r"""A row of the table: arguments of GMCM, and how many of the behaviors it knows."""

    title: str
    arguments: dict[str, Any]
    num_behaviors: int | None = None


MODELS = {
    'base': Model('Base (naive)', {'merge': 'none', 'loss': 'naive'}),
    'base_ipw': Model('Base + IPW', {'merge': 'none'}),
    'esmm': Model('ESMM', {'merge': 'none', 'loss': 'esmm'}),
    'division': Model('Division', {'merge': 'none', 'loss': 'division'}),
    'mcm_2': Model('MCM-2', {'merge': 'concat'}, num_behaviors=2),
    'mcm_all': Model('MCM-10 (all behaviors)', {'merge': 'concat'}),
    'mcm_gru': Model('MCM-GRU', {'merge': 'gru'}),
    'gmcm': Model('GMCM', {}),
    'gmcm_naive': Model('GMCM, naive', {'loss': 'naive'}),
    'gmcm_doubly_robust': Model('GMCM, doubly robust', {'loss': 'doubly_robust'}),
}
# What is compared, on the same seeds: which claim the difference of the two is about.
PAIRS = (
    ('base_ipw', 'base', 'inverse propensities, two towers'),
    ('gmcm', 'gmcm_naive', 'inverse propensities, GMCM'),
    ('gmcm_doubly_robust', 'gmcm', 'doubly robust'),
    ('gmcm', 'base_ipw', 'micro-behaviors and their graph'),
    ('gmcm', 'mcm_all', 'the graph'),
    ('gmcm', 'esmm', 'against ESMM'),
)


def run_one(dataset: str, name: str, seed: int, args: argparse.Namespace) -> Record:
    model = MODELS[name]
    data = DATASETS[dataset].load(args.root, seed)
    clicks = data[CLICKS]
    clicks.edge_label_behavior = clicks.edge_label_behavior[:, : model.num_behaviors]
    train, val, test = SPLIT(data)
    train = BehaviorGraph()(train)
    train_loader = ExposureLoader(train, args.batch_size, shuffle=True, seed=seed)
    val_loader, test_loader = (ExposureLoader(part, 4 * args.batch_size) for part in (val, test))
    seed_everything(seed, verbose=False)
    gmcm = GMCM.from_data(train, num_buckets=args.num_buckets, **model.arguments)
    task = ClickTask(gmcm, args.learning_rate, args.weight_decay)
    fit_run(task, train_loader, val_loader, (dataset, name), seed, args, monitor='ctcvr_auc')
    record: Record = {
        'rows': [len(loader.dataset) for loader in (train_loader, val_loader, test_loader)],
        'clicks': int(clicks.edge_label.sum()),
        'conversions': int(clicks.edge_label_conversion.sum()),
        'val': evaluate(task, val_loader),
        'test': evaluate(task, test_loader),
    }
    if 'truth' in data:
        record['test'] |= true_error(task, test, test_loader)
        record['optimum'] = optimum(test)
    return record


def true_error(task: ClickTask, test: HeteroData, loader: ExposureLoader) -> dict[str, float]:
    r"""How far the conversion probabilities are from the truth, over all exposures."""
    clicks = test[CLICKS]
    truth = test.truth['conversion_probability'][clicks.edge_label_row]
    error = predict(task, loader)['conversion'] - truth
    clicked = clicks.edge_label == 1
    return {
        'true_mse': float(error.square().mean()),
        'true_mse_clicked': float(error[clicked].square().mean()),
        'true_mse_unclicked': float(error[~clicked].square().mean()),
        'true_bias': float(error.mean()),
    }


def optimum(test: HeteroData) -> dict[str, float]:
    r"""What nobody can expect to beat on the test part."""
    row = test[CLICKS].edge_label_row
    click, conversion = (
        test.truth[name][row] for name in ('click_probability', 'conversion_probability')
    )
    both = click * conversion
    return {
        'auc': bayes_optimal(click)[0],
        'cvr_auc': bayes_optimal(conversion, click)[0],
        'cvr_mse': float((click * conversion * (1 - conversion)).sum() / click.sum()),
        'ctcvr_auc': bayes_optimal(both)[0],
        'ctcvr_mse': float((both * (1 - both)).mean()),
        'true_mse': 0.0,
    }


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table, two sections a log: what models reach, and paired differences."""
    yield '# Conversion'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part. CVR is the conversion of clicked '
        'exposures, CTCVR click and conversion of all of them; MSE is eq. 21 of GMCM. Each seed '
        'draws its own market, weights and order; stopping looks at the CTCVR AUC of validation. '
        'P-values are of paired t-tests over the seeds, without correction for their number.'
    )
    yield from sections(records, DATASETS, section)


def section(dataset: str, runs: list[Record]) -> Iterable[str]:
    columns = METRICS | (TRUTH if 'optimum' in runs[0] else {})
    yield from ('', f'## {DATASETS[dataset].title}', '')
    yield (
        f'{describe_rows(runs[0])}; {runs[0]["clicks"]:,} clicks and '
        f'{runs[0]["conversions"]:,} conversions in all'
        + (' (of seed 0).' if 'optimum' in runs[0] else '.')
    )
    yield ''
    rows = rows_of(
        runs,
        MODELS,
        lambda name, found: [spread([run['test'][metric] for run in found]) for metric in columns],
    )
    if 'optimum' in runs[0]:
        found = select(runs, model=runs[0]['model'])
        cells = [
            spread([run['optimum'][metric] for run in found])
            if metric in runs[0]['optimum']
            else ''
            for metric in columns
        ]
        rows.append(['whoever knows the truth', *cells, f'{len(found)}'])
    yield from table(['model', *columns.values(), 'seeds'], rows)
    yield from differences(runs, 'true_mse' if 'optimum' in runs[0] else 'cvr_auc')


def differences(runs: list[Record], first: str) -> Iterable[str]:
    metrics = dict.fromkeys([first, 'cvr_auc', 'cvr_mse', 'ctcvr_auc'])
    titles = METRICS | TRUTH
    rows = []
    for name, base, claim in PAIRS:
        cells = [difference_to(base, runs, name, partial(value_of, metric)) for metric in metrics]
        if all(cells):
            rows.append([claim, f'{MODELS[name].title} - {MODELS[base].title}', *cells])
    yield ''
    yield from table(['what it adds', 'models', *(titles[metric] for metric in metrics)], rows)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.conversions', __doc__)
    runner = add_commands(
        parser,
        DATASETS,
        MODELS,
        partial(run_missing, run_one),
        render,
        checkpoints='output/conversion',
        batch_size=2048,
        max_epochs=4,
        patience=3,
        learning_rate=1e-3,
    )
    runner.add_argument('--num-buckets', type=int, default=50_000, help='rows of the embedding')
    args = parser.parse_args(arguments)
    args.act(args)
