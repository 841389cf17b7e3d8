import json
import warnings

import duckdb
import numpy as np
import pytest
import torch

from mag.datasets import EventLog, LogSchema

CLICKS = ('user', 'clicks', 'item')
HEADER = 'u,i,ts,click,buy,like,hour,order,price,q,age,genres,title,done'
ROWS = [
    'b,2,11,0,0,0,10,y,2.5,,40,Drama,Second,11',
    'a,1,10,1,1,0,9,x,1.5,red shoes,30,Action|Comedy,First film,12',
    'a,2,12,1,0,1,9,x,0.5,shoes,30,Drama,Second,20',
    'a,3,13,0,0,0,,x,0.5,,30,,,13',
]
TEXT = '\n'.join([HEADER, *ROWS]) + '\n'
COLUMNS = {
    'user': 'u',
    'item': 'i',
    'time': 'ts',
    'label': 'click',
    'conversion': 'buy',
    'behaviors': ['like'],
    'contexts': ['hour', 'order'],
    'features': {'cost': 'price'},
    'query': 'q',
    'user_attributes': ['age'],
    'item_attributes': {'kind': 'genres'},
    'separators': {'kind': '|'},
    'item_texts': ['title'],
    'settled': 'done',
}
PLAIN = {'user': 'u', 'item': 'i', 'time': 'ts', 'label': 'click'}


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return str(path)


def read(tmp_path, *arguments, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return EventLog(tmp_path / 'root', *arguments, log=False, **kwargs)


def table(tmp_path, kind):
    r"""The same log from a source of every kind."""
    path = write(tmp_path / 'log.csv', TEXT)
    parquet = str(tmp_path / 'log.parquet')
    relation = duckdb.sql(f"SELECT * FROM read_csv('{path}', types={{'hour': 'VARCHAR'}})")
    relation.write_parquet(parquet)
    if kind == 'csv':
        return path
    if kind == 'parquet':
        return parquet
    if kind == 'duckdb':
        return relation
    if kind == 'pandas':
        pytest.importorskip(kind)
        return relation.df()
    if kind == 'polars':
        return pytest.importorskip(kind).read_parquet(parquet)
    return pytest.importorskip('pyarrow.parquet').read_table(parquet)


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'duckdb', 'pandas', 'polars', 'pyarrow'])
def test_everything_from_every_source(tmp_path, kind):
    dataset = read(tmp_path, table(tmp_path, kind), COLUMNS)
    data, names = dataset[0], dataset.names
    assert data.validate()
    store = data[CLICKS]
    assert dataset.raw_ids['user'].tolist() == ['a', 'b']
    assert dataset.raw_ids['item'].tolist() == [1, 2, 3]
    assert store.edge_label_index.tolist() == [[0, 1, 0, 0], [0, 1, 1, 2]]
    assert store.edge_label_time.tolist() == [10, 11, 12, 13]
    assert store.edge_label.tolist() == [1, 0, 1, 0]
    assert store.edge_index.tolist() == [[0, 0], [0, 1]]
    assert store.edge_label_settled.tolist() == [12, 11, 20, 13]
    assert store.edge_label_conversion.tolist() == [1, 0, 0, 0]
    assert store.edge_label_behavior.tolist() == [[0], [0], [1], [0]]
    assert names['behavior'] == ['like'] and names['feature'] == ['cost']
    assert store.edge_label_x.tolist() == [[1.5], [2.5], [0.5], [0.5]]
    hours = [names['hour'][code] for code in store.edge_label_hour]
    assert hours == ['9', '10', '9', 'unknown'] and store.num_hour == 3
    assert [names['order'][code] for code in store.edge_label_order] == ['x', 'y', 'x', 'x']
    assert names['query'] == ['', 'red', 'shoes']
    assert store.edge_label_query.tolist() == [[1, 2], [0, -1], [2, -1], [0, -1]]
    assert store.query.tolist() == [[1, 2], [2, -1]]
    assert store.edge_label_domain.tolist() == [1, 0, 1, 0] and store.domain.tolist() == [1, 1]
    assert [names['age'][code] for code in data['user'].age] == ['30', '40']
    # The first of several values, and each of them.
    assert names['kind'] == ['unknown', 'Action', 'Comedy', 'Drama']
    assert data['item'].kind.tolist() == [1, 3, 0] and data['item'].num_kind == 4
    assert data['item'].x_kind.tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert dataset.texts == ['First film', 'Second', 'unknown']


