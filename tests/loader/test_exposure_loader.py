import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureBatch, ExposureFeatures, ExposureLoader, JoinedLoader

CLICKS = ('user', 'clicks', 'item')


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return SyntheticMarket(50, 30, 3000, log=False)[0]


@pytest.fixture(scope='module')
def featured(market: HeteroData) -> HeteroData:
    r"""The market with a dense feature of each exposure."""
    data = copy.copy(market)
    generator = torch.Generator().manual_seed(0)
    data[CLICKS].edge_label_x = torch.randn(3000, 2, generator=generator)
    return data


def assert_same(batch: ExposureBatch, other: ExposureBatch) -> None:
    assert type(batch) is type(other) is ExposureBatch
    for value, expected in zip(batch, other, strict=True):
        assert (value is None) == (expected is None)
        assert value is None or torch.equal(value, expected)


def edited(data: HeteroData, **attributes: Any) -> HeteroData:
    data = copy.copy(data)
    for name, value in attributes.items():
        data[CLICKS][name] = value
    return data


def without(data: HeteroData, *names: str) -> HeteroData:
    data = copy.copy(data)
    for name in names:
        del data[CLICKS][name]
    return data


def test_batches_are_the_rows_of_the_log(featured: HeteroData) -> None:
    loader = ExposureLoader(featured, batch_size=700)
    features = ExposureFeatures(featured)
    clicks = featured[CLICKS]
    assert loader.fields == features.fields
    start = 0
    for batch in loader:
        rows = slice(start, start + len(batch.user))
        user, item = clicks.edge_label_index[:, rows]
        expected = ExposureBatch(
            user,
            item,
            torch.cat(
                [
                    features.sparse['user'][user],
                    features.sparse['item'][item],
                    clicks.edge_label_domain[rows].view(-1, 1),
                    clicks.edge_label_query[rows],
                ],
                dim=1,
            ),
            torch.cat(
                [
                    features.dense['user'][user],
                    features.dense['item'][item],
                    clicks.edge_label_x[rows],
                ],
                dim=1,
            ),
            clicks.edge_label[rows],
            clicks.edge_label_conversion[rows],
            clicks.edge_label_behavior[rows],
        )
        assert_same(batch, expected)
        assert batch.sparse.shape[1] == 13 and batch.dense.shape[1] == 50
        assert {value.dtype for value in batch[:-1]} == {torch.long, torch.float}
        assert batch.counts is None
        start = rows.stop
    assert start == 3000 and len(loader) == 5


def test_labels_are_floats_of_whatever_they_were(market: HeteroData) -> None:
    (expected,) = ExposureLoader(market, 3000)
    clicks = market[CLICKS]
    for dtype in (torch.bool, torch.long, torch.double):
        names = ('edge_label', 'edge_label_conversion', 'edge_label_behavior')
        data = edited(market, **{name: clicks[name].to(dtype) for name in names})
        (batch,) = ExposureLoader(data, 3000)
        assert_same(batch, expected)


@pytest.mark.parametrize(
    'missing', [('edge_label_conversion',), ('edge_label_behavior',), ('edge_label',)]
)
def test_labels_that_the_log_does_not_tell(market: HeteroData, missing: tuple[str, ...]) -> None:
    (whole,) = ExposureLoader(market, 3000)
    (batch,) = ExposureLoader(without(market, *missing), 3000)
    # What followed a click says nothing where clicks are not told.
    gone = {
        'edge_label_conversion': {'conversion': None},
        'edge_label_behavior': {'behavior': None},
        'edge_label': {'label': None, 'conversion': None, 'behavior': None},
    }[missing[0]]
    assert_same(batch, whole._replace(**gone))


def test_a_request_is_the_row_of_the_same_pair(featured: HeteroData) -> None:
    loader = ExposureLoader(featured, 3000)
    (whole,) = loader
    unlabelled = whole._replace(label=None, conversion=None, behavior=None)
    clicks = featured[CLICKS]
    request = loader.request(
        whole.user,
        whole.item,
        clicks.edge_label_x,
        query=clicks.edge_label_query,
        domain=clicks.edge_label_domain,
    )
    assert_same(request, unlabelled)

    for row in (0, 17, 2999):
        expected = ExposureBatch(
            *(None if value is None else value[row : row + 1] for value in unlabelled)
        )
        user, item = clicks.edge_label_index[:, row].tolist()
        x, query = clicks.edge_label_x[row], clicks.edge_label_query[row]
        domain = clicks.edge_label_domain[row]
        for told in (
            {'user': user, 'x': x, 'query': query, 'domain': int(domain)},
            {'user': torch.tensor([user]), 'x': x[None], 'query': query[None], 'domain': domain},
            {'user': torch.tensor(user), 'x': x, 'query': query.int(), 'domain': domain.view(1)},
            {'user': user, 'x': x.double(), 'query': query, 'domain': domain.view(1, 1)},
        ):
            assert_same(loader.request(items=torch.tensor([item]), **told), expected)


