from typing import Any

import pytest
import torch

from mag.loader import BatchIndexSampler


def be_process(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: rank)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: world_size)


def batches(sampler: BatchIndexSampler) -> list[list[int]]:
    return [batch.tolist() for batch in sampler]


def test_in_order() -> None:
    sampler = BatchIndexSampler(8, 3)
    assert batches(sampler) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(sampler) == 3


@pytest.mark.parametrize(
    'num_rows, batch_size, sizes',
    [
        (0, 4, []),
        (1, 4, [1]),
        (4, 4, [4]),
        (5, 4, [5]),
        (6, 4, [4, 2]),
        (9, 4, [4, 5]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
    ],
)
@pytest.mark.parametrize('shuffle', [False, True])
def test_no_row_is_left_alone(
    num_rows: int, batch_size: int, sizes: list[int], shuffle: bool
) -> None:
    sampler = BatchIndexSampler(num_rows, batch_size, shuffle)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)
    assert sorted(sum(batches(sampler), [])) == list(range(num_rows))


def test_shuffling_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = BatchIndexSampler(100, 7, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return batches(sampler)

    torch.manual_seed(0)
    first = order(0, 0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert order(0, 0) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(sum(first, [])) == list(range(100))
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_iterating_again_repeats_the_epoch_until_the_next_is_set() -> None:
    sampler = BatchIndexSampler(20, 6, shuffle=True)
    first = batches(sampler)
    assert batches(sampler) == first
    sampler.set_epoch(1)
    assert batches(sampler) != first


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('skip', [0, 1, 3, 4, 9])
def test_skip_leaves_out_the_first_batches_once(shuffle: bool, skip: int) -> None:
    sampler = BatchIndexSampler(20, 6, shuffle)
    whole = batches(sampler)
    sampler.skip = skip
    assert len(sampler) == 4
    assert batches(sampler) == whole[skip:]
    assert sampler.skip == 0
    assert batches(sampler) == whole


@pytest.mark.parametrize('num_rows', [1, 2, 3, 7, 24, 25, 26, 27, 50])
@pytest.mark.parametrize('world_size', [2, 3])
@pytest.mark.parametrize('batch_size', [1, 4, 8])
def test_processes_share_the_rows_in_order(
    num_rows: int, world_size: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for rank in range(world_size):
        be_process(monkeypatch, rank, world_size)
        sampler = BatchIndexSampler(num_rows, batch_size)
        shares.append(batches(sampler))
        assert len(shares[-1]) == len(sampler)
        assert sum(shares[-1], []) == list(range(rank, num_rows, world_size))
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for batch in share for row in batch) == list(
        range(num_rows)
    )


@pytest.mark.parametrize('num_rows', [7, 24, 25, 26, 27])
@pytest.mark.parametrize('world_size', [2, 3])
def test_processes_shuffle_alike_into_equal_shares(
    num_rows: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for rank in range(world_size):
        be_process(monkeypatch, rank, world_size)
        shares.append(batches(BatchIndexSampler(num_rows, 4, shuffle=True, seed=3)))
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    rows = [row for share in shares for batch in share for row in batch]
    assert len(rows) == len(set(rows)) == num_rows - num_rows % world_size
    assert set(rows) <= set(range(num_rows))


def test_too_few_rows_to_shuffle_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    be_process(monkeypatch, 0, 4)
    with pytest.raises(ValueError, match='cannot shuffle 3 rows over 4 processes'):
        batches(BatchIndexSampler(3, 2, shuffle=True))
    assert batches(BatchIndexSampler(0, 2, shuffle=True)) == []


@pytest.mark.parametrize('batch_size', [0, -1, 2.0, True, None, '8'])
def test_wrong_batch_size(batch_size: Any) -> None:
    is_number = type(batch_size) is int
    error, sentence = (ValueError, 'at least 1') if is_number else (TypeError, 'an integer')
    with pytest.raises(error, match=f"'batch_size' must be {sentence}, but got {batch_size!r}"):
        BatchIndexSampler(10, batch_size)


def test_negative_number_of_rows() -> None:
    with pytest.raises(ValueError, match="'num_rows' must be at least 0, but got -1"):
        BatchIndexSampler(-1, 2)
