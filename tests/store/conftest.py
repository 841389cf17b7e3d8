from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import duckdb
import pyarrow
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.macro_graph import MacroNodes
from mag.schema import CLICKS, MACRO, Resolution
from mag.store.spark import spark_session
from mag.transforms import MacroCoarsen, TemporalSplit

# make test-spark runs them, where Spark itself is.
ENGINES = ['sail', pytest.param('spark', marks=pytest.mark.spark)]


@pytest.fixture(scope='session')
def spark() -> Iterator[Any]:
    r"""A session of Spark itself, with two threads."""
    if find_spec('py4j') is None:
        pytest.skip('Spark itself is not installed: make test-spark installs it')
    session = spark_session('local[2]')
    # A task for each of 200 parts of a few rows takes minutes.
    session.conf.set('spark.sql.shuffle.partitions', 2)
    yield session
    session.stop()


@pytest.fixture(scope='session')
def sail() -> Iterator[Any]:
    r"""A Spark session that Sail serves, in this process."""
    pytest.importorskip('pysail', reason='Sail is not installed: make test installs it')
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer('127.0.0.1', 0)
    server.start()
    host, port = server.listening_address
    session = SparkSession.builder.remote(f'sc://{host}:{port}').create()
    yield session
    session.stop()
    server.stop()


@pytest.fixture(params=ENGINES)
def session(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def as_tensors(table: pyarrow.Table) -> dict[str, Tensor]:
    return {name: torch.tensor(table[name].to_numpy()) for name in table.column_names}


def in_duckdb(query: str, tables: Mapping[str, pyarrow.Table]) -> dict[str, Tensor]:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return as_tensors(connection.sql(query).to_arrow_table())


@pytest.fixture(params=['duckdb', *ENGINES])
def engine(
    request: pytest.FixtureRequest,
) -> Callable[[str, Mapping[str, pyarrow.Table]], dict[str, Tensor]]:
    r"""Runs a query over tables."""
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
    # By which the rows of a part are found again.
    clicks.edge_label_log_row = torch.arange(size)
    return data


class Case:
    r"""A part in memory, and the tables that queries read."""

    def __init__(self, seed: int, num_windows: int) -> None:
        self.log = random_log(seed)
        self.part = TemporalSplit(num_windows=num_windows, keep_cold=True)(self.log)[0]
        groups = {'user': [3, 2], 'item': ['category', 4]}
        coarsen = [MacroCoarsen(groups, binary=binary).fit(self.part) for binary in (True, False)]
        self.resolutions = coarsen[0].resolutions
        self.pairs, self.events = (transform(self.part) for transform in coarsen)
        self.cutoffs = self.part[CLICKS].cutoff.view(-1).tolist()

    def tables(self, data: HeteroData) -> dict[str, pyarrow.Table]:
        r"""The log, in no order, and the clusters of a part."""
        label = self.log[CLICKS]
        user, item = label.edge_label_index.numpy()
        columns = {
            'user': user,
            'item': item,
            'time': label.edge_label_time.numpy(),
            'click': label.edge_label.bool().numpy(),
            'log_row': label.edge_label_log_row.numpy(),
        }
        shuffled = torch.randperm(len(user), generator=torch.Generator().manual_seed(0))
        tables = {'log': pyarrow.table(columns).take(shuffled.numpy())}
        for node_type in MACRO:
            clusters = {'node': torch.arange(data[node_type].num_nodes)}
            for of in self.resolutions:
                if of.node_type == node_type:
                    macro = self.macro(data, of)
                    clusters[of.cluster] = macro.cluster
                    clusters[f'{of.cluster}_window'] = macro.window
            tables[f'{node_type}_clusters'] = pyarrow.table(
                {name: column.numpy() for name, column in clusters.items()}
            )
        return tables

    def macro(self, data: HeteroData, of: Resolution) -> MacroNodes:
        r"""The clusters of a resolution, and the first window that knows each."""
        cluster, since = (data[of.node_type].get(f'{of.cluster}{end}') for end in ('', '_since'))
        window = torch.zeros_like(cluster)
        if since is not None:
            window = torch.searchsorted(torch.tensor(self.cutoffs), since)
        return MacroNodes(cluster, data[of.macro].num_nodes, window)

    def dense(self, macro: Tensor, node: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
        r"""Counts as of each window, shape :obj:`[N, M, S]`."""
        counts = torch.zeros(*shape, len(self.cutoffs))
        counts[node, macro] = weight.view(-1, len(self.cutoffs))
        return counts


@pytest.fixture(params=[(0, 1), (1, 3), (2, 6)], ids=lambda of: f'{of[1]}_windows', scope='session')
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.fixture(scope='session')
def two_windows() -> Case:
    r"""One case alone, where a test takes long."""
    return Case(1, 2)
