r"""Counts in one byte each."""

import torch
from torch import Tensor

from mag.checks import check_tensor, check_values

# Up to here a step is a count; from here on, a factor.
LAST_EXACT = 16
MAX_COUNT = 2**24
_NUM_STEPS = 255 - LAST_EXACT
_FACTOR = (MAX_COUNT / LAST_EXACT) ** (1 / _NUM_STEPS)
# Of a count in the middle of two that have codes it is (factor - 1) / (factor + 1).
RELATIVE_ERROR = 0.029
_COUNT = torch.tensor(
    [*range(LAST_EXACT + 1), *(LAST_EXACT * _FACTOR**step for step in range(1, _NUM_STEPS + 1))],
    dtype=torch.double,
)
_MIDDLE = ((_COUNT[1:] + _COUNT[:-1]) / 2).float()


def encode_counts(counts: Tensor) -> Tensor:
    r"""Counts as codes of one byte: that of the nearest of 0 to 16 and
    :math:`16 \, \beta^k` for :math:`k` from 1 to 239, with :math:`\beta = 2^{20 / 239}`, so that
    the largest is :math:`2^{24}`, up to which float32 counts.

    .. code-block:: pycon

        >>> decode_counts(encode_counts(torch.tensor([0, 1, 16, 1000, 2**24]))).tolist()
        [0.0, 1.0, 16.0, 983.2555541992188, 16777216.0]

    Counts to 16 come back as they were. Above, the error is at most :math:`(\beta - 1) /
    (\beta + 1)` of the count, 2.9 percent. Of fractions below 16, such as decayed counts, it is at
    most a half. What is more is never less afterwards: clicks do not exceed their exposures.

    Args:
        counts (torch.Tensor): Counts from 0 to :math:`2^{24}` of any shape, such as macro rows or
            the counts at the target.

    Returns:
        The codes, uint8, of the same shape.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If a count is negative, no number or above :math:`2^{24}`.
    """
    check_tensor('encode_counts', 'counts', counts, ('*',), 'numbers')
    # Small types of integers do not hold the largest count.
    number = counts.float()
    is_count = (number >= 0) & (number <= MAX_COUNT)
    expected = f'counts from 0 to {MAX_COUNT}'
    check_values('encode_counts', 'counts', counts, is_count, expected, wait=True)
    return torch.bucketize(number, _MIDDLE.to(counts.device), out_int32=True).byte()


def decode_counts(codes: Tensor) -> Tensor:
    r"""The counts that codes stand for, float32.

    Args:
        codes (torch.Tensor): What :func:`encode_counts` returned, or rows of it.

    Raises:
        TypeError: If they are not of type uint8.
    """
    check_tensor('decode_counts', 'codes', codes, ('*',), torch.uint8)
    counts = _COUNT.float().to(codes.device)
    return counts.index_select(0, codes.reshape(-1).int()).view(codes.shape)
