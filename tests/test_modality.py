from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.modality import check_features, has_modality, modality_features


def items(**attributes: Tensor) -> HeteroData:
    data = HeteroData()
    data['item'].num_nodes = 3
    for name, value in attributes.items():
        data['item'][name] = value
    return data


def test_features_are_zero_where_the_item_lacks_the_modality() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    data = items(x_text=x, has_text=torch.tensor([True, False, True]), x_image=x, year=x[:, 0])
    features = modality_features(data, 'Test')
    assert list(features) == ['text', 'image']
    assert features['text'].tolist() == [[1, 2], [0, 0], [0, 4]]
    assert features['image'] is x and data['item'].x_text is x


def test_who_has_what() -> None:
    features = {'visual': torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 'text': torch.eye(3)}
    assert has_modality(features).tolist() == [[False, True], [True, True], [True, True]]
    assert check_features(features, 'Test') == 3


def test_wrong_data() -> None:
    data = items(x=torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"Test needs .* the items have \['num_nodes', 'x'\]"):
        modality_features(data, 'Test')
    data = items(x_text=torch.rand(3, 2), has_text=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has_text' of shape \[3\], but got shape \[2\]"):
        modality_features(data, 'Test')
    data = items(x_text=torch.rand(3, 2), has_text=torch.ones(3))
    with pytest.raises(TypeError, match=r"has_text' of dtype bool, but got torch.float32"):
        modality_features(data, 'Test')
    data['item'].has_text = [True] * 3
    with pytest.raises(TypeError, match=r"has_text' to be a tensor of shape \[3\], but got list"):
        modality_features(data, 'Test')
    with pytest.raises(ValueError, match=r"'x_text' of shape \[3, F\], but got shape \[4, 2"):
        modality_features(items(x_text=torch.rand(4, 2)), 'Test')
    with pytest.raises(ValueError, match=r"'x_text' of shape \[3, F\], but got shape \[3\]"):
        modality_features(items(x_text=torch.rand(3)), 'Test')


@pytest.mark.parametrize(
    'features, error, message',
    [
        ({}, ValueError, 'Test needs the features of a modality or more, but got none'),
        ({'text': torch.rand(3)}, ValueError, r"'x_text' of .*, F\], but got shape \[3\]"),
        ({'text': torch.rand(3, 0)}, ValueError, r"numbers in 'x_text', but got shape \[3, 0\]"),
        (
            {'visual': torch.rand(3, 2), 'text': torch.rand(4, 2)},
            ValueError,
            r"'x_text' of shape \[3, F\], but got shape \[4, 2\]",
        ),
        ({'text': torch.ones(3, 2).long()}, TypeError, "'x_text' of floats, but got torch.int64"),
        ({'text': [[1.0]]}, TypeError, "'x_text' to be a tensor of .* but got list"),
        (
            {'text': torch.tensor([[1.0], [torch.nan]])},
            ValueError,
            "'x_text' of finite float32, .* such as nan in row 1, column 0",
        ),
        (
            {'text': torch.tensor([[1.0], [1e300]], dtype=torch.double)},
            ValueError,
            r"'x_text' of finite float32, .* such as 1e\+300 in row 1",
        ),
    ],
)
def test_wrong_features(features: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_features(features, 'Test')
