r"""What the columns of a log must hold, and what they mean where they hold nothing."""

from collections.abc import Mapping

import duckdb
import numpy as np

from mag.datasets._sql import TIMESTAMPS, column_kinds, quote, quote_name, rewrite
from mag.datasets._table_reader import rules_of_ids
from mag.datasets._table_source import Field
from mag.datasets._values import Rule

# Somewhat below 2^63, as the seconds are worked out in 64 bits.
_LAST_TIME = 9_200_000_000_000_000_000
_LARGEST = float(np.finfo(np.float32).max)
# What is smaller has fewer digits or is 0.
_SMALLEST_WEIGHT = float(np.finfo(np.float32).smallest_normal)
#: How a log writes its domains, in lower case.
SEARCH = ('search', '1', '1.0', 'true')
RECOMMENDATION = ('recommendation', '0', '0.0', 'false')


def rules_of(fields: Mapping[str, Field], kinds: Mapping[str, str]) -> list[Rule]:
    r"""What the columns must hold, of a table with columns of these types."""
    rules = rules_of_ids(fields, kinds)
    for name, field in fields.items():
        quoted = quote_name(name)
        if field.kind == 'time':
            is_time = f'{name} BETWEEN {-_LAST_TIME} AND {_LAST_TIME}'
            is_time = f'isfinite({name})' if kinds[name] in TIMESTAMPS else is_time
            is_time = is_time if field.is_required else f'label = 0 OR {is_time}'
            rules.append(Rule(name, is_time, 'a finite time that fits 64 bits'))
        elif field.kind == 'flag':
            rules.append(Rule(name, f'{quoted} IN (0, 1)', '0 or 1'))
        elif name == 'weight':
            is_weight = f'weight = 0 OR weight BETWEEN {_SMALLEST_WEIGHT} AND {_LARGEST}'
            rules.append(Rule(name, is_weight, '0 or a positive number that fits a float32'))
        elif field.kind == 'number':
            is_number = f'{quoted} BETWEEN {-_LARGEST} AND {_LARGEST}'
            rules.append(Rule(name, is_number, 'a number that fits a float32'))
    if 'click_time' in fields:
        is_after = 'label = 0 OR click_time >= time'
        rules.append(Rule('click_time', is_after, 'no time before that of the row, {time}'))
    if 'settled' in fields:
        rules.append(Rule('settled', 'settled >= time', 'no time before that of the row, {time}'))
    if 'domain' in fields:
        rules.append(
            Rule('domain', _in('domain', (*SEARCH, *RECOMMENDATION)), 'search or recommendation')
        )
        if 'query' in fields:
            is_fit = f'query IS NULL OR len(query) = 0 OR {_in("domain", SEARCH)}'
            rules.append(Rule('query', is_fit, 'nothing where the domain is {domain}'))
    return rules


def fill_missing(connection: duckdb.DuckDBPyConnection, fields: Mapping[str, Field]) -> None:
    r"""Writes what a missing query or time of a click means."""
    values = {}
    if 'click_time' in fields:
        values['click_time'] = 'CASE WHEN label = 0 THEN time ELSE click_time END'
    if 'domain' in fields:
        if 'query' not in fields:
            connection.execute('ALTER TABLE log ADD COLUMN query VARCHAR[]')
        # A search without terms is one, too.
        kind = column_kinds(connection, 'log')['query']
        is_search = _in('domain', SEARCH)
        values['query'] = f'CASE WHEN {is_search} THEN coalesce(query, []::{kind}) END'
    if not values:
        return
    # An update would give rows with lists other numbers.
    replaced = ', '.join(f'{value} AS {name}' for name, value in values.items())
    rewrite(connection, 'log', f'SELECT * REPLACE ({replaced}) FROM log ORDER BY rowid')


def _in(name: str, words: tuple[str, ...]) -> str:
    return f'lower({name}::VARCHAR) IN ({", ".join(map(quote, words))})'
