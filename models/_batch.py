from typing import Any, TypeVar

from torch import Tensor

from mag.loader import ExposureBatch, JoinedBatch, PairBatch

_Part = TypeVar('_Part', ExposureBatch, PairBatch)


def exposure_batch(caller: str, batch: Any) -> ExposureBatch:
    r"""The features of exposures, alone or of a batch that joins them with others.

    Raises:
        TypeError: If the batch is of another kind.
        ValueError: If a joined batch has none.
    """
    return _part(caller, batch, 'features', ExposureBatch, 'an', 'the features of exposures')


def pair_batch(caller: str, batch: Any) -> PairBatch:
    r"""Pairs with their macro rows, alone or of a batch that joins them with others.

    Raises:
        TypeError: If the batch is of another kind.
        ValueError: If a joined batch has none.
    """
    return _part(caller, batch, 'pairs', PairBatch, 'a', 'macro rows and recent neighbors')


def labels(caller: str, batch: ExposureBatch | JoinedBatch) -> Tensor:
    r"""The clicks that a loss learns from.

    Raises:
        ValueError: If the batch has no labels.
    """
    if batch.label is None:
        raise ValueError(f'{caller} learns from batches with labels, but batch.label is None.')
    return batch.label


def _part(caller: str, batch: Any, name: str, kind: type[_Part], article: str, what: str) -> _Part:
    part = getattr(batch, name) if isinstance(batch, JoinedBatch) else batch
    if part is None:
        raise ValueError(
            f'{caller} reads {what}, but batch.{name} is None: join '
            f'{kind.__name__.removesuffix("Batch")}Loader(part) with the other loaders.'
        )
    if not isinstance(part, kind):
        raise TypeError(
            f'{caller} expects {article} {kind.__name__} or a JoinedBatch, but got '
            f'{type(part).__name__}.'
        )
    return part
