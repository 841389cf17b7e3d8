import copy

import pytest
import torch

from mag.nn._running_norm import RunningNorm


def batches(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + 5 * torch.randn(number, 8, 2, generator=generator, dtype=torch.double)


def test_averages_are_means_at_first_and_forget_later() -> None:
    norm = RunningNorm(2, momentum=0.1).double()
    mean, variance = torch.zeros(2).double(), torch.ones(2).double()
    for step, x in enumerate(batches(30), start=1):
        norm(x)
        mean += max(1 / step, 0.1) * (x.mean(0) - mean)
        variance += max(1 / step, 0.1) * (x.var(0) - variance)
        if step == 10:
            torch.testing.assert_close(norm.running_mean, batches(10).mean((0, 1)))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


def test_output_and_gradient_are_those_of_pytorch() -> None:
    x = batches(1)[0].requires_grad_()
    ours, theirs = RunningNorm(2).double(), torch.nn.BatchNorm1d(2, affine=False).double()
    torch.testing.assert_close(ours(x), theirs(x))
    weight = torch.arange(16).view(8, 2).double()
    gradients = [torch.autograd.grad((norm(x) * weight).sum(), x) for norm in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_goes_on_from_a_saved_state() -> None:
    whole, first = RunningNorm(2).double(), RunningNorm(2).double()
    for x in batches(5):
        whole(x)
    for x in batches(5)[:3]:
        first(x)
    second = RunningNorm(2).double()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x in batches(5)[3:]:
        second(x)
    assert torch.equal(whole.running_var, second.running_var)
    second.reset_parameters()
    assert second.num_batches_tracked == 0 and second.running_var.tolist() == [1, 1]


def test_compiled_training_is_one_graph_with_the_same_averages_and_gradients() -> None:
    plain, compiled = RunningNorm(2, momentum=0.4).double(), RunningNorm(2, momentum=0.4).double()
    forward = torch.compile(compiled, fullgraph=True, backend='aot_eager')
    weight = torch.arange(16).view(8, 2).double()
    for x in batches(4):
        x.requires_grad_()
        out = plain(x), forward(x)
        torch.testing.assert_close(*out)
        torch.testing.assert_close(
            *(torch.autograd.grad((y * weight).sum(), x)[0] for y in out), rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())


def test_export_reads_the_averages_for_batches_of_other_sizes() -> None:
    norm = RunningNorm(2).double()
    for x in batches(3):
        norm(x)
    rows = torch.export.Dim('rows', min=2)
    program = torch.export.export(norm.eval(), (batches(1)[0],), dynamic_shapes=({0: rows},))
    x = batches(2).flatten(0, 1)
    expected = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(program.module()(x), expected)


def test_averages_of_half_precision_are_single() -> None:
    expected = batches(1)[0].float().mean(0)
    half = RunningNorm(2)
    assert half(batches(1)[0].bfloat16()).dtype == torch.bfloat16
    assert half.running_mean.dtype == torch.float
    torch.testing.assert_close(half.running_mean, expected, atol=0.05, rtol=0.05)


def test_one_row_is_refused_in_training() -> None:
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        RunningNorm(2)(torch.ones(1, 2))
