r"""A log is read as it is written, or refused in one sentence that names the file.

What a CSV file holds is known from Python's csv, which shares nothing with DuckDB, and what a
Parquet file holds from its writer."""

import csv
import gzip
import io
import math
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest
from hypothesis import strategies as st

from mag.datasets import EventLog

COLUMNS = {'user': 'uid', 'item': 'iid', 'time': 'ts', 'label': 'click', 'weight': 'w'}
CLICKS = ('user', 'clicks', 'item')


class Row(NamedTuple):
    uid: str
    iid: str
    ts: str
    click: str
    w: str
    note: str


class Form(NamedTuple):
    r"""How a table is written."""

    order: list[int]
    delimiter: str
    end: str
    quotes_all: bool
    start: str
    num_blank: int
    ends_whole: bool
    num_members: int


ids = st.one_of(st.integers(-3, 12).map(str), st.sampled_from(['a', '007', '1_0', 'é"', 'x\ny']))
rows = st.builds(
    Row,
    uid=ids,
    iid=ids,
    ts=st.one_of(st.integers(-5, 10**9).map(str), st.sampled_from(['0.5', '-1.25', '1e3'])),
    click=st.sampled_from(['0', '1', '1.0']),
    w=st.sampled_from(['0', '0.5', '2', '1e3']),
    note=st.text('ab"\',;|\t\n\r _7é#', max_size=5),
)
tables = st.lists(rows, min_size=1, max_size=8)
forms = st.builds(
    Form,
    order=st.permutations(range(len(Row._fields))),
    delimiter=st.sampled_from(',\t;|'),
    end=st.sampled_from(['\n', '\r\n', '\r']),
    quotes_all=st.booleans(),
    start=st.sampled_from(['', '\ufeff', '\n', '\ufeff\n\n']),
    num_blank=st.integers(0, 2),
    ends_whole=st.booleans(),
    num_members=st.integers(0, 3),
)


def write_csv(table: list[Row], form: Form) -> bytes:
    r"""The content of a CSV file, before it is gzipped."""

    def write_cell(text: str) -> str:
        is_plain = not form.quotes_all and not set(text) & set('",\t;|\r\n ')
        return text if is_plain else '"' + text.replace('"', '""') + '"'

    lines = [
        form.delimiter.join(write_cell(row[column]) for column in form.order)
        for row in [Row._fields, *table]
    ]
    text = (form.end * (1 + form.num_blank)).join(lines) + form.end * form.ends_whole
    return (form.start.replace('\n', form.end) + text).encode()


def compress(content: bytes, num_members: int) -> bytes:
    size = len(content) // num_members + 1
    return b''.join(gzip.compress(content[i : i + size]) for i in range(0, len(content), size))


def read_csv(content: bytes, is_packed: bool) -> list[tuple] | None:
    r"""The rows of a CSV file with their times, or nothing if it must be refused."""
    try:
        text = (gzip.decompress(content) if is_packed else content).decode('utf-8-sig')
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return None
    if '\0' in text:
        return None
    for delimiter in ',\t;|':
        # DuckDB skips a space before a quote.
        reader = csv.reader(
            io.StringIO(text, newline=''), delimiter=delimiter, skipinitialspace=True
        )
        header, *table = [row for row in reader if row] or [[]]
        if all(header.count(name) == 1 for name in COLUMNS.values()):
            return read_rows(header, table)
    return None


def read_rows(header: list[str], table: list[list[str]]) -> list[tuple] | None:
    found = []
    for row in table:
        # DuckDB lets a row end in a delimiter.
        if len(row) == len(header) + 1 and not row[-1]:
            row.pop()
        if len(row) != len(header):
            return None
        user, item, *numbers = (row[header.index(name)].strip(' ') for name in COLUMNS.values())
        try:
            time, label, weight = (math.nan if '_' in text else float(text) for text in numbers)
        except ValueError:
            return None
        if not user or not item or not math.isfinite(time) or label not in (0, 1):
            return None
        found.append((time, (user, item, math.floor(time), label, np.float32(weight).item())))
    return found


def open_log(path: Path, before: Path | None = None) -> list[tuple] | None:
    r"""The rows of a log in the order of time, after those of the file before
    it, or nothing if it is refused.
    """
    root = path.parent / 'root'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            paths = [path] if before is None else [before, path]
            dataset = EventLog(root, paths, COLUMNS, log=False)
    except ValueError as error:
        sentence = str(error)
        assert str(path) in sentence
        assert '\n' not in sentence and len(sentence) < 1000
        assert not {'processed', 'processed.partial'} & set(os.listdir(root))
        return None
    clicks, raw_ids = dataset[0][CLICKS], dataset.raw_ids
    users, items = (
        [str(name).strip(' ') for name in raw_ids[node][index]]
        for node, index in zip(('user', 'item'), clicks.edge_label_index.numpy())
    )
    times, labels, weights = (
        clicks[f'edge_label{name}'].tolist() for name in ('_time', '', '_weight')
    )
    return list(zip(users, items, times, labels, weights))


