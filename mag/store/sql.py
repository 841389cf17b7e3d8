r"""The counts of the macro graph as SQL: one text for DuckDB, Spark and Sail.

Each function returns a query over tables or views that the caller has made:

* the log, with a row an exposure: :obj:`user` and :obj:`item`, nodes; :obj:`time`, an integer in
  seconds; :obj:`click`, a boolean; and :obj:`log_row`, the place of the row in the log. Rows of one
  second keep that order, as in :class:`~mag.transforms.RecentNeighbors`; no engine keeps it by
  itself.
* the clusters of users, and those of items, with a row a node: :obj:`node`; and for each resolution
  its cluster, such as :obj:`cluster` or :obj:`cluster_50`, :obj:`-1` for none, and under
  :obj:`cluster_window` the first window that knows it, :obj:`0` where all do.

The cutoffs :math:`c_0 < \dots < c_{S-1}` cut the log into windows; window :math:`s` knows what came
before :math:`c_s`.
"""

from collections.abc import Sequence

from mag.checks import check_choice, check_integers
from mag.macro_graph import TargetView
from mag.schema import NEIGHBOR_TYPE


def distinct_pairs(log: str, cutoffs: Sequence[int]) -> str:
    r"""The pairs of a user and an item with a click, and the first window that knows each.

    Args:
        log: The log.
        cutoffs: The cutoffs, int seconds, ascending.

    Returns:
        A query of the columns :obj:`user`, :obj:`item` and :obj:`first_window`.
    """
    return (
        f'SELECT user, item, MIN(first_window) AS first_window '
        f'FROM ({_history(log, cutoffs)}) history WHERE click GROUP BY user, item'
    )


def hop_one(
    log: str, clusters: str, node_type: str, cutoffs: Sequence[int], cluster: str = 'cluster'
) -> str:
    r"""What each node met of each cluster of its neighbors: exposures and clicks as events, and
    clicks as distinct pairs.

    An event counts from the first window that knows both, it and that its neighbor is one of the
    cluster, as in :class:`~mag.macro_graph.SparseCounts`. A row tells what that window adds: the
    counts as of a window are sums over it and all before.

    Args:
        log: The log.
        clusters: The clusters of the neighbors.
        node_type: :obj:`"user"` or :obj:`"item"`.
        cutoffs: The cutoffs, int seconds, ascending.
        cluster: The resolution. (default: :obj:`"cluster"`)

    Returns:
        A query of the columns :obj:`node`, :obj:`cluster`, :obj:`first_window`, :obj:`exposures`,
        :obj:`clicks` and :obj:`pairs`.
    """
    check_choice(NEIGHBOR_TYPE, node_type=node_type)
    neighbor = NEIGHBOR_TYPE[node_type]
    known = f'GREATEST(event.first_window, of.{cluster}_window)'
    events = (
        f'SELECT {node_type} AS node, {neighbor} AS neighbor, first_window, 1 AS exposures, '
        f'CAST(click AS INT) AS clicks, 0 AS pairs FROM ({_history(log, cutoffs)}) history '
        f'UNION ALL SELECT {node_type}, {neighbor}, first_window, 0, 0, 1 '
        f'FROM ({distinct_pairs(log, cutoffs)}) pair'
    )
    sums = ', '.join(
        f'CAST(SUM(event.{name}) AS BIGINT) AS {name}' for name in ('exposures', 'clicks', 'pairs')
    )
    return (
        f'SELECT event.node AS node, of.{cluster} AS cluster, {known} AS first_window, {sums} '
        f'FROM ({events}) event JOIN {clusters} of ON event.neighbor = of.node '
        f'WHERE of.{cluster} >= 0 AND of.{cluster}_window < {len(cutoffs)} '
        f'GROUP BY event.node, of.{cluster}, {known}'
    )


