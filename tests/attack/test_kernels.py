r"""Every kernel against plain Python that looks at each row: one strategy, one oracle and one test
each. Inputs are small, so that ties, repetitions and nodes without anything are common."""

import math
from collections import Counter, defaultdict
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets.micro_video import _draw_negatives
from mag.loader import BatchIndexSampler, HistoryLoader, PairLoader, PathSampler
from mag.macro_graph import (
    Grouping,
    MacroEdges,
    MacroState,
    Seen,
    TargetKeys,
    TargetState,
    TargetView,
    counts_before,
    target_counts,
)
from mag.metrics import bayes_optimal, group_auroc
from mag.negatives import (
    NEVER,
    ClickedByThen,
    ItemsByArrival,
    ItemsByEvents,
    UnclickedItems,
    draw_negatives,
    hash_clicks,
)
from mag.nn import HypergraphConv, IntentionConv, MacroConv, SlotHypergraphConv
from mag.transforms import (
    BehaviorGraph,
    InterestHypergraph,
    MacroCoarsen,
    RecentNeighbors,
    TemporalSplit,
)

CLICKS = ('user', 'clicks', 'item')
NEIGHBOR_TYPE = {'user': 'item', 'item': 'user'}
NUM_USERS, NUM_ITEMS = 4, 5
USER, ITEM = st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)
TIME = st.integers(0, 9)
SEED = st.integers(0, 2**31 - 1)

Pair = tuple[int, int]
Click = tuple[int, int, int]


def columns(rows: list[tuple], width: int) -> list[Tensor]:
    return list(torch.tensor(rows, dtype=torch.long).view(-1, width).t().contiguous())


def micro_graph(clicks: list[Click]) -> HeteroData:
    r"""A graph of clicks of a user, an item and a time, in the order that they have."""
    user, item, time = columns(clicks, 3)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    data['user'].group, data['user'].num_group = torch.arange(NUM_USERS) % 2, 2
    data['item'].category, data['item'].num_category = torch.arange(NUM_ITEMS) % 3, 3
    data[CLICKS].edge_index, data[CLICKS].time = torch.stack([user, item]), time
    return data


# Macro edges.


def count_edges(
    clicks: list[Pair], cluster: dict[str, list[int]], num_hops: int, mode: str, binary: bool
) -> dict[tuple[str, int], dict[tuple[int, int, int], int]]:
    r"""Eq. 5 by its words: for a node type and a hop, the count of each node, cluster of the
    neighbor and cluster of the neighbor's neighbor."""
    repeated = Counter(clicks)
    neighbors: dict[str, dict[int, dict[int, int]]] = {
        node_type: defaultdict(dict) for node_type in NEIGHBOR_TYPE
    }
    for (user, item), number in repeated.items():
        neighbors['user'][user][item] = neighbors['item'][item][user] = 1 if binary else number
    edges = {}
    for node_type in NEIGHBOR_TYPE:
        reached = {node: Counter([node]) for node in range(len(cluster[node_type]))}
        at = node_type
        for hop in range(1, num_hops + 1):
            counts: Counter = Counter()
            for node, hood in reached.items():
                following: Counter = Counter()
                for near, walks in hood.items():
                    for far, number in neighbors[at][near].items():
                        # A set holds each neighbor once, however many walks end there.
                        number *= walks if mode == 'walk' else 1
                        counts[node, cluster[at][near], cluster[NEIGHBOR_TYPE[at]][far]] += number
                        following[far] += number
                reached[node] = following
            edges[node_type, hop] = dict(counts)
            at = NEIGHBOR_TYPE[at]
    return edges


def known_clusters(clicks: list[Pair], cluster: dict[str, list[int]]) -> list[Tensor]:
    r"""The clusters of users and items up to the last one that was clicked, :obj:`-1` of others."""
    known = []
    for row, node_type in enumerate(NEIGHBOR_TYPE):
        clicked = {click[row] for click in clicks}
        last = max(clicked, default=-1) + 1
        values = [cluster[node_type][node] if node in clicked else -1 for node in range(last)]
        known.append(torch.tensor(values, dtype=torch.long))
    return known


def check_macro_edges(
    pieces: list[list[Pair]],
    cluster: dict[str, list[int]],
    num_hops: int,
    mode: str,
    binary: bool,
) -> None:
    r"""In pieces, with nodes that come, and get their clusters, with their first clicks; and all at
    once, in reverse."""
    sizes = {'user': 2, 'item': 3}
    none = torch.empty(0, dtype=torch.long)
    grown = MacroEdges(none, none, sizes, num_hops, mode, binary)
    so_far: list[Pair] = []
    for piece in pieces:
        so_far += piece
        grown.update(torch.stack(columns(piece, 2)), *known_clusters(so_far, cluster))
    full = {node_type: torch.tensor(values) for node_type, values in cluster.items()}
    grown.update(torch.stack(columns([], 2)), full['user'], full['item'])
    whole = MacroEdges(full['user'], full['item'], sizes, num_hops, mode, binary)
    whole.update(torch.stack(columns(so_far[::-1], 2)))

    expected = count_edges(so_far, cluster, num_hops, mode, binary)
    for (node_type, hop), counts in expected.items():
        for edges in (grown, whole):
            table = edges.tensors(node_type, hop).to_dense()
            found = {tuple(at): table[tuple(at)].item() for at in table.nonzero().tolist()}
            assert found == counts
            assert np.array_equal(edges.counts[node_type][hop - 1], table.sum(1).numpy())
    coarse = Counter()
    for (_, near, far), number in expected['user', 1].items():
        coarse[near, far] += number
    assert {at: whole.coarse()[at] for at in coarse} == coarse
    assert whole.coarse().sum() == sum(coarse.values())


