import asyncio
import copy
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')

from mag.online import (  # noqa: E402
    EVENT,
    AsyncClient,
    EventStream,
    RedisStream,
    Replica,
    Scorer,
    Server,
    Snapshot,
    SnapshotRanker,
    SqliteIdRegister,
    SqliteStream,
    connect,
    snapshot_ranker,
    swap,
)
from mag.pipeline import Pipeline  # noqa: E402

CONTEXT = {'count_net': {'device': 'phone'}, 'macgnn': {}}


class Breaking(SqliteStream):
    r"""A log that can be lost."""

    is_lost = False
    num_tries = 0
    hangs_until: threading.Event | None = None

    def read(self, position: int, limit: int = 8192, checksum: int | None = None) -> np.ndarray:
        if type(self).hangs_until is not None:
            type(self).hangs_until.wait(60)
        if type(self).is_lost:
            type(self).num_tries += 1
            raise ConnectionError('the log is elsewhere')
        return super().read(position, limit, checksum)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is busy may keep a healthy log from answering for a while.
    monkeypatch.setattr(snapshot_ranker, '_BUDGET', 20.0)


def loader(pipeline: Pipeline, folder: Path, kind: Any = SqliteStream) -> Callable[[str], Any]:
    def load(name: str) -> SnapshotRanker:
        def make() -> Scorer:
            snapshot = Snapshot.open(folder / 'snapshots' / name)
            model = copy.deepcopy(pipeline.model)
            model.load_state_dict(snapshot.weights())
            return Scorer(snapshot, Replica(snapshot, kind(folder / 'events.db')), model)

        return SnapshotRanker(make)

    return load


def written(pipeline: Pipeline, folder: Path) -> str:
    r"""The name of a snapshot; the log holds the history."""
    with SqliteStream(folder / 'events.db') as stream:
        stream.append(pipeline.events(), 0)
    return Path(pipeline.snapshot(folder / 'snapshots')).name


def ids(pipeline: Pipeline, node: str) -> list[str]:
    return pipeline._known().raw(node).tolist()


