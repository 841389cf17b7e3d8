import pytest
import torch

from mag.macro_graph import MacroEdges, count_by_window


@pytest.mark.parametrize('mode', ['set', 'walk'])
def test_every_window_counts_the_clicks_up_to_it(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    user_cluster, item_cluster = torch.arange(8) % 3, torch.arange(6) % 2
    empty = MacroEdges(user_cluster, item_cluster, {'user': 3, 'item': 2}, 3, mode)
    clicks = torch.stack([torch.randint(size, (40,), generator=generator) for size in (8, 6)])
    window = torch.randint(4, (40,), generator=generator)
    every, counted = count_by_window(empty, clicks, window, 4)
    assert empty.clicks['user'].nnz == 0
    assert sorted(edge_type[1] for edge_type in counted) == [
        'clicks',
        *(f'hop{h}' for h in '112233'),
    ]
    for step in range(4):
        earlier = clicks[:, window <= step]
        alone = MacroEdges(user_cluster, item_cluster, {'user': 3, 'item': 2}, 3, mode)
        last, expected = count_by_window(alone, earlier)
        for edge_type, (edge_index, weight) in counted.items():
            size = edge_index.amax(1) + 1
            table = torch.zeros(*size.tolist()).index_put_(tuple(edge_index), weight[:, step])
            index, values = expected[edge_type]
            assert torch.equal(torch.zeros_like(table).index_put_(tuple(index), values), table)
            assert (values > 0).all()
    for node_type in ('user', 'item'):
        for table, expected_table in zip(every.counts[node_type], last.counts[node_type]):
            assert (table == expected_table).all()
        for hop in (1, 2, 3):
            tensor, expected_tensor = (e.tensors(node_type, hop) for e in (every, last))
            assert torch.equal(tensor.to_dense(), expected_tensor.to_dense())
