import numpy as np
import scipy
import torch
from torch import Tensor

from mag.checks import check_booleans, check_choice, check_integers
from mag.macro_graph.clustered_clicks import ClusteredClicks
from mag.schema import NEIGHBOR_TYPE, reached

# Of a table: all rows, or the numbers of a few in ascending order.
Rows = slice | np.ndarray


class MacroEdges(ClusteredClicks):
    r"""The macro edges of every node: how often its :math:`k`-hop neighborhood reaches each
    macro node, from the `"Macro Graph Neural Networks for Online Billion-Scale Recommender
    Systems" <https://doi.org/10.1145/3589334.3645517>`_ paper (eq. 5)

    .. math::
        \mathbf{E}^{(k)}_v[p, q] = \sum_{a \in \mathcal{C}_p \cap \mathcal{N}^{(k-1)}_v} \;
        \sum_{b \in \mathcal{C}_q \cap \mathcal{N}^{(k)}_v} r_{ab}, \qquad
        \mathbf{n}^{(k)}_v[q] = \sum_p \mathbf{E}^{(k)}_v[p, q],

    where :math:`\mathcal{N}^{(0)}_v = \{ v \}` and :math:`\mathcal{N}^{(k)}_v` holds the neighbors
    of :math:`\mathcal{N}^{(k-1)}_v` (so a user is in its own :math:`\mathcal{N}^{(2)}`).

    * :obj:`mode="set"` is eq. 5 as written: each node of a neighborhood counts once.
    * :obj:`mode="walk"` counts walks, :math:`\mathbf{n}^{(k)} = \mathbf{R} \mathbf{n}^{(k-1)}`,
      at a cost linear in the clicks for any :math:`k`.

    With binary clicks both agree up to two hops, and walks are used for those.

    Args:
        user_cluster (torch.Tensor): Cluster of each user, shape :obj:`[num_users]`; :obj:`-1` for
            a user without clicks.
        item_cluster (torch.Tensor): Cluster of each item, shape :obj:`[num_items]`.
        num_clusters (dict[str, int]): Number of macro nodes of :obj:`"user"` and :obj:`"item"`.
        num_hops (int, optional): The number of hops :math:`k`. (default: :obj:`2`)
        mode (str, optional): :obj:`"set"` or :obj:`"walk"`. (default: :obj:`"set"`)
        binary (bool, optional): If set to :obj:`False`, repeated clicks of a pair add up.
            (default: :obj:`True`)
        max_bytes (int, optional): What full tensors, or the neighborhood sets of three and more
            hops all together, may take before they are refused. Sets are made in pieces, so for
            them this bounds the time; the memory is that of a piece. (default: 8 GiB)

    Attributes:
        counts (dict[str, list[np.ndarray]]): For :obj:`"user"` and :obj:`"item"`, the tables
            :math:`\mathbf{n}^{(1)}, \ldots, \mathbf{n}^{(k)}` as float64, which is exact up to
            :math:`2^{53}`. Shapes: a user's hop 1 (and 3, 5, ...) is
            :obj:`[num_users, num_item_clusters]`, its hop 2 (and 4, ...)
            :obj:`[num_users, num_user_clusters]`; mirrored for items.
    """

    def __init__(
        self,
        user_cluster: Tensor,
        item_cluster: Tensor,
        num_clusters: dict[str, int],
        num_hops: int = 2,
        mode: str = 'set',
        binary: bool = True,
        max_bytes: int = 8 * 2**30,
    ) -> None:
        check_integers(1, num_hops=num_hops)
        check_booleans(binary=binary)
        check_choice(('set', 'walk'), mode=mode)
        super().__init__(user_cluster, item_cluster, num_clusters, binary, max_bytes)
        self.num_hops = num_hops
        self.mode = mode
        self.counts = {
            node: [
                np.zeros((len(self.cluster[node]), num_clusters[reached(node, hop)]))
                for hop in range(1, num_hops + 1)
            ]
            for node in ('user', 'item')
        }

    def update(
        self,
        edge_index: Tensor,
        user_cluster: Tensor | None = None,
        item_cluster: Tensor | None = None,
    ) -> 'MacroEdges':
        r"""Adds new clicks to the counts. The result equals counting all clicks at once.

        Hop 1 is additive; hop 2 is not (a click changes the hop 2 of everybody who clicked the same
        item), so only the rows that changed are carried on:
        :math:`\mathbf{n}^{(k)\prime} = \mathbf{n}^{(k)} + \mathbf{R}^{\prime} \Delta
        \mathbf{n}^{(k-1)} + \Delta \mathbf{R} \, \mathbf{n}^{(k-1)}`.

        Args:
            edge_index (torch.Tensor): New clicks, users above items, shape :obj:`[2, E]`. Clicks
                that are already counted change nothing if :obj:`binary`.
            user_cluster (torch.Tensor, optional): Clusters with new users: entries may be appended
                and :obj:`-1` may be filled in; a cluster that was set cannot change.
            item_cluster (torch.Tensor, optional): The same for items.

        Raises:
            ValueError: If a cluster that was set is changed, or a clicked node has no cluster.
            IndexError: If a click names a node without an entry in the clusters.
        """
        before = self.cluster.copy(), self.clicks.copy(), self.counts.copy()
        try:
            for node, cluster in (('user', user_cluster), ('item', item_cluster)):
                grown = self.extend(node, cluster)
                self.counts[node] = [
                    np.pad(table, ((0, grown), (0, 0))) if grown > 0 else table
                    for table in self.counts[node]
                ]
            self._add(self.matrices(edge_index))
        except (TypeError, ValueError, IndexError):
            # What is refused leaves no trace.
            self.cluster, self.clicks, self.counts = before
            raise
        return self

    def _add(self, new: dict[str, 'scipy.sparse.csr_matrix']) -> None:
        if new['user'].nnz == 0:
            return
        first = self.clicks['user'].nnz == 0
        for node in ('user', 'item'):
            self.clicks[node] = new[node] if first else self.clicks[node] + new[node]

        additive_hops = self.num_hops
        if self.mode == 'set':
            additive_hops = min(self.num_hops, 2 if self.binary else 1)
        # First what may be refused, as the rest is added in place.
        over_sets = {
            (node, hop): self._count_sets(node, hop)
            for hop in range(additive_hops + 1, self.num_hops + 1)
            for node in ('user', 'item')
        }
        clicked = {node: _few_or_all(np.diff(of.indptr) > 0) for node, of in new.items()}
        rows, change = clicked, {}
        for node in ('user', 'item'):
            if not isinstance(rows[node], slice):
                new[node] = new[node][rows[node]]
            change[node] = (new[node] @ self.one_hot(NEIGHBOR_TYPE[node])).toarray()
        for hop in range(1, additive_hops + 1):
            following_rows, following = {}, {}
            for node in ('user', 'item'):
                if hop < additive_hops:
                    other = NEIGHBOR_TYPE[node]
                    found, table = self._carry(node, rows[other], change[other])
                    if not first:
                        place = clicked[node]
                        # Whoever clicked is among those that what was clicked reaches.
                        if not (isinstance(found, slice) or isinstance(place, slice)):
                            place = np.searchsorted(found, place)
                        table[place] += new[node] @ self.counts[other][hop - 1]
                    following_rows[node], following[node] = found, table
            for node in ('user', 'item'):
                self.counts[node][hop - 1][rows[node]] += change[node]
            rows, change = following_rows, following
        for (node, hop), counts in over_sets.items():
            self.counts[node][hop - 1] = counts

    def coarse(self) -> np.ndarray:
        r"""The clicks between every user cluster and every item cluster, shape
        :obj:`[num_user_clusters, num_item_clusters]`."""
        return self.one_hot('user').T @ self.counts['user'][0]

    def tensors(self, node: str, hop: int) -> Tensor:
        r"""The full macro edges :math:`\mathbf{E}^{(k)}_v[p, q]` of eq. 5 for all nodes of a type.

        Args:
            node (str): :obj:`"user"` or :obj:`"item"`.
            hop (int): :math:`k`, from 1 to :obj:`num_hops`.

        Returns:
            A sparse tensor of shape :obj:`[num_nodes, M_(k-1), M_k]`.

        Raises:
            ValueError: If it would not fit in :obj:`max_bytes`.
        """
        check_choice(NEIGHBOR_TYPE, node=node)
        check_integers(1, below=self.num_hops + 1, hop=hop)
        rows, columns = (self.num_clusters[reached(node, step)] for step in (hop - 1, hop))
        num_nodes = len(self.cluster[node])
        self.refuse(
            float(np.minimum(self.num_walks(node, hop), rows * columns).sum()) * 28,
            f'The full macro edges of hop {hop} of {num_nodes:,} {node}s over {rows} x {columns} '
            f'clusters',
        )
        if self.mode == 'set' and hop > 1:
            edges = self.over_sets(node, hop, self.own_edges(reached(node, hop - 1)))
        else:
            edges = self.own_edges(reached(node, hop - 1))
            for step in range(hop - 2, -1, -1):
                edges = self.clicks[reached(node, step)] @ edges
        edges = edges.tocoo()
        index = np.stack([edges.row, edges.col // columns, edges.col % columns])
        return torch.sparse_coo_tensor(
            torch.from_numpy(index.astype(np.int64)),
            torch.from_numpy(edges.data),
            (num_nodes, rows, columns),
            check_invariants=True,
        ).coalesce()

    def _carry(self, node: str, rows: Rows, change: np.ndarray) -> tuple[Rows, np.ndarray]:
        r"""The rows of a node type that a change of some rows of the other reaches, and by what."""
        other = NEIGHBOR_TYPE[node]
        changed = np.flatnonzero(change.any(axis=1)) if isinstance(rows, slice) else rows
        clicks_changed = np.diff(self.clicks[other].indptr)[changed].sum()
        if clicks_changed < self.clicks[other].nnz / 4:
            clicks = self.clicks[other][changed]
            is_reached = np.zeros(clicks.shape[1], dtype=bool)
            is_reached[clicks.indices] = True
            found = _few_or_all(is_reached)
            if not isinstance(found, slice):
                place = np.searchsorted(found, clicks.indices)
                shape = len(changed), len(found)
                clicks = scipy.sparse.csr_matrix((clicks.data, place, clicks.indptr), shape)
            return found, clicks.T @ (change[changed] if isinstance(rows, slice) else change)
        if not isinstance(rows, slice):
            few, change = change, np.zeros((len(self.cluster[other]), change.shape[1]))
            change[rows] = few
        # Rows of the longer table are read in order, so that the shorter one stays in the cache.
        if len(self.cluster[node]) > len(change):
            return slice(None), self.clicks[node] @ change
        return slice(None), self.clicks[other].T @ change

    def _count_sets(self, node: str, hop: int) -> np.ndarray:
        start = reached(node, hop - 1)
        return self.over_sets(
            node,
            hop,
            scipy.sparse.csr_matrix(self.clicks[start] @ self.one_hot(NEIGHBOR_TYPE[start])),
        ).toarray()

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.clicks["user"].shape[0]} users, '
            f'{self.clicks["user"].shape[1]} items, {self.clicks["user"].nnz} clicks, '
            f'num_hops={self.num_hops}, mode={self.mode!r}, binary={self.binary})'
        )


def _few_or_all(is_in: np.ndarray) -> Rows:
    r"""Those rows of a table that are in, unless they are so many that all cost no more."""
    rows = np.flatnonzero(is_in)
    return rows if len(rows) < len(is_in) / 4 else slice(None)
