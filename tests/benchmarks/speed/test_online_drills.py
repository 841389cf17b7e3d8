import argparse
import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')

from records import select  # noqa: E402
from speed import online_drills  # noqa: E402
from speed.online import draw_clusters, draw_events  # noqa: E402

from mag.online import SqliteCenter, SqliteStream  # noqa: E402

NUM_NODES, NUM_CLUSTERS = online_drills.NUM_NODES, online_drills.NUM_CLUSTERS


def test_rows_are_those_that_a_consumer_counts_and_one_that_differs_is_told(tmp_path: Path) -> None:
    log, clusters = draw_events(NUM_NODES, 3000, 0), draw_clusters(NUM_NODES, NUM_CLUSTERS)
    place = online_drills.Place(tmp_path, None)
    with place.stream() as stream, place.center() as center:
        stream.append(log, 0)
        for shard in range(2):
            online_drills.consumer_of(place, clusters, shard).run()
        totals = dict.fromkeys(('rows', 'differ', 'bytes'), 0)
        positions = online_drills.compare(log, clusters, stream, center, totals)
        assert positions == {0: 3000, 1: 3000}
        assert (totals['rows'], totals['differ']) == (sum(NUM_NODES.values()), 0)
        user = np.array([4])
        row = center.read('user', user)
        row['recent'][0, -1] ^= 1
        center.commit(center.claim(0), 3000, {'user': (user, row)})
        online_drills.compare(log, clusters, stream, center, totals)
        assert totals['differ'] == 1
        other = log.copy()
        other['item'][0] ^= 1
        with pytest.raises(RuntimeError, match='holds other events than those that were sent'):
            online_drills.compare(other, clusters, stream, center, totals)


def test_a_power_cut_leaves_files_that_can_be_opened(tmp_path: Path) -> None:
    log = draw_events(NUM_NODES, 20_000, 0)
    place = online_drills.Place(tmp_path, None)
    with place.stream() as stream, place.center():
        pass
    with place.stream() as stream, place.center():
        for position in range(0, 20_000, 100):
            stream.append(log[position : position + 100], position)
        left = online_drills.cut_files(place, tmp_path / 'left', random.Random(1))
        with SqliteStream(left.folder / 'log') as cut:
            assert 0 < (end := cut.end) < 20_000
            np.testing.assert_array_equal(cut.read(0, 20_000), log[:end])
        SqliteCenter(left.folder / 'rows', online_drills.LAYOUT).close()


def test_answers_across_swaps_are_those_of_offline(tmp_path: Path) -> None:
    args = argparse.Namespace(log=2000, swaps=2, seconds=0.1)
    record = asyncio.run(online_drills.swaps(tmp_path / 'swaps', 0, args))
    assert (record['swaps'], record['failures'], record['snapshots']) == (2, 0, 2)
    assert record['answers'] > 0 and record['recorded'] > 0
    assert record['farthest'] < 1e-6


def test_the_tables_tell_what_was_measured() -> None:
    records: list[dict[str, Any]] = [
        {
            'part': part, 'where': where, 'seed': 7, 'events': 9000, 'killed producers': 1,
            'killed consumers': 2, 'killed servers': 3, 'power cuts': 4, 'repeated': 5, 'early': 6,
            'lost': 1007, 'rows': 8000, 'differ': 0,
        }
        for part in ('kills', 'power cuts')
        for where in ('SQLite', 'Redis')
    ]  # fmt: skip
    records.append(
        {
            'part': 'swaps', 'swaps': 6, 'answers': 1500, 'positions': 70, 'recorded': 900,
            'failures': 0, 'degraded': 1, 'farthest': 3e-8,
        }
    )  # fmt: skip
    records += [
        {
            'part': 'outages', 'kind': kind, 'outages': 2, 'requests': 1200, 'failures': 0,
            'degraded': 1199, 'p50': 2.5, 'p99': 7.5, 'longest': 21.0, 'ratio': 1.25,
        }
        for kind in ('normal', 'hung', 'down')
    ]  # fmt: skip
    assert len(select(records, part='kills')) == 2
    told = list(online_drills.render(records, (1.0, 2.0)))
    for line in (
        '| Redis | 1 | 2 | 3 | 4 | 9,000 | 5 | 6 | 1,007 | 8,000 | 0 |',
        '| 6 | 1,500 | 70 | 900 | 0 | 1 | 3e-08 |',
        '| hung | 1,200 | 0 | 1,199 | 2.5 | 7.5 | 21.0 | 1.25 |',
    ):
        assert line in told
