r"""How well SRJGraph predicts clicks in search and in recommendation.

Every model sees the same exposures, in batches of the same size, with the same optimizer and the
same early stopping on validation; those that read paths draw them from all clicks before each
exposure. A model of one domain trains on the exposures of that domain and draws from its clicks
alone. Each seed draws its own market: a plain one, or one with occasions, where a click tells
the next only if it was searched for on the same occasion, and an id lasts a week. The command can
be stopped and given again:

    python benchmarks accuracy.search run --dataset market occasions \
        --out benchmarks/accuracy/results/search-market.json
    python benchmarks accuracy.search table benchmarks/accuracy/results/search-*.json \
        --findings benchmarks/accuracy/results/search-findings.md \
        > benchmarks/accuracy/search.md
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, make_parser, select, table
from torch import nn
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
)
from accuracy.path_models import PathModel
from mag.datasets import SyntheticMarket, Trivago
from mag.loader import PathLoader
from mag.metrics import relative_improvement
from mag.models import SRJGraph
from mag.schema import CLICKS, click_attributes, label_attributes
from mag.training import ClickTask, evaluate
from mag.transforms import TemporalSplit

DOMAINS = ('recommendation', 'search')
SPLIT = TemporalSplit(0.3, 0.8, 0.9, num_windows=1, keep_cold=True)
NUM_EXPOSURES = 40_000
WIDTHS = {'user': [10, 1, 5], 'item': [1, 10, 1]}


class Dataset(NamedTuple):
    r"""A log of both domains.

    Args:
        title: What the table calls it.
        load: From a folder and a seed, on which only a market depends.
        is_filtered: Whether items drawn from a user share the category of the target, unless a
            model says otherwise.
    """

    title: str
    load: Callable[[str, int], HeteroData]
    is_filtered: bool = False


def market(root: str, seed: int) -> HeteroData:
    return SyntheticMarket(
        NUM_EXPOSURES // 100, NUM_EXPOSURES // 200, NUM_EXPOSURES, seed=seed, log=False
    )[0]


def occasions(root: str, seed: int) -> HeteroData:
    return SyntheticMarket(
        NUM_EXPOSURES // 160,
        NUM_EXPOSURES // 400,
        5 * NUM_EXPOSURES // 2,
        num_groups=2,
        occasion_strength=4.0,
        id_lifetime=7.0,
        seed=seed,
        log=False,
    )[0]


DATASETS = {
    'market': Dataset('SyntheticMarket', market, is_filtered=True),
    'occasions': Dataset('SyntheticMarket with occasions', occasions),
    'trivago': Dataset('trivago', lambda root, seed: Trivago(root)[0]),
}


class Model(NamedTuple):
    r"""A row of the table.

    Args:
        title: What the table calls it.
        build: From the training part and the depth of the paths.
        widths: Those of the paths.
        domain: The only domain it trains on, or both.
        is_filtered: Whether items of a user share the category of the target; otherwise as the
            log says.
    """

    title: str
    build: Callable[[HeteroData, int], nn.Module]
    widths: dict[str, list[int]] = WIDTHS
    domain: int | None = None
    is_filtered: bool | None = None


def srjgraph(train: HeteroData, depth: int, **arguments: Any) -> nn.Module:
    return SRJGraph.from_data(train, **arguments)


def path_model(architecture: str) -> Callable[[HeteroData, int], nn.Module]:
    return lambda train, depth: PathModel(train, architecture, depth)


MODELS = {
    'srjgraph': Model('SRJGraph', srjgraph),
    'only_recommendation': Model('SRJGraph, recommendation alone', srjgraph, domain=0),
    'only_search': Model('SRJGraph, search alone', srjgraph, domain=1),
    'no_query': Model('SRJGraph w/o query', partial(srjgraph, query=False)),
    'no_intention': Model('SRJGraph w/o intention', partial(srjgraph, intention=False)),
    'no_upstream': Model('SRJGraph w/o upstream', partial(srjgraph, upstream=False)),
    'unguided': Model(
        'SRJGraph w/o intention and upstream', partial(srjgraph, intention=False, upstream=False)
    ),
    'no_filter': Model('SRJGraph w/o category filter', srjgraph, is_filtered=False),
    'filter': Model('SRJGraph with category filter', srjgraph, is_filtered=True),
    'standard': Model('SRJGraph, standard transformer', partial(srjgraph, form='literal')),
    'depth_1': Model('SRJGraph, depth 1', srjgraph, {'user': [10], 'item': [1]}),
    'depth_2': Model('SRJGraph, depth 2', srjgraph, {'user': [10, 1], 'item': [1, 10]}),
    'depth_4': Model('SRJGraph, depth 4', srjgraph, {'user': [10, 1, 5, 1], 'item': [1, 10, 1, 5]}),
    'narrow': Model('SRJGraph, widths 5 1 2', srjgraph, {'user': [5, 1, 2], 'item': [1, 5, 1]}),
    'wide': Model('SRJGraph, widths 25 1 10', srjgraph, {'user': [25, 1, 10], 'item': [1, 25, 1]}),
    'dnn': Model('DNN', path_model('dnn'), {'user': [1], 'item': [1]}),
    'din': Model('DIN', path_model('din'), {'user': [10], 'item': [1]}),
    'gat': Model('GAT', path_model('gat')),
    'hgt': Model('HGT', path_model('hgt')),
    'lightgcn': Model('LightGCN', path_model('lightgcn')),
}


def of_domain(part: HeteroData, number: int, with_clicks: bool) -> HeteroData:
    r"""The exposures of one domain, and its clicks alone unless :obj:`with_clicks`."""
    part = copy.copy(part)
    clicks = part[CLICKS]
    shown = clicks.edge_label_domain == number
    clicked = clicks.domain == number
    kept = dict.fromkeys(label_attributes(part), shown)
    if not with_clicks:
        kept |= dict.fromkeys(click_attributes(part), clicked)
    for name, rows in kept.items():
        value = clicks[name]
        clicks[name] = value[:, rows] if name.endswith('_index') else value[rows]
    return part


def run_one(dataset: str, name: str, seed: int, args: argparse.Namespace) -> Record:
    model = MODELS[name]
    data = DATASETS[dataset].load(args.root, seed)
    parts = SPLIT(data)
    is_filtered = DATASETS[dataset].is_filtered
    if model.is_filtered is not None:
        is_filtered = model.is_filtered
    if model.domain is not None:
        parts = tuple(of_domain(part, model.domain, with_clicks=False) for part in parts)
        data = of_domain(data, model.domain, with_clicks=False)

    def load(part: HeteroData, shuffle: bool = False) -> PathLoader:
        return PathLoader(
            part,
            args.batch_size if shuffle else 2 * args.batch_size,
            shuffle,
            widths=model.widths,
            attribute='category' if is_filtered else None,
            history=data,
            seed=seed,
        )

    train_loader = load(parts[0], shuffle=True)
    seed_everything(seed, verbose=False)
    depth = len(model.widths['user'])
    task = ClickTask(model.build(parts[0], depth), args.learning_rate, args.weight_decay)
    fit_run(task, train_loader, load(parts[1]), (dataset, name), seed, args)
    domains = range(len(DOMAINS)) if model.domain is None else [model.domain]
    return {
        'rows': [len(part[CLICKS].edge_label) for part in parts],
        'val': evaluate(task, load(parts[1])),
        'test': {
            DOMAINS[number]: evaluate(task, load(of_domain(parts[2], number, with_clicks=True)))
            for number in domains
        },
    }


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table: what models reach in each domain, and the distance to SRJGraph."""
    yield '# Search and recommendation'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part, and the difference to SRJGraph '
        'on the same seeds with the p-value of a paired t-test, without correction for their '
        'number. Over DNN is the relative improvement of the mean AUC, that of chance taken off. '
        f'Paths are {WIDTHS["user"]} from the user and {WIDTHS["item"]} from the item unless said '
        'otherwise.'
    )
    yield from sections(records, DATASETS, section)


