import io
import itertools

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from mag.nn import InterestScore

GOLDEN_INTEREST = [0.622459331202, 0.437823499114, 0.377540668798]
# Three items with one modality, of which the user clicked the first.
GOLDEN_X = torch.tensor([[[1.0, -0.5], [-1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)


def golden_score() -> InterestScore:
    score = InterestScore(1, 3, [2], embedding_dim=2).double()
    with torch.no_grad():
        score.user_embedding.weight.copy_(torch.tensor([[1.0, -0.5]]))
        score.item_deviation.weight.copy_(torch.tensor([[0.5, 1.0]]).expand(3, 2) - 1)
        score.lin.weight.copy_(torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
        score.lin_modality[0].weight.copy_(torch.eye(2))
        score.lin_modality[0].bias.zero_()
    return score


def inputs(size: int = 4) -> tuple[InterestScore, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    score = InterestScore(4, 7, [3, 5], embedding_dim=6)
    torch.nn.init.normal_(score.user_embedding.weight)
    torch.nn.init.normal_(score.item_deviation.weight)
    user, item = torch.randint(4, (size,)), torch.randint(7, (size,))
    return score, user, item, [torch.randn(size, 3, width) for width in (3, 5)]


def test_golden_interest() -> None:
    score = golden_score()
    zero = torch.tensor([0])
    scores = score(zero, zero, [GOLDEN_X])
    assert scores.flatten().tolist() == pytest.approx([0.5, -0.25, -0.5], abs=1e-12)
    assert scores.sigmoid().flatten().tolist() == pytest.approx(GOLDEN_INTEREST, abs=1e-11)
    # The other reading of eq. 10.
    shared = score.lin(GOLDEN_X[0, 0]) @ (1 + score.item_deviation.weight[0])
    literal = (shared * score.user_embedding.weight[0]).sigmoid().tolist()
    assert literal == pytest.approx([0.622459331202, 0.437823499114], abs=1e-11)


def test_scores_by_hand() -> None:
    score, user, item, x = inputs()
    scores = score(user, item, x)
    assert scores.shape == (4, 3, 2)
    for row, modality in itertools.product(range(4), range(2)):
        deviation, embedding = score.item_deviation.weight, score.user_embedding.weight
        weight = (1 + deviation[item[row]]) * embedding[user[row]]
        attribute = score.lin(score.lin_modality[modality](x[modality][row])) @ weight
        torch.testing.assert_close(scores[row, :, modality], attribute)


def test_compiled_it_is_one_graph_with_the_same_gradients() -> None:
    score, *row = inputs()
    compiled = torch.compile(score, fullgraph=True, backend='aot_eager')
    outs = score(*row), compiled(*row)
    parameters = list(score.parameters())
    expected, found = (torch.autograd.grad(out.square().sum(), parameters) for out in outs)
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(found, expected)


def test_export_takes_other_batches() -> None:
    score, *row = inputs()
    size = torch.export.Dim('batch')
    shapes = ({0: size}, {0: size}, [{0: size}, {0: size}])
    program = torch.export.export(score, tuple(row), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for num in (1, 3, 50):
        args = inputs(num)[1:]
        torch.testing.assert_close(exported(*args), score(*args))


def test_gradient() -> None:
    score, user, item, x = inputs()
    score.double()
    names = [name for name, _ in score.named_parameters()]

    def run(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values))
        return functional_call(score, parameters, (user, item, [part.double() for part in x]))

    values = [value.detach().clone().requires_grad_() for value in score.parameters()]
    assert torch.autograd.gradcheck(run, values)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="'num_users' must be at least 1, but got 0"):
        InterestScore(0, 3, [2])
    with pytest.raises(TypeError, match="'num_items' must be an integer, but got 1.5"):
        InterestScore(2, 1.5, [2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'in_channels\[1\]' must be at least 1, but got 0"):
        InterestScore(2, 3, [2, 0])
    with pytest.raises(TypeError, match="'in_channels' must be a sequence of sizes"):
        InterestScore(2, 3, 2)  # type: ignore[arg-type]
    score, user, item, x = inputs()
    with pytest.raises(ValueError, match='the features of 2 modalities, but got 1'):
        score(user, item, x[:1])
    with pytest.raises(ValueError, match=r"'x\[1\]' of shape \[4, N, 5\], but got shape \[4, 3, 3"):
        score(user, item, [x[0], x[0]])
    with pytest.raises(TypeError, match=r"'x\[0\]' of floats, but got torch.int64"):
        score(user, item, [x[0].long(), x[1]])


def test_repr() -> None:
    assert repr(inputs()[0]) == 'InterestScore(4, 7, [3, 5], embedding_dim=6)'
