r"""A log that is read ahead of who counts it."""

import threading
import time
from collections.abc import Callable

import numpy as np

from mag.online.event_stream import EventStream
from mag.online.events import checksum_of
from mag.online.replica import Replica

#: Events that are read at once: some milliseconds of a log that has run ahead.
NUM_TOGETHER = 8192
# Seconds for which a log that cannot be read is let alone.
_PATIENCE = 0.25


class LogReader:
    r"""Reads a log in a thread of its own, for one thread that counts its events and must not wait
    for a log that hangs.

    It reads when it is asked to, one batch ahead at most.

    Args:
        begin (Callable[[], Replica]): Makes the replica, and opens its log, in the thread that
            reads. Its events are read from the position of the replica on.

    Raises:
        Exception: Whatever :obj:`begin` raises.

    Attributes:
        seconds (float): What the last look at the log took.
        end (int): Where the log ended then.
    """

    def __init__(self, begin: Callable[[], Replica]) -> None:
        self.seconds, self.end = 0.0, 0
        self._changed = threading.Condition()
        self._found: np.ndarray | Exception | None = None
        self._num_asked = self._num_done = 0
        self._is_closed = False
        self._failure: BaseException | None = None
        self._place: tuple[int, int] | None = None
        # A process that ends otherwise than by close() does not wait for it.
        self._thread = threading.Thread(
            target=self._run, args=(begin,), name='mag-read', daemon=True
        )
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._place or self._failure)
        if self._failure is not None:
            raise self._failure

    def ask(self) -> int:
        r"""Asks for a look at the log, and returns its number."""
        with self._changed:
            self._num_asked += 1
            self._changed.notify_all()
            return self._num_asked

    def take(self, number: int, seconds: float) -> tuple[np.ndarray | Exception | None, bool]:
        r"""The next events, or why they could not be read, and whether the look of a number has
        ended: what was there when it was asked for has then been taken, or as much as is read at
        once. Nothing is found where no look ended in time.

        Args:
            number (int): The number.
            seconds (float): How long it may take.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._found is not None or self._num_done >= number, max(seconds, 0.0)
            )
            found, self._found = self._found, None
            self._changed.notify_all()
            return found, self._num_done >= number

    def seek(self, position: int, checksum: int) -> None:
        r"""Goes on from another position, with the checksum of the events before it."""
        with self._changed:
            self._place, self._found = (position, checksum), None
            self._changed.notify_all()

    def close(self) -> None:
        r"""Ends its thread, after what it reads, and closes the log."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self, begin: Callable[[], Replica]) -> None:
        try:
            replica = begin()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with replica.stream:
            self.seek(replica.position, replica.checksum)
            while (look := self._next()) is not None:
                self._look(replica.stream, *look)

    def _next(self) -> tuple[int, tuple[int, int]] | None:
        r"""The number of the look that is asked for, and from where; nothing at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closed or (self._num_done < self._num_asked and self._found is None)
                )
            )
            return (
                None if self._is_closed or self._place is None else (self._num_asked, self._place)
            )

    def _look(self, stream: EventStream, number: int, place: tuple[int, int]) -> None:
        begun = time.monotonic()
        found: np.ndarray | Exception
        try:
            found = stream.read(place[0], NUM_TOGETHER, place[1])
            end = place[0] + len(found)
            if len(found) == NUM_TOGETHER:
                end = max(end, stream.end)
        # Each stream has errors of its own.
        except Exception as error:
            found = error
        with self._changed:
            self.seconds = time.monotonic() - begun
            # What was sought meanwhile is elsewhere.
            if self._place is place:
                self._found, self._num_done = found, number
                if not isinstance(found, Exception):
                    self.end = end
                    self._place = place[0] + len(found), checksum_of(found, place[1])
                self._changed.notify_all()
            if isinstance(found, Exception):
                self._changed.wait_for(lambda: self._is_closed, _PATIENCE)
