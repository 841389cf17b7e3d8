from glob import escape

import duckdb

#: The type of a column of zeros and ones; a BOOLEAN would take any number for true.
FLAG = 'UTINYINT'

#: How many of a unit are a second.
TIME_UNITS = {'s': 1, 'ms': 1000, 'us': 1000**2, 'ns': 1000**3}

INTEGERS = ('TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'UTINYINT', 'USMALLINT', 'UINTEGER')
#: What has more digits than a BIGINT.
LONG_NUMBERS = ('DECIMAL', 'HUGEINT', 'UHUGEINT')
NUMBERS = (*INTEGERS, 'UBIGINT', 'FLOAT', 'DOUBLE', *LONG_NUMBERS)
TIMESTAMPS = (
    'TIMESTAMP',
    'TIMESTAMP WITH TIME ZONE',
    'TIMESTAMP_S',
    'TIMESTAMP_MS',
    'TIMESTAMP_NS',
)
TIMES = (*NUMBERS, *TIMESTAMPS, 'DATE')


def quote(text: str) -> str:
    r"""Writes :obj:`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    r"""Writes :obj:`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def one_file(path: str) -> str:
    r"""Writes the arguments by which DuckDB reads this file, whatever its name."""
    # DuckDB takes brackets and stars in a path for a pattern, and `user=7/` for a column.
    return f'[{quote(escape(path))}], hive_partitioning=false'


def in_seconds(column: str, kind: str, time_unit: str) -> str:
    r"""Writes the SQL that gives a column of times, one of :obj:`TIMES`, in whole seconds, those
    before 1970 rounded down, too.
    """
    if kind in TIMESTAMPS or kind == 'DATE':
        return f'floor(epoch({column}))::BIGINT'
    unit = TIME_UNITS[time_unit]
    if kind in ('FLOAT', 'DOUBLE'):
        return f'floor({column}::DOUBLE / {unit})::BIGINT'
    whole = f'floor({column})::BIGINT' if kind.startswith('DECIMAL') else f'{column}::BIGINT'
    # `//` rounds towards zero.
    return whole if unit == 1 else f'({whole} - ({whole} % {unit} + {unit}) % {unit}) // {unit}'


def base_kind(kind: str) -> str:
    r"""A type without the numbers of digits that a DECIMAL has behind it, such as
    :obj:`DECIMAL(18,3)`; of a list of them, nothing is taken away."""
    name, _, digits = kind.partition('(')
    return name if digits.endswith(')') else kind


def column_kinds(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    r"""The type of each column of a table, none if there is no such table."""
    try:
        described = connection.execute(f'DESCRIBE {table}').fetchall()
    except duckdb.CatalogException:
        return {}
    return {name: kind for name, kind, *_ in described}


def count_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    r"""The number of rows of a table."""
    return connection.execute(f'SELECT count(*) FROM {table}').fetchall()[0][0]


def rewrite(connection: duckdb.DuckDBPyConnection, table: str, select: str) -> None:
    r"""Puts the rows of a query, which may read the table, in the place of those of a table."""
    connection.execute(f'CREATE TABLE rewritten AS {select}')
    connection.execute(f'DROP TABLE {table}')
    connection.execute(f'ALTER TABLE rewritten RENAME TO {table}')


def drop_tables(connection: duckdb.DuckDBPyConnection) -> None:
    r"""Deletes all tables."""
    for (name,) in connection.execute('SELECT table_name FROM duckdb_tables()').fetchall():
        connection.execute(f'DROP TABLE {quote_name(name)}')
