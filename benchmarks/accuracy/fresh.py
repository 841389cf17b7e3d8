r"""What serving counts fresh is worth, and why GAUC calls it a loss.

Where counts move with every event, two rows of one user that were served at different times read
different counts of that user. GAUC compares such rows, and it does so unfairly. Take a click
:math:`i` and a non-click :math:`j` of one user:

* if :math:`i` came first, the rate that :math:`j` reads counts the click of :math:`i`, which lifts
  :math:`j`;
* if :math:`j` came first, the rate that :math:`i` reads counts the non-click of :math:`j`, which
  lowers :math:`i`.

Both times the label of the earlier row moves the pair to the wrong order, and all other labels are
as likely as in the right one if clicks are independent given the user. So the rate of the user
alone has a GAUC below 1/2, and of 0 if each user has two rows, however long the history is. No
label is leaked and nothing is lost when served: the candidates of one request read the same counts
of their user. It is drawing without replacement: of a user who clicks a given number of rows, each
click that was seen leaves fewer to come.

A ranking is fair if both rows are read as of one moment. GAUC at equal knowledge reads each pair
as of its earlier row, before the label of either is known.

    python benchmarks accuracy.fresh run --dataset kuairand market --root data/kuairand \
        --out benchmarks/accuracy/results/fresh.json
    python benchmarks accuracy.fresh table benchmarks/accuracy/results/fresh.json \
        > benchmarks/accuracy/fresh.md
"""

import argparse
import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from records import Record, Results, make_parser, select, stamp, table
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from accuracy.count_bench import Bench
from accuracy.count_data import DATASETS, kind
from accuracy.harness import (
    PACKAGES,
    add_commands,
    describe_rows,
    prepare,
    sections,
    spread,
    value_of,
)
from mag.metrics import group_auroc
from mag.nn import CountEncoder
from mag.schema import CLICKS, label_attributes
from mag.training import ClickTask, evaluate, predict

METRICS = ('auc', 'gauc', 'equal_gauc', 'logloss')
# Of which kinds the views are served fresh, the others as of the cutoff.
EDGE, ITEM_EDGE = 'user x item_cluster', 'user_cluster x item'
COARSE = 'user_cluster x item_cluster'
SERVED = {
    'none': (),
    'the user': ('user',),
    'user x macro item': (EDGE,),
    'the user, user x macro item': ('user', EDGE),
    'the item, macro user x item, macro user x macro item': ('item', ITEM_EDGE, COARSE),
    'all but the user': (EDGE, 'item', ITEM_EDGE, COARSE),
    'all': ('user', EDGE, 'item', ITEM_EDGE, COARSE),
}
# In the simulation, users, their rows that are ranked, and their rows before these.
NUM_USERS = 20_000
NUM_ROWS = (2, 3, 5, 10, 30, 100)
HISTORIES = (0, 10, 1_000)


