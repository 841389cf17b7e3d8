from typing import Any

import pytest
import torch

from mag.nn import CountEncoder

PRIOR = [-1, -1, 0, 1, -1]


def golden_counts(golden_target: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(golden_target['counts'].values())).transpose(0, 1)


def test_golden_rates(golden_target: dict[str, Any]) -> None:
    encoder = CountEncoder(PRIOR, 0.5, strength=2.0, learned=False).double()
    encoder.reset_parameters()
    rates, priors = encoder.rates(golden_counts(golden_target))
    for place, name in enumerate(golden_target['rates']):
        expected = torch.tensor(golden_target['rates'][name], dtype=torch.double)
        torch.testing.assert_close(rates[:, place], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(priors[:, 2], rates[:, 0]) and torch.equal(priors[:, 3], rates[:, 1])
    assert (priors[:, [0, 1, 4]] == 0.5).all()


@pytest.mark.parametrize('scale', ['rate', 'logit'])
def test_numbers_are_standardized_over_the_batch(golden_target: dict[str, Any], scale: str) -> None:
    counts = golden_counts(golden_target)
    encoder = CountEncoder(PRIOR, 0.5, strength=2.0, scale=scale).double()
    rates, priors = encoder.rates(counts)
    if scale == 'logit':
        rates, priors = (rates / (1 - rates)).log(), (priors / (1 - priors)).log()
    raw = torch.cat([(1 + counts[..., 0]).log(), rates - priors], 1)
    expected = (raw - raw.mean(0)) / (raw.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(encoder(counts), expected)
    assert encoder.out_channels == 10 == expected.size(1)


def test_views_in_any_order_and_chains_of_priors() -> None:
    encoder = CountEncoder([1, 2, -1], 0.25, strength=3.0).double()
    encoder.reset_parameters()
    counts = torch.tensor([[[4, 1], [2, 2], [10, 5]]])
    rates, priors = encoder.rates(counts)
    last = (5 + 3 * 0.25) / 13
    middle = (2 + 3 * last) / 5
    expected = [[(1 + 3 * middle) / 7, middle, last]]
    torch.testing.assert_close(rates, torch.tensor(expected, dtype=torch.double))
    torch.testing.assert_close(priors, torch.tensor([[middle, last, 0.25]], dtype=torch.double))


def test_strengths_are_learned_unless_told_otherwise() -> None:
    counts = torch.tensor([[[4.0, 1], [9, 9]], [[7, 1], [2, 1]]], dtype=torch.double)
    encoder = CountEncoder([-1, 0], 0.3).double()

    def rates(theta: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoder, {'theta': theta}, (counts,))

    encoder.eval()
    theta = encoder.theta.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(rates, theta)
    assert not CountEncoder([-1], 0.3, learned=False).theta.requires_grad


def test_a_short_training_normalises_as_a_long_one() -> None:
    counts = torch.randint(0, 50, (64, 5, 1)).float() + torch.tensor([30.0, 0.0])
    encoder = CountEncoder(PRIOR, 0.4, learned=False)
    for rows in (counts[:32], counts[32:]):
        encoder(rows)
    numbers = [encoder.norm.running_mean.clone(), encoder.norm.running_var.clone()]
    for rows in (counts[:32], counts[32:]) * 20:
        encoder(rows)
    torch.testing.assert_close(numbers, [encoder.norm.running_mean, encoder.norm.running_var])
    # Numbers of mean 0 and deviation 1, but for the difference between the two halves.
    values = encoder.eval()(counts)
    torch.testing.assert_close(values.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    assert (values.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize('scale', ['rate', 'logit'])
def test_numbers_are_finite_for_all_counts_that_can_be(scale: str) -> None:
    sizes = torch.tensor([0.0, 1e-30, 0.5, 1, 10, 1e4, 1e8, 1e12])
    encoder = CountEncoder([-1, 0, 1], 1e-4, scale=scale)
    for share in (0.0, 1.0, 0.5):
        counts = torch.stack([sizes, share * sizes], dim=-1).view(-1, 1, 2).expand(-1, 3, 2)
        counts = counts.clone().requires_grad_()
        out = encoder(counts)
        out.sum().backward()
        assert out.isfinite().all() and counts.grad.isfinite().all()
        assert encoder.theta.grad.isfinite().all()
        rates, _ = encoder.rates(counts)
        assert (rates >= 0).all() and (rates <= 1).all()
    # A rate of 1 but for a part in ten thousand million still has its logit.
    encoder = CountEncoder([-1], 0.5, strength=2.0, learned=False).eval()
    number = encoder(torch.tensor([[[1e10, 1e10]]]))[0, 1]
    torch.testing.assert_close(number, torch.tensor(1e10).log(), rtol=1e-4, atol=0)


def test_compiles_and_exports() -> None:
    encoder = CountEncoder(PRIOR, 0.4).eval()
    counts = torch.randint(0, 9, (7, 5, 1)).float() + torch.tensor([3.0, 0.0])
    expected = encoder(counts)
    compiled = torch.compile(encoder, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(counts), expected)
    trained, of_compiled = CountEncoder(PRIOR, 0.4), CountEncoder(PRIOR, 0.4)
    compiled = torch.compile(of_compiled, fullgraph=True, backend='eager')
    for _ in range(2):
        torch.testing.assert_close(compiled(counts), trained(counts))
    torch.testing.assert_close(of_compiled.state_dict(), trained.state_dict())
    rows = torch.export.Dim('rows', min=2)
    program = torch.export.export(encoder, (counts,), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(program.module()(counts[:3]), expected[:3])


def test_repr() -> None:
    text = "CountEncoder(2, strength=10.0, learned=True, scale='logit')"
    assert repr(CountEncoder([-1, 0], 0.5)) == text
