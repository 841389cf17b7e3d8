from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mag.losses import view_contrast

GOLDEN = {
    'ego': [[1.0, 0.0], [0.0, 2.0]],
    'view1': [[1.0, 1.0], [0.0, 1.0]],
    'view2': [[2.0, 0.0], [1.0, 1.0]],
}
FORMS = ('released', 'standard')


def draw(size: int, channels: int = 6, **kwargs: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    kwargs = {'dtype': torch.float64, **kwargs}
    return [torch.randn(size, channels, generator=generator, **kwargs) for _ in range(3)]


def dense(
    ego: Tensor, view1: Tensor, view2: Tensor, temperature: float, form: str = 'released'
) -> Tensor:
    r"""With all similarities at once, as the authors of SimCEN compute it."""
    ego, view1, view2 = (F.normalize(x) for x in (ego, view1, view2))
    together = ((ego * view1).sum(-1) + (ego * view2).sum(-1)) * 0.5
    if form == 'standard':
        together = (view1 * view2).sum(-1)
    against = torch.exp(view1 @ view2.t() / temperature).sum(-1)
    return -torch.log(torch.exp(together / temperature) / against + 10e-6).mean()


def test_golden_numbers() -> None:
    rows = [torch.tensor(value, dtype=torch.float64) for value in GOLDEN.values()]
    assert view_contrast(*rows, 0.5).item() == pytest.approx(0.3300695807249089, abs=1e-12)


def test_the_epsilon_lies_inside_the_logarithm() -> None:
    # A row whose ego is opposed to both views: what draws together vanishes beside the epsilon.
    view = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = view_contrast(-view, view, view, 0.01)
    assert loss.item() == pytest.approx(-torch.tensor(1e-5, dtype=torch.float64).log().item())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('block', [1, 40, 10**6])
def test_blocks_are_as_all_at_once(form: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(view_contrast.__globals__, '_BLOCK', block)
    rows = [x.requires_grad_() for x in draw(17)]
    found, expected = view_contrast(*rows, 0.3, form), dense(*rows, 0.3, form)
    torch.testing.assert_close(found, expected)
    used = rows if form == 'released' else rows[1:]
    torch.testing.assert_close(
        torch.autograd.grad(found, used), torch.autograd.grad(expected, used)
    )


class Largest(TorchDispatchMode):
    r"""How many numbers the largest tensor has that is made."""

    size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self.size = max(self.size, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out


def test_similarities_of_all_pairs_are_never_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(view_contrast.__globals__, '_BLOCK', 4096)
    rows = [x.requires_grad_() for x in draw(600, 4)]
    with Largest() as largest:
        view_contrast(*rows).backward()
    assert largest.size == 4096 // 600 * 600
    with Largest() as largest:
        dense(*rows, 0.2).backward()
    assert largest.size == 600**2


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('block', [8, 10**6])
def test_gradient(form: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(view_contrast.__globals__, '_BLOCK', block)
    rows = [x.requires_grad_() for x in draw(5, 3)]
    assert torch.autograd.gradcheck(lambda *rows: view_contrast(*rows, 0.5, form), rows)


def test_it_reads_directions_alone() -> None:
    rows = draw(9)
    longer = [x * scale for x, scale in zip(rows, (3.0, 0.01, 100.0), strict=True)]
    torch.testing.assert_close(view_contrast(*longer), view_contrast(*rows))


def test_the_standard_form_is_a_cross_entropy_but_for_its_epsilon() -> None:
    ego, view1, view2 = draw(9)
    similarity = F.normalize(view1) @ F.normalize(view2).t() / 0.2
    expected = F.cross_entropy(similarity, torch.arange(9))
    found = view_contrast(ego, view1, view2, 0.2, 'standard')
    assert found.item() == pytest.approx(expected.item(), abs=0.05)
    assert view_contrast(-ego, view1, view2, 0.2, 'standard') == found > 0
    # The released form pairs other vectors above than below: views that agree go below 0.
    assert view_contrast(view1, view1, view1, 0.2) < 0.5
    row = view1[:1]
    assert view_contrast(row, torch.tensor([[0.0] * 5 + [1.0]]).double(), row).item() < 0.1


def test_zeros_have_a_finite_loss_and_finite_gradients() -> None:
    for zero in range(3):
        rows = draw(5)
        rows[zero][2] = 0
        rows = [x.requires_grad_() for x in rows]
        loss = view_contrast(*rows)
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(x.grad.abs().max() < 100) for x in rows)


def test_a_low_temperature_leaves_the_loss_and_its_gradient_finite() -> None:
    # The ego has a cosine of 1/4 to both views, and they one of -7/8 to each other.
    root = 15**0.5 / 4
    views = [torch.tensor([[0.25, sign * root]]) for sign in (1, -1)]
    ego = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = view_contrast(ego, *views, temperature=0.005)
    torch.testing.assert_close(loss, torch.tensor(-(1 / 4 + 7 / 8) / 0.005))
    loss.backward()
    assert ego.grad.isfinite().all()


def test_half_precision_is_summed_in_single() -> None:
    rows = [x.requires_grad_() for x in draw(64, 16, dtype=torch.float32)]
    expected = view_contrast(*rows)
    with torch.autocast('cpu', torch.bfloat16):
        found = view_contrast(*rows)
        torch.testing.assert_close(found, expected)
        grads = torch.autograd.grad(found, rows)
        halves = view_contrast(*(x.bfloat16() for x in rows))
    assert halves.dtype == torch.float
    torch.testing.assert_close(halves, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, rows))


@pytest.mark.parametrize('block', [128, 10**6])
def test_compiled_it_is_one_graph(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(view_contrast.__globals__, '_BLOCK', block)
    torch.compiler.reset()
    rows = [x.requires_grad_() for x in draw(17)]
    compiled = torch.compile(view_contrast, fullgraph=True, backend='aot_eager')
    found, expected = compiled(*rows), view_contrast(*rows)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, rows), torch.autograd.grad(expected, rows)
    )


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'form': 'paper'}, ValueError, "'form' must be one of 'released', 'standard', but got"),
        (
            {'temperature': 0},
            ValueError,
            r"'temperature' must be a number in \(0, inf\), but got 0",
        ),
        ({'temperature': '1'}, TypeError, "'temperature' must be a number in .*, but got '1'"),
        ({'ego': torch.rand(5)}, ValueError, r"'ego' of shape \[B, t\], but got shape \[5\]"),
        ({'view2': torch.rand(4, 6)}, ValueError, r"'view2' of shape \[5, 6\], .* \[4, 6\]"),
        ({'view1': torch.ones(5, 6).long()}, TypeError, "'view1' of floats, but got torch.int64"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    rows = dict(zip(('ego', 'view1', 'view2'), draw(5), strict=True))
    with pytest.raises(error, match=sentence):
        view_contrast(**{**rows, **arguments})
