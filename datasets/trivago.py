import os.path as osp
from typing import Any

import duckdb

from mag.datasets._sql import quote
from mag.datasets._trivago_actions import (
    BEHAVIORS,
    CLICKOUT,
    CONTEXTS,
    FILTERED,
    ITEM_ACTIONS,
    SEARCHES,
    read_actions,
)
from mag.datasets.click_dataset import ClickDataset
from mag.datasets.log_table import LogTable


class Trivago(ClickDataset):
    r"""The hotel search sessions of the `"RecSys Challenge 2019: Session-based
    Hotel Recommendations" <https://doi.org/10.1145/3298689.3346974>`_ paper,
    read as a log of clicks and conversions.

    A session is a row of actions: searches, filters, looks at an item, and
    clickouts, by which the user leaves for a booking site.
    Only with a clickout the log has the list of items that were on the
    screen.
    So exposures are made from the *segment* of each clickout, the actions of
    its session after the previous clickout up to and with itself:

    * Every item of the list is one exposure; an item that is listed twice is
      one, at its first position.
    * Its behaviors, in the order of :obj:`names['behavior']`, are whether the
      segment has an action on the item's images, information, ratings or
      deals, or a search for the item.
    * It converted if the clickout is on this item. If that is on an item
      outside of the list, nothing of the list converted, and no exposure is
      made up for it.
    * It was clicked if it has a behavior or converted, at the time of the
      first action on the item in the segment.

    What was done to items outside of the list, and after the last clickout of
    a session, belongs to no exposure.

    The list is logged with the clickout, when all that the labels tell is
    over, but it was on the screen before.
    So the time of its exposures is that of the first action in the segment on
    any item of the list, at the latest that of the clickout: all that the
    labels tell happened then or later, and no history strictly before that
    time knows it.
    Positions, prices and the city are those that were logged with the
    clickout.

    What the labels tell is all known with the clickout, which may be long
    after that time, and in another part of the log: nobody could have learned
    from the list in between. :class:`~mag.transforms.TemporalSplit` leaves
    such lists out of training and validation.

    A search comes before the list that it leads to, so the position of an
    item can tell that it was searched for.

    A list that is shown with an active search or active filters is of the
    domain search, and their terms are its query; any other is of the domain
    recommendation, browsing with the empty query.
    Active is what the rows of the session say that come before the first
    action on the list, which gives its time:

    * The last destination or point of interest that was searched for is the
      first term. It stays active across clickouts, unless the row before
      that first action is in another city than the search: the log has the
      city of a destination from the search on, so a session that is in
      another one has left the search.
    * The filters of the last row that has them are the other terms, in the
      order of the log: those that were on after the last selection of a
      filter, search or clickout. Orders that the log has as filters, such as
      :obj:`'Sort by Price'`, are terms, too. The filter that a selection
      names is no term by itself, as selecting one that was on takes it away.

    So the filters that are logged with a clickout are of the lists after it,
    and not of its own. They could have been changed after the first action on
    the list: in the log of 13,597 clickouts used in tests, filters were
    selected in between for 241 lists. Nor are they read where the clickout is
    itself the first action: the query would tell that nobody had looked at the
    list before.
    If no earlier row has its filters, a list is taken for one without.

    Actions are in the order of the file, where the steps of a session ascend.
    The log has a session id that one user has for two sessions; where the
    steps begin again at 1, another session begins.
    Nodes are the users and the items of the lists, in ascending order of
    their ids.

    The :class:`~torch_geometric.data.HeteroData` holds in
    :obj:`data['user', 'clicks', 'item']`

    * :obj:`edge_index` and :obj:`time` of the clicks; :obj:`edge_label_index`,
      :obj:`edge_label` and :obj:`edge_label_time` of the exposures, in
      seconds;
    * :obj:`edge_label_settled`, shape :obj:`[num_exposures]`: the time of the
      clickout that the list was logged with, in seconds;
    * :obj:`edge_label_behavior`, shape :obj:`[num_exposures, 5]`, and
      :obj:`edge_label_conversion`, shape :obj:`[num_exposures]`;
    * the categoricals :obj:`edge_label_platform`, :obj:`edge_label_device`
      and :obj:`edge_label_city`, shape :obj:`[num_exposures]`, with
      :obj:`num_platform`, :obj:`num_device` and :obj:`num_city`;
    * :obj:`edge_label_x`, shape :obj:`[num_exposures, 3]`: the position in
      the list, from 0, the price, and the price divided by the mean price of
      the list;
    * of the exposures :obj:`edge_label_query`, shape
      :obj:`[num_exposures, Q]`, and of the clicks :obj:`query`, shape
      :obj:`[num_clicks, Q]`: the ids of at most 10 terms, padded with
      :obj:`-1`; that of the empty query is :obj:`0`, and :obj:`num_query`
      is the number of terms with it;
    * :obj:`edge_label_domain` and :obj:`domain`, 0 in recommendation and 1 in
      search, with :obj:`num_domain`.

    The meaning of each code is in :attr:`names`, the id of each node in
    :attr:`raw_ids`; a missing value has the name :obj:`'unknown'`.

    .. note::
        The data is not downloaded. Get it from `recsys.trivago.cloud
        <https://recsys.trivago.cloud/challenge/dataset/>`_ and put
        :obj:`train.csv` into :obj:`root/raw`; the other files are not read.

    Args:
        root (str): :obj:`train.csv` is looked for in :obj:`root/raw` and
            :obj:`root/raw/trivago`.
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the raw file again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file lacks a column or holds a bad value (the
            message has file and line): an unknown type of action, an item
            that is no number, a clickout without a list or with another
            number of prices than of items, a step that is not after the one
            before it; or if the cache was made by another version or from
            another file.
    """

    schema_version = 4

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    @property
    def source_files(self) -> list[str]:
        paths = (osp.join(folder, 'train.csv') for folder in self._folders)
        return [path for path in paths if osp.exists(path)][:1]

    @property
    def raw_file_names(self) -> list[str]:
        return [osp.relpath(path, self.raw_dir) for path in self.source_files] or ['train.csv']

    @property
    def _folders(self) -> list[str]:
        return [self.raw_dir, osp.join(self.raw_dir, 'trivago')]

    def download(self) -> None:
        raise FileNotFoundError(
            f'Trivago needs train.csv in {" or ".join(map(repr, self._folders))}, but found none. '
            f'Get it from https://recsys.trivago.cloud/challenge/dataset/ and put it into '
            f'{self.raw_dir!r}.'
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        (path,) = self.source_files
        read_actions(connection, path)
        happened = ', '.join(
            f'{name} := bool_or(action_type = {quote(action)})'
            for name, action in ITEM_ACTIONS.items()
        )
        labels = ', '.join(f'coalesce(touch.{name}, false) AS {name}' for name in ITEM_ACTIONS)
        # A segment is known by the row of the clickout that ends it. All is joined and sorted
        # before the lists are taken apart, while it is one row a list and not one an exposure.
        # `least` and `greatest` skip the NULL of a list that nobody acted on. Touches are compared
        # by their first field, the row.
        connection.execute(f"""
            CREATE OR REPLACE TABLE log AS
            WITH numbered AS (
                SELECT rowid AS row, user_id, session_id, timestamp, action_type, city,
                       TRY_CAST(reference AS BIGINT) AS item,
                       count(*) FILTER (step = 1) OVER (
                           PARTITION BY user_id, session_id ORDER BY rowid
                       ) AS session,
                       CASE WHEN action_type IN ({', '.join(map(quote, SEARCHES))}) THEN
                           struct_pack(term := coalesce(reference, 'unknown'), city := city)
                       END AS place,
                       CASE WHEN action_type IN ({', '.join(map(quote, FILTERED))}) THEN
                           list_filter(string_split(coalesce(current_filters, ''), '|'),
                                       lambda term: term <> '')
                       END AS filters
                FROM action
            ),
            informed AS (
                SELECT * EXCLUDE (city, place, filters),
                       last_value(city) OVER earlier AS city,
                       last_value(place IGNORE NULLS) OVER earlier AS place,
                       last_value(filters IGNORE NULLS) OVER earlier AS filters
                FROM numbered
                WINDOW earlier AS (
                    PARTITION BY user_id, session_id, session ORDER BY row
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                )
            ),
            searched AS (
                SELECT * EXCLUDE (city, place, filters), list_concat(
                           CASE WHEN place IS NOT NULL AND place.city IS NOT DISTINCT FROM city
                           THEN [place.term] ELSE [] END,
                           coalesce(filters, [])
                       ) AS query
                FROM informed
            ),
            segmented AS (
                SELECT row, timestamp, action_type, item, query,
                       min(row) FILTER (action_type = {quote(CLICKOUT)}) OVER (
                           PARTITION BY user_id, session_id, session ORDER BY row DESC
                       ) AS segment
                FROM searched
            ),
            touched AS (
                SELECT segment, struct_pack(
                           row := min(row), query := arg_min(query, row),
                           item := item, click_time := min(timestamp),
                           last_time := max(timestamp), {happened}
                       ) AS touch, max(row) AS row, arg_max(query, row) AS query
                FROM segmented
                WHERE action_type IN ({', '.join(map(quote, ITEM_ACTIONS.values()))})
                GROUP BY segment, item
            ),
            clickout AS (
                SELECT user_id, timestamp, {', '.join(CONTEXTS)}, impressions, prices, touches,
                       query
                FROM action
                JOIN (
                    SELECT segment, list(touch) AS touches, arg_max(query, row) AS query
                    FROM touched GROUP BY segment
                )
                ON action.rowid = segment
                ORDER BY segment
            ),
            listed AS (
                SELECT * EXCLUDE (impressions, prices, touches),
                       string_split(impressions, '|')::BIGINT[] AS items,
                       string_split(prices, '|')::DOUBLE[] AS prices,
                       list_transform(items, lambda item:
                           list_filter(touches, lambda touch: touch.item = item)[1]
                       ) AS touches
                FROM clickout
            ),
            exposure AS (
                SELECT * EXCLUDE (touches, query),
                       coalesce(list_min(touches).query, query) AS query,
                       generate_subscripts(items, 1) - 1 AS position,
                       unnest(items) AS item, unnest(prices) AS price, unnest(touches) AS touch,
                       least(
                           list_min(list_transform(touches, lambda touch: touch.click_time)),
                           timestamp
                       ) AS time,
                       greatest(
                           list_max(list_transform(touches, lambda touch: touch.last_time)),
                           timestamp
                       ) AS settled
                FROM listed
            )
            SELECT user_id AS user, item, time, touch IS NOT NULL AS label,
                   coalesce(touch.click_time, time) AS click_time, settled,
                   {labels}, {', '.join(CONTEXTS)},
                   CASE WHEN len(query) > 0 THEN query END AS query, position, price,
                   coalesce(price / nullif(list_avg(prices), 0), 1) AS relative_price
            FROM exposure
            WHERE list_position(items, item) = position + 1
        """)
        connection.execute('DROP TABLE action')
        if not connection.execute('SELECT 1 FROM log LIMIT 1').fetchall():
            raise ValueError(
                f'{path} must have a row with the action_type {CLICKOUT!r}, which has a list of '
                f'items, but got none.'
            )
        return LogTable(
            behaviors=tuple(BEHAVIORS),
            conversion='clickout',
            contexts=CONTEXTS,
            features=('position', 'price', 'relative_price'),
            query='query',
        )