@pytest.mark.parametrize('model', CONTEXT)
def test_answers_are_those_of_a_scorer_that_has_read_what_was_recorded(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    r"""By the wire: each event is in the answer to the next request, and a swap changes none."""
    pipeline = shop(model)
    name = written(pipeline, tmp_path)
    users, items = ids(pipeline, 'user'), ids(pipeline, 'item')
    load = loader(pipeline, tmp_path)
    maps = Snapshot.open(tmp_path / 'snapshots' / name).id_maps

    async def main() -> None:
        server = Server(
            load(name),
            port=0,
            load=load,
            admin_port=0,
            open_stream=lambda: SqliteStream(tmp_path / 'events.db'),
            nodes=lambda node_type, raw: maps[node_type].encode(raw),
        )
        await server.start()
        start = end = len(pipeline.events())
        with SqliteStream(tmp_path / 'events.db') as stream:
            snapshot = Snapshot.open(tmp_path / 'snapshots' / name)
            scorer = Scorer(snapshot, Replica(snapshot, stream), pipeline.model)
            async with AsyncClient(f'127.0.0.1:{server.port}') as client:
                for user in [*users[:6], 'nobody']:
                    if user != 'nobody':
                        end = await client.record(
                            [user] * 3,
                            items[:3],
                            [10**10 + end] * 3,
                            [1, 0, 1],
                            position=end,
                            timeout=60,
                        )
                        while scorer.replica.follow() > 0:
                            pass
                    context: Any = CONTEXT[model]
                    asked = [*items, 'nothing']
                    ranking = await client.rank(user, asked, context=context, timeout=60)
                    want = scorer.score(user, asked, context).probabilities['click']
                    np.testing.assert_allclose(ranking.probability, want.numpy(), rtol=1e-6)
                    assert (ranking.position, ranking.snapshot, ranking.degraded) == (end, name, ())
                assert end == start + 18
                await asyncio.to_thread(swap, f'127.0.0.1:{server.admin_port}', name)
                again = await client.rank('nobody', asked, context=context, timeout=60)
                np.testing.assert_array_equal(again.probability, ranking.probability)
                with pytest.raises(ValueError, match="'context' must tell"):
                    await client.rank(user, asked, context={'weather': 'wet'}, timeout=60)
                sample = server.metrics.registry.get_sample_value
                assert sample('mag_unknown_ids_total') == 6 + 2 + 2
                assert sample('mag_lag_events') == 0
        await server.stop()

    asyncio.run(main())
    assert [thread.name for thread in threading.enumerate() if thread.name == 'mag-follow'] == []


def test_a_log_that_is_lost_holds_nobody_up_and_is_found_again(
    shop: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = shop('count_net')
    ranker = loader(pipeline, tmp_path, Breaking)(written(pipeline, tmp_path))
    end = len(pipeline.events())
    items = ids(pipeline, 'item')
    try:
        before = ranker.rank('m7', items, 0, CONTEXT['count_net'])
        assert (before.position, before.degraded, before.lag) == (end, (), 0)
        begun = time.monotonic()
        Breaking.is_lost = True
        event = np.array([(0, 0, pipeline.events()['time'][-1] + 1, 1)], EVENT)
        with SqliteStream(tmp_path / 'events.db') as stream:
            stream.append(event, end)
        for _ in range(20):
            lost = ranker.rank('m7', items, 0, CONTEXT['count_net'])
            assert (lost.position, lost.degraded, lost.lag) == (end, ('log unreachable',), None)
            np.testing.assert_array_equal(lost.probability, before.probability)
        # It is not tried for each of them.
        assert Breaking.num_tries <= 2 + (time.monotonic() - begun) / 0.25
        Breaking.is_lost = False
        deadline = time.monotonic() + 60
        while ranker.rank('m7', items, 0, CONTEXT['count_net']).position == end:
            assert time.monotonic() < deadline
        found = ranker.rank('m7', items, 0, CONTEXT['count_net'])
        assert (found.position, found.degraded, found.lag) == (end + 1, (), 0)
    finally:
        Breaking.is_lost = False
        ranker.close()
    assert [record.message for record in caplog.records] == ['lost the log', 'found the log']
    with pytest.raises(RuntimeError, match='is closed'):
        ranker.rank('m7', items, 0, CONTEXT['count_net'])


def test_a_log_that_hangs_holds_one_request_up_for_a_moment(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('count_net')
    ranker = loader(pipeline, tmp_path, Breaking)(written(pipeline, tmp_path))
    end, hangs_until = len(pipeline.events()), threading.Event()
    try:
        ranker.rank('m7', ['m1'], 0, CONTEXT['count_net'])
        monkeypatch.setattr(snapshot_ranker, '_BUDGET', 0.5)
        monkeypatch.setattr(Breaking, 'hangs_until', hangs_until)
        with SqliteStream(tmp_path / 'events.db') as stream:
            stream.append(pipeline.events()[:1], end)
        # Of two looks one may have begun before.
        seconds = []
        for _ in range(50):
            begun = time.monotonic()
            answer = ranker.rank('m7', ['m1'], 0, CONTEXT['count_net'])
            seconds.append(time.monotonic() - begun)
            if len(seconds) > 2:
                assert (answer.position, answer.degraded) == (end, ('log unreachable',))
        assert max(seconds) > 0.4
        assert sum(one > 0.4 for one in seconds) <= 2
        monkeypatch.setattr(snapshot_ranker, '_BUDGET', 20.0)
        monkeypatch.setattr(Breaking, 'hangs_until', None)
        hangs_until.set()
        # Also where requests leave it no time to look by itself.
        found = []
        for _ in range(100):
            found.append(ranker.rank('m7', ['m1'], 0, CONTEXT['count_net']))
            time.sleep(0.005)
        assert {(one.position, one.degraded) for one in found[-10:]} == {(end + 1, ())}
    finally:
        hangs_until.set()
        ranker.close()
    assert {'mag-follow', 'mag-read'}.isdisjoint(one.name for one in threading.enumerate())


@pytest.mark.parametrize('how', ['hangs', 'is killed'])
def test_no_request_waits_for_a_redis_that(
    how: str, shop: Callable[[str], Any], tmp_path: Path, redis_server: Any
) -> None:
    pipeline, timeout = shop('count_net'), 20.0
    history, key = pipeline.events(), how.replace(' ', '-')
    name = Path(pipeline.snapshot(tmp_path / 'snapshots')).name
    RedisStream(connect(redis_server.url, timeout=30), key).append(history, 0)

    def make() -> Scorer:
        snapshot = Snapshot.open(tmp_path / 'snapshots' / name)
        stream = RedisStream(connect(redis_server.url, timeout=timeout), key)
        return Scorer(snapshot, Replica(snapshot, stream), pipeline.model)

    answers: list[tuple[float, Any]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            begun = time.monotonic()
            answer = ranker.rank('m7', ['m1', 'm2'], 0, CONTEXT['count_net'])
            answers.append((time.monotonic() - begun, answer))
            time.sleep(0.01)

    def wait(*degraded: str) -> None:
        deadline = time.monotonic() + 60
        while not answers or answers[-1][1].degraded != degraded:
            assert time.monotonic() < deadline and all(one.is_alive() for one in clients)
            time.sleep(0.01)

    ranker = SnapshotRanker(make)
    clients = [threading.Thread(target=ask) for _ in range(3)]
    try:
        for client in clients:
            client.start()
        wait()
        snapshot_ranker._BUDGET = 0.05
        # What has begun before may wait as long as was told before.
        num_before = len(answers)
        while len(answers) < num_before + 2 * len(clients):
            time.sleep(0.01)
        if how == 'hangs':
            redis_server.send(signal.SIGSTOP)
        else:
            redis_server.kill()
        wait('log unreachable')
        num_before = len(answers)
        time.sleep(0.3)
        assert len(answers) > num_before
        snapshot_ranker._BUDGET = 20.0
        if how == 'hangs':
            redis_server.send(signal.SIGCONT)
        else:
            redis_server.start()
        wait()
        with connect(redis_server.url, timeout=30) as client:
            end = RedisStream(client, key).append(history[:5], len(history))
        assert ranker.rank('m7', ['m1'], 0, CONTEXT['count_net']).position == end
    finally:
        ended.set()
        redis_server.send(signal.SIGCONT)
        for client in clients:
            client.join()
        ranker.close()
    assert max(seconds for seconds, _ in answers) < timeout / 2


@pytest.mark.parametrize('kind', ['sqlite', 'redis'])
def test_a_log_that_went_back_is_counted_again(
    kind: str,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    tmp_path: Path,
    redis_server: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    r"""A power cut took events back that were counted, and others came in their place."""
    pipeline = shop('count_net')
    history, items = pipeline.events(), ids(pipeline, 'item')
    snapshot = Snapshot.open(pipeline.snapshot(tmp_path / 'snapshots'))
    lost, came = later_events(pipeline, 100), later_events(pipeline, 300, seed=1)

    def open_log() -> EventStream:
        if kind == 'redis':
            return RedisStream(connect(redis_server.url, timeout=30), 'back')
        return SqliteStream(tmp_path / 'events.db')

    def rank() -> Any:
        return ranker.rank('m7', items, 0, CONTEXT['count_net'])

    with open_log() as stream:
        stream.append(history, 0)
        length = redis_server.append_only_file.stat().st_size
        stream.append(lost, len(history))
        ranker = SnapshotRanker(
            lambda: Scorer(snapshot, Replica(snapshot, open_log()), pipeline.model)
        )
        try:
            assert rank().position == len(history) + 100
            if kind == 'redis':
                redis_server.lose_power(length)
            else:
                stream._database.execute('DELETE FROM batch WHERE "end" > ?', (len(history),))
            end = stream.append(came, len(history))
            deadline, reasons = time.monotonic() + 60, set()
            while reasons.add((answer := rank()).degraded) or answer.degraded:
                assert time.monotonic() < deadline
            assert ('log went back',) in reasons
            assert reasons <= {(), ('log went back',), ('log unreachable',)}
            assert answer.position == end
            scorer = Scorer(snapshot, Replica(snapshot, stream), pipeline.model)
            scorer.replica.follow()
            want = scorer.score('m7', items, CONTEXT['count_net']).probabilities['click']
            np.testing.assert_allclose(answer.probability, want.numpy(), rtol=1e-6)
        finally:
            ranker.close()
    assert [record.message for record in caplog.records].count('the log went back') == 1


def test_without_the_past_of_the_snapshot_nothing_is_counted(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('count_net')
    name = written(pipeline, tmp_path)
    history = pipeline.events()
    ranker = loader(pipeline, tmp_path)(name)
    try:
        with SqliteStream(tmp_path / 'events.db') as stream:
            end = stream.append(history[:5], len(history))
            assert ranker.rank('m7', ['m1'], 0, CONTEXT['count_net']).position == end
            stream._database.execute('DELETE FROM batch')
            history['clicked'] ^= 1
            stream.append(np.concatenate([history, history]), 0)
        deadline = time.monotonic() + 60
        while 'that Snapshot(' not in str(ranker.scorer.replica.degraded):
            ranker.rank('m7', ['m1'], 0, CONTEXT['count_net'])
            assert time.monotonic() < deadline
        for _ in range(3):
            answer = ranker.rank('m7', ['m1'], 0, CONTEXT['count_net'])
            assert (answer.position, answer.degraded) == (len(history), ('log went back',))
    finally:
        ranker.close()
    with pytest.raises(ValueError, match='was made of: serve a snapshot of this log, or open the'):
        loader(pipeline, tmp_path)(name)


def test_the_log_is_followed_while_nobody_asks(
    shop: Callable[[str], Any], tmp_path: Path, later_events: Callable[..., np.ndarray]
) -> None:
    pipeline = shop('count_net')
    ranker = loader(pipeline, tmp_path)(written(pipeline, tmp_path))
    try:
        with SqliteStream(tmp_path / 'events.db') as stream:
            end = stream.append(later_events(pipeline, 20_000), stream.end)
        deadline = time.monotonic() + 60
        while ranker.scorer.replica.position < end:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        ranker.close()


def test_what_cannot_be_made_is_told_to_who_made_it(tmp_path: Path) -> None:
    def make() -> Scorer:
        raise FileNotFoundError('There is no folder here.')

    with pytest.raises(FileNotFoundError, match='no folder here'):
        SnapshotRanker(make)


def test_a_log_that_cannot_be_counted_at_first_is_closed(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(self: Replica, limit: int) -> int:
        raise OverflowError('32 bits are too few')

    class Closing(SqliteStream):
        def close(self) -> None:
            closed.append(self.path)
            super().close()

    closed: list[str] = []
    pipeline = shop('count_net')
    monkeypatch.setattr(Replica, 'follow', follow)
    name = written(pipeline, tmp_path)
    with pytest.raises(OverflowError, match='32 bits are too few'):
        loader(pipeline, tmp_path, Closing)(name)
    assert closed == [str(tmp_path / 'events.db')]


def test_a_log_that_cannot_be_counted_is_not_counted_twice(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('count_net')
    ranker = loader(pipeline, tmp_path)(written(pipeline, tmp_path))
    try:

        def count(events: np.ndarray) -> None:
            raise OverflowError('32 bits are too few')

        monkeypatch.setattr(ranker.scorer.replica, 'count', count)
        for _ in range(2):
            with pytest.raises(RuntimeError, match='could not count the log'):
                ranker.rank('m7', ids(pipeline, 'item'), 0, CONTEXT['count_net'])
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match='could not count the log'):
            ranker.rank('m7', ids(pipeline, 'item'), 0, CONTEXT['count_net'])
    finally:
        ranker.close()


def test_a_replica_that_cannot_start_again_answers_no_more(
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = shop('count_net')
    name, history = written(pipeline, tmp_path), pipeline.events()
    with SqliteStream(tmp_path / 'events.db') as stream:
        stream.append(later_events(pipeline, 9), len(history))
        ranker = loader(pipeline, tmp_path)(name)
        try:

            def restart() -> None:
                raise MemoryError('no memory is left')

            monkeypatch.setattr(ranker.scorer.replica, 'restart', restart)
            stream._database.execute('DELETE FROM batch WHERE "end" > ?', (len(history),))
            stream.append(later_events(pipeline, 99, seed=1), len(history))
            deadline = time.monotonic() + 60
            while ranker._failure is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for _ in range(2):
                with pytest.raises(RuntimeError, match='could not count the log'):
                    ranker.rank('m7', ids(pipeline, 'item'), 0, CONTEXT['count_net'])
        finally:
            ranker.close()


def test_no_request_waits_for_a_register_that_hangs_with_its_log(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, hangs_until = shop('count_net'), threading.Event()
    name, context = written(pipeline, tmp_path), CONTEXT['count_net']
    monkeypatch.setattr(Breaking, 'hangs_until', None)

    class Register(SqliteIdRegister):
        num_reads = 0

        def read(self, *given: Any) -> list[str]:
            type(self).num_reads += 1
            if Breaking.hangs_until is not None:
                Breaking.hangs_until.wait(60)
            return super().read(*given)

    def make() -> Scorer:
        snapshot = Snapshot.open(tmp_path / 'snapshots' / name)
        stream = Breaking(tmp_path / 'events.db')
        register = Register(tmp_path / 'events.db')
        register.begin(snapshot.id_maps)
        return Scorer(snapshot, Replica(snapshot, stream), pipeline.model, register)

    ranker = SnapshotRanker(make)
    try:
        # What there is is read before it serves.
        assert (num_reads := Register.num_reads) > 0
        with SqliteStream(tmp_path / 'events.db') as stream:
            end = stream.append(pipeline.events()[-1:])
        assert ranker.rank('m7', ['m1'], 0, context).position == end
        snapshot_ranker._BUDGET = 0.05
        Breaking.hangs_until = hangs_until
        for _ in range(2):
            answer = ranker.rank('nobody', ['m1'], 0, context)
            assert (answer.degraded, answer.num_unknown) == (('log unreachable',), 1)
        assert Register.num_reads == num_reads
        snapshot_ranker._BUDGET = 20.0
        hangs_until.set()
        deadline = time.monotonic() + 60
        while ranker.rank('nobody', ['m1'], 0, context).degraded:
            assert time.monotonic() < deadline
        assert Register.num_reads > num_reads
    finally:
        hangs_until.set()
        ranker.close()
