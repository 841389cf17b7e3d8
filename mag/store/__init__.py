r"""The macro graph of a log that does not fit in memory: built in bounded memory, read from
disk."""

from mag.store.build import build
from mag.store.plan import BuildPlan
from mag.store.store import Store
from mag.store.store_loader import StoreLoader

__all__ = ['BuildPlan', 'Store', 'StoreLoader', 'build']
