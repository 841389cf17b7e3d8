import copy
import io
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import leaky_relu
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from mag.nn import BehaviorGraphConv

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')

GOLDEN_P = [[0, 2 / 3, 1 / 3, 0], [1 / 2, 0, 1 / 2, 0], [1 / 4, 1 / 2, 0, 1 / 4], [0, 0, 1, 0]]
GOLDEN_BIAS = [[0, 0, 0, 0.5], [0, 0, -0.2, 0], [0, 0, 0, 0], [0, 0, -2.5, 0]]
GOLDEN_SYMMETRIC = [
    [0.533333333333, 0.295145914949, 0.13701805122, 0.0],
    [0.295145914949, 0.48, 0.222834405812, 0.0],
    [0.13701805122, 0.222834405812, 0.413793103448, 0.315387850148],
    [0.0, 0.0, 0.315387850148, 0.615384615385],
]
GOLDEN_WITH_BIAS = [
    [0.470588235294, 0.284144642082, 0.153833150748, 0.153392997769],
    [0.284144642082, 0.504201680672, 0.218375916102, 0.0],
    [0.153833150748, 0.218375916102, 0.591133004926, 0.0],
    [0.153392997769, 0.0, 0.0, 0.8],
]
GOLDEN_LITERAL = [
    [0.5, 0.333333333333, 0.166666666667, 0.0],
    [0.25, 0.5, 0.25, 0.0],
    [0.125, 0.25, 0.5, 0.125],
    [0.0, 0.0, 0.5, 0.5],
]


def edges(table: Tensor) -> tuple[Tensor, Tensor]:
    r"""The edges that hold a table with targets in rows, in no order."""
    target, source = table.nonzero(as_tuple=True)
    order = torch.randperm(source.numel(), generator=torch.Generator().manual_seed(0))
    return torch.stack([source, target])[:, order], table[target, source][order]


def golden_conv(bias: list[list[float]] | None = None, **kwargs: Any) -> BehaviorGraphConv:
    conv = BehaviorGraphConv(2, 2, num_behaviors=4, **kwargs).double()
    with torch.no_grad():
        # Theta, whose rows are input channels; a Linear holds its transpose.
        conv.lin.weight.copy_(torch.tensor([[1.0, 0.5], [-1.0, 1.0]]).t())
        if bias is not None:
            conv.edge_bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return conv


def golden_edges() -> tuple[Tensor, Tensor]:
    return edges(torch.tensor(GOLDEN_P, dtype=torch.float64))


def inputs(
    num_behaviors: int = 5, batch: tuple[int, ...] = (7,), dtype: torch.dtype = torch.float64
) -> tuple[BehaviorGraphConv, Tensor, Tensor, Tensor]:
    r"""A trained layer, with features, and edges of a random graph."""
    torch.manual_seed(0)
    conv = BehaviorGraphConv(3, 4, num_behaviors).to(dtype)
    with torch.no_grad():
        conv.edge_bias.normal_()
    count = torch.randint(0, 4, (num_behaviors, num_behaviors)).to(dtype).triu(1)
    count = count + count.t()
    return (
        conv,
        torch.randn(*batch, num_behaviors, 3, dtype=dtype),
        *edges(count / count.sum(dim=1, keepdim=True).clamp(min=1)),
    )


def by_the_formula(
    conv: BehaviorGraphConv, x: Tensor, edge_index: Tensor, edge_weight: Tensor
) -> Tensor:
    r"""Eq. 15, sample by sample, with matrices of diagonals."""
    num_behaviors = conv.num_behaviors
    table = conv.edge_bias.detach().clone()
    for (source, target), weight in zip(edge_index.t().tolist(), edge_weight.tolist()):
        table[target, source] += weight
    if conv.form == 'paper':
        table = torch.relu((table + table.t()) / 2)
    table = table + torch.eye(num_behaviors)
    root = torch.diag(table.sum(dim=1) ** -0.5)
    samples = [root @ table @ root @ sample @ conv.lin.weight.t() for sample in x]
    return torch.stack(samples).detach()


def gradients(
    conv: BehaviorGraphConv, run: Callable[..., Tensor], *args: Tensor
) -> tuple[Tensor, ...]:
    r"""The output, and gradients towards all that has one."""
    out = run(*args)
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    wrt = [arg for arg in args if arg.requires_grad]
    return out, *torch.autograd.grad(out, [*wrt, *conv.parameters()], cotangent)


