import os

import numpy as np
import scipy
import torch
from torch import Tensor

from mag.checks import check_booleans, check_integers, check_tensor, check_values
from mag.files import read_tensors, write_tensors
from mag.negatives import hash_rows

#: The streams of chance that signs and samples are drawn from.
SIGNS, _SAMPLE = 2, 3
# FAISS samples 256 points a cluster by default. Up to here all nodes of a log are taken.
_POINTS_PER_CLUSTER, _FEW_POINTS = 256, 2**16
# The rows that are multiplied at once.
_BLOCK = 4096
# How far two distances may be apart that are one but for rounding, as a share of squared lengths.
_TIE = 1e-9


class Grouping:
    r"""Groups nodes into macro nodes by k-means on their behavior embeddings, with FAISS, as in
    the `"Macro Graph Neural Networks for Online Billion-Scale Recommender Systems"
    <https://doi.org/10.1145/3589334.3645517>`_ paper (eq. 3 and 4)

    .. math::
        \min_{\mathcal{C}} \sum_{p=1}^{M} \sum_{v \in \mathcal{C}_p}
        {\lVert \mathbf{b}_v - \boldsymbol{\mu}_p \rVert}^2_2.

    The centroids are kept, so that nodes which were not there at the time of fitting can be
    assigned to the nearest. All rows are used up to 65,536, or 256 a cluster if that is more; of
    more, a sample of as many, which depends on the seed and on the nodes alone. A GPU is used if
    FAISS was built for one.

    Args:
        num_clusters (int): The number of macro nodes :math:`M`.
        spherical (bool, optional): If set to :obj:`True`, centroids are projected to the unit
            sphere after each iteration, which makes this cosine k-means. (default: :obj:`False`)
        num_iterations (int, optional): Lloyd iterations. (default: :obj:`25`)
        seed (int, optional): Seed of the k-means++ start and of the sample, below :math:`2^{31}`.
            (default: :obj:`0`)

    Attributes:
        centroids (torch.Tensor or None): Shape :obj:`[num_clusters, D]` once fitted.
    """

    def __init__(
        self,
        num_clusters: int,
        spherical: bool = False,
        num_iterations: int = 25,
        seed: int = 0,
    ) -> None:
        check_integers(1, num_clusters=num_clusters, num_iterations=num_iterations)
        check_booleans(spherical=spherical)
        # The integers of FAISS have 32 bits.
        check_integers(0, below=2**31, seed=seed)
        self.num_clusters = num_clusters
        self.spherical = spherical
        self.num_iterations = num_iterations
        self.seed = seed
        self.centroids: Tensor | None = None

    @property
    def max_points(self) -> int:
        r"""The number of rows that centroids are found from, at most."""
        return max(_FEW_POINTS, _POINTS_PER_CLUSTER * self.num_clusters)

    def fit(self, x: Tensor, node: Tensor | None = None) -> Tensor:
        r"""Finds the centroids and returns the cluster of each row.

        Args:
            x (torch.Tensor): Behavior embeddings of shape :obj:`[N, D]`.
            node (torch.Tensor, optional): Whose they are, ascending, by which rows are sampled,
                shape :obj:`[N]`. (default: the numbers of the rows)

        Returns:
            Clusters in :math:`0, \ldots, M - 1`, shape :obj:`[N]`.

        Raises:
            ValueError: If there are fewer rows than clusters, or a value is not finite.
        """
        rows = _as_rows(x)
        if node is None:
            node = torch.arange(len(rows))
        check_tensor('Grouping', 'node', node, (len(rows),), torch.long)
        if len(rows) < self.num_clusters:
            raise ValueError(
                f'Grouping into {self.num_clusters} clusters needs at least as many nodes with '
                f'behavior, but got {len(rows)}.'
            )
        if len(rows) > self.max_points:
            rows = rows[sample_nodes(node.numpy(), self.max_points, self.seed)]
        # Here and in assign, so that importing mag does not wait for it, and after torch: with
        # FAISS first, a forked DataLoader worker that calls it hangs.
        import faiss

        kmeans = faiss.Kmeans(
            rows.shape[1],
            self.num_clusters,
            niter=self.num_iterations,
            seed=self.seed,
            spherical=self.spherical,
            gpu=faiss.get_num_gpus() > 0,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )
        kmeans.train(rows)
        self.centroids = torch.tensor(kmeans.centroids)
        return self.assign(x)

    def assign(self, x: Tensor) -> Tensor:
        r"""Returns the cluster with the nearest centroid for each row of :obj:`x`, shape
        :obj:`[N]`.

        Args:
            x (torch.Tensor): Rows as those it was fitted on, shape :obj:`[N, F]`.

        Raises:
            RuntimeError: If the grouping has not been fitted.
            ValueError: If :obj:`x` has another width than the rows it was fitted on.
        """
        centroids = self.fitted()
        rows = _as_rows(x, centroids.size(1))
        if len(rows) == 0:
            return torch.empty(0, dtype=torch.long)
        return torch.from_numpy(_nearest(rows, centroids.numpy()))

    def save(self, path: str | os.PathLike) -> None:
        r"""Writes arguments and centroids to :obj:`path`, under a temporary name first.

        Args:
            path (str or os.PathLike): The file.

        Raises:
            RuntimeError: If the grouping has not been fitted.
        """
        write_tensors({**self._arguments(), 'centroids': self.fitted()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Grouping':
        r"""Reads what :meth:`save` wrote.

        Args:
            path (str or os.PathLike): The file.

        Raises:
            FileNotFoundError: If there is no file.
            ValueError: If the file is damaged or no saved grouping.
        """
        try:
            state = read_tensors(path)
        except ValueError as error:
            raise ValueError(f'{error} Fit the grouping again, and save it.') from None
        try:
            centroids = state.pop('centroids')
            grouping = cls(**state)
            shape = (grouping.num_clusters, 'D')
            check_tensor('Grouping', 'centroids', centroids, shape, torch.float32)
            _as_rows(centroids)
            grouping.centroids = centroids
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{os.fspath(path)!r} is not a saved Grouping: {error} Fit the grouping again, and '
                f'save it.'
            ) from error
        return grouping

    def fitted(self) -> Tensor:
        r"""The centroids, shape :obj:`[num_clusters, D]`.

        Raises:
            RuntimeError: If the grouping has not been fitted.
        """
        if self.centroids is None:
            raise RuntimeError(f"{self!r} has not been fitted: call 'fit' or 'load' first.")
        return self.centroids

    def _arguments(self) -> dict[str, int | bool]:
        return {
            'num_clusters': self.num_clusters,
            'spherical': self.spherical,
            'num_iterations': self.num_iterations,
            'seed': self.seed,
        }

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value}' for name, value in self._arguments().items())
        return f'{self.__class__.__name__}({arguments})'


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    r"""The nearest centroid of each row, of those that are as near the first, in any company.

    The last bits of a product depend on where a row is in it, on some processors. So rows whose two
    nearest ones are apart by no more than rounding are compared again, in double precision.
    """
    import faiss

    # Of a sum of as many products, at most, and two distances of three sums each.
    rounding = 4 * centroids.shape[1] * np.finfo(np.float32).eps
    longest = np.square(centroids).sum(1).max()
    cluster = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        distance, nearest = faiss.knn(block, centroids, min(2, len(centroids)))
        found = nearest[:, 0]
        gap = distance[:, -1] - distance[:, 0]
        is_close = gap <= rounding * (np.square(block).sum(1) + longest)
        found[is_close] = _first_nearest(block[is_close].astype(np.float64), centroids)
        cluster[start : start + _BLOCK] = found
    return cluster


