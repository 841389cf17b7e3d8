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
        if not name:
            raise ValueError(
                f'{path} must name a modality, as <modality>_feat.npy, but names none.'
            )
        if name in files:
            raise ValueError(
                f'One file must hold the modality {name!r}, but got {files[name]} and {path}.'
            )
        files[name] = path
    return dict(sorted(files.items()))


def count_rows(paths: list[str]) -> int:
    r"""The number of rows that all of these files of features have.

    Raises:
        ValueError: If a file is none, or they differ.
    """
    first, *others = paths
    num_rows = len(_open(first))
    for path in others:
        if len(_open(path)) != num_rows:
            raise ValueError(
                f'{path} must have {num_rows:,} rows, one an item, as {first} has, but got '
                f'{len(_open(path)):,}.'
            )
    return num_rows


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
    if not isinstance(features, np.ndarray):
        raise ValueError(f'{path} must be one array, as np.save writes, but got an archive.')
    if features.ndim != 2 or features.dtype.kind not in 'fiu' or features.shape[1] == 0:
        raise ValueError(
            f'{path} must hold numbers of shape [num_items, D], but got {features.dtype} of shape '
            f'{list(features.shape)}.'
        )
    return features
