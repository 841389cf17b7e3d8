import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData

from mag.loader.columns import dense, ids
from mag.loader.exposures import Exposures
from mag.schema import CLICKS, categoricals, contents, require
from mag.unknown import known_places, take_known, unknown_row


class ExposureFeatures(Dataset):
    r"""The features of an exposure at the time it is shown: ids of categorical fields, and dense
    features.

    The fields are the ids of user and item, every categorical attribute of the two (a :obj:`name`
    with :obj:`num_name` beside it), and every one of the exposure (:obj:`edge_label_name` with
    :obj:`num_name` among the clicks); one with several columns, such as the terms of a query, gives
    as many fields of one name. The dense features are every :obj:`x` and :obj:`x_name` of user
    and item, and :obj:`edge_label_x` of the exposure.

    Of an unknown user or item, :obj:`-1`, all ids are :obj:`-1`, for none, and dense features are
    their mean over all users or all items.

    Args:
        data (HeteroData): A part of a log.
        caller (str, optional): Whose name messages begin with. (default: :obj:`"ExposureFeatures"`)

    Attributes:
        exposures (Exposures): Those of the log.
        fields (tuple[str, ...]): The name of each categorical column, such as :obj:`"user"`,
            :obj:`"item_category"` or :obj:`"query"`.
        num_values (dict[str, int]): How many values each field has, by its name.
        num_dense (int): The number of dense features.

    Raises:
        TypeError: If ids are no integers or dense features no floats.
        ValueError: If an attribute has another length than its store, or a dense feature is NaN or
            infinite.
    """

    def __init__(self, data: HeteroData, *, caller: str = 'ExposureFeatures') -> None:
        require(data, caller, 'edge_index')
        self.exposures = Exposures(data, caller, outcomes=False)
        self.sparse, self.dense = {}, {}
        fields = []
        self.num_values = dict(categoricals(data[CLICKS], 'edge_label_'))
        for node_type, num_nodes in self.exposures.num_nodes.items():
            store, place = data[node_type], f"data['{node_type}']"
            columns = [torch.arange(num_nodes).unsqueeze(1)]
            fields.append(node_type)
            self.num_values[node_type] = num_nodes
            for name, number in sorted(categoricals(store).items()):
                self.num_values[f'{node_type}_{name}'] = number
                column = _as_table(ids(caller, f'{place}.{name}', store[name], num_nodes))
                columns.append(column)
                fields += [f'{node_type}_{name}'] * column.size(1)
            self.sparse[node_type] = torch.cat(columns, dim=1)
            self.dense[node_type] = torch.cat(
                [
                    torch.empty(num_nodes, 0),
                    *(
                        dense(caller, f'{place}.{name}', store[name], num_nodes)
                        for name in sorted(contents(store).values())
                    ),
                ],
                dim=1,
            )
        stores = (self.sparse, self.dense)
        self._unknown = [{name: unknown_row(x) for name, x in store.items()} for store in stores]
        self.names = self.exposures.context_names(categoricals(data[CLICKS], 'edge_label_'))
        for name in self.names:
            fields += [name] * _as_table(self.exposures.context(name)).size(1)
        self.fields = tuple(fields)
        self.num_dense = sum(x.size(1) for x in (*self.dense.values(), self.exposures.x))

    def __len__(self) -> int:
        return len(self.exposures)

    def rows(self, exposures: Exposures) -> tuple[Tensor, Tensor]:
        r"""The ids of all fields, shape :obj:`[B, F_s]`, and the dense features, shape
        :obj:`[B, F_d]`, of some of the exposures or of the candidates of a request."""
        user, item = exposures.user, exposures.item
        contexts = [_as_table(exposures.context(name)) for name in self.names]
        nodes = [
            (name, node, known_places(node)) for name, node in (('user', user), ('item', item))
        ]
        sparse, dense = (
            [take_known(x[name], node, known, row[name]) for name, node, known in nodes]
            for x, row in zip((self.sparse, self.dense), self._unknown, strict=True)
        )
        return torch.cat([*sparse, *contexts], dim=1), torch.cat([*dense, exposures.x], dim=1)

    def moments(self) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of the dense features over the exposures, each of shape
        :obj:`[F_d]`; a deviation of 1 where a feature is constant."""
        exposures, size = self.exposures, len(self)
        means, squares = [], []
        parts = [
            (self.dense[name], node.bincount(minlength=exposures.num_nodes[name]).double())
            for name, node in (('user', exposures.user), ('item', exposures.item))
        ]
        parts.append((exposures.x, torch.ones(size, dtype=torch.double)))
        for x, count in parts:
            share = count / max(size, 1)
            mean = share @ x.double()
            means.append(mean)
            squares.append(share @ (x.double() - mean).square())
        mean, deviation = torch.cat(means).float(), torch.cat(squares).sqrt().float()
        # The mean of equal numbers is off by a rounding, and so is their deviation from 0.
        rounding = torch.finfo(mean.dtype).eps * mean.abs()
        return mean, torch.where(deviation > rounding, deviation, 1.0)


def _as_table(column: Tensor) -> Tensor:
    return column.unsqueeze(1) if column.dim() == 1 else column
