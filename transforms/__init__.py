r"""HeteroData in, HeteroData out."""

from mag.transforms.behavior_graph import BehaviorGraph
from mag.transforms.bucket_numbers import BucketNumbers
from mag.transforms.field_text import FieldText
from mag.transforms.interest_hypergraph import InterestHypergraph
from mag.transforms.macro_coarsen import MacroCoarsen
from mag.transforms.recent_neighbors import RecentNeighbors
from mag.transforms.sample_negatives import SampleNegatives
from mag.transforms.target_counts import TargetCounts
from mag.transforms.temporal_split import TemporalSplit
from mag.transforms.text_features import TextFeatures
from mag.transforms.time_slots import TimeSlots
from mag.transforms.user_interest import UserInterest
from mag.transforms.window import window

__all__ = [
    'BehaviorGraph',
    'FieldText',
    'BucketNumbers',
    'InterestHypergraph',
    'MacroCoarsen',
    'RecentNeighbors',
    'SampleNegatives',
    'TargetCounts',
    'TemporalSplit',
    'TextFeatures',
    'TimeSlots',
    'UserInterest',
    'window',
]
