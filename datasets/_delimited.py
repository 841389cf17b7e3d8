import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from itertools import islice
from typing import TextIO

import duckdb

# Python stops at cells of 131,072 characters; DuckDB has its own, larger limit.
csv.field_size_limit(2**31 - 1)

#: The type of a column of zeros and ones; a BOOLEAN would take any number for true.
FLAG = 'UTINYINT'


def quote(text: str) -> str:
    r"""Writes :obj:`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    r"""Writes :obj:`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def scan_parquet(path: str) -> str:
    r"""Writes the SQL that reads a Parquet file."""
    return f'read_parquet({_one_file(path)})'


def _one_file(path: str) -> str:
    # DuckDB takes brackets and stars in a path for a pattern, and `user=7/` for a column.
    return f'[{quote(escape(path))}], hive_partitioning=false'


def scan_delimited(
    path: str,
    columns: Mapping[str, str],
    delimiter: str,
    *,
    required: tuple[str, ...] = (),
    header: bool = False,
    quotes: bool = False,
    encoding: str = 'utf-8',
) -> str:
    r"""Writes the SQL that reads a delimited file with these columns.

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
    """
    types = ', '.join(f'{quote(name)}: {quote(kind)}' for name, kind in columns.items())
    not_null = ', '.join(quote(name) for name in required)
    mark = quote('"') if quotes else "''"
    return (
        f'read_csv({_one_file(path)}, auto_detect=false, columns={{{types}}}, '
        f'delim={quote(delimiter)}, header={header}, quote={mark}, escape={mark}, '
        f'force_not_null=[{not_null}], encoding={quote(encoding)})'
    )


def scan_csv(path: str, types: Mapping[str, str], required: tuple[str, ...] = ()) -> str:
    r"""Writes the SQL that reads the columns named in :obj:`types` from a CSV
    file with a header.

    Raises:
        ValueError: If the file is empty, is not UTF-8, or lacks a column.
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
    return scan_delimited(path, columns, delimiter, required=required, header=True, quotes=True)


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
            return delimiter, header
    header = max(rows.values(), key=len)
    missing = [name for name in wanted if name not in header]
    raise missing_columns(path, missing, header)


def missing_columns(path: str, missing: list[str], columns: list[str]) -> ValueError:
    r"""The error that says which columns a file lacks and which it has."""
    return ValueError(
        f'{path} has no column {", ".join(map(repr, missing))}; its columns are '
        f'{", ".join(map(repr, columns))}'
    )


def read_rows(path: str, delimiter: str, count: int | None = None) -> Iterator[list[str]]:
    r"""Yields the first :obj:`count` rows of a CSV file that are not blank,
    header included.
    """
    with _open(path) as file:
        rows = (row for row in csv.reader(file, delimiter=delimiter) if row)
        try:
            yield from islice(rows, count)
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8: {error}') from error
        except csv.Error as error:
            raise ValueError(f'{path} is no CSV file: {error}') from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f'{path} is no whole gzip file: {error}') from error


def line_of_row(path: str, row: int, delimiter: str) -> int:
    r"""The line, from 1, that row number :obj:`row` (from 0, below the header)
    of a CSV file ends on.
    """
    with _open(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(islice((values for values in reader if values), row + 1, None))
        return reader.line_num


@contextmanager
def _open(path: str) -> Iterator[TextIO]:
    opener = gzip.open if path.endswith('.gz') else open
    with opener(path, 'rt', encoding='utf-8-sig', newline='') as file:
        yield file


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
        return ValueError(text.strip().splitlines()[0].removeprefix('Invalid Input Error: '))
    place = f'{path.group(1)}, line {line.group(1)}'
    original = re.search(
        r'Original Line: ?(.*?)\n\s*(?:Error when|Expected Number|Invalid unicode|Value with)',
        text,
        re.DOTALL,
    )
    row = f' in the row {original.group(1).strip()!r}' if original else ''
    width = re.search(r'Expected Number of Columns: (\d+) Found: (\d+)', text)
    if width:
        return ValueError(
            f'{place}: expected {width.group(1)} columns, found {width.group(2)}{row}'
        )
    column = re.search(r'Error when converting column "(.*?)"\.', text, re.DOTALL)
    if column:
        value = re.search(r'Could not convert string "(.*?)" to \'', text, re.DOTALL)
        kind = re.search(r'is being converted as type (.*)$', text, re.MULTILINE)
        found = repr(value.group(1)) if value and value.group(1) else 'nothing'
        return ValueError(
            f'{place}: column {column.group(1)!r} holds {found}, expected '
            f'{_EXPECTED.get(kind.group(1) if kind else "", "a number")}{row}'
        )
    if 'Invalid unicode' in text:
        return ValueError(f'{place}: expected UTF-8, found other bytes{row}')
    if 'unterminated quote' in text:
        return ValueError(f'{place}: a quote is opened and not closed{row}')
    return ValueError(f'{place}: {text.splitlines()[0]}{row}')


def _explain_line_ends(path: str) -> str:
    opener = gzip.open if path.endswith('.gz') else open
    with opener(path, 'rb') as file:
        ends = ('CRLF' if line.endswith(b'\r\n') else 'LF' for line in file if line.endswith(b'\n'))
        first = next(ends, None)
        for number, end in enumerate(ends, 2):
            if end != first:
                return f'{path}, line {number}: the line ends in {end}, expected {first} as before'
    return f'{path}: expected lines that all end in LF or all in CRLF, and closed quotes'


_EXPECTED = {
    'BIGINT': 'a whole number',
    'INTEGER': 'a whole number',
    FLAG: '0 or 1',
    'TIMESTAMP WITH TIME ZONE': 'a number or a time such as 2022-04-25 13:00:00',
}
