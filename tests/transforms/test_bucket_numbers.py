import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader
from mag.models import SimCEN
from mag.transforms import BucketNumbers, TemporalSplit

CLICKS = ('user', 'clicks', 'item')


def make_log(size: int = 200, seed: int = 0) -> HeteroData:
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 10, 6
    data['item'].x_price = torch.tensor([5.0, 1.0, 9.0, 1.0, 3.0, 100.0])
    data['user'].x = torch.randn(10, 2, generator=generator)
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack(
        [torch.randint(n, (size,), generator=generator) for n in (10, 6)]
    )
    clicks.edge_label = torch.randint(2, (size,), generator=generator).float()
    clicks.edge_label_time = torch.arange(size)
    clicks.edge_label_x = torch.randn(size, 1, generator=generator).exp()
    clicked = clicks.edge_label == 1
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time = clicks.edge_label_time[clicked]
    return data


def with_numbers(*numbers: float) -> HeteroData:
    r"""One exposure with each number."""
    data = make_log(len(numbers))
    del data['user'].x, data['item'].x_price
    data[CLICKS].edge_label_x = torch.tensor(numbers)
    return data


def buckets_of(transform: BucketNumbers, *numbers: float) -> list[int]:
    return transform.contexts(torch.tensor(numbers).unsqueeze(1))['bucket'].tolist()


def test_quantiles_hold_equally_many_exposures() -> None:
    data = with_numbers(*torch.randperm(100).float().tolist())
    out = BucketNumbers(5)(data)
    bucket = out[CLICKS].edge_label_bucket
    assert out[CLICKS].num_bucket == 5 and bucket.dtype == torch.long
    assert bucket.bincount().tolist() == pytest.approx([20] * 5, abs=1)
    # In the order of the numbers.
    assert bool((bucket[data[CLICKS].edge_label_x.argsort()].diff() >= 0).all())


def test_a_bucket_begins_at_its_edge() -> None:
    transform = BucketNumbers(2).fit(with_numbers(1.0, 2.0, 3.0, 4.0))
    assert transform.edges['edge_label_x.0'].tolist() == [3.0]
    assert buckets_of(transform, 2.999, 3.0, 3.001, -1e9, 1e9) == [0, 1, 1, 0, 1]


def test_equal_numbers_share_a_bucket_and_none_is_empty() -> None:
    data = with_numbers(*[0.0] * 60, *[1.0] * 30, *torch.arange(2.0, 12).tolist())
    out = BucketNumbers(10)(data)[CLICKS]
    counts = out.edge_label_bucket.bincount(minlength=out.num_bucket)
    assert counts.tolist() == [60, 30, 10]
    assert BucketNumbers()(with_numbers(7.0, 7.0, 7.0))[CLICKS].num_bucket == 1


def test_logarithms_are_those_of_criteo() -> None:
    def by_hand(value: float) -> int:
        return math.floor(math.log(value) ** 2) if value > 2 else int(value)

    numbers = [-3.5, -1.0, 0.0, 0.4, 1.0, 2.0, 2.5, 3.0, 10.0, 11.0, 1e4, 123456.0]
    codes = [by_hand(number) for number in numbers]
    known = sorted(set(codes))
    transform = BucketNumbers(form='log').fit(with_numbers(*numbers))
    assert buckets_of(transform, *numbers) == [known.index(code) for code in codes]
    # What training lacks is in the bucket below, or in the first.
    assert by_hand(100.0) == 21 and 21 not in known
    (below,) = buckets_of(transform, 100.0)
    assert known[below] == max(code for code in known if code < 21)
    assert buckets_of(transform, -100.0, 1e30) == [0, len(known) - 1]


def test_users_and_items_count_as_often_as_they_are_shown() -> None:
    data = make_log(8)
    data[CLICKS].edge_label_index = torch.tensor([[0] * 8, [0, 0, 0, 0, 0, 1, 2, 2]])
    out = BucketNumbers(2)(data)
    # Of the prices of exposures, five times 5, once 1 and twice 9, half are below 9.
    assert out['item'].price_bucket.tolist() == [1, 0, 1, 0, 0, 1]
    assert out['item'].num_price_bucket == 2


def test_names_are_fields_of_models() -> None:
    data = make_log()
    out = BucketNumbers(4)(data)
    loader = ExposureLoader(out, 50)
    assert loader.fields == (
        'user', 'user_bucket_0', 'user_bucket_1', 'item', 'item_price_bucket', 'bucket',
    )  # fmt: skip
    model = SimCEN.from_data(out, hidden_channels=(9,)).eval()
    batch = next(iter(loader))
    assert batch.dense.shape == (50, 4)
    # A request tells the features, and the transform their buckets.
    transform = BucketNumbers(4).fit(data)
    x = data[CLICKS].edge_label_x[:50]
    request = loader.request(batch.user, batch.item, x=x, **transform.contexts(x))
    assert torch.equal(request.sparse, batch.sparse)
    assert torch.equal(model(request).click, model(batch).click)


