import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mag.store.work_folder import WorkFolder, absolute_url


@pytest.fixture(params=['path', 'file', 'memory'])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkFolder]:
    path = tmp_path / 'work'
    urls = {'path': f'{path}', 'file': f'file://{path}', 'memory': f'memory://{tmp_path.name}/work'}
    work = WorkFolder(urls[request.param])
    yield work
    # What was fetched lies elsewhere.
    work.remove()


def test_arrays_are_read_as_they_were_written(folder: WorkFolder) -> None:
    arrays = {
        'record': np.arange(7, dtype=np.uint64) << np.uint64(40),
        'table': np.arange(12, dtype=np.uint16).reshape(2, 3, 2),
        'nothing': np.empty((0, 3), np.int32),
    }
    names = [folder.write('parts/user-0', arrays) for _ in range(2)]
    # Work that is done twice does not write to one file.
    assert names[0] != names[1]
    for name in names:
        found = folder.read(name)
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            assert np.array_equal(found[key], array)


def test_what_is_shared_is_mapped(folder: WorkFolder, tmp_path: Path) -> None:
    path = tmp_path / 'here.npy'
    np.save(path, np.arange(5))
    folder.share('rows/data.npy', str(path))
    first, again = (folder.map('rows/data.npy') for _ in range(2))
    assert isinstance(first, np.memmap)
    assert np.array_equal(first, np.arange(5))
    assert first.filename == again.filename
    # One that is there is not copied onto itself.
    folder.share('rows/data.npy', first.filename)
    assert np.array_equal(folder.map('rows/data.npy'), np.arange(5))


def test_all_of_it_is_removed(folder: WorkFolder, tmp_path: Path) -> None:
    np.save(tmp_path / 'here.npy', np.arange(5))
    folder.share('data.npy', str(tmp_path / 'here.npy'))
    path = folder.map('data.npy').filename
    folder.write('part', {'record': np.arange(3)})
    folder.remove()
    files, url = fsspec.core.url_to_fs(folder.url)
    assert not files.exists(url)
    assert not os.path.exists(path)
    # Nothing is there to be removed.
    folder.remove()


def test_urls_are_those_of_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url('work/') == f'file://{tmp_path}/work'
    assert absolute_url(f'file://{tmp_path}') == f'file://{tmp_path}'
    assert absolute_url('memory://work') == 'memory:///work'
    with pytest.raises(ValueError, match="'work' must be a folder .* but got 'nowhere://a'"):
        absolute_url('nowhere://a')
