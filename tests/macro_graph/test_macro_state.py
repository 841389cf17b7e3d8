import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import PairBatch, PairLoader
from mag.macro_graph import MacroEdges, MacroState
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
GROUPS: dict[str, int | str] = {'user': 3, 'item': 4}
ATTRIBUTES: dict[str, int | str] = {'user': 'group', 'item': 'category'}


def up_to(log: HeteroData, number: int, num_windows: int = 1) -> HeteroData:
    r"""A part whose history is that many first clicks of a log."""
    clicks, part = log[CLICKS], HeteroData()
    part[CLICKS].edge_index = clicks.edge_index[:, :number]
    part[CLICKS].time = clicks.time[:number]
    for row, node_type in enumerate(('user', 'item')):
        # And one that is known before its first click.
        num_nodes = int(clicks.edge_index[row, :number].max()) + 2
        part[node_type].num_nodes = num_nodes = min(num_nodes, log[node_type].num_nodes)
        for name, value in log[node_type].items():
            if isinstance(value, Tensor):
                part[node_type][name] = value[:num_nodes]
                part[node_type][f'num_{name}'] = log[node_type][f'num_{name}']
    end = int(clicks.time[number - 1]) + 1
    part[CLICKS].cutoff = end - 20 * torch.arange(num_windows).flip(0)
    return part


def request(state: MacroState, user: Tensor, item: Tensor) -> PairBatch:
    (user_hops, user_recent), (item_hops, item_recent) = (
        state.rows(name, node) for name, node in (('user', user), ('item', item))
    )
    return PairBatch(user, item, user_hops, item_hops, user_recent, item_recent)


def assert_rows(state: MacroState, part: HeteroData) -> None:
    r"""All rows are those that a loader reads of a part, and those of who is unknown."""
    users, items = (torch.arange(-1, part[name].num_nodes) for name in ('user', 'item'))
    user, item = torch.cartesian_prod(users, items).t()
    expected = PairLoader(part).request(user, item)
    torch.testing.assert_close(request(state, user, item), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('groups', 'num_hops', 'mode', 'binary'),
    [
        (GROUPS, 1, 'set', True),
        (GROUPS, 2, 'set', True),
        (GROUPS, 2, 'set', False),
        (GROUPS, 2, 'walk', True),
        (GROUPS, 2, 'walk', False),
        (GROUPS, 3, 'set', True),
        (GROUPS, 3, 'walk', False),
        ({'user': 3, 'item': 'category'}, 2, 'set', True),
        (ATTRIBUTES, 2, 'walk', False),
    ],
)
@pytest.mark.parametrize('num_windows', [1, 3])
def test_updates_are_a_rebuild(
    click_log: HeteroData,
    groups: dict[str, Any],
    num_hops: int,
    mode: str,
    binary: bool,
    num_windows: int,
) -> None:
    r"""Of a log with new nodes, ties in time and repeated pairs, in updates of all sizes."""
    generator = torch.Generator().manual_seed(num_hops)
    recent = RecentNeighbors(4)
    coarsen = MacroCoarsen(groups, num_hops, mode=mode, binary=binary)
    end, number = 150, click_log[CLICKS].time.numel()
    part = up_to(click_log, end, num_windows)
    coarsen = coarsen.fit(part).keep(part)
    part = coarsen(recent(part))
    state = coarsen.state(part)
    assert_rows(state, part)
    num_nodes, has_ties, num_late = state.num_nodes, False, 0
    while end < number:
        start = end
        end = min(start + int(torch.randint(60, (1,), generator=generator)), number)
        has_ties |= bool(click_log[CLICKS].time[start] == click_log[CLICKS].time[start - 1])
        part = up_to(click_log, end)
        known, coarsen = coarsen.cluster, coarsen.keep(part)
        for name, cluster in known.items():
            num_late += int((coarsen.cluster[name][: len(cluster)] != cluster).sum())
        new = click_log[CLICKS].edge_index[:, start:end]
        state.update(new, coarsen.cluster['user'], coarsen.cluster['item'])
        part = coarsen(recent(part))
        assert_rows(state, part)
    # What the log is there to show.
    assert has_ties and all(state.num_nodes[name] > num for name, num in num_nodes.items())
    is_learned = any(isinstance(group, int) for group in groups.values())
    assert (num_late > 0) == is_learned


