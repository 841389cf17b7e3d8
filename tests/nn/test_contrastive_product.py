from typing import Any

import pytest
import torch
from torch import Tensor

from mag.nn import ContrastiveProduct


def by_the_formula(product: ContrastiveProduct, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Every product of a pair of fields by itself, row by row."""
    fields = range(product.num_fields)
    views = [], []
    for row in x:
        pairs = [[row[i] @ product.weight @ row[j] for j in fields] for i in fields]
        upper = torch.stack([pairs[i][j] for i in fields for j in fields if j >= i])
        lower = torch.stack([pairs[i][j] for i in fields for j in fields if j <= i])
        views[0].append(product.lin_upper.weight @ upper)
        views[1].append(product.lin_lower.weight @ lower)
    return torch.stack(views[0]), torch.stack(views[1])


def test_golden_numbers() -> None:
    product = ContrastiveProduct(3, 2, out_channels=6)
    with torch.no_grad():
        product.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        for lin in (product.lin_upper, product.lin_lower):
            lin.weight.copy_(torch.eye(6))
    upper, lower = product(torch.tensor([[[1.0, 2.0], [0.0, 1.0], [-1.0, 1.0]]]))
    assert upper.tolist() == [[7.0, 3.0, 2.0, 1.0, 1.0, 1.0]]
    assert lower.tolist() == [[7.0, 2.0, 1.0, -1.0, 0.0, 1.0]]


@pytest.mark.parametrize(('num_fields', 'out_channels'), [(1, None), (4, None), (3, 5)])
def test_follows_the_formula(num_fields: int, out_channels: int | None) -> None:
    torch.manual_seed(0)
    product = ContrastiveProduct(num_fields, 3, out_channels).double()
    x = torch.randn(5, num_fields, 3, dtype=torch.float64)
    for view, expected in zip(product(x), by_the_formula(product, x), strict=True):
        assert view.shape == (5, out_channels or 3 * num_fields)
        torch.testing.assert_close(view, expected)


def test_the_views_differ_as_far_as_the_weight_is_not_symmetric() -> None:
    torch.manual_seed(0)
    product = ContrastiveProduct(4, 3).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    upper = [tuple(pair) for pair in torch.triu_indices(4, 4).t().tolist()]
    mirrored = [upper.index((j, i)) for i, j in torch.tril_indices(4, 4).t().tolist()]
    with torch.no_grad():
        # The same weight for the same two fields in either order.
        product.lin_lower.weight.copy_(product.lin_upper.weight[:, mirrored])
        first, second = product(x)
        assert not torch.isclose(first, second).any()
        product.weight.copy_(product.weight + product.weight.t())
        torch.testing.assert_close(*product(x))


def test_gradient() -> None:
    product = ContrastiveProduct(3, 2, 4).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, (x,))
    sum(view.square().sum() for view in product(x)).backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in product.parameters())


def test_compiles_exports_and_autocasts() -> None:
    product, x = ContrastiveProduct(3, 2), torch.randn(4, 3, 2)
    expected = product(x)
    compiled = torch.compile(product, fullgraph=True, backend='eager')
    for found in (compiled(x), torch.export.export(product, (x,)).module()(x)):
        torch.testing.assert_close(found, expected)
    with torch.autocast('cpu', torch.bfloat16):
        for view, value in zip(product(x), expected, strict=True):
            torch.testing.assert_close(view.float(), value, atol=0.05, rtol=0.05)


def test_parameters() -> None:
    product = ContrastiveProduct(10, 16)
    assert sum(parameter.numel() for parameter in product.parameters()) == 16**2 + 10 * 11 * 160
    with torch.no_grad():
        for parameter in product.parameters():
            parameter.fill_(7)
    torch.manual_seed(0)
    product.reset_parameters()
    # Those of Xavier.
    assert product.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.2)
    assert product.lin_upper.weight.std().item() == pytest.approx((2 / 215) ** 0.5, rel=0.1)


def test_repr() -> None:
    assert repr(ContrastiveProduct(3, 2)) == 'ContrastiveProduct(3, 2, 6)'


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: ContrastiveProduct(0, 2), ValueError, "'num_fields' must be at least 1, but got"),
        (lambda: ContrastiveProduct(3, 1.5), TypeError, "'embedding_dim' must be an integer"),
        (lambda: ContrastiveProduct(3, 2, 0), ValueError, "'out_channels' must be at least 1"),
        (
            lambda: ContrastiveProduct(3, 2)(torch.rand(4, 2, 2)),
            ValueError,
            r"'x' of shape \[B, 3, 2\], but got shape \[4, 2, 2\]",
        ),
        (lambda: ContrastiveProduct(3, 2)(torch.ones(4, 3, 2).long()), TypeError, "'x' of floats"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