@pytest.mark.parametrize('kind', ['pandas', 'polars', 'duckdb'])
def test_a_table_is_known_by_its_content(tmp_path, kind):
    relation = duckdb.sql('SELECT i AS u, i % 3 AS i, i AS ts, i % 2 AS click, 7 AS note '
                          'FROM range(10) AS t(i)')  # fmt: skip
    columns = PLAIN
    read(tmp_path, relation, columns)
    same = relation
    if kind == 'pandas':
        same = relation.df()
    elif kind == 'polars':
        relation.write_parquet(str(tmp_path / 'log.parquet'))
        same = pytest.importorskip('polars').read_parquet(tmp_path / 'log.parquet')
    assert read(tmp_path, same, columns)[0][CLICKS].edge_label.sum() == 5
    # A column that is not read counts for nothing, one that is does.
    read(tmp_path, duckdb.sql('SELECT * REPLACE (8 AS note) FROM relation'), columns)
    for changed in ('SELECT * REPLACE (1 - click AS click) FROM relation',
                    'SELECT * FROM relation ORDER BY ts DESC',
                    'SELECT * FROM relation LIMIT 9'):  # fmt: skip
        with pytest.raises(ValueError, match=r"does not fit: tables was .*'hash'.*force_reload"):
            read(tmp_path, duckdb.sql(changed), columns)


def test_a_bad_table_is_not_printed(tmp_path):
    pandas = pytest.importorskip('pandas')
    frame = pandas.DataFrame({'u': [1, 2], 'i': [1, 2], 'ts': [5, 6], 'click': [1, 3]})
    for columns, expected in (
        (PLAIN, "the log, row 2: column 'click' (label) must hold 0 or 1, but got 3.0."),
        (PLAIN | {'user': 'x'}, "the log must have a column 'x', but its columns are 'u', 'i', "),
    ):
        with pytest.raises(ValueError) as error:
            read(tmp_path, frame, columns)
        assert str(error.value).startswith(expected)
    with pytest.raises(ValueError, match='the log must hold rows, but got none.'):
        read(tmp_path, frame[:0], PLAIN)
    with pytest.raises(TypeError) as error:
        read(tmp_path, {'u': frame}, PLAIN)
    assert str(error.value).endswith("but got <class 'dict'>.")


SIDE = """sku;brand;vec;tags;age
2;nike;0.1 0.2;a,b;3
1;;0.5 0.25;;4
9;zz;;c;5
"""


def side_schema(tmp_path, text=SIDE, **changes):
    np.save(tmp_path / 'image.npy', np.arange(6, dtype=np.float32).reshape(3, 2))
    path = write(tmp_path / 'items.csv', text)
    columns = {
        'id': 'sku',
        'attributes': ['brand', 'tags'],
        'separators': {'tags': ','},
        'modalities': {'sound': 'vec', 'image': str(tmp_path / 'image.npy'), 'age': 'age'},
    }
    items = {'path': path, 'columns': columns | changes}
    log = write(tmp_path / 'log.csv', 'u,i,ts,click\na,1,1,1\na,2,2,0\nb,3,3,1\n')
    return LogSchema(log, PLAIN, items=items)


