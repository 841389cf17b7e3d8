r"""A snapshot as of any position of a log, with users and items that came after the first one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mag.online import (
    EVENT,
    EventStream,
    IdRegister,
    RedisIdRegister,
    RedisStream,
    Replica,
    Scorer,
    Snapshot,
    SqliteIdRegister,
    SqliteStream,
    connect,
)
from mag.pipeline import Pipeline
from mag.schema import NEIGHBOR_TYPE

CONTEXT = {'count_net': {'device': 'phone'}, 'macgnn': None}
MODELS = tuple(CONTEXT)


class Log(NamedTuple):
    stream: EventStream
    register: IdRegister

    def record(self, pipeline: Pipeline, rows: list[tuple[Any, Any, int, int]]) -> int:
        r"""Appends events by raw ids, as a server that knows the ids of a pipeline does."""
        events = np.empty(len(rows), EVENT)
        for node, raw in zip(('user', 'item'), zip(*rows)):
            known = pipeline._known().look_up(node, list(raw)).numpy()
            new = [text for text, number in zip(raw, known) if number < 0]
            known[known < 0] = self.register.add({node: new}).numbers[node]
            events[node] = known
        _, _, events['time'], events['clicked'] = (np.array(column) for column in zip(*rows))
        return self.stream.append(events, self.stream.end)


class Shrinking(SqliteStream):
    r"""A log that has lost events since it told its end."""

    @property
    def end(self) -> int:
        return super().end + 5


@pytest.fixture(params=['sqlite', 'redis'])
def log(request: Any, tmp_path: Path) -> Iterator[Log]:
    if request.param == 'redis':
        request.getfixturevalue('client')
        client = connect(request.getfixturevalue('redis_server').url, timeout=30)
        yield Log(RedisStream(client), RedisIdRegister(client))
        client.close()
    else:
        path = tmp_path / 'events.db'
        with SqliteStream(path, 'second') as stream, SqliteIdRegister(path) as register:
            yield Log(stream, register)


def begin(pipeline: Pipeline, log: Log, folder: Path) -> Replica:
    r"""The replica of a first snapshot."""
    log.stream.append(pipeline.events(), 0)
    log.register.begin(pipeline._known().maps)
    return Replica(Snapshot.open(pipeline.snapshot(folder / 'snapshots')), log.stream)


def drawn(pipeline: Pipeline, number: int, seed: int, prefix: str) -> list[tuple[Any, ...]]:
    r"""Later events by raw ids: clicks of those that were clicked before, and exposures of all,
    with new users and items and times that go back."""
    random = np.random.default_rng(seed)
    history = pipeline.events()
    columns: list[list[Any]] = []
    for node in ('user', 'item'):
        raw = pipeline._known().raw(node)
        clicked = raw[np.unique(history[node][history['clicked'] == 1])]
        new = [f'{prefix}{node}{n}' for n in random.permutation(9)]
        all_ids = np.concatenate([clicked, np.array(new, object)])
        columns.append(random.choice(all_ids, number).tolist())
    is_old = [not u.startswith(prefix) and not i.startswith(prefix) for u, i in zip(*columns)]
    clicked = (random.random(number) < 0.5) & is_old
    time = int(history['time'][-1]) + 1 + np.arange(number) // 3 - random.integers(0, 9, number)
    return list(zip(*columns, time.tolist(), clicked.astype(int).tolist()))


def folded(rows: np.ndarray, name: str, snapshot: Snapshot, node: str, other: Snapshot) -> Any:
    r"""Counts over the clusters that another snapshot has: who is in none of them is last."""
    parts = []
    for resolution, number in enumerate(other.layout.num_clusters[NEIGHBOR_TYPE[node]]):
        of = rows[name][:, snapshot.layout.columns(node, resolution)]
        parts += [of[:, :number], of[:, number:].sum(axis=1, keepdims=True)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize('model', MODELS)
def test_a_snapshot_at_a_position_has_the_rows_of_a_replica_that_followed_to_it(
    model: str, log: Log, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    replica = begin(pipeline, log, tmp_path)
    first = replica.snapshot
    assert log.record(pipeline, drawn(pipeline, 200, 1, 'x')) == first.position + 200
    at = first.position + 120
    while replica.position < at:
        replica.follow(min(50, at - replica.position))
    path = pipeline.snapshot(tmp_path / 'snapshots', log.stream, log.register, at)
    snapshot = Snapshot.open(path)
    assert snapshot.position == at == len(pipeline.events())
    assert snapshot.time == int(pipeline.events()['time'][-1])
    for node in ('user', 'item'):
        number = snapshot.num_nodes[node]
        # By the numbers of the register, as far as an event has used them.
        used = int(log.stream.read(0, at)[node].max()) + 1
        assert number == used > first.num_nodes[node]
        ids = snapshot.id_maps[node].decode(range(first.num_nodes[node], number)).tolist()
        assert ids == log.register.read(node, first.num_nodes[node], len(ids))
        rows, expected = snapshot.rows[node], replica.rows(node, np.arange(number))
        if model == 'macgnn':
            assert rows.tobytes() == expected.tobytes()
        for name in ('seen', 'recent'):
            np.testing.assert_array_equal(rows[name], expected[name])
        # What a new item is of is not told: that is a category of its own from now on.
        for name in ('exposures', 'clicks', 'pairs'):
            np.testing.assert_array_equal(folded(rows, name, snapshot, node, first), expected[name])
    for place, table in replica.cells.items():
        own = snapshot.cells[place]
        assert own.sum() == table.sum()
        if model == 'macgnn':
            np.testing.assert_array_equal(own, table)
    # It goes on from there, with ids that the second has and with others.
    follower = Replica(snapshot, log.stream)
    for one in (replica, follower):
        while one.follow() > 0:
            pass
    nodes = np.arange(snapshot.num_nodes['user'] + 5)
    seen = [one.rows('user', nodes)['seen'] for one in (replica, follower)]
    np.testing.assert_array_equal(*seen)
    # And once more, from the pipeline that has read the first part, or from one that has not.
    ends = [
        one.snapshot(tmp_path / 'snapshots', log.stream, log.register)
        for one in (pipeline, shop(model))
    ]
    maps = [Snapshot.open(end).id_maps['user'] for end in ends]
    assert (
        maps[0].decode(range(len(maps[0]))).tolist() == maps[1].decode(range(len(maps[1]))).tolist()
    )
    assert maps[0].fingerprint == maps[1].fingerprint


@pytest.mark.parametrize('model', MODELS)
def test_a_snapshot_of_a_log_has_what_a_loop_counts_with_its_clusters(
    model: str,
    log: Log,
    shop: Callable[[str], Any],
    count_by_loop: Callable[..., Any],
    tmp_path: Path,
) -> None:
    pipeline = shop(model)
    begin(pipeline, log, tmp_path)
    last = int(pipeline.events()['time'][-1])
    rows = [('zoe', 'm3', last + 1, 1), ('zoe', 'new', last + 2, 1), ('m7', 'new', last + 3, 1)]
    log.record(pipeline, rows + drawn(pipeline, 60, 2, 'y'))
    snapshot = Snapshot.open(
        pipeline.snapshot(tmp_path / 'snapshots', log.stream, log.register)
    ).verify()
    events = pipeline.events()
    held = log.stream.read(0, len(events))
    for name in ('user', 'item', 'clicked'):
        np.testing.assert_array_equal(events[name], held[name])
    # What comes late has happened with what was there before it.
    assert (np.diff(held['time']) < 0).any()
    np.testing.assert_array_equal(events['time'], np.maximum.accumulate(held['time']))
    nodes = {node: np.arange(number) for node, number in snapshot.num_nodes.items()}
    expected = count_by_loop(pipeline, events, len(events), nodes)
    for node in nodes:
        assert snapshot.rows[node].tobytes() == expected[node].tobytes()
        if snapshot.hop_2:
            np.testing.assert_array_equal(snapshot.hop_2[node], expected[f'hop_2_{node}'])
    for place, table in snapshot.cells.items():
        np.testing.assert_array_equal(table, expected['cells'][place])
    # Who is new is in a cluster now, and is scored.
    assert (snapshot.clusters['user'][:, snapshot.id_maps['user'].encode(['zoe'])[0]] >= 0).all()
    scores = pipeline.score('zoe', ['m3', 'new', 'm5'], context=CONTEXT[model])
    pipeline.save(tmp_path / 'saved')
    again = Pipeline.load(tmp_path / 'saved')
    assert (
        again.score('zoe', ['m3', 'new', 'm5'], context=CONTEXT[model]).tolist() == scores.tolist()
    )
    scorer = Scorer(snapshot, Replica(snapshot, log.stream), again.model, log.register)
    found = scorer.score('zoe', ['m3', 'new', 'm5'], CONTEXT[model]).probabilities['click']
    assert found.tolist() == scores.tolist()


@pytest.mark.parametrize('model', MODELS)
def test_a_user_who_came_after_the_snapshot_is_scored_by_what_was_counted_since(
    model: str, log: Log, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    replica = begin(pipeline, log, tmp_path)
    scorer = Scorer(replica.snapshot, replica, pipeline.model, log.register)
    items = ['m3', 'new', 'm5', 'nothing', 'm9']

    def batch(user: Any) -> Any:
        while replica.follow() > 0:
            pass
        return scorer.batch(user, items, CONTEXT[model])

    nobody = batch('zoe')
    last = int(pipeline.events()['time'][-1])
    # Three events: m3 and new are clicked, m5 is not.
    rows = [('zoe', item, last + n, int(item != 'm5')) for n, item in enumerate(items[:3])]
    log.record(pipeline, rows)
    found, other = batch('zoe'), batch('somebody')
    map_of = replica.snapshot.id_maps['item']
    nodes = map_of.encode(items)
    assert nodes.tolist()[1::2] == [-1, -1]
    # The model has no embedding of who is new.
    unknown = [n < 0 for n in nodes.tolist()]
    if model == 'macgnn':
        assert (found.user == -1).all()
        assert (found.item < 0).tolist() == unknown
        cluster = replica.snapshot.clusters['item'][0]
        expected = np.bincount([cluster[nodes[0]]], minlength=cluster.max() + 1)
        np.testing.assert_array_equal(found.user_hops[0][0][: len(expected)], expected)
        # Newest last: of m3 the model knows, of new nothing.
        assert found.user_recent[0].tolist()[-2:] == [nodes[0], -1]
        # The new item was clicked by somebody of no cluster, and so is its hop 1.
        assert found.item_hops[0][1].sum() == 0
        assert (other.user_hops[0] == 0).all() and (nobody.user_hops[0] == 0).all()
    else:
        assert (found.user == -1).all() and (found.item < 0).tolist() == unknown
        # All of the user, and all of the items: those of before and these.
        history = pipeline.events()
        assert found.counts[:, 0].tolist() == [[3, 2]] * 5
        before = [history[history['item'] == node] for node in nodes]
        expected = np.array([[len(of), int(of['clicked'].sum())] for of in before])
        expected += [[1, 1], [1, 1], [1, 0], [0, 0], [0, 0]]
        np.testing.assert_array_equal(found.counts[:, 1], expected)
        # Between the user and the cluster of each item: of a new item, those in none.
        own = replica.snapshot.clusters['item'][0][nodes]
        own[nodes < 0] = -1
        shown, clicks = own[:3], own[:2]
        of_cluster = [[int((shown == of).sum()), int((clicks == of).sum())] for of in own]
        assert found.counts[:, 2].tolist() == of_cluster
        assert other.counts[:, 0].tolist() == nobody.counts[:, 0].tolist() == [[0, 0]] * 5
    scores = scorer.score('zoe', items, CONTEXT[model]).probabilities['click']
    cold = scorer.score('somebody', items, CONTEXT[model]).probabilities['click']
    assert scores.isfinite().all() and scores.tolist() != cold.tolist()


def test_what_does_not_fit_is_refused_in_a_sentence(
    log: Log, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('macgnn')
    begin(pipeline, log, tmp_path)
    number = len(pipeline.events())
    last = int(pipeline.events()['time'][-1])
    log.record(pipeline, [('zoe', 'm3', last, 1)])
    folder = tmp_path / 'snapshots'
    before = pipeline.summary()

    def refused(match: str, stream: Any = log.stream, at: int | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            pipeline.snapshot(folder, stream, log.register, at)
        assert pipeline.summary() == before

    refused(
        f"'at' must be at least {number}, as .* but got {number - 1}: load one that was",
        at=number - 1,
    )
    refused(
        f"'at' must be at most the end of .*, {number + 1}, but got {number + 2}", at=number + 2
    )
    with pytest.raises(ValueError, match="'log' and 'register' are told together"):
        pipeline.snapshot(folder, log.stream)
    with pytest.raises(ValueError, match="and 'at' with them"):
        pipeline.snapshot(folder, at=number)
    with SqliteStream(tmp_path / 'other.db') as stream:
        events = pipeline.events()
        events['clicked'][3] ^= 1
        stream.append(events, 0)
        refused('at position 3, where the pipeline has', stream)
    with SqliteStream(tmp_path / 'short.db') as short:
        refused(f'ends at position 0, but must begin with the {number} events that', short)
    with Shrinking(tmp_path / 'shrinking.db') as shrinking:
        shrinking.append(log.stream.read(0, number + 1), 0)
        refused(
            f'ended at position {number + 6} a moment ago, and ends at {number + 1} now', shrinking
        )
    # An event whose number nobody gave.
    event = np.zeros(1, EVENT)
    event['item'] = 1000
    log.stream.append(event, log.stream.end)
    refused('The log has events of item 1000, but the ids that are known and .* end before 40')
    # At the end of what is known nothing is read.
    path = pipeline.snapshot(folder, log.stream, log.register, number)
    assert path == shop('macgnn').snapshot(folder) and pipeline.summary() == before
    # Who has read new ids elsewhere has others by these numbers.
    (tmp_path / 'later.csv').write_text(
        f'uid,sku,ts,clicked,kind,device\nabe,m3,{last},1,k3,phone\n'
    )
    pipeline.update(str(tmp_path / 'later.csv'))
    with SqliteStream(tmp_path / 'third.db') as stream:
        stream.append(pipeline.events(), 0)
        with pytest.raises(
            ValueError, match='gives users other numbers than .* from 60 on: events that'
        ):
            pipeline.snapshot(folder, stream, log.register)