def recents(log: str, node_type: str, cutoffs: Sequence[int], num_recent: int) -> str:
    r"""The last clicked neighbors of each node, as of each window.

    Args:
        log: The log.
        node_type: :obj:`"user"` or :obj:`"item"`.
        cutoffs: The cutoffs, int seconds, ascending.
        num_recent: How many.

    Returns:
        A query of the columns :obj:`node`, :obj:`as_of`, the window, :obj:`age`, 1 for the newest,
        and :obj:`neighbor`.
    """
    check_choice(NEIGHBOR_TYPE, node_type=node_type)
    check_integers(1, num_recent=num_recent)
    # What no window of its own keeps, none keeps: so that little is copied into later windows.
    newest = (
        f'SELECT {node_type} AS node, {NEIGHBOR_TYPE[node_type]} AS neighbor, first_window, time, '
        f'log_row, ROW_NUMBER() OVER (PARTITION BY {node_type}, first_window '
        f'ORDER BY time DESC, log_row DESC) AS own_age '
        f'FROM ({_history(log, cutoffs)}) history WHERE click'
    )
    as_of = ' UNION ALL '.join(f'SELECT {step} AS as_of' for step in range(len(cutoffs)))
    aged = (
        f'SELECT newest.node AS node, step.as_of AS as_of, newest.neighbor AS neighbor, '
        f'ROW_NUMBER() OVER (PARTITION BY newest.node, step.as_of '
        f'ORDER BY newest.time DESC, newest.log_row DESC) AS age '
        f'FROM ({newest}) newest JOIN ({as_of}) step ON newest.first_window <= step.as_of '
        f'WHERE newest.own_age <= {num_recent}'
    )
    return f'SELECT node, as_of, age, neighbor FROM ({aged}) aged WHERE age <= {num_recent}'


def records(log: str, node_type: str, cutoffs: Sequence[int], num_partitions: int) -> str:
    r"""The events of each partition of nodes as records, 8 bytes each, for
    :func:`~mag.store.kernels.count_partition`.

    Args:
        log: The log.
        node_type: Whose partitions, :obj:`"user"` or :obj:`"item"`.
        cutoffs: The cutoffs, int seconds, ascending.
        num_partitions: How many, a power of two.

    Returns:
        A query of the columns :obj:`partition_number`; :obj:`record`, as
        :func:`~mag.store.kernels.partition_events` writes it, BIGINT; and :obj:`time` and
        :obj:`log_row`, by whose order a partition is counted.
    """
    # They need numba, which queries do without.
    from mag.store.kernels.partition_events import NEIGHBOR, PLACE

    check_choice(NEIGHBOR_TYPE, node_type=node_type)
    check_choice([2**power for power in range(24)], num_partitions=num_partitions)
    node, neighbor = (f'CAST({name} AS BIGINT)' for name in (node_type, NEIGHBOR_TYPE[node_type]))
    number = f'{node} % {num_partitions}'
    # No engine divides integers by the same word as another: the place is shifted by a product.
    record = (
        f'({node} - {number}) * {2**PLACE // num_partitions} + {neighbor} * {2**NEIGHBOR} '
        f'+ first_window * 2 + CAST(click AS INT)'
    )
    return (
        f'SELECT CAST({number} AS INT) AS partition_number, {record} AS record, '
        f'CAST(time AS BIGINT) AS time, CAST(log_row AS BIGINT) AS log_row '
        f'FROM ({_history(log, cutoffs)}) history'
    )


def fresh_rows(log: str, cutoffs: Sequence[int]) -> str:
    r"""The rows from the first cutoff on, asking what was known just before each."""
    check_cutoffs(cutoffs)
    return f'SELECT log_row, user, item, time AS moment FROM {log} WHERE time >= {cutoffs[0]}'


def stale_rows(log: str, cutoffs: Sequence[int]) -> str:
    r"""The rows from the first cutoff on, asking what was known as of the last cutoff before each
    or at its time."""
    check_cutoffs(cutoffs)
    last = ' '.join(f'WHEN time >= {cutoff} THEN {cutoff}' for cutoff in reversed(cutoffs))
    return (
        f'SELECT log_row, user, item, CASE {last} END AS moment FROM {log} '
        f'WHERE time >= {cutoffs[0]}'
    )


