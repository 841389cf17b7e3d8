import os
import os.path as osp
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from mag.files import locked


@dataclass(frozen=True)
class WorkFolder:
    r"""A folder that several machines write to and read from, on any file system of fsspec.

    A file is written once under a name of its own, so that work that is done twice does no harm:
    who reads it is told the name by one of both.

    Args:
        url (str): The folder, such as :obj:`'/shared/work'`, :obj:`'s3://bucket/work'` or
            :obj:`'hdfs://host/work'`.
    """

    url: str

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        r"""Writes arrays to a new file, and gives what :meth:`read` is to be given.

        Args:
            name (str): What its name begins with.
            arrays (dict[str, numpy.ndarray]): The arrays.
        """
        files, folder = self._open()
        name = f'{name}-{uuid.uuid4().hex}.npz'
        path = f'{folder}/{name}'
        files.makedirs(osp.dirname(path), exist_ok=True)
        with files.open(path, 'wb') as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return name

    def read(self, name: str) -> dict[str, np.ndarray]:
        r"""Reads the arrays of a file, as a whole."""
        files, folder = self._open()
        with files.open(f'{folder}/{name}', 'rb') as file, np.load(file) as arrays:
            return dict(arrays)

    def share(self, name: str, path: str) -> None:
        r"""Has other machines read an array of this one, unless it is in the folder already.

        Args:
            name (str): Where it is in the folder.
            path (str): The file here.
        """
        files, folder = self._open()
        there = f'{folder}/{name}'
        if not isinstance(files, LocalFileSystem) or osp.realpath(there) != osp.realpath(path):
            files.makedirs(osp.dirname(there), exist_ok=True)
            files.put_file(path, there)

    def map(self, name: str) -> np.ndarray:
        r"""Maps an array that another machine shares. From afar each machine fetches it once, to
        its folder of temporary files.

        Args:
            name (str): Where it is in the folder.
        """
        files, folder = self._open()
        path = f'{folder}/{name}'
        if not isinstance(files, LocalFileSystem):
            path = osp.join(self._fetched(), name)
            os.makedirs(osp.dirname(path), exist_ok=True)
            with locked(f'{path}.lock'):
                if not osp.exists(path):
                    files.get_file(f'{folder}/{name}', f'{path}.part')
                    os.replace(f'{path}.part', path)
        return np.load(path, mmap_mode='r')

    def remove(self) -> None:
        r"""Removes all of it."""
        files, folder = self._open()
        if files.exists(folder):
            files.rm(folder, recursive=True)
        shutil.rmtree(self._fetched(), ignore_errors=True)

    def _fetched(self) -> str:
        r"""Where this machine keeps what it fetched."""
        # A name without the separators of the URL.
        name = f'mag-{uuid.uuid5(uuid.NAMESPACE_URL, self.url).hex}'
        return osp.join(tempfile.gettempdir(), name)

    def _open(self) -> tuple[Any, str]:
        files, folder = fsspec.core.url_to_fs(self.url)
        return files, folder


def absolute_url(url: str) -> str:
    r"""The URL of a folder that any process reads alike.

    Args:
        url (str): A URL, or a path.

    Raises:
        ValueError: If it is on no file system that fsspec has here.
    """
    try:
        files, folder = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"'work' must be a folder on a file system of fsspec, such as 's3://bucket/work', but "
            f'got {url!r}: {error}'
        ) from error
    return str(files.unstrip_protocol(folder)).rstrip('/')
