r"""One suite for all streams, as they promise one thing."""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mag.online import (
    EVENT,
    Diverged,
    EventStream,
    RedisStream,
    SqliteStream,
    checksum_of,
    connect,
)

Events = Callable[[int, int], np.ndarray]
# How another process opens a stream: what it gets as its first argument, in JSON.
OPEN = """
import json, os, random, signal, sys, time

import numpy as np

from mag.online import EVENT, RedisStream, SqliteStream, connect, sqlite_file

# A busy machine may take longer over a commit than who waits for it should.
sqlite_file._PATIENCE = 60.0
kind, place, name = json.loads(sys.argv[1])


def open_stream():
    if kind == 'redis':
        return RedisStream(connect(place, timeout=30), name)
    return SqliteStream(place, kind)


def between(start, stop):
    position = np.arange(start, stop)
    events = np.empty(len(position), EVENT)
    events['user'] = position * 7919 % 1009
    events['item'] = position * 104729 % 499
    events['time'] = position // 3 + 1_700_000_000
    events['clicked'] = position % 5 == 0
    return events
"""


class Place:
    r"""Where a stream is; it is opened again and again."""

    def __init__(self, kind: str, place: str, name: str) -> None:
        self.arguments = json.dumps([kind, place, name])
        self.kind, self.place, self.name = kind, place, name

    def open(self) -> EventStream:
        if self.kind == 'redis':
            return RedisStream(connect(self.place, timeout=30), self.name)
        return SqliteStream(self.place, self.kind)


@pytest.fixture(scope='module', params=['always', 'second', 'redis'])
def new_place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Place]:
    r"""Places without a stream: files, by their durability, and names in a server."""
    kind = request.param
    folder = tmp_path_factory.mktemp('streams')
    number = iter(range(1_000_000))
    if kind == 'redis':
        url = request.getfixturevalue('redis_server').url
        return lambda: Place(kind, url, f'{folder.name}-{next(number)}')
    return lambda: Place(kind, str(folder / f'{next(number)}.db'), '')


@pytest.fixture
def place(new_place: Callable[[], Place]) -> Place:
    return new_place()


@pytest.fixture
def stream(place: Place) -> Iterator[EventStream]:
    with place.open() as stream:
        yield stream


def read_all(stream: EventStream, limit: int = 8192) -> np.ndarray:
    parts, position = [np.empty(0, EVENT)], stream.start
    while position < stream.end:
        parts.append(stream.read(position, limit))
        assert 0 < len(parts[-1]) <= limit
        position += len(parts[-1])
    return np.concatenate(parts)


def test_what_is_appended_is_read(stream: EventStream, events_between: Events) -> None:
    assert (stream.start, stream.end) == (0, 0)
    assert len(stream.read(0)) == 0
    assert stream.append(events_between(0, 3), 0) == 3
    assert stream.append(events_between(3, 4), 3) == 4
    assert stream.append(events_between(4, 200), 4) == 200
    assert (stream.start, stream.end) == (0, 200)
    for start in (0, 1, 3, 4, 67, 68, 199):
        np.testing.assert_array_equal(stream.read(start), events_between(start, 200))
        for limit in (1, 2, 64, 65, 150):
            expected = events_between(start, min(start + limit, 200))
            np.testing.assert_array_equal(stream.read(start, limit), expected)
    nothing = stream.read(200)
    assert (nothing.dtype, nothing.shape) == (EVENT, (0,))


def test_producers_without_positions_append_all_of_theirs_together(
    place: Place, events_between: Events
) -> None:
    r"""Also events that are equal, and of which the end was told before others came."""
    with place.open() as one, place.open() as other:
        assert one.append(events_between(0, 3)) == 3
        assert one.append(events_between(0, 3)) == 6
        assert one.append(events_between(0, 0)) == 6
        extend, num_faster = type(one)._extend, 0

        def late(stream: EventStream, events: np.ndarray, position: int) -> int:
            nonlocal num_faster
            if stream is one and num_faster < 3:
                num_faster += 1
                extend(other, events_between(0, 1), position)
            return extend(stream, events, position)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(one), '_extend', late)
            assert one.append(events_between(0, 9000)) == 6 + 3 + 9000
        assert num_faster == 3
        again = events_between(0, 1)
        expected = [events_between(0, 3)] * 2 + [again] * 3 + [events_between(0, 9000)]
        np.testing.assert_array_equal(read_all(other), np.concatenate(expected))
        position = one.end
        assert one.read(position, checksum=one.checksum(position)).size == 0


def test_what_is_read_can_be_written_to_and_is_nobody_elses(
    stream: EventStream, events_between: Events
) -> None:
    stream.append(events_between(0, 10), 0)
    stream.read(0)['user'] = 5
    np.testing.assert_array_equal(stream.read(0), events_between(0, 10))


