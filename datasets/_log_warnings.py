r"""What a log says that is hardly meant so."""

import warnings

import duckdb

from mag.datasets._log_actions import action_names
from mag.datasets._sql import column_kinds, count_rows, in_seconds, quote_name
from mag.datasets.log_schema import LogSchema

_YEAR_5000 = 95_617_584_000


def warn_of_late_times(connection: duckdb.DuckDBPyConnection, schema: LogSchema) -> None:
    r"""Warns if the last time can hardly be in the unit that the schema says."""
    seconds = in_seconds('time', column_kinds(connection, 'log')['time'], schema.time_unit)
    (last,) = connection.execute(f'SELECT max({seconds}) FROM log').fetchall()[0]
    if last is not None and last > _YEAR_5000:
        warnings.warn(
            f'The last time, {last:,} seconds after 1970, is beyond the year 5000: if the '
            f'column {schema.columns["time"]!r} is not in {schema.time_unit!r}, pass another '
            f"'time_unit'.",
            stacklevel=2,
        )


def warn_of_late_clicks(connection: duckdb.DuckDBPyConnection) -> None:
    r"""Warns if clicks come later than their rows and nothing tells how late."""
    kinds = column_kinds(connection, 'log')
    if 'click_time' in kinds and 'settled' not in kinds:
        warnings.warn(
            'Clicks have times of their own, but nothing tells since when it is known that a '
            'row was not clicked, so all labels are taken as known at once: training reads '
            "clicks of after its end. Name a column for 'settled'.",
            stacklevel=2,
        )


def warn_of_labels(connection: duckdb.DuckDBPyConnection, schema: LogSchema) -> None:
    r"""Warns of rows that were not clicked and have what follows a click, and of a log of clicks
    alone."""
    flags = [*schema.behaviors]
    if 'conversion' in schema.columns or 'conversion' in action_names(schema.actions):
        flags.append('conversion')
    num_rows = count_rows(connection, 'log')
    counts = ['count(*) FILTER (label > 0)']
    counts += [f'count(*) FILTER (label = 0 AND {quote_name(flag)} > 0)' for flag in flags]
    query = f'SELECT {", ".join(counts)} FROM log'
    num_clicks, *num_lost = connection.execute(query).fetchall()[0]
    lost = [f'{count:,} of {flag!r}' for flag, count in zip(flags, num_lost) if count]
    if lost:
        warnings.warn(
            f'Rows that were not clicked have what follows a click, {", ".join(lost)}: it is 0 '
            f'there.',
            stacklevel=2,
        )
    if num_clicks == num_rows:
        warnings.warn(
            f'Each of the {num_rows:,} rows is a click, and no model learns from these alone: '
            f"name the column that tells the others as 'label', or draw rows without a click "
            f'by mag.transforms.SampleNegatives.',
            stacklevel=2,
        )
