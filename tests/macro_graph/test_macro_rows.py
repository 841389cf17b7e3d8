import copy
import io
import pickle

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.loader import PairLoader
from mag.macro_graph import MacroRows
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
GROUPS: dict[str, int | str] = {'user': 'group', 'item': 'category'}


def coarse(log: HeteroData, num_windows: int) -> HeteroData:
    train = TemporalSplit(0.4, 0.8, 0.9, num_windows=num_windows)(log)[0]
    return MacroCoarsen(GROUPS)(RecentNeighbors(4)(train))


def by_hand(data: HeteroData, user: int, window: int) -> tuple[list[int], list[int]]:
    r"""How many items of each category a user clicked before a cutoff, and the last of them."""
    clicks = data[CLICKS]
    early = (clicks.edge_index[0] == user) & (clicks.time < clicks.cutoff[window])
    items = clicks.edge_index[1, early]
    counts = data['item'].category[items.unique()].bincount(minlength=4).tolist()
    return counts, ([-1] * 4 + items.tolist())[-4:]


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
@pytest.mark.parametrize('num_windows', [1, 5])
def test_rows_of_nodes_as_of_windows(click_log: HeteroData, num_windows: int) -> None:
    data = coarse(click_log, num_windows)
    macro_rows = MacroRows(data)
    user, window = torch.cartesian_prod(torch.arange(25), torch.arange(num_windows)).t()
    hops, recent = macro_rows.rows('user', user, window)
    assert [hop.dtype for hop in hops] == [torch.float32] * 2
    for row, (who, when) in enumerate(zip(user.tolist(), window.tolist(), strict=True)):
        assert (hops[0][row].tolist(), recent[row].tolist()) == by_hand(data, who, when)
    # By default those of the last.
    last = macro_rows.rows('user', torch.arange(25))
    expected = macro_rows.rows('user', torch.arange(25), torch.full((25,), num_windows - 1))
    torch.testing.assert_close(last, expected, rtol=0, atol=0)


def test_training_and_requests_read_them(click_log: HeteroData) -> None:
    data = coarse(click_log, 5)
    macro_rows = MacroRows(data)
    (batch,) = PairLoader(data, 10_000)
    for node_type, node, hops, recent in (
        ('user', batch.user, batch.user_hops, batch.user_recent),
        ('item', batch.item, batch.item_hops, batch.item_recent),
    ):
        row = macro_rows.rows(node_type, node, data[CLICKS].edge_label_window)
        torch.testing.assert_close(row, (hops, recent), rtol=0, atol=0)
    request = PairLoader(data).request(3, torch.arange(15))
    row = macro_rows.rows('item', torch.arange(15))
    torch.testing.assert_close(row, (request.item_hops, request.item_recent), rtol=0, atol=0)


def test_rows_without_labels_or_recent_lists(toy_graph: HeteroData) -> None:
    data = MacroCoarsen(GROUPS)(toy_graph)
    for name in ('edge_label_index', 'edge_label', 'edge_label_time'):
        del data[CLICKS][name]
    hops, recent = MacroRows(data).rows('item', torch.tensor([3, 0]))
    assert [hop.tolist() for hop in hops] == [[[1, 1], [1, 0]], [[1, 3], [2, 1]]]
    assert recent.shape == (2, 0)


def test_rows_can_be_saved(click_log: HeteroData) -> None:
    macro_rows = MacroRows(coarse(click_log, 5))
    file = io.BytesIO(pickle.dumps(macro_rows))
    again = pickle.load(file)
    item = torch.arange(15)
    torch.testing.assert_close(again.rows('item', item), macro_rows.rows('item', item))


def test_nodes_and_windows_that_do_not_exist(click_log: HeteroData) -> None:
    macro_rows = MacroRows(coarse(click_log, 5))
    two = torch.tensor([0, 1])
    for arguments, error, sentence in (
        (('tag', two), ValueError, "'node_type' must be one of 'user', 'item', but got 'tag'"),
        (('user', two + 24), IndexError, 'MacroRows found user ids from 24 to 25.* to 24'),
        (('item', two - 2), IndexError, 'MacroRows found item ids from -2 to -1.* to 14'),
        (('user', two, two + 4), IndexError, 'MacroRows found windows from 4 to 5.* to 4'),
        # It would be a row of the user before.
        (('user', two, two - 1), IndexError, 'MacroRows found windows from -1 to 0'),
        (('user', two, two[:1]), ValueError, r"'window' of shape \[2\], but got shape \[1\]"),
        (('user', two.view(1, 2)), ValueError, r"'node' of shape \[B\], but got shape \[1, 2\]"),
        (('user', two.float()), TypeError, "'node' of dtype int64, but got torch.float32"),
        (('user', 3), TypeError, "'node' to be a tensor .* but got 3"),
    ):
        with pytest.raises(error, match=sentence):
            macro_rows.rows(*arguments)


