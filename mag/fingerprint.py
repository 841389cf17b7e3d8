r"""The settings that a resumed run must share with the run it goes on with."""

import difflib
import re
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from reprlib import recursive_repr
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mag.lineage import ids_of

FIRST_WEIGHTS = 'first weights'


def check_same_config(saved: dict[str, Any], config: dict[str, Any], directory: str) -> None:
    r"""Raises if a run was started with other settings.

    Raises:
        ValueError: Names each setting that differs, with both values, or is missing there.
    """
    differences = [f'{name} is missing there' for name in config if name not in saved]
    names = [name for name in config if name in saved and saved[name] != config[name]]
    for name in names:
        there, here = saved[name], config[name]
        if name == 'model':
            words = {'-': 'there', '+': 'here'}
            differences += [
                f'the model has {line[2:].strip()} {words[line[0]]}'
                for line in difflib.ndiff(there.splitlines(), here.splitlines())
                if line[0] in words
            ]
        elif isinstance(here, dict):
            keys = sorted(key for key in there.keys() | here if there.get(key) != here.get(key))
            if name == 'hyper-parameter' and 'model' in names:
                # What modules say of themselves says it already.
                keys = [key for key in keys if '.' not in key]
            differences += [
                f'{name} {key} is {there.get(key, "missing")} there, '
                f'{here.get(key, "missing")} here'
                for key in keys
            ]
        elif name != FIRST_WEIGHTS:
            differences.append(f'{name} is {there} there, {here} here')
        # They follow from most of the others.
        elif not differences:
            differences.append(
                f'the first weights have the checksum {there} there, {here} here: seed the '
                f'generators before the model is built'
            )
    if differences:
        raise ValueError(
            f'The run in {directory} was started with other settings: {"; ".join(differences)}. '
            f'Choose another directory, or pass resume=False to start over there.'
        )


def describe_task(task: torch.nn.Module) -> dict[str, Any]:
    r"""What :func:`check_same_config` compares of a task: what it and its modules say of
    themselves and hold as attributes, the code of losses and optimizers, the shapes of what is
    saved, checksums of buffers that are not, such as a hypergraph, the fingerprints of the id maps
    that models were built for, and a checksum of the first weights."""
    state = task.state_dict()
    hyper_parameters: dict[str, str] = {}
    code: dict[str, str] = {}
    for path, module in task.named_modules():
        prefix = f'{path}.' if path else ''
        for name, value in vars(module).items():
            text = _describe(value)
            if text and name not in ('training', 'id_maps') and not name.startswith('_'):
                hyper_parameters[prefix + name] = text
        for name in ('loss', 'configure_optimizers'):
            method = getattr(type(module), name, None)
            if isinstance(method, FunctionType):
                code[prefix + name] = f'{_checksum_of_code(method.__code__):08x}'
    return {
        # Addresses of functions differ between processes.
        'model': re.sub(r' at 0x[0-9a-f]+', '', repr(task)),
        'hyper-parameter': hyper_parameters,
        'code of': code,
        'parameter': {name: list(value.shape) for name, value in state.items()},
        'buffer': {
            name: f'{_checksum(value):08x}'
            for name, value in task.named_buffers()
            if name not in state
        },
        'id map of': {name: lineage.split()[-1] for name, lineage in ids_of(task).items()},
        FIRST_WEIGHTS: f'{_checksum(state):08x}',
    }


def fingerprint(module: torch.nn.Module) -> str:
    r"""One checksum of all that :func:`describe_task` tells of a module, eight hexadecimal
    digits."""
    return f'{zlib.crc32(repr(describe_task(module)).encode()):08x}'


def describe_loader(loader: DataLoader) -> dict[str, Any]:
    r"""What :func:`check_same_config` compares of a loader: the number and the order of its rows,
    and of each attribute of its dataset a checksum of the tensors and arrays in it."""
    dataset: Any = loader.dataset
    checksums: dict[str, int] = {}
    for name, part in _parts(dataset, '', set()):
        # Hidden attributes may hold parts of one name.
        checksums[name] = _checksum(part, checksums.get(name, 0))
    return {
        'rows': len(dataset),
        'batch size': str(getattr(loader.sampler, 'batch_size', loader.batch_size)),
        'shuffle': str(getattr(loader.sampler, 'shuffle', None)),
        'seed': str(getattr(loader.sampler, 'seed', None)),
        **{name: f'{checksum:08x}' for name, checksum in checksums.items() if checksum},
    }


def _parts(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    r"""What a dataset holds, and what datasets and dictionaries in it do, each once, by the public
    names on the way to it."""
    if isinstance(value, Dataset):
        if id(value) in seen:
            return
        seen.add(id(value))
        value = vars(value)
    if not isinstance(value, dict):
        yield path or 'content', value
        return
    for name, part in value.items():
        hidden = str(name).startswith('_')
        yield from _parts(part, path if hidden else f'{path}.{name}'.lstrip('.'), seen)


@recursive_repr('...')
def _describe(value: Any) -> str:
    r"""What is compared of an attribute, the same in every process, or nothing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return f'{_checksum(value):08x}'
    if isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        parts = [value.__defaults__, value.__kwdefaults__]
        # What a function finds around it, but for functions, among which it may find itself.
        parts += [cell.cell_contents for cell in value.__closure__ or () if not _is_function(cell)]
        described = [_checksum_of_code(value.__code__), *map(_describe, parts)]
        return f'{value.__qualname__}({described})'
    if isinstance(value, (type, BuiltinFunctionType)):
        return value.__qualname__
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name, None) for field in fields(value)}
    if isinstance(value, dict):
        value = tuple(value.items())
    if not isinstance(value, (tuple, list, set, frozenset)):
        return ''
    # Of what cannot be told, its type: all else in there is compared.
    texts = [_describe(part) or type(part).__qualname__ for part in value]
    # The order of a set differs between processes.
    return f'({", ".join(sorted(texts) if isinstance(value, (set, frozenset)) else texts)})'


def _is_function(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:
        # It is empty until the function around it has come there.
        return True


def _checksum_of_code(code: CodeType) -> int:
    r"""Of what is done, wherever it stands."""
    text = repr((code.co_code, code.co_names))
    for value in code.co_consts:
        if isinstance(value, CodeType):
            text += str(_checksum_of_code(value))
        else:
            # The order of a set differs between processes.
            text += repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
    return zlib.crc32(text.encode())


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
