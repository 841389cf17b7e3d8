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
Results are appended after each run, so the command can be stopped and given again:

    python benchmarks/accuracy.py run --dataset movielens-1m --root data/movielens-1m \
        --protocol window --out benchmarks/results/accuracy-movielens-1m.json
    python benchmarks/accuracy.py table benchmarks/results/accuracy-*.json \
        --findings benchmarks/results/accuracy-findings.md > benchmarks/accuracy.md

Conversions, of GMCM and its variants, are in conversion_accuracy.py:

    python benchmarks/accuracy.py run-conversion --dataset market-0.5 market-1 market-2 \
        --out benchmarks/results/conversion-market.json
    python benchmarks/accuracy.py table-conversion benchmarks/results/conversion-*.json \
        --findings benchmarks/results/conversion-findings.md > benchmarks/conversion.md

Search and recommendation, of SRJGraph and what it is compared with, are in search_accuracy.py:

    python benchmarks/accuracy.py run-search --dataset market occasions \
        --out benchmarks/results/search-market.json
    python benchmarks/accuracy.py table-search benchmarks/results/search-*.json \
        --findings benchmarks/results/search-findings.md > benchmarks/search.md

Items with several modalities, of HyperCTR and what it is compared with, are in video_accuracy.py:

    python benchmarks/accuracy.py run-video --dataset market \
        --out benchmarks/results/video-market.json
    python benchmarks/accuracy.py run-video --dataset tiktok --root data/tiktok \
        --out benchmarks/results/video-tiktok.json
    python benchmarks/accuracy.py table-video benchmarks/results/video-*.json \
        --findings benchmarks/results/video-findings.md > benchmarks/video.md

Protocols, or halves of the models, can run side by side, each with an --out and with --checkpoints
of its own.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import conversion_accuracy
import search_accuracy
import video_accuracy
from baselines import DeepCTR, LightGCN
from harness import Record, Results, Steps, made_by, prepare, print_table, select, spread, stamp
from lightning import seed_everything
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from mag.datasets import KuaiRand, MovieLens
from mag.loader import PairLoader
from mag.models import MacGNN
from mag.training import ClickTask, evaluate, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

