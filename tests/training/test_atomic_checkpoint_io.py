from pathlib import Path

import pytest
import torch

from mag.training.atomic_checkpoint_io import AtomicCheckpointIO


class Unwritable:
    def __reduce__(self) -> str:
        raise RuntimeError('failed on purpose')


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / 'last.ckpt'
    files = AtomicCheckpointIO({'seed': 3})
    files.save_checkpoint({'weight': torch.arange(3)}, path)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        files.save_checkpoint({'weight': torch.arange(9), 'bad': Unwritable()}, path)
    assert files.load_checkpoint(path)['weight'].tolist() == [0, 1, 2]
    files.save_checkpoint({'weight': torch.arange(2)}, path)
    loaded = files.load_checkpoint(path)
    assert loaded['weight'].tolist() == [0, 1]
    assert loaded['config'] == {'seed': 3}
