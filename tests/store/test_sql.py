from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from torch import Tensor

from mag.macro_graph import TargetView, target_views
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE
from mag.store import sql
from mag.store.kernels import partition_events
from mag.transforms import RecentNeighbors, TargetCounts

NUM_RECENT = 3
Engine = Callable[[str, Mapping[str, pyarrow.Table]], dict[str, Tensor]]


def test_distinct_pairs_and_their_first_windows(case: Any, engine: Engine) -> None:
    got = engine(sql.distinct_pairs('log', case.cutoffs), case.tables(case.events))
    clicks = case.part[CLICKS]
    window = torch.bucketize(clicks.time, torch.tensor(case.cutoffs), right=True)
    expected: dict[tuple[int, int], int] = {}
    for user, item, step in zip(*clicks.edge_index.tolist(), window.tolist()):
        expected.setdefault((user, item), step)
    pairs = zip(got['user'].tolist(), got['item'].tolist(), strict=True)
    assert dict(zip(pairs, got['first_window'].tolist(), strict=True)) == expected
    assert got['user'].numel() == len(expected) < window.numel()


@pytest.mark.parametrize('node_type', MACRO)
@pytest.mark.parametrize('place', [0, 1])
def test_hop_one_is_that_of_macro_coarsen(
    case: Any, engine: Engine, node_type: str, place: int
) -> None:
    neighbor = NEIGHBOR_TYPE[node_type]
    of = [of for of in case.resolutions if of.node_type == neighbor][place]
    query = sql.hop_one('log', f'{neighbor}_clusters', node_type, case.cutoffs, of.cluster)
    of_events, of_pairs = (engine(query, case.tables(data)) for data in (case.events, case.pairs))
    for data, got, relation, column in (
        (case.events, of_events, 'sees1', 'exposures'),
        (case.events, of_events, 'hop1', 'clicks'),
        (case.pairs, of_pairs, 'hop1', 'pairs'),
    ):
        edges = data[of.macro, relation, node_type]
        shape = data[node_type].num_nodes, data[of.macro].num_nodes
        expected = case.dense(*edges.edge_index, edges.edge_weight, shape)
        counts = torch.zeros_like(expected)
        counts[got['node'], got['cluster'], got['first_window']] = got[column].float()
        assert torch.equal(counts.cumsum(2), expected), column
        assert expected.sum() > 0


@pytest.mark.parametrize('node_type', MACRO)
def test_recents_are_those_of_recent_neighbors(case: Any, engine: Engine, node_type: str) -> None:
    got = engine(sql.recents('log', node_type, case.cutoffs, NUM_RECENT), case.tables(case.events))
    recent = RecentNeighbors(NUM_RECENT)(case.part)[node_type].recent
    expected = recent.view(-1, len(case.cutoffs), NUM_RECENT)
    lists = torch.full_like(expected, -1)
    lists[got['node'], got['as_of'], NUM_RECENT - got['age']] = got['neighbor']
    assert torch.equal(lists, expected)
    assert got['node'].numel() == int((expected >= 0).sum())


@pytest.mark.parametrize('fresh', [False, True])
def test_counts_at_the_target_are_those_of_target_counts(
    case: Any, engine: Engine, fresh: bool
) -> None:
    part = case.events
    transform = TargetCounts().fit(part)
    clicks = transform(part, log=case.log if fresh else None)[CLICKS]
    make_rows = sql.fresh_rows if fresh else sql.stale_rows
    views = target_views(['cluster', 'cluster_2'], ['cluster', 'cluster_4'])
    query = sql.target_counts(
        'log',
        make_rows('log', case.cutoffs),
        {name: f'{name}_clusters' for name in MACRO},
        views,
        case.cutoffs,
    )
    assert clicks.count_names == [view.name for view in views]
    got = engine(query, case.tables(case.events))
    counts = torch.stack(
        [
            torch.stack([got[f'{name}_{place}'] for name in ('exposures', 'clicks')], dim=1)
            for place in range(len(views))
        ],
        dim=1,
    )
    asked = case.log[CLICKS].edge_label_time >= case.cutoffs[0]
    assert torch.equal(got['log_row'].sort().values, asked.nonzero().view(-1))
    place = torch.zeros(asked.numel(), dtype=torch.long)
    place[got['log_row']] = torch.arange(got['log_row'].numel())
    assert torch.equal(counts[place[clicks.edge_label_log_row]].float(), clicks.edge_label_counts)


def test_records_are_those_of_the_kernel(case: Any, engine: Engine) -> None:
    label, number = case.log[CLICKS], {'user': 4, 'item': 2}
    tables = case.tables(case.events)
    user, item = label.edge_label_index.numpy()
    cutoff = torch.tensor(case.cutoffs)
    window = torch.bucketize(label.edge_label_time, cutoff, right=True).numpy()
    clicked = label.edge_label.bool().numpy()
    expected = partition_events(user, item, window, clicked, number, len(cutoff))
    for node_type, (record, offset) in expected.items():
        query = sql.records('log', node_type, case.cutoffs, number[node_type])
        got = {name: column.numpy() for name, column in engine(query, tables).items()}
        order = np.lexsort((got['log_row'], got['time'], got['partition_number']))
        assert np.array_equal(got['record'][order].view(np.uint64), record)
        sizes = np.bincount(got['partition_number'], minlength=number[node_type])
        assert np.array_equal(sizes, np.diff(offset))


def test_a_log_has_what_counts_may_differ_in(case: Any) -> None:
    index, time = case.log[CLICKS].edge_label_index, case.log[CLICKS].edge_label_time
    assert time.unique().numel() < time.numel() / 5
    assert index.unique(dim=1).size(1) < index.size(1)
    assert case.part[CLICKS].edge_index[0].unique().numel() < case.part['user'].num_nodes
    if len(case.cutoffs) > 1:
        assert all((case.macro(case.events, of).window > 0).any() for of in case.resolutions[:2])


@pytest.mark.parametrize(
    ('make', 'match'),
    [
        (lambda: sql.distinct_pairs('log', [5, 5]), r'ascend, int seconds, but got \[5, 5\]\.'),
        (lambda: sql.fresh_rows('log', []), r'ascend, int seconds, but got \[\]\.'),
        (lambda: sql.hop_one('log', 'c', 'macro', [5]), "'user', 'item', but got 'macro'"),
        (lambda: sql.recents('log', 'user', [5], 0), "'num_recent' must be at least 1"),
        (lambda: sql.records('log', 'user', [5], 3), "'num_partitions' must be one of 1, 2, 4"),
        (
            lambda: sql.target_counts('log', 'r', {}, [TargetView(exposure='hour')], [5]),
            "'hour' names an attribute of exposures: count it with TargetCounts",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
