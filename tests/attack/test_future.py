r"""Nothing that a row reads depends on its future.

A log is made twice, with one past and two futures, and each pipeline reads both: everything that
the rows up to the moment of the change read must be the same, to the last bit. Planted leaks,
at the end, are to be caught."""

import copy
import csv
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.cutoff import window_of_click
from mag.datasets import EventLog, MicroVideo
from mag.loader import (
    ExposureFeatures,
    ExposureLoader,
    HistoryLoader,
    PairLoader,
    PathLoader,
    PathSampler,
)
from mag.macro_graph import MacroRows
from mag.models import HyperCTR
from mag.transforms import (
    BehaviorGraph,
    BucketNumbers,
    FieldText,
    InterestHypergraph,
    MacroCoarsen,
    RecentNeighbors,
    SampleNegatives,
    TargetCounts,
    TemporalSplit,
    TimeSlots,
)
from mag.transforms._clock import user_position

CLICKS = ('user', 'clicks', 'item')
MOMENT = 12
# Those of the past, and how many more a future may bring, whose ids come after them.
NUM_NODES = {'user': 4, 'item': 5}
NUM_NEW = 2
NUM_CATEGORIES = 3

Pair = tuple[int, int]
# What a row tells and does not read: at the moment of the change it is of the future.
OUTCOMES = ('label', 'conversion', 'behavior')


class Exposure(NamedTuple):
    user: int
    item: int
    time: int
    label: bool
    # A number from 0 to 7, of which all else about it is made.
    detail: int


class Change(NamedTuple):
    r"""A past, before :obj:`MOMENT`; the exposures of that moment whose outcome is yet to come; and
    two futures, at the moment or after, in the first of which those exposures end as told and in
    the second otherwise."""

    category: list[int]
    past: list[Exposure]
    present: list[Exposure]
    futures: tuple[list[Exposure], list[Exposure]]

    @property
    def num_shared(self) -> int:
        return len(self.past) + len(self.present)

    def rows(self, future: int) -> list[Exposure]:
        r"""All rows of one future, the shared ones first."""
        present = [row._replace(label=row.label ^ bool(future)) for row in self.present]
        return [*self.past, *present, *self.futures[future]]

    def log(self, future: int, with_all_nodes: bool = False) -> HeteroData:
        r"""The log of one future, in the order of time, in which the shared rows come first."""
        rows = sorted(self.rows(future), key=lambda row: row.time)
        user, item, time, label, detail = torch.tensor(rows, dtype=torch.long).view(-1, 5).t()
        data = HeteroData()
        for node_type, node in (('user', user), ('item', item)):
            num_nodes = NUM_NODES[node_type]
            if with_all_nodes:
                num_nodes += NUM_NEW
            elif node.numel() > 0:
                num_nodes = max(num_nodes, int(node.max()) + 1)
            data[node_type].num_nodes = num_nodes
            data[node_type].x = torch.arange(num_nodes) / 8
        num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
        data['user'].group, data['user'].num_group = torch.arange(num_users) % 2, 2
        data['item'].category = torch.tensor(self.category[:num_items])
        data['item'].num_category = NUM_CATEGORIES
        features = torch.arange(2.0 * num_items).view(-1, 2).sin()
        data['item'].x_visual, data['item'].x_audio = features, features.cos()

        clicks, clicked = data[CLICKS], label == 1
        query = torch.stack([detail % 3, detail % 2 - 1], dim=1)
        clicks.edge_index, clicks.time = torch.stack([user, item])[:, clicked], time[clicked]
        clicks.query, clicks.domain = query[clicked], (detail % 2)[clicked]
        clicks.num_query, clicks.num_domain = 3, 2
        clicks.edge_label_index = torch.stack([user, item])
        clicks.edge_label, clicks.edge_label_time = label.float(), time
        clicks.edge_label_query, clicks.edge_label_domain = query, detail % 2
        clicks.edge_label_x = detail.view(-1, 1) / 8
        clicks.edge_label_behavior = (detail.view(-1, 1) // torch.tensor([1, 2]) % 2) * label[
            :, None
        ]
        clicks.edge_label_conversion = detail // 4 * label
        # By which a row is found again in a part.
        clicks.edge_label_row = torch.arange(len(rows))
        return data


