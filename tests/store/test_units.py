import threading
from pathlib import Path

import numpy as np
import pytest

from mag.store.units import Units


def test_a_unit_is_done_once(tmp_path: Path) -> None:
    units, calls = Units(str(tmp_path), 1, False), []

    def work() -> dict[str, int]:
        calls.append(0)
        units.write('some/values.npy', np.arange(3))
        return {'number': 3}

    (tmp_path / 'some').mkdir()
    assert units.run('first', work) == {'number': 3}
    # A later process knows what it told, and a marker that was begun is none.
    (tmp_path / 'work/done/second.json.0123abcd.tmp').write_text('{')
    again = Units(str(tmp_path), 1, False)
    assert again.run('first', work) == {'number': 3}
    assert again.results.keys() == {'first'}
    assert calls == [0]


@pytest.mark.parametrize('threads', [1, 3])
def test_units_are_written_in_their_order(tmp_path: Path, threads: int) -> None:
    units, written, barrier = Units(str(tmp_path), threads, False), [], threading.Barrier(threads)

    def compute(name: str) -> int:
        # As many as there are threads compute at once.
        barrier.wait(timeout=60)
        return int(name)

    def write(name: str, value: int) -> int:
        written.append(value)
        return value

    names = [str(place) for place in range(6)]
    units.results['0'] = 0
    if threads == 1:
        units.run_all('units', ' rows', dict.fromkeys(names, 1), compute, write)
        assert written == [1, 2, 3, 4, 5]
    else:
        units.run_all('units', ' rows', dict.fromkeys(names[:4], 1), compute, write)
        assert written == [1, 2, 3]


def test_units_that_need_too_much_together_wait(tmp_path: Path) -> None:
    units, held, most = Units(str(tmp_path), 3, False, memory=10), [0], [0]
    lock, needed = threading.Lock(), {'a': 6, 'b': 4, 'c': 9, 'd': 5, 'e': 20}

    def compute(name: str) -> str:
        with lock:
            held[0] += needed[name]
            if name != 'e':
                most[0] = max(most[0], held[0])
        return name

    def write(name: str, value: str) -> None:
        with lock:
            held[0] -= needed[name]

    units.run_all('units', ' rows', dict.fromkeys(needed, 1), compute, write, needed)
    assert [*units.results] == [*needed] and held == [0] and most[0] <= 10


def test_what_fails_has_no_marker(tmp_path: Path) -> None:
    units = Units(str(tmp_path), 2, False)

    def compute(name: str) -> int:
        if name == 'b':
            raise ValueError('no')
        return 1

    with pytest.raises(ValueError, match='no'):
        units.run_all('units', ' rows', {'a': 1, 'b': 1}, compute, lambda name, value: value)
    assert Units(str(tmp_path), 2, False).results == {'a': 1}


@pytest.mark.parametrize('shape', [(0,), (5,), (2, 3, 4), (3, 0, 2)])
@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.uint64, np.bool_])
def test_files_are_those_of_numpy(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    units = Units(str(tmp_path), 1, False)
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    units.allocate('values.npy', dtype, shape)
    units.write('values.npy', values)
    # What is there stays.
    units.allocate('values.npy', dtype, shape)
    for found in (np.load(tmp_path / 'values.npy'), units.read('values.npy')):
        assert found.dtype == dtype
        assert np.array_equal(found, values)


def test_a_file_grows_and_gets_its_length_at_the_end(tmp_path: Path) -> None:
    units = Units(str(tmp_path), 1, False)
    units.write('grown.npy', np.arange(4, dtype=np.uint16))
    # A unit that was killed wrote more than it will.
    units.write('grown.npy', np.full(9, 7, np.uint16), 4)
    units.write('grown.npy', np.arange(4, 6, dtype=np.uint16), 4)
    units.allocate('grown.npy', np.uint16, [6])
    assert np.load(tmp_path / 'grown.npy').tolist() == [0, 1, 2, 3, 4, 5]
    units.scatter('grown.npy', np.array([9, 9], np.uint16), 1, 3)
    assert units.read('grown.npy').tolist() == [0, 9, 2, 3, 9, 5]
