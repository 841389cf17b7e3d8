import copy
import itertools
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.transforms import BehaviorGraph, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
FOLLOWS = ('behavior', 'follows', 'behavior')


def log(label: list[float] | Tensor, behavior: object) -> HeteroData:
    r"""Exposures of one user and one item, one a second."""
    label = torch.as_tensor(label)
    index = torch.zeros(1, dtype=torch.long).expand(2, len(label))
    data = HeteroData()
    data['user'].num_nodes = 1
    data['item'].num_nodes = 1
    clicks = data[CLICKS]
    clicks.edge_index = index[:, :0]
    clicks.edge_label_index = index
    clicks.edge_label = label
    clicks.edge_label_behavior = behavior
    return data


def golden_log() -> HeteroData:
    r"""Five clicks after which these happened, and an exposure without a click."""
    behavior = torch.zeros(6, 4, dtype=torch.long)
    for row, happened in enumerate(([0, 1], [0, 1, 2], [], [1, 2], [0], [2, 3])):
        behavior[row, happened] = 1
    return log([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], behavior)


GOLDEN_COUNT = [[0, 2, 1, 0], [2, 0, 2, 0], [1, 2, 0, 1], [0, 0, 1, 0]]
GOLDEN_WEIGHT = [[0, 2 / 3, 1 / 3, 0], [1 / 2, 0, 1 / 2, 0], [1 / 4, 1 / 2, 0, 1 / 4], [0, 0, 1, 0]]


def with_behavior(data: HeteroData, num_behaviors: int = 5, seed: int = 0) -> HeteroData:
    r"""Adds behaviors that often come together, the last of them never with another."""
    generator = torch.Generator().manual_seed(seed)
    label = data[CLICKS].edge_label
    mood = torch.rand(label.numel(), 1, generator=generator)
    behavior = torch.rand(label.numel(), num_behaviors, generator=generator) < 0.7 * mood
    behavior[:, -1] &= ~behavior[:, :-1].any(dim=1)
    data[CLICKS].edge_label_behavior = (behavior & (label == 1).unsqueeze(1)).long()
    return data


def by_hand(data: HeteroData) -> tuple[Tensor, Tensor]:
    r"""Counts and probabilities, click by click and pair by pair."""
    clicks = data[CLICKS]
    num_behaviors = clicks.edge_label_behavior.size(1)
    count = [[0] * num_behaviors for _ in range(num_behaviors)]
    rows = clicks.edge_label_behavior.tolist()
    for label, row in zip(clicks.edge_label.tolist(), rows):
        if label == 1:
            for i, j in itertools.product(range(num_behaviors), repeat=2):
                count[i][j] += int(i != j and row[i] == 1 and row[j] == 1)
    weight = [[entry / max(sum(row), 1) for entry in row] for row in count]
    return torch.tensor(count), torch.tensor(weight)


def dense(data: HeteroData, name: str) -> Tensor:
    r"""An attribute of the edges as a matrix, targets in rows."""
    edges = data[FOLLOWS]
    num_behaviors = data['behavior'].num_nodes
    source, target = edges.edge_index
    table = torch.zeros(num_behaviors, num_behaviors, dtype=edges[name].dtype)
    table[target, source] = edges[name]
    return table


def assert_same(data: HeteroData, other: HeteroData) -> None:
    assert data.node_types == other.node_types and data.edge_types == other.edge_types
    for store, expected in zip(data.stores, other.stores, strict=True):
        assert list(store.keys()) == list(expected.keys())
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(store[name]), torch.as_tensor(value)), name


def test_golden() -> None:
    data = BehaviorGraph()(golden_log())
    assert data['behavior'].num_nodes == 4
    assert dense(data, 'count').tolist() == GOLDEN_COUNT
    torch.testing.assert_close(dense(data, 'edge_weight'), torch.tensor(GOLDEN_WEIGHT))
    edges = data[FOLLOWS]
    # Sources above targets, in the order of targets: PyG sums over j into i.
    assert edges.edge_index.tolist() == [[1, 2, 0, 2, 0, 1, 3, 2], [0, 0, 1, 1, 2, 2, 2, 3]]
    assert edges.count.tolist() == [2, 1, 2, 2, 1, 2, 1, 1]
    assert (edges.edge_weight.dtype, edges.count.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize('dtype', [torch.int64, torch.float32, torch.bool, torch.uint8])
def test_agrees_with_a_double_loop(click_log: HeteroData, dtype: torch.dtype) -> None:
    for num_behaviors, seed in ((2, 0), (5, 1), (11, 2)):
        data = with_behavior(click_log, num_behaviors, seed)
        count, weight = by_hand(data)
        data[CLICKS].edge_label_behavior = data[CLICKS].edge_label_behavior.to(dtype)
        out = BehaviorGraph()(data)
        assert torch.equal(dense(out, 'count'), count)
        torch.testing.assert_close(dense(out, 'edge_weight'), weight, atol=1e-7, rtol=0)
        assert bool((out[FOLLOWS].count > 0).all()) and out[FOLLOWS].num_edges == (count > 0).sum()
        # The last behavior is alone whenever it happens.
        assert count[-1].sum() == 0 and num_behaviors - 1 not in out[FOLLOWS].edge_index


def test_rows_of_probabilities_sum_to_one_or_are_zero(click_log: HeteroData) -> None:
    out = BehaviorGraph()(with_behavior(click_log))
    total = dense(out, 'edge_weight').sum(dim=1)
    torch.testing.assert_close(total, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))


