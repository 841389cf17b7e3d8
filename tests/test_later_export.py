r"""A log is read again with what came since, and all that was made of the old one is asked
again."""

import copy
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import EventLog
from mag.loader import ExposureLoader, PairLoader
from mag.models import CountNet, MacGNN
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate, fit, predict
from mag.transforms import BehaviorGraph, MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

COLUMNS = {'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind'}
NUM_OLD, NUM_ALL = 1500, 2500
GROUPS = {'user': [4, 9], 'item': [6, 'category']}


class Exports(NamedTuple):
    old: EventLog
    grown: EventLog
    anew: EventLog


@pytest.fixture(scope='module')
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    r"""A log, and a later export of it with the former rows: with its ids, and ranked anew. Who and
    what comes late sorts before all that was there."""
    folder = tmp_path_factory.mktemp('exports')
    random = np.random.default_rng(0)
    user, item = (random.integers(0, size, NUM_ALL) for size in (60, 40))
    is_late = np.arange(NUM_ALL) >= NUM_OLD
    columns = {
        'uid': [f'{"a" if late and u < 20 else "m"}{u}' for u, late in zip(user, is_late)],
        'sku': [f'{"a" if late and i < 10 else "m"}{i}' for i, late in zip(item, is_late)],
        'ts': np.arange(NUM_ALL),
        'clicked': random.integers(0, 2, NUM_ALL),
        'kind': [f'{"a" if late and i < 10 else "k"}{i % 4}' for i, late in zip(item, is_late)],
    }
    with duckdb.connect() as connection:
        arrays = {name: np.array(value, dtype=object) for name, value in columns.items()}
        connection.register('log', arrays)
        paths = {number: folder / f'{number}.parquet' for number in (NUM_OLD, NUM_ALL)}
        for number, path in paths.items():
            connection.execute(
                f"COPY (SELECT * FROM log WHERE ts < {number}) TO '{path}' (FORMAT parquet)"
            )
    old = EventLog(folder / 'old', paths[NUM_OLD], COLUMNS, log=False)
    return Exports(
        old,
        EventLog(folder / 'grown', paths[NUM_ALL], COLUMNS, log=False, ids=old),
        EventLog(folder / 'anew', paths[NUM_ALL], COLUMNS, log=False),
    )


def as_of_old(dataset: EventLog) -> HeteroData:
    r"""The graph of the later log with the rows that the old one had, and all nodes."""
    data = dataset[0]
    clicks = data[CLICKS]
    clicked = int((clicks.time < NUM_OLD).sum())
    clicks.edge_index, clicks.time = clicks.edge_index[:, :clicked], clicks.time[:clicked]
    clicks.edge_label_index = clicks.edge_label_index[:, :NUM_OLD]
    for name in ('edge_label', 'edge_label_time'):
        clicks[name] = clicks[name][:NUM_OLD]
    return data


class Made(NamedTuple):
    coarsen: MacroCoarsen
    counts: TargetCounts
    tasks: list[ClickTask]


def loaders(part: HeteroData, **kwargs: bool) -> list[ExposureLoader | PairLoader]:
    return [ExposureLoader(part, **kwargs), PairLoader(RecentNeighbors(5)(part), **kwargs)]


@pytest.fixture(scope='module')
def made(exports: Exports) -> Made:
    train, _, _ = TemporalSplit(num_windows=3)(exports.old[0])
    coarsen = MacroCoarsen(GROUPS).fit(train)
    train = coarsen(train)
    counts = TargetCounts().fit(train)
    train = RecentNeighbors(5)(counts(train))
    torch.manual_seed(0)
    tasks = [ClickTask(CountNet.from_data(train)), ClickTask(MacGNN.from_data(train))]
    for task, loader in zip(tasks, loaders(train, shuffle=True)):
        fit(task, loader, max_epochs=1, progress=False)
    return Made(coarsen, counts, tasks)


def test_nodes_that_were_there_stay(exports: Exports) -> None:
    old, grown, anew = (dataset[0] for dataset in exports)
    for node in ('user', 'item'):
        raw = exports.old.raw_ids[node]
        assert grown[node].num_nodes > old[node].num_nodes
        assert exports.grown.raw_ids[node][: len(raw)].tolist() == raw.tolist()
        # Ranked anew, all but a few are other nodes, and nothing else would tell.
        assert (exports.anew.raw_ids[node][: len(raw)] == raw).mean() < 0.05
    for row in ('edge_label_index', 'edge_label', 'edge_label_time'):
        assert torch.equal(grown[CLICKS][row][..., :NUM_OLD], old[CLICKS][row])
    num_items = old['item'].num_nodes
    assert torch.equal(grown['item'].category[:num_items], old['item'].category)
    assert grown['item'].num_category > old['item'].num_category
    assert anew['item'].num_category == grown['item'].num_category


