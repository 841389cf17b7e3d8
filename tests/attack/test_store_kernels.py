r"""The kernels of a store against plain Python that looks at each event, window and node."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mag.store.kernels import (
    count_partition,
    gather_rows,
    gather_second,
    neighbor_rows,
    partition_events,
    second_hop,
)

NUM_USERS, NUM_ITEMS, NUM_WINDOWS, NUM_RECENT = 4, 5, 3, 2
NUM_CLUSTERS = {'user': 2, 'item': 3}
NEIGHBOR_TYPE = {'user': 'item', 'item': 'user'}
BASE = np.zeros(1, np.int64)

# A window, a user, an item, and whether it was clicked.
Event = tuple[int, int, int, bool]
# Of each node, its cluster and the first window that knows it.
Clusters = dict[str, list[tuple[int, int]]]


def events_of(node_type: str, events: list[Event], window: int) -> list[tuple[int, int, bool]]:
    r"""Node, neighbor and click of the events that a window knows."""
    sides = {'user': (1, 2), 'item': (2, 1)}
    node, neighbor = sides[node_type]
    return [(of[node], of[neighbor], of[3]) for of in events if of[0] <= window]


def count_hop(
    node_type: str, events: list[Event], clusters: Clusters, window: int, kind: str
) -> Counter:
    r"""How many events or pairs of a node are of a cluster."""
    known = events_of(node_type, events, window)
    found = [(node, near) for node, near, click in known if click or kind == 'exposures']
    if kind == 'pairs':
        found = list(dict.fromkeys(found))
    of_neighbor = clusters[NEIGHBOR_TYPE[node_type]]
    return Counter(
        (node, of_neighbor[near][0])
        for node, near in found
        if of_neighbor[near][0] >= 0 and of_neighbor[near][1] <= window
    )


def check_kernels(events: list[Event], clusters: Clusters, cut: int) -> None:
    events = sorted(events, key=lambda of: of[0])
    pieces = []
    for piece in (events[:cut], events[cut:]):
        window, user, item, click = np.array(piece, np.int32).reshape(-1, 4).T
        pieces.append(
            partition_events(
                user, item, window, click == 1, dict.fromkeys(NEIGHBOR_TYPE, 1), NUM_WINDOWS
            )
        )
    counts = {}
    for node_type, other in NEIGHBOR_TYPE.items():
        cluster, known = np.array(clusters[other]).T
        counts[node_type] = count_partition(
            [piece[node_type].record for piece in pieces],
            len(clusters[node_type]),
            [cluster.astype(np.int32)],
            [known.astype(np.uint8)],
            NUM_WINDOWS,
            [NUM_CLUSTERS[other]],
            NUM_RECENT,
        )
    for node_type, other in NEIGHBOR_TYPE.items():
        of, far = counts[node_type], counts[other]
        first, size = NUM_CLUSTERS[other], (NUM_WINDOWS, NUM_CLUSTERS[node_type])
        rows = neighbor_rows(far.indptr[0], far.code[0], far.count[0], *size)
        pairs = of.pairs_indptr, of.pairs_neighbor, of.pairs_window
        second = second_hop(*pairs, *rows, BASE, *size)
        node = np.arange(-1, len(clusters[node_type]))
        for window in range(NUM_WINDOWS):
            asked = node, np.full(len(node), window)
            tables = {
                kind: gather_rows(
                    of.indptr[0], of.code[0], of.count[0], *asked, NUM_WINDOWS, first, kind
                )
                for kind in ('exposures', 'clicks', 'pairs')
            }
            expected = {
                kind: count_hop(node_type, events, clusters, window, kind) for kind in tables
            }
            tables['second'] = gather_second(*second, *asked)
            past = [(v, u) for v, u, click in events_of(node_type, events, window) if click]
            of_neighbors = count_hop(other, events, clusters, window, 'pairs')
            expected['second'] = Counter()
            for v, u in set(past):
                for cluster in range(NUM_CLUSTERS[node_type]):
                    expected['second'][v, cluster] += of_neighbors[u, cluster]
            for kind, table in tables.items():
                for (place, cluster), number in np.ndenumerate(table):
                    assert number == expected[kind][node[place], cluster], kind
            for v, recent in enumerate(of.recent[:, window].tolist()):
                last = [u for other, u in past if other == v][-NUM_RECENT:]
                assert recent == [-1] * (NUM_RECENT - len(last)) + last


def test_kernels_of_a_store(attack: Any) -> None:
    window = st.integers(0, NUM_WINDOWS)
    event = st.tuples(
        window, st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1), st.booleans()
    )
    clusters = {
        node_type: st.lists(
            st.tuples(st.integers(-1, NUM_CLUSTERS[node_type] - 1), window),
            min_size=number,
            max_size=number,
        )
        for node_type, number in (('user', NUM_USERS), ('item', NUM_ITEMS))
    }
    attack(
        check_kernels,
        st.lists(event, max_size=30),
        st.fixed_dictionaries(clusters),
        st.integers(0, 30),
        examples=30,
    )
