import math

import pytest
import torch
from torch import Tensor

from mag.nn import TextEncoder


def sentences(num: int = 700, length: int = 13, num_tokens: int = 50) -> tuple[Tensor, Tensor]:
    r"""Tokens with padding anywhere but in the first place, where they are -1."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(num_tokens, (num, length), generator=generator)
    is_token = torch.rand(num, length, generator=generator) < 0.6
    is_token[:, 0] = True
    return tokens.masked_fill(~is_token, -1), is_token


def copied(encoder: TextEncoder) -> torch.nn.TransformerEncoder:
    r"""The library's encoder with the same weights."""
    channels = encoder.channels
    layer = torch.nn.TransformerEncoderLayer(
        channels, encoder.layers[0].num_heads, 48, 0.0, 'gelu', batch_first=True
    )
    library = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with torch.no_grad():
        for ours, theirs in zip(encoder.layers, library.layers):
            attention = theirs.self_attn
            pairs = zip(
                (ours.lin_query, ours.lin_key_value), (slice(channels), slice(channels, None))
            )
            for lin, rows in pairs:
                attention.in_proj_weight[rows] = lin.weight
                attention.in_proj_bias[rows] = lin.bias
            for one, other in (
                (ours.lin_out, attention.out_proj),
                (ours.lin_in, theirs.linear1),
                (ours.lin_hidden, theirs.linear2),
                (ours.norm_attention, theirs.norm1),
                (ours.norm_hidden, theirs.norm2),
            ):
                other.load_state_dict(one.state_dict())
    return library


def make(**arguments: float) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(50, 16, 2, 4, 48, max_length=13, **{'dropout': 0.0, **arguments})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def test_equals_the_encoder_of_torch() -> None:
    encoder = make().double()
    tokens, is_token = sentences()
    states = encoder(tokens, is_token)
    assert states.shape == (700, 13, 16)
    assert bool((states[~is_token] == 0).all())
    library = copied(encoder).double()
    place = is_token.cumsum(1) - 1
    x = encoder.norm(encoder.token(tokens.clamp(min=0)) + encoder.position[place])
    expected = library(x, src_key_padding_mask=~is_token)
    torch.testing.assert_close(states[is_token], expected[is_token])
    torch.testing.assert_close(encoder.first(tokens, is_token), expected[:, 0])


def test_gradients_equal_those_of_torch() -> None:
    encoder = make().double()
    tokens, is_token = sentences(40)
    library = copied(encoder).double()
    weight = torch.rand(13, 16).double()
    (encoder(tokens, is_token) * weight).sum().backward()
    place = is_token.cumsum(1) - 1
    x = encoder.norm(encoder.token(tokens.clamp(min=0)) + encoder.position[place]).detach()
    out = library(x, src_key_padding_mask=~is_token).masked_fill(~is_token.unsqueeze(2), 0)
    (out * weight).sum().backward()
    for ours, theirs in zip(encoder.layers, library.layers):
        grad = theirs.self_attn.in_proj_weight.grad
        torch.testing.assert_close(ours.lin_query.weight.grad, grad[:16])
        torch.testing.assert_close(ours.lin_key_value.weight.grad, grad[16:])
        torch.testing.assert_close(ours.lin_in.weight.grad, theirs.linear1.weight.grad)
    grads = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    encoder.zero_grad()
    encoder.first(tokens, is_token).sum().backward()
    read = encoder.position.grad.clone()
    encoder.zero_grad()
    encoder(tokens, is_token)[:, 0].sum().backward()
    torch.testing.assert_close(read, encoder.position.grad)
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads.values())


def test_padding_may_stand_anywhere() -> None:
    encoder = make()
    tokens, is_token = sentences(30)
    wide = torch.full((30, 26), -1)
    is_wide = torch.zeros(30, 26, dtype=torch.bool)
    wide[:, 0::2], is_wide[:, 0::2] = tokens, is_token
    states = encoder(wide, is_wide)
    torch.testing.assert_close(states[:, 0::2], encoder(tokens, is_token))
    torch.testing.assert_close(encoder.first(wide, is_wide), encoder.first(tokens, is_token))


