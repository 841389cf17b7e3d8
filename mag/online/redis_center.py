r"""The rows of all nodes in Redis."""

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from mag.online.feature_center import Claim, FeatureCenter
from mag.online.node_rows import RowLayout

if TYPE_CHECKING:
    from redis import Redis

# Of rows, or of pairs: a command of Redis takes up to a million arguments.
_NUM_TOGETHER = 2**16


class RedisCenter(FeatureCenter):
    r"""A :class:`~mag.online.FeatureCenter` in Redis 6.2 or newer, for several machines.

    A row is a string at :obj:`"{name}:user:{node}"` or :obj:`"{name}:item:{node}"`, so that a
    request reads a thousand rows with one command. A commit is one transaction. A server that loses
    power may lose some of the last ones, see :class:`~mag.online.RedisStream`, which are then
    counted again.

    After it was killed or lost power, run :obj:`redis-check-aof --fix` before it is started, which
    cuts off a transaction of which only the beginning was written. The server passes over that
    beginning, but leaves it in its file, and takes what is written next for the rest of it when it
    is started once more.

    Args:
        client (redis.Redis): The client, see :func:`~mag.online.connect`. It stays open when the
            centre is closed.
        layout (RowLayout): What rows look like.
        name (str, optional): What keys start with, for several centres in one server.
            (default: :obj:`"mag"`)

    Raises:
        ValueError: If the rows there have another layout.
    """

    def __init__(self, client: 'Redis', layout: RowLayout, name: str = 'mag') -> None:
        super().__init__(layout)
        if not isinstance(name, str):
            raise TypeError(f"'name' must be a text, but got {name!r}.")
        if client.connection_pool.connection_kwargs.get('decode_responses'):
            raise ValueError(
                "'client' must return bytes, but makes texts of them: mag.online.connect makes one "
                'that does not.'
            )
        self.client = client
        self.name = name
        self.agree({'layout': repr(layout)})

    def positions(self) -> dict[int, int]:
        shards: Any = self.client.smembers(f'{self.name}:shards')
        numbers = sorted(map(int, shards))
        # A server whose memory is full takes no transaction.
        with self.client.pipeline(transaction=False) as pipeline:
            for shard in numbers:
                pipeline.hget(self._of_claim(shard), 'position')
            return dict(zip(numbers, map(int, pipeline.execute())))

    def close(self) -> None:
        r"""Does nothing: the client is the caller's."""

    def _keep_settings(self, settings: dict[str, str]) -> dict[str, str]:
        key = f'{self.name}:settings'
        with self.client.pipeline() as pipeline:
            for name, value in settings.items():
                pipeline.hsetnx(key, name, value)
            pipeline.hgetall(key)
            found = pipeline.execute()[-1]
        return {name.decode(): value.decode() for name, value in found.items()}

    def _claim(self, shard: int) -> Claim:
        key, epoch = self._of_claim(shard), uuid.uuid4().hex
        with self.client.pipeline() as pipeline:
            pipeline.sadd(f'{self.name}:shards', shard)
            pipeline.hset(key, 'epoch', epoch)
            pipeline.hsetnx(key, 'position', 0)
            pipeline.hmget(key, 'position', 'checksum')
            position, checksum = pipeline.execute()[-1]
        if checksum is None and int(position) > 0:
            raise ValueError(
                f'{self!r} has rows of an earlier mag, which kept no checksum of the log: count it '
                f'anew in another centre.'
            )
        return Claim(shard, epoch, int(position), int(checksum or 0))

    def _read(self, node_type: str, nodes: list[int]) -> list[bytes | None]:
        found: Any = self.client.mget(self._of_rows(node_type, nodes))
        return found

    def _has_pairs(self, node_type: str, pairs: np.ndarray) -> list[int]:
        found: list[int] = []
        members = pairs.view('V8').tolist()
        for start in range(0, len(members), _NUM_TOGETHER):
            part: Any = self.client.smismember(
                self._of_pairs(node_type), members[start : start + _NUM_TOGETHER]
            )
            found += part
        return found

    def _commit(
        self,
        claim: Claim,
        moved: Claim,
        rows: dict[str, tuple[list[int], list[bytes]]],
        pairs: dict[str, np.ndarray],
    ) -> None:
        from redis import ConnectionError, WatchError

        key = self._of_claim(claim.shard)
        with self.client.pipeline() as pipeline:
            # From here on the transaction fails where another claims or commits.
            pipeline.watch(key)
            self._check(claim, pipeline)
            pipeline.multi()
            for node_type, (nodes, packed) in rows.items():
                keys = self._of_rows(node_type, nodes)
                for start in range(0, len(keys), _NUM_TOGETHER):
                    part = slice(start, start + _NUM_TOGETHER)
                    pipeline.mset(dict(zip(keys[part], packed[part])))
            for node_type, numbers in pairs.items():
                members = numbers.view('V8').tolist()
                for start in range(0, len(members), _NUM_TOGETHER):
                    pipeline.sadd(
                        self._of_pairs(node_type), *members[start : start + _NUM_TOGETHER]
                    )
            pipeline.hset(key, mapping={'position': moved.position, 'checksum': moved.checksum})
            try:
                pipeline.execute()
            except WatchError as error:
                self._check(claim, self.client)
                # So redis-py tells of a connection that broke after it began to watch.
                raise ConnectionError(f'{self!r} gave no answer to a commit.') from error

    def _check(self, claim: Claim, client: 'Redis') -> None:
        there: Any = client.hmget(self._of_claim(claim.shard), 'epoch', 'position')
        if there != [claim.epoch.encode(), str(claim.position).encode()]:
            raise self._fenced(claim)

    def _of_claim(self, shard: int) -> str:
        return f'{self.name}:claim:{shard}'

    def _of_rows(self, node_type: str, nodes: list[int]) -> list[str]:
        prefix = f'{self.name}:{node_type}:'
        return [f'{prefix}{node}' for node in nodes]

    def _of_pairs(self, node_type: str) -> str:
        return f'{self.name}:{node_type}-pairs'

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'
