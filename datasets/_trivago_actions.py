r"""The actions that trivago logs, and what their columns hold."""

from functools import partial

import duckdb

from mag.datasets._delimited import create_table, place_of_row, scan_csv
from mag.datasets._sql import quote
from mag.datasets._values import Rule, check_table

COLUMNS = {
    'user_id': 'VARCHAR',
    'session_id': 'VARCHAR',
    'timestamp': 'BIGINT',
    'step': 'BIGINT',
    'action_type': 'VARCHAR',
    'reference': 'VARCHAR',
    'platform': 'VARCHAR',
    'city': 'VARCHAR',
    'device': 'VARCHAR',
    'current_filters': 'VARCHAR',
    'impressions': 'VARCHAR',
    'prices': 'VARCHAR',
}

BEHAVIORS = {
    'image': 'interaction item image',
    'info': 'interaction item info',
    'rating': 'interaction item rating',
    'deals': 'interaction item deals',
    'search': 'search for item',
}
CLICKOUT = 'clickout item'
CONTEXTS = ('platform', 'device', 'city')
ITEM_ACTIONS = BEHAVIORS | {'clickout': CLICKOUT}
SEARCHES = ('search for destination', 'search for poi')
# The actions with which the log has the filters that are on after them.
FILTERED = (CLICKOUT, 'filter selection', *SEARCHES)
ACTIONS = (*ITEM_ACTIONS.values(), 'change of sort order', 'filter selection', *SEARCHES)

# A BIGINT holds every number of so many digits.
_NUMBER = '[0-9]{1,18}'
_NUMBERS = f'{_NUMBER}([|]{_NUMBER})*'


# The rows of the file, with what their values are compared with.
_ACTIONS_AND_STEPS = """(
    SELECT rowid, *, len(string_split(impressions, '|')) AS num_impressions,
           lag(step) OVER (PARTITION BY user_id, session_id ORDER BY rowid) AS previous
    FROM action
)"""
_IS_ITEM_ACTION = f'action_type IN ({", ".join(map(quote, ITEM_ACTIONS.values()))})'
_IS_CLICKOUT = f'action_type = {quote(CLICKOUT)}'
_RULES = (
    Rule('user_id', "user_id <> ''", 'an id'),
    Rule('session_id', "session_id <> ''", 'an id'),
    Rule(
        'action_type',
        f'action_type IN ({", ".join(map(quote, ACTIONS))})',
        f'one of {", ".join(map(repr, ACTIONS))}',
    ),
    Rule(
        'reference',
        f"NOT {_IS_ITEM_ACTION} OR reference = 'unknown' "
        f'OR regexp_full_match(reference, {quote(_NUMBER)})',
        "the id of an item, or 'unknown'",
    ),
    Rule(
        'impressions',
        f'NOT {_IS_CLICKOUT} OR regexp_full_match(impressions, {quote(_NUMBERS)})',
        "ids of items with '|' between them",
    ),
    Rule(
        'prices',
        f'NOT {_IS_CLICKOUT} OR regexp_full_match(prices, {quote(_NUMBERS)}) '
        f"AND len(string_split(prices, '|')) = num_impressions",
        'a whole number for each of the {num_impressions} impressions',
    ),
    Rule(
        'step',
        'previous IS NULL OR step > previous OR step = 1',
        "more than {previous}, the session's step before, or 1 for another session",
    ),
)


def read_actions(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    r"""Creates the table :obj:`action` with a row for each of the file.

    Raises:
        ValueError: If a column is missing, or holds a bad value; the message has the line.
    """
    required = ('user_id', 'session_id', 'timestamp', 'step', 'action_type')
    scan = scan_csv(path, COLUMNS, required)
    create_table(connection, 'action', f'SELECT {", ".join(COLUMNS)} FROM {scan}', scan)
    check_table(connection, _ACTIONS_AND_STEPS, _RULES, partial(place_of_row, path, COLUMNS))
