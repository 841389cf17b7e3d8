import hashlib
import json
import math
import os
import os.path as osp
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple

import duckdb

from mag.checks import check_choice, check_integers
from mag.datasets import LogSchema
from mag.datasets._event_files import EventFiles, find_files
from mag.datasets._sql import count_rows, quote_name
from mag.datasets._table_source import is_path
from mag.files import BYTE_UNITS, format_bytes
from mag.macro_graph.macro_clusters import Group, MacroClusters, resolutions
from mag.schema import NEIGHBOR_TYPE, Resolution
from mag.store.clusters import cluster_bytes
from mag.store.encode import ROLES
from mag.store.kernels.count_partition import MOST_CLUSTERS
from mag.store.kernels.neighbor_rows import MAX_CLUSTERS
from mag.store.kernels.partition_events import MAX_WINDOWS, PLACE_BITS

COUNTS = ('exact', 'log')
#: What ends the names of the counts over all clusters.
TOTAL = '_total'
# What Python and its libraries take before there is any work.
_BASE = 448 * 2**20
_LEAST = 640 * 2**20
# What an exposure takes on two threads, and each window adds, rounded up from
# benchmarks/speed/scale.md.
_MICROSECONDS = 0.5, 0.05
_SAMPLE = 2**20
_MOST_PARTITIONS = 2**12
# Columns that the log of a store has beside those of the schema.
_RESERVED = ('click', 'file_row_number', '_moment', '_run')


class Sizes(NamedTuple):
    r"""How much a build is, or may be.

    Attributes:
        num_rows (int): The rows of the log.
        num_nodes (dict[str, int]): Users and items.
        num_clusters (dict[str, int]): By the name of the resolution.
        num_windows (int): The windows.
    """

    num_rows: int
    num_nodes: dict[str, int]
    num_clusters: dict[str, int]
    num_windows: int


