import os.path as osp
from typing import Any

import duckdb

from mag.datasets._click_dataset import ClickDataset
from mag.datasets._delimited import line_of_row, quote, read_header, scan_csv

_COLUMNS = {
    'user_id': 'VARCHAR',
    'session_id': 'VARCHAR',
    'timestamp': 'BIGINT',
    'step': 'BIGINT',
    'action_type': 'VARCHAR',
    'reference': 'VARCHAR',
    'platform': 'VARCHAR',
    'city': 'VARCHAR',
    'device': 'VARCHAR',
    'impressions': 'VARCHAR',
    'prices': 'VARCHAR',
}

_BEHAVIORS = {
    'image': 'interaction item image',
    'info': 'interaction item info',
    'rating': 'interaction item rating',
    'deals': 'interaction item deals',
    'search': 'search for item',
}
_CLICKOUT = 'clickout item'
_ITEM_ACTIONS = _BEHAVIORS | {'clickout': _CLICKOUT}
_ACTIONS = (
    *_ITEM_ACTIONS.values(),
    'change of sort order',
    'filter selection',
    'search for destination',
    'search for poi',
)

# A BIGINT holds every number of so many digits.
_NUMBER = '[0-9]{1,18}'
_NUMBERS = f'{_NUMBER}([|]{_NUMBER})*'


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
    * Its behaviors, in the order of :attr:`behaviors`, are whether the
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
    A search comes before the list that it leads to, so the position of an
    item can tell that it was searched for.

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
    * :obj:`edge_label_behavior`, shape :obj:`[num_exposures, 5]`, and
      :obj:`edge_label_conversion`, shape :obj:`[num_exposures]`;
    * the categoricals :obj:`edge_label_platform`, :obj:`edge_label_device`
      and :obj:`edge_label_city`, shape :obj:`[num_exposures]`, with
      :obj:`num_platform`, :obj:`num_device` and :obj:`num_city`;
    * :obj:`edge_label_x`, shape :obj:`[num_exposures, 3]`: the position in
      the list, from 0, the price, and the price divided by the mean price of
      the list.

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

    behaviors = tuple(_BEHAVIORS)
    conversion = 'clickout'
    contexts = ('platform', 'device', 'city')
    features = ('position', 'price', 'relative_price')

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
            f'Trivago needs train.csv in {" or ".join(map(repr, self._folders))}, where it is not. '
            f'Get it from https://recsys.trivago.cloud/challenge/dataset/ and put it into '
            f'{self.raw_dir!r}'
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        (path,) = self.source_files
        required = ('user_id', 'session_id', 'timestamp', 'step', 'action_type')
        connection.execute(f"""
            CREATE OR REPLACE TABLE action AS
            SELECT {', '.join(_COLUMNS)} FROM {scan_csv(path, _COLUMNS, required)}
        """)
        _check_values(connection, path)
        _check_steps(connection, path)
        happened = ', '.join(
            f'{name} := bool_or(action_type = {quote(action)})'
            for name, action in _ITEM_ACTIONS.items()
        )
        labels = ', '.join(f'coalesce(touch.{name}, false) AS {name}' for name in _ITEM_ACTIONS)
        # A segment is known by the row of the clickout that ends it. All is joined and sorted
        # before the lists are taken apart, while it is one row a list and not one an exposure.
        # `least` skips the NULL of a list that nobody acted on.
        connection.execute(f"""
            CREATE OR REPLACE TABLE log AS
            WITH numbered AS (
                SELECT rowid AS row, user_id, session_id, timestamp, action_type,
                       TRY_CAST(reference AS BIGINT) AS item,
                       count(*) FILTER (step = 1) OVER (
                           PARTITION BY user_id, session_id ORDER BY rowid
                       ) AS session
                FROM action
            ),
            segmented AS (
                SELECT timestamp, action_type, item,
                       min(row) FILTER (action_type = {quote(_CLICKOUT)}) OVER (
                           PARTITION BY user_id, session_id, session ORDER BY row DESC
                       ) AS segment
                FROM numbered
            ),
            touched AS (
                SELECT segment, struct_pack(
                           item := item, click_time := min(timestamp), {happened}
                       ) AS touch
                FROM segmented
                WHERE action_type IN ({', '.join(map(quote, _ITEM_ACTIONS.values()))})
                GROUP BY segment, item
            ),
            clickout AS (
                SELECT user_id, timestamp, {', '.join(self.contexts)}, impressions, prices, touches
                FROM action
                JOIN (SELECT segment, list(touch) AS touches FROM touched GROUP BY segment)
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
                SELECT * EXCLUDE (touches), generate_subscripts(items, 1) - 1 AS position,
                       unnest(items) AS item, unnest(prices) AS price, unnest(touches) AS touch,
                       least(
                           list_min(list_transform(touches, lambda touch: touch.click_time)),
                           timestamp
                       ) AS time
                FROM listed
            )
            SELECT user_id AS user, item, time, touch IS NOT NULL AS label,
                   coalesce(touch.click_time, time) AS click_time,
                   {labels}, {', '.join(self.contexts)}, position, price,
                   coalesce(price / nullif(list_avg(prices), 0), 1) AS relative_price
            FROM exposure
            WHERE list_position(items, item) = position + 1
        """)
        connection.execute('DROP TABLE action')
        if not connection.execute('SELECT 1 FROM log LIMIT 1').fetchall():
            raise ValueError(
                f'{path} has no row with the action_type {_CLICKOUT!r}, and so no list of items'
            )


