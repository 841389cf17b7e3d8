r"""What must be true of the table of any log."""

import duckdb

from mag.datasets._sql import TIMES, base_kind, column_kinds, count_rows
from mag.datasets._values import Rule, check_table
from mag.datasets.log_table import LogTable

_REQUIRED = ('user', 'item', 'time', 'label')
_TIMES = ('time', 'click_time', 'settled')


def check_log(
    connection: duckdb.DuckDBPyConnection, table: LogTable, dataset: str, source: str
) -> None:
    r"""Raises unless the table :obj:`log` holds what :obj:`table` says, in every row.

    Args:
        connection: The connection of the table.
        table (LogTable): What it holds.
        dataset (str): The class that has filled it.
        source (str): The files that it was read from.

    Raises:
        TypeError: If :obj:`table` is none, or times are of a type that is none.
        ValueError: If a column is missing, there are no rows, or one holds a bad value.
    """
    if not isinstance(table, LogTable):
        raise TypeError(f'{dataset}.read must return a LogTable, but got {table!r}.')
    kinds = column_kinds(connection, 'log')
    if kinds and count_rows(connection, 'log') == 0:
        raise ValueError(f'{source} must hold rows of a log, but got none.')
    missing = [name for name in (*_REQUIRED, *table.columns) if name not in kinds]
    if missing:
        raise ValueError(
            f"{dataset}.read must fill the table 'log' with a column "
            f'{" and ".join(map(repr, missing))}, but its columns are '
            f'{", ".join(map(repr, kinds)) or "none"}.'
        )
    for name in _TIMES:
        if name in kinds and base_kind(kinds[name]) not in TIMES:
            raise TypeError(
                f'{dataset}.read must fill the column {name!r} with numbers or timestamps, but got '
                f'{kinds[name]}.'
            )
    rules = [rule for rule in _rules(table) if rule.column in kinds]
    check_table(connection, 'log', rules, lambda row: f'{source}, row {row + 1} of the log')


def _rules(table: LogTable) -> list[Rule]:
    filled = ('user', 'item', 'weight', *table.features, *_TIMES)
    return [
        *(Rule(name, f'log.{name} IS NOT NULL', 'a value') for name in filled),
        *(Rule(name, f'log.{name} IN (0, 1)', '0 or 1') for name in ('label', *table.flags)),
        Rule('click_time', 'label = 0 OR click_time >= time', "no time before 'time', {time}"),
        Rule('settled', 'settled >= time', "no time before 'time', {time}"),
    ]
