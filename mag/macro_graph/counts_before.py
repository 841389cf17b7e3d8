import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from mag.checks import check_ids, check_numbers, check_tensor


def counts_before(
    key: Tensor,
    time: Tensor,
    weight: Tensor,
    half_lives: tuple[float, ...] = (),
    rows: Tensor | None = None,
) -> Tensor:
    r"""For events of a log, what events with the same key weigh that came strictly before it.

    Events of the same moment do not see each other. With weights that are 1 for an exposure and 1
    for a click, the sums are the numbers of exposures and of clicks before each exposure. An event
    of weight 0 only asks.

    A half-life :math:`H` adds the sums that an event's weight enters with
    :math:`2^{-(t - t_e) / H}`, where :math:`t_e` is its time and :math:`t` that of the event that
    asks.

    One stable sort by key and one cumulative sum give all sums: time is linear in the events, where
    there are at most ten times as many keys, and memory too. Each half-life takes one pass more for
    each doubling of the most frequent key, and so do weights that are no whole numbers.

    Sums of a key depend on what came before of that key alone, to the last bit: neither on other
    keys, nor on later events, nor on who else asks.

    Args:
        key (torch.Tensor): The key of each event, a number of 0 or more, shape :obj:`[E]`, int64.
        time (torch.Tensor): Its time, ascending, shape :obj:`[E]`.
        weight (torch.Tensor): What it weighs, shape :obj:`[E, W]`; or shape :obj:`[E, 1 + H, W]`,
            without decay and then for each half-life, where an event enters aged already.
        half_lives (tuple[float, ...], optional): Half-lives in the unit of :obj:`time`.
            (default: :obj:`()`)
        rows (torch.Tensor, optional): The events whose sums are read, shape :obj:`[L]`; by default
            all. (default: :obj:`None`)

    Returns:
        The sums, shape :obj:`[L, (1 + H) * W]`, float64: those of all weights without decay, then
        for each half-life.

    Raises:
        IndexError: If one of :obj:`rows` is no event, or a key is below 0.
        TypeError: If one of them holds other things.
        ValueError: If times do not ascend, shapes differ, or a half-life is not positive.
    """
    check_tensor('counts_before', 'key', key, ('E',), torch.long)
    size = key.numel()
    check_tensor('counts_before', 'time', time, (size,), 'numbers')
    check_half_lives(half_lives)
    num_ages = 1 + len(half_lives)
    is_aged = isinstance(weight, Tensor) and weight.dim() == 3
    shape = (size, num_ages, 'W') if is_aged else (size, 'W')
    check_tensor('counts_before', 'weight', weight, shape, 'numbers')
    if bool((time[1:] < time[:-1]).any()):
        raise ValueError(
            "counts_before expects 'time' to ascend, but it does not: sort the events."
        )
    if rows is not None:
        check_tensor('counts_before', 'rows', rows, ('L',), torch.long)
        check_ids('counts_before', "'rows'", rows, size)
    before = np.empty((size if rows is None else rows.numel(), num_ages, weight.size(-1)))
    if before.size == 0:
        return torch.from_numpy(before).flatten(1)
    check_ids('counts_before', 'keys', key, 2**63)
    keys = key.numpy()
    if size < 2**31 and int(key.max()) < 2**31:
        keys = keys.astype(np.int32)
    order = _order(keys)
    keys, moments = keys[order], _moments(time.numpy())[order]
    is_first = np.append(True, keys[1:] != keys[:-1])
    of_key = _latest(is_first, order.dtype)
    of_moment = _latest(is_first | np.append(True, moments[1:] != moments[:-1]), order.dtype)
    # Each event's place in the order by key.
    place = np.empty_like(order)
    place[order] = np.arange(size, dtype=order.dtype)
    if rows is not None:
        place = place[rows.numpy()]
    # Differences of integers are exact however late the log is.
    times = (time.double() if time.is_floating_point() else time.long()).numpy()
    of_age = weight.unbind(1) if is_aged else [weight] * num_ages
    for age, half_life in enumerate((math.inf, *half_lives)):
        if age == 0 and _is_exact(of_age[0]):
            for number, column in enumerate(of_age[0].unbind(1)):
                before[:, 0, number] = _sum(column, order, of_key, of_moment)[place]
            continue
        entering, seconds = of_age[age].double().numpy()[order], times[order]
        # Whoever asks only is left out, so that a sum is the same whoever else asks.
        weighs = entering.any(axis=1)
        number_before = np.append(0, weighs.cumsum())
        first, last = number_before[of_key], number_before[of_moment] - 1
        entering, when = entering[weighs], seconds[weighs]
        up_to = _decayed(entering, when, of_key[weighs], half_life)
        is_seen = last >= first
        last = last[is_seen]
        elapsed = (seconds[is_seen] - when[last]) / half_life
        part = np.zeros((size, weight.size(-1)))
        part[is_seen] = up_to[last] * np.exp2(-elapsed)[:, None]
        before[:, age] = part[place]
    return torch.from_numpy(before).flatten(1)


