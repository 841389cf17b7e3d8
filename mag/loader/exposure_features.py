from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.schema import CLICKS, require

# What follows an exposure, and may be counted beside it, is no feature.
OUTCOMES = {'behavior', 'conversion'}


class ExposureFeatures(torch.utils.data.Dataset):
    r"""What is known of an exposure when it is shown, as ids of categorical fields and as dense
    features.

    The fields are the ids of user and item, every categorical attribute of the two (a :obj:`name`
    with :obj:`num_name` beside it), and every one of the exposure (:obj:`edge_label_name` with
    :obj:`num_name` among the clicks); one with several columns, such as the terms of a query, gives
    as many fields of one name. The dense features are every :obj:`x` and :obj:`x_name` of user
    and item, and :obj:`edge_label_x` of the exposure.

    Args:
        data (HeteroData): A part of a log.

    Attributes:
        fields (tuple[str, ...]): The name of each categorical column, such as :obj:`"user"`,
            :obj:`"item_category"` or :obj:`"query"`.
        num_dense (int): The number of dense features.

    Raises:
        TypeError: If ids are no integers or dense features no floats.
        ValueError: If an attribute has another length than its store, or a dense feature is NaN or
            infinite.
    """

    def __init__(self, data: HeteroData) -> None:
        require(data, type(self).__name__, 'edge_index')
        self.num_nodes = {name: data[name].num_nodes for name in ('user', 'item')}
        self.sparse, self.dense = {}, {}
        fields = []
        for node_type, num_nodes in self.num_nodes.items():
            names = _categoricals(data[node_type])
            columns = [
                _column(f"data['{node_type}'].{name}", data[node_type][name], num_nodes)
                for name in names
            ]
            self.sparse[node_type] = torch.cat(
                [torch.arange(num_nodes).view(-1, 1), *columns], dim=1
            )
            contents = [name for name in data[node_type].keys() if name.split('_')[0] == 'x']
            self.dense[node_type] = _dense(
                data[node_type], f"data['{node_type}']", sorted(contents), num_nodes
            )
            fields += [node_type]
            for name, column in zip(names, columns, strict=True):
                fields += [f'{node_type}_{name}'] * column.size(1)

        clicks = data[CLICKS]
        self.user, self.item = torch.empty(2, 0, dtype=torch.long)
        if 'edge_label_index' in clicks:
            require(data, type(self).__name__, 'edge_label_index')
            self.user, self.item = clicks.edge_label_index
        num_exposures = self.user.numel()
        self.contexts = {
            name: _column(f"'edge_label_{name}'", clicks[f'edge_label_{name}'], num_exposures)
            for name in _categoricals(clicks, 'edge_label_')
        }
        # The least value and the number of values; a log without exposures does not tell whether
        # there can be none, which is -1.
        self.ranges = {
            name: (
                -1 if column.numel() == 0 or int(column.min()) < 0 else 0,
                int(clicks[f'num_{name}']),
            )
            for name, column in self.contexts.items()
        }
        for name, column in self.contexts.items():
            fields += [name] * column.size(1)
        contents = ['edge_label_x'] if 'edge_label_x' in clicks else []
        self.x = _dense(clicks, f'data{list(CLICKS)}', contents, num_exposures)
        self.fields = tuple(fields)
        self.num_dense = sum(x.size(1) for x in (*self.dense.values(), self.x))

    def __len__(self) -> int:
        return self.user.numel()

    def sparse_rows(self, user: Tensor, item: Tensor, contexts: list[Tensor]) -> Tensor:
        r"""The ids of all fields, shape :obj:`[B, F_s]`."""
        return torch.cat([self.sparse['user'][user], self.sparse['item'][item], *contexts], dim=1)

    def dense_rows(self, user: Tensor, item: Tensor, x: Tensor) -> Tensor:
        r"""The dense features, shape :obj:`[B, F_d]`."""
        return torch.cat([self.dense['user'][user], self.dense['item'][item], x], dim=1)

    def moments(self) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of the dense features over the exposures, each of shape
        :obj:`[F_d]`; a deviation of 1 where a feature is constant."""
        means, squares = [], []
        parts: list[tuple[Tensor, Tensor]] = [
            (self.dense[name], node.bincount(minlength=self.num_nodes[name]).double())
            for name, node in (('user', self.user), ('item', self.item))
        ]
        parts.append((self.x, torch.ones(len(self), dtype=torch.double)))
        for x, count in parts:
            share = count / max(len(self), 1)
            mean = share @ x.double()
            means.append(mean)
            squares.append(share @ (x.double() - mean).square())
        mean, deviation = torch.cat(means).float(), torch.cat(squares).sqrt().float()
        # The mean of equal numbers is off by a rounding, and so is their deviation from 0.
        rounding = torch.finfo(mean.dtype).eps * mean.abs()
        return mean, torch.where(deviation > rounding, deviation, 1.0)


def _categoricals(store: Any, prefix: str = '') -> list[str]:
    r"""The names, without :obj:`prefix`, of the attributes with a number of values beside them."""
    names = {name.removeprefix(prefix) for name in store.keys() if name.startswith(prefix)}
    return sorted(name for name in names - OUTCOMES if f'num_{name}' in store)


def _column(name: str, value: Any, length: int) -> Tensor:
    _check(name, value, length)
    if value.is_floating_point() or value.dtype == torch.bool:
        raise TypeError(f'{name} must hold integer ids, but has dtype {value.dtype}.')
    return value.unsqueeze(1) if value.dim() == 1 else value


def _dense(store: Any, where: str, names: list[str], length: int) -> Tensor:
    columns = [torch.empty(length, 0)]
    for name in names:
        value = store[name]
        _check(f'{where}.{name}', value, length)
        if not value.is_floating_point():
            raise TypeError(f'{where}.{name} must hold floats, but has dtype {value.dtype}.')
        value = value.float().unsqueeze(1) if value.dim() == 1 else value.float()
        if not bool(value.isfinite().all()):
            row = int((~value.isfinite()).any(1).nonzero()[0])
            raise ValueError(f'{where}.{name} is NaN or infinite, first in row {row}.')
        columns.append(value)
    return torch.cat(columns, dim=1)


def _check(name: str, value: Any, length: int) -> None:
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or value.size(0) != length:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f'{name} must be of shape [{length}] or [{length}, F], but got {shape}.')