CLUSTERS = st.fixed_dictionaries(
    {
        'user': st.lists(st.integers(0, 1), min_size=NUM_USERS, max_size=NUM_USERS),
        'item': st.lists(st.integers(0, 2), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    }
)
HOPS, MODE = st.integers(1, 4), st.sampled_from(['set', 'walk'])


def test_macro_edges(attack: Any) -> None:
    pieces = st.lists(st.lists(st.tuples(USER, ITEM), max_size=6), max_size=4)
    attack(check_macro_edges, pieces, CLUSTERS, HOPS, MODE, st.booleans(), examples=100)


def check_macro_state(
    pieces: list[list[Pair]],
    cluster: dict[str, list[int]],
    num: int,
    num_hops: int,
    mode: str,
    binary: bool,
) -> None:
    r"""The macro rows of all nodes, and of one that is unknown, after each of some updates that
    began without any node."""
    none = torch.empty(0, dtype=torch.long)
    sizes = {'user': 2, 'item': 3}
    edges = MacroEdges(none, none, sizes, num_hops, mode, binary)
    state = MacroState(edges, {node_type: none.view(0, num) for node_type in NEIGHBOR_TYPE})
    so_far: list[Pair] = []
    for piece in [*pieces, []]:
        so_far += piece
        state.update(torch.stack(columns(piece, 2)), *known_clusters(so_far, cluster))
        counts = count_edges(so_far, cluster, num_hops, mode, binary)
        for row, (node_type, other) in enumerate(NEIGHBOR_TYPE.items()):
            number = max((click[row] for click in so_far), default=-1) + 1
            assert state.num_nodes[node_type] == number
            hops, recent = state.rows(node_type, torch.arange(-1, number))
            for node in range(-1, number):
                last = [click[1 - row] for click in so_far if click[row] == node]
                assert recent[node + 1].tolist() == ([-1] * num + last)[-num:]
            for hop, found in enumerate(hops, start=1):
                reached = other if hop % 2 else node_type
                expected = torch.zeros(number + 1, sizes[reached])
                for (node, _, far), count in counts[node_type, hop].items():
                    expected[node + 1, far] += count
                assert torch.equal(found, expected)


def test_macro_states(attack: Any) -> None:
    pieces = st.lists(st.lists(st.tuples(USER, ITEM), max_size=6), max_size=4)
    num = st.integers(1, 3)
    attack(check_macro_state, pieces, CLUSTERS, num, HOPS, MODE, st.booleans(), examples=60)


# What is made of a history by windows.


def rolling(clicks: list[Click], cutoffs: list[int]) -> HeteroData:
    r"""A part as :class:`TemporalSplit` makes it, that shows every item to every user as each
    window begins. Without cutoffs there is one window, after all clicks."""
    data = micro_graph(clicks)
    pairs = list(product(range(NUM_USERS), range(NUM_ITEMS)))
    moments = cutoffs or [100]
    store = data[CLICKS]
    store.edge_label_index = torch.stack(columns(pairs * len(moments), 2))
    store.edge_label = torch.zeros(len(pairs) * len(moments))
    store.edge_label_time = torch.tensor(moments).repeat_interleave(len(pairs))
    if cutoffs:
        store.cutoff = torch.tensor(cutoffs)
        store.edge_label_window = torch.arange(len(cutoffs)).repeat_interleave(len(pairs))
    return data


def before_cutoffs(clicks: list[Click], cutoffs: list[int]) -> list[Click]:
    return [click for click in clicks if not cutoffs or click[2] < cutoffs[-1]]


def check_windows(
    clicks: list[Click], cutoffs: list[int], num: int, form: str, coarsen: MacroCoarsen
) -> None:
    r"""The macro rows and recent lists that an exposure of each window reads."""
    clicks = sorted(before_cutoffs(clicks, cutoffs), key=lambda click: click[2])
    data = RecentNeighbors(num, form)(rolling(clicks, cutoffs))
    try:
        data = coarsen(data)
    except ValueError as error:
        if 'at least as many nodes' in str(error):
            reject()
        raise
    cluster = {node_type: data[node_type].cluster.tolist() for node_type in NEIGHBOR_TYPE}
    loader = PairLoader(data)
    batch = loader.dataset[torch.arange(len(loader.dataset))]
    row = 0
    for moment in cutoffs or [100]:
        known = [(user, item) for user, item, time in clicks if time < moment]
        edges = count_edges(known, cluster, coarsen.num_hops, coarsen.mode, coarsen.binary)
        counts: dict[tuple[str, int], Counter] = {}
        for key, entries in edges.items():
            counts[key] = Counter()
            for (node, _, far), number in entries.items():
                counts[key][node, far] += number
        by_user = sorted(known) if form == 'released' else known
        for user, item in product(range(NUM_USERS), range(NUM_ITEMS)):
            assert (batch.user[row], batch.item[row]) == (user, item)
            for node_type, node, hops in (
                ('user', user, batch.user_hops),
                ('item', item, batch.item_hops),
            ):
                for hop, table in enumerate(hops, start=1):
                    entries = table[row].tolist()
                    assert entries == [counts[node_type, hop][node, q] for q in range(len(entries))]
            items = [other for owner, other in known if owner == user][-num:]
            users = [owner for owner, other in by_user if other == item][-num:]
            assert batch.user_recent[row].tolist() == [-1] * (num - len(items)) + items
            assert batch.item_recent[row].tolist() == [-1] * (num - len(users)) + users
            row += 1


CLICK_LISTS = st.lists(st.tuples(USER, ITEM, TIME), max_size=20)
CUTOFFS = st.lists(st.integers(1, 10), max_size=3, unique=True).map(sorted)
COARSENINGS = st.builds(
    MacroCoarsen,
    groups=st.sampled_from(
        [{'user': 'group', 'item': 'category'}, {'user': 2, 'item': 'category'}]
    ),
    num_hops=HOPS,
    mode=MODE,
    binary=st.booleans(),
)


def test_macro_rows_and_recent_lists_by_window(attack: Any) -> None:
    forms = st.sampled_from(['paper', 'released'])
    attack(check_windows, CLICK_LISTS, CUTOFFS, st.integers(1, 4), forms, COARSENINGS, examples=60)


def check_histories(clicks: list[Click], length: int) -> None:
    r"""The last clicks of everybody strictly before every moment."""
    requests = list(product(range(NUM_USERS), range(-1, 12)))
    user, time = columns(requests, 2)
    loader = HistoryLoader(micro_graph(clicks), length=length)
    history = loader.request(user, torch.zeros_like(user), time).history
    in_order = sorted(clicks, key=lambda click: click[2])
    for (owner, moment), found in zip(requests, history.tolist(), strict=True):
        items = [item for user, item, time in in_order if user == owner and time < moment]
        items = items[-length:]
        assert found == [-1] * (length - len(items)) + items


def test_histories(attack: Any) -> None:
    attack(check_histories, CLICK_LISTS, st.integers(1, 4), examples=100)


# Counts at the target.


class Shown(NamedTuple):
    user: int
    item: int
    time: int
    is_clicked: bool
    # From the exposure until it is known whether it was clicked.
    delay: int
    hour: int


SHOWN = st.lists(
    st.builds(
        Shown, USER, ITEM, TIME, st.booleans(), st.sampled_from([0, 0, 1, 5]),
        st.integers(-1, 1),
    ),
    max_size=20,
).map(lambda rows: sorted(rows, key=lambda row: row.time))  # fmt: skip
HALF_LIVES = st.lists(st.sampled_from([0.5, 3.0, 1e9]), max_size=2).map(tuple)
TARGET_VIEWS = [
    TargetView('id'),
    TargetView('cluster', 'category'),
    TargetView('id', 'id', 'hour'),
    TargetView(),
]


def check_counts_before(
    events: list[tuple[int, int, int]], half_lives: tuple[float, ...], spread: int
) -> None:
    r"""Keys that follow each other, and keys that are far apart."""
    events = sorted(events, key=lambda event: event[1])
    key, time, weight = columns(events, 3)
    found = counts_before(key * spread, time, weight.view(-1, 1), half_lives)
    for row, (own, now, _) in enumerate(events):
        past = [(when, number) for other, when, number in events if other == own and when < now]
        expected = [
            sum(number * 2 ** (-(now - when) / life) for when, number in past)
            for life in (math.inf, *half_lives)
        ]
        assert found[row].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def check_target(
    rows: list[Shown],
    asked: list[tuple[int, int, int, int]],
    cluster: list[int],
    since: list[int],
    half_lives: tuple[float, ...],
    sizes: list[int],
) -> None:
    r"""All counts at once, and a state that moves in pieces and is asked between them."""
    data = micro_graph([])
    data['user'].cluster, data['user'].cluster_since = torch.tensor(cluster), torch.tensor(since)
    keys = TargetKeys(data, TARGET_VIEWS, {'hour': 2}, 'attack')

    def key(view: TargetView, user: int, item: int, time: int, hour: int) -> tuple:
        of_user = {None: None, 'id': user, 'cluster': cluster[user] if since[user] <= time else -1}
        return (
            of_user[view.user],
            {None: None, 'id': item, 'category': item % 3}[view.item],
            hour if view.exposure else None,
        )

    def by_hand(past: list[Shown], own: tuple[int, int, int, int]) -> list[list[float]]:
        found = []
        for view in TARGET_VIEWS:
            same = [
                row
                for row in past
                if row.time < own[2]
                and key(view, row.user, row.item, row.time, row.hour) == key(view, *own)
            ]
            for life in (math.inf, *half_lives):
                weights = [2 ** (-(own[2] - row.time) / life) for row in same]
                clicks = [
                    weight
                    for row, weight in zip(same, weights, strict=True)
                    if row.is_clicked and row.time + row.delay < own[2]
                ]
                found.append([sum(weights), sum(clicks)])
        return found

    def seen(part: list[Shown]) -> Seen:
        user, item, time, label, delay, hour = columns(part, 6)
        return Seen(user, item, time, time, {'hour': hour}, label, time + delay)

    def compare(found: Tensor, past: list[Shown], own: list[tuple[int, int, int, int]]) -> None:
        expected = torch.tensor([by_hand(past, row) for row in own], dtype=torch.float).view(
            found.shape
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found[..., 1] <= found[..., 0]).all()

    user, item, time, hour = columns(asked, 4)
    whole = target_counts(
        keys, seen(rows), Seen(user, item, time, time, {'hour': hour}), half_lives
    )
    compare(whole, rows, asked)
    # To the last bit the same, whoever else asks.
    one = Seen(user[-1:], item[-1:], time[-1:], time[-1:], {'hour': hour[-1:]})
    assert torch.equal(target_counts(keys, seen(rows), one, half_lives)[0], whole[-1])
    state, start = TargetState(keys, half_lives), 0
    for size in [*sizes, len(rows)]:
        new = seen(rows[start : start + size])
        state.update(new.user, new.item, new.time, new.clicked, new.contexts, new.settled)
        start += size
        past = rows[:start]
        now = past[-1].time if past else 0
        # Later ones, too, and the same ones again: asking changes nothing.
        later = [row for row in asked if row[2] >= now]
        user, item, time, hour = columns(later, 4)
        compare(state(user, item, time, {'hour': hour}), past, later)


def test_counts_before(attack: Any) -> None:
    events = st.lists(st.tuples(USER, TIME, st.integers(0, 3)), max_size=24)
    attack(check_counts_before, events, HALF_LIVES, st.sampled_from([1, 10**6]), examples=100)


def check_target_arguments() -> tuple[st.SearchStrategy, ...]:
    asked = st.lists(
        st.tuples(USER, ITEM, st.integers(0, 16), st.integers(-1, 1)), min_size=1, max_size=6
    )
    per_user = {'min_size': NUM_USERS, 'max_size': NUM_USERS}
    return (
        SHOWN,
        asked,
        st.lists(st.integers(-1, 1), **per_user),
        st.lists(st.integers(0, 12), **per_user),
        HALF_LIVES,
        st.lists(st.integers(0, 6), max_size=5),
    )


def test_counts_and_states_at_the_target(attack: Any) -> None:
    attack(check_target, *check_target_arguments(), examples=60)


def test_clicks_that_are_known_too_early_are_found(
    attack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        'mag.macro_graph.pending_clicks.PendingClicks.take', lambda self, moment: self.before(10**9)
    )
    with pytest.raises(AssertionError):
        attack(check_target, *check_target_arguments(), examples=60, shrink=False)


# Paths.


def check_paths(
    clicks: list[Click], target: Click, attribute: str | None, replace: bool, seed: int
) -> None:
    r"""The paths of one target, drawn often enough that every candidate is drawn: that one of 20 is
    never among a thousand has a chance of 1e-22."""
    data, num_rows = micro_graph(clicks), 1000
    category = data['item'].category.tolist()
    user, item, time = target
    widths = {'user': [1, 2], 'item': [2, 1]}
    sampler = PathSampler(data, widths, attribute, replace)
    rows = torch.tensor(target).view(3, 1).repeat(1, num_rows)
    paths = sampler.draw(*rows, torch.Generator().manual_seed(seed))

    def candidates(node_type: str, node: int) -> set[int]:
        return {
            number
            for number, (owner, clicked, when) in enumerate(clicks)
            if when < time
            and node == (owner if node_type == 'user' else clicked)
            and (node_type == 'item' or attribute is None or category[clicked] == category[item])
        }

    for root, node in (('user', user), ('item', item)):
        first, second = paths[root]
        levels = [([node], first.view(num_rows, 1, -1))]
        reached = 1 if root == 'user' else 0
        nodes = [
            clicks[number][reached] if number >= 0 else -1 for number in first.flatten().tolist()
        ]
        levels.append((nodes, second.view(-1, second.size(-1))))
        drawn = defaultdict(set)
        for node_type, (centers, found) in zip((root, NEIGHBOR_TYPE[root]), levels, strict=True):
            allowed = {center: candidates(node_type, center) for center in {*centers}}
            table = found.reshape(-1, found.size(-1)).tolist()
            for place, row in enumerate(table):
                center = centers[place % len(centers)]
                numbers = [number for number in row if number >= 0]
                assert row == numbers + [-1] * (len(row) - len(numbers))
                assert {*numbers} <= allowed[center]
                if replace:
                    assert len(numbers) == (len(row) if allowed[center] else 0)
                else:
                    assert len({*numbers}) == len(numbers) == min(len(row), len(allowed[center]))
                # The newest first; what shares a second has the order of the log.
                assert numbers == sorted(
                    numbers, key=lambda number: (clicks[number][2], number), reverse=True
                )
                drawn[node_type, center] |= {*numbers}
        assert drawn[root, node] == candidates(root, node)


def test_paths(attack: Any) -> None:
    target, attribute = st.tuples(USER, ITEM, TIME), st.sampled_from(['category', None])
    attack(check_paths, CLICK_LISTS, target, attribute, st.booleans(), SEED, examples=30)


# The split.


def check_split(rows: list[tuple[int, int, int, int]], split: TemporalSplit) -> None:
    r"""Of each part its rows, the cutoff of each, its history, and what was dropped."""
    user, item, time, label = columns(rows, 4)
    clicked = [row[:3] for row in rows if row[3]]
    data = micro_graph(clicked)
    store = data[CLICKS]
    store.edge_label_index, store.edge_label_time = torch.stack([user, item]), time
    store.edge_label, store.edge_label_row = label.float(), torch.arange(len(rows))

    shares = np.linspace(split.train_start, split.val_start, split.num_windows, endpoint=False)
    starts = [*shares.tolist(), split.val_start, split.test_start]
    if split.by == 'global':
        starts = [math.floor(np.quantile(time.numpy(), share)) + 1 for share in starts]

    def clock(owner: int, moment: int) -> float:
        if split.by == 'global':
            return moment
        own = [row[2] for row in rows if row[0] == owner]
        return sum(when < moment for when in own) / len(own)

    ends = [starts[-2], starts[-1], math.inf]
    cutoffs = [sorted({*starts[:-2]}), [starts[-2]], [starts[-1]]]
    in_order = sorted(clicked, key=lambda click: click[2])
    expected = []
    for cutoff, end in zip(cutoffs, ends, strict=True):
        kept, windows, num_rows = [], [], 0
        for number, (owner, shown, moment, _) in enumerate(rows):
            now = clock(owner, moment)
            if not cutoff[0] <= now < end:
                continue
            num_rows += 1
            window = sum(start <= now for start in cutoff) - 1
            earlier = [click for click in clicked if clock(click[0], click[2]) < cutoff[window]]
            is_warm = any(click[0] == owner for click in earlier) and any(
                click[1] == shown for click in earlier
            )
            if split.keep_cold or is_warm:
                kept.append(number)
                windows.append(window)
        history = [click for click in in_order if clock(click[0], click[2]) < cutoff[-1]]
        expected.append((cutoff, kept, windows, history, num_rows - len(kept)))

    if not all(kept for _, kept, *_ in expected):
        with pytest.raises(ValueError, match='leaves no'):
            split(data)
        reject()
    for part, (cutoff, kept, windows, history, num_dropped) in zip(
        split(data), expected, strict=True
    ):
        store = part[CLICKS]
        assert store.cutoff.tolist() == cutoff
        assert store.edge_label_row.tolist() == kept
        assert store.get('edge_label_window', torch.zeros(len(kept))).tolist() == windows
        found = [*zip(*store.edge_index.tolist(), store.time.tolist(), strict=True)]
        assert found == history
        assert store.num_dropped == num_dropped
        if split.by == 'user':
            assert store.position.tolist() == [clock(owner, when) for owner, _, when in found]


def test_split(attack: Any) -> None:
    rows = st.lists(
        st.tuples(USER, ITEM, TIME, st.sampled_from([0, 1, 1])), min_size=8, max_size=24
    )
    split = st.builds(
        TemporalSplit,
        train_start=st.sampled_from([0.2, 0.3]),
        val_start=st.sampled_from([0.5, 0.6]),
        test_start=st.sampled_from([0.7, 0.8]),
        num_windows=st.sampled_from([1, 2, 3, 5]),
        by=st.sampled_from(['global', 'user']),
        keep_cold=st.booleans(),
    )
    attack(check_split, rows, split, examples=60)


# Hypergraphs.


def check_interest_hypergraph(
    clicks: list[Click], interest: list[list[float]], transform: InterestHypergraph
) -> None:
    data = micro_graph(clicks)
    data[CLICKS].slot = data[CLICKS].time // 3
    data['user'].interest = torch.tensor(interest)
    cares = {
        user: [
            modality
            for modality, share in enumerate(row)
            if share > transform.threshold or (share > 0 and modality == row.index(max(row)))
        ]
        for user, row in enumerate(interest)
    }
    data = transform(data)
    for node_type in NEIGHBOR_TYPE:
        members = defaultdict(set)
        for user, item, time in clicks:
            for modality in cares[user]:
                node, shared = (user, item) if node_type == 'user' else (item, user)
                # Whose interest a member brings: its own, or that of the user who joins all.
                members[time // 3, shared, modality].add((node, interest[user][modality]))
        expected = [(key, members[key]) for key in sorted(members) if len(members[key]) > 1]
        store = data[node_type]
        assert store.hyperedge_slot.tolist() == [key[0] for key, _ in expected]
        assert store.hyperedge_modality.tolist() == [key[2] for key, _ in expected]
        found = defaultdict(list)
        for node, hyperedge in store.hyperedge_index.t().tolist():
            found[hyperedge].append(node)
        assert [*found] == [*range(len(expected))]
        for hyperedge, (_, allowed) in enumerate(expected):
            shares = dict(allowed)
            assert len(found[hyperedge]) == min(len(allowed), transform.max_size)
            assert found[hyperedge] == sorted({*found[hyperedge]} & {*shares})
            mean = np.mean([shares[node] for node in found[hyperedge]])
            assert store.hyperedge_weight[hyperedge].item() == pytest.approx(mean, rel=1e-6)


def test_interest_hypergraph(attack: Any) -> None:
    share = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    interest = st.lists(
        st.lists(share, min_size=2, max_size=2), min_size=NUM_USERS, max_size=NUM_USERS
    )
    transform = st.builds(
        InterestHypergraph,
        threshold=st.sampled_from([0.0, 0.25, 0.5, 0.6]),
        max_size=st.integers(2, 5),
        seed=SEED,
    )
    attack(check_interest_hypergraph, CLICK_LISTS, interest, transform, examples=100)


NUM_HYPEREDGES = 4
INCIDENCES = st.lists(st.tuples(USER, st.integers(0, NUM_HYPEREDGES - 1)), max_size=14)
WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=NUM_HYPEREDGES, max_size=NUM_HYPEREDGES
)


def convolve(
    conv: HypergraphConv, x: Tensor, incidences: list[Pair], weights: list[float]
) -> Tensor:
    r"""Eq. 11 of HGNN with matrices."""
    incidence = torch.zeros(x.size(0), len(weights), dtype=x.dtype)
    for node, hyperedge in incidences:
        incidence[node, hyperedge] += 1
    weight = torch.tensor(weights, dtype=x.dtype)
    degree, size = incidence @ weight, incidence.sum(0)
    root = torch.where(degree > 0, degree, torch.inf).rsqrt().diag()
    middle = (weight / torch.where(size > 0, size, torch.inf)).diag()
    return root @ incidence @ middle @ incidence.t() @ root @ x @ conv.lin.weight.t()


def check_hypergraph_conv(incidences: list[Pair], weights: list[float], is_weighted: bool) -> None:
    torch.manual_seed(0)
    conv = HypergraphConv(3, 2).double()
    x = torch.randn(NUM_USERS, 3, dtype=torch.double)
    index = torch.stack(columns(incidences, 2))
    weights = weights if is_weighted else [1.0] * NUM_HYPEREDGES
    out = conv(x, index, torch.tensor(weights).double() if is_weighted else None, NUM_HYPEREDGES)
    torch.testing.assert_close(out, convolve(conv, x, incidences, weights))


def test_hypergraph_conv(attack: Any) -> None:
    attack(check_hypergraph_conv, INCIDENCES, WEIGHTS, st.booleans(), examples=60)


def check_slot_hypergraph_conv(
    incidences: list[Pair], weights: list[float], slots: list[int], asked: list[Pair]
) -> None:
    r"""Each slot by itself, of which only who is in a hyperedge is known."""
    torch.manual_seed(0)
    index = torch.stack(columns(incidences, 2))
    weight = torch.tensor(weights).double()
    conv = SlotHypergraphConv(3, 2, NUM_USERS, index, torch.tensor(slots), weight).double()
    x = torch.randn(NUM_USERS, 3, dtype=torch.double)
    node, slot = columns(asked, 2)
    out = conv(x, node, slot)
    for row, (user, when) in enumerate(asked):
        own = [pair for pair in incidences if slots[pair[1]] == when]
        expected = torch.zeros(3, dtype=torch.double)
        if any(pair[0] == user for pair in own):
            hidden = x
            for layer in conv.convs:
                hidden = convolve(layer, hidden, own, weights).relu()
            expected = hidden[user]
        torch.testing.assert_close(out[row], expected)


def test_slot_hypergraph_conv(attack: Any) -> None:
    slots = st.lists(st.integers(0, 3), min_size=NUM_HYPEREDGES, max_size=NUM_HYPEREDGES)
    asked = st.lists(st.tuples(USER, st.integers(-1, 4)), min_size=1, max_size=6)
    attack(check_slot_hypergraph_conv, INCIDENCES, WEIGHTS, slots, asked, examples=60)


# Other layers.


def check_intention_conv(children: list[int], num_positions: int, form: str, seed: int) -> None:
    r"""Edges in any order of centers against a fixed fan-out, and one center alone against both."""
    torch.manual_seed(seed)
    conv = IntentionConv(4, 3, num_positions, form).double()
    num_centers, width = len(children), max(children)
    child = torch.randn(num_centers, width, 4).double()
    center, intention = torch.randn(num_centers, 4).double(), torch.randn(num_centers, 3).double()
    mask = torch.arange(width) < torch.tensor(children).view(-1, 1)
    dense = conv.dense(child, center, intention, mask)
    # The children of a center keep their order, whatever stands between them.
    place = mask.t().nonzero()
    edge_index = torch.stack([place[:, 1] * width + place[:, 0], place[:, 1]])
    edges = conv((child.flatten(0, 1), center), edge_index, intention)
    torch.testing.assert_close(edges, dense)
    for row, number in enumerate(children):
        own = conv.dense(
            child[row : row + 1, :number], center[row : row + 1], intention[row : row + 1]
        )
        torch.testing.assert_close(own[0], dense[row])


def test_intention_conv(attack: Any) -> None:
    children = st.lists(st.integers(0, 5), min_size=1, max_size=5)
    forms = st.sampled_from(['paper', 'literal'])
    attack(check_intention_conv, children, st.integers(1, 6), forms, SEED, examples=60)


def check_macro_conv(counts: list[list[int]], conv: MacroConv, seed: int) -> None:
    r"""Eq. 6 to 9 in loops against all three forms of counts."""
    torch.manual_seed(seed)
    conv = conv.double()
    conv.reset_parameters()
    dense = torch.tensor(counts).double()
    macro, target = torch.randn(3, 4).double(), torch.randn(len(counts), 4).double()
    expected = torch.zeros(len(counts), 5).double()
    for row, numbers in enumerate(counts):
        present = [q for q, number in enumerate(numbers) if number > 0 or not conv.mask_zero]
        key = conv.lin_key(target[row])
        weight = {
            q: (numbers[q] + 1) ** (1 / conv.temperature) if conv.weighting else 1 for q in present
        }
        score = {
            q: math.exp((conv.lin_query(macro[q]) @ key).item() / math.sqrt(5))
            if conv.form == 'paper'
            else 1 / max(len(present), 1)
            for q in present
        }
        both = {
            q: weight[q]
            / sum(weight.values())
            * (score[q] / sum(score.values()) if conv.form == 'paper' else 1)
            for q in present
        }
        total = sum(both.values()) if conv.renormalize else 1
        for q, share in both.items():
            expected[row] += share / total * conv.lin_value(macro[q])
    torch.testing.assert_close(conv((macro, target), dense), expected)
    torch.testing.assert_close(conv((macro, target), dense.to_sparse()), expected)
    at = dense.nonzero().t()[:, torch.randperm(int((dense > 0).sum()))]
    torch.testing.assert_close(conv((macro, target), at.flip(0), dense[tuple(at)]), expected)


def test_macro_conv(attack: Any) -> None:
    counts = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4)
    conv = st.builds(
        MacroConv,
        st.just(4),
        st.just(5),
        temperature=st.sampled_from([0.5, 1.0, 2.0]),
        form=st.sampled_from(['paper', 'released']),
        mask_zero=st.booleans(),
        weighting=st.booleans(),
        renormalize=st.booleans(),
    )
    attack(check_macro_conv, counts, conv, SEED, examples=60)


