import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from torch_geometric.transforms import Compose

from mag.datasets import ClickDataset, EventLog, IdMap, LogSchema, LogTable

COLUMNS = {'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind'}
OLD = [('u5', 30, 1, 1, 'tea'), ('u2', 10, 2, 0, 'rice'), ('u2', 20, 3, 1, None)]
NEW = [('u3', 20, 4, 1, 'salt'), ('u9', 5, 5, 0, 'oats'), ('u2', 10, 6, 1, 'bread')]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., EventLog]:
    def read(
        name: str, rows: Sequence[tuple[Any, ...]], types: str = 'VARCHAR, BIGINT', **kwargs: Any
    ) -> EventLog:
        user, item = types.split(', ')
        path = tmp_path / f'{name}.parquet'
        with duckdb.connect() as connection:
            connection.execute(
                f'CREATE TABLE log (uid {user}, sku {item}, ts BIGINT, clicked INTEGER, '
                f'kind VARCHAR)'
            )
            connection.executemany('INSERT INTO log VALUES (?, ?, ?, ?, ?)', list(rows))
            connection.execute(f"COPY log TO '{path}' (FORMAT parquet)")
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'None of the|.* items have rows')
            return EventLog(tmp_path / name, path, COLUMNS, log=False, **kwargs)

    return read


def names_of(dataset: ClickDataset, node: str = 'item') -> dict[Any, str]:
    r"""The category of each item, by raw id."""
    code = dataset[0][node].category.tolist()
    return dict(zip(dataset.raw_ids[node].tolist(), (dataset.names['category'][c] for c in code)))


@pytest.mark.parametrize('rows', [OLD + NEW, NEW], ids=['old and new rows', 'new rows'])
def test_later_export_keeps_nodes_and_categories(
    rows: list[tuple[Any, ...]], read: Callable[..., EventLog]
) -> None:
    old = read('old', OLD)
    assert old.raw_ids['user'].tolist() == ['u2', 'u5']
    assert old.raw_ids['item'].tolist() == [10, 20, 30]
    assert old.names['category'] == ['unknown', 'rice', 'tea']
    new = read('new', rows, ids=old)
    # As before, and then what is new in ascending order.
    assert new.raw_ids['user'].tolist() == ['u2', 'u5', 'u3', 'u9']
    assert new.raw_ids['item'].tolist() == [10, 20, 30, 5]
    data = new[0]
    assert (data['user'].num_nodes, data['item'].num_nodes) == (4, 4)
    users, items = new.id_maps['user'], new.id_maps['item']
    expected = [users.encode([row[0] for row in rows]), items.encode([row[1] for row in rows])]
    assert data['user', 'clicks', 'item'].edge_label_index.tolist() == np.array(expected).tolist()
    # Item 20 was unknown; what is told of item 10 later changes nothing, and 'bread' is nobody's.
    first = {20: 'unknown'} if rows[0] == OLD[0] else {20: 'salt'}
    assert names_of(new) == {10: 'rice', 30: 'tea', 5: 'oats'} | first
    assert new.names['category'][:3] == ['unknown', 'rice', 'tea']
    assert data['item'].num_category == len(new.names['category'])
    assert 'bread' not in new.names['category']
    assert data.id_maps['user'].startswith(old[0].id_maps['user'] + ' 4:')
    assert new.id_maps['category'].lineage == data.id_maps['category']


def test_without_ids_they_are_ranked_anew(read: Callable[..., EventLog]) -> None:
    old, new = read('old', OLD), read('new', OLD + NEW)
    assert new.raw_ids['item'].tolist() == [5, 10, 20, 30]
    assert len(new[0].id_maps['item'].split()) == 1
    assert new[0].id_maps['item'] != old[0].id_maps['item']
    assert IdMap([30, 10, 20]).lineage == old[0].id_maps['item']


@pytest.mark.parametrize('form', ['folder', 'maps', 'saved maps'])
def test_ids_are_those_of_a_folder_or_of_maps(
    form: str, read: Callable[..., EventLog], tmp_path: Path
) -> None:
    old = read('old', OLD)
    ids: Any = {'folder': tmp_path / 'old', 'maps': old.id_maps}.get(form)
    if form == 'saved maps':
        ids = {}
        for name, id_map in old.id_maps.items():
            id_map.save(tmp_path / f'{name}.parquet')
            ids[name] = IdMap.load(tmp_path / f'{name}.parquet')
    new, expected = read('new', OLD + NEW, ids=ids), read('expected', OLD + NEW, ids=old)
    assert new[0].id_maps == expected[0].id_maps
    # With all rows the categories are those of the first rows in any case.
    assert names_of(new) == names_of(expected)
    assert torch.equal(new[0]['item'].category, expected[0]['item'].category)


