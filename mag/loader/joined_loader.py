from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mag.checks import described
from mag.loader.exposure_loader import ExposureLoader
from mag.loader.exposures import Exposures
from mag.loader.history_loader import HistoryLoader
from mag.loader.joined_batch import JoinedBatch
from mag.loader.pair_loader import PairLoader
from mag.loader.path_loader import PathLoader
from mag.loader.row_loader import RowLoader, RowReader

# The attribute of a batch that holds what each loader reads.
_PARTS = {
    PairLoader: 'pairs',
    ExposureLoader: 'features',
    HistoryLoader: 'histories',
    PathLoader: 'paths',
}


class JoinedLoader(RowLoader):
    r"""Loads the same exposures by several loaders at once, as :class:`JoinedBatch`, so that a
    stack of models trains from one loader.

    .. code-block:: python

        loaders = [PairLoader(train), HistoryLoader(train, history=data)]
        for batch in JoinedLoader(loaders, batch_size=1024, shuffle=True):
            logits = macgnn(batch.pairs) + hyperctr(batch.histories)
            loss = binary_cross_entropy_with_logits(logits, batch.label)

    Args:
        loaders (Sequence[RowLoader]): At most one of each kind, all of the same exposures. What
            their own :obj:`batch_size`, :obj:`shuffle` and :obj:`seed` are does not count here.
        batch_size (int, optional): Exposures a batch. (default: :obj:`1024`)
        shuffle (bool, optional): If set to :obj:`True`, exposures are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling. (default: :obj:`0`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        TypeError: If something else than a loader is to be joined.
        ValueError: If there is no loader, two of a kind, or loaders of different exposures.
    """

    dataset: '_JoinedReader'

    def __init__(
        self,
        loaders: Sequence[RowLoader],
        batch_size: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self._request_of = _by_part(loaders)
        readers = {part: loader.dataset for part, loader in self._request_of.items()}
        super().__init__(_JoinedReader(readers), batch_size, shuffle, seed, **kwargs)

    def request(self, user: int | Tensor, items: Tensor, **arguments: Any) -> JoinedBatch:
        r"""Makes the batch of one request: one user and its candidate items.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            **arguments (optional): What requests of the loaders take besides, such as :obj:`time`
                and :obj:`query`. Each loader is given those that it reads.

        Raises:
            ValueError: If no loader reads an argument.

        And whatever a request of one of the loaders raises.
        """
        takes = {part: reader.arguments() for part, reader in self.dataset.readers.items()}
        unknown = set(arguments).difference(*takes.values())
        if unknown:
            raise ValueError(
                f'A request of these loaders may tell {sorted(set().union(*takes.values()))}, but '
                f'told {sorted(unknown)}.'
            )
        batches = {
            part: loader.request(
                user,
                items,
                **{name: arguments[name] for name in takes[part].intersection(arguments)},
            )
            for part, loader in self._request_of.items()
        }
        first = next(reader for reader in self.dataset.readers.values())
        pairs = first.exposures.request(user, items, reads=(), caller='JoinedLoader.request')
        return JoinedBatch(pairs.user, pairs.item, **batches)


class _JoinedReader(RowReader):
    r"""Reads what several readers do."""

    def __init__(self, readers: dict[str, RowReader]) -> None:
        super().__init__(next(iter(readers.values())).exposures)
        self.exposures.check_outcomes()
        self.readers = readers

    def batch(self, exposures: Exposures) -> JoinedBatch:
        rows = exposures.rows
        return JoinedBatch(
            exposures.user,
            exposures.item,
            exposures.label,
            exposures.conversion,
            exposures.behavior,
            **{part: reader[rows] for part, reader in self.readers.items()},
        )


def _by_part(loaders: Sequence[RowLoader]) -> dict[str, Any]:
    r"""The loaders by the attribute of a batch that holds what they read."""
    if not isinstance(loaders, Sequence) or not loaders:
        raise ValueError(
            f'JoinedLoader joins a list of loaders, such as [PairLoader(train), '
            f'HistoryLoader(train)], but got {described(loaders)}.'
        )
    found: dict[str, Any] = {}
    for loader in loaders:
        part = _PARTS.get(type(loader))
        if part is None:
            raise TypeError(
                f'JoinedLoader joins {", ".join(kind.__name__ for kind in _PARTS)}, but got '
                f'{type(loader).__name__}.'
            )
        if part in found:
            raise ValueError(f'JoinedLoader joins one {type(loader).__name__}, but got two.')
        found[part] = loader
    first, *others = (loader.dataset.exposures for loader in found.values())
    for loader, other in zip(list(found.values())[1:], others, strict=True):
        if not _same_rows(first, other):
            raise ValueError(
                f'JoinedLoader joins loaders of the same exposures, but those of '
                f'{type(loaders[0]).__name__} and {type(loader).__name__} differ: make them of one '
                f'part.'
            )
    return found


def _same_rows(first: Exposures, other: Exposures) -> bool:
    if first.num_nodes != other.num_nodes or first.id_maps != other.id_maps:
        return False
    # Not each loader needs each column.
    for name in ('user', 'item', 'time', 'label', 'conversion', 'behavior'):
        one, another = getattr(first, name), getattr(other, name)
        if one is not None and another is not None and not torch.equal(one, another):
            return False
    return True
