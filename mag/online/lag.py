r"""How far who follows a log is behind it."""

from collections import deque

# Looks at the end of a log that are remembered.
_MOST = 1024


class Lag:
    r"""How far one who follows a log is behind it, by looks at its end.

    Attributes:
        events (int or None): How many events it has not counted; :obj:`None` if that is not known.
        seconds (float or None): For how long the first of them has been there, as far as somebody
            looked.
    """

    def __init__(self) -> None:
        self.events: int | None = None
        self.seconds: float | None = None
        # Ends of the log, and when each was seen first.
        self._seen: deque[tuple[int, float]] = deque()

    def look(self, position: int, end: int, now: float) -> None:
        r"""Tells where it is, where the log ends, and when."""
        while self._seen and self._seen[0][0] <= position:
            self._seen.popleft()
        if end > (self._seen[-1][0] if self._seen else position) and len(self._seen) < _MOST:
            self._seen.append((end, now))
        self.events = max(end - position, 0)
        self.seconds = now - self._seen[0][1] if self._seen else 0.0

    def lose(self) -> None:
        r"""Tells that the end is not known now."""
        self.events = self.seconds = None