def exposures(times: SearchStrategy, number: Pair, num_new: int = 0) -> SearchStrategy:
    r"""From the least to the largest number of rows."""
    return st.lists(
        st.builds(
            Exposure,
            st.integers(0, NUM_NODES['user'] + num_new - 1),
            st.integers(0, NUM_NODES['item'] + num_new - 1),
            times,
            st.booleans(),
            st.integers(0, 7),
        ),
        min_size=number[0],
        max_size=number[1],
    )


@st.composite
def changes(
    draw: st.DrawFn,
    num_past: Pair = (0, 16),
    num_future: Pair = (0, 12),
    num_new: int = NUM_NEW,
    same_times: bool = False,
) -> Change:
    r"""With :obj:`same_times`, the rows of the future are replaced, one for one, at their times:
    the cutoffs of a split are quantiles of all times, which rows that come or go would move."""
    past = draw(exposures(st.integers(0, MOMENT - 1), num_past))
    present = draw(exposures(st.just(MOMENT), (0, 3)))
    times = st.integers(MOMENT, MOMENT + 8)
    # Either future may be one without anybody new.
    new = st.sampled_from([0, num_new])
    first = draw(exposures(times, num_future, draw(new)))
    num_future = (len(first), len(first)) if same_times else num_future
    second = draw(exposures(times, num_future, draw(new)))
    if same_times:
        second = [row._replace(time=other.time) for row, other in zip(second, first, strict=True)]
    category = st.integers(0, NUM_CATEGORIES - 1)
    num_items = NUM_NODES['item'] + NUM_NEW
    return Change(
        draw(st.lists(category, min_size=num_items, max_size=num_items)),
        past,
        present,
        (first, second),
    )


SPLITS = st.builds(
    TemporalSplit,
    train_start=st.just(0.1),
    val_start=st.just(0.75),
    test_start=st.just(0.9),
    num_windows=st.sampled_from([1, 3, 5]),
    keep_cold=st.booleans(),
)
COUNTS = {
    'num_hops': st.integers(1, 3),
    'mode': st.sampled_from(['set', 'walk']),
    'binary': st.booleans(),
}
LEARNED: list[dict[str, int | str]] = [
    {'user': 2, 'item': 'category'},
    {'user': 'group', 'item': 2},
    {'user': 2, 'item': 3},
]
COARSENINGS = st.one_of(
    st.builds(
        MacroCoarsen,
        groups=st.sampled_from(LEARNED),
        behavior=st.sampled_from([None, 'raw']),
        spherical=st.booleans(),
        # Fewer columns than nodes; as many as users, or items, without those who come later; more.
        projection_dim=st.sampled_from([2, 4, 5, 256]),
        **COUNTS,
    ),
    st.builds(MacroCoarsen, groups=st.just({'user': 'group', 'item': 'category'}), **COUNTS),
)
RECENT = st.builds(
    RecentNeighbors, num=st.integers(1, 4), form=st.sampled_from(['paper', 'released'])
)
PATHS = st.fixed_dictionaries(
    {
        'widths': st.just({'user': [3, 1, 2], 'item': [1, 2, 1]}),
        'attribute': st.sampled_from(['category', None]),
        'replace': st.booleans(),
        'seed': st.integers(0, 3),
    }
)
HISTORIES = st.fixed_dictionaries({'length': st.integers(1, 5)})
SLOTS = st.integers(1, 9)


def or_reject(call: Callable[[], Any], *expected: str) -> Any:
    r"""What a call returns. A log that is refused for an expected reason is no example."""
    try:
        return call()
    except ValueError as error:
        if any(reason in str(error) for reason in expected):
            reject()
        raise


def parts_of(log: HeteroData, split: TemporalSplit | None) -> Iterable[HeteroData]:
    r"""The parts of a log, or without a split the whole of it."""
    return [log] if split is None else or_reject(lambda: split(log), 'leaves no')


