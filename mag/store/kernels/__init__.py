r"""What the store counts with: pure functions of arrays, compiled by numba."""

from mag.store.kernels.add_cells import add_cells
from mag.store.kernels.click_windows import click_windows
from mag.store.kernels.count_partition import (
    NodeCounts,
    code_type,
    count_bytes,
    count_partition,
)
from mag.store.kernels.first_clicks import FirstClicks, first_clicks, first_windows
from mag.store.kernels.gather_cells import gather_cells
from mag.store.kernels.gather_rows import gather_rows, gather_second
from mag.store.kernels.neighbor_rows import NeighborRows, neighbor_rows
from mag.store.kernels.partition_events import Records, partition_events
from mag.store.kernels.second_hop import SecondHop, second_hop
from mag.store.kernels.sum_signs import sum_signs

__all__ = [
    'FirstClicks',
    'NeighborRows',
    'NodeCounts',
    'Records',
    'SecondHop',
    'add_cells',
    'click_windows',
    'code_type',
    'count_bytes',
    'count_partition',
    'first_clicks',
    'first_windows',
    'gather_cells',
    'gather_rows',
    'gather_second',
    'neighbor_rows',
    'partition_events',
    'second_hop',
    'sum_signs',
]
