from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader.exposure_batch import ExposureBatch
from mag.loader.exposure_features import ExposureFeatures
from mag.loader.row_loader import (
    RowLoader,
    as_integers,
    check_batches,
    check_contexts,
    check_request,
    to_tensor,
)
from mag.schema import CLICKS, require, require_range


class ExposureLoader(RowLoader):
    r"""Loads the exposures of a log as batches of features and labels, :class:`ExposureBatch`.

    .. code-block:: python

        train_loader = ExposureLoader(train, batch_size=2048, shuffle=True)
        for batch in train_loader:
            loss = model.loss(model(batch), batch)

    Features of users and items are gathered by indexing; the same code makes one request's batch at
    serving time, see :meth:`request`.

    Args:
        data (HeteroData): A part of a log, see :class:`ExposureFeatures` for what is read.
        batch_size (int, optional): Exposures a batch. (default: :obj:`2048`)
        shuffle (bool, optional): If set to :obj:`True`, exposures are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Attributes:
        fields (tuple[str, ...]): The name of each column of :obj:`ExposureBatch.sparse`.

    Raises:
        ValueError: If a conversion or a behavior is neither 0 nor 1, or follows no click.
    """

    dataset: '_ExposureRows'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 2048,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_batches(batch_size, shuffle, seed)
        super().__init__(_ExposureRows(data), batch_size, shuffle, seed, **kwargs)

    @property
    def fields(self) -> tuple[str, ...]:
        r"""The name of each column of :obj:`sparse` in a batch."""
        return self.dataset.features.fields

    def request(
        self,
        user: int | Tensor,
        items: Tensor,
        x: Tensor | None = None,
        **contexts: int | Tensor,
    ) -> ExposureBatch:
        r"""Makes the batch of one request: one user and its candidate items.

        .. code-block:: python

            loader.request(7, torch.arange(1_000), query=torch.tensor([12, 5, -1, -1]), domain=1)

        Args:
            user (int or torch.Tensor): The user, or a user for each item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, shape :obj:`[B]`.
            x (torch.Tensor, optional): The dense features of the exposures, shape :obj:`[B, F]` or
                :obj:`[F]`, if the log has some.
            **contexts (int or torch.Tensor): Every categorical attribute that the exposures of the
                log have, one for the request or one for each item.

        Raises:
            IndexError: If the user, an item or the value of a context does not exist; :obj:`-1`,
                for none, does where the log has it.
            TypeError: If an id is no integer, or :obj:`x` holds no numbers.
            ValueError: If a context or :obj:`x` is missing, unknown or has another shape, or
                :obj:`x` is NaN or infinite.
        """
        told = dict(zip(contexts, as_integers(**contexts), strict=True))
        user, items = check_request(
            'ExposureLoader.request', user, items, self.dataset.features.num_nodes
        )
        return self.dataset.request(user, items, x, told)


class _ExposureRows(torch.utils.data.Dataset):
    r"""The exposures of a part, indexed by tensors of rows."""

    def __init__(self, data: HeteroData) -> None:
        self.features = ExposureFeatures(data)
        clicks = data[CLICKS]
        self.label: Tensor | None = None
        if 'edge_label' in clicks:
            require(data, 'ExposureLoader', 'edge_label_index', 'edge_label')
            self.label = clicks.edge_label.float()
        self.conversion = self._following(clicks, 'edge_label_conversion', 1)
        self.behavior = self._following(clicks, 'edge_label_behavior', 2)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor) -> ExposureBatch:
        features = self.features
        user, item = features.user[index], features.item[index]
        contexts = [column[index] for column in features.contexts.values()]
        return ExposureBatch(
            user,
            item,
            features.sparse_rows(user, item, contexts),
            features.dense_rows(user, item, features.x[index]),
            *(
                None if label is None else label[index]
                for label in (self.label, self.conversion, self.behavior)
            ),
        )

    def request(
        self, user: Tensor, item: Tensor, x: Tensor | None, contexts: dict[str, Tensor]
    ) -> ExposureBatch:
        features = self.features
        check_contexts(contexts, features.contexts)
        for name, (first, number) in features.ranges.items():
            require_range(
                'ExposureLoader.request', f"values of '{name}'", contexts[name], number, first
            )
        size = item.numel()
        columns = [
            _expand(name, contexts[name], size, column.size(1))
            for name, column in features.contexts.items()
        ]
        x = torch.empty(size, 0) if x is None else _as_floats(x)
        return ExposureBatch(
            user,
            item,
            features.sparse_rows(user, item, columns),
            features.dense_rows(user, item, _expand('x', x, size, features.x.size(1))),
        )

    def _following(self, clicks: Any, name: str, num_dims: int) -> Tensor | None:
        r"""What followed the clicks, or :obj:`None` if the log does not tell."""
        value = clicks.get(name)
        if value is None or self.label is None:
            return None
        if not isinstance(value, Tensor) or value.dim() != num_dims or len(value) != len(self):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = f'[{len(self)}]' if num_dims == 1 else f'[{len(self)}, N]'
            raise ValueError(
                f"ExposureLoader expects '{name}' of shape {expected}, but got {shape}."
            )
        other = (value != 0) & (value != 1)
        if bool(other.any()):
            row = int(other.nonzero()[0, 0])
            raise ValueError(
                f"ExposureLoader expects '{name}' of 0 and 1, but row {row} holds "
                f'{value[row].tolist()}.'
            )
        early = (value != 0 if num_dims == 1 else (value != 0).any(1)) & (self.label == 0)
        if bool(early.any()):
            raise ValueError(
                f"ExposureLoader found '{name}' in {int(early.sum())} exposures without a click, "
                f'such as row {int(early.nonzero()[0])}: it tells what followed a click.'
            )
        return value.float()


def _as_floats(value: Any) -> Tensor:
    x = to_tensor('x', value, 'hold numbers').float()
    if not bool(x.isfinite().all()):
        raise ValueError(f"'x' must be finite, but got {x[~x.isfinite()][0].item()}.")
    return x


def _expand(name: str, value: Tensor, size: int, width: int) -> Tensor:
    is_column = width == 1 and value.dim() < 2
    table = value.view(-1, 1) if is_column else value
    if list(table.shape) not in ([width], [1, width], [size, width]):
        raise ValueError(
            f"A request of {size} items expects '{name}' of shape [{size}, {width}] or "
            f'[{width}], but got {list(value.shape)}.'
        )
    return table.expand(size, width)
