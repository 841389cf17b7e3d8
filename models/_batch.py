from typing import Any

from mag.loader import ExposureBatch, JoinedBatch, PairBatch


def exposure_batch(caller: str, batch: Any) -> ExposureBatch:
    r"""The features of exposures, alone or of a batch that joins them with others.

    Raises:
        TypeError: If the batch is of another kind.
        ValueError: If a joined batch has none.
    """
    part = batch.features if isinstance(batch, JoinedBatch) else batch
    if part is None:
        raise ValueError(
            f'{caller} reads the features of exposures, but batch.features is None: join '
            f'ExposureLoader(part) with the other loaders.'
        )
    if not isinstance(part, ExposureBatch):
        raise TypeError(
            f'{caller} expects an ExposureBatch or a JoinedBatch, but got {type(part).__name__}.'
        )
    return part


def pair_batch(caller: str, batch: Any) -> PairBatch:
    r"""Pairs with their macro rows, alone or of a batch that joins them with others.

    Raises:
        TypeError: If the batch is of another kind.
        ValueError: If a joined batch has none.
    """
    part = batch.pairs if isinstance(batch, JoinedBatch) else batch
    if part is None:
        raise ValueError(
            f'{caller} reads macro rows and recent neighbors, but batch.pairs is None: join '
            f'PairLoader(part) with the other loaders.'
        )
    if not isinstance(part, PairBatch):
        raise TypeError(
            f'{caller} expects a PairBatch or a JoinedBatch, but got {type(part).__name__}.'
        )
    return part
