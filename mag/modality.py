r"""What is seen, heard or read of items: the features of each modality, and who has them. A row of
zeros says that an item has nothing of a modality."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_tensor
from mag.schema import contents


def modality_features(data: HeteroData, reader: str) -> dict[str, Tensor]:
    r"""From the name of each modality to the features :obj:`data['item'].x_<name>`, with zeros
    where there is a :obj:`has_<name>` that is false.

    Args:
        data: A log.
        reader: The name of the caller, for the message.

    Raises:
        TypeError: If features are no floats.
        ValueError: If the items have no such features, they are of another shape or NaN or
            infinite, or a :obj:`has_<name>` is no boolean for each item.
    """
    item = data['item']
    features = {modality: item[name] for modality, name in contents(item).items() if modality}
    if not features:
        raise ValueError(
            f"{reader} needs the features of a modality, data['item'].x_<name>, such as x_visual, "
            f'but the items have {list(item.keys())}.'
        )
    num_items = check_features(features, reader)
    if num_items != item.num_nodes:
        raise ValueError(
            f'{reader} found features of {num_items} items, but the data has {item.num_nodes}.'
        )
    for name, x in features.items():
        has = item.get(f'has_{name}')
        if has is None:
            continue
        what = f"data['item'].has_{name}"
        check_tensor(reader, what, has, (num_items,), torch.bool)
        features[name] = x.masked_fill(~has.unsqueeze(1), 0)
    return features


def has_modality(features: Mapping[str, Tensor]) -> Tensor:
    r"""Which items have which modality, booleans of shape :obj:`[num_items, num_modalities]`."""
    return torch.stack([(x != 0).any(dim=1) for x in features.values()], dim=1)


def check_features(features: Mapping[str, Tensor], reader: str) -> int:
    r"""Raises unless features are those of the same items, whose number it returns.

    Args:
        features: For one modality or more, the features of all items, shape
            :obj:`[num_items, F]`.
        reader: The name of the caller, for the message.

    Raises:
        TypeError: If features are no floats.
        ValueError: If there is no modality, or features have another shape or are NaN or infinite.
    """
    if not features:
        raise ValueError(f'{reader} needs the features of a modality or more, but got none.')
    for name, x in features.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{reader} expects features of floats, but got {got} for '{name}'.")
    shapes = {name: list(x.shape) for name, x in features.items()}
    num_items = {shape[0] for shape in shapes.values() if len(shape) == 2 and 0 not in shape}
    if len(num_items) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError(
            f'{reader} expects features of shape [num_items, F], F of any size above 0, but got '
            f'{shapes}.'
        )
    for name, x in features.items():
        # Models read float32, of which some doubles are beyond.
        bad = ~x.float().isfinite()
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0])
            raise ValueError(
                f"{reader} found features '{name}' that are no finite float32, first of item "
                f'{row}: an item without a modality has a row of zeros.'
            )
    return num_items.pop()
