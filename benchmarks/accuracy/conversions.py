r"""How well GMCM and its variants predict conversions: the commands `run-conversion` and
`table-conversion` of accuracy.py.

On SyntheticMarket, of which each seed draws another, the conversion probability of every test
exposure is known, also of those without a click: "true MSE" is the mean squared distance of a
prediction from it. No real log has it. Every model sees the same rows, in batches of the same size,
with the same optimizer and the same early stopping on validation.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from harness import (
    Record,
    add_run_and_table,
    fit_run,
    paired_difference,
    run_missing,
    sections,
    select,
    spread,
    stamp,
)
from lightning import seed_everything
from torch_geometric.data import HeteroData

from mag.datasets import KuaiRand, SyntheticMarket, Trivago
from mag.loader import ExposureLoader
from mag.metrics import bayes_optimal
from mag.models import GMCM
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, predict
from mag.transforms import BehaviorGraph, TemporalSplit

PACKAGES = ('pyg-mag', 'torch', 'torch-geometric')
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
    fit_run(task, train_loader, val_loader, (dataset, name, seed), args, monitor='ctcvr_auc')
    record = {
        'rows': [len(loader.dataset) for loader in (train_loader, val_loader, test_loader)],
        'clicks': int(clicks.edge_label.sum()),
        'conversions': int(clicks.edge_label_conversion.sum()),
        'val': evaluate(task, val_loader),
        'test': evaluate(task, test_loader),
        **stamp(*PACKAGES),
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


def run(args: argparse.Namespace) -> None:
    run_missing(args, run_one)


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
    train, val, test = runs[0]['rows']
    yield from ('', f'## {DATASETS[dataset].title}', '')
    yield (
        f'{train:,} rows trained, {val:,} validated, {test:,} tested; {runs[0]["clicks"]:,} clicks '
        f'and {runs[0]["conversions"]:,} conversions in all'
        + (' (of seed 0).' if 'optimum' in runs[0] else '.')
    )
    yield ''
    yield f'| model | {" | ".join(columns.values())} | seeds |'
    yield '| --- |' + ' --- |' * (len(columns) + 1)
    for name, model in MODELS.items():
        found = select(runs, model=name)
        if found:
            cells = [spread([run['test'][metric] for run in found]) for metric in columns]
            yield f'| {model.title} | {" | ".join(cells)} | {len(found)} |'
    if 'optimum' in runs[0]:
        found = select(runs, model=runs[0]['model'])
        cells = [
            spread([run['optimum'][metric] for run in found])
            if metric in runs[0]['optimum']
            else ''
            for metric in columns
        ]
        yield f'| whoever knows the truth | {" | ".join(cells)} | {len(found)} |'
    yield from differences(runs, 'true_mse' if 'optimum' in runs[0] else 'cvr_auc')


def differences(runs: list[Record], first: str) -> Iterable[str]:
    metrics = dict.fromkeys([first, 'cvr_auc', 'cvr_mse', 'ctcvr_auc'])
    titles = METRICS | TRUTH
    yield ''
    yield f'| what it adds | models | {" | ".join(titles[metric] for metric in metrics)} |'
    yield '| --- | --- |' + ' --- |' * len(metrics)
    for name, other, claim in PAIRS:
        seeds = sorted(
            {run['seed'] for run in select(runs, model=name)}
            & {run['seed'] for run in select(runs, model=other)}
        )
        if len(seeds) < 2:
            continue
        cells = []
        for metric in metrics:
            ours, theirs = (
                [select(runs, model=model, seed=seed)[0]['test'][metric] for seed in seeds]
                for model in (name, other)
            )
            cells.append(paired_difference(ours, theirs))
        pair = f'{MODELS[name].title} - {MODELS[other].title}'
        yield f'| {claim} | {pair} | {" | ".join(cells)} |'


def add_commands(commands: Any) -> None:
    r"""Adds `run-conversion` and `table-conversion` to the commands of accuracy.py."""
    runner = add_run_and_table(
        commands,
        'conversion',
        'GMCM and its variants',
        DATASETS,
        MODELS,
        run,
        render,
        batch_size=2048,
        max_epochs=4,
        patience=3,
        learning_rate=1e-3,
    )
    runner.add_argument('--num-buckets', type=int, default=50_000, help='rows of the embedding')
