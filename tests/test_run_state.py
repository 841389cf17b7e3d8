import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mag.run_state import (
    AtomicCheckpointIO,
    check_same_config,
    describe_model,
    random_state,
    set_random_states,
)


class Unwritable:
    def __reduce__(self) -> str:
        raise RuntimeError('failed on purpose')


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / 'last.ckpt'
    files = AtomicCheckpointIO()
    files.save_checkpoint({'weight': torch.arange(3)}, path)
    with pytest.raises(RuntimeError, match='failed on purpose'):
        files.save_checkpoint({'weight': torch.arange(9), 'bad': Unwritable()}, path)
    assert files.load_checkpoint(path)['weight'].tolist() == [0, 1, 2]
    files.save_checkpoint({'weight': torch.arange(2)}, path)
    assert files.load_checkpoint(path)['weight'].tolist() == [0, 1]


def draw() -> list[float]:
    # An odd number of normal draws leaves half a pair in NumPy's state.
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    draw()
    torch.save(random_state(), tmp_path / 'state.pt')
    expected = draw()
    assert draw() != expected
    set_random_states(torch.load(tmp_path / 'state.pt', weights_only=True))
    assert draw() == expected


def test_config_names_each_difference() -> None:
    saved = {
        'seed': 1,
        'rate': 0.1,
        **describe_model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.1))),
    }
    check_same_config(saved, saved, 'runs/a')
    other = {
        'seed': 2,
        'rate': 0.1,
        **describe_model(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.2))),
    }
    with pytest.raises(ValueError) as error:
        check_same_config(saved, other, 'runs/a')
    message = str(error.value)
    assert 'The run in runs/a was started with other settings: seed is 1 there, 2 here;' in message
    assert '(1): Dropout(p=0.1, inplace=False) there' in message
    assert '(1): Dropout(p=0.2, inplace=False) here' in message
    assert 'parameter 0.weight is [3, 2] there, [4, 2] here' in message
    assert 'parameter 0.bias is [3] there, [4] here' in message
    assert 'rate' not in message


def test_description_of_a_model_holds_no_addresses() -> None:
    class Model(torch.nn.Module):
        def extra_repr(self) -> str:
            return f'{object()}'

    assert describe_model(Model()) == describe_model(Model())