# Counts, metrics, draws.


def check_behavior_graph(rows: list[tuple[bool, list[bool]]]) -> None:
    if not any(label for label, _ in rows):
        reject()
    data = micro_graph([])
    behavior = [[happened and label for happened in follows] for label, follows in rows]
    store = data[CLICKS]
    store.edge_label_index = torch.zeros(2, len(rows), dtype=torch.long)
    store.edge_label = torch.tensor([label for label, _ in rows]).float()
    store.edge_label_behavior = torch.tensor(behavior).float()
    together = Counter(
        pair
        for row in behavior
        for pair in product(range(3), range(3))
        if row[pair[0]] and row[pair[1]]
    )
    count = {pair: number for pair, number in together.items() if pair[0] != pair[1]}
    total = Counter()
    for (target, _), number in count.items():
        total[target] += number
    graph = BehaviorGraph()(data)['behavior', 'follows', 'behavior']
    found = [(target, source) for source, target in graph.edge_index.t().tolist()]
    assert found == sorted(count)
    assert graph.count.tolist() == [count[pair] for pair in found]
    expected = torch.tensor([count[pair] / total[pair[0]] for pair in found])
    torch.testing.assert_close(graph.edge_weight, expected)


def test_behavior_graph(attack: Any) -> None:
    follows = st.lists(st.booleans(), min_size=3, max_size=3)
    rows = st.lists(st.tuples(st.booleans(), follows), min_size=1, max_size=12)
    attack(check_behavior_graph, rows, examples=60)


