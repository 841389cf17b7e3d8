import torch

from mag.unknown import known_places, take_known, unknown_row


def test_rows_of_known_nodes_and_what_stands_for_others() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    node = torch.tensor([1, -1, 0, -1])
    known = known_places(node)
    assert known is not None and known.tolist() == [0, 2]
    out = take_known(table, node, known, unknown_row(table))
    assert out.tolist() == [[3, 6], [2, 4], [1, 2], [2, 4]]
    assert known_places(node[::2]) is None
    assert take_known(table, node[::2], None, 0).tolist() == [[3, 6], [1, 2]]
    # A log without nodes knows nobody.
    none = torch.tensor([-1])
    assert take_known(table[:0], none, known_places(none), 7).tolist() == [[7, 7]]


def test_what_is_expected_of_who_is_unknown() -> None:
    assert unknown_row(torch.tensor([[0, 1], [2, 3]])).tolist() == [-1, -1]
    assert unknown_row(torch.tensor([0, 1], dtype=torch.int32)).dtype == torch.int32
    # No unsigned type holds -1.
    small = torch.tensor([[7], [255]], dtype=torch.uint8)
    node = torch.tensor([1, -1])
    assert take_known(small, node, known_places(node), unknown_row(small)).tolist() == [[255], [-1]]
    assert unknown_row(torch.tensor([True])).tolist() is False
    assert unknown_row(torch.tensor([1.0, 4.0])).tolist() == 2.5
    assert unknown_row(torch.empty(0, 2)).tolist() == [0, 0]
