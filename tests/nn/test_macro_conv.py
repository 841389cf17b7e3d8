import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from mag.nn import MacroConv

LAYOUTS = ['edge_index', pytest.param('SparseTensor', marks=pytest.mark.sparse), 'coo', 'csr']
OPTIONS = [
    dict(zip(('form', 'mask_zero', 'weighting', 'renormalize'), values))
    for values in itertools.product(
        ('paper', 'released', 'twin'), (True, False), (True, False), (True, False)
    )
    # The logarithm of no count has no weight to take in.
    if values[:2] != ('twin', False)
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')


def write(counts: Tensor, layout: str) -> tuple[Any, ...]:
    r"""The arguments of MacroConv that say the same as dense counts."""
    target, macro = counts.nonzero(as_tuple=True)
    weight = counts[target, macro]
    if layout == 'edge_index':
        # In no order, and with an explicit zero, which must not count as an edge.
        absent = (counts == 0).nonzero()[:1].t()
        edge_index = torch.cat([torch.stack([macro, target]), absent.flip(0)], dim=1)
        weight = torch.cat([weight, weight.new_zeros(absent.size(1))])
        order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
        return edge_index[:, order], weight[order]
    if layout == 'SparseTensor':
        torch_sparse = pytest.importorskip('torch_sparse', reason='torch-sparse is an extra.')
        return (
            torch_sparse.SparseTensor(
                row=target, col=macro, value=weight, sparse_sizes=tuple(counts.shape)
            ),
        )
    return (counts.to_sparse() if layout == 'coo' else counts.to_sparse_csr(),)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    r"""Five macro nodes and seven targets; one target has no count at all, one a single count."""
    generator = torch.Generator().manual_seed(0)
    x_macro = torch.randn(5, 3, generator=generator, dtype=dtype)
    x_target = torch.randn(7, 3, generator=generator, dtype=dtype)
    counts = torch.randint(0, 6, (7, 5), generator=generator).to(dtype)
    counts[2] = 0
    counts[4] = torch.tensor([0, 0, 9, 0, 0])
    return x_macro, x_target, counts


def by_the_formula(
    conv: MacroConv,
    x_macro: Tensor,
    x_target: Tensor,
    counts: Tensor,
    x_attention: Tensor | None = None,
) -> Tensor:
    r"""Eq. 6 to 9 and 11, or the one softmax of TWIN-V2, target by target and neighbor by
    neighbor."""
    x_attention = x_macro if x_attention is None else x_attention
    out = torch.zeros(len(x_target), conv.out_channels, dtype=x_macro.dtype)
    for v in range(len(x_target)):
        nodes = [q for q in range(len(x_macro)) if counts[v, q] > 0 or not conv.mask_zero]
        key = conv.lin_key.weight @ x_target[v]
        more = 0 if conv.form == 'twin' else 1
        size = {q: (counts[v, q].item() + more) ** (1 / conv.temperature) for q in nodes}
        if not conv.weighting:
            size = dict.fromkeys(nodes, 1.0)
        score = {
            q: math.exp(
                ((conv.lin_query.weight @ x_attention[q]) @ key).item()
                / math.sqrt(conv.out_channels)
            )
            for q in nodes
        }
        product = {}
        for q in nodes:
            alpha = score[q] / sum(score.values()) if conv.form == 'paper' else 1.0
            product[q] = size[q] / sum(size.values()) * alpha
        if conv.form == 'twin':
            both = {q: size[q] * score[q] for q in nodes}
            product = {q: both[q] / sum(both.values()) for q in nodes}
        for q in nodes:
            weight = product[q] / (sum(product.values()) if conv.renormalize else 1.0)
            out[v] += weight * (conv.lin_value.weight @ x_macro[q])
    return out


def macro_weights(counts: Tensor, **kwargs: Any) -> Tensor:
    r"""The weights of eq. 6, read off with one-hot macro nodes that the layer passes on as they
    are."""
    num_macro = counts.size(1)
    conv = MacroConv(
        num_macro, num_macro, **{'form': 'released', 'mask_zero': True, **kwargs}
    ).double()
    with torch.no_grad():
        conv.lin_value.weight.copy_(torch.eye(num_macro))
        eye = torch.eye(num_macro, dtype=torch.float64)
        return conv((eye, torch.zeros(len(counts), num_macro, dtype=torch.float64)), counts)


@pytest.mark.parametrize(
    'counts, temperature, unmasked, masked',
    [
        (
            [3, 1, 0],
            1.0,
            [0.571428571429, 0.285714285714, 0.142857142857],
            [0.666666666667, 0.333333333333, 0.0],
        ),
        ([3, 1, 0], 0.5, [0.761904761905, 0.190476190476, 0.047619047619], [0.8, 0.2, 0.0]),
        (
            [3, 1, 0],
            1.9,
            [0.459471496436, 0.319022809263, 0.221505694301],
            [0.590205340068, 0.409794659932, 0.0],
        ),
        ([0, 2], 1.0, [0.25, 0.75], [0.0, 1.0]),
        ([0, 2], 0.5, [0.1, 0.9], [0.0, 1.0]),
        ([0, 2], 1.9, [0.359342966424, 0.640657033576], [0.0, 1.0]),
        ([2, 1], 1.0, [0.6, 0.4], [0.6, 0.4]),
        ([2, 1], 0.5, [0.692307692308, 0.307692307692], [0.692307692308, 0.307692307692]),
        ([2, 1], 1.9, [0.553149121002, 0.446850878998], [0.553149121002, 0.446850878998]),
        ([4, 1], 1.0, [0.714285714286, 0.285714285714], [0.714285714286, 0.285714285714]),
        ([4, 1], 0.5, [0.862068965517, 0.137931034483], [0.862068965517, 0.137931034483]),
        ([4, 1], 1.9, [0.618280992704, 0.381719007296], [0.618280992704, 0.381719007296]),
        ([1, 3], 1.0, [0.333333333333, 0.666666666667], [0.333333333333, 0.666666666667]),
        ([1, 3], 0.5, [0.2, 0.8], [0.2, 0.8]),
        ([1, 3], 1.9, [0.409794659932, 0.590205340068], [0.409794659932, 0.590205340068]),
        ([4, 2], 1.0, [0.625, 0.375], [0.625, 0.375]),
        ([4, 2], 0.5, [0.735294117647, 0.264705882353], [0.735294117647, 0.264705882353]),
        ([4, 2], 1.9, [0.566811932793, 0.433188067207], [0.566811932793, 0.433188067207]),
        ([5, 3], 1.0, [0.6, 0.4], [0.6, 0.4]),
        ([5, 3], 0.5, [0.692307692308, 0.307692307692], [0.692307692308, 0.307692307692]),
        ([5, 3], 1.9, [0.553149121002, 0.446850878998], [0.553149121002, 0.446850878998]),
    ],
)
def test_golden_macro_weights(
    counts: list[int], temperature: float, unmasked: list[float], masked: list[float]
) -> None:
    row = torch.tensor([counts], dtype=torch.float64)
    for mask_zero, expected in ((False, unmasked), (True, masked)):
        weights = macro_weights(row, temperature=temperature, mask_zero=mask_zero)
        torch.testing.assert_close(weights[0].tolist(), expected, atol=1e-11, rtol=0)


def golden_conv(**kwargs: Any) -> MacroConv:
    conv = MacroConv(2, 2, **kwargs).double()
    with torch.no_grad():
        conv.lin_query.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        conv.lin_key.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        conv.lin_value.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    return conv


GOLDEN_TARGET = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
GOLDEN_MACRO = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
GOLDEN_COUNTS = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize('layout', ['dense', *LAYOUTS])
@pytest.mark.parametrize(
    'mask_zero, readout',
    [(False, [0.38365597272, 0.236064578154]), (True, [0.556587183109, 0.220158967116])],
)
def test_golden_readout(layout: str, mask_zero: bool, readout: list[float]) -> None:
    counts = (GOLDEN_COUNTS,) if layout == 'dense' else write(GOLDEN_COUNTS, layout)
    out = golden_conv(mask_zero=mask_zero)((GOLDEN_MACRO, GOLDEN_TARGET), *counts)
    torch.testing.assert_close(out[0].tolist(), readout, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    'mask_zero, messages',
    [
        (
            False,
            [[0.342795904518, 0.0], [0.169021928057, 0.338043856113], [0.97636433485] * 2],
        ),
        (True, [[0.669761549327, 0.0], [0.330238450673, 0.660476901347], [0.0, 0.0]]),
    ],
)
def test_golden_messages(mask_zero: bool, messages: list[list[float]]) -> None:
    # Without weighting every neighbor has the same share, so that only the attention is left.
    conv = golden_conv(mask_zero=mask_zero, weighting=False)
    out = conv((GOLDEN_MACRO, GOLDEN_TARGET), GOLDEN_COUNTS)
    expected = torch.tensor(messages, dtype=torch.float64).sum(dim=0) / (2 if mask_zero else 3)
    torch.testing.assert_close(out[0], expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    'mask_zero, expected',
    [(False, [0.771007054308, 0.509232350146]), (True, [1.0, 0.660476901347])],
)
def test_golden_recent_padding(mask_zero: bool, expected: list[float]) -> None:
    recent = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.3, -0.2]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    out = golden_conv(mask_zero=mask_zero).attend(recent, GOLDEN_TARGET, mask)
    torch.testing.assert_close(out[0].tolist(), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize('options', OPTIONS)
def test_follows_the_formula(options: dict[str, Any]) -> None:
    conv = MacroConv(3, 4, temperature=0.7, **options).double()
    x_macro, x_target, counts = inputs(torch.float64)
    expected = by_the_formula(conv, x_macro, x_target, counts)
    torch.testing.assert_close(conv((x_macro, x_target), counts), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize('layout', ['dense', *LAYOUTS])
@pytest.mark.parametrize('form', ['paper', 'released', 'twin'])
def test_the_attention_reads_tables_of_its_own(form: str, layout: str) -> None:
    conv = MacroConv(3, 4, form=form).double()
    x_macro, x_target, counts = inputs(torch.float64)
    x_attention = torch.randn(5, 3, dtype=torch.float64)
    args = (counts,) if layout == 'dense' else write(counts, layout)
    out = conv((x_macro, x_target), *args, x_attention=x_attention)
    expected = by_the_formula(conv, x_macro, x_target, counts, x_attention)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    again = conv((x_macro, x_target), *args, x_attention=x_macro)
    torch.testing.assert_close(again, conv((x_macro, x_target), *args))


def test_recent_neighbors_are_attended_to_by_tables_of_their_own() -> None:
    conv = MacroConv(3, 4).double()
    x_macro, x_target, counts = inputs(torch.float64)
    x_attention = torch.randn(5, 3, dtype=torch.float64)
    present = (counts > 0).double()
    out = conv.attend(x_macro.expand(7, 5, 3), x_target, counts > 0, x_attention.expand(7, 5, 3))
    # Without weighting, each of the macro nodes that are there has an equal share.
    plain = MacroConv(3, 4, weighting=False).double()
    plain.load_state_dict(conv.state_dict())
    expected = by_the_formula(plain, x_macro, x_target, present, x_attention)
    torch.testing.assert_close(out, present.sum(dim=1, keepdim=True) * expected)


def test_one_softmax_is_the_attention_over_all_interactions_of_the_macro_nodes() -> None:
    conv = MacroConv(3, 4, form='twin').double()
    x_macro, x_target, counts = inputs(torch.float64)
    out = conv((x_macro, x_target), counts)
    for target in range(7):
        x = x_macro.repeat_interleave(counts[target].long(), dim=0).unsqueeze(0)
        one = conv.attend(x, x_target[target : target + 1], torch.ones(x.shape[:2]).bool())
        torch.testing.assert_close(out[target : target + 1], one)


def test_one_softmax_sums_to_one_and_takes_decayed_counts() -> None:
    conv = MacroConv(4, 4, form='twin', temperature=0.5).double()
    counts = torch.tensor([[0.25, 0.5, 0.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        conv.lin_value.weight.copy_(torch.eye(4))
    eye = torch.eye(4, dtype=torch.float64)
    # A target of zeros attends to all alike, so that the squares of the counts are left.
    weights = conv((eye, torch.zeros(1, 4, dtype=torch.float64)), counts)
    assert weights[0].tolist() == pytest.approx([1 / 21, 4 / 21, 0, 16 / 21])


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('options', OPTIONS)
def test_inputs_agree_in_value_and_gradient(layout: str, options: dict[str, Any]) -> None:
    conv = MacroConv(3, 4, temperature=1.9, **options)
    x_macro, x_target, counts = inputs()
    x_macro.requires_grad_()
    x_target.requires_grad_()
    parameters = [p for p in conv.parameters() if p.requires_grad]
    cotangent = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))

    def run(*args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = conv((x_macro, x_target), *args)
        gradients = torch.autograd.grad(
            out, [x_macro, x_target, *parameters], cotangent, materialize_grads=True
        )
        return out, gradients

    torch.testing.assert_close(run(*write(counts, layout)), run(counts), atol=1e-5, rtol=1e-5)


def test_sparse_entries_of_one_pair_add_up() -> None:
    conv = MacroConv(3, 4)
    x_macro, x_target, counts = inputs()
    index = counts.nonzero().t()
    value = counts[index[0], index[1]] / 2
    twice = torch.sparse_coo_tensor(index.repeat(1, 2), value.repeat(2), counts.shape)
    torch.testing.assert_close(conv((x_macro, x_target), twice), conv((x_macro, x_target), counts))


@pytest.mark.parametrize('options', OPTIONS)
def test_order_of_macro_nodes_does_not_matter(options: dict[str, Any]) -> None:
    conv = MacroConv(3, 4, **options).double()
    x_macro, x_target, counts = inputs(torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        conv((x_macro[order], x_target), counts[:, order]), conv((x_macro, x_target), counts)
    )
    weights = macro_weights(counts[:, order])
    torch.testing.assert_close(weights, macro_weights(counts)[:, order])


@pytest.mark.parametrize('mask_zero', [True, False])
def test_macro_weights_sum_to_one_and_grow_with_the_count(mask_zero: bool) -> None:
    counts = torch.tensor([[1.0, 2.0, 5.0, 40.0], [7.0, 7.0, 8.0, 1e6]], dtype=torch.float64)
    weights = macro_weights(counts, temperature=1.9, mask_zero=mask_zero)
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert weights[0].tolist() == sorted(set(weights[0].tolist()))
    assert weights[1, 0] == weights[1, 1] < weights[1, 2] < weights[1, 3]


def test_a_large_temperature_makes_the_weights_uniform_over_the_present_nodes() -> None:
    counts = torch.tensor([[0.0, 1.0, 900.0, 0.0, 3.0]], dtype=torch.float64)
    for temperature, weighting in ((1e9, True), (1.0, False)):
        weights = macro_weights(counts, temperature=temperature, weighting=weighting)
        assert weights[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3], abs=1e-7)
        weights = macro_weights(
            counts, temperature=temperature, weighting=weighting, mask_zero=False
        )
        assert weights[0].tolist() == pytest.approx([0.2] * 5, abs=1e-7)


def test_the_two_softmaxes_multiply_unless_they_are_renormalized() -> None:
    counts = torch.ones(1, 4, dtype=torch.float64)
    # Zero targets make the attention uniform: 1/4 of 1/4 each, as M6 of the paper has it.
    assert macro_weights(counts, form='paper')[0].tolist() == pytest.approx([1 / 16] * 4)
    renormalized = macro_weights(counts, form='paper', renormalize=True)
    assert renormalized[0].tolist() == pytest.approx([1 / 4] * 4)


@pytest.mark.parametrize('layout', ['dense', *LAYOUTS])
@pytest.mark.parametrize('form', ['paper', 'twin'])
@pytest.mark.parametrize('renormalize', [False, True])
def test_an_empty_hop_gives_zero_and_finite_gradients(
    layout: str, form: str, renormalize: bool
) -> None:
    conv = MacroConv(3, 4, form=form, renormalize=renormalize)
    x_macro, x_target, counts = inputs()
    x_macro.requires_grad_()
    x_target.requires_grad_()
    args = (counts,) if layout == 'dense' else write(counts, layout)
    out = conv((x_macro, x_target), *args)
    assert out[2].tolist() == [0, 0, 0, 0]
    out.square().sum().backward()
    assert x_target.grad[2].tolist() == [0, 0, 0]
    for tensor in (x_macro, x_target, *conv.parameters()):
        assert bool(tensor.grad.isfinite().all())
    # A single neighbor has the attention 1 and the weight 1.
    torch.testing.assert_close(out[4], conv.lin_value.weight @ x_macro[2])


def test_unmasked_an_empty_hop_is_the_attention_over_all_nodes() -> None:
    conv = MacroConv(3, 4, mask_zero=False)
    x_macro, x_target, counts = inputs()
    expected = conv((x_macro, x_target[2:3]), torch.full((1, 5), 7.0))
    torch.testing.assert_close(conv((x_macro, x_target), counts)[2:3], expected)


def test_released_attention_never_trains_query_and_key() -> None:
    x_macro, x_target, counts = inputs()
    conv = MacroConv(3, 4, form='released')
    conv((x_macro, x_target), counts).sum().backward()
    conv.attend(x_macro.expand(7, 5, 3), x_target, counts > 0).sum().backward()
    assert conv.lin_query.weight.grad is None
    assert conv.lin_key.weight.grad is None
    assert conv.lin_value.weight.grad.abs().sum() > 0
    # And the target has no say.
    assert torch.equal(conv((x_macro, x_target), counts), conv((x_macro, -x_target), counts))

    conv = MacroConv(3, 4)
    conv((x_macro, x_target), counts).sum().backward()
    assert conv.lin_query.weight.grad.abs().sum() > 0
    assert conv.lin_key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('form', ['paper', 'released', 'twin'])
def test_content_of_padding_does_not_matter(form: str) -> None:
    conv = MacroConv(3, 4, form=form)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, generator=generator)
    x_target = torch.randn(6, 3, generator=generator)
    mask = torch.rand(6, 5, generator=generator) < 0.5
    mask[0] = False
    mask[1] = True
    other = torch.where(mask.unsqueeze(-1), x, 1e3 * torch.randn(x.shape, generator=generator))
    x.requires_grad_()
    out = conv.attend(x, x_target, mask)
    torch.testing.assert_close(conv.attend(other, x_target, mask), out)
    assert out[0].tolist() == [0, 0, 0, 0]
    # As if the padding were cut off.
    for row in range(6):
        kept = x[row : row + 1, mask[row]]
        alone = conv.attend(kept, x_target[row : row + 1], torch.ones(kept.shape[:2]).bool())
        torch.testing.assert_close(alone[0], out[row])
    out.square().sum().backward()
    assert bool((x.grad[~mask] == 0).all()) and bool(x.grad.isfinite().all())


def test_unmasked_attention_reads_the_padding_as_released() -> None:
    conv = MacroConv(3, 4, mask_zero=False)
    x_macro, x_target, counts = inputs()
    x = x_macro.repeat(7, 1, 1)
    out = conv.attend(x, x_target, counts > 0)
    x[counts == 0] += 1
    assert not torch.allclose(conv.attend(x, x_target, counts > 0), out)


def test_attention_without_counts_is_attend() -> None:
    # Equal weights of five present nodes are 1/5 each; eq. 12 has no weights.
    conv = MacroConv(3, 4, weighting=False)
    x_macro, x_target, counts = inputs()
    out = conv((x_macro, x_target), torch.ones_like(counts))
    expected = conv.attend(x_macro.expand(7, 5, 3), x_target, torch.ones(7, 5).bool())
    torch.testing.assert_close(5 * out, expected)


@pytest.mark.parametrize('form', ['paper', 'twin'])
def test_gradient_of_all_paths(form: str) -> None:
    conv = MacroConv(3, 2, temperature=0.7, form=form).double()
    x_macro, x_target, counts = inputs(torch.float64)
    read = [x_macro, x_target, torch.randn(5, 3, dtype=torch.float64)]
    for x in read:
        x.requires_grad_()
    for args in ((counts,), write(counts, 'edge_index')):
        assert torch.autograd.gradcheck(
            lambda m, t, a: conv((m, t), *args, x_attention=a),  # noqa: B023
            read,
        )
    x, a = (torch.randn(7, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda x, t, a: conv.attend(x, t, counts > 0, a), (x, x_target, a)
    )


@pytest.mark.parametrize('form', ['paper', 'twin'])
def test_compiles_and_exports(form: str) -> None:
    conv = MacroConv(3, 4, form=form)
    x_macro, x_target, counts = inputs()
    args, x_attention = ((x_macro, x_target), counts), {'x_attention': torch.randn(5, 3)}
    expected = conv(*args, **x_attention)
    compiled = torch.compile(conv, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(*args, **x_attention), expected)
    program = torch.export.export(conv, args, x_attention)
    torch.testing.assert_close(program.module()(*args, **x_attention), expected)


@pytest.mark.parametrize('form', ['paper', 'twin'])
def test_dense_and_sparse_agree_in_bfloat16_autocast(form: str) -> None:
    conv = MacroConv(3, 4, form=form)
    x_macro, x_target, counts = inputs()
    expected = conv((x_macro, x_target), counts)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for args in ((counts,), write(counts, 'edge_index')):
            out = conv((x_macro, x_target), *args)
            torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=0)


@needs_cuda
@pytest.mark.parametrize('layout', ['dense', 'edge_index', 'coo'])
def test_cuda_agrees_with_cpu(layout: str) -> None:
    conv = MacroConv(3, 4)
    x_macro, x_target, counts = inputs()
    expected = conv((x_macro, x_target), counts)
    args = (counts,) if layout == 'dense' else write(counts, layout)
    out = conv.cuda()((x_macro.cuda(), x_target.cuda()), *(arg.cuda() for arg in args))
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_copies_agree() -> None:
    conv = MacroConv(3, 4, temperature=1.9)
    other = MacroConv(3, 4, temperature=1.9)
    other.load_state_dict(conv.state_dict())
    x_macro, x_target, counts = inputs()
    for twin in (other, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin((x_macro, x_target), counts), conv((x_macro, x_target), counts))


def test_reset_parameters() -> None:
    conv = MacroConv(3, 4)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.fill_(7)
    conv.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in conv.parameters())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'in_channels': 0}, "'in_channels' must be at least 1, but got 0"),
        ({'out_channels': -1}, "'out_channels' must be at least 1, but got -1"),
        ({'temperature': 0.0}, r"'temperature' must be a number in \(0, inf\], but got 0.0"),
        ({'temperature': math.nan}, r"'temperature' must be a number in \(0, inf\], but got nan"),
        ({'form': 'new'}, "'form' must be one of 'paper', 'released', 'twin', but got 'new'"),
        (
            {'form': 'literal'},
            "'form' must be one of 'paper', 'released', 'twin', but got 'literal'",
        ),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MacroConv(**{'in_channels': 3, 'out_channels': 4, **kwargs})