def tensors_of(value: Any, name: str = '') -> dict[str, Any]:
    r"""All that a batch holds, by name."""
    if isinstance(value, HeteroData):
        stores = {str(kind): value[kind] for kind in (*value.node_types, *value.edge_types)}
        return {
            f'{kind}.{key}': entry for kind, store in stores.items() for key, entry in store.items()
        }
    names = getattr(value, '_fields', range(len(value)))
    found: dict[str, Any] = {}
    for key, entry in zip(names, value, strict=True):
        if isinstance(entry, tuple):
            found |= tensors_of(entry, f'{name}{key}.')
        else:
            found[f'{name}{key}'] = entry
    return found


def assert_same(first: Any, second: Any, with_outcomes: bool = True) -> None:
    first, second = tensors_of(first), tensors_of(second)
    assert list(first) == list(second)
    for name, value in first.items():
        if not with_outcomes and name.endswith((*OUTCOMES, '.edge_label')):
            continue
        if isinstance(value, Tensor):
            assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def check_rows(change: Change, load: Callable[[HeteroData], list[tuple[HeteroData, Any]]]) -> None:
    r"""Compares what rows read in two futures, of each part and its loader that :obj:`load` makes
    of a log: all of the rows of the past, and of those at the moment all but their outcomes."""
    for (part, loader), (other_part, other_loader) in zip(
        load(change.log(0)), load(change.log(1)), strict=True
    ):
        for num_rows in (len(change.past), change.num_shared):
            row, other_row = (of[CLICKS].edge_label_row for of in (part, other_part))
            row, other_row = row[row < num_rows], other_row[other_row < num_rows]
            assert torch.equal(row, other_row)
            if row.numel() > 0:
                # They are the first of a part, as of the log.
                place = torch.arange(row.numel())
                assert_same(
                    loader.dataset[place],
                    other_loader.dataset[place],
                    with_outcomes=num_rows == len(change.past),
                )


def check_loader(
    loader: Callable[..., Any],
    reads_log: bool,
    change: Change,
    split: TemporalSplit | None,
    arguments: dict[str, Any],
) -> None:
    r"""A loader of each part, with histories from the part or from the whole log."""

    def load(log: HeteroData) -> list[tuple[HeteroData, Any]]:
        history = {'history': log} if reads_log else {}
        return [(part, loader(part, **arguments, **history)) for part in parts_of(log, split)]

    check_rows(change, load)


def check_pairs(
    change: Change,
    split: TemporalSplit,
    recent: RecentNeighbors,
    coarsen: MacroCoarsen,
    is_fitted: bool,
) -> None:
    r"""Macro rows and recent lists, with groups learned from training, or from each part itself."""

    def load(log: HeteroData) -> list[tuple[HeteroData, PairLoader]]:
        parts = parts_of(log, split)
        fitted = copy.copy(coarsen)
        if is_fitted:
            or_reject(lambda: fitted.fit(parts[0]), 'at least as many nodes')
        parts = [
            or_reject(lambda part=part: fitted(recent(part)), 'at least as many nodes')
            for part in parts
        ]
        return [(part, PairLoader(part)) for part in parts]

    check_rows(change, load)


def check_target_counts(
    change: Change, split: TemporalSplit, coarsen: MacroCoarsen, is_fresh: bool
) -> None:
    r"""Counts at the target, as of windows or of rows themselves, of groups and a rate learned from
    training."""

    def load(log: HeteroData) -> list[tuple[HeteroData, ExposureLoader]]:
        parts = parts_of(log, split)
        fitted = copy.copy(coarsen)
        or_reject(lambda: fitted.fit(parts[0]), 'at least as many nodes')
        parts = [fitted(part) for part in parts]
        counts = TargetCounts(half_lives=(3.0,)).fit(parts[0])
        parts = [counts(part, log=log if is_fresh else None) for part in parts]
        return [(part, ExposureLoader(part)) for part in parts]

    check_rows(change, load)