def test_a_sentence_without_tokens_is_finite() -> None:
    encoder = make()
    tokens, is_token = sentences(5)
    expected = encoder(tokens, is_token)[1:]
    is_token = is_token.clone()
    is_token[0] = False
    states = encoder(tokens, is_token)
    assert bool((states[0] == 0).all())
    torch.testing.assert_close(states[1:], expected)
    encoder(tokens, is_token).sum().backward()
    encoder.first(tokens[:1], is_token[:1]).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters())
    assert encoder(tokens[:0], is_token[:0]).shape == (0, 13, 16)
    assert encoder.first(tokens[:0], is_token[:0]).shape == (0, 16)


def test_starts_as_bert_does() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(1_000)
    assert encoder.channels == 128 and encoder.max_length == 512
    num = 128 * (1_000 + 512 + 2) + 2 * (4 * 128 * 129 + 2 * 128 * 512 + 512 + 128 + 4 * 128)
    assert sum(p.numel() for p in encoder.parameters()) == num
    for lin in (encoder.layers[1].lin_in, encoder.token):
        assert math.isclose(float(lin.weight.detach().std()), 0.02, rel_tol=0.05)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(0)
    encoder.reset_parameters()
    torch.manual_seed(0)
    other = TextEncoder(1_000)
    for (name, one), two in zip(encoder.state_dict().items(), other.state_dict().values()):
        assert state[name].shape == one.shape == two.shape
    assert bool((encoder.layers[0].norm_hidden.weight == 1).all())


def test_dropout() -> None:
    encoder = make(dropout=0.5)
    tokens, is_token = sentences(20)
    assert not torch.equal(encoder(tokens, is_token), encoder(tokens, is_token))
    encoder.eval()
    assert torch.equal(encoder(tokens, is_token), encoder(tokens, is_token))


def test_compile_and_export() -> None:
    encoder = make().eval()
    tokens, is_token = sentences(20)
    expected = encoder(tokens, is_token)
    compiled = torch.compile(encoder, backend='eager', fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(tokens, is_token), expected)
    dim = torch.export.Dim('num_sentences')
    program = torch.export.export(
        encoder, (tokens, is_token), dynamic_shapes={'tokens': {0: dim}, 'is_token': {0: dim}}
    )
    torch.testing.assert_close(program.module()(tokens[:7], is_token[:7]), expected[:7])

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, tokens: Tensor, is_token: Tensor) -> Tensor:
            return self.encoder.first(tokens, is_token)

    program = torch.export.export(First(), (tokens, is_token))
    torch.testing.assert_close(program.module()(tokens, is_token), expected[:, 0])


def test_bad_input() -> None:
    for arguments, error, message in (
        ({'num_tokens': 0}, ValueError, "'num_tokens' must be at least 1, but got 0"),
        ({'channels': 10}, ValueError, "a multiple of 'num_heads', which is 4, but got 10"),
        ({'dropout': 1.0}, ValueError, r"'dropout' must be a number in \[0, 1\), but got 1.0"),
        ({'max_length': 9.0}, TypeError, "'max_length' must be an integer, but got 9.0"),
    ):
        with pytest.raises(error, match=message):
            TextEncoder(**{'num_tokens': 50, **arguments})
    encoder = make()
    tokens, is_token = sentences(5)
    for given, mask, error, message in (
        (tokens + 1.0, is_token, TypeError, "'tokens' of integers"),
        (tokens[0], is_token, ValueError, r"'tokens' of shape \[B, L\], but got shape \[13\]"),
        (tokens, is_token[:4], ValueError, r"'is_token' of shape \[5, 13\].*\[4, 13\]"),
        (tokens, is_token.long(), TypeError, "'is_token' of dtype bool"),
        (tokens + 50, is_token, IndexError, "ids of 'tokens' from .*, but expected them from -1"),
        (
            torch.zeros(2, 14).long(),
            torch.ones(2, 14).bool(),
            ValueError,
            "at most 'max_length' tokens, 13, but got one of 14",
        ),
    ):
        for read in (encoder, encoder.first):
            with pytest.raises(error, match=f'TextEncoder .*{message}'):
                read(given, mask)
