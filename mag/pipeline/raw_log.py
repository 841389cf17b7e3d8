from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import ClickDataset, IdMap
from mag.schema import CLICKS, SEES, categoricals

_UNKNOWN = 'unknown'
_NODES = ('user', 'item')
#: What a log may have that is not carried, and by which roles it comes.
_REFUSED = {
    'edge_label_query': "'query'",
    'edge_label_domain': "'domain'",
    'edge_label_settled': "'settled' and 'actions'",
}


@dataclass(frozen=True)
class RawLog:
    r"""The exposures of a log in the order of time, and the maps from its raw ids and names.

    Attributes:
        maps (dict[str, IdMap]): Of :obj:`"user"`, :obj:`"item"` and each categorical attribute.
        attributes (dict[str, dict[str, torch.Tensor]]): By node type and name the attributes of
            nodes, shape :obj:`[N]`.
        events (dict[str, torch.Tensor]): :obj:`user`, :obj:`item`, :obj:`time` (int64 seconds),
            :obj:`label` (1 for a click) and each attribute of exposures, shape :obj:`[L]`.
    """

    maps: dict[str, IdMap]
    attributes: dict[str, dict[str, Tensor]]
    events: dict[str, Tensor]

    @classmethod
    def of(cls, dataset: ClickDataset) -> 'RawLog':
        r"""The log that a dataset holds.

        Raises:
            ValueError: If it tells when a click or a label was known, or has queries or domains.
        """
        data = dataset[0]
        clicks = data[CLICKS]
        for name, roles in _REFUSED.items():
            if name in clicks:
                raise ValueError(
                    f'Pipeline does not read {name!r}, but the log has it: leave out {roles}.'
                )
        user, item = clicks.edge_label_index
        events = {
            'user': user,
            'item': item,
            'time': clicks.edge_label_time,
            'label': clicks.edge_label.float(),
        }
        contexts = categoricals(clicks, 'edge_label_')
        events |= {name: clicks[f'edge_label_{name}'].long() for name in contexts}
        attributes = {
            node: {name: data[node][name].long() for name in categoricals(data[node])}
            for node in _NODES
        }
        names = [*_NODES, *contexts, *(name for found in attributes.values() for name in found)]
        maps = dataset.id_maps
        log = cls({name: maps[name] for name in names}, attributes, events)
        edge_index, time = log.clicks()
        if not (torch.equal(edge_index, clicks.edge_index) and torch.equal(time, clicks.time)):
            raise ValueError(
                'Pipeline takes a click to happen when its exposure does, but the log tells '
                "another time: leave out 'click_time'."
            )
        return log

    @property
    def contexts(self) -> list[str]:
        r"""The names of the attributes of exposures."""
        return [name for name in self.events if name not in ('user', 'item', 'time', 'label')]

    @property
    def end(self) -> int:
        r"""The first second after the last event."""
        return int(self.events['time'][-1]) + 1

    def clicks(self) -> tuple[Tensor, Tensor]:
        r"""Users above items, shape :obj:`[2, E]`, and times, shape :obj:`[E]`."""
        clicked = self.events['label'] == 1
        pairs = torch.stack([self.events['user'], self.events['item']])
        return pairs[:, clicked], self.events['time'][clicked]

    def extend(self, other: 'RawLog') -> 'RawLog':
        r"""The log with the events of another one at its end. New ids and names come after those
        that are there, and a node keeps its attributes but for :obj:`'unknown'`.

        Raises:
            ValueError: If an event is earlier than the last one here, or attributes of exposures
                are missing.
        """
        missing = [name for name in self.contexts if name not in other.contexts]
        if missing:
            raise ValueError(f'Events must tell {missing}, as the log that was fitted does.')
        first, last = int(other.events['time'][0]), self.end - 1
        if first < last:
            raise ValueError(
                f'Events must not be earlier than the last one that is known, at {last}, but one '
                f'is at {first}: pass those that are new.'
            )
        maps = {
            name: known.extend(other.raw(name)) if name in other.maps else known
            for name, known in self.maps.items()
        }
        grown = replace(self, maps=maps)
        attributes = {node: grown._attributes(other, node) for node in _NODES}
        codes = grown.encode(other)
        events = {name: torch.cat([self.events[name], codes[name]]) for name in self.events}
        return RawLog(maps, attributes, events)

    def encode(self, other: 'RawLog') -> dict[str, Tensor]:
        r"""The events of another log by the ids and names of this one, :obj:`-1` for those that it
        does not have."""
        codes = dict(other.events)
        for name in ('user', 'item', *self.contexts):
            codes[name] = self.look_up(name, other.raw(name))[other.events[name]]
        return codes

    def look_up(self, name: str, raw: Any) -> Tensor:
        r"""The numbers of raw ids or names, :obj:`-1` for unknown ones."""
        return torch.from_numpy(self.maps[name].encode(raw))

    def raw(self, name: str) -> np.ndarray:
        r"""All ids or names of a map."""
        return self.maps[name].decode(np.arange(len(self.maps[name])))

    def _attributes(self, other: 'RawLog', node: str) -> dict[str, Tensor]:
        r"""The attributes of the nodes of the map, which has grown; names may be added to it."""
        place = self.look_up(node, other.raw(node))
        found = {}
        for name, known in self.attributes[node].items():
            theirs = other.attributes[node].get(name)
            grown = len(self.maps[node]) - known.numel()
            is_open = known == int(self.maps[name].encode([_UNKNOWN])[0])
            if theirs is None and grown > 0:
                self.maps[name] = self.maps[name].extend([_UNKNOWN])
            unknown = int(self.maps[name].encode([_UNKNOWN])[0])
            value = torch.cat([known, known.new_full((grown,), unknown)])
            if theirs is not None:
                is_open = torch.cat([is_open, is_open.new_ones(grown)])[place]
                codes = self.look_up(name, other.raw(name))[theirs]
                value[place[is_open]] = codes[is_open]
            found[name] = value
        return found

    def graph(self) -> HeteroData:
        r"""The whole log as a graph, such as a dataset gives it."""
        data = self._nodes()
        clicks = data[CLICKS]
        clicks.edge_index, clicks.time = self.clicks()
        self._add_rows(data, slice(None))
        return data

    def part(self) -> HeteroData:
        r"""The log as of its end, without rows to predict, such as a part of a split."""
        data = self._nodes()
        clicks, sees = data[CLICKS], data[SEES]
        clicks.edge_index, clicks.time = self.clicks()
        clicks.cutoff = torch.tensor([self.end])
        self._add_rows(data, slice(0))
        sees.edge_index = torch.stack([self.events['user'], self.events['item']])
        sees.time, sees.clicked = self.events['time'], self.events['label']
        for name in self.contexts:
            sees[name], sees[f'num_{name}'] = self.events[name], len(self.maps[name])
        return data

    def _nodes(self) -> HeteroData:
        data = HeteroData()
        data.id_maps = {name: ids.lineage for name, ids in self.maps.items()}
        for node in _NODES:
            data[node].num_nodes = len(self.maps[node])
            for name, value in self.attributes[node].items():
                data[node][name], data[node][f'num_{name}'] = value, len(self.maps[name])
        return data

    def _add_rows(self, data: HeteroData, rows: slice) -> None:
        clicks, events = data[CLICKS], self.events
        clicks.edge_label_index = torch.stack([events['user'][rows], events['item'][rows]])
        clicks.edge_label, clicks.edge_label_time = events['label'][rows], events['time'][rows]
        for name in self.contexts:
            clicks[f'edge_label_{name}'] = events[name][rows]
            clicks[f'num_{name}'] = len(self.maps[name])