def test_events_need_not_lie_side_by_side(stream: EventStream, events_between: Events) -> None:
    assert stream.append(events_between(0, 300)[::3], 0) == 100
    np.testing.assert_array_equal(stream.read(0), events_between(0, 300)[::3])


def test_no_events_are_appended_at_the_end_or_before(
    stream: EventStream, events_between: Events
) -> None:
    none = events_between(0, 0)
    assert stream.append(none, 0) == 0
    stream.append(events_between(0, 5), 0)
    assert [stream.append(none, position) for position in (0, 3, 5)] == [5, 5, 5]
    with pytest.raises(ValueError, match='ends at position 5, but got events from position 6'):
        stream.append(none, 6)
    np.testing.assert_array_equal(stream.read(0), events_between(0, 5))


def test_many_events(place: Place, events_between: Events) -> None:
    events = events_between(0, 50_000)
    with place.open() as stream:
        assert stream.append(events[:30_000], 0) == 30_000
        assert stream.append(events, 0) == 50_000
    # It is another's, too.
    with place.open() as stream:
        np.testing.assert_array_equal(read_all(stream), events)
        np.testing.assert_array_equal(read_all(stream, 9_999), events)
        np.testing.assert_array_equal(stream.read(0, 100_000), events)
        assert stream.append(events, 0) == 50_000


def test_many_appends_of_one_event(stream: EventStream, events_between: Events) -> None:
    for position in range(500):
        assert stream.append(events_between(position, position + 1), position) == position + 1
    np.testing.assert_array_equal(stream.read(0), events_between(0, 500))
    np.testing.assert_array_equal(stream.read(7, 400), events_between(7, 407))


def test_what_is_repeated_is_there_once(stream: EventStream, events_between: Events) -> None:
    stream.append(events_between(0, 100), 0)
    for start, stop in ((0, 100), (0, 1), (99, 100), (37, 64), (63, 130), (0, 131), (130, 131)):
        assert stream.append(events_between(start, stop), start) == max(stop, stream.end)
    np.testing.assert_array_equal(stream.read(0), events_between(0, 131))


def test_a_gap_is_refused(stream: EventStream, events_between: Events) -> None:
    stream.append(events_between(0, 10), 0)
    message = 'ends at position 10, but got events from position 12: append those from position 10'
    with pytest.raises(ValueError, match=message):
        stream.append(events_between(12, 20), 12)
    np.testing.assert_array_equal(stream.read(0), events_between(0, 10))


@pytest.mark.parametrize('row', [0, 63, 64, 99, 9_000])
@pytest.mark.parametrize('field', EVENT.names)
def test_another_event_at_a_position_is_refused(
    stream: EventStream, events_between: Events, row: int, field: str
) -> None:
    stream.append(events_between(0, 10_000), 0)
    events = events_between(0, 10_100)
    events[field][row] = 1 - events[field][row] if field == 'clicked' else 3_000
    held, given = events_between(row, row + 1)[0], events[row]
    message = f'has the event {held} at position {row}, but was given {given} for it'
    with pytest.raises(ValueError, match=re.escape(message)):
        stream.append(events, 0)
    np.testing.assert_array_equal(read_all(stream), events_between(0, 10_000))


def test_what_is_trimmed_is_gone_and_the_rest_is_not(
    stream: EventStream, events_between: Events
) -> None:
    for start in range(0, 1_000, 10):
        stream.append(events_between(start, start + 10), start)
    stream.trim(0)
    assert stream.start == 0
    stream.trim(505)
    assert (stream.start, stream.end) == (500, 1_000)
    np.testing.assert_array_equal(stream.read(500), events_between(500, 1_000))
    for position in (0, 499):
        with pytest.raises(ValueError, match='starts at position 500, but was read from position'):
            stream.read(position)
    # Back is not possible.
    stream.trim(20)
    assert stream.start == 500
    # Who appended it may not know.
    assert stream.append(events_between(0, 1_000), 0) == 1_000
    other = events_between(0, 1_010)
    other['user'][:500] = 0
    assert stream.append(other, 0) == 1_010
    other['user'][:501] = 3_000
    with pytest.raises(ValueError, match='at position 500, but was given'):
        stream.append(other, 0)
    assert stream.append(other[:20], 0) == 1_010
    stream.trim(1_010)
    assert (stream.start, stream.end) == (1_000, 1_010)
    assert len(stream.read(1_010)) == 0
    assert stream.append(events_between(1_010, 1_011), 1_010) == 1_011
    np.testing.assert_array_equal(stream.read(1_005), events_between(1_005, 1_011))


