import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_geometric.data import HeteroData

from mag.datasets import EventLog, LogSchema
from mag.fingerprint import describe_loader
from mag.loader import ExposureLoader, JoinedLoader, PairLoader
from mag.models import CountNet, MacGNN
from mag.pipeline.raw_log import RawLog
from mag.schema import CLICKS
from mag.store.build import build
from mag.store.plan import BuildPlan
from mag.store.store import Store
from mag.store.store_loader import StoreLoader
from mag.training import ClickTask, fit
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

NUM_ROWS = 3000
COLUMNS = {
    'user': 'who', 'item': 'sku', 'time': 'at', 'label': 'clicked',
    'user_attributes': ['country', 'age'], 'item_attributes': ['brand', 'kind'],
    'contexts': {'place': 'page', 'device': 'device'},
    'features': ['price', 'rank'],
}  # fmt: skip
GROUPS: dict[str, Any] = {'user': 'country', 'item': ['brand', 'kind']}
NUM_WINDOWS, NUM_RECENT = 4, 5

pytestmark = [
    pytest.mark.filterwarnings('ignore:TemporalSplit leaves out'),
    pytest.mark.filterwarnings('ignore:.* rows repeat another row'),
    pytest.mark.filterwarnings('ignore:.* have rows of several values'),
]


class SmallPlan(BuildPlan):
    r"""A plan whose log has many files."""

    rows = 400