def test_ids_grow_again_and_again(read: Callable[..., EventLog]) -> None:
    first = read('first', OLD)
    second = read('second', NEW, ids=first)
    third = read('third', [('u0', 1, 9, 1, 'tea')], ids=second)
    assert third.raw_ids['user'].tolist() == ['u2', 'u5', 'u3', 'u9', 'u0']
    assert names_of(third) == {10: 'rice', 20: 'salt', 30: 'tea', 5: 'oats', 1: 'tea'}
    assert len(third[0].id_maps['user'].split()) == 3
    # Nothing is new.
    same = read('same', OLD, ids=third)
    assert same[0].id_maps == third[0].id_maps
    assert same[0]['user'].num_nodes == 5


def test_numbers_become_texts_where_one_is_none(read: Callable[..., EventLog]) -> None:
    old = read('old', [(7, 1, 1, 1, 'tea'), (12, 2, 2, 1, 'tea')], 'BIGINT, INTEGER')
    assert old.raw_ids['user'].tolist() == [7, 12]
    new = read('new', [('12', 2, 1, 1, 'tea'), ('A7', 3, 2, 1, 'tea')], ids=old)
    assert new.raw_ids['user'].tolist() == ['7', '12', 'A7']
    assert new[0].id_maps['user'].startswith(f'{old[0].id_maps["user"]} ')
    assert new[0]['user', 'clicks', 'item'].edge_label_index.tolist() == [[1, 2], [1, 2]]
    # And numbers again: in a part of the log that has no other ids.
    later = read('later', [(12, 2, 1, 1, 'tea'), (8, 3, 2, 1, 'tea')], 'BIGINT, BIGINT', ids=new)
    assert later.raw_ids['user'].tolist() == ['7', '12', 'A7', '8']
    assert later[0]['user', 'clicks', 'item'].edge_label_index.tolist() == [[1, 3], [1, 2]]


@pytest.mark.parametrize(
    ('kind', 'ids'),
    [
        ('UUID', ['00000000-0000-0000-0000-000000000007', 'f0000000-0000-0000-0000-000000000007']),
        ('DATE', ['2024-01-02', '2023-01-02']),
        ('TIMESTAMP', ['2024-01-02 03:04:05.6', '2023-01-02 00:00:00']),
        ('TIMESTAMP WITH TIME ZONE', ['2024-01-02 03:04:05+00', '2023-01-02 00:00:00+00']),
        ('DOUBLE', [1.5, -2.0]),
        ('BOOLEAN', [True, False]),
        ('BLOB', [b'\\xff', b'a']),
        ('UBIGINT', [2**63 + 1, 5]),
    ],
)
def test_ids_of_any_type_last(kind: str, ids: list[Any], read: Callable[..., EventLog]) -> None:
    old = read('old', [(ids[0], 1, 1, 1, 'tea')], f'{kind}, BIGINT')
    new = read('new', [(id, 1, 1, 1, 'tea') for id in ids], f'{kind}, BIGINT', ids=old)
    clicks = new[0]['user', 'clicks', 'item']
    assert clicks.edge_label_index[0].tolist() == [0, 1]
    assert new.raw_ids['user'][:1].tolist() == old.raw_ids['user'].tolist()
    assert new.id_maps['user'].encode(new.raw_ids['user']).tolist() == [0, 1]
    assert new.id_maps['user'].encode(old.raw_ids['user']).tolist() == [0]


