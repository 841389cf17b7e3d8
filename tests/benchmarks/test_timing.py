from time import sleep

import numpy as np
import pytest
import torch
from timing import (
    Stages,
    bytes_of,
    in_words,
    median_ratio,
    processor_seconds_of,
    seconds_of,
    take_turns,
)


def test_measurements_take_turns() -> None:
    calls: list[str] = []

    def measure(name: str) -> int:
        calls.append(name)
        return len(calls)

    values = take_turns({name: lambda name=name: measure(name) for name in ('a', 'b')}, 3)
    assert calls == ['a', 'b'] * 3
    assert values == {'a': [1, 3, 5], 'b': [2, 4, 6]}


def test_seconds_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr('timing.perf_counter', lambda: next(clock))
    calls: list[None] = []
    assert seconds_of(lambda: calls.append(None), calls=4) == 1.5
    assert len(calls) == 4


def test_ratio_is_the_median_of_pairs() -> None:
    assert median_ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == 1.0


def test_the_memory_of_a_call_is_the_most_at_once() -> None:
    def act() -> None:
        for size in (1_000_000, 3_000_000, 2_000_000):
            torch.ones(size, dtype=torch.uint8)

    assert bytes_of(act) == pytest.approx(3_000_000, rel=0.01)


def test_threads_in_words() -> None:
    assert [in_words(number) for number in (1, 2)] == ['1 thread', '2 threads']


def test_stages_add_up_laps_and_notice_memory() -> None:
    stages = Stages()
    stages.lap('first')
    block = np.ones(64 * 2**20, dtype=np.int8)
    stages.lap('second')
    seconds = stages.seconds['first']
    stages.lap('first')
    assert list(stages.seconds) == list(stages.peak) == ['first', 'second']
    assert stages.seconds['first'] > seconds
    assert stages.start_peak <= stages.peak['second'] <= stages.peak['first']
    assert stages.peak['second'] >= block.nbytes


def test_processor_time_leaves_out_what_waits() -> None:
    assert processor_seconds_of(lambda: sleep(0.2)) < 0.1
    assert processor_seconds_of(lambda: sum(range(3_000_000))) > 0.005
