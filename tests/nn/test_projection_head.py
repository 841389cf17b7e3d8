from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mag.nn import ProjectionHead


def test_follows_the_formula() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(5, 3).eval()
    x = torch.randn(4, 5)
    p = x @ head.projection.weight.t() + head.projection.bias
    change = F.gelu(p) @ head.lin.weight.t() + head.lin.bias
    torch.testing.assert_close(head(x), F.layer_norm(p + change, (3,)))


def test_the_norm_is_bounded() -> None:
    torch.manual_seed(0)
    z = ProjectionHead(384).eval()(100 * torch.randn(50, 384))
    # What stands for a normalisation in the contrast: the squared norm is about the size.
    torch.testing.assert_close(z.square().sum(1), torch.full((50,), 128.0), rtol=1e-3, atol=0)


def test_a_share_is_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(5, 3, dropout=0.5)
    x = torch.randn(4, 5)
    assert not torch.equal(head(x), head(x))
    head.eval()
    expected = head(x)
    assert torch.equal(head(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(head(x).float(), expected, atol=0.1, rtol=0.1)


def test_reset_parameters_and_repr() -> None:
    head = ProjectionHead(5, 3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(7)
    head.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in head.parameters())
    assert repr(head).startswith('ProjectionHead(\n  5, 3, dropout=0.2\n')


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: ProjectionHead(0), ValueError, "'in_channels' must be at least 1, but got 0"),
        (lambda: ProjectionHead(3, dropout=1), ValueError, r"'dropout' must be a number in \[0, 1"),
        (lambda: ProjectionHead(3)(torch.rand(2, 4)), ValueError, r"'x' of shape \[B, 3\]"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
