import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureFeatures
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
FIELDS = (
    'user', 'user_age_level', 'user_gender',
    'item', 'item_brand', 'item_category', 'item_price_level', 'item_seller',
    'domain', 'query', 'query', 'query', 'query',
)  # fmt: skip


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return SyntheticMarket(50, 30, 3000, log=False)[0]


def shop() -> HeteroData:
    r"""Two users, three items and four exposures, with every kind of attribute."""
    data = HeteroData()
    data['user'].num_nodes = 2
    data['user'].group = torch.tensor([4, 5])
    data['user'].num_group = 6
    data['user'].x = torch.tensor([[0.5], [1.5]])
    data['item'].num_nodes = 3
    data['item'].tag = torch.tensor([[1, -1], [2, 3], [0, -1]], dtype=torch.int32)
    data['item'].num_tag = 4
    data['item'].brand = torch.tensor([7, 8, 9])
    data['item'].num_brand = 10
    data['item'].x_text = torch.tensor([[1.0, 2], [3, 4], [5, 6]], dtype=torch.double)
    data['item'].x_image = torch.tensor([10.0, 20, 30])
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.tensor([[0, 1, 1, 0], [2, 0, 1, 2]])
    clicks.edge_label = torch.tensor([1.0, 0, 1, 0])
    clicks.edge_label_time = torch.arange(4)
    clicks.edge_label_hour = torch.tensor([20, 21, 22, 23])
    clicks.num_hour = 24
    clicks.edge_label_x = torch.tensor([[-1.0], [-2], [-3], [-4]])
    clicks.edge_index = clicks.edge_label_index[:, [0, 2]]
    clicks.time = torch.tensor([0, 2])
    return data


def test_every_field_has_its_number_of_values() -> None:
    features = ExposureFeatures(shop())
    assert features.num_values == {
        'user': 2, 'user_group': 6, 'item': 3, 'item_brand': 10, 'item_tag': 4, 'hour': 24,
    }  # fmt: skip
    assert set(features.fields) == set(features.num_values)


def rows(features: ExposureFeatures) -> tuple[list[list[int]], list[list[float]]]:
    sparse, dense = features.rows(features.exposures)
    return sparse.tolist(), dense.tolist()


def test_every_column_of_a_graph_by_hand() -> None:
    features = ExposureFeatures(shop())
    assert features.fields == (
        'user', 'user_group', 'item', 'item_brand', 'item_tag', 'item_tag', 'hour'
    )  # fmt: skip
    assert features.num_dense == 5
    assert len(features) == 4
    sparse, dense = rows(features)
    assert sparse == [
        [0, 4, 2, 9, 0, -1, 20],
        [1, 5, 0, 7, 1, -1, 21],
        [1, 5, 1, 8, 2, 3, 22],
        [0, 4, 2, 9, 0, -1, 23],
    ]
    # Contents in the order of their names.
    assert dense == [
        [0.5, 30, 5, 6, -1],
        [1.5, 10, 1, 2, -2],
        [1.5, 20, 3, 4, -3],
        [0.5, 30, 5, 6, -4],
    ]
    mean, deviation = features.moments()
    columns = torch.tensor(dense).double()
    torch.testing.assert_close(mean, columns.mean(0).float())
    torch.testing.assert_close(deviation, columns.std(0, correction=0).float())


def test_every_row_of_a_market(market: HeteroData) -> None:
    features = ExposureFeatures(market)
    assert features.fields == FIELDS
    assert features.num_dense == 48
    sparse, dense = rows(features)
    clicks = market[CLICKS]
    user_store, item_store = market['user'], market['item']
    assert len(sparse) == len(dense) == 3000
    for row, (user, item) in enumerate(clicks.edge_label_index.t().tolist()):
        assert sparse[row] == [
            user,
            *(int(user_store[name][user]) for name in ('age_level', 'gender')),
            item,
            *(
                int(item_store[name][item])
                for name in ('brand', 'category', 'price_level', 'seller')
            ),
            int(clicks.edge_label_domain[row]),
            *clicks.edge_label_query[row].tolist(),
        ]
        assert dense[row] == [
            *item_store.x_acoustic[item].tolist(),
            *item_store.x_text[item].tolist(),
            *item_store.x_visual[item].tolist(),
        ]
    mean, deviation = features.moments()
    for column in range(48):
        values = [row[column] for row in dense]
        expected = math.fsum(values) / 3000
        variance = math.fsum((value - expected) ** 2 for value in values) / 3000
        assert mean[column].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert deviation[column].item() == pytest.approx(math.sqrt(variance), rel=1e-5)


