import copy

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureLoader, Exposures, HistoryLoader, PairLoader
from mag.transforms import TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')


@pytest.fixture
def market() -> HeteroData:
    data = SyntheticMarket(40, 30, 1500, log=False)[0]
    size = data[CLICKS].edge_label.numel()
    data[CLICKS].edge_label_x = torch.arange(2.0 * size).view(-1, 2)
    return TimeSlots(3_600)(data)


def test_columns_are_those_of_the_log(market: HeteroData) -> None:
    exposures, clicks = Exposures(market), market[CLICKS]
    assert len(exposures) == 1500
    assert exposures.num_nodes == {'user': 40, 'item': 30}
    assert exposures.rows is exposures.window is None
    assert torch.equal(torch.stack([exposures.user, exposures.item]), clicks.edge_label_index)
    assert torch.equal(exposures.time, clicks.edge_label_time)
    for name in ('label', 'conversion', 'behavior'):
        column = clicks['edge_label' if name == 'label' else f'edge_label_{name}']
        value = getattr(exposures, name)
        assert value.dtype == torch.float32 and torch.equal(value, column.float())
    assert torch.equal(exposures.x, clicks.edge_label_x)
    assert sorted(exposures.contexts) == exposures.context_names() == ['domain', 'query', 'slot']
    for name, column in exposures.contexts.items():
        assert torch.equal(column, clicks[f'edge_label_{name}'])
    assert exposures.context_names({'slot', 'hour'}) == ['slot']
    assert exposures.context('hour') is None


def test_rows_of_rows_are_rows(market: HeteroData) -> None:
    exposures = Exposures(TemporalSplit(num_windows=4)(market)[0])
    rows, again = torch.tensor([7, 500, 3, 7]), torch.tensor([3, 1])
    chosen = exposures[rows][again]
    assert len(chosen) == 2 and chosen.rows.tolist() == [7, 500]
    for name in ('user', 'item', 'time', 'window', 'label', 'conversion', 'behavior', 'x'):
        assert torch.equal(getattr(chosen, name), getattr(exposures, name)[[7, 500]]), name
    for name, column in chosen.contexts.items():
        assert torch.equal(column, exposures.context(name)[[7, 500]])


def test_a_request_is_rows_without_labels(market: HeteroData) -> None:
    exposures = Exposures(market)
    rows = exposures[torch.arange(20, 60)]
    contexts = {name: rows.context(name) for name in ('domain', 'query')}
    asked = exposures.request(rows.user, rows.item, rows.time, rows.x, contexts)
    assert len(asked) == 40
    assert asked.label is asked.conversion is asked.behavior is asked.window is asked.rows is None
    for name in ('user', 'item', 'time', 'x'):
        assert torch.equal(getattr(asked, name), getattr(rows, name)), name
    # The slot is that of the time.
    for name, column in asked.contexts.items():
        assert torch.equal(column, rows.context(name)), name
    # What is told once holds for every candidate.
    terms = torch.tensor([3, 1, -1, -1])
    asked = exposures.request(2, torch.arange(3), 5, torch.ones(2), {'domain': 1, 'query': terms})
    assert asked.user.tolist() == [2] * 3 and asked.time.tolist() == [5] * 3
    assert asked.context('query').tolist() == [terms.tolist()] * 3
    assert asked.context('domain').tolist() == [1] * 3
    # Who reads no context is told none.
    assert exposures.request(2, torch.arange(3), reads=()).contexts == {}


def test_a_log_without_exposures(market: HeteroData) -> None:
    del market[CLICKS].edge_label_index
    exposures = Exposures(market)
    assert len(exposures) == 0 and exposures.label is None
    assert exposures.request(1, torch.tensor([2])).item.tolist() == [2]


def test_every_loader_names_itself(market: HeteroData) -> None:
    market[CLICKS].edge_label_query = market[CLICKS].edge_label_query.float()
    for loader in (ExposureLoader, HistoryLoader):
        with pytest.raises(TypeError, match=f"{loader.__name__} expects 'edge_label_query' of int"):
            loader(market)


