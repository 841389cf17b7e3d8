import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mag.online import Diverged, RedisStream, checksum_of, connect

redis = pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')
Events = Callable[[int, int], np.ndarray]


def test_entries_have_the_position_after_them_as_id(client: Any, events_between: Events) -> None:
    stream = RedisStream(client)
    stream.append(events_between(0, 150), 0)
    assert client.xrange('mag:events') == [
        (
            f'{end}-0'.encode(),
            {
                b'checksum': str(zlib.crc32(events_between(0, end).tobytes())).encode(),
                b'events': events_between(start, end).tobytes(),
            },
        )
        for start, end in ((0, 64), (64, 128), (128, 150))
    ]
    assert client.keys() == [b'mag:events']


def test_streams_of_other_names_are_others(client: Any, events_between: Events) -> None:
    streams = [RedisStream(client), RedisStream(client, 'other')]
    streams[0].append(events_between(0, 5), 0)
    streams[1].append(events_between(5, 7), 0)
    assert [stream.end for stream in streams] == [5, 2]
    assert set(client.keys()) == {b'mag:events', b'other:events'}
    assert repr(streams[1]) == "RedisStream(name='other')"


def test_a_closed_stream_leaves_the_client_open(client: Any) -> None:
    with RedisStream(client):
        pass
    assert client.ping()


# A fence against what was sent long ago and comes late, such as from a process that hung.
def test_what_comes_late_is_not_appended(client: Any, events_between: Events) -> None:
    stream = RedisStream(client)
    stream.append(events_between(0, 64), 0)
    assert stream._extend(events_between(0, 10), 0) == 64
    assert stream._extend(events_between(60, 70), 60) == 64
    assert stream._extend(events_between(70, 80), 70) == 64
    assert stream.end == 64


def test_a_killed_server_that_writes_always_loses_nothing(
    redis_server: Any, client: Any, events_between: Events
) -> None:
    stream, end = RedisStream(client), 0
    chance = random.Random(0)
    for _ in range(3):
        client.config_set('appendfsync', 'always')
        for _ in range(10):
            end = stream.append(events_between(end, end + chance.randrange(1, 1000)), end)
        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            stream.append(events_between(end, end + 1), end)
        redis_server.start()
        # The same client goes on, and a script that was in the memory of the server is not missed.
        assert stream.end == end
    np.testing.assert_array_equal(stream.read(0, end), events_between(0, end))


def test_after_a_kill_the_producer_goes_on_from_the_end(
    redis_server: Any, client: Any, events_between: Events
) -> None:
    stream, end = RedisStream(client), 0
    chance = random.Random(2)
    for _ in range(5):
        for _ in range(30):
            end = stream.append(events_between(end, end + chance.randrange(1, 1000)), end)
        redis_server.kill()
        redis_server.start()
        # While it waits for the disk, it does not even write.
        assert (left := stream.end) <= end
        assert stream.append(events_between(left, end), left) == end
    np.testing.assert_array_equal(stream.read(0, end), events_between(0, end))


def test_after_a_power_cut_the_producer_goes_on_from_the_end(
    redis_server: Any, client: Any, events_between: Events
) -> None:
    stream, end = RedisStream(client), 0
    chance = random.Random(1)
    num_lost = []
    for _ in range(6):
        # So that the file is as long as what was appended; the cut is what another setting risks.
        client.config_set('appendfsync', 'always')
        end = stream.append(events_between(end, end + chance.randrange(1, 2000)), end)
        length, safe = redis_server.append_only_file.stat().st_size, end
        for _ in range(10):
            end = stream.append(events_between(end, end + chance.randrange(1, 2000)), end)
        written = redis_server.append_only_file.stat().st_size
        redis_server.lose_power(chance.randrange(length, written))
        left = stream.end
        assert safe <= left < end
        num_lost.append(end - left)
        with pytest.raises(ValueError, match=f'ends at position {left}, but got events from'):
            stream.append(events_between(end, end + 5), end)
        with pytest.raises(ValueError, match='it has lost events that were read before'):
            stream.read(end)
        np.testing.assert_array_equal(stream.read(0, left), events_between(0, left))
        assert stream.append(events_between(left, end), left) == end
    assert min(num_lost) > 0
    np.testing.assert_array_equal(stream.read(0, end), events_between(0, end))


def test_a_full_server_refuses_an_append_whole(client: Any, events_between: Events) -> None:
    stream = RedisStream(client)
    stream.append(events_between(0, 100), 0)
    client.config_set('maxmemory', 1)
    try:
        with pytest.raises(redis.ResponseError, match='maxmemory'):
            stream.append(events_between(100, 5000), 100)
        np.testing.assert_array_equal(stream.read(0), events_between(0, 100))
    finally:
        client.config_set('maxmemory', 0)
    assert stream.append(events_between(100, 5000), 100) == 5000