def target_counts(
    log: str,
    rows: str,
    clusters: dict[str, str],
    views: Sequence[TargetView],
    cutoffs: Sequence[int],
) -> str:
    r"""The exposures and clicks that each row's views hold strictly before its moment, as
    :class:`~mag.transforms.TargetCounts` counts them.

    A node counts as one of its cluster from the moment at which that became known; before, it is of
    none.

    Args:
        log: The log.
        rows: A query of who asks, such as :func:`fresh_rows` and :func:`stale_rows`, of the columns
            :obj:`log_row`, :obj:`user`, :obj:`item` and :obj:`moment`.
        clusters: For :obj:`"user"` and :obj:`"item"` the clusters.
        views: What is counted, by nodes and clusters.
        cutoffs: The cutoffs, int seconds, ascending.

    Returns:
        A query of the columns :obj:`log_row`, and :obj:`exposures_0` and :obj:`clicks_0` for the
        first view, and so on.

    Raises:
        ValueError: If a view counts by an attribute of exposures.
    """
    for view in views:
        if view.exposure is not None:
            raise ValueError(
                f'target_counts counts by nodes and clusters, but {view.name!r} names an attribute '
                f'of exposures: count it with TargetCounts.'
            )
    events = (
        f'SELECT -1 AS log_row, user, item, time AS moment, {_window("time", cutoffs)} AS '
        f'num_passed, 1 AS exposures, CAST(click AS INT) AS clicks FROM {log} '
        # Whoever asks weighs nothing.
        f'UNION ALL SELECT log_row, user, item, moment, {_window("moment", cutoffs)}, 0, 0 '
        f'FROM ({rows}) asking'
    )
    asked = {
        node_type: sorted(
            {name for view in views if (name := getattr(view, node_type)) is not None}
        )
        for node_type in NEIGHBOR_TYPE
    }
    keys = [
        f'{_known(node_type, name)} AS {node_type}_{name}'
        for node_type, names in asked.items()
        for name in names
    ]
    keyed = (
        f'SELECT event.log_row AS log_row, event.moment AS moment, '
        f'event.exposures AS exposures, event.clicks AS clicks, {", ".join(keys)} '
        f'FROM ({events}) event '
        f'LEFT JOIN {clusters["user"]} of_user ON event.user = of_user.node '
        f'LEFT JOIN {clusters["item"]} of_item ON event.item = of_item.node'
    )
    sums = []
    for place, view in enumerate(views):
        key = [f'{name}_{of}' for name in NEIGHBOR_TYPE if (of := getattr(view, name)) is not None]
        by_key = f'PARTITION BY {", ".join(key)} ' if key else ''
        before = f'OVER ({by_key}ORDER BY moment RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)'
        sums += [
            f'CAST(COALESCE(SUM({name}) {before}, 0) AS BIGINT) AS {name}_{place}'
            for name in ('exposures', 'clicks')
        ]
    columns = ', '.join(
        f'{name}_{place}' for place in range(len(views)) for name in ('exposures', 'clicks')
    )
    return (
        f'SELECT log_row, {columns} FROM (SELECT log_row, {", ".join(sums)} FROM ({keyed}) keyed) '
        f'counted WHERE log_row >= 0'
    )


def check_cutoffs(cutoffs: Sequence[int]) -> None:
    r"""Raises unless cutoffs are integers that ascend."""
    check_integers(**{f'cutoffs[{place}]': cutoff for place, cutoff in enumerate(cutoffs)})
    if not cutoffs or any(later <= cutoff for cutoff, later in zip(cutoffs, cutoffs[1:])):
        raise ValueError(
            f"'cutoffs' must be one or more that ascend, int seconds, but got {list(cutoffs)}."
        )


def _window(time: str, cutoffs: Sequence[int]) -> str:
    r"""The number of cutoffs at or before a time, which is the first window that knows it."""
    check_cutoffs(cutoffs)
    cases = ' '.join(f'WHEN {time} < {cutoff} THEN {step}' for step, cutoff in enumerate(cutoffs))
    return f'CASE {cases} ELSE {len(cutoffs)} END'


def _history(log: str, cutoffs: Sequence[int]) -> str:
    r"""What any window knows."""
    return (
        f'SELECT user, item, time, click, log_row, {_window("time", cutoffs)} AS first_window '
        f'FROM {log} WHERE time < {cutoffs[-1]}'
    )


def _known(node_type: str, name: str) -> str:
    r"""A node, or its cluster, as far as that is known when an event comes: from the cutoff of its
    first window on."""
    if name == 'id':
        return f'event.{node_type}'
    of = f'of_{node_type}.{name}'
    return (
        f'CASE WHEN {of} >= 0 AND ({of}_window = 0 OR {of}_window < event.num_passed) THEN {of} '
        f'ELSE -1 END'
    )
