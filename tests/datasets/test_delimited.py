import gzip
import os
from functools import partial

import duckdb
import numpy as np
import pytest

from mag.datasets import EventLog, KuaiRand, KuaiSAR, MicroVideo, MovieLens, Trivago
from mag.datasets._delimited import DelimitedScan, create_table, read_header, scan_csv
from mag.datasets._parquet import parquet_columns, scan_parquet
from mag.datasets._read_errors import explain_read_error

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
        (b'u,i\n1,x\r\n2,y\n', 'line 2: a line must end in LF as before, but got CRLF.'),
        (b'u,i\r\n1,x\r\n2,y\n', 'line 3: a line must end in CRLF as before, but got LF.'),
        (b'u,i\n1,x\r2,y\n', ' must have lines that all end in LF or all in CRLF'),
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
    with pytest.raises(ValueError, match=r'log\.csv\.gz must be a whole gzip file, but '):
        read_header(str(path), ('u', 'i'))


def test_long_cell(tmp_path):
    path = tmp_path / 'log.csv'
    text = 'x' * 200_000
    path.write_text(f'{text},u,i\nnote,1,{text}\n')
    assert rows(scan_csv(str(path), TYPES, ('u',))) == [('note', 1, text)]


@pytest.mark.parametrize('name', ['log.csv', 'log.csv.gz'])
@pytest.mark.parametrize('start', ['', '\ufeff'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_blank_lines_before_the_header(tmp_path, name, start, end):
    path = tmp_path / name
    text = (start + end.join(['', '', 'u,i', '1,x', '', '2,y', ''])).encode()
    path.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
    assert rows(scan_csv(str(path), TYPES, ('u',))) == [(1, 'x'), (2, 'y')]
    path.write_bytes(gzip.compress(text + b'x,y') if name.endswith('.gz') else text + b'x,y')
    with pytest.raises(duckdb.Error) as error:
        rows(scan_csv(str(path), TYPES, ('u',)))
    assert str(explain_read_error(error.value)).startswith(
        f"{path}, line 7: column 'u' must hold a whole number, but got 'x'"
    )


def test_repeated_name(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('u,note,i,note,u\n1,,x,,2\n')
    with pytest.raises(ValueError) as error:
        scan_csv(str(path), TYPES, ('u',))
    assert str(error.value) == f"{path} must have one column 'u', but got 2."
    assert rows(scan_csv(str(path), {'i': 'VARCHAR'}, ('i',)))[0][2] == 'x'


def test_repeated_name_in_parquet(tmp_path):
    path = str(tmp_path / 'log.parquet')
    duckdb.sql(
        "SELECT {'uid': 1, 'x': [{'uid': 2}]} AS s, 3 AS uid, 4 AS uix, 5 AS iid"
    ).write_parquet(path)
    with duckdb.connect() as connection:
        kinds = dict.fromkeys(('uid', 'iid'), (('INTEGER',), 'a number'))
        columns = parquet_columns(connection, path, kinds, kinds)
        assert columns == {'uid': 'INTEGER', 'iid': 'INTEGER'}
        with open(path, 'rb') as file:
            content = file.read()
        with open(path, 'wb') as file:
            file.write(content.replace(b'uix', b'uid'))
        with pytest.raises(ValueError, match=r"log\.parquet must have one column 'uid', but got 2"):
            parquet_columns(connection, path, kinds, kinds)
        del kinds['uid']
        assert parquet_columns(connection, path, kinds, kinds) == {'iid': 'INTEGER'}


@pytest.mark.parametrize(
    'size, mark, expected',
    [
        (2_000_001, '', ', line 3: a row must have at most 2,000,000 bytes, but got 2,000,003.'),
        (2_000_001, '"', ', line 3: a row must have at most 2,000,000 bytes, but got 2,000,003.'),
        # DuckDB skips this one without an error.
        (33_000_000, '', ' must give 2 rows, as many as it has, but got 1: '),
        (33_000_000, '"', ', line 3: a row must close its quotes and have at most 2,000,000 b'),
    ],
)
def test_long_row(tmp_path, size, mark, expected):
    path = tmp_path / 'log.csv'
    path.write_text(f'u,i\n1,x\n2,{mark}{"x" * (size - 2 * len(mark))}{mark}\n')
    scan = scan_csv(str(path), TYPES, ('u',))
    with duckdb.connect() as connection:
        try:
            create_table(connection, 'log', f'SELECT * FROM {scan}', scan)
        except duckdb.Error as error:
            found = str(explain_read_error(error))
        except ValueError as error:
            found = str(error)
    assert found.startswith(f'{path}{expected}') and len(found) < 400


def test_long_row_is_not_quoted_whole(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text(f'u,i\n1,x\n{"y" * 100_000},x\n')
    with pytest.raises(duckdb.Error) as error:
        rows(scan_csv(str(path), TYPES, ('u',)))
    start = 'y' * 200
    assert str(explain_read_error(error.value)) == (
        f"{path}, line 3: column 'u' must hold a whole number, but got '{start}'... in "
        f"the row '{start}'...."
    )


def test_long_header_is_not_quoted_whole(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text(f'{"y" * 100_000},i,{",".join(["note"] * 10_000)}\n1,x\n')
    with pytest.raises(ValueError) as error:
        read_header(str(path), ('u', 'i'))
    assert str(error.value).startswith(f"{path} must have a column 'u', but its columns are 'yyy")
    assert str(error.value).endswith('...') and len(str(error.value)) < 1000


@pytest.mark.parametrize('end, lines', [('\n', 5), ('\n\n', 9)])
def test_underscore_without_header_and_quotes(tmp_path, end, lines):
    path = tmp_path / 'log.dat'
    path.write_text(end.join(['1::"a_1', '2::', '3::1_2_', '4::"', '1_0::e"']))
    scan = DelimitedScan(str(path), TYPES, '::', ('u',))
    with duckdb.connect() as connection, pytest.raises(ValueError) as error:
        create_table(connection, 'log', f'SELECT * FROM {scan}', scan)
    assert str(error.value) == (
        f"{path}, line {lines}: column 'u' must hold a whole number without underscores, but "
        f"got '1_0'."
    )


@pytest.mark.parametrize('value', ['1.5', '15e-1', '9007199254740993.5', '-0.5'])
def test_fraction_is_no_whole_number(tmp_path, value):
    path = tmp_path / 'log.csv'
    path.write_text(f'note,u,i\n0.5,1,2.5\n1.5,3.0,x\n2.5,"{value}",y\n')
    scan = scan_csv(str(path), TYPES, ('u',))
    with duckdb.connect() as connection, pytest.raises(ValueError) as error:
        create_table(connection, 'log', f'SELECT u, i FROM {scan}', scan)
    assert str(error.value) == (
        f"{path}, line 4: column 'u' must hold a whole number, but got {value!r}."
    )
    path.write_text('note,u,i\n0.5,1.0,2.5\n1.5,20e-1,x\n1.5,1.5e1,x\n')
    with duckdb.connect() as connection:
        create_table(connection, 'log', f'SELECT u, i FROM {scan}', scan)
        assert connection.execute('FROM log').fetchall() == [(1, '2.5'), (2, 'x'), (15, 'x')]


def test_empty_values_where_columns_are_skipped(tmp_path):
    # DuckDB's force_not_null would look into the second column that is read.
    path = tmp_path / 'log.csv'
    path.write_text('a,b,u,w,i\n,,1,,x\n,,2,,\n')
    types = {'u': 'BIGINT', 'w': 'DOUBLE', 'i': 'VARCHAR'}
    scan = scan_csv(str(path), types, ('u', 'i'))
    with duckdb.connect() as connection:
        create_table(connection, 'log', f'SELECT u, w, i FROM {scan}', scan)
        assert connection.execute('FROM log').fetchall() == [(1, None, 'x'), (2, None, '')]
        path.write_text('a,b,u,w,i\n,,1,2,x\n\n,,,3,y\n')
        with pytest.raises(ValueError) as error:
            create_table(connection, 'log', f'SELECT w, u FROM {scan}', scan)
    assert str(error.value) == (
        f"{path}, line 4: column 'u' must hold a whole number, but got nothing."
    )


@pytest.mark.parametrize(
    'content, expected',
    [
        # DuckDB takes one space before a quote as if it was not there, and csv any number.
        (b'u,i\n1, "a\nb"\n2,c\n', [(1, 'a\nb'), (2, 'c')]),
        (b'u,i\n1,5" pipe\n2,6"\n', [(1, '5" pipe'), (2, '6"')]),
        (b'u,i\n1,"a""\r\n\n""b"\n\n2,""\n', [(1, 'a"\r\n\n"b'), (2, None)]),
        (b'\xef\xbb\xbf"u","i"\r\n1,x', [(1, 'x')]),
        (b'u,i\r1,x\r\r2,y\r', [(1, 'x'), (2, 'y')]),
    ],
)
def test_all_rows_are_read(tmp_path, content, expected):
    path = tmp_path / 'log.csv'
    path.write_bytes(content)
    scan = scan_csv(str(path), TYPES, ('u',))
    with duckdb.connect() as connection:
        create_table(connection, 'log', f'SELECT * FROM {scan}', scan)
        create_table(connection, 'log', f'SELECT * FROM {scan}', scan, append=True)
        assert connection.execute('FROM log').fetchall() == expected * 2


USER = ('user_active_degree', 'is_lowactive_period', 'is_live_streamer', 'is_video_author') + tuple(
    f'{name}_range' for name in ('follow_user_num', 'fans_user_num', 'friend_user_num')
)
LEVELS = ('first', 'second', 'third', 'fourth')
# One row for each of the delimited files that a dataset reads. The first column is a number.
FILES = {
    'EventLog': {'log.csv': {'ts': 5, 'uid': 1, 'iid': 2}},
    'MovieLens': {
        'raw/ratings.csv': {'userId': 1, 'movieId': 2, 'rating': 5, 'timestamp': 3},
        'raw/movies.csv': {'movieId': 2, 'title': 'Tin Dog (1995)', 'genres': 'Comedy'},
    },
    'KuaiRand': {
        'raw/log_standard_1_pure.csv': dict.fromkeys(('user_id', 'video_id', 'time_ms'), 5)
        | dict.fromkeys(('is_click', 'is_profile_enter', 'is_like', 'is_comment'), 1)
        | dict.fromkeys(('is_follow', 'is_forward', 'long_view'), 0),
        'raw/user_features_pure.csv': {'user_id': 5, 'register_days_range': 1}
        | dict.fromkeys((*USER, *(f'onehot_feat{i}' for i in range(18))), 1),
        'raw/video_features_basic_pure.csv': {'video_id': 5}
        | dict.fromkeys(('author_id', 'video_type', 'upload_type', 'music_type', 'tag'), 1),
    },
    'KuaiSAR': {
        'raw/rec_inter.csv': {'user_id': 1, 'item_id': 2, 'timestamp': 3, 'click': 1},
        'raw/src_inter.csv': {'user_id': 1, 'item_id': 2, 'search_session_timestamp': 3}
        | {'click_cnt': 1, 'keyword': ''},
        'raw/user_features.csv': {'user_id': 1, 'onehot_feat1': 1, 'onehot_feat2': 1}
        | {'search_active_level': 1, 'rec_active_level': 1},
        'raw/item_features.csv': {'item_id': 2, 'author_id': 1, 'item_type': 1, 'upload_type': 1}
        | {f'{level}_level_category_id': 1 for level in LEVELS},
    },
    'Trivago': {
        'raw/train.csv': {'timestamp': 5, 'user_id': 'a', 'session_id': 's', 'step': 1}
        | {'action_type': 'clickout item', 'reference': 7, 'impressions': 7, 'prices': 9}
        | dict.fromkeys(('platform', 'city', 'device', 'current_filters'), 'x'),
    },
    'MicroVideo': {'raw/interactions.csv': {'user': 1, 'item': 0, 'time': 3, 'label': 1}},
}
DATASETS = {
    'MovieLens': partial(MovieLens, name='latest-small'),
    'KuaiRand': KuaiRand,
    'KuaiSAR': KuaiSAR,
    'Trivago': Trivago,
    'MicroVideo': MicroVideo,
}


def write_files(folder, dataset):
    (folder / 'raw').mkdir()
    if dataset == 'MicroVideo':
        for name in ('image', 'audio'):
            np.save(folder / 'raw' / f'{name}.npy', np.zeros((1, 2), dtype=np.float32))
    for name, row in FILES[dataset].items():
        header, values = (','.join(map(str, part)) for part in (row, row.values()))
        (folder / name).write_bytes(f'{header},"note"\r\n{values},x\r\n'.encode())


def open_files(folder, dataset):
    if dataset == 'EventLog':
        columns = {'user': 'uid', 'item': 'iid', 'time': 'ts'}
        return EventLog(folder, folder / 'log.csv', columns, log=False)
    return DATASETS[dataset](folder, log=False)


@pytest.mark.parametrize('dataset, name', [(d, name) for d in FILES for name in FILES[d]])
def test_files_of_all_datasets(tmp_path, dataset, name):
    write_files(tmp_path, dataset)
    path = tmp_path / name
    content = path.read_bytes()
    first, _, others = content.split(b'\r\n')[1].partition(b',')
    underscored = content.replace(b'\r\n' + first, b'\r\n0_' + first)
    for spoiled, expected in (
        (
            content.replace(b'"note"', b'"my\nnote"'),
            ' must give 1 rows, as many as it has, but got 0: ',
        ),
        (
            content.replace(b',x\r\n', b',x\0\r\n'),
            ', line 2: a line must hold text, but got a NUL.',
        ),
        (
            underscored,
            f', line 2: column {next(iter(FILES[dataset][name]))!r} must hold a ',
        ),
    ):
        path.write_bytes(spoiled)
        with pytest.raises(ValueError) as error:
            open_files(tmp_path, dataset)
        assert str(error.value).startswith(f'{path}{expected}')
        assert spoiled != underscored or f"but got '0_{first.decode()}'" in str(error.value)
        assert not os.path.exists(tmp_path / 'processed')
    path.write_bytes(content)
    assert open_files(tmp_path, dataset)[0]['user', 'clicks', 'item'].edge_label.sum() >= 1
