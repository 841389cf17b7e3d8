r"""Loaders that read a log or a macro graph in batches."""

from mag.loader.batch_index_sampler import BatchIndexSampler
from mag.loader.exposure_batch import ExposureBatch
from mag.loader.exposure_features import ExposureFeatures
from mag.loader.exposure_loader import ExposureLoader
from mag.loader.exposures import Exposures
from mag.loader.history_batch import HistoryBatch
from mag.loader.history_loader import HistoryLoader
from mag.loader.joined_batch import JoinedBatch
from mag.loader.joined_loader import JoinedLoader
from mag.loader.negative_batch import NegativeBatch
from mag.loader.negative_loader import NegativeLoader
from mag.loader.pair_batch import PairBatch
from mag.loader.pair_loader import PairLoader
from mag.loader.path_loader import PathLoader
from mag.loader.path_sampler import PathSampler

__all__ = [
    'BatchIndexSampler',
    'ExposureBatch',
    'ExposureFeatures',
    'ExposureLoader',
    'Exposures',
    'HistoryBatch',
    'HistoryLoader',
    'JoinedBatch',
    'JoinedLoader',
    'NegativeBatch',
    'NegativeLoader',
    'PairBatch',
    'PairLoader',
    'PathLoader',
    'PathSampler',
]
