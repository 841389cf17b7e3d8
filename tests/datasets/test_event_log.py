import csv
import gzip
import os
import random
import subprocess
import sys
import textwrap
import warnings

import duckdb
import numpy as np
import pytest
import torch
from torch_geometric.transforms import BaseTransform

from mag.datasets import EventLog

# What a log says of ids and times is told by rows that are clicks alone.
pytestmark = pytest.mark.filterwarnings('ignore:Each of the .* rows is a click')
COLUMNS = {'user': 'uid', 'item': 'iid', 'time': 'ts', 'label': 'click'}
CLICKS = ('user', 'clicks', 'item')


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def make(tmp_path, text, columns=COLUMNS, name='log.csv', **kwargs):
    path = write(tmp_path / name, text)
    return EventLog(tmp_path / 'root', path, columns, log=False, **kwargs)


def write_parquet(path, select):
    duckdb.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


def rows_of(dataset):
    r"""The exposures in raw ids."""
    store = dataset[0][CLICKS]
    ids = dataset.raw_ids
    user, item = store.edge_label_index.numpy()
    return list(
        zip(
            ids['user'][user].tolist(),
            ids['item'][item].tolist(),
            store.edge_label_time.tolist(),
            store.edge_label.tolist(),
        )
    )


def test_golden_rows(tmp_path):
    dataset = make(tmp_path, 'ts,iid,uid,click\n30,b,7,1\n10,a,12,0\n20,b,12,1\n20,a,7,1\n')
    data = dataset[0]
    assert data.validate()
    assert data['user'].num_nodes == data['item'].num_nodes == 2
    assert dataset.raw_ids['user'].tolist() == [7, 12]
    assert dataset.raw_ids['item'].tolist() == ['a', 'b']
    store = data[CLICKS]
    assert store.edge_label_index.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]
    assert store.edge_label_time.tolist() == [10, 20, 20, 30]
    assert store.edge_label.tolist() == [0, 1, 1, 1]
    assert store.edge_index.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert store.time.tolist() == [20, 20, 30]
    assert store.edge_index.dtype == store.time.dtype == torch.long
    assert store.edge_label.dtype == torch.float32
    assert dataset.num_duplicates == 0


@pytest.mark.filterwarnings("ignore:.* first row has no 'brand'")
def test_a_column_without_any_value_is_one_of_missing_ones(tmp_path):
    pd = pytest.importorskip('pandas')
    columns = {
        'user': 'uid', 'item': 'iid', 'time': 'ts', 'label': 'click', 'query': 'search',
        'contexts': ['device'], 'item_attributes': ['brand'],
    }  # fmt: skip
    rows = {
        'uid': [1, 2], 'iid': ['a', 'b'], 'ts': [1, 2], 'click': [1, 0], 'search': ['tea', 'rice'],
        'device': ['phone', 'phone'], 'brand': ['x', 'y'],
    }  # fmt: skip
    nothing = rows | dict.fromkeys(('search', 'device', 'brand'), [None, None])
    old = EventLog(tmp_path / 'old', pd.DataFrame(rows), columns, log=False)
    new = EventLog(tmp_path / 'new', pd.DataFrame(nothing), columns, log=False, ids=old)
    clicks = new[0][CLICKS]
    assert clicks.edge_label_domain.tolist() == [0, 0]
    assert new.names['query'] == old.names['query']
    assert [new.names['device'][code] for code in clicks.edge_label_device] == ['unknown'] * 2
    assert [new.names['brand'][code] for code in new[0]['item'].brand] == ['x', 'y']
    # In each order, as one of several files.
    for place, paths in enumerate([('old', 'new'), ('new', 'old')]):
        for name, frame in (('old', rows), ('new', nothing)):
            with duckdb.connect() as connection:
                connection.register('frame', pd.DataFrame(frame))
                connection.execute(f"COPY frame TO '{tmp_path / name}.parquet'")
        files = [str(tmp_path / f'{name}.parquet') for name in paths]
        both = EventLog(tmp_path / f'both-{place}', files, columns, log=False)
        assert sorted(both[0][CLICKS].edge_label_domain.tolist()) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="column 'uid' .user. must hold an id, but got nothing"):
        EventLog(tmp_path / 'none', pd.DataFrame(rows | {'uid': [None, None]}), columns, log=False)
    with pytest.raises(ValueError, match="column 'ts' .time. must hold .*, but got nothing\\.$"):
        EventLog(tmp_path / 'none', pd.DataFrame(rows | {'ts': [None, None]}), columns, log=False)