def test_what_follows_an_exposure_is_no_feature(market: HeteroData) -> None:
    names = ('label', 'label_time', 'label_row', 'label_behavior', 'label_conversion')
    assert all(f'edge_{name}' in market[CLICKS] for name in names)
    data = copy.copy(market)
    # Not even where their number stands beside them, as it does for categoricals.
    data[CLICKS].num_behavior = 10
    data[CLICKS].num_conversion = 2
    expected = rows(ExposureFeatures(market))
    features = ExposureFeatures(data)
    assert features.fields == FIELDS and features.num_dense == 48
    assert rows(features) == expected
    for name in names:
        data[CLICKS][f'edge_{name}'] = data[CLICKS][f'edge_{name}'].flip(0)
    assert rows(ExposureFeatures(data)) == expected


def test_parts_of_a_split_have_the_same_fields(market: HeteroData) -> None:
    whole, _ = rows(ExposureFeatures(market))
    for part in TemporalSplit(0.3, 0.8, 0.9, num_windows=3)(market):
        part = RecentNeighbors(2)(part)
        part = MacroCoarsen({'user': 3, 'item': 'category'}).fit(part)(part)
        features = ExposureFeatures(part)
        assert features.fields == FIELDS and features.num_dense == 48
        sparse, _ = rows(features)
        assert sparse == [whole[row] for row in part[CLICKS].edge_label_row.tolist()]


def test_moments_count_exposures_and_not_nodes() -> None:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 1, 3
    data['item'].x = torch.tensor([[1.0], [5.0], [1e9]])
    data[CLICKS].edge_index = torch.empty(2, 0, dtype=torch.long)
    data[CLICKS].edge_label_index = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]])
    mean, deviation = ExposureFeatures(data).moments()
    assert mean.tolist() == [2]
    assert deviation.tolist() == pytest.approx([math.sqrt(3)])


