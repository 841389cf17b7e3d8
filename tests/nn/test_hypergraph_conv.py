import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch_geometric.nn import HypergraphConv as PyGHypergraphConv

from mag.nn import HypergraphConv

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')

# Three nodes in the first hyperedge, two in the second.
INCIDENCE = [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
GOLDEN = [
    [0.333333333333, 0.333333333333, 0.235702260396, 0.0],
    [0.333333333333, 0.333333333333, 0.235702260396, 0.0],
    [0.235702260396, 0.235702260396, 0.416666666667, 0.353553390593],
    [0.0, 0.0, 0.353553390593, 0.5],
]
GOLDEN_WEIGHTED = [
    [0.333333333333, 0.333333333333, 0.298142397, 0.0],
    [0.333333333333, 0.333333333333, 0.298142397, 0.0],
    [0.298142397, 0.298142397, 0.366666666667, 0.22360679775],
    [0.0, 0.0, 0.22360679775, 0.5],
]
GOLDEN_X = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]]
GOLDEN_OUT = [
    [0.569035593729, 0.569035593729],
    [0.569035593729, 0.569035593729],
    [1.359475708249, 0.29881553647],
    [1.353553390593, -0.146446609407],
]


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def plain_conv(channels: int) -> HypergraphConv:
    r"""A layer whose Theta is the identity."""
    conv = HypergraphConv(channels, channels).double()
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(channels))
    return conv


def smoothing(hyperedge_index: Tensor, weight: Tensor, num_nodes: int) -> Tensor:
    r"""The matrix in front of X, as what the layer makes of the identity."""
    return plain_conv(num_nodes)(
        torch.eye(num_nodes, dtype=torch.float64), hyperedge_index, weight
    ).detach()


def by_the_formula(incidence: Tensor, weight: Tensor) -> Tensor:
    r"""The matrix in front of X, from matrices of diagonals."""
    node_degree = incidence @ weight
    root = torch.diag(torch.where(node_degree > 0, node_degree**-0.5, 0))
    size = incidence.sum(dim=0)
    inverse = torch.diag(torch.where(size > 0, 1 / size, 0))
    return root @ incidence @ torch.diag(weight) @ inverse @ incidence.t() @ root


