r"""Writes a click log of any length whose users and items follow power laws, as Parquet."""

import os
from pathlib import Path

import duckdb

NUM_CATEGORIES = 50
SECONDS_BETWEEN_CLICKS = 3


def power_law_rank(uniform: str, num_ranks: int, exponent: float) -> str:
    r"""SQL for a rank from 0 whose probability falls like :math:`(rank + 1)^{-exponent}`.

    It inverts the distribution function of the continuous law on :math:`[1, num\_ranks + 1)`, so
    every row is drawn on its own and the log is written as a stream.
    """
    power = 1.0 - exponent
    mass = (num_ranks + 1.0) ** power - 1.0
    rank = f'floor(pow({mass!r} * {uniform} + 1.0, {1.0 / power!r}))::INTEGER - 1'
    return f'least({rank}, {num_ranks - 1})'


def write_power_law_log(
    path: Path,
    num_clicks: int,
    num_users: int | None = None,
    num_items: int | None = None,
    seed: int = 0,
    click_share: float | None = None,
) -> Path:
    r"""Writes clicks with the columns `user`, `item`, `time` and `category`, in order of time.

    Activity of users falls like rank to the power -0.6 and popularity of items like rank to the
    power -0.9. Half of the clicks of a user fall on one favorite category, so that there is
    something to cluster. The same arguments give the same log, whatever the number of threads.

    Args:
        path: The Parquet file to write.
        num_clicks: The number of rows.
        num_users: One for every 100 clicks by default.
        num_items: One for every 250 clicks by default.
        seed: Another seed, another log.
        click_share: Of rows, which are exposures then, how many are clicks, as a column `click` of
            0 and 1.
    """
    num_users = num_users or max(num_clicks // 100, 1)
    num_items = num_items or max(num_clicks // 250 // NUM_CATEGORIES, 1) * NUM_CATEGORIES
    if num_items % NUM_CATEGORIES:
        raise ValueError(
            f"'num_items' must be a multiple of the {NUM_CATEGORIES} categories, but got "
            f'{num_items}.'
        )

    def uniform(draw: int) -> str:
        return f'(hash(range, {draw}, {seed}) / 18446744073709551616.0)'

    click = '' if click_share is None else f', ({uniform(3)} < {click_share})::UTINYINT AS click'
    # Categories take turns down the ranks, so another category of the same block of ranks is as
    # popular.
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    duckdb.sql(f"""
        COPY (
            SELECT user, item, time, item % {NUM_CATEGORIES} AS category{click}
            FROM (
                SELECT
                    range,
                    user,
                    CASE WHEN {uniform(2)} < 0.5
                        THEN rank - rank % {NUM_CATEGORIES}
                            + (hash(user) % {NUM_CATEGORIES})::INTEGER
                        ELSE rank
                    END AS item,
                    1600000000 + range * {SECONDS_BETWEEN_CLICKS} AS time
                FROM (
                    SELECT
                        range,
                        {power_law_rank(uniform(0), num_users, 0.6)} AS user,
                        {power_law_rank(uniform(1), num_items, 0.9)} AS rank
                    FROM range({num_clicks})
                )
            )
        ) TO '{temporary}' (FORMAT parquet)
    """)
    os.replace(temporary, path)
    return path
