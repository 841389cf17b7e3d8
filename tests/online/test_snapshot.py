import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mag
from mag.folder import checksum_of
from mag.online import Snapshot
from mag.online import snapshot as snapshots
from mag.online.snapshot import _name_of
from mag.pipeline import Pipeline

MODELS = ('count_net', 'macgnn')


@pytest.fixture
def path(shop: Callable[[str], Any], tmp_path: Path) -> Path:
    return Path(shop('macgnn').snapshot(tmp_path))


@pytest.mark.parametrize('model', MODELS)
def test_a_snapshot_is_named_by_what_it_holds(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    path = pipeline.snapshot(tmp_path / 'snapshots')
    assert re.fullmatch('[0-9a-f]{16}', Path(path).name)
    before = {file.name: file.read_bytes() for file in Path(path).iterdir()}
    # Written again, it is the same one; and nothing else is left.
    assert pipeline.snapshot(tmp_path / 'snapshots') == path
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == before
    assert os.listdir(tmp_path / 'snapshots') == [Path(path).name]
    snapshot = Snapshot.open(path).verify()
    summary, events = pipeline.summary(), pipeline.events()
    assert snapshot.model == model
    assert snapshot.position == len(events) == summary['exposures']
    assert snapshot.time == summary['last time'] == events['time'][-1]
    assert snapshot.num_nodes == {'user': summary['users'], 'item': summary['items']}
    assert snapshot.manifest['mag'] == mag.__version__
    assert {name: ids.fingerprint for name, ids in snapshot.id_maps.items()} == summary['ids']
    weights = pipeline.model.state_dict()
    assert snapshot.weights().keys() == weights.keys()
    assert all(value.equal(weights[name]) for name, value in snapshot.weights().items())
    assert all(isinstance(of.base, np.memmap) for of in snapshot.rows.values())
    assert not any(b'pickle' in content for content in before.values())
    # Other weights have another name.
    next(pipeline.model.parameters()).add_(1)
    assert pipeline.snapshot(tmp_path / 'snapshots') != path


@pytest.mark.parametrize('model', MODELS)
def test_pairs_are_those_that_have_clicked(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    snapshot = Snapshot.open(pipeline.snapshot(tmp_path))
    events = pipeline.events()
    clicks = {(user, item) for user, item, _, clicked in events.tolist() if clicked}
    user, item = (part.ravel() for part in np.mgrid[: snapshot.num_nodes['user'] + 9, :60])
    found = snapshot.has_pairs(user, item)
    assert {*zip(user[found].tolist(), item[found].tolist())} == clicks
    assert 0 < len(clicks) < (events['clicked'] == 1).sum()
    assert snapshot.has_pairs(user[:0], item[:0]).tolist() == []


def test_a_link_names_a_snapshot(path: Path) -> None:
    (path.parent / 'current').symlink_to(path)
    assert Snapshot.open(path.parent / 'current').path == str(path)


def test_a_written_snapshot_is_there_whole_or_not_at_all(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, saved = shop('macgnn'), np.save

    def save(path: str, *arguments: Any, **options: Any) -> None:
        if 'rows_item' in path:
            raise OSError('the disk has failed')
        saved(path, *arguments, **options)

    monkeypatch.setattr(snapshots.np, 'save', save)
    with pytest.raises(OSError, match='the disk has failed'):
        pipeline.snapshot(tmp_path / 'snapshots')
    assert os.listdir(tmp_path / 'snapshots') == []


def test_a_damaged_snapshot_is_made_whole_by_one_of_the_same_content(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('macgnn')
    path = Path(pipeline.snapshot(tmp_path))
    inode = path.stat().st_ino
    assert pipeline.snapshot(tmp_path) == str(path) and path.stat().st_ino == inode
    flip(path / 'rows_user.npy')
    # What a killed process has left is deleted.
    (tmp_path / 'snapshot.mag-partial').mkdir()
    assert pipeline.snapshot(tmp_path) == str(path)
    assert os.listdir(tmp_path) == [path.name]
    Snapshot.open(path).verify()


def change(path: Path, **facts: Any) -> Path:
    r"""Another snapshot, whole, whose manifest says something else."""
    manifest = json.loads((path / 'manifest.json').read_text())
    del manifest['checksum']
    manifest |= facts
    text = json.dumps({**manifest, 'checksum': checksum_of(manifest)})
    (path / 'manifest.json').write_text(text)
    return path.rename(path.with_name(_name_of(str(path))))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: (path / 'manifest.json').unlink(), 'is no snapshot: it has no manifest'),
        (lambda path: cut(path / 'manifest.json'), 'its manifest.json cannot be read'),
        (lambda path: flip(path / 'manifest.json', 40), 'its manifest.json cannot be read'),
        (lambda path: (path / 'rows_user.npy').unlink(), 'its rows_user.npy cannot be read: it is'),
        (lambda path: cut(path / 'rows_item.npy'), 'rows_item.npy cannot be read: it has 9999'),
        (lambda path: (path / 'manifest.json').write_text('{}'), 'manifest.json cannot be read'),
        (lambda path: (path / 'manifest.json').write_text('[]'), 'manifest.json cannot be read'),
        (lambda path: flip(path / 'rows_user.npy', 0), 'its rows_user.npy cannot be read: it is'),
    ],
)
def test_a_damaged_snapshot_is_not_opened(
    damage: Callable[[Path], Any], message: str, path: Path
) -> None:
    size = (path / 'rows_item.npy').stat().st_size - 1
    damage(path)
    with pytest.raises(ValueError, match=re.escape(message.replace('9999', str(size)))):
        Snapshot.open(path)


def test_a_snapshot_under_the_name_of_another_is_not_opened(path: Path) -> None:
    other = path.rename(path.with_name('0123456789abcdef'))
    with pytest.raises(ValueError, match=f'belongs to a snapshot with the name {path.name}'):
        Snapshot.open(other)


@pytest.mark.parametrize(
    ('facts', 'message'),
    [
        ({'version': 1}, "was written in version 1 of the format by mag '"),
        ({'format': 'mag.pipeline'}, 'is no snapshot: its manifest.json is that of another'),
        ({'num_recent': 7}, 'rows_user.npy cannot be read: it holds '),
        ({'num_pairs': 7}, 'pair_item.npy cannot be read: it holds int32 of shape '),
    ],
)
def test_foreign_snapshots_are_not_opened(facts: dict[str, Any], message: str, path: Path) -> None:
    path = change(path, **facts)
    with pytest.raises(ValueError, match=re.escape(message)):
        Snapshot.open(path)


def test_a_folder_that_is_none_is_not_opened(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='There is no folder'):
        Snapshot.open(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='is no snapshot: it has no manifest.json'):
        Snapshot.open(tmp_path / 'empty')


@pytest.mark.parametrize('name', ['rows_user.npy', 'model.safetensors', 'ids_user.parquet'])
def test_whoever_verifies_finds_a_bit_that_has_flipped(name: str, path: Path) -> None:
    snapshot = Snapshot.open(path)
    flip(path / name)
    with pytest.raises(ValueError, match=f'its {name} cannot be read: it is not what was written'):
        snapshot.verify()
    if name == 'model.safetensors':
        with pytest.raises(ValueError, match='it is not what was written'):
            snapshot.weights()


def test_arrays_of_objects_are_not_read(path: Path) -> None:
    array = path / 'rows_user.npy'
    size = array.stat().st_size
    np.save(array, np.array([{}], dtype=object), allow_pickle=True)
    array.write_bytes(array.read_bytes().ljust(size, b' '))
    with pytest.raises(ValueError, match='rows_user.npy cannot be read: it is no array'):
        Snapshot.open(path)


def test_a_snapshot_that_moves_elsewhere_is_the_same(path: Path, tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    moved = Path(shutil.move(path, tmp_path / 'elsewhere'))
    assert Snapshot.open(moved).verify().path == str(moved)


def test_pipelines_without_snapshots_are_told_so() -> None:
    with pytest.raises(RuntimeError, match='Pipeline has not been fitted'):
        Pipeline('macgnn').snapshot('nowhere')
    with pytest.raises(RuntimeError, match='Pipeline has not been fitted'):
        Pipeline('macgnn').events()
