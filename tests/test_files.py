import os
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.files import (
    checksum,
    num_bytes,
    read_tensors,
    remove_leftovers,
    replacing,
    require_local,
    write_tensors,
)

VALUE = {
    'tensor': torch.arange(6).view(2, 3),
    ('a', 'b'): [1, 2.5, None, True, 'word'],
    'sparse': torch.eye(3).to_sparse(),
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / 'value.pt'
    write_tensors(VALUE, path)
    for value in (read_tensors(path), torch.load(path, weights_only=True, mmap=True)):
        assert value['tensor'].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert value['a', 'b'] == VALUE['a', 'b']
        assert torch.equal(value['sparse'].to_dense(), torch.eye(3))
    assert os.listdir(tmp_path) == ['value.pt']


@pytest.mark.parametrize('sealed', [False, True])
def test_nothing_that_is_read_is_run(tmp_path: Path, sealed: bool, planted: Any) -> None:
    path, canary = tmp_path / 'value.pt', tmp_path / 'canary'
    content = {'tensor': torch.ones(2), 'planted': planted(canary)}
    if sealed:
        write_tensors(content, path)
        sentence = 'holds more than tensors'
    else:
        torch.save(content, path)
        sentence = 'no file that mag wrote'
    with pytest.raises(ValueError, match=sentence) as error:
        read_tensors(path)
    assert str(error.value).count('\n') == 0
    assert 'weights_only' not in str(error.value)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / 'value.pt'
    write_tensors({'tensor': torch.arange(4)}, path)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'value\.pt. is .*(damaged|no file that mag wrote)'):
            read_tensors(path)
        path.write_bytes(content[:place])
        with pytest.raises(ValueError, match=r'value\.pt. is .*(damaged|no file that mag wrote)'):
            read_tensors(path)
    path.write_bytes(content + b'\0')
    with pytest.raises(ValueError, match='no file that mag wrote'):
        read_tensors(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / 'none.pt')


def test_checksum(tmp_path: Path) -> None:
    path = tmp_path / 'text'
    # The check value of CRC-32.
    path.write_bytes(b'123456789')
    assert checksum(path) == 'cbf43926'
    path.write_bytes(b'123456789' * 400_000)
    assert checksum(path) == f'{zlib.crc32(b"123456789" * 400_000):08x}'


def test_another_whole_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'value.pt'
    write_tensors(torch.ones(2), path)
    written = checksum(path)
    assert read_tensors(path, written).tolist() == [1, 1]
    write_tensors(torch.zeros(2), path)
    with pytest.raises(ValueError, match=r"value\.pt' is another file than the one"):
        read_tensors(path, written)


def test_what_is_too_large_for_memory_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / 'value.pt'
    write_tensors(torch.zeros(100_000_000, dtype=torch.uint8), path)
    script = f"""
        import resource, torch
        from mag.files import read_tensors
        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, -1))
        read_tensors({str(path)!r})
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script)], capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"MemoryError: '{path}' takes 95.4 MiB, more than there is memory for."


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / 'text'
    script = f"""
        from mag.files import replacing
        for _ in range(400):
            with replacing({str(path)!r}) as temporary:
                open(temporary, 'w').write('whole')
    """
    command = [sys.executable, '-c', textwrap.dedent(script)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [writer.communicate()[1] for writer in writers]
    assert errors == [''] * 4
    assert path.read_text() == 'whole'
    assert os.listdir(tmp_path) == ['text']


def test_failure_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / 'text'
    path.write_text('before')
    with pytest.raises(KeyError), replacing(path) as temporary:
        Path(temporary).write_text('half')
        raise KeyError
    assert path.read_text() == 'before'
    assert os.listdir(tmp_path) == ['text']


KILLED = """
    import os, signal
    from mag.files import replacing
    with replacing({path!r}) as temporary:
        open(temporary, 'w').write('half')
        {end}
"""


def test_leftovers_of_a_kill_are_removed_by_the_next_who_writes(tmp_path: Path) -> None:
    path = tmp_path / 'text[1]'
    path.write_text('before')
    (tmp_path / 'text[1].mine.tmp').write_text('precious')
    script = textwrap.dedent(KILLED.format(path=str(path), end='os.kill(os.getpid(), 9)'))
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', script])
        assert done.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 3
    assert path.read_text() == 'before'
    with replacing(path) as temporary:
        Path(temporary).write_text('after')
    assert path.read_text() == 'after'
    assert sorted(os.listdir(tmp_path)) == ['text[1]', 'text[1].mine.tmp']


def test_what_another_process_writes_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / 'text'
    end = "print('begun', flush=True); input()"
    script = textwrap.dedent(KILLED.format(path=str(path), end=end))
    writer = subprocess.Popen(
        [sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == 'begun\n'
    remove_leftovers(path)
    assert len(os.listdir(tmp_path)) == 1
    writer.communicate('\n')
    assert writer.returncode == 0
    assert path.read_text() == 'half'


def test_full_disk(small_disk: Path) -> None:
    path = small_disk / 'value.pt'
    write_tensors(torch.ones(9), path)
    sentence = (
        rf"The disk is full: '{path}' needs 7.6 MiB, but '{small_disk}' has \d,\d\d\d\.\d KiB "
        rf'free\. Free some, or choose another place$'
    )
    with pytest.raises(OSError, match=sentence):
        write_tensors({'large': [torch.ones(2_000_000)]}, path)
    assert os.listdir(small_disk) == ['value.pt']
    assert read_tensors(path).tolist() == [1.0] * 9


def test_num_bytes() -> None:
    assert (
        num_bytes({'a': [torch.ones(3), (torch.ones(2, dtype=torch.double),)], 'b': 'word'}) == 28
    )


@pytest.mark.parametrize('path', ['a::b', 'memory://x', Path('a::b')])
def test_places_elsewhere_are_refused(path: str | Path) -> None:
    with pytest.raises(
        ValueError, match=r"'directory' must be a folder of this machine.*got '\w+:"
    ):
        require_local('directory', path)
    require_local('directory', '/a:b/c')
