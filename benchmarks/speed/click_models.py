r"""How fast CountNet, MacGNN and all models of accuracy.counts train, score, and answer a request.

All are built as in accuracy.counts, on its parts of a log, and read rows of the sizes of that log.
They take turns, in one process, and are compared with MacGNN turn by turn. A training step is a
forward, a backward and a step of Adam on a batch of 1,024 rows that is loaded already; a scored
batch is as large. A request is one user of the validation part, another one each turn, with 1,000
candidates drawn from all items: timed is all that is read and computed for it, from ids to logits.
Models with counts look these up in a :class:`~mag.macro_graph.TargetState`, which is also timed
alone, that of all resolutions. Boosted trees have no training step.

Timed is processor time on one thread of a CPU, which is the time on a machine that does nothing
else. On several threads or a GPU it is the time that passes.

    python benchmarks speed.click_models --dataset movielens-1m --root data/movielens-1m \
        --markdown benchmarks/speed/click_models.md --json benchmarks/speed/click_models.json
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accuracy.baselines import read_history
from accuracy.boosted_trees import BoostedTrees
from accuracy.click_bench import Model, make_loader, parts_of
from accuracy.count_data import DATASETS, Parts, load_parts, save_parts, without_exposures
from accuracy.counts import MODELS
from accuracy.harness import PACKAGES, prepare
from records import made_here, make_parser, publish, table
from timing import in_words, median_ratio, quiet_seconds_of, seconds_of, take_turns
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch_geometric.data import HeteroData

from mag.macro_graph import TargetState, TargetView
from mag.schema import CLICKS
from mag.training import ClickTask
from mag.transforms import TargetCounts

REFERENCE = 'macgnn'
DEFAULT = ('count_net', *(name for name, model in MODELS.items() if model.table == 'models'))
STAGES = {'train': 'a training step', 'score': 'a scored batch', 'request': 'a request'}
LOOK_UP = 'look_up'
# A state moves counts in time, and so needs a log that was cut in time.
LOGS = [name for name, log in DATASETS.items() if log.by == 'global']


class States:
    r"""The counts of a log as of the cutoff of its validation part, those that a model reads.

    Args:
        parts: The log.
        half_lives: Those of its decayed counts.
    """

    def __init__(self, parts: Parts, half_lives: tuple[float, ...]) -> None:
        self.parts, self.half_lives = parts, half_lives
        self.made: dict[tuple[str, ...], tuple[list[str], TargetState]] = {}

    def look_up(self, names: Sequence[str], user: Tensor, item: Tensor, time: Tensor) -> Tensor:
        r"""Some columns of the counts of exposures, shape :obj:`[B, C, 2]`."""
        if tuple(names) not in self.made:
            is_aged = any('half-life' in name for name in names)
            fitted = TargetCounts().fit(self.parts.train).fitted_state()['views']
            views = [view for view in map(TargetView._make, fitted) if view.name in names]
            # What a rate is shrunk to is asked of the model, and no matter of a look-up.
            views = [
                view if view.expected in (None, *names) else view._replace(prior=views[-1].name)
                for view in views
            ]
            counts = TargetCounts(views, self.half_lives if is_aged else ()).fit(self.parts.train)
            self.made[tuple(names)] = counts.names, counts.state(self.parts.val)
        known, state = self.made[tuple(names)]
        found = state(user, item, time)
        return found if known == list(names) else found[:, [known.index(name) for name in names]]


class Requests:
    r"""Requests of users of the validation part, with candidates drawn from all items.

    Args:
        model: Who reads them.
        part: The validation part, with the counts that the model is given.
        states: Where counts are looked up.
        size: The number of candidates.
    """

    def __init__(self, model: Model, part: HeteroData, states: States, size: int) -> None:
        self.loader: Any = make_loader(model, part, size)
        self.states, self.clicks, self.exposures = states, part[CLICKS], model.exposures
        generator = torch.Generator().manual_seed(0)
        self.items = torch.randint(part['item'].num_nodes, (size,), generator=generator)
        num_rows = self.clicks.edge_label_time.numel()
        self.rows = torch.randint(num_rows, (64,), generator=generator).tolist()
        reader: Any = self.loader.dataset
        readers = reader.readers.values() if model.is_joined else [reader]
        told = set().union(*(reader.arguments() for reader in readers))
        self.reads_counts = model.counts and 'counts' in told
        self.told = {name for name in told if f'edge_label_{name}' in self.clicks} - {'counts'}

    def counts(self, turn: int) -> Tensor:
        r"""The counts of the candidates of a request."""
        row, size = self.rows[turn % len(self.rows)], self.items.numel()
        user = self.clicks.edge_label_index[0, row].expand(size)
        time = self.clicks.edge_label_time[row].expand(size)
        return self.states.look_up(self.clicks.count_names, user, self.items, time)

    def __call__(self, turn: int) -> Any:
        r"""The batch of a request."""
        row = self.rows[turn % len(self.rows)]
        told = {name: self.clicks[f'edge_label_{name}'][row] for name in self.told}
        if self.reads_counts:
            counts = self.counts(turn)
            told['counts'] = counts if self.exposures else without_exposures(counts)
        return self.loader.request(int(self.clicks.edge_label_index[0, row]), self.items, **told)


class Contestant:
    r"""A model with what it reads.

    Args:
        model: What it is.
        parts: The log.
        states: Where counts are looked up.
        args: Those of the command.
    """

    def __init__(
        self, model: Model, parts: Parts, states: States, args: argparse.Namespace
    ) -> None:
        given = parts_of(model, parts)
        torch.manual_seed(0)
        self.device = args.device
        self.seconds_of = quiet_seconds_of if args.device == 'cpu' else seconds_of
        self.model: nn.Module = model.build(given['train'], given['val'], parts.temperature)
        if isinstance(self.model, BoostedTrees):
            self.model.fit(given['train'], given['val'], 0, learning_rate=0.1, num_leaves=31)
        self.model.to(self.device)
        # In training, what was there before the first label.
        read_history(self.model, given['val'])
        train = make_loader(model, given['train'], args.batch_size, parts.log)
        self.batches = [self.move(batch) for batch in islice(train, 4)]
        self.requests = Requests(model, given['val'], states, args.candidates)
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        self.learns = bool(parameters)
        if self.learns:
            self.task = ClickTask(self.model)
            self.optimizer = torch.optim.Adam(parameters, 1e-3)
        self.turn = 0

    def move(self, batch: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda value: value.to(self.device), batch)

    def milliseconds(self, act: Callable[[int], object]) -> float:
        r"""Of one call, with the number of the turn, which is another each time."""
        self.turn += 1

        def to_the_end() -> None:
            act(self.turn)
            self.wait()

        self.wait()
        return 1e3 * self.seconds_of(to_the_end)

    def batch(self, turn: int) -> Any:
        return self.batches[turn % len(self.batches)]

    def wait(self) -> None:
        if self.device != 'cpu':
            torch.cuda.synchronize()

    def train(self) -> float:
        self.model.train()
        return self.milliseconds(self.step)

    def step(self, turn: int) -> None:
        loss = self.task.loss(self.batch(turn))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def score(self) -> float:
        self.model.eval()
        return self.milliseconds(lambda turn: self.model(self.batch(turn)))

    @torch.no_grad()
    def request(self) -> float:
        self.model.eval()
        return self.milliseconds(lambda turn: self.model(self.move(self.requests(turn))))

    @torch.no_grad()
    def look_up(self) -> float:
        r"""Of a request's counts alone."""
        return self.milliseconds(self.requests.counts)


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    r"""By stage and model, the milliseconds of each turn."""
    path = save_parts(args.dataset, 'rolling', args.root, args.checkpoints)
    parts = load_parts(path)
    states = States(parts, DATASETS[args.dataset].half_lives)
    contestants = {name: Contestant(MODELS[name], parts, states, args) for name in args.models}
    found = {}
    for stage in STAGES:
        calls = {
            name: getattr(one, stage)
            for name, one in contestants.items()
            if stage != 'train' or one.learns
        }
        of_counts = [one for one in contestants.values() if one.requests.reads_counts]
        if stage == 'request' and of_counts:
            calls[LOOK_UP] = of_counts[0].look_up
        take_turns(calls, 2)
        found[stage] = take_turns(calls, args.repeats)
    return found


