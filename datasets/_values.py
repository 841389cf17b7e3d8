from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import duckdb

from mag.datasets._delimited import DelimitedScan, create_table
from mag.datasets._read_errors import bad_value, show
from mag.datasets._sql import count_rows, quote


class Rule(NamedTuple):
    r"""What a column must hold in every row.

    Args:
        column (str): The column of a table.
        holds (str): The SQL that is true where it does; what is unknown is bad.
        expected (str): What it must hold, with other columns of the row in braces.
    """

    column: str
    holds: str
    expected: str


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
    rules: Sequence[Rule],
    locate: Callable[[int], str],
    titles: Mapping[str, str] | None = None,
) -> None:
    r"""Raises for the first row that breaks the first broken rule of a table.

    Args:
        connection: The connection of the table.
        table (str): The table, or SQL that gives its rows and their :obj:`rowid`.
        rules (list): What must hold.
        locate (callable): From the number of a row, from 0, to where it stands in the files.
        titles (dict, optional): What the message calls a column, where that is not its name.

    Raises:
        ValueError: If a rule is broken.
    """
    holds = ' AND '.join(f'({rule.holds})' for rule in rules)
    # One question for all, which is asked again of each rule where the answer is bad.
    if not count_rows(connection, f'{table} WHERE ({holds}) IS NOT TRUE'):
        return
    for rule in rules:
        broken = f'{table} WHERE ({rule.holds}) IS NOT TRUE'
        num_broken = count_rows(connection, broken)
        if num_broken:
            first = connection.execute(f'SELECT rowid, * FROM {broken} ORDER BY rowid LIMIT 1')
            row = dict(zip((name for name, *_ in first.description), first.fetchall()[0]))
            expected = rule.expected
            for name, value in row.items():
                expected = expected.replace(f'{{{name}}}', str(value))
            raise bad_value(
                locate(row['rowid']),
                (titles or {}).get(rule.column, repr(rule.column)),
                show(row[rule.column]),
                expected,
                num_broken - 1,
            )


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
