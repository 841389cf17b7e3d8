from collections.abc import Iterable
from functools import partial

import duckdb

from mag.datasets._delimited import create_table, place_of_row, read_header, scan_csv
from mag.datasets._named_release import NamedRelease, Release
from mag.datasets._sql import FLAG, quote
from mag.datasets._values import Rule, check_table, create_attributes
from mag.datasets.log_table import LogTable

_FILES = ('rec_inter.csv', 'src_inter.csv', 'user_features.csv', 'item_features.csv')

_RECOMMENDATION = {
    'user_id': 'BIGINT',
    'item_id': 'BIGINT',
    'timestamp': 'BIGINT',
    'click': FLAG,
}
_SEARCH = {
    'user_id': 'BIGINT',
    'item_id': 'BIGINT',
    'search_session_timestamp': 'BIGINT',
    'click_cnt': 'BIGINT',
    'keyword': 'VARCHAR',
}
_USER_FEATURES = ('onehot_feat1', 'onehot_feat2', 'search_active_level')
_LEVELS = {
    'category': 'first_level_category_id',
    'second_level_category': 'second_level_category_id',
    'third_level_category': 'third_level_category_id',
    'fourth_level_category': 'fourth_level_category_id',
}
_ITEM_TYPES = ('item_type', 'upload_type')

# A BIGINT holds every number of so many digits.
_NUMBER = '-?[0-9]{1,18}'
_KEYWORDS = rf'\[\s*({_NUMBER}(\s*,\s*{_NUMBER})*)?\s*\]'


class KuaiSAR(NamedRelease):
    r"""The logs of search and recommendation of the short-video application
    Kuaishou from the `"KuaiSAR: A Unified Search And Recommendation Dataset"
    <https://arxiv.org/abs/2306.07705>`_ paper, as one log of the same users
    and items.

    Every row of the two logs is an exposure:

    * one of :obj:`rec_inter.csv` is a recommendation at its
      :obj:`timestamp`, :obj:`click` its label, with the empty query;
    * one of :obj:`src_inter.csv` is a result of the search at its
      :obj:`search_session_timestamp`, clicked if :obj:`click_cnt` is not 0.
      Its query is the :obj:`keyword`, ids of words that stand for themselves,
      in their order and with repetitions; a search without words has the
      term :obj:`'unknown'`.

    Neither log tells when a click happened, so clicks have the time of their
    row. A session is one search with all that was shown for it, so its time
    is that of the search; that of a recommendation is when it was handed out,
    often several at once. What came first within one of these is not known:
    rows read clicks strictly before themselves, so none reads a click of its
    own session, be it for histories, paths or counts. That is safe, and a
    little stale: the last result of a session does not know which others were
    clicked. It costs something from one to the next: a row that came after a
    session began may read a click of that session that came later still, and
    no column tells when a session ended, so there is no
    :obj:`edge_label_settled`.

    Nodes are the users and items of the logs, in ascending order of their
    ids, whatever kind of item a search found; users and items that only the
    feature files name have no exposure and are no nodes.

    Rows with the same user, item, millisecond and query are one exposure that
    was logged again, so they are merged: it was clicked if any of its rows
    says so.
    :attr:`num_duplicates` counts the rows that went.

    The :class:`~torch_geometric.data.HeteroData` holds

    * :obj:`data['user']`: the categoricals :obj:`onehot_feat1`,
      :obj:`onehot_feat2`, :obj:`search_active_level` and
      :obj:`rec_active_level`;
    * :obj:`data['item']`: :obj:`category`, the id of its category on the
      first level, and :obj:`second_level_category`,
      :obj:`third_level_category`, :obj:`fourth_level_category`,
      :obj:`author_id`, :obj:`item_type`, :obj:`upload_type`;
    * :obj:`data['user', 'clicks', 'item']`: :obj:`edge_index` and
      :obj:`time` of the clicks; :obj:`edge_label_index`, :obj:`edge_label`
      and :obj:`edge_label_time` of the exposures, times in seconds (rows
      are ordered by millisecond, recommendations first);
      :obj:`edge_label_query`, shape :obj:`[num_exposures, Q]`, and
      :obj:`query`, shape :obj:`[num_clicks, Q]`, the ids of the first 10
      terms or fewer, padded with :obj:`-1`, where that of the empty query is
      :obj:`0` and :obj:`num_query` counts the terms with it;
      :obj:`edge_label_domain` and :obj:`domain`, 0 in recommendation and 1 in
      search, with :obj:`num_domain`.

    The meaning of each code is in :attr:`names`; a missing value has the name
    :obj:`'unknown'`. So have authors and categories with the id 0, which
    stands for none. Of several rows of one item the first value that is there
    counts.

    What else the release has is not read: the social network, captions, names
    of categories, what followed a recommended click, and the sources of
    searches.

    .. note::
        The data is not downloaded. Get :obj:`KuaiSAR.zip` (small) or
        :obj:`KuaiSAR_v2.zip` (full) from `zenodo.org/records/8181109
        <https://zenodo.org/records/8181109>`_ and unpack it into
        :obj:`root/raw`. The files of the two are called alike.

    Args:
        root (str): The files are looked for in :obj:`root/raw` and, as the
            archives have them, :obj:`root/raw/KuaiSAR_final` (small) or
            :obj:`root/raw/KuaiSAR_v2` (full).
        name (str, optional): :obj:`'small'`, 22 to 31 May 2023, or
            :obj:`'full'`, 22 May to 10 June. (default: :obj:`'small'`)
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the raw files again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        FileNotFoundError: If a file is missing; it says which.
        ValueError: If :obj:`name` is unknown, if a file lacks a column, holds
            a bad value (the message has file and line) or repeats the
            features of a user, or if the cache was made with other arguments,
            by another version or from other raw files.
    """

    url = 'https://zenodo.org/records/8181109'
    releases = {
        'small': Release('KuaiSAR.zip', 'KuaiSAR_final', _FILES),
        'full': Release('KuaiSAR_v2.zip', 'KuaiSAR_v2', _FILES),
    }

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        recommendations, searches, users, items = self.source_files
        _read_recommendations(connection, recommendations)
        _read_searches(connection, searches)
        connection.execute("""
            CREATE OR REPLACE TABLE log AS
            SELECT user_id AS user, item_id AS item, timestamp AS time, click AS label,
                   NULL::BIGINT[] AS query
            FROM recommendation
            UNION ALL
            SELECT user_id, item_id, search_session_timestamp, (click_cnt > 0)::UTINYINT,
                   coalesce(keyword, '[]')::BIGINT[]
            FROM search
        """)
        connection.execute('DROP TABLE recommendation')
        connection.execute('DROP TABLE search')
        _read_users(connection, users)
        _read_items(connection, items)
        return LogTable(time_unit='ms', merge_duplicates=True, query='query')


