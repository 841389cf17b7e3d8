import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
from speed import coarsening, scale, scale_ways
from speed.power_law_log import write_power_law_log
from timing import Stages

SIZE = 4_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    written = write_power_law_log(
        tmp_path / 'log.parquet', SIZE, 40, 50, click_share=scale.CLICK_SHARE
    )
    return scale_ways.give_clusters(written, tmp_path / 'given.parquet')


def test_a_share_of_a_log_is_clicked_and_a_node_has_one_cluster(log: Path) -> None:
    share, pairs, users = (
        duckdb.connect()
        .execute(f"""
            SELECT avg(click), count(DISTINCT (user, segment)), count(DISTINCT user)
            FROM read_parquet('{log}')
        """)
        .fetchall()[0]
    )
    # Four standard deviations of a share of as many draws.
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / SIZE)
    assert pairs == users == 40


def test_both_ways_count_the_same(log: Path, tmp_path: Path) -> None:
    rows = duckdb.connect().execute(f"SELECT * FROM read_parquet('{log}')").fetchnumpy()
    clicked = np.zeros((40, 50), np.int64)
    clicked[rows['user'][rows['click'] > 0], rows['item'][rows['click'] > 0]] = 1
    in_memory = scale_ways.memory(Stages(), log, scale.end_of(SIZE))
    # Two hops from a user lead to all who clicked the same.
    both = (clicked.sum(0) ** 2).sum(), (clicked.sum(1) ** 2).sum()
    assert (in_memory['hop 2 of users'], in_memory['hop 2 of items']) == both
    stages = Stages()
    found = scale_ways.store(
        stages, log, scale_ways.GIVEN, [*scale_ways.GIVEN.values()], True,
        {'cutoffs': [scale.end_of(SIZE)]}, '1GiB',
    )  # fmt: skip
    assert (found['users'], found['items']) == (40, 50)
    assert {*stages.seconds} == {*scale.STAGES}
    # Hop 2 takes two bytes a node and cluster of its type, unknown ones among them, and a list of
    # neighbors four bytes each.
    segments, families = (len(np.unique(rows[name])) + 1 for name in scale_ways.GIVEN.values())
    tables = 2 * (40 * segments + 50 * families) + 4 * 20 * (40 + 50)
    assert tables < found['kept'] < found['disk']
    assert not list(tmp_path.glob('tmp*'))


def test_what_was_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process.
    monkeypatch.setattr(
        scale, 'measure', lambda *where, **what: coarsening.measure_here(*where, what)
    )
    arguments = [
        *('--json', str(tmp_path / 'scale.json'), '--figure', str(tmp_path / 'scale.png')),
        *('--sizes', '100000', '--window-sizes', '100000', '--windows', '2'),
        *('--click-sizes', '100000', '--engine-sizes', '100000', '--folder', str(tmp_path)),
    ]
    scale.main(arguments)
    records = json.loads((tmp_path / 'scale.json').read_text())
    assert [(of['part'], of['way']) for of in records] == [
        ('sizes', 'store'), ('windows', 'store'), ('clicks', 'store'), ('clicks', 'memory'),
        ('engines', 'store'), ('engines', 'memory'), ('engines', 'in_duckdb'),
    ]  # fmt: skip
    assert all(of['facts']['users'] == 1_000 for of in records if of['way'] == 'store')
    # Twice the moments are more to keep.
    assert records[1]['facts']['kept'] > records[0]['facts']['kept']
    told = capsys.readouterr().out
    assert f'| 100,000 | 1,000 | {records[0]["facts"]["items"]} | 1 |' in told
    assert (tmp_path / 'scale.png').stat().st_size > 0

    def fail(*arguments: object) -> None:
        raise AssertionError('It was run before.')

    monkeypatch.setattr(scale, 'measure', fail)
    scale.main(arguments)
    assert capsys.readouterr().out == told
