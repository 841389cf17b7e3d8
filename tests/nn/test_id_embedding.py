import pytest
import torch

from mag.nn import IdEmbedding
from mag.nn.id_embedding import hide


def test_the_unknown_has_the_first_row_and_says_nothing_at_first() -> None:
    embedding = IdEmbedding('user', 3, 2)
    assert embedding.weight[0].tolist() == [0, 0]
    assert bool((embedding.weight[1:] != 0).all())
    ids = torch.tensor([[2, -1], [0, 2]])
    expected = torch.stack([embedding.weight[[3, 0]], embedding.weight[[1, 3]]])
    assert torch.equal(embedding(ids), expected)
    assert bool((IdEmbedding('user', 3, 2, draw_unknown=True).weight != 0).all())


@pytest.mark.parametrize('number', [3, 300])
def test_known_ids_start_as_in_a_table_without_the_unknown(number: int) -> None:
    torch.manual_seed(0)
    plain, after = torch.nn.Embedding(number, 5), torch.rand(3)
    torch.manual_seed(0)
    embedding = IdEmbedding('user', number, 5)
    assert torch.equal(embedding.weight[1:], plain.weight)
    assert torch.equal(torch.rand(3), after)


def test_a_share_of_ids_is_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    embedding, ids = IdEmbedding('item', 9, 2, dropout=0.3), torch.arange(9).repeat(10_000)
    kept = embedding.drop(ids)
    assert bool(((kept == ids) | (kept == -1)).all())
    # Within five deviations.
    assert abs((kept < 0).float().mean() - 0.3) < 5 * (0.3 * 0.7 / ids.numel()) ** 0.5
    assert embedding.eval().drop(ids) is ids
    plain, before = IdEmbedding('item', 9, 2), torch.get_rng_state()
    assert plain.drop(ids) is ids
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_dropped_is_hidden_in_its_row_alone() -> None:
    own, kept = torch.tensor([4, 4, -1]), torch.tensor([-1, 4, -1])
    recent = torch.tensor([[-1, 4, 2], [-1, 4, 2], [-1, 4, 2]])
    expected = [[-1, -1, 2], [-1, 4, 2], [-1, 4, 2]]
    assert hide(recent, own, kept).tolist() == expected
    assert hide(recent[:, 1], own, kept).tolist() == [-1, 4, 4]


def test_the_gradient_of_dropped_ids_reaches_the_unknown() -> None:
    embedding = IdEmbedding('user', 4, 2)
    embedding(torch.tensor([-1, 3, -1])).sum().backward()
    assert embedding.weight.grad[:, 0].tolist() == [2, 0, 0, 0, 1]


def test_a_grown_table_has_the_rows_of_before_and_new_ones_of_the_unknown() -> None:
    embedding = IdEmbedding('user', 2, 3, draw_unknown=True).double()
    before = embedding.weight.detach().clone()
    embedding.grow(4)
    assert torch.equal(embedding.weight, before[[0, 1, 2, 0, 0]])
    assert embedding.weight.requires_grad and embedding.num_ids == 4
    assert torch.equal(embedding(torch.tensor([3])), embedding(torch.tensor([-1])))
    # Also of a type that an index cannot have.
    small = torch.tensor([3], dtype=torch.uint8)
    assert torch.equal(embedding(small), embedding(torch.tensor([3])))
    embedding.grow(4)
    assert embedding.weight.shape == (5, 3)
    embedding.requires_grad_(False).grow(5)
    assert not embedding.weight.requires_grad
