import pytest
import torch

from mag.negatives import UnclickedItems


def test_any_item_that_was_not_clicked_is_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    clicked = torch.rand(6, 9, generator=generator) < torch.linspace(0, 0.9, 6).unsqueeze(1)
    # Clicks at both ends, at one, in rows, and all but one.
    clicked[3] = torch.tensor([1, 1, 0, 0, 1, 0, 0, 1, 1], dtype=torch.bool)
    clicked[4] = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    clicked[5] = torch.arange(9) != 4
    unclicked = UnclickedItems(clicked.nonzero().t(), 6, 9)
    assert not bool(clicked[0].any()) and unclicked.count.tolist() == (~clicked).sum(1).tolist()
    user = torch.arange(6).repeat(50)
    drawn = unclicked.draw(user, 60, generator)
    assert drawn.shape == (300, 60)
    table = torch.zeros(6, 9).index_put((user.unsqueeze(1), drawn), torch.ones(1), accumulate=True)
    assert bool((table[clicked] == 0).all())
    expected = 3000 / unclicked.count.unsqueeze(1).expand(6, 9)[~clicked]
    # Four deviations of a count.
    assert bool(((table[~clicked] - expected).abs() <= 4 * expected.sqrt()).all())


def test_users_without_clicks_draw_from_everything() -> None:
    unclicked = UnclickedItems(torch.empty(2, 0, dtype=torch.long), 3, 4)
    drawn = unclicked.draw(torch.tensor([2, 0]), 100, torch.Generator().manual_seed(0))
    assert drawn[0].unique().tolist() == drawn[1].unique().tolist() == [0, 1, 2, 3]


def test_the_seed_decides() -> None:
    unclicked = UnclickedItems(torch.tensor([[0, 1], [3, 1]]), 2, 50)
    user = torch.tensor([0, 1])
    first, again, other = (
        unclicked.draw(user, 20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_who_clicked_everything_has_nothing_to_draw() -> None:
    unclicked = UnclickedItems(torch.tensor([[0, 1, 1], [0, 0, 1]]), 2, 2)
    assert unclicked.count.tolist() == [1, 0]
    with pytest.raises(ValueError, match='to draw for user 1, who clicked all of 2 items'):
        unclicked.draw(torch.tensor([0, 1]), 3, torch.Generator())


@pytest.mark.parametrize('pairs', [[[0, 0], [1, 1]], [[0, 0], [2, 1]], [[1, 0], [0, 3]]])
def test_pairs_in_disorder(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match='once, in ascending order, .* pass pairs.unique'):
        UnclickedItems(torch.tensor(pairs), 2, 4)


def test_pairs_of_nobody() -> None:
    with pytest.raises(IndexError, match='users from 0 to 2, but expected them from 0 to 1'):
        UnclickedItems(torch.tensor([[0, 2], [1, 1]]), 2, 4)
    with pytest.raises(IndexError, match='items from 1 to 4, but expected them from 0 to 3'):
        UnclickedItems(torch.tensor([[0, 1], [1, 4]]), 2, 4)
