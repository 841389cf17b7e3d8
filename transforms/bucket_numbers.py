import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_choice, check_integers, check_tensor
from mag.cutoff import Cutoff, first_cutoff, require_not_earlier
from mag.loader import Exposures
from mag.loader.columns import dense
from mag.schema import CLICKS, contents, require, require_cpu
from mag.transforms._fitted import fitted

_EXPOSURES = 'edge_label_x'


@functional_transform('bucket_numbers')
class BucketNumbers(BaseTransform):
    r"""Puts dense features into buckets, which models of categorical fields read, as FuxiCTR does
    (functional name: :obj:`bucket_numbers`).

    .. code-block:: python

        buckets = BucketNumbers().fit(train)
        train, val, test = buckets(train), buckets(val), buckets(test)

    :meth:`fit` reads the exposures of a training part alone: with what they were shown with, and
    what is known of their users and items, each as often as it was shown. A number below all that
    training has is in the first bucket, one above in the last. A part whose first cutoff is earlier
    than that of the part it was fitted on is refused: the buckets know its future. An unfitted
    transform that is called fits on what it is given and leaves itself unchanged.

    Adds, for each column of each :obj:`x` and :obj:`x_name` of users and items, and of the
    :obj:`edge_label_x` of exposures, a categorical attribute of int64, and the number of its values
    beside it: of :obj:`x_price` :obj:`price_bucket`, or :obj:`price_bucket_0` and so on where it
    has several columns; of :obj:`x` :obj:`bucket`, or :obj:`bucket_0`; and
    :obj:`edge_label_bucket` likewise. The features stay.

    Args:
        num_buckets (int, optional): How many buckets of equally many exposures there are; fewer
            where numbers are equal. (default: :obj:`10`)
        form (str, optional): :obj:`"quantile"`, or :obj:`"log"` for the buckets
            :math:`\lfloor \ln(x)^2 \rfloor` of a number :math:`x > 2`, and :math:`x` without its
            fraction of others, of which training has any, as on Criteo.
            (default: :obj:`"quantile"`)
        modalities (Sequence[str], optional): Which features of users and items, such as
            :obj:`["price"]` for :obj:`x_price`, and :obj:`""` for :obj:`x`; by default all. Those
            of images and texts are many. (default: :obj:`None`)

    Attributes:
        edges (dict[str, torch.Tensor], optional): Where each bucket but the first begins, float64,
            by the name of a column, such as :obj:`"item.x_price.0"`; else :obj:`None`.

    Raises:
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`, features are no
            floats, or a number is no integer.
        ValueError: If there are fewer than two buckets, the form is unknown, there are no features
            or no exposures to fit on, features are not finite, or the data has others than were
            fitted or an earlier first cutoff.
    """

    def __init__(
        self,
        num_buckets: int = 10,
        form: str = 'quantile',
        modalities: Sequence[str] | None = None,
    ) -> None:
        check_integers(2, num_buckets=num_buckets)
        check_choice(('quantile', 'log'), form=form)
        is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
        if modalities is not None and not is_list:
            raise TypeError(
                f"'modalities' must be a list such as ['price'], but got {modalities!r}."
            )
        self.num_buckets, self.form, self.modalities = num_buckets, form, modalities
        self.edges: dict[str, Tensor] | None = None
        self._cutoff: Cutoff | None = None

    def fit(self, data: HeteroData) -> 'BucketNumbers':
        r"""Learns where buckets begin.

        Args:
            data (HeteroData): A training part.

        Raises:
            ValueError: If it has no dense features, or no exposures.
        """
        require(data, 'BucketNumbers', 'edge_label_index')
        require_cpu(data, 'BucketNumbers')
        exposures = Exposures(data, 'BucketNumbers', outcomes=False)
        of_rows = {'user': exposures.user, 'item': exposures.item}
        tables = self._tables(data)
        if not tables or len(exposures) == 0:
            raise ValueError(
                f'BucketNumbers expects exposures and dense features, x, x_<name> or edge_label_x, '
                f'but the data has {len(exposures)} exposures and {len(tables)} such attributes.'
            )
        edges = {}
        for name, table in tables.items():
            rows = of_rows.get(name.split('.')[0])
            for column, numbers in enumerate(table.unbind(1)):
                shown = numbers if rows is None else numbers[rows]
                edges[f'{name}.{column}'] = self._edges(shown)
        self._cutoff = first_cutoff(data, 'BucketNumbers')
        self.edges = edges
        return self

    def _edges(self, numbers: Tensor) -> Tensor:
        code = self._code(numbers)
        if self.form == 'quantile':
            # Those that were seen, so that no bucket is empty.
            share = np.linspace(0, 1, self.num_buckets + 1)[1:-1]
            found = torch.from_numpy(np.quantile(code.numpy(), share, method='higher'))
            return found[found > code.min()].unique()
        return code.unique()[1:]

    def _code(self, numbers: Tensor) -> Tensor:
        code = numbers.double()
        if self.form == 'quantile':
            return code
        # Of smaller ones the logarithm is not asked for, and may not exist.
        return torch.where(code > 2, code.clamp(min=2).log().square().floor(), code.trunc())

    def _bucket(self, name: str, numbers: Tensor) -> Tensor:
        return torch.bucketize(self._code(numbers), self._fitted()[name], right=True)

    def _fitted(self) -> dict[str, Tensor]:
        if self.edges is None:
            raise ValueError('BucketNumbers knows no buckets yet: call fit(train) first.')
        return self.edges

    def contexts(self, x: Tensor) -> dict[str, Tensor]:
        r"""The buckets of the dense features of a request's candidates, as the contexts that
        :meth:`ExposureLoader.request` takes.

        .. code-block:: python

            loader.request(user, items, x=x, **buckets.contexts(x))

        Args:
            x (torch.Tensor): The features, shape :obj:`[B, F]`.

        Raises:
            TypeError: If they are no floats.
            ValueError: If the transform is not fitted, or on other features.
        """
        width = sum(name.startswith(f'{_EXPOSURES}.') for name in self._fitted())
        check_tensor('BucketNumbers', 'x', x, ('B', width), 'floats')
        return {
            _named('x', column, width): self._bucket(f'{_EXPOSURES}.{column}', numbers)
            for column, numbers in enumerate(x.unbind(1))
        }

    def _tables(self, data: HeteroData) -> dict[str, Tensor]:
        r"""The features of nodes and exposures, each of shape :obj:`[N, F]`, by their places."""
        tables: dict[str, Tensor] = {}
        found: set[str] = set()
        for node_type in ('user', 'item'):
            store, number = data[node_type], data[node_type].num_nodes
            existing = contents(store)
            found |= existing.keys()
            for modality, name in sorted(existing.items()):
                if self.modalities is None or modality in self.modalities:
                    place = f"data['{node_type}'].{name}"
                    table = dense('BucketNumbers', place, store[name], number)
                    tables[f'{node_type}.{name}'] = table
        if not set(self.modalities or ()) <= found:
            raise ValueError(
                f"BucketNumbers expects 'modalities' to be some of {sorted(found)}, for which "
                f'there is x_<name>, but got {self.modalities!r}.'
            )
        clicks = data[CLICKS]
        if _EXPOSURES in clicks:
            number = clicks.edge_label_index.size(1)
            tables[_EXPOSURES] = dense('BucketNumbers', _EXPOSURES, clicks[_EXPOSURES], number)
        return tables

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        r"""What was fitted, as tensors and as values of JSON, for :meth:`load_fitted_state`."""
        return dict(self.edges or {}), {'cutoff': self._cutoff}

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave."""
        self.edges = dict(tensors)
        self._cutoff = Cutoff(*values['cutoff'])

    def forward(self, data: HeteroData) -> HeteroData:
        if self.edges is None:
            return copy.copy(self).fit(data).forward(data)
        require(data, 'BucketNumbers')
        if self._cutoff is not None:
            require_not_earlier(data, 'BucketNumbers', self._cutoff)
        tables = self._tables(data)
        given = [f'{name}.{i}' for name, table in tables.items() for i in range(table.size(1))]
        # A log to serve has no exposures, and so no features of any.
        known = [n for n in self.edges if _EXPOSURES in tables or not n.startswith(_EXPOSURES)]
        if sorted(given) != sorted(known):
            raise ValueError(
                f'BucketNumbers was fitted on the columns {sorted(self.edges)}, but the data has '
                f'{sorted(given)}.'
            )
        for name, table in tables.items():
            node_type, _, attribute = name.rpartition('.')
            store, prefix = (data[node_type], '') if node_type else (data[CLICKS], 'edge_label_')
            for column, numbers in enumerate(table.unbind(1)):
                field = _named(attribute.removeprefix(prefix), column, table.size(1))
                store[f'{prefix}{field}'] = self._bucket(f'{name}.{column}', numbers)
                store[f'num_{field}'] = self.edges[f'{name}.{column}'].numel() + 1
        return data

    def __repr__(self) -> str:
        learned = ''
        if self.edges is not None:
            learned = f', {fitted(self.edges.values(), " ".join(self.edges))}'
        arguments = f'num_buckets={self.num_buckets}, form={self.form!r}'
        return f'{self.__class__.__name__}({arguments}, modalities={self.modalities!r}{learned})'


def _named(attribute: str, column: int, width: int) -> str:
    r"""Such as :obj:`price_bucket` for :obj:`x_price`."""
    modality = attribute.removeprefix('x').removeprefix('_')
    name = f'{modality}_bucket' if modality else 'bucket'
    return name if width == 1 else f'{name}_{column}'