def _first_nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    centers = centroids.astype(np.float64)
    lengths = np.square(centers).sum(1)
    # But for the squared length of the row.
    distance = lengths - 2 * (rows @ centers.T)
    tie = _TIE * (np.square(rows).sum(1) + lengths.max())
    return (distance <= distance.min(1, keepdims=True) + tie[:, None]).argmax(1)


def _as_rows(x: Tensor, width: int | str = 'D') -> np.ndarray:
    r"""Embeddings as FAISS takes them."""
    check_tensor('Grouping', 'x', x, ('num_nodes', width), 'numbers')
    check_integers(1, **{'x.size(1)': x.size(1)})
    rows = x.detach().float().cpu().contiguous()
    # FAISS ends the process where a squared distance is not finite.
    squares = rows.square().sum(dim=1)
    expected = 'rows with squares that float32 can sum'
    check_values('Grouping', 'x', squares, squares.isfinite(), expected)
    return rows.numpy()


def sample_nodes(node: np.ndarray, num: int, seed: int) -> np.ndarray:
    r"""The places of :obj:`num` nodes, ascending: those whose hash is least, so that a smaller
    sample is part of a larger, and one of all nodes that of samples of their parts.

    Args:
        node (numpy.ndarray): Distinct nodes, int64, shape :obj:`[N]`.
        num (int): How many, at most.
        seed (int): Seed of the hash.
    """
    if len(node) <= num:
        return np.arange(len(node))
    # SplitMix64 is a bijection, so that no two nodes have one hash.
    return np.sort(np.argpartition(hash_rows((seed, _SAMPLE), node), num - 1)[:num])


