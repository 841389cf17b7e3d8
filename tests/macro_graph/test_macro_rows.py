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
