r"""Raw click logs in, one cached micro graph out."""

from mag.datasets.click_dataset import ClickDataset
from mag.datasets.event_log import EventLog
from mag.datasets.kuai_rand import KuaiRand
from mag.datasets.kuai_sar import KuaiSAR
from mag.datasets.log_table import LogTable
from mag.datasets.micro_video import MicroVideo
from mag.datasets.movie_lens import MovieLens
from mag.datasets.synthetic_market import SyntheticMarket
from mag.datasets.trivago import Trivago
from mag.id_map import IdMap

__all__ = [
    'ClickDataset',
    'EventLog',
    'IdMap',
    'KuaiRand',
    'KuaiSAR',
    'LogTable',
    'MicroVideo',
    'MovieLens',
    'SyntheticMarket',
    'Trivago',
]