def check_fitted(change: Change, split: TemporalSplit, coarsen: MacroCoarsen) -> None:
    r"""What is learned from a training part that ends before the moment."""
    learned = []
    for future in (0, 1):
        train, val, _ = parts_of(change.log(future), split)
        if int(val[CLICKS].cutoff) > MOMENT:
            reject()
        graph = or_reject(
            lambda train=train: BehaviorGraph().fit(train), 'a click and a behavior or more'
        )
        fitted = or_reject(
            lambda train=train: copy.copy(coarsen).fit(train), 'at least as many nodes'
        )
        num_items = NUM_NODES['item']
        learned.append(
            (
                graph.count,
                graph(val)['behavior', 'follows', 'behavior'].edge_weight,
                *ExposureFeatures(train).moments(),
                *BucketNumbers(3).fit(train).edges.values(),
                torch.tensor(list(FieldText().fit(train).tokenizer.to_str().encode())),
                fitted.cluster['item'][:num_items],
                *(grouping.centroids for grouping in fitted.groupings.values()),
            )
        )
    assert_same(*learned)


def with_hypergraphs(
    log: HeteroData, granularity: int, hypergraph: InterestHypergraph
) -> HeteroData:
    data = or_reject(lambda: TimeSlots(granularity)(log), 'the log has none')
    interest = torch.arange(2.0 * data['user'].num_nodes).view(-1, 2).sin().square()
    data['user'].interest = interest
    return hypergraph(data)


HYPERGRAPHS = st.builds(
    InterestHypergraph,
    threshold=st.sampled_from([0.2, 0.5]),
    max_size=st.integers(2, 4),
    seed=st.integers(0, 3),
)


def check_hypergraphs(change: Change, granularity: int, hypergraph: InterestHypergraph) -> None:
    r"""The hyperedges of all slots before that of the last row."""
    slots, hyperedges = [], []
    for future in (0, 1):
        data = with_hypergraphs(change.log(future), granularity, hypergraph)
        slot = data[CLICKS].edge_label_slot[: change.num_shared]
        known = []
        for node_type in ('user', 'item'):
            store = data[node_type]
            earlier = (
                store.hyperedge_slot < slot.max() if slot.numel() else store.hyperedge_slot < 0
            )
            known += [
                store.hyperedge_index[:, earlier[store.hyperedge_index[1]]],
                store.hyperedge_slot[earlier],
                store.hyperedge_modality[earlier],
                store.hyperedge_weight[earlier],
            ]
        slots.append(slot)
        hyperedges.append(tuple(known))
    assert torch.equal(*slots)
    assert_same(*hyperedges)


def check_slot_reading(change: Change, granularity: int, hypergraph: InterestHypergraph) -> None:
    r"""What HyperCTR makes of a row, with untrained weights: its history, and the hyperedges of the
    slot that it looks itself up in."""
    logits = []
    for future in (0, 1):
        # One model for both futures needs an embedding for everybody.
        log = change.log(future, with_all_nodes=True)
        data = with_hypergraphs(log, granularity, hypergraph)
        torch.manual_seed(0)
        model = HyperCTR.from_data(
            data, weighted=True, embedding_dim=4, num_layers=2, num_heads=1, hidden_channels=(4,)
        ).eval()
        batch = HistoryLoader(data, length=3, history=data).dataset[torch.arange(change.num_shared)]
        with torch.no_grad():
            logits.append(model(batch))
    assert torch.equal(*logits)


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


def in_file_order(change: Change, future: int) -> list[Exposure]:
    r"""The rows of a file in no order of time. Those of the past keep their order, by which ties
    go, and those of the future stand among them."""
    rows, num_past = change.rows(future), len(change.past)
    place = [row if row < num_past else rows[row].detail * num_past / 8 for row in range(len(rows))]
    return [rows[row] for row in sorted(range(len(rows)), key=place.__getitem__)]


def names_of(dataset: EventLog | MicroVideo, index: Tensor) -> tuple[list, list]:
    r"""Users and items by their ids in the files: a new one may come before others."""
    user, item = index.numpy()
    return dataset.raw_ids['user'][user].tolist(), dataset.raw_ids['item'][item].tolist()


ROLES = ['user', 'item', 'time', 'label', 'category', 'weight']


