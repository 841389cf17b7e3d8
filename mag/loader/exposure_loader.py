from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader.exposure_batch import ExposureBatch
from mag.loader.exposure_features import ExposureFeatures
from mag.loader.exposures import Exposures
from mag.loader.row_loader import RowLoader, RowReader
from mag.schema import label_attributes, require


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

    dataset: '_FeatureReader'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 2048,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(_FeatureReader(data), batch_size, shuffle, seed, **kwargs)

    @property
    def fields(self) -> tuple[str, ...]:
        r"""The name of each column of :obj:`sparse` in a batch."""
        return self.dataset.features.fields

    def request(
        self,
        user: int | Tensor,
        items: Tensor,
        x: Tensor | None = None,
        counts: Tensor | None = None,
        **contexts: int | Tensor,
    ) -> ExposureBatch:
        r"""Makes the batch of one request: one user and its candidate items.

        .. code-block:: python

            loader.request(7, torch.arange(1_000), query=torch.tensor([12, 5, -1, -1]), domain=1)

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            x (torch.Tensor, optional): The dense features of the exposures, shape :obj:`[B, F]` or
                :obj:`[F]`, if the log has some.
            counts (torch.Tensor, optional): The counts at the target as of now, shape
                :obj:`[B, C, 2]`, if the log has some: :meth:`TargetCounts.state` tells them.
            **contexts (int or torch.Tensor): Every categorical attribute that the exposures of the
                log have, one for the request or one for each item.

        Raises:
            IndexError: If the user, an item or the value of a context does not exist; :obj:`-1`,
                for none, does where the log has it.
            TypeError: If an id is no integer, or :obj:`x` holds no numbers.
            ValueError: If a context or :obj:`x` is missing, unknown or has another shape, or
                :obj:`x` is NaN or infinite.
        """
        return self._request(user, items, x=x, contexts=contexts, counts=counts)


class _FeatureReader(RowReader):
    r"""Reads features and what followed."""

    def __init__(self, data: HeteroData) -> None:
        self.features = ExposureFeatures(data, caller='ExposureLoader')
        if label_attributes(data):
            require(data, 'ExposureLoader', 'edge_label_index')
        super().__init__(self.features.exposures)
        self.exposures.check_outcomes()

    def arguments(self) -> set[str]:
        return {*self.features.names, 'x', 'counts'}

    def batch(self, exposures: Exposures) -> ExposureBatch:
        return ExposureBatch(
            exposures.user,
            exposures.item,
            *self.features.rows(exposures),
            exposures.label,
            exposures.conversion,
            exposures.behavior,
            exposures.counts,
        )
