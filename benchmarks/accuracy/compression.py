r"""How small MacGNN and CountNet become, and what that costs: embedding tables by product
quantization, and counts of one byte.

A model is trained once a seed, and then served in several forms: its tables as so many codes a row
of 4 or 8 bits (`mag.compression.compress_tables`), its counts as codes of one byte
(`mag.compression.encode_counts`), and both. The form to take is chosen on validation, the smallest
whose AUC there is at most 0.001 below that of the model as it is; the test part tells what it
costs.

Bytes are those of the tables, and of the counts that are kept for serving: the macro rows of all
nodes, as they are held, in a byte each where all of a table fit exactly and else in two or four;
and of the counts at the target exposures and clicks of each key that was seen before the cutoff of
the test part, in four. Heads, keys and recent lists are left as they are, and not counted.

Models are trained on six rolling windows as in accuracy.counts, with the learning rate and weight
decay of least log loss on validation among its trials. Trials that no file of --settings has are
run.

    python benchmarks accuracy.compression run --dataset movielens-1m --root data/movielens-1m \
        --settings benchmarks/accuracy/results/counts-movielens-1m.json \
        --out benchmarks/accuracy/results/compression-movielens-1m.json
    python benchmarks accuracy.compression table benchmarks/accuracy/results/compression-*.json \
        --figure docs/compression.png > benchmarks/accuracy/compression.md
"""

import argparse
import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from records import Record, made_by, make_parser, select, table
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.click_bench import (
    Job,
    Model,
    add_plan_commands,
    found_logs,
    make_loader,
    parts_of,
    read_parts,
    read_trials,
    run_on,
    run_plan,
)
from accuracy.clicks import METRICS
from accuracy.count_data import DATASETS
from accuracy.counts import MODELS as COUNT_MODELS
from accuracy.counts import trials_of
from accuracy.harness import describe_rows, paired, spread
from mag.compression import compress_tables, decode_counts, encode_counts
from mag.loader import ExposureBatch, JoinedBatch, PairBatch
from mag.loader.row_loader import RowLoader
from mag.macro_graph import MacroRows, TargetKeys, TargetView
from mag.schema import CLICKS, SEES
from mag.training import ClickTask, evaluate

MODELS: dict[str, Model] = {name: COUNT_MODELS[name] for name in ('count_net', 'macgnn')}
BITS = (8, 4)
# What is lost of AUC on validation is nothing, up to here.
TOLERANCE = 0.001


class Form(NamedTuple):
    r"""What a model is served as.

    Attributes:
        num_codes: The codes of a row of its tables, which are left as they are without.
        num_bits: The bits of each.
        coded_counts: Whether counts have one byte.
    """

    num_codes: int | None = None
    num_bits: int = 8
    coded_counts: bool = False

    @property
    def name(self) -> str:
        codes = f'{self.num_codes} code{"s" * (self.num_codes != 1)} of {self.num_bits} bits'
        tables = 'tables as they are' if self.num_codes is None else codes
        return f'{tables}{", counts of a byte" if self.coded_counts else ""}'


PLAIN = Form()


def forms_of(embedding_dim: int) -> Iterator[Form]:
    r"""All forms of a model with embeddings of such a size."""
    yield from (PLAIN, PLAIN._replace(coded_counts=True))
    divisors = [number for number in range(embedding_dim, 0, -1) if embedding_dim % number == 0]
    for num_bits in BITS:
        yield from (Form(number, num_bits) for number in divisors)
        # The largest but one: half of a row, or a third.
        yield Form(divisors[1], num_bits, coded_counts=True)


