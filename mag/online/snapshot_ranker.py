r"""A snapshot that a server asks."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from mag.checks import check_integers
from mag.online.explanation import (
    EdgeCounts,
    blank_blocks,
    click_probability,
    edge_counts,
    heaviest_edges,
    without_blocks,
)
from mag.online.ranker import Explained, Offers, Ranked
from mag.online.scorer import Scorer

_T = TypeVar('_T')
_LOGGER = logging.getLogger(__name__)
# Seconds between looks at the log while nobody asks.
_IDLE = 0.02
# Seconds for which a log that cannot be read is let alone, at least.
_PATIENCE = 0.25
# And how many times as long as a try took, for which requests had to wait.
_NUM_TIMES = 9
# What is counted for a request that waits: some milliseconds of a log that has run ahead.
_NUM_TOGETHER = 8192


class SnapshotRanker:
    r"""Answers a :class:`~mag.online.Server` by a snapshot and what the log has added to it.

    .. code-block:: python

        def load(name: str) -> SnapshotRanker:
            def make() -> Scorer:
                snapshot = Snapshot.open(f'snapshots/{name}').verify()
                own = copy.deepcopy(model)  # that of the former snapshot still answers
                own.load_state_dict(snapshot.weights())
                return Scorer(snapshot, Replica(snapshot, SqliteStream('events.db')), own)

            return SnapshotRanker(make)

        Server(load(name), load=load, admin_port=50052).run()

    One thread follows the log and reads what a request needs, as of the last event when it is read;
    the model runs in the thread that asks. Where the log cannot be read, the answer is as of what
    was read before, and says so in :obj:`degraded`, as :obj:`"log unreachable"`; so it does while
    there is more to count than a request waits for, as :obj:`"behind the log"`. Requests wait while
    the log is tried again, a tenth of the time at most: one that may hang should have a short
    time-out.

    Args:
        make (Callable[[], Scorer]): Makes the scorer and opens its log, in the thread that follows
            it. No other scorer has its model, which may change with another snapshot.

    Raises:
        Exception: Whatever :obj:`make` raises.
    """

    def __init__(self, make: Callable[[], Scorer]) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[Scorer], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._again = 0.0
        self._is_closed = self._is_behind = False
        # Nothing is asked after the end.
        self._asking = threading.Lock()
        self._failure: Exception | None = None
        made: Future[Scorer] = Future()
        # A process that ends otherwise than by close() does not wait for it.
        self._thread = threading.Thread(
            target=self._run, args=(make, made), name='mag-follow', daemon=True
        )
        self._thread.start()
        self.scorer = made.result()

    def rank(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
    ) -> Ranked:
        r"""The probabilities of clicks; "now" follows from the position in the log, and not from
        :obj:`time`.

        Raises:
            RuntimeError: If it is closed, or the log could not be counted.
            ValueError: If the request is a bad one, as :meth:`Scorer.score` says.
        """
        batch, facts = self._asked(lambda scorer: self._read(scorer, user, items, context))
        return self._ranked(batch, facts)

    def explain(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
        num_edges: int,
    ) -> Explained:
        r"""The probabilities of clicks, with and without each block of what the model reads, see
        :func:`~mag.online.explanation.blank_blocks`; one that it ignores moves nothing.

        Args and errors are those of :meth:`rank`.

        Args:
            num_edges (int): How many macro edges of each node are told at most.
        """
        check_integers(0, num_edges=num_edges)

        def read(scorer: Scorer) -> tuple[Any, dict[str, Any], list[EdgeCounts]]:
            batch, facts = self._read(scorer, user, items, context)
            nodes = {'user': batch.user[:1], 'item': batch.item}
            counts = [edge_counts(scorer.replica, name, of.numpy()) for name, of in nodes.items()]
            return batch, facts, counts

        batch, facts, counts = self._asked(read)
        scorer = self.scorer
        blanked = blank_blocks(batch, scorer.fields, scorer.views)
        blocks, without = without_blocks(scorer.model, blanked, len(batch.item))
        (of_user,), of_items = (heaviest_edges(of_node, num_edges) for of_node in counts)
        return Explained(self._ranked(batch, facts), blocks, without, of_user, of_items)

    def what_if(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
        clicked: int | str,
    ) -> tuple[Ranked, Ranked]:
        r"""The probabilities of clicks as things are, and as they were after one more click, which
        is recorded nowhere.

        Args and errors are those of :meth:`rank`.

        Args:
            clicked (int or str): The raw id of the item that is clicked.
        """

        def read(scorer: Scorer) -> tuple[Any, Any, dict[str, Any]]:
            before, facts = self._read(scorer, user, items, context)
            with _refusing():
                after = scorer.after_click(user, clicked).batch(user, items, context)
            return before, after, facts

        *batches, facts = self._asked(read)
        before, after = (self._ranked(batch, facts) for batch in batches)
        return before, after

    def _asked(self, read: Callable[[Scorer], _T]) -> _T:
        r"""What is read in the thread that follows the log."""
        job: Future[_T] = Future()
        with self._asking:
            if self._is_closed:
                raise RuntimeError(f'{self!r} is closed.')
            self._jobs.put((job, read))
        return job.result()

    def _ranked(self, batch: Any, facts: dict[str, Any]) -> Ranked:
        return Ranked(click_probability(self.scorer.model, batch), **facts)

    def offers(self, number: int) -> Offers:
        r"""The users and items with the most clicks in the snapshot, and values of its contexts."""
        snapshot = self.scorer.snapshot
        found = {}
        for node, rows in snapshot.rows.items():
            clicks = rows['clicks'][:, snapshot.layout.columns(node, 0)].sum(axis=1)
            most = np.argsort(-clicks.astype(np.int64), kind='stable')[:number]
            found[node] = snapshot.id_maps[node].decode(most).tolist()
        contexts = {}
        for name in snapshot.manifest['contexts']:
            values = snapshot.id_maps[name]
            contexts[name] = values.decode(np.arange(min(number, len(values)))).tolist()
        return Offers(found['user'], found['item'], contexts)

    def close(self) -> None:
        r"""Ends its thread, after what was asked, and closes the log."""
        with self._asking:
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self, make: Callable[[], Scorer], made: 'Future[Scorer]') -> None:
        try:
            scorer = make()
            try:
                # It serves when it has seen what there is.
                while scorer.replica.follow(_NUM_TOGETHER) > 0:
                    pass
            except BaseException:
                scorer.replica.stream.close()
                raise
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(scorer)
        with scorer.replica.stream:
            while True:
                try:
                    # While it is behind nobody waits for it to sleep.
                    job = self._jobs.get(timeout=0.0 if self._is_behind else _IDLE)
                except queue.Empty:
                    self._follow(scorer)
                    continue
                if job is None:
                    return
                asked, read = job
                try:
                    asked.set_result(read(scorer))
                except Exception as error:
                    asked.set_exception(error)

    def _follow(self, scorer: Scorer) -> None:
        replica = scorer.replica
        was_degraded = replica.degraded is not None
        if self._failure is not None or (was_degraded and time.monotonic() < self._again):
            return
        begun = time.monotonic()
        try:
            self._is_behind = replica.follow(_NUM_TOGETHER) == _NUM_TOGETHER
        except Exception as error:
            # Some of these events may be counted, and would be once more.
            self._failure, self._is_behind = error, False
            _LOGGER.exception('failed to count the log', extra={'position': replica.position})
            return
        if replica.degraded is not None:
            ended = time.monotonic()
            self._again = ended + max(_PATIENCE, _NUM_TIMES * (ended - begun))
        if was_degraded != (replica.degraded is not None):
            facts = {'position': replica.position, 'reason': replica.degraded}
            _LOGGER.warning('lost the log' if replica.degraded else 'found the log', extra=facts)

    def _read(
        self, scorer: Scorer, user: Any, items: Sequence[Any], context: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        r"""What the model reads of a request, and what it stands on."""
        self._follow(scorer)
        if self._failure is not None:
            raise RuntimeError(f'{self!r} could not count the log.') from self._failure
        with _refusing():
            batch = scorer.batch(user, items, context)
        replica, snapshot = scorer.replica, scorer.snapshot
        facts: dict[str, Any] = {
            'position': replica.position,
            'snapshot': os.path.basename(snapshot.path),
            'snapshot_time': float(snapshot.time),
            'num_unknown': int((batch.item < 0).sum()) + int(batch.user[0] < 0),
        }
        if replica.degraded is not None:
            facts['degraded'] = ('log unreachable',)
        elif self._is_behind:
            facts['degraded'] = ('behind the log',)
        else:
            facts |= {'lag': 0, 'lag_seconds': 0.0}
        return batch, facts

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.scorer!r})'


@contextmanager
def _refusing() -> Iterator[None]:
    r"""Of a request, an id of another type is a bad one, too."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from error
