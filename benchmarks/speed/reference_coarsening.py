r"""The plain way from a MovieLens folder to training rows, as `coarsening.py` measures it.

What an engineer would write in an afternoon with pandas, scikit-learn and scipy from the
description in the MacGNN paper (https://doi.org/10.1145/3589334.3645517): clusters of users from
their clicks per category, neighbor counts as sparse products, and one flat row of numbers a
labelled sample. It imports nothing of mag, so its seconds and memory are its own and its counts
are an independent check.

A rating of 4 or more is a click; category 0, user 0 and item 0 stand for padding, so a row of
counts over categories is one wider than there are categories. With :math:`R` the clicks (users by
items), :math:`C_u` and :math:`C_i` the one-hot clusters, a sample of user :math:`u` and item
:math:`i` is the row

.. math::
    [u, (R C_i)_u, (R R^\top C_u)_u, recent_u, i, (R^\top C_u)_i, (R^\top R C_i)_i, recent_i, y]
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from timing import Stages

NUM_RECENT = 20


class Counts(NamedTuple):
    r"""Clicks of each user and item over clusters, after one hop and after two."""

    user_hop1: numpy.ndarray
    user_hop2: numpy.ndarray
    item_hop1: numpy.ndarray
    item_hop2: numpy.ndarray


def read_ratings(folder: Path) -> pandas.DataFrame:
    r"""Reads `ratings.dat`: one row a rating with user, item, rating and time, in order of time."""
    ratings = pandas.read_csv(
        folder / 'ratings.dat',
        sep='::',
        engine='python',
        names=['user', 'item', 'rating', 'time'],
    )
    ratings['label'] = (ratings['rating'] >= 4).astype(int)
    return ratings.sort_values('time', kind='stable')


def read_categories(folder: Path) -> numpy.ndarray:
    r"""Reads `movies.dat`: a number from 1 for the first genre of each item id."""
    movies = pandas.read_csv(
        folder / 'movies.dat',
        sep='::',
        engine='python',
        names=['item', 'title', 'genres'],
        encoding='latin-1',
    )
    numbers: dict[str, int] = {}
    categories = numpy.zeros(movies['item'].max() + 1, dtype=int)
    for item, genres in zip(movies['item'], movies['genres']):
        genre = genres.split('|')[0]
        categories[item] = numbers.setdefault(genre, len(numbers) + 1)
    return categories


def one_hot(cluster: numpy.ndarray, num_clusters: int) -> csr_matrix:
    r"""The matrix with a 1 where a row's cluster is."""
    rows = numpy.arange(len(cluster))
    return csr_matrix((numpy.ones(len(cluster)), (rows, cluster)), (len(cluster), num_clusters))


def click_matrix(clicks: pandas.DataFrame, num_users: int, num_items: int) -> csr_matrix:
    r"""Users by items, 1 where the user clicked the item."""
    ones = numpy.ones(len(clicks))
    matrix = csr_matrix((ones, (clicks['user'], clicks['item'])), (num_users, num_items))
    matrix.data[:] = 1
    return matrix


def cluster_users(
    matrix: csr_matrix, category_of_item: csr_matrix, num_clusters: int
) -> numpy.ndarray:
    r"""k-means on the clicks of each user per category, scaled to length 1."""
    rows = normalize((matrix @ category_of_item).toarray())
    return KMeans(num_clusters, random_state=0).fit_predict(rows)


def count_neighbors(
    matrix: csr_matrix, cluster_of_user: csr_matrix, category_of_item: csr_matrix
) -> Counts:
    r"""The four sparse products."""
    return Counts(
        user_hop1=(matrix @ category_of_item).toarray(),
        user_hop2=(matrix @ (matrix.T @ cluster_of_user)).toarray(),
        item_hop1=(matrix.T @ cluster_of_user).toarray(),
        item_hop2=(matrix.T @ (matrix @ category_of_item)).toarray(),
    )


def recent_neighbors(clicks: pandas.DataFrame) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    r"""The last items of each user and the last users of each item, oldest first."""
    items_of_user, users_of_item = defaultdict(list), defaultdict(list)
    for user, item in zip(clicks['user'], clicks['item']):
        items_of_user[user].append(item)
        users_of_item[item].append(user)
    return (
        {user: items[-NUM_RECENT:] for user, items in items_of_user.items()},
        {item: users[-NUM_RECENT:] for item, users in users_of_item.items()},
    )


