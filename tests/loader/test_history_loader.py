import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import HistoryBatch, HistoryLoader
from mag.training import ClickTask, evaluate, fit
from mag.transforms import TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')
# By hand: user 0 clicks 2, then 1 and 3 in one second (the log has 3 first), then 2 again.
TIMES = [50, 10, 20, 20, 30]
USERS = [1, 0, 0, 0, 0]
ITEMS = [0, 2, 3, 1, 2]


def by_hand() -> HeteroData:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 4
    clicks = data[CLICKS]
    clicks.edge_index, clicks.time = torch.tensor([USERS, ITEMS]), torch.tensor(TIMES)
    users = [0, 0, 0, 0, 0, 1, 1, 2]
    clicks.edge_label_index = torch.tensor([users, [0, 1, 2, 3, 0, 1, 2, 3]])
    clicks.edge_label_time = torch.tensor([10, 11, 20, 21, 99, 50, 51, 99])
    clicks.edge_label = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    return data


def edited(data: HeteroData, **attributes: Any) -> HeteroData:
    data = copy.copy(data)
    for name, value in attributes.items():
        if value is None:
            del data[CLICKS][name]
        else:
            data[CLICKS][name] = value
    return data


def brute_force(data: HeteroData, user: Tensor, time: Tensor, length: int) -> list[list[int]]:
    r"""The histories, by looking at each click for each exposure."""
    clicks = sorted(
        zip(data[CLICKS].time.tolist(), *data[CLICKS].edge_index.tolist()), key=lambda row: row[0]
    )
    lists = []
    for owner, moment in zip(user.tolist(), time.tolist()):
        own = [item for when, clicker, item in clicks if clicker == owner and when < moment]
        last = own[-length:]
        lists.append([-1] * (length - len(last)) + last)
    return lists


def assert_same(batch: HistoryBatch, other: HistoryBatch) -> None:
    assert type(batch) is type(other) is HistoryBatch
    for value, expected in zip(batch, other, strict=True):
        assert (value is None) == (expected is None)
        assert value is None or torch.equal(value, expected)


def test_by_hand() -> None:
    (batch,) = HistoryLoader(by_hand(), length=3)
    assert batch.history.tolist() == [
        [-1, -1, -1],  # the click at 10 is no history of what happens at 10
        [-1, -1, 2],
        [-1, -1, 2],  # nor are those at 20 of what happens at 20
        [2, 3, 1],  # the order of the log within a second
        [3, 1, 2],
        [-1, -1, -1],
        [-1, -1, 0],
        [-1, -1, -1],  # who never clicks has no history
    ]
    assert batch.user.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert batch.item.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.label.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert batch.label.dtype == torch.float and batch.history.dtype == torch.long
    assert batch.slot is None and batch.domain is None


@pytest.mark.parametrize('length', [1, 4, 100])
@pytest.mark.parametrize('shuffled', [False, True])
def test_equals_brute_force(click_log: HeteroData, length: int, shuffled: bool) -> None:
    if shuffled:
        # Clicks in the order of no clock, on a clock whose moments are far apart.
        clicks = click_log[CLICKS]
        order = torch.randperm(clicks.time.numel(), generator=torch.Generator().manual_seed(1))
        clicks.edge_index, clicks.time = clicks.edge_index[:, order], clicks.time[order]
        for name in ('time', 'edge_label_time'):
            clicks[name] = (clicks[name] - 250) * 2**53
    loader = HistoryLoader(click_log, 64, shuffle=True, length=length)
    seen = []
    for batch, index in zip(loader, list(loader.sampler), strict=True):
        clicks = click_log[CLICKS]
        assert torch.equal(torch.stack([batch.user, batch.item]), clicks.edge_label_index[:, index])
        assert torch.equal(batch.label, clicks.edge_label[index])
        time = clicks.edge_label_time[index]
        assert batch.history.tolist() == brute_force(click_log, batch.user, time, length)
        seen.append(index)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(800))


