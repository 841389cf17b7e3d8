from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.online import Consumer, Replica, Snapshot, SqliteCenter, SqliteStream, checksum_of


def start(pipeline: Any, folder: Path) -> tuple[Replica, SqliteStream]:
    r"""A replica of a new snapshot, and the log that it follows, which holds the history."""
    stream = SqliteStream(folder / 'events.db')
    stream.append(pipeline.events(), 0)
    return Replica(Snapshot.open(pipeline.snapshot(folder / 'snapshots')).verify(), stream), stream


def all_nodes(pipeline: Any) -> dict[str, np.ndarray]:
    r"""All that are known, some that are new, and one to which nothing happens."""
    summary = pipeline.summary()
    return {
        node: np.append(np.arange(summary[f'{node}s'] + 5), 2**31 - 1) for node in ('user', 'item')
    }


def check(replica: Replica, expected: dict[str, Any], nodes: dict[str, np.ndarray]) -> None:
    for node in ('user', 'item'):
        assert replica.rows(node, nodes[node]).tobytes() == expected[node].tobytes()
    if replica.snapshot.hop_2:
        found = {node: replica.hop_2(node, nodes[node]) for node in ('user', 'item')}
        np.testing.assert_array_equal(found['user'], expected['exact_hop_2_user'])
        np.testing.assert_array_equal(found['item'], expected['hop_2_item'])
    for place, table in replica.cells.items():
        np.testing.assert_array_equal(table, expected['cells'][place])


@pytest.mark.parametrize('model', ['count_net', 'macgnn'])
@pytest.mark.parametrize('limit', [1, 37, 8192])
def test_a_replica_has_what_a_loop_over_the_whole_log_counts(
    model: str,
    limit: int,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    count_by_loop: Callable[..., Any],
    tmp_path: Path,
) -> None:
    pipeline = shop(model)
    replica, stream = start(pipeline, tmp_path)
    history, later = pipeline.events(), later_events(pipeline, 300)
    position, nodes = len(history), all_nodes(pipeline)
    check(replica, count_by_loop(pipeline, history, position, nodes), nodes)
    stream.append(later[:200], position)
    for end in (200, 300):
        if end == 300:
            stream.append(later[200:], position + 200)
        while replica.follow(limit) > 0:
            pass
        log = np.concatenate([history, later[:end]])
        assert replica.position == len(log)
        check(replica, count_by_loop(pipeline, log, position, nodes), nodes)
    assert replica.degraded is None
    for node, rows in replica.snapshot.rows.items():
        # What is mapped stays what it was.
        assert not rows.flags.writeable and rows['seen'].sum() == position, node


def test_a_replica_and_a_centre_that_counted_the_whole_log_agree(
    shop: Callable[[str], Any], later_events: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    r"""In all but exposures and clicks from before a cluster was known: a consumer knows the
    clusters of now alone."""
    pipeline = shop('count_net')
    replica, stream = start(pipeline, tmp_path)
    snapshot, nodes = replica.snapshot, all_nodes(pipeline)
    stream.append(later_events(pipeline, 300), replica.position)
    while replica.follow(70) > 0:
        pass
    clusters = {
        node: [torch.from_numpy(of.astype(np.int64)) for of in found]
        for node, found in snapshot.clusters.items()
    }
    with SqliteCenter(tmp_path / 'rows.db', snapshot.layout) as center:
        consumer = Consumer(stream, center, snapshot.layout, clusters)
        consumer.run()
        assert consumer.position == replica.position
        for node, of_node in nodes.items():
            rows, others = replica.rows(node, of_node), center.read(node, of_node)
            for name in ('seen', 'recent', 'pairs'):
                np.testing.assert_array_equal(rows[name], others[name])
            # Who was seen once was seen in some cluster.
            for name in ('exposures', 'clicks'):
                np.testing.assert_array_equal(rows[name].sum(axis=1), others[name].sum(axis=1))


def test_what_is_refused_leaves_no_trace(
    shop: Callable[[str], Any], later_events: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    pipeline = shop('macgnn')
    replica, stream = start(pipeline, tmp_path)
    later, nodes = later_events(pipeline, 50), all_nodes(pipeline)
    later['user'][-1] = 0
    stream.append(later, replica.position)
    replica.follow(10)
    row = replica.rows('user', np.array([0]))
    row['seen'] = 2**32 - 1
    hop_2 = replica.hop_2('user', np.array([0]))
    replica._moved['user'].put(np.array([0]), row, hop_2, replica.position)
    before = [
        *(replica.rows(node, of).tobytes() for node, of in nodes.items()),
        *(replica.hop_2(node, of).tobytes() for node, of in nodes.items()),
        replica.cells[0, 0].tobytes(),
        replica.position,
    ]
    with pytest.raises(OverflowError, match='up to 4294967295 events of a node'):
        replica.follow()
    assert before == [
        *(replica.rows(node, of).tobytes() for node, of in nodes.items()),
        *(replica.hop_2(node, of).tobytes() for node, of in nodes.items()),
        replica.cells[0, 0].tobytes(),
        replica.position,
    ]


@pytest.mark.parametrize('model', ['count_net', 'macgnn'])
def test_a_log_that_diverged_is_counted_again_from_the_snapshot(
    model: str,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    count_by_loop: Callable[..., Any],
    tmp_path: Path,
) -> None:
    pipeline = shop(model)
    replica, stream = start(pipeline, tmp_path)
    history, nodes = pipeline.events(), all_nodes(pipeline)
    lost, came = later_events(pipeline, 100), later_events(pipeline, 200, seed=1)
    stream.append(lost, len(history))
    assert replica.follow(70) == 70
    with SqliteStream(tmp_path / 'again.db') as other:
        other.append(np.concatenate([history, lost[:30], came]), 0)
        replica.stream = other
        for _ in range(2):
            assert replica.follow() == 0
            assert (replica.position, replica.diverged) == (len(history) + 70, True)
            assert 'has other events before position' in str(replica.degraded)
        replica.restart()
        assert (replica.position, replica.diverged) == (len(history), False)
        assert replica.follow() == 230
        log = np.concatenate([history, lost[:30], came])
        assert replica.checksum == checksum_of(log)
        check(replica, count_by_loop(pipeline, log, len(history), nodes), nodes)


def test_the_past_of_the_snapshot_must_be_that_of_the_log(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('count_net')
    replica, _ = start(pipeline, tmp_path)
    history = pipeline.events()
    history['clicked'][5] ^= 1
    with SqliteStream(tmp_path / 'another.db') as other:
        other.append(history, 0)
        replica = Replica(replica.snapshot, other)
        assert replica.follow() == 0
        assert replica.diverged


@pytest.mark.parametrize('limit', [3, 8192])
def test_rows_move_with_their_own_events(
    limit: int,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    pipeline = shop('macgnn')
    replica, stream = start(pipeline, tmp_path)
    later, history = later_events(pipeline, 30), replica.position
    stream.append(later, history)
    assert replica.follow(12) == 12
    while replica.follow(limit) > 0:
        pass
    for node, number in replica.snapshot.num_nodes.items():
        nodes = np.arange(-1, number)
        for position, moved in (
            (-1, nodes),
            (history, later[node]),
            (history + 12, later[12:][node]),
        ):
            found = replica.moved_since(node, nodes, np.full(len(nodes), position))
            np.testing.assert_array_equal(found, np.isin(nodes, moved))
        assert not replica.moved_since(node, nodes, np.full(len(nodes), replica.position)).any()
        with pytest.raises(IndexError, match=f'{node} ids from {number} to {number}'):
            replica.moved_since(node, np.array([number]), np.array([0]))
