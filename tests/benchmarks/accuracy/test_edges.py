import torch
from torch_geometric.data import HeteroData


def test_neighbors_and_macro_nodes_are_counted_without_repeats() -> None:
    from accuracy import edges

    part = HeteroData()
    part['user'].num_nodes, part['item'].num_nodes = 3, 4
    part['user'].group, part['user'].num_group = torch.tensor([0, 0, 1]), 2
    part['item'].group, part['item'].num_group = torch.tensor([0, 0, 1, 1]), 2
    clicks = part['user', 'clicks', 'item']
    # User 1 clicks the item 1 twice.
    clicks.edge_index = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 1, 1, 3, 2, 3]])
    # Seven pairs, either way; all users have all users two hops away, and items all but {0, 3}.
    assert edges.num_neighbors(part) == 2 * 7 + 9 + (16 - 2)
    found = edges.num_macro_edges(part, {'user': 'group', 'item': 'group'})
    # User 0, 1: both kinds of items, user 2: one; items 0, 1: one kind of users, items 2, 3: both.
    one_hop = (2 + 2 + 1) + (1 + 1 + 2 + 2)
    # Two hops: all users reach both kinds of users, and all items both kinds of items.
    assert found == one_hop + 3 * 2 + 4 * 2
