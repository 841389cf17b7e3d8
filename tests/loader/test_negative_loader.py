import pytest
import torch
from torch import Tensor

from mag.loader import NegativeBatch, NegativeLoader

NUM_USERS, NUM_ITEMS = 12, 9


@pytest.fixture
def pairs() -> Tensor:
    r"""Some pairs, among them all of user 3, and none of user 4."""
    clicked = torch.rand(NUM_USERS, NUM_ITEMS, generator=torch.Generator().manual_seed(0)) < 0.5
    clicked[3], clicked[4] = True, False
    return clicked.nonzero().t()


def load(pairs: Tensor, **kwargs: object) -> NegativeLoader:
    kwargs = {'batch_size': 8, 'shuffle': True, 'num_negatives': 20, **kwargs}
    return NegativeLoader(pairs, NUM_USERS, NUM_ITEMS, **kwargs)  # type: ignore[arg-type]


def same(batch: NegativeBatch, other: NegativeBatch) -> bool:
    return all(torch.equal(part, twin) for part, twin in zip(batch, other, strict=True))


def test_every_pair_once_with_what_its_user_did_not_click(pairs: Tensor) -> None:
    loader = load(pairs)
    batches = list(loader)
    assert {type(batch) for batch in batches} == {NegativeBatch}
    assert [batch.negative.shape for batch in batches[:-1]] == [(8, 20)] * (len(batches) - 1)
    user, item = (torch.cat([batch[column] for batch in batches]) for column in (0, 1))
    found = torch.stack([user, item])
    # Who clicked everything has no negatives.
    expected = pairs[:, pairs[0] != 3]
    assert len(loader.dataset) == expected.size(1) < pairs.size(1)
    assert torch.equal(found.unique(dim=1), expected) and found.size(1) == expected.size(1)
    clicked = {tuple(pair) for pair in pairs.t().tolist()}
    for batch in batches:
        for node, row in zip(batch.user.tolist(), batch.negative.tolist(), strict=True):
            assert not clicked & {(node, other) for other in row}
    missed = {other for batch in batches for other in batch.negative[batch.user == 0].flatten()}
    unclicked = {item for item in range(NUM_ITEMS) if (0, item) not in clicked}
    assert {int(other) for other in missed} == unclicked


def test_an_epoch_depends_on_its_number_and_the_seed_alone(pairs: Tensor) -> None:
    loader = load(pairs)
    first = list(loader)
    torch.rand(3)
    assert all(same(*both) for both in zip(first, load(pairs), strict=True))
    loader.sampler.set_epoch(1)
    second = list(loader)
    assert not any(same(*both) for both in zip(first, second, strict=True))
    loader.sampler.set_epoch(0)
    assert all(same(*both) for both in zip(first, loader, strict=True))
    other = load(pairs, seed=1, shuffle=False), load(pairs, shuffle=False)
    for batch, twin in zip(*other, strict=True):
        assert torch.equal(batch.item, twin.item)
        assert not torch.equal(batch.negative, twin.negative)


def test_a_resumed_epoch_has_the_same_negatives(pairs: Tensor) -> None:
    loader = load(pairs)
    loader.sampler.set_epoch(2)
    whole = list(loader)
    loader.sampler.skip = 3
    assert all(same(*both) for both in zip(loader, whole[3:], strict=True))


def test_workers_draw_the_same(pairs: Tensor) -> None:
    workers = load(pairs, num_workers=2)
    assert all(same(*both) for both in zip(workers, load(pairs), strict=True))


def test_bad_input(pairs: Tensor) -> None:
    with pytest.raises(ValueError, match="'num_negatives' must be at least 1, but got 0"):
        load(pairs, num_negatives=0)
    with pytest.raises(ValueError, match="'batch_size' must be at least 1, but got 0"):
        load(pairs, batch_size=0)
    with pytest.raises(TypeError, match="'shuffle' must be True or False, but got 'no'"):
        load(pairs, shuffle='no')
    with pytest.raises(TypeError, match="'seed' must be an integer, but got 1.5"):
        load(pairs, seed=1.5)
    with pytest.raises(TypeError, match="'num_users' must be an integer, but got 1.5"):
        NegativeLoader(pairs, 1.5, NUM_ITEMS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'pairs' of shape .2, P., but got shape .3, 2"):
        load(torch.zeros(3, 2).long())
    with pytest.raises(TypeError, match="'pairs' of dtype int64, but got torch.float32"):
        load(pairs.float())
    with pytest.raises(ValueError, match='once, in ascending order'):
        load(pairs.flip(1))
    with pytest.raises(IndexError, match='items from 0 to 8, but expected them from 0 to 7'):
        NegativeLoader(pairs, NUM_USERS, 8)
