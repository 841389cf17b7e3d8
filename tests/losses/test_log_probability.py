import math

import pytest
import torch

from mag.losses import log_complement

# log(1 - exp(x)) to twenty digits, by mpmath.
EXACT = {
    -1e-12: -27.631021115929048228,
    -1e-3: -6.9082552373154707118,
    -0.5: -0.93275212956718857189,
    -0.6931: -0.69319436334600083574,
    -0.6932: -0.69309436390963647599,
    -2.0: -0.14541345786885905697,
    -10.0: -4.5400960370489209504e-5,
    -50.0: -1.928749847963917783e-22,
    -700.0: -9.8596765437597708567e-305,
}


@pytest.mark.parametrize('log_probability', EXACT)
def test_every_digit_is_right(log_probability: float) -> None:
    value = log_complement(torch.tensor(log_probability, dtype=torch.double))
    assert float(value) == pytest.approx(EXACT[log_probability], rel=1e-13, abs=0)


def test_single_precision_keeps_its_digits() -> None:
    for log_probability in (-1e-3, -0.5, -2.0, -10.0, -50.0):
        value = log_complement(torch.tensor(log_probability))
        assert float(value) == pytest.approx(EXACT[log_probability], rel=1e-6, abs=0)


@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_of_a_certain_event_it_is_finite(dtype: torch.dtype) -> None:
    # As far as the type can tell, -1e-20 is 0.
    x = torch.tensor([0.0, -1e-20], dtype=dtype, requires_grad=True)
    value = log_complement(x)
    assert value.tolist() == pytest.approx([math.log(torch.finfo(dtype).eps)] * 2, rel=1e-6)
    value.sum().backward()
    assert x.grad.tolist() == [0, 0]


@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_gradient_is_that_of_the_formula(dtype: torch.dtype) -> None:
    points = [-1e-3, -0.3, -0.69, -0.7, -1.5, -10.0, -50.0]
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    log_complement(x).sum().backward()
    tolerance = 100 * torch.finfo(dtype).eps
    expected = [math.exp(point) / math.expm1(point) for point in points]
    assert x.grad.tolist() == pytest.approx(expected, rel=tolerance, abs=0)


def test_of_an_impossible_event_it_is_zero() -> None:
    x = torch.tensor([-math.inf, -1e30], requires_grad=True)
    value = log_complement(x)
    assert value.tolist() == [0, 0]
    value.sum().backward()
    assert x.grad.tolist() == [0, 0]


def test_the_two_forms_meet() -> None:
    middle = torch.tensor(-math.log(2), dtype=torch.double)
    around = middle + torch.linspace(-1e-9, 1e-9, 101, dtype=torch.double)
    expected = torch.log1p(-around.exp())
    torch.testing.assert_close(log_complement(around), expected, rtol=1e-14, atol=0)
