r"""Bad input to public classes raises early, with the sentence that helps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import HeteroData

from mag.click_index import ClickIndex
from mag.compression import QuantizedEmbedding, compress_tables, decode_counts, encode_counts
from mag.datasets import (
    ClickDataset,
    EventLog,
    IdMap,
    KuaiRand,
    KuaiSAR,
    LogSchema,
    LogTable,
    MicroVideo,
    MovieLens,
    SyntheticMarket,
    Trivago,
)
from mag.loader import (
    BatchIndexSampler,
    ExposureFeatures,
    ExposureLoader,
    Exposures,
    HistoryLoader,
    JoinedLoader,
    NegativeLoader,
    PairLoader,
    PathLoader,
    PathSampler,
)
from mag.logits import Logits, as_logits
from mag.losses import propensity_weights
from mag.macro_graph import (
    MacroClusters,
    MacroEdges,
    MacroRows,
    MacroState,
    TargetState,
    TargetView,
    count_by_window,
)
from mag.macro_graph.grouping import Grouping, raw_behavior
from mag.metrics import (
    AuditGroup,
    GroupAUROC,
    bayes_optimal,
    group_auroc,
    popularity_audit,
    relative_improvement,
)
from mag.models import GMCM, CountNet, HyperCTR, MacGNN, SimCEN, SRJGraph, Stack
from mag.nn import (
    MLP,
    BehaviorGraphConv,
    BehaviorMerge,
    CountEncoder,
    Dice,
    DomainHeads,
    HashEmbedding,
    HypergraphConv,
    IdEmbedding,
    IntentionConv,
    InterestScore,
    MacroConv,
    PretrainedTextEncoder,
    QueryEmbedding,
    TensorFusion,
    TextEncoder,
)
from mag.store import BuildPlan, Store, StoreLoader, build
from mag.training import ClickTask, DistillationTask, LightningTask, evaluate, fit, predict
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
    TextFeatures,
    TimeSlots,
    UserInterest,
    window,
)

CLICKS = ('user', 'clicks', 'item')
GROUPS: dict[str, int | str] = {'user': 2, 'item': 'category'}


def log() -> HeteroData:
    r"""40 exposures of 5 users and 6 items, one a second, every other one clicked."""
    step = torch.arange(40)
    data = HeteroData()
    data['user'].num_nodes = 5
    data['item'].num_nodes = 6
    data['item'].category = torch.arange(6) % 3
    data['item'].num_category = 3
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack([step % 5, (step * 7 + step // 5) % 6])
    clicks.edge_label = (step % 2 == 0).float()
    clicks.edge_label_time = step
    clicks.edge_index = clicks.edge_label_index[:, ::2]
    clicks.time = step[::2]
    return data


def edited(**attributes: object) -> HeteroData:
    data = log()
    for name, value in attributes.items():
        data[CLICKS][name] = value
    return data


def without(name: str) -> HeteroData:
    data = log()
    del data[CLICKS][name]
    return data


def macro() -> HeteroData:
    return MacroCoarsen(GROUPS)(RecentNeighbors(3)(TemporalSplit(0.5, num_windows=1)(log())[0]))


def seen(**values: torch.Tensor | None) -> HeteroData:
    r"""A part with other exposures to read."""
    train = TemporalSplit(0.5, num_windows=1)(log())[0]
    for name, value in values.items():
        store = train['user', 'sees', 'item']
        number = store.time.numel()
        store[name] = value if value is None else value[..., :number]
        if value is None:
            del store[name]
    return train


def miscounted(weight: float) -> HeteroData:
    data = macro()
    data['macro_item', 'hop1', 'user'].edge_weight[0] = weight
    return data


def reweighted(weight: torch.Tensor | None) -> HeteroData:
    data = macro()
    data['macro_item', 'hop1', 'user'].edge_weight = weight
    return data


def remembered(recent: object) -> HeteroData:
    data = macro()
    data['user'].recent = recent
    return data


def misplaced(row: int) -> HeteroData:
    data = macro()
    data['macro_item', 'hop1', 'user'].edge_index[row, 0] = 9
    return data


def misremembered() -> HeteroData:
    data = macro()
    data['user'].recent[0, 0] = 6
    return data


def counts(user_cluster: torch.Tensor | None = None, **arguments: object) -> MacroEdges:
    cluster = torch.tensor([0, 1, 0])
    users = cluster if user_cluster is None else user_cluster
    return MacroEdges(users, cluster, {'user': 2, 'item': 2}, **arguments)  # type: ignore[arg-type]


def conv(macro_size: int = 3, target_size: int = 2, width: int = 4, **kwargs: object) -> tuple:
    return MacroConv(4, 8), (torch.rand(macro_size, width), torch.rand(target_size, width))


def call_conv(edge_index: torch.Tensor, edge_weight: torch.Tensor | None = None, width: int = 4):
    layer, x = conv(width=width)
    return layer(x, edge_index, edge_weight)


def counted() -> HeteroData:
    return TargetCounts()(macro())


def encode(*shape: int) -> torch.Tensor:
    return CountEncoder([-1], 0.5)(torch.ones(shape))


def count_net(**arguments: object) -> CountNet:
    given = {'num_values': {'user': 5, 'item': 6}, 'fields': ['user', 'item'], 'count_prior': [-1]}
    return CountNet(**{**given, 'count_rate': 0.5, **arguments})  # type: ignore[arg-type]


def stack(**arguments: object) -> Stack:
    branches = {'macgnn': MacGNN(5, 6, 2, 3), 'counts': count_net()}
    return Stack(**{'branches': branches, **arguments})  # type: ignore[arg-type]


def stack_of(**sizes: int) -> Stack:
    r"""One table of embeddings of several sizes."""
    branches = {name: count_net(embedding_dim=size) for name, size in sizes.items()}
    return Stack(branches, share_embeddings=True)


def stack_of_logs() -> Stack:
    branches = {name: count_net() for name in ('ours', 'theirs')}
    for name, branch in branches.items():
        branch.id_maps = {'user': name}  # type: ignore[assignment]
    return Stack(branches)


def score(places: torch.Tensor | None = None, add: int = 0, **arguments: object) -> torch.Tensor:
    r"""The logits of a batch with some columns of ids, to which something is added."""
    data = counted()
    batch = next(iter(ExposureLoader(data)))
    sparse = batch.sparse if places is None else batch.sparse[:, places]
    return CountNet.from_data(data, **arguments)(batch._replace(sparse=sparse + add))


def score_recent(id: int) -> torch.Tensor:
    data = counted()
    batch = next(iter(JoinedLoader([ExposureLoader(data), PairLoader(data)])))
    recent = torch.full_like(batch.pairs.user_recent, id)
    batch = batch._replace(pairs=batch.pairs._replace(user_recent=recent))
    return CountNet.from_data(data, recent=True)(batch)


def simcen() -> SimCEN:
    return SimCEN.from_data(log(), hidden_channels=(9,))


def state() -> TargetState:
    data = macro()
    return TargetCounts().fit(data).state(data)


def clicked(user: list[int], item: list[int], form: str = 'paper') -> HeteroData:
    r"""A part of other clicks, one a second."""
    data = edited(edge_index=torch.tensor([user, item]), time=torch.arange(len(user)))
    return MacroCoarsen(GROUPS)(RecentNeighbors(3, form)(data))


def macro_state() -> MacroState:
    return MacroCoarsen(GROUPS).state(macro())


def ask(user: int = 0, item: int = 0, time: int = 99) -> torch.Tensor:
    r"""The counts that a state knows of one candidate."""
    return state()(torch.tensor([user]), torch.tensor([item]), torch.tensor([time]))


def tell(clicked: float = 1.0, time: int = 99) -> None:
    r"""Tells a state of one event."""
    node = torch.tensor([0])
    state().update(node, node, torch.tensor([time]), torch.tensor([clicked]))


def module() -> ClickTask:
    return ClickTask(MacGNN(5, 6, 2, 3))


def bought(**attributes: object) -> HeteroData:
    r"""The log with what followed its clicks."""
    label = log()[CLICKS].edge_label
    behavior = label.view(-1, 1) * torch.tensor([[1.0, 1.0]])
    return edited(**{'edge_label_behavior': behavior, 'edge_label_conversion': label, **attributes})


def searched(**attributes: object) -> ExposureLoader:
    query = torch.zeros(40, 3, dtype=torch.long)
    return ExposureLoader(bought(edge_label_query=query, num_query=9, **attributes))


def behave(form: str = 'paper', **arguments: object) -> torch.Tensor:
    edges = {'edge_index': torch.tensor([[0], [1]]), 'edge_weight': torch.ones(1)}
    return BehaviorGraphConv(2, 2, 3, form)(**{'x': torch.rand(3, 2), **edges, **arguments})


def intend(**arguments: object) -> torch.Tensor:
    given = {'child': torch.rand(3, 2), 'center': torch.rand(2, 2), 'intention': torch.rand(2, 2)}
    given |= {'edge_index': torch.tensor([[2, 1], [0, 1]]), **arguments}  # type: ignore[dict-item]
    x = given.pop('child'), given.pop('center')
    return IntentionConv(2, 2)(x, **given)  # type: ignore[return-value]


def gmcm(**arguments: object) -> GMCM:
    return GMCM.from_data(
        BehaviorGraph()(bought()), tower_channels=(8, 4), hidden_channels=4, **arguments
    )


def conversions(**columns: object) -> torch.Tensor:
    r"""The loss of a batch of which some columns are others."""
    model = gmcm(num_buckets=10)
    batch = next(iter(ExposureLoader(bought())))._replace(**columns)
    return model.loss(model(batch), batch)


def csv_log(folder: Path, text: str, **columns: str) -> EventLog:
    (folder / 'log.csv').write_text(text)
    names = {'user': 'u', 'item': 'i', 'time': 't', 'label': 'y', **columns}
    return EventLog(folder / 'root', folder / 'log.csv', names, log=False)


ROLES = {'user': 'u', 'item': 'i', 'time': 't'}
ROW = '1::1::5::978300760\n'


def raw(folder: Path, name: str, text: str) -> Path:
    r"""A root with one raw file."""
    (folder / 'raw').mkdir(exist_ok=True)
    (folder / 'raw' / name).write_text(text)
    return folder


def rated(folder: Path, ratings: str, movies: str = '1::Heat (1995)::Crime\n') -> Path:
    r"""A root with the files of MovieLens-1M."""
    raw(folder, 'ratings.dat', ratings)
    raw(folder, 'users.dat', '1::F::25::2::0\n')
    return raw(folder, 'movies.dat', movies)


def videos(folder: Path, features: np.ndarray) -> Path:
    r"""A root with two interactions and the features of one modality."""
    raw(folder, 'interactions.csv', 'user,item\n1,0\n2,1\n')
    np.save(folder / 'raw' / 'text.npy', features)
    return folder


def wrote(folder: Path) -> Path:
    r"""A file of a log."""
    (folder / 'log.csv').write_text('u,i,t\n1,2,3\n')
    return folder / 'log.csv'


class Shop(ClickDataset):
    r"""A log of one row, which is made up."""

    raw_file_names = ['log.csv']
    arguments = {}
    table: LogTable | None = None
    columns: dict[str, object] = {}

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        values = {'user': 1, 'item': 2, 'time': 3, 'label': 1} | self.columns
        columns = ', '.join(f'{value} AS {name}' for name, value in values.items())
        connection.execute(f'CREATE TABLE log AS SELECT {columns}')
        return self.table  # type: ignore[return-value]

    @classmethod
    def reading(cls, folder: Path, table: LogTable | None, **columns: object) -> ClickDataset:
        cls.table, cls.columns = table, columns
        return cls(raw(folder, 'log.csv', 'read by nobody'), log=False)


def rows(preds: list, target: list, group: list) -> tuple[torch.Tensor, ...]:
    return torch.tensor(preds), torch.tensor(target), torch.tensor(group)


def plan(folder: Path, **arguments: Any) -> BuildPlan:
    r"""A plan of a log of one row."""
    return BuildPlan(**{
        'log': LogSchema(str(wrote(folder)), {'user': 'u', 'item': 'i', 'time': 't'}),
        'out': folder / 'store', 'groups': {'user': 2, 'item': 2}, **arguments,
    })  # fmt: skip


def store(folder: Path) -> Store:
    r"""A store of a log of 40 rows, every other one clicked."""
    rows = '\n'.join(f'{step % 5},{step * 7 % 6},{step},{step % 2}' for step in range(40))
    (folder / 'shop.csv').write_text(f'u,i,t,l\n{rows}\n')
    schema = LogSchema(str(folder / 'shop.csv'), {**ROLES, 'label': 'l'})
    return Store(build(plan(folder, log=schema, cutoffs=[20, 30]), progress=False))


Case = tuple[Callable[[Path], object], type[Exception], str]

CASES: dict[str, Case] = {
    # Datasets
    'movielens name': (lambda p: MovieLens(p, '7m'), ValueError, "'100k'.*got '7m'"),
    'movielens root': (lambda p: MovieLens(7), TypeError, 'must be a path, but got 7'),  # type: ignore[arg-type]
    'kuairand name': (lambda p: KuaiRand(p, 'huge'), ValueError, "got 'huge'"),
    'log column': (
        lambda p: csv_log(p, 'u,i,t,click\n1,2,3,1\n'), ValueError, "'y'.*click"
    ),
    'log role': (
        lambda p: csv_log(p, 'u,i,t,y\n1,2,3,1\n', color='t'), ValueError, 'color'
    ),
    'log label': (lambda p: csv_log(p, 'u,i,t,y\n1,2,3,5\n'), ValueError, '5'),
    'log time': (lambda p: csv_log(p, 'u,i,t,y\n1,2,soon,1\n'), ValueError, 'soon'),
    'log row': (
        lambda p: csv_log(p, 'u,i,t,y\n1,2,3,1\n1,2\n'), ValueError, r'log\.csv.*3'
    ),
    'log empty': (lambda p: csv_log(p, ''), ValueError, 'empty'),
    'log header only': (lambda p: csv_log(p, 'u,i,t,y\n'), ValueError, 'must hold rows'),
    'log columns': (
        lambda p: csv_log(p, 'U,u,t,y\n1,2,3,1\n', user='U', item='u'),
        ValueError,
        "more than upper and lower case, but got 'u' for both 'user' and 'item'",
    ),
    'log line ends': (
        lambda p: csv_log(p, 'u,i,t,y\n1,2,3,1\r\n1,2,3,1\n'),
        ValueError,
        r'log\.csv, line 2: a line must end in LF as before, but got CRLF',
    ),
    'log root': (
        lambda p: EventLog(p / 'log.csv', csv_log(p, 'u,i,t,y\n1,2,3,1\n').source_files, {
            'user': 'u', 'item': 'i', 'time': 't'
        }),
        ValueError,
        r"'root' must be a directory, but .*log\.csv' is a file",
    ),
    'movielens pre_transform': (
        lambda p: MovieLens(p, pre_transform=lambda data: data),
        ValueError,
        "'pre_transform' must have a repr.*lambda",
    ),
    'log missing': (
        lambda p: EventLog(p, p / 'none.csv', {'user': 'u', 'item': 'i', 'time': 't'}),
        FileNotFoundError,
        'none.csv',
    ),
    'log unit': (
        lambda p: EventLog(p, p / 'log.csv', {'user': 'u', 'item': 'i', 'time': 't'}, 'min'),
        ValueError,
        "'time_unit' must be one of 's', 'ms', 'us', 'ns', but got 'min'",
    ),
    'kuairand missing': (
        lambda p: KuaiRand(p), FileNotFoundError, 'log_standard_.*but found none of them'
    ),
    'kuaisar name': (lambda p: KuaiSAR(p, 'v3'), ValueError, "'small', 'full', but got 'v3'"),
    'kuaisar missing': (lambda p: KuaiSAR(p), FileNotFoundError, r'rec_inter\.csv.*KuaiSAR\.zip'),
    'trivago missing': (lambda p: Trivago(p), FileNotFoundError, r'train\.csv.*but found none'),
    'micro video missing': (lambda p: MicroVideo(p), FileNotFoundError, 'but found nothing'),
    'micro video slots': (
        lambda p: MicroVideo(p, num_slots=1), ValueError, "'num_slots'.* at least 2, but got 1"
    ),
    'micro video seed': (
        lambda p: MicroVideo(p, seed=0.5),  # type: ignore[arg-type]
        TypeError,
        "'seed' must be an integer, but got 0.5",
    ),
    'market share': (
        lambda p: SyntheticMarket(9, 9, 9, search_share=1.5),
        ValueError,
        r"'search_share' must be a number in \[0, 1\], but got 1.5",
    ),
    'market lifetime': (
        lambda p: SyntheticMarket(9, 9, 9, id_lifetime=0), ValueError, "'id_lifetime'.*but got 0"
    ),
    'table unit': (lambda p: LogTable(time_unit='h'), ValueError, "'time_unit'.*but got 'h'"),
    'table contexts': (
        lambda p: LogTable(contexts='city'),  # type: ignore[arg-type]
        TypeError,
        "'contexts' must be a tuple of columns, but got 'city'",
    ),
    'table name': (
        lambda p: LogTable(features=('a b',)), ValueError, "name such as 'device', but got 'a b'"
    ),
    'movielens missing': (
        lambda p: MovieLens(raw(p, 'u.data', ROW), log=False),
        FileNotFoundError,
        'has u.data, but not u.item and u.user: put the missing beside it',
    ),
    'movielens rating': (
        lambda p: MovieLens(rated(p, '1::1::6::978300760'), '1m', log=False),
        ValueError,
        r"ratings\.dat: column 'rating' must hold a number from 0 to 5, but got 6.* where user 1",
    ),
    'movielens movie twice': (
        lambda p: MovieLens(rated(p, ROW, '1::Heat (1995)::Crime\n' * 2), '1m', log=False),
        ValueError,
        r'movies\.dat must have one row for the item 1, but got 2',
    ),
    'kuairand root': (lambda p: KuaiRand(None), TypeError, "'root' must be a path, but got None"),  # type: ignore[arg-type]
    'kuairand name type': (
        lambda p: KuaiRand(p, 1), ValueError, "'name' must be one of 'pure', '1k', but got 1"  # type: ignore[arg-type]
    ),
    'kuaisar root': (lambda p: KuaiSAR(3), TypeError, "'root' must be a path, but got 3"),  # type: ignore[arg-type]
    'trivago root': (
        lambda p: Trivago(raw(p, 'train.csv', ROW) / 'raw' / 'train.csv'),
        ValueError,
        r"'root' must be a directory, but .*train\.csv' is a file",
    ),
    'trivago columns': (
        lambda p: Trivago(raw(p, 'train.csv', 'user_id,step\na,1\n'), log=False),
        ValueError,
        r"train\.csv must have a column 'session_id', .* but its columns are 'user_id', 'step'",
    ),
    'trivago empty': (
        lambda p: Trivago(raw(p, 'train.csv', ''), log=False), ValueError, 'must have .* is empty'
    ),
    'micro video negatives': (
        lambda p: MicroVideo(p, num_negatives=True),
        TypeError,
        "'num_negatives' must be an integer, but got True",
    ),
    'micro video features': (
        lambda p: MicroVideo(videos(p, np.ones(3)), log=False),
        ValueError,
        r'text\.npy must hold one array of numbers of shape .*, but got float64 of shape \[3\]',
    ),
    'micro video nan': (
        lambda p: MicroVideo(videos(p, np.array([[1.0, 2.0], [1.0, np.nan]])), log=False),
        ValueError,
        'numbers that are finite as a float32, .* but got nan in row 1, column 1',
    ),
    'micro video item': (
        lambda p: MicroVideo(videos(p, np.ones((1, 2))), log=False),
        ValueError,
        r"interactions\.csv, line 3: column 'item' must hold an item from 0 to 0, .*but got 1",
    ),
    'market exposures': (
        lambda p: SyntheticMarket(9, 9, 1), ValueError, "'num_exposures' must be at least 2.*got 1"
    ),
    'market bias': (
        lambda p: SyntheticMarket(9, 9, 9, selection_bias='strong'),  # type: ignore[arg-type]
        TypeError,
        r"'selection_bias' must be a number in \[0, inf\), but got 'strong'",
    ),
    'table flags': (
        lambda p: LogTable(merge_duplicates='no'), TypeError, "'merge_duplicates' must be.*'no'"  # type: ignore[arg-type]
    ),
    'table query': (
        lambda p: LogTable(query=['terms']), ValueError, r"such as 'device', but got \['terms'\]"  # type: ignore[arg-type]
    ),
    'log path': (
        lambda p: EventLog(p, 3, ROLES), TypeError, "'path' must be a file, .* but got 3"  # type: ignore[arg-type]
    ),
    'log ids': (
        lambda p: EventLog(p, wrote(p), ROLES, ids=7),  # type: ignore[arg-type]
        TypeError,
        "'ids' must be an earlier dataset, its folder or a dictionary of IdMaps .* but got int",
    ),
    'log ids missing': (
        lambda p: EventLog(p / 'root', wrote(p), ROLES, ids=p / 'none'),
        FileNotFoundError,
        "'ids' must name the folder of a dataset .* there is none in '.*none'",
    ),
    'id map mixed': (
        lambda p: IdMap([1, 2.5]), TypeError, 'IdMap expects ids that are .* got float and int'
    ),
    'id map none': (
        lambda p: IdMap(['a', None]), ValueError, 'IdMap expects an id in every row, .* in row 1'
    ),
    'id map kind': (
        lambda p: IdMap(['a']).encode([1.5]), TypeError, "'text' cannot look up .* kind 'float'"
    ),
    'id map twice': (
        lambda p: IdMap.in_order(['a', 'a']), ValueError, "each id once, but 'a' .* in row 1"
    ),
    'id map node': (
        lambda p: IdMap(['a']).decode([-1]), IndexError, "'nodes' must lie from 0 to 0, .* from -1"
    ),
    'id map file': (lambda p: IdMap.load(p / 'none.parquet'), FileNotFoundError, 'none.parquet'),
    'log no path': (
        lambda p: EventLog(p, [], ROLES), ValueError, "'path' must name .* but got an empty list"
    ),
    'log folder': (
        lambda p: EventLog(p / 'root', p, ROLES), ValueError, "'path' must name .* a directory"
    ),
    'log twice': (
        lambda p: EventLog(p / 'root', [wrote(p), wrote(p)], ROLES),
        ValueError,
        r"'path' must name each file once, .*log\.csv' and .*log\.csv'",
    ),
    'log columns type': (
        lambda p: EventLog(p, wrote(p), ['u', 'i', 't']),  # type: ignore[arg-type]
        TypeError,
        r"'columns' must be a dictionary from 'user', .*, but got \['u', 'i', 't'\]",
    ),
    'log columns missing': (
        lambda p: EventLog(p, wrote(p), {'user': 'u'}),
        ValueError,
        "'columns' must have the keys 'user', 'item', 'time' and .*, but got 'user'",
    ),
    'log column name': (
        lambda p: csv_log(p, 'u,i,t,y\n1,2,3,1\n', user=3), TypeError, "for 'user', but got 3"  # type: ignore[arg-type]
    ),
    'log id': (
        lambda p: csv_log(p, 'u,i,t,y\n1,2,3,1\n,2,3,1\n,2,4,1\n'),
        ValueError,
        r"line 3: column 'u' \(user\) must hold an id, but got nothing \(and 1 more such row\)",
    ),
    'own table none': (
        lambda p: Shop.reading(p, None), TypeError, 'Shop.read must return a LogTable, but got None'
    ),
    'own table column': (
        lambda p: Shop.reading(p, LogTable(contexts=('city',))),
        ValueError,
        "must fill the table 'log' with a column 'city', but its columns are 'user', 'item'",
    ),
    'own table label': (
        lambda p: Shop.reading(p, LogTable(), label=2),
        ValueError,
        "row 1 of the log: column 'label' must hold 0 or 1, but got 2",
    ),
    'own table time': (
        lambda p: Shop.reading(p, LogTable(), time="'noon'"),
        TypeError,
        "must fill the column 'time' with numbers or timestamps, but got VARCHAR",
    ),
    'own table click time': (
        lambda p: Shop.reading(p, LogTable(), click_time=2),
        ValueError,
        "column 'click_time' must hold no time before 'time', 3, but got 2",
    ),
    'own file missing': (
        lambda p: Shop(p, log=False), FileNotFoundError, 'Shop needs log.csv in .* did not find all'
    ),
    # Temporal split
    'split order': (
        lambda p: TemporalSplit(0.9, 0.8, 0.95), ValueError, 'must ascend, but got 0.9, 0.8, 0.95'
    ),
    'split range': (lambda p: TemporalSplit(0.5, 0.8, 1.0), ValueError, 'but got 1.0'),
    'split windows': (lambda p: TemporalSplit(num_windows=0), ValueError, 'at least 1.*got 0'),
    'split windows type': (
        lambda p: TemporalSplit(num_windows=2.5), TypeError, 'integer.*2.5'  # type: ignore[arg-type]
    ),
    'split many windows': (
        lambda p: TemporalSplit(num_windows=10**9)(log()),
        ValueError,
        "'num_windows' must be at most .* exposures, which is 40, but got 1000000000",
    ),
    'split share nan': (
        lambda p: TemporalSplit(train_start=float('nan')), ValueError, 'in .0, 1., but got nan'
    ),
    'split keep cold': (
        lambda p: TemporalSplit(keep_cold='no'), TypeError, "'keep_cold' must be True.*'no'"  # type: ignore[arg-type]
    ),
    'split float settled': (
        lambda p: TemporalSplit()(edited(edge_label_settled=torch.rand(40))),
        TypeError,
        "'edge_label_settled' of int64 seconds",
    ),
    'split settled shape': (
        lambda p: TemporalSplit()(edited(edge_label_settled=torch.ones(40, 2).long())),
        ValueError,
        r"'edge_label_settled' of shape \[40\], but got shape \[40, 2\]",
    ),
    'split by': (lambda p: TemporalSplit(by='day'), ValueError, "'global', 'user'.*'day'"),
    'split no data': (lambda p: TemporalSplit()([1]), TypeError, 'HeteroData.*got list'),
    'split no clicks': (lambda p: TemporalSplit()(HeteroData()), ValueError, 'edge type'),
    'split no label': (
        lambda p: TemporalSplit()(without('edge_label')), ValueError, r"\['edge_label'\]"
    ),
    'split float time': (
        lambda p: TemporalSplit()(edited(time=torch.rand(20))), TypeError, 'int64 seconds'
    ),
    'split time shape': (
        lambda p: TemporalSplit()(edited(time=torch.arange(3))), ValueError, r'\[20\].*\[3\]'
    ),
    'split bad user': (
        lambda p: TemporalSplit()(edited(edge_index=torch.full((2, 20), 5))),
        IndexError,
        "user ids of 'edge_index' from 5 to 5.*0 to 4",
    ),
    'split label': (
        lambda p: TemporalSplit()(edited(edge_label=torch.full((40,), 5.0))),
        ValueError,
        '40 of 40 are not, such as 5.0 in row 0',
    ),
    'split label nan': (
        lambda p: TemporalSplit()(edited(edge_label=torch.full((40,), torch.nan))),
        ValueError,
        'such as nan in row 0',
    ),
    'split nothing': (
        lambda p: TemporalSplit()(
            edited(
                edge_label=torch.empty(0),
                edge_label_time=torch.empty(0).long(),
                edge_label_index=torch.empty(2, 0).long(),
            )
        ),
        ValueError,
        'at most the number of exposures, which is 0, but got 12',
    ),
    'split numpy': (
        lambda p: TemporalSplit()(edited(price=np.ones(20))), TypeError, "'price'.*from_numpy"
    ),
    'split label attribute': (
        lambda p: TemporalSplit()(edited(edge_label_behavior=torch.ones(7, 2))),
        ValueError,
        r"'edge_label_behavior' of shape \[40, 2\], but got shape \[7, 2\]",
    ),
    'split label list': (
        lambda p: TemporalSplit()(edited(edge_label_names=['a'])), TypeError, 'but got list'
    ),
    'split twice': (
        lambda p: TemporalSplit()(TemporalSplit(0.5, num_windows=1)(log())[0]),
        ValueError,
        'a part already',
    ),
    'split after recent': (
        lambda p: TemporalSplit()(RecentNeighbors(3)(log())),
        ValueError,
        r"data\['user'\]\.recent.*Split first",
    ),
    'split after coarsen': (
        lambda p: TemporalSplit()(MacroCoarsen(GROUPS)(log())),
        ValueError,
        r"data\['macro_user'\].*its own future",
    ),
    'split one moment': (
        lambda p: TemporalSplit()(
            edited(time=torch.zeros(20).long(), edge_label_time=torch.zeros(40).long())
        ),
        ValueError,
        'no training exposure',
    ),
    # Sampled negatives
    'sampled number': (lambda p: SampleNegatives(0), ValueError, "'num' must be at least 1, .*0"),
    'sampled number type': (
        lambda p: SampleNegatives(1.5), TypeError, "'num' must be an integer.*got 1.5"  # type: ignore[arg-type]
    ),
    'sampled by': (
        lambda p: SampleNegatives(by='rank'), ValueError, "'by'.*'popularity', 'exposure'.*'rank'"
    ),
    'sampled exclude': (
        lambda p: SampleNegatives(exclude=None), ValueError, "'past', 'all', but got None"  # type: ignore[arg-type]
    ),
    'sampled seed': (lambda p: SampleNegatives(seed=-1), ValueError, "'seed'.*least 0.*got -1"),
    'sampled no data': (lambda p: SampleNegatives()([1]), TypeError, 'HeteroData.*got list'),
    'sampled part': (
        lambda p: SampleNegatives()(TemporalSplit(0.5, num_windows=1)(log())[0]),
        ValueError,
        'expects a whole log.*Apply SampleNegatives before TemporalSplit',
    ),
    'sampled no labels': (
        lambda p: SampleNegatives()(without('edge_label')), ValueError, r"\['edge_label'\]"
    ),
    'sampled context': (
        lambda p: SampleNegatives()(edited(edge_label_device=torch.zeros(39))),
        ValueError,
        r"'edge_label_device' of shape \[40\], but got shape \[39\]",
    ),
    'sampled no clicks': (
        lambda p: SampleNegatives()(edited(edge_label=torch.zeros(40))),
        ValueError,
        'adds to exposures that were clicked, but none of 40 was',
    ),
    'sampled by clicks': (
        lambda p: SampleNegatives(by='exposure')(edited(edge_label=torch.ones(40))),
        ValueError,
        "all of 40 in this log were clicked.*pass by='popularity'",
    ),
    'sampled one moment': (
        lambda p: SampleNegatives()(
            edited(edge_label_time=torch.zeros(40).long(), time=torch.zeros(20).long())
        ),
        ValueError,
        r'SampleNegatives\(num=1.*\) leaves no item to draw: at each of 20 clicks its user has',
    ),
    # Recent neighbors
    'recent num': (lambda p: RecentNeighbors(0), ValueError, 'at least 1.*0'),
    'recent form': (lambda p: RecentNeighbors(5, 'id'), ValueError, "'paper', 'released'.*'id'"),
    'recent no time': (lambda p: RecentNeighbors()(without('time')), ValueError, r"\['time'\]"),
    'recent future': (
        lambda p: RecentNeighbors()(edited(cutoff=torch.tensor(10))),
        ValueError,
        'cutoff of this data is 10',
    ),
    # Macro coarsening
    'coarsen groups': (lambda p: MacroCoarsen({'user': 2}), ValueError, "'user' and 'item'"),
    'coarsen group type': (
        lambda p: MacroCoarsen({'user': 2.0, 'item': 3}), TypeError, "groups.'user'.*integer.*2.0"  # type: ignore[dict-item]
    ),
    'coarsen group size': (
        lambda p: MacroCoarsen({'user': 0, 'item': 3}), ValueError, "'user'.*at least 1"
    ),
    'coarsen no group': (
        lambda p: MacroCoarsen({'user': [], 'item': 3}), ValueError, r"'user'.*one or more, .* \[\]"
    ),
    'coarsen group twice': (
        lambda p: MacroCoarsen({'user': 3, 'item': [50, 'category', 50]}),
        ValueError,
        r"'item'.*each group once, but got \[50, 'category', 50\]",
    ),
    'coarsen group twice as text': (
        lambda p: MacroCoarsen({'user': 3, 'item': [50, '50']}), ValueError, 'each group once'
    ),
    'coarsen groups type': (
        lambda p: MacroCoarsen({'user': [3, 2.5], 'item': 3}),  # type: ignore[list-item]
        TypeError,
        r"groups\['user'\]\[1\]' must be an integer, but got 2.5",
    ),
    'coarsen groups size': (
        lambda p: MacroCoarsen({'user': [3, 0], 'item': 3}),
        ValueError,
        r"\[1\]' must be at least 1, but got 0",
    ),
    'coarsen group since': (
        lambda p: MacroCoarsen({'user': 3, 'item': [2, 'since']}),
        ValueError,
        "cannot name 'since' after another group.*put it first, or rename",
    ),
    'coarsen groups too few': (
        lambda p: MacroCoarsen({'user': [2, 50], 'item': 'category'})(log()),
        ValueError,
        '50 clusters.*got 5',
    ),
    'coarsen groups circle': (
        lambda p: MacroCoarsen({'user': [2, 3], 'item': [2, 'category']}, behavior='macro'),
        ValueError,
        'both users and items',
    ),
    'coarsen exposure hops': (
        lambda p: MacroCoarsen(GROUPS, exposure_hops=3), ValueError, "'exposure_hops'.*below 3"
    ),
    'coarsen further hops': (
        lambda p: MacroCoarsen(GROUPS, further_hops=0), ValueError, "'further_hops'.*at least 1"
    ),
    'coarsen late exposures': (
        lambda p: MacroCoarsen(GROUPS)(seen(time=torch.full((40,), 10**6))),
        ValueError,
        'found exposures up to 1000000, but the cutoff',
    ),
    'coarsen exposures of others': (
        lambda p: MacroCoarsen(GROUPS)(seen(edge_index=torch.full((2, 40), 99))),
        IndexError,
        r'user ids of edge_index of data.*99',
    ),
    'coarsen untimed exposures': (
        lambda p: MacroCoarsen(GROUPS)(seen(time=None)), ValueError, "no 'time'.*'sees', 'item'"
    ),
    'coarsen hops': (lambda p: MacroCoarsen(GROUPS, num_hops=0), ValueError, 'num_hops'),
    'coarsen mode': (
        lambda p: MacroCoarsen(GROUPS, mode='shell'), ValueError, "'set', 'walk'.*'shell'"
    ),
    'coarsen behavior': (
        lambda p: MacroCoarsen(GROUPS, behavior='cosine'), ValueError, "'macro', 'raw'"
    ),
    'coarsen circle': (
        lambda p: MacroCoarsen({'user': 2, 'item': 2}, behavior='macro'),
        ValueError,
        'both users and items',
    ),
    'coarsen projection': (
        lambda p: MacroCoarsen(GROUPS, projection_dim=0), ValueError, 'projection_dim'
    ),
    'coarsen binary': (
        lambda p: MacroCoarsen(GROUPS, binary='yes'), TypeError, "'binary' must be True or.*'yes'"  # type: ignore[arg-type]
    ),
    'coarsen tensors': (
        lambda p: MacroCoarsen(GROUPS, edge_tensors='x'), TypeError, "'edge_tensors' must be.*'x'"  # type: ignore[arg-type]
    ),
    'coarsen spherical': (
        lambda p: MacroCoarsen(GROUPS, spherical=1), TypeError, "'spherical' must be True.*got 1"  # type: ignore[arg-type]
    ),
    'coarsen seed': (
        lambda p: MacroCoarsen(GROUPS, seed=2**31), ValueError, "'seed' must lie below 2147483648"
    ),
    'coarsen later': (
        lambda p: later_part(MacroCoarsen(GROUPS)), ValueError, 'fitted as of time.*own future'
    ),
    'coarsen attribute': (
        lambda p: MacroCoarsen({'user': 2, 'item': 'genre'})(log()), ValueError, "'genre'.*category"
    ),
    'coarsen too few': (
        lambda p: MacroCoarsen({'user': 50, 'item': 'category'})(log()),
        ValueError,
        '50 clusters.*got 5',
    ),
    'coarsen other log': (
        lambda p: MacroCoarsen(GROUPS).fit(log())(smaller()), ValueError, 'fitted on 5 users'
    ),
    # Views of one window
    'window log': (lambda p: window(log(), 0), ValueError, "'cutoff'.*but got a whole log"),
    'window graph': (lambda p: window('log', 0), TypeError, 'HeteroData.*got str'),  # type: ignore[arg-type]
    'window type': (lambda p: window(seen(), 0.0), TypeError, "'number' must be an integer.*0.0"),  # type: ignore[arg-type]
    'window below': (lambda p: window(seen(), -1), IndexError, 'from 0 to 0.*1 window, but got -1'),
    'window beyond': (
        lambda p: window(TemporalSplit(0.4, 0.7, 0.85, num_windows=3)(log())[0], 3),
        IndexError,
        'from 0 to 2, as this part has 3 windows, but got 3',
    ),
    'window seen time': (
        lambda p: window(seen(time=None), 0), ValueError, "no 'time'.*'sees', 'item'"
    ),
    # Counts at the target
    'counts views': (
        lambda p: TargetCounts(['user']),  # type: ignore[list-item]
        TypeError,
        r"'views' must be a list of TargetView, but got \['user'\]",
    ),
    'counts one view': (
        lambda p: TargetCounts(5), TypeError, "'views' must be a list of TargetView, but got 5"  # type: ignore[arg-type]
    ),
    'counts view twice': (
        lambda p: TargetCounts([TargetView('id'), TargetView('id')]),
        ValueError,
        r"'views' must name each view once, but got \['user', 'user'\]",
    ),
    'counts no view': (
        lambda p: TargetCounts([]), ValueError, r"'views' must name something to count.* got \[\]"
    ),
    'counts half-life': (
        lambda p: TargetCounts(half_lives=5.0),  # type: ignore[arg-type]
        TypeError,
        "'half_lives' must be a sequence of times such as .*, but got 5.0",
    ),
    'counts half-life 0': (
        lambda p: TargetCounts(half_lives=[0.0]), ValueError, r"'half_lives\[0\]' must be.*got 0.0"
    ),
    'counts no attribute': (
        lambda p: TargetCounts([TargetView('id'), TargetView('id', 'brand')]).fit(macro()),
        ValueError,
        "counts by 'brand' of items, but data\\['item'\\] has",
    ),
    'counts whole log': (
        lambda p: TargetCounts()(log()), ValueError, 'pass the parts that TemporalSplit returns'
    ),
    'counts no macro nodes': (
        lambda p: TargetCounts()(seen()), ValueError, 'no macro nodes of users: apply MacroCoarsen'
    ),
    'counts clicked': (
        lambda p: TargetCounts([TargetView('id')])(seen(clicked=torch.full((40,), 0.5))),
        ValueError,
        "'clicked' of 1 for a click and 0 for none.* such as 0.5 in row 0",
    ),
    'counts part as log': (
        lambda p: TargetCounts()(macro(), log=macro()), ValueError, 'expects a whole log'
    ),
    'counts no state': (lambda p: TargetCounts().state(macro()), ValueError, 'fit it on a train'),
    'state user': (lambda p: ask(user=5), IndexError, 'users from 5 to 5, .* from -1 to 4'),
    'state item': (lambda p: ask(item=-2), IndexError, 'items from -2 to -2, .* from -1 to 5'),
    'state past': (lambda p: ask(time=3), ValueError, 'was asked for those of 3'),
    'state clicked': (lambda p: tell(0.5), ValueError, "'clicked' of 1 .* such as 0.5 in row 0"),
    'state order': (lambda p: tell(time=3), ValueError, 'in the order of time, but got one of 3'),
    'state list': (
        lambda p: state()([0], [0], [99]), TypeError, "'user' to be a tensor of .* got list"  # type: ignore[arg-type]
    ),
    'macro state before': (
        lambda p: MacroCoarsen(GROUPS).state(TemporalSplit(0.5, num_windows=1)(log())[0]),
        ValueError,
        'moves macro rows of 2 hops, but this data has 0: apply it to the data first',
    ),
    'macro state other': (
        lambda p: MacroCoarsen(GROUPS, binary=False).state(clicked([1, 1, 2], [0, 0, 1])),
        ValueError,
        r"other macro edges \('macro_item', 'hop1', 'user'\) than .*binary=False",
    ),
    'macro state released': (
        lambda p: MacroCoarsen(GROUPS).state(clicked([4, 3, 2, 1], [0, 0, 0, 0], 'released')),
        ValueError,
        r"data\['item'\].recent holds others: apply RecentNeighbors\(form='paper'\)",
    ),
    'macro state node': (
        lambda p: macro_state().rows('user', torch.tensor([5])),
        IndexError,
        'MacroState found user ids from 5 to 5, but expected them from -1 to 4',
    ),
    'macro state click': (
        lambda p: macro_state().update(torch.tensor([[0], [6]])),
        IndexError,
        'item ids from 6 to 6, but expected them from 0 to 5',
    ),
    'macro state cluster': (
        lambda p: macro_state().update(torch.tensor([[0], [0]]), item_cluster=torch.arange(6) % 2),
        ValueError,
        "'item_cluster' must keep the clusters of the 6 items",
    ),
    'macro state list': (
        lambda p: macro_state().update([[0], [0]]), TypeError, "'edge_index' .* but got list"  # type: ignore[arg-type]
    ),
    # Slots, hypergraphs, texts and behaviors
    'slots span': (
        lambda p: TimeSlots(60)(edited(time=torch.tensor([-(2**62), 2**62]).repeat(10))),
        ValueError,
        f'from {-(2**62)} to {2**62}, but int64 cannot hold the difference',
    ),
    'slots label span': (
        lambda p: TimeSlots(60)(edited(edge_label_time=torch.arange(40) - 2**63)),
        ValueError,
        f'from {-(2**63)} to 38, but int64',
    ),
    'slots granularity': (
        lambda p: TimeSlots(2**63), ValueError, "'granularity' must lie below 922.*, but got 922"
    ),
    'text surrogate': (
        lambda p: TextFeatures(['fine', 'not \ud83d here'], lambda texts: np.ones((2, 3))),
        ValueError,
        r"'texts' must be Unicode, but that of item 1 is not .*'\\ud83d' in position 4: surrogates",
    ),
    'text words': (
        lambda p: TextFeatures('Heat', rows_of(2)), TypeError, "of a str an item, but got 'Heat'"
    ),
    'text nothing': (
        lambda p: TextFeatures(['Heat', None], rows_of(2)), TypeError, 'item, but holds None'  # type: ignore[list-item]
    ),
    'text encode': (
        lambda p: TextFeatures(['Heat'], 'bert'), TypeError, "'encode' must be a func.*got 'bert'"  # type: ignore[arg-type]
    ),
    'text words returned': (
        lambda p: TextFeatures(['Heat'], lambda texts: np.array([['a']])),
        TypeError,
        'tensor of numbers, but returned ndarray of <U1',
    ),
    'text rows returned': (
        lambda p: TextFeatures(['Heat'], rows_of(2)), ValueError, r'shape \[1, D\].*returned \[2, 3'
    ),
    'text infinite': (
        lambda p: TextFeatures(['Heat'], lambda texts: torch.full((1, 2), torch.inf)),
        ValueError,
        r"'encode\(texts\)' of finite float32, but 2 of 2 are not, such as inf in row 0, column 0",
    ),
    'text items': (
        lambda p: TextFeatures(['Heat', 'Alien'], rows_of(2))(log()),
        ValueError,
        "'texts' must be one an item of the data, 6, but got 2",
    ),
    'text no data': (
        lambda p: TextFeatures(['Heat', 'Alien'], rows_of(2))('log'), TypeError, 'got str'  # type: ignore[arg-type]
    ),
    'field text template': (
        lambda p: FieldText(template='{field}'), ValueError, r"once each, as in .*got '\{field\}'"
    ),
    'field text tokenizer': (
        lambda p: FieldText(p), FileNotFoundError, "path of a tokenizer.json .*no file '.*json'"
    ),
    'field text names': (
        lambda p: FieldText(names={'category': ['a', 'b']})(log()),
        ValueError,
        "a name for each of the 3 values of 'item_category', but got 2",
    ),
    'field text description': (
        lambda p: FieldText(descriptions={'item': {'title': ['Heat']}})(log()),
        ValueError,
        r"'descriptions\['item'\]\['title'\]' must hold a text for each of 6, but got 1",
    ),
    'field text half a character': (
        lambda p: FieldText(descriptions={'item': {'title': ['\ud83d']}}),
        ValueError,
        "must be Unicode, but that of place 0 is not",
    ),
    'field text without': (
        lambda p: FieldText(without=('item_year',))(log()),
        ValueError,
        r"fields among \['item_category'\], but got 'item_year'",
    ),
    'field text no data': (lambda p: FieldText()('log'), TypeError, 'HeteroData .* got str'),  # type: ignore[arg-type]
    'text encoder heads': (
        lambda p: TextEncoder(9, 10), ValueError, "a multiple of 'num_heads', which is 4, .* got 10"
    ),
    'text encoder length': (
        lambda p: TextEncoder(9, max_length=2)(torch.ones(1, 3).long(), torch.ones(1, 3).bool()),
        ValueError,
        "TextEncoder expects sentences of at most 'max_length' tokens, 2, but got one of 3",
    ),
    'text encoder token': (
        lambda p: TextEncoder(9)(torch.full((1, 3), 9), torch.ones(1, 3).bool()),
        IndexError,
        "ids of 'tokens' from 9 to 9, but expected them from -1 to 8",
    ),
    'pretrained text folder': (
        lambda p: PretrainedTextEncoder('bert'), FileNotFoundError, "'bert' has no config.json"
    ),
    'behaviors missing': (
        lambda p: BehaviorGraph()(log()), ValueError, r"have \['edge_label_behavior'\], but it has"
    ),
    'behaviors shape': (
        lambda p: BehaviorGraph()(bought(edge_label_behavior=torch.ones(40))),
        ValueError,
        r"'edge_label_behavior' of shape \[40, num_behaviors\], but got shape \[40\]",
    ),
    'behaviors half': (
        lambda p: BehaviorGraph()(bought(edge_label_behavior=torch.full((40, 2), 0.5))),
        ValueError,
        "'edge_label_behavior' of 0 and 1, .* but 80 of 80 are not, such as 0.5 in row 0, column 0",
    ),
    'behaviors without a click': (
        lambda p: BehaviorGraph()(bought(edge_label_behavior=torch.ones(40, 2))),
        ValueError,
        'of 0 alone in a row that was not clicked, but 40 of 80 are not, such as 1.0 in row 1',
    ),
    'behaviors of no clicks': (
        lambda p: BehaviorGraph()(bought(edge_label=torch.zeros(40))),
        ValueError,
        'a click and a behavior or more, but got 0 clicks in 40 exposures and 2 behaviors',
    ),
    'behaviors of another log': (
        lambda p: BehaviorGraph().fit(bought())(bought(edge_label_behavior=torch.ones(40, 3))),
        ValueError,
        r'The fitted BehaviorGraph expects .*num_exposures, 2\], but got shape \[40, 3\]',
    ),
    'split settled length': (
        lambda p: TemporalSplit()(edited(edge_label_settled=torch.ones(39).long())),
        ValueError,
        r"'edge_label_settled' of shape \[40\], but got shape \[39\]",
    ),
    'split label scalar': (
        lambda p: TemporalSplit()(edited(edge_label_weight=torch.tensor(1.0))),
        ValueError,
        r"'edge_label_weight' of shape \[40\], but got shape \[\]",
    ),
    'split label numpy': (
        lambda p: TemporalSplit()(edited(edge_label_weight=np.ones(40))),
        TypeError,
        "'edge_label_weight' of data.* must be a tensor.*torch.from_numpy",
    ),
    'behaviors later': (
        lambda p: later_part(BehaviorGraph()), ValueError, 'fitted as of time.*own future'
    ),
    # Compression
    'quantized size': (lambda p: QuantizedEmbedding(0, 4, 2), ValueError, 'at least 1, but got 0'),
    'quantized codes': (lambda p: QuantizedEmbedding(9, 10, 4), ValueError, '10, but got 4'),
    'quantized bits': (lambda p: QuantizedEmbedding(9, 4, 2, 6), ValueError, '4, 8, but got 6'),
    'quantized rows': (
        lambda p: QuantizedEmbedding.from_weight(torch.rand(9, 4), 2), ValueError, '256.*got 9 rows'
    ),
    'quantized nan': (
        lambda p: QuantizedEmbedding.from_weight(torch.full((16, 2), float('nan')), 2, 4),
        ValueError,
        'such as nan in row 0',
    ),
    'quantized list': (
        lambda p: QuantizedEmbedding.from_weight([[1.0]], 1), TypeError, r'shape \[N, d\].*got list'  # type: ignore[arg-type]
    ),
    'quantized seed': (
        lambda p: QuantizedEmbedding.from_weight(torch.rand(16, 4), 2, 4, seed=-1),
        ValueError,
        "'seed' must be at least 0, but got -1",
    ),
    'quantized ids': (
        lambda p: QuantizedEmbedding(9, 4, 2)(torch.tensor([9])), IndexError, 'from 0 to 8'
    ),
    'quantized float ids': (
        lambda p: QuantizedEmbedding(9, 4, 2)(torch.rand(3)), TypeError, 'integers, but got'
    ),
    'compress type': (lambda p: compress_tables([], 2), TypeError, 'got list'),  # type: ignore[arg-type]
    'compress nothing': (
        lambda p: compress_tables(torch.nn.Linear(2, 2), 2), ValueError, 'no table in Linear'
    ),
    'compress codes': (
        lambda p: compress_tables(torch.nn.Sequential(torch.nn.Embedding(99, 10)), 4, 4),
        ValueError,
        "'num_codes' must divide",
    ),
    'encode counts': (
        lambda p: encode_counts(torch.tensor([0, -1])), ValueError, '0 to 16777216.*-1 in row 1'
    ),
    'encode nan': (
        lambda p: encode_counts(torch.tensor([float('nan')])), ValueError, 'nan in row 0'
    ),
    'encode large': (
        lambda p: encode_counts(torch.tensor([2**25])), ValueError, 'such as 33554432 in row 0'
    ),
    'encode list': (lambda p: encode_counts([1]), TypeError, 'got list'),  # type: ignore[arg-type]
    'decode counts': (lambda p: decode_counts(torch.ones(2)), TypeError, 'uint8'),
    # Grouping
    'grouping spherical': (
        lambda p: Grouping(2, spherical='x'), TypeError, "'spherical' must be True or False.*'x'"  # type: ignore[arg-type]
    ),
    'grouping seed': (
        lambda p: Grouping(2, seed=2**31), ValueError, "'seed' must lie below 2147483648, but got 2"
    ),
    'grouping size': (lambda p: Grouping(0), ValueError, 'at least 1.*0'),
    'grouping iterations': (lambda p: Grouping(2, num_iterations=0), ValueError, 'at least 1'),
    'grouping rows': (lambda p: Grouping(9).fit(torch.rand(3, 2)), ValueError, 'got 3'),
    'grouping shape': (lambda p: Grouping(2).fit(torch.rand(3)), ValueError, r'\[3\]'),
    'grouping nan': (
        lambda p: Grouping(1).fit(torch.tensor([[0.0], [float('nan')]])), ValueError, 'row 1'
    ),
    'grouping unfitted': (
        lambda p: Grouping(2).assign(torch.rand(3, 2)), RuntimeError, "'fit' or 'load'"
    ),
    'grouping width': (
        lambda p: fitted().assign(torch.rand(3, 5)), ValueError, r'num_nodes, 2., .*3, 5'
    ),
    'grouping file': (lambda p: load_junk(p), ValueError, 'no file that mag wrote'),
    'projection': (
        lambda p: raw_behavior(None, 0, 0), ValueError, 'projection_dim'  # type: ignore[arg-type]
    ),
    # Macro edges
    'edges hops': (lambda p: counts(num_hops=0), ValueError, 'num_hops'),
    'edges mode': (lambda p: counts(mode='shell'), ValueError, 'shell'),
    'edges binary': (lambda p: counts(binary='yes'), TypeError, "'binary' must be True.*'yes'"),
    'edges boolean number': (
        lambda p: MacroEdges(torch.tensor([0]), torch.tensor([0]), {'user': True, 'item': 2}),
        TypeError,
        "num_clusters.'user'.*got True",
    ),
    'edges cluster': (
        lambda p: MacroEdges(torch.tensor([3]), torch.tensor([0]), {'user': 2, 'item': 2}),
        IndexError,
        "'user_cluster' from 3 to 3, but expected them from -1 to 1",
    ),
    'edges float cluster': (
        lambda p: MacroEdges(torch.rand(2), torch.tensor([0]), {'user': 2, 'item': 2}),
        TypeError,
        'integers',
    ),
    'edges shape': (
        lambda p: counts().update(torch.zeros(3, 2).long()), ValueError, r'\[3, 2\]'
    ),
    'edges new user': (
        lambda p: counts().update(torch.tensor([[3], [0]])),
        IndexError,
        'user ids from 3 to 3, but expected them from 0 to 2',
    ),
    'edges moved': (
        lambda p: counts().update(torch.tensor([[0], [0]]), user_cluster=torch.tensor([1, 1, 1])),
        ValueError,
        'count anew',
    ),
    'edges too large': (
        lambda p: counts(num_hops=3, max_bytes=1).update(torch.tensor([[0], [0]])),
        ValueError,
        "MiB.*mode='walk'",
    ),
    'edges tensor hop': (lambda p: counts().tensors('user', 3), ValueError, 'below 3'),
    'edges tensor node': (lambda p: counts().tensors('tag', 1), ValueError, "'tag'"),
    # Layers
    'dice size': (lambda p: Dice(0), ValueError, 'at least 1.*0'),
    'dice size type': (lambda p: Dice(3.0), TypeError, 'an integer.*3.0'),  # type: ignore[arg-type]
    'mlp type': (lambda p: MLP(3), TypeError, "'channels' must be a sequence of sizes.*3"),  # type: ignore[arg-type]
    'dice shape': (lambda p: Dice(3)(torch.rand(2, 4)), ValueError, r'\[B, 3\].*\[2, 4\]'),
    'mlp channels': (lambda p: MLP([3]), ValueError, 'two sizes or more'),
    'dice type': (lambda p: Dice(3)([1.0]), TypeError, "'x' to be a tensor.*got list"),
    'dice integers': (lambda p: Dice(2)(torch.ones(2, 2).long()), TypeError, "'x' of floats"),
    'dice one row': (lambda p: Dice(2, 'released')(torch.ones(1, 2)), ValueError, 'two rows'),
    'mlp form': (lambda p: MLP([3, 1], 'relu'), ValueError, "'paper', 'released', but got 'relu'"),
    'conv size': (lambda p: MacroConv(0, 2), ValueError, "'in_channels'.* at least 1.* got 0"),
    'conv temperature': (lambda p: MacroConv(2, 2, 0.0), ValueError, 'temperature.*0.0'),
    'conv temperature type': (
        lambda p: MacroConv(2, 2, 'hot'), TypeError, "'temperature' must be a number.*'hot'"  # type: ignore[arg-type]
    ),
    'conv form': (
        lambda p: MacroConv(2, 2, form='none'), ValueError, "'released', 'twin', but got 'none'"
    ),
    'conv width': (lambda p: call_conv(torch.rand(2, 3), width=5), ValueError, r'\[M, 4\]'),
    'conv target': (
        lambda p: MacroConv(4, 8)((torch.rand(3, 4), torch.rand(4)), torch.rand(1, 3)),
        ValueError,
        r"'targets' of shape \[B, 4\], but got shape \[4\]",
    ),
    'conv target id': (
        lambda p: call_conv(torch.tensor([[0], [2]]), torch.ones(1)),
        IndexError,
        "targets of 'edge_index' from 2 to 2, but expected them from 0 to 1",
    ),
    'conv integer counts': (
        lambda p: call_conv(torch.ones(3, 3).long()), ValueError, r"'edge_index' of shape \[2, E\]"
    ),
    'conv weight twice': (
        lambda p: call_conv(torch.rand(2, 3).to_sparse(), torch.rand(2)),
        ValueError,
        "without 'edge_weight'",
    ),
    'conv counts': (lambda p: call_conv(torch.rand(3, 3)), ValueError, r'\[2, 3\].*\[3, 3\]'),
    'conv single': (lambda p: MacroConv(4, 8)(torch.rand(3, 4), None), TypeError, 'as a pair'),
    'conv double weight': (
        lambda p: call_conv(torch.rand(2, 3), torch.rand(2)), ValueError, "without 'edge_weight'"
    ),
    'conv macro node': (
        lambda p: MacroConv(4, 8, mask_zero=False)(
            (torch.rand(3, 4), torch.rand(2, 4)), torch.tensor([[0, 4], [0, 0]]), torch.ones(2)
        ),
        IndexError,
        "macro nodes of 'edge_index' from 0 to 4.*from 0 to 2",
    ),
    'conv no weight': (
        lambda p: call_conv(torch.zeros(2, 6).long()), TypeError, r"'edge_weight'.*\[6\]"
    ),
    # Loader
    'loader no macro': (lambda p: PairLoader(log()), ValueError, 'apply MacroCoarsen first'),
    'loader no data': (lambda p: PairLoader('log'), TypeError, 'got str'),  # type: ignore[arg-type]
    'loader batch size': (lambda p: PairLoader(macro(), 0), ValueError, 'batch_size.*0'),
    'loader sampler': (
        lambda p: PairLoader(macro(), drop_last=True), TypeError, 'drop_last'
    ),
    'loader whole log': (
        lambda p: PairLoader(MacroCoarsen(GROUPS)(log())), ValueError, 'own future.*TemporalSplit'
    ),
    'loader counts': (
        lambda p: PairLoader(miscounted(-1.0)), ValueError, r'hop1 of users.*inf\), but got -1'
    ),
    'loader infinite counts': (
        lambda p: PairLoader(miscounted(torch.inf)), ValueError, r'\[0, inf\), but got inf'
    ),
    'loader macro id': (
        lambda p: PairLoader(misplaced(0)), IndexError, 'macro nodes of hop1 .* to 9.*0 to 2'
    ),
    'loader node id': (
        lambda p: PairLoader(misplaced(1)), IndexError, 'user ids of hop1 from .* to 9.*0 to 4'
    ),
    'loader recent id': (
        lambda p: PairLoader(misremembered()),
        IndexError,
        r"items in data\['user'\].* to 6.*-1 to 5",
    ),
    'loader leak': (lambda p: PairLoader(leaking()), ValueError, 'own future'),
    'loader item': (
        lambda p: PairLoader(macro()).request(0, torch.tensor([6])), IndexError, 'item ids'
    ),
    'sampler batch size': (lambda p: BatchIndexSampler(5, -1), ValueError, '-1'),
    # Model
    'model size': (lambda p: MacGNN(5, 0, 2, 2), ValueError, "'num_items'.*0"),
    'model dropout': (
        lambda p: MacGNN(5, 6, 2, 2, id_dropout=1.0),
        ValueError,
        r"'id_dropout' must be a number in \[0, 1\), but got 1.0",
    ),
    'model user': (
        lambda p: MacGNN.from_data(macro())(loader().request(0, torch.tensor([1]))._replace(
            user=torch.tensor([5])
        )),
        IndexError,
        'user ids from 5 to 5, but expected them from -1 to 4',
    ),
    'ids size': (lambda p: IdEmbedding('user', 0, 2), ValueError, "'num_ids' must be at least 1"),
    'ids dropout': (
        lambda p: IdEmbedding('user', 3, 2, 'a lot'), TypeError, "'dropout' must be a number"  # type: ignore[arg-type]
    ),
    'ids below': (
        lambda p: IdEmbedding('user', 3, 2)(torch.tensor([-2])),
        IndexError,
        'IdEmbedding found user ids from -2 to -2, but expected them from -1 to 2',
    ),
    'ids floats': (
        lambda p: IdEmbedding('user', 3, 2)(torch.ones(2)), TypeError, "'user ids' of integers"
    ),
    'ids shrink': (
        lambda p: IdEmbedding('user', 3, 2).grow(2), ValueError, "'num_ids' must be at least 3"
    ),
    'query shrink': (
        lambda p: QueryEmbedding(5, 2).grow(4), ValueError, "'num_terms' must be at least 5"
    ),
    'model no macro': (lambda p: MacGNN.from_data(log()), ValueError, 'apply MacroCoarsen'),
    'model hops': (
        lambda p: MacGNN.from_data(macro(), num_hops=3), ValueError, '3 hops.*has 2'
    ),
    'model recent': (
        lambda p: MacGNN.from_data(MacroCoarsen(GROUPS)(log()), recent=True),
        ValueError,
        'RecentNeighbors',
    ),
    # Layers, loader and model of conversions
    'hash fields': (
        lambda p: HashEmbedding('user', 10, 2), TypeError, "sequence of names, but got 'user'"
    ),
    'hash no fields': (lambda p: HashEmbedding([], 10, 2), ValueError, 'one name or more'),
    'hash buckets': (
        lambda p: HashEmbedding(['user'], 0, 2), ValueError, "'num_buckets'.* at least 1, but got 0"
    ),
    'hash shape': (
        lambda p: HashEmbedding(['user'], 9, 2)(torch.zeros(4, 2).long()),
        ValueError,
        r"\['user'\].* 'ids' of shape \[B, 1\], but got shape \[4, 2\]",
    ),
    'hash floats': (
        lambda p: HashEmbedding(['user'], 9, 2)(torch.rand(4, 1)), TypeError, "'ids' of int.*float"
    ),
    'weighting': (
        lambda p: propensity_weights(torch.ones(2), torch.ones(2), 'snips'),
        ValueError,
        "'self_normalized'.*got 'snips'",
    ),
    'features no data': (lambda p: ExposureFeatures([1]), TypeError, 'HeteroData.*got list'),  # type: ignore[arg-type]
    'features float id': (
        lambda p: ExposureFeatures(edited(edge_label_hour=torch.rand(40), num_hour=24)),
        TypeError,
        "'edge_label_hour' of integers.*float32",
    ),
    'features length': (
        lambda p: ExposureFeatures(edited(edge_label_hour=torch.ones(20).long(), num_hour=24)),
        ValueError,
        r"'edge_label_hour' of shape \[40\], but got shape \[20\]",
    ),
    'features nan': (
        lambda p: ExposureFeatures(edited(edge_label_x=torch.full((40, 2), torch.nan))),
        ValueError,
        "'edge_label_x' of finite float32, .* such as nan in row 0",
    ),
    'features integer x': (
        lambda p: ExposureFeatures(edited(edge_label_x=torch.ones(40).long())),
        TypeError,
        "'edge_label_x' of floats.*int64",
    ),
    'exposures sampler': (
        lambda p: ExposureLoader(log(), drop_last=True), TypeError, 'drop_last'
    ),
    'exposures no click': (
        lambda p: ExposureLoader(bought(edge_label_conversion=torch.ones(40))),
        ValueError,
        "'edge_label_conversion' in 20 exposures without a click, such as row 1",
    ),
    'exposures behavior': (
        lambda p: ExposureLoader(bought(edge_label_behavior=torch.full((40, 2), 0.5))),
        ValueError,
        "'edge_label_behavior' of 0 and 1, but 80 of 80 are not, such as 0.5 in row 0, column 0",
    ),
    'exposures shape': (
        lambda p: ExposureLoader(bought(edge_label_behavior=torch.ones(40))),
        ValueError,
        r"'edge_label_behavior' of shape \[40, N\], but got shape \[40\]",
    ),
    'request item': (
        lambda p: ExposureLoader(bought()).request(0, torch.tensor([6])),
        IndexError,
        'item ids from 6 to 6, but expected them from -1 to 5',
    ),
    'request no query': (
        lambda p: searched().request(0, torch.tensor([1])),
        ValueError,
        r"must tell \['query'\], but told none",
    ),
    'request float query': (
        lambda p: searched().request(0, torch.tensor([1]), query=torch.rand(3)),
        TypeError,
        "'query' must hold integer ids",
    ),
    'request query shape': (
        lambda p: searched().request(0, torch.tensor([1, 2]), query=torch.ones(3, 2).long()),
        ValueError,
        r"'query' of shape \[2, 3\] or \[3\], but got \[3, 2\]",
    ),
    'gmcm merge': (lambda p: gmcm(merge='max'), ValueError, "'merge'.*'graph'.*got 'max'"),
    'gmcm loss': (lambda p: gmcm(loss='bce'), ValueError, "'loss'.*'esmm'.*got 'bce'"),
    'gmcm output': (lambda p: gmcm(output='max'), ValueError, "'output'.*'concat'.*got 'max'"),
    'gmcm floor': (lambda p: gmcm(floor=2), ValueError, r"'floor'.* in \(0, 1\].*got 2"),
    'gmcm tower': (
        lambda p: GMCM(['user'], merge='none', tower_channels=(8,)), ValueError, r'two.*\(8,\)'
    ),
    'gmcm no behavior': (
        lambda p: GMCM(['user']), ValueError, "num_behaviors is 0.*take merge='none'"
    ),
    'gmcm no graph': (
        lambda p: GMCM.from_data(bought()), ValueError, 'apply BehaviorGraph first'
    ),
    'gmcm no conversion': (
        lambda p: GMCM.from_data(log()), ValueError, "to have .'edge_label_conversion'"
    ),
    'gmcm dense': (
        lambda p: conversions(dense=torch.ones(40, 2)), ValueError, r"'dense' of shape \[B, 0\]"
    ),
    'gmcm no label': (
        lambda p: conversions(label=None, behavior=None),
        ValueError,
        r"\['label', 'behavior'\], but these are None",
    ),
    # Loaders: switches, seeds, labels and requests
    'sampler shuffle': (
        lambda p: BatchIndexSampler(5, 2, shuffle='x'), TypeError, "'shuffle' must be True or.*'x'"  # type: ignore[arg-type]
    ),
    'sampler size type': (
        lambda p: BatchIndexSampler(5, 2.5), TypeError, "'batch_size'.*integer, but got 2.5"  # type: ignore[arg-type]
    ),
    'sampler size boolean': (
        lambda p: BatchIndexSampler(5, True), TypeError, "'batch_size'.*integer, but got True"
    ),
    'sampler seed': (
        lambda p: BatchIndexSampler(5, 2, seed=-1), ValueError, "'seed' must be at least 0.*-1"
    ),
    'sampler rows': (
        lambda p: BatchIndexSampler(5.0, 2), TypeError, "'num_rows' must be an integer.*5.0"  # type: ignore[arg-type]
    ),
    'loader seed': (
        lambda p: PairLoader(macro(), seed=1.5), TypeError, "'seed' must be an integer.*1.5"  # type: ignore[arg-type]
    ),
    'loader shuffle': (
        lambda p: PairLoader(macro(), shuffle='x'), TypeError, "'shuffle' must be True or False"  # type: ignore[arg-type]
    ),
    'loader bytes': (
        lambda p: PairLoader(macro(), max_bytes=0), ValueError, "'max_bytes'.*got 0"
    ),
    'loader too large': (
        lambda p: PairLoader(macro(), max_bytes=9), ValueError, "MiB of 'max_bytes': take fewer"
    ),
    'pair request none': (
        lambda p: loader().request(None, torch.tensor([1])),  # type: ignore[arg-type]
        TypeError,
        "'user' must hold integer ids, but got None",
    ),
    'pair request words': (
        lambda p: loader().request(0, ['a', 'b']),  # type: ignore[arg-type]
        TypeError,
        r"'items' must hold integer ids, but got \['a', 'b'\]",
    ),
    'pair request large': (
        lambda p: loader().request(2**70, torch.tensor([1])),
        TypeError,
        "'user' must hold integer ids, but got 1180",
    ),
    'pair request name': (
        lambda p: loader().request(5, torch.tensor([1])),
        IndexError,
        'PairLoader.request found user ids from 5 to 5',
    ),
    'exposures shuffle': (
        lambda p: ExposureLoader(bought(), shuffle=1), TypeError, "'shuffle' must be True.*got 1"  # type: ignore[arg-type]
    ),
    'exposures query': (
        lambda p: searched().request(0, torch.tensor([1]), query=torch.tensor([0, 9, 1])),
        IndexError,
        "ExposureLoader.request found values of 'query' from 0 to 9, but expected them from 0 to 8",
    ),
    'exposures no padding': (
        lambda p: searched().request(0, torch.tensor([1]), query=torch.tensor([0, -1, 1])),
        IndexError,
        "values of 'query' from -1 to 1",
    ),
    'exposures query none': (
        lambda p: searched().request(0, torch.tensor([1]), query=None),  # type: ignore[arg-type]
        TypeError,
        "'query' must hold integer ids, but got None",
    ),
    'exposures x nan': (
        lambda p: dense().request(0, torch.tensor([1]), torch.tensor([1, torch.nan])),
        ValueError,
        "'x' must be finite, but got nan",
    ),
    'exposures x words': (
        lambda p: dense().request(0, torch.tensor([1]), ['a', 'b']),  # type: ignore[arg-type]
        TypeError,
        r"'x' must hold numbers, but got \['a', 'b'\]",
    ),
    'history shuffle': (
        lambda p: HistoryLoader(log(), shuffle='no'), TypeError, "'shuffle' must be True.*'no'"  # type: ignore[arg-type]
    ),
    'history seed': (
        lambda p: HistoryLoader(log(), seed=None), TypeError, "'seed' must be an integer.*None"  # type: ignore[arg-type]
    ),
    'history time': (
        lambda p: HistoryLoader(log()).request(0, torch.tensor([1]), None),  # type: ignore[arg-type]
        TypeError,
        "'time' must be int64 seconds, but got None",
    ),
    'history time float': (
        lambda p: HistoryLoader(log()).request(0, torch.tensor([1]), 1.5),  # type: ignore[arg-type]
        TypeError,
        "'time' must be int64 seconds.*float32",
    ),
    'history domain': (
        lambda p: placed().request(0, torch.tensor([1]), 50, domain=99),
        IndexError,
        "HistoryLoader.request found values of 'domain' from 99 to 99.*from 0 to 1",
    ),
    'history negative domain': (
        lambda p: placed().request(0, torch.tensor([1]), 50, domain=-1),
        IndexError,
        "'domain' from -1 to -1",
    ),
    'history slot': (
        lambda p: placed().request(0, torch.tensor([1]), 50, domain=1, slot=10**9),
        IndexError,
        "'slot' from 1000000000 to 1000000000, but expected them from 0 to 4",
    ),
    'history negative slot': (
        lambda p: placed().request(0, torch.tensor([1]), 50, domain=1, slot=-2),
        IndexError,
        "'slot' from -2",
    ),
    'paths label': (
        lambda p: PathLoader(edited(edge_label=torch.full((40,), 2.0))),
        ValueError,
        "PathLoader expects 'edge_label' of 1 for a click.*such as 2.0 in row 0",
    ),
    'paths label nan': (
        lambda p: PathLoader(edited(edge_label=torch.full((40,), torch.nan))),
        ValueError,
        'such as nan in row 0',
    ),
    'paths shuffle': (
        lambda p: PathLoader(log(), shuffle='x'), TypeError, "'shuffle' must be True.*'x'"  # type: ignore[arg-type]
    ),
    'paths replace': (
        lambda p: PathLoader(log(), replace='no'), TypeError, "'replace' must be True.*'no'"  # type: ignore[arg-type]
    ),
    'paths fixed': (
        lambda p: PathLoader(log(), fixed='no'), TypeError, "'fixed' must be True.*'no'"  # type: ignore[arg-type]
    ),
    'paths seed': (
        lambda p: PathLoader(log(), seed=-3), ValueError, "'seed' must be at least 0.*-3"
    ),
    'path sampler replace': (
        lambda p: PathSampler(log(), replace='no'), TypeError, "'replace' must be True.*'no'"  # type: ignore[arg-type]
    ),
    'path sampler user': (
        lambda p: draw_paths(torch.tensor([5])), IndexError, 'draw found user ids from 5 to 5'
    ),
    'path sampler none': (
        lambda p: draw_paths(None), TypeError, r"draw expects 'user' to be a tensor of shape \[B\]"
    ),
    # Labelled rows, macro rows and what is joined
    'rows no data': (lambda p: Exposures([1]), TypeError, 'Exposures expects a Hetero.*got list'),  # type: ignore[arg-type]
    'rows index': (
        lambda p: Exposures(edited(edge_label_index=torch.full((2, 40), 6))),
        IndexError,
        "Exposures found user ids of 'edge_label_index' from 6 to 6",
    ),
    'rows label': (
        lambda p: Exposures(edited(edge_label=torch.ones(39))),
        ValueError,
        r"Exposures expects 'edge_label' of shape \[40\], but got shape \[39\]",
    ),
    'rows window': (
        lambda p: Exposures(edited(edge_label_window=torch.zeros(40).long())),
        ValueError,
        "'edge_label_window' but no 'cutoff'",
    ),
    'rows slot': (
        lambda p: Exposures(edited(edge_label_slot=torch.rand(40))),
        TypeError,
        "'edge_label_slot' of integers, but got torch.float32",
    ),
    'rows conversion': (
        lambda p: Exposures(bought(edge_label_conversion=torch.full((40,), 2.0))),
        ValueError,
        "'edge_label_conversion' of 0 and 1, but 40 of 40 are not, such as 2.0 in row 0",
    ),
    'rows behavior': (
        lambda p: Exposures(bought(edge_label_behavior=[1, 0])),
        TypeError,
        r"'edge_label_behavior' to be a tensor of shape \[40, N\], but got list",
    ),
    'rows need': (
        lambda p: Exposures(without('edge_label_time'), needs=('edge_label_time',)),
        ValueError,
        r"to have \['edge_label_time'\]",
    ),
    'rows request user': (
        lambda p: Exposures(log()).request(5, torch.tensor([1])),
        IndexError,
        'Exposures.request found user ids from 5 to 5, but expected them from -1 to 4',
    ),
    'rows request items': (
        lambda p: Exposures(log()).request(0, torch.tensor(1)),
        ValueError,
        r'items of shape \[\]',
    ),
    'rows request context': (
        lambda p: Exposures(log()).request(0, torch.tensor([1]), contexts={'hour': 3}),
        ValueError,
        r"must tell no context, but told \['hour'\]",
    ),
    'paths request': (
        lambda p: PathLoader(log()).request(0, torch.tensor([9]), 40),
        IndexError,
        'PathLoader.request found item ids from 9 to 9',
    ),
    'paths request time': (
        lambda p: PathLoader(log()).request(0, torch.tensor([1]), 4.0),  # type: ignore[arg-type]
        TypeError,
        "'time' must be int64 seconds",
    ),
    'join nothing': (lambda p: JoinedLoader([]), ValueError, 'joins a list of loaders.*got list'),
    'join data': (
        lambda p: JoinedLoader([log()]), TypeError, 'joins PairLoader.*but got HeteroData'  # type: ignore[list-item]
    ),
    'join twice': (
        lambda p: JoinedLoader([loader(), loader()]), ValueError, 'one PairLoader, but got two'
    ),
    'join other rows': (
        lambda p: JoinedLoader([loader(), HistoryLoader(log())]),
        ValueError,
        'those of PairLoader and HistoryLoader differ',
    ),
    'join size': (
        lambda p: JoinedLoader([loader()], 0), ValueError, "'batch_size' must be at least 1"
    ),
    'join request': (
        lambda p: JoinedLoader([loader()]).request(0, torch.tensor([1]), time=3),
        ValueError,
        r"may tell \[\], but told \['time'\]",
    ),
    'macro rows weights': (
        lambda p: MacroRows(reweighted(torch.ones(2))),
        ValueError,
        r"'edge_weight of hop1 of users' of shape \[5, 1\], but got shape \[2, 1\]",
    ),
    'macro rows complex': (
        lambda p: MacroRows(reweighted(torch.ones(5) * 1j)), TypeError, 'of numbers, but got torch'
    ),
    'macro rows no weight': (
        lambda p: MacroRows(reweighted(None)), TypeError, "'edge_weight of hop1 .* but got None"
    ),
    'macro rows recent type': (
        lambda p: MacroRows(remembered(torch.ones(5, 3))), TypeError, 'recent. of dtype int64'
    ),
    'macro rows recent list': (
        lambda p: MacroRows(remembered([1])), TypeError, r'tensor of shape \[5, 1, num\], .*list'
    ),
    'macro rows nodes': (
        lambda p: MacroRows(macro()).rows('item', torch.tensor([0.5])), TypeError, "'node' of dtype"
    ),
    'macro rows windows': (
        lambda p: MacroRows(macro()).rows('item', torch.tensor([1]), torch.tensor([0, 0])),
        ValueError,
        r"'window' of shape \[1\]",
    ),
    'join shuffle': (
        lambda p: JoinedLoader([loader()], shuffle=2), TypeError, "'shuffle' must be True.*got 2"  # type: ignore[arg-type]
    ),
    'join outcomes': (
        lambda p: JoinedLoader([HistoryLoader(bought(edge_label_conversion=torch.ones(40)))]),
        ValueError,
        "'edge_label_conversion' in 20 exposures without a click, such as row 1",
    ),
    'rows late outcomes': (
        lambda p: Exposures(bought(edge_label_conversion=[1]), outcomes=False).conversion,
        TypeError,
        r"'edge_label_conversion' to be a tensor of shape \[40\], but got list",
    ),
    'rows request time': (
        lambda p: Exposures(log()).request(0, torch.tensor([1]), reads=('time',)),
        TypeError,
        "'time' must be int64 seconds, but got None",
    ),
    'paths fixed seed': (
        lambda p: PathLoader(log(), seed=None, fixed=True), TypeError, "'seed' must be an integer"  # type: ignore[arg-type]
    ),
    'path sampler time': (
        lambda p: draw_paths(torch.tensor([1]), torch.tensor([0.5])),
        TypeError,
        "draw expects 'time' of int64 seconds, but got torch.float32",
    ),
    'path sampler two users': (
        lambda p: draw_paths(torch.tensor([1, 2])), ValueError, r"'item' of shape \[2\].*\[1\]"
    ),
    'path sampler deep': (
        lambda p: PathSampler(log(), {'user': [2], 'item': [1, 1]}), ValueError, 'equally deep'
    ),
    'path sampler widths': (
        lambda p: PathSampler(log(), [2]), TypeError, r"dictionary of 'user' and 'item'.*\[2\]"  # type: ignore[arg-type]
    ),
    'path sampler attribute': (
        lambda p: PathSampler(log(), attribute='tag'), ValueError, "filters by .*'item'.*tag.*None"
    ),
    'clusters keys': (
        lambda p: MacroClusters({'user': 2}), ValueError, "a dictionary of 'user' and 'item'"
    ),
    'clusters behavior': (
        lambda p: MacroClusters(GROUPS, ['raw']), ValueError, r"'macro', 'raw', but got \['raw'\]"  # type: ignore[arg-type]
    ),
    'edges lonely': (
        lambda p: counts(torch.tensor([0, -1, 0])).update(torch.tensor([[1], [0]])),
        ValueError,
        "'user ids' of nodes with a cluster, but 1 of 1 is not, such as 1 in row 0",
    ),
    'edges cluster id': (
        lambda p: MacroEdges(torch.tensor([5]), torch.tensor([0]), {'user': 2, 'item': 2}),
        IndexError,
        "clusters in 'user_cluster' from 5 to 5",
    ),
    'macro rows none': (
        lambda p: MacroRows(log()), ValueError, "MacroRows found no macro edges of 'user'"
    ),
    'macro rows bytes': (
        lambda p: MacroRows(macro(), 9), ValueError, "MacroRows would hold.*'max_bytes'"
    ),
    'macro rows type': (
        lambda p: MacroRows(macro()).rows('tag', torch.tensor([0])), ValueError, "got 'tag'"
    ),
    'macro rows node': (
        lambda p: MacroRows(macro()).rows('item', torch.tensor([6])),
        IndexError,
        'MacroRows found item ids from 6 to 6, but expected them from -1 to 5',
    ),
    'macro rows window': (
        lambda p: MacroRows(macro()).rows('item', torch.tensor([1]), torch.tensor([1])),
        IndexError,
        'MacroRows found windows from 1 to 1, but expected them from 0 to 0',
    ),
    'clusters groups': (lambda p: MacroClusters([2, 3]), TypeError, r"'groups' must.*\[2, 3\]"),  # type: ignore[arg-type]
    'clusters projection': (
        lambda p: MacroClusters(GROUPS, projection_dim=1.5), TypeError, "'projection_dim'.*1.5"  # type: ignore[arg-type]
    ),
    'clusters fewer': (
        lambda p: MacroClusters(GROUPS).fit(log()).assign(smaller()),
        ValueError,
        'fitted on 5 users, but this data has only 3',
    ),
    'counts of strangers': (
        lambda p: count_by_window(counts(), torch.tensor([[7], [0]])),
        IndexError,
        'MacroEdges found user ids from 7 to 7',
    ),
    'edges sizes': (
        lambda p: MacroEdges(torch.tensor([0]), torch.tensor([0]), {'user': 2}),
        ValueError,
        "must be a dictionary of 'user' and 'item', but got {'user': 2}",
    ),
    'edges bytes': (lambda p: counts(max_bytes=0), ValueError, "'max_bytes' must be at least 1"),
    'index size': (
        lambda p: ClickIndex(torch.tensor([0]), torch.tensor([5]), 2**63),
        ValueError,
        'ClickIndex numbers .* too many for int64',
    ),
    'hypergraph threshold': (
        lambda p: InterestHypergraph(1.5), ValueError, "'threshold'.*0, 1.*but got 1.5"
    ),
    'hypergraph size': (
        lambda p: InterestHypergraph(max_size=1), ValueError, "'max_size' must be at least 2"
    ),
    'hypergraph interest': (
        lambda p: InterestHypergraph()(TimeSlots(5)(log())),
        ValueError,
        r"needs data\['user'\].interest, as UserInterest makes it",
    ),
    # Layers and models: switches and weights
    'dice form': (lambda p: Dice(3, True), ValueError, "'form' must be one of.*got True"),  # type: ignore[arg-type]
    'conv mask': (lambda p: MacroConv(2, 2, mask_zero='no'), TypeError, "'mask_zero' must be"),  # type: ignore[arg-type]
    'conv weighting': (lambda p: MacroConv(2, 2, weighting=1), TypeError, "'weighting' must be"),  # type: ignore[arg-type]
    'conv renormalize': (
        lambda p: MacroConv(2, 2, renormalize='no'), TypeError, "'renormalize' must be.*'no'"  # type: ignore[arg-type]
    ),
    'behavior form': (
        lambda p: BehaviorGraphConv(2, 2, 3, form='released'), ValueError, "'paper', 'lit.*'rel"
    ),
    'behavior size': (lambda p: BehaviorGraphConv(2, 2, 0), ValueError, "'num_behaviors'.*got 0"),
    'behavior x': (
        lambda p: behave(x=torch.rand(2, 2)), ValueError, r"'x' of shape \[\*, 3, 2\].* \[2, 2\]"
    ),
    'behavior x type': (lambda p: behave(x=[[1.0]]), TypeError, "'x' to be a tensor.*got list"),
    'behavior edges': (
        lambda p: behave(edge_index=torch.zeros(2, 1)), TypeError, "'edge_index' of dtype int64"
    ),
    'behavior weight': (
        lambda p: behave(edge_weight=torch.rand(2)), ValueError, r"'edge_weight' of shape \[1\]"
    ),
    'behavior no weight': (
        lambda p: behave(edge_weight=None), TypeError, "'edge_weight' to be a tensor.*None"
    ),
    'behavior id': (
        lambda p: behave(edge_index=torch.tensor([[3], [0]])), IndexError, 'behaviors .* 0 to 3.* 2'
    ),
    'behavior degree': (
        lambda p: behave('literal', edge_weight=torch.tensor([-2.0])),
        ValueError,
        'positive and finite.*1 of 3 is not, such as -1.0 in row 1',
    ),
    'hypergraph bias': (
        lambda p: HypergraphConv(2, 2, bias='no'), TypeError, "'bias' must be.*'no'"  # type: ignore[arg-type]
    ),
    'intention form': (
        lambda p: IntentionConv(2, 2, form='standard'), ValueError, "'paper', 'literal'.*'standard'"
    ),
    'intention size': (lambda p: IntentionConv(2, 0), ValueError, "'intention_channels'.*got 0"),
    'intention child': (
        lambda p: intend(child=torch.rand(3, 4)), ValueError, r"'child' of shape \[M, 2\].*\[3, 4\]"
    ),
    'intention center': (
        lambda p: intend(center=torch.rand(2)), ValueError, r"'center' of shape \[N, 2\].*\[2\]"
    ),
    'intention guide': (
        lambda p: intend(intention=torch.rand(1, 2)), ValueError, r"'intention' of shape \[2, 2\]"
    ),
    'intention edges': (
        lambda p: intend(edge_index=torch.rand(2, 1)), TypeError, "'edge_index' of dtype int64"
    ),
    'intention edge shape': (
        lambda p: intend(edge_index=torch.zeros(3).long()), ValueError, r'\[2, E\], but got.* \[3\]'
    ),
    'intention matrix': (
        lambda p: intend(edge_index=torch.eye(3).to_sparse()), TypeError, 'list edges, whose order'
    ),
    'intention source': (
        lambda p: intend(edge_index=torch.tensor([[3], [0]])), IndexError, 'children .* from 3 to 3'
    ),
    'intention target': (
        lambda p: intend(edge_index=torch.tensor([[0], [2]])), IndexError, 'centers .* from 2 to 2'
    ),
    'intention none': (lambda p: IntentionConv(2, 2)(None, None, None), TypeError, 'but got None'),  # type: ignore[arg-type]
    'model attention': (
        lambda p: MacGNN(5, 6, 2, 2, attention='released'), TypeError, "'attention' must be True"  # type: ignore[arg-type]
    ),
    'model form': (
        lambda p: MacGNN(5, 6, 2, 2, form='code'), ValueError, "'form' must be one of.*'code'"
    ),
    'model mask': (
        lambda p: MacGNN(5, 6, 2, 2, mask_zero='no'), TypeError, "'mask_zero' must be.*'no'"  # type: ignore[arg-type]
    ),
    'model recent switch': (
        lambda p: MacGNN(5, 6, 2, 2, recent='no'), TypeError, "'recent' must be.*'no'"  # type: ignore[arg-type]
    ),
    'model item graph': (
        lambda p: MacGNN(5, 6, 2, 2, item_graph=1), TypeError, "'item_graph' must be.*got 1"  # type: ignore[arg-type]
    ),
    'gmcm form': (
        lambda p: gmcm(form='released'), ValueError, "'paper', 'literal', but got 'released'"
    ),
    'gmcm old loss': (lambda p: gmcm(loss='ipw_literal'), ValueError, "'loss'.*'ipw_literal'"),
    'gmcm weight nan': (
        lambda p: weighted_gmcm(torch.nan), ValueError, "'edge_weight'.* 0 to 1.*such as nan"
    ),
    'gmcm weight negative': (lambda p: weighted_gmcm(-0.5), ValueError, 'such as -0.5 in row 1'),
    'gmcm weight large': (lambda p: weighted_gmcm(1.5), ValueError, 'such as 1.5 in row 1'),
    'gmcm edge': (
        lambda p: weighted_gmcm(0.5, torch.tensor([[0, 2], [1, 0]])), IndexError, 'behaviors.* to 2'
    ),
    'gmcm float edges': (
        lambda p: weighted_gmcm(0.5, torch.rand(2, 2)), TypeError, "'edge_index' of dtype int64"
    ),
    'gmcm unread output': (
        lambda p: GMCM(['user'], merge='none', output='max'), ValueError, "'output'.*got 'max'"
    ),
    'gmcm unread size': (
        lambda p: GMCM(['user'], merge='none', hidden_channels=0), ValueError, "'hidden_channels'"
    ),
    'gmcm no edges': (lambda p: GMCM(['user'], 0, 2), TypeError, "'edge_index'.* but got None"),
    'merge kind': (lambda p: BehaviorMerge(4, 3, 'none'), ValueError, "'gru', 'concat'.*'none'"),
    'merge shape': (
        lambda p: BehaviorMerge(4, 3, 'gru')(torch.rand(2, 3)), ValueError, r'\[B, 3, 4\].*\[2, 3\]'
    ),
    'merge no edges': (
        lambda p: BehaviorMerge(4, 3)(torch.rand(2, 3, 4)), TypeError, "'edge_index'.*got None"
    ),
    'query terms': (lambda p: QueryEmbedding(0, 2), ValueError, "'num_terms' must be at least 1"),
    'query form': (lambda p: QueryEmbedding(5, 2, 'literal'), ValueError, "'form'.*'literal'"),
    'query term': (
        lambda p: QueryEmbedding(5, 2)(torch.tensor([[5]])), IndexError, 'query terms.*from -1 to 4'
    ),
    'query shape': (
        lambda p: QueryEmbedding(5, 2)(torch.tensor([1])), ValueError, r'\[B, Q\], but got shape'
    ),
    'query floats': (
        lambda p: QueryEmbedding(5, 2)(torch.rand(2, 2)), TypeError, "'terms' of dtype int64"
    ),
    'heads number': (lambda p: DomainHeads(4, (2,), 0), ValueError, "'num_domains'.*got 0"),
    'heads sizes': (lambda p: DomainHeads(4, 2, 1), TypeError, "'hidden_channels'.*got 2"),  # type: ignore[arg-type]
    'heads domain': (
        lambda p: DomainHeads(4, (2,), 2)(torch.rand(2, 4), torch.tensor([0, 2])),
        IndexError,
        'domains from 0 to 2, but expected them from 0 to 1',
    ),
    'heads domain shape': (
        lambda p: DomainHeads(4, (2,), 2)(torch.rand(2, 4), torch.tensor([0])),
        ValueError,
        r"'domain' of shape \[2\], but got shape \[1\]",
    ),
    'heads features': (
        lambda p: DomainHeads(4, (2,), 2)(torch.rand(2, 3), torch.tensor([0, 1])),
        ValueError,
        r"'x' of shape \[B, 4\], but got shape \[2, 3\]",
    ),
    'fusion sizes': (lambda p: TensorFusion((3, 2, 1), 4), ValueError, 'two sizes'),  # type: ignore[arg-type]
    'fusion rank': (lambda p: TensorFusion((3, 2), 4, 0), ValueError, "'rank'.*got 0"),
    'fusion rows': (
        lambda p: TensorFusion((3, 2), 4)(torch.rand(5, 3), torch.rand(4, 2)),
        ValueError,
        r"'y' of shape \[5, 2\], but got shape \[4, 2\]",
    ),
    'srjgraph nodes': (
        lambda p: SRJGraph({'user': 5, 'item': 0}), ValueError, "'num_nodes.'item'.'.*got 0"
    ),
    'srjgraph node types': (
        lambda p: SRJGraph({'user': 5}), ValueError, "'num_nodes' must be of 'user' and 'item'"
    ),
    'srjgraph nodes type': (lambda p: SRJGraph(5), TypeError, "'num_nodes' must be a dict.*got 5"),  # type: ignore[arg-type]
    'srjgraph attributes': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, {'item': ['brand']}),  # type: ignore[dict-item]
        TypeError,
        "'attributes.'item'.' must be a dictionary of sizes",
    ),
    'srjgraph terms': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, num_terms=0), ValueError, "'num_terms'.*got 0"
    ),
    'srjgraph domains': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, num_domains=0), ValueError, "'num_domains'.*0"
    ),
    'srjgraph hidden': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, hidden_channels=8),  # type: ignore[arg-type]
        TypeError,
        "'hidden_channels' must be a sequence",
    ),
    'srjgraph batch': (
        lambda p: SRJGraph({'user': 5, 'item': 6})(log()), ValueError, 'batches of PathLoader.*n_id'
    ),
    'srjgraph batch type': (
        lambda p: SRJGraph({'user': 5, 'item': 6})({}), TypeError, 'HeteroData, but got dict'
    ),
    'propensity floor': (
        lambda p: propensity_weights(torch.ones(2), torch.ones(2), floor=0.0),
        ValueError,
        r"'floor' must be a number in \(0, 1\], but got 0.0",
    ),
    'propensity printed': (
        lambda p: propensity_weights(torch.ones(2), torch.ones(2), 'literal'), ValueError, "'all'"
    ),
    'bayes shape': (
        lambda p: bayes_optimal(torch.rand(2, 2)), ValueError, r"'probability' of shape \[N\]"
    ),
    'bayes range': (
        lambda p: bayes_optimal(torch.tensor([0.5, 1.5])), ValueError, '0 to 1.*such as 1.5'
    ),
    'bayes type': (lambda p: bayes_optimal([0.5]), TypeError, "'probability'.*got list"),  # type: ignore[arg-type]
    'srjgraph form': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, form='standard'), ValueError, "'literal', but"
    ),
    'srjgraph switch': (
        lambda p: SRJGraph({'user': 5, 'item': 6}, upstream='no'),  # type: ignore[arg-type]
        TypeError,
        "'upstream' must be True or False, but got 'no'",
    ),
    'hyperctr switch': (
        lambda p: HyperCTR.from_data(log(), hypergraph='no'),  # type: ignore[arg-type]
        TypeError,
        "'hypergraph' must be True or False, but got 'no'",
    ),
    'hyperctr neighbors': (
        lambda p: HyperCTR(5, {'text': torch.ones(6, 2)}, num_neighbors=0),
        ValueError,
        "'num_neighbors' must be at least 1, but got 0",
    ),
    'interest fitted on others': (
        lambda p: UserInterest(8, num_epochs=1).fit(with_text(), progress=False)(with_text(3)),
        ValueError,
        "fitted on {'users': 5, 'items': 6, 'x_text': 2}, but the data has {.*'x_text': 3}",
    ),
    'interest features': (
        lambda p: UserInterest()(log()), ValueError, 'UserInterest needs the features of a modality'
    ),
    'interest rate': (
        lambda p: UserInterest(learning_rate=0), ValueError, r"'learning_rate' must.*\(0, inf\).*0"
    ),
    'interest loop': (
        lambda p: UserInterest().fit(with_text(), progress='no'), TypeError, "'progress' must.*'no'"
    ),
    'score sizes': (
        lambda p: InterestScore(5, 6, [0]), ValueError, r"'in_channels\[0\]' must be at least 1"
    ),
    'score features': (
        lambda p: InterestScore(5, 6, [2])(*torch.zeros(2, 1).long(), [torch.ones(1, 2)]),
        ValueError,
        r"'x\[0\]' of shape \[1, N, 2\], but got shape \[1, 2\]",
    ),
    'negatives order': (
        lambda p: NegativeLoader(torch.tensor([[1, 0], [0, 0]]), 5, 6),
        ValueError,
        'each pair of user and item once, in ascending order',
    ),
    'negatives number': (
        lambda p: NegativeLoader(torch.tensor([[0], [0]]), 5, 6, num_negatives=0),
        ValueError,
        "'num_negatives' must be at least 1, but got 0",
    ),
    'interest switch': (
        lambda p: UserInterest(logits='no'),  # type: ignore[arg-type]
        TypeError,
        "'logits' must be True or False, but got 'no'",
    ),
    # Layer and model of counts
    'encoder circle': (
        lambda p: CountEncoder([1, 0], 0.5), ValueError, "'prior' goes round in a circle, from 0"
    ),
    'encoder no view': (lambda p: CountEncoder([], 0.5), ValueError, r"'prior' must name.* \[\]"),
    'encoder prior type': (
        lambda p: CountEncoder(5, 0.5), TypeError, "'prior' must be a sequence .* but got 5"  # type: ignore[arg-type]
    ),
    'encoder prior': (
        lambda p: CountEncoder([2, -1], 0.5), ValueError, r"'prior\[0\]' must lie below 2.*got 2"
    ),
    'encoder rate': (lambda p: CountEncoder([-1], 1.0), ValueError, r"'rate'.*in \(0, 1\).* 1.0"),
    'encoder strength': (
        lambda p: CountEncoder([-1], 0.5, strength=0.0), ValueError, "'strength' must be.*got 0.0"
    ),
    'encoder learned': (
        lambda p: CountEncoder([-1], 0.5, learned=1), TypeError, "'learned' must be True or.*got 1"  # type: ignore[arg-type]
    ),
    'encoder scale': (
        lambda p: CountEncoder([-1], 0.5, scale='log'), ValueError, "'rate', 'logit', but got 'log'"
    ),
    'encoder counts': (
        lambda p: encode(2, 2, 2),
        ValueError,
        r"^CountEncoder\(1, .*\) expects 'counts' of shape \[B, 1, 2\], but got shape \[2, 2, 2\]",
    ),
    'encoder rates': (
        lambda p: CountEncoder([-1], 0.5).rates(torch.ones(2, 3, 2)), ValueError, r' \[2, 3, 2\]'
    ),
    'count net values': (
        lambda p: count_net(num_values=[5, 6]), TypeError, r"'num_values' must be a dict.*\[5, 6\]"
    ),
    'count net value': (
        lambda p: count_net(num_values={'user': 0, 'item': 6}), ValueError, "'user'.*least 1.*got 0"
    ),
    'count net fields': (
        lambda p: count_net(fields='user'), TypeError, "'fields' must be a sequence .* got 'user'"
    ),
    'count net unknown field': (
        lambda p: count_net(fields=['user', 'brand']), ValueError, r"lacks \['brand'\]"
    ),
    'count net nothing': (
        lambda p: count_net(count_prior=[], ids=False), ValueError, r"\['user', 'item'\].*ids=False"
    ),
    'count net rate': (
        lambda p: count_net(count_rate=0.0), ValueError, r"'rate' must be a number in.* got 0.0"
    ),
    'count net hidden': (
        lambda p: count_net(hidden_channels=8), TypeError, "'hidden_channels' must be a seq.* got 8"
    ),
    'count net switch': (
        lambda p: CountNet.from_data(counted(), counts='no'),  # type: ignore[arg-type]
        TypeError,
        "'counts' must be True or False, but got 'no'",
    ),
    'count net no counts': (
        lambda p: CountNet.from_data(macro()), ValueError, 'apply TargetCounts, or pass counts=Fa'
    ),
    'count net id counts': (
        lambda p: CountNet.from_data(counted(), id_counts={'user': 0, 'item': 9}),
        ValueError,
        "'item'.*' must lie below 5, but got 9",
    ),
    'count net columns': (
        lambda p: score(torch.tensor([0, 1])), ValueError, r"'batch.sparse' of shape \[B, 3\].* 2\]"
    ),
    'count net id': (lambda p: score(add=1), IndexError, "'user' .* to 5.* from -1 to 4"),
    'count net low id': (lambda p: score(add=-2), IndexError, "'user' from -2 .* from -1 to 4"),
    'count net unread id': (
        lambda p: score(add=1, ids=False), IndexError, "'item_category' .* to 3.* from -1 to 2"
    ),
    'simcen data': (lambda p: SimCEN.from_data(None), TypeError, 'SimCEN.from_data expects a H'),
    'simcen fields': (
        lambda p: simcen().grow(edited(edge_label_device=torch.zeros(40).long(), num_device=2)),
        ValueError,
        r"SimCEN was built for the fields \['user', 'item', 'item_category'\], but .*'device'\]",
    ),
    'simcen columns': (
        lambda p: simcen()(next(iter(dense()))._replace(sparse=torch.zeros(9, 2).long())),
        ValueError,
        r"'batch.sparse' of shape \[B, 3\], but got shape \[9, 2\]",
    ),
    'simcen id': (
        lambda p: simcen()(next(iter(dense()))._replace(sparse=torch.full((9, 3), 5))),
        IndexError,
        "SimCEN found values of 'user' from 5 to 5, but expected them from -1 to 4",
    ),
    'buckets without numbers': (
        lambda p: BucketNumbers()(log()), ValueError, 'has 40 exposures and 0 such attributes'
    ),
    'count net recent': (lambda p: score_recent(6), IndexError, 'recent items .* to 6.* -1 to 5'),
    # Stack
    'stack list': (
        lambda p: stack(branches=[1]), TypeError, "'branches' must be a dictionary .*but got list"
    ),
    'stack empty': (
        lambda p: stack(branches={}), ValueError, r"at least one branch, but got \{\} and without"
    ),
    'stack number': (
        lambda p: stack(branches={1: count_net()}), ValueError, "words such as 'macgnn'.* got 1"
    ),
    'stack point': (lambda p: stack_of(**{'a.b': 4}), ValueError, "must be words .* got 'a.b'"),
    'stack method': (lambda p: stack_of(items=4), ValueError, "must be words .* got 'items'"),
    'stack attribute': (
        lambda p: stack_of(training=4), ValueError, "must be words .* got 'training'"
    ),
    'stack prediction': (lambda p: stack_of(click=4), ValueError, "must be words .* got 'click'"),
    'stack model': (
        lambda p: stack(branches={'a': torch.nn.Linear(2, 1)}),
        TypeError,
        "out_channels, such as MacGNN and CountNet, but 'a' is a Linear",
    ),
    'stack sizes': (
        lambda p: stack(hidden_channels=3), TypeError, "'hidden_channels' .* sizes .* got 3"
    ),
    'stack auxiliary': (lambda p: stack(auxiliary=-1.0), ValueError, "'auxiliary' .* got -1.0"),
    'stack contrast': (
        lambda p: stack(contrast=0.1), TypeError, "'contrast' must be a dictionary .* got 0.1"
    ),
    'stack contrast name': (
        lambda p: stack(contrast={'flip': 0.1}),
        ValueError,
        r"'contrast' names \['flip'\], but the branches are \['macgnn', 'counts'\]",
    ),
    'stack contrast number': (
        lambda p: stack(contrast={'counts': -1}), ValueError, r"contrast\['counts'\].* got -1"
    ),
    'stack no contrast': (
        lambda p: stack(contrast={'counts': 0.1}),
        ValueError,
        r"contrast\(features\) of a branch, but 'counts', a CountNet, has none",
    ),
    'stack without word': (
        lambda p: stack(without='counts'), TypeError, r"such as \('flip',\), but got 'counts'"
    ),
    'stack without name': (
        lambda p: stack(without=['flip']), ValueError, r"'without' names \['flip'\], .*'counts'\]"
    ),
    'stack without all': (
        lambda p: stack(without=['counts', 'macgnn']),
        ValueError,
        r"at least one branch, but got \{macgnn, counts\} and without=\['counts', 'macgnn'\]",
    ),
    'stack share': (
        lambda p: stack(share_embeddings='yes'), TypeError, "'share_embeddings' .* got 'yes'"
    ),
    'stack share macgnn': (
        lambda p: stack(share_embeddings=True),
        ValueError,
        "one table of all fields, as CountNet has it, but 'macgnn', a MacGNN, has other tables",
    ),
    'stack share sizes': (
        lambda p: stack_of(a=4, b=8),
        ValueError,
        "'a' embeds {'user': 5, 'item': 6} by 4, and 'b' {'user': 5, 'item': 6} by 8",
    ),
    'stack logs': (
        lambda p: stack_of_logs(),
        ValueError,
        "branches before 'theirs' were built for the users of .* ours, but the branch 'theirs' has",
    ),
    'stack labels': (
        lambda p: stack().loss(Logits(torch.ones(20)), loader().request(0, torch.tensor([1]))),
        ValueError,
        'Stack learns from batches with labels, but batch.label is None',
    ),
    # Metrics
    'gauc weighting': (lambda p: GroupAUROC('clicks'), ValueError, "'impressions'.*'clicks'"),
    'gauc shapes': (
        lambda p: group_auroc(*rows([0.1, 0.2], [1], [0, 0])), ValueError, r"'target'.*\[2\].*\[1\]"
    ),
    'gauc target': (
        lambda p: group_auroc(*rows([0.1, 0.2], [1, 3], [0, 0])), ValueError, 'such as 3 in row 1'
    ),
    'gauc nan': (
        lambda p: group_auroc(*rows([0.1, float('nan')], [1, 0], [0, 0])), ValueError, 'row 1'
    ),
    'gauc group': (
        lambda p: group_auroc(*rows([0.1, 0.2], [1, 0], [0, -1])), ValueError, 'such as -1 in row 1'
    ),
    'gauc list': (
        lambda p: GroupAUROC().update([0.1], torch.ones(1), torch.zeros(1).long()),  # type: ignore[arg-type]
        TypeError,
        "GroupAUROC expects 'preds' to be a tensor.*got list",
    ),
    'gauc one class': (
        lambda p: group_auroc(*rows([0.1, 0.2], [1, 1], [0, 0])), ValueError, 'both classes'
    ),
    'gauc float group': (
        lambda p: group_auroc(*rows([0.1, 0.2], [1, 0], [0.0, 0.0])), TypeError, 'integers'
    ),
    'audit probability': (
        lambda p: audit(probability=torch.tensor([0.5, 1.5])), ValueError, 'to 1.*1.5 in row 1'
    ),
    'audit nan': (
        lambda p: audit(probability=torch.tensor([0.5, float('nan')])), ValueError, 'nan in row 1'
    ),
    'audit integers': (lambda p: audit(probability=torch.ones(2).long()), TypeError, 'floats'),
    'audit target': (lambda p: audit(target=torch.tensor([0, 2])), ValueError, '0 and 1'),
    'audit shapes': (lambda p: audit(target=torch.ones(3)), ValueError, r'shape \[2\].*\[3\]'),
    'audit item': (
        lambda p: audit(item=torch.tensor([0, 3])), IndexError, 'item ids from 0 to 3.*from 0 to 2'
    ),
    'audit user': (
        lambda p: audit(user=torch.tensor([-1, 0])), IndexError, 'user ids from -1 to 0'
    ),
    'audit popularity': (
        lambda p: audit(popularity=torch.tensor([1, -2, 0])), ValueError, 'at least 0.*-2 in row 1'
    ),
    'audit activity': (
        lambda p: audit(activity=torch.tensor([1.0, float('inf')])), ValueError, "'activity'.*inf"
    ),
    'audit groups': (lambda p: audit(num_groups=0), ValueError, "'num_groups' must be at least 1"),
    'audit weighting': (
        lambda p: audit(weighting='clicks'), ValueError, "'nodes', 'rows', but got 'clicks'"
    ),
    'audit nothing': (
        lambda p: popularity_audit(*[torch.ones(0), *[torch.ones(0).long()] * 5]),
        ValueError,
        'at least one row, but got none',
    ),
    'improvement range': (lambda p: relative_improvement(1.5, 0.6), ValueError, '1.5'),
    'improvement base': (
        lambda p: relative_improvement(0.7, 0.5), ValueError, r"'base'.* in \(0.5, 1\], but got 0.5"
    ),
    'improvement type': (lambda p: relative_improvement('0.7', 0.6), TypeError, "'auc'.*'0.7'"),  # type: ignore[arg-type]
    # Stores
    'plan log': (
        lambda p: plan(p, log=3), TypeError, "'log' must be a LogSchema or the path of one"
    ),
    'plan table': (
        lambda p: plan(p, log=LogSchema(duckdb.sql('SELECT 1 AS u, 2 AS i, 3 AS t').df(), ROLES)),
        TypeError,
        "'log' must name files",
    ),
    'plan file': (lambda p: plan(p, log=str(p / 'none.yaml')), FileNotFoundError, 'none.yaml'),
    'plan roles': (
        lambda p: plan(p, log=LogSchema(str(wrote(p)), {**ROLES, 'weight': 'w'})),
        ValueError,
        'A store keeps user, .* of a log, but got weight',
    ),
    'plan groups': (lambda p: plan(p, groups={'user': 2}), ValueError, "'groups'"),
    'plan attribute': (
        lambda p: plan(p, groups={'user': 2, 'item': 'brand'}),
        ValueError,
        "names the attribute 'brand' of items, but the log has none",
    ),
    'plan cutoffs': (lambda p: plan(p, cutoffs=[2, 2]), ValueError, r'got \[2, 2\]'),
    'plan no cutoffs': (lambda p: plan(p, cutoffs=[]), ValueError, r'got \[\]'),
    'plan text cutoffs': (lambda p: plan(p, cutoffs=['1']), TypeError, r"'cutoffs\[0\]'"),
    'plan windows': (lambda p: plan(p, num_windows=0), ValueError, "'num_windows'.* got 0"),
    'plan recent': (lambda p: plan(p, num_recent=0), ValueError, "'num_recent'.* got 0"),
    'plan counts': (lambda p: plan(p, counts='float'), ValueError, "'counts' must be"),
    'plan memory': (lambda p: plan(p, memory_limit='1GiBs'), ValueError, "got '1GiBs'"),
    'plan little memory': (
        lambda p: plan(p, memory_limit='1MiB'), ValueError, "at least 640MiB, but got '1MiB'"
    ),
    'plan seed': (lambda p: plan(p, seed=-1), ValueError, "'seed'.* got -1"),
    'plan threads': (lambda p: plan(p, threads=1.5), TypeError, "'threads'.* got 1.5"),
    'plan behavior': (
        lambda p: plan(p, behavior={'shop': 'raw'}), ValueError, "'behavior' is {'shop': 'raw'}"
    ),
    'plan both macro': (
        lambda p: plan(p, behavior='macro'), ValueError, "cannot be 'macro' for both"
    ),
    'plan spherical': (lambda p: plan(p, spherical=1), TypeError, "'spherical'"),
    'plan projection': (
        lambda p: plan(p, projection_dim=0), ValueError, "'projection_dim' must be at least 1"
    ),
    'build elsewhere': (
        lambda p: build(plan(p, out=p), progress=False), ValueError, 'must be a new folder or a'
    ),
    'build few nodes': (
        lambda p: build(plan(p, cutoffs=[9]), progress=False),
        ValueError,
        'Grouping into 2 clusters needs at least as many nodes with behavior, but got 1',
    ),
    'store path': (lambda p: Store(p), FileNotFoundError, 'is no store: it has no manifest.json'),
    'store type': (
        lambda p: store(p).rows('shop', torch.tensor([0])), ValueError, "'node_type'.*'shop'"
    ),
    'store node': (
        lambda p: store(p).rows('user', torch.tensor([5])), IndexError, r'user ids.* 5'
    ),
    'store float': (lambda p: store(p).rows('user', torch.rand(2)), TypeError, "'node'"),
    'store window': (
        lambda p: store(p).rows('user', torch.tensor([0]), torch.tensor([2])),
        IndexError,
        'windows.* 2',
    ),
    'store windows': (
        lambda p: store(p).rows('user', torch.tensor([0]), torch.tensor([0, 1])),
        ValueError,
        "'window'",
    ),
    'store group': (lambda p: store(p).cluster('user_9'), ValueError, "'name'.*'user_9'"),
    'store kind': (
        lambda p: store(p).neighbor_counts('user', 'item', 'views', torch.tensor([0])),
        ValueError,
        "'kind'.*'views'",
    ),
    'store items': (
        lambda p: store(p).target_counts(torch.tensor([0]), torch.tensor([0, 1])),
        ValueError,
        "'item'",
    ),
    'store rows': (lambda p: StoreLoader(store(p), 'all'), ValueError, "'rows' must be one of"),
    'store parts': (
        lambda p: StoreLoader(store(p), 'val'), ValueError, "with cutoffs of its own, .*'val'"
    ),
    'store rows of windows': (lambda p: StoreLoader(store(p), 3), TypeError, 'but got 3'),
    'store no rows': (lambda p: StoreLoader(store(p), []), ValueError, r'finds no row of \[\]'),
    'store loader': (lambda p: StoreLoader(log()), TypeError, 'must be a Store, but got HeteroD'),
    'store batches': (
        lambda p: StoreLoader(store(p), [0], batches='graphs'), ValueError, "'batches' must be one"
    ),
    'store buffer': (
        lambda p: StoreLoader(store(p), [0], buffer_rows=0), ValueError, "'buffer_rows'.* got 0"
    ),
    # Training
    'module model': (lambda p: ClickTask('MacGNN'), TypeError, 'got str'),  # type: ignore[arg-type]
    'module rate': (lambda p: ClickTask(MacGNN(5, 6, 2, 3), 0.0), ValueError, '0.0'),
    'module decay': (lambda p: ClickTask(MacGNN(5, 6, 2, 3), 0.1, -1.0), ValueError, '-1.0'),
    'distillation student': (lambda p: DistillationTask(3, module()), TypeError, 'got int'),  # type: ignore[arg-type]
    'distillation teacher': (
        lambda p: DistillationTask(MacGNN(5, 6, 2, 3), 'stack'), TypeError, "'teacher' .* got str"  # type: ignore[arg-type]
    ),
    'distillation weight': (
        lambda p: DistillationTask(MacGNN(5, 6, 2, 3), module(), soft_weight=1.1),
        ValueError,
        r"'soft_weight' must be a number in \[0, 1\], but got 1.1",
    ),
    'distillation temperature': (
        lambda p: DistillationTask(MacGNN(5, 6, 2, 3), module(), temperature=0),
        ValueError,
        r"'temperature' must be a number in \(0, inf\), but got 0",
    ),
    'fit model': (
        lambda p: fit(MacGNN(5, 6, 2, 3), None, None, directory=p), TypeError, 'wrap the model'  # type: ignore[arg-type]
    ),
    'fit epochs': (
        lambda p: fit(module(), loader(), loader(), directory=str(p), max_epochs=0),
        ValueError,
        'max_epochs.*0',
    ),
    'fit monitor': (
        lambda p: fit(module(), loader(), loader(), directory=str(p), monitor='f1'),
        ValueError,
        "'f1'",
    ),
    'fit loader': (
        lambda p: fit(module(), DataLoader([1, 2]), loader(), directory=str(p)),  # type: ignore[arg-type]
        TypeError,
        'PairLoader',
    ),
    'predict shuffled': (
        lambda p: predict(module(), PairLoader(macro(), 8, shuffle=True)),
        ValueError,
        'shuffle=False',
    ),
    'predict folder': (
        lambda p: predict(module(), loader(), p / 'no' / 'scores.parquet'), ValueError, 'no/scores'
    ),
    'predict model': (lambda p: predict('MacGNN', loader()), TypeError, 'got str'),  # type: ignore[arg-type]
    'lightning model': (
        lambda p: LightningTask(MacGNN(5, 6, 2, 3)), TypeError, 'such as ClickTask.*got MacGNN'  # type: ignore[arg-type]
    ),
    'logits tuple': (
        lambda p: as_logits('DIN', (torch.ones(2),)), TypeError, 'DIN must return.*returned tuple'  # type: ignore[arg-type]
    ),
    'fit clicks alone': (
        lambda p: fit(module(), PairLoader(labelled(1.0), 8), loader(), directory=p),
        ValueError,
        r'but all \d+ of train_loader are clicks: apply .*SampleNegatives to the log, before it is',
    ),
    'fit no clicks': (
        lambda p: fit(module(), PairLoader(labelled(0.0), 8), directory=p),
        ValueError,
        'learns from rows with a click and rows without one, but none of .* is a click: take a',
    ),
    'fit callbacks': (
        lambda p: fit(module(), loader(), loader(), directory=p, callbacks=[1]),
        TypeError,
        'got 1',
    ),
    'evaluate empty': (
        lambda p: evaluate(module(), PairLoader(unlabelled())), ValueError, 'nothing to evaluate'
    ),
}  # fmt: skip


def loader() -> PairLoader:
    return PairLoader(macro(), 8)


def labelled(label: float) -> HeteroData:
    data = macro()
    data[CLICKS].edge_label = torch.full_like(data[CLICKS].edge_label, label)
    return data


def rows_of(num_rows: int) -> Callable[[list[str]], np.ndarray]:
    r"""An encoder that returns as many rows, whatever the texts."""
    return lambda texts: np.ones((num_rows, 3))


def dense() -> ExposureLoader:
    return ExposureLoader(edited(edge_label_x=torch.rand(40, 2)))


def placed() -> HistoryLoader:
    r"""Exposures of two domains in four slots, told by the log itself."""
    step = torch.arange(40)
    data = edited(edge_label_domain=step % 2, num_domain=2)
    data[CLICKS].edge_label_slot, data[CLICKS].num_slots = step // 10, 4
    data[CLICKS].slot_start, data[CLICKS].slot_length = 0, 10
    return HistoryLoader(data)


def draw_paths(user: object, time: torch.Tensor = torch.tensor([9])) -> object:  # noqa: B008
    item = torch.tensor([1])
    return PathSampler(log()).draw(user, item, time, torch.Generator())  # type: ignore[arg-type]


def with_text(width: int = 2) -> HeteroData:
    data = log()
    data['item'].x_text = torch.ones(6, width)
    return data


def weighted_gmcm(weight: float, edges: torch.Tensor | None = None) -> GMCM:
    edges = torch.tensor([[0, 1], [1, 0]]) if edges is None else edges
    return GMCM(['user'], 0, 2, edges, torch.tensor([0.5, weight]), tower_channels=(8, 4))


def audit(**changes: Any) -> dict[str, list[AuditGroup]]:
    two = torch.tensor([0, 1])
    arguments = {
        'probability': torch.tensor([0.2, 0.8]), 'target': two, 'user': two, 'item': two,
        'popularity': torch.tensor([1, 2, 3]), 'activity': two,
    }  # fmt: skip
    return popularity_audit(**(arguments | changes))


def fitted() -> Grouping:
    grouping = Grouping(2)
    grouping.fit(torch.rand(9, 2))
    return grouping


def smaller() -> HeteroData:
    data = log()
    data['user'].num_nodes = 3
    data[CLICKS].edge_index = data[CLICKS].edge_index[:, data[CLICKS].edge_index[0] < 3]
    return data


def later_part(transform: MacroCoarsen | BehaviorGraph) -> HeteroData:
    r"""What a transform makes of the training part that was fitted on validation."""
    train, val, _ = TemporalSplit(0.5, 0.7, 0.85, num_windows=2)(bought())
    return transform.fit(val)(train)


def leaking() -> HeteroData:
    data = macro()
    data[CLICKS].edge_label_time = torch.zeros_like(data[CLICKS].edge_label_time)
    return data


def unlabelled() -> HeteroData:
    data = MacroCoarsen(GROUPS)(log())
    for name in ('edge_label_index', 'edge_label', 'edge_label_time'):
        del data[CLICKS][name]
    return data


def load_junk(folder: Path) -> Grouping:
    (folder / 'junk.pt').write_text('junk')
    return Grouping.load(folder / 'junk.pt')


@pytest.mark.parametrize('name', CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    call, error, sentence = CASES[name]
    with pytest.raises(error, match=sentence):
        call(tmp_path)


def test_good_input_passes() -> None:
    r"""What the cases above edit is itself in order."""
    assert len(CASES) >= 200
    data = macro()
    assert data.validate()
    assert fitted().assign(torch.rand(3, 2)).shape == (3,)
    assert torch.isfinite(MacGNN.from_data(data)(next(iter(PairLoader(data))))).all()
    assert torch.isfinite(conversions())
    assert score().isfinite().all() and score_recent(5).isfinite().all()
    assert encode(2, 1, 2).shape == (2, 2) and ask().shape == (1, 5, 2) and tell() is None
    assert searched().request(0, torch.tensor([1]), query=torch.ones(3).long()).user.tolist() == [0]
