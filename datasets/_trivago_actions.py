r"""The actions that trivago logs, and what their columns hold."""

import duckdb

from mag.datasets._sql import quote
from mag.datasets._values import bad_row, check_table

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


def check_values(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    is_item_action = f'action_type IN ({", ".join(map(quote, ITEM_ACTIONS.values()))})'
    is_clickout = f'action_type = {quote(CLICKOUT)}'
    num_impressions, num_prices = (
        f"len(string_split({column}, '|'))" for column in ('impressions', 'prices')
    )
    # What must hold in every row, and the SQL of what was expected.
    checks = {
        'user_id': ("user_id <> ''", quote('an id')),
        'session_id': ("session_id <> ''", quote('an id')),
        'action_type': (
            f'action_type IN ({", ".join(map(quote, ACTIONS))})',
            quote(f'one of {", ".join(map(repr, ACTIONS))}'),
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
    check_table(connection, 'action', path, COLUMNS, checks)


def check_steps(connection: duckdb.DuckDBPyConnection, path: str) -> None:
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
        raise bad_row(path, row, COLUMNS, 'step', step, expected)
