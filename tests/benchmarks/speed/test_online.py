import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')

from records import select  # noqa: E402
from speed import online  # noqa: E402

from mag.online import Replica, SqliteStream  # noqa: E402

NUM_NODES = {'user': 30, 'item': 20}
NUMBERS = {'user': 4, 'item': 5}
ARGUMENTS: dict[str, Any] = {
    'users': 30, 'items': 20, 'clusters': 5, 'log': 9000, 'seconds': 0.01, 'served_users': 30,
    'served_items': 20, 'macro': ['4x5'], 'candidates': [2, 9], 'repeats': 1, 'answered': '4x5',
    'asked': 9, 'clients': [1, 2], 'requests': 4, 'events': 2,
}  # fmt: skip


@pytest.fixture
def events() -> np.ndarray:
    return online.draw_events(NUM_NODES, 500, seed=3)


def test_a_snapshot_holds_what_a_loop_over_its_events_counts(
    events: np.ndarray, tmp_path: Path
) -> None:
    snapshot = online.snapshot_of(tmp_path, 'macgnn', events, NUM_NODES, NUMBERS)
    clusters = {node: of[0] for node, of in online.draw_clusters(NUM_NODES, NUMBERS).items()}
    exposures = np.zeros((30, 6), np.int64)
    clicked = np.zeros((30, 20), np.int64)
    cells = np.zeros((5, 6, 2), np.int64)
    for user, item, _, is_click in events.tolist():
        exposures[user, clusters['item'][item]] += 1
        cells[clusters['user'][user], clusters['item'][item]] += 1, is_click
        clicked[user, item] |= is_click
    np.testing.assert_array_equal(snapshot.rows['user']['exposures'], exposures)
    np.testing.assert_array_equal(snapshot.cells[0, 0], cells)
    # Hop 1 of users over items, and of items over users.
    of_item = np.eye(5, dtype=np.int64)[clusters['item']]
    of_user = np.eye(4, dtype=np.int64)[clusters['user']]
    np.testing.assert_array_equal(snapshot.rows['user']['pairs'][:, :5], clicked @ of_item)
    np.testing.assert_array_equal(snapshot.hop_2['user'], clicked @ clicked.T @ of_user)
    np.testing.assert_array_equal(snapshot.hop_2['item'], clicked.T @ clicked @ of_item)
    # A replica goes on from all of them.
    with SqliteStream(tmp_path / 'events.db') as stream:
        stream.append(events, 0)
        assert Replica(snapshot, stream).follow() == 0


def test_what_is_appended_is_the_events_and_nothing_else(
    events: np.ndarray, tmp_path: Path
) -> None:
    with SqliteStream(tmp_path / 'events.db', 'second') as stream:
        number = online.append_all(stream, events, 64, seconds=0.05)
        assert number == stream.end > 0
        assert number % 64 == 0
        np.testing.assert_array_equal(stream.read(0, 64), events[:64])


def test_nodes_follow_a_power_law() -> None:
    drawn = online.draw_nodes(100, 100_000, np.random.default_rng(0))
    found = np.sort(np.bincount(drawn, minlength=100))[::-1] / 100_000
    rank = 1 / np.arange(1, 101)
    # Five standard deviations of the share of the largest.
    np.testing.assert_allclose(found[:5], (rank / rank.sum())[:5], atol=0.007)


def test_all_parts_are_measured_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    args = argparse.Namespace(**ARGUMENTS)
    events = online.draw_events(NUM_NODES, 9000, 0)
    monkeypatch.setattr(online, 'BATCHES', (64, 8192))
    records += online.ingest(tmp_path, events, NUM_NODES, args)
    # Native code takes a quarter of a minute to compile.
    monkeypatch.setattr(
        online, 'programs_of', lambda model, batch, write: {'program': model, 'compiled': model}
    )
    records += online.score(tmp_path, 'count_net', (4, 5), events, args)
    assert len(select(records, part='append')) == 8
    assert [of['way'] for of in select(records, part='read')] == [
        'SQLite', 'Redis, everysec', 'replica',
    ]  # fmt: skip
    applied = select(records, part='apply', batch=8192)
    # One step at least, and none is counted twice.
    assert all(8192 <= of['events'] <= 9000 for of in applied)
    records += online.score(tmp_path, 'macgnn', (4, 5), events, args)
    assert [of['candidates'] for of in select(records, part='score')] == [2, 9, 2, 9]
    assert [('all moved' in of) for of in select(records, part='score')] == [False] * 2 + [True] * 2


