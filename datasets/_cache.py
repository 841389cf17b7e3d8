r"""A folder of files that are there all or not at all, each as it was written."""

import json
import os
import os.path as osp
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from filelock import FileLock

from mag.files import checksum, read_tensors, replacing, write_tensors

_MANIFEST = 'cache.json'
_T = TypeVar('_T')


class Cache:
    r"""A folder that is written beside its final place and renamed at the end.

    Its :obj:`cache.json` has the checksums of the other files and its own. They are compared when
    the files are read, so that a damaged or exchanged file is refused, and nothing that a file
    holds is run.

    Args:
        folder (str): The folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._partial = f'{folder}.partial'
        self._replaced = f'{folder}.replaced'

    def exists(self) -> bool:
        r"""Whether there is a cache.

        Raises:
            ValueError: If the folder holds other files.
        """
        while osp.isdir(self.folder):
            try:
                names, is_there = self._names()
            except FileNotFoundError:
                continue
            if not names or _MANIFEST in names:
                return bool(names)
            # Else another process has replaced it meanwhile, and is deleting what it was.
            if is_there:
                raise ValueError(
                    f"{self.folder!r} must be empty or a cache of mag's, but it holds other files: "
                    f"choose another 'root' or move that folder away."
                )
        return False

    def _names(self) -> tuple[list[str], bool]:
        r"""What a folder holds, and whether it is still there under its name."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            names = os.listdir(descriptor)
            return names, osp.samestat(os.fstat(descriptor), os.stat(self.folder))
        finally:
            os.close(descriptor)

    def path(self, name: str) -> str:
        r"""The path of one of its files."""
        return osp.join(self.folder, name)

    def lock(self, timeout: float = -1) -> FileLock:
        r"""The lock under which one process alone writes."""
        root = osp.dirname(self.folder)
        os.makedirs(root, exist_ok=True)
        return FileLock(osp.join(root, '.lock'), timeout)

    @contextmanager
    def writing(self) -> Iterator[str]:
        r"""Gives a folder to write to, which takes the place of the cache when all is written."""
        shutil.rmtree(self._partial, ignore_errors=True)
        os.makedirs(self._partial)
        try:
            yield self._partial
            self._replace()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _replace(self) -> None:
        shutil.rmtree(self._replaced, ignore_errors=True)
        if osp.exists(self.folder):
            os.replace(self.folder, self._replaced)
        os.replace(self._partial, self.folder)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def remove_leftovers(self) -> None:
        r"""Deletes what a killed process left, and takes back what it was replacing."""
        if not osp.exists(self._partial) and not osp.exists(self._replaced):
            return
        try:
            with self.lock(timeout=0):
                if osp.exists(self._replaced) and not osp.exists(self.folder):
                    os.replace(self._replaced, self.folder)
                for folder in (self._partial, self._replaced):
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Another process is at work (a timeout is an OSError, too), or owns the folder.
            return

    def read_whole(self, read: Callable[[], _T]) -> _T:
        r"""Calls :obj:`read`, and once more if it finds another process at work."""
        try:
            return read()
        except (ValueError, OSError) as error:
            # Another process may be replacing the cache, which is whole again when it is done.
            try:
                lock = self.lock().acquire()
            except OSError:
                raise error from None
            with lock:
                return read()

    def read_manifest(self, *facts: str) -> dict[str, Any]:
        r"""What :func:`write_manifest` wrote, with all :obj:`facts`.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            with open(self.path(_MANIFEST), encoding='utf-8') as file:
                manifest = json.load(file)
            if manifest.pop('checksum') != checksum_of(manifest):
                raise ValueError('its checksum is not that of what was written')
            for name in ('files', *facts):
                manifest[name]
        except FileNotFoundError as error:
            raise self._damaged(_MANIFEST, 'it is missing') from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged(_MANIFEST, 'it is not what was written') from error
        return manifest

    @contextmanager
    def opening(self, manifest: dict[str, Any], name: str) -> Iterator[str]:
        r"""Gives a path by which a file is read as it was written, whatever another process puts in
        its place.

        Raises:
            ValueError: If it is missing or another than the one that was written.
        """
        try:
            file = open(self.path(name), 'rb')  # noqa: SIM115
        except FileNotFoundError as error:
            raise self._damaged(name, 'it is missing') from error
        with file:
            path = f'/proc/self/fd/{file.fileno()}'
            if checksum(path) != manifest['files'].get(name):
                raise self._damaged(
                    name, 'it is not what was written, or another process has made the cache again'
                )
            yield path

    def read_graph(self, manifest: dict[str, Any], name: str) -> dict[str, Any]:
        r"""The dictionary of tensors that a file holds.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            graph = read_tensors(self.path(name), manifest['files'].get(name, ''))
        except FileNotFoundError as error:
            raise self._damaged(name, 'it is missing') from error
        except ValueError as error:
            raise self._damaged(name, str(error).removesuffix('.')) from error
        if not isinstance(graph, dict):
            raise self._damaged(name, 'it holds no graph')
        return graph

    def _damaged(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f'The cache in {self.folder!r} is damaged, its {name} cannot be read: {reason}. '
            f'Pass force_reload=True to make it again.'
        )


def write_graph(graph: dict[str, Any], path: str, pre_transform: str) -> None:
    r"""Writes what :meth:`Cache.read_graph` reads.

    Args:
        graph (dict): Tensors, by node type and edge type.
        path (str): The file.
        pre_transform (str): What has changed the graph, for the message.

    Raises:
        ValueError: If the graph holds what could not be read again.
    """
    # `InMemoryDataset.save` holds two more copies of the data in memory.
    write_tensors(graph, path)
    try:
        torch.load(path, weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(
            f"'pre_transform' must put tensors, numbers, words, lists and dictionaries into the "
            f'data, as a cache holds nothing else, but {pre_transform} puts objects of other '
            f'classes there.'
        ) from error


def write_manifest(folder: str, facts: dict[str, Any]) -> None:
    r"""Writes :obj:`cache.json`: :obj:`facts`, and the checksums of the files in a folder."""
    files = {name: checksum(osp.join(folder, name)) for name in sorted(os.listdir(folder))}
    manifest = facts | {'files': files}
    with (
        replacing(osp.join(folder, _MANIFEST)) as temporary,
        open(temporary, 'w', encoding='utf-8') as file,
    ):
        json.dump(manifest | {'checksum': checksum_of(manifest)}, file)


def checksum_of(manifest: dict[str, Any]) -> str:
    r"""The checksum of what a :obj:`cache.json` says, whatever its white space."""
    return f'{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}'
