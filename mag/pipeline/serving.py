r"""Snapshots that a server loads by their names, each with the pipeline that it is of."""

import os
import os.path as osp
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mag.online import (
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
)
from mag.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from mag.online import Server

# Behind the name of a snapshot.
_PIPELINE = '.pipeline'
# Seconds between looks at the end of a log.
_IDLE = 0.02


def write_served(pipeline: Pipeline, root: str | os.PathLike[str]) -> str:
    r"""Writes a snapshot, and beside it the pipeline, under the same name with :obj:`.pipeline` at
    its end: it knows what the model is made of, and the events before the snapshot.

    Args:
        pipeline (Pipeline): One that was fitted.
        root (str): The folder that gets both, which is made if there is none.

    Returns:
        The path of the snapshot.

    Raises:
        RuntimeError: If the pipeline has not been fitted.
        ValueError: If there can be no snapshot, see :meth:`Pipeline.snapshot`.
    """
    path = pipeline.snapshot(root)
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
    served by the log of another.

    Args:
        root (str): The folder that :func:`write_served` wrote to.
        log (str): The log, see :func:`open_log`.

    Attributes:
        maps (dict[str, IdMap]): The ids of users and items in the snapshot that was loaded last.
    """

    def __init__(self, root: str, log: str) -> None:
        self.root, self.log = root, log
        self.maps: dict[str, Any] = {}

    def __call__(self, name: str, fill: bool = False) -> SnapshotRanker:
        r"""What answers by a snapshot.

        Args:
            name (str): Its name.
            fill (bool, optional): If set to :obj:`True`, what the log lacks of the events before
                the snapshot is appended to it. (default: :obj:`False`)

        Raises:
            FileNotFoundError: If there is no such snapshot, or no pipeline beside it.
            ValueError: If one is damaged, or the log has other events.
        """
        if name in ('', '.', '..') or osp.basename(name) != name:
            raise ValueError(
                f'A snapshot is named as its folder in {self.root!r}, but got {name!r}.'
            )
        snapshot = Snapshot.open(osp.join(self.root, name)).verify()
        beside = snapshot.path + _PIPELINE
        if not osp.isdir(beside):
            raise FileNotFoundError(
                f'There is no folder {beside!r} with the pipeline of the snapshot: write both by '
                f'mag snapshot.'
            )
        pipeline = Pipeline.load(beside)
        model = pipeline.model
        model.load_state_dict(snapshot.weights())

        def make() -> Scorer:
            stream = open_log(self.log)
            try:
                if not fill and (end := stream.end) < snapshot.position:
                    raise ValueError(
                        f'The log ends at position {end}, but {snapshot!r} is as of a later one.'
                    )
                try:
                    position = 0
                    for events in pipeline.event_pieces():
                        position += len(events)
                        stream.append(events, position - len(events))
                except ValueError as error:
                    raise ValueError(
                        f'The log must begin with the events before {snapshot!r}, but does not: '
                        f'{error}'
                    ) from error
                return Scorer(snapshot, Replica(snapshot, stream), model)
            except BaseException:
                stream.close()
                raise

        ranker = SnapshotRanker(make)
        self.maps = snapshot.id_maps
        return ranker


def make_server(snapshot: str | os.PathLike[str], log: str, **options: Any) -> 'Server':
    r"""A server that answers by a snapshot that :func:`write_served` wrote and records to a log.
    What the log lacks of the events before the snapshot is appended to it.

    Args:
        snapshot (str): The folder of the snapshot; a swap names others beside it.
        log (str): The log, see :func:`open_log`.
        **options (optional): Further arguments of :class:`~mag.online.Server`.

    Raises:
        FileNotFoundError: If there is no such snapshot, or no pipeline beside it.
        ModuleNotFoundError: If gRPC is not installed.
        OSError: If the log cannot be opened.
        ValueError: If a folder is damaged, the log has other events, or the options are refused.
    """
    from mag.online import Server

    root, name = osp.split(osp.realpath(osp.expanduser(snapshot)))
    load = SnapshotLoader(root, log)
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
