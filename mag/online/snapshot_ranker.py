r"""A snapshot that a server asks."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import torch

from mag.logits import as_logits, probabilities
from mag.online.ranker import Ranked
from mag.online.scorer import Scorer

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
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Any] | None] = queue.SimpleQueue()
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
        job: Future[Any] = Future()
        with self._asking:
            if self._is_closed:
                raise RuntimeError(f'{self!r} is closed.')
            self._jobs.put((job, (user, items, context)))
        batch, facts = job.result()
        model = self.scorer.model
        with torch.inference_mode():
            logits = as_logits(type(model).__name__, model(batch))
            return Ranked(probabilities(logits)['click'].numpy(), **facts)

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
                if scorer.register is not None:
                    scorer.register.close()
                raise
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(scorer)
        with scorer.replica.stream, scorer.register or nullcontext():
            while True:
                try:
                    # While it is behind nobody waits for it to sleep.
                    job = self._jobs.get(timeout=0.0 if self._is_behind else _IDLE)
                except queue.Empty:
                    self._follow(scorer)
                    continue
                if job is None:
                    return
                asked, question = job
                try:
                    asked.set_result(self._read(scorer, *question))
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
        try:
            batch = scorer.batch(user, items, context)
        except TypeError as error:
            raise ValueError(str(error)) from error
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
