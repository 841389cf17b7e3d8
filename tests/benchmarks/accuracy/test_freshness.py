import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.schema import CLICKS

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)

DELAYS = {'fresh': 0.0, 'an hour old': 40.0, 'a day old': 300.0}


@pytest.fixture
def crowded(root: Path, small_groups: None) -> Path:
    r"""The log of :obj:`root`, shorter, in which three events share each second."""
    path = root / 'raw' / 'ml-1m' / 'ratings.dat'
    rows = [line.split('::') for line in path.read_text().splitlines()[:1500]]
    path.write_text(''.join(f'{u}::{i}::{r}::{int(t) // 3}\n' for u, i, r, t in rows))
    return root


@pytest.fixture
def parts(crowded: Path) -> Any:
    from accuracy.count_data import make_parts

    return make_parts('movielens-1m', 'rolling', str(crowded))


def columns_of(log: Any) -> tuple[list[int], ...]:
    clicks = log[CLICKS]
    user, item = clicks.edge_label_index.tolist()
    return user, item, clicks.edge_label_time.tolist(), clicks.edge_label.tolist()


def test_rows_read_before_their_position_or_before_their_time_less_the_delay(parts: Any) -> None:
    from accuracy.event_replay import positions, read_before, snapshot_position

    log, test = parts.log, parts.test
    user, item, time, label = columns_of(log)
    place = positions(log, test).tolist()
    rows = columns_of(test)
    assert len(place) > 100 and len(set(rows[2])) < len(place)
    assert [[column[p] for p in place] for column in (user, item, time, label)] == list(rows)
    assert read_before(log, test, 0.0).tolist() == place
    for delay in (40.0, 300.0):
        expected = [sum(then < now - delay for then in time) for now in rows[2]]
        assert read_before(log, test, delay).tolist() == expected
        cutoff = int(test[CLICKS].cutoff) - delay
        assert snapshot_position(log, test, delay) == sum(then < cutoff for then in time)
    test[CLICKS].edge_label_index = test[CLICKS].edge_label_index.flip(1)
    with pytest.raises(ValueError, match='must be those of the log from'):
        positions(log, test)


@pytest.mark.parametrize('delay', DELAYS.values())
def test_counts_are_those_of_a_loop_over_the_events_before(parts: Any, delay: float) -> None:
    from accuracy.count_data import with_counts
    from accuracy.counts import is_of_one_resolution
    from accuracy.event_replay import counts_as_of, read_before

    log, test = parts.log, parts.test
    user, item, time, label = columns_of(log)
    cluster = {node: test[node].cluster.tolist() for node in ('user', 'item')}
    since = test['user'].cluster_since.tolist()
    before = read_before(log, test, delay)
    found = counts_as_of(log, test, before)
    if delay == 0:
        # Where time is what is compared, what came before in the same second is hidden.
        by_time = with_counts(test, parts.fresh, is_of_one_resolution)[CLICKS].edge_label_counts
        assert (found >= by_time).all() and (found > by_time).any()
    for row in range(0, len(before), 9):
        u, i = test[CLICKS].edge_label_index[:, row].tolist()
        expected = np.zeros((5, 2))
        for e in range(int(before[row])):
            is_of = cluster['user'][user[e]] == cluster['user'][u] and time[e] >= since[user[e]]
            same = [
                user[e] == u,
                item[e] == i,
                user[e] == u and cluster['item'][item[e]] == cluster['item'][i],
                is_of and item[e] == i,
                is_of and cluster['item'][item[e]] == cluster['item'][i],
            ]
            expected[same] += (1, label[e])
        assert found[row].tolist() == expected.tolist()


