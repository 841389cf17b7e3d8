r"""What users searched for, as ids of terms."""

import duckdb
import numpy as np
import torch
from torch import Tensor

DOMAINS = ('recommendation', 'search')
_MAX_TERMS = 10


def map_queries(connection: duckdb.DuckDBPyConnection, column: str) -> None:
    r"""Creates the tables of a column's queries and of their terms, each with a code."""
    # Queries are mapped like the names of a context, as there are fewer of them than of exposures.
    connection.execute(f"""
        CREATE TABLE {column}_name AS
        SELECT raw, (row_number() OVER () - 1)::INTEGER AS code,
               CASE WHEN len(terms) = 0 THEN [NULL] ELSE terms[:{_MAX_TERMS}] END AS terms
        FROM (
            SELECT DISTINCT log.{column} AS raw,
                   list_filter(log.{column}, lambda term:
                       term::VARCHAR NOT IN ('', 'unknown')
                   ) AS terms
            FROM log
        )
    """)
    # From 1, as 0 is the empty query.
    connection.execute(f"""
        CREATE TABLE {column}_term AS
        SELECT term, (row_number() OVER (ORDER BY term NULLS FIRST))::INTEGER AS code
        FROM (SELECT DISTINCT unnest(terms) AS term FROM {column}_name)
    """)


def fetch_queries(
    connection: duckdb.DuckDBPyConnection, column: str
) -> tuple[Tensor, Tensor, list[str]]:
    r"""Returns the terms of each query, padded with -1, whether it is a search, and the names of
    the terms.
    """
    is_search = connection.execute(
        f'SELECT raw IS NOT NULL AS is_search FROM {column}_name ORDER BY code'
    ).fetchnumpy()['is_search']
    found = connection.execute(f"""
        SELECT query.code AS query, position, term_code.code AS term
        FROM (
            SELECT code, unnest(terms) AS term, generate_subscripts(terms, 1) - 1 AS position
            FROM {column}_name
        ) AS query
        JOIN {column}_term AS term_code ON query.term IS NOT DISTINCT FROM term_code.term
    """).fetchnumpy()
    terms = np.full((is_search.size, found['position'].max(initial=0) + 1), -1)
    terms[~is_search, 0] = 0
    terms[found['query'], found['position']] = found['term']
    rows = connection.execute(f'SELECT term::VARCHAR FROM {column}_term ORDER BY code').fetchall()
    names = ['', *('unknown' if term is None else term for (term,) in rows)]
    return torch.from_numpy(terms), torch.from_numpy(is_search).long(), names
