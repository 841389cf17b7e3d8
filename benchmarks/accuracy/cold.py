r"""How well clicks of users and items are predicted that no training label has named.

Of each log, a tenth of the users and of the items lose their labels in training and validation but
keep their history, and another tenth has nothing at all before the test part; whom it meets is
drawn anew with each seed. What a node has is then read off the parts: it is *trained* if a label of
training names it, has *history* if an exposure before the cutoff of the test part does, and else
*none*. Rows of cold users are those with a trained item, and rows of cold items those with a
trained user. The rows of the log that :class:`~mag.transforms.TemporalSplit` leaves out otherwise,
those of nodes without a click, are kept.

Learning rate and weight decay are those that are best for CountNet on validation with seed 0, and
all other things are as in accuracy.counts.

    python benchmarks accuracy.cold run --dataset kuairand market --root data/kuairand \
        --out benchmarks/accuracy/results/cold.json
    python benchmarks accuracy.cold table benchmarks/accuracy/results/cold.json \
        > benchmarks/accuracy/cold.md
"""

import argparse
import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from records import Record, Results, make_parser, select, stamp, table
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from accuracy.count_bench import Bench, Model
from accuracy.count_data import DATASETS
from accuracy.harness import (
    PACKAGES,
    add_commands,
    difference_to,
    prepare,
    score_groups,
    sections,
    spread,
)
from mag.schema import CLICKS, SEES, click_attributes, label_attributes
from mag.training import ClickTask, predict
from mag.transforms import TemporalSplit

# Of the users, and of the items, that which keeps its history alone, and that which has nothing.
SHARE = 0.1
STATES = ('trained', 'history', 'none')
GROUPS = {
    'all trained': ('trained', 'trained'),
    'users with history alone': ('history', 'trained'),
    'users with nothing': ('none', 'trained'),
    'items with history alone': ('trained', 'history'),
    'items with nothing': ('trained', 'none'),
}
MODELS = {
    'count_net': Model('CountNet'),
    'id_dropout': Model('with ids dropped, 0.3', {'id_dropout': 0.3}),
    'no_ids': Model('w/o ids', {'ids': False}),
    'no_counts': Model('w/o counts', {'counts': False}),
}


class ColdBench(Bench):
    r"""A log of which some users and items have no labels in training."""

    models = MODELS

    def __init__(self, dataset: str, args: argparse.Namespace, seed: int) -> None:
        self.seed = seed
        super().__init__(dataset, args)
        states = [
            state_of(self.train, self.test, node_type, row)
            for row, node_type in enumerate(('user', 'item'))
        ]
        self.groups = {
            name: (states[0] == STATES.index(user)) & (states[1] == STATES.index(item))
            for name, (user, item) in GROUPS.items()
        }

    def split(self) -> tuple[HeteroData, Sequence[HeteroData]]:
        log = DATASETS[self.dataset].load(self.args.root)
        parts = TemporalSplit(num_windows=6, keep_cold=True)(log)
        generator = torch.Generator().manual_seed(self.seed)
        draws = [
            torch.rand(log[node_type].num_nodes, generator=generator)
            for node_type in ('user', 'item')
        ]
        unlabelled, unseen = ([draw < share for draw in draws] for share in (2 * SHARE, SHARE))
        cutoff = parts[-1][CLICKS].cutoff
        log = without(log, unseen, unseen, cutoff)
        train, val, test = (without(part, unlabelled, unseen, cutoff) for part in parts)
        return log, (train, val, test)

    def score(self, task: ClickTask, part: HeteroData) -> dict[str, dict[str, float]]:
        r"""AUC and log loss of each group of rows."""
        probability = predict(task, self.rows(part))['click']
        return score_groups(probability, part[CLICKS].edge_label, self.groups)


def without(
    data: HeteroData, unlabelled: list[Tensor], unseen: list[Tensor], cutoff: Tensor
) -> HeteroData:
    r"""A log or a part without some of what was before a cutoff.

    Args:
        data: The log, or the part.
        unlabelled: Which users, and which items, have no labels before the cutoff.
        unseen: Which users, and which items, have no history before it.
        cutoff: That of the test part.
    """

    def keep(index: Tensor, time: Tensor, dropped: list[Tensor]) -> Tensor:
        return (time >= cutoff) | ~(dropped[0][index[0]] | dropped[1][index[1]])

    edges = {
        edge_type: keep(data[edge_type].edge_index, data[edge_type].time, unseen)
        for edge_type in (CLICKS, SEES)
        if edge_type in data.edge_types
    }
    clicks = data[CLICKS]
    return selected(data, edges, keep(clicks.edge_label_index, clicks.edge_label_time, unlabelled))


