import os.path as osp
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import HeteroData

from mag.datasets import ClickDataset, IdMap
from mag.pipeline.known_log import KnownLog
from mag.pipeline.saved import read_safetensors, write_safetensors
from mag.schema import CLICKS, OUTCOMES, SEES, categoricals, contents

_UNKNOWN = 'unknown'
_NODES = ('user', 'item')
_OF_ALL_LOGS = ('user', 'item', 'time', 'label')
# What of an exposure is known by no names.
_NUMBERS = ('x', *OUTCOMES)
# What a click carries, too.
_OF_CLICKS = ('query', 'domain')


@dataclass(frozen=True)
class RawLog(KnownLog):
    r"""The exposures of a log in the order of time, and the maps from its raw ids and names.

    Attributes:
        maps (dict[str, IdMap]): Of :obj:`"user"`, :obj:`"item"` and each categorical attribute.
        attributes (dict[str, dict[str, torch.Tensor]]): By node type and name the categorical
            attributes of nodes, shape :obj:`[N]`.
        events (dict[str, torch.Tensor]): :obj:`user`, :obj:`item`, :obj:`time` (int64 seconds) and
            :obj:`label` (1 for a click), each categorical attribute of exposures, shape :obj:`[L]`,
            or :obj:`[L, T]` of a query; and where they are read the features :obj:`x`, shape
            :obj:`[L, F]`, and what followed, :obj:`behavior`, shape :obj:`[L, B]`, and
            :obj:`conversion`, shape :obj:`[L]`.
        contents (dict[str, dict[str, torch.Tensor]]): Where they are read, by node type and name
            the modalities of nodes, :obj:`x_<name>`, shape :obj:`[N, D]`, and :obj:`has_<name>`,
            shape :obj:`[N]`.
        features (list[str]): The names of the columns of :obj:`x`.
    """

    maps: dict[str, IdMap]
    attributes: dict[str, dict[str, Tensor]]
    events: dict[str, Tensor]
    contents: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {n: {} for n in _NODES})
    features: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: ClickDataset, reads: Collection[str] = ()) -> 'RawLog':
        r"""The log that a dataset holds.

        Args:
            dataset: Its graph is in the order of time.
            reads: What is kept of :obj:`"contexts"`, :obj:`"features"` and :obj:`"outcomes"` of
                exposures, and of :obj:`"contents"` of nodes.

        Raises:
            ValueError: If it tells when a click or a label was known.
        """
        data = dataset[0]
        clicks = data[CLICKS]
        if 'edge_label_settled' in clicks:
            raise ValueError(
                "Pipeline does not read 'edge_label_settled', but the log has it: leave out "
                "'settled' and 'actions'."
            )
        user, item = clicks.edge_label_index
        events = {
            'user': user,
            'item': item,
            'time': clicks.edge_label_time,
            'label': clicks.edge_label.float(),
        }
        contexts = categoricals(clicks, 'edge_label_') if 'contexts' in reads else {}
        events |= {name: clicks[f'edge_label_{name}'].long() for name in contexts}
        kept = [*(['x'] if 'features' in reads else ()), *(OUTCOMES if 'outcomes' in reads else ())]
        events |= {
            name: clicks[f'edge_label_{name}'].float()
            for name in kept
            if f'edge_label_{name}' in clicks
        }
        attributes = {
            node: {name: data[node][name].long() for name in categoricals(data[node])}
            for node in _NODES
        }
        found = {
            node: _contents(data[node], dataset.names) if 'contents' in reads else {}
            for node in _NODES
        }
        names = [*_NODES, *contexts, *(name for of_node in attributes.values() for name in of_node)]
        maps = dataset.id_maps
        log = cls(
            # A log's domains are the same two in every log, and need no map there.
            {name: maps[name] if name in maps else IdMap(dataset.names[name]) for name in names},
            attributes,
            events,
            found,
            list(dataset.names.get('feature', ())) if 'x' in events else [],
        )
        edge_index, time = log.clicks()
        if not (torch.equal(edge_index, clicks.edge_index) and torch.equal(time, clicks.time)):
            raise ValueError(
                'Pipeline takes a click to happen when its exposure does, but the log tells '
                "another time: leave out 'click_time'."
            )
        return log

    @property
    def contexts(self) -> list[str]:
        r"""The names of the categorical attributes of exposures."""
        return [name for name in self.events if name not in (*_OF_ALL_LOGS, *_NUMBERS)]

    @property
    def end(self) -> int:
        r"""The first second after the last event."""
        return int(self.events['time'][-1]) + 1

    @property
    def query_width(self) -> int:
        return self.events['query'].size(1)

    @property
    def num_events(self) -> int:
        return self.events['time'].numel()

    def to_prepare(self) -> HeteroData:
        return self.graph()

    def summary(self) -> dict[str, Any]:
        return {
            'users': len(self.maps['user']),
            'items': len(self.maps['item']),
            'exposures': self.num_events,
            'clicks': int(self.events['label'].sum()),
            'first time': int(self.events['time'][0]),
            'last time': self.end - 1,
            'ids': {name: ids.fingerprint for name, ids in self.maps.items()},
        }

    def save(self, folder: str) -> dict[str, Any]:
        tensors = {f'event/{name}': value for name, value in self.events.items()}
        for kind, of_kind in (('attribute', self.attributes), ('content', self.contents)):
            for node, of_node in of_kind.items():
                tensors |= {f'{kind}/{node}/{name}': value for name, value in of_node.items()}
        for name, ids in self.maps.items():
            ids.save(osp.join(folder, f'ids_{name}.parquet'))
        write_safetensors(osp.join(folder, 'log.safetensors'), tensors)
        return {
            'ids': {name: ids.fingerprint for name, ids in self.maps.items()},
            # Tensors of a file have no order.
            'events': list(self.events),
            'attributes': {node: list(of_node) for node, of_node in self.attributes.items()},
            'contents': {node: list(of_node) for node, of_node in self.contents.items()},
            'features': self.features,
        }

    @classmethod
    def load(cls, folder: str, facts: Mapping[str, Any]) -> 'RawLog':
        r"""Reads what :meth:`save` wrote.

        Args:
            folder: Where.
            facts: What it gave.

        Raises:
            ValueError: If the ids are others.
        """
        maps = {name: IdMap.load(osp.join(folder, f'ids_{name}.parquet')) for name in facts['ids']}
        for name, fingerprint in facts['ids'].items():
            if maps[name].fingerprint != fingerprint:
                raise ValueError(
                    f'{folder!r} was saved with the ids {fingerprint} of {name!r}, but holds '
                    f'{maps[name].fingerprint}.'
                )
        tensors = read_safetensors(osp.join(folder, 'log.safetensors'))

        def of(kind: str) -> dict[str, dict[str, Tensor]]:
            return {
                node: {name: tensors[f'{kind}/{node}/{name}'] for name in names}
                for node, names in facts[f'{kind}s'].items()
            }

        events = {name: tensors[f'event/{name}'] for name in facts['events']}
        return cls(maps, of('attribute'), events, of('content'), facts['features'])

    def clicks(self) -> tuple[Tensor, Tensor]:
        r"""Users above items, shape :obj:`[2, E]`, and times, shape :obj:`[E]`."""
        clicked = self.events['label'] == 1
        pairs = torch.stack([self.events['user'], self.events['item']])
        return pairs[:, clicked], self.events['time'][clicked]

    def extend(self, other: 'RawLog') -> 'RawLog':
        r"""The log with the events of another one at its end. New ids and names come after those
        that are there, and a node keeps its attributes but for :obj:`'unknown'`, and its contents
        where none are told there. A query has no more terms than the longest here, as each is a
        field of a model.

        Raises:
            ValueError: If an event is earlier than the last one here, or something that is told of
                exposures here is missing there.
        """
        missing = [name for name in self.events if name not in other.events]
        if missing or other.features != self.features:
            raise ValueError(
                f'Events must tell {[*self.contexts, *self.features] or "no context"}'
                f'{" and what followed" if missing else ""}, as the log that was fitted does, but '
                f'tell {[*other.contexts, *other.features] or "none"}.'
            )
        first, last = int(other.events['time'][0]), self.end - 1
        if first < last:
            raise ValueError(
                f'Events must not be earlier than the last one that is known, at {last}, but one '
                f'is at {first}: pass those that are new.'
            )
        of_nodes = {name for of_node in self.attributes.values() for name in of_node}
        maps = {}
        for name, known in self.maps.items():
            raw = other.raw(name) if name in other.maps else np.array([])
            # Nobody may be unknown here whom the other log knows nothing of.
            maps[name] = known.extend(raw[raw != _UNKNOWN] if name in of_nodes else raw)
        grown = replace(self, maps=maps)
        attributes = {node: grown._attributes(other, node) for node in _NODES}
        found = {node: grown._contents(other, node) for node in _NODES}
        codes = grown.encode(other)
        events = {
            name: torch.cat([value, _as_wide(codes[name], value)])
            for name, value in self.events.items()
        }
        return RawLog(maps, attributes, events, found, self.features)

    def _attributes(self, other: 'RawLog', node: str) -> dict[str, Tensor]:
        r"""The attributes of the nodes of the map, which has grown; names may be added to it."""
        place = self.look_up(node, other.raw(node))
        found = {}
        for name, known in self.attributes[node].items():
            theirs = other.attributes[node].get(name)
            grown = len(self.maps[node]) - known.numel()
            is_open = known == int(self.maps[name].encode([_UNKNOWN])[0])
            is_told = torch.zeros(len(self.maps[node]), dtype=torch.bool)
            if theirs is not None:
                is_told[place] = theirs != int(other.maps[name].encode([_UNKNOWN])[0])
            if not bool(is_told[known.numel() :].all()):
                self.maps[name] = self.maps[name].extend([_UNKNOWN])
            unknown = int(self.maps[name].encode([_UNKNOWN])[0])
            value = torch.cat([known, known.new_full((grown,), unknown)])
            if theirs is not None:
                is_open = torch.cat([is_open, is_open.new_ones(grown)])[place]
                codes = self.look_up(name, other.raw(name))[theirs]
                value[place[is_open]] = codes[is_open]
            found[name] = value
        return found

    def _contents(self, other: 'RawLog', node: str) -> dict[str, Tensor]:
        r"""The contents of the nodes of the map, which has grown."""
        place = self.look_up(node, other.raw(node))
        number, found = len(self.maps[node]), {}
        for name, known in self.contents[node].items():
            if name.startswith('has_'):
                continue
            flag = f'has_{name.removeprefix("x_")}'
            value = pad(known, (0, 0, 0, number - len(known)))
            theirs = self._as_here(other, node, name)
            is_open = (value[place] == 0).all(1)
            if name.removeprefix('x_') not in self.attributes[node]:
                is_open |= (theirs != 0).any(1)
            value[place[is_open]] = theirs[is_open]
            found[name] = value
            if flag in self.contents[node]:
                has = self.contents[node][flag]
                found[flag] = pad(has, (0, number - has.numel()))
                given = other.contents[node].get(flag, torch.ones_like(is_open))
                found[flag][place[is_open]] = given[is_open]
        return found

    def _as_here(self, other: 'RawLog', node: str, name: str) -> Tensor:
        r"""What another log tells of its nodes, in the columns that this one has: a value that is
        new, of an attribute of several, has none."""
        width, attribute = self.contents[node][name].size(1), name.removeprefix('x_')
        theirs = other.contents[node].get(name)
        if theirs is None:
            return torch.zeros(len(other.maps[node]), width)
        if attribute in self.attributes[node]:
            column = self.look_up(attribute, other.raw(attribute))
            is_here = column < width
            here = torch.zeros(len(theirs), width)
            return here.index_copy_(1, column[is_here], theirs[:, is_here])
        if theirs.size(1) != width:
            raise ValueError(
                f'Events must tell {width} numbers of {attribute!r}, as the log that was fitted '
                f'does, but tell {theirs.size(1)}.'
            )
        return theirs

    def graph(self) -> HeteroData:
        r"""The whole log as a graph, such as a dataset gives it."""
        data = self._nodes()
        self._add_clicks(data)
        self._add_rows(data, slice(None))
        return data

    def part(self) -> HeteroData:
        r"""The log as of its end, without rows to predict, such as a part of a split."""
        data = self._nodes()
        clicks, sees = data[CLICKS], data[SEES]
        self._add_clicks(data)
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
            for name, value in self.contents[node].items():
                data[node][name] = value
        return data

    def _add_clicks(self, data: HeteroData) -> None:
        clicks, clicked = data[CLICKS], self.events['label'] == 1
        clicks.edge_index, clicks.time = self.clicks()
        for name in _OF_CLICKS:
            if name in self.events:
                clicks[name] = self.events[name][clicked]

    def _add_rows(self, data: HeteroData, rows: slice) -> None:
        clicks, events = data[CLICKS], self.events
        clicks.edge_label_index = torch.stack([events['user'][rows], events['item'][rows]])
        clicks.edge_label, clicks.edge_label_time = events['label'][rows], events['time'][rows]
        for name in (*self.contexts, *_NUMBERS):
            if name in events:
                clicks[f'edge_label_{name}'] = events[name][rows]
        for name in self.contexts:
            clicks[f'num_{name}'] = len(self.maps[name])


def _contents(store: Any, names: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    r"""The modalities of nodes; who has no value of an attribute of several has nothing of it."""
    found = {}
    for modality, name in contents(store).items():
        x = store[name].float()
        if modality in names:
            is_known = torch.tensor([value != _UNKNOWN for value in names[modality]])
            x = x * is_known
        found[name] = x
        if f'has_{modality}' in store:
            found[f'has_{modality}'] = store[f'has_{modality}']
    return found


def _as_wide(value: Tensor, other: Tensor) -> Tensor:
    r"""What has columns with as many as another: of a longer query the first terms."""
    if value.dim() < 2:
        return value
    width = other.size(1)
    return pad(value[:, :width], (0, max(width - value.size(1), 0)), value=-1)
