r"""What a pipeline is on disk: a folder that is there whole or not at all."""

import json
import os
import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

import mag
from mag.files import require_local
from mag.folder import Folder

_FORMAT = 'mag.pipeline'
#: Raised by one whenever a folder holds something else.
_VERSION = 1
_T = TypeVar('_T')


class SavedPipeline(Folder):
    r"""The folder of a pipeline.

    Args:
        path (str): The folder.
    """

    manifest = 'manifest.json'
    kind = 'saved pipeline'
    elsewhere = 'choose another folder or move that one away'
    remedy = 'Copy the folder again, or fit the pipeline again'

    def is_own(self, names: list[str]) -> bool:
        # Others write a manifest.json, too, and somebody may have put a file of his own there.
        try:
            found = self._peek()
            return found['format'] == _FORMAT and {*names} <= {self.manifest, *found['files']}
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def read_manifest(self, *facts: str) -> dict[str, Any]:
        r"""What :func:`write_manifest` wrote, of a folder whose files are all as they were written.

        Raises:
            FileNotFoundError: If there is no folder.
            ValueError: If it is no saved pipeline, is of another version, or a file is missing, cut
                or damaged.
        """
        if not osp.isdir(self.path):
            raise FileNotFoundError(f'There is no folder {self.path!r}.')
        try:
            found = self._peek()
        except FileNotFoundError as error:
            raise ValueError(
                f'{self.path!r} is no saved pipeline: it has no {self.manifest}.'
            ) from error
        except ValueError as error:
            raise self.damaged(self.manifest, 'it is no JSON') from error
        if not isinstance(found, dict) or found.get('format') != _FORMAT:
            raise ValueError(
                f'{self.path!r} is no saved pipeline: its {self.manifest} is that of another.'
            )
        if found.get('version') != _VERSION:
            raise ValueError(
                f'{self.path!r} was saved in version {found.get("version")!r} of the format by '
                f'mag {found.get("mag")!r}, but mag {mag.__version__} reads version {_VERSION}: '
                f'fit the pipeline again.'
            )
        manifest = super().read_manifest(*facts)
        for name in manifest['files']:
            with self.opening(manifest, name):
                pass
        return manifest

    def _peek(self) -> Any:
        with open(self.file(self.manifest), encoding='utf-8') as file:
            return json.load(file)


def check_free(folder: str | os.PathLike[str]) -> None:
    r"""Raises a :class:`ValueError` if a pipeline cannot be saved to :obj:`folder`, as something
    else is there."""
    require_local('folder', folder)
    _at(folder).exists()


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[str]:
    r"""Gives a folder to write to, which takes the place of :obj:`folder` when all is written, see
    :class:`mag.folder.Folder`.

    Raises:
        ValueError: If something else than a saved pipeline is there.
    """
    check_free(folder)
    saved = _at(folder)
    with saved.lock(), saved.writing() as partial:
        yield partial


def write_manifest(folder: str, values: Mapping[str, Any]) -> None:
    r"""Writes what a pipeline is besides tensors and ids, and the checksums of all files that are
    in the folder that :func:`writing` gave."""
    versions = {
        'format': _FORMAT,
        'version': _VERSION,
        'mag': mag.__version__,
        'torch': torch.__version__,
    }
    SavedPipeline(folder).write_manifest(folder, versions | dict(values))


def read_whole(folder: str | os.PathLike[str], read: Callable[[str, dict[str, Any]], _T]) -> _T:
    r"""What :obj:`read` makes of a folder and of what :func:`write_manifest` wrote there, all of it
    of one pipeline, even if another process saves another one there meanwhile.

    Raises:
        FileNotFoundError: If there is no folder.
        ValueError: If it is no saved pipeline, is of another version, or a file is missing, cut or
            damaged.
    """
    saved = _at(folder)

    def read_one() -> _T:
        with saved.opened() as is_same:
            found = read(saved.path, saved.read_manifest())
            if not is_same():
                raise ValueError(f'{saved.path!r} has been replaced while it was read.')
            return found

    return saved.read_whole(read_one)


def _at(folder: str | os.PathLike[str]) -> SavedPipeline:
    path = osp.abspath(osp.expanduser(folder))
    # A link stays one: what it names is replaced.
    return SavedPipeline(osp.realpath(path) if osp.islink(path) else path)


def write_safetensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    r"""Writes tensors, which may share memory."""
    # Here, because nothing else of mag needs it.
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
              path)  # fmt: skip


def read_safetensors(path: str) -> dict[str, Tensor]:
    r"""Reads what :func:`write_safetensors` wrote."""
    from safetensors.torch import load_file

    return load_file(path)