def test_table_of_items(tmp_path):
    with pytest.warns(UserWarning) as warned:
        dataset = EventLog(tmp_path / 'root', side_schema(tmp_path), log=False)
    assert [str(warning.message) for warning in warned] == [
        f'1 of 3 items have no row in {tmp_path / "items.csv"}, such as 3: what it tells is '
        "'unknown' of them, and features are 0."
    ]
    item, names = dataset[0]['item'], dataset.names
    assert [names['brand'][code] for code in item.brand] == ['unknown', 'nike', 'unknown']
    assert names['tags'] == ['unknown', 'a', 'b'] and item.tags.tolist() == [0, 1, 0]
    assert item.x_tags.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert torch.equal(item.x_sound, torch.tensor([[0.5, 0.25], [0.1, 0.2], [0, 0]]))
    assert item.has_sound.tolist() == [True, True, False]
    assert item.x_image.tolist() == [[2, 3], [0, 1], [0, 0]]
    assert item.has_image.tolist() == [True, True, False]
    assert item.x_age.tolist() == [[4], [3], [0]]
    # Another table of items, or another array, is another log.
    np.save(tmp_path / 'image.npy', np.ones((3, 2), dtype=np.float32))
    schema = LogSchema(str(tmp_path / 'log.csv'), PLAIN, items=side_schema(tmp_path).items)
    write(tmp_path / 'items.csv', SIDE.replace('nike', 'puma'))
    with pytest.raises(ValueError, match=r'does not fit: items.csv has the same size'):
        EventLog(tmp_path / 'root', schema, log=False)


@pytest.mark.parametrize(
    'text, changes, expected',
    [
        (SIDE + '2;;;;\n', {}, "items.csv, line 5: column 'sku' (item) must hold each item once"),
        (SIDE + ';;;;\n', {}, "items.csv, line 5: column 'sku' (item) must hold an id, but got n"),
        (
            SIDE + '3;;0.5;;\n',
            {},
            "items.csv, line 5: column 'vec' (modality) must hold 2 numbers, as in the first row",
        ),
        (SIDE + '3;;0.5 x;;\n', {}, "items.csv, line 5: column 'vec' (modality) must hold 2 numb"),
        (
            'sku;brand\n7;x\n',
            {'attributes': ['brand'], 'modalities': (), 'separators': {}},
            'tells only of others',
        ),
        (SIDE + '3;;;;\n', {}, 'must have a row for each of the 4 of'),
    ],
)
def test_bad_tables_of_items(tmp_path, text, changes, expected):
    with pytest.raises(ValueError) as error, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        EventLog(tmp_path / 'root', side_schema(tmp_path, text, **changes), log=False)
    assert expected in str(error.value)


ACTIONS = """who,what,when,did
a,1,10,click
a,1,12,cart
a,1,15,click
a,1,30,buy
a,2,5,click
b,2,11,look
b,2,99,click
"""


def test_table_of_actions(tmp_path):
    log = write(tmp_path / 'log.csv', 'u,i,ts\na,1,9\na,1,20\na,2,8\nb,2,10\n')
    columns = {'user': 'who', 'item': 'what', 'time': 'when', 'action': 'did'}
    actions = {
        'path': write(tmp_path / 'actions.csv', ACTIONS),
        'columns': columns,
        'label': 'click',
        'conversion': 'buy',
        'behaviors': {'in_cart': 'cart'},
        'within': 60,
    }
    schema = LogSchema(log, {'user': 'u', 'item': 'i', 'time': 'ts'}, actions=actions)
    with pytest.warns(UserWarning) as warned:
        dataset = EventLog(tmp_path / 'root', schema, log=False)
    assert [str(warning.message) for warning in warned] == [
        f'2 of 6 actions in {tmp_path / "actions.csv"} follow no row of the log of their user and '
        'item, and are left out.',
        "Rows that were not clicked have what follows a click, 1 of 'conversion': it is 0 there.",
    ]
    store = dataset[0][CLICKS]
    assert store.edge_label_time.tolist() == [8, 9, 10, 20]
    # The row at 9 was clicked at 10 and 15; what was bought at 30 follows the row at 20.
    assert store.edge_label.tolist() == [0, 1, 0, 0]
    assert store.time.tolist() == [10]
    assert store.edge_label_behavior.tolist() == [[0], [1], [0], [0]]
    assert store.edge_label_conversion.tolist() == [0, 0, 0, 0]
    assert store.edge_label_settled.tolist() == [68, 69, 70, 80]
    assert dataset.names['behavior'] == ['in_cart']


