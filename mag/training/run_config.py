r"""The settings that a resumed run must share with the run it goes on with."""

import difflib
import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def check_same_config(saved: dict[str, Any], config: dict[str, Any], directory: str) -> None:
    r"""Raises if a run was started with other settings.

    Raises:
        ValueError: Names each setting that differs, with both values.
    """
    differences = []
    for name in [name for name in config if name in saved and saved[name] != config[name]]:
        if name == 'model':
            lines = difflib.ndiff(saved[name].splitlines(), config[name].splitlines())
            words = {'-': 'there', '+': 'here'}
            differences += [
                f'the model has {line[2:].strip()} {words[line[0]]}'
                for line in lines
                if line[0] in words
            ]
        elif isinstance(config[name], dict):
            for key in sorted(saved[name].keys() | config[name].keys()):
                there, here = saved[name].get(key, 'missing'), config[name].get(key, 'missing')
                if there != here:
                    differences.append(f'{name} {key} is {there} there, {here} here')
        else:
            differences.append(f'{name} is {saved[name]} there, {config[name]} here')
    if differences:
        raise ValueError(
            f'The run in {directory} was started with other settings: {"; ".join(differences)}. '
            f'Choose another directory, or pass resume=False to start over there.'
        )


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    r"""What :func:`check_same_config` compares of a model: what it says of itself, the shapes of
    what is saved of it, and a checksum of each buffer that is not, such as a hypergraph."""
    state = model.state_dict()
    return {
        # Addresses of functions differ between processes.
        'model': re.sub(r' at 0x[0-9a-f]+', '', repr(model)),
        'parameter': {name: list(value.shape) for name, value in state.items()},
        'buffer': {
            name: f'{_checksum(value):08x}'
            for name, value in model.named_buffers()
            if name not in state
        },
    }


def describe_loader(loader: DataLoader) -> dict[str, Any]:
    r"""What :func:`check_same_config` compares of a loader: the number and the order of its rows,
    and of each attribute of its dataset a checksum of the tensors and arrays in it."""
    dataset: Any = loader.dataset
    parts = vars(dataset) if isinstance(dataset, Dataset) else {'content': dataset}
    checksums = {name: _checksum(part) for name, part in parts.items()}
    return {
        'rows': len(dataset),
        'batch size': str(getattr(loader.sampler, 'batch_size', loader.batch_size)),
        'shuffle': str(getattr(loader.sampler, 'shuffle', None)),
        'seed': str(getattr(loader.sampler, 'seed', None)),
        **{name: f'{checksum:08x}' for name, checksum in checksums.items() if checksum},
    }


def _checksum(value: Any, checksum: int = 0) -> int:
    r"""Goes on from a checksum, which stays what it is where there are no tensors and arrays."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        # As bytes, because NumPy has no bfloat16.
        content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    else:
        if isinstance(value, Dataset):
            value = vars(value)
        if isinstance(value, dict):
            value = list(value.values())
        for part in value if isinstance(value, (list, tuple)) else ():
            checksum = _checksum(part, checksum)
        return checksum
    # Several times faster than a cryptographic hash, which no accident needs.
    return zlib.crc32(content.data, zlib.crc32(f'{value.dtype} {value.shape}'.encode(), checksum))
