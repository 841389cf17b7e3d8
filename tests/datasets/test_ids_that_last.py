import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch

from mag.datasets import ClickDataset, EventLog, IdMap, LogTable

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
