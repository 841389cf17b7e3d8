import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TextIO, cast

import numpy as np

# Python stops at cells of 131,072 characters; DuckDB has its own, larger limit.
csv.field_size_limit(2**31 - 1)

_BLOCK_SIZE = 1 << 20
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_LINE_FEED, _RETURN, _QUOTE, _UNDERSCORE, _POINT, _MINUS = b'\n\r"_.-'
# The bit by which small letters differ from capitals.
_LOWER_CASE = 0x20


class Content(NamedTuple):
    r"""What a delimited file holds, by a count that knows nothing of DuckDB's.

    Args:
        num_records (int): The number of lines that are not blank, without
            those on which a quoted value goes on.
        has_underscores (bool): Whether a ``_`` stands between two digits.
        has_fractions (bool): Whether a ``.`` or an exponent's ``-`` stands before a digit.
    """

    num_records: int
    has_underscores: bool
    has_fractions: bool


def inspect_content(path: str, delimiter: str, quotes: bool, encoding: str = 'utf-8') -> Content:
    r"""Counts the records of a delimited file, about as fast as its bytes can
    be read.

    Args:
        path (str): The file, in UTF-8 or latin-1, gzipped if its name ends in
            ``.gz``.
        delimiter (str): What separates the columns.
        quotes (bool): Whether ``"`` quotes a value.
        encoding (str, optional): The encoding.

    Raises:
        ValueError: If the file holds a NUL or is no whole gzip file, of which
            all checksums are compared.
    """
    num_records = 0
    has_underscores = has_fractions = False
    is_regular, is_quoted = True, False
    is_beside_quotes = np.zeros(256, dtype=bool)
    is_beside_quotes[[delimiter.encode()[0], _LINE_FEED, _RETURN, _QUOTE]] = True
    before = b'\n'
    for block in _read_blocks(path):
        if b'\0' in block:
            raise ValueError(
                f'{path}, line {_line_of_nul(path)}: a line must hold text, but got a NUL.'
            )
        data = np.frombuffer(before + block + b'\n', dtype=np.uint8)
        before = block[-1:]
        if not has_underscores and b'_' in block:
            has_underscores = _has_underscores(data)
        # A search for two bytes would take several times as long.
        if not has_fractions and (b'.' in block or b'-' in block):
            has_fractions = _has_fractions(data)
        if not is_regular:
            continue
        is_end = (data == _LINE_FEED) | (data == _RETURN)
        # Of a line that is not blank.
        is_start = is_end[:-1] & ~is_end[1:]
        if not is_quoted and not (quotes and b'"' in block):
            num_records += int(np.count_nonzero(is_start))
            continue
        # Quotes open and close a value in turn, as `""` inside one closes it and opens another.
        marks = np.flatnonzero(data == _QUOTE)
        opening, closing = (marks[1::2], marks[::2]) if is_quoted else (marks[::2], marks[1::2])
        outside = np.concatenate([data[opening - 1], data[closing + 1]])
        is_regular = bool(is_beside_quotes[outside].all())
        num_marks = np.searchsorted(marks, np.flatnonzero(is_start) + 1) + is_quoted
        num_records += int(np.count_nonzero(num_marks % 2 == 0))
        is_quoted = (marks.size + is_quoted) % 2 == 1
    # Else a quote is part of a value, as in `5" pipe`.
    num_records = num_records if is_regular else _count_slowly(path, delimiter, encoding)
    return Content(num_records, has_underscores, has_fractions)


def _read_blocks(path: str) -> Iterator[bytes]:
    with explaining_gzip(path), open_bytes(path) as file:
        if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
            file.seek(0)
        while block := file.read(_BLOCK_SIZE):
            # What follows these tells what they are.
            while block[-1:] in (b'"', b'_', b'.', b'-') and (following := file.read(1)):
                block += following
            yield block


def _has_underscores(data: np.ndarray) -> bool:
    place = np.flatnonzero(data == _UNDERSCORE)
    is_digit = (data >= ord('0')) & (data <= ord('9'))
    return bool((is_digit[place - 1] & is_digit[place + 1]).any())


def _has_fractions(data: np.ndarray) -> bool:
    mark = data[1:-1]
    is_mark = (mark == _MINUS) & (data[:-2] | _LOWER_CASE == ord('e'))
    is_mark |= mark == _POINT
    following = data[2:][is_mark]
    return bool(((following >= ord('0')) & (following <= ord('9'))).any())


def _line_of_nul(path: str) -> int:
    with open_text(path, 'latin-1') as file:
        return next(number for number, line in enumerate(file, 1) if '\0' in line)


def _count_slowly(path: str, delimiter: str, encoding: str) -> int:
    with open_text(path, 'utf-8-sig' if encoding == 'utf-8' else encoding) as file:
        # DuckDB ignores a space before a quote.
        rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        return sum(1 for row in rows if row)


@contextmanager
def explaining_gzip(path: str) -> Iterator[None]:
    r"""Turns what gzip raises into a sentence with the file."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f'{path} must be a whole gzip file, but cannot be unpacked: {end_sentence(str(error))}'
        ) from error


def end_sentence(text: str) -> str:
    r"""What another library says, with a full stop."""
    return f'{text.rstrip(".")}.'


def open_text(path: str, encoding: str = 'utf-8-sig') -> TextIO:
    r"""Opens a file that may be gzipped, with its line ends as they are."""
    opener = gzip.open if path.endswith('.gz') else open
    return cast(TextIO, opener(path, 'rt', encoding=encoding, newline=''))


def open_bytes(path: str) -> BinaryIO:
    r"""Opens a file that may be gzipped."""
    opener = gzip.open if path.endswith('.gz') else open
    return cast(BinaryIO, opener(path, 'rb'))
