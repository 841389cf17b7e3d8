from collections.abc import Callable, Mapping

import duckdb
import pyarrow
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import TargetView, target_views
from mag.schema import CLICKS, MACRO, NEIGHBOR_TYPE, SEES
from mag.store import sql
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
NUM_RECENT = 3
Engine = Callable[[str, Mapping[str, pyarrow.Table]], dict[str, Tensor]]


def as_tensors(table: pyarrow.Table) -> dict[str, Tensor]:
    return {name: torch.tensor(table[name].to_pylist()) for name in table.column_names}


def in_duckdb(query: str, tables: Mapping[str, pyarrow.Table]) -> dict[str, Tensor]:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return as_tensors(connection.sql(query).to_arrow_table())


@pytest.fixture(params=['duckdb', 'sail'])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == 'duckdb':
        return in_duckdb
    session = request.getfixturevalue(request.param)

    def in_session(query: str, tables: Mapping[str, pyarrow.Table]) -> dict[str, Tensor]:
        for name, table in tables.items():
            session.createDataFrame(table).createOrReplaceTempView(name)
        return as_tensors(session.sql(query).toArrow())

    return in_session


def random_log(seed: int) -> HeteroData:
    r"""Exposures with many ties and repeats, nodes that appear late, and lonely ones."""
    generator = torch.Generator().manual_seed(seed)
    size, num_users, num_items = 600, 20, 14
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users + 2, num_items + 2
    data['item'].category = torch.arange(num_items + 2) % 3
    data['item'].num_category = 3
    share = torch.linspace(0.4, 1, size)
    clicks = data[CLICKS]
    clicks.edge_label_time = torch.randint(0, 90, (size,), generator=generator).sort().values
    clicks.edge_label_index = torch.stack(
        [
            (torch.rand(size, generator=generator) * share * number).long()
            for number in (num_users, num_items)
        ]
    )
    clicks.edge_label = (torch.rand(size, generator=generator) < 0.4).float()
    clicked = clicks.edge_label > 0
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time = clicks.edge_label_time[clicked]
    # By which the rows of a part are found again, as it leaves some out.
    clicks.edge_label_log_row = torch.arange(size)
    return data


class Case:
    r"""A part in memory, and the tables that queries read."""

    def __init__(self, seed: int, num_windows: int) -> None:
        self.log = random_log(seed)
        self.part = TemporalSplit(num_windows=num_windows)(self.log)[0]
        groups = {'user': [3, 2], 'item': ['category', 4]}
        coarsen = [MacroCoarsen(groups, binary=binary).fit(self.part) for binary in (True, False)]
        self.resolutions = coarsen[0].resolutions
        self.pairs, self.events = (transform(self.part) for transform in coarsen)
        self.cutoffs = self.part[CLICKS].cutoff.view(-1).tolist()

    def tables(self, data: HeteroData) -> dict[str, pyarrow.Table]:
        label = self.log[CLICKS]
        return {
            'log': table(label.edge_label_index, label.edge_label_time, label.edge_label),
            **{f'{name}_clusters': clusters(data, name, self.cutoffs) for name in MACRO},
        }


def table(index: Tensor, time: Tensor, click: Tensor) -> pyarrow.Table:
    return pyarrow.table(
        {
            'user': index[0].numpy(),
            'item': index[1].numpy(),
            'time': time.numpy(),
            'click': click.bool().numpy(),
            'log_row': torch.arange(time.numel()).numpy(),
        }
    ).take(torch.randperm(time.numel(), generator=torch.Generator().manual_seed(0)).numpy())


def clusters(data: HeteroData, node_type: str, cutoffs: list[int]) -> pyarrow.Table:
    store = data[node_type]
    columns = {'node': torch.arange(store.num_nodes)}
    for name in [name for name in store.keys() if name in RESOLUTIONS]:
        cluster = store[name]
        columns[name] = cluster
        since = store.get(f'{name}_since')
        window = torch.zeros_like(cluster)
        if since is not None:
            window = torch.searchsorted(torch.tensor(cutoffs), since)
        columns[f'{name}_window'] = window
    return pyarrow.table({name: column.numpy() for name, column in columns.items()})


RESOLUTIONS = {'cluster', 'cluster_2', 'cluster_4'}
CASES = [(0, 1), (1, 3), (2, 6)]


@pytest.fixture(params=CASES, ids=[f'{number}_windows' for _, number in CASES], scope='module')
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def dense(data: HeteroData, edge_type: tuple[str, str, str], num_windows: int) -> Tensor:
    r"""Counts as of each window, shape :obj:`[N, M, S]`."""
    macro, _, node_type = edge_type
    shape = data[node_type].num_nodes, data[macro].num_nodes, num_windows
    edges = data[edge_type]
    counts = torch.zeros(shape)
    counts[edges.edge_index[1], edges.edge_index[0]] = edges.edge_weight.view(-1, num_windows)
    return counts


def test_distinct_pairs_and_their_first_windows(case: Case, engine: Engine) -> None:
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
    case: Case, engine: Engine, node_type: str, place: int
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
        expected = dense(data, (of.macro, relation, node_type), len(case.cutoffs))
        counts = torch.zeros_like(expected)
        counts[got['node'], got['cluster'], got['first_window']] = got[column].float()
        assert torch.equal(counts.cumsum(2), expected), column
        assert expected.sum() > 0


@pytest.mark.parametrize('node_type', MACRO)
def test_recents_are_those_of_recent_neighbors(case: Case, engine: Engine, node_type: str) -> None:
    got = engine(sql.recents('log', node_type, case.cutoffs, NUM_RECENT), case.tables(case.events))
    recent = RecentNeighbors(NUM_RECENT)(case.part)[node_type].recent
    expected = recent.view(-1, len(case.cutoffs), NUM_RECENT)
    lists = torch.full_like(expected, -1)
    lists[got['node'], got['as_of'], NUM_RECENT - got['age']] = got['neighbor']
    assert torch.equal(lists, expected)
    assert got['node'].numel() == int((expected >= 0).sum())


@pytest.mark.parametrize('fresh', [False, True])
def test_counts_at_the_target_are_those_of_target_counts(
    case: Case, engine: Engine, fresh: bool
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
