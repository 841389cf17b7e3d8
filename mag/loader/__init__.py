r"""Loaders that read a macro graph in batches."""

from mag.loader.batch_index_sampler import BatchIndexSampler
from mag.loader.pair_batch import PairBatch
from mag.loader.pair_loader import PairLoader

__all__ = ['BatchIndexSampler', 'PairBatch', 'PairLoader']