def write_log(folder: Path, is_raw: bool) -> LogSchema:
    r"""A log of repeated pairs and ties whose nodes appear one after the other, in three files:
    with texts as ids, or with nodes, which a store leaves where they are."""
    generator = np.random.default_rng(0)
    at = 1000 + np.arange(NUM_ROWS) // 4
    share = (np.arange(NUM_ROWS) + 600) / (NUM_ROWS + 600)
    who, sku = ((generator.random(NUM_ROWS) * share * number).astype(int) for number in (90, 40))
    # Numbers of nodes are dense.
    who[-90:], sku[-40:] = np.arange(90), np.arange(40)
    clicked = generator.random(NUM_ROWS) < 0.1 + 0.5 * (who % 3 == sku % 3)
    log = {
        'who': np.array([f'user {number * 7 % 90}' for number in who]) if is_raw else who,
        'sku': 3 * sku - 20 if is_raw else sku,
        'at': at,
        'clicked': clicked.astype(np.int64),
        'country': who % 7,
        'brand': sku % 5,
        'kind': sku % 13,
        # No group, and another one in later rows.
        'age': np.where(who % 11 == 0, None, (who + np.arange(NUM_ROWS) // 2000) % 4),
    }
    folder.mkdir()
    # Unknown is written in three ways, and a file has another type.
    log['device'] = generator.choice(
        np.array(['phone', 'unknown', 'web', '', None, 'TV']), NUM_ROWS
    )
    log['page'] = generator.integers(-3, 9, NUM_ROWS)
    log['price'] = generator.random(NUM_ROWS)
    log['rank'] = generator.integers(0, 2**40, NUM_ROWS)
    table = pa.table(log)
    for place in range(3):
        part = table.slice(place * NUM_ROWS // 3, NUM_ROWS // 3)
        if place == 1:
            part = part.set_column(
                part.column_names.index('page'), 'page', part['page'].cast(pa.int8())
            )
            part = part.set_column(
                part.column_names.index('device'), 'device', part['device'].dictionary_encode()
            )
        pq.write_table(part, folder / f'{place}.parquet', row_group_size=150)
    return LogSchema(str(folder / '*.parquet'), COLUMNS)


class Both:
    r"""A store, and the parts of the same log in memory."""

    def __init__(self, folder: Path, is_raw: bool) -> None:
        schema = write_log(folder / 'log', is_raw)
        plan = SmallPlan(
            schema, folder / 'store', GROUPS, num_windows=NUM_WINDOWS, num_recent=NUM_RECENT,
            memory_limit='1GiB',
        )  # fmt: skip
        self.store = Store(build(plan, progress=False))
        # What is in the order of time and has dense ids is read where it is.
        assert self.store.manifest['log']['files'][0].startswith('log/') == is_raw
        dataset = EventLog(str(folder / 'memory'), schema, log=False)
        found = TemporalSplit(num_windows=NUM_WINDOWS)(dataset[0])
        coarsen, counts = MacroCoarsen(GROUPS).fit(found[0]), None
        self.parts: dict[str, HeteroData] = {}
        whole = RawLog.of(dataset, ('contexts', 'features')).part()
        for name, part in zip(('train', 'val', 'test', 'end'), (*found, whole), strict=True):
            part = RecentNeighbors(NUM_RECENT)(coarsen(part))
            counts = counts or TargetCounts().fit(part)
            self.parts[name] = counts(part)


@pytest.fixture(scope='module', params=[True, False], ids=['raw', 'nodes'])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp('both'), request.param)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(found, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def rows_of(loader: Any) -> list[tuple[int, ...]]:
    batches = [(batch.user, batch.item, batch.label) for batch in loader]
    columns = (torch.cat(column).long().tolist() for column in zip(*batches, strict=True))
    return [*zip(*columns, strict=True)]


def in_memory(part: HeteroData, batches: str, batch_size: int) -> Any:
    loaders = {'pairs': PairLoader(part), 'features': ExposureLoader(part)}
    if batches == 'joined':
        return JoinedLoader([loaders['features'], loaders['pairs']], batch_size)
    return type(loaders[batches])(part, batch_size)


@pytest.mark.parametrize('batches', ['pairs', 'features', 'joined'])
@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_batches_are_those_in_memory(both: Both, part: str, batches: str) -> None:
    data = both.parts[part]
    expected = in_memory(data, batches, 64)
    loader = StoreLoader(both.store, part, 64, batches=batches)
    assert len(loader) == len(expected) and len(loader.dataset) == len(expected.dataset)
    assert loader.num_dropped == data[CLICKS].num_dropped and (
        part != 'train' or loader.num_dropped
    )
    assert_same([*loader], [*expected])
    if batches == 'features':
        assert loader.fields == expected.fields
    # What a lonely row is.
    size = len(loader.dataset) - 1
    assert len(StoreLoader(both.store, part, size)) == len(in_memory(data, batches, size)) == 1


def test_attributes_are_kept_whether_they_are_groups_or_not(both: Both) -> None:
    store, data = both.store, both.parts['train']
    assert store.attributes == {'user': {'age': 5, 'country': 7}, 'item': {'brand': 5, 'kind': 13}}
    for node_type, names in store.attributes.items():
        for name in names:
            assert np.array_equal(store.attribute(name), data[node_type][name])
    assert store.bytes_per_node['user']['age'] == 4
    assert store.id_map('age').decode(np.arange(5)).tolist() == ['unknown', '0', '1', '2', '3']
    kinds = torch.from_numpy(store.attribute('kind').astype(np.int64))
    assert torch.equal(store.cluster_sizes('item_kind'), kinds.bincount())


def test_a_request_reads_all_of_the_log(both: Both) -> None:
    ids = torch.tensor([3, 89, -1]), torch.tensor([5, 39, 1])
    found = StoreLoader(both.store).request(*ids)
    assert_same(found, PairLoader(both.parts['end']).request(*ids))
    assert both.store.cutoffs[-1] == both.parts['end'][CLICKS].cutoff


def test_a_request_tells_contexts_and_features(both: Both) -> None:
    loader = StoreLoader(both.store, 'test', batches='features')
    assert loader.fields[-2:] == ('device', 'place')
    names = both.store.id_map('device')
    assert names.decode([0, 1, 2, 3]).tolist() == ['unknown', 'TV', 'phone', 'web']
    ids = torch.tensor([3, -1]), torch.tensor([5, 1])
    told: dict[str, Any] = {
        'x': torch.tensor([[0.5, 2.0]]).expand(2, 2),
        'device': torch.from_numpy(names.encode(['web', 'TV'])),
        'place': int(both.store.id_map('place').encode(['-3'])[0]),
    }
    expected = ExposureLoader(both.parts['test'])
    counts = both.store.target_counts(*ids)
    assert_same(loader.request(*ids, **told), expected.request(*ids, counts=counts, **told))
    # A value that is new is unknown.
    assert loader.request(*ids, **{**told, 'device': -1}).sparse[:, -2].tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"must tell \['device', 'place'\], but told none"):
        loader.request(*ids, x=told['x'])
    with pytest.raises(ValueError, match='must tell no context'):
        StoreLoader(both.store, 'test').request(*ids, device=1)


def test_windows_are_asked_for_by_number(both: Both) -> None:
    loader = StoreLoader(both.store, [1, 3])
    clicks = both.parts['train'][CLICKS]
    is_asked = (clicks.edge_label_window == 1) | (clicks.edge_label_window == 3)
    columns = (*clicks.edge_label_index, clicks.edge_label)
    expected = [*zip(*(column[is_asked].long().tolist() for column in columns), strict=True)]
    assert rows_of(loader) == expected


def test_a_log_of_one_row_group_is_read(tmp_path: Path) -> None:
    write_log(tmp_path / 'log', False)
    pq.write_table(pq.read_table(tmp_path / 'log'), tmp_path / 'one.parquet')
    found = []
    for name in ('log/*.parquet', 'one.parquet'):
        schema = LogSchema(str(tmp_path / name), COLUMNS)
        plan = BuildPlan(schema, tmp_path / f'store of {len(found)}', GROUPS, memory_limit='1GiB')
        store = Store(build(plan, progress=False))
        ordered, shuffled = (rows_of(StoreLoader(store, shuffle=of)) for of in (False, True))
        assert sorted(shuffled) == sorted(ordered) and shuffled != ordered
        found.append(ordered)
    assert pq.read_metadata(tmp_path / 'one.parquet').num_row_groups == 1
    assert found[0] == found[1]


def test_an_epoch_is_shuffled_and_resumed(both: Both) -> None:
    ordered = rows_of(StoreLoader(both.store, batch_size=100))

    def shuffled(seed: int, epoch: int, skip: int = 0, buffer_rows: int = 500) -> Any:
        loader = StoreLoader(
            both.store, 'train', 100, True, seed, batches='joined', buffer_rows=buffer_rows
        )
        loader.sampler.set_epoch(epoch)
        loader.sampler.skip = skip
        found = [*loader]
        assert loader.sampler.skip == 0
        return found

    first = shuffled(3, 0)
    rows = rows_of(first)
    assert sorted(rows) == sorted(ordered) and rows != ordered
    assert_same(shuffled(3, 0), first)
    for seed, epoch, buffer_rows in ((3, 1, 500), (4, 0, 500), (3, 0, 10_000)):
        other = rows_of(shuffled(seed, epoch, buffer_rows=buffer_rows))
        assert sorted(other) == sorted(ordered) and other != rows
    for skip in (1, 7, len(first) - 1, len(first)):
        assert_same(shuffled(3, 0, skip), first[skip:])
    # Rows that lie close in the log are far apart.
    place = {row: [] for row in ordered}
    for number, row in enumerate(ordered):
        place[row].append(number)
    distance = np.diff([np.mean(place[row]) for row in rows])
    assert np.abs(distance).mean() > len(rows) / 8


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('world_size', [2, 3])
def test_each_process_reads_its_share(
    both: Both, shuffle: bool, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = StoreLoader(both.store, 'train', 64, shuffle, buffer_rows=1)
    everything, found, lengths = rows_of(loader), [], set()
    num_reads = []
    read = loader._log.read
    monkeypatch.setattr(loader._log, 'read', lambda group: num_reads.append(group) or read(group))
    for rank in range(world_size):
        share = (rank, world_size)
        monkeypatch.setattr(type(loader.sampler), '_process', staticmethod(lambda at=share: at))
        lengths.add(len(loader))
        found += rows_of(loader)
    left_over = len(everything) % world_size if shuffle else 0
    assert len(lengths) == 1 and found == everything[: len(everything) - left_over]
    num_groups = int((loader._log.num_rows > 0).sum())
    assert num_groups > 4 and len(num_reads) < num_groups + world_size


@pytest.mark.parametrize('kind', ['MacGNN', 'CountNet'])
def test_training_from_a_store_gives_the_weights_of_memory(both: Both, kind: str) -> None:
    train, val = both.parts['train'], both.parts['val']
    batches = 'pairs' if kind == 'MacGNN' else 'joined'
    found = []
    for source in ('memory', 'store'):
        torch.manual_seed(0)
        graph = train if source == 'memory' else both.store.graph()
        if kind == 'MacGNN':
            model: Any = MacGNN.from_data(graph, embedding_dim=4)
        else:
            model = CountNet.from_data(graph, embedding_dim=4, rows='twin', recent=True)
        if source == 'memory':
            loaders = in_memory(train, batches, 128), in_memory(val, batches, 128)
        else:
            loaders = tuple(
                StoreLoader(both.store, part, 128, batches=batches) for part in ('train', 'val')
            )
        task = ClickTask(model, learning_rate=1e-2)
        before = copy.deepcopy(task.state_dict())
        fit(task, *loaders, max_epochs=2, progress=False)
        found.append(task.state_dict())
        assert any(not torch.equal(before[name], of) for name, of in found[-1].items())
    assert found[0].keys() == found[1].keys()
    for name, of in found[0].items():
        assert torch.equal(of, found[1][name]), name


class Stop(Exception):
    pass


class Killer:
    r"""Stops a run at a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, step: int) -> None:
        if step == self.step:
            raise Stop


def test_a_run_that_was_killed_goes_on(both: Both, tmp_path: Path) -> None:
    def trained(directory: Path, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        model = MacGNN.from_data(both.store.graph(), embedding_dim=4)
        train = StoreLoader(both.store, 'train', 128, True, 1, buffer_rows=500)
        val = StoreLoader(both.store, 'val', 128)
        task = ClickTask(model, learning_rate=1e-2)
        every = {'validate_every': 5, 'max_epochs': 2, 'progress': False}
        return fit(task, train, val, directory=directory, **every, **kwargs).state_dict()

    whole = trained(tmp_path / 'whole')
    with pytest.raises(Stop):
        trained(tmp_path / 'killed', callbacks=[Killer(7)])
    assert_same([*trained(tmp_path / 'killed').values()], [*whole.values()])


def test_workers_read_what_one_process_does(both: Both) -> None:
    one = StoreLoader(both.store, 'val', 32, batches='joined')
    assert_same([*StoreLoader(both.store, 'val', 32, batches='joined', num_workers=2)], [*one])


def test_a_resumed_run_compares_stores_and_buffers(both: Both) -> None:
    told = describe_loader(StoreLoader(both.store))
    assert told == describe_loader(StoreLoader(both.store))
    for other in ({'buffer_rows': 7}, {'shuffle': True}, {'seed': 1}, {'rows': 'val'}):
        assert told != describe_loader(StoreLoader(both.store, **other))
    changed = copy.copy(both.store)
    changed.manifest = {**both.store.manifest, 'fingerprint': 'another'}
    assert told != describe_loader(StoreLoader(changed))


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ({'rows': 'all'}, ValueError, "'rows' must be one of 'train', 'val', 'test'"),
        ({'rows': 3}, TypeError, "'rows' must be a part or a list of windows, but got 3"),
        ({'rows': [9]}, ValueError, r"'rows\[0\]' must lie below 7, but got 9"),
        ({'batches': 'graphs'}, ValueError, "'batches' must be one of"),
        ({'buffer_rows': 0}, ValueError, "'buffer_rows' must be at least 1"),
        ({'batch_size': 0}, ValueError, "'batch_size' must be at least 1"),
        ({'sampler': [0]}, TypeError, 'StoreLoader makes its batches itself'),
        ({'rows': []}, ValueError, r'StoreLoader finds no row of \[\] in .*: of 0 in these'),
    ],
)
def test_bad_input_is_refused(
    both: Both, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        StoreLoader(both.store, **arguments)
    with pytest.raises(TypeError, match="'store' must be a Store, but got str"):
        StoreLoader('store')  # type: ignore[arg-type]


def test_a_log_that_is_gone_or_changed_is_told(tmp_path: Path) -> None:
    both = Both(tmp_path, False)
    path = tmp_path / 'log' / '1.parquet'
    os.rename(path, tmp_path / 'kept.parquet')
    with pytest.raises(FileNotFoundError, match=r'lacks .*1.parquet.: put it back, or build'):
        StoreLoader(both.store)
    pq.write_table(pq.read_table(tmp_path / 'kept.parquet').slice(1), path)
    with pytest.raises(ValueError, match='was built from 3,000 rows, but its log has 2,999 now'):
        StoreLoader(both.store)
    # As many rows, whose users are others.
    log = pq.read_table(tmp_path / 'kept.parquet')
    users = log['who'].to_numpy()[::-1].copy()
    pq.write_table(log.set_column(log.column_names.index('who'), 'who', [users]), path)
    with pytest.raises(ValueError, match=r'1.parquet. was changed since the store in .* was built'):
        StoreLoader(both.store)
    os.rename(tmp_path / 'kept.parquet', path)
    StoreLoader(both.store)
    store = copy.copy(both.store)
    store.manifest = {**both.store.manifest, 'parts': None}
    with pytest.raises(ValueError, match="with cutoffs of its own, which tell no 'train'"):
        StoreLoader(store)


@pytest.mark.parametrize(
    ('label', 'match'),
    [
        (0, r'but none of \d+ of train_loader is a click'),
        (1, r'but all \d+ of train_loader are clicks'),
    ],
)
def test_rows_of_one_class_are_refused(tmp_path: Path, label: int, match: str) -> None:
    r"""All is clicked before the first cutoff, and then all or nothing."""
    step = np.arange(200)
    log = {'who': step % 5, 'sku': step % 7, 'at': step, 'clicked': np.where(step < 50, 1, label)}
    pq.write_table(pa.table(log), tmp_path / 'log.parquet')
    columns = {name: COLUMNS[name] for name in ('user', 'item', 'time', 'label')}
    schema = LogSchema(str(tmp_path / 'log.parquet'), columns)
    plan = BuildPlan(schema, tmp_path / 'store', {'user': 2, 'item': 2}, [50, 199], num_recent=2)
    if label:
        with pytest.warns(UserWarning, match='Each of the 199 rows before the last cutoff is a'):
            store = Store(build(plan, progress=False))
    else:
        store = Store(build(plan, progress=False))
    loader = StoreLoader(store, rows=[0])
    task = ClickTask(MacGNN.from_data(store.graph()))
    with pytest.raises(ValueError, match=match):
        fit(task, loader, directory=str(tmp_path), progress=False)
    assert loader.dataset.num_clicks == label * len(loader.dataset)


def test_validation_has_no_row_of_the_test_part(tmp_path: Path) -> None:
    r"""Of few moments, both parts begin at one."""
    step = np.arange(20)
    log = {'who': step % 2, 'sku': step // 2 % 2, 'at': step // 2, 'clicked': step % 3 % 2}
    pq.write_table(pa.table(log), tmp_path / 'log.parquet')
    columns = {name: COLUMNS[name] for name in ('user', 'item', 'time', 'label')}
    schema = LogSchema(str(tmp_path / 'log.parquet'), columns)
    plan = BuildPlan(schema, tmp_path / 'store', {'user': 1, 'item': 1}, num_windows=3)
    store = Store(build(plan, progress=False))
    parts = store.manifest['parts']
    assert parts['val'] == parts['test'] == 9
    assert len(StoreLoader(store, 'test').dataset) == 2
    with pytest.raises(ValueError, match="finds no row of 'val' in .*: of 0 in these windows"):
        StoreLoader(store, 'val')


@pytest.mark.parametrize('is_raw', [False, True])
def test_no_row_reads_what_comes_after_its_cutoff(tmp_path: Path, is_raw: bool) -> None:
    schema = write_log(tmp_path / 'log', is_raw)
    groups = {'user': ['country', 6], 'item': 8}

    def open_store(name: str) -> Store:
        plan = BuildPlan(schema, tmp_path / name, groups, num_windows=2, memory_limit='1GiB')
        return Store(build(plan, progress=False))

    def read(store: Store, window: int) -> tuple[list[Tensor], Tensor]:
        r"""What rows of a window read, and their labels."""
        size = len(StoreLoader(store, [window]).dataset)
        (batch,) = StoreLoader(store, [window], size, batches='joined')
        pairs, features = (of._replace(label=None) for of in (batch.pairs, batch.features))
        leaves = tree_leaves(batch._replace(label=None, pairs=pairs, features=features))
        return [leaf for leaf in leaves if leaf is not None], batch.label

    store = open_store('store')
    expected = [read(store, window) for window in range(4)]
    for window, cutoff in reversed([*enumerate(store.cutoffs[:4].tolist())]):
        for path in (tmp_path / 'log').iterdir():
            log = pq.read_table(path)
            clicked = log['clicked'].to_numpy()
            # From the end on, so that each is turned once.
            last = store.cutoffs[window + 1].item()
            is_later = (log['at'].to_numpy() >= cutoff) & (log['at'].to_numpy() < last)
            clicked = pa.array(np.where(is_later, 1 - clicked, clicked))
            place = log.column_names.index('clicked')
            pq.write_table(log.set_column(place, 'clicked', clicked), path, row_group_size=150)
        found, label = read(open_store(f'from {window}'), window)
        assert len(found) == len(expected[window][0]) > 10
        assert all(map(torch.equal, found, expected[window][0]))
        assert torch.equal(label, 1 - expected[window][1])
