import copy

import faiss
import pytest
import torch
from torch import Tensor

from mag.compression import QuantizedEmbedding


def table(num_rows: int = 300, size: int = 12) -> Tensor:
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(('num_codes', 'num_bits'), [(1, 8), (4, 8), (12, 8), (3, 4), (6, 4)])
def test_equals_what_faiss_decodes(num_codes: int, num_bits: int) -> None:
    weight = table()
    quantized = QuantizedEmbedding.from_weight(weight, num_codes, num_bits, seed=3)
    quantizer = faiss.ProductQuantizer(12, num_codes, num_bits)
    faiss.copy_array_to_vector(quantized.codebooks.numpy().ravel(), quantizer.centroids)
    codes = quantized.codes.numpy()
    assert codes.shape[1] == quantizer.code_size
    expected = torch.from_numpy(quantizer.decode(codes))  # type: ignore
    assert torch.equal(quantized.weight, expected)
    ids = torch.tensor([[7, 299], [0, 7]])
    assert torch.equal(quantized(ids), expected[ids])
    assert torch.equal(quantized.index_select(0, ids.view(-1)), expected[ids.view(-1)])
    # Each piece is the nearest of the centroids of its place.
    pieces = weight.view(300, num_codes, -1).transpose(0, 1)
    exact = 'donot_use_mm_for_euclid_dist'
    nearest = torch.cdist(pieces, quantized.codebooks, compute_mode=exact).min(dim=2).values
    distance = (pieces - expected.view(300, num_codes, -1).transpose(0, 1)).norm(dim=2)
    torch.testing.assert_close(distance, nearest, atol=1e-5, rtol=1e-4)


def test_a_table_of_few_different_rows_comes_back_nearly_as_it_was() -> None:
    weight = table(16)[torch.arange(600) % 16]
    quantized = QuantizedEmbedding.from_weight(weight, num_codes=2)
    # FAISS moves a centroid that it splits by a thousandth.
    assert float((quantized.weight - weight).abs().max()) < 5e-3
    assert len(quantized.weight.unique(dim=0)) == 16


def test_more_bytes_are_closer() -> None:
    weight, errors, sizes = table(1000), [], []
    for num_codes, num_bits in ((1, 8), (2, 8), (4, 8), (12, 8)):
        quantized = QuantizedEmbedding.from_weight(weight, num_codes, num_bits)
        errors.append(float((quantized.weight - weight).square().mean()))
        sizes.append(quantized.num_bytes)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 < 0.2 < errors[0]
    assert sizes == [1000 * num_codes + 4 * 256 * 12 for num_codes in (1, 2, 4, 12)]
    # Two codes of four bits a byte.
    assert QuantizedEmbedding(1000, 12, 3, 4).num_bytes == 1000 * 2 + 4 * 16 * 12


def test_is_the_same_for_the_same_seed_and_comes_back_from_a_state() -> None:
    weight = table()
    first, again = (QuantizedEmbedding.from_weight(weight, 3, 4, seed=5) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(QuantizedEmbedding.from_weight(weight, 3, 4).weight, first.weight)
    loaded = QuantizedEmbedding(300, 12, 3, 4)
    assert not loaded.weight.any()
    loaded.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(loaded.weight, first.weight)
    assert set(first.state_dict()) == {'codes', 'codebooks'}


def test_is_frozen_and_compiles() -> None:
    quantized = QuantizedEmbedding.from_weight(table(), 4, 4)
    assert list(quantized.parameters()) == [] and not quantized.weight.requires_grad
    ids = torch.tensor([3, 250, 0])
    expected = quantized(ids)
    compiled = torch.compile(quantized, backend='eager', fullgraph=True)
    assert torch.equal(compiled(ids), expected)
    program = torch.export.export(quantized, (ids,))
    assert torch.equal(program.module()(ids), expected)
    assert (len(quantized), quantized.size(0), quantized.size(1)) == (300, 300, 12)
    assert repr(quantized) == 'QuantizedEmbedding(300, 12, num_codes=4, num_bits=4)'