def test_what_is_told_once_holds_for_every_candidate(featured: HeteroData) -> None:
    loader = ExposureLoader(featured)
    items = torch.arange(4)
    query, x = torch.tensor([7, 3, -1, -1]), torch.tensor([0.5, -0.5])
    batch = loader.request(9, items, x, query=query, domain=1)
    domains = torch.ones(4).long()
    for told in (
        {'x': x.expand(4, 2), 'query': query.expand(4, 4), 'domain': domains},
        {'x': x.expand(4, 2), 'query': query, 'domain': domains.view(4, 1)},
        {'x': x, 'query': query.expand(4, 4), 'domain': domains},
    ):
        assert_same(loader.request(torch.full((4,), 9), items, **told), batch)
    store = featured['item']
    for row, item in enumerate(range(4)):
        assert batch.sparse[row].tolist() == [
            9,
            *(int(featured['user'][name][9]) for name in ('age_level', 'gender')),
            item,
            *(int(store[name][item]) for name in ('brand', 'category', 'price_level', 'seller')),
            *(1, 7, 3, -1, -1),
        ]
        contents = [store[f'x_{name}'][item] for name in ('acoustic', 'text', 'visual')]
        assert torch.equal(batch.dense[row], torch.cat([*contents, x]))
    assert batch.label is batch.conversion is batch.behavior is None
    # A query that differs by candidate.
    queries = torch.arange(16).view(4, 4)
    other = loader.request(9, items, x, query=queries, domain=1)
    assert torch.equal(other.sparse[:, -4:], queries)
    # And no candidate at all.
    empty = loader.request(9, items[:0], x, query=query, domain=1)
    assert empty.sparse.shape == (0, 13) and empty.dense.shape == (0, 50)


def test_wrong_requests(featured: HeteroData) -> None:
    loader = ExposureLoader(featured)
    good = {
        'user': 0,
        'items': torch.tensor([0, 1, 2]),
        'x': torch.zeros(2),
        'query': torch.zeros(4).long(),
        'domain': 0,
    }
    loader.request(**good)
    both = r"must tell \['domain', 'query'\], but told"
    for told, error, message in (
        ({'user': 50}, IndexError, 'user ids from 50 to 50, .* from -1 to 49'),
        ({'user': -2}, IndexError, 'user ids from -2 to -2'),
        ({'items': torch.tensor([0, 30])}, IndexError, 'item ids from 0 to 30, .* from -1 to 29'),
        ({'user': 0.5}, TypeError, "'user' must hold integer ids, but has dtype torch.float32"),
        ({'user': True}, TypeError, "'user' must hold integer ids, but has dtype torch.bool"),
        ({'items': torch.zeros(3)}, TypeError, "'items' must hold integer ids"),
        ({'domain': 0.5}, TypeError, "'domain' must hold integer ids, .* dtype torch.float32"),
        ({'query': torch.zeros(4)}, TypeError, "'query' must hold integer ids"),
        ({'user': torch.tensor([0, 1])}, ValueError, r'items of shape \[3\] .* of shape \[2\]'),
        ({'user': torch.tensor([[0]])}, ValueError, r'users of shape \[1, 1\]'),
        ({'items': torch.tensor([[0]])}, ValueError, r'items of shape \[1, 1\]'),
        ({'items': torch.tensor(3)}, ValueError, r'items of shape \[\]'),
        ({'hour': 3}, ValueError, rf"{both} \['domain', 'hour', 'query'\]"),
        ({'query': torch.tensor([1, 2])}, ValueError, r"'query' of shape \[3, 4\] .* got \[2\]"),
        ({'query': torch.zeros(4, 3).long()}, ValueError, r"'query' of shape .* got \[4, 3\]"),
        ({'query': torch.zeros(2, 2).long()}, ValueError, r"'query' of shape .* got \[2, 2\]"),
        ({'query': torch.zeros(12).long()}, ValueError, r"'query' of shape .* got \[12\]"),
        (
            {'domain': torch.tensor([0, 1])},
            ValueError,
            r"one 'domain' or one for each item, but got shape \[2\]",
        ),
        ({'x': torch.zeros(3)}, ValueError, r"'x' of shape \[3, 2\] or \[2\], but got \[3\]"),
        ({'x': torch.zeros(2, 3)}, ValueError, r"'x' of shape .* got \[2, 3\]"),
        ({'x': None}, ValueError, r"'x' of shape \[3, 2\] or \[2\], but got \[3, 0\]"),
    ):
        with pytest.raises(error, match=message):
            loader.request(**{**good, **told})
    for name in ('query', 'domain'):
        told = {key: value for key, value in good.items() if key != name}
        with pytest.raises(ValueError, match=both):
            loader.request(**told)


