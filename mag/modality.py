r"""What is seen, heard or read of items: the features of each modality, and who has them. A row of
zeros says that an item has nothing of a modality."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_tensor, check_values, described
from mag.schema import contents


def modality_features(data: HeteroData, caller: str) -> dict[str, Tensor]:
    r"""From the name of each modality to the features :obj:`data['item'].x_<name>`, with zeros
    where there is a :obj:`has_<name>` that is false.

    Args:
        data: A log.
        caller: The name of the caller, for the message.

    Raises:
        TypeError: If features are no floats.
        ValueError: If the items have no such features, they are of another shape or NaN or
            infinite, or a :obj:`has_<name>` is no boolean for each item.
    """
    item = data['item']
    features = {modality: item[name] for modality, name in contents(item).items() if modality}
    if not features:
        raise ValueError(
            f"{caller} needs the features of a modality, data['item'].x_<name>, such as x_visual, "
            f'but the items have {list(item.keys())}.'
        )
    num_items = check_features(features, caller, item.num_nodes)
    for name, x in features.items():
        has = item.get(f'has_{name}')
        if has is None:
            continue
        what = f"data['item'].has_{name}"
        check_tensor(caller, what, has, (num_items,), torch.bool)
        features[name] = x.masked_fill(~has.unsqueeze(1), 0)
    return features


def has_modality(features: Mapping[str, Tensor]) -> Tensor:
    r"""Which items have which modality, booleans of shape :obj:`[num_items, num_modalities]`."""
    return torch.stack([(x != 0).any(dim=1) for x in features.values()], dim=1)


def check_features(
    features: Mapping[str, Tensor], caller: str, num_items: int | None = None
) -> int:
    r"""Raises unless features are those of the same items, whose number it returns.

    Args:
        features: For one modality or more, the features of all items, shape
            :obj:`[num_items, F]`.
        caller: The name of the caller, for the message.
        num_items: How many items there are, if that is known. (default: :obj:`None`)

    Raises:
        TypeError: If features are no floats.
        ValueError: If there is no modality, or features have another shape or are NaN or infinite.
    """
    if not features:
        raise ValueError(f'{caller} needs the features of a modality or more, but got none.')
    for name, x in features.items():
        size = 'num_items' if num_items is None else num_items
        check_tensor(caller, f'x_{name}', x, (size, 'F'), 'floats')
        num_items = x.size(0)
        if x.numel() == 0:
            raise ValueError(f"{caller} expects numbers in 'x_{name}', but got {described(x)}.")
        # Models read float32, of which some doubles are beyond.
        is_good, expected = x.float().isfinite(), 'finite float32, 0 where there is nothing'
        check_values(caller, f'x_{name}', x, is_good, expected, wait=True)
    return num_items or 0
