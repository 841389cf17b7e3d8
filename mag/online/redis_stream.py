r"""The log of events in Redis."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mag.online.event_stream import EventStream
from mag.online.events import EVENT, checksum_of

if TYPE_CHECKING:
    from redis import Redis

_NUM_TOGETHER = 64
# The most entries that are read at once: a megabyte if they are full.
_NUM_READ = 1024
_FIELDS = b'checksum', b'events'
# The server does nothing else meanwhile: no lock is needed, and none is left by a kill.
_EXTEND = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local found = last[1] and {last[1][1], last[1][2][2]} or {'0-0', '0'}
if found[1] == ARGV[1] and found[2] == ARGV[2] then
    for number = 3, #ARGV, 3 do
        redis.call(
            'XADD', KEYS[1], ARGV[number], 'checksum', ARGV[number + 1], 'events', ARGV[number + 2]
        )
    end
end
return found
"""


class RedisStream(EventStream):
    r"""An :class:`~mag.online.EventStream` in Redis 6.2 or newer, for several machines.

    It is one Redis stream. An entry has up to 64 events, the checksum of all events up to its last
    one, and the position after it as its id. A script in the server appends only what continues, so
    that nothing is there twice, whatever was sent twice. A large array is appended in parts of
    8,192 events: after a kill the first of them may be there, and their producer goes on from
    :attr:`end`.

    What survives when the server is killed or loses power is for its settings to say: all with
    :obj:`appendonly yes` and :obj:`appendfsync always`, all but the last two seconds with
    :obj:`appendfsync everysec`, and then :meth:`append` refuses what would leave a gap.

    Args:
        client (redis.Redis): The client, see :func:`~mag.online.connect`. It stays open when the
            stream is closed.
        name (str, optional): What the key starts with, :obj:`"{name}:events"`, for several streams
            in one server. (default: :obj:`"mag"`)
    """

    _num_at_once = 8192

    def __init__(self, client: 'Redis', name: str = 'mag') -> None:
        if not isinstance(name, str):
            raise TypeError(f"'name' must be a text, but got {name!r}.")
        if not hasattr(client, 'connection_pool'):
            raise TypeError(
                f"'client' must be a redis.Redis, such as mag.online.connect makes, but got "
                f'{type(client)}.'
            )
        if client.connection_pool.connection_kwargs.get('decode_responses'):
            raise ValueError(
                "'client' must return bytes, but makes texts of them: mag.online.connect makes one "
                'that does not.'
            )
        self.client = client
        self.name = name
        self._key = f'{name}:events'
        # The end, as it was seen last, and the checksum there.
        self._seen = (0, 0)

    def close(self) -> None:
        r"""Does nothing: the client is the caller's."""

    def _bounds(self) -> tuple[int, int, int]:
        # One transaction, or events that come between would be in neither.
        with self.client.pipeline() as pipeline:
            pipeline.xrange(self._key, count=1)
            pipeline.xrevrange(self._key, count=1)
            first, last = map(self._unpack, pipeline.execute())
        if not first:
            return 0, 0, 0
        end, _, events = first[0]
        self._seen = last[0][:2]
        return end - len(events) // EVENT.itemsize, *self._seen

    def _extend(self, events: np.ndarray, position: int) -> int:
        end, checksum = self._seen
        before = checksum if end == position else 0
        while True:
            checksum = before
            arguments: list[Any] = [f'{position}-0', checksum]
            for row in range(0, len(events), _NUM_TOGETHER):
                batch = events[row : row + _NUM_TOGETHER]
                checksum = checksum_of(batch, checksum)
                arguments += [f'{position + row + len(batch)}-0', checksum, batch.tobytes()]
            found: Any = self.client.eval(_EXTEND, 1, self._key, *arguments)
            try:
                end, there = _position(found[0]), int(found[1])
            except ValueError as error:
                raise self._damaged() from error
            if end != position:
                return end
            if there == before:
                self._seen = position + len(events), checksum
                return end
            # The server knows what it has, but cannot count on from it.
            before = there

    def _batches(self, position: int, limit: int) -> list[tuple[int, int, bytes]]:
        # As many entries as hold the events if they are full, and more each time if they are not.
        batches: list[tuple[int, int, bytes]] = []
        after, count = position, min(limit // _NUM_TOGETHER + 2, _NUM_READ)
        while after < position + limit:
            found = self._unpack(self.client.xrange(self._key, f'{after + 1}-0', count=count))
            batches += found
            if len(found) < count:
                break
            after, count = found[-1][0], min(2 * count, _NUM_READ)
        return batches

    def _held(
        self, position: int, limit: int, checksum: int | None = None
    ) -> tuple[int, np.ndarray]:
        try:
            return super()._held(position, limit, checksum)
        except ValueError:
            # Some may have been read before a restart of the server, and others after it.
            return super()._held(position, limit, checksum)

    def _unpack(self, entries: Any) -> list[tuple[int, int, bytes]]:
        checksum, events = _FIELDS
        try:
            return [
                (_position(identity), int(fields[checksum]), fields[events])
                for identity, fields in entries
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged() from error

    def _damaged(self) -> ValueError:
        return ValueError(
            f'{self!r} is damaged: the key {self._key!r} has entries that mag did not write, or an '
            f'earlier mag, without checksums. Append its events to a stream of another name.'
        )

    def _trim(self, position: int) -> None:
        # The last entry tells where the stream ends.
        last = min(position + 1, self.end)
        self.client.xtrim(self._key, minid=f'{last}-0', approximate=False)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'


def _position(identity: Any) -> int:
    return int(identity.partition(b'-')[0])