def check_event_log(folder: Path, change: Change) -> None:
    r"""Rows and the categories of their items, by name, as a new name may come before others."""
    read = []
    for future in (0, 1):
        rows = [
            (
                f'u{user}',
                f'i{item}',
                time,
                int(label),
                ['', 'b', 'unknown', 'a'][detail % 4],
                detail / 8,
            )
            for user, item, time, label, detail in in_file_order(change, future)
        ]
        if not rows:
            reject()
        with TemporaryDirectory(dir=folder) as root, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # repeated rows, items of several categories
            path = Path(root) / 'log.csv'
            write_csv(path, ROLES, rows)
            dataset = EventLog(root, path, {role: role for role in ROLES}, log=False)
            data = dataset[0]
            clicks = data[CLICKS]
            is_past, is_clicked = clicks.edge_label_time < MOMENT, clicks.time < MOMENT
            category = data['item'].category[clicks.edge_label_index[1, is_past]]
            read.append(
                (
                    *names_of(dataset, clicks.edge_label_index[:, is_past]),
                    [dataset.names['category'][code] for code in category],
                    clicks.edge_label_time[is_past],
                    clicks.edge_label[is_past],
                    clicks.edge_label_weight[is_past],
                    *names_of(dataset, clicks.edge_index[:, is_clicked]),
                    clicks.time[is_clicked],
                    clicks.edge_weight[is_clicked],
                )
            )
    assert_same(*read)


def check_micro_video(folder: Path, has_time: bool, change: Change) -> None:
    r"""The negatives of training rows, and the times that are made up for them. Negatives are drawn
    from the items that anybody clicked, so all have to be there before."""
    read = []
    for future in (0, 1):
        rows = [Exposure(100 + item % 2, item, 0, True, 0) for item in range(NUM_NODES['item'])]
        rows += in_file_order(change, future)
        splits = ['train' if row.time < MOMENT else ['val', 'test'][row.detail % 2] for row in rows]
        moments = [row.time for row in rows] if has_time else splits
        with TemporaryDirectory(dir=folder) as root, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # repeated rows
            raw = Path(root) / 'raw'
            raw.mkdir()
            write_csv(
                raw / 'interactions.csv',
                ['user', 'item', 'time' if has_time else 'split'],
                ((*row[:2], moment) for row, moment in zip(rows, moments, strict=True)),
            )
            np.save(raw / 'image_feat.npy', np.arange(20.0).reshape(10, 2))
            make = partial(MicroVideo, root, num_negatives=2, num_slots=3, log=False)
            dataset = or_reject(make, 'has clicked all')
            clicks = dataset[0][CLICKS]
            is_past = clicks.edge_label_time < MOMENT if has_time else clicks.edge_label_split == 0
            read.append(
                (
                    *names_of(dataset, clicks.edge_label_index[:, is_past]),
                    clicks.edge_label_time[is_past],
                    clicks.edge_label[is_past],
                )
            )
    assert_same(*read)


def check_sampled_negatives(
    exclude: str, change: Change, by: str, num: int, with_all_nodes: bool
) -> None:
    r"""All that is told of rows of the past, and of those added to them, of which there is none
    whose item comes later."""
    transform, read = SampleNegatives(num, by, exclude), []
    for future in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # too few items
            log = change.log(future, with_all_nodes)
            expected = ('none of', 'leaves no item', 'draws by exposures')
            clicks = or_reject(lambda log=log: transform(log), *expected)[CLICKS]
        # They are the first, as rows are in the order of time.
        num_past = int((clicks.edge_label_time < MOMENT).sum())
        told = {name: clicks[name] for name in clicks.keys() if name.startswith('edge_label_')}
        assert {'edge_label_query', 'edge_label_x', 'edge_label_conversion'} < {*told}
        user, item = told.pop('edge_label_index')
        columns = (user, item, clicks.edge_label, *told.values())
        read.append([column[:num_past] for column in columns])
    assert_same(*read)


WHOLE = st.none()
# As often as not the moment lies within training.
REPLACED = changes((10, 24), (10, 24), same_times=True)


