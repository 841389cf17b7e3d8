import copy
import math
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')


from mag.online import (  # noqa: E402
    EVENT,
    Client,
    Replica,
    Scorer,
    Server,
    Snapshot,
    SnapshotRanker,
    SqliteStream,
)
from mag.online.lag import Lag  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from server_thread import in_thread  # noqa: E402


class Breaking(SqliteStream):
    r"""A log that can be lost."""

    is_lost = False

    def read(self, position: int, limit: int = 8192, checksum: int | None = None) -> np.ndarray:
        if type(self).is_lost:
            raise ConnectionError('the log is elsewhere')
        return super().read(position, limit, checksum)


def events_after(pipeline: Any, num: int, step: int = 1) -> np.ndarray:
    r"""Clicks of the first user on all items, one each some seconds."""
    events = np.zeros(num, EVENT)
    events['item'] = np.arange(num) % pipeline.summary()['items']
    events['time'] = int(pipeline.events()['time'][-1]) + step * np.arange(1, num + 1)
    events['clicked'] = 1
    return events


@contextmanager
def serving(pipeline: Any, folder: Path) -> Iterator[tuple[Client, Callable[[], dict[str, float]]]]:
    r"""A client of a server of a new snapshot, and what its port of metrics tells."""
    with SqliteStream(folder / 'events.db') as stream:
        stream.append(pipeline.events(), 0)
    snapshot = Snapshot.open(pipeline.snapshot(folder / 'snapshots'))

    def make() -> Scorer:
        model = copy.deepcopy(pipeline.model)
        model.load_state_dict(snapshot.weights())
        return Scorer(snapshot, Replica(snapshot, Breaking(folder / 'events.db')), model)

    server = Server(SnapshotRanker(make), port=0, metrics_port=0)

    def scrape() -> dict[str, float]:
        url = f'http://127.0.0.1:{server.metrics_port}/metrics'
        lines = urllib.request.urlopen(url, timeout=60).read().decode().splitlines()
        samples = (line.rpartition(' ') for line in lines if not line.startswith('#'))
        return {name: float(value) for name, _, value in samples}

    with in_thread(server), Client(f'127.0.0.1:{server.port}') as client:
        yield client, scrape


def test_metrics_tell_how_old_hop_2_is(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('macgnn')
    users, history = pipeline._known().raw('user').tolist(), pipeline.events()
    without = np.setdiff1d(history['user'], history['user'][history['clicked'] == 1])
    user, other = users[0], users[without[-1]]
    item = pipeline._known().raw('item').tolist()[0]
    with serving(pipeline, tmp_path) as (client, scrape):
        samples = scrape()
        for name in ('mag_hop_2_age_events', 'mag_hop_2_age_seconds', 'mag_lag_events'):
            assert math.isnan(samples[name])
        client.rank(user, [item], timeout=60)
        samples = scrape()
        assert (samples['mag_hop_2_age_events'], samples['mag_hop_2_age_seconds']) == (0, 0)
        with SqliteStream(tmp_path / 'events.db') as stream:
            end = stream.append(events_after(pipeline, 10, 60), stream.end)
        # The first user has more.
        monkeypatch.setattr('mag.online.replica._MAX_SUMMED', 5)
        client.rank(user, [item], timeout=60)
        client.rank(other, [item], timeout=60)
        client.rank('nobody', [item], timeout=60)
        samples = scrape()
        assert samples['mag_log_position'] == end
        assert (samples['mag_hop_2_age_events'], samples['mag_hop_2_age_seconds']) == (10, 600)
        assert samples['mag_hop_2_own_clicks_total'] == 1
        assert samples['mag_unknown_ids_total'] == 1
        age = time.time() - pipeline.events()['time'][-1]
        assert samples['mag_snapshot_age_seconds'] == pytest.approx(age, abs=60)


def test_metrics_tell_how_far_it_is_behind(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('count_net')
    for module in ('log_reader', 'snapshot_ranker'):
        monkeypatch.setattr(f'mag.online.{module}.NUM_TOGETHER', 8)
    monkeypatch.setattr('mag.online.snapshot_ranker._BUDGET', 20.0)
    follow, number = SnapshotRanker._follow, [0]

    def follow_once(self: SnapshotRanker, seconds: float) -> bool:
        r"""Follows for requests alone, each once."""
        if number[0] == 0:
            return True
        number[0] -= 1
        return follow(self, 20.0)

    with serving(pipeline, tmp_path) as (client, scrape):
        monkeypatch.setattr(SnapshotRanker, '_follow', follow_once)

        def ask() -> dict[str, float]:
            number[0] = 1
            answer = client.rank('m7', ['m3'], context={'device': 'phone'}, timeout=60)
            assert answer.position == scrape()['mag_log_position']
            return {**scrape(), 'is_behind': float(answer.degraded == ('behind the log',))}

        samples = ask()
        assert (samples['mag_lag_events'], samples['mag_lag_seconds']) == (0, 0)
        assert math.isnan(samples['mag_hop_2_age_events'])
        with SqliteStream(tmp_path / 'events.db') as stream:
            stream.append(events_after(pipeline, 20), stream.end)
        begun = time.monotonic()
        lags = [ask() for _ in range(3)]
        elapsed = time.monotonic() - begun
        assert [samples['mag_lag_events'] for samples in lags] == [12, 4, 0]
        assert [samples['is_behind'] for samples in lags] == [1, 1, 0]
        seconds = [samples['mag_lag_seconds'] for samples in lags]
        assert seconds[0] == seconds[2] == 0 and 0 < seconds[1] < elapsed
        assert lags[-1]['mag_degraded_total{reason="behind the log"}'] == 2
        monkeypatch.setattr(Breaking, 'is_lost', True)
        samples = ask()
        assert math.isnan(samples['mag_lag_events']) and math.isnan(samples['mag_lag_seconds'])
        assert samples['mag_degraded_total{reason="log unreachable"}'] == 1


def test_a_lag_is_as_old_as_the_first_look_that_saw_its_first_event() -> None:
    lag = Lag()
    assert (lag.events, lag.seconds) == (None, None)
    for position, end, now, want in [
        (10, 10, 0.0, (0, 0.0)),
        (10, 30, 1.0, (20, 0.0)),
        (20, 30, 2.0, (10, 1.0)),
        (25, 50, 4.0, (25, 3.0)),
        # Those before 30 are counted, and those after were seen at 4.
        (30, 60, 7.0, (30, 3.0)),
        (55, 60, 8.0, (5, 1.0)),
        (60, 60, 9.0, (0, 0.0)),
        (60, 61, 9.5, (1, 0.0)),
    ]:
        lag.look(position, end, now)
        assert (lag.events, lag.seconds) == want
    lag.lose()
    assert (lag.events, lag.seconds) == (None, None)


def test_a_lag_remembers_a_bounded_number_of_looks() -> None:
    lag = Lag()
    for number in range(5000):
        lag.look(0, number + 1, float(number))
    assert (lag.events, lag.seconds, len(lag._seen)) == (5000, 4999.0, 1024)
    lag.look(4999, 5000, 5000.0)
    assert (lag.events, lag.seconds) == (1, 0.0)
