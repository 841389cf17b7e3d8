import random
from pathlib import Path

import numpy as np
import torch

from mag.training.random_states import random_state, set_random_states


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
