r"""HeteroData in, HeteroData out."""

from mag.transforms.behavior_graph import BehaviorGraph
from mag.transforms.macro_coarsen import MacroCoarsen
from mag.transforms.recent_neighbors import RecentNeighbors
from mag.transforms.temporal_split import TemporalSplit
from mag.transforms.text_features import TextFeatures

__all__ = ['BehaviorGraph', 'MacroCoarsen', 'RecentNeighbors', 'TemporalSplit', 'TextFeatures']