def _check_values(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    is_item_action = f'action_type IN ({", ".join(map(quote, _ITEM_ACTIONS.values()))})'
    is_clickout = f'action_type = {quote(_CLICKOUT)}'
    num_impressions, num_prices = (
        f"len(string_split({column}, '|'))" for column in ('impressions', 'prices')
    )
    # What must hold in every row, and the SQL of what was expected.
    checks = {
        'user_id': ("user_id <> ''", quote('an id')),
        'session_id': ("session_id <> ''", quote('an id')),
        'action_type': (
            f'action_type IN ({", ".join(map(quote, _ACTIONS))})',
            quote(f'one of {", ".join(map(repr, _ACTIONS))}'),
        ),
        'reference': (
            f"NOT {is_item_action} OR reference = 'unknown' "
            f'OR regexp_full_match(reference, {quote(_NUMBER)})',
            quote("the id of an item, or 'unknown'"),
        ),
        'impressions': (
            f'NOT {is_clickout} OR regexp_full_match(impressions, {quote(_NUMBERS)})',
            quote("ids of items with '|' between them"),
        ),
        'prices': (
            f'NOT {is_clickout} OR regexp_full_match(prices, {quote(_NUMBERS)}) '
            f'AND {num_prices} = {num_impressions}',
            f"concat('a whole number for each of the ', {num_impressions}, ' impressions')",
        ),
    }
    bad = ', '.join(f'min(rowid) FILTER (({holds}) IS NOT TRUE)' for holds, _ in checks.values())
    rows = connection.execute(f'SELECT {bad} FROM action').fetchall()[0]
    for (column, (_, expected)), row in zip(checks.items(), rows):
        if row is not None:
            value, expected = connection.execute(
                f'SELECT {column}, {expected} FROM action WHERE rowid = {row}'
            ).fetchall()[0]
            raise _bad_value(path, row, column, value, expected)


def _check_steps(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    found = connection.execute("""
        SELECT row, step, previous
        FROM (
            SELECT rowid AS row, step,
                   lag(step) OVER (PARTITION BY user_id, session_id ORDER BY rowid) AS previous
            FROM action
        )
        WHERE step <= previous AND step <> 1 ORDER BY row LIMIT 1
    """).fetchall()
    if found:
        row, step, previous = found[0]
        expected = f"more than {previous}, the session's step before, or 1 for another session"
        raise _bad_value(path, row, 'step', step, expected)


def _bad_value(
    path: str, row: int, column: str, value: str | int | None, expected: str
) -> ValueError:
    delimiter, _ = read_header(path, tuple(_COLUMNS))
    return ValueError(
        f'{path}, line {line_of_row(path, row, delimiter)}: column {column!r} holds '
        f'{"nothing" if value in (None, "") else repr(value)}, expected {expected}'
    )
