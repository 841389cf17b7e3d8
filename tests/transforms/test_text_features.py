import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader
from mag.transforms import TextFeatures

TEXTS = ['Toy Story (1995). Comedy', 'Jumanji (1995). Comedy', 'Heat (1995)', '']


class BagOfWords:
    r"""Counts words in buckets, the same on every machine."""

    def __init__(self, num_buckets: int) -> None:
        self.num_buckets = num_buckets
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.calls.append(texts)
        x = np.zeros((len(texts), self.num_buckets))
        for row, text in enumerate(texts):
            for word in text.split():
                x[row, zlib.crc32(word.encode()) % self.num_buckets] += 1
        return x

    def __repr__(self) -> str:
        return f'BagOfWords({self.num_buckets})'


def test_row_of_each_item_is_its_text(toy_graph: HeteroData) -> None:
    encode = BagOfWords(1000)
    transform = TextFeatures(TEXTS, encode)
    data = transform(toy_graph)
    x = data['item'].x_text
    assert x.dtype == torch.float and x.shape == (4, 1000)
    assert x.sum(1).tolist() == [4, 3, 2, 0]
    year, comedy = (zlib.crc32(word) % 1000 for word in (b'(1995)', b'Comedy'))
    assert x[:, comedy].tolist() == [1, 1, 0, 0]
    assert x[:, year].tolist() == [0, 0, 1, 0]
    # The input stays as it was, and its parts share one encoding.
    assert 'x_text' not in toy_graph['item']
    assert transform(toy_graph)['item'].x_text is x and encode.calls == [TEXTS]
    # What other features of content are, these are.
    (batch,) = ExposureLoader(data, 12)
    assert torch.equal(batch.dense, x[batch.item])


@pytest.mark.parametrize(
    'convert',
    [
        lambda x: x.astype(np.float16),
        lambda x: torch.from_numpy(x).bfloat16().requires_grad_(),
        lambda x: x.astype(np.int32),
        lambda x: np.asfortranarray(x),
    ],
)
def test_what_encoders_return(toy_graph: HeteroData, convert: Callable[[Any], Any]) -> None:
    bag = BagOfWords(7)
    expected = TextFeatures(TEXTS, bag)(toy_graph)['item'].x_text
    x = TextFeatures(np.array(TEXTS, dtype=object), lambda t: convert(bag(t)))(toy_graph)['item']
    assert torch.equal(x.x_text, expected) and x.x_text.dtype == torch.float
    assert not x.x_text.requires_grad


def test_repr_tells_texts_and_encoders_apart() -> None:
    same, *others = (
        repr(TextFeatures(texts, BagOfWords(size)))
        for texts, size in ((TEXTS, 7), (TEXTS, 8), (TEXTS[::-1], 7), (TEXTS[:3], 7))
    )
    checksum = zlib.crc32('\0'.join(TEXTS).encode())
    assert same == f'TextFeatures(4 texts with the checksum {checksum:08x}, encode=BagOfWords(7))'
    assert len({same, *others}) == 4


def returns(value: Any) -> Callable[[list[str]], Tensor]:
    return lambda texts: value


def test_bad_input(toy_graph: HeteroData) -> None:
    bad = torch.zeros(4, 2)
    bad[2, 1] = torch.nan
    for texts, encode, error, message in (
        ('Heat', BagOfWords(2), TypeError, "a sequence of a str an item, but got 'Heat'"),
        (['Heat', None], BagOfWords(2), TypeError, 'a str an item, but holds None'),
        (None, BagOfWords(2), TypeError, 'a sequence of a str an item, but got None'),
        (
            TEXTS,
            returns(torch.zeros(4, 2) * 1j),
            TypeError,
            'numbers, but returned Tensor of torch.complex64',
        ),
        (TEXTS, returns(torch.zeros(4, 2).bool()), TypeError, 'but returned Tensor of torch.bool'),
        (TEXTS, returns(torch.zeros(4, 0)), ValueError, r'shape \[4, D\] .* returned \[4, 0\]'),
        (TEXTS, None, TypeError, r"SentenceTransformer\('all-MiniLM-L6-v2'\).*, but got None"),
        (TEXTS, 'all-MiniLM-L6-v2', TypeError, "'encode' must be a function .*got 'all-Mini"),
        (TEXTS, returns([[1.0]] * 4), TypeError, 'a NumPy array or a tensor .*, but returned list'),
        (TEXTS, returns(np.array([['a']] * 4)), TypeError, 'numbers, but returned ndarray of <U1'),
        (TEXTS, returns(torch.zeros(3, 2)), ValueError, r'shape \[4, D\] .* returned \[3, 2\]'),
        (TEXTS, returns(torch.zeros(4)), ValueError, r'shape \[4, D\] .* returned \[4\]'),
        (
            TEXTS,
            returns(bad),
            ValueError,
            'finite float32, but 1 of 8 is not, such as nan in row 2',
        ),
    ):
        with pytest.raises(error, match=message):
            TextFeatures(texts, encode)
    with pytest.raises(TypeError, match='TextFeatures expects a HeteroData .* got str'):
        TextFeatures(TEXTS, BagOfWords(2))('data')
    with pytest.raises(ValueError, match='one an item of the data, 4, but got 3'):
        TextFeatures(TEXTS[:3], BagOfWords(2))(toy_graph)
