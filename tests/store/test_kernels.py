import copy
import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import MacroNodes, MacroRows, SparseCounts
from mag.macro_graph.last_neighbors import last_neighbors
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES
from mag.store.kernels import (
    NodeCounts,
    code_type,
    count_partition,
    gather_rows,
    gather_second,
    neighbor_rows,
    partition_events,
    second_hop,
)
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

NUM = {'user': 37, 'item': 19}
NUM_CLUSTERS = {'user': 5, 'item': 3}
NUM_RECENT = 4


class Log(NamedTuple):
    r"""Events in the order of time, and what is known of their nodes."""

    node: dict[str, Tensor]
    window: Tensor
    click: Tensor
    macro: dict[str, MacroNodes]
    num_windows: int


def random_log(seed: int, num_windows: int, num_events: int = 2000) -> Log:
    r"""A log with repeated pairs, ties, events after the last cutoff, nodes without events, and
    nodes whose cluster is known later or never."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    node = {name: draw(number - 3, num_events) for name, number in NUM.items()}
    macro = {
        name: MacroNodes(
            draw(NUM_CLUSTERS[name] + 1, number) - 1,
            NUM_CLUSTERS[name],
            (draw(2 * num_windows + 1, number) - num_windows).clamp_min(0),
        )
        for name, number in NUM.items()
    }
    window = draw(num_windows + 1, num_events).sort().values
    return Log(node, window, draw(3, num_events) == 0, macro, num_windows)


class Counted(NamedTuple):
    r"""What the kernels tell of all nodes of a type, in the order of nodes."""

    exposures: np.ndarray
    clicks: np.ndarray
    pairs: np.ndarray
    second: np.ndarray
    recent: np.ndarray


def by_kernels(
    log: Log,
    num: dict[str, int],
    num_partitions: dict[str, int],
    num_pieces: int = 1,
    num_recent: int = NUM_RECENT,
) -> dict[str, Counted]:
    r"""Counts as a build does: events in pieces, nodes by partition, then two hops."""
    pieces = []
    for rows in torch.arange(log.window.numel()).tensor_split(num_pieces):
        user, item = (log.node[name][rows].numpy().astype(np.int32) for name in ('user', 'item'))
        window, click = log.window[rows].numpy().astype(np.uint8), log.click[rows].numpy()
        pieces.append(partition_events(user, item, window, click, num_partitions, log.num_windows))
    parts: dict[str, list[NodeCounts]] = {}
    rows_of = {}
    for name, other in NEIGHBOR_TYPE.items():
        macro, of = log.macro[other], [piece[name] for piece in pieces]
        window = None if macro.window is None else macro.window.numpy().astype(np.uint8)
        parts[name], offsets, data = [], [], []
        first_word = 0
        for part in range(num_partitions[name]):
            parts[name].append(
                count_partition(
                    [piece.record[slice(*piece.offset[part : part + 2])] for piece in of],
                    len(range(part, num[name], num_partitions[name])),
                    [macro.cluster.numpy().astype(np.int32)],
                    [window],
                    log.num_windows,
                    [macro.number],
                    num_recent,
                )
            )
            counts = parts[name][-1]
            increments = counts.indptr[0], counts.code[0], counts.count[0]
            rows = neighbor_rows(*increments, log.num_windows, macro.number, first_word)
            offsets.append(rows.offset[:-1])
            data.append(rows.data)
            first_word = int(rows.offset[-1]) >> 2
        offsets.append(rows.offset[-1:])
        sizes = [len(part.recent) for part in parts[name]]
        base = np.cumsum([0, *sizes[:-1]])
        rows_of[name] = np.concatenate(offsets), np.concatenate(data), base
    found = {}
    for name, other in NEIGHBOR_TYPE.items():
        found[name] = Counted(
            *(
                by_node(
                    [
                        every_row(of, kind, log.num_windows, log.macro[other].number)
                        for of in parts[name]
                    ],
                    num[name],
                )
                for kind in ('exposures', 'clicks', 'pairs')
            ),
            by_node(
                [
                    every_second(of, rows_of[other], log.num_windows, log.macro[name].number)
                    for of in parts[name]
                ],
                num[name],
            ),
            by_node([of.recent for of in parts[name]], num[name]),
        )
    return found


def by_node(parts: list[np.ndarray], num_nodes: int) -> np.ndarray:
    found = np.empty((num_nodes, *parts[0].shape[1:]), parts[0].dtype)
    for place, part in enumerate(parts):
        found[place :: len(parts)] = part
    return found


def places(num_nodes: int, num_windows: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat(np.arange(num_nodes), num_windows),
        np.tile(np.arange(num_windows), num_nodes),
    )


def every_row(counts: NodeCounts, kind: str, num_windows: int, num_clusters: int) -> np.ndarray:
    num_nodes = len(counts.recent)
    increments = counts.indptr[0], counts.code[0], counts.count[0]
    table = gather_rows(
        *increments, *places(num_nodes, num_windows), num_windows, num_clusters, kind
    )
    return table.reshape(num_nodes, num_windows, num_clusters)


def every_second(
    counts: NodeCounts, rows: tuple[np.ndarray, ...], num_windows: int, num_clusters: int
) -> np.ndarray:
    pairs = counts.pairs_indptr, counts.pairs_neighbor, counts.pairs_window
    second = second_hop(*pairs, *rows, num_windows, num_clusters)
    return gather_second(*second, *places(len(second.table), num_windows)).reshape(
        second.table.shape
    )


def dense(
    edges: tuple[Tensor, Tensor], num_nodes: int, num_clusters: int, num_windows: int
) -> Tensor:
    r"""The counts of an edge type, shape [N, S, M]."""
    (macro, node), weight = edges
    table = torch.zeros(num_nodes, num_clusters, num_windows)
    table[node, macro] = weight.view(-1, num_windows)
    return table.transpose(1, 2)


def in_memory(log: Log, num: dict[str, int]) -> dict[str, Counted]:
    is_known = log.window < log.num_windows
    edges, window = torch.stack(list(log.node.values())), log.window
    click = is_known & log.click
    events = SparseCounts(edges[:, is_known], window[is_known], log.num_windows, num, binary=False)
    clicks = SparseCounts(edges[:, click], window[click], log.num_windows, num, binary=False)
    pairs = SparseCounts(edges[:, click], window[click], log.num_windows, num, binary=True)
    found = {}
    for row, (name, other) in enumerate(NEIGHBOR_TYPE.items()):
        of = num[name], log.macro[other].number, log.num_windows
        order = edges[row, click].argsort(stable=True)
        recent = last_neighbors(
            edges[row, click][order],
            edges[1 - row, click][order],
            num[name],
            NUM_RECENT,
            window[click][order],
            log.num_windows,
        )
        found[name] = Counted(
            *(
                dense(counts.hop(name, 1, log.macro[other], 'walk'), *of).numpy()
                for counts in (events, clicks, pairs)
            ),
            dense(
                pairs.hop(name, 2, log.macro[name], 'walk'),
                num[name],
                log.macro[name].number,
                log.num_windows,
            ).numpy(),
            recent.numpy(),
        )
    return found


def assert_same(found: dict[str, Counted], expected: dict[str, Counted]) -> None:
    for name, counted in found.items():
        for kind, ours, theirs in zip(Counted._fields, counted, expected[name], strict=True):
            np.testing.assert_array_equal(ours, theirs, f'{kind} of {name}')


@pytest.mark.parametrize('num_windows', [1, 3, 12])
@pytest.mark.parametrize(('num_users', 'num_items', 'num_pieces'), [(1, 1, 1), (4, 2, 3)])
def test_kernels_count_as_memory_does(
    num_windows: int, num_users: int, num_items: int, num_pieces: int
) -> None:
    for seed in range(5):
        log = random_log(seed, num_windows)
        found = by_kernels(log, NUM, {'user': num_users, 'item': num_items}, num_pieces)
        expected = in_memory(log, NUM)
        assert_same(found, expected)
        for of in expected.values():
            assert (of.exposures.sum() > of.clicks.sum() > of.pairs.sum() > 0) and of.second.any()


def test_more_partitions_than_nodes_and_a_log_of_nothing() -> None:
    log = random_log(0, 2)
    assert_same(by_kernels(log, NUM, {'user': 64, 'item': 32}), in_memory(log, NUM))
    none = log._replace(window=torch.full_like(log.window, 2))
    for of in by_kernels(none, NUM, {'user': 4, 'item': 1}).values():
        assert not any(table.any() for table in of[:4]) and (of.recent == -1).all()


def coarse_log() -> HeteroData:
    r"""A log whose nodes appear one after the other, several events a second."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(3000) // 7
    share = (time + 200) / 700
    user = (torch.rand(3000, generator=generator) * share * NUM['user']).long()
    item = (torch.rand(3000, generator=generator) * share * NUM['item']).long()
    label = (torch.rand(3000, generator=generator) < 0.1 + 0.5 * (user % 3 == item % 3)).float()
    data = HeteroData()
    for name, number in NUM.items():
        data[name].num_nodes = number
    data['item'].category, data['item'].num_category = torch.arange(NUM['item']) % 4, 4
    clicks = data[CLICKS]
    clicks.edge_index, clicks.time = torch.stack([user, item])[:, label == 1], time[label == 1]
    clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), label
    clicks.edge_label_time = time
    return data


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
@pytest.mark.parametrize('num_windows', [1, 6])
@pytest.mark.parametrize('item', ['category', 3])
def test_kernels_count_what_transforms_do(num_windows: int, item: int | str) -> None:
    data = coarse_log()
    train, _, _ = TemporalSplit(0.3, 0.7, 0.85, num_windows)(data)
    groups: dict[str, int | str] = {'user': 4, 'item': item}
    coarsen = MacroCoarsen(groups).fit(train)
    of_events = copy.copy(coarsen)
    of_events.binary = False
    binary, events = RecentNeighbors(NUM_RECENT)(coarsen(train)), of_events(train)
    cutoff = train[CLICKS].cutoff
    macro = {}
    for name in NUM:
        since = binary[name].get('cluster_since')
        window = None if since is None else torch.searchsorted(cutoff, since)
        macro[name] = MacroNodes(binary[name].cluster, binary[MACRO[name]].num_nodes, window)
    clicks = data[CLICKS]
    log = Log(
        dict(zip(NUM, clicks.edge_label_index, strict=True)),
        torch.bucketize(clicks.edge_label_time, cutoff, right=True),
        clicks.edge_label == 1,
        macro,
        num_windows,
    )
    rows = MacroRows(binary)
    expected = {}
    for name, other in NEIGHBOR_TYPE.items():
        of = NUM[name], macro[other].number, num_windows
        edges = [events[MACRO[other], relation, name] for relation in ('sees1', 'hop1')]
        expected[name] = Counted(
            *(dense((e.edge_index, e.edge_weight), *of).numpy() for e in edges),
            *(hop.view(NUM[name], num_windows, -1).numpy() for hop in rows.hops[name]),
            rows.recent[name].view(NUM[name], num_windows, -1).numpy(),
        )
    assert SEES in train.edge_types
    assert_same(by_kernels(log, NUM, {'user': 2, 'item': 2}), expected)


