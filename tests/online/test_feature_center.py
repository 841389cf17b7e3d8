r"""One suite for all centres, as they promise one thing."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.online import (
    Claim,
    FeatureCenter,
    Fenced,
    RedisCenter,
    RowLayout,
    SqliteCenter,
    SqliteStream,
    connect,
)

LAYOUT = RowLayout(3, {'user': [2], 'item': [3, 2]})
OTHER = RowLayout(4, {'user': [2], 'item': [3, 2]})
Open = Callable[..., FeatureCenter]


@pytest.fixture(params=['sqlite', 'redis'])
def open_center(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    r"""Opens one centre again and again, each time as another process would."""
    opened: list[Any] = []

    def open_again(layout: RowLayout = LAYOUT) -> FeatureCenter:
        if request.param == 'sqlite':
            center: FeatureCenter = SqliteCenter(tmp_path / 'rows.db', layout)
        else:
            client = connect(request.getfixturevalue('redis_server').url, timeout=30)
            opened.append(client)
            center = RedisCenter(client, layout, tmp_path.name)
        opened.append(center)
        return center

    yield open_again
    for one in reversed(opened):
        one.close()


@pytest.fixture
def center(open_center: Open) -> FeatureCenter:
    return open_center()


def draw_rows(node_type: str, num: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    content = random.integers(0, 256, num * LAYOUT.dtypes[node_type].itemsize, np.uint8)
    return content.view(LAYOUT.dtypes[node_type])


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def content(center: FeatureCenter) -> tuple[Any, ...]:
    r"""All that a reader sees of the nodes below 10 and of pairs of them."""
    nodes = np.arange(10)
    node, neighbor = (part.ravel() for part in np.meshgrid(nodes, nodes))
    return (
        center.positions(),
        *(center.read(name, nodes).tobytes() for name in ('user', 'item')),
        *(center.has_pairs(name, node, neighbor).tolist() for name in ('user', 'item')),
    )


def test_nothing_has_happened_to_nodes_at_first(center: FeatureCenter) -> None:
    rows = center.read('user', ids(5, -1, 5, 2**31 - 1))
    assert rows.tobytes() == LAYOUT.empty('user', 4).tobytes()
    assert rows['recent'].tolist() == 4 * [[-1, -1, -1]]
    assert center.read('item', ids()).shape == (0,)
    assert center.has_pairs('user', ids(1, 2), ids(3, 4)).tolist() == [False, False]
    assert center.has_pairs('user', ids(), ids()).tolist() == []
    assert center.positions() == {}


def test_what_is_committed_is_read_by_all(center: FeatureCenter, open_center: Open) -> None:
    claim = center.claim(0)
    assert (claim.shard, claim.position) == (0, 0)
    users, items = draw_rows('user', 3, 0), draw_rows('item', 2, 1)
    claim = center.commit(
        claim,
        70,
        {'user': (ids(4, 0, 9), users), 'item': (ids(4, 7), items)},
        {'user': (ids(4, 4, 0), ids(7, 8, 4)), 'item': (ids(7), ids(2))},
    )
    assert claim.position == 70
    for reader in (center, open_center()):
        found = reader.read('user', ids(9, 5, 4, -1, 0, 9))
        empty = LAYOUT.empty('user', 1)[0]
        expected = [users[2], empty, users[0], empty, users[1], users[2]]
        assert found.tobytes() == b''.join(row.tobytes() for row in expected)
        assert reader.read('item', ids(7, 4)).tobytes() == items[::-1].tobytes()
        found = reader.has_pairs('user', ids(4, 4, 0, 7, 0), ids(8, 7, 4, 4, 7))
        assert found.tolist() == [True, True, True, False, False]
        # Of each type apart.
        assert reader.has_pairs('item', ids(7, 2, 4), ids(2, 7, 7)).tolist() == [True, False, False]
        assert reader.positions() == {0: 70}
    # What is read can be written to.
    found['seen' if found.dtype.names else ...] = 1


def test_later_rows_take_the_place_of_earlier_ones(center: FeatureCenter) -> None:
    claim, pairs = center.claim(0), {'user': (ids(1), ids(1))}
    for seed in range(3):
        rows = draw_rows('user', 2, seed)
        claim = center.commit(claim, seed, {'user': (ids(seed, 3), rows)}, pairs)
        assert center.read('user', ids(seed, 3)).tobytes() == rows.tobytes()
    # A commit may also tell of no more than how far the log was read.
    claim = center.commit(claim, 100, {}, checksum=2**32 - 1)
    assert (claim.position, claim.checksum) == (100, 2**32 - 1)
    assert center.claim(0)[2:] == (100, 2**32 - 1)
    assert center.claim(1)[2:] == (0, 0)
    assert center.positions() == {0: 100, 1: 0}
    assert center.read('user', ids(3)).tobytes() == rows[1:].tobytes()


def test_ids_and_pairs_reach_as_far_as_those_of_events(center: FeatureCenter) -> None:
    last, rows = 2**31 - 1, draw_rows('item', 1, 0)
    pairs = {'item': (ids(last, last, 0), ids(last, 0, last))}
    center.commit(center.claim(0), 1, {'item': (ids(last), rows)}, pairs)
    assert center.read('item', ids(last)).tobytes() == rows.tobytes()
    found = center.has_pairs('item', ids(last, last, 0, 0), ids(last, 0, last, 0))
    assert found.tolist() == [True, True, True, False]
    assert center.has_pairs('item', np.array([last], np.int32), np.array([0], 'u8')).all()


def test_shards_have_positions_of_their_own(center: FeatureCenter, open_center: Open) -> None:
    other = open_center()
    first, second = center.claim(0), other.claim(3)
    first = center.commit(first, 10, {})
    second = other.commit(second, 5, {})
    first = center.commit(first, 20, {})
    assert center.positions() == {0: 20, 3: 5}
    assert other.claim(0).position == 20


def test_a_zombie_is_refused_and_nothing_of_its_commit_is_seen(
    center: FeatureCenter, open_center: Open
) -> None:
    zombie = center.commit(center.claim(0), 10, {'user': (ids(1), draw_rows('user', 1, 0))})
    after = open_center()
    claim = after.claim(0)
    assert claim.position == 10
    before = content(center)
    late = {'user': (ids(1, 2), draw_rows('user', 2, 1))}
    pairs = {'item': (ids(1), ids(2))}
    with pytest.raises(Fenced, match='claim of shard 0 as of position 10: another has claimed it'):
        center.commit(zombie, 20, late, pairs)
    assert content(center) == content(after) == before
    # Also after the other has written, and where it stands at the position of the zombie.
    claim = after.commit(claim, 10, {})
    claim = after.commit(claim, 15, {'user': (ids(2), draw_rows('user', 1, 2))})
    before = content(center)
    for position in (10, 15, 20):
        with pytest.raises(Fenced):
            center.commit(zombie._replace(position=position), 30, late, pairs)
    assert content(center) == before
    with pytest.raises(Fenced):
        center.commit(Claim(5, claim.epoch, 0), 30, late)
    assert after.commit(claim, 16, {}).position == 16


def test_of_a_commit_that_is_repeated_one_is_written(center: FeatureCenter) -> None:
    claim = center.claim(0)
    center.commit(claim, 10, {'user': (ids(1), draw_rows('user', 1, 0))})
    before = content(center)
    with pytest.raises(Fenced, match='or its rows are as of another position'):
        center.commit(claim, 10, {'user': (ids(1), draw_rows('user', 1, 1))})
    assert content(center) == before


def test_no_claim_is_taken_for_another_after_a_power_cut(
    center: FeatureCenter, open_center: Open
) -> None:
    r"""Numbers that count up would be given out twice where the last of them were lost."""
    epochs = {center.claim(0).epoch for _ in range(20)} | {open_center().claim(1).epoch}
    assert len(epochs) == 21


def test_a_centre_keeps_to_its_layout_and_its_settings(
    center: FeatureCenter, open_center: Open
) -> None:
    with pytest.raises(ValueError, match=re.escape(f'layout {LAYOUT}, not {OTHER}: go on with')):
        open_center(OTHER)
    center.agree({'colour': 'blue', 'num_shards': '2'})
    other = open_center()
    other.agree({'num_shards': '2', 'more': 'é'})
    with pytest.raises(ValueError, match='counted with colour blue, not red; num_shards 2, not 3:'):
        other.agree({'colour': 'red', 'num_shards': '3', 'more': 'é'})
    center.agree({'colour': 'blue', 'more': 'é'})


def test_bad_arguments_are_refused_and_leave_no_trace(center: Any) -> None:
    claim = center.commit(center.claim(0), 10, {})
    before, rows = content(center), draw_rows('user', 2, 0)
    nodes = ids(1, 2)
    for error, message, call in [
        (ValueError, 'at least 10, but got 9', lambda: center.commit(claim, 9, {})),
        (TypeError, 'must be an integer', lambda: center.commit(claim, 9.0, {})),
        (ValueError, "must be one of 'user'", lambda: center.commit(claim, 11, {'shop': (0, 0)})),
        (TypeError, 'of the layout', lambda: center.commit(claim, 11, {'item': (nodes, rows)})),
        (
            ValueError,
            'one a node, but got (2,) rows of (1,) nodes',
            lambda: center.commit(claim, 11, {'user': (ids(1), rows)}),
        ),
        (
            IndexError,
            'must lie from 0 to 2147483647, but are from -1 to 2',
            lambda: center.commit(claim, 11, {'user': (ids(-1, 2), rows)}),
        ),
        (
            IndexError,
            'from 1 to 2147483648',
            lambda: center.commit(
                claim, 11, {'user': (nodes, rows)}, {'user': (nodes, ids(1, 2**31))}
            ),
        ),
        (ValueError, 'got (2,) nodes', lambda: center.has_pairs('user', nodes, ids(1))),
        (IndexError, 'from -1 to 2147483647, but', lambda: center.read('user', ids(3, -2))),
        (TypeError, 'but got float64 of shape [1]', lambda: center.read('user', np.ones(1))),
        (TypeError, 'but got list', lambda: center.read('user', [1])),
        (ValueError, "got 'shop'", lambda: center.read('shop', nodes)),
        (ValueError, 'at least 0, but got -1', lambda: center.claim(-1)),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            call()
    assert content(center) == before
    with pytest.raises(TypeError, match="'layout' must be a RowLayout, but got 3"):
        type(center).__init__(object.__new__(type(center)), 'place', 3)


def test_random_commits_of_many_are_those_of_a_dictionary(
    center: FeatureCenter, open_center: Open
) -> None:
    random = np.random.default_rng(0)
    rows: dict[str, dict[int, bytes]] = {'user': {}, 'item': {}}
    pairs: dict[str, set[tuple[int, int]]] = {'user': set(), 'item': set()}
    claim, zombies, position = center.claim(0), [], 0
    for step in range(60):
        if random.random() < 0.2:
            zombies.append(claim)
            claim = center.claim(0)
            assert claim.position == position
        moved, clicked = {}, {}
        for node_type in rows:
            nodes = random.permutation(40)[: random.integers(0, 20)]
            moved[node_type] = nodes, draw_rows(node_type, len(nodes), step)
            clicked[node_type] = tuple(random.integers(0, 12, (2, 15)))
        if zombies and random.random() < 0.4:
            with pytest.raises(Fenced):
                center.commit(zombies[random.integers(len(zombies))], 2**40, moved, clicked)
            continue
        position += int(random.integers(0, 100))
        claim = center.commit(claim, position, moved, clicked)
        for node_type in rows:
            rows[node_type] |= {
                int(node): row.tobytes() for node, row in zip(*moved[node_type], strict=True)
            }
            pairs[node_type] |= set(zip(*map(np.ndarray.tolist, clicked[node_type])))
    assert len(zombies) > 5
    reader, empty = open_center(), {name: LAYOUT.empty(name, 1).tobytes() for name in rows}
    node, neighbor = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(12)))
    for node_type in rows:
        found = reader.read(node_type, np.arange(40))
        expected = [rows[node_type].get(number, empty[node_type]) for number in range(40)]
        assert found.tobytes() == b''.join(expected)
        found = reader.has_pairs(node_type, node, neighbor)
        pair = zip(node.tolist(), neighbor.tolist())
        assert found.tolist() == [one in pairs[node_type] for one in pair]
    assert reader.positions() == {0: position}


# What only one of the centres can meet.


def test_who_claims_in_the_middle_of_a_commit_to_redis_wins(client: Any, redis_server: Any) -> None:
    other, later = RedisCenter(connect(redis_server.url, timeout=30), LAYOUT), None

    class Slow(RedisCenter):
        def _of_rows(self, node_type: str, nodes: list[int]) -> list[str]:
            # After the epoch was read.
            nonlocal later
            later = other.claim(0)
            return super()._of_rows(node_type, nodes)

    center = Slow(client, LAYOUT)
    before = content(other)[1:]
    with pytest.raises(Fenced):
        center.commit(center.claim(0), 10, {'user': (ids(1), draw_rows('user', 1, 0))})
    assert content(other)[1:] == before
    assert later is not None and later.position == 0
    other.commit(later, 5, {})
    other.client.close()


def test_a_connection_that_breaks_in_a_commit_is_no_fence(client: Any) -> None:
    from redis import ConnectionError

    class Broken(RedisCenter):
        is_broken = True

        def _of_rows(self, node_type: str, nodes: list[int]) -> list[str]:
            if self.is_broken:
                for one in client.client_list():
                    client.client_kill_filter(_id=one['id'], skipme=True)
            return super()._of_rows(node_type, nodes)

    center = Broken(client, LAYOUT)
    claim, rows = center.claim(0), {'user': (ids(1), draw_rows('user', 1, 0))}
    with pytest.raises(ConnectionError):
        center.commit(claim, 10, rows)
    center.is_broken = False
    assert center.positions() == {0: 0}
    assert center.commit(claim, 10, rows).position == 10


def test_a_full_server_takes_all_of_a_commit_or_nothing(client: Any) -> None:
    from redis import RedisError

    center = RedisCenter(client, LAYOUT)
    claim, rows = center.claim(0), {'user': (ids(1), draw_rows('user', 1, 0))}
    before = content(center)
    client.config_set('maxmemory', 1)
    try:
        with pytest.raises(RedisError, match='(?i)oom|maxmemory|discarded'):
            center.commit(claim, 10, rows, {'user': (ids(1), ids(1))})
        assert content(center) == before
    finally:
        client.config_set('maxmemory', 0)
    assert center.commit(claim, 10, rows).position == 10


def test_a_row_of_another_length_is_refused_as_damaged(client: Any, tmp_path: Path) -> None:
    center = RedisCenter(client, LAYOUT)
    client.set('mag:user:1', b'abc')
    with pytest.raises(ValueError, match='is damaged: 1 rows of users should have .* have 3'):
        center.read('user', ids(0, 1))


def test_centres_of_other_names_do_not_meet(client: Any) -> None:
    first, second = RedisCenter(client, LAYOUT, 'a'), RedisCenter(client, OTHER, 'b')
    first.commit(first.claim(0), 10, {'user': (ids(1), draw_rows('user', 1, 0))})
    assert second.positions() == {}
    assert second.read('user', ids(1)).tobytes() == OTHER.empty('user', 1).tobytes()
    assert repr(first) == "RedisCenter(name='a')"


def test_a_client_that_makes_texts_and_a_name_that_is_none_are_refused(redis_server: Any) -> None:
    with connect(redis_server.url, timeout=30, decode_responses=True) as client:
        with pytest.raises(ValueError, match="'client' must return bytes"):
            RedisCenter(client, LAYOUT)
        with pytest.raises(TypeError, match="'name' must be a text, but got 3"):
            RedisCenter(client, LAYOUT, 3)  # type: ignore[arg-type]


def test_another_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / 'rows.db'
    sentence = (
        f"'path' must be a file that SqliteCenter made, or none, but {str(path)!r} is another"
    )
    path.write_bytes(b'no database' * 100)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SqliteCenter(path, LAYOUT)
    assert path.read_bytes() == b'no database' * 100
    path.unlink()
    SqliteStream(path).close()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SqliteCenter(path, LAYOUT)
    SqliteStream(path).close()
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute('CREATE TABLE mine (number)')
    database.close()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SqliteCenter(path, LAYOUT)
    with pytest.raises(sqlite3.OperationalError):
        SqliteCenter(tmp_path, LAYOUT)


def test_a_commit_to_a_file_that_fails_in_the_middle_leaves_no_trace(tmp_path: Path) -> None:
    with SqliteCenter(tmp_path / 'rows.db', LAYOUT) as center:
        claim, rows = center.claim(0), {'user': (ids(1), draw_rows('user', 1, 0))}
        before = content(center)
        with sqlite3.connect(center.path) as database:
            database.execute(
                'CREATE TRIGGER full BEFORE INSERT ON item_pair '
                "BEGIN SELECT raise(ABORT, 'disk full'); END"
            )
        pairs = {'user': (ids(1), ids(2)), 'item': (ids(1), ids(2))}
        with pytest.raises(sqlite3.IntegrityError, match='disk full'):
            center.commit(claim, 10, rows, pairs)
        assert content(center) == before
        database.execute('DROP TRIGGER full')
        database.close()
        assert center.commit(claim, 10, rows, pairs).position == 10
        assert repr(center) == f'SqliteCenter({center.path!r})'