@pytest.mark.parametrize(
    ('change', 'split'), [(changes(), WHOLE), (REPLACED, SPLITS)], ids=['log', 'parts']
)
class TestLoaders:
    def test_exposures(self, attack: Any, change: SearchStrategy, split: SearchStrategy) -> None:
        attack(
            partial(check_loader, ExposureLoader, False), change, split, st.just({}), examples=60
        )

    @pytest.mark.parametrize('reads_log', [False, True])
    def test_histories(
        self, attack: Any, change: SearchStrategy, split: SearchStrategy, reads_log: bool
    ) -> None:
        check = partial(check_loader, HistoryLoader, reads_log)
        attack(check, change, split, HISTORIES, examples=60)

    @pytest.mark.parametrize('fixed', [False, True])
    @pytest.mark.parametrize('reads_log', [False, True])
    def test_paths(
        self,
        attack: Any,
        change: SearchStrategy,
        split: SearchStrategy,
        reads_log: bool,
        fixed: bool,
    ) -> None:
        check = partial(check_loader, partial(PathLoader, fixed=fixed), reads_log)
        attack(check, change, split, PATHS, examples=60)


def test_macro_rows_and_recent_lists(attack: Any) -> None:
    attack(check_pairs, REPLACED, SPLITS, RECENT, COARSENINGS, st.booleans(), examples=150)


def test_counts_at_the_target(attack: Any) -> None:
    attack(check_target_counts, REPLACED, SPLITS, COARSENINGS, st.booleans(), examples=30)


def test_what_training_teaches(attack: Any) -> None:
    change = changes((20, 36), (3, 6), same_times=True)
    attack(check_fitted, change, SPLITS, COARSENINGS, examples=60)


def test_hypergraphs(attack: Any) -> None:
    attack(check_hypergraphs, changes(), SLOTS, HYPERGRAPHS, examples=100)


def test_what_a_row_reads_of_slots(attack: Any) -> None:
    attack(check_slot_reading, changes(), SLOTS, HYPERGRAPHS, examples=60)


def test_event_log(attack: Any, tmp_path: Path) -> None:
    attack(partial(check_event_log, tmp_path), changes(), examples=15)


@pytest.mark.parametrize('has_time', [False, True])
def test_micro_video(attack: Any, tmp_path: Path, has_time: bool) -> None:
    check = partial(check_micro_video, tmp_path, has_time)
    attack(check, changes(num_new=0), examples=10)


NEGATIVES = (
    changes((6, 24)),
    st.sampled_from(['uniform', 'popularity', 'exposure']),
    st.integers(1, 3),
    st.booleans(),
)


def test_sampled_negatives(attack: Any) -> None:
    attack(partial(check_sampled_negatives, 'past'), *NEGATIVES, examples=60)


# The planted leaks. Each is one place off from what a row may read.


def expect_caught(attack: Any, check: Callable[..., None], *strategies: SearchStrategy) -> None:
    with pytest.raises(AssertionError):
        attack(check, *strategies, examples=60, shrink=False)