@pytest.fixture
def part(click_log: HeteroData) -> HeteroData:
    return MacroCoarsen(ATTRIBUTES)(RecentNeighbors(4)(up_to(click_log, 150)))


def test_the_part_and_what_was_read_stay_as_they_are(part: HeteroData) -> None:
    kept = copy.deepcopy(part)
    state = MacroCoarsen(ATTRIBUTES).state(part)
    user, item = torch.tensor([0, 1]), torch.tensor([1, 0])
    batch = request(state, user, item)
    state.update(torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.int32))
    assert not torch.equal(request(state, user, item).user_recent, batch.user_recent)
    torch.testing.assert_close(batch, PairLoader(part).request(user, item), rtol=0, atol=0)
    for store, before in zip(part.stores, kept.stores, strict=True):
        for name, value in before.items():
            assert torch.equal(torch.as_tensor(store[name]), torch.as_tensor(value))


def test_recent_lists_by_hand() -> None:
    r"""A list that is not full, one that is, one of a new node, and one that no click touches."""
    none = torch.empty(0, dtype=torch.long)
    state = MacroState(
        MacroEdges(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1]), {'user': 2, 'item': 2}),
        {
            'user': torch.tensor([[-1, -1, 0], [0, 1, 1], [-1, 1, 0], [-1, -1, -1]]),
            'item': torch.empty(2, 0, dtype=torch.long),
        },
    )
    state.update(
        torch.tensor([[1, 0, 3, 0, 4, 1], [0, 1, 1, 0, 2, 0]]),
        torch.tensor([0, 0, 1, 1, 0]),
        torch.tensor([0, 1, 1]),
    )
    hops, recent = state.rows('user', torch.tensor([0, 1, 2, 3, 4, -1]))
    assert recent.tolist() == [
        [0, 1, 0], [1, 0, 0], [-1, 1, 0], [-1, -1, 1], [-1, -1, 2], [-1, -1, -1],
    ]  # fmt: skip
    assert hops[0].tolist() == [[1, 1], [1, 0], [0, 0], [0, 1], [0, 1], [0, 0]]
    assert state.rows('item', torch.tensor([2, -1])).recent.shape == (2, 0)
    # No click, and nothing moves.
    state.update(torch.stack([none, none]))
    assert torch.equal(state.rows('user', torch.tensor([0, 1])).recent, recent[:2])


def test_a_part_without_recent_lists(click_log: HeteroData) -> None:
    log = up_to(click_log, 150)
    del log[CLICKS].cutoff
    part = MacroCoarsen(ATTRIBUTES)(log)
    state = MacroCoarsen(ATTRIBUTES).state(part)
    assert_rows(state, part)
    state.update(torch.tensor([[0], [0]]))
    assert state.rows('user', torch.tensor([0])).recent.shape == (1, 0)


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        (([[0], [99]],), IndexError, 'item ids from 99 to 99, .* from 0 to'),
        (([[0], [0]], [2, 2, 2]), ValueError, "'user_cluster' must keep the clusters of the"),
        (([[0.5], [0]],), TypeError, "'edge_index' of integers, but got torch.float32"),
        (([0, 0],), ValueError, r"'edge_index' of shape \[2, E\], but got shape \[2\]"),
    ],
)
def test_a_refused_update_leaves_no_trace(
    part: HeteroData, arguments: list[list[Any]], error: type[Exception], match: str
) -> None:
    state = MacroCoarsen(ATTRIBUTES).state(part)
    with pytest.raises(error, match=match):
        state.update(*map(torch.tensor, arguments))
    # Neither do clusters that came with them.
    number = part['user'].num_nodes
    grown = torch.cat([part['user'].cluster, torch.tensor([-1])])
    with pytest.raises(ValueError, match="'user ids' of nodes with a cluster, but 1 of 2 is not"):
        state.update(torch.tensor([[0, number], [0, 0]]), grown)
    assert_rows(state, part)
    grown[-1] = 0
    state.update(torch.tensor([[0, number], [0, 0]]), grown)
    assert state.num_nodes['user'] == number + 1


