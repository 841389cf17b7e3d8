r"""How well MacGNN, its ablations and published models predict clicks.

Every model sees the same rows, in batches of the same size, with the same optimizer and the same
early stopping on validation; the test part is scored once a run. Two protocols: the paper's one
training window (labels from q80 to q88 of time, validation to q90, test above), and rolling windows
(training labels from q30 on). Learning rate and weight decay are chosen on validation with seed 0,
in the same number of trials for each model.

Two more ask for one thing each. "official" is the protocol of MacGNN's released code, which stops
on the test part: its numbers are optimistic, and are there only to be compared with those of that
code. "rolling-N" are rolling windows, N of them.

The folder --root holds the raw files, raw/ml-1m/*.dat or raw/KuaiRand-Pure/data/*.csv.
Results are appended after each run, so the command can be stopped and given again. Protocols, or
halves of the models, can run side by side, each with an --out and with --checkpoints of its own:

    python benchmarks accuracy.clicks run --dataset movielens-1m --root data/movielens-1m \
        --protocol window --out benchmarks/accuracy/results/accuracy-movielens-1m.json
    python benchmarks accuracy.clicks table benchmarks/accuracy/results/accuracy-*.json \
        --findings benchmarks/accuracy/results/accuracy-findings.md \
        > benchmarks/accuracy/clicks.md
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, Results, made_by, make_parser, select, stamp, table
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from accuracy.harness import PACKAGES, add_commands, describe_rows, fit_run, prepare, spread, tune
from accuracy.pair_models import DeepCTR, LightGCN
from mag.datasets import KuaiRand, MovieLens
from mag.loader import PairLoader
from mag.models import MacGNN
from mag.training import ClickTask, evaluate
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

TRIALS = ((1e-2, 5e-5), (1e-2, 1e-5), (3e-3, 5e-5), (3e-3, 1e-5))
METRICS = ('auc', 'gauc', 'logloss')


class Official:
    r"""The split of MacGNN's released code: all labels from q80 to q90 train, and the test part is
    also the one to stop on."""

    def __call__(self, data: HeteroData) -> list[HeteroData]:
        train = TemporalSplit(0.8, 0.9, 0.95, num_windows=1)(data)[0]
        test = TemporalSplit(0.8, 0.88, 0.9, num_windows=1)(data)[2]
        return [train, test, test]

    def __repr__(self) -> str:
        return 'Official()'


class Protocol(NamedTuple):
    r"""How training labels are chosen."""

    title: str
    split: Callable[[HeteroData], Sequence[HeteroData]]


PROTOCOLS = {
    'window': Protocol('one window', TemporalSplit(train_start=0.8, num_windows=1)),
    'official': Protocol(
        "one window as in MacGNN's released code, stopped on test (optimistic)", Official()
    ),
    'rolling': Protocol('6 rolling windows', TemporalSplit(num_windows=6)),
}
# The same range of training labels in more or fewer windows.
GRANULARITIES = {
    count: 'rolling' if count == 6 else f'rolling-{count}' for count in (1, 3, 6, 12, 24, 48, 96)
}
PROTOCOLS |= {
    name: Protocol(f'{count} rolling windows', TemporalSplit(num_windows=count))
    for count, name in GRANULARITIES.items()
    if name != 'rolling'
}


class Dataset(NamedTuple):
    r"""A click log and the temperature that MacGNN's authors chose for its like."""

    title: str
    load: Callable[[str], HeteroData]
    temperature: float


DATASETS = {
    'movielens-1m': Dataset('MovieLens-1M', lambda root: MovieLens(root, '1m')[0], 1.9),
    'kuairand': Dataset('KuaiRand-Pure', lambda root: KuaiRand(root)[0], 0.7),
}


class Model(NamedTuple):
    r"""A row of the table.

    Args:
        title: What the table calls it.
        build: From the training part, the validation part and MacGNN's temperature.
        tuned_as: The model whose learning rate and weight decay it takes, itself by default.
            An ablation changes nothing but what it leaves out.
        list_form: The form of the recent lists, see :class:`~mag.transforms.RecentNeighbors`.
    """

    title: str
    build: Callable[[HeteroData, HeteroData, float], nn.Module]
    tuned_as: str | None = None
    list_form: str = 'paper'


def macgnn(train: HeteroData, val: HeteroData, temperature: float, **kwargs: Any) -> nn.Module:
    return MacGNN.from_data(train, temperature=temperature, **kwargs)


def deepctr(train: HeteroData, val: HeteroData, temperature: float, **kwargs: Any) -> nn.Module:
    return DeepCTR.from_data(train, **kwargs)


def lightgcn(train: HeteroData, val: HeteroData, temperature: float) -> nn.Module:
    return LightGCN.from_data(train, val)


