import pytest
import torch

from mag.losses import masked_token_loss


def test_it_is_the_mean_over_masked_tokens() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    loss = masked_token_loss(logits, torch.tensor([0, 2]))
    expected = -(logits[0].log_softmax(0)[0] + logits[1].log_softmax(0)[2]) / 2
    torch.testing.assert_close(loss, expected)
    # Pieces are stored as int32.
    assert masked_token_loss(logits.bfloat16(), torch.tensor([0, 2]).int()) == loss


def test_without_masked_tokens_it_is_0() -> None:
    logits = torch.empty(0, 3, requires_grad=True)
    loss = masked_token_loss(logits, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"'target' of shape \[2\], but got shape \[3\]"):
        masked_token_loss(torch.ones(2, 5), torch.ones(3).long())
    with pytest.raises(TypeError, match="'logits' of floats"):
        masked_token_loss(torch.ones(2, 5).long(), torch.ones(2).long())
