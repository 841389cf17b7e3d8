import os
import os.path as osp
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mag.datasets import IdMap
from mag.pipeline.known_log import KnownLog
from mag.pipeline.raw_log import RawLog
from mag.transforms import TemporalSplit

if TYPE_CHECKING:
    from mag.store import Store


class StoredLog(KnownLog):
    r"""The log of a :class:`~mag.store.Store`, of which a request reads ids and names alone.

    Args:
        store: The store.
        reads: What is read of :obj:`"contexts"` of exposures. No model of a store reads features.

    Raises:
        ValueError: If the store has cutoffs of its own.
    """

    def __init__(self, store: 'Store', reads: Collection[str]) -> None:
        if store.manifest['parts'] is None:
            raise ValueError(
                f'Pipeline trains on the rows of a split, but the store in {store.path!r} was '
                f"built with cutoffs of its own: build one with 'num_windows' instead."
            )
        self.store = store
        self.features = []
        self._contexts = [*store.contexts] if 'contexts' in reads else []

    @classmethod
    def of(cls, store: Any, reads: Collection[str]) -> 'StoredLog':
        r"""The log of a store, or of the one in a folder.

        Raises:
            FileNotFoundError: If the folder is no store.
            ModuleNotFoundError: If what reads stores is not installed.
            TypeError: If it is neither.
            ValueError: If the store is damaged, or has cutoffs of its own.
        """
        # What it takes is an extra.
        from mag.store import Store

        if isinstance(store, (str, os.PathLike)):
            store = Store(osp.expanduser(store))
        if not isinstance(store, Store):
            raise TypeError(
                f"'log' must be a dataset, a LogSchema or a Store, or the path of one, but got "
                f'{type(store).__name__}.'
            )
        return cls(store, reads)

    @property
    def schema(self) -> dict[str, Any]:
        r"""What a schema of the log says besides where its files are."""
        plan = self.store.manifest['plan']
        return {'columns': plan['columns'], 'time_unit': plan['time_unit'], **plan['format']}

    @cached_property
    def maps(self) -> Mapping[str, IdMap]:  # type: ignore[override]
        # Not before somebody asks by ids: training takes none.
        return {name: self.store.id_map(name) for name in ('user', 'item', *self._contexts)}

    @property
    def contexts(self) -> list[str]:
        return self._contexts

    @property
    def end(self) -> int:
        return self.store.manifest['log']['last_time'] + 1

    @property
    def query_width(self) -> int:
        return 0

    @property
    def num_events(self) -> int:
        return self.store.manifest['num_rows']

    def to_prepare(self) -> 'Store':
        return self.store

    def extend(self, other: RawLog) -> KnownLog:
        raise ValueError(
            f'Pipeline was fitted on the store in {self.store.path!r}, which takes no events: '
            f'build a store of the longer log, and fit on that.'
        )

    def split(self, given: TemporalSplit | None, default: TemporalSplit) -> TemporalSplit:
        own = TemporalSplit(num_windows=self.store.manifest['plan']['num_windows'])
        if given is not None and repr(given) != repr(own):
            raise ValueError(
                f"'split' must be that of the store in {self.store.path!r}, {own}, but got "
                f'{given}: leave it out, or build a store with it.'
            )
        return own

    def summary(self) -> dict[str, Any]:
        manifest, log = self.store.manifest, self.store.manifest['log']
        read = ('user', 'item', *self._contexts)
        return {
            'store': self.store.path,
            'users': self.store.num_nodes['user'],
            'items': self.store.num_nodes['item'],
            'exposures': manifest['num_rows'],
            'clicks': log['num_clicks'],
            'first time': log['first_time'],
            'last time': log['last_time'],
            'ids': {name: self.store.id_maps[name].split()[-1] for name in read},
        }

    def save(self, folder: str) -> dict[str, Any]:
        path = osp.realpath(self.store.path)
        return {
            'store': {
                'path': path,
                'from here': osp.relpath(path, osp.realpath(folder)),
                'fingerprint': self.store.fingerprint,
            }
        }

    @classmethod
    def load(cls, folder: str, facts: Mapping[str, Any], reads: Collection[str]) -> 'StoredLog':
        r"""Opens the store that :meth:`save` told of.

        Args:
            folder: Where it was saved.
            facts: What :meth:`save` gave.
            reads: What is read of exposures.

        Raises:
            ModuleNotFoundError: If what reads stores is not installed.
            ValueError: If the store is gone, or another one.
        """
        from mag.store import Store
        from mag.store.manifest import has_manifest

        told = facts['store']
        paths = [osp.normpath(osp.join(osp.realpath(folder), told['from here'])), told['path']]
        there = [path for path in dict.fromkeys(paths) if has_manifest(path)]
        if not there:
            raise ValueError(
                f'{folder!r} was fitted on a store that is neither in '
                f'{" nor in ".join(map(repr, dict.fromkeys(paths)))}: put it back, or fit the '
                f'pipeline again.'
            )
        stores = [Store(path) for path in there]
        same = [store for store in stores if store.fingerprint == told['fingerprint']]
        if not same:
            raise ValueError(
                f'{folder!r} was fitted on the store {told["fingerprint"][:16]}, but that in '
                f'{there[0]!r} is {stores[0].fingerprint[:16]}: fit the pipeline again.'
            )
        return cls(same[0], reads)