def test_nobody_reads_or_trims_beyond_the_end(stream: EventStream, events_between: Events) -> None:
    for length in (0, 7):
        stream.append(events_between(0, length), 0)
        with pytest.raises(ValueError, match=f'ends at position {length}, but was read from'):
            stream.read(length + 1)
        with pytest.raises(ValueError, match=f'which is {length}, but got {length + 1}'):
            stream.trim(length + 1)


def test_bad_arguments_are_refused(stream: EventStream, events_between: Events) -> None:
    with pytest.raises(TypeError, match="'events' must be an array"):
        stream.append([(1, 2, 3, 0)], 0)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="'events' must have users from 0"):
        stream.append(np.array([(-1, 2, 3, 0)], EVENT), 0)
    for position, error in ((-1, ValueError), (0.0, TypeError), (True, TypeError)):
        for call in (
            lambda at: stream.append(events_between(0, 1), at),
            stream.read,
            stream.trim,
        ):
            with pytest.raises(error, match="'position' must be"):
                call(position)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'limit' must be at least 1, but got 0"):
        stream.read(0, 0)
    assert stream.end == 0


def test_numbers_may_be_large(stream: EventStream, events_between: Events) -> None:
    stream.append(events_between(0, 9), 0)
    far = 2**62 - 1
    with pytest.raises(ValueError, match=f'got events from position {far}'):
        stream.append(events_between(0, 1), far)
    with pytest.raises(ValueError, match=f'was read from position {far}'):
        stream.read(far)
    with pytest.raises(ValueError, match=f"'position' must lie below {far + 1}, but got {10**30}"):
        stream.read(10**30)
    np.testing.assert_array_equal(stream.read(0, 10**30), events_between(0, 9))


operations = st.lists(
    st.one_of(
        # An append: how far from the end, how many, and from which of two logs.
        st.tuples(st.just('append'), st.integers(-150, 1), st.integers(0, 150), st.booleans()),
        st.tuples(st.just('append'), st.just(0), st.integers(1, 150), st.just(True)),
        st.tuples(st.just('trim'), st.integers(-100, 1)),
        st.tuples(st.just('read'), st.integers(-300, 1), st.integers(1, 200)),
        st.tuples(st.just('open')),
    ),
    max_size=25,
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(operations=operations)
def test_any_order_of_appends_gives_one_list(
    new_place: Callable[[], Place], events_between: Events, operations: list[tuple[Any, ...]]
) -> None:
    place = new_place()
    stream = place.open()
    logs = {True: events_between(0, 4_000), False: events_between(0, 4_000)}
    logs[False]['clicked'] = 1 - logs[False]['clicked']
    held: list[tuple[int, ...]] = []
    start = trimmed = 0
    for operation, *arguments in operations:
        if operation == 'open':
            stream.close()
            stream = place.open()
            continue
        position = max(len(held) + arguments[0], 0)
        if operation == 'append':
            _, count, which = arguments
            events = logs[which][position : position + count]
            repeated = events.tolist()[max(start - position, 0) : max(len(held) - position, 0)]
            first = max(start, position)
            if position > len(held) or repeated != held[first : first + len(repeated)]:
                with pytest.raises(ValueError, match='position'):
                    stream.append(events, position)
            else:
                held += events.tolist()[len(held) - position :]
                assert stream.append(events, position) == len(held)
        elif operation == 'trim' and position <= len(held):
            stream.trim(position)
            trimmed = max(trimmed, position)
            assert start <= stream.start <= trimmed
            start = stream.start
        elif operation == 'read' and start <= position <= len(held):
            limit = arguments[1]
            assert stream.read(position, limit).tolist() == held[position : position + limit]
        else:
            with pytest.raises(ValueError, match='position'):
                getattr(stream, operation)(position)
        assert (stream.start, stream.end) == (start, len(held))
    assert read_all(stream).tolist() == held[start:]
    stream.close()


FOLLOW = f"""{OPEN}
stream, position, parts = open_stream(), 0, 0
print('ready', flush=True)
while position < 6_000:
    events = stream.read(position, 300)
    np.testing.assert_array_equal(events, between(position, position + len(events)))
    position += len(events)
    parts += len(events) > 0
    time.sleep(0 if len(events) else 0.001)
print(parts)
"""


def test_other_processes_read_while_one_appends(
    place: Place, events_between: Events, fork: Callable[..., Any]
) -> None:
    with place.open() as stream:
        readers = [fork(FOLLOW, place.arguments) for _ in range(2)]
        for reader in readers:
            assert reader.stdout.readline() == 'ready\n'
        for start in range(0, 6_000, 100):
            stream.append(events_between(start, start + 100), start)
        for reader in readers:
            done = reader.finish()
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) >= 6_000 // 300


APPEND = f"""{OPEN}
stream = open_stream()
print('ready', flush=True)
while (position := stream.end) < 5_000:
    stream.append(between(position, position + 50), position)
"""


