r"""Requests that come in a file, scored a chunk at a time."""

import csv
import os
import os.path as osp
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import duckdb
import numpy as np
from tqdm import tqdm

from mag.datasets._delimited import create_table, scan_csv
from mag.datasets._parquet import reading_parquet, scan_parquet
from mag.datasets._read_errors import explain_read_error, missing_columns
from mag.datasets._sql import quote_name
from mag.files import full_disk, replacing, tells_of_full_disk
from mag.pipeline.pipeline import Pipeline

#: Rows that are in memory at once.
_CHUNK = 16_384
#: Seconds that pass before a progress bar is worth its place.
_PATIENCE = 2.0


def score_file(
    pipeline: Pipeline,
    requests: str | os.PathLike[str],
    out: str | os.PathLike[str] | TextIO,
    progress: bool = False,
) -> None:
    r"""Writes the rows of a file, each with its probabilities behind it: that of a click,
    :obj:`score`, and others under their names, see :attr:`Pipeline.predicts`. The order of the
    rows, their columns and, in Parquet, the types of these are kept. However long the file is,
    memory holds a chunk of it; the rest is on disk, in a temporary folder.

    Args:
        pipeline (Pipeline): What scores them.
        requests (str): A Parquet file, whose name ends with :obj:`.parquet`, or a CSV file, with
            the columns :attr:`Pipeline.columns` and any others.
        out (str or file): The Parquet file to write to, or an open text file, for CSV.
        progress (bool, optional): If set to :obj:`True`, what takes seconds shows progress.
            (default: :obj:`False`)

    Raises:
        OSError: If a disk is full.
        RuntimeError: If the pipeline has not been fitted.
        ValueError: If the file cannot be read, lacks a column, or has one named as a score.
    """
    columns = pipeline.columns
    outputs = {name: 'score' if name == 'click' else name for name in pipeline.predicts}
    with (
        tempfile.TemporaryDirectory() as folder,
        duckdb.connect(osp.join(folder, 'requests.duckdb')) as connection,
    ):
        connection.execute("SET memory_limit = '1GB'")
        place, number = _read(
            connection, os.fspath(requests), list(columns.values()), set(outputs.values())
        )
        declared = ', '.join(f'{name} DOUBLE' for name in outputs.values())
        connection.execute(f'CREATE TABLE scores ({declared})')
        names = ', '.join(
            f'{quote_name(column)} AS {quote_name(name)}' for name, column in columns.items()
        )
        query = f'SELECT {names} FROM requests WHERE {place} BETWEEN $first AND $last'
        bar = tqdm(
            total=number, desc='Scoring', unit=' rows', delay=_PATIENCE, leave=False,
            disable=not progress,
        )  # fmt: skip
        with bar:
            for first in range(0, number, _CHUNK):
                bounds = {'first': first, 'last': first + _CHUNK - 1}
                found = connection.execute(query, bounds).fetchnumpy()
                given = {name: _with_none(value) for name, value in found.items()}
                user, item = given.pop('user'), given.pop('item')
                predicted = pipeline.predict(user, item, context=given)
                chunk = {of: predicted[name].numpy() for name, of in outputs.items()}
                connection.register('chunk', chunk)
                connection.execute('INSERT INTO scores SELECT * FROM chunk')
                bar.update(len(user))
        scored = (
            f'SELECT requests.* EXCLUDE ({place}), scores.* FROM requests POSITIONAL JOIN scores'
        )
        if isinstance(out, (str, os.PathLike)):
            with replacing(out) as temporary:
                connection.execute(
                    f'COPY ({scored}) TO $path (FORMAT parquet)', {'path': temporary}
                )
        else:
            rows = connection.execute(scored)
            writer = csv.writer(out, lineterminator='\n')
            writer.writerow(column[0] for column in rows.description or ())
            while batch := rows.fetchmany(_CHUNK):
                writer.writerows(batch)


def _read(
    connection: duckdb.DuckDBPyConnection, path: str, needed: list[str], outputs: set[str]
) -> tuple[str, int]:
    r"""Makes the table :obj:`requests`; the column there with the number of each row, and how many
    there are."""
    with _explained(path):
        if path.endswith('.parquet'):
            source = scan_parquet(path)
            with reading_parquet(path):
                names = connection.execute(f'SELECT * FROM {source} LIMIT 0').description or ()
            columns = [name[0] for name in names]
            if missing := [column for column in needed if column not in columns]:
                raise missing_columns(path, missing, list(map(repr, columns)))
            place = _place(path, columns, outputs)
            connection.execute(f'CREATE TABLE requests AS SELECT *, {place} FROM {source}')
        else:
            # Ids of a CSV file are compared as they are written.
            scan = scan_csv(path, dict.fromkeys(needed, 'VARCHAR'), ())
            place = _place(path, list(scan.columns), outputs)
            create_table(connection, 'requests', f'SELECT *, {place} FROM {scan}', scan)
    (number,) = connection.execute('SELECT count(*) FROM requests').fetchall()[0]
    return place.rpartition(' ')[2], number


def _place(path: str, names: list[str], outputs: set[str]) -> str:
    r"""The SQL of the number of a row, under a name that no column has."""
    taken = {name.lower() for name in names}
    for name in sorted(outputs & taken):
        raise ValueError(
            f'{path!r} has a column {name!r}, which is where scores go: give it another name.'
        )
    place = 'place'
    while place in taken:
        place += '_'
    return f'row_number() OVER () - 1 AS {place}'


def _with_none(value: np.ndarray) -> np.ndarray:
    r"""A column whose missing values are told by a mask, with :obj:`None` in their place."""
    data = np.ma.getdata(value)
    return (
        np.where(np.ma.getmaskarray(value), np.array(None), data)
        if np.ma.is_masked(value)
        else data
    )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        if tells_of_full_disk(error):
            raise full_disk(tempfile.gettempdir(), path) from error
        raise explain_read_error(error) from error