def check_whole_csv(table: list[Row], form: Form) -> None:
    expected = sorted(table, key=lambda row: float(row.ts))
    content = write_csv(table, form)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'log.csv.gz' if form.num_members else 'log.tsv')
        path.write_bytes(compress(content, form.num_members) if form.num_members else content)
        assert open_log(path) == [
            (row.uid, row.iid, math.floor(float(row.ts)), float(row.click), float(row.w))
            for row in expected
        ]


def flip(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :]


def insert(content: bytes, place: int, which: int) -> bytes:
    return content[:place] + PIECES[which % len(PIECES)] + content[place:]


def delete(content: bytes, place: int, count: int) -> bytes:
    return content[:place] + content[place + 1 + count % 4 :]


def cut(content: bytes, place: int, _: int) -> bytes:
    return content[:place]


def repeat(content: bytes, place: int, count: int) -> bytes:
    return content[:place] + content[max(0, place - count) :]


def rename(content: bytes, place: int, which: int) -> bytes:
    names = [b'uid', b'"no\nte"', b'"no\rte"', b'"no\r\nte"', b'UID', b'', b'n\0', b'iid,iid']
    return content.replace(b'note', names[which % len(names)], 1)


PIECES = [
    b'"', b'""', b'\r', b'\n', b'\r\n', b'\n\n', b',', b',,', b'\0', b' ', b' "', b'_', b'1', b'-',
    b'nan', b'inf', b'1e400', b'\xff', b'\xc3', b'\xef\xbb\xbf', b'#', b'\\', b'y' * 2_100_000,
]  # fmt: skip
damages = st.lists(
    st.tuples(
        st.sampled_from([flip, insert, delete, cut, repeat, rename]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)
Damage = tuple[Callable[[bytes, int, int], bytes], float, int]


def apply(content: bytes, damages: list[Damage]) -> bytes:
    for damage, place, number in damages:
        if content:
            content = damage(content, int(place * len(content)), number)
    return content


FIRST = b'uid,iid,ts,click,w\nz,z,3,1,1\n'


def check_damaged_csv(
    table: list[Row], form: Form, damages: list[Damage], is_packed_first: bool
) -> None:
    content = write_csv(table, form)
    is_packed = form.num_members > 0
    if is_packed and is_packed_first:
        content = apply(compress(content, form.num_members), damages)
    else:
        content = apply(content, damages)
        if is_packed:
            content = compress(content, form.num_members)
    with TemporaryDirectory() as folder:
        before, path = Path(folder, 'a.csv'), Path(folder, 'b.csv.gz' if is_packed else 'b.csv')
        before.write_bytes(FIRST)
        path.write_bytes(content)
        found = open_log(path, before)
        expected = read_csv(content, is_packed)
    # One file of two that is not read is the worst, as nothing else would tell.
    if found is not None:
        assert expected is not None
        expected = [*read_csv(FIRST, False), *expected]
        assert found == [row for _, row in sorted(expected, key=lambda pair: pair[0])]


def write_parquet(path: Path, table: list[Row]) -> None:
    values = ', '.join(
        '(' + ', '.join("'" + cell.replace("'", "''") + "'" for cell in row) + ')' for row in table
    )
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (
                SELECT uid, iid, ts::DOUBLE AS ts, click::DOUBLE AS click, w::FLOAT AS w, note
                FROM (VALUES {values}) AS log({', '.join(Row._fields)})
            ) TO '{path}' (FORMAT parquet)
        """)


def check_whole_parquet(table: list[Row]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, 'log.parquet')
        write_parquet(path, table)
        assert open_log(path) == [
            (row.uid, row.iid, math.floor(float(row.ts)), float(row.click), float(row.w))
            for row in sorted(table, key=lambda row: float(row.ts))
        ]


def check_damaged_parquet(table: list[Row], damages: list[Damage]) -> None:
    # Nothing in the file tells whether a value is the one that was written.
    with TemporaryDirectory() as folder:
        path = Path(folder, 'log.parquet')
        write_parquet(path, table)
        path.write_bytes(apply(path.read_bytes(), damages))
        open_log(path)


def test_whole_csv(attack: Any) -> None:
    attack(check_whole_csv, tables, forms, examples=40)


def test_damaged_csv(attack: Any) -> None:
    attack(check_damaged_csv, tables, forms, damages, st.booleans(), examples=80)


def test_whole_parquet(attack: Any) -> None:
    attack(check_whole_parquet, tables, examples=10)


def test_damaged_parquet(attack: Any) -> None:
    attack(check_damaged_parquet, tables, damages, examples=30)


def test_rows_that_are_lost_are_found(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""Without the count of rows, the attack finds a file of which none is read."""
    monkeypatch.setattr('mag.datasets._event_files.check_rows', lambda *arguments: None)
    rename_alone = st.just([(rename, 0.0, 1)])
    with pytest.raises(AssertionError):
        attack(
            check_damaged_csv,
            tables,
            forms,
            rename_alone,
            st.just(False),
            examples=20,
            shrink=False,
        )