def test_actions_are_known_when_none_can_follow_any_more(tmp_path):
    log = write(tmp_path / 'log.csv', 'u,i,ts,click\na,1,9,1\na,1,20,1\na,2,8,0\nb,2,10,1\n')
    columns = {'user': 'who', 'item': 'what', 'time': 'when', 'action': 'did'}
    path = write(tmp_path / 'actions.csv', ACTIONS.replace('a,2,5,click\n', ''))
    actions = {'path': path, 'columns': columns, 'conversion': 'buy', 'behaviors': ['cart']}
    schema = LogSchema(log, PLAIN, actions=actions | {'within': 14.5})
    store = read(tmp_path, schema)[0][CLICKS]
    assert store.edge_label_time.tolist() == [8, 9, 10, 20]
    assert store.edge_label_conversion.tolist() == [0, 0, 0, 1]
    assert store.edge_label_behavior.tolist() == [[0], [1], [0], [0]]
    # What follows a row or not changes nothing of when it is known, nor of its own click.
    assert store.edge_label_settled.tolist() == [23, 24, 25, 35]
    assert store.time.tolist() == [9, 10, 20]


def test_time_of_clicks_and_domain(tmp_path):
    log = write(tmp_path / 'log.csv', 'u,i,ts,click,at,where,q\n'
                'a,1,1,1,5,search,\na,2,2,0,,recommendation,\nb,1,3,1,3,search,tea\n')  # fmt: skip
    columns = PLAIN | {'click_time': 'at', 'domain': 'where', 'query': 'q'}
    with pytest.warns(UserWarning, match="times of their own, .* Name a column for 'settled'."):
        dataset = EventLog(tmp_path / 'root', log, columns, log=False)
    store = dataset[0][CLICKS]
    assert store.edge_label_domain.tolist() == [1, 0, 1]
    # A search without terms has the term 'unknown'.
    assert dataset.names['query'] == ['', 'unknown', 'tea']
    assert store.edge_label_query.tolist() == [[1], [0], [2]]
    assert store.time.tolist() == [3, 5] and store.edge_index.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    'columns, row, expected',
    [
        ({'settled': 'x'}, 'a,1,5,1,4', "column 'x' (settled) must hold no time before that of the"
         ' row, 5.0, but got 4.0'),
        ({'settled': 'x'}, 'a,1,5,1,', "column 'x' must hold a number, but got nothing"),
        ({'click_time': 'x'}, 'a,1,5,1,4', "'x' (click_time) must hold no time before that of the"),
        ({'click_time': 'x'}, 'a,1,5,1,', "'x' (click_time) must hold a finite time that fits 64"),
        ({'conversion': 'x'}, 'a,1,5,1,2', "'x' (conversion) must hold 0 or 1, but got 2.0"),
        ({'behaviors': {'b': 'x'}}, 'a,1,5,1,', "'x' must hold a number, but got nothing"),
        ({'features': ['y']}, 'a,1,5,1,', "must have a column 'y'"),
        ({'features': {'p': 'x'}}, 'a,1,5,1,1e39', "'x' (feature) must hold a number that fits a "),
        ({'features': {'p': 'x'}}, 'a,1,5,1,dear', "'x' must hold a number, but got 'dear'"),
        ({'domain': 'x'}, 'a,1,5,1,shop', "'x' (domain) must hold search or recommendation, but "),
    ],
)  # fmt: skip
def test_bad_values(tmp_path, columns, row, expected):
    path = write(tmp_path / 'log.csv', f'u,i,ts,click,x\nb,1,1,0,1\n{row}\n')
    with pytest.raises(ValueError) as error:
        read(tmp_path, path, PLAIN | columns)
    assert expected in str(error.value)
    assert 'must have a column' in expected or f'{path}, line 3: ' in str(error.value)