def hypergraph(seed: int = 0, num_nodes: int = 9, num_hyperedges: int = 6) -> tuple[Tensor, Tensor]:
    r"""Incidences in random order and weights, of which two are equal: a node is isolated, a
    hyperedge is empty, one holds a single node, and one weighs nothing."""
    generator = torch.Generator().manual_seed(seed)
    incidence = torch.rand(num_nodes, num_hyperedges, generator=generator) < 0.4
    incidence[num_nodes // 2] = False
    incidence[:, 1] = False
    incidence[:, 2] = torch.arange(num_nodes) == 0
    index = incidence.nonzero()
    index = index[torch.randperm(len(index), generator=generator)].t()
    weight = 0.1 + 2 * torch.rand(num_hyperedges, generator=generator, dtype=torch.float64)
    weight[3], weight[4] = weight[0], 0
    return index, weight


def dense(hyperedge_index: Tensor, num_nodes: int, num_hyperedges: int) -> Tensor:
    incidence = torch.zeros(num_nodes, num_hyperedges, dtype=torch.float64)
    ones = torch.ones(hyperedge_index.size(1), dtype=torch.float64)
    return incidence.index_put(tuple(hyperedge_index), ones, accumulate=True)


@pytest.mark.parametrize(
    'incidence, weight, expected',
    [
        (INCIDENCE, [1.0, 1.0], GOLDEN),
        (INCIDENCE, [2.0, 0.5], GOLDEN_WEIGHTED),
        (
            [*INCIDENCE, [0.0, 0.0]],
            [1.0, 1.0],
            [*([*row, 0.0] for row in GOLDEN), [0.0] * 5],
        ),
    ],
)
def test_golden_matrices(
    incidence: list[list[float]], weight: list[float], expected: list[list[float]]
) -> None:
    index = tensor(incidence).nonzero().t()
    out = smoothing(index, tensor(weight), len(incidence))
    torch.testing.assert_close(out, tensor(expected), atol=1e-11, rtol=0)


def test_golden_output() -> None:
    index = tensor(INCIDENCE).nonzero().t()
    out = plain_conv(2)(tensor(GOLDEN_X), index)
    torch.testing.assert_close(out, tensor(GOLDEN_OUT), atol=1e-11, rtol=0)


def test_random_hypergraphs_follow_the_formula() -> None:
    for seed in range(30):
        index, weight = hypergraph(seed)
        torch.manual_seed(seed)
        conv = HypergraphConv(3, 4, bias=True).double()
        torch.nn.init.normal_(conv.bias)
        x = torch.randn(9, 3, dtype=torch.float64)
        for given in (weight, torch.ones_like(weight)):
            matrix = by_the_formula(dense(index, 9, 6), given)
            expected = matrix @ x @ conv.lin.weight.t() + conv.bias
            torch.testing.assert_close(conv(x, index, given), expected, atol=1e-12, rtol=0)
        # Without weights the last call is that of ones.
        torch.testing.assert_close(conv(x, index, num_hyperedges=6), expected, atol=1e-12, rtol=0)


def test_an_incidence_that_is_listed_twice_counts_twice() -> None:
    index, weight = hypergraph()
    twice = torch.cat([index, index[:, :5]], dim=1)
    expected = by_the_formula(dense(twice, 9, 6), weight)
    assert dense(twice, 9, 6).max() == 2
    torch.testing.assert_close(smoothing(twice, weight, 9), expected, atol=1e-12, rtol=0)


def test_spectrum() -> None:
    for seed in range(20):
        index, weight = hypergraph(seed)
        matrix = smoothing(index, weight, 9)
        torch.testing.assert_close(matrix, matrix.t(), atol=1e-15, rtol=0)
        eigenvalues = torch.linalg.eigvalsh(matrix)
        assert eigenvalues.min() > -1e-12 and eigenvalues.max() < 1 + 1e-12
        root = (dense(index, 9, 6) @ weight).sqrt().unsqueeze(1)
        torch.testing.assert_close(matrix @ root, root, atol=1e-12, rtol=0)


def test_weights_scale_what_passes_and_not_degrees_alone() -> None:
    index = tensor(INCIDENCE).nonzero().t()
    equal, other = (smoothing(index, tensor(weight), 4) for weight in ([1.0, 1.0], [1.0, 3.0]))
    # As the first two nodes are in no other hyperedge, how much they give each other stays.
    assert torch.equal(equal[:2, :2], other[:2, :2])
    # What node 2 takes from its two hyperedges goes with their weights, up to its degree.
    torch.testing.assert_close(other[2, 2], tensor([(1 / 3 + 3 / 2) / 4])[0])
    # Weights that all grow alike change nothing.
    scaled = smoothing(index, tensor([7.0, 21.0]), 4)
    torch.testing.assert_close(scaled, other, atol=1e-15, rtol=0)


def test_pyg_without_weights_is_the_same_with_means_for_rows() -> None:
    index, _ = hypergraph()
    conv = HypergraphConv(3, 4).double()
    other = PyGHypergraphConv(3, 4, bias=False).double()
    other.load_state_dict(conv.state_dict())
    x = torch.randn(9, 3, dtype=torch.float64)
    root = dense(index, 9, 6).sum(dim=1).sqrt().unsqueeze(1)
    scaled = x / root.masked_fill(root == 0, 1)
    out = conv(x, index, num_hyperedges=6)
    torch.testing.assert_close(out, root * other(scaled, index, num_edges=6), atol=1e-12, rtol=0)


def test_isolated_nodes_and_empty_hyperedges_have_finite_gradients() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4).double()
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    weight.requires_grad_()
    out = conv(x, index, weight)
    assert bool((out[4] == 0).all())
    out.square().sum().backward()
    for grad in (x.grad, weight.grad, conv.lin.weight.grad):
        assert grad is not None and bool(grad.isfinite().all())
    assert bool((x.grad[4] == 0).all()) and weight.grad[1] == 0
    assert bool((x.grad[:4] != 0).any())


@pytest.mark.parametrize('bias', [False, True])
def test_nothing_to_convolve(bias: bool) -> None:
    conv = HypergraphConv(3, 4, bias=bias)
    if bias:
        torch.nn.init.normal_(conv.bias)
    none = torch.empty(2, 0, dtype=torch.long)
    expected = conv.bias.expand(5, 4) if bias else torch.zeros(5, 4)
    for kwargs in ({}, {'num_hyperedges': 3}, {'hyperedge_weight': torch.ones(3)}):
        assert torch.equal(conv(torch.randn(5, 3), none, **kwargs), expected)
    assert conv(torch.randn(0, 3), none).shape == (0, 4)


