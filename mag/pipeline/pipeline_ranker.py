r"""Saved pipelines that a server answers by, of any model."""

import logging
import os
import os.path as osp
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mag.folder import checksum_of
from mag.logits import probabilities
from mag.online import EventStream, Ranked
from mag.online.lag import Lag
from mag.pipeline.followed_log import num_shared
from mag.pipeline.pipeline import Pipeline
from mag.pipeline.saved import SavedPipeline, read_whole

if TYPE_CHECKING:
    from mag.online import Server

_LOGGER = logging.getLogger(__name__)
# Seconds between looks at the end of a log.
_IDLE = 0.05
# Seconds for which a log that cannot be read is let alone.
_PATIENCE = 0.25


class PipelineRanker:
    r"""Answers a :class:`~mag.online.Server` by a :class:`Pipeline`, whatever its model reads: what
    :meth:`Pipeline.score` tells, as of the events that the pipeline knows.

    Later events are not read until :meth:`Pipeline.update` has, and another pipeline is swapped in.
    Once the log has some, :obj:`degraded` says so, as :obj:`"as of the snapshot"`; or that it
    cannot tell, as :obj:`"log unreachable"`. A thread looks at the end of the log, so that no
    request waits for it.

    A pipeline changes nothing of its own while it scores, and threads that ask together need no
    lock. It must not be updated while it serves.

    A query is told in a context as a text, which is split as those of the log; of a log of texts
    the separator is :obj:`' '`. The empty text is a recommendation.

    Args:
        pipeline (Pipeline): One that was fitted.
        snapshot (str): The name that answers tell.
        open_stream (Callable[[], EventStream], optional): Opens the log that begins with the events
            of the pipeline, in the thread that looks at it. (default: :obj:`None`)

    Raises:
        RuntimeError: If the pipeline has not been fitted.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        snapshot: str,
        open_stream: Callable[[], EventStream] | None = None,
    ) -> None:
        log = pipeline._known()
        self.pipeline, self.snapshot = pipeline, snapshot
        self._end = log.end
        self._facts: dict[str, Any] = {
            'position': log.num_events,
            'snapshot': snapshot,
            'snapshot_time': float(log.end - 1),
        }
        # One value, that threads never see one half of.
        self._freshness: dict[str, Any] = {}
        self._ended, self._thread = threading.Event(), None
        if open_stream is not None:
            has_looked = threading.Event()
            # A process that ends otherwise than by close() does not wait for it.
            self._thread = threading.Thread(
                target=self._look, args=(open_stream, has_looked), name='mag-look', daemon=True
            )
            self._thread.start()
            has_looked.wait()

    def rank(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
    ) -> Ranked:
        r"""The probabilities of clicks. A time that is not after the last event is taken for the
        second after it: a clock may be late, and no answer is as of an earlier position.

        Raises:
            ValueError: If the request is a bad one, as :meth:`Pipeline.score` says.
        """
        try:
            request = self.pipeline._request(user, items, max(time, self._end), context)
        except TypeError as error:
            raise ValueError(str(error)) from error
        with torch.inference_mode():
            probability = probabilities(self.pipeline._logits(request))['click']
        num_unknown = int((request.item < 0).sum()) + int(request.user[0] < 0)
        return Ranked(
            probability.numpy(), num_unknown=num_unknown, **self._facts, **self._freshness
        )

    def close(self) -> None:
        r"""Ends the thread that looks at the log, and closes that."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, open_stream: Callable[[], EventStream], has_looked: threading.Event) -> None:
        stream, lag, was_lost = None, Lag(), False
        position = self._facts['position']
        try:
            while not self._ended.is_set():
                try:
                    stream = open_stream() if stream is None else stream
                    lag.look(position, stream.end, time.monotonic())
                    reasons = ('as of the snapshot',) if lag.events else ()
                    is_lost = False
                # Each stream has errors of its own.
                except Exception as error:
                    lag.lose()
                    reasons, is_lost = ('log unreachable',), True
                    if not was_lost:
                        facts = {'position': position, 'reason': str(error)}
                        _LOGGER.warning('lost the log', extra=facts)
                self._freshness = {
                    'lag': lag.events, 'lag_seconds': lag.seconds, 'degraded': reasons,
                }  # fmt: skip
                was_lost = is_lost
                has_looked.set()
                self._ended.wait(_PATIENCE if is_lost else _IDLE)
        finally:
            if stream is not None:
                stream.close()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.snapshot!r}, {self.pipeline.model_name!r})'


