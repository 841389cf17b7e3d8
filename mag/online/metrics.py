r"""What a server tells Prometheus."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mag.online.ranker import Ranked

# From what parsing takes to what nobody waits for.
_SECONDS = (
    .0001, .00025, .0005, .001, .0025, .005, .0075, .01, .015, .02, .03, .05, .1, .25, .5, 1.0, 2.5,
)  # fmt: skip


# Requests that a page tells the latency of.
_NUM_LATENCIES = 1000


class Metrics:
    r"""What happens in one server, in a registry of its own.

    Attributes:
        last (Ranked or None): The last answer.
        latencies (collections.deque): What the last rankings took, in seconds.
    """

    def __init__(self) -> None:
        self.last: Ranked | None = None
        self.latencies: deque[float] = deque(maxlen=_NUM_LATENCIES)
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
        self.duplicates = counter('mag_duplicate_events', 'Events that the log had already.')
        self.gaps = counter('mag_gaps', 'Events that were refused, as those before are missing.')
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
        self._hop_2_events = gauge(
            'mag_hop_2_age_events',
            'Events after the snapshot, which hop 2 of items has of their own clicks alone.',
        )
        self._hop_2_age = gauge('mag_hop_2_age_seconds', 'Of how many seconds these events are.')
        self._hop_2_own = counter(
            'mag_hop_2_own_clicks', 'Answers to users with too many items for an exact hop 2.'
        )
        # Unlike 0, nothing is known of them yet.
        for unknown in (self._lag, self._lag_seconds, self._hop_2_events, self._hop_2_age):
            _tell(unknown, None)
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
        self.last = answer
        self._position.set(answer.position)
        self.unknown_ids.inc(answer.num_unknown)
        for reason in answer.degraded:
            self._degraded.labels(reason).inc()
        _tell(self._lag, answer.lag)
        _tell(self._lag_seconds, answer.lag_seconds)
        _tell(self._hop_2_events, answer.hop_2_events)
        _tell(self._hop_2_age, answer.hop_2_age)
        if answer.has_exact_hop_2 is False:
            self._hop_2_own.inc()
        if answer.snapshot_time is not None:
            self._snapshot_time = answer.snapshot_time


def _tell(gauge: Gauge, value: float | None) -> None:
    # What is not known any more is not what it was.
    gauge.set(float('nan') if value is None else value)