def test_wrong_inputs() -> None:
    conv = MacroConv(3, 4)
    x_macro, x_target, counts = inputs()
    x = x_macro, x_target
    edge_index, edge_weight = write(counts, 'edge_index')
    for pair, args, error, message in (
        (x_macro, (counts,), TypeError, 'macro nodes and targets as a pair, but got Tensor'),
        ((*x, x_macro), (counts,), TypeError, 'macro nodes and targets as a pair, but got tuple'),
        ((x_macro, None), (counts,), TypeError, r"'targets' to be a tensor .*, but got None"),
        (
            (x_macro[:, :2], x_target),
            (counts,),
            ValueError,
            r"'macro nodes' of shape \[M, 3\].*5, 2",
        ),
        ((x_macro, x_target[0]), (counts,), ValueError, r"'targets' of shape \[B, 3\].*\[3\]"),
        (x, (counts.t(),), ValueError, r'\[7, 5\] for 7 targets and 5 macro nodes.*\[5, 7\]'),
        (x, (counts[0],), ValueError, r'counts of shape \[7, 5\] for 7 .*, but got shape \[5\]'),
        (x, (counts.t().to_sparse(),), ValueError, r'counts of shape \[7, 5\].* shape \[5, 7\]'),
        (x, (counts, edge_weight), ValueError, "matrix of counts without 'edge_weight'"),
        (x, (counts, None, x_macro[:4]), ValueError, r"'x_attention' of shape \[5, 3\].*\[4, 3\]"),
        (x, (edge_index,), TypeError, "'edge_weight' to be a tensor of shape .*, but got None"),
        (x, (edge_index, edge_weight[1:]), ValueError, "'edge_weight' of shape"),
        (x, (edge_index[0], edge_weight), ValueError, r"'edge_index' of shape \[2, E\], but got"),
        (
            x,
            (counts.long(),),
            ValueError,
            r"'edge_index' of shape \[2, E\], but got shape \[7, 5\]",
        ),
        (x, (counts > 0,), ValueError, r"'edge_index' of shape \[2, E\], but got shape \[7, 5\]"),
    ):
        with pytest.raises(error, match=message):
            conv(pair, *args)


