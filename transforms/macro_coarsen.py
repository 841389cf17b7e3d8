import copy
import hashlib

import numpy as np
import scipy
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from tqdm import tqdm

from mag.macro_graph import MacroEdges
from mag.macro_graph.grouping import Grouping, macro_behavior, raw_behavior, require_seed
from mag.schema import (
    CLICKS,
    OTHER,
    Cutoff,
    first_cutoff,
    require,
    require_booleans,
    require_cpu,
    require_integers,
    require_not_earlier,
    require_positive_integers,
    window_of_click,
)


@functional_transform('macro_coarsen')
class MacroCoarsen(BaseTransform):
    r"""Groups users and items into macro nodes and describes every node by its counts over them,
    from the `"Macro Graph Neural Networks for Online Billion-Scale Recommender Systems"
    <https://doi.org/10.1145/3589334.3645517>`_ paper (functional name: :obj:`macro_coarsen`).

    .. code-block:: python

        train, val, test = TemporalSplit()(data)
        coarsen = MacroCoarsen({'user': 20, 'item': 'category'}).fit(train)
        train, val, test = coarsen(train), coarsen(val), coarsen(test)

    Clusters are learned by :meth:`fit` from the training history alone (with rolling windows: from
    the history of the first). A node that appears in a later window is assigned to the nearest
    centroid, by its clicks up to the first cutoff that knows it, and stays there; one that only a
    later part knows is assigned by what that part knows of it.
    A part whose first cutoff is earlier than that of the part it was fitted on is refused, as those
    clusters know its future.
    An unfitted transform that is called fits on what it is given and leaves itself unchanged.

    Adds

    * :obj:`data['user'].cluster` and :obj:`data['item'].cluster`, shape :obj:`[N]`; :obj:`-1` for
      a node of a learned grouping that has no click yet;
    * node types :obj:`macro_user` and :obj:`macro_item` with :obj:`num_nodes` and :obj:`size`, the
      number of nodes in each;
    * for every hop :math:`k`, edges such as :obj:`('macro_item', 'hop1', 'user')` and
      :obj:`('macro_user', 'hop2', 'user')` from a macro node to the nodes that reach it, with
      :obj:`edge_weight` the count :math:`\mathbf{n}^{(k)}_v[q]` (float32, exact up to
      :math:`2^{24}`), shape :obj:`[E]`; or :obj:`[E, S]`, as of each cutoff, if the data rolls over
      :math:`S` windows;
    * :obj:`('macro_user', 'clicks', 'macro_item')`, the coarse graph, weighted in the same way;
    * if :obj:`edge_tensors`, :obj:`data['user'].macro_edges_k` and
      :obj:`data['item'].macro_edges_k`, sparse :obj:`[N, M_(k-1), M_k]`: eq. 5 whole, as of the
      last cutoff.

    Args:
        groups (dict[str, int or str]): For :obj:`"user"` and :obj:`"item"`, a number of clusters to
            learn, or the name of a categorical attribute whose values are the clusters.
        num_hops (int, optional): The number of hops. (default: :obj:`2`)
        behavior (str or dict[str, str], optional): What is clustered. :obj:`"macro"`: the hop-1
            counts over the neighbors' clusters, as the released code does; :obj:`"raw"`: the rows
            of the click matrix (paper, eq. 2) in a sparse projection, or whole if at most
            :obj:`projection_dim` neighbors were there at fit; clicks on others then count in the
            length of a row alone. By default :obj:`"macro"` where the neighbors are grouped by an
            attribute, else :obj:`"raw"`.
        mode (str, optional): :obj:`"set"` (eq. 5) or :obj:`"walk"`, see
            :class:`mag.macro_graph.MacroEdges`. (default: :obj:`"set"`)
        binary (bool, optional): If set to :obj:`False`, repeated clicks of a pair add up.
            (default: :obj:`True`)
        spherical (bool, optional): Cosine k-means. (default: :obj:`False`)
        projection_dim (int, optional): Width of the :obj:`"raw"` projection. (default: :obj:`256`)
        edge_tensors (bool, optional): If set to :obj:`True`, the full macro edges are added.
            (default: :obj:`False`)
        seed (int, optional): Seed of k-means and of the projection. (default: :obj:`0`)
    """

    def __init__(
        self,
        groups: dict[str, int | str],
        num_hops: int = 2,
        behavior: str | dict[str, str] | None = None,
        mode: str = 'set',
        binary: bool = True,
        spherical: bool = False,
        projection_dim: int = 256,
        edge_tensors: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(groups, dict) or set(groups) != {'user', 'item'}:
            raise ValueError(
                f"'groups' must tell for 'user' and 'item' a number of clusters or the name of an "
                f"attribute, such as {{'user': 20, 'item': 'category'}}, but got {groups!r}."
            )
        for node_type, group in groups.items():
            if isinstance(group, bool) or not isinstance(group, (int, str)):
                raise TypeError(
                    f"'groups' must hold an int or a str for '{node_type}', but got {group!r}."
                )
            if isinstance(group, int) and group < 1:
                raise ValueError(
                    f"'groups' must hold a positive number for '{node_type}', but got {group}."
                )
        require_positive_integers(num_hops=num_hops)
        require_integers(1, projection_dim=projection_dim)
        if mode not in ('set', 'walk'):
            raise ValueError(f"'mode' must be 'set' or 'walk', but got {mode!r}.")
        require_booleans(binary=binary, spherical=spherical, edge_tensors=edge_tensors)
        require_seed(seed)
        self.groups = groups
        self.num_hops = num_hops
        self.behavior = behavior
        self.mode = mode
        self.binary = binary
        self.spherical = spherical
        self.projection_dim = projection_dim
        self.edge_tensors = edge_tensors
        self.seed = seed
        self._behaviors = self._resolve_behavior()
        self.groupings: dict[str, Grouping] = {}
        self.cluster: dict[str, Tensor] = {}
        self._columns: dict[str, np.ndarray] = {}
        self._cutoff: Cutoff | None = None

    def fit(self, data: HeteroData) -> 'MacroCoarsen':
        r"""Learns the clusters from the history of a training part, of its first window if it
        rolls.

        Args:
            data (HeteroData): The part.

        Raises:
            ValueError: If an attribute that groups are made of is missing, or there are fewer nodes
                with a click than clusters.
        """
        require(data, 'MacroCoarsen', 'edge_index')
        require_cpu(data, 'MacroCoarsen')
        window, _ = window_of_click(data, 'MacroCoarsen')
        self.groupings = {
            node_type: Grouping(group, spherical=self.spherical, seed=self.seed)
            for node_type, group in self.groups.items()
            if isinstance(group, int)
        }
        self.cluster = {}
        first = data[CLICKS].edge_index
        first = first if window is None else first[:, window == 0]
        # Nodes that only come later are no columns yet, though the data may have them.
        user, item = (row.unique().numpy() for row in first)
        self._columns = {'user': item, 'item': user}
        cluster = self._start(data)
        for node_type in self._order():
            embedding, known = self._embed(data, node_type, first, cluster[OTHER[node_type]])
            cluster[node_type][known] = self.groupings[node_type].fit(embedding[known])
        self.cluster = cluster
        self.cluster = self._assign(data, window)
        self._cutoff = first_cutoff(data, 'MacroCoarsen')
        return self

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'MacroCoarsen', 'edge_index')
        require_cpu(data, 'MacroCoarsen')
        if not self.cluster:
            return copy.copy(self).fit(data).forward(data)
        # Of attributes nothing is learned.
        if self.groupings and self._cutoff is not None:
            require_not_earlier(data, 'MacroCoarsen', self._cutoff)
        window, num_windows = window_of_click(data, 'MacroCoarsen')
        cluster = self._assign(data, window)
        sizes = {node_type: self._num_clusters(data, node_type) for node_type in cluster}
        for node_type in cluster:
            data[node_type].cluster = cluster[node_type]
            macro = data[f'macro_{node_type}']
            macro.num_nodes = sizes[node_type]
            known = cluster[node_type][cluster[node_type] >= 0]
            macro.size = known.bincount(minlength=sizes[node_type])

        empty = MacroEdges(
            cluster['user'], cluster['item'], sizes, self.num_hops, self.mode, self.binary
        )
        clicks = data[CLICKS].edge_index
        edges = copy.deepcopy(empty).update(clicks)
        for relation, table in self._tables(edges).items():
            target, source = torch.from_numpy(table).nonzero(as_tuple=True)
            data[relation].edge_index = torch.stack([source, target])
            if window is None:
                data[relation].edge_weight = torch.from_numpy(table)[target, source].float()
            else:
                data[relation].edge_weight = torch.empty(source.numel(), num_windows)
        if self.edge_tensors:
            for node_type in cluster:
                for hop in range(1, self.num_hops + 1):
                    data[node_type][f'macro_edges_{hop}'] = edges.tensors(node_type, hop)
        if window is None:
            return data

        # Counts only grow, so the edges as of the last cutoff are all there ever were.
        edges = empty
        for step in tqdm(range(num_windows), 'Counting by window', leave=False, delay=3):
            edges.update(clicks[:, window == step])
            for relation, table in self._tables(edges).items():
                source, target = data[relation].edge_index
                data[relation].edge_weight[:, step] = torch.from_numpy(table)[target, source]
        return data

    def _tables(self, edges: MacroEdges) -> dict[tuple[str, str, str], np.ndarray]:
        r"""The counts of every edge type, target nodes in rows and source nodes in columns."""
        tables = {
            (f'macro_{edges.reached(node_type, hop)}', f'hop{hop}', node_type): table
            for node_type, counts in edges.counts.items()
            for hop, table in enumerate(counts, start=1)
        }
        tables['macro_user', 'clicks', 'macro_item'] = edges.coarse().T
        return tables

    def _resolve_behavior(self) -> dict[str, str]:
        given = self.behavior
        learned = [key for key, group in self.groups.items() if isinstance(group, int)]
        if isinstance(given, str) and not learned:
            raise ValueError(
                f"'behavior' is {given!r}, but with 'groups' {self.groups} no clusters are learned."
            )
        if given is None or isinstance(given, str):
            given = {} if given is None else dict.fromkeys(OTHER, given)
        elif not isinstance(given, dict):
            raise TypeError(
                f"'behavior' must be 'macro', 'raw' or a dict such as {{'user': 'macro'}}, but got "
                f'{given!r}.'
            )
        else:
            unknown = [key for key in given if key not in learned]
            if unknown:
                raise ValueError(
                    f"'behavior' names {unknown}, but with 'groups' {self.groups} clusters are "
                    f'learned for {learned or "none"} only.'
                )
        behaviors = {}
        for node_type, group in self.groups.items():
            if isinstance(group, str):
                continue
            by_attribute = isinstance(self.groups[OTHER[node_type]], str)
            behavior = given.get(node_type, 'macro' if by_attribute else 'raw')
            if behavior not in ('macro', 'raw'):
                raise ValueError(
                    f"'behavior' must be 'macro' or 'raw', but got {behavior!r} for '{node_type}'."
                )
            behaviors[node_type] = behavior
        if behaviors == {'user': 'macro', 'item': 'macro'}:
            raise ValueError(
                f"'behavior' cannot be 'macro' for both users and items with 'groups' {self.groups}"
                f': the counts of the one need the clusters of the other. Group one side by an '
                f"attribute, or set its behavior to 'raw'."
            )
        return behaviors

    def _order(self) -> list[str]:
        return sorted(self._behaviors, key=lambda node_type: self._behaviors[node_type] == 'macro')

    def _num_clusters(self, data: HeteroData, node_type: str) -> int:
        group = self.groups[node_type]
        if isinstance(group, int):
            return group
        return int(data[node_type].get(f'num_{group}', int(data[node_type][group].max()) + 1))

    def _start(self, data: HeteroData) -> dict[str, Tensor]:
        r"""Clusters as far as attributes and :meth:`fit` tell them, :obj:`-1` elsewhere."""
        cluster = {}
        for node_type, group in self.groups.items():
            num_nodes = data[node_type].num_nodes
            if isinstance(group, str):
                cluster[node_type] = self._attribute(data, node_type, group)
                continue
            known = self.cluster.get(node_type, torch.empty(0, dtype=torch.long))
            if known.numel() > num_nodes:
                raise ValueError(
                    f'MacroCoarsen was fitted on {known.numel()} {node_type}s, but this data has '
                    f'only {num_nodes}: parts of one log share their nodes.'
                )
            cluster[node_type] = torch.nn.functional.pad(
                known, (0, num_nodes - known.numel()), value=-1
            )
        return cluster

    @staticmethod
    def _attribute(data: HeteroData, node_type: str, name: str) -> Tensor:
        value = data[node_type].get(name)
        if value is None:
            raise ValueError(
                f"'groups' names the attribute '{name}' of '{node_type}', but "
                f"data['{node_type}'] has {list(data[node_type].keys())}."
            )
        num_nodes = data[node_type].num_nodes
        if (
            not isinstance(value, Tensor)
            or value.dtype != torch.long
            or value.shape != (num_nodes,)
        ):
            got = (
                f'{list(value.shape)} of {value.dtype}'
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise TypeError(
                f"'groups' names data['{node_type}'].{name}, which must be a long tensor of shape "
                f'[{num_nodes}] to be clusters, but got {got}.'
            )
        num = data[node_type].get(f'num_{name}')
        if value.numel() > 0 and (value.min() < 0 or (num is not None and value.max() >= num)):
            raise IndexError(
                f"data['{node_type}'].{name} must lie in 0..{'' if num is None else num - 1} to be "
                f'clusters, but holds {value.min()}..{value.max()}.'
            )
        return value

    def _assign(self, data: HeteroData, window: Tensor | None) -> dict[str, Tensor]:
        r"""Completes the clusters: a node that was not there at fit is assigned by its clicks in
        the first window that knows it, so that no later click decides about an earlier row."""
        cluster = self._start(data)
        edge_index = data[CLICKS].edge_index
        for node_type in self._order():
            node = edge_index[0 if node_type == 'user' else 1]
            new = cluster[node_type][node] < 0
            if not bool(new.any()):
                continue
            if window is not None:
                first = window.new_full((data[node_type].num_nodes,), torch.iinfo(torch.long).max)
                first.scatter_reduce_(0, node, window, 'amin')
                new &= window == first[node]
            embedding, known = self._embed(
                data, node_type, edge_index[:, new], cluster[OTHER[node_type]]
            )
            cluster[node_type] = cluster[node_type].clone()
            cluster[node_type][known] = self.groupings[node_type].assign(embedding[known])
        return cluster

    def _embed(
        self, data: HeteroData, node_type: str, edge_index: Tensor, other_cluster: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Behavior embeddings from :obj:`edge_index`, and which nodes have any click in it."""
        other = OTHER[node_type]
        row, column = edge_index if node_type == 'user' else edge_index.flip(0)
        num_nodes = data[node_type].num_nodes
        clicks = scipy.sparse.csr_matrix(
            (np.ones(row.numel(), dtype=np.float32), (row.numpy(), column.numpy())),
            shape=(num_nodes, data[other].num_nodes),
        )
        if self.binary:
            clicks.data[:] = 1
        known = torch.from_numpy(np.diff(clicks.indptr) > 0)
        if self._behaviors[node_type] == 'raw':
            columns = self._columns[node_type]
            return raw_behavior(clicks, self.projection_dim, self.seed, columns), known
        counts = scipy.sparse.csr_matrix(
            (clicks.data, other_cluster.numpy()[clicks.indices], clicks.indptr),
            shape=(num_nodes, self._num_clusters(data, other)),
        )
        return macro_behavior(torch.from_numpy(counts.toarray())), known

    def _fingerprint(self) -> str:
        r"""Tells fits on different data apart, as PyG's caches know a transform by its text."""
        if not self.cluster:
            return ''
        digest = hashlib.sha1()
        centroids = [grouping.centroids for grouping in self.groupings.values()]
        for tensor in (*self.cluster.values(), *centroids):
            if tensor is not None:
                digest.update(tensor.numpy().tobytes())
        return f', fitted={digest.hexdigest()[:8]!r}'

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.groups}, num_hops={self.num_hops}, '
            f'behavior={self.behavior!r}, mode={self.mode!r}, binary={self.binary}, '
            f'spherical={self.spherical}, projection_dim={self.projection_dim}, '
            f'edge_tensors={self.edge_tensors}, seed={self.seed}{self._fingerprint()})'
        )