def check_group_auroc(rows: list[tuple[float, int, int]], dtype: torch.dtype) -> None:
    score, target, group = (list(column) for column in zip(*rows, strict=True))
    # What a narrower type cannot tell apart, ties.
    preds = torch.tensor(score, dtype=torch.double).to(dtype)
    score = preds.tolist()
    parts = {}
    for name in {*group}:
        own = [row for row in range(len(rows)) if group[row] == name]
        positive, negative = ([row for row in own if target[row] == y] for y in (1, 0))
        if positive and negative:
            pairs = [*product(positive, negative)]
            wins = sum((score[i] > score[j]) + (score[i] == score[j]) / 2 for i, j in pairs)
            parts[name] = (wins / len(pairs), len(own), len(positive))
    arguments = preds, torch.tensor(target), torch.tensor(group)
    if not parts:
        with pytest.raises(ValueError, match='no group with both classes'):
            group_auroc(*arguments)
        return
    for weighting, weigh in (
        ('impressions', lambda part: part[1]),
        ('positives', lambda part: part[2]),
        ('none', lambda part: 1),
    ):
        value, num_dropped = group_auroc(*arguments, weighting)
        total = sum(weigh(part) for part in parts.values())
        mean = sum(weigh(part) * part[0] for part in parts.values()) / total
        assert value.item() == pytest.approx(mean, abs=1e-12)
        assert num_dropped == len({*group}) - len(parts)


