import csv
from collections.abc import Collection, Iterator, Mapping
from itertools import islice, takewhile
from typing import Any, NamedTuple

import duckdb

from mag.datasets._content import Content, end_sentence, explaining_gzip, inspect_content, open_text
from mag.datasets._read_errors import (
    EXPECTED,
    LONGEST_ROW,
    bad_value,
    check_repeated,
    first_line,
    missing_columns,
    show,
)
from mag.datasets._sql import FLAG, one_file, quote, quote_name


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
        # Its own force_not_null takes another column where some are skipped.
        filled = ', '.join(
            f'{_filled(name, self.columns[name])} AS {quote_name(name)}' for name in self.required
        )
        return f'(SELECT *{f" REPLACE ({filled})" if filled else ""} FROM {self.nullable})'

    @property
    def nullable(self) -> str:
        r"""The SQL that reads it, empty values of all columns as NULL."""
        types = ', '.join(f'{quote(name)}: {quote(kind)}' for name, kind in self.columns.items())
        mark = quote('"') if self.quotes else "''"
        return (
            f'read_csv({one_file(self.path)}, auto_detect=false, columns={{{types}}}, '
            f'delim={quote(self.delimiter)}, header={self.header}, skip={self.num_skipped}, '
            f'quote={mark}, escape={mark}, encoding={quote(self.encoding)})'
        )


def _filled(name: str, kind: str) -> str:
    # An empty text is one.
    empty = "''" if kind == 'VARCHAR' else f'error({quote(_EMPTY)})'
    quoted = quote_name(name)
    return f'CASE WHEN {quoted} IS NULL THEN {empty} ELSE {quoted} END'


def scan_csv(
    path: str,
    types: Mapping[str, str],
    required: tuple[str, ...],
    separator: str | None = None,
    encoding: str = 'utf-8',
) -> DelimitedScan:
    r"""The columns named in :obj:`types` of a CSV file with a header.

    Args:
        path (str): The file.
        types (dict): From columns to their types.
        required (tuple): Those that must not be empty.
        separator (str, optional): What stands between columns, if that is known.
        encoding (str, optional): :obj:`'utf-8'` or :obj:`'latin-1'`.

    Raises:
        ValueError: If the file is empty, is not of the encoding, lacks a column or
            names it twice.
    """
    delimiter, header = read_header(path, tuple(types), separator, encoding)
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
        # Quotes mean nothing beside a separator of several characters.
        quotes=len(delimiter) == 1,
        encoding=encoding,
        # DuckDB skips blank lines between rows, and takes one before the header for it.
        num_skipped=count_blank_lines(path, encoding),
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
    content = inspect_content(scan.path, scan.delimiter, scan.quotes, scan.encoding)
    what = f'INSERT INTO {table}' if append else f'CREATE OR REPLACE TABLE {table} AS'
    check_rows(connection, scan, content, execute_scan(connection, f'{what} {select}', scan))


def execute_scan(connection: duckdb.DuckDBPyConnection, query: str, scan: DelimitedScan) -> int:
    r"""Runs SQL that writes what :obj:`scan` reads, and returns the number of
    rows.
    """
    try:
        return connection.execute(query).fetchall()[0][0]
    except duckdb.Error as error:
        # These errors do not tell the file.
        if _EMPTY in str(error):
            _raise_empty(connection, scan, error)
        if 'GZIP' in str(error):
            reason = first_line(error).removeprefix('IO Error: ')
            raise ValueError(
                f'{scan.path} must be a whole gzip file, but cannot be unpacked: '
                f'{end_sentence(reason)}'
            ) from error
        if 'does not support a full read' in str(error):
            raise ValueError(
                f'{scan.path}: a row must have at most {LONGEST_ROW:,} bytes, but got more.'
            ) from error
        raise


def _raise_empty(
    connection: duckdb.DuckDBPyConnection, scan: DelimitedScan, error: duckdb.Error
) -> None:
    names = [name for name in scan.required if scan.columns[name] != 'VARCHAR']
    row, *found = _first_row(
        connection, scan.nullable, names, [f'{quote_name(name)} IS NULL' for name in names]
    )
    name = names[found.index(None)]
    expected = EXPECTED.get(scan.columns[name], 'a number')
    place = f'{scan.path}, line {line_of_scan(scan, row)}'
    raise bad_value(place, repr(name), show(None), expected) from error


