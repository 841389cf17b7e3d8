import os.path as osp

import numpy as np
import torch
from torch import Tensor

from mag.datasets._content import end_sentence


def name_modalities(paths: list[str]) -> dict[str, str]:
    r"""From the name of each modality to its file, in the order of names.

    Raises:
        ValueError: If two files are of one modality, or a file is of none.
    """
    files: dict[str, str] = {}
    for path in paths:
        name = osp.basename(path).removesuffix('.npy').removesuffix('_feat')
        if not name or name in files:
            raise ValueError(
                f'{path} must name a modality of its own, as <modality>_feat.npy, but names '
                f'{f"{name!r}, as {files[name]} does" if name else "none"}.'
            )
        files[name] = path
    return dict(sorted(files.items()))


def count_rows(paths: list[str]) -> int:
    r"""The number of rows that all of these files of features have.

    Raises:
        ValueError: If a file is none, or they differ.
    """
    num_rows = {path: len(_open(path)) for path in paths}
    if len(set(num_rows.values())) > 1:
        found = ', '.join(f'{number:,} in {path}' for path, number in num_rows.items())
        raise ValueError(f'Files of features must all have a row an item, but got {found}.')
    return num_rows[paths[0]]


def read_features(path: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    r"""Reads rows of a file of features.

    Returns:
        The features, float32 of shape :obj:`[N, D]`, zeros where a row holds
        only NaN, and whether it holds others, shape :obj:`[N]`.

    Raises:
        ValueError: If a row holds NaN beside numbers, or a number that is not
            finite as a float32.
    """
    # What is too large becomes infinite, which is reported below.
    with np.errstate(over='ignore'):
        features = _open(path)[rows].astype(np.float32)
    has_features = ~np.isnan(features).all(1)
    features[~has_features] = 0
    bad = np.argwhere(~np.isfinite(features))
    if bad.size:
        row, column = bad[0]
        raise ValueError(
            f'{path} must hold numbers that are finite as a float32, or NaN in a whole row, of an '
            f'item without this modality, but got {features[row, column]} in row {rows[row]}, '
            f'column {column}.'
        )
    return torch.from_numpy(features), torch.from_numpy(has_features)


def _open(path: str) -> np.ndarray:
    try:
        features = np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f'{path} must be a NumPy file of numbers, but cannot be read: '
            f'{end_sentence(str(error))}'
        ) from error
    is_array = isinstance(features, np.ndarray)
    is_good = is_array and features.ndim == 2 and features.dtype.kind in 'fiu'
    if not is_good or features.shape[1] == 0:
        found = f'{features.dtype} of shape {list(features.shape)}' if is_array else 'an archive'
        raise ValueError(
            f'{path} must hold one array of numbers of shape [num_items, D], but got {found}.'
        )
    return features