def test_gradient() -> None:
    index, weight = hypergraph()
    # At 0 the weight has one side only.
    weight[4] = 0.7
    conv = HypergraphConv(3, 2, bias=True).double()

    def run(x: Tensor, weight: Tensor, theta: Tensor, bias: Tensor) -> Tensor:
        return functional_call(conv, {'lin.weight': theta, 'bias': bias}, (x, index, weight))

    tensors = torch.randn(9, 3).double(), weight, torch.randn(2, 3).double(), torch.ones(2).double()
    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in tensors])


def test_order_does_not_matter() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    expected = conv(x, index, weight)
    generator = torch.Generator().manual_seed(1)
    nodes, hyperedges = (torch.randperm(size, generator=generator) for size in (9, 6))
    renamed = torch.stack([nodes.argsort()[index[0]], hyperedges.argsort()[index[1]]])
    renamed = renamed[:, torch.randperm(renamed.size(1), generator=generator)]
    out = conv(x[nodes], renamed, weight[hyperedges])
    torch.testing.assert_close(out, expected[nodes], atol=1e-14, rtol=0)


def test_a_parameter_learns_which_hyperedges_matter() -> None:
    # Node 1 is in both hyperedges, and should resemble node 2 of the second.
    index = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])
    x = torch.eye(3, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    conv = plain_conv(3).requires_grad_(False)
    optimizer = torch.optim.Adam([parameter], 0.1)
    for _ in range(50):
        weight = torch.nn.functional.softplus(parameter)
        optimizer.zero_grad()
        (-conv(x, index, weight)[1, 2]).backward()
        optimizer.step()
    assert parameter[1] > 1 > -1 > parameter[0]


def test_compiled_training_is_one_graph_with_the_same_gradients() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4, bias=True)
    x = torch.randn(9, 3, requires_grad=True)
    weight = weight.float().requires_grad_()
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    outs = [run(x, index, weight) for run in (conv, compiled)]
    wrt = [x, weight, *conv.parameters()]
    expected, found = (torch.autograd.grad(out.square().sum(), wrt) for out in outs)
    torch.testing.assert_close(outs[1], outs[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # The number in place of the weights does as well.
    out = compiled(x, index, None, 6)
    torch.testing.assert_close(out, conv(x, index, None, 6), atol=1e-6, rtol=1e-5)


def test_export_takes_hypergraphs_of_other_sizes() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4)
    dims = torch.export.Dim('nodes'), torch.export.Dim('incidences'), torch.export.Dim('hyperedges')
    shapes = tuple({dim: size} for dim, size in zip((0, 1, 0), dims))
    program = torch.export.export(
        conv, (torch.randn(9, 3), index, weight.float()), dynamic_shapes=shapes
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for num_nodes, num_hyperedges in ((9, 6), (40, 11)):
        index, weight = hypergraph(1, num_nodes, num_hyperedges)
        args = torch.randn(num_nodes, 3), index, weight.float()
        torch.testing.assert_close(exported(*args), conv(*args), atol=1e-6, rtol=1e-5)


@needs_cuda
def test_cuda_agrees_with_cpu() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4)
    x = torch.randn(9, 3)
    args = x, index, weight.float()
    expected = conv(*args)
    out = conv.cuda()(*(arg.cuda() for arg in args))
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_autocast_is_close() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4)
    x = torch.randn(9, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x, index, weight.float())
    torch.testing.assert_close(out.float(), conv(x, index, weight.float()), atol=3e-2, rtol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_counts_thousands(dtype: torch.dtype) -> None:
    r"""Ones added up in bfloat16 stop at 256, in float16 at 2048."""
    conv = HypergraphConv(3, 4)
    x = torch.rand(3000, 3)
    everybody = torch.stack([torch.arange(3000), torch.zeros(3000, dtype=torch.long)])
    # Node 0 is in 3,000 hyperedges, each with one other node.
    pairs = torch.stack([torch.zeros(3000, dtype=torch.long), torch.arange(3000)])
    others = torch.stack([torch.arange(3000), torch.arange(3000)])
    for index in (everybody, torch.cat([pairs, others], dim=1)):
        expected = conv(x, index)
        with torch.autocast('cpu', dtype=dtype):
            out = conv(x, index)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
        half = copy.deepcopy(conv).to(dtype)(x.to(dtype), index)
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), expected, atol=2e-2, rtol=2e-2)