class Shop(ClickDataset):
    r"""A log with contexts, queries and attributes of both node types."""

    raw_file_names = ['shop.csv']
    arguments: dict[str, Any] = {}

    def __init__(self, root: Path, rows: list[str], **kwargs: Any) -> None:
        (root / 'raw').mkdir(parents=True, exist_ok=True)
        text = '\n'.join(['user,item,time,label,weekday,age,query,land,title', *rows])
        (root / 'raw' / 'shop.csv').write_text(text)
        super().__init__(root, log=False, **kwargs)

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        connection.execute(
            f"""
            CREATE OR REPLACE TABLE log AS
            SELECT * REPLACE (string_split(query, ' ') AS query)
            FROM read_csv('{self.raw_paths[0]}', types={{'query': 'VARCHAR', 'age': 'INTEGER'}});
            CREATE OR REPLACE TABLE user_attribute AS
            SELECT user AS id, any_value(age) AS age FROM log GROUP BY user;
            CREATE OR REPLACE TABLE item_attribute AS
            SELECT item AS id, any_value(land) AS land, any_value(title) AS title
            FROM log GROUP BY item
            """
        )
        return LogTable(contexts=('weekday',), query='query', descriptions=('title',))


def test_contexts_queries_and_words_last(tmp_path: Path) -> None:
    old = Shop(tmp_path / 'old', ['1,1,1,1,tue,30,tea pot,DE,Pot', '2,2,2,0,sat,9,,FR,Jar'])
    new = Shop(
        tmp_path / 'new',
        ['2,3,3,1,mon,8,hot tea,AT,Cup', '3,2,4,1,sat,10,pot,AT,Jug', '3,4,5,1,sun,,cup,,'],
        ids=old,
    )
    assert old.names['weekday'] == ['sat', 'tue']
    assert new.names['weekday'] == ['sat', 'tue', 'mon', 'sun']
    clicks = new[0]['user', 'clicks', 'item']
    assert clicks.edge_label_weekday.tolist() == [2, 0, 3]
    assert clicks.num_weekday == 4
    assert old.names['query'] == ['', 'pot', 'tea']
    assert new.names['query'] == ['', 'pot', 'tea', 'cup', 'hot']
    assert clicks.edge_label_query.tolist() == [[4, 2], [1, -1], [3, -1]]
    assert clicks.num_query == 5
    assert new.names['age'] == ['9', '30', '10']
    assert new.names['land'] == ['DE', 'FR', 'unknown', 'AT']
    lands = [new.names['land'][code] for code in new[0]['item'].land.tolist()]
    assert lands == ['DE', 'FR', 'AT', 'unknown']
    assert new.describe('item')['title'].tolist() == ['Pot', 'Jar', 'Cup', None]
    assert sorted(new[0].id_maps) == ['age', 'item', 'land', 'query', 'user', 'weekday']


def test_cache_knows_its_ids(read: Callable[..., EventLog], tmp_path: Path) -> None:
    old, other = read('old', OLD), read('other', NEW)
    new = read('new', OLD + NEW, ids=old)
    again = read('new', OLD + NEW, ids=tmp_path / 'old')
    assert torch.equal(
        again[0]['user', 'clicks', 'item'].edge_index, new[0]['user', 'clicks', 'item'].edge_index
    )
    for ids in (None, other):
        with pytest.raises(ValueError, match="does not fit: ids was {'user': '2:"):
            read('new', OLD + NEW, ids=ids)
    assert read('new', OLD + NEW, ids=other, force_reload=True).raw_ids['item'][0] == 5


def test_strangers_are_told(read: Callable[..., EventLog], tmp_path: Path) -> None:
    old = read('old', OLD)
    read('new', [('x1', 10, 1, 1, 'tea')])
    with pytest.warns(UserWarning, match=r"None of the 1 users of the log, such as 'x1', is among"):
        EventLog(tmp_path / 'w', tmp_path / 'new.parquet', COLUMNS, log=False, ids=old)


def test_bad_ids_are_refused(read: Callable[..., EventLog], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='read before, but there is none in .*nowhere'):
        read('new', NEW, ids=tmp_path / 'nowhere')
    for ids in (7, {'user': [1, 2]}):
        with pytest.raises(TypeError, match=r"'ids' must be an earlier dataset, its folder or a"):
            read('new', NEW, ids=ids)
    with pytest.raises(ValueError, match="of 'item' or of both, but got 'users'."):
        read('new', NEW, ids={'users': IdMap([1])})
    old = read('old', [(1.5, 1, 1, 1, 'tea')], 'DOUBLE, BIGINT')
    with pytest.raises(TypeError, match="'ids' must have users as the log has: .*kind 'float'"):
        read('new', NEW, ids=old)


