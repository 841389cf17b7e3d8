import numpy as np
import scipy
import torch
from torch import Tensor
from tqdm import tqdm

from mag.checks import check_ids, check_integers, check_keys, check_tensor, check_values
from mag.schema import NEIGHBOR_TYPE, reached

BYTES_PER_PAIR = 12
CHUNK_PAIRS = 2**26


class ClusteredClicks:
    r"""The clicks of a log as sparse matrices, the clusters of its nodes, and the neighborhoods
    that these span: what :class:`MacroEdges` are counted from.

    Args:
        user_cluster (torch.Tensor): Cluster of each user, shape :obj:`[num_users]`; :obj:`-1` for
            a user without clicks.
        item_cluster (torch.Tensor): Cluster of each item, shape :obj:`[num_items]`.
        num_clusters (dict[str, int]): Number of macro nodes of :obj:`"user"` and :obj:`"item"`.
        binary (bool): If set to :obj:`False`, repeated clicks of a pair add up.
        max_bytes (int): What neighborhood sets may take before they are refused.

    Attributes:
        cluster (dict[str, np.ndarray]): The clusters of users and items.
        clicks (dict[str, scipy.sparse.csr_matrix]): How often each node clicked, or was clicked by,
            each node of the other type.
    """

    def __init__(
        self,
        user_cluster: Tensor,
        item_cluster: Tensor,
        num_clusters: dict[str, int],
        binary: bool,
        max_bytes: int,
    ) -> None:
        check_integers(1, max_bytes=max_bytes)
        check_keys(('user', 'item'), num_clusters=num_clusters)
        check_integers(1, **{f'num_clusters[{name!r}]': num for name, num in num_clusters.items()})
        self.num_clusters = num_clusters
        self.binary = binary
        self.max_bytes = max_bytes
        self.cluster = {
            'user': self._check_cluster('user', user_cluster),
            'item': self._check_cluster('item', item_cluster),
        }
        shape = len(user_cluster), len(item_cluster)
        self.clicks = {
            'user': scipy.sparse.csr_matrix(shape, dtype=np.float64),
            'item': scipy.sparse.csr_matrix(shape[::-1], dtype=np.float64),
        }

    def extend(self, node: str, cluster: Tensor | None) -> int:
        r"""Takes clusters with new nodes, and returns how many nodes are new.

        Raises:
            ValueError: If a cluster that was set is changed.
        """
        if cluster is None:
            return 0
        values, old = self._check_cluster(node, cluster), self.cluster[node]
        if len(values) < len(old) or ((old >= 0) & (values[: len(old)] != old)).any():
            raise ValueError(
                f"'{node}_cluster' must keep the clusters of the {len(old)} {node}s that are "
                f'already counted: count anew with a new MacroEdges to change them.'
            )
        self.cluster[node] = values
        grown = len(values) - len(old)
        if grown > 0:
            shape = (len(values), len(self.cluster[NEIGHBOR_TYPE[node]]))
            own, other = self.clicks[node], self.clicks[NEIGHBOR_TYPE[node]]
            ends = np.pad(own.indptr, (0, grown), mode='edge')
            self.clicks[node] = scipy.sparse.csr_matrix((own.data, own.indices, ends), shape)
            self.clicks[NEIGHBOR_TYPE[node]] = scipy.sparse.csr_matrix(
                (other.data, other.indices, other.indptr), shape[::-1]
            )
        return grown

    def matrices(self, edge_index: Tensor) -> dict[str, 'scipy.sparse.csr_matrix']:
        r"""New clicks as matrices like :obj:`clicks`, without those that are already counted if
        :obj:`binary`.

        Raises:
            IndexError: If a click names a node without an entry in the clusters.
            ValueError: If a clicked node has no cluster.
        """
        check_tensor('MacroEdges', 'edge_index', edge_index, (2, 'E'), 'integers')
        for node, ids in zip(('user', 'item'), edge_index, strict=True):
            check_ids('MacroEdges', f'{node} ids', ids, len(self.cluster[node]))
            is_grouped = torch.from_numpy(self.cluster[node][ids.numpy()] >= 0)
            check_values('MacroEdges', f'{node} ids', ids, is_grouped, 'nodes with a cluster')
        user, item = edge_index.numpy()
        shape = (len(self.cluster['user']), len(self.cluster['item']))
        new = scipy.sparse.csr_matrix((np.ones(len(user)), (user, item)), shape=shape)
        if self.binary:
            new.data[:] = 1
            if self.clicks['user'].nnz > 0:
                new = new - new.multiply(self.clicks['user'])
                new.eliminate_zeros()
        return {'user': new, 'item': new.T.tocsr()}

    def one_hot(self, node: str) -> 'scipy.sparse.csr_matrix':
        cluster = self.cluster[node]
        is_grouped = cluster >= 0
        ends = np.concatenate([[0], is_grouped.cumsum()])
        return scipy.sparse.csr_matrix(
            (np.ones(ends[-1]), cluster[is_grouped], ends),
            shape=(len(cluster), self.num_clusters[node]),
        )

    def own_edges(self, node: str) -> 'scipy.sparse.csr_matrix':
        r"""Hop-1 macro edges, in which only the row of the node's own cluster is filled, shape
        :obj:`[num_nodes, M_0 * M_1]`."""
        first = scipy.sparse.csr_matrix(self.clicks[node] @ self.one_hot(NEIGHBOR_TYPE[node]))
        width = self.num_clusters[NEIGHBOR_TYPE[node]]
        owner = np.repeat(self.cluster[node], np.diff(first.indptr))
        return scipy.sparse.csr_matrix(
            (first.data, owner * width + first.indices, first.indptr),
            shape=(first.shape[0], self.num_clusters[node] * width),
        )

    def num_walks(self, node: str, hop: int) -> np.ndarray:
        walks = np.ones(len(self.cluster[reached(node, hop)]))
        for step in range(hop - 1, -1, -1):
            walks = self.clicks[reached(node, step)] @ walks
        return walks

    def over_sets(
        self, node: str, hop: int, table: 'scipy.sparse.csr_matrix'
    ) -> 'scipy.sparse.csr_matrix':
        r"""Sums the rows of :obj:`table` over :math:`\mathcal{N}^{(k-1)}_v`, which is eq. 5 because
        every neighbor of a node in :math:`\mathcal{N}^{(k-1)}_v` is in
        :math:`\mathcal{N}^{(k)}_v`."""
        pairs = np.minimum(self.num_walks(node, hop - 1), table.shape[0])
        self.refuse(
            float(pairs.sum()) * BYTES_PER_PAIR,
            f'The neighborhood sets N^({hop - 1}) of {len(pairs):,} {node}s',
        )
        chunk = (pairs.cumsum() // CHUNK_PAIRS).astype(np.int64)
        bounds = np.flatnonzero(np.diff(chunk, prepend=-1, append=chunk[-1:] + 1))
        parts = [scipy.sparse.csr_matrix((0, table.shape[1]))]
        pieces = list(zip(bounds[:-1], bounds[1:], strict=True))
        for start, end in tqdm(pieces, f'Counting hop {hop}', leave=False, delay=3):
            reach = self.clicks[node][start:end]
            for step in range(1, hop - 1):
                reach = reach @ self.clicks[reached(node, step)]
                reach.data[:] = 1
            if not self.binary:
                reach = reach.copy()
                reach.data[:] = 1
            parts.append(reach @ table)
        return scipy.sparse.vstack(parts, format='csr')

    def refuse(self, num_bytes: float, what: str) -> None:
        if num_bytes > self.max_bytes:
            raise ValueError(
                f'{what} would take up to {num_bytes / 2**20:,.0f} MiB, more than the '
                f"{self.max_bytes / 2**20:,.0f} MiB of 'max_bytes'. Use mode='walk', whose cost is "
                f'linear in the clicks, or fewer hops or clusters.'
            )

    def _check_cluster(self, node: str, cluster: Tensor) -> np.ndarray:
        check_tensor('MacroEdges', f'{node}_cluster', cluster, (f'num_{node}s',), 'integers')
        number = self.num_clusters[node]
        check_ids('MacroEdges', f"clusters in '{node}_cluster'", cluster, number, first=-1)
        return cluster.numpy().astype(np.int64)
