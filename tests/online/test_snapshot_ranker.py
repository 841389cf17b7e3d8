import asyncio
import copy
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
    Replica,
    Scorer,
    Server,
    Snapshot,
    SnapshotRanker,
    SqliteStream,
    swap,
)
from mag.pipeline import Pipeline  # noqa: E402

CONTEXT = {'count_net': {'device': 'phone'}, 'macgnn': {}}


class Breaking(SqliteStream):
    r"""A log that can be lost."""

    is_lost = False
    seconds = 0.0
    num_tries = 0

    def read(self, position: int, limit: int = 8192, checksum: int | None = None) -> np.ndarray:
        if type(self).is_lost:
            type(self).num_tries += 1
            time.sleep(self.seconds)
            raise ConnectionError('the log is elsewhere')
        return super().read(position, limit, checksum)


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


def test_a_log_that_hangs_takes_a_tenth_of_the_time(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('count_net')
    ranker = loader(pipeline, tmp_path, Breaking)(written(pipeline, tmp_path))
    try:
        monkeypatch.setattr(Breaking, 'num_tries', 0)
        monkeypatch.setattr(Breaking, 'seconds', 0.2)
        begun = time.monotonic()
        monkeypatch.setattr(Breaking, 'is_lost', True)
        while (elapsed := time.monotonic() - begun) < 3:
            ranker.rank('m7', ['m1'], 0, CONTEXT['count_net'])
        assert 1 <= Breaking.num_tries <= 1 + elapsed / 2
    finally:
        ranker.close()


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

        def follow(limit: int) -> int:
            raise OverflowError('32 bits are too few')

        monkeypatch.setattr(ranker.scorer.replica, 'follow', follow)
        for _ in range(2):
            with pytest.raises(RuntimeError, match='could not count the log'):
                ranker.rank('m7', ids(pipeline, 'item'), 0, CONTEXT['count_net'])
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match='could not count the log'):
            ranker.rank('m7', ids(pipeline, 'item'), 0, CONTEXT['count_net'])
    finally:
        ranker.close()