@pytest.mark.parametrize('value', [0.0, 0.1, -0.3, 7.7, 1e-30, 3e30])
def test_the_deviation_of_a_constant_is_one(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 5, 7
    data['item'].x = torch.full((7, 1), value)
    data[CLICKS].edge_index = torch.empty(2, 0, dtype=torch.long)
    data[CLICKS].edge_label_index = torch.stack(
        [torch.randint(size, (997,), generator=generator) for size in (5, 7)]
    )
    data[CLICKS].edge_label_x = torch.full((997,), value)
    mean, deviation = ExposureFeatures(data).moments()
    assert mean.tolist() == pytest.approx([value] * 2, rel=1e-6)
    assert deviation.tolist() == [1, 1]


def test_moments_are_exact_far_from_zero() -> None:
    data = shop()
    data[CLICKS].edge_label_x = torch.tensor([2.0**20 + 0.5, 2**20, 2**20, 2**20 + 0.5])
    mean, deviation = ExposureFeatures(data).moments()
    assert mean[-1].item() == 2**20 + 0.25 and deviation[-1].item() == 0.25


def test_without_exposures_and_without_features() -> None:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2, 2
    data[CLICKS].edge_index = torch.tensor([[0], [1]])
    features = ExposureFeatures(data)
    assert (features.fields, features.num_dense, len(features)) == (('user', 'item'), 0, 0)
    user, item = torch.tensor([1, 0]), torch.tensor([0, 1])
    sparse, dense = features.rows(features.exposures.request(user, item))
    assert sparse.tolist() == [[1, 0], [0, 1]]
    assert dense.shape == (2, 0)

    # A part whose exposures all went has the fields and the widths of the others.
    data = shop()
    clicks = data[CLICKS]
    clicks.edge_label_query = torch.empty(4, 3, dtype=torch.long)
    clicks.num_query = 9
    expected = ExposureFeatures(data)
    for name in [name for name in clicks.keys() if name.startswith('edge_label')]:
        clicks[name] = clicks[name][:, :0] if name == 'edge_label_index' else clicks[name][:0]
    features = ExposureFeatures(data)
    assert features.fields == expected.fields and features.num_dense == 5
    assert rows(features) == ([], [])
    mean, deviation = features.moments()
    assert mean.tolist() == [0] * 5 and deviation.tolist() == [1] * 5


def test_columns_need_not_be_contiguous() -> None:
    data, other = shop(), shop()
    other['item'].tag = other['item'].tag.t().contiguous().t()
    other['item'].x_text = other['item'].x_text.repeat(1, 2)[:, 2:]
    other[CLICKS].edge_label_hour = other[CLICKS].edge_label_hour.repeat_interleave(2)[::2]
    assert rows(ExposureFeatures(other)) == rows(ExposureFeatures(data))


def with_value(where: str, name: str, value: Any) -> HeteroData:
    data = shop()
    store = data[CLICKS] if where == 'clicks' else data[where]
    store[name] = value
    return data


def spoilt(value: Tensor, number: float) -> Tensor:
    value.view(-1)[-1] = number
    return value


@pytest.mark.parametrize(
    ('where', 'name', 'value', 'error', 'message'),
    [
        (
            'user', 'group', torch.rand(2), TypeError,
            r"data\['user'\].group' of integers, but got torch.float32",
        ),
        ('item', 'brand', torch.ones(3).bool(), TypeError, 'brand.*integers.*torch.bool'),
        ('clicks', 'edge_label_hour', torch.rand(4), TypeError, "'edge_label_hour' of integers"),
        (
            'user', 'group', torch.tensor([1]), ValueError,
            r"data\['user'\].group' of shape \[2\], but got shape \[1\]",
        ),
        ('item', 'tag', torch.ones(3, 2, 2).long(), ValueError, r'tag.* but got shape \[3, 2, 2\]'),
        ('item', 'tag', torch.tensor(3), ValueError, r'tag.* but got shape \[\]'),
        ('item', 'brand', [1, 2, 3], TypeError, r'brand.* but got list'),
        (
            'clicks', 'edge_label_hour', torch.ones(2).long(), ValueError,
            r"'edge_label_hour' of shape \[4\], but got shape \[2\]",
        ),
        (
            'user', 'x', torch.ones(2, 3).long(), TypeError,
            r"data\['user'\].x' of floats, but got torch.int64",
        ),
        ('item', 'x_text', torch.ones(2, 3), ValueError, r'x_text.* \[3, F\].*shape \[2, 3\]'),
        (
            'item', 'x_text', spoilt(torch.ones(3, 2), math.nan), ValueError,
            r"data\['item'\].x_text' of finite float32, .* such as nan in row 2, column 1",
        ),
        ('user', 'x', spoilt(torch.ones(2), math.inf), ValueError, 'user.*x. of finite.*row 1'),
        # It is infinite as a float32.
        ('user', 'x', torch.tensor([1e300, 1]).double(), ValueError, 'user.*x. of finite.*row 0'),
        (
            'clicks', 'edge_label_x', spoilt(torch.ones(4, 2), math.nan), ValueError,
            "'edge_label_x' of finite float32, .* such as nan in row 3",
        ),
        ('clicks', 'edge_label_x', torch.ones(3, 2), ValueError, r'\[4, F\],.*shape \[3, 2\]'),
        ('clicks', 'edge_label_index', torch.ones(2, 4), TypeError, 'int64, but got torch.float32'),
        (
            'clicks', 'edge_label_index', torch.full((2, 4), 2), IndexError,
            "found user ids of 'edge_label_index' from 2 to 2",
        ),
    ],
)  # fmt: skip
def test_wrong_data(
    where: str, name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ExposureFeatures(with_value(where, name, value))


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match='ExposureFeatures expects a HeteroData.*got dict'):
        ExposureFeatures({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='edge type.*the data has none'):
        ExposureFeatures(HeteroData())
