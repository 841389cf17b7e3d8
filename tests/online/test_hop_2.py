from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.datasets import IdMap
from mag.online import EVENT, Replica, RowLayout, Snapshot, SqliteStream, checksum_of
from mag.online.pair_runs import PairRuns, pack_pairs, unpack_pairs
from mag.online.snapshot import write_snapshot
from mag.schema import NEIGHBOR_TYPE

LAST = 2**31 - 1
NODES = {
    'user': np.array([*range(18), LAST, LAST - 1, -1]),
    'item': np.array([*range(15), LAST, LAST - 1, -1]),
}


def draw(num: int) -> np.ndarray:
    r"""Events with repeats, some of nodes that no snapshot has, and of the last that there can
    be."""
    random = np.random.default_rng(3)
    events = np.empty(num, EVENT)
    for node, number in (('user', 16), ('item', 13)):
        events[node] = random.integers(0, number, num)
        events[node][random.random(num) < 0.05] = LAST
    events['time'] = np.arange(num) // 2
    events['clicked'] = random.random(num) < 0.7
    return events


def sums(
    events: np.ndarray, cluster: dict[str, np.ndarray], first: int = 0
) -> dict[str, dict[int, Any]]:
    r"""Hop 2 of users and items by a loop: that of users as it is, and that of both by own
    increments from a position on."""
    pairs: list[Any] = []
    hop_1: dict[Any, Any] = defaultdict(lambda: np.zeros(3, np.int64))
    own: dict[str, dict[int, Any]] = {node: defaultdict(lambda: np.zeros(3, np.int64)) for node in
                                      ('user', 'item')}  # fmt: skip

    def add(user: int, item: int) -> None:
        own['user'][user] += hop_1['item', item]
        own['item'][item] += hop_1['user', user]

    for place, (user, item, _, clicked) in enumerate(events.tolist()):
        if place == first:
            for pair in pairs:
                add(*pair)
        if not clicked or (user, item) in pairs:
            continue
        pairs.append((user, item))
        for at, node, other in (('item', item, user), ('user', user, item)):
            of = cluster['user' if at == 'item' else 'item']
            if other < len(of) and of[other] >= 0:
                hop_1[at, node][of[other]] += 1
        if place >= first:
            add(user, item)
    if first == len(events):
        for pair in pairs:
            add(*pair)
    exact: dict[int, Any] = defaultdict(lambda: np.zeros(3, np.int64))
    for user, item in pairs:
        exact[user] += hop_1['item', item]
    return {'user': exact, 'own_user': own['user'], 'item': own['item']}


def start(
    events: np.ndarray, cluster: dict[str, np.ndarray], folder: Path
) -> tuple[Replica, SqliteStream]:
    r"""A replica of a snapshot after some events of known nodes, and its log, which holds them."""
    layout = RowLayout(2, {'user': [3], 'item': [3]})
    clicks = events[events['clicked'] == 1]
    pairs = np.stack(unpack_pairs(np.unique(pack_pairs(clicks['user'], clicks['item']))))
    rows = {node: layout.empty(node, len(of)) for node, of in cluster.items()}
    for user, item in pairs.T.tolist():
        rows['user']['pairs'][user, cluster['item'][item]] += 1
        rows['item']['pairs'][item, cluster['user'][user]] += 1
    hop_2 = sums(events, cluster, len(events))
    path = write_snapshot(
        folder,
        model='macgnn',
        position=len(events),
        checksum=checksum_of(events),
        time=0,
        layout=layout,
        resolutions={node: ['cluster'] for node in NEIGHBOR_TYPE},
        clusters={node: of[None] for node, of in cluster.items()},
        rows=rows,
        hop_2={
            node: np.array([hop_2[node][at] for at in range(len(of))], np.int64).reshape(-1, 3)
            for node, of in cluster.items()
        },
        cells={(0, 0): np.zeros((4, 4, 2), np.int64)},
        pairs=pairs,
        id_maps={node: IdMap(range(len(of))) for node, of in cluster.items()},
        attributes={'user': {}, 'item': {}},
        contexts=[],
        weights={'weight': torch.zeros(1)},
    )
    stream = SqliteStream(folder / 'events.db')
    stream.append(events, 0)
    return Replica(Snapshot.open(path), stream), stream


