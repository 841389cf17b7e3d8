import os
import resource
from time import perf_counter


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
