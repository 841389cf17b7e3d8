import torch
from torch import Tensor

# 2^64 divided by the golden ratio, as int64: products spread numbers that follow each other.
SPREAD = -7046029254386353131


class KeyTable:
    r"""Rows of keys: a hash table of integers, which grows, and finds and adds many at once.

    Half of its places are empty at least, so that a key is found after two looks on average,
    however many there are.

    Attributes:
        num_rows (int): How many keys there are.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._allocate(1024)

    def find(self, key: Tensor) -> Tensor:
        r"""The row of each key, :obj:`-1` where it has none, shape :obj:`[B]`.

        Args:
            key (torch.Tensor): Numbers of 0 or more, shape :obj:`[B]`, int64.
        """
        place = self._first(key)
        row, is_other = self._look(key, place)
        left = is_other.nonzero().view(-1)
        key, place = key.index_select(0, left), place.index_select(0, left)
        while left.numel() > 0:
            place = (place + 1) & self._mask
            row[left], is_other = self._look(key, place)
            left, key, place = left[is_other], key[is_other], place[is_other]
        return row

    def add(self, key: Tensor) -> Tensor:
        r"""The row of each key, those that have none included, shape :obj:`[B]`.

        Args:
            key (torch.Tensor): Numbers of 0 or more, each once, shape :obj:`[B]`, int64.
        """
        row = self.find(key)
        new = key[row < 0]
        rows = self.num_rows + torch.arange(new.numel())
        row[row < 0] = rows
        self.num_rows += new.numel()
        if 2 * self.num_rows > len(self._entry):
            keys, old = self._entry[self._entry[:, 0] >= 0].unbind(1)
            self._allocate(4 * self.num_rows)
            self._put(keys, old)
        self._put(new, rows)
        return row

    def _allocate(self, least: int) -> None:
        size = 1 << (least - 1).bit_length()
        self._mask, self._shift = size - 1, 65 - size.bit_length()
        # A key and its row, which lie together so that memory is waited for once.
        self._entry = torch.full((size, 2), -1)

    def _look(self, key: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        r"""The row of each key if it is at its place, else -1; and whether another is there."""
        # index_select gathers three times faster than an index in brackets.
        there, row = self._entry.index_select(0, place).unbind(1)
        is_here = there == key
        return row.where(is_here, -1), ~is_here & (there >= 0)

    def _first(self, key: Tensor) -> Tensor:
        # The high bits of the product, of which a shift would drag the sign along.
        return (key * SPREAD >> self._shift) & self._mask

    def _put(self, key: Tensor, row: Tensor) -> None:
        place, left = self._first(key), torch.arange(key.numel())
        while left.numel() > 0:
            empty = left[self._entry[place[left], 0] < 0]
            # Of several that come to one place, one stays.
            self._entry[place[empty], 0] = key[empty]
            is_put = self._entry[place[left], 0] == key[left]
            self._entry[place[left[is_put]], 1] = row[left[is_put]]
            left = left[~is_put]
            place[left] = (place[left] + 1) & self._mask
