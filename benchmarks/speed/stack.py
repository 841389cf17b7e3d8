r"""What each branch of the stack costs, and the stack: a training step, and a request.

All are built as in accuracy.stack, on its parts of a log, and take turns in one process. A training
step is a forward, a backward and a step of Adam on a batch of 1,024 rows that is loaded already. A
request is one user of the validation part, another one each turn, with 1,000 candidates drawn from
all items: timed is all that is read and computed for it, from ids to logits, with the look-up of
counts where these are read. "Kept" is FLIP whose sentences of users and items were read before, as
they are at serving.

Timed is processor time on one thread of a CPU, which is the time on a machine that does nothing
else. On several threads or a GPU it is the time that passes.

    python benchmarks speed.stack --dataset movielens-1m --root data/movielens-1m \
        --markdown benchmarks/speed/stack.md
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

from accuracy.count_data import DATASETS, save_parts
from accuracy.flip_training import TEXTS
from accuracy.harness import PACKAGES, prepare
from accuracy.stack import MODELS, parts_with_text, reads_text
from records import made_here, make_parser, publish, table
from timing import in_words, take_turns

from mag.models import FLIP
from speed.click_models import LOGS, Contestant, States

# What the post says that a request may take, in milliseconds.
BUDGET = 30.0
TIMED = [name for name, model in MODELS.items() if model.table not in ('small', 'last')]
KEPT = '_kept'


def contestants(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, Contestant]]:
    r"""The titles of rows, and what is timed in each."""
    path = save_parts(args.dataset, 'rolling', args.root, args.checkpoints)
    parts = parts_with_text(args.dataset, args.root, path)
    states = States(parts, DATASETS[args.dataset].half_lives)
    titles, found = {}, {}
    for name in args.models:
        if reads_text(name) and args.dataset not in TEXTS:
            continue
        found[name] = Contestant(MODELS[name], parts, states, args)
        titles[name] = MODELS[name].title
        if reads_text(name):
            found[name + KEPT] = Contestant(MODELS[name], parts, states, args)
            titles[name + KEPT] = f'{MODELS[name].title}, kept'
    return titles, found


def keep_text(contestant: Contestant) -> None:
    r"""Lets FLIP read all sentences before the requests."""
    contestant.model.eval()
    for module in contestant.model.modules():
        if isinstance(module, FLIP):
            module.precompute()


def measure(found: Mapping[str, Contestant], args: argparse.Namespace) -> dict[str, dict]:
    r"""By stage and row, the milliseconds of each turn."""
    stages: dict[str, dict[str, Callable[[], float]]] = {
        # What keeps its text trains as any other.
        'train': {name: one.train for name, one in found.items() if not name.endswith(KEPT)},
        'request': {name: one.request for name, one in found.items()},
    }
    times = {}
    for stage, repeats in (('train', args.repeats), ('request', args.requests)):
        if stage == 'request':
            for name, one in found.items():
                if name.endswith(KEPT):
                    keep_text(one)
        take_turns(stages[stage], 2)
        times[stage] = take_turns(stages[stage], repeats)
    return times


def render(
    titles: Mapping[str, str], times: dict[str, dict[str, list[float]]], args: argparse.Namespace
) -> Iterator[str]:
    yield '# What the branches of the stack cost'
    yield ''
    yield (
        f'Milliseconds, of the processor on one thread and else of the clock, of a training step '
        f'on {args.batch_size:,} rows, the median of '
        f'{args.repeats} turns, and of a request of one user with {args.candidates:,} candidates, '
        f'from ids to logits, the median and the 99th percentile of {args.requests} turns, of '
        f'{DATASETS[args.dataset].title} in six windows, on {args.device}, '
        f'{in_words(args.threads)}. Counts are looked up in the request where they are read. '
        f'"Kept" is FLIP whose sentences of users and items were read before. The budget is the '
        f'{BUDGET:.0f} ms that are told of production systems.'
    )
    yield ''
    rows = []
    for name, title in titles.items():
        step, requests = times['train'].get(name), times['request'][name]
        last = quantiles(requests, n=100, method='inclusive')[-1]
        rows.append(
            [
                title,
                '' if step is None else f'{median(step):.1f}',
                f'{median(requests):.1f}',
                f'{last:.1f}',
                'yes' if last <= BUDGET else 'no',
            ]
        )
    header = ['model', 'a step, ms', 'a request, ms, p50', 'p99', f'p99 within {BUDGET:.0f} ms']
    yield from table(header, rows)
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.stack', __doc__)
    parser.add_argument('--dataset', choices=LOGS, required=True)
    parser.add_argument('--root', default='data', help='folder with raw/ of a real log')
    parser.add_argument('--checkpoints', default='output/counts', help='where parts are kept')
    parser.add_argument('--models', nargs='+', choices=TIMED, default=TIMED)
    parser.add_argument('--batch-size', type=int, default=1024)
    parser.add_argument('--candidates', type=int, default=1000)
    parser.add_argument('--repeats', type=int, default=15, help='training steps of each')
    parser.add_argument('--requests', type=int, default=100, help='requests of each')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    args = parser.parse_args(arguments)
    prepare(args.threads)
    titles, found = contestants(args)
    publish(render(titles, measure(found, args), args), args.markdown)