def test_modalities_can_be_left_out() -> None:
    out = BucketNumbers(modalities=['price'])(make_log())
    assert 'price_bucket' in out['item'] and 'bucket_0' not in out['user']
    out = BucketNumbers(modalities=[])(make_log())
    assert 'price_bucket' not in out['item'] and 'edge_label_bucket' in out[CLICKS]


def test_edges_are_those_of_training_and_parts_stay_as_they_were() -> None:
    train, val, test = TemporalSplit(num_windows=1)(make_log(1_000))
    before = copy.deepcopy(test)
    transform = BucketNumbers(4).fit(train)
    out = transform(test)
    assert out[CLICKS].num_bucket == 4 and 'bucket' not in str(test[CLICKS].keys())
    assert torch.equal(test[CLICKS].edge_label_x, before[CLICKS].edge_label_x)
    expected = torch.bucketize(
        test[CLICKS].edge_label_x.double().view(-1), transform.edges['edge_label_x.0'], right=True
    )
    assert torch.equal(out[CLICKS].edge_label_bucket, expected)
    # Other numbers after training change nothing of it.
    val[CLICKS].edge_label_x = val[CLICKS].edge_label_x * 100
    again = BucketNumbers(4).fit(train)
    assert all(torch.equal(edge, again.edges[name]) for name, edge in transform.edges.items())
    with pytest.raises(ValueError, match='fitted as of time .*own future'):
        BucketNumbers(4).fit(test)(train)


def test_a_log_to_serve_has_no_exposures() -> None:
    data = make_log()
    transform = BucketNumbers(4).fit(data)
    served = copy.copy(data)
    for name in list(served[CLICKS].keys()):
        if name.startswith('edge_label'):
            del served[CLICKS][name]
    out = transform(served)
    assert torch.equal(out['item'].price_bucket, transform(data)['item'].price_bucket)


@pytest.mark.parametrize('form', ['quantile', 'log'])
def test_what_was_fitted_can_be_saved(form: str) -> None:
    data = make_log()
    fitted = BucketNumbers(4, form).fit(data)
    twin = BucketNumbers(4, form)
    twin.load_fitted_state(*fitted.fitted_state())
    one, other = fitted(data), twin(data)
    assert torch.equal(one[CLICKS].edge_label_bucket, other[CLICKS].edge_label_bucket)
    assert repr(twin) == repr(fitted) != repr(BucketNumbers(4, form))
    assert repr(BucketNumbers(4, form)) == (
        f"BucketNumbers(num_buckets=4, form='{form}', modalities=None)"
    )


def without(data: HeteroData, name: str) -> HeteroData:
    data = copy.copy(data)
    del data['item'][name]
    return data


def filled(value: Tensor) -> HeteroData:
    data = make_log()
    data[CLICKS].edge_label_x = value
    return data


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: BucketNumbers(1), ValueError, "'num_buckets' must be at least 2, but got 1"),
        (lambda: BucketNumbers(form='even'), ValueError, "'form' must be one of 'quantile', 'log'"),
        (lambda: BucketNumbers(modalities='x'), TypeError, "'modalities' must be a list such as"),
        (
            lambda: BucketNumbers(modalities=['cost'])(make_log()),
            ValueError,
            r"'modalities' to be some of \['', 'price'\], .* but got \['cost'\]",
        ),
        (lambda: BucketNumbers()(None), TypeError, 'BucketNumbers expects a HeteroData'),
        (
            lambda: BucketNumbers()(filled(torch.full((200,), torch.nan))),
            ValueError,
            "BucketNumbers expects 'edge_label_x' of finite float32, but 200 of 200",
        ),
        (
            lambda: BucketNumbers()(filled(torch.ones(200).long())),
            TypeError,
            "'edge_label_x' of fl",
        ),
        (lambda: BucketNumbers()(filled(torch.ones(3))), ValueError, r"'edge_label_x' of shape"),
        (
            lambda: BucketNumbers().fit(make_log())(without(make_log(), 'x_price')),
            ValueError,
            r"was fitted on the columns \['edge_label_x.0', 'item.x_price.0', .* but the data has",
        ),
        (
            lambda: BucketNumbers().contexts(torch.rand(3, 1)),
            ValueError,
            r'knows no buckets yet: call fit\(train\) first',
        ),
        (
            lambda: BucketNumbers().fit(make_log()).contexts(torch.rand(3, 2)),
            ValueError,
            r"'x' of shape \[B, 1\], but got shape \[3, 2\]",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


def test_a_log_without_numbers_is_refused() -> None:
    data = make_log()
    del data['user'].x, data['item'].x_price, data[CLICKS].edge_label_x
    with pytest.raises(ValueError, match='the data has 200 exposures and 0 such attributes'):
        BucketNumbers().fit(data)
