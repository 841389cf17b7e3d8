r"""Snapshots that a server loads by their names, each with the pipeline that it is of."""

import os
import os.path as osp
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import Module

from mag.online import (
    EVENT,
    Consumer,
    EventStream,
    FeatureCenter,
    RedisCenter,
    RedisStream,
    Replica,
    RowLayout,
    Scorer,
    Snapshot,
    SnapshotRanker,
    SqliteCenter,
    SqliteStream,
    connect,
    load_program,
)
from mag.pipeline.known_log import KnownLog
from mag.pipeline.pipeline import Pipeline
from mag.pipeline.raw_log import RawLog
from mag.pipeline.saved import read_whole
from mag.pipeline.snapshot import pieces_of
from mag.pipeline.stored_log import StoredLog

if TYPE_CHECKING:
    from mag.online import Server

# Behind the name of a snapshot.
_PIPELINE = '.pipeline'
# Seconds between looks at the end of a log.
_IDLE = 0.02


def write_served(
    pipeline: Pipeline,
    root: str | os.PathLike[str],
    program: bool = False,
    compile: bool = False,
) -> str:
    r"""Writes a snapshot, and beside it the pipeline, under the same name with :obj:`.pipeline` at
    its end: it knows what the model is made of, and the events before the snapshot.

    Args:
        pipeline (Pipeline): One that was fitted.
        root (str): The folder that gets both, which is made if there is none.
        program (bool, optional): See :meth:`Pipeline.snapshot`. (default: :obj:`False`)
        compile (bool, optional): See there. (default: :obj:`False`)

    Returns:
        The path of the snapshot.

    Raises:
        RuntimeError: If the pipeline has not been fitted, or cannot be compiled.
        ValueError: If there can be no snapshot, see :meth:`Pipeline.snapshot`.
    """
    path = pipeline.snapshot(root, program, compile)
    pipeline.save(path + _PIPELINE)
    return path


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
        # Before the host there may be a password.
        raise ConnectionError(
            f'The {kind} in Redis at {url.rpartition("@")[2]!r} cannot be opened: {error}'
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

    Events before a snapshot are the first of the log. They are compared, so that no snapshot is
    served by the log of another: with those of the pipeline beside it, or where there is none, at
    least its time with that of the last of them.

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
        beside = snapshot.path + _PIPELINE
        has_program = snapshot.manifest['program'] is not None
        has_pipeline = osp.isdir(beside)
        if not has_pipeline and not has_program:
            raise FileNotFoundError(
                f'There is no folder {beside!r} with the pipeline of the snapshot: write both by '
                f'mag snapshot, or a snapshot with a program.'
            )
        pieces: Callable[[], Iterator[np.ndarray]] | None = None
        if has_program or self.trust_compiled:
            model: Module = load_program(snapshot, self.trust_compiled, self.fall_back)
            if has_pipeline:
                pieces = partial(pieces_of, read_whole(beside, _log))
        else:
            pipeline = Pipeline.load(beside)
            model, pieces = pipeline.model, pipeline.event_pieces
            model.load_state_dict(snapshot.weights())

        def make() -> Scorer:
            stream = open_log(self.log)
            try:
                self._compare(snapshot, stream, pieces, fill)
                return Scorer(snapshot, Replica(snapshot, stream), model)
            except BaseException:
                stream.close()
                raise

        ranker = SnapshotRanker(make)
        self.maps = snapshot.id_maps
        return ranker

    def _compare(
        self,
        snapshot: Snapshot,
        stream: EventStream,
        pieces: Callable[[], Iterator[np.ndarray]] | None,
        fill: bool,
    ) -> None:
        r"""Raises unless a log begins with the events before a snapshot."""
        position = snapshot.position
        if (end := stream.end) < position and (pieces is None or not fill):
            reason = '' if pieces is not None else ', and no pipeline is beside it to append them'
            raise ValueError(
                f'The log ends at position {end}, but {snapshot!r} is as of a later one{reason}.'
            )
        wrong = f'The log must begin with the events before {snapshot!r}, but does not'
        if pieces is None:
            last = stream.read(position - 1, position) if position > 0 else np.empty(0, EVENT)
            if len(last) > 0 and last['time'][0] != snapshot.time:
                raise ValueError(
                    f'{wrong}: the last of them is of time {last["time"][0]}, and not of '
                    f'{snapshot.time}.'
                )
            return
        position = 0
        try:
            for events in pieces():
                stream.append(events, position)
                position += len(events)
        except ValueError as error:
            raise ValueError(f'{wrong}: {error}') from error


def _log(folder: str, manifest: dict[str, Any]) -> KnownLog:
    r"""The log of a saved pipeline, without its model."""
    if 'store' in manifest:
        return StoredLog.load(folder, manifest, ())
    return RawLog.load(folder, manifest)


def make_server(
    snapshot: str | os.PathLike[str],
    log: str,
    trust_compiled: Sequence[str] = (),
    fall_back: bool = False,
    **options: Any,
) -> 'Server':
    r"""A server that answers by a snapshot that :func:`write_served` wrote and records to a log.
    What the log lacks of the events before the snapshot is appended to it.

    Args:
        snapshot (str): The folder of the snapshot; a swap names others beside it.
        log (str): The log, see :func:`open_log`.
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
            **options,
        )
    except BaseException:
        ranker.close()
        raise
