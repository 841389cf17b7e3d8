from glob import escape

import duckdb

#: The type of a column of zeros and ones; a BOOLEAN would take any number for true.
FLAG = 'UTINYINT'


def quote(text: str) -> str:
    r"""Writes :obj:`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    r"""Writes :obj:`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def one_file(path: str) -> str:
    # DuckDB takes brackets and stars in a path for a pattern, and `user=7/` for a column.
    return f'[{quote(escape(path))}], hive_partitioning=false'


def count_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.execute(f'SELECT count(*) FROM {table}').fetchall()[0][0]