def test_counts_are_exact_where_float32_ends() -> None:
    num_clicks = 2**24 + 1
    both = torch.ones(1, 2, dtype=torch.bool).expand(num_clicks, 2)
    out = BehaviorGraph()(log(torch.ones(1).expand(num_clicks), both))
    assert out[FOLLOWS].count.tolist() == [num_clicks, num_clicks]


@pytest.mark.parametrize('happened', [[], [2]])
def test_clicks_without_a_pair_leave_the_graph_empty(happened: list[int]) -> None:
    behavior = torch.zeros(3, 4)
    behavior[:, happened] = 1
    out = BehaviorGraph()(log([1.0, 1.0, 1.0], behavior))
    assert out['behavior'].num_nodes == 4
    edges = out[FOLLOWS]
    assert edges.edge_index.shape == (2, 0) and edges.edge_index.dtype == torch.long
    assert edges.edge_weight.shape == edges.count.shape == (0,)
    assert out.validate()


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_what_follows_the_training_part_changes_nothing(click_log: HeteroData) -> None:
    parts = TemporalSplit(num_windows=3)(with_behavior(click_log))
    graph = BehaviorGraph().fit(parts[0])
    expected = by_hand(parts[0])[0]
    edited = [copy.deepcopy(part) for part in parts]
    for part in edited[1:]:
        part[CLICKS].edge_label = 1 - part[CLICKS].edge_label
        part[CLICKS].edge_label_behavior = torch.ones_like(part[CLICKS].edge_label_behavior)
    for data in (*parts, *edited[1:]):
        assert torch.equal(dense(graph(data), 'count'), expected)
    # But what happened in it does.
    edited[0][CLICKS].edge_label_behavior[(edited[0][CLICKS].edge_label == 1).nonzero()[0]] = 1
    assert not torch.equal(BehaviorGraph().fit(edited[0]).count, expected)


def test_the_graph_of_a_split_tells_nothing_of_later_exposures(click_log: HeteroData) -> None:
    data = with_behavior(click_log)
    train, val, _ = TemporalSplit()(data)
    later = data[CLICKS].edge_label_time >= val[CLICKS].cutoff
    behavior = torch.where(later.unsqueeze(1), 1, data[CLICKS].edge_label_behavior)
    behavior *= data[CLICKS].edge_label.long().unsqueeze(1)
    assert not torch.equal(behavior, data[CLICKS].edge_label_behavior)
    data[CLICKS].edge_label_behavior = behavior
    edited = TemporalSplit()(data)[0]
    assert_same(BehaviorGraph()(edited), BehaviorGraph()(train))


def test_a_request_without_labels_gets_the_graph() -> None:
    data = golden_log()
    graph = BehaviorGraph().fit(data)
    del data[CLICKS].edge_label_behavior, data[CLICKS].edge_label
    assert dense(graph(data), 'count').tolist() == GOLDEN_COUNT


@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_earlier_parts_are_refused(click_log: HeteroData) -> None:
    data = with_behavior(click_log)
    train, val, test = TemporalSplit(num_windows=3)(data)
    by_user = TemporalSplit(by='user')(data)
    graph = BehaviorGraph().fit(val)
    cutoff, first = int(val[CLICKS].cutoff), int(train[CLICKS].cutoff[0])
    with pytest.raises(
        ValueError, match=f'as of time {cutoff}, but the first cutoff of this data is time {first},'
    ):
        graph(train)
    with pytest.raises(ValueError, match='is position 0.3, .*: fit it on the training part'):
        graph(by_user[0])
    with pytest.raises(ValueError, match='BehaviorGraph was fitted as of time 500, but'):
        BehaviorGraph().fit(data)(test)
    count = by_hand(val)[0]
    for part in (val, test, data):
        assert torch.equal(dense(graph(part), 'count'), count)
    # A fit that fails keeps the cutoff of the last one.
    train[CLICKS].edge_label = torch.zeros_like(train[CLICKS].edge_label)
    train[CLICKS].edge_label_behavior = torch.zeros_like(train[CLICKS].edge_label_behavior)
    with pytest.raises(ValueError, match='but got 0 clicks in'):
        graph.fit(train)
    with pytest.raises(ValueError, match=f'as of time {cutoff}, but'):
        graph(train)