def test_group_auroc(attack: Any) -> None:
    score = st.one_of(
        # Some of these are equal in a narrower type.
        st.sampled_from(
            [-1.0, -0.0, 0.0, 0.5, 0.5 + 1e-12, 1.0, 1e300, 2e300, math.inf, -math.inf]
        ),
        st.floats(allow_nan=False),
    )
    group = st.sampled_from([0, 1, 2, 7, 2**30, 2**40])
    rows = st.lists(st.tuples(score, st.integers(0, 1), group), min_size=1, max_size=20)
    dtypes = st.sampled_from([torch.half, torch.bfloat16, torch.float, torch.double])
    attack(check_group_auroc, rows, dtypes, examples=150)


def check_bayes_optimal(rows: list[tuple[float, float]]) -> None:
    ordered = pairs = loss = 0.0
    for i, (p, weight) in enumerate(rows):
        loss -= weight * sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
        for j, (other, other_weight) in enumerate(rows):
            if i != j:
                mass = weight * p * other_weight * (1 - other)
                pairs += mass
                ordered += mass * ((p > other) + (p == other) / 2)
    probability, weight = torch.tensor(rows, dtype=torch.double).t()
    if pairs < 1e-9:
        reject()
    auc, entropy = bayes_optimal(probability, weight)
    assert auc == pytest.approx(ordered / pairs, abs=1e-9)
    assert entropy == pytest.approx(loss / sum(weight for _, weight in rows), abs=1e-9)