def sample_rows(
    labelled: pandas.DataFrame, clicks: pandas.DataFrame, counts: Counts
) -> numpy.ndarray:
    r"""One flat row a labelled rating whose user and item have clicks."""
    recent_items, recent_users = recent_neighbors(clicks)
    rows = []
    for _, rating in labelled.iterrows():
        user, item = rating['user'], rating['item']
        if user not in recent_items or item not in recent_users:
            continue
        items, users = recent_items[user], recent_users[item]
        rows.append(
            numpy.concatenate(
                [
                    [user],
                    counts.user_hop1[user],
                    counts.user_hop2[user],
                    items + [0] * (NUM_RECENT - len(items)),
                    [item],
                    counts.item_hop1[item],
                    counts.item_hop2[item],
                    users + [0] * (NUM_RECENT - len(users)),
                    [rating['label']],
                ]
            )
        )
    return numpy.array(rows)


def sample_rows_tightly(
    labelled: pandas.DataFrame, clicks: pandas.DataFrame, counts: Counts
) -> numpy.ndarray:
    r"""The rows of :func:`sample_rows` by a loop without pandas inside it that writes each row into
    its place in one array."""
    recent_items, recent_users = recent_neighbors(clicks)
    blocks = [1, counts.user_hop1.shape[1], counts.user_hop2.shape[1], NUM_RECENT]
    blocks += [1, counts.item_hop1.shape[1], counts.item_hop2.shape[1], NUM_RECENT]
    starts = numpy.cumsum([0, *blocks]).tolist()
    rows = numpy.zeros((len(labelled), starts[-1] + 1))
    num_rows = 0
    for user, item, label in zip(*(labelled[name].tolist() for name in ('user', 'item', 'label'))):
        if user not in recent_items or item not in recent_users:
            continue
        items, users = recent_items[user], recent_users[item]
        row = rows[num_rows]
        row[0] = user
        row[starts[1] : starts[2]] = counts.user_hop1[user]
        row[starts[2] : starts[3]] = counts.user_hop2[user]
        row[starts[3] : starts[3] + len(items)] = items
        row[starts[4]] = item
        row[starts[5] : starts[6]] = counts.item_hop1[item]
        row[starts[6] : starts[7]] = counts.item_hop2[item]
        row[starts[7] : starts[7] + len(users)] = users
        row[-1] = label
        num_rows += 1
    return rows[:num_rows]


def label_windows(num_windows: int) -> list[tuple[str, float, float]]:
    r"""The part, and the quantiles of time between which its labels lie and up to the first of
    which its graph goes."""
    if num_windows == 1:
        return [('train', 0.8, 0.9), ('test', 0.9, 1)]
    bounds = [*numpy.linspace(0.3, 0.88, num_windows + 1), 0.9, 1]
    return list(zip(['train'] * num_windows + ['validation', 'test'], bounds[:-1], bounds[1:]))


def run(
    folder: Path,
    stages: Stages,
    num_clusters: int = 20,
    tight: bool = False,
    num_windows: int = 1,
) -> dict[str, numpy.ndarray]:
    r"""Rows of the :func:`label_windows`. `tight` asks for :func:`sample_rows_tightly`."""
    ratings, categories = read_ratings(folder), read_categories(folder)
    num_users, num_items = ratings['user'].max() + 1, len(categories)
    category_of_item = one_hot(categories, categories.max() + 1)
    stages.lap('read')

    cluster_of_user = None
    rows = defaultdict(list)
    for name, start, stop in label_windows(num_windows):
        cutoff, end = ratings['time'].quantile([start, stop])
        clicks = ratings[(ratings['time'] <= cutoff) & (ratings['label'] == 1)]
        labelled = ratings[(ratings['time'] > cutoff) & (ratings['time'] <= end)]
        matrix = click_matrix(clicks, num_users, num_items)
        stages.lap('split')
        if cluster_of_user is None:
            cluster_of_user = one_hot(
                cluster_users(matrix, category_of_item, num_clusters), num_clusters
            )
            stages.lap('k-means')
        counts = count_neighbors(matrix, cluster_of_user, category_of_item)
        stages.lap('counts')
        rows[name].append((sample_rows_tightly if tight else sample_rows)(labelled, clicks, counts))
        stages.lap('rows')
    return {name: numpy.concatenate(pieces) for name, pieces in rows.items()}


def measure(stages: Stages, folder: Path, tight: bool, num_windows: int) -> dict[str, float]:
    r"""Runs on a MovieLens folder and returns the number of rows of each part."""
    rows = run(folder, stages, tight=tight, num_windows=num_windows)
    return {name: len(part) for name, part in rows.items()}
