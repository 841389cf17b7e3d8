r"""How fast CountNet, MacGNN and all models of accuracy.counts train, score, and answer a request.

All are built as in accuracy.counts, on its parts of a log, and read rows of the sizes of that log.
They take turns, in one process, and are compared with MacGNN turn by turn. A training step is a
forward, a backward and a step of Adam on a batch of 1,024 rows that is loaded already; a scored
batch is as large; a request loads and scores 1,000 rows, as one of 1,000 candidates does. Boosted
trees have no training step. Timings mean something only on a machine that does nothing else.

    python benchmarks speed.click_models --dataset movielens-1m --root data/movielens-1m \
        --markdown benchmarks/speed/click_models.md --json benchmarks/speed/click_models.json
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from accuracy.baselines import read_history
from accuracy.boosted_trees import BoostedTrees
from accuracy.count_data import DATASETS, Parts, load_parts, save_parts
from accuracy.counts import MODELS, make_loader, parts_of
from accuracy.harness import PACKAGES, prepare
from records import made_here, make_parser, publish, table
from timing import in_words, median_ratio, take_turns
from torch import nn
from torch.utils._pytree import tree_map_only

REFERENCE = 'macgnn'
DEFAULT = ('count_net', *(name for name, model in MODELS.items() if model.table == 'models'))
STAGES = {'train': 'a training step', 'score': 'a scored batch', 'request': 'a request'}


class Contestant:
    r"""A model with what it reads.

    Args:
        name: Its name in :obj:`accuracy.counts.MODELS`.
        parts: The log.
        args: Those of the command.
    """

    def __init__(self, name: str, parts: Parts, args: argparse.Namespace) -> None:
        model = MODELS[name]
        given = parts_of(model, parts)
        torch.manual_seed(0)
        self.device, self.num_candidates = args.device, args.candidates
        self.model: nn.Module = model.build(given['train'], given['val'], parts.temperature)
        if isinstance(self.model, BoostedTrees):
            self.model.fit(given['train'], given['val'], 0, learning_rate=0.1, num_leaves=31)
        self.model.to(self.device)
        # In training, what was there before the first label.
        read_history(self.model, given['val'])
        train = make_loader(model, given['train'], args.batch_size, parts.log)
        self.batches = [self.move(batch) for batch in islice(train, 4)]
        # As many rows as a request has candidates, which are of several users here.
        self.requests = make_loader(model, given['val'], self.num_candidates)
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        self.learns = bool(parameters)
        if self.learns:
            self.optimizer = torch.optim.Adam(parameters, 1e-3)
        self.turn = 0

    def move(self, batch: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda value: value.to(self.device), batch)

    def milliseconds(self, act: Callable[[Any], object]) -> float:
        r"""Of one call, with a batch that is another each time."""
        batch = self.batches[self.turn % len(self.batches)]
        self.turn += 1
        self.wait()
        start = perf_counter()
        act(batch)
        self.wait()
        return 1e3 * (perf_counter() - start)

    def wait(self) -> None:
        if self.device != 'cpu':
            torch.cuda.synchronize()

    def train(self) -> float:
        self.model.train()
        return self.milliseconds(self.step)

    def step(self, batch: Any) -> None:
        loss = F.binary_cross_entropy_with_logits(self.model(batch), batch.label.float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def score(self) -> float:
        self.model.eval()
        return self.milliseconds(self.model)

    @torch.no_grad()
    def request(self) -> float:
        self.model.eval()
        rows = torch.arange(min(self.num_candidates, len(self.requests.dataset)))
        return self.milliseconds(lambda _: self.model(self.move(self.requests.dataset[rows])))


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    r"""By stage and model, the milliseconds of each turn."""
    path = save_parts(args.dataset, 'rolling', args.root, args.checkpoints)
    parts = load_parts(path)
    contestants = {name: Contestant(name, parts, args) for name in args.models}
    found = {}
    for stage in STAGES:
        calls = {
            name: getattr(one, stage)
            for name, one in contestants.items()
            if stage != 'train' or one.learns
        }
        take_turns(calls, 2)
        found[stage] = take_turns(calls, args.repeats)
    return found


def render(found: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> Iterator[str]:
    yield '# How fast click models train and score'
    yield ''
    yield (
        f'Milliseconds of a training step and of scoring, {args.batch_size:,} rows each, and of a '
        f'request, which loads and scores {args.candidates:,} rows, of the rows of '
        f'{DATASETS[args.dataset].title} in six windows; the median of {args.repeats} turns, on '
        f'{args.device}, {in_words(args.threads)}. Ratios are to MacGNN, turn by turn: below 1 is '
        f'faster.'
    )
    yield ''
    rows = []
    for name in args.models:
        cells = [MODELS[name].title]
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
    parser.add_argument('--dataset', choices=DATASETS, required=True)
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
