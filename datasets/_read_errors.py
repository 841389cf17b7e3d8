import re
from collections.abc import Collection
from typing import Any

import duckdb

from mag.datasets._content import end_sentence, open_bytes
from mag.datasets._sql import FLAG

LONG = 200
# DuckDB's own limit.
LONGEST_ROW = 2_000_000
EXPECTED = {
    'BIGINT': 'a whole number',
    'INTEGER': 'a whole number',
    FLAG: '0 or 1',
    'TIMESTAMP WITH TIME ZONE': 'a number or a time such as 2022-04-25 13:00:00',
}


def missing_columns(path: str, missing: list[str], columns: list[str]) -> ValueError:
    r"""The error that says which columns a file lacks and which it has."""
    found = ', '.join(map(shorten, columns))
    return ValueError(
        f'{path} must have a column {", ".join(map(repr, missing))}, but its columns are '
        f'{found if len(found) <= 3 * LONG else f"{found[: 3 * LONG]}.."}.'
    )


def check_repeated(path: str, wanted: Collection[str], columns: list[str]) -> None:
    r"""Raises if a file has more than one of a column."""
    for name in wanted:
        if columns.count(name) > 1:
            raise ValueError(
                f'{path} must have one column {name!r}, but got {columns.count(name)}.'
            )


def explain_read_error(error: duckdb.Error) -> ValueError:
    r"""Turns DuckDB's page about a row it cannot read into a sentence with
    file and line.
    """
    text = str(error)
    line = re.search(r'CSV Error on Line: (\d+)', text)
    path = re.search(r'^ +file = (.*)$', text, re.MULTILINE)
    if path is not None and 'state machine reached an invalid state' in text:
        return ValueError(_explain_line_ends(path.group(1)))
    if line is None or path is None:
        return ValueError(end_sentence(first_line(error).removeprefix('Invalid Input Error: ')))
    place = f'{path.group(1)}, line {line.group(1)}'
    original = re.search(
        r'Original Line: ?(.*?)\n\s*'
        r'(?:Error when|Expected Number|Invalid unicode|Value with|Maximum line)',
        text,
        re.DOTALL,
    )
    row = f' in the row {shorten(original.group(1).strip())}' if original else ''
    width = re.search(r'Expected Number of Columns: (\d+) Found: (\d+)', text)
    if width:
        return ValueError(
            f'{place}: a row must have {width.group(1)} columns, but got {width.group(2)}{row}.'
        )
    size = re.search(r'Maximum line size of \d+ bytes exceeded. Actual Size: ?(\d+)', text)
    if size:
        return ValueError(
            f'{place}: a row must have at most {LONGEST_ROW:,} bytes, but got '
            f'{int(size.group(1)):,}.'
        )
    column = re.search(r'Error when converting column "(.*?)"\.', text, re.DOTALL)
    if column:
        value = re.search(r'Could not convert string "(.*?)" to \'', text, re.DOTALL)
        kind = re.search(r'is being converted as type (.*)$', text, re.MULTILINE)
        return bad_value(
            place,
            repr(column.group(1)),
            f'{show(value and value.group(1))}{row}',
            EXPECTED.get(kind.group(1) if kind else '', 'a number'),
        )
    if 'Invalid unicode' in text:
        return ValueError(f'{place}: a row must be UTF-8, but got other bytes{row}.')
    if 'unterminated quote' in text:
        return ValueError(
            f'{place}: a row must close its quotes and have at most {LONGEST_ROW:,} bytes, but '
            f'got another{row}.'
        )
    return ValueError(end_sentence(f'{place}: {first_line(error)}{row}'))


def bad_value(place: str, title: str, found: str, expected: str, num_more: int = 0) -> ValueError:
    r"""The error that says where a column holds what it must not.

    Args:
        place (str): The file, and the line or row in it.
        title (str): What the column is called.
        found (str): What it holds.
        expected (str): What it must hold.
        num_more (int, optional): In how many more rows it does not.
    """
    rows = 'row' if num_more == 1 else 'rows'
    more = f' (and {num_more:,} more such {rows})' if num_more else ''
    return ValueError(f'{place}: column {title} must hold {expected}, but got {found}{more}.')


def show(value: Any) -> str:
    r"""Writes a value of a column, of a long text the start."""
    if value is None or value == '':
        return 'nothing'
    return shorten(value) if isinstance(value, str) else str(value)


def first_line(error: duckdb.Error) -> str:
    r"""What DuckDB says before it explains."""
    return str(error).strip().splitlines()[0]


def shorten(text: str) -> str:
    r"""Writes :obj:`text` in quotes, and of a long one the start."""
    return repr(text) if len(text) <= LONG else f'{text[:LONG]!r}...'


def _explain_line_ends(path: str) -> str:
    with open_bytes(path) as file:
        ends = ('CRLF' if line.endswith(b'\r\n') else 'LF' for line in file if line.endswith(b'\n'))
        first = next(ends, None)
        for number, end in enumerate(ends, 2):
            if end != first:
                return (
                    f'{path}, line {number}: a line must end in {first} as before, but got {end}.'
                )
    return (
        f'{path} must have lines that all end in LF or all in CRLF, and closed quotes, but got '
        f'others.'
    )