def test_query_of_a_recommendation_is_refused(tmp_path):
    path = write(tmp_path / 'log.csv', 'u,i,ts,click,d,q\na,1,1,1,1,tea\na,1,2,0,0,tea\n')
    with pytest.raises(ValueError) as error:
        read(tmp_path, path, PLAIN | {'domain': 'd', 'query': 'q'})
    assert str(error.value) == (
        f"{path}, line 3: column 'q' (query) must hold nothing where the domain is 0, but got "
        "['tea']."
    )


@pytest.mark.parametrize(
    'text, kwargs',
    [
        ('a::1::5::1\nb::caf\xe9::6::0\n', {'separator': '::'}),
        ('\na\t1\t5\t1\n\nb\tcaf\xe9\t6\t0\n', {}),
        ('a;1;5;1\nb;"caf\xe9";6;0\n', {'separator': ';'}),
    ],
)
def test_files_without_header(tmp_path, text, kwargs):
    path = tmp_path / 'u.data'
    path.write_text(text, encoding='latin-1')
    names = ['who', 'what', 'when', 'clicked']
    columns = dict(zip(('user', 'item', 'time', 'label'), names))
    schema = LogSchema(str(path), columns, names=names, encoding='latin-1', **kwargs)
    dataset = read(tmp_path, schema)
    assert dataset.raw_ids['item'].tolist() == ['1', 'caf\xe9']
    assert dataset[0][CLICKS].edge_label.tolist() == [1, 0]
    path.write_text(text.replace('6', 'six'), encoding='latin-1')
    line = 1 + text[: text.index('6')].count('\n')
    with pytest.raises(ValueError, match=f'u.data, line {line}: .*when.* must hold a number'):
        EventLog(tmp_path / 'other', schema, log=False)


def test_load(tmp_path):
    write(tmp_path / 'log.csv', 'u,i,ts,click\na,1,1,1\na,2,2,0\n')
    write(tmp_path / 'items.csv', 'sku,brand\n1,x\n2,y\n')
    columns = {'user': 'u', 'item': 'i', 'time': 'ts', 'label': 'click'}
    items = {'path': 'items.csv', 'columns': {'id': 'sku', 'attributes': ['brand']}}
    found = {'path': 'log.csv', 'columns': columns, 'time_unit': 'ms', 'items': items}
    write(tmp_path / 'log.json', json.dumps(found))
    write(
        tmp_path / 'log.yaml',
        'path: log.csv\ntime_unit: ms\ncolumns: {user: u, item: i, time: ts, label: click}\n'
        'items:\n  path: items.csv\n  columns: {id: sku, attributes: [brand]}\n',
    )
    schemas = [LogSchema.load(tmp_path / name) for name in ('log.json', 'log.yaml')]
    assert schemas[0] == schemas[1] and schemas[0].path == str(tmp_path / 'log.csv')
    assert read(tmp_path, schemas[1]).names['brand'] == ['x', 'y']


@pytest.mark.parametrize(
    'text, expected',
    [
        ('columns: {', 'log.yaml, line 1: it must be YAML, but '),
        ('path: x', "log.yaml must have the keys 'path' and 'columns' and may have 'time_unit', "),
        ('path: x\ncolumns: {user: u}\nroles: 1', "but got 'path', 'columns', 'roles'."),
        ('- 1', 'but got [1].'),
        ('path: x\ncolumns: {user: u}', "log.yaml: 'columns' must have the keys 'user', 'item', "),
        ('!!python/object:os.system {}', 'log.yaml, line 1: it must be YAML, but could not determ'),
    ],
)
def test_bad_files(tmp_path, text, expected):
    with pytest.raises(ValueError) as error:
        LogSchema.load(write(tmp_path / 'log.yaml', text))
    assert expected in str(error.value)


ITEMS = {'path': 'x.csv', 'columns': {'id': 'sku', 'attributes': ['brand']}}
ACTION = {
    'path': 'x.csv',
    'columns': {'user': 'u', 'item': 'i', 'time': 't', 'action': 'a'},
    'label': 'click',
    'within': 60,
}


