r"""One suite for all registers of ids, as they promise one thing."""

import multiprocessing
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.datasets import IdMap
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
    sqlite_file,
)
from mag.online import id_register as id_register_module

MAPS = {'user': IdMap(['ann', 'bob']), 'item': IdMap([3, 7, 9])}


class Place:
    r"""Where a register and its log are; they are opened again and again."""

    def __init__(self, kind: str, place: str) -> None:
        self.kind, self.place = kind, place

    def open(self) -> IdRegister:
        if self.kind == 'redis':
            return RedisIdRegister(connect(self.place, timeout=30))
        return SqliteIdRegister(self.place)

    def open_stream(self) -> EventStream:
        if self.kind == 'redis':
            return RedisStream(connect(self.place, timeout=30))
        return SqliteStream(self.place, 'second')


@pytest.fixture(params=['sqlite', 'redis'])
def place(request: Any, tmp_path: Path) -> Iterator[Place]:
    if request.param == 'redis':
        request.getfixturevalue('client')
        yield Place('redis', request.getfixturevalue('redis_server').url)
    else:
        yield Place('sqlite', str(tmp_path / 'events.db'))


def numbers(register: IdRegister, **ids: Any) -> dict[str, list[int]]:
    return {node: found.tolist() for node, found in register.add(ids).numbers.items()}


def test_numbers_follow_those_of_the_first_snapshot_in_order_and_stay(place: Place) -> None:
    with place.open() as register:
        assert not register.has_begun
        register.begin(MAPS)
        assert register.has_begun and register.first == {'user': 2, 'item': 3}
        added = register.add({'user': ['zoe', 'cid', 'zoe'], 'item': [12]})
        assert added.num_new == 3
        assert {node: of.tolist() for node, of in added.numbers.items()} == {
            'user': [2, 3, 2],
            'item': [3],
        }
        assert added.numbers['user'].dtype == np.int64
        # Of users and items, equal ids are two.
        assert numbers(register, user=['12', 'cid'], item=['zoe']) == {'user': [4, 3], 'item': [4]}
        # As is written, and in whatever holds them.
        assert numbers(register, item=[12, '12', '012']) == {'item': [3, 3, 5]}
        assert numbers(register, item=np.array([12, 13])) == {'item': [3, 6]}
        some = uuid.uuid4()
        assert numbers(register, item=[some]) == numbers(register, item=[str(some)])
        assert numbers(register, user=[]) == {'user': []}
        assert register.add({'user': ['zoe']}).num_new == 0
    with place.open() as register:
        # A later snapshot goes on from the same ids.
        later = {'user': MAPS['user'].append(['zoe', 'cid']), 'item': MAPS['item']}
        register.begin(later)
        assert register.read('user', 2) == ['zoe', 'cid', '12']
        assert register.read('user', 3, 1) == ['cid']
        assert register.read('user', 5) == register.read('user', 50) == []
        assert register.read('item', 3) == ['12', 'zoe', '012', '13', str(some)]


