import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mag.online import Diverged, SqliteStream, checksum_of, sqlite_file, sqlite_stream

Events = Callable[[int, int], np.ndarray]


def test_what_a_power_cut_leaves_is_the_first_batches(
    tmp_path: Path, events_between: Events
) -> None:
    chance = random.Random(0)
    kept = set()
    with SqliteStream(tmp_path / 'log') as stream:
        # The later events are in the file beside it alone.
        ends = [0]
        for _ in range(40):
            count = chance.randrange(1, 300)
            ends.append(stream.append(events_between(ends[-1], ends[-1] + count), ends[-1]))
        for number in range(40):
            copy = tmp_path / f'{number}'
            shutil.copy(tmp_path / 'log', copy)
            shutil.copy(tmp_path / 'log-wal', f'{copy}-wal')
            size = os.path.getsize(f'{copy}-wal')
            # A little of the making of the file stays, or it is no file of this kind.
            os.truncate(f'{copy}-wal', chance.randrange(20_000, size))
            with SqliteStream(copy) as left:
                end = left.end
                kept.add(end)
                assert end in ends
                np.testing.assert_array_equal(left.read(0, 100_000), events_between(0, end))
                if end < ends[-1]:
                    with pytest.raises(ValueError, match=f'ends at position {end}, but got'):
                        left.append(events_between(ends[-1], ends[-1] + 1), ends[-1])
                left.append(events_between(end, ends[-1]), end)
                np.testing.assert_array_equal(left.read(0, 100_000), events_between(0, ends[-1]))
    assert len(kept) > 10


def test_an_append_is_there_whole_or_not_at_all(
    tmp_path: Path, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_stream, '_NUM_TOGETHER', 100)
    with SqliteStream(tmp_path / 'log') as stream:
        stream.append(events_between(0, 150), 0)
        # As if the disk were full.
        stream._database.execute('PRAGMA max_page_count = 10')
        with pytest.raises(sqlite3.OperationalError, match='full'):
            stream.append(events_between(150, 10_000), 150)
        assert stream.end == 150
        stream._database.execute('PRAGMA max_page_count = 1000000')
        assert stream.append(events_between(150, 10_000), 150) == 10_000
        np.testing.assert_array_equal(stream.read(0, 20_000), events_between(0, 10_000))


@pytest.mark.parametrize(('durability', 'level'), [('always', 2), ('second', 1)])
def test_durability(tmp_path: Path, durability: str, level: int) -> None:
    with SqliteStream(tmp_path / 'log', durability) as stream:
        # 2: every commit waits for the disk; 1: only the moving of many to the main file does.
        assert stream._database.execute('PRAGMA synchronous').fetchall() == [(level,)]
        assert stream._database.execute('PRAGMA journal_mode').fetchall() == [('wal',)]