TAGS = {'user': 'u', 'item': 'i', 'time': 'ts'}


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., EventLog]:
    r"""Writes and reads a log of clicks, and a table of its items where there is one."""

    def export(
        name: str,
        log: str,
        side: str | None = None,
        columns: dict[str, Any] | None = None,
        quiet: bool = True,
        **kwargs: Any,
    ) -> EventLog:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / 'log.csv').write_text(log)
        items = None
        if side is not None:
            (folder / 'items.csv').write_text(side)
            items = {'path': folder / 'items.csv', 'columns': {'id': 'i'} | (columns or {})}
        roles = TAGS if side is not None else TAGS | (columns or {})
        schema = LogSchema(folder / 'log.csv', roles, items=items)
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter('ignore')
            return EventLog(folder, schema, log=False, **kwargs)

    return export


def values_of(dataset: EventLog, name: str = 'tags') -> dict[Any, list[str]]:
    r"""The values of each item, by raw id: the first, and those that it has a 1 for."""
    item, names = dataset[0]['item'], dataset.names[name]
    assert item[f'num_{name}'] == len(names) == item[f'x_{name}'].size(1)
    assert set(item[f'x_{name}'].unique().tolist()) <= {0, 1}
    return {
        id: [names[code]] + [names[place] for place in row.nonzero().view(-1).tolist()]
        for id, code, row in zip(dataset.raw_ids['item'].tolist(), item[name], item[f'x_{name}'])
    }


OLD_TAGS = {1: 'y|x', 2: 'z', 3: ''}
NEW_TAGS = {1: 'w|x', 2: 'z', 3: 'v|y', 4: 'u|x'}


def log_of(tags: dict[int, str], *, told: bool) -> str:
    rows = [f'a,{item},{item}' + (f',{tag}' if told else '') for item, tag in tags.items()]
    return '\n'.join(['u,i,ts' + (',tags' if told else ''), *rows]) + '\n'


def side_of(tags: dict[int, str]) -> str:
    return '\n'.join(['i,tags', *(f'{item},{tag}' for item, tag in tags.items())]) + '\n'


@pytest.mark.parametrize('source', ['log', 'table'])
@pytest.mark.parametrize('form', ['dataset', 'maps'])
def test_several_values_keep_their_columns(
    source: str, form: str, export: Callable[..., EventLog]
) -> None:
    role = 'item_attributes' if source == 'log' else 'attributes'
    columns = {role: ['tags'], 'separators': {'tags': '|'}}
    datasets: list[EventLog] = []
    for name, tags in (('old', OLD_TAGS), ('new', NEW_TAGS)):
        ids: Any = (datasets[0] if form == 'dataset' else datasets[0].id_maps) if datasets else None
        side = side_of(tags) if source == 'table' else None
        datasets.append(export(name, log_of(tags, told=source == 'log'), side, columns, ids=ids))
    old, new = datasets
    assert old.names['tags'] == ['unknown', 'x', 'y', 'z']
    assert values_of(old) == {1: ['y', 'x', 'y'], 2: ['z', 'z'], 3: ['unknown', 'unknown']}
    assert (
        old[0].id_maps['tags']
        == old.id_maps['tags'].lineage
        == IdMap.in_order(['unknown', 'x', 'y', 'z']).lineage
    )
    found = values_of(new)
    assert found[2] == ['z', 'z'] and found[3] == ['v', 'y', 'v'] and found[4] == ['u', 'x', 'u']
    if form == 'dataset':
        # What is told of item 1 later changes nothing, and 'w' is nobody's.
        assert new.names['tags'] == ['unknown', 'x', 'y', 'z', 'u', 'v']
        assert found[1] == ['y', 'x', 'y']
        assert torch.equal(new[0]['item'].x_tags[:2, :4], old[0]['item'].x_tags[:2])
    else:
        assert new.names['tags'] == ['unknown', 'x', 'y', 'z', 'u', 'v', 'w']
        assert found[1] == ['w', 'x', 'w']
    assert new[0].id_maps['tags'].startswith(f'{old[0].id_maps["tags"]} {len(new.names["tags"])}:')
    assert new.id_maps['tags'].lineage == new[0].id_maps['tags']