def test_unfitted_call_fits_and_stays_unfitted(click_log: HeteroData) -> None:
    train, val, _ = TemporalSplit()(with_behavior(click_log))
    graph = BehaviorGraph()
    assert_same(graph(train), BehaviorGraph().fit(train)(train))
    assert graph.count is None and repr(graph) == 'BehaviorGraph()'
    assert torch.equal(dense(graph(val), 'count'), by_hand(val)[0])
    assert_same(T.Compose([graph])(train), graph(train))


def test_original_is_unchanged(click_log: HeteroData) -> None:
    data = with_behavior(click_log)
    before = copy.deepcopy(data)
    graph = BehaviorGraph().fit(data)
    count = graph.count.clone()
    out = graph(data)
    assert_same(data, before)
    out[FOLLOWS].count.zero_()
    out[FOLLOWS].edge_weight.zero_()
    assert torch.equal(graph.count, count)


def test_copies_and_the_cache_know_the_fit(click_log: HeteroData) -> None:
    train, val, _ = TemporalSplit()(with_behavior(click_log))
    graph = BehaviorGraph().fit(train)
    for twin in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), copy.copy(graph)):
        assert_same(twin(val), graph(val))
        assert repr(twin) == repr(graph)
    later = BehaviorGraph().fit(val)
    for twin in (later, pickle.loads(pickle.dumps(later)), copy.deepcopy(later), copy.copy(later)):
        with pytest.raises(ValueError, match='BehaviorGraph was fitted as of time .* own future'):
            twin(train)
    assert repr(graph) not in (repr(BehaviorGraph()), repr(BehaviorGraph().fit(val)))
    assert re.fullmatch(r"BehaviorGraph\(fitted='[0-9a-f]{8}'\)", repr(graph))


def test_result_is_a_graph_like_any_other(tmp_path: Path, click_log: HeteroData) -> None:
    out = BehaviorGraph()(with_behavior(click_log))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert out.validate()
    torch.save(out, tmp_path / 'data.pt')
    assert_same(torch.load(tmp_path / 'data.pt', weights_only=False), out)
    moved = copy.copy(out).to('meta')
    assert all(value.is_meta for value in moved[FOLLOWS].values())
    both = T.ToUndirected()(out)
    weight = dense(out, 'edge_weight')
    torch.testing.assert_close(dense(both, 'edge_weight'), weight + weight.t())
    assert torch.equal(dense(both, 'count'), 2 * dense(out, 'count'))


def test_wrong_data() -> None:
    click, none = [1.0, 1.0], [0.0, 1.0, 0.0]
    fitted = BehaviorGraph().fit(golden_log())
    without = golden_log()
    del without[CLICKS].edge_label_behavior
    for data, error, message in (
        (without, ValueError, r"needs .* to have \['edge_label_behavior'\], but it has"),
        ([1], TypeError, 'BehaviorGraph expects a HeteroData .* but got list'),
        (log(click, torch.ones(2)), ValueError, r'\[2, num_behaviors\], but got shape \[2\]'),
        (
            log(click, torch.ones(2, 0)),
            ValueError,
            'a behavior or more, but got 2 clicks in 2 exposures and 0 behaviors',
        ),
        (log(click, [[1, 0], [0, 1]]), TypeError, 'but got list'),
        (log(click, torch.ones(3, 2)), ValueError, r'\[2, num_.*\], but got shape \[3, 2\]'),
        (
            log(click, torch.tensor([[0, 1], [2, 3]])),
            ValueError,
            'of 0 and 1, .* but 2 of 4 are not, such as 2 in row 1, column 0',
        ),
        (
            log(click, torch.tensor([[0.0, torch.nan], [1.0, 0.0]])),
            ValueError,
            'but 1 of 4 is not, such as nan in row 0, column 1',
        ),
        (
            log(none, torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 1]])),
            ValueError,
            '0 alone in a row .* clicked, but 2 of 9 are not, such as 1 in row 2, column 1',
        ),
        (
            log([0.0, 0.0], torch.zeros(2, 2)),
            ValueError,
            'a click and a behavior or more, but got 0 clicks in 2 exposures',
        ),
        (log([], torch.zeros(0, 2)), ValueError, 'but got 0 clicks in 0 exposures'),
    ):
        with pytest.raises(error, match=message):
            BehaviorGraph()(data)
    with pytest.raises(
        ValueError,
        match=r'The fitted .* \[num_exposures, 4\], but got shape \[2, 2\]',
    ):
        fitted(log(click, torch.ones(2, 2)))
    with pytest.raises(ValueError, match=r'num_exposures, 4\], but got shape \[2\]'):
        fitted(log(click, torch.ones(2)))


def test_a_failed_fit_leaves_the_last_one() -> None:
    graph = BehaviorGraph().fit(golden_log())
    with pytest.raises(ValueError, match='but got 0 clicks in 1 exposures'):
        graph.fit(log([0.0], torch.zeros(1, 2)))
    assert graph.count.tolist() == GOLDEN_COUNT