@pytest.mark.parametrize(
    ('name', 'value', 'error', 'sentence'),
    [
        ('edge_label_index', torch.zeros(1500, 2).long(), ValueError, r'shape \[2, num_edges\]'),
        ('edge_label_index', torch.full((2, 1500), 30), IndexError, 'item ids .* from 30 to 30'),
        ('edge_label', torch.full((1500,), 2), ValueError, "'edge_label' of 1 for a click"),
        ('edge_label_time', torch.rand(1500), TypeError, "'edge_label_time' of int64 seconds"),
        ('edge_label_conversion', torch.ones(1500), ValueError, 'exposures without a click'),
        ('edge_label_behavior', torch.ones(1500), ValueError, r'of shape \[1500, N\]'),
        ('edge_label_query', torch.rand(1500, 4), TypeError, "'edge_label_query' of integers"),
        ('edge_label_query', torch.ones(7).long(), ValueError, r"'edge_label_query'.*shape \[7\]"),
        ('edge_label_domain', [0] * 1500, TypeError, "'edge_label_domain' to be a tensor.*list"),
        ('edge_label_slot', torch.ones(3).long(), ValueError, r"'edge_label_slot'.*shape \[3\]"),
        ('edge_label_x', torch.full((1500, 1), torch.inf), ValueError, 'such as inf in row 0'),
        ('edge_label_x', torch.ones(1500).long(), TypeError, "'edge_label_x' of floats"),
        ('edge_label_window', torch.zeros(1500).long(), ValueError, "no 'cutoff'"),
    ],
)
def test_columns_are_checked(
    market: HeteroData, name: str, value: object, error: type[Exception], sentence: str
) -> None:
    data = copy.copy(market)
    data[CLICKS][name] = value
    with pytest.raises(error, match=f'Exposures .*{sentence}'):
        Exposures(data)


def test_windows_are_checked(market: HeteroData) -> None:
    train = TemporalSplit(num_windows=4)(market)[0]
    window = train[CLICKS].edge_label_window
    assert torch.equal(Exposures(train).window, window)
    for value, error, sentence in (
        (window + 1, IndexError, 'from 1 to 4, but expected them from 0 to 3'),
        (window.float(), TypeError, "'edge_label_window' of dtype int64"),
        (window[1:], ValueError, "'edge_label_window' of shape"),
    ):
        train[CLICKS].edge_label_window = value
        with pytest.raises(error, match=sentence):
            Exposures(train)


def test_what_is_needed_has_to_be_there(market: HeteroData) -> None:
    del market[CLICKS].edge_label_time
    assert Exposures(market).time is None
    with pytest.raises(ValueError, match=r"Reader needs .* to have \['edge_label_time'\]"):
        Exposures(market, 'Reader', needs=('edge_label_time',))
    with pytest.raises(ValueError, match=r"HistoryLoader needs .* to have \['edge_label_time'\]"):
        HistoryLoader(market)
    with pytest.raises(ValueError, match='PairLoader found no macro edges'):
        PairLoader(market)


def test_wrong_requests(market: HeteroData) -> None:
    exposures, items = Exposures(market), torch.arange(3)
    contexts = {'domain': 0, 'query': torch.zeros(4).long()}
    good = {'user': 0, 'items': items, 'time': 5, 'x': torch.zeros(2), 'contexts': contexts}
    exposures.request(**good)
    for told, error, sentence in (
        ({'user': 40}, IndexError, 'Exposures.request found user ids from 40 to 40'),
        ({'items': items + 28}, IndexError, 'Exposures.request found item ids from 28 to 30'),
        ({'time': 0.5}, TypeError, "'time' must be int64 seconds"),
        ({'x': torch.full((2,), torch.nan)}, ValueError, "'x' must be finite, but got nan"),
        ({'contexts': {}}, ValueError, r"must tell \['domain', 'query'\], but told none"),
        ({'time': None}, ValueError, r"must tell \['domain', 'query', 'slot'\], but told"),
        ({'contexts': {**contexts, 'domain': 9}}, IndexError, "values of 'domain' from 9 to 9"),
        ({'contexts': {**contexts, 'slot': -1}}, IndexError, "values of 'slot' from -1 to -1"),
        ({'contexts': {**contexts, 'hour': 1}}, ValueError, "told .*'hour'"),
    ):
        with pytest.raises(error, match=sentence):
            exposures.request(**{**good, **told})