PACKAGES = ('pyg-mag', 'torch', 'torch-geometric', 'deepctr-torch')
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
        item_order: The order of the items' recent lists, see
            :class:`~mag.transforms.RecentNeighbors`.
    """

    title: str
    build: Callable[[HeteroData, HeteroData, float], nn.Module]
    tuned_as: str | None = None
    item_order: str = 'time'


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
        partial(macgnn, attention='released', mask_zero=False, dice='released'),
    ),
    'macgnn_released_lists': Model(
        'MacGNN (released, item lists by user id)',
        partial(macgnn, attention='released', mask_zero=False, dice='released'),
        tuned_as='macgnn_released',
        item_order='user',
    ),
    'macgnn_lists': Model(
        'MacGNN (paper attention, item lists by user id)',
        macgnn,
        tuned_as='macgnn',
        item_order='user',
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
        partial(macgnn, attention='released'),
        'macgnn',
    ),
    'no_weighting': Model('MacGNN w/o weighting', partial(macgnn, weighting=False), 'macgnn'),
    'no_recent': Model('MacGNN w/o recent', partial(macgnn, recent=False), 'macgnn'),
    'no_highorder': Model('MacGNN w/o highorder', partial(macgnn, num_hops=1), 'macgnn'),
    'no_itemgraph': Model('MacGNN w/o itemgraph', partial(macgnn, item_graph=False), 'macgnn'),
}


class Bench:
    r"""Runs of one protocol on one log."""

    def __init__(self, dataset: str, protocol: str, data: HeteroData, args: argparse.Namespace):
        self.key = {'dataset': dataset, 'protocol': protocol}
        self.args = args
        self.temperature = DATASETS[dataset].temperature
        self.split = list(PROTOCOLS[protocol].split(data))

    @lru_cache(maxsize=2)  # noqa: B019  (a bench lives as long as its parts are needed)
    def parts(self, item_order: str) -> list[HeteroData]:
        coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(self.split[0])
        to_macro = Compose([RecentNeighbors(20, item_order), coarsen])
        return [to_macro(part) for part in self.split]

    def run(
        self, name: str, seed: int, setting: dict[str, float], results: Results, with_test: bool
    ) -> Record:
        r"""Trains one model, unless it was trained before; scores it on test only if
        :obj:`with_test`."""
        model = MODELS[name]
        train, val, test = self.parts(model.item_order)
        val_loader, test_loader = (
            PairLoader(part, 4 * self.args.batch_size) for part in (val, test)
        )
        train_loader = PairLoader(train, self.args.batch_size, shuffle=True, seed=seed)
        seed_everything(seed, verbose=False)
        task = ClickTask(model.build(train, val, self.temperature), **setting)
        setting_name = '-'.join(f'{value:g}' for value in setting.values())
        steps, start = Steps(), time.perf_counter()
        fit(
            task,
            train_loader,
            val_loader,
            directory=str(
                Path(self.args.checkpoints, *self.key.values(), f'{name}-{setting_name}-{seed}')
            ),
            max_epochs=self.args.max_epochs,
            patience=self.args.patience,
            seed=seed,
            validate_every=min(len(train_loader), max(20, len(train_loader) // 6)),
            progress=False,
            accelerator=self.args.accelerator,
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
        trials = []
        for learning_rate, weight_decay in self.args.trials:
            setting = {'learning_rate': learning_rate, 'weight_decay': weight_decay}
            found = results.find(**self.key, **setting, purpose='tune', model=name)
            if not found:
                found = [self.run(name, 0, setting, results, with_test=False)]
                report(found[0])
                results.append({**found[0], 'purpose': 'tune'})
            trials.append((found[0]['val']['auc'], setting))
        return max(trials, key=lambda trial: trial[0])[1]


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
    data = DATASETS[args.dataset].load(args.root)
    results = Results(Path(args.out))
    for protocol in args.protocol:
        bench = Bench(args.dataset, protocol, data, args)
        for name in args.models:
            setting = bench.tune(name, results)
            for seed in range(args.seeds):
                key = {**bench.key, 'purpose': 'run', 'model': name, 'seed': seed}
                if not results.find(**key):
                    record = bench.run(name, seed, setting, results, with_test=True)
                    report(record)
                    results.append({**record, 'purpose': 'run'})


def table(args: argparse.Namespace) -> None:
    print_table(args, render)


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
            train, val, test = runs[0]['rows']
            yield from section(
                f'{DATASETS[dataset].title}, {PROTOCOLS[protocol].title}',
                f'{train:,} rows trained, {val:,} validated, {test:,} tested; '
                f'`{PROTOCOLS[protocol].split!r}`.',
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
    yield '| model | AUC | GAUC | logloss | seeds | learning rate | weight decay | epochs |'
    yield '| --- | --- | --- | --- | --- | --- | --- | --- |'
    for name, runs in rows.items():
        yield row(name, runs)
    yield ''
    yield from made_by([record for runs in rows.values() for record in runs])


def row(title: str, runs: list[Record]) -> str:
    cells = [title]
    cells += [spread([record['test'][name] for record in runs]) for name in METRICS]
    cells += [
        str(len(runs)),
        f'{runs[0]["learning_rate"]:g}',
        f'{runs[0]["weight_decay"]:g}',
        f'{mean(record["cost"]["epochs"] for record in runs):.1f}',
    ]
    return f'| {" | ".join(cells)} |'


def trial(text: str) -> tuple[float, float]:
    learning_rate, weight_decay = text.split(':')
    return float(learning_rate), float(weight_decay)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    runner = commands.add_parser(
        'run', help='train and score', formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    runner.add_argument('--dataset', choices=DATASETS, required=True, help='which log')
    runner.add_argument('--root', required=True, help='folder with raw/, and of the cache')
    runner.add_argument('--out', required=True, help='JSON file that results are appended to')
    runner.add_argument(
        '--protocol', nargs='+', choices=PROTOCOLS, default=['window', 'rolling'],
        metavar='PROTOCOL', help=f"which of {', '.join(PROTOCOLS)}",
    )  # fmt: skip
    runner.add_argument(
        '--models', nargs='+', choices=MODELS, default=list(MODELS), metavar='MODEL',
        help=f"which of {', '.join(MODELS)}",
    )  # fmt: skip
    runner.add_argument('--seeds', type=int, default=5, help='runs of each model')
    runner.add_argument(
        '--trials', nargs='+', type=trial, default=TRIALS, metavar='LEARNING_RATE:WEIGHT_DECAY',
        help='what each model is tuned over',
    )  # fmt: skip
    runner.add_argument(
        '--checkpoints', default='output/accuracy', help='folder of the runs, to resume from'
    )
    runner.add_argument('--batch-size', type=int, default=1024, help='rows a step')
    runner.add_argument('--max-epochs', type=int, default=20, help='at most this many passes')
    runner.add_argument('--patience', type=int, default=5, help='validations without improvement')
    runner.add_argument('--threads', type=int, default=1, help='threads of torch')
    runner.add_argument('--accelerator', default='cpu', help='cpu, cuda, ... for Lightning')
    runner.set_defaults(act=run)
    tabler = commands.add_parser('table', help='print the Markdown table of result files')
    tabler.add_argument('results', nargs='+', help='JSON files of run')
    tabler.add_argument('--findings', help='Markdown to put before the tables')
    tabler.set_defaults(act=table)
    conversion_accuracy.add_commands(commands)
    search_accuracy.add_commands(commands)
    video_accuracy.add_commands(commands)
    return parser.parse_args()


if __name__ == '__main__':
    args = parse_args()
    args.act(args)
