r"""A snapshot that a server asks."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from mag.checks import check_integers
from mag.logits import probabilities
from mag.online.event_stream import Diverged
from mag.online.events import EVENT
from mag.online.explanation import (
    EdgeCounts,
    blank_blocks,
    edge_counts,
    heaviest_edges,
    without_blocks,
)
from mag.online.lag import Lag
from mag.online.log_reader import NUM_TOGETHER, LogReader
from mag.online.ranker import Explained, Offers, Ranked
from mag.online.replica import Replica
from mag.online.scorer import Scorer

_T = TypeVar('_T')
_LOGGER = logging.getLogger(__name__)
# Seconds between looks at the log while nobody asks.
_IDLE = 0.02
# Seconds that a request waits for the log: until it has, others do not wait for it at all.
_BUDGET = 0.02


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

    One thread reads the log, and another counts what was read and gathers what a request needs: as
    of the last event when the request comes, as long as the log tells it within 20 milliseconds;
    the model runs in the thread that asks. Where the log cannot be read, or hangs, one request
    waits that long and those after it do not. They are answered as of what was read before, and say
    so in :obj:`degraded`, as :obj:`"log unreachable"`; so they do while there is more to count than
    a request waits for, as :obj:`"behind the log"`. A log that has lost events that were counted,
    and has got others, is counted again from the snapshot on: answers say :obj:`"log went back"`
    until that is done, or for good where the log has not even the past of the snapshot.

    Args:
        make (Callable[[], Scorer]): Makes the scorer and opens its log, in the thread that reads
            it. No other scorer has its model, which may change with another snapshot.

    Raises:
        Exception: Whatever :obj:`make` raises.
        ValueError: If the log does not have the events that the snapshot was made of.
    """

    def __init__(self, make: Callable[[], Scorer]) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[Scorer], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._lag = Lag()
        self._is_closed = self._is_behind = self._is_late = self._went_back = False
        # Nothing is asked after the end.
        self._asking = threading.Lock()
        self._failure: Exception | None = None
        self._offers: dict[int, Offers] = {}
        self._reader = LogReader(partial(self._begin, make))
        # A process that ends otherwise than by close() does not wait for it.
        self._thread = threading.Thread(target=self._run, name='mag-follow', daemon=True)
        self._thread.start()

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
        read, facts = self._asked(
            lambda scorer: self._read(scorer, scorer.read, user, items, context)
        )
        return self._ranked(read, facts)

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
            batch, facts = self._read(scorer, scorer.batch, user, items, context)
            # The batch does not know who is new.
            of_user, of_items = scorer.nodes(user, items)
            counts = [
                edge_counts(scorer.replica, 'user', np.array([of_user])),
                edge_counts(scorer.replica, 'item', of_items),
            ]
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
            # States that are kept would be rounded otherwise than those after the click.
            before, facts = self._read(scorer, scorer.batch, user, items, context)
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

    def _ranked(self, read: Any, facts: dict[str, Any]) -> Ranked:
        with torch.inference_mode():
            return Ranked(probabilities(self.scorer.logits(read))['click'].numpy(), **facts)

    def offers(self, number: int) -> Offers:
        r"""The users and items with the most clicks in the snapshot, and values of its contexts."""
        # A snapshot never changes, and all of its rows are read.
        if number not in self._offers:
            self._offers[number] = self._most_clicked(number)
        return self._offers[number]

    def _most_clicked(self, number: int) -> Offers:
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
        r"""Ends its threads, after what was asked, and closes the log."""
        with self._asking:
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()
        try:
            self._close_register()
        finally:
            self._reader.close()

    def _close_register(self) -> None:
        if self.scorer.register is not None:
            self.scorer.register.close()

    def _begin(self, make: Callable[[], Scorer]) -> Replica:
        self.scorer = make()
        replica = self.scorer.replica
        try:
            # It serves when it has seen what there is.
            while replica.follow(NUM_TOGETHER) > 0:
                pass
            if replica.diverged:
                raise ValueError(self._of_another_past(replica))
            # There may be millions, for which the first request would wait.
            self.scorer.follow_ids()
        except BaseException:
            replica.stream.close()
            self._close_register()
            raise
        return replica

    def _of_another_past(self, replica: Replica) -> str:
        return (
            f'{replica.stream!r} does not have the events that {replica.snapshot!r} was made of: '
            f'serve a snapshot of this log, or open the log of the snapshot.'
        )

    def _run(self) -> None:
        while True:
            # Nobody waits for it to sleep.
            is_busy = self._is_behind and not self._is_late
            try:
                job = self._jobs.get(timeout=0.0 if is_busy else _IDLE)
            except queue.Empty:
                self._follow(_BUDGET if is_busy else 0.0)
                continue
            if job is None:
                return
            asked, read = job
            try:
                asked.set_result(read(self.scorer))
            except Exception as error:
                asked.set_exception(error)

    def _follow(self, seconds: float) -> bool:
        r"""Counts what the log has, and returns whether that is all that it had when this was
        called, or as much as is counted at once.

        Args:
            seconds: How long the log may take to tell.
        """
        replica, is_now = self.scorer.replica, False
        is_lost = self._is_late or replica.degraded is not None
        if self._failure is not None:
            return False
        number, deadline = self._reader.ask(), time.monotonic() + (0.0 if is_lost else seconds)
        found: np.ndarray | Exception | None = np.empty(0, EVENT)
        # An earlier look may end first.
        while found is not None and not is_now and self._failure is None:
            found, is_now = self._reader.take(number, deadline - time.monotonic())
            if isinstance(found, Exception):
                self._miss(replica, found)
                break
            elif found is not None:
                self._count(replica, found)
            elif seconds > 0 and not is_lost:
                self._is_late = True
                self._lag.lose()
        if is_lost != (self._is_late or replica.degraded is not None):
            facts = {'position': replica.position, 'reason': replica.degraded or 'it hangs'}
            _LOGGER.warning('found the log' if is_lost else 'lost the log', extra=facts)
        return is_now

    def _count(self, replica: Replica, events: np.ndarray) -> None:
        try:
            replica.count(events)
        except Exception as error:
            # Some of these events may be counted, and would be once more.
            self._fail(replica, error)
            return
        self._is_behind = len(events) == NUM_TOGETHER
        self._lag.look(replica.position, self._reader.end, time.monotonic())
        self._is_late &= self._reader.seconds > _BUDGET
        self._went_back &= self._is_behind

    def _fail(self, replica: Replica, error: Exception) -> None:
        self._failure, self._is_behind = error, False
        _LOGGER.exception('failed to count the log', extra={'position': replica.position})

    def _miss(self, replica: Replica, error: Exception) -> None:
        replica.miss(error)
        self._lag.lose()
        self._is_behind = False
        if not isinstance(error, Diverged):
            return
        if not self._went_back:
            _LOGGER.error('the log went back', extra={'position': replica.position})
        self._went_back = True
        if replica.position > replica.snapshot.position:
            try:
                replica.restart()
            except Exception as failure:
                # Some of it may be as of the snapshot, and some as of what was lost.
                self._fail(replica, failure)
                return
            self._reader.seek(replica.position, replica.checksum)
        else:
            replica.degraded = self._of_another_past(replica)

    def _read(
        self,
        scorer: Scorer,
        read: Callable[..., Any],
        user: Any,
        items: Sequence[Any],
        context: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        r"""What a method of the scorer reads of a request, and what it stands on."""
        is_now = self._follow(_BUDGET)
        if self._failure is not None:
            raise RuntimeError(f'{self!r} could not count the log.') from self._failure
        replica, snapshot = scorer.replica, scorer.snapshot
        scorer.asks_register = is_now and replica.degraded is None
        with _refusing():
            found = read(user, items, context)
        facts: dict[str, Any] = {
            'position': replica.position,
            'snapshot': os.path.basename(snapshot.path),
            'snapshot_time': float(snapshot.time),
            'num_unknown': int((found.item < 0).sum()) + int((found.user[:1] < 0).sum()),
            'lag': self._lag.events,
            'lag_seconds': self._lag.seconds,
        }
        if self._went_back:
            facts['degraded'] = ('log went back',)
        elif replica.degraded is not None or not is_now:
            facts['degraded'] = ('log unreachable',)
        elif self._is_behind:
            facts['degraded'] = ('behind the log',)
        if snapshot.hop_2:
            facts |= {
                'hop_2_events': replica.position - snapshot.position,
                'hop_2_age': float(replica.time - snapshot.time),
                'has_exact_hop_2': bool(replica.has_exact_hop_2(found.user[:1].numpy()).all()),
            }
        return found, facts

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.scorer!r})'


@contextmanager
def _refusing() -> Iterator[None]:
    r"""Of a request, an id of another type is a bad one, too."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from error