def test_later_clicks_change_nothing(click_log: HeteroData) -> None:
    r"""A canary: every click from the middle on is moved to other users and items."""
    clicks = click_log[CLICKS]
    middle = 250
    canary = copy.copy(click_log)
    late = clicks.time >= middle
    moved = clicks.edge_index.clone()
    moved[:, late] = moved[:, late] * 7 % 13
    canary[CLICKS].edge_index = moved
    early = clicks.edge_label_time <= middle
    (before,) = HistoryLoader(click_log, 1000)
    (after,) = HistoryLoader(canary, 1000)
    assert torch.equal(before.history[early], after.history[early])
    assert not torch.equal(before.history[~early], after.history[~early])


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_history_of_another_part(click_log: HeteroData) -> None:
    train, _, test = TemporalSplit(num_windows=3)(click_log)
    user, time = test[CLICKS].edge_label_index[0], test[CLICKS].edge_label_time
    for part, history in ((test, None), (train, train), (click_log, click_log)):
        (batch,) = HistoryLoader(test, 1000, length=6, history=history)
        assert batch.history.tolist() == brute_force(part, user, time, 6)
    # A training part ends at its last cutoff; what its last window clicks is in the log alone.
    user, time = train[CLICKS].edge_label_index[0], train[CLICKS].edge_label_time
    for part, history in ((train, None), (click_log, click_log)):
        (batch,) = HistoryLoader(train, 1000, length=6, history=history)
        assert batch.history.tolist() == brute_force(part, user, time, 6)