def test_a_log_without_contexts_wants_none(market: HeteroData) -> None:
    loader = ExposureLoader(without(market, 'edge_label_query', 'edge_label_domain'))
    assert loader.fields[-1] == 'item_seller'
    assert loader.request(1, torch.tensor([4])).sparse.shape == (1, 8)
    with pytest.raises(ValueError, match=r"must tell no context, but told \['domain'\]"):
        loader.request(1, torch.tensor([4]), domain=1)
    with pytest.raises(ValueError, match=r"'x' of shape \[1, 0\] or \[0\], but got \[1, 2\]"):
        loader.request(1, torch.tensor([4]), torch.zeros(1, 2))


def test_shuffling_permutes_the_rows_anew_each_epoch(market: HeteroData) -> None:
    (whole,) = ExposureLoader(market, 3000)
    loader = ExposureLoader(market, 3000, shuffle=True, seed=5)
    for epoch in (0, 3, 0):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        generator = torch.Generator().manual_seed(5 * 1_000_003 + epoch)
        order = torch.randperm(3000, generator=generator)
        assert_same(batch, ExposureBatch(*(value[order] for value in whole[:-1])))


def test_sampler_of_the_loader_resumes(market: HeteroData) -> None:
    loader = ExposureLoader(market, batch_size=512, shuffle=True)
    loader.sampler.set_epoch(3)
    whole = list(loader)
    loader.sampler.skip = 2
    for batch, other in zip(loader, whole[2:], strict=True):
        assert_same(batch, other)


def test_workers_make_the_same_batches(featured: HeteroData) -> None:
    data = without(featured, 'edge_label_behavior')
    here = ExposureLoader(data, batch_size=1000, shuffle=True, seed=1)
    there = ExposureLoader(data, batch_size=1000, shuffle=True, seed=1, num_workers=2)
    for batch, other in zip(here, there, strict=True):
        assert_same(batch, other)
        assert batch.behavior is None


def test_batches_can_be_pickled_and_saved(market: HeteroData) -> None:
    batch = next(iter(ExposureLoader(market, 64)))
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    file = io.BytesIO()
    torch.save(batch, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), batch)


def test_a_part_without_exposures_serves_requests(featured: HeteroData) -> None:
    expected = ExposureLoader(featured)
    data = copy.copy(featured)
    clicks = data[CLICKS]
    for name in [name for name in clicks.keys() if name.startswith('edge_label')]:
        clicks[name] = clicks[name][:, :0] if name == 'edge_label_index' else clicks[name][:0]
    loader = ExposureLoader(data)
    assert len(loader) == 0 and list(loader) == []
    told = {'x': torch.ones(2), 'query': torch.arange(4), 'domain': 1}
    items = torch.tensor([3, 1])
    assert_same(loader.request(4, items, **told), expected.request(4, items, **told))


def changed(value: Tensor, row: int, number: float) -> Tensor:
    value = value.clone()
    value[row] = number
    return value


