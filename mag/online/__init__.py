r"""What a model reads while it serves, as fresh as the last event."""

from importlib import import_module
from typing import TYPE_CHECKING

from mag.online.consumer import Consumer
from mag.online.event_stream import Diverged, EventStream
from mag.online.events import EVENT, check_events, checksum_of
from mag.online.feature_center import Claim, FeatureCenter, Fenced
from mag.online.id_register import IdRegister, Registered
from mag.online.json_formatter import JsonFormatter
from mag.online.node_rows import RowLayout, count_events
from mag.online.program import Compiled, Program, load_program
from mag.online.ranker import Explained, Explainer, MacroEdges, Ranked, Ranker
from mag.online.redis_center import RedisCenter
from mag.online.redis_client import connect
from mag.online.redis_id_register import RedisIdRegister
from mag.online.redis_stream import RedisStream
from mag.online.replica import Replica
from mag.online.scorer import Answer, Scorer
from mag.online.snapshot import Snapshot, write_snapshot
from mag.online.snapshot_ranker import SnapshotRanker
from mag.online.sqlite_center import SqliteCenter
from mag.online.sqlite_id_register import SqliteIdRegister
from mag.online.sqlite_stream import SqliteStream

if TYPE_CHECKING:
    from mag.online.client import AsyncClient, Client, Explanation, Overloaded, Ranking, swap
    from mag.online.server import Server

__all__ = [
    'EVENT',
    'Answer',
    'AsyncClient',
    'Claim',
    'Compiled',
    'Client',
    'Consumer',
    'Diverged',
    'EventStream',
    'Explained',
    'Explainer',
    'Explanation',
    'FeatureCenter',
    'Fenced',
    'IdRegister',
    'JsonFormatter',
    'MacroEdges',
    'Overloaded',
    'Program',
    'Ranked',
    'Ranker',
    'Ranking',
    'RedisCenter',
    'RedisIdRegister',
    'RedisStream',
    'Registered',
    'Replica',
    'RowLayout',
    'Scorer',
    'Server',
    'Snapshot',
    'SnapshotRanker',
    'SqliteCenter',
    'SqliteIdRegister',
    'SqliteStream',
    'check_events',
    'checksum_of',
    'connect',
    'count_events',
    'load_program',
    'swap',
    'write_snapshot',
]

_FILES = {
    'AsyncClient': 'client',
    'Client': 'client',
    'Explanation': 'client',
    'Overloaded': 'client',
    'Ranking': 'client',
    'Server': 'server',
    'swap': 'client',
}


def __getattr__(name: str) -> object:
    # A consumer needs no gRPC.
    if name not in _FILES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(import_module(f'mag.online.{_FILES[name]}'), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'mag.online.{name} needs {error.name}, which is not installed: pip install '
            f"'pyg-mag[online]'."
        ) from error