def test_clusters_that_were_there_stay(exports: Exports, made: Made) -> None:
    old = TemporalSplit(num_windows=3)(exports.old[0])
    grown = TemporalSplit(num_windows=3)(as_of_old(exports.grown))
    later = TemporalSplit(num_windows=3)(exports.grown[0])
    for before, same, after in zip(old, grown, later):
        before, same, after = (made.coarsen(part) for part in (before, same, after))
        for node, name in (
            ('user', 'cluster'),
            ('user', 'cluster_9'),
            ('item', 'cluster'),
            ('item', 'cluster_category'),
        ):
            expected = before[node][name]
            assert torch.equal(same[node][name][: expected.numel()], expected)
            fitted = expected >= 0
            assert torch.equal(after[node][name][: expected.numel()][fitted], expected[fitted])
    # A new node is assigned by its clicks, to a cluster that was there.
    is_new = torch.arange(after['user'].num_nodes) >= exports.old[0]['user'].num_nodes
    clicked = torch.zeros_like(is_new)
    clicked[after[CLICKS].edge_index[0]] = True
    cluster = after['user'].cluster
    assert bool((is_new & clicked).any())
    assert bool((cluster[is_new & clicked] >= 0).all())
    assert bool((cluster[is_new & ~clicked] == -1).all())
    assert int(cluster.max()) < 4


def test_clusters_of_counts_over_categories_stay(exports: Exports) -> None:
    train, _, _ = TemporalSplit(num_windows=3)(exports.old[0])
    coarsen = MacroCoarsen({'user': 4, 'item': 'category'}).fit(train)
    _, _, later = TemporalSplit(num_windows=3)(exports.grown[0])
    later = coarsen(later)
    # There is a macro node for each new category, of which the centroids of users know nothing.
    assert later['macro_item'].num_nodes == exports.grown[0]['item'].num_category > 4
    expected = coarsen.cluster['user']
    fitted = expected >= 0
    assert torch.equal(later['user'].cluster[: expected.numel()][fitted], expected[fitted])
    assert int(later['user'].cluster.max()) < 4


def test_scores_of_rows_that_were_there_stay_to_the_last_bit(exports: Exports, made: Made) -> None:
    parts = []
    for data in (exports.old[0], as_of_old(exports.grown)):
        _, _, test = TemporalSplit(num_windows=3)(data)
        parts.append(made.counts(made.coarsen(test)))
    assert torch.equal(parts[0][CLICKS].edge_label_counts, parts[1][CLICKS].edge_label_counts)
    for of_old, before, after in zip(made.tasks, loaders(parts[0]), loaders(parts[1])):
        name, task = type(of_old.model).__name__, copy.deepcopy(of_old)
        with pytest.raises(ValueError, match=rf'^{name} has rows for .* call model.grow\(data\)'):
            predict(task, after)
        task.grow(RecentNeighbors(5)(parts[1]))
        expected, scores = predict(of_old, before), predict(task, after)
        assert torch.equal(scores['click'], expected['click'])
        assert evaluate(of_old, before) == evaluate(task, after)


def test_ids_that_were_ranked_anew_are_refused(exports: Exports, made: Made) -> None:
    there, here = (dataset.id_maps['user'].fingerprint for dataset in (exports.old, exports.anew))
    message = f'the users of the id map {there}, but .* has those of {here}, in which an id is'
    item_message = (
        message.replace('users', '(users|items)').replace(there, '.*').replace(here, '.*')
    )
    train, _, test = TemporalSplit(num_windows=3)(exports.anew[0])
    with pytest.raises(ValueError, match=f'^MacroCoarsen was fitted on {item_message}'):
        made.coarsen(test)
    # Its own clusters do not hide that it is another log.
    coarsen = MacroCoarsen(GROUPS).fit(train)
    train, test = coarsen(train), coarsen(test)
    for call in (made.counts, made.counts.state):
        with pytest.raises(ValueError, match=f'^TargetCounts was fitted on {item_message}'):
            call(test)
    part = TargetCounts().fit(train)(test)
    for task, loader in zip(made.tasks, loaders(part)):
        name = type(task.model).__name__
        for score in (predict, evaluate):
            with pytest.raises(ValueError, match=f'^{name} was built for {item_message}'):
                score(task, loader)
        with pytest.raises(ValueError, match=f'^{name} was built for {item_message}.*\\.$'):
            fit(task, loader, max_epochs=1, progress=False)


def test_behaviors_of_another_log_are_refused(exports: Exports) -> None:
    def with_behaviors(dataset: EventLog) -> HeteroData:
        data = dataset[0]
        data[CLICKS].edge_label_behavior = data[CLICKS].edge_label.view(-1, 1).repeat(1, 2)
        return data

    graph = BehaviorGraph().fit(with_behaviors(exports.old))
    assert graph(with_behaviors(exports.grown))['behavior'].num_nodes == 2
    with pytest.raises(ValueError, match='^BehaviorGraph was fitted on the (users|items|values) '):
        graph(with_behaviors(exports.anew))


def test_a_run_is_resumed_on_its_own_ids_alone(exports: Exports, tmp_path: Path) -> None:
    def run(dataset: EventLog) -> None:
        train, _, _ = TemporalSplit(num_windows=3)(dataset[0])
        torch.manual_seed(0)
        task = ClickTask(CountNet.from_data(train, counts=False))
        fit(task, ExposureLoader(train), max_epochs=1, directory=tmp_path, progress=False)

    run(exports.old)
    with pytest.warns(UserWarning, match='has already finished'):
        run(exports.old)
    there, here = (dataset.id_maps['user'].fingerprint for dataset in exports[:2])
    with pytest.raises(ValueError, match=f'id map of user is {there} there, {here} here'):
        run(exports.grown)
