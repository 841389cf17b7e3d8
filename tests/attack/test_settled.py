r"""What is learned from was known when the next part began: labels that settle later are changed,
and training and validation stay the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import EventLog
from mag.loader import PathSampler
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit, window

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
NUM_USERS, NUM_ITEMS = 3, 4


class Exposure(NamedTuple):
    time: int
    # From the exposure until it is known whether it was clicked.
    delay: int
    user: int
    item: int
    is_clicked: bool
    # Whether the other future changes what is not yet known.
    is_other: bool


EXPOSURES = st.lists(
    st.builds(
        Exposure,
        st.integers(0, 20),
        st.integers(0, 9),
        st.integers(0, NUM_USERS - 1),
        st.integers(0, NUM_ITEMS - 1),
        st.booleans(),
        st.booleans(),
    ),
    min_size=12,
    max_size=24,
)
SPLITS = st.builds(
    TemporalSplit,
    train_start=st.just(0.2),
    val_start=st.just(0.6),
    test_start=st.just(0.8),
    num_windows=st.sampled_from([1, 3]),
    keep_cold=st.booleans(),
)


def log_of(rows: list[Exposure], is_clicked: Tensor) -> HeteroData:
    time, delay, user, item = torch.tensor([row[:4] for row in rows]).t()
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = NUM_USERS, NUM_ITEMS
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack([user, item])
    clicks.edge_label, clicks.edge_label_time = is_clicked.float(), time
    clicks.edge_label_settled = time + delay
    # A click happens when it is known.
    order = clicks.edge_label_settled[is_clicked].argsort(stable=True)
    clicks.edge_index = clicks.edge_label_index[:, is_clicked][:, order]
    clicks.time = clicks.edge_label_settled[is_clicked][order]
    return data


def parts_of(data: HeteroData, split: TemporalSplit) -> tuple[HeteroData, ...]:
    try:
        return split(data)
    except ValueError as error:
        if 'leaves no' in str(error) or 'windows' in str(error):
            reject()
        raise


def check_settled(rows: list[Exposure], split: TemporalSplit) -> None:
    rows = sorted(rows, key=lambda row: row.time)
    is_clicked = torch.tensor([row.is_clicked for row in rows])
    is_other = torch.tensor([row.is_other for row in rows])
    log = log_of(rows, is_clicked)
    parts = parts_of(log, split)
    for place, (part, following) in enumerate(zip(parts, parts[1:])):
        end = following[CLICKS].cutoff.min()
        is_open = log[CLICKS].edge_label_settled >= end
        other = log_of(rows, is_clicked ^ (is_other & is_open))
        again = parts_of(other, split)[place]
        for name, value in part[CLICKS].items():
            same = again[CLICKS][name]
            assert torch.equal(value, same) if isinstance(value, Tensor) else value == same, name


def test_labels_of_a_part_were_known_when_the_next_began(attack: Callable[..., Any]) -> None:
    attack(check_settled, EXPOSURES, SPLITS, examples=150)


def test_labels_known_later_are_caught(
    attack: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TemporalSplit, '_next_start', lambda *_: torch.tensor(torch.iinfo(torch.long).max)
    )
    with pytest.raises(AssertionError):
        attack(check_settled, EXPOSURES, SPLITS, examples=60, shrink=False)


def test_clusters_know_no_click_that_happened_later() -> None:
    rows = draw_rows(80)
    is_clicked = torch.tensor([row.is_clicked for row in rows])
    log, split = log_of(rows, is_clicked), TemporalSplit(0.4, 0.6, 0.8, num_windows=1)
    train = split(log)[0]
    is_open = log[CLICKS].edge_label_settled >= train[CLICKS].cutoff
    is_early = log[CLICKS].edge_label_time < train[CLICKS].cutoff
    assert bool((is_open & is_early & is_clicked).any())
    other = split(log_of(rows, is_clicked ^ is_open))[0]
    coarsen = MacroCoarsen({'user': 2, 'item': 3})
    first, second = (copy.copy(coarsen).fit(part) for part in (train, other))
    for name in ('user', 'item'):
        assert torch.equal(first.cluster[name], second.cluster[name])
        centroids = (fitted.groupings[name].centroids for fitted in (first, second))
        assert torch.equal(*centroids)


def draw_rows(number: int) -> list[Exposure]:
    r"""Exposures one after another, some of which are known late."""
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randint(high, (number,), generator=draw).tolist() for high in (9, 3, 4, 2)]
    rows = [Exposure(time, *values, True) for time, values in enumerate(zip(*columns))]
    return [row._replace(is_clicked=bool(row.is_clicked)) for row in rows]


def test_no_history_holds_a_click_before_it_is_known_to_be_one(tmp_path: Path) -> None:
    def read(name: str, rows: list[Exposure]) -> HeteroData:
        # No column tells when a click happened.
        lines = ['user,item,time,settled,label']
        for row in rows:
            settled = row.time + row.delay
            lines.append(f'{row.user},{row.item},{row.time},{settled},{int(row.is_clicked)}')
        path = tmp_path / f'{name}.csv'
        path.write_text('\n'.join(lines))
        roles = {role: role for role in lines[0].split(',')}
        return EventLog(tmp_path / name, str(path), roles, log=False)[0]

    rows, split = draw_rows(80), TemporalSplit(0.4, 0.6, 0.8, num_windows=2, keep_cold=True)
    log = read('log', rows)
    coarsen = MacroCoarsen({'user': 2, 'item': 3})
    parts = split(log)
    for place, part in enumerate(parts):
        cutoffs = part[CLICKS].cutoff.tolist()
        for number, cutoff in enumerate(cutoffs):
            # Of all exposures before the cutoff, those that are known later end otherwise.
            is_open = [row.time < cutoff <= row.time + row.delay for row in rows]
            assert any(is_open)
            other = read(
                f'{place}-{number}',
                [
                    row._replace(is_clicked=row.is_clicked ^ flip)
                    for row, flip in zip(rows, is_open)
                ],
            )
            views = window(part, number), window(split(other)[place], number)
            for name in ('edge_index', 'time'):
                first, second = (view[CLICKS][name] for view in views)
                assert torch.equal(first, second)
            for node_type in ('user', 'item'):
                recent = [RecentNeighbors(3)(view)[node_type].recent for view in views]
                assert torch.equal(*recent)
                cluster = [copy.copy(coarsen).fit(view).cluster[node_type] for view in views]
                assert torch.equal(*cluster)
            # A loader with history= reads the whole log.
            (user, item), moment = part[CLICKS].edge_label_index, torch.tensor([cutoff])
            paths = [
                PathSampler(data, {'user': [99], 'item': [99]}, attribute=None, replace=False).draw(
                    user[:1], item[:1], moment, torch.Generator()
                )
                for data in (log, other)
            ]
            for root in ('user', 'item'):
                assert torch.equal(paths[0][root][0], paths[1][root][0])
