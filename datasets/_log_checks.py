r"""What must be true of the table of any log."""

import duckdb

from mag.datasets._sql import TIMES, base_kind, column_kinds, count_rows
from mag.datasets.log_table import LogTable

_REQUIRED = ('user', 'item', 'time', 'label')


def check_log(
    connection: duckdb.DuckDBPyConnection, table: LogTable, reader: str, source: str
) -> None:
    r"""Raises unless the table :obj:`log` holds what :obj:`table` says, in every row.

    Args:
        connection: The connection of the table.
        table (LogTable): What it holds.
        reader (str): The class that has filled it.
        source (str): The files that it was read from.

    Raises:
        TypeError: If :obj:`table` is none, or times are of a type that is none.
        ValueError: If a column is missing, there are no rows, or one holds a bad value.
    """
    if not isinstance(table, LogTable):
        raise TypeError(f'{reader}.read must return a LogTable, but got {table!r}.')
    kinds = column_kinds(connection, 'log')
    if kinds and count_rows(connection, 'log') == 0:
        raise ValueError(f'{source} must hold rows of a log, but got none.')
    missing = [name for name in (*_REQUIRED, *table.columns) if name not in kinds]
    if missing:
        raise ValueError(
            f"{reader}.read must fill the table 'log' with a column "
            f'{" and ".join(map(repr, missing))}, but its columns are '
            f'{", ".join(map(repr, kinds)) or "none"}.'
        )
    times = [name for name in ('time', 'click_time', 'settled') if name in kinds]
    for name in times:
        if base_kind(kinds[name]) not in TIMES:
            raise TypeError(
                f'{reader}.read must fill the column {name!r} with numbers or timestamps, but got '
                f'{kinds[name]}.'
            )
    filled = [*_REQUIRED, *table.flags, *table.features, *times[1:]]
    filled += ['weight'] if 'weight' in kinds else []
    # Of a column, what holds where its value is bad, and what it must be.
    bad = [(name, f'log.{name} IS NULL', 'a value') for name in filled]
    bad += [(name, f'log.{name} NOT IN (0, 1)', '0 or 1') for name in ('label', *table.flags)]
    if 'click_time' in kinds:
        bad.append(('click_time', 'label = 1 AND click_time < time', "no time before 'time'"))
    if 'settled' in kinds:
        bad.append(('settled', 'settled < time', "no time before 'time'"))
    counts = ', '.join(f'count(*) FILTER ({is_bad})' for _, is_bad, _ in bad)
    found = connection.execute(f'SELECT {counts} FROM log').fetchall()[0]
    for (column, _, expected), count in zip(bad, found):
        if count:
            raise ValueError(
                f'{source}: column {column!r} of the log must hold {expected}, but got another in '
                f'{count:,} {"row" if count == 1 else "rows"}.'
            )
