import itertools
import os
import shutil
import signal
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mag.folder import Folder

NAMES = ('a', 'b')


class Notes(Folder):
    manifest = 'manifest.json'
    kind = 'set of notes'
    elsewhere = 'choose another folder'
    remedy = 'Write them again'

    def save(self, text: str) -> None:
        with self.lock(), self.writing() as partial:
            for name in NAMES:
                Path(partial, name).write_text(text)
            self.write_manifest(partial, {'text': text})

    def load(self) -> str:
        return self.read_whole(self._load)

    def _load(self) -> str:
        manifest = self.read_manifest('text')
        for name in manifest['files']:
            with self.opening(manifest, name) as path:
                assert Path(path).read_text() == manifest['text']
        return manifest['text']


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(str(tmp_path / 'above' / 'notes'))


def names(notes: Notes) -> list[str]:
    r"""What is in the folder above."""
    return sorted(os.listdir(os.path.dirname(notes.path)))


def test_what_was_saved_is_read(notes: Notes) -> None:
    assert not notes.exists()
    with pytest.raises(ValueError, match=r"^The set of notes in '.*notes' is damaged, its manif.*"):
        notes.load()
    for text in ('first', 'second'):
        notes.save(text)
        assert notes.load() == text and notes.exists()
        assert names(notes) == ['notes']
        assert sorted(os.listdir(notes.path)) == ['a', 'b', 'manifest.json']


def test_a_save_that_fails_leaves_what_was_there(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.save('first')
    with pytest.raises(KeyError), notes.lock(), notes.writing() as partial:
        Path(partial, 'a').write_text('half')
        raise KeyError
    assert notes.load() == 'first' and names(notes) == ['notes']

    replace, calls = os.replace, itertools.count()

    def fail(before: str, after: str) -> None:
        # The first renames the manifest, the second the former folder, the third the new one.
        if next(calls) == 2:
            raise OSError('The disk is gone.')
        replace(before, after)

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='gone'):
        notes.save('second')
    assert next(calls) == 4
    assert notes.load() == 'first' and names(notes) == ['notes']


def test_damage_is_told(notes: Notes) -> None:
    notes.save('first')
    path = Path(notes.file('a'))
    path.write_text('fir5t')
    with pytest.raises(ValueError, match=r'its a cannot be read: it is not .*\. Write them again'):
        notes.load()
    path.unlink()
    with pytest.raises(ValueError, match='its a cannot be read: it is missing'):
        notes.load()
    notes.save('second')
    manifest = Path(notes.file('manifest.json'))
    manifest.write_text(manifest.read_text().replace('second', '2nd'))
    with pytest.raises(ValueError, match='its manifest.json cannot be read: it is not what'):
        notes.load()


def test_other_files_are_not_replaced(notes: Notes) -> None:
    os.makedirs(notes.path)
    assert not notes.exists()
    Path(notes.file('mine')).write_text('precious')
    message = "must be empty or a set of notes of mag's, but it holds other files: choose another"
    with pytest.raises(ValueError, match=message):
        notes.exists()
    shutil.rmtree(notes.path)
    Path(notes.path).write_text('a file')
    with pytest.raises(ValueError, match=message):
        notes.exists()


# Kills itself at one of the calls that change what is on the disk.
KILLED = f"""
    import os, shutil, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_folder import Notes

    path, moment = sys.argv[1], int(sys.argv[2])
    done = []

    def killing(call):
        def wrapped(*arguments, **options):
            if len(done) == moment:
                os.kill(os.getpid(), 9)
            done.append(call)
            return call(*arguments, **options)
        return wrapped

    for owner, name in (
        (os, 'mkdir'), (os, 'fsync'), (os, 'replace'), (os, 'remove'), (os, 'unlink'), (os, 'rmdir')
    ):
        setattr(owner, name, killing(getattr(owner, name)))
    Notes(path).save('second')
"""


def test_kills_at_every_change_of_the_disk(notes: Notes, fork: Callable[..., Any]) -> None:
    found = set()
    for moment in itertools.count():
        notes.save('first')
        done = fork(textwrap.dedent(KILLED), notes.path, str(moment)).finish()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        state = 'partial' if os.path.exists(notes.path) else 'none'
        if moment % 2:
            # Who writes is the next, too.
            notes.save('third')
            assert notes.load() == 'third'
        else:
            text = notes.load()
            found.add((state, text))
        assert names(notes) == ['notes']
    # The folder, three files and the one above are flushed, two folders and a file renamed.
    assert moment > 12
    assert found == {('partial', 'first'), ('none', 'first'), ('partial', 'second')}
    assert notes.load() == 'second'


PAUSED = f"""
    import os, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_folder import Notes

    path, go = sys.argv[1:]
    replace = os.replace

    def pausing(before, after):
        if before.endswith('partial'):
            # Between the two renames.
            print('paused', flush=True)
            open(go).read()
        replace(before, after)

    os.replace = pausing
    Notes(path).save('second')
"""


def test_a_living_process_is_waited_for_only_while_there_is_no_folder(
    notes: Notes, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    notes.save('first')
    go = tmp_path / 'go'
    os.mkfifo(go)
    writer = fork(textwrap.dedent(PAUSED), notes.path, str(go))
    assert writer.stdout.readline() == 'paused\n'
    assert names(notes) == ['notes.mag-lock', 'notes.mag-partial', 'notes.mag-replaced']
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(notes.load()))
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    go.write_text('go')
    reader.join(60)
    assert found == ['second']
    assert writer.finish().returncode == 0
    assert names(notes) == ['notes']

    with notes.lock(), notes.writing() as partial:
        # Nobody waits here, or takes it away.
        assert notes.load() == 'second'
        assert os.path.isdir(partial)
        with pytest.raises(BlockingIOError), notes.lock(wait=False):
            pass
        for name in NAMES:
            Path(partial, name).write_text('third')
        notes.write_manifest(partial, {'text': 'third'})
    assert notes.load() == 'third' and names(notes) == ['notes']


WRITER = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_folder import Notes

    for number in range(60):
        Notes(sys.argv[1]).save(f'{{sys.argv[2]}} {{number}}' * 1000)
"""


def test_several_processes_write_while_it_is_read(notes: Notes, fork: Callable[..., Any]) -> None:
    notes.save('first')
    writers = [fork(textwrap.dedent(WRITER), notes.path, name) for name in 'xyz']
    found = set()
    while any(writer.process.is_alive() for writer in writers):
        assert notes.exists()
        found.add(notes.load())
    assert [writer.finish().stderr for writer in writers] == [''] * 3
    assert len(found) > 5 and notes.load()[2:].startswith('59')
    assert names(notes) == ['notes']