def known(number: int, seed: int) -> np.ndarray:
    r"""Clusters of nodes, some of which are in none."""
    return np.random.default_rng(seed).integers(-1, 3, number)


@pytest.mark.parametrize(
    ('num_users', 'num_items', 'position'),
    [(0, 0, 0), (12, 9, 0), (16, 13, 120)],
    ids=['of nobody', 'of nothing', 'of a history'],
)
def test_hop_2_of_users_is_that_of_the_whole_log_at_each_position(
    num_users: int, num_items: int, position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pieces a user.
    monkeypatch.setattr('mag.online.replica._PIECE', 4)
    events = draw(320)
    history = events[:position]
    for node, number in (('user', num_users), ('item', num_items)):
        history[node] %= max(number, 1)
    cluster = {'user': known(num_users, 1), 'item': known(num_items, 2)}
    replica, stream = start(history, cluster, tmp_path)
    stream.append(events[position:], position)
    for limit in [*[1] * 60, *[37] * 10]:
        log = events[: replica.position]
        expected = sums(log, cluster, position)
        for node, nodes in NODES.items():
            want = np.array([expected[node][at] for at in nodes.tolist()])
            assert replica.hop_2(node, nodes).tobytes() == want.tobytes()
            # Of one alone, as a request asks.
            assert replica.hop_2(node, nodes[4:5]).tobytes() == want[4:5].tobytes()
        assert replica.has_exact_hop_2(NODES['user']).all()
        replica.follow(limit)
    assert replica.position == len(events)
    if num_users > 0:
        assert expected['user'][3].sum() > expected['own_user'][3].sum()


def test_hop_2_of_users_of_more_items_than_are_summed_is_that_of_own_increments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mag.online.replica._MAX_SUMMED', 6)
    events = draw(320)
    cluster = {'user': known(16, 1), 'item': known(13, 2)}
    for node, of in cluster.items():
        events[node][:90] %= len(of)
    replica, stream = start(events[:90], cluster, tmp_path)
    stream.append(events[90:220], 90)
    while replica.follow(50) > 0:
        pass
    expected = sums(events[:220], cluster, 90)
    clicks = np.unique(events[['user', 'item']][:220][events['clicked'][:220] == 1])
    number = np.array([(clicks['user'] == user).sum() for user in NODES['user']])
    is_exact = replica.has_exact_hop_2(NODES['user'])
    np.testing.assert_array_equal(is_exact, number <= 6)
    assert 3 < is_exact.sum() < 18
    found = replica.hop_2('user', NODES['user'])
    for user, of_user, exactly in zip(NODES['user'].tolist(), found, is_exact):
        np.testing.assert_array_equal(of_user, expected['user' if exactly else 'own_user'][user])


def test_runs_of_pairs_hold_what_a_set_holds() -> None:
    random = np.random.default_rng(0)
    runs, pairs = PairRuns(), set[tuple[int, int]]()
    users = np.array([*range(12), LAST, -1])
    for size in [1] * 40 + [0, 200, 5, 3000, 1, 7]:
        user = random.choice(users[:-1], size)
        item = random.choice([*range(500), LAST], size)
        pair = np.unique(pack_pairs(user, item))
        is_there = runs.has(pair)
        assert is_there.tolist() == [one in pairs for one in zip(*map(list, unpack_pairs(pair)))]
        runs.add(pair[~is_there])
        pairs.update(zip(user.tolist(), item.tolist()))
        owner, of_user = runs.items_of(users)
        found = list(zip(users[owner].tolist(), of_user.tolist()))
        assert len(found) == len(pairs) and set(found) == pairs
    # Each run is four times the next, so that they are few.
    sizes = [len(run) for run in runs._runs]
    assert sum(sizes) == len(pairs) and sizes[0] > 2000
    assert all(one >= 4 * other for one, other in zip(sizes, sizes[1:]))