def expected_rows(
    log: Any, test: Any, node: str, of: int, before: int, snapshot_at: int
) -> tuple[list[float], ...]:
    r"""Hop 1, hop 2 as a server has it, hop 2 exact and the recent list, by loops."""
    user, item, _, label = columns_of(log)
    own, other = (user, item) if node == 'user' else (item, user)
    neighbor = 'item' if node == 'user' else 'user'
    cluster = {name: test[name].cluster.tolist() for name in ('user', 'item')}
    sizes = {name: test[f'macro_{name}'].num_nodes for name in ('user', 'item')}
    clicks = [e for e in range(before) if label[e] == 1]

    def who(near: int, end: int) -> set[int]:
        r"""Of a neighbor, who clicked before an event."""
        return {own[e] for e in clicks if e < end and other[e] == near}

    def count(nodes: set[int], of_type: str) -> np.ndarray:
        return np.bincount(
            [c for n in nodes if (c := cluster[of_type][n]) >= 0], minlength=sizes[of_type]
        )

    first: dict[int, int] = {}
    for e in clicks:
        if own[e] == of:
            first.setdefault(other[e], e)
    served, exact = np.zeros(sizes[node]), np.zeros(sizes[node])
    for near, e in first.items():
        read = before if node == 'user' else snapshot_at if e < snapshot_at else e + 1
        served += count(who(near, read), node)
        exact += count(who(near, before), node)
    cutoff = int(test[CLICKS].cutoff)
    known = {n for n, t in zip(other, columns_of(log)[2], strict=True) if t < cutoff}
    recent = [other[e] if other[e] in known else -1 for e in clicks if own[e] == of][-20:]
    return (
        count(set(first), neighbor).tolist(),
        served.tolist(),
        exact.tolist(),
        [-1] * (20 - len(recent)) + recent,
    )


@pytest.mark.parametrize('delay', DELAYS.values())
def test_macro_rows_are_those_of_a_loop_over_the_events_before(parts: Any, delay: float) -> None:
    from accuracy.event_replay import pairs_as_of, read_before, snapshot_position

    log, test = parts.log, parts.test
    before, start = read_before(log, test, delay), snapshot_position(log, test, delay)
    served, exact = pairs_as_of(log, test, before, start, exact=True)
    assert served.label is not None and served.label.equal(test[CLICKS].edge_label)
    for row in range(0, len(before), 23):
        for node in ('user', 'item'):
            of = int(getattr(served, node)[row])
            hops, hops_exact = (getattr(one, f'{node}_hops') for one in (served, exact))
            found = hops[0][row], hops[1][row], hops_exact[1][row]
            recent = getattr(served, f'{node}_recent')[row]
            expected = expected_rows(log, test, node, of, int(before[row]), start)
            assert (*(of_hop.tolist() for of_hop in found), recent.tolist()) == expected
    assert served.user_hops[0].equal(exact.user_hops[0])
    assert served.user_hops[1].equal(exact.user_hops[1])


def test_what_comes_later_moves_nothing(parts: Any) -> None:
    from accuracy.event_replay import counts_as_of, pairs_as_of, read_before, snapshot_position

    log, test = parts.log, parts.test
    before, start = read_before(log, test, 0.0), snapshot_position(log, test)
    middle = len(before) // 2
    found = counts_as_of(log, test, before), pairs_as_of(log, test, before, start, exact=True)
    # The row in the middle, and what follows it.
    label = log[CLICKS].edge_label
    label[before[middle] :] = 1 - label[before[middle] :]
    others = counts_as_of(log, test, before), pairs_as_of(log, test, before, start, exact=True)
    upto = slice(middle + 1)
    assert found[0][upto].equal(others[0][upto])
    assert not found[0].equal(others[0])
    for one, other in zip(found[1], others[1], strict=True):
        for name in ('user_recent', 'item_recent'):
            assert getattr(one, name)[upto].equal(getattr(other, name)[upto])
        for name in ('user_hops', 'item_hops'):
            for hop, of_other in zip(getattr(one, name), getattr(other, name), strict=True):
                assert hop[upto].equal(of_other[upto])
                assert not hop.equal(of_other)