def test_a_state_can_be_saved(part: HeteroData) -> None:
    state = pickle.loads(pickle.dumps(MacroCoarsen(ATTRIBUTES).state(part)))
    assert_rows(state, part)
    assert repr(state).startswith('MacroState(MacroEdges(')


def test_rows_of_nodes_that_do_not_exist(part: HeteroData) -> None:
    state, two = MacroCoarsen(ATTRIBUTES).state(part), torch.tensor([0, 1])
    for arguments, error, sentence in (
        (('tag', two), ValueError, "'node_type' must be one of 'user', 'item', but got 'tag'"),
        (('user', two + 98), IndexError, 'MacroState found user ids from 98 to 99, .* from -1 to'),
        (('item', two - 2), IndexError, 'MacroState found item ids from -2 to -1'),
        (('item', two.float()), TypeError, "'node' of dtype int64, but got torch.float32"),
        (('item', 3), TypeError, "'node' to be a tensor .* but got 3"),
    ):
        with pytest.raises(error, match=sentence):
            state.rows(*arguments)


def test_lists_of_other_nodes() -> None:
    edges = MacroEdges(torch.tensor([0]), torch.tensor([0, 0]), {'user': 1, 'item': 1})
    good = {'user': torch.tensor([[1]]), 'item': torch.tensor([[0], [-1]])}
    MacroState(edges, good)
    for node_type, lists, error, sentence in (
        ('user', torch.tensor([[2]]), IndexError, r"items in recent\['user'\] from 2 to 2"),
        ('item', torch.tensor([[0]]), ValueError, r'shape \[2, R\], but got shape \[1, 1\]'),
        ('item', torch.zeros(2, 1), TypeError, 'dtype int64, but got torch.float32'),
    ):
        with pytest.raises(error, match=sentence):
            MacroState(edges, {**good, node_type: lists})
    with pytest.raises(ValueError, match="'recent' must be a dictionary of 'user' and 'item'"):
        MacroState(edges, {'user': good['user']})


def test_parts_that_have_no_state(click_log: HeteroData, part: HeteroData) -> None:
    coarsen, log = MacroCoarsen(ATTRIBUTES), up_to(click_log, 150)
    with pytest.raises(ValueError, match='rows of 2 hops, but this data has 0: apply'):
        coarsen.state(RecentNeighbors(4)(log))
    with pytest.raises(ValueError, match='rows of 3 hops, but this data has 2: apply'):
        MacroCoarsen(ATTRIBUTES, 3).state(part)
    with pytest.raises(ValueError, match="other macro edges .*'hop1', 'user'.* binary=False"):
        MacroCoarsen(ATTRIBUTES, binary=False).state(part)
    released = coarsen(RecentNeighbors(4, 'released')(log))
    with pytest.raises(ValueError, match=r"data\['item'\].recent holds others: apply Recent"):
        coarsen.state(released)
    other = copy.copy(part)
    other[CLICKS].edge_index = part[CLICKS].edge_index.flip(1)
    with pytest.raises(ValueError, match=r"data\['user'\].recent holds others: apply Recent"):
        coarsen.state(other)
    by_user = TemporalSplit(0.4, 0.8, 0.9, by='user')(click_log)[0]
    with pytest.raises(ValueError, match="cut by position: split with by='global'"):
        coarsen.state(coarsen(RecentNeighbors(4)(by_user)))