def test_a_part_of_a_large_append_is_a_first_part(
    client: Any, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = RedisStream(client)
    extend, calls = stream._extend, []

    def fail(events: np.ndarray, position: int) -> int:
        if len(calls) == 2:
            raise TimeoutError
        calls.append(len(events))
        return extend(events, position)

    monkeypatch.setattr(stream, '_extend', fail)
    with pytest.raises(TimeoutError):
        stream.append(events_between(0, 30_000), 0)
    monkeypatch.undo()
    assert calls == [8192, 8192]
    assert stream.end == 16_384
    assert stream.append(events_between(0, 30_000), 0) == 30_000
    np.testing.assert_array_equal(stream.read(0, 30_000), events_between(0, 30_000))


def test_entries_of_others_are_refused(client: Any, events_between: Events) -> None:
    stream = RedisStream(client)
    stream.append(events_between(0, 10), 0)
    client.xadd('mag:events', {'user': 3}, id='11-0')
    for call in (lambda: stream.read(0), lambda: stream.append(events_between(0, 10), 0)):
        with pytest.raises(ValueError, match="key 'mag:events' has entries that mag did not write"):
            call()


def test_a_hole_is_refused(client: Any, events_between: Events) -> None:
    stream = RedisStream(client)
    for start in (0, 10, 20):
        stream.append(events_between(start, start + 10), start)
    client.xdel('mag:events', '20-0')
    with pytest.raises(ValueError, match='from position 0 to 30 it should hold 510 bytes, but'):
        stream.read(0)
    with pytest.raises(ValueError, match='starts at position 20, but was read from position 15'):
        stream.read(15)
    client.xadd('mag:events', {'events': b'torn'}, id='31-0')
    with pytest.raises(ValueError, match='is damaged'):
        stream.read(20)


def test_bad_arguments_are_refused(redis_server: Any, client: Any) -> None:
    with pytest.raises(TypeError, match="'name' must be a text, but got 3"):
        RedisStream(client, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'client' must be a redis.Redis, such as mag.online.conne"):
        RedisStream('redis://host')  # type: ignore[arg-type]
    with (
        connect(redis_server.url, timeout=30, decode_responses=True) as other,
        pytest.raises(ValueError, match="'client' must return bytes"),
    ):
        RedisStream(other)


def test_what_was_read_in_parts_across_a_restart_is_read_again(
    client: Any, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, other = RedisStream(client), RedisStream(client, 'other')
    for start in range(0, 1_000, 10):
        stream.append(events_between(start, start + 10), start)
    other.append(events_between(0, 50), 0)
    batches = stream._batches(0, 1_000)
    # As if the server came back with fewer events while it was read, and got them in other batches.
    mixed = [*batches[:3], *other._batches(40, 1_000), *batches[5:]]
    reads = iter([mixed, batches])
    monkeypatch.setattr(stream, '_batches', lambda position, limit: next(reads))
    np.testing.assert_array_equal(stream.read(0, 1_000), events_between(0, 1_000))
    monkeypatch.setattr(stream, '_batches', lambda position, limit: mixed)
    with pytest.raises(ValueError, match='is damaged: from position 0 to 1000 it should hold'):
        stream.read(0, 1_000)


def test_a_server_that_went_back_and_got_other_events_is_noticed(
    redis_server: Any, client: Any, events_between: Events
) -> None:
    stream = RedisStream(client)
    client.config_set('appendfsync', 'always')
    stream.append(events_between(0, 100), 0)
    length = redis_server.append_only_file.stat().st_size
    stream.append(events_between(100, 200), 100)
    read = stream.read(0)
    redis_server.lose_power(length)
    # The producer forgot them, too, and has others.
    assert stream.append(events_between(300, 600), 100) == 400
    for position in (101, 164, 200):
        with pytest.raises(Diverged, match=f'has other events before position {position} than'):
            stream.read(position, checksum=checksum_of(read[:position]))
    np.testing.assert_array_equal(
        stream.read(100, checksum=checksum_of(read[:100])), events_between(300, 600)
    )


def test_streams_without_checksums_are_refused(client: Any, events_between: Events) -> None:
    client.xadd('mag:events', {'events': events_between(0, 10).tobytes()}, id='10-0')
    stream = RedisStream(client)
    for call in (
        lambda: stream.end,
        lambda: stream.read(0),
        lambda: stream.append(events_between(10, 20), 10),
    ):
        with pytest.raises(ValueError, match='or an earlier mag, without checksums. Append its'):
            call()
    assert client.xlen('mag:events') == 1


def test_two_who_append_in_turn_keep_one_checksum(client: Any, events_between: Events) -> None:
    streams = [RedisStream(client), RedisStream(client)]
    for turn in range(10):
        streams[turn % 2].append(events_between(10 * turn, 10 * turn + 10), 10 * turn)
    streams[0].read(100, checksum=checksum_of(events_between(0, 100)))