@pytest.mark.parametrize(
    'changes, error, expected',
    [
        ({'columns': PLAIN | {'contexts': 'hour'}}, TypeError, 'must have a list of columns, or'),
        ({'columns': PLAIN | {'contexts': ['a b']}}, ValueError, "but got 'a b': write {name: "),
        ({'columns': PLAIN | {'contexts': ['query']}}, ValueError, "graph's own, but got 'query'"),
        (
            {'columns': PLAIN | {'contexts': ['age'], 'user_attributes': {'Age': 'x'}}},
            ValueError,
            "but got 'Age' for both 'contexts' and 'user_attributes'",
        ),
        (
            {'columns': PLAIN | {'contexts': {'hour': 'ts'}}},
            ValueError,
            "got 'ts' for both 'time' and 'hour'",
        ),
        ({'separator': ''}, ValueError, "'separator' must be a text of 1 to 4 characters, but"),
        ({'names': 'abc'}, ValueError, "'names' must be a list of the columns"),
        ({'encoding': 'cp1252'}, ValueError, "'encoding' must be one of 'utf-8', 'latin-1', but"),
        ({'items': {'path': 'x'}}, ValueError, "'items' must have the keys 'path', 'columns' and"),
        (
            {'items': ITEMS | {'columns': {'id': 'sku', 'brand': 'x'}}},
            ValueError,
            "the columns of 'items' must have the keys 'id' and may have 'attributes', 'texts', ",
        ),
        ({'items': 3}, TypeError, "'items' must be a dictionary, but got int."),
        (
            {'columns': PLAIN | {'item_attributes': ['tags'], 'separators': {'tag': '|'}}},
            ValueError,
            "'columns' must name what 'separators' are of, one of ",
        ),
        (
            {'items': ITEMS | {'columns': {'id': 'i', 'texts': ['tag'], 'separators': {'t': '|'}}}},
            ValueError,
            "the columns of 'items' must name what 'separators' are of, one of ['id', 'tag'], ",
        ),
        ({'actions': ACTION | {'within': None}}, ValueError, "'actions' must say by 'within' how"),
        (
            {'actions': ACTION | {'within': 1e30}},
            ValueError,
            "'within' must be a number in (0, 3155760000], but",
        ),
        ({'actions': ACTION}, ValueError, "'actions' must not tell of 'label' where 'columns' hav"),
        (
            {'actions': {key: ACTION[key] for key in ('path', 'columns', 'within')}},
            ValueError,
            "'actions' must say which action is the 'label' or the 'conversion', or",
        ),
    ],
)
def test_bad_schemas(changes, error, expected):
    with pytest.raises(error) as raised:
        LogSchema(**({'path': 'log.csv', 'columns': PLAIN} | changes))
    assert expected in str(raised.value)


def test_a_log_of_clicks_alone_says_so(tmp_path):
    path = write(tmp_path / 'log.csv', 'u,i,ts\na,1,1\na,2,2\n')
    columns = {'user': 'u', 'item': 'i', 'time': 'ts'}
    with pytest.warns(UserWarning, match=r'Each of the 2 rows is a click.*SampleNegatives'):
        EventLog(tmp_path / 'root', path, columns, log=False)


def test_later_rows_change_no_attribute(tmp_path):
    columns = PLAIN | {'user_attributes': ['age'], 'item_texts': ['title']}
    early = 'a,1,5,1,30,Tea\n'
    found = []
    for number, rows in enumerate([early, early + 'a,1,8,1,31,Coffee\n']):
        path = write(tmp_path / f'{number}.csv', f'u,i,ts,click,age,title\n{rows}b,2,9,0,7,\n')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dataset = EventLog(tmp_path / f'{number}', path, columns, log=False)
        ages = [dataset.names['age'][code] for code in dataset[0]['user'].age]
        found.append((ages, dataset.texts))
    assert found == [(['30', '7'], ['Tea', 'unknown'])] * 2
