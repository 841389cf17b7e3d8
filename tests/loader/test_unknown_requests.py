r"""What loaders and counts tell of a user or an item that nothing is known of."""

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader, HistoryLoader, JoinedLoader, PairLoader, PathLoader
from mag.macro_graph import MacroRows, TargetView
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
GROUPS = {'user': 'group', 'item': 'category'}
ITEMS = torch.tensor([3, -1, 14])


def prepared(log: HeteroData, num_windows: int) -> HeteroData:
    train, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=num_windows)(log)
    return MacroCoarsen(GROUPS, 2)(RecentNeighbors(3)(train))


@pytest.mark.parametrize('num_windows', [1, 3])
def test_macro_rows_of_the_unknown_are_empty(click_log: HeteroData, num_windows: int) -> None:
    # So that the last user and the last item have many clicks.
    clicks, last = click_log[CLICKS], torch.tensor([[24], [14]])
    clicks.edge_index = last - clicks.edge_index
    clicks.edge_label_index = last - clicks.edge_label_index
    data = prepared(click_log, num_windows)
    loader = PairLoader(data)
    known, batch = loader.request(24, ITEMS.clamp(min=0)), loader.request(-1, ITEMS)
    assert batch.user.tolist() == [-1, -1, -1] and batch.item.tolist() == ITEMS.tolist()
    assert all(bool((counts == 0).all()) for counts in batch.user_hops)
    assert bool((batch.user_recent == -1).all())
    for counts, expected in zip(batch.item_hops, known.item_hops, strict=True):
        assert torch.equal(counts[::2], expected[::2]) and bool((counts[1] == 0).all())
        assert counts.dtype == torch.float32 and bool((expected[2] > 0).any())
    assert torch.equal(batch.item_recent[::2], known.item_recent[::2])
    assert batch.item_recent[1].tolist() == [-1, -1, -1]
    window = torch.zeros(3, dtype=torch.long)
    row = MacroRows(data).rows('item', ITEMS, window)
    assert bool((row.hops[0][1] == 0).all()) and bool((row.recent[1] == -1).all())


def test_features_of_the_unknown_are_none_and_the_mean(click_log: HeteroData) -> None:
    click_log['user'].x = torch.arange(50.0).view(25, 2)
    click_log['item'].x_visual = torch.arange(15.0)
    loader = ExposureLoader(click_log)
    known, batch = loader.request(24, ITEMS.clamp(min=0)), loader.request(-1, ITEMS)
    assert loader.fields == ('user', 'user_group', 'item', 'item_category')
    assert batch.sparse.tolist() == [[-1, -1, 3, 3], [-1, -1, -1, -1], [-1, -1, 14, 2]]
    assert batch.dense.tolist() == [[24, 25, 3], [24, 25, 7], [24, 25, 14]]
    assert known.sparse[0].tolist() == [24, 0, 3, 3]


def test_the_unknown_have_no_history(click_log: HeteroData) -> None:
    loader = HistoryLoader(click_log, length=4)
    batch = loader.request(-1, ITEMS, time=1_000)
    assert batch.user.tolist() == [-1, -1, -1] and batch.item.tolist() == ITEMS.tolist()
    assert bool((batch.history == -1).all())
    mixed = loader.request(torch.tensor([0, -1, 1]), ITEMS, time=1_000)
    assert torch.equal(mixed.history[0], loader.request(0, ITEMS, time=1_000).history[0])
    assert bool((mixed.history >= 0).any(1).tolist() == [True, False, True])