@pytest.mark.parametrize(
    'kwargs, bias, expected, degrees',
    [
        ({}, None, GOLDEN_SYMMETRIC, [1.875, 2.083333333333, 2.416666666667, 1.625]),
        ({}, GOLDEN_BIAS, GOLDEN_WITH_BIAS, [2.125, 1.983333333333, 1.691666666667, 1.25]),
        ({'form': 'literal'}, None, GOLDEN_LITERAL, [2.0, 2.0, 2.0, 2.0]),
    ],
    ids=['symmetric', 'bias', 'literal'],
)
def test_golden_adjacency(
    kwargs: dict[str, Any],
    bias: list[list[float]] | None,
    expected: list[list[float]],
    degrees: list[float],
) -> None:
    adjacency = golden_conv(bias, **kwargs).normalized_adjacency(*golden_edges())
    torch.testing.assert_close(
        adjacency, torch.tensor(expected, dtype=torch.float64), atol=1e-11, rtol=0
    )
    # The diagonal holds the loops alone, 1 / degree.
    torch.testing.assert_close((1 / adjacency.diagonal()).tolist(), degrees, atol=1e-11, rtol=0)


def test_golden_eigenvalues() -> None:
    adjacency = golden_conv().normalized_adjacency(*golden_edges())
    torch.testing.assert_close(
        torch.linalg.eigvalsh(adjacency).tolist(),
        [0.091406114543, 0.236668109122, 0.714436828501, 1.0],
        atol=1e-11,
        rtol=0,
    )


def test_literal_starts_at_the_mean_of_the_probabilities_and_the_loops() -> None:
    # Rows of P sum to 1, so that all degrees are 2.
    adjacency = golden_conv(form='literal').normalized_adjacency(*golden_edges())
    expected = (torch.tensor(GOLDEN_P, dtype=torch.float64) + torch.eye(4)) / 2
    torch.testing.assert_close(adjacency, expected, atol=1e-15, rtol=0)


def test_literal_refuses_a_degree_that_is_not_positive() -> None:
    conv = golden_conv(GOLDEN_BIAS, form='literal')
    x = torch.ones(4, 2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"form='literal'\) .* positive and finite.*such as -0.5 in row 3"
    ):
        conv(x, *golden_edges())
    for bias, degree in ((-2.0, '0.0'), (torch.nan, 'nan'), (torch.inf, 'inf')):
        with torch.no_grad():
            conv.edge_bias.zero_()[1, 0] = bias
        with pytest.raises(ValueError, match=f'such as {degree} in row 1'):
            conv(x, *golden_edges())


def test_golden_layer_and_pools() -> None:
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    out = leaky_relu(golden_conv()(x, *golden_edges()), 0.01)
    expected = [
        [0.486929743023, 0.534429693189],
        [-0.003525425759, 1.155261448338],
        [-0.009470903849, 0.846661490916],
        [-0.012384647732, 0.315387850148],
    ]
    torch.testing.assert_close(out.tolist(), expected, atol=1e-11, rtol=0)
    for pooled, values in (
        (out.mean(dim=0), [0.115387191421, 0.712935120648]),
        (out.sum(dim=0), [0.461548765682, 2.851740482591]),
    ):
        torch.testing.assert_close(pooled.tolist(), values, atol=1e-11, rtol=0)


