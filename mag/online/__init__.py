r"""What a model reads while it serves, as fresh as the last event."""

from mag.online.consumer import Consumer
from mag.online.event_stream import EventStream
from mag.online.events import EVENT, check_events
from mag.online.feature_center import Claim, FeatureCenter, Fenced
from mag.online.node_rows import RowLayout, count_events
from mag.online.redis_center import RedisCenter
from mag.online.redis_client import connect
from mag.online.redis_stream import RedisStream
from mag.online.replica import Replica
from mag.online.scorer import Answer, Scorer
from mag.online.snapshot import Snapshot, write_snapshot
from mag.online.sqlite_center import SqliteCenter
from mag.online.sqlite_stream import SqliteStream

__all__ = [
    'EVENT',
    'Answer',
    'Claim',
    'Consumer',
    'EventStream',
    'FeatureCenter',
    'Fenced',
    'RedisCenter',
    'RedisStream',
    'Replica',
    'RowLayout',
    'Scorer',
    'Snapshot',
    'SqliteCenter',
    'SqliteStream',
    'check_events',
    'connect',
    'count_events',
    'write_snapshot',
]
