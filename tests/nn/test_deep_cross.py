from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mag.nn import DeepCross


@pytest.mark.parametrize(('num_fields', 'channels'), [(8, 384), (15, 608)])
def test_golden_sizes(num_fields: int, channels: int) -> None:
    assert DeepCross(num_fields, 32).out_channels == channels


def test_it_is_the_crosses_beside_the_tower() -> None:
    torch.manual_seed(0)
    net = DeepCross(3, 4, (5, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    x = torch.randn(6, 3, 4)
    out = net(x)
    assert out.shape == (6, 14) == (6, net.out_channels)
    assert torch.equal(out[:, :12], net.cross(x.flatten(1)))
    first, _, second, _ = net.tower
    expected = F.relu(second(F.relu(first(x.flatten(1)))))
    assert torch.equal(out[:, 12:], expected)


def test_the_tower_starts_near_0() -> None:
    torch.manual_seed(0)
    net = DeepCross(8, 32)
    layers = [layer for layer in net.tower if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [300, 300, 128]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(1e-4, rel=0.05)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    net.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in net.parameters())


def test_compiles_exports_and_autocasts() -> None:
    net, x = DeepCross(3, 4, (5, 2)), torch.randn(6, 3, 4)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend='eager')(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(net(x).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: DeepCross(0, 4), ValueError, "'num_fields' must be at least 1, but got 0"),
        (lambda: DeepCross(2, 4, ()), ValueError, "'tower_channels' must hold a size or more"),
        (lambda: DeepCross(2, 4, (0,)), ValueError, r"'tower_channels\[0\]' must be at least 1"),
        (lambda: DeepCross(2, 4)(torch.rand(3, 8)), ValueError, r"'x' of shape \[B, 2, 4\]"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