def check_half_lives(half_lives: Any) -> None:
    r"""Raises unless half-lives are a sequence of positive numbers."""
    if not isinstance(half_lives, Sequence) or isinstance(half_lives, str):
        raise TypeError(
            f"'half_lives' must be a sequence of times such as (86400.0,), but got {half_lives!r}."
        )
    check_numbers('(0, inf)', **{f'half_lives[{i}]': life for i, life in enumerate(half_lives)})


def _order(key: np.ndarray) -> np.ndarray:
    r"""The stable order by key."""
    size, num_keys = key.size, int(key.max()) + 1
    if num_keys > 10 * size:
        return np.argsort(key, kind='stable')
    # Rows of a sparse matrix are found by counting, several times faster than by comparing.
    parts = np.empty(size, dtype=np.int8), key, np.arange(size + 1, dtype=key.dtype)
    return scipy.sparse.csc_array(parts, shape=(num_keys, size)).tocsr().indices


def _moments(time: np.ndarray) -> np.ndarray:
    r"""The number of the moment of each event, whose times ascend."""
    is_new = np.append(False, time[1:] != time[:-1])
    return is_new.cumsum(dtype=np.int32 if time.size < 2**31 else np.int64)


def _is_exact(weight: Tensor) -> bool:
    r"""Whether weights are whole numbers that no sum of all of them rounds."""
    if not weight.is_floating_point():
        return True
    whole = bool((weight == weight.round()).all())
    return whole and bool(weight.abs().sum(dtype=torch.double) < 2**53)


def _sum(
    weight: Tensor, order: np.ndarray, of_key: np.ndarray, of_moment: np.ndarray
) -> np.ndarray:
    r"""The sums before each moment of a key, shape :obj:`[E]`, in the order by key."""
    if bool((weight == 1).all()):
        return of_moment - of_key
    total = np.zeros(order.size + 1)
    np.cumsum(weight.double().numpy()[order], out=total[1:])
    return total[of_moment] - total[of_key]


def _latest(is_start: np.ndarray, index: np.dtype) -> np.ndarray:
    r"""For each place, the latest start up to it."""
    return np.maximum.accumulate(np.arange(is_start.size, dtype=index) * is_start)


def _decayed(
    weights: np.ndarray, seconds: np.ndarray, key: np.ndarray, half_life: float
) -> np.ndarray:
    r"""The decayed sums up to and with each event of its key, by doubling: after a step of
    :math:`d`, a sum holds the latest :math:`2 d` events. No exponent is ever positive."""
    is_first = np.diff(key, prepend=-1) != 0
    rank = np.arange(key.size) - _latest(is_first, key.dtype)
    sums = weights.copy()
    step, later = 1, np.flatnonzero(rank >= 1)
    while later.size > 0:
        earlier = later - step
        age = (seconds[later] - seconds[earlier]) / half_life
        sums[later] += sums[earlier] * np.exp2(-age)[:, None]
        step *= 2
        later = later[rank[later] >= step]
    return sums