def test_two_processes_that_append_the_same_events_append_them_once(
    place: Place, events_between: Events, fork: Callable[..., Any]
) -> None:
    with place.open() as stream:
        producers = [fork(APPEND, place.arguments) for _ in range(2)]
        for producer in producers:
            done = producer.finish()
            assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(read_all(stream), events_between(0, stream.end))
        assert 5_000 <= stream.end < 5_100


# One process, so that libraries are loaded once: producers that it starts are killed one by one.
KILL = f"""{OPEN}
chance = random.Random(0)
ends = []
for kill in range(10):
    receiver, sender = os.pipe()
    process = os.fork()
    if process == 0:
        stream = open_stream()
        position = stream.end
        while True:
            events = between(position, position + chance.choice((1, 30, 500)))
            position = stream.append(events, position)
            os.write(sender, b'.')
    os.read(receiver, 1)
    time.sleep(chance.uniform(0, 0.1))
    os.kill(process, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    with open_stream() as stream:
        ends.append(stream.end)
print(json.dumps(ends))
"""


def test_a_killed_producer_loses_and_repeats_nothing(
    place: Place, events_between: Events, fork: Callable[..., Any]
) -> None:
    done = fork(KILL, place.arguments).finish()
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert ends == sorted(set(ends))
    with place.open() as stream:
        # What was on its way when the last one was killed may have come since.
        assert stream.end >= ends[-1]
        np.testing.assert_array_equal(read_all(stream), events_between(0, stream.end))


def test_checksums_are_those_of_all_events_whatever_the_batches(
    new_place: Callable[[], Place], events_between: Events
) -> None:
    events = events_between(0, 9_000)
    for sizes in ((9_000,), (1, 63, 64, 65, 8_807)):
        with new_place().open() as stream:
            for size in sizes:
                stream.append(events[(end := stream.end) : end + size], end)
            for position in (0, 1, 64, 100, 8_192, 8_999, 9_000):
                checksum = zlib.crc32(events[:position].tobytes())
                assert checksum_of(events[:position]) == stream.checksum(position) == checksum
                for limit in (1, 8_192):
                    found = stream.read(position, limit, checksum)
                    np.testing.assert_array_equal(found, events[position : position + limit])
                with pytest.raises(Diverged, match=f'other events before position {position} than'):
                    stream.read(position, checksum=checksum ^ 1)


@pytest.mark.parametrize('is_longer', [False, True])
def test_a_log_that_was_filled_again_with_other_events_is_noticed(
    new_place: Callable[[], Place], events_between: Events, is_longer: bool
) -> None:
    r"""Also where only one event, long ago, is another one."""
    events = events_between(0, 10_000)
    again = events.copy()
    again['item'][3] += 1
    length = 10_000 if is_longer else 5_000
    with new_place().open() as stream:
        stream.append(again[:length], 0)
        checksum = checksum_of(events[:5_000])
        with pytest.raises(Diverged, match='it has lost some and got others, or is another one'):
            stream.read(5_000, 100, checksum)
        # Nobody is told who does not ask.
        np.testing.assert_array_equal(stream.read(5_000), again[5_000:length])
        checksum = checksum_of(again[:5_000])
        np.testing.assert_array_equal(stream.read(5_000, checksum=checksum), again[5_000:length])


def test_what_is_trimmed_is_in_the_checksum_of_what_is_left(
    stream: EventStream, events_between: Events
) -> None:
    events = events_between(0, 1_000)
    for start in range(0, 500, 50):
        stream.append(events[start : start + 50], start)
    stream.trim(500)
    stream.append(events[500:], 500)
    assert stream.start == 450
    for position in (450, 475, 500, 1_000):
        found = stream.read(position, checksum=checksum_of(events[:position]))
        np.testing.assert_array_equal(found, events[position:])
    for position in (500, 1_000):
        assert stream.checksum(position) == checksum_of(events[:position])
    # Within the first batch that is held nothing tells what was before it.
    with pytest.raises(ValueError, match='at 475, .* take position 500 or a later one'):
        stream.checksum(475)
    with pytest.raises(ValueError, match='ends at position 1000, before 1001'):
        stream.checksum(1_001)


def test_an_event_that_is_not_what_was_appended_is_noticed(
    stream: EventStream, events_between: Events
) -> None:
    for start in (0, 10, 20):
        stream.append(events_between(start, start + 10), start)
    batches = stream._batches(0, 100)
    end, checksum, content = batches[1]
    batches[1] = end, checksum, content[:-1] + bytes([content[-1] ^ 1])
    stream._batches = lambda position, limit: batches  # type: ignore[method-assign]
    with pytest.raises(ValueError, match='the events before position 20 are not those that were'):
        stream.read(0)