@pytest.mark.parametrize('name', ['log.csv', 'log.tsv', 'log.csv.gz', 'log.parquet'])
@pytest.mark.parametrize('seed', [0, 1])
def test_equals_plain_python(tmp_path, name, seed):
    generator = random.Random(seed)
    header = ['note', 'ts', 'click', 'iid', 'uid', 'price', 'kind']
    rows = [
        [
            'x',
            generator.randrange(10**12, 10**12 + 50_000),
            generator.randrange(2),
            f'item {generator.randrange(30)}',
            generator.randrange(90),
            generator.randrange(9) / 4,
            generator.choice(['', 'red', 'green', 'dark blue']),
        ]
        for _ in range(700)
    ]
    plain = tmp_path / 'plain.csv'
    with open(plain, 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])
    path = tmp_path / name
    if name.endswith('.parquet'):
        write_parquet(path, f"SELECT * FROM read_csv('{plain}')")
    else:
        opener = gzip.open if name.endswith('.gz') else open
        with opener(path, 'wt', newline='') as file:
            delimiter = '\t' if 'tsv' in name else ','
            csv.writer(file, delimiter=delimiter).writerows([header, *rows])

    columns = COLUMNS | {'weight': 'price', 'category': 'kind'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dataset = EventLog(tmp_path / 'root', path, columns, time_unit='ms', log=False)

    with open(plain, newline='') as file:
        expected = list(csv.DictReader(file))
    expected.sort(key=lambda row: int(row['ts']))
    assert rows_of(dataset) == [
        (int(row['uid']), row['iid'], int(row['ts']) // 1000, float(row['click']))
        for row in expected
    ]
    store = dataset[0][CLICKS]
    assert store.edge_label_weight.tolist() == [float(row['price']) for row in expected]
    clicked = [row for row in expected if row['click'] == '1']
    assert store.time.tolist() == [int(row['ts']) // 1000 for row in clicked]
    assert store.edge_weight.tolist() == [float(row['price']) for row in clicked]
    ids = dataset.raw_ids
    assert ids['user'][store.edge_index[0]].tolist() == [int(row['uid']) for row in clicked]
    assert ids['item'][store.edge_index[1]].tolist() == [row['iid'] for row in clicked]
    assert ids['user'].tolist() == sorted({int(row['uid']) for row in expected})
    assert ids['item'].tolist() == sorted({row['iid'] for row in expected})

    first = {}
    for row in expected:
        first.setdefault(row['iid'], row['kind'] or 'unknown')
    item = dataset[0]['item']
    names = dataset.names['category']
    assert [names[code] for code in item.category] == [first[name] for name in ids['item']]
    assert item.num_category == len(names)
    keys = [(row['uid'], row['iid'], row['ts']) for row in expected]
    assert dataset.num_duplicates == len(keys) - len(set(keys))


@pytest.mark.parametrize('name', ['log.csv', 'log.parquet'])
def test_category_is_that_of_the_first_row_in_time(tmp_path, name):
    text = """uid,iid,ts,click,kind
1,1,9,1,red
1,1,5,1,green
1,2,7,1,red
2,2,7,1,green
1,3,8,1,blue
1,3,4,0,
1,4,1,1,
1,4,2,1,
1,5,1,1,red
1,5,2,1,
1,5,3,1,unknown
"""
    path = write(tmp_path / 'log.csv', text)
    if name == 'log.parquet':
        path = write_parquet(
            tmp_path / name,
            f"SELECT * REPLACE (coalesce(kind, '') AS kind) FROM read_csv('{path}')",
        )
    columns = COLUMNS | {'category': 'kind'}
    with pytest.warns(UserWarning) as warned:
        dataset = EventLog(tmp_path / 'root', path, columns, log=False)
    assert [str(warning.message) for warning in warned] == [
        "2 items have rows of several categories, such as 1; 1 items are 'unknown' as their first "
        'row has no category and a later one has, such as 3: an item has the category of its '
        'first row in time.'
    ]
    names = dataset.names['category']
    found = [names[code] for code in dataset[0]['item'].category]
    # Item 2 has two first rows, of which the one that the file lists first counts.
    assert found == ['green', 'red', 'unknown', 'unknown', 'red']


def test_later_rows_change_no_category(tmp_path):
    columns = COLUMNS | {'category': 'kind'}
    early = '1,1,5,1,\n1,2,6,1,red\n'
    late = '1,1,8,1,green\n1,2,9,1,blue\n'
    categories = []
    for number, rows in enumerate([early, early + late, late + early]):
        path = write(tmp_path / f'{number}.csv', f'uid,iid,ts,click,kind\n{rows}')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dataset = EventLog(tmp_path / f'{number}', path, columns, log=False)
        names = dataset.names['category']
        categories.append([names[code] for code in dataset[0]['item'].category])
    assert categories == [['unknown', 'red']] * 3


def test_without_label_every_row_is_a_click(tmp_path):
    columns = {role: COLUMNS[role] for role in ('user', 'item', 'time')}
    store = make(tmp_path, 'uid,iid,ts\n1,1,5\n2,1,3\n', columns)[0][CLICKS]
    assert store.edge_index.tolist() == store.edge_label_index.tolist() == [[1, 0], [0, 0]]
    assert store.edge_label.tolist() == [1, 1]
    assert store.time.tolist() == store.edge_label_time.tolist() == [3, 5]
    assert store.edge_index.data_ptr() == store.edge_label_index.data_ptr()


def test_many_files_in_the_order_of_their_names(tmp_path):
    write(tmp_path / 'b.csv', 'uid,iid,ts,click\n2,1,5,0\n')
    # The same columns in another order, separated otherwise.
    write(tmp_path / 'a.csv', 'click;ts;iid;uid\n1;5;1;1\n1;4;9;3\n')
    dataset = EventLog(tmp_path / 'root', tmp_path / '*.csv', COLUMNS, log=False)
    assert rows_of(dataset) == [(3, 9, 4, 1.0), (1, 1, 5, 1.0), (2, 1, 5, 0.0)]
    files = [tmp_path / 'b.csv', str(tmp_path / 'a.csv')]
    dataset = EventLog(tmp_path / 'other', files, COLUMNS, log=False)
    assert rows_of(dataset) == [(3, 9, 4, 1.0), (2, 1, 5, 0.0), (1, 1, 5, 1.0)]


@pytest.mark.parametrize(
    'ids, expected',
    [
        (['10', '9', '-1'], [-1, 9, 10]),
        (['7', '007', '10'], ['007', '10', '7']),
        (
            ['9223372036854775807', '9223372036854775808', '1'],
            ['1', '9223372036854775807', '9223372036854775808'],
        ),
        (['"a,b"', 'ü', '"say ""hi"""'], ['a,b', 'say "hi"', 'ü']),
        (['1.0', '1', '1e0'], ['1', '1.0', '1e0']),
    ],
)
def test_ids_of_any_type(tmp_path, ids, expected):
    rows = '\n'.join(f'{name},1,1,1' for name in ids)
    dataset = make(tmp_path, f'uid,iid,ts,click\n{rows}\n')
    assert dataset.raw_ids['user'].tolist() == expected
    assert dataset.raw_ids['user'].dtype == (np.int64 if expected == [-1, 9, 10] else object)


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('BIGINT', 1),
        ('UINTEGER', 1),
        ('VARCHAR', '1'),
        ('DOUBLE', 1.0),
    ],
)
def test_parquet_ids_keep_their_type(tmp_path, kind, expected):
    path = write_parquet(
        tmp_path / 'log.parquet', f'SELECT 1::{kind} AS uid, 2 AS iid, 3 AS ts, true AS click'
    )
    raw_id = EventLog(tmp_path / 'root', path, COLUMNS, log=False).raw_ids['user'].tolist()[0]
    assert raw_id == expected and type(raw_id) is type(expected)


@pytest.mark.parametrize(
    'kind, ids, expected',
    [
        ('DECIMAL(38, 0)', ['10', '9'], [9, 10]),
        (
            'DECIMAL(38, 0)',
            ['12345678901234567891', '12345678901234567890'],
            ['12345678901234567890', '12345678901234567891'],
        ),
        ('DECIMAL(9, 2)', ['10.50', '10.25'], ['10.25', '10.50']),
        ('UBIGINT', ['18446744073709551615', '9'], [9, 18446744073709551615]),
    ],
)
def test_parquet_ids_of_many_digits_keep_their_map(tmp_path, kind, ids, expected):
    select = f'SELECT unnest({ids})::{kind} AS uid, 2 AS iid, 3 AS ts, 1 AS click'
    path = write_parquet(tmp_path / 'log.parquet', select)
    raw_ids = EventLog(tmp_path / 'root', path, COLUMNS, log=False).raw_ids['user'].tolist()
    assert raw_ids == expected and type(raw_ids[0]) is type(expected[0])


@pytest.mark.parametrize(
    'kind', ['DECIMAL(18,3)', 'TIMESTAMP', 'TIMESTAMPTZ', 'TIMESTAMP_NS', 'DATE', 'FLOAT']
)
@pytest.mark.parametrize('role', ['user', 'time'])
def test_parquet_kinds_with_more_than_a_word(tmp_path, kind, role):
    value = 86_400 if kind in ('DECIMAL(18,3)', 'FLOAT') else "TIMESTAMP '1970-01-02'"
    columns = {'uid': 1, 'iid': 2, 'ts': 86_400, 'click': 1} | {
        COLUMNS[role]: f'({value})::{"TIMESTAMP" if "TZ" in kind else kind}'
    }
    select = ', '.join(f'{value} AS {name}' for name, value in columns.items())
    path = write_parquet(tmp_path / 'log.parquet', f'SELECT {select}')
    dataset = EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    assert dataset[0][CLICKS].time.tolist() == [86_400]


@pytest.mark.parametrize('name', ['log.csv', 'log.parquet'])
def test_digits_with_underscores_are_text(tmp_path, name):
    path = write(tmp_path / 'log.csv', 'uid,iid,ts,click\n1_000,7,1,1\n1000,8,2,1\n')
    if name == 'log.parquet':
        path = write_parquet(
            tmp_path / name, f"FROM read_csv('{path}', types={{'uid': 'VARCHAR'}})"
        )
    dataset = EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    assert rows_of(dataset) == [('1_000', 7, 1, 1.0), ('1000', 8, 2, 1.0)]


def test_rows_of_all_files_are_counted(tmp_path):
    rows = ''.join(f'{i},1,{i},1,\r\n' for i in range(1000))
    (tmp_path / 'a.csv').write_text('uid,iid,ts,click\n1,1,1,1\n')
    (tmp_path / 'b.csv').write_text(f'uid,iid,ts,click,"my\nnote"\r\n{rows}', newline='')
    with pytest.raises(ValueError) as error:
        EventLog(tmp_path / 'root', tmp_path / '*.csv', COLUMNS, log=False)
    start = f'{tmp_path / "b.csv"} must give 1,000 rows, as many as it has, but got 0: '
    assert str(error.value).startswith(start)
    assert not (tmp_path / 'root' / 'processed').exists()


def test_gzip_with_a_wrong_checksum(tmp_path):
    path = tmp_path / 'log.csv.gz'
    # So many that the header can be read without the end.
    rows = ''.join(f'{i},1,{i},1\n' for i in range(20_000))
    content = bytearray(gzip.compress(f'uid,iid,ts,click\n{rows}'.encode()))
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'log\.csv\.gz must be a whole gzip .*: CRC check failed'):
        EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    path.write_bytes(gzip.compress(ROW.encode()) + gzip.compress(b'2,1,2,0\n'))
    dataset = EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    assert rows_of(dataset) == [(1, 1, 1, 1.0), (2, 1, 2, 0.0)]


