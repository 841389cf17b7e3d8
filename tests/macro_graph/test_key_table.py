import torch

from mag.macro_graph.key_table import KeyTable


def test_rows_are_those_of_a_dictionary() -> None:
    generator = torch.Generator().manual_seed(0)
    table, expected = KeyTable(), {}
    for size in (1, 10, 1000, 20_000):
        # Keys far apart, close together, and multiples of a power of two.
        for factor, high in ((1, 2**62), (1, 3 * size), (2**20, 2**30)):
            key = factor * torch.randint(high, (size,), generator=generator).unique()
            row = table.add(key)
            for one, place in zip(key.tolist(), row.tolist(), strict=True):
                assert expected.setdefault(one, place) == place
            assert torch.equal(table.find(key), row)
            asked = (key + 1).tolist()
            assert table.find(key + 1).tolist() == [expected.get(one, -1) for one in asked]
    assert table.num_rows == len(expected)
    assert sorted(expected.values()) == list(range(len(expected)))


def test_nothing_is_found_in_an_empty_table() -> None:
    assert KeyTable().find(torch.tensor([0, 5])).tolist() == [-1, -1]
    assert KeyTable().add(torch.empty(0, dtype=torch.long)).tolist() == []
