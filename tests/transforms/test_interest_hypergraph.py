import copy
import itertools
import pickle
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')


def log(triples: list[tuple[int, int, int]], interest: list[list[float]]) -> HeteroData:
    r"""Clicks as (user, item, slot)."""
    user, item, slot = torch.tensor(triples, dtype=torch.long).view(-1, 3).t()
    data = HeteroData()
    data['user'].num_nodes = len(interest)
    data['user'].interest = torch.tensor(interest)
    data['item'].num_nodes = 5
    data[CLICKS].edge_index = torch.stack([user, item])
    data[CLICKS].slot = slot
    return data


GOLDEN_INTEREST = [[0.9, 0.2], [0.6, 0.7], [0.4, 0.8]]
GOLDEN_CLICKS = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (2, 1, 0)]


def random_log(seed: int, num_modalities: int = 3) -> HeteroData:
    r"""Clicks in no order, many of them twice; user 0 has no interests, user 1 weak ones."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 12, 9
    interest = torch.rand(12, num_modalities, generator=generator)
    interest[0] = 0
    interest[1] *= 0.5
    data['user'].interest = interest
    user = torch.randint(12, (150,), generator=generator)
    item = torch.randint(9, (150,), generator=generator)
    data[CLICKS].edge_index = torch.stack([user, item])
    data[CLICKS].slot = torch.randint(4, (150,), generator=generator)
    return data


Hyperedges = list[tuple[int, tuple[int, ...], float]]

#: The first slots, and some whose products with numbers of nodes int64 cannot hold.
SLOTS = [[0, 1, 2, 3], [5, 2**40, 2**62, 2**63 - 1]]


def hyperedges(data: HeteroData, node_type: str) -> Hyperedges:
    r"""Slot, members and weight of each, as the transform lists them."""
    store = data[node_type]
    members = defaultdict(list)
    for node, hyperedge in store.hyperedge_index.t().tolist():
        members[hyperedge].append(node)
    slots, weights = store.hyperedge_slot.tolist(), store.hyperedge_weight.tolist()
    assert list(members) == list(range(len(slots)))
    return [(slots[edge], tuple(members[edge]), weights[edge]) for edge in members]


def by_hand(data: HeteroData, node_type: str, threshold: float) -> Hyperedges:
    r"""Slot by slot, item by item (or user by user) and modality by modality."""
    user, item = data[CLICKS].edge_index.tolist()
    triples = set(zip(data[CLICKS].slot.tolist(), user, item))
    interest = data['user'].interest
    num_modalities = interest.size(1)
    other = 'item' if node_type == 'user' else 'user'
    found = []
    for slot, center, modality in itertools.product(
        range(4), range(data[other].num_nodes), range(num_modalities)
    ):
        members, shares = [], []
        for node in range(data[node_type].num_nodes):
            who, what = (node, center) if node_type == 'user' else (center, node)
            row = interest[who].tolist()
            cares = row[modality] > threshold or (max(row) > 0 and row.index(max(row)) == modality)
            if (slot, who, what) in triples and cares:
                members.append(node)
                shares.append(row[modality])
        if len(members) > 1:
            found.append((slot, tuple(members), sum(shares) / len(shares)))
    return found


def assert_same(found: Hyperedges, expected: Hyperedges) -> None:
    assert [edge[:2] for edge in found] == [edge[:2] for edge in expected]
    assert [edge[2] for edge in found] == pytest.approx([edge[2] for edge in expected], rel=1e-6)


def test_golden_incidences() -> None:
    data = InterestHypergraph()(log(GOLDEN_CLICKS, GOLDEN_INTEREST))
    # item 0 and modality 0, then 1; item 1 and modality 0 has one member and is dropped; then 1.
    assert_same(hyperedges(data, 'user'), [(0, (0, 1), 0.75), (0, (1, 2), 0.75), (0, (1, 2), 0.75)])
    # Users 1 and 2, and their modalities; user 0 clicked one item.
    assert_same(hyperedges(data, 'item'), [(0, (0, 1), 0.6), (0, (0, 1), 0.7), (0, (0, 1), 0.8)])


def test_random_logs_by_hand() -> None:
    for seed in range(20):
        data = random_log(seed, num_modalities=1 + seed % 4)
        for threshold in (0.0, 0.5, 0.9, 1.0):
            out = InterestHypergraph(threshold)(data)
            for node_type in ('user', 'item'):
                expected = by_hand(data, node_type, threshold)
                assert len(expected) > 10
                assert_same(hyperedges(out, node_type), expected)


def test_who_cares_for_nothing_much_cares_for_the_most() -> None:
    weak = [[0.1, 0.3], [0.4, 0.2], [0.2, 0.3]]
    data = InterestHypergraph()(log([(0, 0, 0), (1, 0, 0), (2, 0, 0)], weak))
    assert_same(hyperedges(data, 'user'), [(0, (0, 2), 0.3)])


def test_users_without_interests_join_nothing() -> None:
    data = log([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [[0.0, 0.0], [0.9, 0.9]])
    for threshold in (0.0, 0.5):
        out = InterestHypergraph(threshold)(data)
        for node_type in ('user', 'item'):
            assert out[node_type].hyperedge_index.shape == (2, 0)
            assert out[node_type].hyperedge_slot.shape == (0,)
            assert out[node_type].hyperedge_weight.shape == (0,)


def test_no_clicks() -> None:
    data = InterestHypergraph()(log([], GOLDEN_INTEREST))
    for node_type in ('user', 'item'):
        assert data[node_type].hyperedge_index.shape == (2, 0)
        assert data[node_type].hyperedge_slot.dtype == torch.long


def test_a_slot_knows_of_its_own_clicks_alone() -> None:
    data = random_log(0)
    clicks = data[CLICKS]
    expected = {name: hyperedges(InterestHypergraph()(data), name) for name in ('user', 'item')}
    for slot in range(4):
        canary = data.clone()
        kept = clicks.slot == slot
        # All other clicks are gone, and a user and an item that never met meet in other slots.
        pairs = set(zip(*clicks.edge_index[:, kept].tolist()))
        strangers = [
            pair for pair in itertools.product(range(1, 12), range(9)) if pair not in pairs
        ]
        index = torch.tensor(strangers).t()
        others = torch.full((index.size(1),), (slot + 1) % 4)
        canary[CLICKS].edge_index = torch.cat([clicks.edge_index[:, kept], index], dim=1)
        canary[CLICKS].slot = torch.cat([clicks.slot[kept], others])
        out = InterestHypergraph()(canary)
        for node_type in ('user', 'item'):
            own = [edge for edge in hyperedges(out, node_type) if edge[0] == slot]
            assert own == [edge for edge in expected[node_type] if edge[0] == slot]
            assert len(own) > 5


def test_every_pair_of_members_clicked_the_same_in_the_slot() -> None:
    data = InterestHypergraph()(random_log(3))
    user, item = data[CLICKS].edge_index.tolist()
    triples = set(zip(user, item, data[CLICKS].slot.tolist()))
    for slot, members, _ in hyperedges(data, 'user'):
        assert any(all((who, what, slot) in triples for who in members) for what in range(9))
    for slot, members, _ in hyperedges(data, 'item'):
        assert any(all((who, what, slot) in triples for what in members) for who in range(12))


def test_labels_are_not_read(click_log: HeteroData) -> None:
    data = TimeSlots(50)(click_log)
    train = TemporalSplit()(data)[0]
    train['user'].interest = torch.rand(25, 3, generator=torch.Generator().manual_seed(0))
    changed = train.clone()
    changed[CLICKS].edge_label = 1 - changed[CLICKS].edge_label
    changed[CLICKS].edge_label_index = changed[CLICKS].edge_label_index.flip(1)
    ours, theirs = (InterestHypergraph()(part) for part in (train, changed))
    for node_type in ('user', 'item'):
        assert hyperedges(ours, node_type) == hyperedges(theirs, node_type)
        assert len(hyperedges(ours, node_type)) > 20
        # In the order of slots, so that those of a slot are an interval.
        slot = ours[node_type].hyperedge_slot
        assert bool((slot[1:] >= slot[:-1]).all())


def test_a_later_part_has_the_same_hyperedges_and_more(click_log: HeteroData) -> None:
    parts = TemporalSplit()(TimeSlots(50)(click_log))
    interest = torch.rand(25, 3, generator=torch.Generator().manual_seed(0))
    outs = []
    for part in parts:
        part['user'].interest = interest
        outs.append(InterestHypergraph()(part))
    # The last slot of an earlier part may not be over at its cutoff.
    last = int(parts[0][CLICKS].slot.max())
    for node_type in ('user', 'item'):
        first, second, third = (hyperedges(out, node_type) for out in outs)
        over = [edge for edge in first if edge[0] < last]
        assert second[: len(over)] == third[: len(over)] == over
        assert len(third) > len(over) > 20


def test_sizes_are_capped_by_a_uniform_draw() -> None:
    # 12 users clicked item 0 in slot 0; in slot 1 there are few enough.
    triples = [(user, 0, 0) for user in range(12)] + [(user, 1, 1) for user in range(4)]
    data = log(triples, [[0.6 + 0.03 * user] for user in range(12)])
    counts: Counter = Counter()
    for seed in range(600):
        large, small = hyperedges(InterestHypergraph(max_size=4, seed=seed)(data), 'user')
        slot, members, weight = large
        assert slot == 0 and len(set(members)) == 4 and list(members) == sorted(members)
        assert weight == pytest.approx(sum(0.6 + 0.03 * user for user in members) / 4)
        assert small[:2] == (1, (0, 1, 2, 3))
        counts.update(members)
    # 600 draws with a chance of 1 / 3: a deviation of 11.5 each.
    assert all(abs(counts[user] - 200) < 50 for user in range(12))


def test_the_same_seed_draws_the_same() -> None:
    data = random_log(0)
    first, again, other = (
        InterestHypergraph(max_size=2, seed=seed)(data)['user'].hyperedge_index
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    InterestHypergraph(max_size=2)(data)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_input_stays_as_it_was() -> None:
    data = random_log(0)
    before = data.clone()
    InterestHypergraph()(data)
    assert set(data['user'].keys()) == {'num_nodes', 'interest'}
    assert torch.equal(data['user'].interest, before['user'].interest)
    assert torch.equal(data[CLICKS].edge_index, before[CLICKS].edge_index)


def test_a_log_with_hyperedges_is_no_log_to_split(click_log: HeteroData) -> None:
    data = TimeSlots(50)(click_log)
    data['user'].interest = torch.rand(25, 3)
    with pytest.raises(ValueError, match=r"data\['user'\].interest, made from the whole log"):
        TemporalSplit()(data)
    data = InterestHypergraph()(data)
    with pytest.raises(ValueError, match=r"data\['item'\].hyperedge_index, made from the whole"):
        TemporalSplit()(data)


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        ({'threshold': -0.1}, ValueError, "'threshold' must be a number in .0, 1., but got -0.1"),
        ({'threshold': 2}, ValueError, "'threshold' must be a number in .0, 1., but got 2"),
        ({'threshold': torch.nan}, ValueError, "'threshold' must be a number in .0, 1."),
        ({'max_size': 1}, ValueError, "'max_size' must be at least 2, but got 1"),
        ({'max_size': 2.0}, TypeError, "'max_size' must be an integer, but got 2.0"),
        ({'seed': True}, TypeError, "'seed' must be an integer, but got True"),
        ({'seed': -1}, ValueError, "'seed' must be at least 0, but got -1"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InterestHypergraph(**kwargs)


def changed(node_or_edge: Any, name: str, value: Tensor | None) -> HeteroData:
    data = random_log(0)
    data[node_or_edge][name] = value
    return data


@pytest.mark.parametrize(
    'place, name, value, error, message',
    [
        ('user', 'interest', None, ValueError, r'UserInterest makes it, but .* has .*num_nodes'),
        ('user', 'interest', torch.rand(12), ValueError, r'but got shape \[12\]'),
        ('user', 'interest', torch.rand(11, 3), ValueError, r'but got shape \[11, 3\]'),
        ('user', 'interest', torch.rand(12, 0), ValueError, 'a modality or more, but got none'),
        ('user', 'interest', torch.ones(12, 3).long(), TypeError, 'floats, but got torch.int64'),
        (
            'user',
            'interest',
            torch.full((12, 3), 1.5),
            ValueError,
            '1.5 in row 0, column 0',
        ),
        ('user', 'interest', torch.full((12, 3), torch.nan), ValueError, 'such as nan in row 0'),
        (CLICKS, 'slot', torch.zeros(149).long(), ValueError, r'\[150\], but got shape \[149\]'),
        (CLICKS, 'slot', torch.zeros(150), TypeError, 'int64, but got torch.float32'),
        (
            CLICKS,
            'slot',
            torch.full((150,), -1),
            ValueError,
            'as TimeSlots makes.* -1 in row 0',
        ),
    ],
)
def test_wrong_data(
    place: Any, name: str, value: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        InterestHypergraph()(changed(place, name, value))


def test_slots_are_asked_for() -> None:
    data = random_log(0)
    del data[CLICKS].slot
    with pytest.raises(ValueError, match=r"InterestHypergraph needs .* to have \['slot'\]"):
        InterestHypergraph()(data)


def test_later_slots_change_no_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 30, 20
    data['user'].interest = torch.rand(30, 2, generator=generator)
    clicks = data[CLICKS]
    clicks.edge_index = torch.stack(
        [torch.randint(size, (900,), generator=generator) for size in (30, 20)]
    )
    clicks.slot = torch.arange(900) // 300
    first = copy.copy(data)
    first[CLICKS].edge_index, first[CLICKS].slot = clicks.edge_index[:, :600], clicks.slot[:600]
    for seed in range(3):
        transform = InterestHypergraph(max_size=3, seed=seed)
        whole, part = transform(data), transform(first)
        for node_type in ('user', 'item'):
            early, all_of = part[node_type], whole[node_type]
            size = early.hyperedge_index[1].bincount()
            assert size.max() == 3
            num = early.hyperedge_slot.numel()
            assert num < all_of.hyperedge_slot.numel()
            kept = all_of.hyperedge_index[1] < num
            assert torch.equal(all_of.hyperedge_index[:, kept], early.hyperedge_index)
            for name in ('slot', 'modality', 'weight'):
                name = f'hyperedge_{name}'
                assert torch.equal(all_of[name][:num], early[name])


def test_repr() -> None:
    transform = InterestHypergraph(0.4, max_size=20, seed=3)
    assert repr(transform) == 'InterestHypergraph(threshold=0.4, max_size=20, seed=3)'
    assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)


def test_slots_of_any_size_make_the_same_hyperedges() -> None:
    r"""Slots are compared and told, and not computed with."""
    for seed in range(3):
        data = random_log(seed)
        expected = InterestHypergraph(max_size=3)(data)
        data[CLICKS].slot = torch.tensor(SLOTS[1])[data[CLICKS].slot]
        found = InterestHypergraph(max_size=3)(data)
        for node_type in ('user', 'item'):
            before, after = expected[node_type], found[node_type]
            assert before.hyperedge_slot.unique().tolist() == SLOTS[0]
            assert torch.equal(torch.tensor(SLOTS[1])[before.hyperedge_slot], after.hyperedge_slot)
            for name in ('index', 'modality', 'weight'):
                assert torch.equal(before[f'hyperedge_{name}'], after[f'hyperedge_{name}'])
