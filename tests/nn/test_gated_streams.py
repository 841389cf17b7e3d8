import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mag.nn import GatedStreams


def spread(layer: GatedStreams) -> GatedStreams:
    r"""The layer with parameters that are not those of the start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def by_the_formula(layer: GatedStreams, x: Tensor) -> Tensor:
    size = layer.out_channels // 3
    before = x @ layer.lin.weight.t() + layer.lin.bias
    ego, *views = before[:, :size], before[:, size : 2 * size], before[:, 2 * size :]
    gate = torch.sigmoid(ego @ layer.lin_gate.weight.t() + layer.lin_gate.bias)
    gate = gate / layer.temperature
    streams = [ego]
    for place, view in enumerate(views):
        out = gate * view + view
        if layer.has_bias:
            out = out + layer.bias[place]
        if layer.skip:
            out = out + x[:, (place + 1) * size : (place + 2) * size]
        streams.append(out)
    if layer.norm is not None:
        for place, stream in enumerate(streams):
            channels = slice(place * size, (place + 1) * size)
            norm = torch.nn.BatchNorm1d(size).to(x)
            norm.load_state_dict(
                {
                    name: value if value.dim() == 0 else value[channels]
                    for name, value in layer.norm.state_dict().items()
                }
            )
            streams[place] = norm.train(layer.training)(stream)
    acts = (F.relu, F.mish, F.gelu)
    return torch.cat([act(stream) for act, stream in zip(acts, streams, strict=True)], dim=1)


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_follows_the_formula(skip: bool, bias: bool, batch_norm: bool) -> None:
    torch.manual_seed(0)
    arguments = {'skip': skip, 'bias': bias, 'batch_norm': batch_norm}
    layer = spread(GatedStreams(6 if skip else 4, 6, **arguments)).double()
    x = torch.randn(8, layer.in_channels, dtype=torch.float64)
    for mode in (True, False):
        expected = by_the_formula(layer.train(mode), x)
        torch.testing.assert_close(layer(x), expected)


def test_golden_numbers() -> None:
    for is_first, expected in ((True, 0.9904810212275321), (False, 1.090481021227532)):
        layer = GatedStreams(
            3, 3, skip=not is_first, bias=not is_first, batch_norm=False, activations=['relu'] * 3
        ).double()
        with torch.no_grad():
            layer.lin.weight.zero_()
            layer.lin.bias.copy_(torch.tensor([0.4, 0.7, 0.7]))
            layer.lin_gate.weight.fill_(2.0)
            layer.lin_gate.bias.fill_(-0.3)
            layer.temperature.fill_(1.5)
            layer.bias.fill_(0.2)
        out = layer(torch.tensor([[5.0, -0.1, -0.1]], dtype=torch.float64))
        assert out[0].tolist() == pytest.approx([0.4, expected, expected], abs=1e-7)


@pytest.mark.parametrize('skip', [False, True])
def test_gradient(skip: bool) -> None:
    torch.manual_seed(0)
    layer = spread(GatedStreams(6, 6, skip=skip, batch_norm=False)).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    for parameter in layer.parameters():
        # The layer as a function of one of its parameters.
        assert torch.autograd.gradcheck(lambda _: layer(x), (parameter,))
    layer(x).square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in layer.parameters())


def test_a_bias_before_a_normalization_learns_nothing() -> None:
    torch.manual_seed(0)
    layer = spread(GatedStreams(6, 6)).double()
    layer(torch.randn(16, 6, dtype=torch.float64)).square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.zeros_like(layer.bias))


def test_a_bias_that_is_not_added_waits_for_no_gradient() -> None:
    layer = GatedStreams(4, 6, skip=False, bias=False)
    assert not layer.bias.requires_grad
    assert sum(p.numel() for p in layer.parameters()) == 4 * 6 + 6 + 2 * 2 + 2 + 2 + 4 + 12


@pytest.mark.parametrize(('temperature', 'kept'), [(0.0, 1e-3), (-1e-9, -1e-3), (-0.5, -0.5)])
def test_the_temperature_keeps_away_from_zero(temperature: float, kept: float) -> None:
    torch.manual_seed(0)
    layer = GatedStreams(6, 6, batch_norm=False).double()
    twin = GatedStreams(6, 6, batch_norm=False).double()
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        layer.temperature.fill_(temperature)
        twin.temperature.fill_(kept)
    x = torch.randn(4, 6, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, twin(x))
    out.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in layer.parameters())


def test_each_stream_has_its_own_activation_and_dropout() -> None:
    torch.manual_seed(0)
    names = ('leaky_relu', 'relu', 'mish')
    shares = (0.0, 0.5, 0.9)
    layer = GatedStreams(30, 3_000, skip=False, activations=names, dropouts=shares)
    x = torch.randn(64, 30)
    streams = layer(x).chunk(3, dim=1)
    assert bool((streams[0] < 0).any()) and not bool((streams[1] < 0).any())
    zeros = [(stream == 0).float().mean().item() for stream in streams]
    # A rectifier leaves half of what is not dropped.
    assert zeros == pytest.approx([0.0, 0.75, 0.9], abs=0.01)
    layer.eval()
    kept = layer(x).chunk(3, dim=1)
    assert not bool((kept[2] == 0).any())
    # What is kept is raised, so that a mean stays what it was.
    plain = GatedStreams(30, 3_000, skip=False, activations=names)
    plain.load_state_dict(layer.state_dict())
    for stream, whole in zip(streams, plain.train()(x).chunk(3, dim=1), strict=True):
        assert stream.mean().item() == pytest.approx(whole.mean().item(), abs=0.01)


def test_compiles_exports_and_autocasts() -> None:
    torch.manual_seed(0)
    layer, x = spread(GatedStreams(6, 6)).eval(), torch.randn(4, 6)
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='eager')(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, atol=0.1, rtol=0.05)


def test_reset_parameters() -> None:
    layer = GatedStreams(60, 60)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    layer.train()(torch.randn(4, 60))
    torch.manual_seed(0)
    layer.reset_parameters()
    assert layer.lin.weight.std().item() == pytest.approx(math.sqrt(2 / 120), rel=0.1)
    assert layer.lin.bias.tolist() == [0.0] * 60 and layer.temperature.tolist() == [1.0] * 20
    assert 0 <= layer.bias.min() < 0.2 and 0.8 < layer.bias.max() < 1
    assert layer.norm.running_mean.tolist() == [0.0] * 60


def test_repr() -> None:
    layer = GatedStreams(4, 6, skip=False, bias=False, batch_norm=False)
    assert repr(layer) == (
        "GatedStreams(4, 6, skip=False, bias=False, batch_norm=False, activations=('relu', "
        "'mish', 'gelu'), dropouts=(0.0, 0.0, 0.0))"
    )


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: GatedStreams(6, 8), ValueError, "'out_channels' must be a multiple of 3.*got 8"),
        (lambda: GatedStreams(4, 6), ValueError, "'in_channels' 4 and 'out_channels' 6"),
        (lambda: GatedStreams(0, 6), ValueError, "'in_channels' must be at least 1, but got 0"),
        (lambda: GatedStreams(6, 6, skip=1), TypeError, "'skip' must be True or False, but got 1"),
        (
            lambda: GatedStreams(6, 6, activations=('relu', 'tanh', 'relu')),
            ValueError,
            r"'activations\[1\]' must be one of 'gelu', .*, but got 'tanh'",
        ),
        (
            lambda: GatedStreams(6, 6, activations=('relu',)),
            ValueError,
            r"'activations' must be three, .*, but got \('relu',\)",
        ),
        (lambda: GatedStreams(6, 6, dropouts=0.1), TypeError, "'dropouts' must be three, .* 0.1"),
        (
            lambda: GatedStreams(6, 6, dropouts=(0, 0, 1)),
            ValueError,
            r"'dropouts\[2\]' must be a number in \[0, 1\), but got 1",
        ),
        (
            lambda: GatedStreams(6, 6)(torch.rand(2, 5)),
            ValueError,
            r"'x' of shape \[B, 6\], but got shape \[2, 5\]",
        ),
        (lambda: GatedStreams(6, 6)(torch.ones(2, 6).long()), TypeError, "'x' of floats"),
        (lambda: GatedStreams(6, 6)(torch.rand(1, 6)), ValueError, 'two rows or more, but got one'),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
