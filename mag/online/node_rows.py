r"""What is counted of a node: one packed row, which moves with every event."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mag.checks import check_choice, check_integers, check_keys
from mag.macro_graph.last_neighbors import last_neighbors
from mag.schema import NEIGHBOR_TYPE

# In this order in a row: of all events, of clicks, and of pairs that have clicked.
_COUNTS = ('exposures', 'clicks', 'pairs')
_WORD = np.dtype('<u4')
_ONE = np.uint32(1)
_MOST = int(np.iinfo(np.uint32).max)


class RowLayout:
    r"""How the row of a node is packed.

    A row of :attr:`dtypes` holds what happened to a node so far:

    * :obj:`seen`, its events;
    * :obj:`recent`, the last neighbors that it clicked, or that clicked it, newest last, padded on
      the left with :obj:`-1`, as of :class:`~mag.transforms.RecentNeighbors`: one that is clicked
      again is there again;
    * :obj:`exposures`, :obj:`clicks` and :obj:`pairs`, its events, those that were clicked, and the
      neighbors that were clicked, however often, by the cluster of the neighbor. Resolutions follow
      each other, see :meth:`columns`, and the last column of each counts neighbors that are in no
      cluster. These are the counts of :class:`~mag.transforms.MacroCoarsen` with
      :obj:`binary=False` over exposures and clicks, and with :obj:`binary=True` over clicks.

    >>> layout = RowLayout(num_recent=2, num_clusters={'user': [3], 'item': [2, 4]})
    >>> layout.columns('user', 1)
    slice(3, 8, None)
    >>> layout.dtypes['user'].itemsize
    108

    Args:
        num_recent (int): Length of the lists of last neighbors.
        num_clusters (Mapping[str, Sequence[int]]): For :obj:`"user"` and :obj:`"item"`, the number
            of its clusters at each resolution, by which rows of the other type count.

    Attributes:
        dtypes (dict[str, numpy.dtype]): The type of a row of :obj:`"user"` and :obj:`"item"`, all
            of it in words of four bytes, whose order is written out.
    """

    def __init__(self, num_recent: int, num_clusters: Mapping[str, Sequence[int]]) -> None:
        check_integers(1, num_recent=num_recent)
        check_keys(('user', 'item'), num_clusters=num_clusters)
        for node_type, numbers in num_clusters.items():
            name = f'num_clusters[{node_type!r}]'
            if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not numbers:
                raise TypeError(
                    f"'{name}' must be a sequence of numbers of clusters, one a resolution, such "
                    f'as (20, 200), but got {numbers!r}.'
                )
            check_integers(1, **{f'{name}[{place}]': num for place, num in enumerate(numbers)})
        self.num_recent = num_recent
        self.num_clusters = {name: tuple(num_clusters[name]) for name in ('user', 'item')}
        self.dtypes = {
            node_type: np.dtype(
                [('seen', _WORD), ('recent', '<i4', (num_recent,))]
                + [(name, _WORD, (self._width(neighbor_type),)) for name in _COUNTS]
            )
            for node_type, neighbor_type in NEIGHBOR_TYPE.items()
        }

    def columns(self, node_type: str, resolution: int) -> slice:
        r"""Where the counts of a node type over the clusters of its neighbors at a resolution are:
        one column a cluster, and one for neighbors without.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            resolution (int): Its number, from 0.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        numbers = self.num_clusters[NEIGHBOR_TYPE[node_type]]
        check_integers(0, len(numbers), resolution=resolution)
        start = sum(numbers[:resolution]) + resolution
        return slice(start, start + numbers[resolution] + 1)

    def empty(self, node_type: str, num_rows: int) -> np.ndarray:
        r"""Rows of nodes to which nothing has happened.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            num_rows (int): How many.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_integers(0, num_rows=num_rows)
        rows = np.zeros(num_rows, self.dtypes[node_type])
        rows['recent'] = -1
        return rows

    def _width(self, neighbor_type: str) -> int:
        numbers = self.num_clusters[neighbor_type]
        return sum(numbers) + len(numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowLayout) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_recent={self.num_recent}, num_clusters={self.num_clusters})'
        )


def columns_of(
    layout: RowLayout, node_type: str, clusters: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    r"""The column at which each node counts in the row of a neighbor, at each resolution, shape
    :obj:`[N + 1, S]`, int32; the last row is that of who is in no cluster.

    Args:
        layout (RowLayout): How rows are packed.
        node_type (str): The type of the nodes.
        clusters (Sequence[numpy.ndarray]): For each resolution, the cluster of each node,
            :obj:`-1` for none, shape :obj:`[N]`.
    """
    parts = []
    for resolution, number in enumerate(layout.num_clusters[node_type]):
        start = layout.columns(NEIGHBOR_TYPE[node_type], resolution).start
        cluster = np.append(clusters[resolution], -1).astype(np.int32)
        parts.append(start + np.where(cluster < 0, number, cluster))
    return np.stack(parts, axis=1)


def count_events(
    rows: np.ndarray,
    place: np.ndarray,
    neighbor: np.ndarray,
    columns: np.ndarray,
    clicked: np.ndarray,
    is_new_pair: np.ndarray,
) -> None:
    r"""Counts events in the rows of one side of them, in the order of the log. What is refused
    leaves no trace.

    Args:
        rows (numpy.ndarray): Rows of a :class:`RowLayout`, which are changed in place, contiguous,
            shape :obj:`[N]`.
        place (numpy.ndarray): Which of them each event belongs to, shape :obj:`[E]`.
        neighbor (numpy.ndarray): The node on the other side, shape :obj:`[E]`.
        columns (numpy.ndarray): The column of its cluster among the counts, one a resolution, shape
            :obj:`[E, S]`.
        clicked (numpy.ndarray): Whether it was clicked, boolean, shape :obj:`[E]`.
        is_new_pair (numpy.ndarray): Whether it is the first click of this pair, boolean, shape
            :obj:`[E]`.

    Raises:
        OverflowError: If a row would have had more events than 32 bits count.
    """
    if len(place) == 0:
        return
    # All other counts are at most this one.
    seen = rows['seen'] + np.bincount(place, minlength=len(rows))
    if seen.max() > _MOST:
        raise OverflowError(
            f'A row counts up to {_MOST} events of a node, but row {seen.argmax()} of {len(rows)} '
            f'would have {seen.max()}.'
        )
    rows['seen'] = seen
    words = rows.view(_WORD)
    width = len(words) // len(rows)
    # Where the counts begin in a row follows from these, as all of it is words.
    num_columns, num_recent = rows['exposures'].shape[1], rows['recent'].shape[1]
    place = place.astype(np.int64)
    is_any = np.ones(len(place), bool)
    for number, is_counted in enumerate((is_any, clicked, is_new_pair)):
        first = place[is_counted] * width + 1 + num_recent + number * num_columns
        np.add.at(words, (first[:, None] + columns[is_counted]).reshape(-1), _ONE)
    _append_recent(rows, place[clicked], neighbor[clicked])


def count_cells(
    cells: Mapping[tuple[int, int], np.ndarray],
    layout: RowLayout,
    columns: Mapping[str, np.ndarray],
    clicked: np.ndarray,
) -> None:
    r"""Counts events between the clusters of users and of items.

    Args:
        cells (Mapping[tuple[int, int], numpy.ndarray]): By a resolution of users and one of items,
            exposures and clicks, which are changed in place, shape :obj:`[C + 1, D + 1, 2]`; who is
            in no cluster is last.
        layout (RowLayout): How rows are packed.
        columns (Mapping[str, numpy.ndarray]): For :obj:`"user"` and :obj:`"item"`, the column at
            which that of each event counts, one a resolution, shape :obj:`[E, S]`.
        clicked (numpy.ndarray): Whether it was clicked, boolean, shape :obj:`[E]`.
    """
    for (s, t), table in cells.items():
        place = tuple(
            columns[node][:, resolution] - layout.columns(NEIGHBOR_TYPE[node], resolution).start
            for node, resolution in (('user', s), ('item', t))
        )
        np.add.at(table[..., 0], place, 1)
        np.add.at(table[..., 1], place, clicked)


def _append_recent(rows: np.ndarray, place: np.ndarray, neighbor: np.ndarray) -> None:
    touched, row = np.unique(place, return_inverse=True)
    recent = rows['recent'][touched]
    # Who was there before comes first.
    is_there = recent >= 0
    row = np.concatenate([is_there.nonzero()[0], row])
    order = row.argsort(kind='stable')
    neighbor = np.concatenate([recent[is_there], neighbor])[order]
    rows['recent'][touched] = last_neighbors(
        torch.from_numpy(row[order]), torch.from_numpy(neighbor), len(touched), recent.shape[1]
    ).numpy()
