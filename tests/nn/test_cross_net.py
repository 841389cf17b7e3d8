from typing import Any

import pytest
import torch
from torch import Tensor

from mag.nn import CrossNet


def by_the_formula(net: CrossNet, x: Tensor) -> Tensor:
    r"""Eq. 1, row by row and feature by feature; eq. 2 with a rank."""
    rows = []
    for row in x.tolist():
        out = row
        for layer in net.layers:
            if net.rank is None:
                matrix, bias = layer.weight, layer.bias
            else:
                matrix, bias = layer[1].weight @ layer[0].weight, layer[1].bias
            out = [
                row[i] * (sum(w * o for w, o in zip(matrix[i].tolist(), out)) + bias[i].item())
                + out[i]
                for i in range(len(row))
            ]
        rows.append(out)
    return torch.tensor(rows, dtype=x.dtype)


@pytest.mark.parametrize('rank', [None, 1, 2])
def test_follows_the_formula(rank: int | None) -> None:
    torch.manual_seed(0)
    net = CrossNet(4, 3, rank).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_the_formula(net, x))


def test_golden_numbers() -> None:
    net = CrossNet(2, 2)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
            layer.bias.copy_(torch.tensor([0.5, 1.0]))
    # x_1 = (2 * (2 + 2 * 3 + .5) + 2, 3 * (-3 + 1) + 3) = (19, -3), and so on.
    assert net(torch.tensor([[2.0, 3.0]])).tolist() == [[46.0, 9.0]]


def test_a_layer_adds_one_to_the_degree() -> None:
    net = CrossNet(3, 2).double()
    with torch.no_grad():
        for layer in net.layers:
            layer.bias.zero_()
    x = torch.randn(1, 3, dtype=torch.float64)
    scales = torch.linspace(0.5, 2, 4, dtype=torch.float64)
    values = torch.cat([net(scale * x) for scale in scales])
    # The values at four scales are those of a polynomial of degree 3 without a constant.
    powers = torch.stack([scales, scales**2, scales**3], dim=1)
    found = torch.linalg.lstsq(powers, values).solution
    torch.testing.assert_close(powers @ found, values)
    assert bool((found[2].abs() > 1e-4).all())


@pytest.mark.parametrize('rank', [None, 2])
def test_gradient(rank: int | None) -> None:
    net = CrossNet(3, 2, rank).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    net(x).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


@pytest.mark.parametrize('rank', [None, 2])
def test_compiles_exports_and_autocasts(rank: int | None) -> None:
    net, x = CrossNet(3, 2, rank), torch.randn(4, 3)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend='eager')(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(net(x).float(), expected, atol=0.05, rtol=0.05)


def test_a_low_rank_has_fewer_weights() -> None:
    assert sum(p.numel() for p in CrossNet(10, 2).parameters()) == 2 * 110
    assert sum(p.numel() for p in CrossNet(10, 2, rank=3).parameters()) == 2 * 70


@pytest.mark.parametrize('rank', [None, 2])
def test_reset_parameters(rank: int | None) -> None:
    net = CrossNet(3, 2, rank)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    net.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in net.parameters())


def test_repr() -> None:
    assert repr(CrossNet(3, 2)) == 'CrossNet(3, num_layers=2, rank=None)'
    assert repr(CrossNet(3, 2, rank=1)) == 'CrossNet(3, num_layers=2, rank=1)'


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: CrossNet(0, 1), ValueError, "'channels' must be at least 1, but got 0"),
        (lambda: CrossNet(3, 0), ValueError, "'num_layers' must be at least 1, but got 0"),
        (lambda: CrossNet(3, 1, 0), ValueError, "'rank' must be at least 1, but got 0"),
        (lambda: CrossNet(3, 1, 1.5), TypeError, "'rank' must be an integer, but got 1.5"),
        (lambda: CrossNet(3, 1)(torch.rand(2, 4)), ValueError, r"'x' of shape \[B, 3\].*\[2, 4\]"),
        (lambda: CrossNet(3, 1)(torch.ones(2, 3).long()), TypeError, "'x' of floats"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
