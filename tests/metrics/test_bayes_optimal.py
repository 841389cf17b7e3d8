import math

import pytest
import torch

from mag.metrics import bayes_optimal


def test_bayes_optimal_equals_a_sum_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    # Multiples of a tenth, so that probabilities tie.
    p = torch.randint(0, 11, (40,), generator=generator).double() / 10
    w = torch.rand(40, generator=generator, dtype=torch.double)
    for weight in (None, w):
        wins = pairs = entropy = 0.0
        share = torch.ones_like(p) if weight is None else weight
        for i in range(40):
            for q in (float(p[i]), 1 - float(p[i])):
                entropy -= float(share[i]) * q * (math.log(q) if q > 0 else 0)
            for j in range(40):
                if i != j:
                    mass = float(share[i] * p[i] * share[j] * (1 - p[j]))
                    pairs += mass
                    wins += mass * (float(p[i] > p[j]) + 0.5 * float(p[i] == p[j]))
        auc, logloss = bayes_optimal(p, weight)
        assert auc == pytest.approx(wins / pairs, abs=1e-12)
        assert logloss == pytest.approx(entropy / float(share.sum()), abs=1e-12)


def test_bayes_optimal_of_certainty_and_of_chance() -> None:
    assert bayes_optimal(torch.tensor([0.0, 1.0, 1.0])) == (1.0, 0.0)
    assert bayes_optimal(torch.full((5,), 0.5)) == pytest.approx((0.5, math.log(2)))


@pytest.mark.parametrize(
    ('probability', 'weight', 'message'),
    [
        (
            torch.tensor([0.5, 1.5]),
            None,
            r"'probability' of numbers from 0 to 1, but 1 of 2 is not, such as 1.5",
        ),
        (
            torch.tensor([0.5, math.nan]),
            None,
            r"'probability' of numbers from 0 to 1.* such as nan",
        ),
        (
            torch.tensor([0.5, 0.5]),
            torch.tensor([-1.0, 1.0]),
            r"'weight' of numbers from 0 to 1.* such as -1",
        ),
        (torch.tensor([[0.5]]), None, r"'probability' of shape \[N\], but got shape \[1, 1\]"),
        (torch.tensor([0.5]), torch.ones(2), r"'weight' of shape \[1\], but got shape \[2\]"),
        (torch.ones(3), None, r'nothing to rank: 3 rows, of which 3 are expected to be 1 and 0'),
        (torch.tensor([0.3]), None, r'nothing to rank: 1 rows'),
    ],
)
def test_bayes_optimal_refuses(
    probability: torch.Tensor, weight: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bayes_optimal(probability, weight)
