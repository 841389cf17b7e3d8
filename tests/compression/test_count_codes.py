import torch
from hypothesis import given
from hypothesis import strategies as st

from mag.compression import decode_counts, encode_counts
from mag.compression.count_codes import MAX_COUNT, RELATIVE_ERROR


def coded(counts: torch.Tensor) -> torch.Tensor:
    return decode_counts(encode_counts(counts))


def test_values_worked_out_by_hand() -> None:
    counts = torch.tensor([[0, 1, 2], [15, 16, 17], [100, 1000, MAX_COUNT]])
    codes = encode_counts(counts)
    assert codes.dtype == torch.uint8
    # A step above 16 is a factor of 2 ** (20 / 239): 17 is the first, 100 the 32nd, as
    # 239 / 20 * log2(100 / 16) = 31.6, and 1000 the 71st, nearer than the 72nd.
    assert codes.tolist() == [[0, 1, 2], [15, 16, 17], [48, 87, 255]]
    expected = [16 * 2 ** (20 * step / 239) for step in (1, 32, 71)]
    torch.testing.assert_close(decode_counts(codes)[[1, 2, 2], [2, 0, 1]], torch.tensor(expected))
    assert decode_counts(codes)[2, 2] == MAX_COUNT


def test_small_counts_are_exact_and_all_others_within_the_bound() -> None:
    counts = torch.cat([torch.arange(2**21), torch.arange(2**21, MAX_COUNT + 1, 1013)])
    counts = torch.cat([counts, torch.tensor([MAX_COUNT])])
    found = coded(counts)
    assert torch.equal(found[:17], torch.arange(17.0))
    error = (found.double() - counts).abs()[1:] / counts[1:]
    assert 0.0289 < float(error.max()) <= RELATIVE_ERROR
    assert bool((found.diff() >= 0).all())
    # Each code is that of what it stands for.
    codes = torch.arange(256).byte()
    assert torch.equal(encode_counts(decode_counts(codes)), codes)
    assert bool((decode_counts(codes).diff() > 0).all())


@given(st.lists(st.floats(0, MAX_COUNT), min_size=2, max_size=50))
def test_more_is_never_less(values: list[float]) -> None:
    counts = torch.tensor(values, dtype=torch.double).sort().values
    found = coded(counts).double()
    assert bool((found.diff() >= 0).all())
    bound = (counts * RELATIVE_ERROR * (1 + 1e-6)).where(counts >= 16.5, 0.5 + 1e-6)
    assert bool(((found - counts).abs() <= bound).all())


def test_any_type_of_numbers_is_coded_alike() -> None:
    counts = torch.tensor([0, 1, 7, 200, 30_000])
    expected = encode_counts(counts)
    for dtype in (torch.int32, torch.float32, torch.float64, torch.int16):
        assert torch.equal(encode_counts(counts.to(dtype)), expected)
    assert encode_counts(torch.tensor([True, False])).tolist() == [1, 0]
    assert encode_counts(torch.empty(0, 3)).shape == (0, 3)
    assert decode_counts(torch.empty(0, 3, dtype=torch.uint8)).shape == (0, 3)