def test_every_request_is_answered_or_shed_and_every_event_seen(
    events: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = argparse.Namespace(**{**ARGUMENTS, 'clients': [1, 6], 'requests': 40})
    path = online.snapshot_of(tmp_path, 'macgnn', events, NUM_NODES, NUMBERS).path
    log = tmp_path / 'events.db'
    with SqliteStream(log) as stream:
        stream.append(events, 0)

    async def main() -> list[Any]:
        server = online.server_of(path, log)
        server.max_in_flight = 1
        await server.start()
        try:
            return await online.ask(server.port, None, NUM_NODES, args)
        finally:
            await server.stop()

    one, six, visible = asyncio.run(main())
    assert (one['answered'], one['shed']) == (40, 0)
    assert six['answered'] == 20 and six['shed'] > 0
    assert 0 < visible['appended'] < visible['p50'] <= visible['p99']
    with SqliteStream(log) as stream:
        recorded = stream.read(500)
    user, items = online.request_of(NUM_NODES, 9)
    assert recorded[['user', 'item', 'clicked']].tolist() == [(user, at, 1) for at in items[:2]]


def test_the_tables_hold_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {'p50': 1.25, 'p99': 2.5, 'p99.9': 3.75}
    speed = {'events': 6400, 'each_second': 12345.6, 'each_processor_second': 99.6}
    records = [
        {'part': 'append', 'way': 'A', 'batch': 64, 'server_share': 0.25, **speed},
        {'part': 'apply', 'way': 'B', 'batch': 8192, 'server_share': 0.0, **speed},
        {'part': 'read', 'way': 'C', 'rows': 10, 'here': 0.5, 'there': 0.125, **times},
        {
            'part': 'score', 'model': 'macgnn', 'macro': [4, 5], 'candidates': 1000, 'batch': 0.5,
            'eager': 6.0, 'program': 5.0, 'compiled': 3.0, 'none moved': 2.0, 'a tenth moved': 2.5,
            'all moved': 4.0,
        },
        {
            'part': 'score', 'model': 'count_net', 'macro': [4, 5], 'candidates': 10, 'batch': 0.5,
            'eager': 1.0, 'program': 1.5, 'compiled': 0.75,
        },
        {
            'part': 'answer', 'model': 'macgnn', 'macro': [4, 5], 'clients': 2, 'candidates': 9,
            'limit': 4, 'answered': 1000, 'shed': 3, 'each_second': 50.4, 'here': 1.5, 'there': 7.5,
            **times,
        },
        {'part': 'visible', 'model': 'macgnn', 'macro': [4, 5], 'events': 2, 'appended': 1.0,
         'RssAnon': 250.6, 'RssFile': 99.4, **times},
    ]  # fmt: skip
    monkeypatch.setattr(online, 'measure', lambda args: records)
    online.main(['--json', str(tmp_path / 'online.json')])
    told = capsys.readouterr().out
    for line in (
        '| A | 64 | 6,400 | 12,346 | 100 | 25% |',
        '| B | 8,192 | 6,400 | 12,346 | 100 | 0% |',
        '| C | 1.25 | 2.50 | 0.50 | 0.12 |',
        '| MacGNN | 4 x 5 | 1,000 | 0.50 | 6.00 | 5.00 | 3.00 | 2.00 | 2.50 | 4.00 |',
        '| CountNet | 4 x 5 | 10 | 0.50 | 1.00 | 1.50 | 0.75 |  |  |  |',
        '| MacGNN | 2 | 1,000 | 3 | 1.2 | 2.5 | 3.8 | 50 | 7.5 | 1.5 |',
        '| MacGNN | 1.2 | 2.5 | 1.0 |',
        '| MacGNN | 251 | 99 |',
    ):
        assert line in told
    assert json.loads((tmp_path / 'online.json').read_text()) == records


def test_a_program_that_scores_otherwise_ends_the_run(
    events: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(online.CountNet):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch) + 1

    def other(model: Any, batch: Any, write: Any) -> Any:
        found = online.make_model('count_net', NUM_NODES, NUMBERS)
        found.__class__ = Other
        return {'program': found, 'compiled': model}

    monkeypatch.setattr(online, 'programs_of', other)
    args = argparse.Namespace(**ARGUMENTS)
    with pytest.raises(
        RuntimeError, match='count_net scores 2 candidates otherwise by its program'
    ):
        online.score(tmp_path, 'count_net', (4, 5), events, args)
