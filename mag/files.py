r"""Files that are there whole or not at all, and that are read as they were written or refused."""

import errno
import fcntl
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from typing import Any, BinaryIO

import torch
from torch import Tensor

#: How many bytes each unit is that a number of bytes may be written in.
BYTE_UNITS = {'B': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}
_BLOCK = 1 << 20
_COMMENT = b'crc32 '
_COMMENT_LENGTH = len(_COMMENT) + 8
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_tensors(value: Any, path: str | os.PathLike[str]) -> None:
    r"""Writes what :func:`read_tensors` reads: tensors, numbers, words, and lists, tuples and
    dictionaries of these. A kill at any moment leaves the former file or the new one.

    What :func:`torch.save` writes is a zip archive, and its checksum becomes the comment of the
    archive, which :func:`torch.load` passes over.

    Args:
        value: What to write.
        path: The file.

    Raises:
        OSError: If it cannot be written; of a full disk it tells how much was needed.
    """
    with replacing(path, num_bytes(value)) as temporary, open(temporary, 'wb') as file:
        torch.save(value, file)
        # An archive ends with the length of its comment, which is 0 until here.
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT_LENGTH.to_bytes(2, 'little'))
        file.flush()
        file.write(_COMMENT + checksum(temporary).encode())
        file.flush()
        os.fsync(file.fileno())


def read_tensors(path: str | os.PathLike[str], expected: str | None = None) -> Any:
    r"""Reads what :func:`write_tensors` wrote, onto the CPU, and runs nothing that is in it.

    Args:
        path: The file.
        expected: What :func:`checksum` said of it when it was written, if that is known: so a file
            that was exchanged for another whole one is refused, too.

    Raises:
        FileNotFoundError: If there is no file.
        MemoryError: If it is larger than the memory.
        ValueError: If it is truncated, damaged or no such file, or holds what only code could make.
    """
    path = os.fspath(path)
    # One descriptor: another process may put another file there at any moment.
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        content = _crc(file, size - _COMMENT_LENGTH)
        comment = file.read()
        if not comment.startswith(_COMMENT):
            raise ValueError(f'{path!r} is truncated, damaged or no file that mag wrote.')
        if comment != _COMMENT + f'{content:08x}'.encode():
            raise ValueError(f'{path!r} is damaged: its checksum is not that of what was written.')
        if expected is not None and f'{zlib.crc32(comment, content):08x}' != expected:
            raise ValueError(f'{path!r} is another file than the one that was written there.')
        file.seek(0)
        try:
            return torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:
            if isinstance(error, MemoryError) or 'allocate memory' in str(error):
                raise MemoryError(
                    f'{path!r} takes {format_bytes(size)}, more than there is memory for.'
                ) from None
            # What was made to harm raises almost anything, in a page with advice to load it
            # unsafely.
            raise ValueError(
                f'{path!r} was not written by mag: it holds more than tensors, numbers, words, '
                f'lists and dictionaries ({type(error).__name__}).'
            ) from None