def complete_log(num_users: int, num_items: int, repeats: int = 1) -> Log:
    r"""Each user clicks each item, in one window, over one cluster each."""
    user = torch.arange(num_users).repeat_interleave(num_items).repeat(repeats)
    item = torch.arange(num_items).repeat(num_users * repeats)
    macro = {
        name: MacroNodes(torch.zeros(number, dtype=torch.long), 1)
        for name, number in (('user', num_users), ('item', num_items))
    }
    click = torch.ones(user.shape, dtype=torch.bool)
    return Log({'user': user, 'item': item}, torch.zeros_like(user), click, macro, 1)


@pytest.mark.parametrize('num_items', [254, 255, 256, 257, 600])
def test_counts_beyond_their_bytes_are_exact(num_items: int) -> None:
    # At 255 items the counts of two hops are 65,535, which stands for a count elsewhere.
    log = complete_log(257, num_items, repeats=2)
    found = by_kernels(log, {'user': 257, 'item': num_items}, {'user': 2, 'item': 1}, num_recent=0)
    for name, degree in (('user', num_items), ('item', 257)):
        of = found[name]
        assert (of.exposures == 2 * degree).all() and (of.clicks == 2 * degree).all()
        assert (of.pairs == degree).all() and (of.second == 257 * num_items).all()


