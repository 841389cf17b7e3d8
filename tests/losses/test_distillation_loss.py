import math
from typing import Any

import pytest
import torch

from mag.losses import distillation_loss


def test_value_by_hand() -> None:
    # Of the teacher 3/4 and 1/2, of the student 1/2 and 3/4, at temperature 2.
    teacher, student = (2 * torch.tensor(odds).log() for odds in ([3.0, 1.0], [1.0, 3.0]))
    first = math.log(2)
    second = -(math.log(0.75) + math.log(0.25)) / 2
    loss = distillation_loss(student, teacher, temperature=2.0)
    assert float(loss) == pytest.approx(4 * (first + second) / 2, rel=1e-6)


def test_a_teacher_who_is_sure_is_a_label() -> None:
    logit, label = torch.randn(20), (torch.rand(20) < 0.5).float()
    loss = distillation_loss(logit, 200 * label - 100)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0, 1_000.0])
def test_gradients_are_of_one_size_and_match_logits_at_high_temperatures(
    temperature: float,
) -> None:
    logit = torch.randn(20, dtype=torch.double, requires_grad=True)
    teacher = torch.randn(20, dtype=torch.double, requires_grad=True)
    distillation_loss(logit, teacher, temperature).backward()
    soft, softer = (logits.detach() / temperature for logits in (logit, teacher))
    expected = temperature * (soft.sigmoid() - softer.sigmoid()) / 20
    torch.testing.assert_close(logit.grad, expected, atol=1e-5, rtol=1e-4)
    assert teacher.grad is None
    if temperature > 100:
        matched = (logit - teacher).detach() / 80
        torch.testing.assert_close(logit.grad, matched, atol=1e-4, rtol=1e-2)


def test_it_is_least_where_both_agree() -> None:
    teacher = torch.randn(20)
    least = distillation_loss(teacher, teacher, 2.0)
    for other in (teacher + 0.1, teacher - 0.1, -teacher):
        assert distillation_loss(other, teacher, 2.0) > least


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'temperature': 0}, ValueError, r"'temperature' must be a number in \(0, inf\), .* 0"),
        ({'temperature': '1'}, TypeError, "'temperature' must be a number in .*, but got '1'"),
        ({'logit': torch.rand(5, 1)}, ValueError, r"'logit' of shape \[B\], .* \[5, 1\]"),
        ({'teacher_logit': torch.rand(1)}, ValueError, r"'teacher_logit' of shape \[5\], .* \[1\]"),
        ({'logit': torch.ones(5).long()}, TypeError, "'logit' of floats, but got torch.int64"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    logits = {'logit': torch.rand(5), 'teacher_logit': torch.rand(5)}
    with pytest.raises(error, match=sentence):
        distillation_loss(**{**logits, **arguments})
