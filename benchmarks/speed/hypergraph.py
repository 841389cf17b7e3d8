r"""What a hypergraph convolution takes, against PyG's layer of the same name and the one of
DeepHypergraph (dhg), by the authors of HGNN.

A step is forward and backward, towards features and parameters, in one layer of as many channels.
Time is measured in turn, and compared pair by pair, so that a slow moment of the machine hits both;
memory is the most that a step holds at once beyond its inputs. PyG's layer differs in
normalization, and lets no weights of hyperedges pass (see mag.nn.HypergraphConv). DeepHypergraph's
computes what mag's does, by the product with a node-by-node matrix, which is made once, before, and
is neither in its time nor in its memory. Timings mean something only on a machine that does nothing
else.

    python benchmarks speed.hypergraph --markdown benchmarks/speed/hypergraph.md
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from dhg import Hypergraph
from dhg.nn import HGNNConv
from records import made_here, make_parser, publish, table
from timing import bytes_of, in_words, median_ratio, seconds_of, take_turns
from torch import Tensor, nn
from torch_geometric.nn import HypergraphConv as PyGHypergraphConv

from mag.nn import HypergraphConv

NAMES = ('PyG', 'mag', 'mag, learned weights', 'DeepHypergraph')
PACKAGES = ('pyg-mag', 'torch', 'torch-geometric', 'dhg')
# Incidences for a node and for a hyperedge.
MEAN_SIZE = 10
# How fast the sizes of hyperedges fall, as the clicks of items do.
EXPONENT = 0.8
# Of a node-by-node matrix: making it takes some hundred bytes an entry.
MOST_ENTRIES = 100_000_000


def make_hypergraph(num_incidences: int) -> tuple[Tensor, int]:
    r"""Incidences, and how many nodes there are, which is the number of hyperedges, too."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = num_incidences // MEAN_SIZE
    node = torch.randint(num_nodes, (num_incidences,), generator=generator)
    share = torch.arange(1, num_nodes + 1, dtype=torch.float64).pow(-EXPONENT).cumsum(0)
    place = torch.rand(num_incidences, dtype=torch.float64, generator=generator) * share[-1]
    hyperedge = torch.searchsorted(share, place).clamp(max=num_nodes - 1)
    return torch.stack([node, hyperedge]), num_nodes


def count_pairs(num_incidences: int) -> int:
    r"""How many pairs of nodes share a hyperedge, hyperedge by hyperedge."""
    return int(make_hypergraph(num_incidences)[0][1].bincount().square().sum())


def make_dhg(hyperedge_index: Tensor, num_nodes: int) -> Hypergraph:
    r"""DeepHypergraph's hypergraph, with its matrix made."""
    node, hyperedge = hyperedge_index[:, hyperedge_index[1].argsort(stable=True)]
    sizes = hyperedge.bincount(minlength=num_nodes).tolist()
    members = [part.unique().tolist() for part in node.split(sizes) if part.numel() > 0]
    hypergraph = Hypergraph(num_nodes, members)
    hypergraph.L_HGNN  # noqa: B018  (made where it is first asked for, and kept)
    return hypergraph


def make_step(name: str, num_incidences: int, channels: int) -> Callable[[], None]:
    torch.manual_seed(0)
    hyperedge_index, num_nodes = make_hypergraph(num_incidences)
    x = torch.randn(num_nodes, channels, requires_grad=True)
    gradient = torch.randn(num_nodes, channels)
    weight = torch.nn.Parameter(torch.ones(num_nodes)) if name.endswith('weights') else None
    conv: nn.Module = HypergraphConv(channels, channels)
    if name == 'PyG':
        conv = PyGHypergraphConv(channels, channels, bias=False)
    arguments: tuple[Any, ...] = (hyperedge_index, weight)
    numbers = {'num_edges' if name == 'PyG' else 'num_hyperedges': num_nodes}
    if name == 'DeepHypergraph':
        conv = HGNNConv(channels, channels, bias=False, is_last=True)
        arguments, numbers = (make_dhg(hyperedge_index, num_nodes),), {}

    def step() -> None:
        conv(x, *arguments, **numbers).backward(gradient)
        for tensor in (x, weight, *conv.parameters()):
            if tensor is not None:
                tensor.grad = None

    return step


def measure(num_incidences: int, args: argparse.Namespace) -> Iterator[list[str]]:
    r"""The rows of one size."""
    pairs = count_pairs(num_incidences)
    names = NAMES if pairs <= MOST_ENTRIES else NAMES[:-1]
    steps = {name: make_step(name, num_incidences, args.channels) for name in names}
    calls = dict.fromkeys(names, max(1, args.work // num_incidences))
    if pairs > args.work:
        calls['DeepHypergraph'] = 1
    for step in steps.values():
        step()
    seconds = take_turns(
        {name: partial(seconds_of, steps[name], calls[name]) for name in names}, args.repeats
    )
    memory = {name: bytes_of(step) for name, step in steps.items()}
    for name in names:
        yield [
            f'{num_incidences:,}',
            name,
            f'{1000 * median(seconds[name]):.2f}',
            f'{median_ratio(seconds[name], seconds["PyG"]):.2f}',
            f'{memory[name] / 1e6:,.1f}',
            f'{memory[name] / memory["PyG"]:.2f}',
            f'{pairs:,}',
        ]


def run(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(args.threads)
    yield '# What a hypergraph convolution takes'
    yield ''
    yield (
        f'A step, forward and backward, of {args.channels} channels on random hypergraphs with a '
        f'node and a hyperedge for {MEAN_SIZE} incidences, and sizes of hyperedges that fall by a '
        f'power law. The last column counts the pairs of nodes within hyperedges: as many entries, '
        f'but for pairs that share several, has the matrix that DeepHypergraph multiplies by, and '
        f"PyG's and mag's layer never make; it is made before, and counts neither as time nor as "
        f'memory. Above {MOST_ENTRIES:,} entries DeepHypergraph is left out. On '
        f'{in_words(args.threads)}; the median of {args.repeats} runs in '
        f'turn, and of their ratios; memory is the most that a step holds at once.'
    )
    yield ''
    yield from table(
        ['incidences', 'layer', 'a step, ms', 'PyG = 1', 'memory, MB', 'PyG = 1', 'pairs'],
        [row for num_incidences in args.incidences for row in measure(num_incidences, args)],
    )
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.hypergraph', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--incidences', nargs='+', type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument('--channels', type=int, default=64, help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=1, help='default: %(default)s')
    parser.add_argument('--repeats', type=int, default=7, help='runs of each; default: %(default)s')
    parser.add_argument(
        '--work', type=int, default=1_000_000, help='incidences a run; default: %(default)s'
    )
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
