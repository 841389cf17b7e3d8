r"""What followed the rows of a log, from a long table of actions."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import duckdb

from mag.datasets._sql import TIME_UNITS, TIMESTAMPS, column_kinds, quote, quote_name, rewrite
from mag.datasets._table_reader import TableReader


def join_actions(
    connection: duckdb.DuckDBPyConnection,
    reader: TableReader,
    time_unit: str,
    actions: Mapping[str, str],
    within: float,
) -> None:
    r"""Adds to the table :obj:`log` what followed its rows: a column, 0 or 1, for each action, the
    time of the first click where one of them is the :obj:`label`, and the time when all is known.

    Args:
        connection: The connection of the tables.
        reader (TableReader): The table of actions.
        time_unit (str): The unit of times that are numbers.
        actions (dict): From the name of a column to the action it tells of.
        within (float): After how many seconds an action belongs to a row no more.
    """
    kinds = reader.kinds(connection)
    of_log = column_kinds(connection, 'log')
    is_date = {
        name: kind['time'] in (*TIMESTAMPS, 'DATE')
        for name, kind in (('log', of_log), ('action', kinds))
    }
    if is_date['log'] != is_date['action']:
        raise ValueError(
            f'{reader.name} must have times of the kind that the log has, {of_log["time"]}, but '
            f'got {kinds["time"]}.'
        )
    same = ' AND '.join(
        f'action.{key} = log.{key}'
        if of_log[key] == kinds[key]
        else f'action.{key}::VARCHAR = log.{key}::VARCHAR'
        for key in ('user', 'item')
    )
    listed = ', '.join(quote(action) for action in actions.values())
    unit = TIME_UNITS[time_unit]
    if is_date['log']:
        distance = 'epoch(action.time) - epoch(log.time)'
        end = f'log.time + to_microseconds({math.ceil(within * 1e6)})'
    else:
        distance = f'(action.time - log.time) / {unit}'
        end = f'log.time + {math.ceil(within * unit)}'
    # Of rows of one user, item and time the last is followed.
    connection.execute(f"""
        CREATE OR REPLACE TABLE followed AS
        SELECT log.log_position, action.action AS action, action.time AS time
        FROM (
            SELECT *, rowid AS action_position FROM action WHERE action::VARCHAR IN ({listed})
        ) AS action
        ASOF JOIN (
            SELECT user, item, time, max(rowid) AS log_position FROM log GROUP BY user, item, time
        ) AS log
        ON {same} AND action.time >= log.time
        WHERE {distance} <= {within}
    """)
    _warn_of_others(connection, reader, listed)
    flags = ', '.join(
        f'coalesce(bool_or(action::VARCHAR = {quote(action)}), false)::DOUBLE AS {quote_name(name)}'
        for name, action in actions.items()
    )
    first_click = ''
    if 'label' in actions:
        first_click = (
            f', min(time) FILTER (action::VARCHAR = {quote(actions["label"])}) AS first_click'
        )
    values = ', '.join(
        f'coalesce(found.{quote_name(name)}, 0)::DOUBLE AS {quote_name(name)}' for name in actions
    )
    settled = f'greatest(log.settled, {end})' if 'settled' in of_log else end
    replaced = [f'{settled} AS settled']
    if 'label' in actions:
        replaced.append('coalesce(found.first_click, log.time) AS click_time')
    elif 'click_time' not in of_log:
        # A click that the row itself tells of is known before what follows it.
        replaced.append(f'log.{"settled" if "settled" in of_log else "time"} AS click_time')
    dropped = [
        name
        for name in ('settled', 'click_time')
        if name in of_log and (name == 'settled' or 'label' in actions)
    ]
    exclude = f' EXCLUDE ({", ".join(dropped)})' if dropped else ''
    with_actions = f"""
        SELECT log.*{exclude}, {values}, {', '.join(replaced)}
        FROM log LEFT JOIN (
            SELECT log_position, {flags}{first_click}
            FROM followed GROUP BY log_position
        ) AS found ON log.rowid = found.log_position
        ORDER BY log.rowid
    """
    rewrite(connection, 'log', with_actions)
    connection.execute('DROP TABLE followed')


def _warn_of_others(
    connection: duckdb.DuckDBPyConnection, reader: TableReader, listed: str
) -> None:
    ((num_actions, num_followed),) = connection.execute(f"""
        SELECT (SELECT count(*) FROM action WHERE action::VARCHAR IN ({listed})),
               (SELECT count(*) FROM followed)
    """).fetchall()
    if num_followed == 0:
        raise ValueError(
            f'{reader.name} must hold actions such as {listed} after rows of the log of the same '
            f'user and item, but got none.'
        )
    if num_followed < num_actions:
        warnings.warn(
            f'{num_actions - num_followed:,} of {num_actions:,} actions in {reader.name} follow no '
            f'row of the log of their user and item, and are left out.',
            stacklevel=2,
        )


def action_names(actions: Mapping[str, Any] | None) -> dict[str, str]:
    r"""From the names of columns to the actions that they tell of."""
    if actions is None:
        return {}
    found = {role: actions[role] for role in ('label', 'conversion') if role in actions}
    behaviors = actions.get('behaviors', ())
    named = behaviors if isinstance(behaviors, Mapping) else {name: name for name in behaviors}
    return found | dict(named)