MODELS = {
    'macgnn': Model('MacGNN (paper attention)', macgnn),
    'macgnn_released': Model(
        'MacGNN (released)',
        partial(macgnn, form='released'),
    ),
    'macgnn_released_lists': Model(
        'MacGNN (released, item lists by user id)',
        partial(macgnn, form='released'),
        tuned_as='macgnn_released',
        list_form='released',
    ),
    'macgnn_lists': Model(
        'MacGNN (paper attention, item lists by user id)',
        macgnn,
        tuned_as='macgnn',
        list_form='released',
    ),
    'wide_deep': Model('Wide & Deep', partial(deepctr, architecture='wide_deep')),
    'wide_deep_ids': Model(
        'Wide & Deep w/o user attributes',
        partial(deepctr, architecture='wide_deep', user_attributes=False),
        tuned_as='wide_deep',
    ),
    'deepfm': Model('DeepFM', partial(deepctr, architecture='deepfm')),
    'din': Model('DIN', partial(deepctr, architecture='din')),
    'dien': Model('DIEN', partial(deepctr, architecture='dien')),
    'lightgcn': Model('LightGCN', lightgcn),
    'no_attention': Model(
        'MacGNN w/o attention (released attention alone)',
        partial(macgnn, attention=False),
        'macgnn',
    ),
    'no_weighting': Model('MacGNN w/o weighting', partial(macgnn, weighting=False), 'macgnn'),
    'no_recent': Model('MacGNN w/o recent', partial(macgnn, recent=False), 'macgnn'),
    'no_highorder': Model('MacGNN w/o highorder', partial(macgnn, num_hops=1), 'macgnn'),
    'no_itemgraph': Model('MacGNN w/o itemgraph', partial(macgnn, item_graph=False), 'macgnn'),
}


