r"""The states of the global random number generators, to save and to put back."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    r"""The states of the global generators of Python, NumPy and torch, in plain types, which
    :func:`torch.load` reads with :obj:`weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        'python': random.getstate(),
        'numpy': (name, np.asarray(keys).tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(state: dict[str, Any]) -> None:
    r"""Puts back what :func:`random_state` returned."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