@pytest.mark.parametrize('num_behaviors', [1, 2, 5, 10])
@pytest.mark.parametrize('form', ['paper', 'literal'])
def test_follows_the_formula(num_behaviors: int, form: str) -> None:
    conv, x, *graph = inputs(num_behaviors)
    conv.form = form
    if form == 'literal':
        conv.edge_bias.data.abs_()
    expected = by_the_formula(conv, x, *graph)
    torch.testing.assert_close(conv(x, *graph), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize('batch', [(), (1,), (6,), (2, 3)])
@pytest.mark.parametrize('form', ['paper', 'literal'])
def test_product_and_messages_agree_in_value_and_gradient(
    batch: tuple[int, ...], form: str
) -> None:
    conv, x, edge_index, edge_weight = inputs(batch=batch)
    conv.form = form
    if form == 'literal':
        conv.edge_bias.data.abs_()
    x.requires_grad_()
    edge_weight.requires_grad_()
    expected = gradients(conv, conv, x, edge_index, edge_weight)
    assert all(bool((value != 0).any()) for value in expected)
    conv.fuse = False
    found = gradients(conv, conv, x, edge_index, edge_weight)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # And in single precision.
    conv, x, edge_index, edge_weight = inputs(batch=batch, dtype=torch.float32)
    expected = gradients(conv, conv, x, edge_index, edge_weight)
    conv.fuse = False
    found = gradients(conv, conv, x, edge_index, edge_weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_samples_do_not_depend_on_each_other() -> None:
    conv, x, *graph = inputs(batch=(2, 3))
    out = conv(x, *graph)
    assert out.shape == (2, 3, 5, 4)
    for row, column in ((0, 0), (1, 2)):
        torch.testing.assert_close(conv(x[row, column], *graph), out[row, column])
    # Neither does a view that is not contiguous.
    torch.testing.assert_close(conv(x.transpose(0, 1), *graph), out.transpose(0, 1))


@pytest.mark.parametrize('fuse', [True, False])
def test_an_empty_batch(fuse: bool) -> None:
    conv, x, *graph = inputs(batch=(0,))
    conv.fuse = fuse
    out = conv(x, *graph)
    assert out.shape == (0, 5, 4)
    out.sum().backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in conv.parameters())


def test_explanations_weigh_the_pairs() -> None:
    conv, x, *graph = inputs()
    expected = conv(x, *graph)
    node = torch.arange(5)
    target, source = torch.cartesian_prod(node, node).t()
    mask = torch.ones(25, dtype=torch.float64)
    set_masks(conv, mask, torch.stack([source, target]), apply_sigmoid=False)
    torch.testing.assert_close(conv(x, *graph), expected)
    mask[(target == 2) & (source == 0)] = 0
    kept = conv.normalized_adjacency(*graph)
    kept[2, 0] = 0
    torch.testing.assert_close(conv(x, *graph), kept @ conv.lin(x))
    clear_masks(conv)
    torch.testing.assert_close(conv(x, *graph), expected)


def test_edges_of_one_pair_add_up() -> None:
    conv, x, edge_index, edge_weight = inputs()
    expected = conv(x, edge_index, edge_weight)
    twice = edge_index.repeat(1, 2), torch.cat([0.25 * edge_weight, 0.75 * edge_weight])
    torch.testing.assert_close(conv(x, *twice), expected)


def test_without_an_edge_and_a_bias_only_the_loops_are_left() -> None:
    conv, x, *_ = inputs()
    conv.edge_bias.data.zero_()
    none = torch.empty(2, 0, dtype=torch.long), torch.empty(0)
    assert torch.equal(conv.normalized_adjacency(*none), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(conv(x, *none), conv.lin(x))


@pytest.mark.parametrize('form', ['paper', 'literal'])
def test_order_of_behaviors_does_not_matter(form: str) -> None:
    conv, x, edge_index, edge_weight = inputs()
    conv.form = form
    if form == 'literal':
        conv.edge_bias.data.abs_()
    expected = conv(x, edge_index, edge_weight)
    order = torch.tensor([3, 0, 4, 1, 2])
    conv.edge_bias.data = conv.edge_bias.data[order][:, order]
    out = conv(x[:, order], order.argsort()[edge_index], edge_weight)
    torch.testing.assert_close(out, expected[:, order])


def test_symmetric_matrix_has_eigenvalues_above_minus_one_up_to_one() -> None:
    for seed in range(20):
        conv, _, *graph = inputs(seed % 9 + 1)
        conv.edge_bias.data = 3 * torch.randn(
            conv.edge_bias.shape, generator=torch.Generator().manual_seed(seed)
        ).to(conv.edge_bias)
        adjacency = conv.normalized_adjacency(*graph).detach()
        torch.testing.assert_close(adjacency, adjacency.t(), atol=1e-15, rtol=0)
        eigenvalues = torch.linalg.eigvalsh(adjacency)
        assert eigenvalues.min() > -1
        assert eigenvalues.max().item() == pytest.approx(1, abs=1e-12)


LARGEST = torch.finfo(torch.float32).max
finite = st.one_of(
    st.floats(-3, 3, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1e38, -1e38, LARGEST, -LARGEST]),
)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 6).flatmap(lambda n: st.lists(finite, min_size=n * n, max_size=n * n)))
@example([LARGEST] * 36)
@example([-LARGEST] * 36)
@example([LARGEST, -LARGEST, LARGEST, -LARGEST])
def test_no_bias_breaks_the_normalization(values: list[float]) -> None:
    num_behaviors = round(len(values) ** 0.5)
    conv = BehaviorGraphConv(2, 2, num_behaviors)
    bias = torch.tensor(values).view(num_behaviors, num_behaviors)
    with torch.no_grad():
        conv.edge_bias.copy_(bias)
    # Each behavior followed by the next.
    node = torch.arange(num_behaviors)
    graph = torch.stack([node.roll(-1), node]), torch.ones(num_behaviors)
    adjacency = conv.normalized_adjacency(*graph)
    assert bool(adjacency.isfinite().all()) and bool((adjacency >= 0).all())
    # In double, where the largest single numbers are far from the end.
    table = bias.double()
    table[node, node.roll(-1)] += 1
    table = torch.relu((table + table.t()) / 2) + torch.eye(num_behaviors)
    degree = table.sum(dim=1)
    assert bool((degree >= 1).all())
    expected = table / (degree.unsqueeze(1) * degree).sqrt()
    torch.testing.assert_close(adjacency.double(), expected, atol=1e-6, rtol=0)
    # And the degree that the layer divided by.
    found = (table.diagonal() / adjacency.diagonal()).detach()
    torch.testing.assert_close(found, degree, atol=0, rtol=1e-5)
    assert bool((found >= 1 - 1e-5).all())

    conv(torch.randn(3, num_behaviors, 2), *graph).square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in conv.parameters())


