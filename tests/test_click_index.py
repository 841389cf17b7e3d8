import pytest
import torch

from mag.click_index import ClickIndex


def brute_force(owner: torch.Tensor, time: torch.Tensor, who: int, moment: int) -> list[int]:
    r"""Clicks in the order of time, and of the log within a second."""
    found = [
        (t, click)
        for click, (o, t) in enumerate(zip(owner.tolist(), time.tolist(), strict=True))
        if o == who and t < moment
    ]
    return [click for _, click in sorted(found)]


@pytest.mark.parametrize('in_order', [True, False])
@pytest.mark.parametrize('seed', range(4))
def test_clicks_before_a_moment(seed: int, in_order: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(5, (60,), generator=generator)
    time = torch.randint(-8, 12, (60,), generator=generator)
    time = time.sort().values if in_order else time
    index = ClickIndex(owner, time, 5)
    asked = torch.cartesian_prod(torch.arange(-1, 7), torch.arange(-10, 15))
    newest, count = index.before(*asked.t())
    for (who, moment), last, number in zip(asked.tolist(), newest.tolist(), count.tolist()):
        found = index.click[last - number + 1 : last + 1].tolist()
        assert found == brute_force(owner, time, who, moment)
    # Shapes broadcast.
    newest, count = index.before(torch.arange(5).view(1, 5, 1), torch.tensor([3, 9]).view(2, 1, 1))
    assert newest.shape == count.shape == (2, 5, 1)
    for moment, numbers in zip((3, 9), count.squeeze(-1).tolist(), strict=True):
        assert numbers == [len(brute_force(owner, time, who, moment)) for who in range(5)]


def test_without_clicks() -> None:
    none = torch.empty(0, dtype=torch.long)
    index = ClickIndex(none, none, 3)
    newest, count = index.before(torch.tensor([0, 2]), torch.tensor([-5, 5]))
    assert (newest.tolist(), count.tolist(), index.click.tolist()) == ([0, 0], [0, 0], [-1])


def test_times_at_the_ends_of_int64() -> None:
    low, high = -(2**63), 2**63 - 1
    index = ClickIndex(torch.tensor([0, 0]), torch.tensor([low, high]), 1)
    owner = torch.zeros(3, dtype=torch.long)
    assert index.before(owner, torch.tensor([low, 0, high]))[1].tolist() == [0, 1, 1]


def test_too_many_owners() -> None:
    owner = time = torch.tensor([0, 1])
    ClickIndex(owner, time, 2**61)
    with pytest.raises(ValueError, match='Reader numbers the combinations of 9 cats and 2 moments'):
        ClickIndex(owner, time, 2**62, caller='Reader', owners='9 cats')
    with pytest.raises(ValueError, match='ClickIndex numbers .* 4611686018427387904 owners and 2'):
        ClickIndex(owner, time, 2**62)
