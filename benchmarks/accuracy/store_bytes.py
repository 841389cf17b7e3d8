r"""What counts of one byte in a store cost MacGNN: AUC and GAUC against exact counts of two bytes.

Of each log two stores are built, with `counts='exact'` and with `counts='log'`, which differ in
hop 2 alone. MacGNN is trained from either by `StoreLoader`, with the same seeds, and stops by the
log loss of validation. Six rolling windows, macro nodes, temperature and the running average of the
weights are those of accuracy.counts, and learning rate and weight decay what it chose for MacGNN,
for MovieLens-100K on MovieLens-1M.

    python benchmarks accuracy.store_bytes run --dataset kuairand --root data/kuairand \
        --weight-decay 3e-4 --out benchmarks/accuracy/results/store-bytes-kuairand.json
    python benchmarks accuracy.store_bytes run --dataset movielens-100k \
        --root data/movielens-100k --weight-decay 1e-5 \
        --out benchmarks/accuracy/results/store-bytes-movielens-100k.json
    python benchmarks accuracy.store_bytes table \
        benchmarks/accuracy/results/store-bytes-*.json > benchmarks/accuracy/store_bytes.md
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from lightning import seed_everything
from records import Record, made_by, make_parser, select, table

from accuracy.clicks import METRICS
from accuracy.count_data import DATASETS, NUM_RECENT
from accuracy.harness import (
    add_commands,
    describe_rows,
    difference_to,
    fit_run,
    rows_of,
    run_missing,
    spread,
    value_of,
)
from mag.compression import decode_counts, encode_counts
from mag.datasets import LogSchema
from mag.files import replacing
from mag.loader import PairBatch
from mag.models import MacGNN
from mag.schema import CLICKS, NEIGHBOR_TYPE
from mag.store import BuildPlan, Store, StoreLoader, build
from mag.training import ClickTask, evaluate

GROUPS: dict[str, Any] = {'user': 20, 'item': 'category'}
COLUMNS = {
    'user': 'user', 'item': 'item', 'time': 'time', 'label': 'click',
    'item_attributes': ['category'],
}  # fmt: skip


class Counts(NamedTuple):
    r"""How a store keeps hop 2.

    Args:
        title: What the table calls it.
    """

    title: str


COUNTS = {'exact': Counts('two bytes, exact'), 'log': Counts('one byte, on a log scale')}


def write_log(dataset: str, root: str, path: Path) -> None:
    r"""Writes the exposures of a log, in the order of time, for a store."""
    data = DATASETS[dataset].load(root)
    clicks = data[CLICKS]
    user, item = clicks.edge_label_index.numpy()
    log = {
        'user': user,
        'item': item,
        'time': clicks.edge_label_time.numpy(),
        'click': clicks.edge_label.long().numpy(),
        'category': data['item'].category.numpy()[item],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(log), temporary, row_group_size=2**16)


def open_store(dataset: str, counts: str, args: argparse.Namespace) -> Store:
    r"""The store of a log, built unless it is there."""
    folder = Path(args.checkpoints, dataset)
    path = folder / 'log.parquet'
    if not path.exists():
        write_log(dataset, args.root, path)
    plan = BuildPlan(
        LogSchema(str(path), COLUMNS), folder / f'store-{counts}', GROUPS, num_windows=6,
        num_recent=NUM_RECENT, counts=counts,
    )  # fmt: skip
    return Store(build(plan, progress=False))


def bytes_of(store: Store) -> dict[str, float]:
    r"""The bytes of hop 2 of a user and of an item."""
    return {
        name: sum(size for table, size in tables.items() if table.startswith('second'))
        for name, tables in store.bytes_per_node.items()
    }


def share_changed(batches: Iterable[PairBatch]) -> float:
    r"""Of the counts of hop 2 that are not 0, the share that one byte does not tell exactly."""
    num_counts = num_changed = 0
    for batch in batches:
        for _, second in (batch.user_hops, batch.item_hops):
            found = second[second > 0]
            num_counts += found.numel()
            num_changed += int((decode_counts(encode_counts(found)) != found).sum())
    return num_changed / num_counts


def run_one(dataset: str, name: str, seed: int, args: argparse.Namespace) -> Record:
    store = open_store(dataset, name, args)
    train = StoreLoader(store, 'train', args.batch_size, shuffle=True, seed=seed)
    val, test = (StoreLoader(store, part, 8 * args.batch_size) for part in ('val', 'test'))
    seed_everything(seed, verbose=False)
    model = MacGNN.from_data(store.graph(), temperature=DATASETS[dataset].temperature)
    task = ClickTask(model, args.learning_rate, args.weight_decay, average=0.99)
    start = time.perf_counter()
    fit_run(
        task, train, val, (dataset, name), seed, args, monitor='logloss',
        validate_every=min(len(train), max(20, len(train) // 6)),
    )  # fmt: skip
    return {
        'seconds': time.perf_counter() - start,
        'weight_decay': args.weight_decay,
        'rows': [len(loader.dataset) for loader in (train, val, test)],
        'bytes': bytes_of(store),
        'changed': share_changed(test),
        'val': evaluate(task, val),
        'test': evaluate(task, test),
    }


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table, one section a log."""
    yield '# Counts of one byte in a store'
    yield ''
    yield (
        'Mean and standard deviation over seeds of MacGNN on the test part, trained from a store '
        'whose hop 2 has two bytes a count and from one where it has one byte, in six rolling '
        'windows. Behind a difference, the p-value of a paired t-test over seeds. Bytes are those '
        'of hop 2 as of all windows.'
    )
    for dataset, log in DATASETS.items():
        runs = sorted(select(records, dataset=dataset), key=lambda run: run['seed'])
        if runs:
            changed = mean(run['changed'] for run in select(runs, model='exact'))
            yield from ('', f'## {log.title}', '')
            yield (
                f'{describe_rows(runs[0])}. Of the counts of hop 2 that test rows read and that '
                f'are not 0, one byte changes {changed:.0%}.'
            )
            yield ''
            yield from table(HEADER, rows_of(runs, COUNTS, partial(cells, runs)))
    yield ''
    yield from made_by(records)


HEADER = (
    'hop 2', *(f'bytes of {name}s' for name in NEIGHBOR_TYPE), 'AUC of validation',
    *(name for metric in ('AUC', 'GAUC', 'logloss') for name in (metric, f'{metric} to exact')),
    'seeds',
)  # fmt: skip


def cells(all_runs: list[Record], name: str, runs: list[Record]) -> list[str]:
    found = [f'{runs[0]["bytes"][node_type]:,.0f}' for node_type in NEIGHBOR_TYPE]
    found.append(spread([run['val']['auc'] for run in runs]))
    for metric in METRICS:
        found.append(spread([run['test'][metric] for run in runs]))
        found.append(difference_to('exact', all_runs, name, partial(value_of, metric)))
    return found


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.store_bytes', __doc__)
    add_commands(
        parser, DATASETS, COUNTS, partial(run_missing, run_one), render,
        checkpoints='output/store_bytes', batch_size=1024, max_epochs=20, patience=6,
        learning_rate=1e-2,
    )  # fmt: skip
    args = parser.parse_args(arguments)
    args.act(args)