def _first_row(
    connection: duckdb.DuckDBPyConnection, source: str, names: list[str], is_bad: list[str]
) -> tuple[Any, ...]:
    r"""The number of the first row with a bad value, from 0, and its values."""
    values = ', '.join(map(quote_name, names))
    # One thread alone numbers the rows.
    return connection.execute(f"""
        SELECT row, {values} FROM (SELECT row_number() OVER () - 1 AS row, {values} FROM {source})
        WHERE {' OR '.join(is_bad)} ORDER BY row LIMIT 1
    """).fetchall()[0]


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
        ValueError: If there are another number of records, a number was read from digits with a
            ``_`` between them, or a whole number from a fraction.
    """
    num_records = content.num_records - scan.header
    if num_rows != num_records:
        raise ValueError(
            f'{scan.path} must give {num_records:,} rows, as many as it has, but got '
            f'{num_rows:,}: end all lines alike, also those within quotes, write quotes around '
            f'whole values only, and rows of at most {LONGEST_ROW:,} bytes.'
        )
    if content.has_underscores:
        # DuckDB, as Python, reads `1_000` as 1000.
        _check_texts(connection, scan, _NUMBERS, "contains({}, '_')", '{} without underscores')
    if content.has_fractions:
        # DuckDB rounds them.
        _check_texts(connection, scan, _WHOLE_NUMBERS, _IS_FRACTION, '{}')


def _check_texts(
    connection: duckdb.DuckDBPyConnection,
    scan: DelimitedScan,
    kinds: Collection[str],
    is_bad: str,
    expected: str,
) -> None:
    r"""Raises for the first text that a number of these kinds was read from and that is bad."""
    names = [name for name, kind in scan.columns.items() if kind in kinds]
    if not names:
        return
    texts = scan._replace(columns={**scan.columns, **dict.fromkeys(names, 'VARCHAR')}).nullable
    conditions = [is_bad.format(quote_name(name)) for name in names]
    values = ', '.join(map(quote_name, names))
    any_bad = ' OR '.join(conditions)
    if not connection.execute(
        f'SELECT 1 FROM (SELECT {values} FROM {texts}) WHERE {any_bad} LIMIT 1'
    ).fetchall():
        return
    row, *found = _first_row(connection, texts, names, conditions)
    ((*flags,),) = connection.execute(
        f'SELECT {", ".join(conditions)} FROM (SELECT {", ".join("?" for _ in names)}) '
        f'AS texts({values})',
        found,
    ).fetchall()
    name, value = next((n, v) for n, v, flag in zip(names, found, flags) if flag)
    expected = expected.format(EXPECTED.get(scan.columns[name], 'a number'))
    raise bad_value(
        f'{scan.path}, line {line_of_scan(scan, row)}', repr(name), show(value), expected
    )


def line_of_scan(scan: DelimitedScan, row: int) -> int:
    r"""The line, from 1, that row number :obj:`row` of a delimited file ends on."""
    if scan.quotes:
        return line_of_row(scan.path, row + scan.header - 1, scan.delimiter, scan.encoding)
    with open_text(scan.path, 'latin-1') as file:
        filled = (number for number, line in enumerate(file, 1) if line.strip('\r\n'))
        return next(islice(filled, row + scan.header, None))


def count_blank_lines(path: str, encoding: str) -> int:
    r"""The number of lines before the header."""
    with open_text(path, _python_encoding(encoding)) as file:
        return sum(1 for _ in takewhile(lambda line: not line.strip('\r\n'), file))


def _python_encoding(encoding: str) -> str:
    return 'utf-8-sig' if encoding == 'utf-8' else encoding


def read_header(
    path: str, wanted: Collection[str], separator: str | None = None, encoding: str = 'utf-8'
) -> tuple[str, list[str]]:
    r"""Returns the delimiter of a CSV file and the names in its first line.

    The delimiter is :obj:`separator`, or the one under which all of :obj:`wanted` are there.
    """
    rows = {
        delimiter: next(read_rows(path, delimiter, encoding=encoding), [])
        for delimiter in (',\t;|' if separator is None else [separator])
    }
    if not any(rows.values()):
        raise ValueError(
            f'{path} must have a header with the columns {", ".join(map(repr, wanted))}, but is '
            f'empty.'
        )
    for delimiter, header in rows.items():
        if all(name in header for name in wanted):
            check_repeated(path, wanted, header)
            return delimiter, header
    header = max(rows.values(), key=len)
    missing = [name for name in wanted if name not in header]
    raise missing_columns(path, missing, header)


def read_rows(
    path: str, delimiter: str, count: int | None = None, encoding: str = 'utf-8'
) -> Iterator[list[str]]:
    r"""Yields the first :obj:`count` rows of a CSV file that are not blank,
    header included.
    """
    with explaining_gzip(path), open_text(path, _python_encoding(encoding)) as file:
        lines = (line.rstrip('\r\n') for line in file)
        rows = (
            (row for row in csv.reader(file, delimiter=delimiter) if row)
            if len(delimiter) == 1
            else (line.split(delimiter) for line in lines if line)
        )
        try:
            yield from islice(rows, count)
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} must be UTF-8, but got other bytes: {error}.') from error
        except csv.Error as error:
            raise ValueError(
                f'{path} must be a CSV file, but cannot be read: {end_sentence(str(error))}'
            ) from error


def place_of_row(path: str, columns: Collection[str], row: int) -> str:
    r"""The file, and the line of a CSV file or the row of a Parquet file,
    where row number :obj:`row` stands, from 0, that :obj:`columns` were read of.
    """
    if path.endswith(('.parquet', '.pq')):
        return f'{path}, row {row + 1}'
    delimiter, _ = read_header(path, columns)
    return f'{path}, line {line_of_row(path, row, delimiter)}'


def line_of_row(path: str, row: int, delimiter: str, encoding: str = 'utf-8') -> int:
    r"""The line, from 1, that row number :obj:`row` (from 0, below the header)
    of a CSV file ends on.
    """
    with open_text(path, _python_encoding(encoding)) as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(islice((values for values in reader if values), row + 1, None))
        return reader.line_num


_WHOLE_NUMBERS = ('BIGINT', 'INTEGER', FLAG)
_NUMBERS = (*_WHOLE_NUMBERS, 'DOUBLE')
# A double has not the fractions of large numbers, which have no exponent.
_IS_FRACTION = (
    "CASE WHEN contains(lower({0}), 'e') THEN {0}::DOUBLE <> floor({0}::DOUBLE) "
    "ELSE regexp_matches({0}, '[.]0*[1-9]') END"
)
# What no value of a log holds, by which the error is known.
_EMPTY = 'a required value is empty'
