import torch

from mag.loader.path_sampler import draw_offsets
from mag.loader.target_chance import TargetChance


def test_a_target_has_its_own_chance_whoever_is_beside_it() -> None:
    user, item, time = torch.tensor([3, -1, 3, 7]), torch.arange(4), torch.tensor([9, 9, 9, 2**40])
    whole = TargetChance(5, user, item, time)
    drawn = [whole.rand((4, 3)), whole.rand((4, 3, 2))]
    for rows in ([2], [3, 0], [1, 2, 0, 3]):
        part = TargetChance(5, user[rows], item[rows], time[rows])
        assert torch.equal(part.rand((len(rows), 3)), drawn[0][rows])
        assert torch.equal(part.rand((len(rows), 3, 2)), drawn[1][rows])
    numbers = torch.cat([level.flatten() for level in drawn])
    assert numbers.dtype == torch.float64 and numbers.unique().numel() == numbers.numel() == 36
    assert not torch.equal(TargetChance(6, user, item, time).rand((4, 3)), drawn[0])


def test_numbers_are_uniform_and_independent() -> None:
    target = torch.arange(2_000)
    chance = TargetChance(0, target, target % 7, target // 3)
    numbers = torch.cat([chance.rand((2_000, 5)), chance.rand((2_000, 5))], dim=1)
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    # By chance, one of some 70 numbers is off by 4.5 standard deviations for one seed of 2,000.
    share = (numbers * 10).long().flatten().bincount() / numbers.numel()
    assert float((share - 0.1).abs().max()) < 4.5 * (0.09 / numbers.numel()) ** 0.5
    off_diagonal = numbers.t().corrcoef() - torch.eye(10)
    assert float(off_diagonal.abs().max()) < 4.5 / 2_000**0.5
    neighbors = torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]).corrcoef()[0, 1]
    assert abs(float(neighbors)) < 4.5 / numbers.numel() ** 0.5


def test_all_are_drawn_where_there_are_no_more() -> None:
    target = torch.arange(50)
    count = target % 4
    drawn = draw_offsets(count, 3, False, TargetChance(1, target, target, target))
    expected = torch.arange(3).where(torch.arange(3) < count.unsqueeze(1), -1)
    assert torch.equal(drawn.sort()[0], expected.sort()[0])
    again = draw_offsets(count, 3, True, TargetChance(1, target, target, target))
    assert bool((again < count.unsqueeze(1)).all()) and bool(
        ((again < 0).any(1) == (count == 0)).all()
    )
