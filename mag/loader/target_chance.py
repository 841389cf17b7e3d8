import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mag.negatives import hash_rows, mix

#: The stream of chance that paths of requests are drawn from.
_STREAM = 2


class TargetChance:
    r"""Chance that depends on a target alone, and so neither on the targets beside it nor on their
    order: a candidate has the same paths in each request of the same user and time.

    Args:
        seed (int): A seed, at least 0.
        user (torch.Tensor): The users of the targets, shape :obj:`[B]`.
        item (torch.Tensor): Their items, likewise.
        time (torch.Tensor): Their times, int64 seconds, likewise.
    """

    def __init__(self, seed: int, user: Tensor, item: Tensor, time: Tensor) -> None:
        columns = (value.long().numpy() for value in (user, item, time))
        self._state = hash_rows((seed, _STREAM), *columns)
        self._num_drawn = 0

    def rand(self, shape: Sequence[int]) -> Tensor:
        r"""Numbers in :math:`[0, 1)` that were not drawn before, float64 of a shape
        :obj:`[B, ...]`."""
        number = math.prod(shape[1:])
        place = np.arange(self._num_drawn, self._num_drawn + number).astype(np.uint64)
        self._num_drawn += number
        bits = mix(self._state[:, None] ^ place)
        # As many bits as a float64 has digits.
        return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53).view(*shape)