def test_several_values_last_where_one_log_has_single_ones(export: Callable[..., EventLog]) -> None:
    several = {'item_attributes': ['tags'], 'separators': {'tags': '|'}}
    old = export('old', log_of({1: 'x', 2: 'z'}, told=True), columns={'item_attributes': ['tags']})
    assert 'x_tags' not in old[0]['item']
    new = export('new', log_of({3: 'y|x', 2: ''}, told=True), columns=several, ids=old)
    assert values_of(new) == {1: ['x', 'x'], 2: ['z', 'z'], 3: ['y', 'x', 'y']}
    single = {'item_attributes': ['tags']}
    later = export('later', log_of({4: 'w', 5: 'x'}, told=True), columns=single, ids=new)
    assert values_of(later) == values_of(new) | {4: ['w', 'w'], 5: ['x', 'x']}
    # A log that tells none.
    last = export('last', log_of({6: ''}, told=False), columns={}, ids=later)
    assert values_of(last) == values_of(later) | {6: ['unknown', 'unknown']}
    assert later.names['tags'] == ['x', 'z', 'y', 'w']


def test_too_many_values_are_refused_also_where_they_grew(export: Callable[..., EventLog]) -> None:
    columns = {'item_attributes': ['tags'], 'separators': {'tags': '|'}}
    half = '|'.join(f'a{number}' for number in range(600))
    old = export('old', log_of({1: half}, told=True), columns=columns)
    with pytest.raises(ValueError, match=r"of 'tags' must be at most 1,000.*x_tags, but got 1,200"):
        export('new', log_of({2: half.replace('a', 'b')}, told=True), columns=columns, ids=old)


SIDE = {'attributes': ['kind'], 'modalities': ['img'], 'separators': {'img': ' '}}


def described(dataset: EventLog) -> dict[Any, Any]:
    r"""By raw id the category, the features and whether there are any."""
    item = dataset[0]['item']
    kinds = [dataset.names['kind'][code] for code in item.kind]
    rows = zip(kinds, item.x_img.tolist(), item.has_img.tolist(), strict=True)
    return dict(zip(dataset.raw_ids['item'].tolist(), rows, strict=True))


OLD_SIDE = 'i,kind,img\n1,tea,1 2\n2,,\n3,rice,5 6\n4,,7 8\n'


def test_a_later_table_tells_of_items_without_rows(export: Callable[..., EventLog]) -> None:
    old = export('old', 'u,i,ts\na,1,1\na,2,2\na,3,3\na,4,4\n', OLD_SIDE, SIDE)
    assert described(old) == {
        1: ('tea', [1, 2], True),
        2: ('unknown', [0, 0], False),
        3: ('rice', [5, 6], True),
        4: ('unknown', [7, 8], True),
    }
    side = 'i,kind,img\n0,oats,9 9\n1,bread,3 4\n2,salt,5 6\n4,tea,\n'
    new = export('new', 'u,i,ts\nb,0,5\n', side, SIDE, ids=old)
    # None of the former has a row. The later table tells features; a category is that of old.
    assert described(new) == {
        1: ('tea', [3, 4], True),
        2: ('salt', [5, 6], True),
        3: ('rice', [5, 6], True),
        4: ('tea', [7, 8], True),
        0: ('oats', [9, 9], True),
    }
    assert 'bread' not in new.names['kind']
    # Maps alone know no features and no categories.
    maps = export('maps', 'u,i,ts\nb,0,5\n', side, SIDE, ids=old.id_maps)
    assert described(maps) == {
        1: ('bread', [3, 4], True),
        2: ('salt', [5, 6], True),
        3: ('unknown', [0, 0], False),
        4: ('tea', [0, 0], False),
        0: ('oats', [9, 9], True),
    }


