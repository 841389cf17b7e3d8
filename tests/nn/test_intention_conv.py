import copy
import math

import pytest
import torch
from torch import Tensor
from torch_geometric.explain import Explainer, GNNExplainer

from mag.nn import IntentionConv


def random_input(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Five centers with 4, 0, 1, 3 and 2 children of at most 4."""
    generator = torch.Generator().manual_seed(seed)
    child, center, intention = (
        torch.randn(*shape, generator=generator, dtype=torch.double)
        for shape in ((5, 4, 6), (5, 6), (5, 3))
    )
    mask = torch.arange(4) < torch.tensor([4, 0, 1, 3, 2]).view(-1, 1)
    return child, center, intention, mask


def as_edges(child: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    source = torch.arange(mask.numel()).view(mask.shape)[mask]
    target = torch.arange(len(mask)).view(-1, 1).expand(mask.shape)[mask]
    return child.flatten(0, 1), torch.stack([source, target])


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-9).sqrt()
    return x * norm.weight + norm.bias


def one_center(conv: IntentionConv, child: Tensor, center: Tensor, intention: Tensor) -> Tensor:
    r"""Eq. 8 to 11 for one center, in loops."""
    query = conv.lin_intention.weight @ torch.cat([intention, center]) + conv.lin_intention.bias
    query = layer_norm(conv.lin_query.weight @ query + conv.lin_query.bias, conv.norm_query)
    values = [center, *child]
    scores = []
    for place, value in enumerate(values):
        position = conv.position[min(place, conv.num_positions - 1)]
        key = conv.lin_key.weight @ (value + position) + conv.lin_key.bias
        scores.append(query @ layer_norm(key, conv.norm_key) / math.sqrt(conv.channels))
    total = sum(math.exp(score.item()) for score in scores)
    out = torch.zeros_like(center)
    for score, value in zip(scores, values, strict=True):
        if conv.form == 'literal':
            value = conv.lin_value.weight @ value
        out = out + math.exp(score.item()) / total * value
    hidden = conv.lin_out.weight @ out + conv.lin_out.bias
    if conv.form == 'literal':
        hidden = conv.lin_last.weight @ hidden.clamp(min=0) + conv.lin_last.bias
    return layer_norm(out + hidden, conv.norm_out)


@pytest.mark.parametrize('form', ['paper', 'literal'])
@pytest.mark.parametrize('num_positions', [1, 3, 26])
def test_both_paths_follow_the_equations(form: str, num_positions: int) -> None:
    torch.manual_seed(1)
    conv = IntentionConv(6, 3, num_positions, form).double()
    for norm in (conv.norm_query, conv.norm_key, conv.norm_out):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    child, center, intention, mask = random_input()
    dense = conv.dense(child, center, intention, mask)
    x, edge_index = as_edges(child, mask)
    sparse = conv((x, center), edge_index, intention)
    torch.testing.assert_close(dense, sparse, rtol=0, atol=1e-12)
    for row in range(5):
        expected = one_center(conv, child[row][mask[row]], center[row], intention[row])
        torch.testing.assert_close(sparse[row], expected, rtol=0, atol=1e-9)


def test_golden_attention() -> None:
    r"""Block J: the attention alone, of a query over a center, two children and a padding."""
    conv = IntentionConv(2, 1)
    conv.norm_query = conv.norm_key = conv.norm_out = torch.nn.Identity()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
        conv.lin_key.weight.copy_(torch.eye(2))
        conv.lin_query.bias.copy_(torch.tensor([1.0, 0.0]))
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [9.0, 9.0]])
    center, child, intention = keys[:1], keys[1:].unsqueeze(0), torch.zeros(1, 1)
    mask = torch.tensor([[True, True, False]])
    expected = torch.tensor([[1.435946100172, 1.291979935474]])
    torch.testing.assert_close(conv.dense(child, center, intention, mask), expected)
    edge_index = torch.tensor([[0, 1], [0, 0]])
    out, weight = conv((child[0], center), edge_index, intention, return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    weights = torch.tensor([0.283995409741, 0.140029245043, 0.575975345215])
    torch.testing.assert_close(weight, weights)


def test_gradients_of_both_paths_agree() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    twin = copy.deepcopy(conv)
    child, center, intention, mask = random_input()
    conv.dense(child, center, intention, mask).square().sum().backward()
    x, edge_index = as_edges(child, mask)
    twin((x, center), edge_index, intention).square().sum().backward()
    for one, other in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_order_counts_by_positions_alone() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    child, center, intention, _ = random_input()
    flipped = child.flip(1)
    assert not torch.allclose(
        conv.dense(child, center, intention), conv.dense(flipped, center, intention)
    )
    with torch.no_grad():
        conv.position.zero_()
    torch.testing.assert_close(
        conv.dense(child, center, intention), conv.dense(flipped, center, intention)
    )


def test_edges_may_be_given_in_any_order_of_centers() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    child, center, intention, mask = random_input()
    x, edge_index = as_edges(child, mask)
    expected = conv((x, center), edge_index, intention)
    # Centers interleaved, the children of each still in their order.
    order = torch.tensor([4, 0, 5, 1, 8, 2, 6, 3, 9, 7])
    torch.testing.assert_close(conv((x, center), edge_index[:, order], intention), expected)


def test_intention_turns_the_attention() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    child, center, intention, mask = random_input()
    out = conv.dense(child, center, intention, mask)
    other = conv.dense(child, center, intention + 1, mask)
    changed = (out - other).abs().amax(1) > 1e-6
    # A center without children has nothing to choose from.
    assert changed.tolist() == [True, False, True, True, True]


def test_without_centers_or_edges() -> None:
    conv = IntentionConv(6, 3)
    none = torch.empty(2, 0, dtype=torch.long)
    assert conv((torch.empty(0, 6), torch.empty(0, 6)), none, torch.empty(0, 3)).shape == (0, 6)
    center, intention = torch.randn(2, 6), torch.randn(2, 3)
    torch.testing.assert_close(
        conv((torch.empty(0, 6), center), none, intention),
        conv.dense(torch.empty(2, 0, 6), center, intention),
    )


def test_compiled_is_one_graph_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    twin = copy.deepcopy(conv)
    child, center, intention, mask = random_input()
    compiled = torch.compile(twin.dense, fullgraph=True, backend='aot_eager')
    for dense in (conv.dense, compiled):
        dense(child, center, intention, mask).square().sum().backward()
    for one, other in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize('form', ['paper', 'literal'])
def test_compiled_messages_have_the_same_values_and_gradients(form: str) -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3, form=form).double()
    twin = copy.deepcopy(conv)
    child, center, intention, mask = random_input()
    x, edge_index = as_edges(child, mask)
    compiled = torch.compile(twin, fullgraph=True, backend='aot_eager')
    out = [layer((x, center), edge_index, intention) for layer in (conv, compiled)]
    torch.testing.assert_close(out[1], out[0], rtol=0, atol=1e-12)
    for value in out:
        value.square().sum().backward()
    for one, other in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_exported_messages_are_of_any_graph() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3, num_positions=3).double()
    child, center, intention, mask = random_input()
    x, edge_index = as_edges(child, mask)
    sources, centers, edges = map(torch.export.Dim, ('sources', 'centers', 'edges'))
    program = torch.export.export(
        conv,
        ((x, center), edge_index, intention),
        dynamic_shapes=(({0: sources}, {0: centers}), {1: edges}, {0: centers}),
    )
    scorer = program.module(check_guards=False)
    generator = torch.Generator().manual_seed(1)
    for num_sources, num_centers, num_edges in ((20, 5, 10), (3, 1, 2), (7, 9, 30), (4, 3, 0)):
        x, center, intention = (
            torch.randn(*shape, generator=generator, dtype=torch.double)
            for shape in ((num_sources, 6), (num_centers, 6), (num_centers, 3))
        )
        ends = [
            torch.randint(num, (num_edges,), generator=generator)
            for num in (num_sources, num_centers)
        ]
        inputs = (x, center), torch.stack(ends), intention
        torch.testing.assert_close(scorer(*inputs), conv(*inputs), rtol=0, atol=1e-12)


def test_exported_dense_form_is_of_any_size() -> None:
    class Dense(torch.nn.Module):
        def __init__(self, conv: IntentionConv) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.conv.dense(*inputs)

    torch.manual_seed(0)
    conv = IntentionConv(6, 3, num_positions=3).double()
    centers, children = map(torch.export.Dim, ('centers', 'children'))
    table = {0: centers, 1: children}
    program = torch.export.export(
        Dense(conv),
        random_input(),
        dynamic_shapes=((table, {0: centers}, {0: centers}, table),),
    )
    scorer = program.module(check_guards=False)
    generator = torch.Generator().manual_seed(1)
    for size, width in ((5, 4), (1, 3), (9, 7), (3, 1)):
        child, center, intention = (
            torch.randn(*shape, generator=generator, dtype=torch.double)
            for shape in ((size, width, 6), (size, 6), (size, 3))
        )
        count = torch.randint(width + 1, (size, 1), generator=generator)
        inputs = child, center, intention, torch.arange(width) < count
        torch.testing.assert_close(scorer(*inputs), conv.dense(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('child', 'center', 'intention', 'edge_index', 'message'),
    [
        ((4, 5), (2, 6), (2, 3), (2, 1), r"'child' of shape \[M, 6\], but got shape \[4, 5\]"),
        ((4, 6), (2, 5), (2, 3), (2, 1), r"'center' of shape \[N, 6\], but got shape \[2, 5\]"),
        ((4, 6), (2, 6), (2, 4), (2, 1), r"'intention' of shape \[2, 3\], but got shape \[2, 4\]"),
        ((4, 6), (2, 6), (1, 3), (2, 1), r"'intention' of shape \[2, 3\], but got shape \[1, 3\]"),
        ((4, 6), (2, 6), (2, 3), (3, 1), r"'edge_index' of shape \[2, E\], but got shape \[3"),
    ],
)
def test_bad_input(
    child: tuple, center: tuple, intention: tuple, edge_index: tuple, message: str
) -> None:
    conv = IntentionConv(6, 3)
    with pytest.raises(ValueError, match=message):
        conv(
            (torch.zeros(child), torch.zeros(center)),
            torch.zeros(edge_index, dtype=torch.long),
            torch.zeros(intention),
        )


def test_children_that_do_not_exist_and_matrices_raise() -> None:
    conv = IntentionConv(4, 2)
    x, center, intention = torch.randn(5, 4), torch.randn(2, 4), torch.randn(2, 2)
    for child in (-1, 5):
        edge_index = torch.tensor([[child, 1], [0, 0]])
        low, high = min(child, 1), max(child, 1)
        with pytest.raises(
            IndexError, match=f"children of 'edge_index' from {low} to {high}, .* from 0 to 4"
        ):
            conv((x, center), edge_index, intention)
    matrix = torch.eye(5).to_sparse()
    with pytest.raises(TypeError, match='list edges, whose order tells the newest child'):
        conv((x, center), matrix, intention)


def test_dense_children_of_other_shapes_raise() -> None:
    conv = IntentionConv(4, 2)
    child, center, intention = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 2)
    for other in (torch.randn(3, 3, 4), torch.randn(2, 4)):
        with pytest.raises(ValueError, match=r"'child' of shape \[2, T, 4\], but got"):
            conv.dense(other, center, intention)
    with pytest.raises(ValueError, match=r"'mask' of shape \[2, 3\], but got shape \[2, 2\]"):
        conv.dense(child, center, intention, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(
        ValueError,
        match='no child after a padding, but 2 of 6 are not, such as True in row 0, column 2',
    ):
        conv.dense(child, center, intention, torch.tensor([[True, False, True]] * 2))


def test_repr() -> None:
    assert repr(IntentionConv(88, 88)) == ("IntentionConv(88, 88, num_positions=26, form='paper')")


def test_attention_adds_up_at_every_center() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3).double()
    child, center, intention, mask = random_input()
    x, edge_index = as_edges(child, mask)
    out, attention = conv((x, center), edge_index, intention, return_attention_weights=True)
    torch.testing.assert_close(out, conv((x, center), edge_index, intention))
    owner = torch.cat([torch.arange(5), edge_index[1]])
    total = torch.zeros(5, dtype=torch.double).index_add(0, owner, attention)
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.double))
    assert attention[1] == 1


def test_one_tensor_of_children_that_are_the_centers() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(6, 3)
    x, intention = torch.randn(5, 6), torch.randn(5, 3)
    edge_index = torch.tensor([[1, 4, 0], [0, 0, 3]])
    assert torch.equal(conv(x, edge_index, intention), conv((x, x), edge_index, intention))


def test_first_weights_are_truncated_at_two_deviations() -> None:
    torch.manual_seed(0)
    conv = IntentionConv(88, 88)
    for weight in (conv.position, conv.lin_query.weight, conv.lin_key.weight):
        assert 0.09 < weight.abs().max() <= 0.1
        assert abs(weight.std() - 0.05 * 0.8796) < 0.003


def test_explained_edges_are_those_of_the_center() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = IntentionConv(6, 3)
            self.lin = torch.nn.Linear(6, 1)

        def forward(self, x: Tensor, edge_index: Tensor, center: Tensor, intention: Tensor):
            return self.lin(self.conv((x, center), edge_index, intention))

    torch.manual_seed(0)
    explainer = Explainer(
        Model(),
        GNNExplainer(epochs=5),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node'},
    )
    # The first edge has the same number at both ends, and is no loop.
    edge_index = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 1, 1, 2]])
    center, intention = torch.randn(3, 6), torch.randn(3, 3)
    for index, expected in ((0, [0, 1]), (1, [2, 3]), (2, [4])):
        explanation = explainer(
            torch.randn(5, 6), edge_index, center=center, intention=intention, index=index
        )
        assert explanation.edge_mask.nonzero().view(-1).tolist() == expected