@pytest.mark.parametrize('attribute', ['category', None])
def test_the_unknown_have_no_paths_of_their_own(
    click_log: HeteroData, attribute: str | None
) -> None:
    click_log['item'].x = torch.arange(15.0)
    click_log['item'].is_new = torch.ones(15, dtype=torch.bool)
    loader = PathLoader(click_log, attribute=attribute, widths={'user': [2, 1], 'item': [2, 1]})
    batch = loader.request(torch.tensor([5, 5, -1, -1]), torch.tensor([3, -1, 3, -1]), time=1_000)
    assert batch['user'].n_id[:4].tolist() == [5, 5, -1, -1]
    assert batch['user'].group[:4].tolist() == [2, 2, -1, -1]
    assert batch['item'].category[:4].tolist() == [3, -1, 3, -1]
    assert batch['item'].x[:4].tolist() == [3, 7, 3, 7]
    assert batch['item'].is_new[:4].tolist() == [True, False, True, False]
    # By target: who has items that lead to the user, and users that lead to the item.
    of_users = batch['item'].batch[4:].bincount(minlength=4) > 0
    of_items = batch['user'].batch[4:].bincount(minlength=4) > 0
    if attribute is None:
        assert of_users.tolist() == [True, True, True, False]
        assert of_items.tolist() == [True, True, True, False]
    else:
        assert not of_users[3] and not of_items[3] and not of_users[1]
        assert bool(of_items[0]) and bool(of_items[2])
    assert bool((batch['user'].n_id[4:] >= 0).all()) and bool((batch['item'].n_id[4:] >= 0).all())


def test_joined_requests_of_the_unknown_are_those_of_each_loader(click_log: HeteroData) -> None:
    data = prepared(click_log, 1)
    loaders = [PairLoader(data), HistoryLoader(data)]
    batch = JoinedLoader(loaders).request(-1, ITEMS, time=1_000)
    assert batch.user.tolist() == [-1, -1, -1] and batch.item.tolist() == ITEMS.tolist()
    assert bool((batch.pairs.user_recent == -1).all()) and bool((batch.histories.history < 0).all())


def test_counts_of_the_unknown_are_those_of_who_is_new(click_log: HeteroData) -> None:
    # Of the cluster of some users nothing is known, and neither of a user and an item who were
    # never shown.
    click_log['user'].num_nodes += 1
    click_log['item'].num_nodes += 1
    click_log['user'].group = torch.arange(26) % 4 - 1
    click_log['user'].group[25] = -1
    click_log['item'].category = torch.cat([click_log['item'].category, torch.tensor([-1])])
    train, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=2)(click_log)
    views = [
        TargetView('id'),
        TargetView(item='id'),
        TargetView('id', 'category'),
        TargetView('group', 'id'),
        TargetView('group', 'category'),
        TargetView('id', 'id'),
    ]
    counts = TargetCounts(views).fit(train)
    state = counts.state(train)
    shown = click_log[CLICKS].edge_label_index

    def ask(user: int, item: int) -> torch.Tensor:
        return state(torch.tensor([user]), torch.tensor([item]), torch.tensor([2_000]))[0]

    before = ask(-1, 3)
    # The whole log once more, later.
    state.update(*shown, click_log[CLICKS].edge_label_time + 1_000, click_log[CLICKS].edge_label)
    of_all = shown.size(1)
    for user, item in ((24, 3), (4, 14), (0, 0)):
        assert torch.equal(ask(-1, item), ask(25, item))
        assert torch.equal(ask(user, -1), ask(user, 15))
    nobody = ask(-1, 3)
    assert nobody[[0, 2, 5]].tolist() == [[0, 0]] * 3
    is_none = click_log['user'].group[shown[0]] == -1
    assert 0 < is_none.sum() < of_all
    new = nobody - before
    assert new[1, 0] == (shown[1] == 3).sum()
    assert new[3, 0] == ((shown[1] == 3) & is_none).sum()
    assert ask(-1, -1).sum() == 0


def test_events_of_the_unknown_are_refused(click_log: HeteroData) -> None:
    train, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=2)(click_log)
    state = TargetCounts([TargetView('id')]).fit(train).state(train)
    none, now = torch.tensor([-1]), torch.tensor([2_000])
    with pytest.raises(IndexError, match='users from -1 to -1, but expected them from 0 to 24'):
        state.update(none, torch.tensor([0]), now, torch.tensor([1.0]))
