import os
import os.path as osp
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.checks import check_choice, check_ids, check_tensor
from mag.compression import decode_counts
from mag.files import checksum
from mag.id_map import IdMap
from mag.macro_graph import TargetView, prior_places, target_views
from mag.macro_graph.macro_rows import MacroRow
from mag.schema import CLICKS, NEIGHBOR_TYPE, Resolution, hop_type
from mag.store.layout import partition_starts
from mag.store.manifest import read_manifest

_KINDS = ('exposures', 'clicks')
_CHUNK = 2**20


class Store:
    r"""The macro graph of a log that does not fit in memory, read from the disk where it is.

    .. code-block:: python

        store = Store('store')
        hops, recent = store.rows('user', torch.tensor([3, 7]), torch.tensor([0, 11]))

    Files are mapped, and the system keeps in memory what is read often. A process that is given a
    store opens it anew.

    Args:
        path (str or os.PathLike): The folder that :func:`~mag.store.build` wrote.

    Attributes:
        path (str): The folder.
        manifest (dict): What the store says of itself.
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        num_windows (int): How many windows :math:`S` there are.
        cutoffs (torch.Tensor): When the history of each ends, int64 seconds, shape :obj:`[S]`.
        resolutions (list[Resolution]): The groupings of users, and then of items.
        num_clusters (dict[str, int]): By the name of a grouping, such as :obj:`"user_50"`, how many
            clusters it has.
        num_recent (int): Length of the lists of last neighbors.
        counts (str): :obj:`"exact"`, or :obj:`"log"` where hop 2 is kept in one byte a count, see
            :func:`~mag.compression.decode_counts`.
        attributes (dict[str, dict[str, int]]): For :obj:`"user"` and :obj:`"item"`, by the name of
            each categorical attribute in their order, how many values it has.
        contexts (dict[str, int]): By the name of each categorical context of exposures, how many
            values it has.
        features (list[str]): The names of the numeric features of exposures.
        id_maps (dict[str, str]): The :attr:`~mag.datasets.IdMap.lineage` of users, items,
            attributes and contexts.

    Raises:
        FileNotFoundError: If the folder is no store.
        ValueError: If a file is missing or damaged, or the store is of another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = osp.abspath(path)
        self.manifest = manifest = read_manifest(self.path)
        self.num_nodes: dict[str, int] = manifest['num_nodes']
        self.cutoffs = torch.tensor(manifest['cutoffs'])
        self.num_windows = len(self.cutoffs)
        groups = manifest['resolutions']
        self.resolutions = [Resolution(of['node_type'], of['group'], of['suffix']) for of in groups]
        self.num_clusters: dict[str, int] = {of['name']: of['num_clusters'] for of in groups}
        self.num_recent: int = manifest['num_recent']
        self.counts: str = manifest['counts']
        # Where the codes of each attribute are.
        self._codes = {of.group: f'clusters/{of.name}' for of in self.resolutions}
        found = [(of.node_type, of.group, self.num_clusters[of.name]) for of in self.resolutions]
        for of in manifest['attributes']:
            self._codes[of['name']] = f'attributes/{of["name"]}'
            found.append((of['node_type'], of['name'], of['number']))
        self.attributes = {
            node_type: {
                name: number
                for of_type, name, number in sorted(found, key=lambda of: str(of[1]))
                if of_type == node_type and isinstance(name, str)
            }
            for node_type in NEIGHBOR_TYPE
        }
        self.contexts: dict[str, int] = manifest['contexts']
        self.features: list[str] = manifest['features']
        self.id_maps: dict[str, str] = manifest['lineage']
        self._base = {
            name: partition_starts(self.num_nodes[name], number)
            for name, number in manifest['num_partitions'].items()
        }
        self._arrays = {name: self._map(name) for name in manifest['arrays']}
        for name, dtype, shape in self._expected():
            self._check(name, dtype, shape)

    @property
    def fingerprint(self) -> str:
        r"""That of the plan and the files it was built from."""
        return self.manifest['fingerprint']

    def verify(self, progress: bool = True) -> None:
        r"""Reads all files, and compares their checksums with those of the build. A store that is
        opened looks at types and shapes alone.

        Args:
            progress (bool, optional): Whether to show a bar. (default: :obj:`True`)

        Raises:
            ValueError: If a file is missing or is not what was written.
        """
        files: dict[str, str] = self.manifest['files']
        paths = {name: osp.join(self.path, name) for name in files}
        for name, path in paths.items():
            if not osp.exists(path):
                raise self._damaged(name, 'is missing')
        total = sum(map(osp.getsize, paths.values()))
        with tqdm(
            desc='verify', total=total, unit='B', unit_scale=True, disable=not progress
        ) as bar:
            for name, path in paths.items():
                if checksum(path) != files[name]:
                    raise self._damaged(name, 'is not what was written')
                bar.update(osp.getsize(path))

    @property
    def bytes_per_node(self) -> dict[str, dict[str, float]]:
        r"""For :obj:`"user"` and :obj:`"item"`, how many bytes of each table there are a node."""
        found: dict[str, dict[str, float]] = {name: {} for name in self.num_nodes}
        of_folder = {f'nodes/{name}': name for name in self.num_nodes}
        of_array = {
            f'clusters/{of.name}{end}': of.node_type
            for of in self.resolutions
            for end in ('', '_window')
        }
        of_array |= {
            self._codes[name]: node_type
            for node_type, names in self.attributes.items()
            for name in names
        }
        for name, array in self._arrays.items():
            folder, table = osp.split(name)
            node_type = of_folder.get(folder) or of_array[name]
            found[node_type][table] = array.nbytes / self.num_nodes[node_type]
        return found

    def id_map(self, name: str) -> IdMap:
        r"""The raw ids of users or items, or their numbers where ids were these, or the names of
        the values of an attribute, or of a context; they are read.

        Args:
            name (str): :obj:`"user"`, :obj:`"item"`, or the name of the attribute or context.

        Raises:
            ValueError: If the file is missing, damaged or that of another store, or there is
                nothing of the name.
        """
        check_choice(self.id_maps, name=name)
        if self.manifest['dense'].get(name):
            return IdMap.in_order(np.arange(self.num_nodes[name]))
        file = f'{"ids" if name in self.num_nodes else "names"}/{name}.parquet'
        try:
            found = IdMap.load(osp.join(self.path, file))
        except FileNotFoundError as error:
            raise self._damaged(file, 'is missing') from error
        # Arrays are mapped from the start, but this is read when somebody asks.
        if found.lineage != self.id_maps[name]:
            raise self._damaged(file, 'is that of another store')
        return found

    def cluster(self, name: str) -> np.ndarray:
        r"""The cluster of each node, :obj:`-1` for none, mapped, int32, shape :obj:`[N]`.

        Args:
            name (str): The grouping, such as :obj:`"user_50"`.

        Raises:
            ValueError: If there is no such grouping.
        """
        check_choice(self.num_clusters, name=name)
        return self._arrays[f'clusters/{name}']

    def attribute(self, name: str) -> np.ndarray:
        r"""The code of each user or item, that of its first row in time, mapped, int32, shape
        :obj:`[N]`.

        Args:
            name (str): The attribute.

        Raises:
            ValueError: If there is no such attribute.
        """
        check_choice([of for names in self.attributes.values() for of in names], name=name)
        return self._arrays[self._codes[name]]

    def cluster_sizes(self, name: str) -> Tensor:
        r"""How many nodes each cluster has, int64, shape :obj:`[M]`.

        Args:
            name (str): As of :meth:`cluster`.

        Raises:
            ValueError: If there is no such grouping.
        """
        cluster, number = self.cluster(name), self.num_clusters[name]
        found = np.zeros(number + 1, np.int64)
        for first in range(0, len(cluster), _CHUNK):
            # Those without a cluster, -1, come first.
            found += np.bincount(cluster[first : first + _CHUNK] + 1, minlength=number + 1)
        return torch.from_numpy(found[1:])

    def cluster_window(self, name: str) -> np.ndarray | None:
        r"""The first window that knows the cluster of each node, mapped, uint8, shape :obj:`[N]`;
        :obj:`None` of an attribute, which all know.

        Args:
            name (str): As of :meth:`cluster`.

        Raises:
            ValueError: If there is no such grouping.
        """
        check_choice(self.num_clusters, name=name)
        return self._arrays.get(f'clusters/{name}_window')

    def rows(self, node_type: str, node: Tensor, window: Tensor | None = None) -> MacroRow:
        r"""The macro rows of some nodes as of some windows, those of
        :meth:`MacroRows.rows <mag.macro_graph.MacroRows.rows>` to the last bit: hop 1 and hop 2 of
        the first grouping over distinct pairs that were clicked, and the last neighbors.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            node (torch.Tensor): The nodes, int64, :obj:`-1` for an unknown one, whose counts are 0
                and who has no neighbors, shape :obj:`[B]`.
            window (torch.Tensor, optional): The window of each, shape :obj:`[B]`. By default the
                last. (default: :obj:`None`)

        Raises:
            IndexError: If a node or a window does not exist.
            TypeError: If one is no integer.
            ValueError: If there is not one window for each node, or no such node type.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        self._check_nodes(node_type, node)
        return self.gather(node_type, node, self._windows(node, window))

    def gather(self, node_type: str, node: Tensor, window: Tensor) -> MacroRow:
        r"""What :meth:`rows` returns, of nodes and windows that are known to exist: others may be
        read from anywhere."""
        row, step = self._row(node_type, node.numpy()), window.numpy()
        first = self._by_cluster(node_type, NEIGHBOR_TYPE[node_type], row, step, 'pairs')
        return MacroRow(
            (first, self._second(node_type, row, step)), self._recent(node_type, row, step)
        )

    def neighbor_counts(
        self, node_type: str, name: str, kind: str, node: Tensor, window: Tensor | None = None
    ) -> Tensor:
        r"""The exposures or clicks of some nodes by the cluster of the neighbor, as events. One
        counts from the first window on that knows both it and the cluster, as in
        :class:`~mag.transforms.MacroCoarsen` with :obj:`binary=False`.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            name (str): The grouping of the neighbors, such as :obj:`"item_50"`.
            kind (str): :obj:`"exposures"` or :obj:`"clicks"`.
            node (torch.Tensor): As of :meth:`rows`.
            window (torch.Tensor, optional): The same. (default: :obj:`None`)

        Returns:
            float32, shape :obj:`[B, M]`.

        Raises:
            IndexError: If a node or a window does not exist.
            TypeError: If one is no integer.
            ValueError: If there is not one window for each node, or no such node type, kind, or
                grouping of its neighbors.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_choice([of.name for of in self._of(NEIGHBOR_TYPE[node_type])], name=name)
        check_choice(_KINDS, kind=kind)
        self._check_nodes(node_type, node)
        step = self._windows(node, window).numpy()
        return self._by_cluster(node_type, name, self._row(node_type, node.numpy()), step, kind)

    @cached_property
    def target_views(self) -> list[TargetView]:
        r"""What :meth:`target_counts` counts, a view a column."""
        of = {name: [of.cluster for of in self._of(name)] for name in NEIGHBOR_TYPE}
        return target_views(of['user'], of['item'])

    @property
    def count_prior(self) -> list[int]:
        r"""For each column the place of the one whose rate it is expected to have, or -1, as of
        :attr:`TargetCounts.prior <mag.transforms.TargetCounts.prior>`."""
        return prior_places(self.target_views)

    @cached_property
    def count_rate(self) -> float:
        r"""The share of exposures before the first cutoff that were clicked, with one exposure of
        each kind more."""
        code, count = (self._array('user', f'{part}_total') for part in ('code', 'count'))
        # Codes below 3 are of the first window, of which 0 is no click.
        seen, clicked = (
            int(count[is_it].sum(dtype=np.int64)) for is_it in (code < 3, (code > 0) & (code < 3))
        )
        return (clicked + 1) / (seen + 2)

    def target_counts(self, user: Tensor, item: Tensor, window: Tensor | None = None) -> Tensor:
        r"""The exposures and clicks at the target as of the cutoff of a window: of the user, of the
        item, of the user with the cluster of the item, of the cluster of the user with the item,
        and of both clusters, at every grouping, in the order of :attr:`target_views`.

        They are those of :class:`~mag.transforms.TargetCounts` of a part alone, to the last bit,
        for users and items whose clusters the first window knows. Where a cluster becomes known
        later, all events of its node count there from then on, those before included, as in
        :meth:`neighbor_counts`, while :class:`~mag.transforms.TargetCounts` leaves out those
        before. A node without a cluster shares no counts with others: those with its cluster are 0,
        as all of an unknown user or item are.

        The first call adds up the cells between clusters from the increments of all users, which
        are kept from then on.

        Args:
            user (torch.Tensor): The users, int64, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            item (torch.Tensor): The items, likewise.
            window (torch.Tensor, optional): The window of each, shape :obj:`[B]`. By default the
                last. (default: :obj:`None`)

        Returns:
            float32, shape :obj:`[B, C, 2]`.

        Raises:
            IndexError: If a user, an item or a window does not exist.
            TypeError: If one is no integer.
            ValueError: If there is not one item and one window for each user.
        """
        self._check_nodes('user', user)
        check_tensor('Store', 'item', item, (user.numel(),), torch.long)
        self._check_nodes('item', item)
        return self.gather_target(user, item, self._windows(user, window))

    def gather_target(self, user: Tensor, item: Tensor, window: Tensor) -> Tensor:
        r"""What :meth:`target_counts` returns, of nodes and windows that are known to exist."""
        from mag.store.kernels import gather_cells

        step = window.numpy()
        node = {'user': user.numpy(), 'item': item.numpy()}
        row = {name: self._row(name, of) for name, of in node.items()}
        cluster = {
            of.name: self._known(of.name, node[of.node_type], step) for of in self.resolutions
        }

        def cells(node_type: str, suffix: str, cluster: np.ndarray) -> np.ndarray:
            increments = self._increments(node_type, suffix)
            return gather_cells(*increments, row[node_type], cluster, step, self.num_windows)

        all_alike = np.zeros_like(step)
        found = [cells(name, '_total', all_alike) for name in NEIGHBOR_TYPE]
        for name, other in NEIGHBOR_TYPE.items():
            found += [cells(name, of.suffix, cluster[of.name]) for of in self._of(other)]
        for of_user in self._of('user'):
            for of_item in self._of('item'):
                own, others = cluster[of_user.name], cluster[of_item.name]
                counts = self._cells[of_user.name, of_item.name][own, others, step]
                counts[(own < 0) | (others < 0)] = 0
                found.append(counts)
        return torch.from_numpy(np.stack(found, axis=1))

    def graph(self) -> HeteroData:
        r"""A graph without clicks, which tells models how much of what there is, as in
        :obj:`MacGNN.from_data(store.graph())`: the numbers of nodes and macro nodes, the
        attributes, the macro edges that rows have, the columns of the counts, and the contexts and
        features of exposures, of which there are none."""
        data = HeteroData()
        for node_type in NEIGHBOR_TYPE:
            data[node_type].num_nodes = self.num_nodes[node_type]
            data[node_type].recent = torch.empty(0, self.num_recent, dtype=torch.long)
        for of in self.resolutions:
            data[of.macro].num_nodes = self.num_clusters[of.name]
        for node_type, attributes in self.attributes.items():
            for name, number in attributes.items():
                code = torch.from_numpy(self.attribute(name).astype(np.int64))
                data[node_type][name], data[node_type][f'num_{name}'] = code, number
        edge_types = [hop_type(node_type, hop) for node_type in NEIGHBOR_TYPE for hop in (1, 2)]
        for edge_type in (CLICKS, *edge_types):
            data[edge_type].edge_index = torch.empty(2, 0, dtype=torch.long)
        clicks = data[CLICKS]
        clicks.count_names = [view.name for view in self.target_views]
        clicks.count_prior, clicks.count_rate = self.count_prior, self.count_rate
        clicks.edge_label_index = torch.empty(2, 0, dtype=torch.long)
        for name, number in self.contexts.items():
            clicks[f'edge_label_{name}'] = torch.empty(0, dtype=torch.long)
            clicks[f'num_{name}'] = number
        if self.features:
            clicks.edge_label_x = torch.empty(0, len(self.features))
        data.id_maps = self.id_maps
        return data

    def macro_edges(self, user: str = 'user', item: str = 'item') -> Tensor:
        r"""The clicks of the users of each cluster on the items of each, as of the last cutoff.

        Args:
            user (str, optional): The grouping of users. (default: :obj:`"user"`)
            item (str, optional): That of items. (default: :obj:`"item"`)

        Returns:
            float32, shape :obj:`[M_user, M_item]`.

        Raises:
            ValueError: If there is no such grouping.
        """
        for node_type, name in (('user', user), ('item', item)):
            check_choice([of.name for of in self._of(node_type)], **{node_type: name})
        return torch.from_numpy(self._cells[user, item][:, :, -1, 1].copy())

    def first_windows(self, node_type: str) -> np.ndarray:
        r"""The first window that knows a click of each node, :math:`S` where none does, uint8,
        shape :obj:`[N]`.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
        """
        from mag.store.kernels import click_windows

        indptr, code = (self._array(node_type, f'{part}_total') for part in ('indptr', 'code'))
        of_row = click_windows(indptr, code, self.num_windows)
        found, base = np.empty_like(of_row), self._base[node_type]
        for part in range(len(base) - 1):
            found[part :: len(base) - 1] = of_row[base[part] : base[part + 1]]
        return found

    @cached_property
    def _cells(self) -> dict[tuple[str, str], np.ndarray]:
        r"""The exposures and clicks between the clusters of two groupings, as of each window,
        float32, shape :obj:`[M_user, M_item, S, 2]`."""
        from mag.store.kernels import add_cells

        found, base = {}, self._base['user']
        for of_user in self._of('user'):
            cluster = self.cluster(of_user.name)
            window = self.cluster_window(of_user.name)
            if window is None:
                window = np.broadcast_to(np.uint8(0), cluster.shape)
            for of_item in self._of('item'):
                indptr, code, count = self._increments('user', of_item.suffix)
                sizes = [self.num_clusters[of.name] for of in (of_user, of_item)]
                cells = np.zeros((*sizes, self.num_windows, 2), np.int64)
                for part in range(len(base) - 1):
                    nodes = slice(part, None, len(base) - 1)
                    starts = indptr[base[part] : base[part + 1] + 1]
                    add_cells(cells, starts, code, count, cluster[nodes], window[nodes])
                found[of_user.name, of_item.name] = cells.cumsum(axis=2).astype(np.float32)
        return found

    def _known(self, name: str, node: np.ndarray, step: np.ndarray) -> np.ndarray:
        r"""The cluster of each node as far as its window knows it, else -1."""
        # Any node stands for an unknown one.
        place = np.maximum(node, 0)
        cluster, window = self.cluster(name)[place].astype(np.int64), self.cluster_window(name)
        is_known = node >= 0
        if window is not None:
            is_known &= window[place] <= step
        return np.where(is_known, cluster, -1)

    def _by_cluster(
        self, node_type: str, name: str, row: np.ndarray, step: np.ndarray, kind: str
    ) -> Tensor:
        from mag.store.kernels import gather_rows

        suffix = name.removeprefix(NEIGHBOR_TYPE[node_type])
        increments = self._increments(node_type, suffix)
        sizes = self.num_windows, self.num_clusters[name]
        return torch.from_numpy(gather_rows(*increments, row, step, *sizes, kind))

    def _second(self, node_type: str, row: np.ndarray, step: np.ndarray) -> Tensor:
        from mag.store.kernels import gather_second

        if self.counts == 'exact':
            table = self._array(node_type, 'second')
            index = self._array(node_type, 'second_over_index')
            count = self._array(node_type, 'second_over_count')
            return torch.from_numpy(gather_second(table, index, count, row, step))
        codes = self._take(node_type, 'second', row, step)
        codes[row < 0] = 0
        return decode_counts(torch.from_numpy(codes))

    def _recent(self, node_type: str, row: np.ndarray, step: np.ndarray) -> Tensor:
        recent = self._take(node_type, 'recent', row, step)
        recent[row < 0] = -1
        return torch.from_numpy(recent).long()

    def _take(self, node_type: str, name: str, row: np.ndarray, step: np.ndarray) -> np.ndarray:
        r"""What a table of nodes and windows holds, of an unknown node whatever."""
        table = self._array(node_type, name)
        # One index is followed faster than two.
        return table.reshape(-1, table.shape[2]).take(
            np.maximum(row, 0) * self.num_windows + step, 0
        )

    def _row(self, node_type: str, node: np.ndarray) -> np.ndarray:
        r"""The row of each node, -1 of an unknown one."""
        base = self._base[node_type]
        number = len(base) - 1
        row = base[node & (number - 1)] + (node >> (number.bit_length() - 1))
        return np.where(node < 0, -1, row)

    def _of(self, node_type: str) -> list[Resolution]:
        return [of for of in self.resolutions if of.node_type == node_type]

    def _increments(self, node_type: str, suffix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Where those of each node begin, their codes and their counts."""
        return (
            self._array(node_type, f'indptr{suffix}'),
            self._array(node_type, f'code{suffix}'),
            self._array(node_type, f'count{suffix}'),
        )

    def _array(self, node_type: str, name: str) -> np.ndarray:
        return self._arrays[f'nodes/{node_type}/{name}']

    def _check_nodes(self, node_type: str, node: Tensor) -> None:
        check_tensor('Store', 'node', node, ('B',), torch.long)
        check_ids('Store', f'{node_type} ids', node, self.num_nodes[node_type], first=-1)

    def _windows(self, node: Tensor, window: Tensor | None) -> Tensor:
        if window is None:
            return torch.full_like(node, self.num_windows - 1)
        check_tensor('Store', 'window', window, (node.numel(),), torch.long)
        check_ids('Store', 'windows', window, self.num_windows)
        return window

    def _map(self, name: str) -> np.ndarray:
        try:
            return np.load(osp.join(self.path, f'{name}.npy'), mmap_mode='r').view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f'{name}.npy', f'cannot be read ({error})') from error

    def _expected(self) -> list[tuple[str, Any, tuple[int | None, ...]]]:
        r"""The name, type and shape of each array that is read, None for a length that only the
        file tells."""
        from mag.store.kernels import code_type

        found: list[tuple[str, Any, tuple[int | None, ...]]] = []
        for of in self.resolutions:
            number = self.num_nodes[of.node_type]
            found.append((f'clusters/{of.name}', np.int32, (number,)))
            if isinstance(of.group, int):
                found.append((f'clusters/{of.name}_window', np.uint8, (number,)))
        for of in self.manifest['attributes']:
            found.append((f'attributes/{of["name"]}', np.int32, (self.num_nodes[of['node_type']],)))
        second = np.uint16 if self.counts == 'exact' else np.uint8
        for name, other in NEIGHBOR_TYPE.items():
            folder, of_node = f'nodes/{name}', (self.num_nodes[name], self.num_windows)
            found.append((f'{folder}/recent', np.int32, (*of_node, self.num_recent)))
            found.append((f'{folder}/second', second, (*of_node, self.num_clusters[name])))
            found += [
                (f'{folder}/second_over_{of}', np.int64, (None,)) for of in ('index', 'count')
            ]
            sizes = {of.suffix: self.num_clusters[of.name] for of in self._of(other)}
            for suffix, num_clusters in {**sizes, '_total': 1}.items():
                dtype = code_type(self.num_windows, num_clusters)
                found.append((f'{folder}/indptr{suffix}', np.uint64, (of_node[0] + 1,)))
                found.append((f'{folder}/code{suffix}', dtype, (None,)))
                found.append((f'{folder}/count{suffix}', np.uint8, (None,)))
        return found

    def _check(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
        if name not in self._arrays:
            raise self._damaged(f'{name}.npy', 'is missing in the manifest')
        array = self._arrays[name]
        sizes = zip(array.shape, shape, strict=False)
        is_shape = array.ndim == len(shape) and all(b is None or a == b for a, b in sizes)
        if array.dtype != dtype or not is_shape:
            raise self._damaged(
                f'{name}.npy',
                f'is of {array.dtype} and shape {list(array.shape)}, where {np.dtype(dtype)} and '
                f'shape {["n" if size is None else size for size in shape]} were written',
            )

    def _damaged(self, name: str, what: str) -> ValueError:
        return ValueError(
            f'The store in {self.path!r} is damaged, its {name} {what}: build it again.'
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapped arrays would be copied.
        return _open_again, (self.path, self.fingerprint)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.path!r}, {self.num_nodes["user"]:,} users, '
            f'{self.num_nodes["item"]:,} items, {self.num_windows} windows)'
        )


def _open_again(path: str, fingerprint: str) -> Store:
    r"""A store in another process."""
    found = Store(path)
    if found.fingerprint != fingerprint:
        raise ValueError(
            f'The store in {path!r} has been replaced while it was in use, {fingerprint[:16]} by '
            f'{found.fingerprint[:16]}: open it anew.'
        )
    return found
