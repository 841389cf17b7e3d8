r"""Snapshots that a server loads by their names, each with the pipeline that it is of."""

import os
import os.path as osp
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import Module

from mag.online import (
    Consumer,
    EventStream,
    FeatureCenter,
    IdRegister,
    RedisCenter,
    RedisIdRegister,
    RedisStream,
    Replica,
    RowLayout,
    Scorer,
    Snapshot,
    SnapshotRanker,
    SqliteCenter,
    SqliteIdRegister,
    SqliteStream,
    checksum_of,
    connect,
    load_program,
)
from mag.pipeline.followed_log import num_shared, share_ids
from mag.pipeline.known_log import KnownLog
from mag.pipeline.pipeline import Pipeline
from mag.pipeline.pipeline_ranker import is_pipeline, make_pipeline_server
from mag.pipeline.raw_log import RawLog
from mag.pipeline.saved import read_whole
from mag.pipeline.snapshot import events_of, pieces_of
from mag.pipeline.stored_log import StoredLog

if TYPE_CHECKING:
    from mag.online import Server

#: Behind the name of a snapshot.
PIPELINE = '.pipeline'
# Seconds between looks at the end of a log.
_IDLE = 0.02


def write_served(
    pipeline: Pipeline,
    root: str | os.PathLike[str],
    log: str | None = None,
    at: int | None = None,
    program: bool = False,
    compile: bool = False,
) -> str:
    r"""Writes a snapshot, and beside it the pipeline, under the same name with :obj:`.pipeline` at
    its end: it knows what the model is made of, and the events before the snapshot.

    Args:
        pipeline (Pipeline): One that was fitted.
        root (str): The folder that gets both, which is made if there is none.
        log (str, optional): A log, see :func:`open_log`, whose later events the pipeline reads
            first. (default: :obj:`None`)
        at (int, optional): The position in it that the snapshot is as of. By default its end.
        program (bool, optional): See :meth:`Pipeline.snapshot`. (default: :obj:`False`)
        compile (bool, optional): See there. (default: :obj:`False`)

    Returns:
        The path of the snapshot.

    Raises:
        OSError: If the log cannot be read.
        RuntimeError: If the pipeline has not been fitted, or cannot be compiled.
        ValueError: If there can be no snapshot, see :meth:`Pipeline.snapshot`.
    """
    if log is None:
        path = pipeline.snapshot(root, at=at, program=program, compile=compile)
    else:
        with open_log(log) as stream, open_register(log) as register, _readable(log):
            path = pipeline.snapshot(root, stream, register, at, program, compile)
    pipeline.save(path + PIPELINE)
    return path


@contextmanager
def _readable(log: str) -> Iterator[None]:
    r"""Tells of a log that cannot be read in a sentence."""
    import sqlite3

    errors: tuple[type[Exception], ...] = (sqlite3.Error, *_redis_errors())
    try:
        yield
    except errors as error:
        raise OSError(f'The log {_shown(log)!r} cannot be read: {error}') from error


def _shown(url: str) -> str:
    # Before the host there may be a password.
    return url.rpartition('@')[2]


def open_log(where: str) -> EventStream:
    r"""Opens the log of events in a file of SQLite, or in the Redis server of a URL.

    Raises:
        ConnectionError: If the server cannot be reached or refuses.
        OSError: If the file cannot be opened.
        ValueError: If the file is another one, or the URL none.
    """
    if '://' not in where:
        return _opened('log', where, SqliteStream)
    return RedisStream(_connected('log', where))


def open_register(where: str) -> IdRegister:
    r"""Opens the register of ids beside a log.

    Args and errors are those of :func:`open_log`.
    """
    if '://' not in where:
        return _opened('log', where, SqliteIdRegister)
    return RedisIdRegister(_connected('log', where))


def open_center(where: str, layout: RowLayout) -> FeatureCenter:
    r"""Opens the rows that consumers count in a file of SQLite, or in the Redis server of a URL.

    Args:
        where (str): The file or the URL.
        layout (RowLayout): How rows are packed.

    Raises:
        ConnectionError: If the server cannot be reached or refuses.
        OSError: If the file cannot be opened.
        ValueError: If the file is another one, the URL none, or the rows are packed otherwise.
    """
    if '://' not in where:
        return _opened('centre', where, lambda path: SqliteCenter(path, layout))
    return RedisCenter(_connected('centre', where), layout)


def _opened(kind: str, path: str, make: Callable[[str], Any]) -> Any:
    import sqlite3

    if not osp.isdir(folder := osp.dirname(osp.abspath(path))):
        raise FileNotFoundError(f'There is no folder {folder!r} for the {kind}.')
    try:
        return make(path)
    except sqlite3.Error as error:
        raise OSError(f'The {kind} {path!r} cannot be opened: {error}.') from error