def test_bayes_optimal(attack: Any) -> None:
    share = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.01, 0.99))
    rows = st.lists(st.tuples(share, share), min_size=2, max_size=10)
    attack(check_bayes_optimal, rows, examples=60)


def check_unclicked_items(pairs: set[Pair], seed: int) -> None:
    r"""Often enough that all are drawn: that one of 5 is never among 200 has a chance of 1e-19."""
    index = torch.stack(columns(sorted(pairs), 2))
    unclicked = UnclickedItems(index, NUM_USERS, NUM_ITEMS)
    left = [
        {item for item in range(NUM_ITEMS) if (user, item) not in pairs}
        for user in range(NUM_USERS)
    ]
    assert unclicked.count.tolist() == [len(items) for items in left]
    user = torch.tensor([user for user in range(NUM_USERS) if left[user]]).long()
    drawn = unclicked.draw(user, 200, torch.Generator().manual_seed(seed))
    assert [{*row} for row in drawn.tolist()] == [items for items in left if items]


def test_unclicked_items(attack: Any) -> None:
    attack(check_unclicked_items, st.sets(st.tuples(USER, ITEM)), SEED, examples=60)


def check_negatives(rows: list[Click], seed: int) -> None:
    r"""Drawn from what anybody clicked, but not from what the user clicked up to then; often enough
    that all are drawn, as above."""
    user, item, stage = (column.numpy() for column in columns(rows, 3))
    left = [
        {item for _, item, _ in rows}
        - {item for owner, item, when in rows if owner == user and when <= stage}
        for user, _, stage in rows
    ]
    if not all(left):
        with pytest.raises(ValueError, match='has clicked all'):
            _draw_negatives(user, item, stage, 1, seed)
        reject()
    drawn = _draw_negatives(user, item, stage, 200, seed)
    assert [{*row} for row in drawn.tolist()] == left


