import copy

import pytest
import torch
from torch import Tensor

from mag.nn import DomainHeads

DOMAIN = torch.tensor([0, 1, 0, 2, 1, 0])


def build(**arguments: int) -> tuple[DomainHeads, Tensor]:
    torch.manual_seed(0)
    heads = DomainHeads(
        **{'in_channels': 4, 'hidden_channels': (3,), 'num_domains': 3, **arguments}
    )
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    return heads.double(), torch.randn(6, 4, dtype=torch.double)


def test_each_row_is_answered_by_the_head_of_its_domain() -> None:
    heads, x = build()
    heads.eval()
    for norm in heads.norms:
        torch.nn.init.normal_(norm.running_mean)
    expected = [
        heads.mlps[domain](heads.norms[domain](row[None])).item()
        for row, domain in zip(x, DOMAIN.tolist(), strict=True)
    ]
    torch.testing.assert_close(heads(x, DOMAIN).tolist(), expected)


def test_statistics_are_those_of_the_rows_of_a_domain() -> None:
    heads, x = build()
    heads.train()
    rows = DOMAIN == 0
    own = x[rows]
    normed = (own - own.mean(0)) / (own.var(0, unbiased=False) + 1e-5).sqrt()
    normed = normed * heads.norms[0].weight + heads.norms[0].bias
    expected = copy.deepcopy(heads.mlps[0])(normed).view(-1)
    torch.testing.assert_close(heads(x, DOMAIN)[rows], expected)
    torch.testing.assert_close(heads.norms[0].running_mean, 0.1 * own.mean(0))


def test_a_row_alone_takes_the_statistics_gathered_before_and_adds_none() -> None:
    heads, x = build()
    heads.train()
    row = DOMAIN == 2
    expected = copy.deepcopy(heads).eval()(x, DOMAIN)[row]
    torch.testing.assert_close(heads(x, DOMAIN)[row], expected)
    assert heads.norms[2].running_mean.tolist() == [0] * 4
    assert all(module.training for module in heads.modules())


def test_an_absent_domain_leaves_no_parameter_without_a_gradient() -> None:
    heads, x = build()
    heads.train()(x, DOMAIN.clamp(max=1)).sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())
    for module in (heads.norms[2], heads.mlps[2]):
        assert all(bool((parameter.grad == 0).all()) for parameter in module.parameters())


def test_reset_parameters() -> None:
    heads, x = build()
    heads.train()(x, DOMAIN)
    heads.reset_parameters()
    assert heads.norms[0].running_mean.tolist() == [0] * 4
    assert heads.norms[0].weight.tolist() == [1] * 4
    assert heads.mlps[0][0].weight.abs().max() <= 0.5


def test_exported_for_any_number_of_rows() -> None:
    heads, x = build()
    heads.eval()
    size = torch.export.Dim('rows', min=2)
    program = torch.export.export(heads, (x, DOMAIN), dynamic_shapes=({0: size}, {0: size}))
    for rows in (2, 5, 6):
        out = program.module()(x[:rows], DOMAIN[:rows])
        torch.testing.assert_close(out, heads(x[:rows], DOMAIN[:rows]))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'num_domains': 0}, ValueError, "'num_domains' must be at least 1, but got 0"),
        ({'in_channels': 2.0}, TypeError, "'in_channels' must be an integer, but got 2.0"),
        ({'hidden_channels': 8}, TypeError, "'hidden_channels' must be a sequence of sizes"),
        ({'hidden_channels': (0,)}, ValueError, r"'hidden_channels\[0\]' must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**arguments)


@pytest.mark.parametrize('training', [False, True])
def test_wrong_inputs(training: bool) -> None:
    heads, x = build()
    heads.train(training)
    for given, domain, error, message in (
        (x[:, :3], DOMAIN, ValueError, r"'x' of shape \[B, 4\], but got shape \[6, 3\]"),
        (x.long(), DOMAIN, TypeError, "'x' of floats, but got torch.int64"),
        (x, DOMAIN[:5], ValueError, r"'domain' of shape \[6\], but got shape \[5\]"),
        (x, None, TypeError, "'domain' to be a tensor .*, but got None"),
        (x, DOMAIN.float(), TypeError, "'domain' of dtype int64, but got torch.float32"),
        (x, DOMAIN + 1, IndexError, 'domains from 1 to 3, but expected them from 0 to 2'),
        (x, DOMAIN - 1, IndexError, 'domains from -1 to 1, but expected them from 0 to 2'),
    ):
        with pytest.raises(error, match=message):
            heads(given, domain)