class PipelineLoader:
    r"""Loads the saved pipelines of a folder by their names, for a server whose events are in one
    log, or that records none.

    The events that a pipeline knows are the first of the log. They are compared, and what it lacks
    is appended: users and items that are new with them could not be recorded before.

    Args:
        root (str): The folder in which pipelines are saved.
        open_stream (Callable[[], EventStream], optional): Opens the log. (default: :obj:`None`)

    Attributes:
        maps (dict[str, IdMap]): The ids of users and items in the pipeline that was loaded last.
    """

    def __init__(self, root: str, open_stream: Callable[[], EventStream] | None = None) -> None:
        self.root, self.open_stream = root, open_stream
        self.maps: Mapping[str, Any] = {}

    def __call__(self, name: str) -> PipelineRanker:
        r"""What answers by a pipeline, under its name and the checksum of what is saved.

        Args:
            name (str): The name of its folder.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it is no saved pipeline or damaged, or the log has other events.
        """
        if name in ('', '.', '..') or osp.basename(name) != name:
            raise ValueError(
                f'A pipeline is named as its folder in {self.root!r}, but got {name!r}.'
            )
        pipeline, checksum = read_whole(osp.join(self.root, name), _load)
        if self.open_stream is not None:
            try:
                events = pipeline.events()
            except ValueError as error:
                raise ValueError(f'{name!r} is served without a log: {error}') from error
            with self.open_stream() as stream:
                try:
                    # Their times may have been raised since the log got them.
                    position = num_shared(stream, events)
                    stream.append(events[position:], position)
                except ValueError as error:
                    raise ValueError(
                        f'The log must begin with the events of the pipeline {name!r}, but does '
                        f'not: {error}'
                    ) from error
        ranker = PipelineRanker(pipeline, f'{name}:{checksum}', self.open_stream)
        self.maps = pipeline._known().maps
        return ranker


def _load(folder: str, manifest: dict[str, Any]) -> tuple[Pipeline, str]:
    return Pipeline._load(folder, manifest), checksum_of(manifest)


def is_pipeline(folder: str | os.PathLike[str]) -> bool:
    r"""Whether a folder is a saved pipeline, whole or not."""
    return SavedPipeline(osp.expanduser(folder)).is_own([])


def make_pipeline_server(
    folder: str | os.PathLike[str],
    open_stream: Callable[[], EventStream] | None = None,
    **options: Any,
) -> 'Server':
    r"""A server that answers by a pipeline that :meth:`Pipeline.save` wrote.

    Args:
        folder (str): The folder of the pipeline; a swap names others beside it, or itself after it
            was saved anew.
        open_stream (Callable[[], EventStream], optional): Opens the log that it records to, which
            gets the events of the pipeline first. By default it records none.
        **options (optional): Further arguments of :class:`~mag.online.Server`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ModuleNotFoundError: If gRPC is not installed.
        OSError: If the log cannot be opened.
        ValueError: If the folder is damaged, the log has other events, or the options are refused.
    """
    from mag.online import Server

    root, name = osp.split(osp.realpath(osp.expanduser(folder)))
    load = PipelineLoader(root, open_stream)
    ranker = load(name)
    if options.get('admin_port') is not None:
        options['load'] = load
    if open_stream is not None:
        options['open_stream'] = open_stream
        options['nodes'] = lambda node_type, raw: load.maps[node_type].encode(raw)
    try:
        return Server(ranker, **options)
    except BaseException:
        ranker.close()
        raise