def test_slots_and_domains_of_the_exposures() -> None:
    market = SyntheticMarket(30, 20, 500, log=False)[0]
    market[CLICKS].edge_label_slot = torch.arange(500) // 100 - 1
    loader = HistoryLoader(market, 200, shuffle=True)
    for batch, index in zip(loader, list(loader.sampler), strict=True):
        assert torch.equal(batch.slot, index // 100 - 1)
        assert torch.equal(batch.domain, market[CLICKS].edge_label_domain[index])


def test_a_request_is_the_row_of_the_same_pair(click_log: HeteroData) -> None:
    data = edited(click_log, edge_label_slot=torch.arange(800) // 100)
    clicks = data[CLICKS]
    loader = HistoryLoader(data, 1000, length=5)
    (whole,) = loader
    unlabelled = whole._replace(label=None)
    request = loader.request(
        whole.user, whole.item, clicks.edge_label_time, slot=clicks.edge_label_slot
    )
    assert_same(request, unlabelled)
    for row in (0, 399, 799):
        user, item = clicks.edge_label_index[:, row].tolist()
        time, slot = int(clicks.edge_label_time[row]), int(clicks.edge_label_slot[row])
        expected = HistoryBatch(
            *(None if value is None else value[row].expand(2, *value[row].shape) for value in whole)
        )._replace(label=None)
        items = torch.tensor([item, item])
        for told_time in (time, torch.tensor([time]), torch.tensor([time, time])):
            assert_same(loader.request(user, items, told_time, slot=slot), expected)
    # Nobody has a history before the log, and every click is one after it.
    everything = loader.request(3, torch.tensor([1]), 2**62, slot=0)
    user = torch.tensor([3])
    assert everything.history.tolist() == brute_force(data, user, torch.tensor([2**62]), 5)
    assert (loader.request(3, torch.tensor([1]), -(2**62), slot=0).history == -1).all()
    assert loader.request(3, torch.tensor([]).long(), 5, slot=0).history.shape == (0, 5)


def test_a_log_without_exposures_serves_requests(click_log: HeteroData) -> None:
    expected = HistoryLoader(click_log).request(4, torch.arange(15), 400)
    data = edited(click_log, edge_label_index=None, edge_label=None, edge_label_time=None)
    loader = HistoryLoader(data)
    assert len(loader) == 0
    assert_same(loader.request(4, torch.arange(15), 400), expected)


def test_a_log_without_clicks(click_log: HeteroData) -> None:
    none = edited(
        click_log, edge_index=torch.empty(2, 0).long(), time=torch.empty(0, dtype=torch.long)
    )
    (batch,) = HistoryLoader(none, 1000, length=3)
    assert (batch.history == -1).all() and batch.history.shape == (800, 3)


def test_labels_that_the_log_does_not_tell(click_log: HeteroData) -> None:
    (whole,) = HistoryLoader(click_log, 1000)
    (batch,) = HistoryLoader(edited(click_log, edge_label=None), 1000)
    assert_same(batch, whole._replace(label=None))


def test_workers_make_the_same_batches(click_log: HeteroData) -> None:
    here = HistoryLoader(click_log, 300, shuffle=True, seed=1)
    there = HistoryLoader(click_log, 300, shuffle=True, seed=1, num_workers=2)
    other = HistoryLoader(click_log, 300, shuffle=True, seed=2)
    for batch, same, different in zip(here, there, other, strict=True):
        assert_same(batch, same)
        assert not torch.equal(batch.user, different.user)


def test_batches_can_be_pickled_and_saved(click_log: HeteroData) -> None:
    batch = next(iter(HistoryLoader(click_log, 64)))
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    file = io.BytesIO()
    torch.save(batch, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), batch)


class LastClick(torch.nn.Module):
    r"""Scores an item after the one that was clicked last."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = torch.nn.Embedding(6 * 5, 1)

    def forward(self, batch: HistoryBatch) -> Tensor:
        return self.pair((batch.history[:, -1] + 1) * 5 + batch.item).view(-1)


def test_a_model_of_histories_is_trained(tmp_path: Any) -> None:
    r"""Users click the item that follows the one they clicked last: the history tells all."""
    generator = torch.Generator().manual_seed(0)
    last = [0] * 10
    rows = []
    for time in range(4000):
        user, item = (int(torch.randint(size, (1,), generator=generator)) for size in (10, 5))
        is_click = item in ((last[user] + 1) % 5, (last[user] + 2) % 5)
        rows.append((user, item, time, is_click))
        last[user] = item if is_click else last[user]
    user, item, time, label = torch.tensor(rows).t()
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 10, 5
    clicks, is_click = data[CLICKS], label == 1
    clicks.edge_label_index, clicks.edge_label_time = torch.stack([user, item]), time
    clicks.edge_label = label.float()
    clicks.edge_index, clicks.time = clicks.edge_label_index[:, is_click], time[is_click]
    train, val, test = (
        HistoryLoader(part, 256, shuffle=place == 0, length=2, history=data)
        for place, part in enumerate(TemporalSplit(num_windows=1)(data))
    )
    module = ClickTask(LastClick(), learning_rate=0.3)
    fit(module, train, val, directory=str(tmp_path), max_epochs=3, progress=False)
    assert evaluate(module, test)['auc'] == 1.0


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_the_slot_of_a_request_is_that_of_its_time(click_log: HeteroData) -> None:
    data = TimeSlots(7)(click_log)
    loader = HistoryLoader(data)
    start = int(click_log[CLICKS].time.min())
    time = torch.tensor([start - 3, start + 6, start + 7, start + 700])
    items = torch.arange(4)
    batch = loader.request(0, items, time)
    assert batch.slot.tolist() == [0, 0, 1, 100]
    assert loader.request(0, items, start + 15).slot.tolist() == [2] * 4
    assert loader.request(0, items, start + 15, slot=9).slot.tolist() == [9] * 4
    # As those of the exposures are.
    rows = loader.dataset[torch.arange(0, 800, 37)]
    asked = loader.request(rows.user, rows.item, click_log[CLICKS].edge_label_time[::37])
    assert torch.equal(asked.slot, rows.slot)
    with pytest.raises(ValueError, match=r"one 'time' or one for each item, but got shape \[2\]"):
        loader.request(0, items, time[:2])
    with pytest.raises(ValueError, match=r"must tell no context, but told \['domain'\]"):
        loader.request(0, items, start, domain=0)
    for part in TemporalSplit(num_windows=1)(data):
        assert HistoryLoader(part).request(0, items, start + 15).slot.tolist() == [2] * 4


def test_wrong_requests(click_log: HeteroData) -> None:
    loader = HistoryLoader(edited(click_log, edge_label_domain=torch.zeros(800).long()))
    good: dict[str, Any] = {'user': 0, 'items': torch.tensor([0, 1, 2]), 'time': 9, 'domain': 0}
    loader.request(**good)
    for told, error, message in (
        ({'user': 25}, IndexError, 'user ids from 25 to 25, .* from -1 to 24'),
        ({'items': torch.tensor([0, 15])}, IndexError, 'item ids from 0 to 15, .* from -1 to 14'),
        ({'user': 0.5}, TypeError, "'user' must hold integer ids, but has dtype torch.float32"),
        ({'time': 0.5}, TypeError, "'time' must be int64 seconds, but has dtype torch.float32"),
        ({'domain': 1j}, TypeError, "'domain' must hold integer ids, .* dtype torch.complex64"),
        ({'domain': 0.5}, TypeError, "'domain' must hold integer ids, .* dtype torch.float32"),
        (
            {'time': torch.tensor([1, 2])},
            ValueError,
            r"A request of 3 items expects one 'time' or one for each item, but got shape \[2\]",
        ),
        ({'domain': torch.zeros(3, 2).long()}, ValueError, r"one 'domain' .* shape \[3, 2\]"),
        ({'slot': 3}, ValueError, r"must tell \['domain'\], but told \['domain', 'slot'\]"),
    ):
        with pytest.raises(error, match=message):
            loader.request(**{**good, **told})
    with pytest.raises(ValueError, match=r"must tell \['domain'\], but told none"):
        loader.request(0, torch.tensor([0]), 9)
    with pytest.raises(ValueError, match=r"must tell no context, but told \['domain'\]"):
        HistoryLoader(click_log).request(**good)


def test_bad_input(click_log: HeteroData) -> None:
    clicks = click_log[CLICKS]
    for attributes, error, message in (
        ({'time': None}, ValueError, r"HistoryLoader needs .* to have \['time'\]"),
        ({'edge_label_time': None}, ValueError, r"needs .* to have \['edge_label_time'\]"),
        ({'time': clicks.time.double()}, TypeError, "expects 'time' of int64 seconds"),
        ({'edge_label': clicks.edge_label * 2}, ValueError, "expects 'edge_label' of 1 for a cl"),
        (
            {'edge_label_slot': torch.zeros(799).long()},
            ValueError,
            r"'edge_label_slot' of shape \[800\], but got shape \[799\]",
        ),
        ({'edge_label_domain': 3}, TypeError, r"'edge_label_domain' to be .*, but got 3"),
        ({'edge_label_slot': torch.zeros(800)}, TypeError, "'edge_label_slot' of integers"),
    ):
        with pytest.raises(error, match=message):
            HistoryLoader(edited(click_log, **attributes))
    with pytest.raises(ValueError, match="'length' must be at least 1, but got 0"):
        HistoryLoader(click_log, length=0)
    with pytest.raises(ValueError, match="'batch_size' must be at least 1, but got 0"):
        HistoryLoader(click_log, 0)
    with pytest.raises(TypeError, match=r"takes no \['collate_fn'\]"):
        HistoryLoader(click_log, collate_fn=list)
    with pytest.raises(TypeError, match='HistoryLoader expects a HeteroData'):
        HistoryLoader('log')  # type: ignore[arg-type]
    other = SyntheticMarket(26, 15, 400, log=False)[0]
    with pytest.raises(ValueError, match='it has 26 users where the data has 25'):
        HistoryLoader(click_log, history=other)
    part = TemporalSplit(by='user', num_windows=1)(click_log)[0]
    with pytest.raises(ValueError, match="HistoryLoader compares times, .* each user's own log"):
        HistoryLoader(part)
    HistoryLoader(part, history=click_log)
    click_log['user'].num_nodes = 2**61
    with pytest.raises(ValueError, match='numbers the combinations of 2305843009213693952 users'):
        HistoryLoader(click_log)
