r"""mag's way from raw files to training batches, as `coarsening.py` measures it."""

import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
from scipy.sparse import csr_matrix, diags_array
from timing import Stages
from torch_geometric.data import HeteroData

from mag.datasets import EventLog, MovieLens
from mag.loader import PairLoader
from mag.macro_graph.grouping import Grouping, raw_behavior
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit


def movie_lens(stages: Stages, folder: Path, num_windows: int) -> dict[str, float]:
    r"""Reads a MovieLens-1M folder into a fresh cache and coarsens it until every batch of one pass
    over the training, validation and test part was there; returns the number of rows of each."""
    data = read_movie_lens(folder)
    stages.lap('read')
    train_start = 0.8 if num_windows == 1 else 0.3
    parts = coarsen(stages, data, {'user': 20, 'item': 'category'}, train_start, num_windows)
    num_rows: dict[str, float] = {}
    for name, part in zip(('train', 'validation', 'test'), parts, strict=True):
        num_rows[name] = sum(len(batch.label) for batch in PairLoader(part))
    stages.lap('rows')
    return num_rows


def power_law(
    stages: Stages, log: Path, groups: dict[str, int | str], num_parts: int
) -> dict[str, float]:
    r"""Reads a log that `power_law_log.py` wrote into a fresh cache and coarsens its first
    `num_parts` parts; returns how many clicks, users and items it has."""
    with tempfile.TemporaryDirectory(dir=log.parent) as root, warnings.catch_warnings():
        # Rows that repeat another are part of a power law.
        warnings.simplefilter('ignore')
        columns = {name: name for name in ('user', 'item', 'time', 'category')}
        data = EventLog(root, log, columns, log=False)[0]
        stages.lap('read')
    facts = {
        'clicks': data['user', 'clicks', 'item'].num_edges,
        'users': data['user'].num_nodes,
        'items': data['item'].num_nodes,
    }
    coarsen(stages, data, groups, 0.8, num_windows=1, num_parts=num_parts)
    return facts


def read_movie_lens(folder: Path) -> HeteroData:
    r"""Reads a MovieLens-1M folder into a cache of its own, which is thrown away."""
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, 'raw', 'ml-1m')
        raw.parent.mkdir()
        raw.symlink_to(folder.resolve(), target_is_directory=True)
        return MovieLens(root, '1m', log=False)[0]


def coarsen(
    stages: Stages,
    data: HeteroData,
    groups: dict[str, int | str],
    train_start: float,
    num_windows: int,
    num_parts: int = 3,
) -> list[HeteroData]:
    r"""Splits a log and makes the macro graphs of the first `num_parts` of training, validation and
    test part, all of which stay in memory; clusters are learned from the first."""
    parts = list(TemporalSplit(train_start, num_windows=num_windows)(data))[:num_parts]
    stages.lap('split')
    parts = [RecentNeighbors()(part) for part in parts]
    stages.lap('recent lists')
    transform = MacroCoarsen(groups).fit(parts[0])
    stages.lap('k-means')
    parts = [transform(part) for part in parts]
    stages.lap('counts')
    return parts


def projection(
    stages: Stages, folder: Path, num_clusters: int, dims: list[int | None], seed: int
) -> dict[str, float]:
    r"""Clusters MovieLens-1M users by their rows of clicks in projections of several widths (None:
    the rows themselves), and returns for each the sum of squared distances of the *true* rows to
    the means of their clusters, `objective`, and the `seconds` of projection and k-means.

    Rows are the clicks before the 80 % quantile of time, scaled to length 1. `objective one` is
    that of a single cluster, from which all of them start.
    """
    data = read_movie_lens(folder)
    train, _, _ = TemporalSplit(0.8, num_windows=1)(data)
    user, item = train['user', 'clicks', 'item'].edge_index.numpy()
    clicks = csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)))
    clicks.data[:] = 1
    clicks = clicks[np.diff(clicks.indptr) > 0]
    length = np.sqrt(np.diff(clicks.indptr))
    rows = diags_array(1 / length) @ clicks
    facts = {'objective one': objective(rows, np.zeros(rows.shape[0], dtype=np.int64), 1)}
    for dim in dims:
        started = perf_counter()
        embedding = raw_behavior(clicks, clicks.shape[1] if dim is None else dim, seed)
        cluster = Grouping(num_clusters, seed=seed).fit(embedding)
        facts[f'seconds {dim}'] = perf_counter() - started
        facts[f'objective {dim}'] = objective(rows, cluster.numpy(), num_clusters)
        stages.lap(str(dim))
    return facts


def objective(rows: csr_matrix, cluster: np.ndarray, num_clusters: int) -> float:
    r"""The sum of squared distances of rows to the mean of their cluster: their summed squared
    lengths less those of the means, each mean counted once a row."""
    num_rows = rows.shape[0]
    member = csr_matrix(
        (np.ones(num_rows), (cluster, np.arange(num_rows))), (num_clusters, num_rows)
    )
    total = member @ rows.astype(np.float64)
    size = np.maximum(np.bincount(cluster, minlength=num_clusters), 1)
    between = np.asarray(total.multiply(total).sum(axis=1)).ravel() / size
    return float(rows.multiply(rows).sum() - between.sum())
