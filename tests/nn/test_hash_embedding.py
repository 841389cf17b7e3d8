import copy
import io
import pickle
import zlib

import pytest
import torch

from mag.nn import HashEmbedding

PRIME = 2**31 - 1


def coefficients(name: str) -> list[int]:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(1, PRIME, (3,), generator=generator).tolist()


def bucket(name: str, value: int, num_buckets: int) -> int:
    r"""The formula in Python's integers, which have no end."""
    square, linear, constant = coefficients(name)
    return (square * value**2 + linear * value + constant) % PRIME % num_buckets


IDS = [0, 1, -1, -7, 12345, PRIME - 1, PRIME, PRIME + 1, -PRIME, 2**62 - 1, -(2**62), 2**63 - 1]


@pytest.mark.parametrize('num_buckets', [1, 2, 1000, 2**20, PRIME])
def test_buckets_follow_the_formula(num_buckets: int) -> None:
    fields = ['user', 'item', 'query']
    # The table would not fit where there are that many rows, and is not read here.
    embedding = HashEmbedding(fields, min(num_buckets, 1000), 1)
    embedding.num_buckets = num_buckets
    buckets = embedding.buckets(torch.tensor(IDS).view(-1, 1).expand(-1, 3))
    expected = [[bucket(name, value, num_buckets) for name in fields] for value in IDS]
    assert buckets.tolist() == expected


def test_hashes_stay_what_they_are() -> None:
    # Weights saved by one version are read by the next.
    embedding = HashEmbedding(['user', 'query'], 100_000, 2)
    ids = torch.tensor([[0, 0], [1, 1], [-1, -1]])
    assert embedding.coefficient.tolist() == [
        [1963910894, 381063539, 326460024],
        [2130094967, 1778003953, 694837240],
    ]
    assert embedding.buckets(ids).tolist() == [[60024, 37240], [50810, 68866], [7379, 28254]]


def test_forward_puts_the_rows_side_by_side() -> None:
    fields = ['user', 'query', 'query']
    embedding = HashEmbedding(fields, 11, 2)
    ids = torch.tensor([[7, 3, -1], [2**62, 3, 3], [-5, 0, 9], [0, 0, 0]])
    out = embedding(ids)
    for row, values in zip(out.tolist(), ids.tolist()):
        expected = [
            number
            for name, value in zip(fields, values)
            for number in embedding.weight[bucket(name, value, 11)].tolist()
        ]
        assert row == expected
    assert embedding(ids[:0]).shape == (0, 6)
    for dtype in (torch.int32, torch.int16):
        small = ids[2:].to(dtype)
        assert torch.equal(embedding(small), out[2:])


def test_columns_of_one_name_share_their_rows() -> None:
    embedding = HashEmbedding(['query', 'user', 'query'], 1000, 4)
    out = embedding(torch.arange(50).view(-1, 1).expand(-1, 3)).view(50, 3, 4)
    assert torch.equal(out[:, 0], out[:, 2])
    assert (out[:, 0] == out[:, 1]).all(1).float().mean() < 0.1


def test_a_field_keeps_its_rows_when_others_come_and_go() -> None:
    ids = torch.randint(-(2**40), 2**40, (200, 1), generator=torch.Generator().manual_seed(0))
    alone = HashEmbedding(['item_category'], 500, 3)
    expected = alone.buckets(ids)[:, 0]
    for fields in (
        ['user', 'item_category'],
        ['item_category', 'user'],
        ['a', 'b', 'c', 'item_category', 'd'],
    ):
        other = HashEmbedding(fields, 500, 3)
        column = fields.index('item_category')
        assert torch.equal(other.buckets(ids.expand(-1, len(fields)))[:, column], expected)
        with torch.no_grad():
            other.weight.copy_(alone.weight)
        out = other(ids.expand(-1, len(fields)))[:, 3 * column : 3 * column + 3]
        assert torch.equal(out, alone(ids))


@pytest.mark.parametrize('num_buckets', [10, 97, 1000])
@pytest.mark.parametrize('name', ['user', 'item', 'query', 'item_brand'])
def test_ids_spread_evenly(num_buckets: int, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(-(2**62), 2**62, (100_000, 1), generator=generator)
    buckets = HashEmbedding([name], num_buckets, 1).buckets(ids)
    count = buckets.view(-1).bincount(minlength=num_buckets)
    mean = 100_000 / num_buckets
    statistic = float((count - mean).square().sum() / mean)
    # Chi-square of num_buckets - 1 degrees of freedom, within five deviations.
    assert abs(statistic - (num_buckets - 1)) < 5 * (2 * (num_buckets - 1)) ** 0.5


def test_two_fields_collide_as_often_as_chance_says() -> None:
    num_buckets = 100
    names = [f'field_{number}' for number in range(300)]
    buckets = HashEmbedding(names, num_buckets, 1).buckets(torch.full((1, 300), 3))[0]
    same = (buckets.view(-1, 1) == buckets).sum() - 300
    # 89 700 ordered pairs, each with a chance of 1 in 100.
    assert 600 < same < 1200


@pytest.mark.parametrize('name', ['user', 'item', 'item_category', 'city', 'field_17', 'query'])
def test_consecutive_ids_collide_as_often_as_chance_says(name: str) -> None:
    num_ids, num_buckets = 20_000, 50_000
    buckets = HashEmbedding([name], num_buckets, 1).buckets(torch.arange(num_ids).view(-1, 1))
    count = buckets.view(-1).bincount(minlength=num_buckets).double()
    pairs = float((count * (count - 1)).sum() / 2)
    expected = num_ids * (num_ids - 1) / 2 / num_buckets
    assert abs(pairs - expected) < 5 * expected**0.5


def test_gradient_reaches_the_rows_that_were_read_alone() -> None:
    embedding = HashEmbedding(['user', 'query', 'query'], 20, 2)
    ids = torch.tensor([[1, 2, 2], [1, 3, -1]])
    embedding(ids).sum().backward()
    count = embedding.buckets(ids).view(-1).bincount(minlength=20)
    assert embedding.weight.grad.tolist() == [[float(n)] * 2 for n in count.tolist()]


def test_copies_agree() -> None:
    embedding = HashEmbedding(['user', 'query'], 50, 3)
    ids = torch.tensor([[1, -1], [2**60, 7]])
    file = io.BytesIO()
    torch.save(embedding.state_dict(), file)
    file.seek(0)
    other = HashEmbedding(['user', 'query'], 50, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding))):
        assert torch.equal(twin(ids), embedding(ids))


