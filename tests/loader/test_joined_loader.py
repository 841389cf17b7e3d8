import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import (
    ExposureLoader,
    HistoryLoader,
    JoinedBatch,
    JoinedLoader,
    PairLoader,
    PathLoader,
)
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
WIDTHS = {'user': [3, 2], 'item': [2, 3]}


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return SyntheticMarket(60, 40, 3000, log=False)[0]


@pytest.fixture(scope='module')
def train(market: HeteroData) -> HeteroData:
    part = RecentNeighbors(6)(TemporalSplit(num_windows=4)(market)[0])
    return MacroCoarsen({'user': 5, 'item': 'category'}).fit(part)(part)


@pytest.fixture(scope='module')
def loaders(market: HeteroData, train: HeteroData) -> dict[str, Any]:
    return {
        'pairs': PairLoader(train),
        'features': ExposureLoader(train),
        'histories': HistoryLoader(train, length=7, history=market),
        'paths': PathLoader(train, seed=3, widths=WIDTHS, history=market),
    }


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, HeteroData):
        first, second = first.to_dict(), second.to_dict()
    if isinstance(first, Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert_same(value, second[name])
    elif isinstance(first, (tuple, list)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def test_parts_are_those_of_the_single_loaders(train: HeteroData, loaders: dict[str, Any]) -> None:
    joined = JoinedLoader(list(loaders.values()), batch_size=100, shuffle=True, seed=5)
    clicks, seen = train[CLICKS], []
    for batch, rows in zip(joined, copy.copy(joined.sampler), strict=True):
        assert isinstance(batch, JoinedBatch)
        assert torch.equal(torch.stack([batch.user, batch.item]), clicks.edge_label_index[:, rows])
        assert torch.equal(batch.label, clicks.edge_label[rows].float())
        assert torch.equal(batch.conversion, clicks.edge_label_conversion[rows].float())
        assert torch.equal(batch.behavior, clicks.edge_label_behavior[rows].float())
        for part, loader in loaders.items():
            assert_same(getattr(batch, part), loader.dataset[rows])
            # Side by side: of the same users and items.
            if part != 'paths':
                assert torch.equal(getattr(batch, part).user, batch.user)
                assert torch.equal(getattr(batch, part).item, batch.item)
        assert batch.paths['user'].n_id[: rows.numel()].tolist() == batch.user.tolist()
        seen.append(rows)
    assert torch.cat(seen).sort().values.tolist() == list(range(clicks.edge_label.numel()))


def test_batches_are_those_of_a_single_loader_of_the_same_order(
    train: HeteroData, loaders: dict[str, Any]
) -> None:
    single = PairLoader(train, 64, shuffle=True, seed=9)
    joined = JoinedLoader([loaders['features'], loaders['pairs']], 64, shuffle=True, seed=9)
    for epoch in (0, 4):
        single.sampler.set_epoch(epoch)
        joined.sampler.set_epoch(epoch)
        for batch, expected in zip(joined, single, strict=True):
            assert_same(batch.pairs, expected)
            assert batch.histories is batch.paths is None


def test_counts_at_the_target_come_with_their_rows_and_with_requests(
    market: HeteroData, train: HeteroData, loaders: dict[str, Any]
) -> None:
    transform = TargetCounts(half_lives=(1e5,)).fit(train)
    counted = transform(train, log=market)
    joined = JoinedLoader(
        [loaders['pairs'], ExposureLoader(counted)], batch_size=300, shuffle=True, seed=2
    )
    for batch, rows in zip(joined, copy.copy(joined.sampler), strict=True):
        assert torch.equal(batch.features.counts, counted[CLICKS].edge_label_counts[rows])
        assert torch.equal(batch.user, counted[CLICKS].edge_label_index[0, rows])
    items, time = torch.arange(12), market[CLICKS].edge_label_time[-1] + 60
    user = torch.full((12,), 4)
    counts = transform.state(train, log=market)(user, items, time.expand(12))
    told: dict[str, Any] = {'query': torch.tensor([2, 5, -1, -1]), 'domain': 1}
    batch = joined.request(4, items, counts=counts, **told)
    assert torch.equal(batch.features.counts, counts) and counts.any()
    assert_same(batch.pairs, loaders['pairs'].request(4, items))
    with pytest.raises(TypeError, match="'counts' to be a tensor of shape .* got None"):
        joined.request(4, items, **told)
    with pytest.raises(ValueError, match="'counts' of clicks from 0 to the exposures"):
        joined.request(4, items, counts=counts.flip(-1) + torch.tensor([0.0, 1.0]), **told)


def test_it_resumes_within_an_epoch(loaders: dict[str, Any]) -> None:
    joined = JoinedLoader(list(loaders.values()), 200, shuffle=True)
    joined.sampler.set_epoch(2)
    whole = list(joined)
    joined.sampler.skip = 3
    for batch, expected in zip(joined, whole[3:], strict=True):
        assert_same(batch, expected)


def test_workers_make_the_same_batches(loaders: dict[str, Any]) -> None:
    here = JoinedLoader(list(loaders.values()), 400, shuffle=True)
    there = JoinedLoader(list(loaders.values()), 400, shuffle=True, num_workers=2)
    for batch, other in zip(here, there, strict=True):
        assert_same(batch, other)


def test_a_request_gives_every_loader_what_it_reads(
    market: HeteroData, loaders: dict[str, Any]
) -> None:
    joined = JoinedLoader(list(loaders.values()))
    items, time = torch.arange(12), int(market[CLICKS].edge_label_time[-1])
    query, domain = torch.tensor([2, 5, -1, -1]), 1
    batch = joined.request(4, items, time=time, query=query, domain=domain)
    assert batch.user.tolist() == [4] * 12 and torch.equal(batch.item, items)
    assert batch.label is batch.conversion is batch.behavior is None
    assert_same(batch.pairs, loaders['pairs'].request(4, items))
    features = loaders['features'].request(4, items, query=query, domain=domain)
    assert_same(batch.features, features)
    assert_same(batch.histories, loaders['histories'].request(4, items, time, domain=domain))
    paths = loaders['paths'].request(4, items, time, query=query, domain=domain)
    assert_same(batch.paths, paths)
    # Who reads nothing else is asked for nothing else.
    batch = JoinedLoader([loaders['pairs']]).request(4, items)
    assert_same(batch.pairs, loaders['pairs'].request(4, items))


def test_wrong_requests(loaders: dict[str, Any]) -> None:
    items = torch.arange(3)
    joined = JoinedLoader([loaders['pairs'], loaders['histories']])
    with pytest.raises(ValueError, match=r"may tell \['domain', 'time'\], but told \['query'\]"):
        joined.request(4, items, time=9, domain=0, query=1)
    with pytest.raises(TypeError, match="'time'"):
        joined.request(4, items, domain=0)
    with pytest.raises(ValueError, match=r"must tell \['domain'\], but told none"):
        joined.request(4, items, time=9)
    with pytest.raises(IndexError, match='PairLoader.request found user ids from 60 to 60'):
        joined.request(60, items, time=9, domain=0)


def test_batches_can_be_pickled_and_saved(loaders: dict[str, Any]) -> None:
    batch = next(iter(JoinedLoader([loaders['pairs'], loaders['histories']], 16)))
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    file = io.BytesIO()
    torch.save(batch, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), batch)


def test_loaders_that_do_not_join(market: HeteroData, loaders: dict[str, Any]) -> None:
    pairs, histories = loaders['pairs'], loaders['histories']
    for given, error, sentence in (
        ([], ValueError, 'JoinedLoader joins a list of loaders, .* but got list'),
        (pairs, ValueError, 'JoinedLoader joins a list of loaders, .* but got PairLoader'),
        ([pairs, 3], TypeError, 'joins PairLoader, ExposureLoader, .* but got int'),
        ([pairs, pairs], ValueError, 'joins one PairLoader, but got two'),
        (
            [pairs, HistoryLoader(market)],
            ValueError,
            'those of PairLoader and HistoryLoader differ: make them of one part',
        ),
    ):
        with pytest.raises(error, match=sentence):
            JoinedLoader(given)
    with pytest.raises(ValueError, match="'batch_size' must be at least 1, but got 0"):
        JoinedLoader([pairs, histories], 0)
    with pytest.raises(TypeError, match="'shuffle' must be True or False, but got 'no'"):
        JoinedLoader([pairs, histories], shuffle='no')  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"JoinedLoader makes .* takes no \['drop_last'\]"):
        JoinedLoader([pairs, histories], drop_last=True)


@pytest.mark.parametrize('name', ['edge_label', 'edge_label_conversion', 'edge_label_behavior'])
def test_loaders_of_other_outcomes_do_not_join(train: HeteroData, name: str) -> None:
    other = copy.copy(train)
    for follows in ('edge_label_conversion', 'edge_label_behavior'):
        if name == 'edge_label':
            del other[CLICKS][follows]
    value = train[CLICKS][name]
    other[CLICKS][name] = 1 - value if name == 'edge_label' else torch.zeros_like(value)
    with pytest.raises(ValueError, match='those of PairLoader and ExposureLoader differ'):
        JoinedLoader([PairLoader(train), ExposureLoader(other)])
    # What one of them does not have is not compared.
    del other[CLICKS][name]
    if name != 'edge_label':
        assert len(JoinedLoader([PairLoader(train), ExposureLoader(other)], 100)) > 0
