from collections.abc import Mapping

import duckdb

from mag.datasets._delimited import DelimitedScan, create_table, line_of_row, read_header
from mag.datasets._read_errors import bad_value
from mag.datasets._sql import quote


def create_attributes(
    connection: duckdb.DuckDBPyConnection, node: str, select: str, scan: DelimitedScan
) -> None:
    r"""Creates the table of a node type's attributes from a file of one row
    an id.
    """
    create_table(connection, f'{node}_attribute', select, scan)
    repeated = connection.execute(f"""
        SELECT id, count(*) FROM {node}_attribute
        GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1
    """).fetchall()
    if repeated:
        name, count = repeated[0]
        raise ValueError(f'{scan.path} must have one row for the {node} {name}, but got {count}.')


def check_table(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    path: str,
    columns: Mapping[str, str],
    checks: Mapping[str, tuple[str, str]],
) -> None:
    r"""Raises for the first bad value in a table that holds a CSV or Parquet
    file in its order.

    Args:
        connection: The connection of the table.
        table (str): The table.
        path (str): The file.
        columns (dict): The columns that were read from it.
        checks (dict): From the name of a column to the SQL of what must hold
            in every row and the SQL of what was expected.
    """
    bad = ', '.join(f'min(rowid) FILTER (({holds}) IS NOT TRUE)' for holds, _ in checks.values())
    rows = connection.execute(f'SELECT {bad} FROM {table}').fetchall()[0]
    for (column, (_, expected)), row in zip(checks.items(), rows):
        if row is not None:
            value, expected = connection.execute(
                f'SELECT {column}, {expected} FROM {table} WHERE rowid = {row}'
            ).fetchall()[0]
            raise bad_row(path, row, columns, column, value, expected)


def bad_row(
    path: str,
    row: int,
    columns: Mapping[str, str],
    column: str,
    value: str | int | None,
    expected: str,
) -> ValueError:
    r"""The error that says on which line of a CSV file, or in which row of a
    Parquet file, a column holds what it must not.
    """
    place = f'row {row + 1}'
    if not path.endswith('.parquet'):
        delimiter, _ = read_header(path, tuple(columns))
        place = f'line {line_of_row(path, row, delimiter)}'
    found = 'nothing' if value in (None, '') else repr(value)
    return ValueError(bad_value(f'{path}, {place}', column, found, expected))


def checked(name: str, condition: str, expected: str, path: str, *keys: str) -> str:
    r"""Writes the SQL that gives the column :obj:`name` where
    :obj:`condition` holds, and else raises and names the row by its
    :obj:`keys`.
    """
    row = ", ', ', ".join(f"'{key} ', {key}" for key in keys)
    return (
        f'CASE WHEN {condition} THEN {name} ELSE error(concat('
        f'{quote(f"{path}: column {name!r} must hold {expected}, but got ")}, {name}, '
        f"' where ', {row}, '.')) END"
    )


def checked_flag(name: str, path: str, *keys: str) -> str:
    r"""Writes the SQL that gives the column :obj:`name`, of type
    :obj:`FLAG`, or raises and names the row by its :obj:`keys`.
    """
    return checked(name, f'{name} <= 1', '0 or 1', path, *keys)