@pytest.mark.parametrize('name', ['log.csv', 'log.parquet'])
def test_category_called_unknown_is_a_missing_one(tmp_path, name):
    text = 'uid,iid,ts,click,kind\n1,1,1,1,unknown\n1,2,2,1,\n1,3,3,1,red\n1,2,4,1,\n1,4,5,1,\n'
    path = write(tmp_path / 'log.csv', text)
    if name == 'log.parquet':
        # An empty text is not NULL here, and is as empty.
        kind = "coalesce(kind, '') AS kind"
        select = f"SELECT * REPLACE ({kind}) FROM read_csv('{path}')"
        path = write_parquet(tmp_path / name, select)
    dataset = EventLog(tmp_path / 'root', path, COLUMNS | {'category': 'kind'}, log=False)
    assert dataset.names['category'] == ['unknown', 'red']
    assert dataset[0]['item'].category.tolist() == [0, 0, 1, 0]
    assert dataset[0]['item'].num_category == 2


@pytest.mark.parametrize(
    'time, unit, expected',
    [
        ('12', 's', 12),
        ('12.9', 's', 12),
        ('-0.5', 's', -1),
        ('1650812741999', 'ms', 1650812741),
        ('-1', 'ms', -1),
        ('-1000', 'ms', -1),
        ('1650812741999999', 'us', 1650812741),
        ('1650812741999999999', 'ns', 1650812741),
        ('2022-04-10 12:00:00', 's', 1649592000),
        ('2022-04-10T12:00:00.75', 's', 1649592000),
        ('2022-04-10T14:00:00+02:00', 'ms', 1649592000),
        ('2022-04-10', 's', 1649548800),
    ],
)
def test_times(tmp_path, time, unit, expected):
    dataset = make(tmp_path, f'uid,iid,ts,click\n1,1,{time},1\n', time_unit=unit)
    assert dataset[0][CLICKS].time.tolist() == [expected]