@pytest.mark.parametrize('mask_zero', [False, True])
@pytest.mark.parametrize(
    'row, message', [(0, 'macro nodes .* to 5, .* 0 to 4'), (1, 'targets .*-1')]
)
def test_edges_of_nodes_that_do_not_exist(mask_zero: bool, row: int, message: str) -> None:
    x_macro, x_target, counts = inputs()
    edge_index, edge_weight = write(counts, 'edge_index')
    edge_index[row, 0] = 5 if row == 0 else -1
    with pytest.raises(IndexError, match=message):
        MacroConv(3, 4, mask_zero=mask_zero)((x_macro, x_target), edge_index, edge_weight)


def test_one_softmax_cannot_take_in_absent_macro_nodes() -> None:
    assert MacroConv(3, 4, form='twin').mask_zero
    with pytest.raises(ValueError, match='leaves out those with count 0, but got mask_zero=False'):
        MacroConv(3, 4, form='twin', mask_zero=False)


def test_the_released_form_takes_in_zero_counts_unless_told_otherwise() -> None:
    assert MacroConv(3, 4).mask_zero and not MacroConv(3, 4, form='released').mask_zero
    assert MacroConv(3, 4, form='released', mask_zero=True).mask_zero
    assert not MacroConv(3, 4, mask_zero=False).mask_zero


def test_repr() -> None:
    assert repr(MacroConv(3, 4, temperature=1.9, form='released')) == (
        "MacroConv(3, 4, temperature=1.9, form='released', mask_zero=False, weighting=True, "
        'renormalize=False)'
    )
