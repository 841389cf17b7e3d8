r"""The files of MovieLens releases, of which no two generations are alike."""

import os.path as osp
from typing import NamedTuple

from mag.datasets._delimited import DelimitedScan, scan_csv
from mag.datasets._sql import FLAG, quote
from mag.datasets._values import checked_flag

_LOG = {'user': 'BIGINT', 'item': 'BIGINT', 'rating': 'DOUBLE', 'time': 'BIGINT'}
_MOVIES = {'id': 'BIGINT', 'title': 'VARCHAR', 'genres': 'VARCHAR'}
_USER_100K = {
    'id': 'BIGINT',
    'age': 'INTEGER',
    'gender': 'VARCHAR',
    'occupation': 'VARCHAR',
    'zip': 'VARCHAR',
}

_GENRES_100K = (
    'unknown',
    'Action',
    'Adventure',
    'Animation',
    "Children's",
    'Comedy',
    'Crime',
    'Documentary',
    'Drama',
    'Fantasy',
    'Film-Noir',
    'Horror',
    'Musical',
    'Mystery',
    'Romance',
    'Sci-Fi',
    'Thriller',
    'War',
    'Western',
)


class Source(NamedTuple):
    r"""A raw file, and the SQL that gives a row for each of its."""

    scan: DelimitedScan
    select: str


class Recipe(NamedTuple):
    r"""How the files of a release give ratings, movies and, where it has them, users.

    Args:
        ratings: With the columns user, item, rating and time.
        movies: With the columns id, title and genres, a list.
        users: With the columns id, age, gender, occupation and zip.
    """

    ratings: Source
    movies: Source
    users: Source | None


def recipe_of(paths: list[str]) -> Recipe:
    r"""The recipe by which the files of a release are read."""
    by_name = {osp.basename(path): path for path in paths}
    for name, read in (('u.data', _read_100k), ('ml-100k.inter', _read_recbole)):
        if name in by_name:
            return read(by_name)
    return _read_dat(by_name) if 'ratings.dat' in by_name else _read_csv(by_name)


def _read_100k(paths: dict[str, str]) -> Recipe:
    log = DelimitedScan(paths['u.data'], _LOG, '\t', tuple(_LOG))
    columns = dict.fromkeys(('title', 'release', 'video_release', 'url'), 'VARCHAR')
    flags = {f'genre_{i}': FLAG for i in range(len(_GENRES_100K))}
    items = DelimitedScan(
        paths['u.item'],
        {'id': 'BIGINT'} | columns | flags,
        '|',
        ('id', *flags),
        encoding='latin-1',
    )
    genres = ', '.join(
        f'CASE {checked_flag(flag, items.path, "id")} WHEN 1 THEN {quote(genre)} END'
        for flag, genre in zip(flags, _GENRES_100K)
    )
    select = (
        f'SELECT id, title, list_filter([{genres}], lambda genre: genre IS NOT NULL) AS genres '
        f'FROM {items}'
    )
    users = DelimitedScan(paths['u.user'], _USER_100K, '|', ('id',), encoding='latin-1')
    return Recipe(Source(log, f'FROM {log}'), Source(items, select), _of_users(users))


def _read_recbole(paths: dict[str, str]) -> Recipe:
    log = DelimitedScan(paths['ml-100k.inter'], _LOG, '\t', tuple(_LOG), header=True)
    columns = {'id': 'BIGINT', 'name': 'VARCHAR', 'year': 'VARCHAR', 'class': 'VARCHAR'}
    items = DelimitedScan(paths['ml-100k.item'], columns, '\t', ('id',), header=True)
    # The one movie without a name has `unkonwn` for name and year.
    select = (
        f"SELECT id, CASE WHEN name = 'unkonwn' THEN 'unknown' "
        f"ELSE concat(name, ' (', year, ')') END AS title, "
        f"string_split(class, ' ') AS genres FROM {items}"
    )
    users = DelimitedScan(paths['ml-100k.user'], _USER_100K, '\t', ('id',), header=True)
    return Recipe(Source(log, f'FROM {log}'), Source(items, select), _of_users(users))


def _read_dat(paths: dict[str, str]) -> Recipe:
    log = DelimitedScan(paths['ratings.dat'], _LOG, '::', tuple(_LOG))
    # MovieLens-1M alone has users, and is latin-1; MovieLens-10M is UTF-8.
    encoding = 'latin-1' if 'users.dat' in paths else 'utf-8'
    items = DelimitedScan(paths['movies.dat'], _MOVIES, '::', ('id',), encoding=encoding)
    select = f"SELECT id, title, string_split(genres, '|') AS genres FROM {items}"
    users = None
    if 'users.dat' in paths:
        columns = {
            'id': 'BIGINT',
            'gender': 'VARCHAR',
            'age': 'INTEGER',
            'occupation': 'INTEGER',
            'zip': 'VARCHAR',
        }
        users = _of_users(DelimitedScan(paths['users.dat'], columns, '::', ('id',)))
    return Recipe(Source(log, f'FROM {log}'), Source(items, select), users)


def _read_csv(paths: dict[str, str]) -> Recipe:
    names = {'userId': 'BIGINT', 'movieId': 'BIGINT', 'rating': 'DOUBLE', 'timestamp': 'BIGINT'}
    log = scan_csv(paths['ratings.csv'], names, tuple(names))
    log_select = f'SELECT userId AS user, movieId AS item, rating, timestamp AS time FROM {log}'
    columns = {'movieId': 'BIGINT', 'title': 'VARCHAR', 'genres': 'VARCHAR'}
    items = scan_csv(paths['movies.csv'], columns, ('movieId',))
    select = f"SELECT movieId AS id, title, string_split(genres, '|') AS genres FROM {items}"
    return Recipe(Source(log, log_select), Source(items, select), None)


def _of_users(scan: DelimitedScan) -> Source:
    return Source(scan, f'SELECT id, age, gender, occupation, zip FROM {scan}')
