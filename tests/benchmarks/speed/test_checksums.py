import argparse
import re

import pytest
import torch

from mag.files import read_tensors


def test_table_has_a_row_a_size(tmp_path):
    from speed import checksums

    args = argparse.Namespace(sizes=[1, 2], repeats=2, folder=str(tmp_path))
    rows = [line for line in checksums.run(args) if re.match(r'\| \d', line)]
    numbers = [[float(cell.replace(',', '')) for cell in row[2:-2].split(' | ')] for row in rows]
    assert [row[0] for row in numbers] == [1, 2]
    assert all(number > 0 for row in numbers for number in row)
    assert list(tmp_path.iterdir()) == []


def test_what_is_compared_with_has_no_checksum(tmp_path):
    from speed import checksums

    path = tmp_path / 'plain.pt'
    checksums.write_plainly({'x': torch.arange(3)}, path)
    assert torch.load(path, weights_only=True)['x'].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='no file that mag wrote'):
        read_tensors(path)