def _read_recommendations(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    scan = scan_csv(path, _RECOMMENDATION, tuple(_RECOMMENDATION))
    select = f'SELECT {", ".join(_RECOMMENDATION)} FROM {scan}'
    create_table(connection, 'recommendation', select, scan)
    numbers = [name for name in _RECOMMENDATION if name != 'click']
    rules = [*_of_numbers(numbers), Rule('click', 'click <= 1', '0 or 1')]
    locate = partial(place_of_row, path, _RECOMMENDATION)
    check_table(connection, 'recommendation', rules, locate)


def _read_searches(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    required = tuple(name for name in _SEARCH if name != 'keyword')
    scan = scan_csv(path, _SEARCH, required)
    select = f"SELECT {', '.join(required)}, nullif(keyword, '') AS keyword FROM {scan}"
    create_table(connection, 'search', select, scan)
    rules = [
        *_of_numbers(required),
        Rule('click_cnt', 'click_cnt >= 0', 'a number of clicks'),
        Rule(
            'keyword',
            f'keyword IS NULL OR regexp_full_match(keyword, {quote(_KEYWORDS)})',
            'a list of whole numbers such as [20, 34, 3]',
        ),
    ]
    check_table(connection, 'search', rules, partial(place_of_row, path, _SEARCH))


def _of_numbers(columns: Iterable[str]) -> list[Rule]:
    # DuckDB can take another column for the one that must not be empty, when it skips some.
    return [Rule(name, f'{name} IS NOT NULL', 'a whole number') for name in columns]


def _read_users(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    # The small release calls it `reco`, the full one and the documentation `rec`.
    _, header = read_header(path, ('user_id',))
    level = 'reco_active_level' if 'reco_active_level' in header else 'rec_active_level'
    columns = dict.fromkeys(('user_id', *_USER_FEATURES, level), 'BIGINT')
    scan = scan_csv(path, columns, ('user_id',))
    select = f"""
        SELECT user_id AS id, {', '.join(_USER_FEATURES)}, {level} AS rec_active_level FROM {scan}
    """
    create_attributes(connection, 'user', select, scan)


def _read_items(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    columns = dict.fromkeys(('item_id', *_LEVELS.values(), 'author_id'), 'BIGINT')
    columns |= dict.fromkeys(_ITEM_TYPES, 'VARCHAR')
    scan = scan_csv(path, columns, ('item_id',))
    select = f"""
        SELECT item_id AS id, nullif(author_id, 0) AS author_id, {', '.join(_ITEM_TYPES)},
               {', '.join(f'nullif({column}, 0) AS {name}' for name, column in _LEVELS.items())}
        FROM {scan}
    """
    # The full release has 6,949,990 rows for the 6,890,707 items of its logs.
    create_table(connection, 'item_row', select, scan)
    names = (*_LEVELS, 'author_id', *_ITEM_TYPES)
    connection.execute(f"""
        CREATE OR REPLACE TABLE item_attribute AS
        SELECT id, {', '.join(f'arg_min({name}, rowid) AS {name}' for name in names)}
        FROM item_row WHERE id IN (SELECT item FROM log) GROUP BY id
    """)
    connection.execute('DROP TABLE item_row')