def test_the_bias_of_every_pair_learns_from_the_start() -> None:
    # Behavior 3 was never seen with 0 or 1, and no behavior is its own neighbor.
    conv = golden_conv()
    x = torch.randn(8, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv(x, *golden_edges()).square().sum().backward()
    assert bool((conv.edge_bias.grad != 0).all())
    torch.testing.assert_close(conv.edge_bias.grad, conv.edge_bias.grad.t())


def test_layers_can_share_a_bias() -> None:
    conv, x, *graph = inputs()
    second = BehaviorGraphConv(4, 2, num_behaviors=5).double()
    second.edge_bias = conv.edge_bias
    model = torch.nn.ModuleList([conv, second])
    assert len(list(model.parameters())) == 3
    adjacency = conv.normalized_adjacency(*graph)
    torch.testing.assert_close(second.normalized_adjacency(*graph), adjacency, atol=0, rtol=0)
    out = model[1](model[0](x, *graph), *graph)
    torch.testing.assert_close(out, adjacency @ adjacency @ second.lin(conv.lin(x)))
    twin = copy.deepcopy(model)
    assert twin[0].edge_bias is twin[1].edge_bias


@pytest.mark.parametrize('form', ['paper', 'literal'])
def test_gradient(form: str) -> None:
    conv, x, edge_index, edge_weight = inputs(4, batch=(2,))
    conv.form = form
    bias, weight = conv.edge_bias.detach().clone(), conv.lin.weight.detach().clone()
    if form == 'literal':
        bias.abs_()

    def run(x: Tensor, edge_weight: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        parameters = {'edge_bias': bias, 'lin.weight': weight}
        return functional_call(conv, parameters, (x, edge_index, edge_weight))

    tensors = [tensor.requires_grad_() for tensor in (x, edge_weight, bias, weight)]
    assert torch.autograd.gradcheck(run, tensors)


def test_compiled_training_is_one_graph_with_the_same_gradients() -> None:
    for fuse, form in ((True, 'paper'), (True, 'literal'), (False, 'paper')):
        conv, x, *graph = inputs(dtype=torch.float32)
        conv.fuse, conv.form = fuse, form
        if form == 'literal':
            conv.edge_bias.data.abs_()
        x.requires_grad_()
        expected = gradients(conv, conv, x, *graph)
        compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
        found = gradients(conv, compiled, x, *graph)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_values_are_the_same() -> None:
    conv, x, *graph = inputs(dtype=torch.float32)
    with torch.no_grad():
        out = torch.compile(conv, fullgraph=True)(x, *graph)
        torch.testing.assert_close(out, conv(x, *graph), atol=1e-6, rtol=1e-5)


def test_export_takes_batches_and_graphs_of_other_sizes() -> None:
    conv, x, *graph = inputs(dtype=torch.float32)
    shapes = {0: torch.export.Dim('batch')}, {1: (size := torch.export.Dim('edges'))}, {0: size}
    program = torch.export.export(conv, (x, *graph), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for batch in (1, 2, 300):
        x = torch.randn(batch, 5, 3)
        for kept in (graph[1].numel(), 3):
            args = x, graph[0][:, :kept], graph[1][:kept]
            torch.testing.assert_close(exported(*args), conv(*args), atol=1e-6, rtol=1e-5)


def test_bfloat16_autocast_is_close() -> None:
    conv, x, *graph = inputs(dtype=torch.float32)
    expected = conv(x, *graph)
    for fuse in (True, False):
        conv.fuse = fuse
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = conv(x, *graph)
        torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=0)
        out.float().square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in conv.parameters())


@needs_cuda
def test_cuda_agrees_with_cpu() -> None:
    conv, x, *graph = inputs(dtype=torch.float32)
    expected = conv(x, *graph)
    args = [arg.cuda() for arg in (x, *graph)]
    for fuse in (True, False):
        conv.fuse = fuse
        out = conv.cuda()(*args)
        torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_copies_agree() -> None:
    conv, x, *graph = inputs()
    other = BehaviorGraphConv(3, 4, num_behaviors=5).double()
    other.load_state_dict(conv.state_dict())
    for twin in (other, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin(x, *graph), conv(x, *graph))


def test_reset_parameters() -> None:
    conv = BehaviorGraphConv(3, 4, num_behaviors=5)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.fill_(7)
    conv.reset_parameters()
    assert bool((conv.edge_bias == 0).all())
    bound = (6 / (3 + 4)) ** 0.5
    assert bool((conv.lin.weight.abs() <= bound).all()) and conv.lin.weight.unique().numel() == 12
    assert {name for name, _ in conv.named_parameters()} == {'lin.weight', 'edge_bias'}


@pytest.mark.parametrize('name', ['in_channels', 'out_channels', 'num_behaviors'])
@pytest.mark.parametrize('value', [0, -1, 2.0, True])
def test_wrong_arguments(name: str, value: Any) -> None:
    kwargs = {'in_channels': 3, 'out_channels': 4, 'num_behaviors': 5, name: value}
    message = f"'{name}' must be (an integer|at least 1), but got {value}"
    with pytest.raises((TypeError, ValueError), match=message):
        BehaviorGraphConv(**kwargs)


def test_wrong_inputs() -> None:
    conv, x, edge_index, edge_weight = inputs()
    size = edge_weight.numel()
    far, negative = edge_index.clone(), edge_index.clone()
    far[1, 2], negative[0, 0] = 5, -1
    for args, error, message in (
        (
            (x[:, :4], edge_index, edge_weight),
            ValueError,
            r'\[\*, 5, 3\], but got shape \[7, 4, 3\]',
        ),
        (
            (x[..., :2], edge_index, edge_weight),
            ValueError,
            r'\[\*, 5, 3\], but got shape \[7, 5, 2\]',
        ),
        ((x[0, 0], edge_index, edge_weight), ValueError, r'\[\*, 5, 3\], but got shape \[3\]'),
        ((x, edge_index[0], edge_weight), ValueError, r'\[2, E\], but got'),
        ((x, torch.eye(5), edge_weight), ValueError, r'\[2, E\], but got shape \[5, 5\]'),
        ((x, edge_index.int(), edge_weight), TypeError, 'int64, but got torch.int32'),
        ((x, edge_index, edge_weight[1:]), ValueError, rf'\[{size}\].*got shape \[{size - 1}\]'),
        ((x, edge_index, edge_weight.view(-1, 1)), ValueError, rf'got shape \[{size}, 1\]'),
        (
            (x, far, edge_weight),
            IndexError,
            "behaviors of 'edge_index' from 0 to 5, .* from 0 to 4",
        ),
        (
            (x, negative, edge_weight),
            IndexError,
            "behaviors of 'edge_index' from -1 to 4, .* from 0 to 4",
        ),
    ):
        with pytest.raises(error, match=message):
            conv(*args)


def test_repr() -> None:
    assert repr(BehaviorGraphConv(3, 4, num_behaviors=5, form='literal')) == (
        "BehaviorGraphConv(3, 4, num_behaviors=5, form='literal')"
    )