def _connected(kind: str, url: str) -> Any:
    try:
        return connect(url)
    except _redis_errors() as error:
        raise ConnectionError(
            f'The {kind} in Redis at {_shown(url)!r} cannot be opened: {error}'
        ) from error


def _redis_errors() -> tuple[type[Exception], ...]:
    try:
        from redis import RedisError
    except ModuleNotFoundError:
        return ()
    return (RedisError,)


def consume(
    snapshot: str | os.PathLike[str],
    log: str,
    center: str,
    shard: int = 0,
    num_shards: int = 1,
    started: Callable[[int], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> int:
    r"""Counts the events of a log in a centre by the clusters of a snapshot, as they come.

    Args:
        snapshot (str): The folder of the snapshot.
        log (str): The log, see :func:`open_log`.
        center (str): The centre, see :func:`open_center`.
        shard (int, optional): See :class:`~mag.online.Consumer`. (default: :obj:`0`)
        num_shards (int, optional): How many there are. (default: :obj:`1`)
        started (Callable[[int], None], optional): Told the position that it goes on from, once it
            has claimed its shard. (default: :obj:`None`)
        until (Callable[[], bool], optional): Asked between steps whether to end.
            (default: :obj:`None`)

    Returns:
        The position that its rows are as of in the end.

    Raises:
        ConnectionError: If Redis is lost.
        Fenced: If another claims the shard.
        OSError: If the log or the centre cannot be opened.
        ValueError: If the snapshot is damaged, or the centre was filled by other clusters.
    """
    found = Snapshot.open(snapshot).verify()
    clusters = {
        node: [torch.tensor(of, dtype=torch.long) for of in found.clusters[node]]
        for node in found.clusters
    }
    with open_log(log) as stream, open_center(center, found.layout) as rows:
        consumer = Consumer(stream, rows, found.layout, clusters, shard, num_shards)
        if started is not None:
            started(consumer.position)
        try:
            while until is None or not until():
                if consumer.step() == 0:
                    time.sleep(_IDLE)
        except _redis_errors() as error:
            raise ConnectionError(
                f'Redis was lost at position {consumer.position}, from where counting goes on when '
                f'it is started again: {error}'
            ) from error
        return consumer.position


class SnapshotLoader:
    r"""Loads the snapshots of a folder by their names, for a server whose events are in one log.

    Events before a snapshot are the first of the log. They are compared by their checksum, so that
    no snapshot is served by the log of another.

    A snapshot with a program is answered by it, or by its native code if that is trusted, and needs
    no pipeline where the log has the events before it; others by the model of the pipeline.

    Args:
        root (str): The folder that :func:`write_served` wrote to.
        log (str): The log, see :func:`open_log`.
        trust_compiled (Sequence[str], optional): See :func:`~mag.online.load_program`.
            (default: :obj:`()`)
        fall_back (bool, optional): See there. (default: :obj:`False`)

    Attributes:
        maps (dict[str, IdMap]): The ids of users and items in the snapshot that was loaded last.
    """

    def __init__(
        self, root: str, log: str, trust_compiled: Sequence[str] = (), fall_back: bool = False
    ) -> None:
        self.root, self.log = root, log
        self.trust_compiled, self.fall_back = trust_compiled, fall_back
        self.maps: dict[str, Any] = {}

    def __call__(self, name: str, fill: bool = False) -> SnapshotRanker:
        r"""What answers by a snapshot.

        Args:
            name (str): Its name.
            fill (bool, optional): If set to :obj:`True`, what the log lacks of the events before
                the snapshot is appended to it. (default: :obj:`False`)

        Raises:
            FileNotFoundError: If there is no such snapshot, or a pipeline is needed and not beside
                it.
            ValueError: If one is damaged, the log has other events, or native code is not trusted.
        """
        if name in ('', '.', '..') or osp.basename(name) != name:
            raise ValueError(
                f'A snapshot is named as its folder in {self.root!r}, but got {name!r}.'
            )
        snapshot = Snapshot.open(osp.join(self.root, name)).verify()
        beside = snapshot.path + PIPELINE
        has_program = snapshot.manifest['program'] is not None
        has_pipeline = osp.isdir(beside)
        if not has_pipeline and not has_program:
            raise FileNotFoundError(
                f'There is no folder {beside!r} with the pipeline of the snapshot: write both by '
                f'mag snapshot, or a snapshot with a program.'
            )
        if has_program or self.trust_compiled:
            model: Module = load_program(snapshot, self.trust_compiled, self.fall_back)
        else:
            model = Pipeline.load(beside).model
            model.load_state_dict(snapshot.weights())

        def make() -> Scorer:
            with ExitStack() as opened:
                stream = opened.enter_context(open_log(self.log))
                register = opened.enter_context(open_register(self.log))
                _fill(stream, snapshot, beside if fill and has_pipeline else None)
                if not register.has_begun:
                    _require_known(stream, snapshot)
                share_ids(register, snapshot.id_maps)
                scorer = Scorer(snapshot, Replica(snapshot, stream), model, register)
                # They are closed with it.
                opened.pop_all()
            return scorer

        ranker = SnapshotRanker(make)
        self.maps = snapshot.id_maps
        return ranker


def _fill(stream: EventStream, snapshot: Snapshot, pipeline: str | None) -> None:
    r"""Appends what a log lacks of the events before a snapshot, if a saved pipeline tells them.
    What it has is compared by its checksum, when it is read on."""
    start, end = stream.start, stream.end
    if start > snapshot.position:
        raise ValueError(
            f'The log starts at position {start}, but {snapshot!r} is as of an earlier one, and '
            f'the events between are trimmed: serve a later snapshot.'
        )
    if end >= snapshot.position:
        return
    if pipeline is None:
        raise ValueError(
            f'The log ends at position {end}, but {snapshot!r} is as of a later one, and '
            f'no pipeline beside it is asked for the events between.'
        )
    log, position = read_whole(pipeline, _log), 0
    try:
        if isinstance(log, RawLog):
            events = events_of(log)
            # Another server may fill it at the same time.
            position = num_shared(stream, events)
            lacking = events[position:]
            is_known = checksum_of(lacking, stream.checksum(position)) == snapshot.checksum
            pieces: Iterable[np.ndarray] = [lacking] if is_known else []
        else:
            # Nothing was read into a store from a log, so that times are the same.
            is_known, pieces = True, pieces_of(log)
        for events in pieces:
            stream.append(events, position)
            position += len(events)
    except ValueError as error:
        raise ValueError(
            f'The log must begin with the events before {snapshot!r}, but does not: {error}'
        ) from error
    if not is_known:
        raise ValueError(
            f'The log lacks events from position {position} on whose times went back, which '
            f'{pipeline!r} has raised: write a snapshot of that pipeline alone for a new log, and '
            f'serve it.'
        )


def _log(folder: str, manifest: dict[str, Any]) -> KnownLog:
    r"""The log of a saved pipeline, without its model."""
    if 'store' in manifest:
        return StoredLog.load(folder, manifest, ())
    return RawLog.load(folder, manifest)


def _require_known(stream: EventStream, snapshot: Snapshot) -> None:
    r"""Raises a :class:`ValueError` if later events are of users or items that a snapshot, which
    is the first for a register, does not have: their numbers would be given to others."""
    position = max(snapshot.position, stream.start)
    while len(events := stream.read(position, 2**16)) > 0:
        for node, number in snapshot.num_nodes.items():
            if (most := int(events[node].max())) >= number:
                raise ValueError(
                    f'The log has events of {node} {most}, but {snapshot!r} has {number} {node}s, '
                    f'and nothing tells the ids of others: serve the latest snapshot first.'
                )
        position += len(events)


def make_server(
    snapshot: str | os.PathLike[str],
    log: str | None = None,
    trust_compiled: Sequence[str] = (),
    fall_back: bool = False,
    **options: Any,
) -> 'Server':
    r"""A server that answers by a snapshot that :func:`write_served` wrote, or by a pipeline of any
    model, and records to a log. What the log lacks of the events before is appended to it.

    Args:
        snapshot (str): The folder of the snapshot, or of a pipeline, see
            :func:`~mag.pipeline.pipeline_ranker.make_pipeline_server`; a swap names others beside
            it.
        log (str, optional): The log, see :func:`open_log`; a pipeline is served without one, too,
            and records no events then. (default: :obj:`None`)
        trust_compiled (Sequence[str], optional): See :func:`~mag.online.load_program`.
            (default: :obj:`()`)
        fall_back (bool, optional): See there. (default: :obj:`False`)
        **options (optional): Further arguments of :class:`~mag.online.Server`.

    Raises:
        FileNotFoundError: If there is no such snapshot, or no pipeline beside one that needs it.
        ModuleNotFoundError: If gRPC is not installed.
        OSError: If the log cannot be opened.
        ValueError: If a folder is damaged, the log has other events, native code is not trusted, or
            the options are refused.
    """
    from mag.online import Server

    if is_pipeline(snapshot):
        open_stream = None if log is None else partial(open_log, log)
        return make_pipeline_server(snapshot, open_stream, **options)
    if log is None:
        raise ValueError(
            f"'log' must tell where the events after a snapshot are, but was not given for "
            f'{os.fspath(snapshot)!r}, which is no saved pipeline.'
        )
    root, name = osp.split(osp.realpath(osp.expanduser(snapshot)))
    load = SnapshotLoader(root, log, trust_compiled, fall_back)
    ranker = load(name, fill=True)
    if options.get('admin_port') is not None:
        options['load'] = load
    try:
        return Server(
            ranker,
            open_stream=lambda: open_log(log),
            nodes=lambda node_type, raw: load.maps[node_type].encode(raw),
            open_register=lambda: open_register(log),
            **options,
        )
    except BaseException:
        ranker.close()
        raise
