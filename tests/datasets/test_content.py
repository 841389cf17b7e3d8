import csv
import gzip
import io
import random

import pytest

from mag.datasets import _content
from mag.datasets._content import Content, inspect_content

PIECES = [*'""",,\n\n\r aé_5.', '\r\n', 'e-', '""', '\n\n']


def count(text):
    rows = csv.reader(io.StringIO(text, newline=''), skipinitialspace=True)
    return sum(1 for row in rows if row)


@pytest.mark.parametrize('name', ['log.csv', 'log.csv.gz'])
@pytest.mark.parametrize('block_size', [1, 2, 3, 7, 1 << 20])
def test_equals_csv(tmp_path, monkeypatch, name, block_size):
    monkeypatch.setattr(_content, '_BLOCK_SIZE', block_size)
    generator = random.Random(block_size)
    path = tmp_path / name
    for number in range(400):
        if number % 2:
            text = ''.join(generator.choices(PIECES, k=generator.randrange(30)))
        else:
            # What needs no csv.
            cells = ['a', '"a"', '""', '"a""b"', '"\r\n"', '"a\n\nb"', '"\n"', '1_0', '']
            text = ''.join(generator.choice(cells) + generator.choice(',,\n\r') for _ in range(12))
        start = generator.choice(['', '\ufeff'])
        content = (start + text).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith('.gz') else content)
        found = inspect_content(str(path), ',', quotes=True)
        has_underscores = any(f'{i}_{j}' in text for i in '15' for j in '05')
        has_fractions = any(f'{mark}{digit}' in text for mark in ('.', 'e-') for digit in '15')
        assert found == Content(count(text), has_underscores, has_fractions), text
        num_lines = sum(1 for line in io.StringIO(text, newline='') if line.strip('\r\n'))
        assert inspect_content(str(path), ',', quotes=False).num_records == num_lines, text


@pytest.mark.parametrize(
    'cell, is_slow', [('"a""b\n"', False), ('a"b', True), (' "a\nb"', True), ('"a" ', True)]
)
def test_csv_is_asked_only_where_quotes_are_odd(tmp_path, monkeypatch, cell, is_slow):
    asked = []
    monkeypatch.setattr(_content, '_count_slowly', lambda *arguments: asked.append(arguments))
    (tmp_path / 'log.csv').write_text(f'u,i\n1,{cell}\n{cell},"2"')
    inspect_content(str(tmp_path / 'log.csv'), ',', quotes=True)
    assert bool(asked) == is_slow


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_nul(tmp_path, end):
    path = tmp_path / 'log.csv'
    path.write_text(f'u,i{end * 3}"a\n",x{end}1,\0{end}', newline='')
    with pytest.raises(ValueError) as error:
        inspect_content(str(path), ',', quotes=True)
    assert str(error.value) == f'{path}, line 6: a line must hold text, but got a NUL.'


def damage(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


WHOLE = gzip.compress(b'u,i\n1,2\n', mtime=0)


@pytest.mark.parametrize(
    'content, reason',
    [
        (damage(WHOLE, len(WHOLE) - 8), 'CRC check failed'),
        (damage(WHOLE, len(WHOLE) - 1), 'Incorrect length of data'),
        (damage(WHOLE, len(WHOLE) - 8) + WHOLE, 'CRC check failed'),
        (WHOLE + damage(WHOLE, len(WHOLE) - 8), 'CRC check failed'),
        (WHOLE[:-3], 'Compressed file ended'),
        (WHOLE + WHOLE[:-9], 'Compressed file ended'),
        (WHOLE + b'more', 'Not a gzipped file'),
        (damage(WHOLE, 0), 'Not a gzipped file'),
        (damage(WHOLE, 10), 'Error'),
    ],
)
def test_damaged_gzip(tmp_path, content, reason):
    path = tmp_path / 'log.csv.gz'
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        inspect_content(str(path), ',', quotes=True)
    assert str(error.value).startswith(
        f'{path} must be a whole gzip file, but cannot be unpacked: {reason}'
    )


def test_gzip_members_in_a_row(tmp_path):
    path = tmp_path / 'log.csv.gz'
    members = b'', b'"3\n', b'",4'
    path.write_bytes(WHOLE + b''.join(gzip.compress(member) for member in members))
    assert inspect_content(str(path), ',', quotes=True) == Content(3, False, False)
