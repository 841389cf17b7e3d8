import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.typing import EdgeType

from mag.checks import check_booleans, check_choice, check_ids, check_integers, check_tensor
from mag.click_index import first_click
from mag.cutoff import Cutoff, first_cutoff, require_not_earlier, window_of_click
from mag.lineage import id_maps, require_same_ids
from mag.macro_graph import (
    Grouping,
    MacroClusters,
    MacroEdges,
    MacroNodes,
    MacroState,
    SparseCounts,
    count_by_window,
)
from mag.schema import (
    CLICKS,
    MACRO,
    SEES,
    Resolution,
    hops,
    reached,
    require,
    require_cpu,
    windows,
)
from mag.transforms._fitted import fitted
from mag.transforms.recent_neighbors import RecentNeighbors


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
    clusters know its future; so is a log of other ids. A later export that was read with the ids of
    the log it was fitted on, :obj:`EventLog(..., ids=)`, is taken: what was there keeps its
    cluster, and a node that is new is assigned as one that appears in a later window. Where
    clusters are made of counts over categories, those over a new one count in their length alone.
    A click takes part from its own time on, the :obj:`click_time` of the log: it is known to be one
    when it happens. Without that it is the log's :obj:`settled`, since when the labels of a row are
    known. With it, :obj:`settled` tells since when it is known that nothing was clicked, which
    clusters do not read.
    An unfitted transform that is called fits on what it is given and leaves itself unchanged: each
    part would get clusters of its own, and a model that learned of one cluster would be asked about
    another. Where clusters are learned from a part, it therefore warns.

    Of a list, the first group makes the macro graph that :class:`~mag.models.MacGNN` reads. Each
    further one adds a *resolution*: another attribute, another type of macro nodes, and edges that
    stay sparse, which :class:`~mag.transforms.TargetCounts` reads at the target:

    >>> from mag.datasets import SyntheticMarket
    >>> from mag.transforms import MacroCoarsen, TemporalSplit
    >>> data = SyntheticMarket(200, 100, 5000, log=False)[0]
    >>> train, _, _ = TemporalSplit(num_windows=6)(data)
    >>> train.edge_types
    [('user', 'clicks', 'item'), ('user', 'sees', 'item')]
    >>> train = MacroCoarsen({'user': [20, 50], 'item': ['category', 30]}).fit(train)(train)
    >>> [name for name in train['user'].keys() if name.startswith('cluster')]
    ['cluster', 'cluster_since', 'cluster_50', 'cluster_50_since']
    >>> train.node_types
    ['user', 'item', 'macro_user', 'macro_user_50', 'macro_item', 'macro_item_30']
    >>> for name in train.edge_types:
    ...     if name[2] == 'user':
    ...         print(name)
    ('macro_item', 'hop1', 'user')
    ('macro_user', 'hop2', 'user')
    ('macro_item_30', 'hop1', 'user')
    ('macro_item', 'sees1', 'user')
    ('macro_item_30', 'sees1', 'user')

    Adds

    * :obj:`data['user'].cluster` and :obj:`data['item'].cluster`, shape :obj:`[N]`; :obj:`-1` for
      a node of a learned grouping that has no click yet;
    * for learned groupings, if the data is a part, :obj:`cluster_since`, shape :obj:`[N]`: since
      when a node counts as one of its cluster, so that no earlier row reads it: the first cutoff
      that knows the node. It is the least value, and means always, for nodes of the history that
      clusters are learned from: all rows come after it. A node that comes later decides by its
      clicks up to that cutoff where it belongs; rows of others before it must not read that, and so
      what it did before counts for none. Parts that were cut by position keep the cutoff for all
      nodes, as a user's first share may lie later than a row of another user;
    * node types :obj:`macro_user` and :obj:`macro_item` with :obj:`num_nodes` and :obj:`size`, the
      number of nodes in each;
    * for every hop :math:`k`, edges such as :obj:`('macro_item', 'hop1', 'user')` and
      :obj:`('macro_user', 'hop2', 'user')` from a macro node to the nodes that reach it, with
      :obj:`edge_weight` the count :math:`\mathbf{n}^{(k)}_v[q]` (float32, exact up to
      :math:`2^{24}`), shape :obj:`[E]`; or :obj:`[E, S]`, as of each cutoff, if the data rolls over
      :math:`S` windows;
    * :obj:`('macro_user', 'clicks', 'macro_item')`, the coarse graph, weighted in the same way;
    * if the data holds the exposures before its cutoff, as the parts of
      :class:`~mag.transforms.TemporalSplit` do, the same over exposures, clicked or not:
      :obj:`('macro_item', 'sees1', 'user')` and :obj:`('macro_user', 'sees', 'macro_item')`. Divide
      clicks by exposures for a rate; with :obj:`binary` both count pairs, else both count events.
      An exposure of a node whose cluster is known later counts from then on;
    * for every further group, such as 200, :obj:`data['user'].cluster_200` (and
      :obj:`cluster_200_since`), the node type :obj:`macro_user_200`, and edges such as
      :obj:`('macro_user_200', 'hop1', 'item')` and :obj:`('macro_user_200', 'sees1', 'item')`;
    * if :obj:`edge_tensors`, :obj:`data['user'].macro_edges_k` and
      :obj:`data['item'].macro_edges_k`, sparse :obj:`[N, M_(k-1), M_k]`: eq. 5 whole, as of the
      last cutoff.

    What an earlier call has added is removed.

    Args:
        groups (dict[str, int or str or list]): For :obj:`"user"` and :obj:`"item"`, a number of
            clusters to learn, or the name of a categorical attribute whose values are the clusters;
            or a list of these, one a resolution.
        num_hops (int, optional): The number of hops. (default: :obj:`2`)
        behavior (str or dict[str, str], optional): What is clustered. :obj:`"macro"`: the hop-1
            counts over the neighbors' clusters, as the released code does; :obj:`"raw"`: the rows
            of the click matrix (paper, eq. 2) in a sparse projection, or whole if at most
            :obj:`projection_dim` neighbors were there at fit; clicks on others then count in the
            length of a row alone. By default :obj:`"macro"` where the neighbors are grouped by an
            attribute, else :obj:`"raw"`. Of the neighbors, the first group counts; all resolutions
            of a node type cluster the same.
        mode (str, optional): :obj:`"set"` (eq. 5) or :obj:`"walk"`, see
            :class:`mag.macro_graph.MacroEdges`. (default: :obj:`"set"`)
        binary (bool, optional): If set to :obj:`False`, repeated clicks of a pair add up.
            (default: :obj:`True`)
        spherical (bool, optional): Cosine k-means. (default: :obj:`False`)
        projection_dim (int, optional): Width of the :obj:`"raw"` projection. (default: :obj:`256`)
        edge_tensors (bool, optional): If set to :obj:`True`, the full macro edges are added.
            (default: :obj:`False`)
        exposure_hops (int, optional): The number of hops over exposures, up to 2; :obj:`0` leaves
            them out. (default: :obj:`1`)
        further_hops (int, optional): The number of hops over clicks, 1 or 2, at the second
            resolution and all after it. (default: :obj:`1`)
        seed (int, optional): Seed of k-means and of the projection. (default: :obj:`0`)
    """

    def __init__(
        self,
        groups: Mapping[str, int | str | Sequence[int | str]],
        num_hops: int = 2,
        behavior: str | dict[str, str] | None = None,
        mode: str = 'set',
        binary: bool = True,
        spherical: bool = False,
        projection_dim: int = 256,
        edge_tensors: bool = False,
        exposure_hops: int = 1,
        further_hops: int = 1,
        seed: int = 0,
    ) -> None:
        check_integers(1, num_hops=num_hops)
        check_integers(0, below=3, exposure_hops=exposure_hops)
        check_integers(1, below=3, further_hops=further_hops)
        check_choice(('set', 'walk'), mode=mode)
        check_booleans(edge_tensors=edge_tensors)
        self.groups = groups
        self.num_hops = num_hops
        self.behavior = behavior
        self.mode = mode
        self.binary = binary
        self.spherical = spherical
        self.projection_dim = projection_dim
        self.edge_tensors = edge_tensors
        self.exposure_hops = exposure_hops
        self.further_hops = further_hops
        self.seed = seed
        self._clusters = self._unfitted()
        self._cutoff: Cutoff | None = None
        self._since: dict[str, Tensor] = {}
        self._id_maps: dict[str, str] = {}

    @property
    def groupings(self) -> dict[str, Grouping]:
        r"""Those that were fitted, by node type; at further resolutions by names such as
        :obj:`"user_200"`."""
        return self._clusters.groupings

    @property
    def cluster(self) -> dict[str, Tensor]:
        r"""The clusters of users and items as of :meth:`fit`, shape :obj:`[N]` each, by the same
        names; empty before it."""
        return self._clusters.cluster

    @property
    def resolutions(self) -> list[Resolution]:
        r"""All of users, and then all of items."""
        return self._clusters.resolutions

    def _unfitted(self) -> MacroClusters:
        return MacroClusters(
            self.groups,
            self.behavior,
            binary=self.binary,
            spherical=self.spherical,
            projection_dim=self.projection_dim,
            seed=self.seed,
        )

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
        self._clusters = self._unfitted().fit(data, window)
        self._cutoff = first_cutoff(data, 'MacroCoarsen')
        self._id_maps = id_maps(data)
        self._since = {}
        self._since = self._known_since(data, window)
        if 'position' not in data[CLICKS]:
            # No row is served before the first cutoff, so that none reads what was decided by it.
            for since in self._since.values():
                since[since == int(self._cutoff.moment)] = torch.iinfo(since.dtype).min
        return self

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'MacroCoarsen', 'edge_index')
        require_cpu(data, 'MacroCoarsen')
        if not self.cluster:
            if 'cutoff' in data[CLICKS] and any(
                isinstance(of.group, int) for of in self.resolutions
            ):
                warnings.warn(
                    'MacroCoarsen was not fitted, so it learns clusters from this part alone, and '
                    'each part gets clusters of its own: call fit(train) once, then apply it to '
                    'every part.',
                    # Above are forward and the call of PyG's base class.
                    stacklevel=3,
                )
            return copy.copy(self).fit(data).forward(data)
        require_same_ids('MacroCoarsen was fitted on', self._id_maps, id_maps(data))
        # Of attributes nothing is learned.
        if self.groupings and self._cutoff is not None:
            require_not_earlier(data, 'MacroCoarsen', self._cutoff)
        window, num_windows = window_of_click(data, 'MacroCoarsen')
        cluster = self._clusters.assign(data, window)
        since = self._known_since(data, window)
        sizes = {of.name: self._clusters.num_clusters(data, of) for of in self.resolutions}
        _remove_macro_nodes(data)
        for of in self.resolutions:
            of_node, store, macro = cluster[of.name], data[of.node_type], data[of.macro]
            store[of.cluster] = of_node
            if isinstance(of.group, int) and of.node_type in since:
                store[f'{of.cluster}_since'] = since[of.node_type]
            macro.num_nodes = sizes[of.name]
            macro.size = of_node[of_node >= 0].bincount(minlength=sizes[of.name])
        first = {node_type: sizes[node_type] for node_type in MACRO}
        edges, counted = count_by_window(
            MacroEdges(
                cluster['user'], cluster['item'], first, self.num_hops, self.mode, self.binary
            ),
            data[CLICKS].edge_index,
            window,
            num_windows,
        )
        counted |= self._sparse(data, cluster, sizes, since)
        for edge_type, (edge_index, edge_weight) in counted.items():
            data[edge_type].edge_index = edge_index
            data[edge_type].edge_weight = edge_weight
        if self.edge_tensors:
            for node_type in first:
                for hop in range(1, self.num_hops + 1):
                    data[node_type][f'macro_edges_{hop}'] = edges.tensors(node_type, hop)
        return data

    def keep(self, data: HeteroData) -> 'MacroCoarsen':
        r"""A transform that knows the clusters of all nodes that have a click in :obj:`data`, as
        this one assigns them, and since when: what is clicked later changes none of them, as in
        the windows of a part that rolls.

        Args:
            data (HeteroData): A part.

        Raises:
            ValueError: If the transform is not fitted, or was fitted on another log.
        """
        if not self.cluster:
            raise ValueError('MacroCoarsen has no clusters to keep yet: fit it on a training part.')
        require_same_ids('MacroCoarsen was fitted on', self._id_maps, id_maps(data))
        window, _ = window_of_click(data, 'MacroCoarsen')
        kept = copy.copy(self)
        kept._clusters = copy.copy(self._clusters)
        kept._clusters.cluster = self._clusters.assign(data, window)
        kept._since = self._known_since(data, window)
        kept._id_maps = id_maps(data)
        return kept

    def state(self, data: HeteroData) -> MacroState:
        r"""The macro rows of all nodes as of the last cutoff of a part, of the first resolution,
        which move with new clicks from then on. All clicks are counted anew, once.

        Args:
            data (HeteroData): A part that went through this transform, and
                :class:`~mag.transforms.RecentNeighbors` (without, the recent lists are empty).

        Raises:
            ValueError: If the part did not go through this transform, has recent lists of the form
                :obj:`"released"`, which hold no last neighbors, or was cut by position, as time
                alone goes on.
        """
        require(data, 'MacroCoarsen', 'edge_index')
        require_cpu(data, 'MacroCoarsen')
        if 'position' in data[CLICKS]:
            raise ValueError(
                'MacroCoarsen moves macro rows in time, but this part was cut by position: split '
                "with by='global'."
            )
        num_hops = len(hops(data, 'user'))
        if num_hops != self.num_hops or 'cluster' not in data['user']:
            raise ValueError(
                f'MacroCoarsen moves macro rows of {self.num_hops} hops, but this data has '
                f'{num_hops}: apply it to the data first.'
            )
        cluster = {node_type: data[node_type].cluster for node_type in MACRO}
        sizes = {node_type: data[macro].num_nodes for node_type, macro in MACRO.items()}
        edges, counted = count_by_window(
            MacroEdges(
                cluster['user'], cluster['item'], sizes, self.num_hops, self.mode, self.binary
            ),
            data[CLICKS].edge_index,
        )
        for edge_type, expected in counted.items():
            if edge_type not in data.edge_types or not _has_edges(data[edge_type], *expected):
                raise ValueError(
                    f'MacroCoarsen counts other macro edges {edge_type} than those of this data '
                    f'with {self}: apply it to the data first.'
                )
        return MacroState(edges, _last_neighbors(data))

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        r"""What was fitted, as tensors and as values of JSON, for :meth:`load_fitted_state`."""
        centroids = {name: of.centroids for name, of in self.groupings.items()}
        tensors = {f'centroids/{name}': x for name, x in centroids.items() if x is not None}
        tensors |= {f'cluster/{name}': cluster for name, cluster in self.cluster.items()}
        tensors |= {f'since/{name}': since for name, since in self._since.items()}
        tensors |= {
            f'columns/{name}': torch.from_numpy(columns)
            for name, columns in self._clusters._columns.items()
        }
        return tensors, {'cutoff': self._cutoff, 'id_maps': self._id_maps}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave for a transform with the same arguments."""

        def of(kind: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(f'{kind}/'): value
                for name, value in tensors.items()
                if name.startswith(f'{kind}/')
            }

        clusters = self._unfitted()
        for name, centroids in of('centroids').items():
            number = centroids.size(0)
            grouping = Grouping(number, spherical=self.spherical, seed=self.seed)
            grouping.centroids = centroids
            clusters.groupings[name] = grouping
        clusters.cluster = of('cluster')
        clusters._columns = {name: columns.numpy() for name, columns in of('columns').items()}
        self._clusters, self._since = clusters, of('since')
        self._cutoff = None if values['cutoff'] is None else Cutoff(*values['cutoff'])
        self._id_maps = dict(values['id_maps'])

    def _sparse(
        self,
        data: HeteroData,
        cluster: dict[str, Tensor],
        sizes: dict[str, int],
        since: dict[str, Tensor],
    ) -> dict[EdgeType, tuple[Tensor, Tensor]]:
        r"""The macro edges of clicks at further resolutions, and those of exposures at all."""
        cutoff, macro = windows(data, 'MacroCoarsen').cutoff, {}
        for of in self.resolutions:
            window = None
            if cutoff is not None and isinstance(of.group, int) and of.node_type in since:
                window = torch.searchsorted(cutoff, since[of.node_type])
            macro[of.name] = MacroNodes(cluster[of.name], sizes[of.name], window)
        further = [of for of in self.resolutions if of.suffix]
        counted: dict[EdgeType, tuple[Tensor, Tensor]] = {}
        if further:
            counts = self._counts(data, CLICKS)
            counted |= self._hops(counts, 'hop', self.further_hops, further, macro)
        if self.exposure_hops > 0 and SEES in data.edge_types:
            counts = self._counts(data, SEES)
            counted |= self._hops(counts, 'sees', self.exposure_hops, self.resolutions, macro)
            coarse = counts.coarse(macro['user'], macro['item'])
            counted[MACRO['user'], 'sees', MACRO['item']] = coarse
        return counted

    def _counts(self, data: HeteroData, edge_type: EdgeType) -> SparseCounts:
        edge_index = data[edge_type].get('edge_index')
        num_nodes = {node_type: data[node_type].num_nodes for node_type in MACRO}
        what = f'edge_index of data{list(edge_type)}'
        check_tensor('MacroCoarsen', what, edge_index, (2, 'E'), torch.long)
        for ids, (node_type, number) in zip(edge_index, num_nodes.items(), strict=True):
            check_ids('MacroCoarsen', f'{node_type} ids of {what}', ids, number)
        window, num_windows = window_of_click(data, 'MacroCoarsen', edge_type)
        return SparseCounts(edge_index, window, num_windows, num_nodes, self.binary)

    def _hops(
        self,
        counts: SparseCounts,
        relation: str,
        num_hops: int,
        resolutions: list[Resolution],
        macro: dict[str, MacroNodes],
    ) -> dict[EdgeType, tuple[Tensor, Tensor]]:
        return {
            (of.macro, f'{relation}{hop}', node_type): counts.hop(
                node_type, hop, macro[of.name], self.mode
            )
            for node_type in MACRO
            for hop in range(1, num_hops + 1)
            for of in resolutions
            if of.node_type == reached(node_type, hop)
        }

    def _known_since(self, data: HeteroData, window: Tensor | None) -> dict[str, Tensor]:
        r"""The cutoff as of which each node's learned cluster was known: that of its first click
        here, if it was not there at fit."""
        cutoff, edge_index = windows(data, 'MacroCoarsen').cutoff, data[CLICKS].edge_index
        if cutoff is None:
            return {}
        of_click = cutoff[torch.zeros_like(edge_index[0]) if window is None else window]
        known_since = {}
        for row, node_type in enumerate(('user', 'item')):
            if node_type in self._clusters.behaviors:
                since = first_click(of_click, edge_index[row], data[node_type].num_nodes)
                if node_type in self._since:
                    at_fit = self._since[node_type]
                    since[: len(at_fit)] = torch.minimum(since[: len(at_fit)], at_fit)
                known_since[node_type] = since
        return known_since

    def __repr__(self) -> str:
        learned = ''
        if self.cluster:
            centroids = [grouping.centroids for grouping in self.groupings.values()]
            tensors = [*self.cluster.values(), *(c for c in centroids if c is not None)]
            learned = f', {fitted(tensors)}'
        return (
            f'{self.__class__.__name__}({self.groups}, num_hops={self.num_hops}, '
            f'behavior={self.behavior!r}, mode={self.mode!r}, binary={self.binary}, '
            f'spherical={self.spherical}, projection_dim={self.projection_dim}, '
            f'edge_tensors={self.edge_tensors}, exposure_hops={self.exposure_hops}, '
            f'further_hops={self.further_hops}, seed={self.seed}{learned})'
        )


