import copy

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_booleans, check_choice, check_integers
from mag.cutoff import Cutoff, first_cutoff, require_not_earlier, window_of_click
from mag.macro_graph import Grouping, MacroClusters, MacroEdges, count_by_window
from mag.schema import CLICKS, MACRO, require, require_cpu, windows
from mag.transforms._clock import first_click
from mag.transforms._fitted import fitted


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
    * for learned groupings, if the data is a part, :obj:`cluster_since`, shape :obj:`[N]`: the
      cutoff as of which a node's cluster was known, so that no earlier row reads it;
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
        check_integers(1, num_hops=num_hops)
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
        self.seed = seed
        self._clusters = self._unfitted()
        self._cutoff: Cutoff | None = None
        self._since: dict[str, Tensor] = {}

    @property
    def groupings(self) -> dict[str, Grouping]:
        r"""Those that were fitted, by node type."""
        return self._clusters.groupings

    @property
    def cluster(self) -> dict[str, Tensor]:
        r"""The clusters of users and items as of :meth:`fit`, shape :obj:`[N]` each; empty before
        it."""
        return self._clusters.cluster

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
        self._since = {}
        self._since = self._known_since(data, window)
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
        cluster = self._clusters.assign(data, window)
        sizes = {name: self._clusters.num_clusters(data, name) for name in cluster}
        for node_type, since in self._known_since(data, window).items():
            data[node_type].cluster_since = since
        for node_type, of_node in cluster.items():
            data[node_type].cluster = of_node
            macro = data[MACRO[node_type]]
            macro.num_nodes = sizes[node_type]
            macro.size = of_node[of_node >= 0].bincount(minlength=sizes[node_type])
        edges, counted = count_by_window(
            MacroEdges(
                cluster['user'], cluster['item'], sizes, self.num_hops, self.mode, self.binary
            ),
            data[CLICKS].edge_index,
            window,
            num_windows,
        )
        for edge_type, (edge_index, edge_weight) in counted.items():
            data[edge_type].edge_index = edge_index
            data[edge_type].edge_weight = edge_weight
        if self.edge_tensors:
            for node_type in cluster:
                for hop in range(1, self.num_hops + 1):
                    data[node_type][f'macro_edges_{hop}'] = edges.tensors(node_type, hop)
        return data

    def _known_since(self, data: HeteroData, window: Tensor | None) -> dict[str, Tensor]:
        r"""The cutoff as of which each node's learned cluster was known: that of its first click
        here, if it was not there at fit."""
        cutoff, edge_index = windows(data, 'MacroCoarsen').cutoff, data[CLICKS].edge_index
        if cutoff is None:
            return {}
        of_click = cutoff[torch.zeros_like(edge_index[0]) if window is None else window]
        known_since = {}
        for row, node_type in enumerate(('user', 'item')):
            if node_type in self.groupings:
                since = first_click(of_click, edge_index[row], data[node_type].num_nodes)
                if node_type in self._since:
                    is_known = self.cluster[node_type] >= 0
                    since[: len(is_known)][is_known] = self._since[node_type][is_known]
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
            f'edge_tensors={self.edge_tensors}, seed={self.seed}{learned})'
        )