def pairs(user: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    r"""Every row with itself and with every row of its user that is not earlier: the places of the
    first and of the second of each pair."""
    order = time.argsort(stable=True)
    order = order[user[order].argsort(stable=True)]
    size = user.bincount()
    place = torch.arange(order.numel())
    number = size.cumsum(0)[user[order]] - place
    first = place.repeat_interleave(number)
    second = torch.arange(first.numel()) - (number.cumsum(0) - number)[first] + first
    return order[first], order[second]


def as_of(part: HeteroData, first: Tensor, second: Tensor) -> HeteroData:
    r"""The second row of each pair, asked at the time of the first."""
    part = copy.copy(part)
    clicks = part[CLICKS]
    time = clicks.edge_label_time[first]
    for name in label_attributes(part):
        value = clicks[name]
        clicks[name] = value[:, second] if name == 'edge_label_index' else value[second]
    clicks.edge_label_time = time
    return part


def equal_gauc(score: Tensor, label: Tensor, user: Tensor, first: Tensor, second: Tensor) -> float:
    r"""The GAUC of rows that are compared as of the earlier one.

    Args:
        score: That of the second row of each pair at the time of the first, shape :obj:`[P]`.
        label: Clicks, shape :obj:`[L]`.
        user: Users, shape :obj:`[L]`.
        first: The places of the earlier rows, shape :obj:`[P]`.
        second: The places of the later rows, shape :obj:`[P]`.
    """
    is_self = first == second
    own = torch.empty_like(score[: label.numel()])
    own[first[is_self]] = score[is_self]
    compared = label[first] != label[second]
    first, second, score = first[compared], second[compared], score[compared]
    # Of the two, the score of the click less that of the other.
    sign = (label[second] - label[first]).sign()
    right = (1 + ((score - own[first]) * sign).sign()) / 2
    num_users = int(user.max()) + 1
    total = torch.zeros(num_users).double().index_add_(0, user[first], right.double())
    number = user[first].bincount(minlength=num_users)
    weight = user.bincount(minlength=num_users) * (number > 0)
    return float((weight * total / number.clamp(min=1)).sum() / weight.sum())


class FreshBench(Bench):
    r"""A log whose test part is served with some of its counts fresh."""

    def __init__(self, dataset: str, args: argparse.Namespace) -> None:
        super().__init__(dataset, args)
        clicks = self.test[CLICKS]
        self.label, self.user = clicks.edge_label, clicks.edge_label_index[0]
        self.first, self.second = pairs(self.user, clicks.edge_label_time)
        earlier = as_of(self.test, self.first, self.second)
        self.earlier = self.counts(earlier, log=self.log)

    def serve(self, kinds: Sequence[str]) -> tuple[HeteroData, HeteroData]:
        r"""The test part, and its pairs as of their earlier rows, with these kinds of views
        fresh."""
        stale, fresh, earlier = (
            part[CLICKS].edge_label_counts for part in (self.test, self.fresh, self.earlier)
        )
        is_fresh = torch.tensor([kind(name) in kinds for name in self.counts.names]).view(-1, 1)
        return tuple(
            _with_counts(part, counts)
            for part, counts in (
                (self.test, torch.where(is_fresh, fresh, stale)),
                (self.earlier, torch.where(is_fresh, earlier, stale[self.second])),
            )
        )

    def score(self, task: ClickTask, kinds: Sequence[str]) -> dict[str, float]:
        r"""The metrics of the test part with these kinds of views fresh."""
        part, earlier = self.serve(kinds)
        score = predict(task, self.rows(earlier))['click']
        equal = equal_gauc(score, self.label, self.user, self.first, self.second)
        return {**evaluate(task, self.rows(part)), 'equal_gauc': equal}

    def rate_alone(self, kinds: Sequence[str]) -> dict[str, float]:
        r"""The GAUC of the rate of the user and of nothing else."""
        encoder = CountEncoder(self.counts.prior, self.test[CLICKS].count_rate)
        place = self.counts.names.index('user')
        with torch.no_grad():
            score, of_pair = (
                encoder.rates(part[CLICKS].edge_label_counts)[0][:, place]
                for part in self.serve(kinds)
            )
        return {
            'gauc': float(group_auroc(score, self.label, self.user)[0]),
            'equal_gauc': equal_gauc(of_pair, self.label, self.user, self.first, self.second),
        }


def _with_counts(part: HeteroData, counts: Tensor) -> HeteroData:
    part = copy.copy(part)
    part[CLICKS].edge_label_counts = counts
    return part


def simulate(num_rows: int, history: int, seed: int = 0) -> float:
    r"""The GAUC of the fresh rate of users who click at random, each with a probability of their
    own."""
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(NUM_USERS, 1, generator=generator)
    clicked = torch.rand(NUM_USERS, num_rows, generator=generator) < probability
    before = torch.binomial(torch.full_like(probability, history), probability, generator=generator)
    clicks = before + clicked.cumsum(1) - clicked.long()
    seen = history + torch.arange(num_rows)
    # In double precision, as the rates of long histories are close to each other.
    rate = (clicks.double() + 5) / (seen + 10)
    user = torch.arange(NUM_USERS).repeat_interleave(num_rows)
    return float(group_auroc(rate.view(-1), clicked.view(-1).long(), user)[0])


def run(args: argparse.Namespace) -> None:
    prepare(args.threads)
    results = Results(Path(args.out))
    for dataset in args.dataset:
        bench = FreshBench(dataset, args)
        setting = bench.tune('count_net', results)
        for seed in tqdm(range(args.seeds)):
            wanted = {'dataset': dataset, 'model': 'count_net', 'seed': seed, 'purpose': 'run'}
            if results.find(**wanted):
                continue
            task = bench.fit('count_net', seed, setting)
            parts = bench.train, bench.val, bench.test
            results.append(
                {
                    **wanted,
                    **setting,
                    'rows': [part[CLICKS].edge_label.numel() for part in parts],
                    'users': bench.user.unique().numel(),
                    'rate': {name: bench.rate_alone(SERVED[name]) for name in ('none', 'all')},
                    **{name: bench.score(task, kinds) for name, kinds in SERVED.items()},
                    **stamp(*PACKAGES),
                }
            )
    if not results.find(purpose='simulation'):
        gauc = [[simulate(rows, history) for history in HISTORIES] for rows in NUM_ROWS]
        results.append({'purpose': 'simulation', 'gauc': gauc, **stamp(*PACKAGES)})


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed report: the simulation, and a section a log."""
    yield '# Counts served fresh'
    yield ''
    # The docstring of this module without its title and its commands.
    _, *paragraphs = (__doc__ or '').split('\n\n')
    yield '\n\n'.join(paragraphs[:-1]).replace(':math:`', '`')
    yield ''
    yield '## Clicks at random'
    yield ''
    yield (
        f'{NUM_USERS:,} users who click at random, each with a probability of their own. GAUC of '
        f"the user's fresh rate alone, by the rows of a user that are ranked and by those before "
        f'them. Nothing is there to be found: any other number than 0.5 is the error of the '
        f'metric. At equal knowledge it is 0.5 for all.'
    )
    yield ''
    for record in select(records, purpose='simulation')[-1:]:
        yield from table(
            ['rows', *(f'{history:,} before' for history in HISTORIES)],
            [
                [f'{rows}', *(f'{value:.4f}' for value in values)]
                for rows, values in zip(NUM_ROWS, record['gauc'], strict=True)
            ],
        )
    yield from sections(records, DATASETS, section)


def section(dataset: str, records: list[Record]) -> Iterable[str]:
    runs = select(records, purpose='run')
    rate = runs[0]['rate']
    rows, users = runs[0]['rows'][-1], runs[0]['users']
    yield from ('', f'## {DATASETS[dataset].title}', '', f'{describe_rows(runs[0])}.', '')
    yield (
        f'{rows / users:.1f} rows of a user are tested on average. The rate of the user alone has '
        f'a GAUC of {rate["none"]["gauc"]:.4f} stale, of {rate["all"]["gauc"]:.4f} fresh, and of '
        f'{rate["all"]["equal_gauc"]:.4f} fresh at equal knowledge. CountNet, mean and standard '
        f'deviation over {len(runs)} seeds:'
    )
    yield ''
    cells = [
        [name, *(spread([value_of(metric, run, name) for run in runs]) for metric in METRICS)]
        for name in SERVED
    ]
    header = ['views served fresh', 'AUC', 'GAUC', 'GAUC at equal knowledge', 'logloss']
    yield from table(header, cells)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.fresh', __doc__)
    add_commands(
        parser,
        DATASETS,
        ('count_net',),
        run,
        render,
        checkpoints='output/fresh',
        batch_size=1024,
        max_epochs=10,
        patience=6,
    )
    args = parser.parse_args(arguments)
    args.act(args)
