import datetime
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mag.datasets import IdMap
from mag.id_map import lineage_of

TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=5)
# By kind, what ids are drawn from; each with few values, so that some come twice.
IDS: dict[str, st.SearchStrategy[Any]] = {
    'integer': st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
    'large': st.integers(2**63 - 3, 2**64 - 1) | st.integers(0, 3),
    'text': TEXT,
    'uuid': st.uuids(),
    'blob': st.binary(max_size=3),
    'float': st.floats(allow_nan=False) | st.sampled_from([0.0, 1.5]),
    'boolean': st.booleans(),
    'date': st.dates(),
    'time': st.datetimes(),
}


class Oracle:
    r"""The map as a plain dictionary."""

    def __init__(self) -> None:
        self.nodes: dict[Any, int] = {}

    def extend(self, raw: list[Any]) -> None:
        for value in sorted(set(raw) - set(self.nodes)):
            self.nodes[value] = len(self.nodes)

    def encode(self, raw: list[Any]) -> list[int]:
        return [self.nodes.get(value, -1) for value in raw]


def as_listed(kind: str, raw: np.ndarray) -> list[Any]:
    if kind == 'date':
        return [value.date() for value in raw.tolist()]
    return raw.tolist()


@pytest.mark.parametrize('kind', IDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_encode_decode_and_extend_are_those_of_a_dictionary(kind: str, data: Any) -> None:
    first, second, asked = (data.draw(st.lists(IDS[kind], max_size=12)) for _ in range(3))
    oracle, id_map = Oracle(), IdMap(first)
    oracle.extend(first)
    oracle.extend(second)
    grown = id_map.extend(second)
    assert grown.encode(first + second + asked).tolist() == oracle.encode(first + second + asked)
    assert as_listed(kind, grown.decode(np.arange(len(grown)))) == list(oracle.nodes)
    assert len(id_map) == len(set(first))
    assert len(grown) == len(oracle.nodes)
    # It grew, and so has the fingerprint of what it was, however its ids are cut.
    if len(id_map):
        assert id_map.fingerprint in grown.lineage.split()
        raw = grown.decode(np.arange(len(grown)))
        cut = data.draw(st.integers(0, len(raw)))
        assert lineage_of([raw[:cut], raw[cut:]], grown.sizes) == grown.lineage
        assert IdMap.of_lineage(raw, grown.lineage) == grown
    assert grown.extend(first) is grown


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_integers_texts_and_uuids_are_compared_by_what_is_written(data: Any) -> None:
    either = (
        st.integers(-5, 5) | st.sampled_from(['1', '-2', '007', 'A7']) | st.just(uuid.UUID(int=7))
    )
    first, second, asked = (data.draw(st.lists(either, max_size=8)) for _ in range(3))
    id_map = IdMap(first).extend(second)
    written = id_map.decode(np.arange(len(id_map)))
    nodes = {str(raw): node for node, raw in enumerate(written)}
    assert set(nodes) == {str(raw) for raw in first + second}
    assert id_map.encode(asked).tolist() == [nodes.get(str(raw), -1) for raw in asked]
    texts = IdMap.in_order([str(raw) for raw in written], id_map.sizes)
    assert texts.lineage == id_map.lineage


def test_ids_of_a_log_are_mapped_in_ascending_order() -> None:
    id_map = IdMap(['tea', 'rice', 'tea'])
    assert id_map.decode([0, 1]).tolist() == ['rice', 'tea']
    grown = id_map.extend(['salt', 'oats', 'tea'])
    assert grown.decode(torch.arange(4)).tolist() == ['rice', 'tea', 'oats', 'salt']
    assert grown.encode('oats').shape == ()
    assert grown.encode('oats') == 2
    assert grown.encode(np.array([['tea', 'salt'], ['?', 'rice']])).tolist() == [[1, 3], [-1, 0]]
    assert id_map.encode(grown.decode([2])).tolist() == [-1]
    assert repr(id_map) == f"IdMap(2 ids, kind='text', fingerprint={id_map.fingerprint!r})"


def test_what_is_missing_is_unknown() -> None:
    pandas = pytest.importorskip('pandas')
    texts = IdMap(['a', 'b'])
    assert texts.encode(['b', None, float('nan'), 'a']).tolist() == [1, -1, -1, 0]
    assert texts.encode(pandas.Series(['b', None, 'a'])).tolist() == [1, -1, 0]
    numbers = IdMap([0, 7])
    assert numbers.encode(pandas.array([7, None, 0], dtype='Int64')).tolist() == [1, -1, 0]
    assert numbers.encode(torch.tensor([7, 8])).tolist() == [1, -1]
    times = IdMap([datetime.datetime(1970, 1, 1), datetime.datetime(2024, 1, 1)])
    zoned = pandas.Series(pandas.to_datetime([1, 2, 1], utc=True))
    assert IdMap(zoned).encode(zoned).tolist() == [0, 1, 0]
    column = pandas.Series(['2024-01-01', None]).astype('datetime64[ns]')
    assert times.encode(column).tolist() == [1, -1]
    zoned = datetime.datetime(2024, 1, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert times.encode([zoned]).tolist() == [1]
    assert IdMap([0.0, 1.5]).encode([float('nan'), 1.5, -0.0]).tolist() == [-1, 1, 0]
    assert IdMap([1.5]).encode([None]).tolist() == [-1]
    assert IdMap().encode(['a']).tolist() == [-1]


def test_large_numbers_are_not_rounded() -> None:
    numbers = IdMap([2**53, 2**53 + 1, 2**63, 2**63 + 1])
    assert numbers.encode([2**63 + 1, 2**53 + 1, 2**64 - 1, -1]).tolist() == [3, 1, -1, -1]
    # -1 has the bits of the largest.
    assert IdMap([2**64 - 1]).encode(np.array([-1, 1])).tolist() == [-1, -1]
    assert IdMap([-1]).encode(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [-1]
    beyond = IdMap([-1]).extend([2**63])
    assert beyond.decode([0, 1]).tolist() == ['-1', str(2**63)]
    assert beyond.encode([2**63, -1]).tolist() == [1, 0]


def test_ids_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(values: np.ndarray) -> np.ndarray:
        return np.array([len(value) for value in values])

    monkeypatch.setattr('mag.id_map.keys_of', poor)
    id_map = IdMap(['a', 'b', 'c', 'dd'])
    assert id_map.encode(['c', 'dd', 'x', 'a', 'b', 'yy']).tolist() == [2, 3, -1, 0, 1, -1]
    with pytest.raises(ValueError, match="once, but 'a' is there again in row 2"):
        IdMap.in_order(['a', 'b', 'a'])


@pytest.mark.parametrize('kind', IDS)
def test_saved_map_is_the_same(kind: str, tmp_path: Path) -> None:
    values = {
        'integer': ([5, -7], [2**62]),
        'large': ([2**64 - 1], [3]),
        'text': (["it's", '\0', ''], ['ä', '7']),
        'uuid': ([uuid.UUID(int=2**127)], [uuid.UUID(int=7)]),
        'blob': ([b'\xff', b'a\\x'], [b'']),
        'float': ([1.5, -2.0], [1e300]),
        'boolean': ([True], [False]),
        'date': ([datetime.date(2024, 1, 1)], [datetime.date(1, 1, 1)]),
        'time': ([datetime.datetime(2024, 1, 1, 1, 2, 3, 4)], [datetime.datetime(1969, 1, 1)]),
    }[kind]
    path = tmp_path / "a 'map'.parquet"
    id_map = IdMap(values[0]).extend(values[1])
    id_map.save(path)
    loaded = IdMap.load(path)
    assert loaded == id_map
    assert loaded.lineage == id_map.lineage
    assert len(loaded.lineage.split()) == 2
    everything = np.arange(len(id_map))
    assert loaded.decode(everything).tolist() == id_map.decode(everything).tolist()
    assert (
        loaded.encode([*values[1], *values[0]]).tolist()
        == id_map.encode([*values[1], *values[0]]).tolist()
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_process_looks_up_the_same() -> None:
    id_map = IdMap(['a', 'b', 'c'])
    assert id_map.encode(['b']).tolist() == [1]
    script = (
        'import pickle, sys\n'
        "print(pickle.loads(sys.stdin.buffer.read()).encode(['c', 'd', 'a']).tolist())"
    )
    done = subprocess.run(
        [sys.executable, '-c', script], input=pickle.dumps(id_map), capture_output=True
    )
    assert done.stdout.decode().strip() == '[2, -1, 0]', done.stderr.decode()


def test_empty_map_is_saved(tmp_path: Path) -> None:
    IdMap().save(tmp_path / 'none.parquet')
    assert len(IdMap.load(tmp_path / 'none.parquet')) == 0


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'map.parquet'
    IdMap(range(1000)).save(path)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        IdMap.load(tmp_path / 'none.parquet')
    for damaged in (whole[:-9], whole[: len(whole) // 2], b'', b'id\n7\n'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='is damaged, or no file that IdMap.save wrote'):
            IdMap.load(path)
    refused = 0
    for place in range(4, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            loaded = IdMap.load(path)
        except ValueError as error:
            assert 'damaged' in str(error) or 'IdMap.save' in str(error)
            refused += 1
        else:
            # What says nothing of the ids, such as statistics.
            assert loaded == IdMap(range(1000))
    assert refused > 0
    lineage = IdMap([1, 2]).lineage
    for ids, says in (('[1, 3]', lineage), ('[1, 1]', lineage), ('[1, 2]', 'nothing')):
        duckdb.sql(
            f"COPY (SELECT unnest({ids}) AS id) TO '{path}' "
            f"(FORMAT parquet, KV_METADATA {{lineage: '{says}'}})"
        )
        with pytest.raises(ValueError, match='is damaged: '):
            IdMap.load(path)
    duckdb.sql(f"COPY (SELECT 7 AS id) TO '{path}' (FORMAT parquet)")
    with pytest.raises(ValueError, match='it has no fingerprint'):
        IdMap.load(path)


def test_lineage_tells_a_map_that_grew_from_another() -> None:
    first = IdMap(['a', 'b'])
    grown, other = first.extend(['c']), first.extend(['d'])
    assert grown.lineage.startswith(first.lineage)
    assert grown.fingerprint != other.fingerprint
    assert IdMap(['a', 'b', 'c']) == grown
    assert IdMap(['a', 'b', 'c']).lineage != grown.lineage
    assert IdMap(['ab']).fingerprint != IdMap(['a', 'b']).fingerprint
    assert IdMap(['a,b']).fingerprint != IdMap(['a"', '"b']).fingerprint
    # A whole number and its text are one id, a float or a time is another.
    assert IdMap([7]) == IdMap(['7'])
    assert IdMap([1.0]) != IdMap(['1.0'])


@pytest.mark.parametrize(
    ('make', 'kind', 'message'),
    [
        (lambda: IdMap([None, 'a']), ValueError, 'an id in every row, but got none in row 0.'),
        (lambda: IdMap(['a']).extend(['b', None]), ValueError, 'but got none in row 1.'),
        (lambda: IdMap([1.0, float('nan')]), ValueError, 'but got none in row 1.'),
        (lambda: IdMap([1, 2.5]), TypeError, 'but got float and int.'),
        (lambda: IdMap([{}]), TypeError, 'but got dict.'),
        (lambda: IdMap(np.array([1j])), TypeError, 'but got complex128.'),
        (lambda: IdMap(['a']).encode([1.5]), TypeError, "kind 'text' cannot look up those of the"),
        (lambda: IdMap([1]).extend([True]), TypeError, "of the kind 'boolean': convert them"),
        (lambda: IdMap(['a']).decode([1]), IndexError, 'from 0 to 0, but got them from 1 to 1.'),
        (lambda: IdMap(['a']).decode([-1]), IndexError, 'from 0 to 0, but got them from -1 to'),
        (lambda: IdMap(['a']).decode([0.0]), TypeError, 'must be integers, but got float64.'),
        (lambda: IdMap([(1, 2), (3, 4)]), ValueError, r'after another, but got shape \[2, 2\].'),
        (lambda: IdMap.in_order(['b', 'a', 'b']), ValueError, "'b' is there again in row 2."),
        (lambda: IdMap(['a']).append(['c', 'c']), ValueError, "'c' is there again in row 2."),
        (lambda: IdMap.in_order(['b', 'a'], [1]), ValueError, r'number of ids, 2, but got \[1\].'),
        (lambda: IdMap.in_order(['b', 'a'], [2, 2]), ValueError, r'but got \[2, 2\].'),
        (lambda: IdMap.in_order([], ['x']), TypeError, "'sizes\\[0\\]' must be an integer"),
    ],
)
def test_bad_ids_are_refused(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert str(caught.value).endswith('.')


def test_a_map_never_changes() -> None:
    raw = np.array([3, 1, 2])
    id_map = IdMap.in_order(raw)
    raw[:] = 0
    assert id_map.decode([0, 1, 2]).tolist() == [3, 1, 2]
    nodes = id_map.decode([0])
    nodes[0] = 9
    assert id_map.encode([3]).tolist() == [0]


@pytest.mark.parametrize('kind', ['integer', 'text'])
def test_looking_up_is_faster_than_a_dictionary(kind: str) -> None:
    number = 200_000
    random = np.random.default_rng(0)
    ids = random.permutation(2 * number)[:number]
    raw: Any = ids if kind == 'integer' else [f'customer-{id:09d}' for id in ids.tolist()]
    asked: Any = random.permutation(2 * number)
    asked = asked if kind == 'integer' else [f'customer-{id:09d}' for id in asked.tolist()]
    id_map = IdMap.in_order(raw)
    nodes = dict(zip(map(str, raw) if kind == 'text' else raw.tolist(), range(number)))
    listed = asked if kind == 'text' else asked.tolist()

    def seconds(look_up: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
        start = time.process_time()
        return look_up(), time.process_time() - start  # type: ignore[return-value]

    def plain() -> np.ndarray:
        return np.array([nodes.get(id, -1) for id in listed])

    id_map.encode(asked[:1])
    found, ours = min((seconds(lambda: id_map.encode(asked)) for _ in range(3)), key=lambda r: r[1])
    expected, theirs = min((seconds(plain) for _ in range(3)), key=lambda r: r[1])
    assert np.array_equal(found, expected)
    assert ours < 1.5 * theirs