@pytest.mark.parametrize(
    'time, expected',
    [
        ("TIMESTAMP '2022-04-10 12:00:00.9'", 1649592000),
        ("'2022-04-10 12:00:00'::TIMESTAMP_NS", 1649592000),
        ("'2022-04-10 12:00:00'::TIMESTAMP_MS", 1649592000),
        ("'2022-04-10 12:00:00'::TIMESTAMP_S", 1649592000),
        ("'2022-04-10 14:00:00+02'::TIMESTAMPTZ", 1649592000),
        ("DATE '2022-04-10'", 1649548800),
        ('12.75::DECIMAL(9, 2)', 12),
        ('12::UTINYINT', 12),
    ],
)
def test_parquet_times(tmp_path, time, expected):
    path = write_parquet(
        tmp_path / 'log.parquet', f'SELECT 1 AS uid, 2 AS iid, {time} AS ts, 1 AS click'
    )
    dataset = EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    assert dataset[0][CLICKS].time.tolist() == [expected]


@pytest.mark.parametrize('kind', ['BIGINT', 'INTEGER', 'DECIMAL(9, 1)', 'FLOAT', 'DOUBLE'])
def test_parquet_times_before_1970_are_rounded_down(tmp_path, kind):
    time = f'unnest([-2001, -2000, -1, 0, 999, 1000])::{kind}'
    path = write_parquet(tmp_path / 'log.parquet', f'SELECT 1 AS uid, 2 AS iid, {time} AS ts')
    columns = {'user': 'uid', 'item': 'iid', 'time': 'ts'}
    dataset = EventLog(tmp_path / 'root', path, columns, time_unit='ms', log=False)
    assert dataset[0][CLICKS].time.tolist() == [-3, -2, -1, 0, 0, 1]


def test_parquet_times_of_many_digits_are_exact(tmp_path):
    time = "'1650812741999999999'::DECIMAL(20, 0)"
    path = write_parquet(
        tmp_path / 'log.parquet', f'SELECT 1 AS uid, 2 AS iid, {time} AS ts, 1 AS click'
    )
    dataset = EventLog(tmp_path / 'root', path, COLUMNS, time_unit='ns', log=False)
    assert dataset[0][CLICKS].time.tolist() == [1650812741]


def test_large_time_far_down_is_exact(tmp_path):
    text = ''.join(f'1,1,{time},1\n' for time in range(200))
    text = f'uid,iid,ts,click\n{text}1,1,1650812741999999999,1\n'
    dataset = make(tmp_path, text, time_unit='ns')
    assert dataset[0][CLICKS].time.tolist() == [0] * 200 + [1650812741]


def test_fraction_far_down_is_rounded_down(tmp_path):
    text = ''.join(f'1,1,{time},1\n' for time in range(200))
    dataset = make(tmp_path, f'uid,iid,ts,click\n{text}1,1,250.75,1\n1,1,250.25,0\n')
    assert dataset[0][CLICKS].edge_label_time.tolist() == [*range(200), 250, 250]
    assert dataset[0][CLICKS].edge_label[-2:].tolist() == [0, 1]


def test_dates_are_utc_wherever_the_machine_is(tmp_path):
    path = write(tmp_path / 'log.csv', 'uid,iid,ts,click\n1,1,2022-04-10 12:00:00,1\n')
    script = textwrap.dedent(f"""
        from mag.datasets import EventLog
        data = EventLog({str(tmp_path / 'root')!r}, {str(path)!r}, {COLUMNS!r}, log=False)[0]
        print(data['user', 'clicks', 'item'].time.tolist())
    """)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        capture_output=True,
        text=True,
        env=os.environ | {'TZ': 'America/New_York'},
    )
    assert done.stdout == '[1649592000]\n', done.stderr