def render(found: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> Iterator[str]:
    yield '# How fast click models train and score'
    yield ''
    yield (
        f'Milliseconds of a training step and of scoring, {args.batch_size:,} rows each, and of a '
        f'request of one user with {args.candidates:,} candidates, from ids to logits, of '
        f'{DATASETS[args.dataset].title} in six windows; the median of {args.repeats} turns, on '
        f'{args.device}, {in_words(args.threads)}. Models with counts look them up in the request; '
        f'the last row is that alone. Ratios are to MacGNN, turn by turn: below 1 is faster.'
    )
    yield ''
    rows = []
    titles = {name: MODELS[name].title for name in args.models}
    titles[LOOK_UP] = 'look-up of counts alone'
    for name, title in titles.items():
        if not any(name in times for times in found.values()):
            continue
        cells = [title]
        for times in found.values():
            of_model = times.get(name)
            cells += (
                ['', '']
                if of_model is None
                else [
                    f'{median(of_model):.2f}',
                    f'{median_ratio(of_model, times[REFERENCE]):.2f}',
                ]
            )
        rows.append(cells)
    header = ['model']
    for title in STAGES.values():
        header += [f'{title}, ms', 'MacGNN = 1']
    yield from table(header, rows)
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.click_models', __doc__)
    parser.add_argument('--dataset', choices=LOGS, required=True)
    parser.add_argument('--root', default='data', help='folder with raw/ of a real log')
    parser.add_argument('--checkpoints', default='output/counts', help='where parts are kept')
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(dict.fromkeys(DEFAULT)))
    parser.add_argument('--batch-size', type=int, default=1024)
    parser.add_argument('--candidates', type=int, default=1000)
    parser.add_argument('--repeats', type=int, default=15, help='turns of each')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--json', type=Path, help='file for the medians, which plots read')
    args = parser.parse_args(arguments)
    if REFERENCE not in args.models:
        parser.error(f'--models must hold {REFERENCE}, with which all are compared')
    prepare(args.threads)
    found = measure(args)
    publish(render(found, args), args.markdown)
    if args.json is not None:
        medians = {
            stage: {name: median(values) for name, values in times.items()}
            for stage, times in found.items()
        }
        args.json.write_text(
            json.dumps({'batch_size': args.batch_size, **medians}, indent=1) + '\n'
        )