def test_weights_of_another_precision() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4)
    x = torch.randn(9, 3)
    out = conv(x, index, weight.double())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, conv(x, index, weight.float()))


def test_copies_agree() -> None:
    index, weight = hypergraph()
    conv = HypergraphConv(3, 4, bias=True)
    x = torch.randn(9, 3)
    other = HypergraphConv(3, 4, bias=True)
    other.load_state_dict(conv.state_dict())
    for twin in (other, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin(x, index, weight), conv(x, index, weight))


def test_reset_parameters() -> None:
    conv = HypergraphConv(3, 4, bias=True)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.fill_(7)
    conv.reset_parameters()
    assert bool((conv.bias == 0).all())
    assert bool((conv.lin.weight.abs() <= (6 / (3 + 4)) ** 0.5).all())
    assert {name for name, _ in HypergraphConv(3, 4).named_parameters()} == {'lin.weight'}


@pytest.mark.parametrize('name', ['in_channels', 'out_channels'])
@pytest.mark.parametrize(
    'value, error, message',
    [
        (0, ValueError, 'must be at least 1, but got 0'),
        (-1, ValueError, 'must be at least 1, but got -1'),
        (2.0, TypeError, 'must be an integer, but got 2.0'),
        (True, TypeError, 'must be an integer, but got True'),
    ],
)
def test_wrong_arguments(name: str, value: Any, error: type[Exception], message: str) -> None:
    kwargs = {'in_channels': 3, 'out_channels': 4, name: value}
    with pytest.raises(error, match=f"'{name}' {message}"):
        HypergraphConv(**kwargs)


def test_wrong_inputs() -> None:
    index, weight = hypergraph()
    x = torch.randn(9, 3, dtype=torch.float64)
    conv = HypergraphConv(3, 4).double()
    far, beyond, negative = (index.clone() for _ in range(3))
    far[0, 2], beyond[1, 0], negative[0, 0] = 9, 6, -1
    below, undefined = weight.clone(), weight.clone()
    below[2], undefined[0] = -0.5, torch.nan
    for args, error, message in (
        ((x[:, :2], index), ValueError, r'\[num_nodes, 3\], but got shape \[9, 2\]'),
        ((x[0], index), ValueError, r'\[num_nodes, 3\], but got shape \[3\]'),
        ((x, index[0]), ValueError, r'\[2, nnz\], but got shape'),
        ((x, index.t()), ValueError, r'\[2, nnz\], but got shape \[\d+, 2\]'),
        ((x.long(), index), TypeError, "'x' of floats, but got torch.int64"),
        ((x.tolist(), index), TypeError, "'x' to be a tensor of shape .* but got list"),
        ((x, index.tolist()), TypeError, "'hyperedge_index' to be a tensor"),
        ((x, index.int()), TypeError, 'int64, but got torch.int32'),
        ((x, index, weight.view(2, 3)), ValueError, r'of shape \[2\], but got shape \[2, 3\]'),
        (
            (x, index, weight, 7),
            ValueError,
            r"'hyperedge_weight' of shape \[7\], but got shape \[6\]",
        ),
        ((x, far), IndexError, "nodes of 'hyperedge_index' from 0 to 9, .* from 0 to 8"),
        ((x, negative), IndexError, "nodes of 'hyperedge_index' from -1 to 8, .* from 0 to 8"),
        ((x, beyond, weight), IndexError, 'hyperedges of .* from 0 to 6, .* from 0 to 5'),
        (
            (x, index, None, 4),
            IndexError,
            "hyperedges of 'hyperedge_index' from 0 to 5, .* from 0 to 3",
        ),
        ((x, index, weight > 0), TypeError, "'hyperedge_weight' of floats, but got torch.bool"),
        (
            (x, index, below),
            ValueError,
            'of 0 or more, such as of softplus, and finite, .* such as -0.5 in row 2',
        ),
        ((x, index, undefined), ValueError, 'of 0 or more, .* 1 of 6 is not, such as nan in row 0'),
        ((x, index, weight / 0), ValueError, 'of 0 or more, .*, such as inf in row 0'),
    ):
        with pytest.raises(error, match=message):
            conv(*args)


def test_repr() -> None:
    assert repr(HypergraphConv(3, 4)) == 'HypergraphConv(3, 4)'
    assert repr(HypergraphConv(3, 4, bias=True)) == 'HypergraphConv(3, 4, bias=True)'
