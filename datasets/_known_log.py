r"""What an earlier log knows of the ids of a later one."""

import os
import os.path as osp
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets._cache import Cache
from mag.datasets._parquet import read_columns
from mag.id_map import IdMap

_NODES = ('user', 'item')


class KnownLog(NamedTuple):
    r"""What an earlier log knows, by :obj:`"user"`, :obj:`"item"` and the names of categorical
    attributes."""

    maps: dict[str, IdMap]
    #: By node type and name, the codes of the categorical attributes of its nodes.
    codes: dict[str, dict[str, np.ndarray]]
    #: By node type and name, the words there are about its nodes.
    words: dict[str, dict[str, np.ndarray]]
    #: By node type and name, the columns of attributes of several values, :obj:`x_<name>`.
    lists: dict[str, dict[str, Tensor]]
    #: By node type and name, the features of modalities, and who has them: :obj:`x_<name>` and
    #: :obj:`has_<name>`.
    modalities: dict[str, dict[str, tuple[Tensor, Tensor]]]

    def num_told(self, node: str, names: Iterable[str]) -> int:
        r"""How many nodes of a type it tells of in all of these attributes, texts and modalities:
        all that it has, which come first, or none where it lacks one."""
        told = (self.codes, self.words, self.modalities)
        if not all(any(name in found.get(node, {}) for found in told) for name in names):
            return 0
        return len(self.maps[node]) if node in self.maps else 0

    def add_modalities(self, data: HeteroData) -> None:
        r"""Adds :obj:`x_<name>` and :obj:`has_<name>` of nodes that have a modality here and none
        in the data."""
        for node, modalities in self.modalities.items():
            store = data[node]
            for name, (old, had) in modalities.items():
                if f'x_{name}' in store and f'has_{name}' not in store:
                    # It is no modality any more.
                    continue
                has = store.get(f'has_{name}', torch.zeros(store.num_nodes, dtype=torch.bool))
                x = store[f'x_{name}'] if has.any() else torch.zeros(len(has), old.size(1))
                lacks = (had & ~has[: len(had)]).nonzero().view(-1)
                if lacks.numel() and x.size(1) != old.size(1):
                    warnings.warn(
                        f'{lacks.numel():,} {node}s have no {name!r} but in the earlier log, where '
                        f'it is {old.size(1)} numbers and not {x.size(1)}: its features are 0.',
                        stacklevel=2,
                    )
                    continue
                x[lacks], has[lacks] = old[lacks], True
                store[f'x_{name}'], store[f'has_{name}'] = x, has


class KnownLogReader:
    r"""Reads a :class:`KnownLog` when it is needed, which is not where a cache is opened.

    Args:
        ids (str or dict, optional): The folder of an earlier dataset, or its maps by the names of
            :class:`KnownLog`; nothing is known without.

    Raises:
        FileNotFoundError: If there is no dataset in the folder.
        TypeError: If :obj:`ids` is something else.
        ValueError: If the cache in the folder is damaged, or of another version.
    """

    def __init__(self, ids: Any) -> None:
        self._maps: dict[str, IdMap] = {}
        self._cache: Cache | None = None
        if isinstance(ids, (str, os.PathLike)):
            self._cache = Cache(osp.join(osp.abspath(osp.expanduser(ids)), 'processed'))
            if not self._cache.exists():
                raise FileNotFoundError(
                    f"'ids' must name the folder of a dataset that was read before, but there is "
                    f'none in {os.fspath(ids)!r}.'
                )
            self._manifest = self._cache.read_whole(self._cache.read_manifest)
            if 'id_maps' not in self._manifest:
                raise ValueError(
                    f"'ids' names {os.fspath(ids)!r}, which another version has read: read that "
                    f'log again with force_reload=True.'
                )
        elif isinstance(ids, Mapping) and all(isinstance(map_, IdMap) for map_ in ids.values()):
            if not {'user', 'item'} & ids.keys():
                raise ValueError(
                    f"'ids' must have the map of 'user', of 'item' or of both, but got "
                    f'{", ".join(map(repr, ids)) or "none"}.'
                )
            self._maps = dict(ids)
        elif ids is not None:
            raise TypeError(
                f"'ids' must be an earlier dataset, its folder or a dictionary of IdMaps such as "
                f"{{'user': IdMap(users)}}, but got {type(ids).__name__}."
            )

    @property
    def settings(self) -> dict[str, str] | None:
        r"""What the cache of the later log is known by."""
        if self._cache is None:
            return {name: map_.fingerprint for name, map_ in self._maps.items()} or None
        lineages = self._manifest['id_maps']
        last = {name: lineage.split()[-1] for name, lineage in lineages.items()}
        # That also tells the attributes of nodes.
        return last | {'data.pt': self._manifest['files']['data.pt']}

    def read(self) -> KnownLog:
        if self._cache is None:
            return KnownLog(self._maps, {}, {}, {}, {})
        cache, manifest = self._cache, self._manifest
        names, graph = manifest['names'], cache.read_graph(manifest, 'data.pt')
        raw: dict[str, Any] = {}
        codes: dict[str, dict[str, np.ndarray]] = {}
        words: dict[str, dict[str, np.ndarray]] = {}
        lists: dict[str, dict[str, Tensor]] = {}
        modalities: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        is_as_read = manifest['fingerprint']['pre_transform'] == repr(None)
        for node in _NODES:
            with cache.opening(manifest, f'{node}.parquet') as path:
                words[node] = read_columns(path)
            raw[node] = words[node].pop('id')
            store, number = graph.get(node, {}), len(raw[node])
            codes[node] = {
                name: value.numpy()
                for name, value in store.items()
                if name in manifest['id_maps']
                # Else pre_transform has made another thing of it.
                and isinstance(value, Tensor)
                and value.shape == (number,)
                and store.get(f'num_{name}') == len(names[name])
            }
            columns = {
                name.removeprefix('x_'): value
                for name, value in store.items()
                if name.startswith('x_') and isinstance(value, Tensor) and len(value) == number
            }
            lists[node] = {
                name: value
                for name, value in columns.items()
                if name in codes[node]
                and value.shape[1:] == (len(names[name]),)
                and bool(((value == 0) | (value == 1)).all())
            }
            modalities[node] = {
                name: (value, store[f'has_{name}'])
                for name, value in columns.items()
                # What becomes of numbers is not seen.
                if f'has_{name}' in store and is_as_read
            }
        maps = {
            name: IdMap.of_lineage(raw.get(name, names.get(name)), lineage)
            for name, lineage in manifest['id_maps'].items()
        }
        return KnownLog(maps, codes, words, lists, modalities)