class Steps:
    r"""Counts the steps of this process, so that seconds and epochs stay of one run: what was
    trained before a kill is in neither."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self) -> None:
        self.count += 1


class Bench:
    r"""Runs of one protocol on one log."""

    def __init__(self, dataset: str, protocol: str, data: HeteroData, args: argparse.Namespace):
        self.key = {'dataset': dataset, 'protocol': protocol}
        self.args = args
        self.temperature = DATASETS[dataset].temperature
        self.split = list(PROTOCOLS[protocol].split(data))

    @lru_cache(maxsize=2)  # noqa: B019  (a bench lives as long as its parts are needed)
    def parts(self, list_form: str) -> list[HeteroData]:
        coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(self.split[0])
        to_macro = Compose([RecentNeighbors(20, list_form), coarsen])
        return [to_macro(part) for part in self.split]

    def run(
        self, name: str, seed: int, setting: dict[str, float], results: Results, with_test: bool
    ) -> Record:
        r"""Trains one model, unless it was trained before; scores it on test only if
        :obj:`with_test`."""
        model = MODELS[name]
        train, val, test = self.parts(model.list_form)
        val_loader, test_loader = (
            PairLoader(part, 4 * self.args.batch_size) for part in (val, test)
        )
        train_loader = PairLoader(train, self.args.batch_size, shuffle=True, seed=seed)
        seed_everything(seed, verbose=False)
        task = ClickTask(model.build(train, val, self.temperature), **setting)
        setting_name = '-'.join(f'{value:g}' for value in setting.values())
        steps, start = Steps(), time.perf_counter()
        fit_run(
            task,
            train_loader,
            val_loader,
            (*self.key.values(), f'{name}-{setting_name}'),
            seed,
            self.args,
            validate_every=min(len(train_loader), max(20, len(train_loader) // 6)),
            callbacks=[steps],
        )
        tried = results.find(**self.key, **setting, purpose='tune', model=name, seed=seed)
        if tried:
            cost = tried[0]['cost']
        else:
            seconds = time.perf_counter() - start
            cost = {'seconds': seconds, 'epochs': steps.count / len(train_loader)}
        record = {
            **self.key,
            'model': name,
            'seed': seed,
            **setting,
            'cost': cost,
            'val': evaluate(task, val_loader),
            'rows': [len(loader.dataset) for loader in (train_loader, val_loader, test_loader)],
            **stamp(*PACKAGES),
        }
        if with_test:
            if isinstance(task.model, LightGCN):
                task.model.read_history(test)
            record['test'] = evaluate(task, test_loader)
        return record

    def tune(self, name: str, results: Results) -> dict[str, float]:
        r"""The learning rate and weight decay with the best validation AUC."""
        name = MODELS[name].tuned_as or name

        def run_trial(setting: dict[str, float]) -> Record:
            record = self.run(name, 0, setting, results, with_test=False)
            report(record)
            return record

        wanted = {**self.key, 'model': name}
        return tune(run_trial, self.args.trials, wanted, results, itemgetter('auc'))


def report(record: Record) -> None:
    values = record['test' if 'test' in record else 'val']
    print(
        f'{record["dataset"]} {record["protocol"]} {record["model"]} seed {record["seed"]} '
        f'lr {record["learning_rate"]:g} wd {record["weight_decay"]:g}: '
        f'{"test" if "test" in record else "validation"} '
        + ' '.join(f'{name} {values[name]:.4f}' for name in METRICS)
        + f' in {record["cost"]["epochs"]:.1f} epochs, {record["cost"]["seconds"]:.0f} s',
        flush=True,
    )


def run(args: argparse.Namespace) -> None:
    prepare(args.threads)
    results = Results(Path(args.out))
    for dataset, protocol in product(args.dataset, args.protocol):
        bench = Bench(dataset, protocol, DATASETS[dataset].load(args.root), args)
        for name in args.models:
            setting = bench.tune(name, results)
            for seed in range(args.seeds):
                key = {**bench.key, 'purpose': 'run', 'model': name, 'seed': seed}
                if not results.find(**key):
                    record = bench.run(name, seed, setting, results, with_test=True)
                    report(record)
                    results.append({**record, 'purpose': 'run'})


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table, one section a log and protocol."""
    yield '# Accuracy'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part; higher AUC and GAUC and lower '
        'logloss are better. Selection (learning rate, weight decay, stopping) looks at validation '
        'only, but for the section marked optimistic. Ablations take the settings of MacGNN (paper '
        'attention). LightGCN propagates over one graph, the clicks before the first cutoff in '
        'training and those before the test part in the test; all others read each row as of its '
        'own window.'
    )
    for dataset, protocol in product(DATASETS, ('window', 'official', 'rolling')):
        runs = select(records, dataset=dataset, protocol=protocol, purpose='run')
        if runs:
            yield from section(
                f'{DATASETS[dataset].title}, {PROTOCOLS[protocol].title}',
                f'{describe_rows(runs[0])}; `{PROTOCOLS[protocol].split!r}`.',
                {
                    model.title: [run for run in runs if run['model'] == name]
                    for name, model in MODELS.items()
                },
            )
    for dataset in DATASETS:
        rows = {
            f'{count} window{"s" * (count > 1)}': select(
                records, dataset=dataset, protocol=protocol, purpose='run', model='macgnn'
            )
            for count, protocol in sorted(GRANULARITIES.items())
        }
        if any(runs for count, runs in rows.items() if count != '6 windows'):
            yield from section(
                f'{DATASETS[dataset].title}, how many windows',
                'MacGNN (paper attention), the same range of training labels cut into more or '
                'fewer windows; with more of them fewer rows lack a history. Learning rate and '
                'weight decay are those chosen with 6 windows.',
                rows,
            )


def section(title: str, text: str, rows: dict[str, list[Record]]) -> Iterable[str]:
    rows = {name: runs for name, runs in rows.items() if runs}
    yield from ('', f'## {title}', '', text, '')
    yield from table(
        ['model', 'AUC', 'GAUC', 'logloss', 'seeds', 'learning rate', 'weight decay', 'epochs'],
        [row(name, runs) for name, runs in rows.items()],
    )
    yield ''
    yield from made_by([record for runs in rows.values() for record in runs])


def row(title: str, runs: list[Record]) -> list[str]:
    return [
        title,
        *(spread([record['test'][name] for record in runs]) for name in METRICS),
        f'{len(runs)}',
        f'{runs[0]["learning_rate"]:g}',
        f'{runs[0]["weight_decay"]:g}',
        f'{mean(record["cost"]["epochs"] for record in runs):.1f}',
    ]


def trial(text: str) -> tuple[float, float]:
    learning_rate, weight_decay = text.split(':')
    return float(learning_rate), float(weight_decay)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.clicks', __doc__)
    runner = add_commands(
        parser,
        DATASETS,
        MODELS,
        run,
        render,
        checkpoints='output/accuracy',
        batch_size=1024,
        max_epochs=20,
        patience=5,
    )
    runner.add_argument(
        '--protocol', nargs='+', choices=PROTOCOLS, default=['window', 'rolling'],
        metavar='PROTOCOL', help=f"which of {', '.join(PROTOCOLS)}",
    )  # fmt: skip
    runner.add_argument(
        '--trials', nargs='+', type=trial, default=TRIALS, metavar='LEARNING_RATE:WEIGHT_DECAY',
        help='what each model is tuned over',
    )  # fmt: skip
    args = parser.parse_args(arguments)
    args.act(args)