def test_what_is_appended_is_on_the_disk_a_second_later(
    tmp_path: Path, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(sqlite_stream, 'flush', flushed.append)
    log, started = str(tmp_path / 'log'), time.monotonic()
    with SqliteStream(log, 'second') as stream:
        for position in range(3):
            stream.append(events_between(position, position + 1), position)
        if time.monotonic() - started < 0.9:
            assert flushed == []
        while not flushed and time.monotonic() < started + 30:
            time.sleep(0.01)
        assert flushed
        # Another time after that, and when it is closed at once.
        before = len(flushed)
        stream.append(events_between(3, 4), 3)
    assert len(flushed) > before
    assert set(flushed) == {f'{log}-wal'}
    flushed.clear()
    with SqliteStream(log, 'second') as stream:
        assert stream.end == 4
    assert flushed == []


def test_a_disk_that_does_not_keep_it_is_told_of(
    tmp_path: Path, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(5, 'Input/output error', path)

    monkeypatch.setattr(sqlite_stream, 'flush', fail)
    with (
        pytest.raises(OSError, match='Input/output'),
        SqliteStream(tmp_path / 'log', 'second') as stream,
    ):
        stream.append(events_between(0, 1), 0)
    stream = SqliteStream(tmp_path / 'log', 'second')
    stream.append(events_between(1, 2), 1)
    stream._flush()
    with pytest.raises(OSError, match='Input/output'):
        stream.append(events_between(2, 3), 2)
    # Told once: what is appended next is flushed with all before it.
    assert stream.end == 2
    monkeypatch.undo()
    assert stream.append(events_between(2, 3), 2) == 3
    stream.close()


def test_who_waits_too_long_for_another_process_is_told(
    tmp_path: Path, events_between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, '_PATIENCE', 0.1)
    with SqliteStream(tmp_path / 'log') as one, SqliteStream(tmp_path / 'log') as other:
        one.append(events_between(0, 5), 0)
        one._database.execute('BEGIN IMMEDIATE')
        with pytest.raises(sqlite3.OperationalError, match='locked'):
            other.append(events_between(5, 6), 5)
        # Who reads does not wait.
        assert other.end == 5
        one._database.execute('ROLLBACK')
        assert other.append(events_between(5, 6), 5) == 6


@pytest.mark.parametrize('content', [b'hello', 1000 * b'hello'])
def test_files_of_others_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'log').write_bytes(content)
    with pytest.raises(ValueError, match="'path' must be a file that SqliteStream made, or none"):
        SqliteStream(tmp_path / 'log')
    assert (tmp_path / 'log').read_bytes() == content
    assert os.listdir(tmp_path) == ['log']


def test_databases_of_others_are_refused(tmp_path: Path) -> None:
    for number, statement in enumerate(
        ('CREATE TABLE batch ("end" INTEGER PRIMARY KEY, events BLOB)', 'PRAGMA application_id = 7')
    ):
        path = tmp_path / f'{number}'
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
        before = path.read_bytes()
        with pytest.raises(ValueError, match="'path' must be a file that SqliteStream made"):
            SqliteStream(path)
        assert path.read_bytes() == before


def test_a_hole_is_refused(tmp_path: Path, events_between: Events) -> None:
    with SqliteStream(tmp_path / 'log') as stream:
        for start in (0, 10, 20):
            stream.append(events_between(start, start + 10), start)
        stream._database.execute('DELETE FROM batch WHERE "end" = 20')
        np.testing.assert_array_equal(stream.read(0, 5), events_between(0, 5))
        with pytest.raises(ValueError, match='from position 0 to 30 it should hold 510 bytes'):
            stream.read(0)
        stream._database.execute('UPDATE batch SET events = substr(events, 2) WHERE "end" = 30')
        with pytest.raises(ValueError, match='is damaged'):
            stream.read(20)


def test_bad_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'durability' must be one of 'always', 'second', but got"):
        SqliteStream(tmp_path / 'log', 'never')
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(OSError, match='No such file'):
        SqliteStream(tmp_path / 'missing' / 'log')


def test_a_closed_stream_leaves_one_file(tmp_path: Path, events_between: Events) -> None:
    stream = SqliteStream(tmp_path / 'log', 'second')
    stream.append(events_between(0, 5), 0)
    stream.close()
    stream.close()
    assert os.listdir(tmp_path) == ['log']
    assert repr(stream) == f'SqliteStream({str(tmp_path / "log")!r})'


def test_a_file_of_an_earlier_version_is_refused(tmp_path: Path, events_between: Events) -> None:
    with SqliteStream(tmp_path / 'log') as stream:
        stream.append(events_between(0, 5), 0)
        stream._database.execute('PRAGMA user_version = 0')
    for _ in range(2):
        with pytest.raises(ValueError, match='in version 0 of the format of SqliteStream, but'):
            SqliteStream(tmp_path / 'log')


def test_a_file_that_went_back_and_got_other_events_is_noticed(
    tmp_path: Path, events_between: Events
) -> None:
    with SqliteStream(tmp_path / 'log', 'second') as stream:
        stream.append(events_between(0, 100), 0)
        size = os.path.getsize(tmp_path / 'log-wal')
        stream.append(events_between(100, 200), 100)
        read = stream.read(0)
        shutil.copy(tmp_path / 'log', tmp_path / 'left')
        shutil.copy(tmp_path / 'log-wal', tmp_path / 'left-wal')
    os.truncate(tmp_path / 'left-wal', size)
    with SqliteStream(tmp_path / 'left') as stream:
        assert stream.append(events_between(300, 600), 100) == 400
        with pytest.raises(Diverged, match='has other events before position 200 than those that'):
            stream.read(200, checksum=checksum_of(read))
        stream.read(100, checksum=checksum_of(read[:100]))
