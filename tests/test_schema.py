import pytest
import torch
from torch_geometric.data import HeteroData

from mag.schema import CLICKS, categoricals, contents, hop_type, hops, require, require_cpu, windows


def test_require_accepts_what_is_there(micro):
    assert require(micro(), 'Reader', 'edge_index', 'time') is None
    # Labels that nobody asks for are not looked at.
    assert require(micro(edge_label_index='wrong'), 'Reader', 'edge_index') is None


def test_require_accepts_no_clicks(micro):
    data = micro(edge_index=torch.empty(2, 0, dtype=torch.long), time=torch.empty(0).long())
    assert require(data, 'Reader', 'edge_index', 'time') is None


@pytest.mark.parametrize(
    ('attributes', 'error', 'match'),
    [
        (
            {'edge_index': torch.zeros(5).long()},
            ValueError,
            r"'edge_index'.*\[2, num_edges\].*\[5\]",
        ),
        ({'edge_index': [[0], [0]]}, TypeError, 'got list'),
        ({'edge_index': torch.zeros(2, 5)}, TypeError, 'int64, but got torch.float32'),
        (
            {'edge_index': torch.full((2, 5), 3)},
            IndexError,
            "user ids of 'edge_index' from 3 to 3, .* from 0 to 2",
        ),
        (
            {'edge_index': torch.tensor([[0] * 5, [0, 1, 2, 3, 4]])},
            IndexError,
            r"item ids of 'edge_index' from 0 to 4, .* from 0 to 3",
        ),
        (
            {'edge_index': torch.full((2, 5), -1)},
            IndexError,
            "user ids of 'edge_index' from -1 to -1",
        ),
        ({'time': torch.arange(4)}, ValueError, r"'time' of shape \[5\], but got shape \[4\]"),
        ({'time': torch.arange(5).float()}, TypeError, "'time' of int64 seconds"),
    ],
)
def test_require_refuses(micro, attributes, error, match):
    with pytest.raises(error, match=f'Reader.*{match}'):
        require(micro(**attributes), 'Reader', 'edge_index', 'time')


def test_require_checks_labels(micro):
    index = torch.tensor([[0, 1], [0, 3]])
    data = micro(edge_label_index=index, edge_label=torch.ones(3))
    with pytest.raises(ValueError, match=r"'edge_label' of shape \[2\], but got shape \[3\]"):
        require(data, 'Reader', 'edge_label_index', 'edge_label')


def test_require_names_what_is_missing(micro):
    with pytest.raises(TypeError, match='Reader expects a HeteroData.*got dict'):
        require({}, 'Reader')
    with pytest.raises(ValueError, match='the data has none'):
        require(HeteroData(), 'Reader')
    with pytest.raises(ValueError, match=r"to have \['edge_label'\].*'edge_index', 'time'"):
        require(micro(), 'Reader', 'time', 'edge_label')
    data = micro()
    del data['item'].num_nodes
    with pytest.raises(ValueError, match=r"data\['item'\].num_nodes to be set"):
        require(data, 'Reader', 'edge_index')


def test_require_cpu(micro):
    assert require_cpu(micro(), 'Reader') is None
    with pytest.raises(ValueError, match="main memory.*'meta'"):
        require_cpu(micro().to('meta'), 'Reader')


def test_categoricals(micro):
    data = micro(edge_label_query=1, num_query=9, edge_label_behavior=1, num_behavior=3, num_hour=7)
    item = data['item']
    item.tag, item.num_tag = torch.zeros(4, 2).long(), torch.tensor(5)
    item.brand, item.num_brand = torch.zeros(4).long(), 3
    item.price = torch.rand(4)
    item.num_colors = 4
    assert list(categoricals(item).items()) == [('tag', 5), ('brand', 3)]
    assert categoricals(data['user']) == {}
    # What follows an exposure is no feature of it.
    assert categoricals(data[CLICKS], 'edge_label_') == {'query': 9}


def test_contents(micro):
    store = micro()['item']
    store.x_visual, store.x, store.x_text_2, store.xylophone = torch.rand(4, 4, 1)
    assert contents(store) == {'visual': 'x_visual', '': 'x', 'text_2': 'x_text_2'}


def test_hops(micro):
    data = micro()
    assert hops(data, 'user') == []
    for hop in (10, 2, 1):
        for node_type in ('user', 'item'):
            data[hop_type(node_type, hop)].edge_index = torch.zeros(2, 0).long()
    data['item', 'hopeful', 'user'].edge_index = torch.zeros(2, 0).long()
    assert hops(data, 'user') == [
        ('macro_item', 'hop1', 'user'),
        ('macro_user', 'hop2', 'user'),
        ('macro_user', 'hop10', 'user'),
    ]
    assert hops(data, 'item')[:2] == [
        ('macro_user', 'hop1', 'item'),
        ('macro_item', 'hop2', 'item'),
    ]


def test_windows(micro):
    assert windows(micro(), 'Reader') == (None, 1, None)
    cutoff, num, of_label = windows(micro(cutoff=torch.tensor(7)), 'Reader')
    assert (cutoff.tolist(), num, of_label) == ([7], 1, None)
    data = micro(cutoff=torch.tensor([7, 9]), edge_label_window=torch.tensor([1, 0, 1]))
    cutoff, num, of_label = windows(data, 'Reader')
    assert (cutoff.tolist(), num, of_label.tolist()) == ([7, 9], 2, [1, 0, 1])
    with pytest.raises(ValueError, match='Reader expects ascending cutoffs'):
        windows(micro(cutoff=torch.tensor([7, 7])), 'Reader')
    with pytest.raises(ValueError, match="Reader found 'edge_label_window' but no 'cutoff'"):
        windows(micro(edge_label_window=torch.tensor([0])), 'Reader')
