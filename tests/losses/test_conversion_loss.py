import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mag.losses.conversion_loss import (
    WEIGHTINGS,
    behavior_loss,
    click_and_conversion_loss,
    conversion_loss,
    doubly_robust_loss,
    propensity_weights,
)

# Block G of the specification's golden numbers.
CLICK = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.double)
CONVERSION = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.double)
BEHAVIOR = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.double)
CLICK_LOGIT = torch.tensor([0.5, 0.2, 0.1, 0.4], dtype=torch.double).logit()
CONVERSION_LOGIT = torch.tensor([0.6, 0.3, 0.2, 0.1], dtype=torch.double).logit()
BEHAVIOR_LOGIT = torch.tensor(
    [[0.7, 0.2], [0.4, 0.1], [0.3, 0.3], [0.2, 0.6]], dtype=torch.double
).logit()
ERRORS = [0.510825623766, 0.356674943939, 0.223143551314, 0.105360515658]
BEHAVIOR_ERRORS = [0.289909247626, 0.308093069712, 0.356674943939, 0.569717141594]


def random_rows(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    r"""Logits of click and conversion, and conversions of all rows, as if all were clicked."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, num_rows, generator=generator, dtype=torch.double)
    conversion = (torch.rand(num_rows, generator=generator) < 0.5).double()
    return logits[0].requires_grad_(), logits[1].requires_grad_(), conversion


def cross_entropy(label: float, probability: float) -> float:
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize(
    ('weighting', 'loss'),
    [
        ('all', 3.102797226674393),
        ('mean', 1.231327452759532),
        ('self_normalized', 0.7036156872911611),
    ],
)
def test_golden_losses(weighting: str, loss: float) -> None:
    weight = propensity_weights(CLICK, CLICK_LOGIT, weighting)
    total = conversion_loss(CONVERSION_LOGIT, CONVERSION, weight)
    total = total + behavior_loss(BEHAVIOR_LOGIT, BEHAVIOR, weight)
    assert float(total) == pytest.approx(loss, rel=1e-6)


def test_golden_errors_and_weights() -> None:
    for row, weight in enumerate(torch.eye(4)):
        value = conversion_loss(CONVERSION_LOGIT, CONVERSION, weight)
        assert value.item() == pytest.approx(ERRORS[row], rel=1e-6)
        value = behavior_loss(BEHAVIOR_LOGIT, BEHAVIOR, weight)
        assert value.item() == pytest.approx(BEHAVIOR_ERRORS[row], rel=1e-6)
    for weighting, expected in (
        ('self_normalized', [0.285714285714, 0.714285714286, 0, 0]),
        ('mean', [0.5, 1.25, 0, 0]),
        ('all', [0.5, 1.25, 2.5, 0.625]),
        ('clicks', [0.5, 0.5, 0, 0]),
    ):
        weight = propensity_weights(CLICK, CLICK_LOGIT, weighting)
        assert weight.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('weighting', WEIGHTINGS)
def test_no_gradient_flows_through_the_weights(weighting: str) -> None:
    click_logit, *_ = random_rows(4)
    assert not propensity_weights(CLICK, click_logit, weighting).requires_grad


def test_small_probabilities_are_taken_for_the_floor() -> None:
    logit = torch.tensor([0.001, 0.0, 0.5]).logit()
    click = torch.ones(3)
    weight = propensity_weights(click, logit, 'mean', floor=0.05)
    assert weight.tolist() == pytest.approx([20 / 3, 20 / 3, 2 / 3])
    weight = propensity_weights(click, logit, 'mean')
    assert weight.tolist() == pytest.approx([100 / 3, 100 / 3, 2 / 3])


@pytest.mark.parametrize('weighting', WEIGHTINGS)
def test_without_clicks_weights_are_zero(weighting: str) -> None:
    weight = propensity_weights(torch.zeros(4), CLICK_LOGIT, weighting)
    expected = [0.5, 1.25, 2.5, 0.625] if weighting == 'all' else [0] * 4
    assert weight.tolist() == pytest.approx(expected)


def test_labels_of_any_type() -> None:
    for dtype in (torch.bool, torch.long, torch.float, torch.double):
        weight = propensity_weights(CLICK.to(dtype), CLICK_LOGIT)
        assert weight.tolist() == pytest.approx([2 / 7, 5 / 7, 0, 0])
        value = conversion_loss(CONVERSION_LOGIT, CONVERSION.to(dtype), weight)
        assert value.item() == pytest.approx(2 / 7 * ERRORS[0] + 5 / 7 * ERRORS[1])
        value = behavior_loss(BEHAVIOR_LOGIT, BEHAVIOR.to(dtype), weight)
        assert value.item() == pytest.approx(
            2 / 7 * BEHAVIOR_ERRORS[0] + 5 / 7 * BEHAVIOR_ERRORS[1]
        )


def test_half_precision_logits_are_summed_in_single() -> None:
    weight = propensity_weights(CLICK, CLICK_LOGIT.bfloat16())
    assert weight.dtype == torch.float
    value = conversion_loss(CONVERSION_LOGIT.bfloat16(), CONVERSION, weight)
    assert value.dtype == torch.float
    assert value.item() == pytest.approx(0.40, abs=0.01)


def test_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="one of .*'all'.*, but got 'ipw'"):
        propensity_weights(CLICK, CLICK_LOGIT, 'ipw')


@pytest.mark.parametrize('floor', [0.0, -0.1, 1.5, math.nan])
def test_floor_that_is_no_probability(floor: float) -> None:
    with pytest.raises(ValueError, match=rf"'floor' must be a number in \(0, 1\], but got {floor}"):
        propensity_weights(CLICK, CLICK_LOGIT, floor=floor)


def test_click_and_conversion_follows_the_formula() -> None:
    click_logit, conversion_logit, conversion = random_rows(20)
    value = click_and_conversion_loss(click_logit, conversion_logit, conversion)
    expected = [
        cross_entropy(y, sigmoid(o) * sigmoid(p))
        for o, p, y in zip(click_logit.tolist(), conversion_logit.tolist(), conversion.tolist())
    ]
    assert value.item() == pytest.approx(math.fsum(expected) / 20, rel=1e-6)
    value.backward()
    # The derivative of the cross-entropy of a product q = r p in the logit of r.
    for row in range(20):
        r, p = sigmoid(click_logit[row].item()), sigmoid(conversion_logit[row].item())
        slope = (r * p - conversion[row].item()) / (1 - r * p) / 20
        assert click_logit.grad[row].item() == pytest.approx(slope * (1 - r), rel=1e-5)
        assert conversion_logit.grad[row].item() == pytest.approx(slope * (1 - p), rel=1e-5)


def test_click_and_conversion_of_extreme_logits_is_finite() -> None:
    logit = torch.tensor([-200.0, 0.0, 40.0, 200.0])
    click_logit, conversion_logit = torch.cartesian_prod(logit, logit).t()
    click_logit = click_logit.clone().requires_grad_()
    for label in (0.0, 1.0):
        loss = click_and_conversion_loss(click_logit, conversion_logit, torch.full((16,), label))
        (gradient,) = torch.autograd.grad(loss, click_logit)
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


def test_doubly_robust_follows_the_formula() -> None:
    logit, imputation_logit, conversion = random_rows(20)
    click = (torch.arange(20) % 3 > 0).double()
    weight = propensity_weights(click, torch.linspace(-2, 2, 20), 'mean')
    value = doubly_robust_loss(logit, imputation_logit, conversion, weight)
    expected = 0.0
    for p, guess, y, w in zip(
        logit.tolist(), imputation_logit.tolist(), conversion.tolist(), weight.tolist()
    ):
        error = cross_entropy(y, sigmoid(p))
        imputed = cross_entropy(sigmoid(guess), sigmoid(p))
        expected += imputed / 20 + w * (error - imputed) + w * (error - imputed) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-5)


def first_two_terms(
    logit: Tensor, imputation_logit: Tensor, conversion: Tensor, weight: Tensor
) -> float:
    r"""The loss without the term that trains the imputation."""
    error = [cross_entropy(y, sigmoid(p)) for p, y in zip(logit.tolist(), conversion.tolist())]
    imputed = [
        cross_entropy(sigmoid(guess), sigmoid(p))
        for p, guess in zip(logit.tolist(), imputation_logit.tolist())
    ]
    last = math.fsum(w * (e - i) ** 2 for w, e, i in zip(weight.tolist(), error, imputed))
    return doubly_robust_loss(logit, imputation_logit, conversion, weight).item() - last


def test_doubly_robust_of_certain_clicks_is_the_mean() -> None:
    logit, imputation_logit, conversion = random_rows(20)
    certain = torch.full((20,), 100.0)
    for weighting in WEIGHTINGS:
        weight = propensity_weights(torch.ones(20), certain, weighting)
        assert weight.tolist() == pytest.approx([1 / 20] * 20)
        naive = conversion_loss(logit, conversion, weight)
        value = first_two_terms(logit, imputation_logit, conversion, weight)
        assert value == pytest.approx(naive.item(), rel=1e-5)
        # And so are its gradients.
        (expected,) = torch.autograd.grad(naive, logit)
        loss = doubly_robust_loss(logit, imputation_logit, conversion, weight)
        (gradient,) = torch.autograd.grad(loss, logit)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def expectation(
    click_logit: Tensor, loss_of_weights: Callable[[Tensor], Tensor], weighting: str = 'mean'
) -> Tensor:
    r"""The mean over all patterns of clicks, each as likely as the propensities say."""
    propensity = click_logit.sigmoid()
    total = torch.zeros(())
    for pattern in itertools.product((0.0, 1.0), repeat=propensity.numel()):
        click = torch.tensor(pattern)
        chance = torch.where(click == 1, propensity, 1 - propensity).prod()
        weight = propensity_weights(click, click_logit, weighting)
        total = total + chance * loss_of_weights(weight)
    return total


def test_true_propensities_make_the_mean_unbiased() -> None:
    _, logit, conversion = random_rows(3, seed=1)
    click_logit = torch.tensor([-1.0, 0.2, 1.5])
    full = conversion_loss(logit, conversion, torch.full((3,), 1 / 3))
    (full_gradient,) = torch.autograd.grad(full, logit)
    value = expectation(click_logit, lambda weight: conversion_loss(logit, conversion, weight))
    assert value.item() == pytest.approx(full.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logit)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-5, atol=1e-7)
    # The others are biased on so few rows: the test can fail.
    for weighting in ('clicks', 'self_normalized', 'all'):
        value = expectation(
            click_logit, lambda weight: conversion_loss(logit, conversion, weight), weighting
        )
        assert value.item() != pytest.approx(full.item(), rel=1e-2)


@pytest.mark.parametrize('seed', range(3))
def test_doubly_robust_is_unbiased_whatever_is_imputed(seed: int) -> None:
    imputation_logit, logit, conversion = random_rows(3, seed)
    click_logit = torch.tensor([-1.0, 0.2, 1.5])
    full = conversion_loss(logit, conversion, torch.full((3,), 1 / 3))
    (full_gradient,) = torch.autograd.grad(full, logit)
    value = expectation(
        click_logit,
        lambda weight: torch.tensor(first_two_terms(logit, imputation_logit, conversion, weight)),
    )
    assert value.item() == pytest.approx(full.item(), rel=1e-5)
    value = expectation(
        click_logit, lambda weight: doubly_robust_loss(logit, imputation_logit, conversion, weight)
    )
    (gradient,) = torch.autograd.grad(value, logit)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-5, atol=1e-7)


def test_doubly_robust_with_the_right_imputation_needs_no_propensities() -> None:
    _, logit, conversion = random_rows(6)
    full = conversion_loss(logit, conversion, torch.full((6,), 1 / 6))
    right = torch.where(conversion == 1, 100.0, -100.0)
    for weighting in ('mean', 'clicks'):
        click = torch.tensor([1.0, 0, 0, 1, 0, 1])
        weight = propensity_weights(click, torch.linspace(-3, 3, 6), weighting)
        value = doubly_robust_loss(logit, right, conversion, weight)
        assert value.item() == pytest.approx(full.item(), rel=1e-5)


def test_each_term_of_doubly_robust_trains_its_own() -> None:
    logit, imputation_logit, conversion = random_rows(8)
    click = (torch.arange(8) % 2).double()
    weight = propensity_weights(click, torch.zeros(8), 'mean')
    doubly_robust_loss(logit, imputation_logit, conversion, weight).backward()
    for row in range(8):
        p, guess = logit[row].item(), imputation_logit[row].item()
        y, w, q = conversion[row].item(), weight[row].item(), sigmoid(guess)
        # Of the mean of imputed errors and the correction, in the logit of the prediction.
        expected = (sigmoid(p) - q) / 8 + w * ((sigmoid(p) - y) - (sigmoid(p) - q))
        assert logit.grad[row].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)
        # Of the squared difference of errors, in the logit of the imputation.
        expected = w * 2 * (q - y) * p**2 * q * (1 - q)
        assert imputation_logit.grad[row].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)
