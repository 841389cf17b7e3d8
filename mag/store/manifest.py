r"""The manifest of a store, which is written last and says what its files are."""

import json
import os
import os.path as osp
from collections.abc import Mapping
from typing import Any

from mag.files import flush, replacing
from mag.folder import checksum_of

FORMAT = 2
_NAME = 'manifest.json'


def has_manifest(folder: str) -> bool:
    r"""Whether a folder is a store that is whole."""
    return osp.exists(osp.join(folder, _NAME))


def write_manifest(folder: str, facts: Mapping[str, Any]) -> None:
    r"""Writes the manifest, and has it on the disk."""
    manifest = {'format': FORMAT, **facts}
    path = osp.join(folder, _NAME)
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump({**manifest, 'checksum': checksum_of(manifest)}, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    flush(folder)


def read_manifest(folder: str) -> dict[str, Any]:
    r"""What the manifest of a store says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or of another format.
    """
    path = osp.join(folder, _NAME)
    if not osp.exists(path):
        raise FileNotFoundError(f'{folder!r} is no store: it has no {_NAME}.')
    try:
        with open(path, encoding='utf-8') as file:
            manifest = json.load(file)
        is_whole = manifest.pop('checksum') == checksum_of(manifest)
    except (ValueError, KeyError, AttributeError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f'{path!r} is damaged: build the store again.')
    if manifest.get('format') != FORMAT:
        raise ValueError(
            f'{folder!r} is a store of format {manifest.get("format")}, but this version reads '
            f'{FORMAT}: build it again.'
        )
    return manifest