def test_wrong_labels(market: HeteroData) -> None:
    clicks = market[CLICKS]
    label = clicks.edge_label
    conversion, behavior = clicks.edge_label_conversion, clicks.edge_label_behavior
    missed = int((label == 0).nonzero()[0])
    num_missed = int((label == 0).sum())
    for attributes, message in (
        (
            {'edge_label_conversion': changed(conversion, missed, 1)},
            rf"'edge_label_conversion' in 1 exposures without a click, such as row {missed}:",
        ),
        (
            {'edge_label_behavior': changed(behavior, missed, 1)},
            rf"'edge_label_behavior' in 1 exposures without a click, such as row {missed}:",
        ),
        (
            {'edge_label_behavior': torch.ones(3000, 2)},
            rf'in {num_missed} exposures without a click',
        ),
        (
            {'edge_label_conversion': changed(conversion, 7, 0.5)},
            "'edge_label_conversion' of 0 and 1, but 1 of 3000 is not, such as 0.5 in row 7",
        ),
        (
            {'edge_label_conversion': changed(conversion, 8, torch.nan)},
            "'edge_label_conversion' of 0 and 1, but 1 of 3000 is not, such as nan in row 8",
        ),
        (
            {'edge_label_behavior': changed(behavior, 9, -1)},
            "'edge_label_behavior' of 0 and 1, .* such as -1.0 in row 9, column 0",
        ),
        ({'edge_label_conversion': conversion[1:]}, r'of shape \[3000\], but got shape \[2999\]'),
        ({'edge_label_conversion': conversion.view(-1, 1)}, r'\[3000\], but got shape \[3000, 1\]'),
        ({'edge_label_behavior': conversion}, r'of shape \[3000, N\], but got shape \[3000\]'),
        (
            {'edge_label_behavior': behavior[1:]},
            r'of shape \[3000, N\], but got shape \[2999, 10\]',
        ),
        ({'edge_label': label[1:]}, r"'edge_label' of shape \[3000\], but got shape \[2999\]"),
        ({'edge_label': label * 2}, "expects 'edge_label' of 1 for a click and 0 for none"),
    ):
        with pytest.raises(ValueError, match=message):
            ExposureLoader(edited(market, **attributes))
    with pytest.raises(TypeError, match=r'of shape \[3000, N\], but got list'):
        ExposureLoader(edited(market, edge_label_behavior=[1]))


def test_wrong_arguments(market: HeteroData) -> None:
    for name in ('sampler', 'batch_sampler', 'drop_last', 'collate_fn', 'dataset'):
        with pytest.raises(TypeError, match=name):
            ExposureLoader(market, **{name: None})
    with pytest.raises(ValueError, match="'batch_size' must be at least 1, but got 0"):
        ExposureLoader(market, 0)
    with pytest.raises(TypeError, match='expects a HeteroData'):
        ExposureLoader('log')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='edge_label_index'):
        ExposureLoader(without(market, 'edge_label_index', 'edge_label_domain', 'edge_label_query'))


def test_counts_at_the_target_come_with_their_rows(market: HeteroData) -> None:
    data = copy.copy(market)
    size = data[CLICKS].edge_label.numel()
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(size, 3, 2, generator=generator).double().sort(descending=True).values
    data[CLICKS].edge_label_counts = counts
    loader = ExposureLoader(data, 700)
    batches = list(loader)
    assert torch.equal(torch.cat([batch.counts for batch in batches]), counts.float())
    contexts = dict.fromkeys(loader.dataset.features.names, 0)
    arguments = {**contexts, 'query': torch.zeros(4).long()}
    request = loader.request(1, torch.tensor([4, 2]), counts=counts[:2], **arguments)
    assert torch.equal(request.counts, counts[:2].float())
    joined = JoinedLoader([loader]).request(1, torch.tensor([4]), counts=counts[:1], **arguments)
    assert torch.equal(joined.features.counts, counts[:1].float())
    with pytest.raises(
        TypeError, match=r"'counts' to be a tensor of shape \[2, 3, 2\], but got None"
    ):
        loader.request(1, torch.tensor([4, 2]), **arguments)
    with pytest.raises(
        ValueError, match=r"'counts' of shape \[2, 3, 2\], but got shape \[1, 3, 2\]"
    ):
        loader.request(1, torch.tensor([4, 2]), counts=counts[:1], **arguments)
    with pytest.raises(ValueError, match='was told counts, but the log has none'):
        ExposureLoader(market).request(1, torch.tensor([4]), counts=counts[:1], **arguments)
    for bad in (
        [2.0, 3.0],
        [1.0, -1.0],
        [-1.0, -1.0],
        [torch.inf, 1.0],
        [torch.nan, 0.0],
        [1.0, torch.nan],
    ):
        wrong = counts.clone()
        wrong[1, 2] = torch.tensor(bad)
        sentence = 'of clicks from 0 to the exposures beside them.* in row 1, column 2'
        with pytest.raises(ValueError, match=f"'counts' {sentence}"):
            loader.request(1, torch.tensor([4, 2]), counts=wrong[:2], **arguments)
        data[CLICKS].edge_label_counts = wrong
        with pytest.raises(
            ValueError, match=f"ExposureLoader expects 'edge_label_counts' {sentence}"
        ):
            ExposureLoader(data)
    data[CLICKS].edge_label_counts = counts[:5]
    with pytest.raises(ValueError, match="'edge_label_counts' of shape"):
        ExposureLoader(data)