def seen_by_user(since: float | None = None) -> HeteroData:
    r"""A log, all of whose events are others from a position of its user's own log on, at the same
    times."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (300,), generator=generator)

    user, item, label = draw(12), draw(20), draw(2)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 12, 20
    data['item'].category, data['item'].num_category = torch.arange(20) % 4, 4
    clicks = data[CLICKS]
    clicks.edge_label_time = torch.arange(300)
    for is_last in (False, True):
        clicks.edge_label_index, clicks.edge_label = torch.stack([user, item]), label.float()
        clicks.edge_index = clicks.edge_label_index[:, label == 1]
        clicks.time = clicks.edge_label_time[label == 1]
        if since is not None and not is_last:
            is_later = user_position(data)[1] >= since
            assert bool(is_later.any())
            item, label = item.where(~is_later, (item + 7) % 20), label ^ is_later
    return data


def check_seen_by_user() -> None:
    r"""The exposures of macro nodes as of each cutoff of parts that were cut by position."""
    split = TemporalSplit(by='user', num_windows=3, keep_cold=True)
    first = split(seen_by_user())
    coarsen = MacroCoarsen({'user': [3, 5], 'item': ['category', 4]}, exposure_hops=2)
    coarsen.fit(first[0])
    num_edges = 0
    for place, part in enumerate(first):
        for window, cutoff in enumerate(part[CLICKS].cutoff.tolist()):
            other = coarsen(split(seen_by_user(cutoff))[place])
            for edge_type in coarsen(part).edge_types:
                if not edge_type[1].startswith('sees') or not edge_type[0].startswith('macro'):
                    continue
                counts = []
                for graph in (coarsen(part), other):
                    index, weight = graph[edge_type].edge_index, graph[edge_type].edge_weight
                    weight = weight.view(weight.size(0), -1)[:, window]
                    index, weight = index[:, weight > 0], weight[weight > 0]
                    order = (index[0] * 100 + index[1]).argsort()
                    counts.append(
                        index[:, order].numpy().tobytes() + weight[order].numpy().tobytes()
                    )
                assert counts[0] == counts[1], (edge_type, window)
                num_edges += len(counts[0])
    assert num_edges > 0


def test_exposures_of_macro_nodes_cut_by_position() -> None:
    check_seen_by_user()


def test_exposures_of_the_window_after_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(data: HeteroData, reader: str, edge_type: Any = CLICKS) -> Any:
        window, num_windows = window_of_click(data, reader, edge_type)
        if window is not None and edge_type != CLICKS:
            window = (window - 1).clamp(min=0)
        return window, num_windows

    monkeypatch.setattr('mag.transforms.macro_coarsen.window_of_click', planted)
    with pytest.raises(AssertionError, match='sees'):
        check_seen_by_user()


def test_rows_of_the_window_after_are_caught(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = MacroRows.gather

    def planted(self: Any, node_type: str, node: Any, window: Any = None) -> Any:
        if window is not None:
            window = (window + 1).clamp(max=self.num_windows - 1)
        return gather(self, node_type, node, window)

    monkeypatch.setattr(MacroRows, 'gather', planted)
    expect_caught(attack, check_pairs, REPLACED, SPLITS, RECENT, COARSENINGS, st.just(True))


@pytest.mark.parametrize('transform', ['macro_coarsen', 'recent_neighbors'])
def test_clicks_of_a_window_in_its_own_rows_are_caught(
    attack: Any, monkeypatch: pytest.MonkeyPatch, transform: str
) -> None:
    def planted(data: HeteroData, reader: str, *edge_type: Any) -> Any:
        window, num_windows = window_of_click(data, reader, *edge_type)
        return None if window is None else (window - 1).clamp(min=0), num_windows

    monkeypatch.setattr(f'mag.transforms.{transform}.window_of_click', planted)
    expect_caught(attack, check_pairs, REPLACED, SPLITS, RECENT, COARSENINGS, st.just(True))


@pytest.mark.parametrize('reads_log', [False, True])
def test_paths_over_clicks_of_the_same_second_are_caught(
    attack: Any, monkeypatch: pytest.MonkeyPatch, reads_log: bool
) -> None:
    draw = PathSampler.draw

    def planted(self: PathSampler, user: Any, item: Any, time: Any, generator: Any) -> Any:
        # Of whole seconds, those before the next are those up to this one.
        return draw(self, user, item, time + 1, generator)

    monkeypatch.setattr(PathSampler, 'draw', planted)
    check = partial(check_loader, PathLoader, reads_log)
    expect_caught(attack, check, changes(), WHOLE, PATHS)


def test_a_look_into_the_own_slot_is_caught(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = HyperCTR.forward

    def planted(self: HyperCTR, batch: Any) -> Any:
        return forward(self, batch._replace(slot=batch.slot + 1))

    monkeypatch.setattr(HyperCTR, 'forward', planted)
    expect_caught(attack, check_slot_reading, changes(), SLOTS, HYPERGRAPHS)


def test_counts_of_the_own_moment_are_caught(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = TargetCounts._fresh

    def look(self: TargetCounts, data: HeteroData, log: HeteroData) -> Any:
        events, rows = fresh(self, data, log)
        return events, rows._replace(time=rows.time + 1)

    monkeypatch.setattr(TargetCounts, '_fresh', look)
    expect_caught(attack, check_target_counts, REPLACED, SPLITS, COARSENINGS, st.just(True))


def test_negatives_that_leave_out_later_clicks_are_caught(attack: Any) -> None:
    expect_caught(attack, partial(check_sampled_negatives, 'all'), *NEGATIVES)
