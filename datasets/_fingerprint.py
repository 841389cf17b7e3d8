r"""What raw files a cache was made from, and whether they are still the same."""

import hashlib
import os
import os.path as osp
from typing import Any


def describe_files(paths: list[str], root: str) -> list[dict[str, Any]]:
    r"""The name, path from :obj:`root`, size and time of each raw file, in their order."""
    if not paths:
        return []
    base = osp.commonpath([osp.dirname(osp.abspath(path)) for path in paths])
    return [_describe_file(path, osp.relpath(path, base), root) for path in paths]


def hash_files(paths: list[str], root: str) -> list[dict[str, Any]]:
    r"""What :func:`describe_files` returns, and the hash of each file."""
    return [
        {**file, 'hash': hash_file(_path_of(file, root))} for file in describe_files(paths, root)
    ]


def compare_files(before: list[dict[str, Any]], paths: list[str], root: str) -> list[str]:
    r"""How the raw files differ from what :func:`hash_files` returned before.

    Where path, size and time are those of before, no file is read.
    """
    differences = []
    cached = {file['name']: file for file in before}
    now = {file['name']: file for file in describe_files(paths, root)}
    if now:
        differences += [f'{name} is gone' for name in sorted(cached.keys() - now.keys())]
        differences += [f'{name} is new' for name in sorted(now.keys() - cached.keys())]
    else:
        # A finished cache outlives its raw files, but not a change of what is left of them.
        now = {
            name: _describe_file(_path_of(file, root), name, root)
            for name, file in cached.items()
            if osp.exists(_path_of(file, root))
        }
    for name in sorted(cached.keys() & now.keys()):
        differences += _compare_file(cached[name], now[name], root)
    if cached.keys() == now.keys() and list(cached) != list(now):
        differences.append(f'the files were {", ".join(cached)}, are now {", ".join(now)}')
    return differences


def hash_file(path: str, algorithm: str = 'blake2b') -> str:
    r"""Returns the hash of a file's content in hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _describe_file(path: str, name: str, root: str) -> dict[str, Any]:
    status = os.stat(path)
    return {
        'name': name,
        'path': osp.relpath(path, root),
        'size': status.st_size,
        'modified': status.st_mtime_ns,
    }


def _path_of(file: dict[str, Any], root: str) -> str:
    return osp.normpath(osp.join(root, file['path']))


def _compare_file(before: dict[str, Any], now: dict[str, Any], root: str) -> list[str]:
    if before['size'] != now['size']:
        return [f'{now["name"]} had {before["size"]:,} bytes, has now {now["size"]:,}']
    is_untouched = before | now == before
    if not is_untouched and before['hash'] != hash_file(_path_of(now, root)):
        return [f'{now["name"]} has the same size and other content']
    return []
