import copy
import math
import pickle

import pytest
import torch

from mag.nn import Dice

X = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)


def filled(form: str) -> Dice:
    dice = Dice(1, form).double()
    with torch.no_grad():
        dice.alpha.fill_(0.25)
    return dice


@pytest.mark.parametrize(
    'form, expected',
    [
        ('released', [0.470992857613, 1.168491484957, 3.245760456193]),
        ('paper', [0.441688560554, 1.150369368984, 3.375645527761]),
    ],
)
def test_golden_numbers(form: str, expected: list[float]) -> None:
    out = filled(form).train()(X)
    torch.testing.assert_close(out.view(-1).tolist(), expected, atol=1e-11, rtol=0)


def test_evaluation_reads_running_averages() -> None:
    dice = filled('paper')
    dice.norm.running_mean.fill_(2.0)
    dice.norm.running_var.fill_(4.0)
    dice.eval()
    for x, out in zip([1.0, 2.0, 4.0], dice(X).view(-1).tolist()):
        gate = 1 / (1 + math.exp(-(x - 2) / math.sqrt(4 + 1e-9)))
        assert out == pytest.approx(gate * x + 0.25 * (1 - gate) * x, abs=1e-12)


def test_running_averages_are_those_of_the_batches_from_the_first_on() -> None:
    dice = filled('paper').train()
    expected = dice(X)
    assert dice.norm.running_mean.item() == pytest.approx(7 / 3)
    assert dice.norm.running_var.item() == pytest.approx(7 / 3)
    # What is evaluated is what was trained, but for the variance, there divided by N, not N - 1.
    dice.norm.running_var.mul_(2 / 3)
    torch.testing.assert_close(dice.eval()(X), expected)


def test_evaluation_is_independent_of_the_batch_in_the_form_of_the_paper_only() -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for form in ('paper', 'released'):
        dice = Dice(5, form).eval()
        same = torch.allclose(dice(x)[:3], dice(x[:3]), atol=1e-6)
        assert same is (form == 'paper')


def test_one_alpha_a_feature_or_one_a_layer() -> None:
    assert Dice(5).alpha.tolist() == [0] * 5
    assert Dice(5, 'released').alpha.tolist() == [0]
    dice = Dice(2).eval()
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 1.0]))
    # With alpha = 1 the gate has no say, and with alpha = 0 it is a soft step at the mean, 0.
    x = torch.tensor([[-3.0, -3.0]])
    assert dice(x).tolist() == [[pytest.approx(-3 / (1 + math.exp(3))), -3.0]]


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_a_constant_column_halves_and_has_finite_gradients(form: str) -> None:
    x = torch.full((4, 1), 2.0, requires_grad=True)
    out = Dice(1, form)(x)
    out.sum().backward()
    assert out.view(-1).tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_gradient(form: str) -> None:
    dice = filled(form).train()
    x = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dice, x)


def test_reset_parameters() -> None:
    dice = filled('paper').train()
    dice(X)
    dice.reset_parameters()
    assert dice.alpha.item() == 0
    assert dice.norm.running_mean.item() == 0
    assert dice.norm.running_var.item() == 1


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_copies_agree(form: str) -> None:
    dice = filled(form).train()
    dice(X)
    dice.eval()
    other = Dice(1, form).double().eval()
    other.load_state_dict(dice.state_dict())
    for twin in (other, copy.deepcopy(dice), pickle.loads(pickle.dumps(dice))):
        assert torch.equal(twin(X), dice(X))


@pytest.mark.parametrize('shape', [(3,), (3, 2), (1, 3, 1)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects 'x' of shape \[B, 1\], but got"):
        Dice(1)(torch.zeros(shape))


def test_a_row_alone_has_no_batch_statistics() -> None:
    row = torch.ones(1, 1)
    for dice in (Dice(1).train(), Dice(1, 'released').train(), Dice(1, 'released').eval()):
        with pytest.raises(ValueError, match='needs two rows or more'):
            dice(row)
    assert Dice(1).eval()(row).item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_no_features() -> None:
    with pytest.raises(ValueError, match="'num_features' must be at least 1, but got 0"):
        Dice(0)


def test_repr() -> None:
    assert repr(Dice(3, 'released')) == "Dice(3, form='released')"
