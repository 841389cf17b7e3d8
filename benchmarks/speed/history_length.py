r"""How long a request takes as the history of its user grows: Figure 5 of MacGNN's paper, and
CountNet beside it.

One user has clicked 10 to 100,000 items, others a few each, in a log whose items are drawn at
random; weights are, too, as time alone matters. A request is that user and some candidates. Timed
is all that is read and computed for it, from ids to logits. Models are those of accuracy.counts
without counts but CountNet, and read the whole history where they read one:

- CountNet looks its counts up in :class:`~mag.macro_graph.TargetState`, which is also timed alone;
- MacGNN reads macro rows and the last 20 clicks, as ever;
- Wide & Deep reads the fields of user and item alone;
- DIN attends to all clicks;
- SIM searches all clicks for those of a candidate's category, once a category, and attends to the
  newest 20 of them and of all. *Kept by category* it finds them where its paper keeps them, in an
  index that was made before;
- LightGCN reads the embeddings of nodes that were propagated before. *Propagated* it does that in
  the request, over the whole graph, as the user's last click asks for;
- the graph transformer has all clicks of the user among its tokens, whose pairs it compares, and
  the last 20 users of the item.

Candidates are scored in slices that bound the memory of pairs of candidates and clicks. Models
take turns, on one thread. Timed is its processor time, which is the response time on a machine that
does nothing else. A model that takes longer than --limit is measured once, and not at greater
lengths.

    python benchmarks speed.history_length --markdown benchmarks/speed/history_length.md \
        --json benchmarks/speed/history_length.json --figure docs/history_length.png
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from accuracy.baselines import LOADERS
from accuracy.counts import MODELS
from accuracy.graph_models import GraphTransformer
from accuracy.harness import PACKAGES, prepare
from accuracy.long_history_models import NUM_RECENT, SIM, best
from records import made_here, make_parser, publish, table
from timing import median_ratio, processor_seconds_of, take_turns
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from mag.click_index import take
from mag.loader import ExposureLoader, HistoryBatch, HistoryLoader, JoinedBatch, JoinedLoader
from mag.schema import CLICKS, SEES
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts

USER = 0
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
# How many values the attributes of a node have: those that macro nodes stand for, as many as
# accuracy.counts has, but for the categories, of which MovieLens-1M has 18.
ATTRIBUTES = {
    'user': {'segment': 20, 'fine_segment': 200},
    'item': {'category': 100, 'family': 50, 'brand': 500},
}
# Pairs of a candidate and a click, or of two tokens, that are held at once.
MAX_PAIRS = 2**19
# What the paper measured online, in its Table 5: response time less than SIM's by this share.
CLAIM = 0.2097
TITLES = {
    'count_net': 'CountNet',
    'look_up': 'CountNet, look-up of counts alone',
    'macgnn': 'MacGNN',
    'wide_deep': 'Wide & Deep',
    'din': 'DIN',
    'sim': 'SIM',
    'sim_kept': 'SIM, kept by category',
    'lightgcn': 'LightGCN',
    'lightgcn_propagated': 'LightGCN, propagated',
    'graph_transformer': 'graph transformer',
}
# What is measured at all lengths, however long it takes.
ALWAYS = ('macgnn', 'count_net')
# Scores the candidates of a request.
Answer = Callable[[Tensor], Tensor]


class Sizes(NamedTuple):
    r"""How large the log is, besides the history.

    Args:
        users: The number of users.
        items: The number of items.
        clicks: The clicks of each other user.
    """

    users: int = 300
    items: int = 100_000
    clicks: int = 50


SIZES = Sizes()


def make_part(length: int, sizes: Sizes) -> HeteroData:
    r"""A part of a log as :class:`~mag.transforms.TemporalSplit` makes it, in which one user has
    :obj:`length` clicks. Each click is an exposure, and there is another without a click."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, generator=generator)
    data = HeteroData()
    for name, number in (('user', sizes.users), ('item', sizes.items)):
        data[name].num_nodes = number
        for attribute, num_values in ATTRIBUTES[name].items():
            data[name][attribute] = draw(num_values, (number,))
            data[name][f'num_{attribute}'] = num_values
    others = torch.arange(1, sizes.users).repeat(sizes.clicks)
    user = torch.cat([torch.full((length,), USER), others])
    user = user[torch.randperm(user.numel(), generator=generator)].repeat_interleave(2)
    item = draw(sizes.items, user.shape)
    time = torch.arange(user.numel())
    clicked = 1 - time % 2
    sees, clicks = data[SEES], data[CLICKS]
    sees.edge_index, sees.time, sees.clicked = torch.stack([user, item]), time, clicked
    clicks.edge_index, clicks.time = sees.edge_index[:, clicked == 1], time[clicked == 1]
    clicks.cutoff = torch.tensor([time.numel()])
    # What a model is built for has a row.
    clicks.edge_label_index = torch.zeros(2, 1, dtype=torch.long)
    clicks.edge_label, clicks.edge_label_time = torch.zeros(1, dtype=torch.long), clicks.cutoff
    return data


