from collections.abc import Mapping
from typing import Any

import torch
from torch_geometric.data import HeteroData

from mag.compression import QuantizedEmbedding
from mag.lineage import id_maps, require_same_ids
from mag.loader import ExposureFeatures


def grown_fields(
    model: Any, data: HeteroData
) -> tuple[ExposureFeatures, dict[str, int], dict[str, int]]:
    r"""The features of a log that grew, and how many values fields had and have, for
    :func:`check_grown`.

    Args:
        model: A model with :obj:`fields` and an :obj:`embedding` of them.
        data: A part of the log.

    Raises:
        TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
        ValueError: If the data has other fields.
    """
    name = type(model).__name__
    features = ExposureFeatures(data, caller=f'{name}.grow')
    if features.fields != model.fields:
        raise ValueError(
            f'{name} was built for the fields {list(model.fields)}, but this data has '
            f'{list(features.fields)}.'
        )
    known, found = (
        {f'values of {field!r}': num for field, num in of.num_values.items()}
        for of in (model.embedding, features)
    )
    return features, known, found


def check_grown(
    model: torch.nn.Module, data: HeteroData, known: Mapping[str, int], found: Mapping[str, int]
) -> None:
    r"""Raises unless a log is the one that a model was built for, or one that it grew to.

    Args:
        model: The model.
        data: A part of the log.
        known: How much of what the model was built for, such as :obj:`{'users': 5}`.
        found: How much there is now.

    Raises:
        ValueError: If tables are compressed, the ids are those of another log, or there is less of
            something.
    """
    name = type(model).__name__
    if any(isinstance(part, QuantizedEmbedding) for part in model.modules()):
        raise ValueError(
            f'{name} has compressed tables, which do not grow: grow the model that was compressed, '
            f'and compress it again.'
        )
    require_same_ids(f'{name} was built for', id_maps(model), id_maps(data))
    for what, number in known.items():
        if found[what] < number:
            raise ValueError(
                f'{name} was built for {number} {what}, but this data has only {found[what]}: a '
                f'log that grew keeps all that it had.'
            )
