r"""What it takes to cluster the nodes of a store: projection of their clicks and assignment.

Users of a power-law log are projected by the kernel of a store, without a table of signs, and by
the product of the clicks and such a table, as in memory; both give the same. FAISS finds centroids
from a sample and assigns all.

Timed is processor time on one thread, which is the time on a machine that does nothing else.

    python benchmarks speed.store_clusters --markdown benchmarks/speed/store_clusters.md
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from records import made_here, make_parser, publish, table
from scipy.sparse import csr_matrix
from timing import processor_seconds_of, take_turns

from mag.macro_graph import Grouping
from mag.macro_graph.grouping import raw_behavior, sample_nodes, scale_projection
from mag.store.kernels import sum_signs

PACKAGES = ('pyg-mag', 'numba', 'numpy', 'scipy', 'torch', 'faiss-cpu')
CLICKS_PER_USER, NUM_CLUSTERS = 10, 200
PIECE = 2**16


def make_clicks(num_users: int) -> csr_matrix:
    r"""Distinct clicks of users on a tenth as many items, few of which are clicked by many."""
    rng = np.random.default_rng(0)
    num = num_users * CLICKS_PER_USER
    item = (rng.random(num) ** 3 * (num_users // 10)).astype(np.int32)
    user = rng.integers(0, num_users, num, dtype=np.int32)
    clicks = csr_matrix((np.ones(num, np.float32), (user, item)), (num_users, num_users // 10))
    clicks.data[:] = 1
    return clicks


def by_kernel(clicks: csr_matrix, dim: int) -> torch.Tensor:
    indptr = clicks.indptr.astype(np.int64)
    norm = np.sqrt(np.diff(indptr).astype(np.float32))
    return scale_projection(sum_signs(indptr, clicks.indices, dim, 0), norm)


def in_memory(clicks: csr_matrix, dim: int) -> torch.Tensor:
    return raw_behavior(clicks, dim, 0)


def measure(num_users: int, dim: int, repeats: int) -> list[str]:
    r"""The row of one size and width.

    Raises:
        RuntimeError: If the projections differ.
    """
    clicks = make_clicks(num_users)
    pieces = [clicks[start : start + PIECE] for start in range(0, num_users, PIECE)]
    rows = in_memory(clicks, dim)
    if not torch.equal(torch.cat([by_kernel(piece, dim) for piece in pieces]), rows):
        raise RuntimeError(f'The projections of {num_users:,} users to {dim} signs differ.')
    grouping = Grouping(NUM_CLUSTERS)
    chosen = sample_nodes(np.arange(num_users), grouping.max_points, 0)
    fit = processor_seconds_of(partial(grouping.fit, rows[chosen]))
    ways: dict[str, Callable[[], object]] = {
        'memory': partial(in_memory, clicks, dim),
        'kernel': lambda: [by_kernel(piece, dim) for piece in pieces],
        'assign': partial(grouping.assign, rows),
    }
    seconds = take_turns(
        {name: partial(processor_seconds_of, way) for name, way in ways.items()}, repeats
    )
    microseconds = (median(of) / num_users * 1e6 for of in seconds.values())
    return [
        f'{num_users:,}',
        f'{clicks.nnz:,}',
        str(dim),
        *(f'{of:.2f}' for of in microseconds),
        f'{len(chosen):,}',
        f'{fit:.3f}',
    ]


def run(args: argparse.Namespace) -> Iterator[str]:
    yield '# What it takes to cluster the nodes of a store'
    yield ''
    yield (
        f'Projection of about {CLICKS_PER_USER} clicks a user to random signs, and '
        f'assignment to {NUM_CLUSTERS} clusters. In memory the clicks are multiplied by a table of '
        f'signs; the kernel makes signs as it needs them, and gives the same. Processor time on '
        f'one thread, in microseconds a user, the median of {args.repeats} runs in turn; and once, '
        f'what it takes to find centroids from a sample.'
    )
    yield ''
    yield from table(
        ['users', 'distinct clicks', 'signs', 'projected in memory, us', 'by the kernel, us',
         'assigned, us', 'sample', 'centroids, s'],
        [measure(*of, args.repeats) for of in product(args.users, args.dims)],
    )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.store_clusters', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--users', nargs='+', type=int, default=[100_000, 1_000_000])
    parser.add_argument('--dims', nargs='+', type=int, default=[128, 256], help='signs a user')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