class RequestSIM(SIM):
    r"""SIM for the candidates of one request, whose history is searched once a category."""

    def search(self, item: Tensor, history: Tensor) -> Tensor:
        wanted, of_candidate = take(self.fields.category, item + 1).unique(return_inverse=True)
        return self.newest_of(wanted, history[:1])[of_candidate]

    def newest_of(self, category: Tensor, history: Tensor) -> Tensor:
        r"""The newest clicks of some categories, shape :obj:`[num_categories, NUM_FOUND]`.

        Args:
            category: Shape :obj:`[num_categories]`.
            history: Clicked items, shape :obj:`[1, length]`.
        """
        is_found = take(self.fields.category, history + 1) == category.unsqueeze(1)
        is_found &= history >= 0
        return best(history.expand(is_found.shape), is_found.long())


class KeptSIM(RequestSIM):
    r"""SIM that keeps the newest clicks of a user by their category.

    Args:
        data (HeteroData): A part of the log.
        history (torch.Tensor): Those of the user, shape :obj:`[1, length]`.
    """

    def __init__(self, data: HeteroData, history: Tensor) -> None:
        super().__init__(data, counts=False)
        self.kept = self.newest_of(torch.arange(data['item'].num_category), history)

    def search(self, item: Tensor, history: Tensor) -> Tensor:
        return self.kept[take(self.fields.category, item + 1)]


def make_answers(length: int, sizes: Sizes) -> dict[str, Answer]:
    r"""By its name what each model does for a request."""
    coarsen = MacroCoarsen(
        {name: list(attributes) for name, attributes in ATTRIBUTES.items()}, exposure_hops=0
    )
    part = Compose([RecentNeighbors(NUM_RECENT), coarsen])(make_part(length, sizes))
    counts = TargetCounts().fit(part)
    now = part[CLICKS].cutoff
    history = HistoryLoader(part, length=length).request(USER, torch.zeros(1).long(), now).history
    # DIN and the graph transformer read lists of a table, in which others have none here.
    long_part = Compose([])(part)
    recent = torch.full((sizes.users, length), -1)
    recent[USER] = history
    long_part['user'].recent = recent
    torch.manual_seed(0)

    def build(name: str, data: HeteroData) -> nn.Module:
        return MODELS[name].build(data, data, 1.9).eval()

    def join(data: HeteroData, *reads: str) -> Callable[[Tensor], JoinedBatch]:
        loader = JoinedLoader([LOADERS[name](data) for name in reads])
        if 'features' in reads and 'pairs' in reads:
            # Of the tables, these models read lists alone.
            pairs: Any = loader.dataset.readers['pairs']
            pairs.macro_rows.hops = {'user': (), 'item': ()}
        return partial(loader.request, USER)

    features = ExposureLoader(part)
    counted_part = counts(part)
    counted, state = ExposureLoader(counted_part), counts.state(part)

    def look_up(items: Tensor) -> Tensor:
        return state(torch.full_like(items, USER), items, now.expand(items.shape))

    def with_counts(items: Tensor) -> Any:
        return counted.request(USER, items, counts=look_up(items))

    def with_history(num_clicks: int) -> Callable[[Tensor], JoinedBatch]:
        histories = HistoryLoader(part, length=num_clicks)

        def request(items: Tensor) -> JoinedBatch:
            # Of one user, and so read once.
            clicks = histories.request(USER, items[:1], now).history.expand(items.numel(), -1)
            user = torch.full_like(items, USER)
            return JoinedBatch(
                user,
                items,
                features=features.request(USER, items),
                histories=HistoryBatch(user, items, clicks),
            )

        return request

    propagated: Any = build('lightgcn', part)

    def propagate(batch: JoinedBatch) -> Tensor:
        propagated.model.embedding = None
        return propagated(batch)

    transformer = GraphTransformer(long_part, False, num_neighbors=length).eval()
    num_tokens = 2 + length + min(length, NUM_RECENT)
    answers = {
        'count_net': answer(build('count_net', counted_part), with_counts),
        'look_up': look_up,
        'macgnn': answer(build('macgnn', part), join(part, 'pairs')),
        'wide_deep': answer(build('wide_deep', part), join(part, 'features')),
        'din': answer(build('din', long_part), join(long_part, 'features', 'pairs'), length),
        'sim': answer(RequestSIM(part, False).eval(), with_history(length)),
        'sim_kept': answer(KeptSIM(part, history).eval(), with_history(NUM_RECENT)),
        'lightgcn': answer(build('lightgcn', part), join(part, 'features')),
        'lightgcn_propagated': answer(propagate, join(part, 'features')),
        'graph_transformer': answer(
            transformer, join(long_part, 'features', 'pairs'), num_tokens**2
        ),
    }
    return {name: answers[name] for name in TITLES}


