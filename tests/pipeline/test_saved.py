import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.pipeline.saved import (
    check_free,
    read_safetensors,
    read_whole,
    write_manifest,
    write_safetensors,
    writing,
)


def save(folder: Path, number: int) -> None:
    with writing(folder) as partial:
        write_safetensors(f'{partial}/x.safetensors', {'x': torch.full((3,), number)})
        write_manifest(partial, {'number': number})


def load(folder: Path) -> int:
    def read(path: str, manifest: dict[str, Any]) -> int:
        values = read_safetensors(f'{path}/x.safetensors')
        assert values['x'].tolist() == [manifest['number']] * 3
        return manifest['number']

    return read_whole(folder, read)


def test_a_folder_that_a_kill_left_without_its_name_is_found(tmp_path: Path) -> None:
    save(tmp_path / 'shop', 1)
    os.rename(tmp_path / 'shop', tmp_path / 'shop.mag-replaced')
    assert load(tmp_path / 'shop') == 1
    os.rename(tmp_path / 'shop', tmp_path / 'shop.mag-replaced')
    save(tmp_path / 'shop', 2)
    assert load(tmp_path / 'shop') == 2
    assert os.listdir(tmp_path) == ['shop']


def test_files_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    shop = tmp_path / 'shop'
    message = r"^'.*shop' must be empty or a saved pipeline of mag's, .* move that one away\.$"
    save(shop, 1)
    (shop / 'notes.txt').write_text('precious')
    with pytest.raises(ValueError, match=message):
        save(shop, 2)
    # They are in nobody's way where it is read.
    assert load(shop) == 1
    (shop / 'notes.txt').unlink()
    save(shop, 2)
    for content in ('{"name": "a web application"}', '[]', 'no JSON'):
        (shop / 'manifest.json').write_text(content)
        with pytest.raises(ValueError, match=message):
            check_free(shop)
    with pytest.raises(ValueError, match="'folder' must be a folder of this machine"):
        check_free('s3://bucket/shop')
    assert os.listdir(tmp_path) == ['shop']


def test_a_damaged_pipeline_may_be_replaced(tmp_path: Path) -> None:
    save(tmp_path / 'shop', 1)
    (tmp_path / 'shop/x.safetensors').write_text('damaged')
    save(tmp_path / 'shop', 2)
    (tmp_path / 'shop/x.safetensors').unlink()
    save(tmp_path / 'shop', 3)
    assert load(tmp_path / 'shop') == 3


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    save(tmp_path / 'first', 1)
    (tmp_path / 'shop').symlink_to('first')
    save(tmp_path / 'shop', 2)
    assert (tmp_path / 'shop').readlink() == Path('first')
    assert load(tmp_path / 'first') == load(tmp_path / 'shop') == 2
    assert sorted(os.listdir(tmp_path)) == ['first', 'shop']


def test_the_manifest_is_json_that_people_read(tmp_path: Path) -> None:
    save(tmp_path / 'shop', 1)
    manifest = json.loads((tmp_path / 'shop/manifest.json').read_text())
    assert list(manifest) == ['format', 'version', 'mag', 'torch', 'number', 'files', 'checksum']
    assert list(manifest['files']) == ['x.safetensors']


def test_full_disk(small_disk: Path) -> None:
    save(small_disk / 'shop', 1)
    sentence = rf"^\[Errno 28\] The disk is full: '{small_disk}/shop' needs more, but .* free\. "
    with pytest.raises(OSError, match=sentence), writing(small_disk / 'shop') as partial:
        write_safetensors(f'{partial}/x.safetensors', {'x': torch.zeros(2_000_000)})
    with pytest.raises(OSError, match=sentence), writing(small_disk / 'shop') as partial:
        Path(partial, 'x').write_bytes(bytes(2_000_000))
    assert load(small_disk / 'shop') == 1 and os.listdir(small_disk) == ['shop']


def test_all_that_is_read_is_of_one_pipeline(tmp_path: Path) -> None:
    shop = tmp_path / 'shop'
    save(shop, 1)
    found = []

    def read(path: str, manifest: dict[str, Any]) -> list[float]:
        found.append(manifest['number'])
        if len(found) == 1:
            # As another process does, between two files.
            save(shop, 2)
        return [manifest['number'], *read_safetensors(f'{path}/x.safetensors')['x'].tolist()]

    assert read_whole(shop, read) == [2, 2, 2, 2]
    assert found == [1, 2]
