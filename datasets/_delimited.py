import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from itertools import islice, takewhile
from typing import NamedTuple

import duckdb

from mag.datasets._content import Content, explaining_gzip, inspect_content, open_bytes, open_text

#: The type of a column of zeros and ones; a BOOLEAN would take any number for true.
FLAG = 'UTINYINT'


def quote(text: str) -> str:
    r"""Writes :obj:`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    r"""Writes :obj:`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def reading_parquet(path: str) -> Iterator[None]:
    r"""Turns what DuckDB raises about a Parquet file into a sentence with
    the file.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = re.sub(r'^[A-Za-z- ]+ Error: ', '', _first_line(error)).replace(path, 'it')
        raise ValueError(f'{path} cannot be read: {reason[:_LONG]}') from error


def scan_parquet(path: str) -> str:
    r"""Writes the SQL that reads a Parquet file."""
    return f'read_parquet({_one_file(path)})'


def parquet_columns(
    connection: duckdb.DuckDBPyConnection, path: str, wanted: tuple[str, ...]
) -> dict[str, str]:
    r"""Returns the DuckDB type of each column of a Parquet file.

    Raises:
        ValueError: If it has more than one of a column in :obj:`wanted`.
    """
    with reading_parquet(path):
        schema = connection.execute(
            f'SELECT name, coalesce(num_children, 0) FROM parquet_schema({quote(escape(path))})'
        ).fetchall()
        described = connection.execute(f'DESCRIBE SELECT * FROM {scan_parquet(path)}').fetchall()
    # The schema is a tree, of which each node is followed by its children. DuckDB would call the
    # second of two columns another name.
    columns: list[str] = []
    num_inside = 0
    for name, num_children in schema[1:]:
        if num_inside == 0:
            columns.append(name)
        num_inside += num_children - (num_inside > 0)
    check_repeated(path, wanted, columns)
    return {name: kind for name, kind, *_ in described}


def _one_file(path: str) -> str:
    # DuckDB takes brackets and stars in a path for a pattern, and `user=7/` for a column.
    return f'[{quote(escape(path))}], hive_partitioning=false'


class DelimitedScan(NamedTuple):
    r"""A delimited file and its columns, which as a string is the SQL that
    reads them.

    Nothing is detected from a sample of the file, so the same file always
    reads the same, and a row that does not fit is an error.

    Args:
        path (str): The file.
        columns (dict): From the name of each column of the file, in order,
            to its DuckDB type.
        delimiter (str): What separates the columns.
        required (tuple): The columns that must not be empty.
        header (bool, optional): Whether the first line holds names.
        quotes (bool, optional): Whether ``"`` quotes a value.
        encoding (str, optional): :obj:`'utf-8'` or :obj:`'latin-1'`.
        num_skipped (int, optional): The number of lines before the header.
    """

    path: str
    columns: Mapping[str, str]
    delimiter: str
    required: tuple[str, ...]
    header: bool = False
    quotes: bool = False
    encoding: str = 'utf-8'
    num_skipped: int = 0

    def __str__(self) -> str:
        types = ', '.join(f'{quote(name)}: {quote(kind)}' for name, kind in self.columns.items())
        not_null = ', '.join(quote(name) for name in self.required)
        mark = quote('"') if self.quotes else "''"
        return (
            f'read_csv({_one_file(self.path)}, auto_detect=false, columns={{{types}}}, '
            f'delim={quote(self.delimiter)}, header={self.header}, skip={self.num_skipped}, '
            f'quote={mark}, escape={mark}, force_not_null=[{not_null}], '
            f'encoding={quote(self.encoding)})'
        )


def scan_csv(path: str, types: Mapping[str, str], required: tuple[str, ...]) -> DelimitedScan:
    r"""The columns named in :obj:`types` of a CSV file with a header.

    Raises:
        ValueError: If the file is empty, is not UTF-8, lacks a column or
            names it twice.
    """
    delimiter, header = read_header(path, tuple(types))
    columns: dict[str, str] = {}
    for position, name in enumerate(header):
        # DuckDB's names are blind to case and must differ.
        taken = {column.lower() for column in columns}
        is_other = name not in types or name in columns
        if is_other and (not name or name.lower() in taken | {t.lower() for t in types}):
            name = f'column {position}'
        columns[name] = types.get(name, 'VARCHAR')
    return DelimitedScan(
        path,
        columns,
        delimiter,
        required,
        header=True,
        quotes=True,
        # DuckDB skips blank lines between rows, and takes one before the header for it.
        num_skipped=_count_blank_lines(path),
    )


def create_table(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    select: str,
    scan: DelimitedScan,
    *,
    append: bool = False,
) -> None:
    r"""Creates a table with a row for each of a delimited file, in its order.

    Args:
        connection: The connection of the table.
        table (str): The table.
        select (str): The SQL that reads :obj:`scan` and keeps all its rows.
        scan (DelimitedScan): The file.
        append (bool, optional): Whether the table is there and has rows of
            other files.

    Raises:
        ValueError: If not all rows were read, or for what
            :meth:`inspect_content` and :meth:`check_rows` refuse.
    """
    content = inspect_content(scan.path, scan.delimiter, scan.quotes)
    what = f'INSERT INTO {table}' if append else f'CREATE OR REPLACE TABLE {table} AS'
    check_rows(connection, scan, content, execute_scan(connection, f'{what} {select}', scan))


def execute_scan(connection: duckdb.DuckDBPyConnection, query: str, scan: DelimitedScan) -> int:
    r"""Runs SQL that writes what :obj:`scan` reads, and returns the number of
    rows.
    """
    try:
        return connection.execute(query).fetchall()[0][0]
    except duckdb.Error as error:
        # These two errors do not tell the file.
        if 'GZIP' in str(error):
            reason = _first_line(error).removeprefix('IO Error: ')
            raise ValueError(f'{scan.path} is no whole gzip file: {reason}') from error
        if 'does not support a full read' in str(error):
            raise ValueError(
                f'{scan.path}: a row is too long, expected at most {_LONGEST_ROW:,} bytes'
            ) from error
        raise


def check_rows(
    connection: duckdb.DuckDBPyConnection, scan: DelimitedScan, content: Content, num_rows: int
) -> None:
    r"""Compares what DuckDB has read from a delimited file with its content.

    Args:
        connection: The connection that has read it.
        scan (DelimitedScan): The file.
        content (Content): Its content.
        num_rows (int): The number of rows that were read.

    Raises:
        ValueError: If there are another number of records, or a number was
            read from digits with a ``_`` between them.
    """
    num_records = content.num_records - scan.header
    if num_rows != num_records:
        raise ValueError(
            f'{scan.path}: {num_rows:,} rows were read, expected {num_records:,}, as many as the '
            f'file has; end all lines alike, also those within quotes, write quotes around whole '
            f'values only, and rows of at most {_LONGEST_ROW:,} bytes'
        )
    numbers = [name for name, kind in scan.columns.items() if kind in _NUMBERS]
    if content.has_underscores and numbers:
        _check_underscores(connection, scan, numbers)


def _check_underscores(
    connection: duckdb.DuckDBPyConnection, scan: DelimitedScan, numbers: list[str]
) -> None:
    # DuckDB, as Python, reads `1_000` as 1000.
    texts = scan._replace(columns={**scan.columns, **dict.fromkeys(numbers, 'VARCHAR')})
    values = ', '.join(f'{quote_name(name)} AS value_{i}' for i, name in enumerate(numbers))
    is_bad = ' OR '.join(f"contains(value_{i}, '_')" for i in range(len(numbers)))
    if not connection.execute(
        f'SELECT 1 FROM (SELECT {values} FROM {texts}) WHERE {is_bad} LIMIT 1'
    ).fetchall():
        return
    # One thread alone numbers the rows.
    row, *found = connection.execute(f"""
        SELECT * FROM (SELECT row_number() OVER () - 1 AS row, {values} FROM {texts})
        WHERE {is_bad} ORDER BY row LIMIT 1
    """).fetchall()[0]
    name, value = next((n, v) for n, v in zip(numbers, found) if v is not None and '_' in v)
    raise ValueError(
        f'{scan.path}, line {_line_of(scan, row)}: column {name!r} holds {shorten(value)}, '
        f'expected {_EXPECTED.get(scan.columns[name], "a number")}, without underscores'
    )


def _line_of(scan: DelimitedScan, row: int) -> int:
    if scan.quotes:
        return line_of_row(scan.path, row, scan.delimiter)
    with open_text(scan.path, 'latin-1') as file:
        filled = (number for number, line in enumerate(file, 1) if line.strip('\r\n'))
        return next(islice(filled, row + scan.header, None))


def _count_blank_lines(path: str) -> int:
    r"""The number of lines before the header."""
    with open_text(path) as file:
        return sum(1 for _ in takewhile(lambda line: not line.strip('\r\n'), file))


def read_header(path: str, wanted: tuple[str, ...]) -> tuple[str, list[str]]:
    r"""Returns the delimiter of a CSV file and the names in its first line.

    The delimiter is the one under which all of :obj:`wanted` are there.
    """
    rows = {delimiter: next(read_rows(path, delimiter), []) for delimiter in ',\t;|'}
    if not any(rows.values()):
        raise ValueError(
            f'{path} is empty; expected a header with the columns {", ".join(map(repr, wanted))}'
        )
    for delimiter, header in rows.items():
        if all(name in header for name in wanted):
            check_repeated(path, wanted, header)
            return delimiter, header
    header = max(rows.values(), key=len)
    missing = [name for name in wanted if name not in header]
    raise missing_columns(path, missing, header)


def missing_columns(path: str, missing: list[str], columns: list[str]) -> ValueError:
    r"""The error that says which columns a file lacks and which it has."""
    found = ', '.join(map(shorten, columns))
    return ValueError(
        f'{path} has no column {", ".join(map(repr, missing))}; its columns are '
        f'{found if len(found) <= 3 * _LONG else f"{found[: 3 * _LONG]}..."}'
    )


def check_repeated(path: str, wanted: tuple[str, ...], columns: list[str]) -> None:
    r"""Raises if a file has more than one of a column."""
    for name in wanted:
        if columns.count(name) > 1:
            raise ValueError(
                f'{path} has {columns.count(name)} columns {name!r}, expected one of each name'
            )


def read_rows(path: str, delimiter: str, count: int | None = None) -> Iterator[list[str]]:
    r"""Yields the first :obj:`count` rows of a CSV file that are not blank,
    header included.
    """
    with explaining_gzip(path), open_text(path) as file:
        rows = (row for row in csv.reader(file, delimiter=delimiter) if row)
        try:
            yield from islice(rows, count)
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8: {error}') from error
        except csv.Error as error:
            raise ValueError(f'{path} is no CSV file: {error}') from error


def line_of_row(path: str, row: int, delimiter: str) -> int:
    r"""The line, from 1, that row number :obj:`row` (from 0, below the header)
    of a CSV file ends on.
    """
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(islice((values for values in reader if values), row + 1, None))
        return reader.line_num


def checked(name: str, condition: str, expected: str, path: str, *keys: str) -> str:
    r"""Writes the SQL that gives the column :obj:`name` where
    :obj:`condition` holds, and else raises and names the row by its
    :obj:`keys`.
    """
    row = ", ', ', ".join(f"'{key} ', {key}" for key in keys)
    return (
        f'CASE WHEN {condition} THEN {name} ELSE error(concat('
        f'{quote(f"{path}: column {name!r} holds ")}, {name}, '
        f'{quote(f", expected {expected}, where ")}, {row})) END'
    )


def checked_flag(name: str, path: str, *keys: str) -> str:
    r"""Writes the SQL that gives the column :obj:`name`, of type
    :obj:`FLAG`, or raises and names the row by its :obj:`keys`.
    """
    return checked(name, f'{name} <= 1', '0 or 1', path, *keys)


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
        return ValueError(_first_line(error).removeprefix('Invalid Input Error: '))
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
            f'{place}: expected {width.group(1)} columns, found {width.group(2)}{row}'
        )
    size = re.search(r'Maximum line size of \d+ bytes exceeded. Actual Size: ?(\d+)', text)
    if size:
        return ValueError(
            f'{place}: expected a row of at most {_LONGEST_ROW:,} bytes, found '
            f'{int(size.group(1)):,}'
        )
    column = re.search(r'Error when converting column "(.*?)"\.', text, re.DOTALL)
    if column:
        value = re.search(r'Could not convert string "(.*?)" to \'', text, re.DOTALL)
        kind = re.search(r'is being converted as type (.*)$', text, re.MULTILINE)
        found = shorten(value.group(1)) if value and value.group(1) else 'nothing'
        return ValueError(
            f'{place}: column {column.group(1)!r} holds {found}, expected '
            f'{_EXPECTED.get(kind.group(1) if kind else "", "a number")}{row}'
        )
    if 'Invalid unicode' in text:
        return ValueError(f'{place}: expected UTF-8, found other bytes{row}')
    if 'unterminated quote' in text:
        return ValueError(
            f'{place}: a quote is opened and not closed, or a row has more than '
            f'{_LONGEST_ROW:,} bytes{row}'
        )
    return ValueError(f'{place}: {_first_line(error)}{row}')


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0]


def shorten(text: str) -> str:
    r"""Writes :obj:`text` in quotes, and of a long one the start."""
    return repr(text) if len(text) <= _LONG else f'{text[:_LONG]!r}...'


def _explain_line_ends(path: str) -> str:
    with open_bytes(path) as file:
        ends = ('CRLF' if line.endswith(b'\r\n') else 'LF' for line in file if line.endswith(b'\n'))
        first = next(ends, None)
        for number, end in enumerate(ends, 2):
            if end != first:
                return f'{path}, line {number}: the line ends in {end}, expected {first} as before'
    return f'{path}: expected lines that all end in LF or all in CRLF, and closed quotes'


_LONG = 200
# DuckDB's own limit.
_LONGEST_ROW = 2_000_000
_NUMBERS = ('BIGINT', 'INTEGER', 'DOUBLE', FLAG)
_EXPECTED = {
    'BIGINT': 'a whole number',
    'INTEGER': 'a whole number',
    FLAG: '0 or 1',
    'TIMESTAMP WITH TIME ZONE': 'a number or a time such as 2022-04-25 13:00:00',
}
