import pytest
import torch

from mag.nn import TensorFusion


def test_golden_fusion() -> None:
    fusion = TensorFusion((2, 2), 2)
    row = torch.arange(9.0)
    with torch.no_grad():
        fusion.weights[0].copy_(torch.stack([0.1 * (row + 1), 0.05 * (row - 4)], dim=1))
    out = fusion(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(out, torch.tensor([[5.2, -0.4]]))


def test_entry_by_entry() -> None:
    torch.manual_seed(0)
    fusion = TensorFusion((3, 2), 4).double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    weight = fusion.weights[0].view(4, 3, 4)
    for row in range(5):
        expected = torch.zeros(4).double()
        for i, one in enumerate([*x[row], 1.0]):
            for j, other in enumerate([*y[row], 1.0]):
                expected += one * other * weight[i, j]
        torch.testing.assert_close(fusion(x, y)[row], expected)


def test_each_vector_passes_by_itself() -> None:
    torch.manual_seed(0)
    fusion = TensorFusion((3, 2), 4).double()
    x, nothing = torch.randn(5, 3).double(), torch.zeros(5, 2).double()
    weight = fusion.weights[0].view(4, 3, 4)[:, -1]
    torch.testing.assert_close(fusion(x, nothing), x @ weight[:-1] + weight[-1])


@pytest.mark.parametrize('rank', [1, 4])
def test_factors_are_those_of_a_whole_weight(rank: int) -> None:
    torch.manual_seed(0)
    factored, whole = TensorFusion((3, 2), 4, rank).double(), TensorFusion((3, 2), 4).double()
    first, second = factored.weights
    with torch.no_grad():
        whole.weights[0].copy_(torch.einsum('iro,jro->ijo', first, second).reshape(12, 4))
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(factored(x, y), whole(x, y))
    assert sum(weight.numel() for weight in factored.parameters()) == rank * 7 * 4


def test_bad_input() -> None:
    for arguments, error, message in (
        (((3, 0), 4), ValueError, r"'in_channels\[1\]' must be at least 1, but got 0"),
        (((3, 2, 1), 4), ValueError, r"'in_channels' must be two sizes, but got \(3, 2, 1\)"),
        ((3, 4), TypeError, "'in_channels' must be a sequence of sizes .*, but got 3"),
        (((3, 2), 4.0), TypeError, "'out_channels' must be an integer, but got 4.0"),
        (((3, 2), 4, 0), ValueError, "'rank' must be at least 1, but got 0"),
    ):
        with pytest.raises(error, match=message):
            TensorFusion(*arguments)
    fusion = TensorFusion((3, 2), 4)
    for x, y, error, message in (
        (torch.zeros(5, 2), torch.zeros(5, 3), ValueError, r"'x' of shape \[B, 3\].*\[5, 2\]"),
        (torch.zeros(5, 3), torch.zeros(5, 3), ValueError, r"'y' of shape \[5, 2\].*\[5, 3\]"),
        (torch.zeros(5, 3), torch.zeros(4, 2), ValueError, r"'y' of shape \[5, 2\].*\[4, 2\]"),
        (torch.zeros(5, 3).long(), torch.zeros(5, 2), TypeError, "'x' of floats"),
        (torch.zeros(5, 3), None, TypeError, "'y' to be a tensor .*, but got None"),
    ):
        with pytest.raises(error, match=message):
            fusion(x, y)
    assert repr(fusion) == 'TensorFusion((3, 2), 4, rank=None)'