def test_negatives(attack: Any) -> None:
    rows = st.lists(st.tuples(USER, ITEM, st.integers(0, 2)), min_size=1, max_size=12)
    attack(check_negatives, rows, SEED, examples=60)


def check_known_negatives(
    rows: list[Click], events: list[tuple[int, int]], arrival: list[int], seed: int
) -> None:
    r"""Drawn from the items that have come, or that had an event before, but not from what the user
    clicked up to then; often enough that all are drawn, as above, though one of ten."""
    user, item, moment = (column.numpy() for column in columns(rows, 3))
    clicked = ClickedByThen(user, item, moment, NUM_ITEMS, 10)
    chance = hash_clicks(seed, user, item, moment, 400)
    shown, when = (column.numpy() for column in columns(events, 2))
    pools = {
        'arrival': ItemsByArrival(np.array([NEVER if a == 9 else a for a in arrival])),
        'events': ItemsByEvents(shown, when, NUM_ITEMS, 10),
    }
    for by, pool in pools.items():
        drawn = draw_negatives(pool, clicked, user, moment, chance)
        for (owner, _, now), found in zip(rows, drawn.tolist(), strict=True):
            if by == 'events':
                there = {event for event, then in events if then < now}
            else:
                there = {number for number, come in enumerate(arrival) if come <= now and come < 9}
            left = there - {taken for who, taken, then in rows if who == owner and then <= now}
            assert {*found} == (left or {-1})