def test_a_snapshot_old_is_the_part_as_it_is_and_fresh_is_what_a_scorer_reads(
    parts: Any, tmp_path: Path
) -> None:
    from accuracy.count_data import with_counts
    from accuracy.counts import is_of_one_resolution
    from accuracy.event_replay import (
        counts_as_of,
        events_of,
        follow,
        pairs_as_of,
        positions,
        snapshot_position,
        write_stock,
    )

    from mag.loader import PairLoader
    from mag.online import Replica, Scorer, SqliteStream

    log, test = parts.log, parts.test
    place, start = positions(log, test), snapshot_position(log, test)
    stale = with_counts(test, test[CLICKS].edge_label_counts, is_of_one_resolution)
    asked = torch.full_like(place, start)
    assert counts_as_of(log, test, asked).equal(stale[CLICKS].edge_label_counts)
    (as_it_is,) = PairLoader(test, len(place))
    (found,) = pairs_as_of(log, test, asked, start)
    for name in ('user_hops', 'item_hops'):
        for hop, expected in zip(getattr(found, name), getattr(as_it_is, name), strict=True):
            assert hop.equal(expected)
    assert found.user_recent.equal(as_it_is.user_recent)
    assert found.item_recent.equal(as_it_is.item_recent)

    counts = counts_as_of(log, test, place)
    (pairs,) = pairs_as_of(log, test, place, start)
    with SqliteStream(tmp_path / 'events.db', 'second') as stream:
        stream.append(events_of(log), 0)
        scorers = {}
        for model in ('count_net', 'macgnn'):
            snapshot = write_stock(tmp_path / 'snapshots', stream, test, start, model)
            scorers[model] = Scorer(snapshot, Replica(snapshot, stream), torch.nn.Identity().eval())
        for row in range(0, len(place), 10):
            user, item = test[CLICKS].edge_label_index[:, row].tolist()
            for scorer in scorers.values():
                follow(scorer.replica, int(place[row]))
            batch = scorers['count_net'].batch(user, [item])
            assert batch.counts[0].equal(counts[row])
            batch = scorers['macgnn'].batch(user, [item])
            for name in ('user_hops', 'item_hops'):
                for hop, expected in zip(getattr(batch, name), getattr(pairs, name), strict=True):
                    assert hop[0].equal(expected[row])
            assert batch.user_recent[0].equal(pairs.user_recent[row])
            assert batch.item_recent[0].equal(pairs.item_recent[row])


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], crowded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import counts, freshness

    monkeypatch.setattr(counts, 'LEARNING_RATES', (1e-2,))
    monkeypatch.setattr(freshness, 'DELAYS', DELAYS)
    args = arguments('movielens-1m', list(freshness.MODELS), batch_size=64, settings=[], jobs=1)
    freshness.run(args)
    path = Path(args.out)
    records: list[dict[str, Any]] = json.loads(path.read_text())
    assert len(records) == 4
    for record in records:
        ages = set(freshness.AGES) - ({freshness.EXACT} if 'fresh' in record else set())
        assert set(record['ages']) == ages
        assert record['ages'][freshness.STALE] == record['test']
        assert record['ages']['fresh'] != record['test']
    freshness.run(args)
    assert json.loads(path.read_text()) == records
    args.seeds = 3
    freshness.run(args)
    records = json.loads(path.read_text())
    assert len(records) == 6

    lines = list(freshness.render(records))
    rows = [line.split(' | ') for line in lines if line.startswith('| a day old |')]
    for row, name in zip(rows, freshness.MODELS, strict=True):
        found = [record['ages'] for record in records if record['model'] == name]
        auc = [ages['a day old']['auc'] for ages in found]
        less = [ages[freshness.STALE]['auc'] for ages in found]
        assert row[1].startswith(f'{np.mean(auc):.4f} ± {np.std(auc, ddof=1):.4f}')
        assert row[2].startswith(f'{np.mean(auc) - np.mean(less):+.4f} (p = ')
        assert row[-1] == '3 |'
