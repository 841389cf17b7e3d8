from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from mag.cutoff import require_exposures_after_clicks
from mag.loader.exposures import Exposures
from mag.loader.pair_batch import PairBatch
from mag.loader.row_loader import RowLoader, RowReader
from mag.macro_graph.macro_rows import MacroRows
from mag.schema import require


class PairLoader(RowLoader):
    r"""Loads the exposures of a macro graph as batches of user-item pairs with their macro rows,
    :class:`PairBatch`.

    .. code-block:: python

        train_loader = PairLoader(train, batch_size=1024, shuffle=True)
        for batch in train_loader:
            loss = binary_cross_entropy_with_logits(model(batch), batch.label)

    The rows are those of :class:`~mag.macro_graph.MacroRows`. If the data rolls over windows, each
    exposure reads the rows as of its own window; held are the rows that an exposure reads, and
    those as of the last window.
    The same code makes one request's batch at serving time, see :meth:`request`.

    Args:
        data (HeteroData): A part that went through :class:`~mag.transforms.MacroCoarsen`, and
            :class:`~mag.transforms.RecentNeighbors` (without, the recent lists are empty).
        batch_size (int, optional): Pairs a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, pairs are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        max_bytes (int, optional): What the macro rows may take in memory before they are refused.
            (default: 8 GiB)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        ValueError: If the macro edges are missing, they would take more than :obj:`max_bytes`, or
            an exposure lies before the cutoff of its window or, without a cutoff, before the last
            click.

    Warns if there are no times to tell that by.
    """

    dataset: '_PairReader'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        *,
        max_bytes: int = 8 * 2**30,
        **kwargs: Any,
    ) -> None:
        require(data, 'PairLoader', 'edge_index')
        super().__init__(_PairReader(data, max_bytes), batch_size, shuffle, seed, **kwargs)

    def request(self, user: int | Tensor, items: Tensor) -> PairBatch:
        r"""Makes the batch of one request: one user and its candidate items, as of the last cutoff.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.

        Raises:
            IndexError: If the user or an item does not exist.
            TypeError: If an id is no integer.
            ValueError: If there is not one user, or one for each item.
        """
        return self._request(user, items)


class _PairReader(RowReader):
    r"""Reads macro rows."""

    def __init__(self, data: HeteroData, max_bytes: int) -> None:
        exposures = Exposures(data, 'PairLoader', needs=('edge_label',), outcomes=False)
        super().__init__(exposures)
        # Without windows of their own, all read the last.
        window = exposures.window
        asked = {
            name: (node[:0], node[:0]) if window is None else (node, window)
            for name, node in (('user', exposures.user), ('item', exposures.item))
        }
        self.macro_rows = MacroRows(data, max_bytes, asked=asked, caller='PairLoader')
        if len(self) > 0:
            require_exposures_after_clicks(data, 'PairLoader')

    def arguments(self) -> set[str]:
        return set()

    def batch(self, exposures: Exposures) -> PairBatch:
        user, item, window = exposures.user, exposures.item, exposures.window
        user_hops, user_recent = self.macro_rows.gather('user', user, window)
        item_hops, item_recent = self.macro_rows.gather('item', item, window)
        return PairBatch(
            user, item, user_hops, item_hops, user_recent, item_recent, exposures.label
        )