def test_known_negatives(attack: Any) -> None:
    rows = st.lists(st.tuples(USER, ITEM, TIME), min_size=1, max_size=12)
    events = st.lists(st.tuples(ITEM, TIME), max_size=10)
    arrival = st.lists(TIME, min_size=NUM_ITEMS, max_size=NUM_ITEMS)
    attack(check_known_negatives, rows, events, arrival, SEED, examples=100)


def check_batches(
    num_rows: int, batch_size: int, shuffle: bool, seed: int, epoch: int, skip: int
) -> None:
    def batches(skip: int = 0) -> list[list[int]]:
        sampler = BatchIndexSampler(num_rows, batch_size, shuffle, seed)
        sampler.set_epoch(epoch)
        sampler.skip = skip
        found = [batch.tolist() for batch in sampler]
        assert (sampler.skip, len(sampler)) == (0, len(found) + min(skip, len(sampler)))
        return found

    whole = batches()
    rows = [row for batch in whole for row in batch]
    assert sorted(rows) == [*range(num_rows)]
    assert shuffle or rows == sorted(rows)
    # A row that would be alone joins those before it.
    lonely = num_rows % batch_size == 1 and num_rows > batch_size > 1
    sizes = [batch_size] * (num_rows // batch_size)
    if lonely:
        sizes[-1] += 1
    elif num_rows % batch_size:
        sizes.append(num_rows % batch_size)
    assert [len(batch) for batch in whole] == sizes
    assert batches(skip) == whole[skip:]


def test_batches(attack: Any) -> None:
    attack(
        check_batches,
        st.integers(0, 30),
        st.integers(1, 8),
        st.booleans(),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
        examples=100,
    )


def check_grouping(points: list[list[int]], others: list[list[int]], seed: int) -> None:
    r"""A row is in the cluster whose centroid is nearest, or as near as any."""
    x = torch.tensor(points).float()
    grouping = Grouping(3, seed=seed)
    found = {'fit': (x, grouping.fit(x))}
    y = torch.tensor(others).float()
    found['assign'] = y, grouping.assign(y)
    for rows, cluster in found.values():
        for row, own in zip(rows, cluster.tolist(), strict=True):
            distances = [float((row - center).square().sum()) for center in grouping.centroids]
            assert distances[own] == pytest.approx(min(distances), abs=1e-3)


def test_grouping(attack: Any) -> None:
    point = st.lists(st.integers(-5, 5), min_size=2, max_size=2)
    points = st.lists(point, min_size=3, max_size=12)
    attack(check_grouping, points, st.lists(point, min_size=1, max_size=6), SEED, examples=30)