def test_data_that_has_none(click_log: HeteroData) -> None:
    data = coarse(click_log, 5)
    with pytest.raises(TypeError, match='MacroRows expects a HeteroData'):
        MacroRows(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='MacroRows found no macro edges.*apply MacroCoarsen'):
        MacroRows(click_log)
    with pytest.raises(ValueError, match="'max_bytes' must be at least 1, but got 0"):
        MacroRows(data, 0)
    with pytest.raises(TypeError, match="'max_bytes' must be an integer, but got 1.5"):
        MacroRows(data, 1.5)  # type: ignore[arg-type]
    other = copy.copy(data)
    other[CLICKS].cutoff = data[CLICKS].cutoff[:4]
    with pytest.raises(
        ValueError, match=r"MacroRows expects 'edge_weight of hop1 of users' .*, 4\], but"
    ):
        MacroRows(other)


def drawn(num_windows: int, largest: int) -> HeteroData:
    r"""A part with macro edges and recent lists as they come, of 300 users and 200 items, of which
    some have no edge, with counts that grow up to a largest one."""
    generator = torch.Generator().manual_seed(largest)
    sizes = {'user': 300, 'item': 200}
    data = HeteroData()
    data[CLICKS].edge_index = torch.empty(2, 0, dtype=torch.long)
    data[CLICKS].cutoff = torch.arange(num_windows)
    for name, other in (('user', 'item'), ('item', 'user')):
        data[name].num_nodes, data[f'macro_{name}'].num_nodes = sizes[name], 7
        shape = sizes[name], num_windows, 3
        data[name].recent = torch.randint(-1, sizes[other], shape, generator=generator)
        for hop, source in ((1, other), (2, name)):
            # In no order, and none of the last node.
            cell = torch.randperm((sizes[name] - 1) * 7, generator=generator)[: 3 * sizes[name]]
            weight = torch.randint(largest + 1, (cell.numel(), num_windows), generator=generator)
            store = data[f'macro_{source}', f'hop{hop}', name]
            store.edge_index = torch.stack([cell % 7, cell // 7])
            store.edge_weight = weight.sort(1).values.float()
            store.edge_weight[0, -1] = largest
    return data


def rows_by_hand(
    data: HeteroData, name: str, node: torch.Tensor, window: torch.Tensor
) -> tuple[list[list[list[float]]], list[list[int]]]:
    r"""The rows of some nodes, edge by edge."""
    found = []
    for hop, source in ((1, {'user': 'item', 'item': 'user'}[name]), (2, name)):
        store = data[f'macro_{source}', f'hop{hop}', name]
        edges = zip(store.edge_index.t().tolist(), store.edge_weight.tolist(), strict=True)
        count_of = {(who, macro): counts for (macro, who), counts in edges}
        none = [0.0] * data[CLICKS].cutoff.numel()
        found.append(
            [
                [count_of.get((who, macro), none)[when] for macro in range(7)]
                for who, when in zip(node.tolist(), window.tolist(), strict=True)
            ]
        )
    recent = [
        data[name].recent[who, when].tolist() if who >= 0 else [-1] * 3
        for who, when in zip(node.tolist(), window.tolist(), strict=True)
    ]
    return found, recent


@pytest.mark.parametrize('num_windows', [1, 6])
@pytest.mark.parametrize(
    ('largest', 'dtype'),
    [(255, torch.uint8), (256, torch.int16), (65_536, torch.int32), (2**24, torch.int32)],
)
def test_rows_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, num_windows: int, largest: int, dtype: torch.dtype
) -> None:
    # So that no piece of a table is all of it.
    monkeypatch.setattr('mag.macro_graph.macro_rows._PIECE', 2_000)
    data = drawn(num_windows, largest)
    generator = torch.Generator().manual_seed(0)
    asked = {}
    for name in ('user', 'item'):
        node = torch.randint(data[name].num_nodes, (150,), generator=generator)
        node[0] = data[name].num_nodes - 1
        asked[name] = node, torch.randint(num_windows, (150,), generator=generator)
    every, few = MacroRows(data), MacroRows(data, asked=asked)
    assert [table.dtype for of in few.hops.values() for table in of] == [dtype] * 4
    for name, (node, window) in asked.items():
        # An unknown node has a row as of any window.
        unknown = torch.full((num_windows,), -1)
        last = torch.arange(data[name].num_nodes)
        who = torch.cat([node, unknown, last])
        when = torch.cat([window, torch.arange(num_windows), last * 0 + num_windows - 1])
        expected_hops, expected_recent = rows_by_hand(data, name, who, when)
        for rows in (every, few):
            hops, recent = rows.rows(name, who, when)
            assert [hop.tolist() for hop in hops] == expected_hops
            assert {hop.dtype for hop in hops} == {torch.float32}
            assert recent.tolist() == expected_recent and recent.dtype == torch.long
        served = few.rows(name, torch.cat([last, unknown]))
        again = every.rows(name, torch.cat([last, unknown]))
        torch.testing.assert_close(served, again, rtol=0, atol=0)


def held_bytes(rows: MacroRows) -> int:
    tables = [table for of in rows.hops.values() for table in of] + list(rows.recent.values())
    return sum(of.nbytes for of in [*tables, *rows.place.values()] if of is not None)


@pytest.mark.parametrize('num_asked', [0, 1, 40, 160])
def test_bytes_are_those_of_the_rows_that_are_asked_for(num_asked: int) -> None:
    data = drawn(6, 300)
    cell = torch.arange(num_asked) * 6 + torch.arange(num_asked) % 5
    # What is asked for twice is held once.
    cell = torch.cat([cell, cell])
    asked = dict.fromkeys(('user', 'item'), (cell // 6, cell % 6))
    rows = MacroRows(data, asked=asked)
    # Two bytes for each of seven counts a hop, and for each of three neighbors.
    row_bytes = 2 * 2 * 7 + 2 * 3
    for name, num_nodes in rows.num_nodes.items():
        tables = [*rows.hops[name], rows.recent[name]]
        assert [len(table) for table in tables] == [num_nodes + num_asked] * 3
        assert sum(table.nbytes for table in tables) == (num_nodes + num_asked) * row_bytes
        place = rows.place[name]
        assert place is not None and place.nbytes == 4 * 6 * num_nodes
    num_bytes = (500 + 2 * num_asked) * row_bytes + 4 * 6 * 500
    assert held_bytes(rows) == num_bytes
    # No tensor is a view of a larger one, which would be held, too.
    assert all(
        table.untyped_storage().nbytes() == table.nbytes
        for of in rows.hops.values()
        for table in of
    )
    MacroRows(data, num_bytes, asked=asked)
    with pytest.raises(ValueError, match="of 'max_bytes'"):
        MacroRows(data, num_bytes - 1, asked=asked)


def test_all_rows_are_held_where_that_takes_no_more() -> None:
    data = drawn(6, 300)
    most = {}
    for name in ('user', 'item'):
        cell = torch.arange(data[name].num_nodes * 6)[:-1]
        most[name] = cell // 6, cell % 6
    rows = MacroRows(data, asked=most)
    assert rows.place == {'user': None, 'item': None}
    assert held_bytes(rows) == held_bytes(MacroRows(data)) == 500 * 6 * 34


def test_a_row_that_was_not_asked_for() -> None:
    data = drawn(6, 9)
    asked = {'user': (torch.tensor([4, 7]), torch.tensor([2, 3]))}
    asked['item'] = asked['user']
    rows = MacroRows(data, asked=asked)
    rows.rows('user', torch.tensor([7, 0, -1, 4]), torch.tensor([3, 5, 0, 2]))
    with pytest.raises(
        IndexError,
        match=r'MacroRows holds no row of 2 of 4 users, such as 7 as of window 2: tell them in '
        "'asked', or ask as of the last window, 5",
    ):
        rows.rows('user', torch.tensor([4, 7, -1, 0]), torch.tensor([2, 2, 2, 4]))
    # Nor does one slip through where nothing is checked.
    with pytest.raises(IndexError):
        rows.gather('user', torch.tensor([7]), torch.tensor([2]))
    again = pickle.loads(pickle.dumps(rows))
    torch.testing.assert_close(
        again.rows('item', *asked['item']), rows.rows('item', *asked['item'])
    )


def test_what_can_be_asked_for() -> None:
    data = drawn(6, 9)
    node = torch.tensor([0, 1])
    good = {'user': (node, node), 'item': (node, node)}
    for changes, error, sentence in (
        ({'user': (node + 299, node)}, IndexError, 'user ids that are asked for from 299 to 300'),
        ({'item': (node - 1, node)}, IndexError, 'item ids that are asked for from -1 to 0'),
        ({'item': (node, node + 5)}, IndexError, 'windows that are asked for items from 5 to 6'),
        ({'user': (node, node - 1)}, IndexError, 'windows that are asked for users from -1 to 0'),
        ({'user': (node, node[:1])}, ValueError, r"windows of asked\['user'\]' of shape \[2\]"),
        ({'user': (node.float(), node)}, TypeError, r"nodes of asked\['user'\]' of dtype int64"),
        ({'tag': (node, node)}, ValueError, "'asked'"),
    ):
        with pytest.raises(error, match=sentence):
            MacroRows(data, asked={**good, **changes})


def test_rows_that_are_asked_for_without_recent_lists() -> None:
    data = drawn(6, 9)
    for name in ('user', 'item'):
        del data[name].recent
    node, window = torch.tensor([4, 7]), torch.tensor([2, 3])
    rows = MacroRows(data, asked=dict.fromkeys(('user', 'item'), (node, window)))
    assert rows.place['user'] is not None and rows.recent['user'].shape == (302, 0)
    found = rows.rows('user', node, window)
    torch.testing.assert_close(found, MacroRows(data).rows('user', node, window), rtol=0, atol=0)
    assert found.recent.shape == (2, 0)