def test_reset_parameters() -> None:
    embedding = HashEmbedding(['user'], 10_000, 4)
    coefficient = embedding.coefficient.clone()
    with torch.no_grad():
        embedding.weight.fill_(7)
    embedding.reset_parameters()
    assert embedding.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert embedding.weight.mean().item() == pytest.approx(0, abs=0.002)
    assert torch.equal(embedding.coefficient, coefficient)


def test_compiled_training_is_one_graph_with_the_same_gradients() -> None:
    embedding = HashEmbedding(['user', 'query'], 50, 3)
    twin = copy.deepcopy(embedding)
    ids = torch.tensor([[1, -1], [2**60, 7], [-(2**61), 1]])
    for layer in (embedding, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        layer(ids).square().sum().backward()
    torch.testing.assert_close(twin.weight.grad, embedding.weight.grad)


def test_export_takes_batches_of_other_sizes() -> None:
    embedding = HashEmbedding(['user', 'query', 'query'], 50, 3)
    ids = torch.randint(-1, 2**40, (300, 3), generator=torch.Generator().manual_seed(0))
    size = torch.export.Dim('batch')
    program = torch.export.export(embedding, (ids[:5],), dynamic_shapes=({0: size},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for rows in (2, 5, 300):
        assert torch.equal(exported(ids[:rows]), embedding(ids[:rows]))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (('user', 10, 2), TypeError, "sequence of names, but got 'user'"),
        ((7, 10, 2), TypeError, 'sequence of names, but got 7'),
        ((['user', 3], 10, 2), ValueError, r"one name or more, but got \['user', 3\]"),
        (([], 10, 2), ValueError, r'one name or more, but got \[\]'),
        ((['user'], 0, 2), ValueError, "'num_buckets' must be at least 1, but got 0"),
        ((['user'], 2.5, 2), TypeError, "'num_buckets' must be an integer, but got 2.5"),
        ((['user'], 10, -1), ValueError, "'embedding_dim' must be at least 1, but got -1"),
        ((['user'], 2**31, 2), ValueError, "'num_buckets' must lie below 2147483648"),
        ((['user'], 9, 2, 'user'), TypeError, "'with_unknown' must be a sequence of names, but go"),
        ((['user'], 9, 2, ['usr']), ValueError, r"the fields \['user'\], but got \['usr'\]."),
    ],
)
def test_wrong_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HashEmbedding(*arguments)


def test_wrong_inputs() -> None:
    embedding = HashEmbedding(['user', 'query', 'query'], 10, 2)
    for dtype in (torch.float, torch.bool):
        with pytest.raises(TypeError, match=f"'ids' of integers, but got {dtype}"):
            embedding(torch.zeros(4, 3, dtype=dtype))
    for ids, got in (
        (torch.zeros(4, 2).long(), r'shape \[4, 2\]'),
        (torch.zeros(3).long(), r'shape \[3\]'),
        (torch.zeros(1, 4, 3).long(), r'shape \[1, 4, 3\]'),
    ):
        message = rf"\['user', 'query', 'query'\].* expects 'ids' of shape \[B, 3\], but got {got}"
        with pytest.raises(ValueError, match=message):
            embedding(ids)


def test_repr() -> None:
    assert repr(HashEmbedding(['user', 'item'], 10, 2)) == (
        "HashEmbedding(['user', 'item'], num_buckets=10, embedding_dim=2)"
    )


def test_the_unknown_of_some_fields_have_rows_of_their_own() -> None:
    fields = ['query', 'item', 'user', 'item']
    torch.manual_seed(0)
    plain, after = HashEmbedding(fields, 50, 2), torch.rand(3)
    torch.manual_seed(0)
    embedding = HashEmbedding(fields, 50, 2, with_unknown=('user', 'item'))
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(embedding.weight[:50], plain.weight) and embedding.weight.shape == (52, 2)
    assert not embedding.weight[50:].any()
    ids = torch.tensor([[-1, -1, -1, 3], [4, -2, 7, -1]])
    expected = plain.buckets(ids)
    expected[0, 1:3] = torch.tensor([50, 51])
    expected[1, 3] = 50
    assert torch.equal(embedding.buckets(ids), expected)
    embedding(ids).sum().backward()
    assert embedding.weight.grad[50:, 0].tolist() == [2, 1]