class CodedCounts(nn.Module):
    r"""A model that is given counts as they come back from one byte."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        return self.model(coded(batch))


def coded(batch: Any) -> Any:
    r"""A batch whose counts come back from one byte."""
    if isinstance(batch, JoinedBatch):
        return batch._replace(pairs=coded(batch.pairs), features=coded(batch.features))
    if isinstance(batch, PairBatch):
        user_hops, item_hops = (
            tuple(map(_coded, hops)) for hops in (batch.user_hops, batch.item_hops)
        )
        return batch._replace(user_hops=user_hops, item_hops=item_hops)
    if isinstance(batch, ExposureBatch) and batch.counts is not None:
        return batch._replace(counts=_coded(batch.counts))
    return batch


def _coded(counts: Tensor) -> Tensor:
    return decode_counts(encode_counts(counts))


def size_of_counts(model: Model, test: HeteroData) -> dict[str, int]:
    r"""The bytes of the counts that are kept for serving, as they are and of a byte each."""
    found = {'plain': 0, 'coded': 0}
    if 'pairs' in model.reads:
        for hops in MacroRows(test).hops.values():
            found['plain'] += sum(hop.nbytes for hop in hops)
            found['coded'] += sum(hop.numel() for hop in hops)
    if model.counts:
        views = [view_of(name) for name in test[CLICKS].count_names if model.columns(name)]
        user, item = test[SEES].edge_index
        keys = TargetKeys(test, views, {}, 'accuracy.compression')(user, item, None, {})
        # Exposures and clicks.
        num_counts = 2 * sum(key.unique().numel() for key in keys)
        found['plain'] += 4 * num_counts
        found['coded'] += num_counts
    return found


def view_of(column: str) -> TargetView:
    r"""The view of a column, such as ``'user x item_cluster_50'``."""
    nodes = [part.partition('_')[::2] for part in column.split(' x ')]
    return TargetView(**{node_type: name or 'id' for node_type, name in nodes})


def score(val: RowLoader, sizes: dict[str, int], trained: ClickTask, loader: RowLoader) -> Record:
    r"""What each form of a model takes, and reaches on validation and on the rows of a loader."""
    # What a task of average weights scores with.
    model: Any = trained.model if trained.averaged is None else trained.averaged.module
    (width,) = {part.embedding_dim for part in tables_of(model)}
    found = {}
    for form in forms_of(width):
        served, num_bytes = compressed(model, form)
        metrics = {part: evaluate(served, rows) for part, rows in (('val', val), ('test', loader))}
        counts = sizes['coded' if form.coded_counts else 'plain']
        found[form.name] = {'tables': num_bytes, 'counts': counts, **metrics}
    return found


def compressed(model: nn.Module, form: Form) -> tuple[nn.Module, int]:
    r"""A form of a model, and the bytes of its tables."""
    served = copy.deepcopy(model)
    if form.num_codes is not None:
        tables = compress_tables(served, form.num_codes, form.num_bits).values()
        num_bytes = sum(table.after for table in tables)
    else:
        num_bytes = sum(part.weight.nbytes for part in tables_of(model))
    return CodedCounts(served) if form.coded_counts else served, num_bytes


def tables_of(model: nn.Module) -> list[nn.Embedding]:
    return [part for part in model.modules() if isinstance(part, nn.Embedding)]


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    parts = read_parts(paths[job.dataset, job.protocol])
    model = MODELS[job.model]
    given = parts_of(model, parts)
    val = make_loader(model, given['val'], 8 * args.batch_size)
    sizes = size_of_counts(model, parts.test)
    return run_on(parts, model, job, args, partial(score, val, sizes))


def run(args: argparse.Namespace) -> None:
    logs = [(dataset, 'rolling') for dataset in args.dataset]
    run_plan(args, logs, MODELS, trials_of, run_job, args.jobs, read_trials(args))


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, and which form is chosen."""
    yield '# Smaller models'
    yield ''
    yield (
        'Mean and standard deviation over seeds, served with stale counts, in six rolling windows, '
        'each model trained once a seed and served in all forms. Tables are cut into so many codes '
        'a row, of so many bits, with centroids of their own; those that would not become smaller '
        'are left. Behind a difference to the model as it is, on the test part, the p-value of a '
        'paired t-test over seeds.'
    )
    runs = select(records, purpose='run')
    for title, found in found_logs(runs):
        yield from ('', f'## {title}', '', f'{describe_rows(found[0])}.', '')
        names = [name for name in MODELS if select(found, model=name)]
        yield from (f'- {choice(name, select(found, model=name))}' for name in names)
        for name in names:
            yield from ('', f'### {MODELS[name].title}', '')
            yield from table(HEADER, rows_of_forms(select(found, model=name)))
    yield ''
    yield from made_by(records)


