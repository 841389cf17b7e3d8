r"""What a server tells Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mag.online.ranker import Ranked

# From what parsing takes to what nobody waits for.
_SECONDS = (
    .0001, .00025, .0005, .001, .0025, .005, .0075, .01, .015, .02, .03, .05, .1, .25, .5, 1.0, 2.5,
)  # fmt: skip


class Metrics:
    r"""What happens in one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        self._stage = Histogram(
            'mag_stage_seconds',
            'What a stage of a request takes: parse, wait, score (with reading), serialise.',
            ['stage'],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests = counter(
            'mag_requests', 'Requests that were answered.', ['method', 'status']
        )
        self.in_flight = gauge('mag_in_flight', 'Rankings that wait or are scored.')
        self.shed = counter('mag_shed', 'Requests beyond what is taken at once.')
        self.recorded = counter('mag_recorded_events', 'Events that were appended.')
        self._position = gauge('mag_log_position', 'The position in the log of the last answer.')
        self._lag = gauge('mag_lag_events', 'Events after that position.')
        self._lag_seconds = gauge('mag_lag_seconds', 'How long the first of them has been there.')
        self._degraded = counter(
            'mag_degraded', 'Answers that could be better, by reason.', ['reason']
        )
        self.unknown_ids = counter(
            'mag_unknown_ids', 'Ids of requests that the snapshot does not have.'
        )
        self.new_ids = counter('mag_new_ids', 'Ids that were given a number.')
        # Unlike 0, nothing is known of them yet.
        self._lag.set(float('nan'))
        self._lag_seconds.set(float('nan'))
        self._snapshot_time = float('nan')
        age = gauge('mag_snapshot_age_seconds', 'How old the last event of the snapshot is.')
        age.set_function(lambda: time.time() - self._snapshot_time)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        r"""Measures a stage."""
        begun = time.perf_counter()
        yield
        self.took(name, time.perf_counter() - begun)

    def took(self, name: str, seconds: float) -> None:
        r"""Counts the seconds of a stage."""
        self._stage.labels(name).observe(seconds)

    def answered(self, answer: Ranked) -> None:
        r"""Counts what an answer tells."""
        self._position.set(answer.position)
        self.unknown_ids.inc(answer.num_unknown)
        for reason in answer.degraded:
            self._degraded.labels(reason).inc()
        # What is not known any more is not what it was.
        self._lag.set(float('nan') if answer.lag is None else answer.lag)
        self._lag_seconds.set(float('nan') if answer.lag_seconds is None else answer.lag_seconds)
        if answer.snapshot_time is not None:
            self._snapshot_time = answer.snapshot_time