def test_order_within_a_second_is_kept(tmp_path):
    dataset = make(
        tmp_path, 'uid,iid,ts,click\n1,1,1999,1\n2,1,1001,1\n3,1,1001,1\n', time_unit='ms'
    )
    assert [row[0] for row in rows_of(dataset)] == [2, 3, 1]


@pytest.mark.parametrize(
    'yes, no', [('1', '0'), ('1.0', '0.0'), ('True', 'False'), ('true', 'no'), ('yes', 'false')]
)
def test_labels(tmp_path, yes, no):
    dataset = make(tmp_path, f'uid,iid,ts,click\n1,1,1,{yes}\n1,2,2,{no}\n')
    assert dataset[0][CLICKS].edge_label.tolist() == [1, 0]


def test_header_with_awkward_names(tmp_path):
    text = '\ufeff,UID,uid,i d,ts,"na""me",click,UID\r\n0,x,1,2,3,y,1,z\r\n'
    dataset = make(tmp_path, text, COLUMNS | {'item': 'i d'})
    assert rows_of(dataset) == [(1, 2, 3, 1.0)]


def test_duplicates_are_kept_counted_and_reported(tmp_path):
    text = 'uid,iid,ts,click\n1,1,5,1\n1,1,5,0\n1,1,5,1\n2,1,5,1\n2,1,6,1\n'
    with pytest.warns(UserWarning, match="2 rows repeat another row's user, item and time"):
        dataset = make(tmp_path, text)
    assert dataset.num_duplicates == 2
    assert dataset[0][CLICKS].edge_label.tolist() == [1, 0, 1, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert EventLog(tmp_path / 'root', tmp_path / 'log.csv', COLUMNS).num_duplicates == 2


def test_duplicates_are_told_apart_below_a_second(tmp_path):
    dataset = make(tmp_path, 'uid,iid,ts,click\n1,1,5001,1\n1,1,5002,1\n', time_unit='ms')
    assert dataset.num_duplicates == 0
    assert dataset[0][CLICKS].time.tolist() == [5, 5]


def test_wrong_unit_is_suspected(tmp_path):
    with pytest.warns(UserWarning, match="beyond the year 5000.*'ts'.*'time_unit'"):
        make(tmp_path, 'uid,iid,ts,click\n1,1,1650812741999,1\n')


ROW = 'uid,iid,ts,click\n1,1,1,1\n'


@pytest.mark.parametrize(
    'text, columns, pieces',
    [
        pytest.param(
            '',
            COLUMNS,
            ['log.csv must have a header', "'uid', 'iid', 'ts', 'click'", 'is empty'],
            id='empty',
        ),
        pytest.param(
            'uid,iid,ts,click\n', COLUMNS, ['must hold rows', 'log.csv'], id='header only'
        ),
        pytest.param(
            ROW,
            COLUMNS | {'user': 'user_id'},
            ["must have a column 'user_id'", "'uid', 'iid', 'ts', 'click'"],
            id='column missing',
        ),
        pytest.param(
            ROW,
            COLUMNS | {'weight': 'price', 'category': 'kind'},
            ["must have a column 'price', 'kind'"],
            id='columns missing',
        ),
        pytest.param(
            ROW + '1,1,soon,1\n',
            COLUMNS,
            ['log.csv, line 3', "column 'ts' must hold a number", "but got 'soon'", "'1,1,soon,1'"],
            id='time is a word',
        ),
        pytest.param(
            'uid,iid,ts,click\n1,1,soon,1\n',
            COLUMNS,
            ['line 2', "'ts' must hold a number or a time such as", "got 'soon'"],
            id='first time is a word',
        ),
        pytest.param(
            ROW + '1,1,2022-04-10,1\n',
            COLUMNS,
            ['line 3', "'ts' must hold a number, but got '2022-04-10'"],
            id='time is a date among numbers',
        ),
        pytest.param(
            ROW + '1,1,,1\n',
            COLUMNS,
            ['line 3', "'ts' must hold a number, but got nothing"],
            id='time is empty',
        ),
        pytest.param(
            ROW + '1,1,nan,1\n',
            COLUMNS,
            [
                'log.csv, line 3',
                "'ts' (time) must hold a finite time that fits 64 bits, but got nan",
            ],
            id='time is nan',
        ),
        pytest.param(
            ROW + '1,1,2,2\n1,1,3,-1\n',
            COLUMNS,
            [
                'log.csv, line 3',
                "'click' (label) must hold 0 or 1",
                'but got 2.0',
                '1 more such row',
            ],
            id='label is 2',
        ),
        pytest.param(
            ROW + '1,1,2,0.5\n',
            COLUMNS,
            ['line 3', 'must hold 0 or 1, but got 0.5'],
            id='label is a half',
        ),
        pytest.param(
            ROW + '1,1,2,yes\n',
            COLUMNS,
            ['line 3', "'click' must hold a number, but got 'yes'"],
            id='label is a word',
        ),
        pytest.param(
            ROW + '1,1,2,\n',
            COLUMNS,
            ['line 3', "'click' must hold a number, but got nothing"],
            id='label is empty',
        ),
        pytest.param(
            ROW + ',1,2,0\n',
            COLUMNS,
            ['log.csv, line 3', "'uid' (user) must hold an id", 'but got nothing'],
            id='user is empty',
        ),
        pytest.param(
            ROW + '\n1,"",2,0\n',
            COLUMNS,
            ['line 4', "'iid' (item) must hold an id, but got nothing"],
            id='item is empty',
        ),
        pytest.param(
            ROW + '1,1,2\n',
            COLUMNS,
            ['log.csv, line 3', 'a row must have 4 columns, but got 3', "'1,1,2'"],
            id='row too short',
        ),
        pytest.param(
            ROW + '1,1,2,0,5\n',
            COLUMNS,
            ['line 3', 'a row must have 4 columns, but got 5'],
            id='row too long',
        ),
        pytest.param(
            ROW + '1,"1,2,0\n1,1,1,1\n',
            COLUMNS,
            ['line 3', 'a row must close its quotes'],
            id='open quote',
        ),
        pytest.param(
            'uid,iid,ts,click,w\n1,1,1,1,1\n1,1,2,1,-3\n',
            COLUMNS | {'weight': 'w'},
            [
                'line 3',
                "'w' (weight) must hold 0 or a positive number that fits a float32, but got -3.0",
            ],
            id='weight is negative',
        ),
        pytest.param(
            'uid,iid,ts,click,w\n1,1,1,1,1\n1,1,2,1,much\n',
            COLUMNS | {'weight': 'w'},
            ['line 3', "'w' must hold a number, but got 'much'"],
            id='weight is a word',
        ),
        pytest.param(
            'uid,iid,ts,click,w\n1,1,1,1,3e38\n1,1,2,1,1e39\n',
            COLUMNS | {'weight': 'w'},
            ['line 3', "'w' (weight) must hold 0 or", 'that fits a float32, but got 1e+39'],
            id='weight is beyond a float32',
        ),
        pytest.param(
            'uid,iid,ts,click,w\n1,1,1,1,2e-38\n1,1,2,1,0\n1,1,2,1,1e-60\n',
            COLUMNS | {'weight': 'w'},
            ['line 4', "'w' (weight) must hold 0 or", 'that fits a float32, but got 1e-60'],
            id='weight is too near 0 for a float32',
        ),
        pytest.param(
            'uid,iid,ts,click,w\n1,1,1,1,1\n1,1,2,1,1_0.5\n',
            COLUMNS | {'weight': 'w'},
            ["line 3: column 'w' must hold a number without underscores, but got '1_0.5'"],
            id='weight with an underscore',
        ),
        pytest.param(
            ROW + '1_2,1,2,0_1\n',
            COLUMNS,
            ["line 3: column 'click' must hold a number without underscores, but got '0_1'"],
            id='label with an underscore',
        ),
        pytest.param(
            ROW + '1_2,1,"1_000",0_1\n',
            COLUMNS,
            ["line 3: column 'ts' must hold a number without underscores, but got '1_000'"],
            id='time with an underscore',
        ),
        pytest.param(
            'uid,iid,ts,click\n1,1,1_000,1\n',
            COLUMNS,
            ["line 2: column 'ts' must hold a number or a time such as", "but got '1_000'"],
            id='first time with an underscore',
        ),
        pytest.param(
            'uid,iid,ts,click\n1,1,9007199254740993,1\n1,1,9_007_199_254_740_993,1\n',
            COLUMNS,
            ["line 3: column 'ts' must hold a whole number without", "'9_007_199_254_740_993'"],
            id='large time with an underscore',
        ),
        pytest.param(
            'uid,iid,ts,click,uid\n1,1,1,1,2\n',
            COLUMNS,
            ["log.csv must have one column 'uid', but got 2."],
            id='repeated name',
        ),
        pytest.param(
            'uid,iid,ts,click\n1,1,1,1\n1\0,1,1,1\n',
            COLUMNS,
            ['log.csv, line 3: a line must hold text, but got a NUL.'],
            id='nul',
        ),
        pytest.param(
            'uid,iid,ts,click\n1,1,infinity,1\n',
            COLUMNS,
            ['line 2', "'ts' (time) must hold a finite time that fits 64 bits, but got inf"],
            id='first time is infinite',
        ),
        pytest.param(
            ROW + '1,1,1e300,1\n',
            COLUMNS,
            ['line 3', "'ts' must hold a whole number, but got '1e300'"],
            id='time is beyond 64 bits',
        ),
        pytest.param(
            'ID,id,ts,click\n1,2,3,1\n',
            COLUMNS | {'user': 'ID', 'item': 'id'},
            ["'id' for both 'user' and 'item'", 'more than upper and lower case'],
            id='columns differ in case',
        ),
        pytest.param(
            'uid,iid,ts,click\r\n1,1,1,1\r\n1,1,2,1\n1,1,3,1\r\n',
            COLUMNS,
            ['log.csv, line 3', 'must end in CRLF as before, but got LF'],
            id='line ends differ',
        ),
        pytest.param(
            ROW,
            {'user': 'uid', 'item': 'iid'},
            ["must have the keys 'user', 'item', 'time'", "got 'user', 'item'."],
            id='no time',
        ),
        pytest.param(
            ROW, {}, ["must have the keys 'user', 'item', 'time'", 'but got none'], id='no columns'
        ),
        pytest.param(
            ROW,
            COLUMNS | {'rating': 'click'},
            ["'rating'.", "'time' and may have 'label', 'category', 'weight', ", "but got 'user'"],
            id='unknown key',
        ),
        pytest.param(
            ROW, COLUMNS | {'item': 'uid'}, ["'uid' for both 'user' and 'item'"], id='column twice'
        ),
    ],
)
def test_bad_rows_and_columns(tmp_path, text, columns, pieces):
    with pytest.raises(ValueError) as error:
        make(tmp_path, text, columns)
    for piece in pieces:
        assert piece in str(error.value)
    assert not (tmp_path / 'root' / 'processed').exists()


def test_bad_bytes(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_bytes(b'uid,iid,ts,click\n1,1,1,1\ncaf\xe9,1,1,1\n')
    with pytest.raises(ValueError, match='log.csv.* UTF-8'):
        EventLog(tmp_path / 'root', path, COLUMNS, log=False)


def test_bad_row_in_the_second_file(tmp_path):
    write(tmp_path / 'a.csv', ROW)
    write(tmp_path / 'b.csv', ROW + '1,1,2,7\n')
    with pytest.raises(
        ValueError, match=r'b\.csv, line 3: column .click. .* must hold 0 or 1, but got 7'
    ):
        EventLog(tmp_path / 'root', tmp_path / '?.csv', COLUMNS, log=False)
    write(tmp_path / 'b.csv', ROW.replace('iid', 'item'))
    with pytest.raises(
        ValueError, match=r"b\.csv must have a column 'iid', but its columns are 'uid', 'it"
    ):
        EventLog(tmp_path / 'root', tmp_path / '?.csv', COLUMNS, log=False)


def test_bad_row_far_down(tmp_path):
    text = ''.join(f'{i},1,{i},1\n' for i in range(200_000))
    with pytest.raises(ValueError, match='line 200002'):
        make(tmp_path, f'uid,iid,ts,click\n{text}1,1,?,1\n{text}')
    with pytest.raises(ValueError, match='line 200002'):
        make(tmp_path, f'uid,iid,ts,click\n{text},1,1,1\n{text}')


@pytest.mark.parametrize(
    'select, pieces',
    [
        (
            'SELECT 1 AS uid, 2 AS iid, 3 AS ts',
            ["must have a column 'click'", "'uid', 'iid', 'ts'"],
        ),
        (
            "SELECT 1 AS uid, 2 AS iid, '3' AS ts, 1 AS click",
            ["'ts' (time) must hold a number or a timestamp, but got VARCHAR"],
        ),
        (
            "SELECT 1 AS uid, 2 AS iid, 3 AS ts, 'no' AS click",
            ["'click' (label) must hold 0 or 1, but got VARCHAR"],
        ),
        (
            'SELECT unnest([1, NULL, NULL]) AS uid, 2 AS iid, 3 AS ts, 1 AS click',
            [
                'log.parquet, row 2',
                "'uid' (user) must hold an id, but got nothing",
                '1 more such row',
            ],
        ),
        (
            "SELECT unnest([1, 'nan'::DOUBLE]) AS uid, 2 AS iid, 3 AS ts, 1 AS click",
            ['row 2', "'uid' (user) must hold an id, but got nan"],
        ),
        (
            "SELECT 1 AS uid, 2 AS iid, unnest([1, 'inf'::DOUBLE]) AS ts, 1 AS click",
            ['row 2', "'ts' (time) must hold a finite time that fits 64 bits, but got inf"],
        ),
        (
            'SELECT 1 AS uid, 2 AS iid, 3 AS ts, unnest([0, 3]) AS click',
            ['row 2', "'click' (label) must hold 0 or 1, but got 3.0"],
        ),
        (
            "SELECT unnest(['a', 'a' || chr(0)]) AS uid, 2 AS iid, 3 AS ts, 1 AS click",
            ['log.parquet, row 2', r"'uid' (user) must hold an id without a NUL, but got 'a\x00'"],
        ),
        *(
            (
                f'SELECT * REPLACE ({value} AS {column}) FROM (SELECT 1 uid, 2 iid, 3 ts, 1 click)',
                [f"log.parquet: column '{column}' ({role}) must hold {expected}, but got {kind}."],
            )
            for value, column, role, kind, expected in (
                ('[1]', 'uid', 'user', 'INTEGER[]', 'a number or a text'),
                ("{'a': 1}", 'iid', 'item', 'STRUCT(a INTEGER)', 'a number or a text'),
                ("MAP {'a': 1}", 'iid', 'item', 'MAP(VARCHAR, INTEGER)', 'a number or a text'),
                ('[3]', 'ts', 'time', 'INTEGER[]', 'a number or a timestamp'),
                ('[now()]', 'ts', 'time', 'TIMESTAMP WITH TIME ZONE[]', 'a number or a timestamp'),
                ('[1.5]', 'ts', 'time', 'DECIMAL(2,1)[]', 'a number or a timestamp'),
                ('INTERVAL 1 DAY', 'ts', 'time', 'INTERVAL', 'a number or a timestamp'),
                ("TIME '10:00'", 'ts', 'time', 'TIME', 'a number or a timestamp'),
                ('[true]', 'click', 'label', 'BOOLEAN[]', '0 or 1'),
            )
        ),
        (
            "SELECT unnest(['a', '']) AS uid, 2 AS iid, 3 AS ts, 1 AS click",
            ['log.parquet, row 2', "'uid' (user) must hold an id, but got nothing", 'an id'],
        ),
        (
            'SELECT 1 AS uid, 2 AS iid, unnest([1, 1e300]) AS ts, 1 AS click',
            [
                'log.parquet, row 2',
                "'ts' (time) must hold a finite time that fits 64 bits, but got 1e+300",
            ],
        ),
        (
            "SELECT 1 AS uid, 2 AS iid, unnest(['1', '18446744073709551615'])::UBIGINT AS ts, "
            '1 AS click',
            [
                'log.parquet, row 2',
                "'ts' (time) must hold",
                'fits 64 bits, but got 18446744073709551615',
            ],
        ),
        ('SELECT 1 AS uid, 2 AS iid, 3 AS ts, 1 AS click LIMIT 0', ['must hold rows']),
    ],
)
def test_bad_parquet(tmp_path, select, pieces):
    path = write_parquet(tmp_path / 'log.parquet', select)
    with pytest.raises(ValueError) as error:
        EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    for piece in pieces:
        assert piece in str(error.value)


def test_parquet_files_that_disagree(tmp_path):
    select = 'SELECT {} AS uid, 2 AS iid, 3 AS ts, 1 AS click'
    write_parquet(tmp_path / 'a.parquet', select.format('1::INTEGER'))
    write_parquet(tmp_path / 'b.parquet', select.format('2::BIGINT'))
    dataset = EventLog(tmp_path / 'root', tmp_path / '*.parquet', COLUMNS, log=False)
    assert dataset.raw_ids['user'].tolist() == [1, 2]
    # Beyond the first file's type, though not beyond the second's.
    write_parquet(tmp_path / 'b.parquet', select.format(f'{2**40}::BIGINT'))
    dataset = EventLog(tmp_path / 'wide', tmp_path / '*.parquet', COLUMNS, log=False)
    assert dataset.raw_ids['user'].tolist() == [1, 2**40]


@pytest.mark.parametrize(
    'role, one, other, kinds',
    [
        ('uid', '1', "'x'", 'VARCHAR, and INTEGER'),
        ('iid', "'x'", '1', 'INTEGER, and VARCHAR'),
        ('ts', '3::BIGINT', '12.75::DOUBLE', 'DOUBLE, and BIGINT'),
        ('ts', '3::BIGINT', "TIMESTAMP '2022-01-01'", 'TIMESTAMP, and BIGINT'),
        ('ts', "TIMESTAMP '2022-01-01'", '3::BIGINT', 'BIGINT, and TIMESTAMP'),
        ('kind', '7', "'x'", 'VARCHAR, and INTEGER'),
    ],
)
def test_parquet_files_of_two_types(tmp_path, role, one, other, kinds):
    values = {'uid': '1', 'iid': '2', 'ts': '3::BIGINT', 'click': '1', 'kind': '4'}
    for name, value in (('a', one), ('b', other)):
        select = ', '.join(f'{v} AS {k}' for k, v in (values | {role: value}).items())
        write_parquet(tmp_path / f'{name}.parquet', f'SELECT {select}')
    columns = COLUMNS | {'category': 'kind'}
    match = rf"b\.parquet: column '{role}' must be of one type in all .* {kinds} in .*a\.parquet"
    with pytest.raises(ValueError, match=match):
        EventLog(tmp_path / 'root', tmp_path / '*.parquet', columns, log=False)


@pytest.mark.parametrize(
    'path, error, pieces',
    [
        ('nothing.csv', FileNotFoundError, ['no file', 'nothing.csv']),
        ('*.pq', FileNotFoundError, ['no file', '*.pq']),
        ('', ValueError, ['a directory', '*.parquet']),
        ('log.json', ValueError, ['must name files that end in .csv,', "log.json'."]),
        ('broken.parquet', ValueError, ['broken.parquet']),
        ([], ValueError, ['empty list']),
        (
            ['log.csv', 'broken.parquet'],
            ValueError,
            ['CSV files only or Parquet files only', 'log.csv', 'broken.parquet'],
        ),
        (['log.csv', 'log.csv'], ValueError, ['must name each file once', "log.csv' and "]),
        (3, TypeError, ["'path' must be a file", 'got 3']),
        ([3], TypeError, ["'path' must be a file", 'got [3]']),
    ],
)
def test_bad_path(tmp_path, path, error, pieces):
    write(tmp_path / 'log.csv', ROW)
    write(tmp_path / 'log.json', '{}')
    write(tmp_path / 'broken.parquet', 'no parquet at all')
    if isinstance(path, str):
        path = tmp_path / path
    elif isinstance(path, list):
        path = [tmp_path / p if isinstance(p, str) else p for p in path]
    with pytest.raises(error) as raised:
        EventLog(tmp_path / 'root', path, COLUMNS, log=False)
    for piece in pieces:
        assert piece in str(raised.value)


class Three(BaseTransform):
    def forward(self, data):
        return 3


@pytest.mark.parametrize(
    'kwargs, error, match',
    [
        (
            {'time_unit': 'h'},
            ValueError,
            "'time_unit' must be one of 's', 'ms', 'us', 'ns', but got 'h'",
        ),
        ({'columns': ['uid', 'iid']}, TypeError, "'columns' must be a dictionary"),
        ({'columns': COLUMNS | {'user': 3}}, TypeError, "name of a column for 'user', but got 3"),
        ({'root': 3}, TypeError, "'root' must be a path, but got 3"),
        ({'pre_transform': Three()}, TypeError, "'pre_transform' must return a HeteroData"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, error, match):
    path = write(tmp_path / 'log.csv', ROW)
    arguments = {'root': tmp_path / 'root', 'path': path, 'columns': COLUMNS, 'log': False}
    with pytest.raises(error, match=match):
        EventLog(**(arguments | kwargs))
