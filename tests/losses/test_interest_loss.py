import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, cross_entropy

from mag.losses import interest_loss

# The sums of a positive and of two negatives in one modality, and what they are as interests.
SUMS = [0.5, -0.25, -0.5]
INTERESTS = [0.622459331202, 0.437823499114, 0.377540668798]


def loss_of(scores: list[float], include_positive: bool = False) -> Tensor:
    score = torch.tensor(scores, dtype=torch.float64).view(1, -1, 1)
    has = torch.ones_like(score, dtype=torch.bool)
    return interest_loss(score[:, 0], score[:, 1:], has[:, 0], has[:, 1:], include_positive)


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Four pairs with three negatives each, in two modalities."""
    torch.manual_seed(seed)
    positive, negative = torch.rand(4, 2).double(), torch.rand(4, 3, 2).double()
    return positive, negative, torch.ones(4, 2).bool(), torch.ones(4, 3, 2).bool()


def test_golden_losses() -> None:
    assert loss_of(INTERESTS).item() == pytest.approx(0.47882411700302374, abs=1e-11)
    assert loss_of(SUMS).item() == pytest.approx(-0.1740605801211565, abs=1e-12)
    # The interests as they enter the loss of S3-Rec's code.
    target = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    scores = torch.tensor(SUMS, dtype=torch.float64).sigmoid()
    entropy = binary_cross_entropy(scores, target, reduction='sum')
    assert entropy.item() == pytest.approx(1.524093388239057, abs=1e-12)


def test_with_the_positive_it_is_a_cross_entropy() -> None:
    for scores in (INTERESTS, SUMS):
        expected = cross_entropy(torch.tensor([scores]).double(), torch.tensor([0]))
        loss = loss_of(scores, include_positive=True)
        torch.testing.assert_close(loss, expected, atol=1e-7, rtol=0)
        assert loss > 0


def test_it_falls_with_the_score_of_the_positive() -> None:
    losses = [loss_of([score, -0.25, -0.5]).item() for score in (-1.0, 0.0, 0.5, 2.0)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize('include_positive', [False, True])
def test_what_an_item_lacks_takes_no_part(include_positive: bool) -> None:
    positive, negative, has_positive, has_negative = rows()
    has_positive[0, 0] = False
    has_negative[2, 1, 0] = False
    has_negative[3, 2, 1] = has_negative[3, 0, 1] = False
    parts = []
    for row, modality in itertools.product(range(4), range(2)):
        if (row, modality) == (0, 0):
            continue
        against = negative[row, has_negative[row, :, modality], modality]
        assert len(against) == {(2, 0): 2, (3, 1): 1}.get((row, modality), 3)
        if include_positive:
            against = torch.cat([positive[row, modality].view(1), against])
        parts.append(against.logsumexp(0) - positive[row, modality])
    found = interest_loss(positive, negative, has_positive, has_negative, include_positive)
    torch.testing.assert_close(found, torch.stack(parts).mean())


def test_pairs_that_lack_everything_have_a_loss_and_gradients_of_zero() -> None:
    for include_positive, nobody in itertools.product((False, True), repeat=2):
        positive, negative, has_positive, has_negative = rows()
        has_negative[:] = False
        has_positive[:] = not nobody
        scores = positive.requires_grad_(), negative.requires_grad_()
        loss = interest_loss(*scores, has_positive, has_negative, include_positive)
        assert loss.item() == 0
        loss.backward()
        assert all(bool((score.grad == 0).all()) for score in scores)


def test_gradient() -> None:
    positive, negative, has_positive, has_negative = rows()
    has_positive[0, 0] = has_negative[1, :, 1] = has_negative[2, 0, 0] = False
    scores = positive.requires_grad_(), negative.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *scores: interest_loss(*scores, has_positive, has_negative), scores
    )


def test_compiled_it_is_one_graph() -> None:
    arguments = rows()
    arguments[2][0, 0] = False
    compiled = torch.compile(interest_loss, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*arguments), interest_loss(*arguments))
