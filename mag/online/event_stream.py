r"""The log of events that everything online follows."""

import zlib
from abc import abstractmethod

import numpy as np

from mag.checks import check_integers
from mag.online.closing import Closing
from mag.online.events import EVENT, check_events, checksum_of

# What is compared at once, where a producer repeats itself.
_NUM_COMPARED = 8192
# What all streams can count to.
_BEYOND = 2**62


class Diverged(ValueError):
    r"""What a reader is told whose past is not that of the log: events that it has read were lost,
    and others came in their place."""


class EventStream(Closing):
    r"""A log of events in the order in which they are appended, each with its *position*: its
    number, from 0.

    A producer says at which position its events go. It may repeat what it does not know to have
    arrived, and none is there twice: after a crash of its own or of the stream, it goes on from
    :attr:`end`.

    .. code-block:: python

        with SqliteStream('events.db') as stream:
            while True:
                position = stream.append(events_from(position), position)

    Who reads keeps the position of what comes next. *As of position p* the events before it have
    happened, which is the same for all who read.

    A log may lose its last events with the power of its machine, and get others instead. So each
    batch is kept with the *checksum* of all events up to its end, see
    :func:`~mag.online.checksum_of`. Who reads on with the checksum of what it has read is told by
    :class:`Diverged` where the log has another past, even if it has grown beyond that position
    since. The same events have the same checksum, in whatever batches they came.

    A stream is used by the thread that made it; others, and other processes, make their own of the
    same log. Several may append: where two say the same position, the second is told that other
    events are there; where they say none, one comes after the other.
    """

    # The most events that :meth:`_extend` takes.
    _num_at_once: int | None = None

    @property
    def start(self) -> int:
        r"""The position of the first event that is held."""
        return self._bounds()[0]

    @property
    def end(self) -> int:
        r"""The position that the next event gets: how many there have been."""
        return self._bounds()[1]

    def append(self, events: np.ndarray, position: int | None = None) -> int:
        r"""Appends events and returns the end of the stream. Those that are there are passed over,
        and compared as far as they are held.

        Args:
            events (numpy.ndarray): Events of shape :obj:`[N]` and type :obj:`EVENT`.
            position (int, optional): The position of the first of them, at most :attr:`end`. By
                default they are new, and go after whatever other producers append meanwhile, some
                of which may come between them. (default: :obj:`None`)

        Raises:
            ValueError: If events before :obj:`position` are missing, or others are there.
        """
        check_events(events)
        if position is None:
            return self._append_next(events)
        check_integers(0, _BEYOND, position=position)
        at, stop = position, position + len(events)
        while True:
            some = events[at - position :][: self._num_at_once]
            end = self._extend(some, at)
            if end < at:
                raise ValueError(
                    f'{self!r} ends at position {end}, but got events from position {at}: append '
                    f'those from position {end} first.'
                )
            at += len(some) if end == at else self._num_repeated(some[: end - at], at)
            if at == stop:
                return max(end, stop)

    def _append_next(self, events: np.ndarray) -> int:
        end, done = self.end, 0
        while done < len(events):
            some = events[done:][: self._num_at_once]
            # Where others were faster, nothing is there.
            if (found := self._extend(some, end)) == end:
                done, found = done + len(some), end + len(some)
            end = found
        return end

    def read(self, position: int, limit: int = 8192, checksum: int | None = None) -> np.ndarray:
        r"""The events from a position on, of shape :obj:`[N]` and type :obj:`EVENT`: as many as
        there are up to a limit, and none at the end.

        Args:
            position (int): The position of the first of them.
            limit (int, optional): How many at most. (default: :obj:`8192`)
            checksum (int, optional): That of all events before :obj:`position`, as they were read.
                (default: :obj:`None`, which compares nothing)

        Raises:
            Diverged: If the events before :obj:`position` have another checksum.
            ValueError: If events from :obj:`position` on are no longer held, or :obj:`position` is
                beyond the end.
        """
        check_integers(0, _BEYOND, position=position)
        check_integers(1, limit=limit)
        while True:
            start, events = self._held(position, limit, checksum)
            if len(events) == 0:
                start, end, last = self._bounds()
                if position == end:
                    if checksum not in (None, last):
                        raise self._diverged(position)
                    return events
                if position > end:
                    raise ValueError(
                        f'{self!r} ends at position {end}, but was read from position {position}: '
                        f'it has lost events that were read before, or is another one.'
                    )
                # Others have appended meanwhile, or trimmed.
                if start <= position:
                    continue
            if start > position:
                raise ValueError(
                    f'{self!r} starts at position {start}, but was read from position {position}: '
                    f'the events between are trimmed.'
                )
            return events

    def checksum(self, position: int) -> int:
        r"""The checksum of all events before a position.

        Args:
            position (int): The position.

        Raises:
            ValueError: If it is beyond the end, or in what is trimmed.
        """
        check_integers(0, _BEYOND, position=position)
        if position == 0:
            return 0
        batches = self._batches(position - 1, 1)
        if not batches:
            raise ValueError(f'{self!r} ends at position {self.end}, before {position}.')
        end, checksum, packed = batches[0]
        if end == position:
            return checksum
        start = end - len(packed) // EVENT.itemsize
        if start >= position or 0 < start == self.start:
            raise ValueError(
                f'{self!r} starts at position {start} and tells no checksum at {position}, as '
                f'earlier events are trimmed: take position {end} or a later one.'
            )
        events = np.frombuffer(packed, EVENT)[: position - start]
        return checksum_of(events, self.checksum(start))

    def trim(self, position: int) -> None:
        r"""Forgets events before a position that nobody reads again. They go in the batches that
        they came in, the last of which stays, so that :attr:`start` may remain below
        :obj:`position`.

        Args:
            position (int): The position of the first event to be held.

        Raises:
            ValueError: If it is beyond the end.
        """
        check_integers(0, _BEYOND, position=position)
        if position > (end := self.end):
            raise ValueError(
                f"'position' must be at most the end of {self!r}, which is {end}, but got "
                f'{position}.'
            )
        self._trim(position)

    @abstractmethod
    def _bounds(self) -> tuple[int, int, int]:
        r"""The positions of the first event and after the last one, and the checksum of all events
        before the latter."""

    @abstractmethod
    def _extend(self, events: np.ndarray, position: int) -> int:
        r"""Appends all events if the stream ends at :obj:`position`, else none; returns the end
        that it found."""

    @abstractmethod
    def _batches(self, position: int, limit: int) -> list[tuple[int, int, bytes]]:
        r"""What was appended, in order, from the batch on that has the event at :obj:`position`, or
        from the first that is held: the position after each batch, the checksum of all events
        before it, and the bytes of the batch. Of all, or of at least :obj:`limit` events from
        :obj:`position` on."""

    @abstractmethod
    def _trim(self, position: int) -> None:
        r"""Forgets the batches that end at :obj:`position` or before, but not the last one."""

    def _held(
        self, position: int, limit: int, checksum: int | None = None
    ) -> tuple[int, np.ndarray]:
        r"""At most :obj:`limit` events from a position on, or from the first one that is held, and
        its position; :obj:`checksum` is that of all events before :obj:`position`."""
        batches = self._batches(position, limit)
        if not batches:
            return position, np.empty(0, EVENT)
        # Of a bytearray the array can be written to.
        packed = bytearray().join(events for *_, events in batches)
        (first, last), size = (batches[0], batches[-1]), EVENT.itemsize
        start = first[0] - len(first[2]) // size
        if len(packed) != (last[0] - start) * size:
            raise ValueError(
                f'{self!r} is damaged: from position {start} to {last[0]} it should hold '
                f'{(last[0] - start) * size} bytes, but holds {len(packed)}.'
            )
        skipped = max(position - start, 0) * size
        if start > position:
            checksum = None
        for number, (end, expected, batch) in enumerate(batches):
            if checksum is not None and zlib.crc32(batch[skipped:], checksum) != expected:
                if number == 0:
                    raise self._diverged(position)
                raise ValueError(
                    f'{self!r} is damaged: the events before position {end} are not those that '
                    f'were appended.'
                )
            checksum, skipped = expected, 0
        events = np.frombuffer(packed, EVENT)
        return max(start, position), events[max(position - start, 0) :][:limit]

    def _diverged(self, position: int) -> Diverged:
        return Diverged(
            f'{self!r} has other events before position {position} than those that were read: it '
            f'has lost some and got others, or is another one. What was made of them cannot go on: '
            f'make it anew of this log.'
        )

    def _num_repeated(self, events: np.ndarray, position: int) -> int:
        r"""How many of the first events are those that are there, or are no longer held."""
        start, held = self._held(position, min(len(events), _NUM_COMPARED))
        given = events[start - position :][: len(held)]
        held = held[: len(given)]
        if held.tobytes() != given.tobytes():
            row = int((held != given).argmax())
            raise ValueError(
                f'{self!r} has the event {held[row]} at position {start + row}, but was given '
                f'{given[row]} for it: two producers append, or one does not repeat itself.'
            )
        return min(start - position + len(given), len(events))
