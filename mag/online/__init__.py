r"""What a model reads while it serves, as fresh as the last event."""

from mag.online.event_stream import EventStream
from mag.online.events import EVENT, check_events
from mag.online.redis_client import connect
from mag.online.redis_stream import RedisStream
from mag.online.sqlite_stream import SqliteStream

__all__ = ['EVENT', 'EventStream', 'RedisStream', 'SqliteStream', 'check_events', 'connect']
