r"""Folders that are there whole or not at all, and are read as they were written or refused."""

import json
import os
import os.path as osp
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from mag.files import (
    FullDiskError,
    checksum,
    flush,
    full_disk,
    locked,
    replacing,
    tells_of_full_disk,
)

_T = TypeVar('_T')


class Folder:
    r"""A folder that is written beside its final place and renamed at the end.

    A kill at any moment leaves the former folder or the new one. Between two renames neither is
    under its name: the next who reads or writes takes the former one back, and deletes what was
    left. What a living process writes is left alone.

    A file, the *manifest*, has the checksums of the other files and its own. A file that was
    damaged or exchanged is so refused, and nothing that is in one is run.

    Args:
        path (str): The folder.

    Attributes:
        manifest (str): The name of the manifest.
        kind (str): What the folder holds, for messages.
        elsewhere (str): What to do where other files are in the way.
        remedy (str): What to do about damage.
    """

    manifest: str
    kind: str
    elsewhere: str
    remedy: str

    def __init__(self, path: str) -> None:
        self.path = path
        # Names that nobody else gives: what is there is deleted.
        self._partial, self._replaced, self._lock = (
            f'{path}.mag-{what}' for what in ('partial', 'replaced', 'lock')
        )

    def exists(self) -> bool:
        r"""Whether the folder is there and not empty.

        Raises:
            ValueError: If it holds other files, or is a file.
        """
        while True:
            with self.opened() as is_same:
                try:
                    names = os.listdir(self.path)
                    if names and self.is_own(names):
                        return True
                    # One that is being deleted is empty in the end.
                    wrong = bool(names)
                except FileNotFoundError:
                    wrong = False
                except NotADirectoryError:
                    wrong = True
                # Another process may be replacing it, and deleting what it was.
                self.remove_leftovers()
                if is_same():
                    if wrong:
                        raise self._foreign()
                    return False

    def is_own(self, names: list[str]) -> bool:
        r"""Whether a folder with files of these names may be replaced."""
        return self.manifest in names

    def _is(self, descriptor: int) -> bool:
        r"""Whether the folder under the name is one that was opened."""
        try:
            return osp.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def file(self, name: str) -> str:
        r"""The path of one of its files."""
        return osp.join(self.path, name)

    @contextmanager
    def lock(self, wait: bool = True) -> Iterator[None]:
        r"""The lock under which one process alone writes, see :func:`mag.files.locked`: then
        nothing is there that a killed one left. The folder above is made if there is none."""
        os.makedirs(osp.dirname(self.path), exist_ok=True)
        with locked(self._lock, wait):
            self._settle()
            yield

    @contextmanager
    def writing(self) -> Iterator[str]:
        r"""Gives a folder to write to, which takes the place of this one when all is written. The
        caller holds :meth:`lock`.

        Raises:
            OSError: If the disk is full; it tells where.
        """
        os.mkdir(self._partial)
        try:
            yield self._partial
            self._replace()
        except FullDiskError:
            raise
        except Exception as error:
            if not tells_of_full_disk(error):
                raise
            # What is free is told as it will be found.
            self._settle()
            raise full_disk(osp.dirname(self.path), self.path) from error
        finally:
            self._settle()

    def _replace(self) -> None:
        for name in os.listdir(self._partial):
            flush(osp.join(self._partial, name))
        flush(self._partial)
        # No system call that Python has exchanges two folders.
        if osp.exists(self.path):
            os.replace(self.path, self._replaced)
        os.replace(self._partial, self.path)
        flush(osp.dirname(self.path))

    def _settle(self) -> None:
        r"""Takes back what was being replaced, and deletes what is no longer needed."""
        if osp.exists(self._replaced) and not osp.exists(self.path):
            os.replace(self._replaced, self.path)
        for path in (self._partial, self._replaced):
            shutil.rmtree(path, ignore_errors=True)

    def remove_leftovers(self) -> None:
        r"""Deletes what a killed process left, and takes back what it was replacing. Waits for a
        living one only while neither the former folder nor the new one is there."""
        if not any(map(osp.exists, (self._partial, self._replaced, self._lock))):
            return
        try:
            with self.lock(wait=osp.exists(self._replaced) and not osp.exists(self.path)):
                pass
        except OSError:
            # Another process is at work, or owns the folder.
            return

    def read_whole(self, read: Callable[[], _T]) -> _T:
        r"""What :obj:`read` returns or raises: it is called again if it fails and another process
        has replaced the folder meanwhile."""
        while True:
            self.remove_leftovers()
            with self.opened() as is_same:
                try:
                    return read()
                # Of two states mixed, anything may be wrong.
                except Exception:
                    self.remove_leftovers()
                    if is_same():
                        raise

    @contextmanager
    def opened(self) -> Iterator[Callable[[], bool]]:
        r"""Gives a function that tells whether the folder that is there now still is, or still is
        not."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            yield lambda: not osp.exists(self.path)
            return
        try:
            yield lambda: self._is(descriptor)
        finally:
            os.close(descriptor)

    def write_manifest(self, folder: str, facts: Mapping[str, Any]) -> None:
        r"""Writes :obj:`facts`, as values of JSON, and the checksums of the files that are in
        :obj:`folder`, which :meth:`writing` gave."""
        files = {name: checksum(osp.join(folder, name)) for name in sorted(os.listdir(folder))}
        manifest = {**facts, 'files': files}
        with (
            replacing(osp.join(folder, self.manifest)) as temporary,
            open(temporary, 'w', encoding='utf-8') as file,
        ):
            sealed = {**manifest, 'checksum': checksum_of(manifest)}
            json.dump(sealed, file, indent=1, allow_nan=False)

    def read_manifest(self, *facts: str) -> dict[str, Any]:
        r"""What :meth:`write_manifest` wrote, with all :obj:`facts`.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            with open(self.file(self.manifest), encoding='utf-8') as file:
                manifest = json.load(file)
            if manifest.pop('checksum') != checksum_of(manifest):
                raise ValueError('its checksum is not that of what was written')
            for name in ('files', *facts):
                manifest[name]
        except FileNotFoundError as error:
            raise self.damaged(self.manifest, 'it is missing') from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self.damaged(self.manifest, 'it is not what was written') from error
        return manifest

    @contextmanager
    def opening(self, manifest: Mapping[str, Any], name: str) -> Iterator[str]:
        r"""Gives a path by which a file is read as it was written, whatever another process puts in
        its place.

        Raises:
            ValueError: If it is missing or another than the one that was written.
        """
        try:
            file = open(self.file(name), 'rb')  # noqa: SIM115
        except FileNotFoundError as error:
            raise self.damaged(name, 'it is missing') from error
        with file:
            path = f'/proc/self/fd/{file.fileno()}'
            if checksum(path) != manifest['files'].get(name):
                raise self.damaged(
                    name, 'it is not what was written, or another process has replaced it'
                )
            yield path

    def damaged(self, name: str, reason: str) -> ValueError:
        r"""The error that says which file cannot be read."""
        return ValueError(
            f'The {self.kind} in {self.path!r} is damaged, its {name} cannot be read: {reason}. '
            f'{self.remedy}.'
        )

    def _foreign(self) -> ValueError:
        return ValueError(
            f"{self.path!r} must be empty or a {self.kind} of mag's, but it holds other files: "
            f'{self.elsewhere}.'
        )


def checksum_of(manifest: Mapping[str, Any]) -> str:
    r"""The checksum of what a manifest says, whatever its white space."""
    return f'{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}'
