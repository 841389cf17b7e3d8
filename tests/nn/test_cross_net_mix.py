import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mag.nn import CrossNetMix


def by_the_formula(net: CrossNetMix, x: Tensor) -> Tensor:
    r"""Row by row and expert by expert."""
    rows = []
    for start in x:
        out = start
        for u, c, v, bias in zip(net.u, net.c, net.v, net.bias):
            gate = (net.gate.weight @ out).softmax(0)
            added = torch.zeros_like(out)
            for e in range(net.num_experts):
                inner = (c[e] @ (v[e].t() @ out).tanh()).tanh()
                added = added + gate[e] * start * (u[e] @ inner + bias)
            out = added + out
        rows.append(out)
    return torch.stack(rows)


def spread(net: CrossNetMix) -> CrossNetMix:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(('num_layers', 'num_experts', 'rank'), [(1, 1, 1), (2, 4, 3), (3, 2, 5)])
def test_follows_the_formula(num_layers: int, num_experts: int, rank: int) -> None:
    torch.manual_seed(0)
    net = spread(CrossNetMix(4, num_layers, num_experts, rank).double())
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_the_formula(net, x))


def test_golden_numbers() -> None:
    net = CrossNetMix(2, 1, num_experts=1, rank=1)
    with torch.no_grad():
        for parameters, value in ((net.u, [[[1.0], [2.0]]]), (net.c, [[[0.5]]])):
            parameters[0].copy_(torch.tensor(value))
        net.v[0].copy_(torch.tensor([[[1.0], [-1.0]]]))
        net.bias[0].copy_(torch.tensor([0.25, 0.0]))
    inner = math.tanh(0.5 * math.tanh(3.0 - 2.0))
    expected = [3 * (inner + 0.25) + 3, 2 * 2 * inner + 2]
    assert net(torch.tensor([[3.0, 2.0]])).tolist()[0] == pytest.approx(expected, rel=1e-6)


def test_starts_as_released() -> None:
    torch.manual_seed(0)
    net = CrossNetMix(256)
    # Glorot-normal of tensors with three dimensions, of eight fields of 32.
    for parameters, std in ((net.u, 0.0155), (net.v, 0.0155), (net.c, 0.0417)):
        assert len(parameters) == 2
        for weight in parameters:
            assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert all(bool((bias == 0).all()) for bias in net.bias)
    # One gate for all layers, without a bias.
    assert net.gate.weight.shape == (4, 256) and net.gate.bias is None
    num_weights = 2 * (2 * 4 * 256 * 32 + 4 * 32 * 32 + 256) + 4 * 256
    assert sum(parameter.numel() for parameter in net.parameters()) == num_weights


def test_gradient() -> None:
    torch.manual_seed(0)
    net = spread(CrossNetMix(3, 2, 2, 2).double())
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    net(x).sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in net.parameters())


def test_compiles_exports_and_autocasts() -> None:
    net, x = CrossNetMix(6, 2, 3, 2), torch.randn(4, 6)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend='eager')(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(net(x).float(), expected, atol=0.05, rtol=0.05)


def test_reset_parameters() -> None:
    net = CrossNetMix(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    net.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in net.parameters())


def test_repr() -> None:
    assert repr(CrossNetMix(3)) == 'CrossNetMix(3, num_layers=2, num_experts=4, rank=32)'


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: CrossNetMix(0), ValueError, "'channels' must be at least 1, but got 0"),
        (lambda: CrossNetMix(3, 0), ValueError, "'num_layers' must be at least 1, but got 0"),
        (lambda: CrossNetMix(3, 1, 0), ValueError, "'num_experts' must be at least 1, but got 0"),
        (lambda: CrossNetMix(3, rank=1.5), TypeError, "'rank' must be an integer, but got 1.5"),
        (lambda: CrossNetMix(3)(torch.rand(2, 4)), ValueError, r"'x' of shape \[B, 3\].*\[2, 4\]"),
        (lambda: CrossNetMix(3)(torch.ones(2, 3).long()), TypeError, "'x' of floats"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