def increments(counts: list[list[int]], num_windows: int) -> tuple[np.ndarray, ...]:
    r"""First clicks of pairs, one row a node, one column a window of the one cluster."""
    code, count, ends = [], [], [0]
    for row in counts:
        for window, number in enumerate(row):
            pieces = [255] * (number // 255) + [number % 255] * (number % 255 > 0)
            code += [window * 3 + 2] * len(pieces)
            count += pieces
        ends.append(len(code))
    types = np.uint64, code_type(num_windows, 1), np.uint8
    return tuple(np.array(of, dtype) for of, dtype in zip((ends, code, count), types, strict=True))


def test_rows_take_the_least_type_that_holds_them() -> None:
    counts = [[1, 0], [3, 255], [300, 65_535], [2, 65_536], [0, 0]]
    rows = neighbor_rows(*increments(counts, 2), 2, 1)
    # A table of up to twice the bytes of a list is taken.
    assert (rows.offset & np.uint64(3)).tolist() == [1, 1, 2, 3, 0, 0]
    assert (rows.offset >> np.uint64(2)).tolist() == [0, 1, 2, 3, 5, 5]
    assert rows.data.view(np.uint8)[:8].tolist() == [1, 0, 0, 0, 3, 255, 0, 0]
    assert rows.data.view(np.uint16)[4:6].tolist() == [300, 65_535]
    assert rows.data[3:].tolist() == [2, 65_536]
    (word,) = neighbor_rows(*increments([[0, 9]], 9), 9, 1, first_word=7).data
    assert word == 1 << 8 | 9


@pytest.mark.parametrize('count', [200, 60_000, 70_000])
def test_sums_of_two_hops_do_not_wrap(count: int) -> None:
    # More than 32 bits hold, of rows of each type.
    num_pairs = 2**32 // count + 5
    rows = neighbor_rows(*increments([[count, 1]], 2), 2, 1)
    assert rows.offset[0] & np.uint64(3) == {200: 1, 60_000: 2, 70_000: 3}[count]
    pairs = np.array([0, num_pairs], np.uint64), np.zeros(num_pairs, np.int32)
    base = np.zeros(1, np.int64)
    second = second_hop(*pairs, np.zeros(num_pairs, np.uint8), *rows, base, 2, 1)
    assert second.table.tolist() == [[[65_535], [65_535]]]
    assert second.over_index.tolist() == [0, 1]
    assert second.over_count.tolist() == [num_pairs * count, num_pairs * (count + 1)]


def test_a_part_of_the_nodes_is_written_where_it_belongs() -> None:
    log = complete_log(300, 300)
    user, item = (of.numpy() for of in log.node.values())
    window, click = np.zeros(len(user), np.uint8), log.click.numpy()
    records = partition_events(user, item, window, click, {'user': 1, 'item': 1}, 1)
    cluster = np.zeros(300, np.int32)
    counts = {
        name: count_partition([of.record], 300, [cluster], [None], 1, [1], 0)
        for name, of in records.items()
    }
    of_items = counts['item']
    rows = neighbor_rows(of_items.indptr[0], of_items.code[0], of_items.count[0], 1, 1)
    of_users = counts['user']
    table = np.zeros((300, 1, 1), np.uint16)
    pairs = of_users.pairs_neighbor, of_users.pairs_window
    base = np.zeros(1, np.int64)
    part = slice(100, 103)
    indptr = of_users.pairs_indptr[100:104]
    second = second_hop(indptr, *pairs, *rows, base, 1, 1, out=table[part])
    assert (table[part] == 65_535).all() and table.sum() == 3 * 65_535
    assert second.over_index.tolist() == [0, 1, 2] and (second.over_count == 90_000).all()
    for out in (np.zeros((2, 1, 1), np.uint16), np.zeros((3, 1, 1), np.int64)):
        with pytest.raises(ValueError, match=r"'out' of uint16 and shape \[3, 1, 1\], but got"):
            second_hop(indptr, *pairs, *rows, base, 1, 1, out=out)


def test_unknown_nodes_have_no_counts() -> None:
    asked = np.array([-1, 0]), np.array([0, 1])
    found = gather_rows(*increments([[4, 3]], 2), *asked, 2, 1, 'pairs')
    assert found.tolist() == [[0], [7]] and found.dtype == np.float32
    table, over = np.array([[[3], [65_535]]], np.uint16), (np.array([1]), np.array([70_000]))
    assert gather_second(table, *over, *asked).tolist() == [[0], [70_000]]
    with pytest.raises(ValueError, match="'kind' must be one of 'exposures', 'clicks', 'pairs'"):
        gather_rows(*increments([[4, 3]], 2), *asked, 2, 1, 'click')


def partition(**changed: object) -> None:
    one = np.zeros(1, np.int64)
    arguments = {
        'user': one, 'item': one, 'window': one, 'click': one == 0,
        'num_partitions': {'user': 1, 'item': 1}, 'num_windows': 1,
    }  # fmt: skip
    partition_events(**{**arguments, **changed})  # type: ignore[arg-type]


def count(*records: int, num_nodes: int = 2) -> None:
    cluster = np.zeros(3, np.int32)
    record = np.array(records, np.uint64)
    count_partition([record], num_nodes, [cluster], [None], 2, [1], 1)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (
            lambda: partition(num_partitions={'user': 3, 'item': 1}),
            ValueError,
            r"'num_partitions\['user'\]' must be a power of two, but got 3\.",
        ),
        (
            lambda: partition(num_windows=128),
            ValueError,
            r"'num_windows' must lie below 128, but got 128\.",
        ),
        (
            lambda: partition(item=np.array([2**24])),
            ValueError,
            r'A partition holds at most 16,777,216 items, but item 16,777,216 is in one of 1 '
            r"partitions: take a larger 'num_partitions\['item'\]'\.",
        ),
        (
            lambda: partition(user=np.array([0, 1])),
            ValueError,
            r'partition_events expects as many users as items, windows and clicks, but got 2, 1, 1 '
            r'and 1\.',
        ),
        (
            lambda: partition(item=np.array([-1])),
            IndexError,
            r'partition_events found item ids from -1, but expected them from 0\.',
        ),
        (
            lambda: count(2 << 40),
            IndexError,
            r'count_partition found nodes up to 2, but expected them up to 1\.',
        ),
        (
            lambda: count(3 << 8),
            IndexError,
            r'count_partition found neighbors up to 3, but expected them up to 2\.',
        ),
        (
            lambda: count(1 << 40 | 1 << 1, 1 << 40),
            ValueError,
            r'count_partition expects events in the order of windows, but those of node 1 of the '
            r'partition are not: sort the log by time\.',
        ),
        (
            lambda: code_type(127, 2**22 + 1),
            ValueError,
            r"'num_clusters' must lie below 4194305, but got 4194305\.",
        ),
        (
            lambda: neighbor_rows(*increments([[1]], 1), 1, 2**17 + 1),
            ValueError,
            r"'num_clusters' must lie below 131073, but got 131073\.",
        ),
    ],
)
def test_bad_input(call: Callable[[], None], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f'^{sentence}$'):
        call()


def test_codes_take_the_least_type_that_holds_them() -> None:
    assert code_type(1, 21_845) == np.uint16 and code_type(1, 21_846) == np.uint32
    assert np.iinfo(code_type(127, 2**22)).max >= 127 * 2**22 * 3
    # The last code of the most clusters, and the first: no rounding where rows are read.
    code = np.array([2, (2**22 * 127 - 1) * 3 + 2], np.uint32)
    arguments = np.array([0, 2], np.uint64), code, np.ones(2, np.uint8)
    found = gather_rows(*arguments, np.array([0]), np.array([126]), 127, 2**22, 'pairs')
    assert found[0].nonzero()[0].tolist() == [0, 2**22 - 1]


def test_who_lacks_numba_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'numba', None)
    monkeypatch.delitem(sys.modules, 'mag.store.kernels._compile')
    sentence = r"numba, which the extra 'scale' installs: pip install 'pyg-mag\[scale\]'\.$"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        importlib.import_module('mag.store.kernels._compile')