def macro_behavior(counts: Tensor) -> Tensor:
    r"""L2-normalized hop-1 counts over the neighbors' clusters, shape :obj:`[N, M]`: what the
    released code clusters (its "behavior embedding" on public data). Zero rows stay zero."""
    return torch.nn.functional.normalize(counts.float(), dim=1)


def cluster_counts(
    clicks: 'scipy.sparse.csr_matrix', neighbor_cluster: np.ndarray, num_clusters: int
) -> Tensor:
    r"""The clicks of each node by cluster of the neighbor, shape :obj:`[N, num_clusters]`.

    Args:
        clicks (scipy.sparse.csr_matrix): Shape :obj:`[N, N_other]`.
        neighbor_cluster (numpy.ndarray): The cluster of each neighbor, shape :obj:`[N_other]`.
        num_clusters (int): The number of clusters.
    """
    of_click = clicks.data, neighbor_cluster[clicks.indices], clicks.indptr
    counts = scipy.sparse.csr_matrix(of_click, shape=(clicks.shape[0], num_clusters))
    return torch.from_numpy(counts.toarray())


def raw_behavior(
    clicks: 'scipy.sparse.csr_matrix',
    projection_dim: int,
    seed: int,
    columns: np.ndarray | None = None,
) -> Tensor:
    r"""L2-normalized rows of the click matrix, :math:`\mathbf{b}_v = \mathbf{r}_v /
    {\lVert \mathbf{r}_v \rVert}_2` (paper, eq. 2), projected to :obj:`projection_dim` random signs
    (Achlioptas), which keeps squared distances in expectation: users times items is never dense.
    With at most :obj:`projection_dim` columns the rows themselves are returned, with columns of
    zeros for others.

    Args:
        clicks (scipy.sparse.csr_matrix): Shape :obj:`[N, N_other]`.
        projection_dim (int): Width :math:`D` of the result.
        seed (int): Seed of the signs, see :func:`random_signs`. The signs of a column do not depend
            on how many columns there are, so embeddings stay comparable when new nodes arrive.
        columns (numpy.ndarray, optional): The columns that are counted and, if there are few of
            them, returned; clicks on others then count in the norm alone. So embeddings stay
            comparable to those of a matrix with clicks on these columns only.
            (default: all columns)

    Returns:
        Embeddings of shape :obj:`[N, D]`.
    """
    check_integers(1, projection_dim=projection_dim)
    clicks = clicks.astype(np.float32)
    norm = np.sqrt(np.asarray(clicks.multiply(clicks).sum(axis=1))).ravel()
    if columns is None:
        columns = np.arange(clicks.shape[1])
    if len(columns) <= projection_dim:
        # A copy of the matrix already, so the caller's keeps its width.
        clicks.resize(clicks.shape[0], max(clicks.shape[1], columns.max(initial=-1) + 1))
        chosen = clicks[:, columns]
        # At their own places, where these fit: those of a matrix of no other columns.
        fits = columns.max(initial=-1) < projection_dim
        place = columns if fits else np.arange(len(columns))
        rows = scipy.sparse.csr_matrix(
            (chosen.data, place[chosen.indices], chosen.indptr), (len(norm), projection_dim)
        ).toarray()
    else:
        rows = clicks @ random_signs(np.arange(clicks.shape[1]), projection_dim, seed)
        return scale_projection(rows, norm)
    rows /= np.maximum(norm, 1e-12)[:, None]
    return torch.from_numpy(rows)


def scale_projection(total: np.ndarray, norm: np.ndarray) -> Tensor:
    r"""Embeddings of sums of signs, as squared distances are kept in expectation.

    Args:
        total (numpy.ndarray): The sums, float32, shape :obj:`[N, D]`. They are divided in place.
        norm (numpy.ndarray): The length of the rows that were projected, float32, shape
            :obj:`[N]`, multiplied in place.
    """
    norm *= np.sqrt(total.shape[1])
    total /= np.maximum(norm, 1e-12)[:, None]
    return torch.from_numpy(total)


def random_signs(column: np.ndarray, projection_dim: int, seed: int) -> np.ndarray:
    r"""Signs that depend on seed, column and dimension alone: of each column and 64 dimensions, the
    bits of a hash from the lowest, set for :math:`+1`.

    Args:
        column (numpy.ndarray): int64, shape :obj:`[C]`.
        projection_dim (int): The number of dimensions :math:`D`.
        seed (int): Seed of the hash.

    Returns:
        float32, shape :obj:`[C, D]`.
    """
    word = hash_rows((seed, SIGNS), column[:, None], np.arange(-(-projection_dim // 64)))
    bits = np.unpackbits(word.astype('<u8').view(np.uint8), axis=1, bitorder='little')
    signs = bits[:, :projection_dim].astype(np.float32)
    signs *= 2
    signs -= 1
    return signs