@dataclass(frozen=True)
class BuildPlan:
    r"""What a store is built of, and how. :func:`~mag.store.build.build` carries it out.

    .. code-block:: python

        plan = BuildPlan('log.yaml', 'store', {'user': 200, 'item': ['category', 300]})
        print(plan.describe())
        build(plan)

    Args:
        log (LogSchema or str): The log in files, or the YAML or JSON file that describes it.
        out (str): The folder of the store, which must not be there, or be the store of this plan.
        groups (dict[str, int or str or list]): For :obj:`"user"` and :obj:`"item"`, a number of
            clusters to learn, or the name of an attribute whose values are the clusters, or a list
            of these, as of :class:`~mag.transforms.MacroCoarsen`.
        cutoffs (list[int], optional): Moments as of which everything is counted, in seconds,
            ascending. By default those of :class:`~mag.transforms.TemporalSplit` with
            :obj:`num_windows`: its training windows, validation and test; and the end of the log.
        num_windows (int, optional): The number of training windows. (default: :obj:`12`)
        num_recent (int, optional): Length of the lists of last neighbors. (default: :obj:`20`)
        behavior (str or dict[str, str], optional): What is clustered, :obj:`"macro"` or
            :obj:`"raw"`, as of :class:`~mag.transforms.MacroCoarsen`. (default: :obj:`None`)
        spherical (bool, optional): Cosine k-means. (default: :obj:`False`)
        projection_dim (int, optional): Width of the :obj:`"raw"` projection. (default: :obj:`256`)
        counts (str, optional): :obj:`"exact"`, or :obj:`"log"` for hop 2 in one byte, see
            :func:`~mag.compression.encode_counts`. (default: :obj:`"exact"`)
        memory_limit (int or str, optional): How many bytes the build may hold, without mapped
            files, such as :obj:`"2GiB"`, at least 640 MiB. (default: :obj:`"2GiB"`)
        seed (int, optional): Seed of the clusters. (default: :obj:`0`)
        threads (int, optional): How many units are computed at once. (default: :obj:`2`)

    Raises:
        FileNotFoundError: If a file of the log is missing.
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, or the log has what a store does not keep.
    """

    log: LogSchema | str | os.PathLike[str]
    out: str | os.PathLike[str]
    groups: Mapping[str, Group]
    cutoffs: Sequence[int] | None = None
    num_windows: int = 12
    num_recent: int = 20
    behavior: str | dict[str, str] | None = None
    spherical: bool = False
    projection_dim: int = 256
    counts: str = 'exact'
    memory_limit: int | str = '2GiB'
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        check_integers(1, below=MAX_WINDOWS - 2, num_windows=self.num_windows)
        check_integers(1, num_recent=self.num_recent, threads=self.threads)
        check_integers(0, below=2**31, seed=self.seed)
        check_choice(COUNTS, counts=self.counts)
        self._check_cutoffs()
        if self.memory < _LEAST:
            raise ValueError(
                f"'memory_limit' must be at least 640MiB, but got {self.memory_limit!r}."
            )
        schema = self.schema
        self._check_roles(schema)
        for of in self.resolutions:
            attributes = [*schema.named(f'{of.node_type}_attributes')]
            if isinstance(of.group, str) and of.group not in attributes:
                raise ValueError(
                    f"'groups' names the attribute {of.group!r} of {of.node_type}s, but the log "
                    f'has {attributes or "none"}.'
                )
            if of.suffix == TOTAL:
                raise ValueError(
                    f"'groups' cannot name {of.group!r} after another group, as a store calls the "
                    f'counts over all clusters that: put it first, or rename the attribute.'
                )
        # It checks the other arguments.
        self.clusters()
        self.check_numbers(
            {of.name: of.group for of in self.resolutions if isinstance(of.group, int)}
        )

    @cached_property
    def schema(self) -> LogSchema:
        r"""The log."""
        if isinstance(self.log, LogSchema):
            return self.log
        if not isinstance(self.log, (str, os.PathLike)):
            raise TypeError(
                f"'log' must be a LogSchema or the path of one, but got {type(self.log).__name__}."
            )
        return LogSchema.load(self.log)

    @cached_property
    def resolutions(self) -> list[Resolution]:
        r"""All groupings of users, and then of items."""
        return resolutions(self.groups)

    def clusters(self) -> MacroClusters:
        r"""The clusters that are learned, which are not fitted."""
        return MacroClusters(
            self.groups, self.behavior, spherical=self.spherical,
            projection_dim=self.projection_dim, seed=self.seed,
        )  # fmt: skip

    @property
    def attributes(self) -> list[tuple[str, str]]:
        r"""The node types and names of the attributes that are no groups."""
        groups = {of.group for of in self.resolutions}
        return [
            (node_type, name)
            for node_type in NEIGHBOR_TYPE
            for name in self.schema.named(f'{node_type}_attributes')
            if name not in groups
        ]

    @cached_property
    def memory(self) -> int:
        r"""How many bytes the build may hold."""
        return parse_bytes(self.memory_limit, 'memory_limit')

    def memory_for(self, work: int) -> str:
        r"""The limit that leaves so many bytes for work, as it may be given."""
        return f'{-(-(work + _BASE) // 2**20)}MiB'

    @property
    def spare(self) -> int:
        r"""What is left of it for work."""
        return self.memory - _BASE

    @property
    def rows(self) -> int:
        r"""How many rows of the log are held at once."""
        # What DuckDB writes of them is held outside of what it counts.
        num_others = len(self.schema.log_fields) - len(NEIGHBOR_TYPE)
        return min(2**22, self.spare // (self.threads * (128 + 64 * num_others)))

    @cached_property
    def facts(self) -> dict[str, Any]:
        r"""What two builds share that write the same bytes, as values of JSON."""
        schema = self.schema
        files = find_files(schema.path, schema.format())
        facts = {
            'columns': schema.columns,
            'time_unit': schema.time_unit,
            'format': schema.own_format,
            'groups': self.groups,
            'cutoffs': None if self.cutoffs is None else [*self.cutoffs],
            'num_windows': self.num_windows if self.cutoffs is None else len(self.cutoffs),
            'num_recent': self.num_recent,
            'behavior': self.clusters().behaviors,
            'spherical': self.spherical,
            'projection_dim': self.projection_dim,
            'counts': self.counts,
            'memory_limit': self.memory,
            'seed': self.seed,
            'files': {osp.abspath(path): file_state(path) for path in files},
        }
        # As they are read again.
        plain: dict[str, Any] = json.loads(json.dumps(facts, default=_plain))
        return plain

    @property
    def fingerprint(self) -> str:
        r"""A hash of them."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def check_same(self, facts: Mapping[str, Any], folder: str) -> None:
        r"""Raises a :class:`ValueError` that names what differs, if a folder was begun or built
        with other arguments, or from other files."""
        here = self.facts
        changed = [repr(name) for name in here if name != 'files' and here[name] != facts.get(name)]
        files = {**facts['files'], **here['files']}
        changed += [
            f'the file {path!r}'
            for path in files
            if facts['files'].get(path) != here['files'].get(path)
        ]
        if changed:
            raise ValueError(
                f'{folder!r} was built with another plan, and differs in '
                f'{", ".join(changed)}: choose another folder, or delete that one.'
            )

    def estimate(self) -> Sizes:
        r"""How much the build will be about: of Parquet files all users and items are read, of
        delimited ones those of the first rows."""
        paths, form = find_files(self.schema.path, self.schema.format()), self.schema.format()
        files = EventFiles(paths, self.schema.log_fields, 'log', form)
        named = [of.group for of in self.resolutions if isinstance(of.group, str)]
        counted = [*NEIGHBOR_TYPE, *named]
        with duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{self.spare // 2}B'")
            connection.execute(f'SET threads = {self.threads}')
            if files.is_parquet:
                queries = files.parquet_queries(connection)
                num_rows = sum(count_rows(connection, f'({query})') for query in queries)
                table = ' UNION ALL '.join(queries)
            else:
                table = files.first_rows(_SAMPLE)
                num_rows = round(sum(map(osp.getsize, paths)) / _bytes_per_line(paths[0]))
            numbers = ', '.join(f'approx_count_distinct({quote_name(name)})' for name in counted)
            found = connection.execute(f'SELECT {numbers} FROM ({table})').fetchall()[0]
        distinct = dict(zip(counted, found, strict=True))
        num_clusters = {
            of.name: of.group if isinstance(of.group, int) else distinct[of.group] + 1
            for of in self.resolutions
        }
        num_nodes = {name: min(distinct[name], num_rows) for name in NEIGHBOR_TYPE}
        return Sizes(num_rows, num_nodes, num_clusters, self.most_windows)

    @property
    def most_windows(self) -> int:
        r"""The number of windows, unless cutoffs fall on one moment."""
        return self.num_windows + 3 if self.cutoffs is None else len(self.cutoffs)

    def num_partitions(self, sizes: Sizes) -> dict[str, int]:
        r"""How many partitions of users and of items the memory asks for."""
        found = {}
        for name, other in NEIGHBOR_TYPE.items():
            num_resolutions = sum(of.node_type == other for of in self.resolutions)
            num_bytes = sizes.num_rows * (24 + 6 * num_resolutions)
            num_bytes += sizes.num_nodes[name] * sizes.num_windows * self.num_recent * 8
            number = 1
            # Some partitions are larger than others.
            while number < _MOST_PARTITIONS and (
                2 * self.threads * num_bytes > number * self.spare
                # A record of SQL has a sign.
                or sizes.num_nodes[name] > number * 2 ** (PLACE_BITS - 1)
            ):
                number *= 2
            found[name] = number
        return found

    def disk(self, sizes: Sizes) -> tuple[int, int]:
        r"""How many bytes are kept, and how many there are at most meanwhile."""
        second = 2 if self.counts == 'exact' else 1
        kept = rows = 0
        for of in self.resolutions:
            number, other = sizes.num_nodes[of.node_type], NEIGHBOR_TYPE[of.node_type]
            num_codes = 3 * sizes.num_windows * sizes.num_clusters[of.name]
            kept += 5 * number + 8 * sizes.num_nodes[other]
            kept += sizes.num_rows * (3 if num_codes <= 2**16 else 5)
            if not of.suffix:
                table = number * sizes.num_windows
                kept += table * (second * sizes.num_clusters[of.name] + 4 * self.num_recent)
                rows += 8 * number
        kept += sum(4 * sizes.num_nodes[node_type] for node_type, _ in self.attributes)
        log = 12 * sizes.num_rows
        mapped, pairs = 16 * sizes.num_rows, 18 * sizes.num_rows
        return kept + log, kept + log + max(mapped, log) + pairs + rows

    def describe(self, sizes: Sizes | None = None) -> str:
        r"""What will be done: rows, bytes of disk and memory, and about how long it takes."""
        sizes = self.estimate() if sizes is None else sizes
        kept, most = self.disk(sizes)
        once, of_window = _MICROSECONDS
        seconds = sizes.num_rows * (once + of_window * sizes.num_windows) / 1e6
        nodes = ' and '.join(f'{number:,} {name}s' for name, number in sizes.num_nodes.items())
        clusters = ', '.join(f'{number:,} of {name}' for name, number in sizes.num_clusters.items())
        per_node = kept // max(1, sum(sizes.num_nodes.values()))
        partitions = self.num_partitions(sizes)
        return (
            f'rows        about {sizes.num_rows:,}, of {nodes}\n'
            f'windows     {sizes.num_windows}, clusters {clusters}\n'
            f'memory      {format_bytes(self.memory)} at most, {self.threads} threads, '
            f'{partitions["user"]} partitions of users and {partitions["item"]} of items\n'
            f'disk        at most {format_bytes(kept)} kept, {per_node:,} B a node, and '
            f'{format_bytes(most)} meanwhile\n'
            f'time        about {timedelta(seconds=math.ceil(seconds))} on two threads'
        )

    def check_fits(self, sizes: Sizes) -> None:
        r"""Raises a :class:`ValueError` if the disk or the memory cannot hold the build."""
        folder = osp.dirname(osp.abspath(self.out))
        free, (_, most) = shutil.disk_usage(folder).free, self.disk(sizes)
        if most > free:
            raise ValueError(
                f'The build needs up to {format_bytes(most)} of disk, but {folder!r} has '
                f'{format_bytes(free)} free: free some, take fewer windows or clusters, '
                f"counts='log', or another folder."
            )
        self._check_clusters(sizes)
        widest = max(sizes.num_clusters[of.name] for of in self.resolutions)
        needed = self.threads * 64 * sizes.num_windows * widest
        if needed > self.spare or max(self.num_partitions(sizes).values()) == _MOST_PARTITIONS:
            raise ValueError(
                f'The build of {sizes.num_rows:,} rows does not fit a memory of '
                f"{format_bytes(self.memory)}: take a larger 'memory_limit', or fewer threads, "
                f'windows or clusters.'
            )

    def check_numbers(self, num_clusters: Mapping[str, int]) -> None:
        r"""Raises a :class:`ValueError` if groups have more clusters than kernels count."""
        for of in self.resolutions:
            # Hop 2 is counted of the first of each.
            most = MOST_CLUSTERS if of.suffix else MAX_CLUSTERS
            number = num_clusters.get(of.name, 0)
            if number > most:
                raise ValueError(
                    f"'groups' has {number:,} clusters of {of.node_type}s by {of.group!r}, but a "
                    f'store counts {most:,} at most: take fewer.'
                )

    def _check_clusters(self, sizes: Sizes) -> None:
        clusters = self.clusters()
        for name in clusters.behaviors:
            number = sizes.num_nodes[name]
            needed = cluster_bytes(clusters, name, number, sizes.num_clusters)
            if needed > self.spare:
                raise ValueError(
                    f'Clusters of {number:,} {name}s are learned from a sample that takes '
                    f'{format_bytes(needed)}, but of a memory of {format_bytes(self.memory)} '
                    f"{format_bytes(self.spare)} are left: take a larger 'memory_limit', fewer "
                    f"clusters, or a smaller 'projection_dim'."
                )

    def _check_cutoffs(self) -> None:
        if self.cutoffs is None:
            return
        cutoffs = [*self.cutoffs]
        named = {f'cutoffs[{place}]': value for place, value in enumerate(cutoffs)}
        check_integers(-(2**63), below=2**63, **named)
        if not cutoffs or cutoffs != sorted(set(cutoffs)) or len(cutoffs) > MAX_WINDOWS:
            raise ValueError(
                f"'cutoffs' must be 1 to {MAX_WINDOWS} moments that ascend, but got {cutoffs}."
            )

    def _check_roles(self, schema: LogSchema) -> None:
        unknown = [role for role in schema.columns if role not in ROLES]
        unknown += [name for name in ('users', 'items', 'actions') if getattr(schema, name)]
        if unknown:
            raise ValueError(
                f'A store keeps {", ".join(ROLES)} of a log, but got {", ".join(unknown)}: leave '
                f'these out, or read the log with EventLog.'
            )
        names = [name for name in schema.log_fields if name.lower() in _RESERVED]
        if names:
            raise ValueError(
                f'A store has a column of its own that is called {names[0]!r}: write '
                f'{{name: column}} to give the column of the log another name.'
            )
        if not is_path(schema.path):
            raise TypeError("'log' must name files, as a store is built of a log that is not held.")


def parse_bytes(given: Any, name: str) -> int:
    r"""A number of bytes, which may be written as :obj:`'2GiB'`.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    match = re.fullmatch(r'([0-9]+(?:\.[0-9]+)?) ?(B|[KMGT]iB)', str(given))
    if match is None:
        raise ValueError(
            f"'{name}' must be a number of bytes, such as '2GiB' or '512MiB', but got {given!r}."
        )
    return int(float(match[1]) * BYTE_UNITS[match[2]])


def file_state(path: str) -> list[int]:
    r"""By what a changed file is told, without reading it."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _bytes_per_line(path: str) -> float:
    with open(path, 'rb') as file:
        start = file.read(_SAMPLE)
    return len(start) / max(1, start.count(b'\n'))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else [*value]