def answer(
    score: Callable[[Any], Tensor], request: Callable[[Tensor], Any], pairs: int = 1
) -> Answer:
    r"""What loads and scores candidates, in slices.

    Args:
        score: The model.
        request: Loads candidates.
        pairs: How many pairs it holds for each candidate.
    """
    size = max(1, MAX_PAIRS // pairs)
    return lambda items: torch.cat([score(request(some)) for some in items.split(size)])


# By number of candidates, length and model, the seconds of each turn.
Found = dict[int, dict[int, dict[str, list[float]]]]


@torch.no_grad()
def measure(args: argparse.Namespace, sizes: Sizes) -> Found:
    found: Found = {number: {} for number in args.candidates}
    slow: dict[int, set[str]] = {number: set() for number in args.candidates}
    for length in args.lengths:
        answers = make_answers(length, sizes)
        for number in args.candidates:
            items = torch.randint(
                sizes.items, (number,), generator=torch.Generator().manual_seed(0)
            )
            calls = {
                name: partial(processor_seconds_of, partial(act, items))
                for name, act in answers.items()
                if name not in slow[number]
            }
            first = {name: call() for name, call in calls.items()}
            slow[number] |= {
                name for name, seconds in first.items() if seconds > args.limit
            }.difference(ALWAYS)
            fast = {name: call for name, call in calls.items() if name not in slow[number]}
            turns = take_turns(fast, args.repeats)
            found[number][length] = {name: turns.get(name, [first[name]]) for name in calls}
    return found


def change(ours: list[float], theirs: list[float]) -> float:
    r"""By which share of theirs our time differs, turn by turn where there are as many."""
    if len(ours) != len(theirs):
        return median(ours) / median(theirs) - 1
    return median_ratio(ours, theirs) - 1


def claims(found: Found) -> Iterator[str]:
    r"""For each claim of the paper whether it holds, and whether it does for CountNet."""
    for number, by_length in found.items():
        lengths = list(by_length)
        first, last = lengths[0], lengths[-1]
        others = ('sim', 'sim_kept', 'lightgcn', 'lightgcn_propagated', 'graph_transformer')
        for ours, name in product(ALWAYS, others):
            changes = {
                length: change(times[ours], times[name])
                for length, times in by_length.items()
                if name in times
            }
            least = CLAIM if name.startswith('sim') else 0.0
            holds = [f'{length:,}' for length, value in changes.items() if value <= -least]
            what = f'{least:.0%} faster' if least > 0 else 'faster'
            where = f'holds at {", ".join(holds)} clicks' if holds else 'holds at no length'
            told = ', '.join(f'{value:+.0%} at {length:,}' for length, value in changes.items())
            yield (
                f'That {TITLES[ours]} is {what} than {TITLES[name]} {where}, for {number:,} '
                f'candidates: its response time differs by {told}.'
            )
        for name in ALWAYS:
            short, long = (median(by_length[length][name]) for length in (first, last))
            growth = long / short - 1
            verdict = 'holds' if growth < CLAIM else 'does not hold'
            yield (
                f'That the response time of {TITLES[name]} does not grow with the history '
                f'{verdict}, for {number:,} candidates: {1e3 * short:.2f} ms at {first:,} clicks '
                f'and {1e3 * long:.2f} ms at {last:,}, {growth:+.0%}.'
            )


def render(found: Found, args: argparse.Namespace, sizes: Sizes) -> Iterator[str]:
    yield '# Response time against the length of the history'
    yield ''
    yield (
        f'Milliseconds of a request of one user, who has clicked as many items as the column says, '
        f'with {" and ".join(f"{number:,}" for number in args.candidates)} candidates, in '
        f'processor time of one thread; {sizes.users - 1:,} other users have {sizes.clicks} clicks '
        f'each, of {sizes.items:,} items. The median of {args.repeats} turns, and in brackets the '
        f'ratio to MacGNN, turn by turn: below 1 is faster. What took longer than '
        f'{args.limit:g} s was measured once (\\*), and not at greater lengths.'
    )
    for number, by_length in found.items():
        yield from ('', f'## {number:,} candidates', '')
        yield from (f'- {line}' for line in claims({number: by_length}))
        rows = []
        for name, title in TITLES.items():
            rows.append([title, *(cell(name, times) for times in by_length.values())])
        yield ''
        yield from table(['model', *(f'{length:,} clicks' for length in by_length)], rows)
    yield ''
    yield made_here(*PACKAGES)


def cell(name: str, times: Mapping[str, list[float]]) -> str:
    if name not in times:
        return ''
    once = '\\*' if len(times[name]) == 1 < len(times['macgnn']) else ''
    ratio = 1 + change(times[name], times['macgnn'])
    return f'{1e3 * median(times[name]):,.2f}{once} ({ratio:,.2f})'


def draw(found: Found, path: Path) -> None:
    r"""One panel a number of candidates."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(
        1, len(found), figsize=(5.2 * len(found), 4.2), squeeze=False, sharey=True,
        layout='constrained',
    )  # fmt: skip
    styles: dict[str, dict[str, Any]] = {
        'count_net': {'color': '#d55e00', 'lw': 2.5},
        'look_up': {'color': '#d55e00', 'ls': ':'},
        'macgnn': {'color': '#0072b2', 'lw': 2.5},
        'wide_deep': {'color': '0.6'},
        'din': {'color': '#009e73'},
        'sim': {'color': '#cc79a7'},
        'sim_kept': {'color': '#cc79a7', 'ls': ':'},
        'lightgcn': {'color': '0.2', 'ls': ':'},
        'lightgcn_propagated': {'color': '0.2'},
        'graph_transformer': {'color': '#e69f00'},
    }
    for axes, (number, by_length) in zip(all_axes[0], found.items(), strict=True):
        for name, title in TITLES.items():
            points = {
                length: 1e3 * median(times[name])
                for length, times in by_length.items()
                if name in times
            }
            axes.plot(
                list(points), list(points.values()), marker='o', ms=4, label=title, **styles[name]
            )
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.set_title(f'{number:,} candidates')
        axes.set_xlabel('clicks of the user')
        axes.spines[['top', 'right']].set_visible(False)
    all_axes[0, 0].set_ylabel('milliseconds of a request')
    all_axes[0, -1].legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str], sizes: Sizes = SIZES) -> None:
    parser = make_parser('speed.history_length', __doc__)
    parser.add_argument('--lengths', nargs='+', type=int, default=list(LENGTHS))
    parser.add_argument('--candidates', nargs='+', type=int, default=[100, 1000])
    parser.add_argument('--repeats', type=int, default=11, help='turns of each')
    parser.add_argument('--limit', type=float, default=0.5, help='seconds of what takes turns')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--json', type=Path, help='file for the milliseconds of each turn')
    parser.add_argument('--figure', type=Path, help='PNG file to write')
    args = parser.parse_args(arguments)
    prepare(threads=1)
    found = measure(args, sizes)
    publish(render(found, args, sizes), args.markdown)
    if args.json is not None:
        args.json.write_text(json.dumps(in_milliseconds(found), indent=1) + '\n')
    if args.figure is not None:
        draw(found, args.figure)


def in_milliseconds(found: Found) -> list[dict[str, Any]]:
    return [
        {
            'candidates': number, 'clicks': length, 'model': name,
            'milliseconds': [round(1e3 * seconds, 3) for seconds in turns],
        }
        for number, by_length in found.items()
        for length, times in by_length.items()
        for name, turns in times.items()
    ]  # fmt: skip
