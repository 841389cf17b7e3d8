r"""Folders that are there whole or not at all, and are read as they were written or refused."""

import json
import os
import os.path as osp
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import mag
from mag.files import checksum, require_local

_MANIFEST = 'manifest.json'
_FORMAT = 'mag.pipeline'
#: Raised by one whenever a folder holds something else.
_VERSION = 1


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[str]:
    r"""Gives a folder to write to, which takes the place of :obj:`folder` when all is written.

    Raises:
        ValueError: If something else than a saved pipeline is there.
    """
    require_local('folder', folder)
    folder = osp.abspath(osp.expanduser(folder))
    if osp.exists(folder) and not osp.exists(osp.join(folder, _MANIFEST)):
        is_empty = osp.isdir(folder) and not os.listdir(folder)
        if not is_empty:
            raise ValueError(
                f'{folder!r} holds something else than a saved pipeline: choose another folder.'
            )
    parent = osp.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    partial, replaced = (f'{folder}.{uuid.uuid4().hex[:8]}.{end}' for end in ('tmp', 'old'))
    os.mkdir(partial)
    try:
        yield partial
        for name in os.listdir(partial):
            _flush(osp.join(partial, name))
        _flush(partial)
        # No system call that Python has exchanges two folders.
        if osp.exists(folder):
            os.rename(folder, replaced)
        os.rename(partial, folder)
        _flush(parent)
    finally:
        if osp.exists(replaced) and not osp.exists(folder):
            os.rename(replaced, folder)
        for path in (partial, replaced):
            shutil.rmtree(path, ignore_errors=True)


def write_manifest(folder: str, values: Mapping[str, Any]) -> None:
    r"""Writes what a pipeline is besides tensors and ids, and the checksums of all files that are
    in the folder."""
    manifest = {
        'format': _FORMAT,
        'version': _VERSION,
        'mag': mag.__version__,
        'torch': torch.__version__,
        **values,
        'files': {
            name: {
                'bytes': osp.getsize(osp.join(folder, name)),
                'crc32': checksum(osp.join(folder, name)),
            }
            for name in sorted(os.listdir(folder))
        },
    }
    manifest['crc32'] = _crc(manifest)
    with open(osp.join(folder, _MANIFEST), 'w', encoding='utf-8') as file:
        json.dump(manifest, file, indent=1, allow_nan=False)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    r"""What :func:`write_manifest` wrote, of a folder whose files are all as they were written.

    Raises:
        FileNotFoundError: If there is no folder.
        ValueError: If it is no saved pipeline, is of another version, or a file is missing, cut or
            damaged.
    """
    folder = os.fspath(folder)
    if not osp.isdir(folder):
        raise FileNotFoundError(f'There is no folder {folder!r}.')
    path = osp.join(folder, _MANIFEST)
    if not osp.isfile(path):
        raise ValueError(f'{folder!r} is no saved pipeline: it has no {_MANIFEST}.')
    try:
        with open(path, encoding='utf-8') as file:
            manifest = json.load(file)
    except ValueError as error:
        raise ValueError(f'{path!r} is cut or damaged: it is no JSON.') from error
    if not isinstance(manifest, dict) or manifest.get('format') != _FORMAT:
        raise ValueError(f'{folder!r} is no saved pipeline: its {_MANIFEST} is that of another.')
    if manifest.get('version') != _VERSION:
        raise ValueError(
            f'{folder!r} was saved in version {manifest.get("version")!r} of the format by mag '
            f'{manifest.get("mag")!r}, but mag {mag.__version__} reads version {_VERSION}: fit the '
            f'pipeline again.'
        )
    if manifest.pop('crc32', None) != _crc(manifest):
        raise ValueError(f'{path!r} is damaged: its checksum is not that of what was written.')
    for name, facts in manifest['files'].items():
        file_path = osp.join(folder, name)
        if not osp.isfile(file_path):
            raise ValueError(f'{folder!r} lacks the file {name!r}: copy the folder whole.')
        size = osp.getsize(file_path)
        if size != facts['bytes']:
            raise ValueError(
                f'{file_path!r} has {size} bytes where {facts["bytes"]} were written: copy the '
                f'folder again.'
            )
        if checksum(file_path) != facts['crc32']:
            raise ValueError(
                f'{file_path!r} is damaged: its checksum is not that of what was written.'
            )
    return manifest


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


def _crc(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    return f'{zlib.crc32(text.encode()):08x}'


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
