r"""How many edges the macro graph leaves: those of users and items to their neighbors one and two
hops away, against those to macro nodes that are not 0, as of the test part.

    python benchmarks accuracy.edges --dataset movielens-1m kuairand --root data \
        --markdown benchmarks/accuracy/edges.md
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import made_here, make_parser, publish, table
from scipy.sparse import csr_matrix
from torch_geometric.data import HeteroData

from accuracy.count_data import DATASETS, PROTOCOLS
from accuracy.harness import PACKAGES
from mag.schema import CLICKS, hops
from mag.transforms import MacroCoarsen

# Macro nodes of the benchmarks on real logs, and those of the paper's production system.
GROUPS: tuple[dict[str, Any], ...] = (
    {'user': 20, 'item': 'category'},
    {'user': 200, 'item': 300},
)


def num_neighbors(part: HeteroData) -> int:
    r"""The number of neighbors that a part's users and items have, one and two hops away."""
    shape = part['user'].num_nodes, part['item'].num_nodes
    user, item = part[CLICKS].edge_index.numpy()
    clicks = csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)), shape)
    clicks.data[:] = 1
    # Each pair of a user and an item is a neighbor of either.
    return 2 * clicks.nnz + (clicks @ clicks.T).nnz + (clicks.T @ clicks).nnz


def num_macro_edges(part: HeteroData, groups: dict[str, Any]) -> int:
    r"""The number of macro nodes that a part's users and items have, one and two hops away."""
    coarse = MacroCoarsen(groups, exposure_hops=0)(part)
    return sum(
        coarse[edge_type].edge_index.size(1)
        for node_type in ('user', 'item')
        for edge_type in hops(coarse, node_type)
    )


def row(dataset: str, root: str) -> list[str]:
    of_log = DATASETS[dataset]
    part = PROTOCOLS['rolling'].split(of_log.load(root))[2]
    neighbors = num_neighbors(part)
    cells = [of_log.title, f'{part[CLICKS].edge_index.size(1):,}', f'{neighbors:,}']
    for groups in GROUPS:
        left = num_macro_edges(part, groups)
        cells.append(f'{left:,} ({1 - left / neighbors:.2%} fewer)')
    return cells


def run(logs: dict[str, str]) -> Iterator[str]:
    yield '# Edges that the macro graph leaves'
    yield ''
    yield (
        'Of all users and items, the neighbors one and two hops away that the clicks before the '
        'test part give them, and the macro nodes with a count above 0 at the same distances.'
    )
    yield ''
    names = [f'macro users: {groups["user"]}, macro items: {groups["item"]}' for groups in GROUPS]
    header = ['log', 'clicks', 'neighbors', *names]
    yield from table(header, [row(dataset, root) for dataset, root in logs.items()])
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.edges', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument(
        '--root', default='data', help='folder with one a log; default: %(default)s'
    )
    parser.add_argument(
        '--dataset', nargs='+', choices=['movielens-1m', 'kuairand'], default=['movielens-1m']
    )
    args = parser.parse_args(arguments)
    logs = {dataset: str(Path(args.root, dataset)) for dataset in args.dataset}
    publish(run(logs), args.markdown)
