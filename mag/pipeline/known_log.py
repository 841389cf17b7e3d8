from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mag.datasets import IdMap
from mag.transforms import TemporalSplit

if TYPE_CHECKING:
    from mag.pipeline.raw_log import RawLog


class KnownLog(ABC):
    r"""What a pipeline knows of the log that it was fitted on: a :class:`RawLog` is held, and a
    :class:`StoredLog` is on the disk."""

    #: The maps from the raw ids of users and items, and from the names of contexts.
    maps: Mapping[str, IdMap]
    #: The names of the numeric features of exposures that are read.
    features: list[str]

    @property
    @abstractmethod
    def contexts(self) -> list[str]:
        r"""The names of the categorical attributes of exposures that are read."""

    @property
    @abstractmethod
    def end(self) -> int:
        r"""The first second after the last event."""

    @property
    @abstractmethod
    def query_width(self) -> int:
        r"""How many terms are read of a query."""

    @property
    @abstractmethod
    def num_events(self) -> int:
        r"""How many exposures there are."""

    @abstractmethod
    def to_prepare(self) -> Any:
        r"""What :meth:`Recipe.prepare` takes."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        r"""Sizes, times and fingerprints, as values of JSON."""

    @abstractmethod
    def save(self, folder: str) -> dict[str, Any]:
        r"""Writes files, and gives what is read again besides, as values of JSON.

        Args:
            folder: Where; it is renamed to a folder beside.
        """

    @abstractmethod
    def extend(self, other: 'RawLog') -> 'KnownLog':
        r"""The log with the events of another one at its end.

        Raises:
            ValueError: If it can have none, or not these.
        """

    def split(self, given: TemporalSplit | None, default: TemporalSplit) -> TemporalSplit:
        r"""How the log is split.

        Args:
            given: The split that was asked for.
            default: The one of the model.
        """
        return default if given is None else given

    def look_up(self, name: str, raw: Any) -> Tensor:
        r"""The numbers of raw ids or names, :obj:`-1` for unknown ones."""
        return torch.from_numpy(self.maps[name].encode(raw))

    def raw(self, name: str) -> np.ndarray:
        r"""All ids or names of a map."""
        return self.maps[name].decode(np.arange(len(self.maps[name])))

    def encode(self, other: 'RawLog') -> dict[str, Tensor]:
        r"""The events of another log by the ids and names of this one, :obj:`-1` for those that it
        does not have."""
        codes = dict(other.events)
        for name in ('user', 'item', *self.contexts):
            # Behind the others is found what there is none of.
            place = pad(self.look_up(name, other.raw(name)), (0, 1), value=-1)
            codes[name] = place[other.events[name]]
        return codes