@pytest.mark.parametrize('number', [3000])
def test_many_ids_at_once(place: Place, number: int) -> None:
    with place.open() as register:
        register.begin(MAPS)
        names = [f'é{n}\0' for n in range(number)]
        assert numbers(register, user=names[::2])['user'] == [*range(2, 2 + number // 2)]
        found = numbers(register, user=names, item=names)
        assert found['user'][::2] == [*range(2, 2 + number // 2)]
        assert found['user'][1::2] == [*range(2 + number // 2, 2 + number)]
        assert found['item'] == [*range(3, 3 + number)]
        assert register.read('item', 3) == names


def test_what_cannot_be_an_id_is_refused_and_leaves_nothing(place: Place) -> None:
    with place.open() as register:
        for call in (lambda: register.add({'user': ['zoe']}), lambda: register.read('user', 2)):
            with pytest.raises(ValueError, match='has not begun: call begin'):
                call()
        register.begin(MAPS)
        with pytest.raises(ValueError, match="1 to 256 bytes, but 1 of 2 .*'éééééééééé' with 258"):
            register.add({'user': ['new', 'é' * 129]})
        with pytest.raises(ValueError, match="1 to 256 bytes, but 1 of 1 have not, such as ''"):
            register.add({'user': ['']})
        with pytest.raises(ValueError, match='must be Unicode'):
            register.add({'user': ['\ud800']})
        for other in (None, 1.5, b'x', True):
            with pytest.raises(TypeError, match='must be integers, texts or UUIDs, but got'):
                register.add({'user': ['new', other]})
        with pytest.raises(ValueError, match='gives users numbers from 2 on, but was asked for 1'):
            register.read('user', 1)
        others = {'user': IdMap(['ann', 'cid']), 'item': MAPS['item']}
        with pytest.raises(ValueError, match='goes on from the user ids 2:.*, but was given 2:'):
            register.begin(others)
        assert register.read('user', 2) == []
        assert numbers(register, user=['é' * 128]) == {'user': [2]}


def test_there_is_an_end_of_numbers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ('sqlite', 'redis'):
        monkeypatch.setattr(f'mag.online.{kind}_id_register._BEYOND', 4)
    monkeypatch.setattr(id_register_module, '_BEYOND', 4)
    with place.open() as register:
        register.begin(MAPS)
        with pytest.raises(ValueError, match='has no number left for another user'):
            register.add({'user': ['a', 'b', 'c']})
        assert register.read('user', 2) == ['a', 'b']
        assert numbers(register, user=['b']) == {'user': [3]}


def test_who_follows_reads_what_is_new_and_notices_what_was_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_register_module, '_NUM_TOGETHER', 3)
    with place.open() as register:
        register.begin(MAPS)
        follower = id_register_module.NewIds(register, {'user': 3, 'item': 3})
        for number in (0, 1, 3, 4, 8, 9, 9):
            register.add({'user': [f'u{n}' for n in range(number)]})
            follower.follow()
            asked = [f'u{n}' for n in range(12)]
            # That of the snapshot, which has one more than the first, is not found here.
            expected = [-1, *(n + 2 if n < number else -1 for n in range(1, 12))]
            assert follower.find('user', asked).tolist() == expected
        assert follower.find('user', [None, 1.5, '', True]).tolist() == [-1] * 4
        assert follower.find('item', ['u1']).tolist() == [-1]
        reads = []
        read = register.read
        monkeypatch.setattr(
            register,
            'read',
            lambda *given: reads.append(given) or read(*given),  # type: ignore[func-returns-value]
        )
        follower.follow()
        assert reads == [('user', 10, 3), ('item', 3, 3)]
        monkeypatch.undo()
        # A server that went back gives the numbers to others.
        lost = {'user': ['u0', 'u1', 'other', 'u2']}
        monkeypatch.setattr(
            register, 'read', lambda node, number, limit: lost.get(node, [])[number - 2 :][:limit]
        )
        follower.follow()
        assert follower.find('user', ['u1', 'u2', 'other', 'u8']).tolist() == [3, 5, 4, -1]


def produce(place: Place, seed: int, has_begun: Any) -> None:
    r"""Appends events of ids that were registered first, until it is killed."""
    chance = random.Random(seed)
    register, stream = place.open(), place.open_stream()
    while True:
        names = [f'u{chance.randrange(400)}' for _ in range(chance.randrange(1, 9))]
        events = np.zeros(len(names), EVENT)
        events['user'] = register.add({'user': names}).numbers['user']
        # The time tells the id that is meant.
        events['time'] = [int(name[1:]) for name in names]
        # Another one may have been faster.
        with suppress(ValueError):
            stream.append(events, stream.end)
            has_begun.set()


def test_killed_producers_leave_no_event_of_an_id_that_is_not_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer over a commit than who waits for it should.
    monkeypatch.setattr(sqlite_file, '_PATIENCE', 60.0)
    with place.open() as register:
        register.begin(MAPS)
    chance = random.Random(3)
    fork = multiprocessing.get_context('fork')
    for round_ in range(4):
        begun = [fork.Event(), fork.Event()]
        processes = [
            fork.Process(target=produce, args=(place, 2 * round_ + which, event), daemon=True)
            for which, event in enumerate(begun)
        ]
        for process in processes:
            process.start()
        for event in begun:
            assert event.wait(60)
        time.sleep(0.1 * chance.random())
        for process in processes:
            process.kill()
            process.join()
    with place.open() as register, place.open_stream() as stream:
        ids = register.read('user', 2)
        assert len(ids) == len(set(ids)) > 0
        events = stream.read(0, 2**20)
    assert len(events) > 20
    # Each event names the id that was meant.
    assert events['user'].max() < 2 + len(ids)
    meant = np.array([int(name[1:]) for name in ids])
    np.testing.assert_array_equal(meant[events['user'] - 2], events['time'])


def test_a_user_of_redis_needs_few_rights(redis_server: Any, client: Any) -> None:
    rights = '+info +eval +hget +hset +hgetall +exists +llen +rpush +lrange'
    client.execute_command('ACL', 'SETUSER', 'ids', 'on', '>secret', '~mag:*', *rights.split())
    url = redis_server.url
    with connect(url, username='ids', password='secret', timeout=30) as other:
        register = RedisIdRegister(other)
        register.begin(MAPS)
        assert numbers(register, user=['zoe']) == {'user': [2]}
        assert register.read('user', 2) == ['zoe']
    assert set(client.keys()) == {b'mag:ids', b'mag:ids:user', b'mag:ids:user:order'}
    register = RedisIdRegister(client, 'other')
    register.begin(MAPS)
    assert numbers(register, user=['cid']) == {'user': [2]}
    assert repr(register) == "RedisIdRegister(name='other')"


def test_a_log_from_before_gets_a_register(tmp_path: Path) -> None:
    path = tmp_path / 'events.db'
    with SqliteStream(path) as stream:
        stream.append(np.zeros(3, EVENT), 0)
        with SqliteIdRegister(path) as register:
            register.begin(MAPS)
            register.add({'user': ['zoe']})
            assert stream.append(np.zeros(2, EVENT), 3) == 5
        assert repr(register) == f'SqliteIdRegister({str(path)!r})'
    with pytest.raises(ValueError, match='must be a file that SqliteStream made'):
        (tmp_path / 'other.db').write_text('no file of SQLite, and long enough to tell' * 10)
        SqliteIdRegister(tmp_path / 'other.db')


def test_what_a_power_cut_takes_are_ids_with_their_events(redis_server: Any, client: Any) -> None:
    register, stream = RedisIdRegister(client), RedisStream(client)
    client.config_set('appendfsync', 'always')
    register.begin(MAPS)
    chance, num_ids = random.Random(5), 0
    for _ in range(4):
        length = redis_server.append_only_file.stat().st_size
        for _ in range(20):
            names = [f'u{chance.randrange(2000)}' for _ in range(chance.randrange(1, 9))]
            events = np.zeros(len(names), EVENT)
            events['user'] = register.add({'user': names}).numbers['user']
            events['time'] = [int(name[1:]) for name in names]
            stream.append(events, stream.end)
        written = redis_server.append_only_file.stat().st_size
        content = redis_server.append_only_file.read_bytes()[: chance.randrange(length, written)]
        # As redis-check-aof --fix does, which is to be run before it starts again.
        begun = content.rfind(b'*1\r\n$5\r\nMULTI\r\n')
        is_whole = begun < 0 or b'*1\r\n$4\r\nEXEC\r\n' in content[begun:]
        redis_server.lose_power(len(content) if is_whole else begun)
        client.config_set('appendfsync', 'always')
        ids, held = register.read('user', 2), stream.read(0, 2**20)
        assert len(ids) == len(set(ids)) >= num_ids
        num_ids = len(ids)
        meant = np.array([int(name[1:]) for name in ids], np.int64)
        np.testing.assert_array_equal(meant[held['user'] - 2], held['time'])
        # As one finds it, and as the other.
        assert register.add({'user': ids}).num_new == 0


def test_a_log_that_went_back_has_its_ids_read_anew(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline, log = shop('count_net'), tmp_path / 'events.db'
    snapshot = Snapshot.open(pipeline.snapshot(tmp_path / 'snapshots'))
    with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
        stream.append(pipeline.events(), 0)
        register.begin(snapshot.id_maps)
        scorer = Scorer(snapshot, Replica(snapshot, stream), pipeline.model, register)
        for names in (['ann', 'bob', 'cy'], ['bob', 'ann', 'cy']):
            register._database.execute('DELETE FROM id')
            numbers = register.add({'user': names}).numbers['user'].tolist()
            assert [scorer.nodes(name, ['m1'])[0] for name in names] == numbers
            scorer.replica.restart()