def selected(
    data: HeteroData, edges: Mapping[tuple[str, str, str], Tensor], labels: Tensor
) -> HeteroData:
    r"""A log or a part with some of its events and of its labels only.

    Args:
        data: The log, or the part.
        edges: By the type of events, which are kept.
        labels: Which labels are kept.
    """
    data = copy.copy(data)
    chosen = [(CLICKS, name, labels) for name in label_attributes(data)]
    chosen += [(CLICKS, name, edges[CLICKS]) for name in click_attributes(data)]
    if SEES in edges:
        chosen += [
            (SEES, name, edges[SEES])
            for name, value in data[SEES].items()
            if isinstance(value, Tensor)
        ]
    for edge_type, name, kept in chosen:
        value = data[edge_type][name]
        data[edge_type][name] = value[:, kept] if name.endswith('_index') else value[kept]
    return data


def state_of(train: HeteroData, test: HeteroData, node_type: str, row: int) -> Tensor:
    r"""For each row of the test part the place in STATES of its user, or of its item."""
    state = torch.full((test[node_type].num_nodes,), STATES.index('none'))
    state[test[SEES].edge_index[row]] = STATES.index('history')
    state[train[CLICKS].edge_label_index[row]] = STATES.index('trained')
    return state[test[CLICKS].edge_label_index[row]]


def run(args: argparse.Namespace) -> None:
    prepare(args.threads)
    results = Results(Path(args.out))
    for dataset in args.dataset:
        for seed in tqdm(range(args.seeds)):
            bench = ColdBench(dataset, args, seed)
            if seed == 0:
                setting = bench.tune('count_net', results)
            for name in args.models:
                wanted = {'dataset': dataset, 'model': name, 'seed': seed, 'purpose': 'run'}
                if results.find(**wanted):
                    continue
                task = bench.fit(name, seed, setting)
                results.append(
                    {
                        **wanted,
                        **setting,
                        'rows': {group: int(rows.sum()) for group, rows in bench.groups.items()},
                        'test': bench.score(task, bench.test),
                        'fresh': bench.score(task, bench.fresh),
                        **stamp(*PACKAGES),
                    }
                )


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table, one section a log."""
    yield '# Users and items without labels in training'
    yield ''
    yield (
        f'AUC on the test part, mean and standard deviation over seeds, each of which draws '
        f'other nodes: {SHARE:.0%} of the users and of the items keep their history and lose '
        f'their labels before the test part, {SHARE:.0%} have nothing before it. Cold users are '
        f'scored with trained items, and cold items with trained users. In brackets the '
        f'difference to CountNet and the p of a paired t-test over seeds.'
    )
    yield from sections(records, DATASETS, section)


def section(dataset: str, records: list[Record]) -> Iterable[str]:
    runs = select(records, purpose='run')
    yield from ('', f'## {DATASETS[dataset].title}')
    for part, served in (('test', 'stale'), ('fresh', 'fresh')):
        yield from ('', f'Counts served {served}:', '')
        rows = []
        for group in GROUPS:
            number = mean(run['rows'][group] for run in runs)
            rows.append([group, f'{number:,.0f}'])
            for name in MODELS:
                value = partial(auc_of, part, group)
                aucs = [value(run) for run in select(runs, model=name)]
                difference = difference_to('count_net', runs, name, value)
                cell = f'{spread(aucs)} {difference}' if aucs else ''
                rows[-1].append(cell.rstrip())
        header = ['rows of', 'number', *(model.title for model in MODELS.values())]
        yield from table(header, rows)


def auc_of(part: str, group: str, run: Record) -> float:
    return run[part][group]['auc']


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.cold', __doc__)
    add_commands(
        parser,
        DATASETS,
        MODELS,
        run,
        render,
        checkpoints='output/cold',
        batch_size=1024,
        max_epochs=10,
        patience=6,
    )
    args = parser.parse_args(arguments)
    args.act(args)