def section(dataset: str, runs: list[Record]) -> Iterable[str]:
    yield from ('', f'## {DATASETS[dataset].title}', '')
    # A model of one domain has its rows alone.
    yield f'{describe_rows(max(runs, key=lambda run: run["rows"]))}.'
    yield ''
    header = ['model']
    for domain in ('search', 'recommendation'):
        header += [f'{domain} AUC', 'over DNN', 'against SRJGraph']
    header += ['search logloss', 'recommendation logloss', 'seeds']

    def cells(name: str, found: list[Record]) -> list[str]:
        row = []
        for domain in ('search', 'recommendation'):
            row += [
                values(found, domain, 'auc'),
                over_dnn(runs, name, domain),
                difference_to('srjgraph', runs, name, partial(auc_of, domain)),
            ]
        return row + [values(found, domain, 'logloss') for domain in ('search', 'recommendation')]

    yield from table(header, rows_of(runs, MODELS, cells))


def values(runs: list[Record], domain: str, metric: str) -> str:
    found = [run['test'][domain][metric] for run in runs if domain in run['test']]
    return spread(found) if found else ''


def auc_of(domain: str, run: Record) -> float | None:
    return run['test'].get(domain, {}).get('auc')


def over_dnn(runs: list[Record], name: str, domain: str) -> str:
    r"""The relative improvement of the mean AUC over that of the DNN."""
    ours, base = (
        [run['test'][domain]['auc'] for run in select(runs, model=model) if domain in run['test']]
        for model in (name, 'dnn')
    )
    if name == 'dnn' or not ours or not base or mean(base) <= 0.5:
        return ''
    return f'{relative_improvement(mean(ours), mean(base)):+.1f} %'


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.search', __doc__)
    add_commands(
        parser,
        DATASETS,
        MODELS,
        partial(run_missing, run_one),
        render,
        checkpoints='output/search',
        batch_size=512,
        max_epochs=3,
        patience=3,
        learning_rate=3e-3,
    )
    args = parser.parse_args(arguments)
    args.act(args)
