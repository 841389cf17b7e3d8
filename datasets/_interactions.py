import os.path as osp
from functools import partial

import duckdb

from mag.datasets._delimited import create_table, place_of_row, read_header, scan_csv
from mag.datasets._parquet import parquet_columns, reading_parquet, scan_parquet
from mag.datasets._sql import FLAG, INTEGERS, quote
from mag.datasets._values import Rule, check_table

_REQUIRED = ('user', 'item')
_COLUMNS = {'user': 'BIGINT', 'item': 'BIGINT', 'time': 'BIGINT', 'label': FLAG, 'split': 'VARCHAR'}
_WHOLE = ((*INTEGERS, 'UBIGINT'), 'whole numbers')
_PARQUET_KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    'user': _WHOLE,
    'item': _WHOLE,
    'time': _WHOLE,
    'label': ((*INTEGERS, 'UBIGINT', 'BOOLEAN', 'FLOAT', 'DOUBLE'), '0 or 1'),
    'split': (('VARCHAR',), 'words'),
}
#: The splits, and how files call them.
SPLITS = {
    'train': ('trn', 'train'),
    'val': ('val', 'valid', 'validation'),
    'test': ('tst', 'test'),
}


def read_interactions(
    connection: duckdb.DuckDBPyConnection, path: str, num_rows: int, features: str
) -> list[str]:
    r"""Creates the table :obj:`interaction` from a CSV or Parquet file, in its
    order, with :obj:`split` as a number, the place in :obj:`SPLITS`.

    Args:
        connection: The connection of the table.
        path (str): The file.
        num_rows (int): The number of rows that files of features have.
        features (str): One of them, for the message.

    Returns:
        The columns of the table: user, item, and those of time, label and
        split that the file has.

    Raises:
        ValueError: If a column is missing or of another type, or holds a bad
            value; the message has the line or row.
    """
    read_file = _read_parquet if path.endswith('.parquet') else _read_csv
    columns = read_file(connection, path)
    words = [word for words in SPLITS.values() for word in words]
    rules = [
        Rule('user', 'user IS NOT NULL', 'a whole number'),
        Rule(
            'item',
            f'item BETWEEN 0 AND {num_rows - 1}',
            f'an item from 0 to {num_rows - 1}, a row of {osp.basename(features)}',
        ),
        Rule('time', 'time IS NOT NULL', 'a whole number'),
        Rule('label', 'label IN (0, 1)', '0 or 1'),
        Rule('split', f'split IN ({", ".join(map(quote, words))})', f'one of {", ".join(words)}'),
    ]
    check_table(
        connection,
        'interaction',
        [rule for rule in rules if rule.column in columns],
        partial(place_of_row, path, columns),
    )
    if 'split' in columns:
        cases = ' '.join(
            f'WHEN {quote(word)} THEN {code}'
            for code, words in enumerate(SPLITS.values())
            for word in words
        )
        connection.execute(
            f'ALTER TABLE interaction ALTER split TYPE BIGINT USING CASE split {cases} END'
        )
    return columns


def _read_csv(connection: duckdb.DuckDBPyConnection, path: str) -> list[str]:
    _, header = read_header(path, _REQUIRED)
    types = {name: kind for name, kind in _COLUMNS.items() if name in header}
    scan = scan_csv(path, types, tuple(types))
    create_table(connection, 'interaction', f'SELECT {", ".join(types)} FROM {scan}', scan)
    return list(types)


def _read_parquet(connection: duckdb.DuckDBPyConnection, path: str) -> list[str]:
    kinds = parquet_columns(connection, path, _PARQUET_KINDS, _REQUIRED)
    columns = [name for name in _COLUMNS if name in kinds]
    casts = ', '.join(
        f'{name}::{"DOUBLE" if name == "label" else _COLUMNS[name]} AS {name}' for name in columns
    )
    with reading_parquet(path):
        connection.execute(
            f'CREATE OR REPLACE TABLE interaction AS SELECT {casts} FROM {scan_parquet(path)}'
        )
    return columns