def _remove_macro_nodes(data: HeteroData) -> None:
    r"""Removes what an earlier call has added, of which this one may not set all anew."""
    suffixes = {
        (node_type, name.removeprefix(macro))
        for name in data.node_types
        for node_type, macro in MACRO.items()
        if name == macro or name.startswith(f'{macro}_')
    }
    types = {f'{MACRO[node_type]}{suffix}' for node_type, suffix in suffixes}
    for edge_type in data.edge_types:
        if edge_type[0] in types or edge_type[2] in types:
            del data[edge_type]
    for name in types:
        del data[name]
    # Of attributes alone, nothing tells who set them.
    for node_type, suffix in suffixes:
        for name in (f'cluster{suffix}', f'cluster{suffix}_since'):
            if name in data[node_type]:
                del data[node_type][name]
    for node_type in MACRO:
        for name in list(data[node_type].keys()):
            if name.startswith('macro_edges_'):
                del data[node_type][name]


def _last(value: Tensor, dim: int) -> Tensor:
    r"""What is true as of the last window, of a tensor of :obj:`dim` dimensions, and one more of
    windows in the second place if there are several."""
    return value if value.dim() == dim else value[:, -1]


def _has_edges(store: Any, edge_index: Tensor, edge_weight: Tensor) -> bool:
    r"""Whether an edge type has these edges, as of the last window."""
    is_same = torch.equal(store.edge_index, edge_index)
    return is_same and torch.equal(_last(store.edge_weight, 1), edge_weight)


def _last_neighbors(data: HeteroData) -> dict[str, Tensor]:
    r"""The recent lists as of the last window, which are empty if there are none.

    Raises:
        ValueError: If they are not those of all clicks of the data.
    """
    if not any('recent' in data[node_type] for node_type in MACRO):
        return {name: torch.empty(data[name].num_nodes, 0, dtype=torch.long) for name in MACRO}
    require(data, 'MacroCoarsen', 'edge_index', 'time')
    log, recent = HeteroData(), {}
    log[CLICKS].edge_index, log[CLICKS].time = data[CLICKS].edge_index, data[CLICKS].time
    for node_type in MACRO:
        log[node_type].num_nodes = data[node_type].num_nodes
        recent[node_type] = _last(data[node_type].recent, 2)
    expected = RecentNeighbors(recent['user'].size(1))(log)
    for node_type, lists in recent.items():
        if not torch.equal(lists, expected[node_type].recent):
            raise ValueError(
                f"MacroCoarsen moves the last neighbors, but data['{node_type}'].recent holds "
                f"others: apply RecentNeighbors(form='paper') to the data first."
            )
    return recent
