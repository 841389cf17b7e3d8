import gzip

import duckdb
import pytest

from mag.datasets._delimited import explain_read_error, read_header, scan_csv, scan_parquet

TYPES = {'u': 'BIGINT', 'i': 'VARCHAR'}


def rows(scan):
    return duckdb.execute(f'SELECT * FROM {scan}').fetchall()


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
@pytest.mark.parametrize(
    'name, decoy', [('log[1]', 'log1'), ('lo*g', 'loog'), ('lo?g', 'loog'), ("it's", 'its')]
)
def test_path_is_no_pattern(tmp_path, kind, name, decoy):
    for user, stem in ((7, decoy), (1, name)):
        path = tmp_path / f'{stem}.{kind}'
        if kind == 'csv':
            path.write_text(f'u,i\n{user},x\n')
        else:
            duckdb.sql(f"SELECT {user} AS u, 'x' AS i").write_parquet(str(path))
    scan = scan_csv(str(path), TYPES, ('u',)) if kind == 'csv' else scan_parquet(str(path))
    assert rows(scan) == [(1, 'x')]


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_folder_is_no_column(tmp_path, kind):
    folder = tmp_path / 'u=7' / 'day=1'
    folder.mkdir(parents=True)
    path = str(folder / f'log.{kind}')
    if kind == 'csv':
        (folder / 'log.csv').write_text('u,i\n1,x\n')
    else:
        duckdb.sql("SELECT 1 AS u, 'x' AS i").write_parquet(path)
    assert rows(scan_csv(path, TYPES, ('u',)) if kind == 'csv' else scan_parquet(path)) == [
        (1, 'x')
    ]


@pytest.mark.parametrize('name', ['log.csv', 'log.csv.gz'])
@pytest.mark.parametrize(
    'text, expected',
    [
        (b'u,i\n1,x\r\n2,y\n', 'line 2: the line ends in CRLF, expected LF as before'),
        (b'u,i\r\n1,x\r\n2,y\n', 'line 3: the line ends in LF, expected CRLF as before'),
        (b'u,i\n1,x\r2,y\n', ': expected lines that all end in LF or all in CRLF'),
    ],
)
def test_line_ends_that_differ(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
    with pytest.raises(duckdb.Error) as error:
        rows(scan_csv(str(path), TYPES, ('u',)))
    sentence = str(explain_read_error(error.value))
    assert sentence.startswith(str(path)) and expected in sentence


@pytest.mark.parametrize(
    'content', [b'u,i\n1,x\n', gzip.compress(b'u,i')[:-9]], ids=['plain', 'cut']
)
def test_no_gzip_file(tmp_path, content):
    path = tmp_path / 'log.csv.gz'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'log\.csv\.gz is no whole gzip file: '):
        read_header(str(path), ('u', 'i'))


def test_long_cell(tmp_path):
    path = tmp_path / 'log.csv'
    text = 'x' * 200_000
    path.write_text(f'{text},u,i\nnote,1,{text}\n')
    assert rows(scan_csv(str(path), TYPES, ('u',))) == [('note', 1, text)]
