from collections.abc import Mapping

import numpy as np

from mag.store.kernels.partition_events import PLACE
from mag.store.layout import partition_size, partition_starts
from mag.store.units import Units


class Partitions:
    r"""The events of a build, by partition of their users and of their items, see
    :mod:`mag.store.layout`.

    Args:
        units (Units): What ran the units that wrote them.
        num_nodes (dict[str, int]): The number of users and items.
        num_partitions (dict[str, int]): Of users and of items, a power of two.
        num_windows (int): The number of windows.
        num_segments (int): How many files there are of either.
    """

    def __init__(
        self,
        units: Units,
        num_nodes: Mapping[str, int],
        num_partitions: Mapping[str, int],
        num_windows: int,
        num_segments: int,
    ) -> None:
        self.num_nodes, self.num_partitions = dict(num_nodes), dict(num_partitions)
        self.num_windows = num_windows
        self.num_segments = num_segments
        self._units = units
        self._files: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def records(self, node_type: str, partition: int) -> list[np.ndarray]:
        r"""The events of the nodes of a partition, in the order of time one array after the other,
        mapped; see :func:`~mag.store.kernels.partition_events`."""
        ends = (
            (record, *offset[partition : partition + 2])
            for record, offset in self._segments(node_type)
        )
        return [record[start:end] for record, start, end in ends if end > start]

    def _segments(self, node_type: str) -> list[tuple[np.ndarray, np.ndarray]]:
        r"""The events of each run of the log, mapped, and where its partitions begin."""
        if node_type not in self._files:
            self._files[node_type] = [
                (self._units.read(f'{path}.npy'), np.array(self._units.read(f'{path}_offset.npy')))
                for path in (self.segment(node_type, place) for place in range(self.num_segments))
            ]
        return self._files[node_type]

    def num_events(self, node_type: str) -> np.ndarray:
        r"""How many events each partition has, int64, shape :obj:`[P]`."""
        offsets = [offset for _, offset in self._segments(node_type)]
        return np.diff(np.sum(offsets, axis=0))

    def events_of_nodes(self, node_type: str, partition: int) -> tuple[np.ndarray, np.ndarray]:
        r"""How many events and how many clicks each node of a partition has, int64, shape
        :obj:`[n]` each."""
        size = self.size(node_type, partition)
        events, clicks = np.zeros((2, size), np.int64)
        for record in self.records(node_type, partition):
            place = (record >> np.uint64(PLACE)).astype(np.int64)
            events += np.bincount(place, minlength=size)
            is_click = (record & np.uint64(1)).astype(np.bool_)
            clicks += np.bincount(place[is_click], minlength=size)
        return events, clicks

    def size(self, node_type: str, partition: int) -> int:
        r"""The number of nodes of a partition."""
        return partition_size(self.num_nodes[node_type], self.num_partitions[node_type], partition)

    def base(self, node_type: str) -> np.ndarray:
        r"""The row where each partition begins, int64, shape :obj:`[P]`."""
        return partition_starts(self.num_nodes[node_type], self.num_partitions[node_type])[:-1]

    @staticmethod
    def segment(node_type: str, place: int) -> str:
        r"""The files of one run of the log, without their ends."""
        return f'work/map/{node_type}/{place:06}'
