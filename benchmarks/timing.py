r"""How the benchmarks of speed measure: in turn, by the median, and with a look at memory."""

import os
import resource
from collections.abc import Callable, Mapping
from itertools import accumulate
from statistics import median
from time import perf_counter, process_time
from typing import TypeVar

from tqdm import tqdm

Value = TypeVar('Value')


def take_turns(
    measurements: Mapping[str, Callable[[], Value]], repeats: int
) -> dict[str, list[Value]]:
    r"""The values of measurements that take turns, so that a slow moment of the machine hits all.

    Args:
        measurements: What to call, by name.
        repeats: How often each takes its turn.
    """
    values: dict[str, list[Value]] = {name: [] for name in measurements}
    for name in tqdm(list(measurements) * repeats, leave=False):
        values[name].append(measurements[name]())
    return values


def seconds_of(act: Callable[[], object], calls: int = 1) -> float:
    r"""The seconds of a call, as the mean of :obj:`calls` in a row."""
    start = perf_counter()
    for _ in range(calls):
        act()
    return (perf_counter() - start) / calls


def processor_seconds_of(act: Callable[[], object]) -> float:
    r"""The processor time of a call: on one thread its seconds on a machine that does nothing else,
    which other programs hardly change."""
    start = process_time()
    act()
    return process_time() - start


def quiet_seconds_of(act: Callable[[], object]) -> float:
    r"""The processor time of a call if PyTorch has one thread, else the seconds that pass."""
    # Here, because processes that measure their own memory import this file.
    import torch

    return processor_seconds_of(act) if torch.get_num_threads() == 1 else seconds_of(act)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    r"""The median of ratios, turn by turn."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def bytes_of(act: Callable[[], object]) -> int:
    r"""The most bytes of tensors that a call has allocated at once."""
    # Here, because processes that measure their own memory import this file.
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    return max(accumulate(change for _, change in changes))


def in_words(num_threads: int) -> str:
    return f'{num_threads} thread{"s" * (num_threads > 1)}'


class Stages:
    r"""A stopwatch for the stages of one run, which also notes processor time and memory.

    Processor time adds up the cores and hardly changes when other programs want them too: it tells
    whether a run was disturbed.

    Attributes:
        seconds (dict[str, float]): What each stage took, in order; laps of one name add up.
        processor_seconds (dict[str, float]): Processor time of each stage.
        start_peak (int): Bytes of the largest resident set before the first stage: Python and its
            imports.
        peak (dict[str, int]): The same by the end of each stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}
        self.start_peak = _peak()
        self.peak: dict[str, int] = {}
        self._start()

    def lap(self, stage: str) -> None:
        r"""Ends :obj:`stage`, which began at the last lap."""
        seconds = perf_counter() - self._seconds
        processor_seconds = _processor_seconds() - self._processor_seconds
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.processor_seconds[stage] = self.processor_seconds.get(stage, 0.0) + processor_seconds
        self.peak[stage] = _peak()
        self._start()

    def _start(self) -> None:
        self._seconds = perf_counter()
        self._processor_seconds = _processor_seconds()


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