HEADER = (
    'served as', 'KB of tables', 'KB of counts', 'of all bytes', 'AUC of validation', 'AUC',
    'AUC to as it is', 'GAUC', 'logloss', 'logloss to as it is', 'seeds',
)  # fmt: skip


def values_of(form: str, part: str, metric: str, runs: list[Record]) -> list[float]:
    return [run['test'][form][part][metric] for run in runs]


def bytes_of(form: str, runs: list[Record]) -> int:
    of_form = runs[0]['test'][form]
    return of_form['tables'] + of_form['counts']


def change(form: str, metric: str, runs: list[Record]) -> str:
    r"""The difference to the model as it is on the test part, if there are several seeds."""
    if form == PLAIN.name or len(runs) < 2:
        return ''
    return paired(*(values_of(one, 'test', metric, runs) for one in (form, PLAIN.name)))


def rows_of_forms(runs: list[Record]) -> Iterable[list[str]]:
    for form, size in runs[0]['test'].items():
        auc, gauc, logloss = (spread(values_of(form, 'test', metric, runs)) for metric in METRICS)
        yield [
            form, f'{size["tables"] / 1000:,.1f}', f'{size["counts"] / 1000:,.1f}',
            f'{bytes_of(form, runs) / bytes_of(PLAIN.name, runs):.0%}',
            spread(values_of(form, 'val', 'auc', runs)), auc, change(form, 'auc', runs), gauc,
            logloss, change(form, 'logloss', runs), f'{len(runs)}',
        ]  # fmt: skip


def choice(name: str, runs: list[Record]) -> str:
    r"""Which form validation chooses, and what that costs."""
    least = mean(values_of(PLAIN.name, 'val', 'auc', runs)) - TOLERANCE
    good = [form for form in runs[0]['test'] if mean(values_of(form, 'val', 'auc', runs)) >= least]
    chosen = min(good, key=lambda form: bytes_of(form, runs))
    share = bytes_of(chosen, runs) / bytes_of(PLAIN.name, runs)
    aucs = (mean(values_of(form, 'test', 'auc', runs)) for form in (PLAIN.name, chosen))
    difference = change(chosen, 'auc', runs)
    return (
        f'{MODELS[name].title}: validation chooses {chosen}, {share:.0%} of the bytes; '
        'AUC on the test part goes from {:.4f} to {:.4f}'.format(*aucs)
        + (f', {difference}.' if difference else '.')
    )


def draw(records: list[Record], path: Path) -> None:
    r"""One panel a log: the AUC on the test part of each form by its bytes."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    logs = list(found_logs(select(records, purpose='run')))
    figure, all_axes = plt.subplots(
        1, len(logs), figsize=(5 * len(logs), 4), squeeze=False, layout='constrained'
    )
    colors = dict(zip(MODELS, ('#d55e00', '#0072b2'), strict=True))
    for (title, runs), axes in zip(logs, all_axes[0], strict=True):
        for name in MODELS:
            found = select(runs, model=name)
            for form in found[0]['test'] if found else ():
                is_coded, is_plain = 'counts' in form, form == PLAIN.name
                axes.plot(
                    bytes_of(form, found) / 1000, mean(values_of(form, 'test', 'auc', found)),
                    color=colors[name], ms=9 if is_plain else 6, linestyle='none',
                    marker='*' if is_plain else 's' if is_coded else 'o',
                    mfc=colors[name] if '4 bits' not in form else 'none',
                    label=MODELS[name].title if is_plain else None,
                )  # fmt: skip
        axes.set_xscale('log')
        axes.set_xlabel(
            'KB of tables and counts\n'
            '(star: as it is, square: counts of a byte, open: codes of 4 bits)',
            fontsize=8,
        )
        axes.set_ylabel('AUC')
        axes.set_title(title)
        axes.spines[['top', 'right']].set_visible(False)
    all_axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.compression', __doc__)
    runner = add_plan_commands(parser, DATASETS, MODELS, run, render, draw)
    runner.add_argument('--settings', nargs='*', default=[], help='JSON files of accuracy.counts')
    args = parser.parse_args(arguments)
    args.act(args)
