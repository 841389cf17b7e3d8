import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mag.losses import masked_id_loss

COUNT = torch.tensor([5.0, 3.0, 1.0, 1.0])
PROBABILITY = COUNT / COUNT.sum()
BIAS = PROBABILITY.log() + math.log(4)
WEIGHT = torch.tensor([[0.2, 0.1], [0.0, 0.3], [1.0, 0.0], [-0.5, 0.5]])


def test_golden_loss() -> None:
    expected = [0.69314718056, 0.182321556794, -0.916290731874, -0.916290731874]
    torch.testing.assert_close(BIAS, torch.tensor(expected))
    hidden, target = torch.tensor([[0.5, -1.0]]), torch.tensor([2])
    loss = masked_id_loss(hidden, target, torch.tensor([[0, 1]]), WEIGHT, BIAS, PROBABILITY)
    assert loss.item() == pytest.approx(1.5149511934743165, abs=1e-6)


def by_the_formula(
    hidden: Tensor, target: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, probability: Tensor
) -> Tensor:
    k, log_z = noise.size(1), math.log(len(weight))

    def r(row: int, j: Tensor) -> Tensor:
        score = hidden[row] @ weight[j] + bias[j] - log_z
        return score - probability[j].log() - math.log(k)

    rows = []
    for row in range(len(hidden)):
        terms = [F.logsigmoid(r(row, target[row]))]
        terms += [(1 - r(row, j).sigmoid()).log() for j in noise[row]]
        rows.append(-sum(terms))
    return torch.stack(rows).mean()


def entries(num_entries: int = 5) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (
        torch.randn(num_entries, 2, requires_grad=True),
        torch.randint(4, (num_entries,)),
        torch.randint(4, (num_entries, 3)),
        torch.randn(4, 2, requires_grad=True),
        torch.randn(4, requires_grad=True),
        PROBABILITY,
    )


def test_follows_the_formula() -> None:
    torch.testing.assert_close(masked_id_loss(*entries()), by_the_formula(*entries()))


def test_only_the_ids_at_hand_get_a_gradient() -> None:
    hidden, _, _, weight, bias, probability = entries(2)
    target, noise = torch.tensor([0, 3]), torch.tensor([[3, 3], [0, 0]])
    masked_id_loss(hidden, target, noise, weight, bias, probability).backward()
    for gradient in (weight.grad, bias.grad):
        assert bool((gradient[[0, 3]] != 0).all()) and bool((gradient[[1, 2]] == 0).all())


def test_without_masked_entries_it_is_0() -> None:
    hidden, target, noise, weight, bias, probability = entries(0)
    loss = masked_id_loss(hidden, target, noise, weight, bias, probability)
    loss.backward()
    assert loss.item() == 0
    assert bool((weight.grad == 0).all()) and bool((bias.grad == 0).all())


@pytest.mark.parametrize(
    ('place', 'value', 'error', 'sentence'),
    [
        (0, torch.ones(5, 3), ValueError, r"'weight' of shape \[N, 3\], but got shape \[4, 2\]"),
        (1, torch.ones(5), TypeError, "'target' of integers"),
        (2, torch.ones(4, 3).long(), ValueError, r"'noise' of shape \[5, k\]"),
        (4, torch.ones(3), ValueError, r"'bias' of shape \[4\], but got shape \[3\]"),
        (5, torch.ones(4, 1), ValueError, r"'probability' of shape \[4\]"),
    ],
)
def test_bad_input(place: int, value: Any, error: type[Exception], sentence: str) -> None:
    arguments = [*entries()]
    arguments[place] = value
    with pytest.raises(error, match=sentence):
        masked_id_loss(*arguments)