@contextmanager
def replacing(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[str]:
    r"""Gives a temporary name beside :obj:`path`, and renames what was written there to
    :obj:`path` at the end. What earlier processes began to write and left when they were killed is
    deleted.

    .. code-block:: python

        with replacing('table.json') as temporary, open(temporary, 'w') as file:
            json.dump(table, file)

    Args:
        path: The file that is to be there.
        needed: How many bytes it will have, for the message of a full disk.

    Raises:
        OSError: If the disk is full; it tells where, and how much was needed.
    """
    path = os.fspath(path)
    remove_leftovers(path)
    temporary, held = _begin(path)
    try:
        yield temporary
        os.replace(temporary, path)
    # The writer of torch tells of an error of its own and hides that of the disk in its context.
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in _NO_SPACE:
            raise
        # What is free is told as it will be found.
        held.truncate(0)
        raise full_disk(os.path.dirname(os.path.abspath(path)), path, needed) from error
    finally:
        held.close()
        if os.path.exists(temporary):
            os.remove(temporary)


def _begin(path: str) -> tuple[str, BinaryIO]:
    r"""A new file beside :obj:`path`, and what holds its lock, so that others know what is being
    written from what was left."""
    temporary = f'{path}.{uuid.uuid4().hex[:8]}.tmp'
    return temporary, _hold(temporary, fcntl.LOCK_EX)


def _hold(path: str, operation: int) -> BinaryIO:
    r"""A file that is made where there is none, and locked until it is closed, as a kill does."""
    while True:
        held = open(path, 'wb')  # noqa: SIM115
        try:
            fcntl.flock(held, operation)
        except OSError:
            held.close()
            raise
        # Another process may have deleted it before it was locked.
        if os.fstat(held.fileno()).st_nlink > 0:
            return held
        held.close()


@contextmanager
def locked(path: str | os.PathLike[str], wait: bool = True) -> Iterator[None]:
    r"""Holds a lock that one process alone can hold, and one thread in it: a file that is there
    until the lock is given back.

    Args:
        path: The file, which is empty, and which nobody else makes or deletes.
        wait: Whether to wait for who holds it.

    Raises:
        OSError: If the file cannot be made, or somebody holds it and it is not waited for.
    """
    path = os.fspath(path)
    with _hold(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
        try:
            yield
        finally:
            # Before it is given back: who waits for this file finds that it is no longer there.
            os.remove(path)


def flush(path: str | os.PathLike[str]) -> None:
    r"""Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    r"""Deletes what killed processes began to write to :obj:`path`, as far as it may be."""
    for leftover in glob(f'{escape(os.fspath(path))}.{"[0-9a-f]" * 8}.tmp'):
        try:
            with open(leftover, 'rb+') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(leftover)
        except OSError:
            # Somebody writes it, has deleted it, or owns it.
            continue


class FullDiskError(OSError):
    r"""A disk is full, in a sentence."""


def tells_of_full_disk(error: BaseException) -> bool:
    r"""Whether an error of whatever library comes from a full disk. Of some only the text tells."""
    is_known = isinstance(error, OSError) and error.errno in _NO_SPACE
    return is_known or 'No space left on device' in str(error)


def full_disk(
    folder: str, path: str | os.PathLike[str], needed: int | None = None
) -> FullDiskError:
    r"""The error that says how many bytes :obj:`path` needs, if that is known, and how many are
    free in :obj:`folder`, which is there."""
    wanted = 'more' if needed is None else format_bytes(needed)
    free = format_bytes(shutil.disk_usage(folder).free)
    return FullDiskError(
        errno.ENOSPC,
        f'The disk is full: {os.fspath(path)!r} needs {wanted}, but {folder!r} has {free} free. '
        f'Free some, or choose another place',
    )


def format_bytes(number: int) -> str:
    r"""A number of bytes for messages, such as :obj:`'1.5 GiB'`."""
    unit = next((name for name, size in reversed(BYTE_UNITS.items()) if number >= size > 1), 'KiB')
    return f'{number / BYTE_UNITS[unit]:,.1f} {unit}'


def checksum(path: str | os.PathLike[str]) -> str:
    r"""The CRC-32 of a file, eight hexadecimal digits. It finds any accident but one in four
    billion, at several times the speed of a cryptographic hash; it does not tell who wrote a
    file."""
    with open(path, 'rb') as file:
        return f'{_crc(file):08x}'


def _crc(file: BinaryIO, size: int | None = None) -> int:
    r"""The CRC-32 of the next :obj:`size` bytes of a file, or of all."""
    value, left = 0, sys.maxsize if size is None else max(size, 0)
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        value = zlib.crc32(block, value)
        left -= len(block)
    return value


def require_local(name: str, path: str | os.PathLike[str]) -> None:
    r"""Raises a :class:`ValueError` that names the argument if PyG or Lightning would take
    :obj:`path` for one on another machine."""
    if '::' in os.fspath(path) or '://' in os.fspath(path):
        raise ValueError(
            f"'{name}' must be a folder of this machine, without '::' and '://', by which other "
            f'file systems are named, but got {os.fspath(path)!r}.'
        )


def num_bytes(value: Any) -> int:
    r"""How many bytes the tensors in nested dictionaries, lists and tuples take."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes() if value.layout == torch.strided else 0
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    return sum(map(num_bytes, value)) if isinstance(value, (list, tuple)) else 0
