import copy
import pickle
from collections.abc import Sequence

import pytest
import torch

from mag.nn import MLP, Dice


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_is_linear_dice_linear(form: str) -> None:
    mlp = MLP([4, 3, 2, 1], form).double().train()
    x = torch.randn(6, 4, dtype=torch.float64)
    out = x
    linear = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    for layer in linear[:-1]:
        out = out @ layer.weight.t() + layer.bias
        deviation = (
            out.std(dim=0) if form == 'released' else (out.var(dim=0, unbiased=False) + 1e-9).sqrt()
        )
        out = out * ((out - out.mean(dim=0)) / deviation).sigmoid()
    out = out @ linear[-1].weight.t() + linear[-1].bias
    torch.testing.assert_close(mlp(x), out, atol=1e-7, rtol=0)


def test_sizes_of_the_head_of_the_paper() -> None:
    # 16 080 + 81 + 140 * 200 + 200, and an alpha a feature or a layer.
    for form, num_alphas in (('paper', 280), ('released', 2)):
        num_parameters = sum(p.numel() for p in MLP([140, 200, 80, 1], form).parameters())
        assert num_parameters == 140 * 200 + 200 + 16080 + 81 + num_alphas


def test_without_hidden_layers_it_is_linear() -> None:
    mlp = MLP([3, 2])
    x = torch.randn(5, 3)
    torch.testing.assert_close(mlp(x), x @ mlp[0].weight.t() + mlp[0].bias)


def test_reset_parameters_resets_every_layer() -> None:
    mlp = MLP([3, 2, 1])
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.fill_(7)
    mlp.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in mlp.parameters())
    assert isinstance(mlp[1], Dice) and mlp[1].alpha.tolist() == [0, 0]


def test_copies_agree() -> None:
    mlp = MLP([3, 2, 1]).eval()
    other = MLP([3, 2, 1]).eval()
    other.load_state_dict(mlp.state_dict())
    x = torch.randn(5, 3)
    for twin in (other, copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert torch.equal(twin(x), mlp(x))


@pytest.mark.parametrize(
    ('channels', 'message'),
    [
        ([], "'channels' must hold two sizes or more, but got"),
        ([3], "'channels' must hold two sizes or more, but got"),
        ([3, 0, 1], r"'channels\[1\]' must be at least 1, but got 0"),
        ([3, -1], r"'channels\[1\]' must be at least 1, but got -1"),
    ],
)
def test_wrong_channels(channels: Sequence[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(channels)


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="'form' must be one of 'paper', 'released', but got 'ne"):
        MLP([2, 1], form='new')