def test_who_is_told_nothing_is_named(
    export: Callable[..., EventLog], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    log = 'u,i,ts,click\na,1,1,1\na,2,2,0\n'
    old = export('old', log, 'i,kind,img\n1,tea,1 2\n2,rice,3 4\n', SIDE)
    later = 'u,i,ts\na,8,5\na,9,5\n'
    recwarn.clear()
    new = export('new', later, 'i,kind,img\n9,tea,1 1\n', SIDE, quiet=False, ids=old)
    said = [str(warning.message) for warning in recwarn if 'no row in' in str(warning.message)]
    assert said == [
        f'1 of 4 items have no row in {tmp_path / "new" / "items.csv"}, such as 8: what it tells '
        f"is 'unknown' of them, and features are 0."
    ]
    assert described(new)[2] == ('rice', [3, 4], True)
    # What the former table did not tell, nobody has kept.
    columns = SIDE | {'attributes': ['kind', 'brand']}
    recwarn.clear()
    export('more', later, 'i,kind,img,brand\n9,tea,1 1,x\n', columns, quiet=False, ids=old)
    assert any('3 of 4 items have no row in' in str(warning.message) for warning in recwarn)


def test_features_that_cannot_be_kept_are_told(export: Callable[..., EventLog]) -> None:
    old = export('old', 'u,i,ts\na,1,1\na,2,2\n', 'i,kind,img\n1,tea,1 2\n2,rice,3 4\n', SIDE)
    with pytest.warns(
        UserWarning,
        match=r"1 items have no 'img' but in the earlier log, where it is 2 numbers and not 3: its",
    ):
        new = export(
            'new', 'u,i,ts\na,1,1\n', 'i,kind,img\n1,tea,1 2 3\n', SIDE, quiet=False, ids=old
        )
    assert described(new) == {1: ('tea', [1, 2, 3], True), 2: ('rice', [0, 0, 0], False)}
    # A table without features, and a log without a table, take nothing away.
    side = 'i,kind,img\n1,tea,\n2,rice,\n3,oats,\n'
    empty = export('empty', 'u,i,ts\na,3,1\n', side, SIDE, ids=old)
    assert described(empty) == {
        1: ('tea', [1, 2], True),
        2: ('rice', [3, 4], True),
        3: ('oats', [0, 0], False),
    }
    none = export('none', 'u,i,ts\na,3,1\n', columns={}, ids=empty)
    assert described(none) == described(empty) | {3: ('oats', [0, 0], False)}


def test_ids_of_a_table_match_where_numbers_become_texts(export: Callable[..., EventLog]) -> None:
    old = export('old', 'u,i,ts\na,7,1\n', 'i,kind,img\n7,tea,1 2\n', SIDE)
    side = 'i,kind,img\n7,tea,3 4\nA7,rice,5 6\n'
    new = export('new', 'u,i,ts\na,A7,1\n', side, SIDE, ids=old)
    assert described(new) == {'7': ('tea', [3, 4], True), 'A7': ('rice', [5, 6], True)}
    later = export('later', 'u,i,ts\na,7,1\n', 'i,kind,img\n7,tea,7 8\n', SIDE, ids=new)
    assert described(later) == {'7': ('tea', [7, 8], True), 'A7': ('rice', [5, 6], True)}


def test_what_a_transform_may_have_changed_is_not_kept(export: Callable[..., EventLog]) -> None:
    columns = SIDE | {'attributes': ['kind', 'tags'], 'separators': {'img': ' ', 'tags': '|'}}
    log, side = 'u,i,ts\na,1,1\n', 'i,kind,img,tags\n1,tea,1 2,y|x\n'
    old = export('old', log, side, columns, pre_transform=Compose([]))
    new = export('new', 'u,i,ts\na,2,1\n', side.replace('\n1', '\n2'), columns, ids=old)
    assert described(new) == {1: ('tea', [0, 0], False), 2: ('tea', [1, 2], True)}
    # Ones and zeros are seen to be what they were.
    assert values_of(new) == {1: ['y', 'x', 'y'], 2: ['y', 'x', 'y']}


@pytest.mark.parametrize('kind', ['DATE', 'TIMESTAMP', 'TIMESTAMP WITH TIME ZONE'])
def test_times_are_ids_of_a_table(kind: str, tmp_path: Path) -> None:
    days, datasets = ['2024-01-02', '2023-01-02'], []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, extra in (('log', '1 AS u, 1 AS ts'), ('items', "'tea' AS kind")):
            rows = f'SELECT day::{kind} AS i, {extra} FROM (SELECT unnest({days[:number]}) AS day)'
            duckdb.sql(f"COPY ({rows}) TO '{folder / name}.parquet' (FORMAT parquet)")
        items = {'path': folder / 'items.parquet', 'columns': {'id': 'i', 'attributes': ['kind']}}
        schema = LogSchema(folder / 'log.parquet', TAGS, items=items)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Each of|.*None of')
            ids = datasets[0] if datasets else None
            datasets.append(EventLog(folder, schema, log=False, ids=ids))
    new = datasets[1]
    assert [new.names['kind'][code] for code in new[0]['item'].kind] == ['tea', 'tea']
