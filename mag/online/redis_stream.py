r"""The log of events in Redis."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mag.online.event_stream import EventStream
from mag.online.events import EVENT

if TYPE_CHECKING:
    from redis import Redis

_NUM_TOGETHER = 64
# The most entries that are read at once: a megabyte if they are full.
_NUM_READ = 1024
_FIELD = b'events'
# The server does nothing else meanwhile: no lock is needed, and none is left by a kill.
_EXTEND = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local found = last[1] and last[1][1] or '0-0'
if found == ARGV[1] then
    for number = 2, #ARGV, 2 do
        redis.call('XADD', KEYS[1], ARGV[number], 'events', ARGV[number + 1])
    end
end
return found
"""


class RedisStream(EventStream):
    r"""An :class:`~mag.online.EventStream` in Redis 6.2 or newer, for several machines.

    It is one Redis stream. An entry has up to 64 events, and the position after them as its id. A
    script in the server appends only what continues, so that nothing is there twice, whatever was
    sent twice. A large array is appended in parts of 8,192 events: after a kill the first of them
    may be there, and their producer goes on from :attr:`end`.

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

    def close(self) -> None:
        r"""Does nothing: the client is the caller's."""

    def _bounds(self) -> tuple[int, int]:
        # One transaction, or events that come between would be in neither.
        with self.client.pipeline() as pipeline:
            pipeline.xrange(self._key, count=1)
            pipeline.xrevrange(self._key, count=1)
            first, last = map(self._unpack, pipeline.execute())
        if not first:
            return 0, 0
        end, events = first[0]
        return end - len(events) // EVENT.itemsize, last[0][0]

    def _extend(self, events: np.ndarray, position: int) -> int:
        packed, size = events.tobytes(), EVENT.itemsize
        arguments: list[Any] = [f'{position}-0']
        for row in range(0, len(events), _NUM_TOGETHER):
            arguments.append(f'{position + min(row + _NUM_TOGETHER, len(events))}-0')
            arguments.append(packed[row * size : (row + _NUM_TOGETHER) * size])
        return _position(self.client.eval(_EXTEND, 1, self._key, *arguments))

    def _batches(self, position: int, limit: int) -> list[tuple[int, bytes]]:
        # As many entries as hold the events if they are full, and more each time if they are not.
        batches: list[tuple[int, bytes]] = []
        after, count = position, min(limit // _NUM_TOGETHER + 2, _NUM_READ)
        while after < position + limit:
            found = self._unpack(self.client.xrange(self._key, f'{after + 1}-0', count=count))
            batches += found
            if len(found) < count:
                break
            after, count = found[-1][0], min(2 * count, _NUM_READ)
        return batches

    def _unpack(self, entries: Any) -> list[tuple[int, bytes]]:
        try:
            return [(_position(identity), fields[_FIELD]) for identity, fields in entries]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{self!r} is damaged: the key {self._key!r} has entries that mag did not write.'
            ) from error

    def _trim(self, position: int) -> None:
        # The last entry tells where the stream ends.
        last = min(position + 1, self.end)
        self.client.xtrim(self._key, minid=f'{last}-0', approximate=False)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'


def _position(identity: Any) -> int:
    return int(identity.partition(b'-')[0])
