r"""The register of ids in Redis."""

from typing import TYPE_CHECKING, Any, cast

from mag.online.id_register import _BEYOND, IdRegister
from mag.online.redis_stream import RedisStream
from mag.schema import NEIGHBOR_TYPE

if TYPE_CHECKING:
    from redis import Redis

# Each runs in the server, which does nothing else meanwhile.
_BEGIN = """
if redis.call('EXISTS', KEYS[1]) == 0 and #ARGV > 0 then
    redis.call('HSET', KEYS[1], unpack(ARGV))
end
return redis.call('HGETALL', KEYS[1])
"""
# ARGV: what is beyond, and for users and items their name, how many they are, and they.
_ADD = """
local place, num_new, numbers = 2, 0, {}
for side = 1, 2 do
    local ids, order = KEYS[2 * side], KEYS[2 * side + 1]
    local fingerprint = redis.call('HGET', KEYS[1], ARGV[place])
    if not fingerprint then
        return {}
    end
    local number = tonumber(string.match(fingerprint, '^%d+')) + redis.call('LLEN', order)
    local last = place + 1 + tonumber(ARGV[place + 1])
    for row = place + 2, last do
        local found = redis.call('HGET', ids, ARGV[row])
        if not found then
            found = number
            if number < tonumber(ARGV[1]) then
                redis.call('HSET', ids, ARGV[row], string.format('%d', number))
                redis.call('RPUSH', order, ARGV[row])
                number = number + 1
                num_new = num_new + 1
            end
        end
        numbers[#numbers + 1] = tonumber(found)
    end
    place = last + 1
end
numbers[#numbers + 1] = num_new
return numbers
"""


class RedisIdRegister(IdRegister):
    r"""An :class:`~mag.online.IdRegister` in the Redis of a :class:`~mag.online.RedisStream`.

    Scripts in the server give numbers. Where it loses its last seconds, it loses events with the
    ids that they name, as these came before them.

    Args:
        client (redis.Redis): The client, see :func:`~mag.online.connect`. It stays open when the
            register is closed.
        name (str, optional): What the keys start with, that of the stream: :obj:`"{name}:ids"`,
            and for users and items :obj:`"{name}:ids:user"` and :obj:`"{name}:ids:user:order"`.
            (default: :obj:`"mag"`)
    """

    def __init__(self, client: 'Redis', name: str = 'mag') -> None:
        # What that is asked for, this needs, too.
        self.client = RedisStream(client, name).client
        self.name = name
        self._key = f'{name}:ids'
        self._keys = [
            self._key,
            *(f'{self._key}:{node}{of}' for node in NEIGHBOR_TYPE for of in ('', ':order')),
        ]

    def close(self) -> None:
        r"""Does nothing: the client is the caller's."""

    def _begin(self, fingerprints: dict[str, str]) -> dict[str, str]:
        given = [text for pair in fingerprints.items() for text in pair]
        found = [text.decode() for text in self.client.eval(_BEGIN, 1, self._key, *given)]
        return dict(zip(found[::2], found[1::2], strict=True))

    def _begun(self) -> dict[str, str]:
        return self._begin({})

    def _add(self, ids: dict[str, list[bytes]]) -> tuple[dict[str, list[int]], int]:
        arguments: list[Any] = [_BEYOND]
        for node in NEIGHBOR_TYPE:
            arguments += [node, len(ids[node]), *ids[node]]
        answer = self.client.eval(_ADD, len(self._keys), *self._keys, *arguments)
        if not answer:
            raise ValueError(f'{self!r} has not begun: call begin with the ids of a snapshot.')
        *found, num_new = answer
        numbers = {}
        for node in NEIGHBOR_TYPE:
            numbers[node], found = found[: len(ids[node])], found[len(ids[node]) :]
        return numbers, num_new

    def _read(self, node_type: str, number: int, limit: int) -> list[bytes]:
        place = number - self.first[node_type]
        key = f'{self._key}:{node_type}:order'
        return cast(list[bytes], self.client.lrange(key, place, place + limit - 1))

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'
